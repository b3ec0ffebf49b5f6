package brokercli

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf16"

	"github.com/spf13/cobra"

	"github.com/runenv/action/broker/audit"
)

func auditCommand(env Env) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "audit",
		Short: "Read, export and verify the audit log",
		Long: `Read, export and verify the audit log. These commands look into the store beside
a running broker and change nothing.`,
		Args: noSuchCommand,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(auditShowCommand(env), auditExportCommand(env), auditVerifyCommand(env))
	return cmd
}

func auditShowCommand(env Env) *cobra.Command {
	var path string
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "show ID --config FILE",
		Short: "Show what the log says about a request, session or lease",
		Example: `  runenv-broker audit show r-4zq6… --config broker.yaml   # why was this job refused?
  runenv-broker audit show s-b7mk… --config broker.yaml --json`,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) != 1 {
				return usageError{hinted{fmt.Errorf("one id is wanted, and %d are given", len(args)), "the id of a request (r-…), session (s-…) or lease (l-…), as errors and answers show it"}}
			}
			return nil
		},
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := configGiven(cmd, path); err != nil {
				return err
			}
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
					_, err = fmt.Fprintln(cmd.OutOrStdout(), escaped(e.Body))
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
	configFlag(cmd, &path, "the broker's `FILE`, which names the store")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print the entries as JSON lines, with all that they hold")
	return cmd
}

// escaped is JSON whose strings can't steer a terminal.
func escaped(body []byte) string {
	var b strings.Builder
	for _, r := range string(body) {
		switch {
		case unicode.IsPrint(r):
			b.WriteRune(r)
		case r <= 0xffff:
			fmt.Fprintf(&b, `\u%04x`, r)
		default:
			high, low := utf16.EncodeRune(r)
			fmt.Fprintf(&b, `\u%04x\u%04x`, high, low)
		}
	}
	return b.String()
}

// quoted is a text as it is where that is one plain word. A caller chooses
// the role that it asks for: it could name another entry.
func quoted(s string) string {
	plain := s != "" && !strings.ContainsFunc(s, func(r rune) bool {
		return r == ' ' || r == '"' || !unicode.IsPrint(r)
	})
	if plain {
		return s
	}
	return strconv.Quote(s)
}

// line is an entry for people.
func line(body []byte) string {
	var rec audit.Record
	if err := json.Unmarshal(body, &rec); err != nil {
		return quoted(string(body))
	}
	var b strings.Builder
	fmt.Fprintf(&b, "%s  %-18s", rec.Time.UTC().Format("2006-01-02 15:04:05.000"), rec.Event)
	add := func(key, value string) {
		if value != "" {
			fmt.Fprintf(&b, " %s=%s", key, quoted(value))
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
	if rec.Event == "session.refused" && len(rec.Claims) > 0 {
		b.WriteString("\n   ")
		for _, name := range slices.Sorted(maps.Keys(rec.Claims)) {
			add(name, rec.Claims[name])
		}
	}
	return b.String()
}

func auditExportCommand(env Env) *cobra.Command {
	var path, out string
	cmd := &cobra.Command{
		Use:   "export --config FILE [--out FILE]",
		Short: "Write the whole log as JSON lines",
		Long: `Write the whole log as JSON lines, for a SIEM or for keeping. The export can be
verified offline with "audit verify --file". It ends at the latest signed
checkpoint; later entries are in the next export.`,
		Example: `  runenv-broker audit export --config broker.yaml --out audit.jsonl`,
		Args:    noArguments, ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := configGiven(cmd, path); err != nil {
				return err
			}
			_, s, err := look(cmd.Context(), env, path)
			if err != nil {
				return err
			}
			defer func() { _ = s.Close() }()
			export := func(w io.Writer) error {
				buffered := bufio.NewWriter(w)
				return errors.Join(audit.Export(cmd.Context(), s, buffered), buffered.Flush())
			}
			if out == "" {
				return export(cmd.OutOrStdout())
			}
			return writeNew(out, export)
		},
	}
	configFlag(cmd, &path, "the broker's `FILE`, which names the store")
	cmd.Flags().StringVar(&out, "out", "", "a new `FILE`; standard output if not given")
	return cmd
}

// writeNew makes a file that only its owner may read, whole or not at all.
func writeNew(name string, write func(io.Writer) error) error {
	f, err := os.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if errors.Is(err, os.ErrExist) {
		return hinted{fmt.Errorf("writing the export: %w", err), "an export overwrites nothing: choose another name"}
	}
	if err != nil {
		return fmt.Errorf("writing the export: %w", err)
	}
	if err := errors.Join(write(f), f.Close()); err != nil {
		return errors.Join(err, os.Remove(name))
	}
	return nil
}

func auditVerifyCommand(env Env) *cobra.Command {
	var path, export, key string
	var known []string
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "verify (--config FILE | --file EXPORT --key KEY) [--checkpoint FILE]...",
		Short: "Prove that the log is whole",
		Long: `Recompute every hash of the log up to its signed checkpoint and check the
signature. A checkpoint that a client got with its leases proves besides that
the broker's host has not rewritten what came before it.

KEY is the verifier key that the broker's discovery shows as "audit_key"; note
it once, where the broker's host can't change it. Without --key, --config trusts
the key that lies in the store: that shows accidents, and not an attacker who
could write there.`,
		Example: `  runenv-broker audit verify --config broker.yaml
  runenv-broker audit verify --file audit.jsonl --key "$AUDIT_KEY" --checkpoint from-a-job.txt`,
		Args: noArguments, ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, _ []string) error {
			var checkpoints []string
			for _, name := range known {
				b, err := readBounded(name, maxCheckpointBytes)
				if err != nil {
					return fmt.Errorf("reading a checkpoint: %w", err)
				}
				checkpoints = append(checkpoints, string(b))
			}
			var report audit.Report
			switch {
			case (path == "") == (export == ""):
				return misused(cmd, errors.New("one of --config and --file is wanted"))
			case export != "":
				if key == "" {
					return usageError{hinted{errors.New("--file wants --key"), `it is the broker's "audit_key", at /.well-known/runenv`}}
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
			if asJSON {
				return json.NewEncoder(cmd.OutOrStdout()).Encode(reportJSON(report))
			}
			return printReport(cmd.OutOrStdout(), report)
		},
	}
	configFlag(cmd, &path, "the broker's `FILE`, which names the store")
	cmd.Flags().StringVar(&export, "file", "", "an `EXPORT`")
	_ = cmd.MarkFlagFilename("file", "jsonl") // it fails for unknown flags alone
	cmd.Flags().StringVar(&key, "key", "", "the verifier `KEY`; with --config, the store's own if not given")
	cmd.Flags().StringArrayVar(&known, "checkpoint", nil, "a `FILE` with a checkpoint that a client got; once for each")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print the report as JSON, if the log is whole")
	return cmd
}

// maxCheckpointBytes bounds a client's checkpoint: a real one has about 200.
const maxCheckpointBytes = 64 << 10

func printReport(w io.Writer, r audit.Report) error {
	text := fmt.Sprintf("the log is whole: %d entries under a signed checkpoint, %d not yet under one", r.Size, r.Pending)
	if r.Known > 0 {
		text += fmt.Sprintf("; it continues %d checkpoints of clients", r.Known)
	}
	_, err := fmt.Fprintln(w, text)
	return err
}

type reportJSON struct {
	Size       int64     `json:"size"`
	First      time.Time `json:"first,omitzero"`
	Last       time.Time `json:"last,omitzero"`
	Known      int       `json:"known_checkpoints"`
	Pending    int       `json:"pending"`
	Checkpoint string    `json:"checkpoint"`
}
