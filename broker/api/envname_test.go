package api_test

import (
	"strings"
	"testing"

	"github.com/runenv/action/broker/api"
)

// T29: case doesn't count, and a lease can't stand in for RunEnv's own tokens.
func TestT29CheckVariable(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"DB_USER", "npm_token", "_x", "A1", "GITHUB_TOKEN", "AWS_SESSION_TOKEN", "PATHS", "LDAP_PASSWORD", "GIT_TOKEN", strings.Repeat("A", 128)} {
		if err := api.CheckVariable(name); err != nil {
			t.Errorf("CheckVariable(%q) = %v, want nil", name, err)
		}
	}
	for _, name := range []string{
		"", "1A", "A-B", "A B", "A=B", "A\x00", "Ä", strings.Repeat("A", 129),
		"PATH", "Path", "path", "LD_PRELOAD", "ld_library_path", "DYLD_INSERT_LIBRARIES", "NODE_OPTIONS", "BASH_ENV", "GIT_CONFIG_COUNT",
		"ACTIONS_ID_TOKEN_REQUEST_URL", "RUNENV_ID_TOKEN", "RUNENV_ID_TOKEN_FILE", "RUNENV_ID_TOKEN_FOR_VAULT", "RUNENV_CA_FILE", "GITHUB_ENV",
		"OPENSSL_CONF", "npm_config_script_shell", "RUSTC",
	} {
		if err := api.CheckVariable(name); err == nil {
			t.Errorf("CheckVariable(%q) = nil, want an error", name)
		}
	}
	if err := api.CheckVariable("hunter2-canary"); strings.Contains(err.Error(), "hunter2") {
		t.Errorf("CheckVariable(a value) = %v, which holds it", err)
	}
}
