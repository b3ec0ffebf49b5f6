package e2e_test

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/runenv/action/e2e/harness"
)

// The commands and the YAML of docs/providers/vault.md set up a real Vault and
// a broker so that the document's own job gets a user, and loses it.
func TestVaultDocumentWorks(t *testing.T) {
	t.Parallel()
	document, err := os.ReadFile("../docs/providers/vault.md")
	if err != nil {
		t.Fatal(err)
	}
	_, setUp, _ := strings.Cut(string(document), "### By command")
	commands := regexp.MustCompile("(?s)```sh\n(.*?)```").FindStringSubmatch(setUp)
	entries := regexp.MustCompile("(?s)```yaml\n(.*?)```").FindStringSubmatch(setUp)
	if commands == nil || entries == nil {
		t.Fatal("no commands, or no entries of the broker's file, under `By command`")
	}
	ci, broker, vault := harness.NewCI(t, nil), harness.NewBroker(t), harness.Vault(t)
	vault.MountDatabase(t, harness.Postgres(t), "shop-migrate", time.Minute, time.Hour)
	here := strings.NewReplacer(
		"https://runenv.example.com", broker.URL,
		"https://vault.example.com:8200", vault.Address,
		"jwt_supported_algs=ES256", "jwt_supported_algs=ES256 oidc_discovery_ca_pem=@"+broker.CAFile,
	)
	broker.Start(t, fmt.Sprintf(`
issuers:
  github: {profile: github, url: "%s", ca_file: "%s", allow_networks: ["127.0.0.0/8"]}
projects:
  shop-api: {github: acme/shop-api@1001}
`, ci.URL, broker.CAFile)+here.Replace(entries[1]))

	bin := t.TempDir()
	if err := os.Symlink(os.Getenv("RUNENV_E2E_VAULT"), filepath.Join(bin, "vault")); err != nil {
		t.Fatal(err)
	}
	set := exec.CommandContext(t.Context(), "sh", "-eu", "-c", here.Replace(commands[1]))
	set.Env = []string{"PATH=" + bin + ":" + os.Getenv("PATH"), "HOME=" + t.TempDir(), "VAULT_ADDR=" + vault.Address, "VAULT_TOKEN=" + vault.Token}
	if out, err := set.CombinedOutput(); err != nil {
		t.Fatalf("the document's commands: %v\n%s", err, out)
	}
	job := broker.Runenv(t, ci, "run", "--role", "migrate", "--verbose", "--", "sh", "-c", `echo "I am $DB_USER"`)
	var out bytes.Buffer
	job.Stdout, job.Stderr = &out, &out
	if err := job.Run(); err != nil {
		t.Fatalf("the document's job: %v\n%s", err, out.Bytes())
	}
	for _, want := range []string{"I am [REDACTED:db-migrate]\n", "runenv: lease \"db-migrate\" is revoked\n"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("the document's job prints %q, want %q in it", out.String(), want)
		}
	}
}
