package brokercli

import (
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/runenv/action/broker/config"
	"github.com/runenv/action/broker/issuer"
	"github.com/runenv/action/broker/seal"
	"github.com/runenv/action/broker/store"
	"github.com/runenv/action/broker/store/sqlite"
)

// unset stands for `seal` where the environment doesn't hold it: most of the
// commands that look into a store don't use it, and it only has to look like
// one.
var unset = base64.StdEncoding.EncodeToString(make([]byte, seal.KeyBytes))

// lookAt reads the file for what it says of the store. A credential that the
// environment lacks is made up: whoever uses it finds that it fits nothing.
func lookAt(env Env, path string) (*config.File, error) {
	lookup := env.LookupEnv
	env.LookupEnv = func(name string) (string, bool) {
		if v, ok := lookup(name); ok && v != "" {
			return v, true
		}
		return unset, true
	}
	return load(env, path, mode{})
}

// look opens the store that the file names, for reading.
func look(ctx context.Context, env Env, path string) (*config.File, *sqlite.Store, error) {
	file, err := lookAt(env, path)
	if err != nil {
		return nil, nil, err
	}
	s, err := beside(ctx, file)
	return file, s, err
}

// beside opens the store for reading, whether or not a broker has it open.
func beside(ctx context.Context, file *config.File) (*sqlite.Store, error) {
	return openBeside(ctx, sqlite.Config{Path: strings.TrimPrefix(file.Store, "sqlite:"), ReadOnly: true})
}

// besideTool is beside for a tool that records what it does.
func besideTool(ctx context.Context, file *config.File) (*sqlite.Store, error) {
	return openBeside(ctx, sqlite.Config{Path: strings.TrimPrefix(file.Store, "sqlite:"), Beside: true})
}

func openBeside(ctx context.Context, cfg sqlite.Config) (*sqlite.Store, error) {
	s, err := sqlite.Open(ctx, cfg)
	switch {
	case errors.Is(err, os.ErrNotExist):
		return nil, hinted{err, "the broker makes it when it first starts: is this its file, on its machine?"}
	case errors.Is(err, os.ErrPermission):
		return nil, hinted{err, "run this as the broker's user"}
	}
	return s, err
}

// stored are the keys of a store that is only read.
type stored struct{ issuer.KeyStore }

// EnsureKeys refuses: keys are the broker's to make.
func (stored) EnsureKeys(context.Context, time.Time, []store.Key) ([]store.Key, error) {
	return nil, hinted{errors.New("the store has none yet"), "start the broker once: it makes them"}
}

// ownIssuer is the broker as an issuer, with the keys that its store holds.
func ownIssuer(ctx context.Context, env Env, file *config.File, s *sqlite.Store) (*issuer.Issuer, error) {
	sealer, err := sealerOf(file)
	if err != nil {
		return nil, err
	}
	own, err := issuer.Open(ctx, issuer.Config{URL: file.IssuerURL, BrokerURL: file.URL, Keys: stored{s}, Sealer: sealer, Now: env.Now})
	if errors.Is(err, seal.ErrOpen) {
		err = hinted{err, "`seal` must be what the broker runs with: give this command the broker's environment, and its user"}
	}
	if err != nil {
		return nil, fmt.Errorf("opening the broker's own keys: %w", err)
	}
	return own, nil
}

func keysCommand(env Env) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "keys",
		Short: "Publish the keys by which back ends know the broker",
		Args:  noSuchCommand,
		RunE:  func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(keysExportCommand(env))
	return cmd
}

func keysExportCommand(env Env) *cobra.Command {
	var path, out string
	var discovery, jwks bool
	cmd := &cobra.Command{
		Use:   "export --config FILE (--out DIR | --discovery | --jwks)",
		Short: "Write the broker's discovery document and key set, for a bucket at issuer_url",
		Long: `Write the broker's OpenID Connect discovery document and its key set as static
files. Clouds fetch both to verify the broker's tokens; a bucket at "issuer_url"
can serve them where the broker itself isn't public. They hold public keys only.

--out writes DIR/.well-known/openid-configuration and DIR/jwks, byte for byte
what the broker serves, and puts them in the place of older ones. --discovery
and --jwks write one of them to standard output. The store is only read, beside
a running broker or a stopped one, and "seal" must be the broker's: a key that
it doesn't open isn't published.

The documents change when the broker gets a new store, and not before; export
them again then. Both are JSON, and may be cached for five minutes.`,
		Example: `  runenv-broker keys export --config broker.yaml --out site

  # To a bucket at S3, which issuer_url names: https://BUCKET.s3.REGION.amazonaws.com
  aws s3 cp site/ s3://BUCKET/ --recursive --content-type application/json --cache-control max-age=300

  # To one at GCS: https://BUCKET.storage.googleapis.com
  gcloud storage cp -r site/.well-known site/jwks gs://BUCKET/ --content-type=application/json --cache-control=max-age=300

  # What the world sees is what was written:
  runenv-broker keys export --config broker.yaml --jwks | diff - <(curl -fsS https://oidc.example.com/jwks)`,
		Args: noArguments, ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := configGiven(cmd, path); err != nil {
				return err
			}
			given := 0
			for _, is := range []bool{out != "", discovery, jwks} {
				if is {
					given++
				}
			}
			if given != 1 {
				return misused(cmd, errors.New("one of --out, --discovery and --jwks is wanted"))
			}
			file, s, err := look(cmd.Context(), env, path)
			if err != nil {
				return err
			}
			defer func() { _ = s.Close() }()
			own, err := ownIssuer(cmd.Context(), env, file, s)
			if err != nil {
				return err
			}
			if file.IssuerURL == file.URL {
				warn(env, "issuer_url isn't set: back ends ask the broker itself, and these files are of use only at "+file.URL)
			}
			switch {
			case discovery:
				_, err = cmd.OutOrStdout().Write(own.Discovery())
			case jwks:
				_, err = cmd.OutOrStdout().Write(own.JWKS())
			default:
				err = publish(cmd, out, own)
			}
			return err
		},
	}
	configFlag(cmd, &path, "the broker's `FILE`, which names the store")
	cmd.Flags().StringVar(&out, "out", "", "a `DIR` to write both to; it is made if it isn't there")
	_ = cmd.MarkFlagDirname("out") // it fails for unknown flags alone
	cmd.Flags().BoolVar(&discovery, "discovery", false, "write the discovery document to standard output")
	cmd.Flags().BoolVar(&jwks, "jwks", false, "write the key set to standard output")
	return cmd
}

// publish writes both documents below dir, the key set first: a discovery
// document never leads to a key set that isn't there.
func publish(cmd *cobra.Command, dir string, own *issuer.Issuer) error {
	for _, doc := range []struct {
		path string
		body []byte
	}{{issuer.JWKSPath, own.JWKS()}, {issuer.DiscoveryPath, own.Discovery()}} {
		name := filepath.Join(dir, filepath.FromSlash(doc.path))
		if err := replace(name, doc.body); err != nil {
			return fmt.Errorf("writing the export: %w", err)
		}
		if _, err := fmt.Fprintln(cmd.OutOrStdout(), name); err != nil {
			return err
		}
	}
	return nil
}

// replace puts a public file in the place of an older one, whole or not at
// all. One that holds the same already is left alone.
func replace(name string, body []byte) error {
	if old, err := readBounded(name, int64(len(body))); err == nil && bytes.Equal(old, body) {
		return nil
	}
	dir := filepath.Dir(name)
	if err := os.MkdirAll(dir, 0o755); err != nil { //nolint:gosec // it is to be published, with all that it holds
		return err
	}
	f, err := os.CreateTemp(dir, ".export-*")
	if err != nil {
		return err
	}
	_, err = f.Write(body)
	err = errors.Join(err, f.Chmod(0o644), f.Close())
	if err == nil {
		err = os.Rename(f.Name(), name)
	}
	if err != nil {
		return errors.Join(err, os.Remove(f.Name()))
	}
	return nil
}

// warn says on standard error what is no failure.
func warn(env Env, text string) {
	_, _ = fmt.Fprintf(env.Stderr, "%s: warning: %s\n", program, oneLine(text))
}
