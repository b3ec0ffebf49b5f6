package cli

import (
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/runenv/action/client"
	"github.com/runenv/action/internal/ci"
)

// nobody is the audience of a token that is only looked at, where no broker is
// set: nobody takes it.
const nobody = "runenv-whoami"

func (a *app) whoamiCommand() *cobra.Command {
	var s settings
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "whoami",
		Short: "Print the job's own claims as an entry for the broker's file",
		Long: `Print who this job is to a broker: the claims of its own OIDC token, as a
"projects:" entry and a role's "match:", ready for the broker's file.

The broker isn't asked and needn't be there. The token is read, not verified;
it isn't printed. Its audience is the broker's URL where one is set.`,
		Example: `  runenv whoami
  runenv whoami --json | jq .claims.sub`,
		Args: noArguments,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := s.resolve(a.env); err != nil {
				return err
			}
			audience := nobody
			if s.broker != "" {
				audience = s.broker
				if err := client.CheckURL(audience); err != nil {
					return err
				}
			}
			source, err := a.detect()
			if err != nil {
				return err
			}
			token, err := source.Token(cmd.Context(), audience)
			if err != nil {
				return err
			}
			claims, err := ci.Peek(token)
			if err != nil {
				return fmt.Errorf("reading the job's token: %w", err)
			}
			if asJSON {
				out := json.NewEncoder(cmd.OutOrStdout())
				out.SetIndent("", "  ")
				return out.Encode(map[string]any{"source": source.Name(), "claims": claims})
			}
			return writeEntry(cmd.OutOrStdout(), source.Name(), claims)
		},
	}
	brokerFlags(cmd.Flags(), &s)
	_ = cmd.Flags().MarkHidden("ca-file") // nothing is connected to
	cmd.Flags().BoolVar(&asJSON, "json", false, "print the claims as JSON")
	return cmd
}

// entryClaims are what an entry is made of, by the kind of token.
type entryClaims struct {
	issuer   string // the name that DESIGN section 5 gives it
	name, id string
	match    [][]string // the first of each that the token has
}

// kindOf tells tokens apart by claims that only one CI has.
func kindOf(claims map[string]any) (entryClaims, bool) {
	has := func(name string) bool { return claims[name] != nil }
	switch {
	case has("repository_id") && has("repository"):
		return entryClaims{"github", "repository", "repository_id", [][]string{{"ref"}, {"environment"}, {"event_name"}}}, true
	case has("job_project_id") && has("job_project_path"):
		return entryClaims{"gitlab", "job_project_path", "job_project_id", [][]string{{"ref_path", "ref"}, {"environment"}, {"pipeline_source"}}}, true
	case has("project_id") && has("project_path"):
		return entryClaims{"gitlab", "project_path", "project_id", [][]string{{"ref_path", "ref"}, {"environment"}, {"pipeline_source"}}}, true
	}
	return entryClaims{}, false
}

// writeEntry writes YAML. Claims come from outside: each is a scalar that can't
// become anything else.
func writeEntry(w io.Writer, source string, claims map[string]any) error {
	var b strings.Builder
	fmt.Fprintf(&b, "# What this job's own token says (%s); nothing is verified.\n", source)
	kind, ok := kindOf(claims)
	if !ok {
		b.WriteString("# It is neither GitHub's nor GitLab's. All of its claims:\n")
		for _, name := range slices.Sorted(maps.Keys(claims)) {
			fmt.Fprintf(&b, "%s: %s\n", scalar(name), scalar(claimText(claims[name])))
		}
		_, err := io.WriteString(w, b.String())
		return err
	}
	text := func(name string) string { return claimText(claims[name]) }
	fmt.Fprintf(&b, "# issuer:  %s\n# subject: %s\n\n", text("iss"), text("sub"))
	fmt.Fprintf(&b, "projects:\n  %s: {%s: %s}\n\n", projectName(text(kind.name)), kind.issuer, scalar(text(kind.name)+"@"+text(kind.id)))
	b.WriteString("# in a role:\nmatch:\n")
	var pairs []string
	for _, names := range kind.match {
		for _, name := range names {
			if value, ok := claims[name].(string); ok && value != "" {
				pairs = append(pairs, name+": "+scalar(oneLine(value)))
				break
			}
		}
	}
	fmt.Fprintf(&b, "  %s: {%s}\n", kind.issuer, strings.Join(pairs, ", "))
	_, err := io.WriteString(w, b.String())
	return err
}

// projectName makes a name out of the last part of a path.
func projectName(path string) string {
	name := strings.ToLower(path[strings.LastIndexByte(path, '/')+1:])
	name = strings.Map(func(r rune) rune {
		if 'a' <= r && r <= 'z' || '0' <= r && r <= '9' {
			return r
		}
		return '-'
	}, name)
	if name = strings.Trim(name, "-"); name == "" || name[0] < 'a' {
		name = "project-" + name
	}
	return strings.TrimSuffix(name[:min(len(name), 63)], "-")
}

// scalar is a YAML string: plain where nobody could take it for anything else,
// else in double quotes, whose escapes are JSON's.
func scalar(s string) string {
	plain := s != "" && len(s) < 200
	for i, c := range []byte(s) {
		letter := 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z'
		plain = plain && (letter || i > 0 && ('0' <= c && c <= '9' || strings.IndexByte("_-/.@", c) >= 0))
	}
	switch strings.ToLower(s) {
	case "true", "false", "yes", "no", "on", "off", "y", "n", "null":
		plain = false
	}
	if plain {
		return s
	}
	quoted, err := json.Marshal(s)
	if err != nil { // a string always marshals
		return `""`
	}
	return string(quoted)
}
