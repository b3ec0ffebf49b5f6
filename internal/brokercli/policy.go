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
		Args:  cobra.NoArgs,
		RunE:  func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(policyCheckCommand(env), policyTestCommand(env))
	return cmd
}

// loadWhole loads a file as serve does, providers and leases included, and
// without touching the network.
func loadWhole(env Env, path string) (*config.File, error) {
	file, err := load(env, path, false)
	if err != nil {
		return nil, err
	}
	if _, err := open(file, false, env.Now, slog.New(slog.DiscardHandler)); err != nil {
		return nil, err
	}
	return file, nil
}

func policyCheckCommand(env Env) *cobra.Command {
	return &cobra.Command{
		Use:   "check FILE",
		Short: "Check the file as serve would, without any network call",
		Long: `Check the file and all that it includes as "serve" would read it: every
problem is shown with its place and, where it is known, its cure. No line of
the file is printed, since it may hold a secret by mistake.`,
		Example: `  runenv-broker policy check broker.yaml`,
		Args:    oneFile,
		RunE: func(cmd *cobra.Command, args []string) error {
			file, err := loadWhole(env, args[0])
			if err != nil {
				return err
			}
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "%s: %d projects, %d leases, %d roles; policy %s\n",
				args[0], len(file.Compiled.Projects()), len(file.Leases), len(file.Compiled.Roles()), file.Compiled.Digest())
			return err
		},
	}
}

func policyTestCommand(env Env) *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "test FILE",
		Short: "Run the file's own tests",
		Long: `Run the file's own tests, which are the entries of "tests:". Each starts from
the claims that the role's match asks for and the project's ids, changes some,
and says whether the policy must allow or deny. The status is 1 if one fails, or
if there are none.`,
		Example: `  runenv-broker policy test broker.yaml
  runenv-broker policy test --json broker.yaml`,
		Args: oneFile,
		RunE: func(cmd *cobra.Command, args []string) error {
			file, err := loadWhole(env, args[0])
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
		return usageError{hinted{errors.New("one file is wanted"), fmt.Sprintf("%s broker.yaml", cmd.CommandPath())}}
	}
	return nil
}
