package cli

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/runenv/action/internal/leakscan"
	"github.com/runenv/action/internal/needle"
	"github.com/runenv/action/secret"
)

// exitFound is the status of a scan on demand that found something.
const exitFound = 1

// maxValuesBytes bounds a file of values to look for.
const maxValuesBytes = 4 << 20

type scanCommandOptions struct {
	runOptions        // of which the session's are used
	values     string // the file with them; "" takes leases
	scrub      bool
}

func (a *app) scanCommand() *cobra.Command {
	var o scanCommandOptions
	cmd := &cobra.Command{
		Use:   "scan [flags] PATH...",
		Short: "Search files and folders for leased values",
		Long: `Search files and folders for leased values, in all the forms that programs put
them in, inside archives too: see docs/leak-scan.md. "runenv run" does it by
itself after its command, for what changed meanwhile; this searches everything.

The values come from a file, a line each, or from standard input (--values -),
never from an argument, which other users may see. Without --values they are
leased, for as long as the search takes, as "runenv run" would lease them. That
finds what stays the same from lease to lease, such as an npm token in Vault;
of a database user made for one session nothing older can be found.

Whoever may run this learns whether a file holds a value that they don't know:
see docs/redaction.md on oracles.

Hits go to standard output, without a value. Exit status: 0 if there are none,
1 if there are, 125 if not everything could be searched or RunEnv failed.`,
		Example: `  # What a role's leases left in a cache:
  runenv scan --role deploy ~/.npm ~/.cache

  # Values that nobody leases:
  runenv scan --values - --json build <values.txt`,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				return &usageError{"no file or folder to search was given", cmd.CommandPath()}
			}
			if slices.Contains(args, "") {
				return &usageError{"a file or folder to search has no name: a variable that it comes from may not be set", cmd.CommandPath()}
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := leakscan.CheckIgnore(o.scan.ignore); err != nil {
				return &usageError{err.Error(), cmd.CommandPath()}
			}
			if o.values != "" && (o.role != "" || len(o.leases) > 0) {
				return &usageError{"--values stands beside --role or --lease: the values come from one or the other", cmd.CommandPath()}
			}
			return a.scanNow(o, args)
		},
	}
	f := cmd.Flags()
	f.SortFlags = false
	f.StringVar(&o.values, "values", "", "take the values from the lines of a `FILE`; - is standard input")
	brokerFlags(f, &o.settings)
	f.StringVar(&o.role, "role", "", "the RunEnv `ROLE` to ask for ($"+varRole+")")
	f.StringArrayVar(&o.leases, "lease", nil, "`NAME` of a lease, or VARIABLE=REFERENCE, once for each; default: all of the role's ($"+varLeases+")")
	f.StringArrayVar(&o.scan.ignore, "ignore", nil, "leave out files and folders that match the `GLOB`, like **/tfplan; once for each")
	f.BoolVar(&o.scrub, "scrub", false, "overwrite the values in files that are no archives")
	f.BoolVar(&o.asJSON, "json", false, "print the report as JSON")
	f.BoolVar(&o.debug, "debug", false, "log to stderr what is done; never a value or a token")
	_ = cmd.RegisterFlagCompletionFunc("lease", completeLease) // it fails for unknown flags alone
	return cmd
}

// scanNow is `runenv scan`.
func (a *app) scanNow(o scanCommandOptions, paths []string) error {
	p := a.newProcess(nil, o.runOptions)
	defer p.close()
	secrets, err := a.valuesToFind(p, &o)
	if err != nil {
		return err
	}
	set := needle.New(secrets)
	defer set.Wipe()
	for _, w := range needle.Weak(secrets) {
		a.say.warning(weakText(strconv.Quote(w.Lease), w, "that one isn't looked for",
			"a hit may be chance, or tell whoever wrote it that they guessed right; take a longer one, or leave it out if it is no secret"))
	}
	for _, s := range secrets {
		clear(s.Value.Reveal())
	}
	if set.Longest() == 0 {
		return &settingError{"there is no value to look for", fmt.Sprintf("values have %d bytes at least", needle.MinBytes)}
	}
	for i, path := range paths {
		if !filepath.IsAbs(path) {
			paths[i] = filepath.Join(a.env.Dir, path)
		}
	}
	report, err := leakscan.Run(p.starting, leakscan.Config{Needles: set, Paths: paths, Ignore: o.scan.ignore, Scrub: o.scrub})
	if err != nil {
		return p.orSignal(err)
	}
	if err := a.printReport(report, o.asJSON); err != nil {
		return err
	}
	n := len(report.Gaps) + report.MoreGaps
	switch {
	case len(report.Hits) > 0:
		a.status = exitFound
	case n > 0:
		return &settingError{count(n, "place") + " couldn't be searched", "--ignore GLOB leaves out what needn't be"}
	}
	return nil
}

func (a *app) printReport(r *leakscan.Report, asJSON bool) error {
	if asJSON {
		enc := json.NewEncoder(a.env.Stdout)
		enc.SetIndent("", "  ")
		return enc.Encode(r)
	}
	var b strings.Builder
	for _, h := range r.Hits {
		b.WriteString(hitText(h) + "\n")
	}
	if r.MoreHits > 0 {
		fmt.Fprintf(&b, "and %s\n", count(r.MoreHits, "more hit"))
	}
	for _, g := range r.Gaps {
		a.say.warning("not searched: " + within(g.Path, g.Member) + ": " + g.Reason)
	}
	if r.MoreGaps > 0 {
		a.say.warning("and " + count(r.MoreGaps, "more place") + " not searched")
	}
	_, err := io.WriteString(a.env.Stdout, b.String())
	return err
}

// valuesToFind are a file's lines, or those of leases that end at once.
func (a *app) valuesToFind(p *process, o *scanCommandOptions) ([]needle.Secret, error) {
	if o.values != "" {
		return a.readValues(o.values)
	}
	if err := o.resolve(a.env); err != nil {
		return nil, err
	}
	source, err := a.detect()
	if err != nil {
		return nil, err
	}
	g := newStandby(p, func() {}) // what is to be searched stays
	c, ca, err := a.client(p, &o.runOptions, source, g.use)
	if err != nil {
		return nil, err
	}
	held, leases, err := a.open(p, &o.runOptions, c, ca, g)
	if err != nil {
		return nil, err
	}
	_, endErr := held.end(o.debug)
	held.letGo(endErr == nil)()
	var secrets []needle.Secret
	for _, l := range leases {
		secrets = append(secrets, secretsOf(l)...)
	}
	return secrets, nil
}

// readValues reads a value from each line. What a line is called is its number.
func (a *app) readValues(name string) ([]needle.Secret, error) {
	var content []byte
	var err error
	if name == "-" {
		content, err = io.ReadAll(io.LimitReader(a.env.Stdin, maxValuesBytes+1))
		if err == nil && len(content) > maxValuesBytes {
			err = fmt.Errorf("standard input has over %d bytes", maxValuesBytes)
		}
	} else {
		if !filepath.IsAbs(name) {
			name = filepath.Join(a.env.Dir, name)
		}
		content, err = readBounded(name, maxValuesBytes)
	}
	defer clear(content)
	if err != nil {
		return nil, fmt.Errorf("reading the values: %w", err)
	}
	var secrets []needle.Secret
	for i, line := range bytes.Split(content, []byte("\n")) {
		if line = bytes.TrimSuffix(line, []byte("\r")); len(line) > 0 {
			secrets = append(secrets, needle.Secret{Lease: fmt.Sprintf("line %d", i+1), Value: secret.New(bytes.Clone(line))})
		}
	}
	if len(secrets) == 0 {
		return nil, errors.New("reading the values: there are none")
	}
	return secrets, nil
}
