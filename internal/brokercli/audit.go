package brokercli

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"github.com/runenv/action/broker/audit"
	"github.com/runenv/action/broker/config"
	"github.com/runenv/action/broker/store/sqlite"
)

func auditCommand(env Env) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "audit",
		Short: "Read, export and verify the audit log",
		Long: `Read, export and verify the audit log. These commands look into the store beside
a running broker and change nothing.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(auditShowCommand(env), auditExportCommand(env), auditVerifyCommand(env))
	return cmd
}

// look opens the store that the file names, for reading.
func look(ctx context.Context, env Env, path string) (*config.File, *sqlite.Store, error) {
	file, err := load(env, path, false)
	if err != nil {
		return nil, nil, err
	}
	s, err := sqlite.Open(ctx, sqlite.Config{Path: strings.TrimPrefix(file.Store, "sqlite:"), ReadOnly: true, Log: slog.New(slog.DiscardHandler)})
	return file, s, err
}

func configFlag(cmd *cobra.Command, path *string) {
	cmd.Flags().StringVar(path, "config", "", "the broker's file")
}

func auditShowCommand(env Env) *cobra.Command {
	var path string
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "show ID --config FILE",
		Short: "Show what the log says about a request, session or lease",
		Example: `  runenv-broker audit show r-4zq6… --config broker.yaml   # why was this job refused?
  runenv-broker audit show s-b7mk… --config broker.yaml --json`,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) != 1 {
				return usageError{hinted{errors.New("one id is wanted"), "the id of a request (r-…), session (s-…) or lease (l-…), as errors and answers show it"}}
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			_, s, err := look(cmd.Context(), env, path)
			if err != nil {
				return err
			}
			defer func() { _ = s.Close() }()
			shown, err := audit.Show(cmd.Context(), s, args[0])
			if err != nil {
				return err
			}
			if len(shown) == 0 {
				return hinted{fmt.Errorf("the log says nothing about %q", args[0]), "look at the broker whose answer held this id; what failed before its token was verified is counted in /metrics, not recorded"}
			}
			for _, e := range shown {
				if asJSON {
					_, err = fmt.Fprintf(cmd.OutOrStdout(), "%s\n", e.Body)
				} else {
					_, err = fmt.Fprintln(cmd.OutOrStdout(), line(e.Body))
				}
				if err != nil {
					return err
				}
			}
			return nil
		},
	}
	configFlag(cmd, &path)
	_ = cmd.MarkFlagRequired("config")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print the entries as they are in the log")
	return cmd
}

// line is an entry for people.
func line(body []byte) string {
	var rec audit.Record
	if err := json.Unmarshal(body, &rec); err != nil {
		return string(body)
	}
	var b strings.Builder
	fmt.Fprintf(&b, "%s  %-18s", rec.Time.UTC().Format("2006-01-02 15:04:05.000"), rec.Event)
	add := func(key, value string) {
		if value != "" {
			fmt.Fprintf(&b, " %s=%s", key, value)
		}
	}
	add("role", rec.Role)
	add("project", rec.Project)
	add("lease", rec.LeaseName)
	add("provider", rec.Provider)
	add("reason", rec.Reason)
	add("detail", rec.Detail)
	if !rec.ExpiresAt.IsZero() {
		add("until", rec.ExpiresAt.UTC().Format("15:04:05"))
	}
	add("session", rec.Session)
	add("id", rec.Lease)
	add("request", rec.Request)
	return b.String()
}

func auditExportCommand(env Env) *cobra.Command {
	var path, out string
	cmd := &cobra.Command{
		Use:   "export --config FILE [--out FILE]",
		Short: "Write the whole log as JSON lines",
		Long: `Write the whole log as JSON lines, for a SIEM or for keeping. The export can be
verified offline with "audit verify --file".`,
		Example: `  runenv-broker audit export --config broker.yaml --out audit.jsonl`,
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) (err error) {
			_, s, err := look(cmd.Context(), env, path)
			if err != nil {
				return err
			}
			defer func() { _ = s.Close() }()
			w := cmd.OutOrStdout()
			if out != "" {
				f, err := os.OpenFile(out, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
				if err != nil {
					return fmt.Errorf("writing the export: %w", err)
				}
				defer func() { err = errors.Join(err, f.Close()) }()
				w = f
			}
			buffered := bufio.NewWriter(w)
			if err := audit.Export(cmd.Context(), s, buffered); err != nil {
				return err
			}
			return buffered.Flush()
		},
	}
	configFlag(cmd, &path)
	_ = cmd.MarkFlagRequired("config")
	cmd.Flags().StringVar(&out, "out", "", "a new file; standard output if not given")
	return cmd
}

func auditVerifyCommand(env Env) *cobra.Command {
	var path, export, key string
	var known []string
	cmd := &cobra.Command{
		Use:   "verify (--config FILE | --file EXPORT --key KEY) [--checkpoint FILE]...",
		Short: "Prove that the log is whole",
		Long: `Recompute every hash of the log up to its signed checkpoint and check the
signature. A checkpoint that a client got with its leases proves besides that
the broker's host has not rewritten what came before it.

KEY is the verifier key that the broker's discovery shows as "audit_key"; note
it once, where the broker's host can't change it.`,
		Example: `  runenv-broker audit verify --config broker.yaml
  runenv-broker audit verify --file audit.jsonl --key "$AUDIT_KEY" --checkpoint from-a-job.txt`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			var checkpoints []string
			for _, name := range known {
				b, err := readSmall(name)
				if err != nil {
					return err
				}
				checkpoints = append(checkpoints, string(b))
			}
			var report audit.Report
			switch {
			case (path == "") == (export == ""):
				return usageError{errors.New("either --config or --file is wanted")}
			case export != "":
				if key == "" {
					return usageError{hinted{errors.New("--file wants --key"), `the broker's "audit_key", at /.well-known/runenv`}}
				}
				f, err := os.Open(export)
				if err != nil {
					return fmt.Errorf("reading the export: %w", err)
				}
				defer func() { _ = f.Close() }()
				report, err = audit.VerifyExport(cmd.Context(), f, key, checkpoints...)
				if err != nil {
					return err
				}
			default:
				_, s, err := look(cmd.Context(), env, path)
				if err != nil {
					return err
				}
				defer func() { _ = s.Close() }()
				if key == "" {
					if key, err = audit.StoredKey(cmd.Context(), s); err != nil {
						return err
					}
				}
				report, err = audit.Verify(cmd.Context(), s, key, checkpoints...)
				if err != nil {
					return err
				}
			}
			return printReport(cmd.OutOrStdout(), report)
		},
	}
	configFlag(cmd, &path)
	cmd.Flags().StringVar(&export, "file", "", "an export")
	cmd.Flags().StringVar(&key, "key", "", "the verifier key; with --config the store's own if not given")
	cmd.Flags().StringArrayVar(&known, "checkpoint", nil, "a checkpoint that a client got; can be given several times")
	return cmd
}

func printReport(w io.Writer, r audit.Report) error {
	_, err := fmt.Fprintf(w, "the log is whole: %d entries under a signed checkpoint, %d not yet under one\n", r.Size, r.Pending)
	return err
}

func readSmall(name string) ([]byte, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	const limit = 64 << 10
	b, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err == nil && len(b) > limit {
		err = fmt.Errorf("%s is larger than any checkpoint", name)
	}
	return b, err
}
