package e2e_test

import (
	"slices"
	"testing"
	"time"

	"github.com/runenv/action/e2e/harness"
)

func TestRealVaultIssuesPostgresUser(t *testing.T) {
	t.Parallel()
	pg := harness.Postgres(t)
	vault := harness.Vault(t)
	vault.MountDatabase(t, pg, "readonly", time.Minute, time.Hour)

	health, err := vault.Client.Sys().HealthWithContext(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("Vault %s at %s, PostgreSQL at %s", health.Version, vault.Address, pg.Address())

	creds, err := vault.Client.Logical().ReadWithContext(t.Context(), "database/creds/readonly")
	if err != nil {
		t.Fatal(err)
	}
	name, _ := creds.Data["username"].(string)
	password, _ := creds.Data["password"].(string)
	if !slices.Contains(pg.Roles(t), name) {
		t.Fatalf("Roles() = %q, want %q among them", pg.Roles(t), name)
	}
	if orders, err := pg.Login(t.Context(), name, password); err != nil || orders != 1 {
		t.Errorf("Login(%q) = %d orders, %v, want 1", name, orders, err)
	}
	if _, err := pg.Login(t.Context(), name, password+"x"); err == nil {
		t.Error("Login with a wrong password succeeds: this PostgreSQL checks nothing")
	}

	if err := vault.Client.Sys().RevokeWithContext(t.Context(), creds.LeaseID); err != nil {
		t.Fatal(err)
	}
	harness.Eventually(t, 5*time.Second, "the revoked user is gone", func() bool {
		return !slices.Contains(pg.Roles(t), name)
	})
	if _, err := pg.Login(t.Context(), name, password); err == nil {
		t.Error("Login after the lease was revoked succeeds")
	}
}
