//go:build !linux

package endpoint

import (
	"context"
	"net"
	"strings"
	"testing"
	"time"
)

func dial(ctx context.Context, network, addr string) (net.Conn, error) {
	return (&net.Dialer{}).DialContext(ctx, network, addr)
}

func TestMetadataServerIsRefusedHere(t *testing.T) {
	t.Parallel()
	k, err := Keep(KeepConfig{Session: &fakeSession{now: time.Now}, Leases: allLeases(time.Now().Add(time.Hour))})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(k.Close)
	if _, err := Serve(Config{Keeper: k, GCE: &GCE{}}); err == nil || !strings.Contains(err.Error(), "only on Linux") {
		t.Errorf("Serve = %v, want it refused", err)
	}
}
