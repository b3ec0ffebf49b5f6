package brokercli

import (
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"

	"github.com/spf13/cobra"

	"github.com/runenv/action/broker/config"
	"github.com/runenv/action/broker/policy"
)

func policyCommand(env Env) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "policy",
		Short: "Check and test the broker's file",
		Args:  noSuchCommand,
		RunE:  func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(policyCheckCommand(env), policyTestCommand(env))
	return cmd
}

// loadWhole loads a file as serve does, or run, providers, leases and issuers
// included, and without touching the network.
func loadWhole(env Env, path string, direct bool) (*config.File, error) {
	var m mode
	if direct {
		m = aloneWith
	}
	file, err := load(env, path, m)
	if err != nil {
		return nil, err
	}
	log := slog.New(slog.DiscardHandler)
	parts, err := open(file, m, env.Now, log)
	if err != nil {
		return nil, err
	}
	if direct {
		if err := onlyAlone(file, parts); err != nil {
			return nil, err
		}
	}
	v, err := verifierOf(file, m, env.Now, log)
	if err != nil {
		return nil, err
	}
	v.Close()
	return file, nil
}

func policyCheckCommand(env Env) *cobra.Command {
	var asJSON, direct bool
	cmd := &cobra.Command{
		Use:   "check FILE",
		Short: "Check the file as serve would, without any network call",
		Long: `Check the file and all that it includes and names as "serve" would: every
problem is shown with its place and, where it is known, its cure. No line of
the file is printed, since it may hold a secret by mistake. The certificate and
the store aren't looked at.`,
		Example: `  runenv-broker policy check broker.yaml
  runenv-broker policy check --json broker.yaml | jq -r '.problems[].message'`,
		Args: oneFile, ValidArgsFunction: yamlFile,
		RunE: func(cmd *cobra.Command, args []string) error {
			file, err := loadWhole(env, args[0], direct)
			if asJSON {
				return errors.Join(json.NewEncoder(cmd.OutOrStdout()).Encode(checked(file, err)), err)
			}
			if err != nil {
				return err
			}
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "%s: %d projects, %d leases, %d roles; policy %s\n",
				args[0], len(file.Compiled.Projects()), len(file.Leases), len(file.Compiled.Roles()), file.Compiled.Digest())
			return err
		},
	}
	directFlag(cmd, &direct)
	cmd.Flags().BoolVar(&asJSON, "json", false, "print the result as JSON, besides the errors on stderr")
	return cmd
}

// directFlag adds --direct.
func directFlag(cmd *cobra.Command, direct *bool) {
	cmd.Flags().BoolVar(direct, "direct", false, "the file is one for \"run\", and not for \"serve\"")
}

type checkJSON struct {
	Policy   string        `json:"policy,omitempty"` // its digest; absent if the file doesn't load
	Projects int           `json:"projects"`
	Leases   int           `json:"leases"`
	Roles    int           `json:"roles"`
	Problems []problemJSON `json:"problems"`
}

type problemJSON struct {
	File    string `json:"file,omitempty"`
	Line    int    `json:"line,omitempty"`
	Column  int    `json:"column,omitempty"`
	Path    string `json:"path,omitempty"`
	Message string `json:"message"`
	Hint    string `json:"hint,omitempty"`
}

func checked(file *config.File, err error) checkJSON {
	out := checkJSON{Problems: []problemJSON{}}
	if problems, ok := errors.AsType[config.Problems](err); ok {
		for _, p := range problems {
			out.Problems = append(out.Problems, problemJSON{p.Pos.File, p.Pos.Line, p.Pos.Column, p.Path, p.Message, p.Hint})
		}
	}
	if err == nil {
		out.Policy, out.Leases = file.Compiled.Digest(), len(file.Leases)
		out.Projects, out.Roles = len(file.Compiled.Projects()), len(file.Compiled.Roles())
	}
	return out
}

func policyTestCommand(env Env) *cobra.Command {
	var asJSON, direct bool
	cmd := &cobra.Command{
		Use:   "test FILE",
		Short: "Run the file's own tests",
		Long: `Run the file's own tests, which are the entries of "tests:". Each starts from
the claims that the role's match asks for and the project's ids, changes some,
and says whether the policy must allow or deny. The status is 1 if one fails, or
if there are none.`,
		Example: `  runenv-broker policy test broker.yaml
  runenv-broker policy test --json broker.yaml`,
		Args: oneFile, ValidArgsFunction: yamlFile,
		RunE: func(cmd *cobra.Command, args []string) error {
			file, err := loadWhole(env, args[0], direct)
			if err != nil {
				return err
			}
			results := file.Compiled.RunTests()
			if asJSON {
				if err := json.NewEncoder(cmd.OutOrStdout()).Encode(testLines(results)); err != nil {
					return err
				}
			}
			failed := 0
			for _, r := range results {
				if !r.Passed {
					failed++
				}
				if !asJSON {
					if _, err := fmt.Fprintln(cmd.OutOrStdout(), testLine(r)); err != nil {
						return err
					}
				}
			}
			switch {
			case len(results) == 0:
				return hinted{errors.New("the file has no tests"), "tests: [{role: ROLE, project: PROJECT, want: allow}]"}
			case failed > 0:
				return fmt.Errorf("%d of %d tests failed", failed, len(results))
			}
			return nil
		},
	}
	directFlag(cmd, &direct)
	cmd.Flags().BoolVar(&asJSON, "json", false, "print the results as JSON")
	return cmd
}

func word(allow bool) string {
	if allow {
		return "allow"
	}
	return "deny"
}

func testLine(r policy.TestResult) string {
	verdict := "ok  "
	if !r.Passed {
		verdict = "FAIL"
	}
	line := fmt.Sprintf("%s %s: role %s, project %s, %s: want %s, got %s", verdict, r.Pos, r.Role, r.Project, r.Issuer, word(r.Want), word(r.Got.Allowed))
	if !r.Got.Allowed {
		line += " (" + r.Got.Reason
		if r.Got.Detail != "" {
			line += ": " + r.Got.Detail
		}
		line += ")"
	}
	return line
}

type testJSON struct {
	At      string `json:"at"`
	Role    string `json:"role"`
	Project string `json:"project,omitempty"`
	Issuer  string `json:"issuer"`
	Want    string `json:"want"`
	Got     string `json:"got"`
	Reason  string `json:"reason"`
	Detail  string `json:"detail,omitempty"`
	Passed  bool   `json:"passed"`
}

func testLines(results []policy.TestResult) []testJSON {
	out := []testJSON{}
	for _, r := range results {
		out = append(out, testJSON{
			At: r.Pos.String(), Role: r.Role, Project: r.Project, Issuer: r.Issuer, Want: word(r.Want),
			Got: word(r.Got.Allowed), Reason: r.Got.Reason, Detail: r.Got.Detail, Passed: r.Passed,
		})
	}
	return out
}

func oneFile(cmd *cobra.Command, args []string) error {
	if len(args) != 1 {
		return usageError{hinted{fmt.Errorf("one file is wanted, and %d are given", len(args)), cmd.CommandPath() + " /etc/runenv/broker.yaml"}}
	}
	return nil
}

// yamlFile completes the one argument.
func yamlFile(_ *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	if len(args) > 0 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	return []string{"yaml", "yml"}, cobra.ShellCompDirectiveFilterFileExt
}
