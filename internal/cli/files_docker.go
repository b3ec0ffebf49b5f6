package cli

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/runenv/action/internal/filesecret"
	"github.com/runenv/action/secret"
)

const (
	dockerFile = "config.json"
	// maxDockerConfig bounds the job's own config.json, in bytes. One with
	// logins to fifty registries has 10 KiB.
	maxDockerConfig = 1 << 20
	maxJSONDepth    = 32
)

// dockerConfig plans a folder that DOCKER_CONFIG can hold: the job's own
// config.json with the leased logins in it, and links to all else that is in
// the job's own folder.
func (a *app) dockerConfig(f *planned, sections []section) error {
	f.folder = f.name
	f.name = f.folder + "/" + dockerFile
	own := a.env.Getenv("DOCKER_CONFIG")
	if home := a.env.Getenv("HOME"); own == "" && filepath.IsAbs(home) {
		own = filepath.Join(home, ".docker")
	}
	var text []byte
	if own != "" {
		if !filepath.IsAbs(own) {
			own = filepath.Join(a.env.Dir, own)
		}
		var err error
		if text, err = readBounded(filepath.Join(own, dockerFile), maxDockerConfig); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("reading Docker's config.json, to add a login to it: %w", err)
		}
		if f.links, err = besides(own, f.folder); err != nil {
			return err
		}
	}
	merged, err := mergeDocker(text, sections)
	f.content = merged
	return err
}

// besides links everything in Docker's folder but its config.json.
func besides(own, folder string) ([]link, error) {
	entries, err := os.ReadDir(own)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("reading Docker's folder, to link what is in it: %w", err)
	}
	if len(entries) > filesecret.MaxLinks {
		return nil, &settingError{fmt.Sprintf("Docker's folder %s has more than %d entries", own, filesecret.MaxLinks), "point DOCKER_CONFIG at one that Docker alone uses"}
	}
	var links []link
	for _, e := range entries {
		if e.Name() != dockerFile {
			links = append(links, link{folder + "/" + e.Name(), filepath.Join(own, e.Name())})
		}
	}
	return links, nil
}

// mergeDocker adds logins to a config.json; an empty one is none. A leased
// login comes before what the job has for its registry, a helper too.
func mergeDocker(own []byte, sections []section) (secret.Value, error) {
	config, auths, helpers := map[string]json.RawMessage{}, map[string]json.RawMessage{}, map[string]string{}
	if len(bytes.TrimSpace(own)) > 0 {
		if err := readDocker(own, config, auths, helpers); err != nil {
			return secret.Value{}, &settingError{"Docker's config.json, to which a login is to be added: " + err.Error(), "mend it, or point DOCKER_CONFIG at another folder"}
		}
	}
	_, store := config["credsStore"]
	by := map[string]string{}
	for _, s := range sections {
		leased := map[string]json.RawMessage{}
		if err := readLogins(s.text, leased); err != nil {
			return secret.Value{}, fmt.Errorf("lease %q: %w", s.lease, err)
		}
		for registry, login := range leased {
			if other, ok := by[registry]; ok {
				return secret.Value{}, &settingError{fmt.Sprintf("leases %q and %q both have a login to one registry", other, s.lease), "take one of them"}
			}
			by[registry] = s.lease
			auths[registry] = login
			for _, name := range []string{registry, registryHost(registry)} {
				delete(helpers, name)
				if store {
					helpers[name] = "" // for Docker: no helper, and not the store either
				}
			}
		}
	}
	var err error
	if config["auths"], err = json.Marshal(auths); err != nil {
		return secret.Value{}, errors.New("putting Docker's config.json together")
	}
	delete(config, "credHelpers")
	if len(helpers) > 0 {
		if config["credHelpers"], err = json.Marshal(helpers); err != nil {
			return secret.Value{}, errors.New("putting Docker's config.json together")
		}
	}
	text, err := json.Marshal(config)
	if err != nil || len(text) > filesecret.MaxFileBytes {
		return secret.Value{}, errors.New("with the leased logins, Docker's config.json is too large")
	}
	return secret.New(text), nil
}

// registryHost is the host of a registry that may be written as a URL.
func registryHost(registry string) string {
	if _, rest, ok := strings.Cut(registry, "://"); ok {
		registry = rest
	}
	host, _, _ := strings.Cut(registry, "/")
	return host
}

var errNotDocker = errors.New("not the JSON object that Docker reads")

// readDocker reads a config.json. Its errors hold nothing of it.
func readDocker(text []byte, config, auths map[string]json.RawMessage, helpers map[string]string) error {
	if err := checkJSON(text); err != nil {
		return err
	}
	if json.Unmarshal(text, &config) != nil {
		return errNotDocker
	}
	for name, value := range config {
		var into any
		switch {
		case name == "auths":
			into = &auths
		case name == "credHelpers":
			into = &helpers
		case name == "credsStore":
			into = new(string)
		case slices.ContainsFunc([]string{"auths", "credHelpers", "credsStore"}, func(n string) bool { return strings.EqualFold(n, name) }):
			return errors.New("a key in other capitals than Docker writes it")
		default:
			continue
		}
		if json.Unmarshal(value, into) != nil {
			return errNotDocker
		}
	}
	return nil
}

// readLogins reads what a lease gives: logins, and nothing that Docker would
// run.
func readLogins(text []byte, auths map[string]json.RawMessage) error {
	wrong := errors.New("not a login to a registry as Docker reads it")
	config := map[string]map[string]map[string]string{}
	if checkJSON(text) != nil || json.Unmarshal(text, &config) != nil || len(config) != 1 || len(config["auths"]) == 0 {
		return wrong
	}
	for registry, login := range config["auths"] {
		for name := range login {
			if !slices.Contains([]string{"auth", "username", "password", "email", "identitytoken", "registrytoken"}, name) {
				return wrong
			}
		}
		one, err := json.Marshal(login)
		if registry == "" || err != nil {
			return wrong
		}
		auths[registry] = one
	}
	return nil
}

// checkJSON refuses what isn't one JSON object, and what two parsers could read
// in two ways: a key that stands twice, or bytes after the end.
func checkJSON(text []byte) error {
	d := json.NewDecoder(bytes.NewReader(text))
	d.UseNumber()
	type level struct {
		keys  map[string]bool // nil in an array
		isKey bool
	}
	var open []level
	for first := true; first || len(open) > 0; first = false {
		token, err := d.Token()
		if err != nil || first && token != json.Delim('{') {
			return errNotDocker
		}
		if n := len(open); n > 0 && open[n-1].keys != nil && token != json.Delim('}') {
			top := &open[n-1]
			if top.isKey = !top.isKey; top.isKey {
				key, _ := token.(string)
				if top.keys[key] {
					return errors.New("a key stands twice")
				}
				top.keys[key] = true
				continue
			}
		}
		switch token {
		case json.Delim('{'):
			open = append(open, level{keys: map[string]bool{}})
		case json.Delim('['):
			open = append(open, level{})
		case json.Delim('}'), json.Delim(']'):
			open = open[:len(open)-1]
		}
		if len(open) > maxJSONDepth {
			return errNotDocker
		}
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return errNotDocker
	}
	return nil
}
