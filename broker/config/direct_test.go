package config

import (
	"strings"
	"testing"
)

// A file for one command needs neither store nor TLS, and is as strict as
// serve's about everything else.
func TestDirect(t *testing.T) {
	t.Parallel()
	const file = `url: https://runenv.example.com
issuers:
  github: {profile: github, url: https://token.actions.githubusercontent.com}
providers:
  local: {type: static}
projects:
  shop-api: {github: acme/shop-api@1001}
leases:
  npm: {provider: local, env: {NPM_TOKEN: token}}
roles:
  prod: {projects: [shop-api], match: {github: {ref: refs/heads/main}}, leases: [npm]}
`
	got, err := Parse("broker.yaml", []byte(file), Options{Direct: true})
	if err != nil || got.Store != storeMemory || got.TLS != nil {
		t.Fatalf("Parse = %+v, %v", got, err)
	}
	if _, err := Parse("broker.yaml", []byte(file), Options{}); err == nil {
		t.Error("serve takes it too")
	}
	for old, want := range map[string]string{
		"url: https://runenv.example.com\n@url: https://runenv.example.com\nstore: sqlite:a.db\n":                         "store: a broker for one command keeps its store in memory",
		"url: https://runenv.example.com\n@url: http://127.0.0.1:8443\n":                                                  "url: http isn't taken",
		"url: https://token.actions.githubusercontent.com@url: http://127.0.0.1:8099":                                     "http isn't taken",
		"url: https://runenv.example.com\n@":                                                                              "url: missing",
		"url: https://runenv.example.com\n@url: https://runenv.example.com\nseal: AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=\n": "seal: ",
	} {
		before, after, _ := strings.Cut(old, "@")
		_, err := Parse("broker.yaml", []byte(strings.Replace(file, before, after, 1)), Options{Direct: true})
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("with %q, Parse = %v, want %q", after, err, want)
		}
	}
}
