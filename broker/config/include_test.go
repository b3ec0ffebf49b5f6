package config_test

import (
	"strings"
	"testing"

	"github.com/runenv/action/broker/config"
	"github.com/runenv/action/secret"
)

// An included file is a team's: with a reference of its own the team would be
// handed whatever the broker can read, its seal key first of all.
func TestT17AnIncludedFileReadsNothingThroughTheBroker(t *testing.T) {
	t.Parallel()
	const main = "url: http://127.0.0.1:8200\nissuers: {local: {profile: github, url: \"http://127.0.0.1:1\"}}\nproviders: {own: {type: static}}\n"
	for _, ref := range []string{"${file:/etc/runenv/seal.key}", "${env:SEAL}"} {
		lease := "leases:\n  grab: {provider: own, values: {token: \"" + ref + "\"}, env: {TOKEN: token}}\n"
		opt := options()
		opt.Dev = true
		opt.Getenv = func(string) (string, bool) { return "c4n4ry", true }
		opt.ReadFile = func(path string) ([]byte, error) {
			if strings.HasSuffix(path, "team.yaml") {
				return []byte(lease), nil
			}
			return []byte("c4n4ry"), nil
		}
		opt.Glob = func(string) ([]string, error) { return []string{"/c/team.yaml"}, nil }
		values := func(text string) error {
			file, err := config.Parse("/c/main.yaml", []byte(text), opt)
			if err != nil {
				t.Fatal(err)
			}
			var keys struct {
				Values map[string]secret.Value `yaml:"values"`
			}
			return file.Leases[0].Decode(&keys)
		}
		if err := values(main + "include: [team.yaml]\n"); err == nil || !strings.Contains(err.Error(), "main file only") {
			t.Errorf("%s in an included file: %v, want a refusal", ref, err)
		}
		if err := values(main + lease); err != nil {
			t.Errorf("%s in the main file: %v", ref, err)
		}
	}
}
