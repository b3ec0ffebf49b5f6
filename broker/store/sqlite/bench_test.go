package sqlite_test

import (
	"context"
	"crypto/rand"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/runenv/action/broker/store"
	"github.com/runenv/action/broker/store/sqlite"
)

// BenchmarkExchange makes a session, intends a lease and issues it: three
// durable verbs with two audit entries of a real one's size.
func BenchmarkExchange(b *testing.B) {
	// Ids in the order of time keep the indexes' inserts together; random ones
	// dirty a page each, all of which a commit writes.
	ordered := func(i int64) string { return fmt.Sprintf("%016x", i) }
	random := func(i int64) string { return fmt.Sprintf("%016x", uint64(i)*0x9e3779b97f4a7c15) }
	for _, kind := range []struct {
		name string
		disk bool
		id   func(int64) string
	}{{"disk/ids=ordered", true, ordered}, {"disk/ids=random", true, random}, {"memory/ids=ordered", false, ordered}} {
		for _, clients := range []int{1, 16, 64} {
			b.Run(fmt.Sprintf("%s/clients=%d", kind.name, clients), func(b *testing.B) {
				path, id := sqlite.Memory, kind.id
				if kind.disk {
					path = newPath(b)
				}
				s := open(b, path)
				b.Cleanup(func() {
					if err := s.Close(); err != nil {
						b.Error(err)
					}
				})
				var next atomic.Int64
				errs := make(chan error, clients)
				b.ReportAllocs()
				b.ResetTimer()
				for range clients {
					go func() {
						for {
							i := next.Add(1)
							if i > int64(b.N) {
								errs <- nil
								return
							}
							if err := exchange(b.Context(), s, id(i)); err != nil {
								errs <- err
								return
							}
						}
					}()
				}
				for range clients {
					if err := <-errs; err != nil {
						b.Error(err)
					}
				}
				b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "exchanges/s")
			})
		}
	}
}

var filler = strings.Repeat("x", 500)

func body(event, id string) store.Entry {
	return store.Entry{Event: event, Request: "r-" + id, Session: "s-" + id, Body: fmt.Appendf(nil, `{"event":%q,"id":%q,"more":%q}`, event, id, filler)}
}

// exchange is what one client's exchange and lease make durable. What others
// choose, such as the ids of tokens and proofs, is random.
func exchange(ctx context.Context, s *sqlite.Store, id string) error {
	now := time.Now()
	sid, lid, other := "s-"+id, "l-"+id, rand.Text()
	_, err := s.CreateSession(ctx, now, store.NewSession{
		Session: store.Session{
			ID: sid, Role: "deploy", Project: "shop", Issuer: "github", Job: "job-" + id, Thumbprint: other,
			AccessHash: []byte("a-" + id), EndHash: []byte(other), Claims: []byte(filler), PolicyDigest: "digest",
			HardEnd: now.Add(time.Hour), HeartbeatTimeout: time.Minute, Deadline: now.Add(time.Minute),
		},
		Token: store.Token{Issuer: "github", JTI: other, Expires: now.Add(time.Minute), Body: []byte(id)},
		Proof: store.Proof{Thumbprint: other, JTI: "1", Expires: now.Add(time.Minute)},
		Limit: 4, Entries: []store.Entry{body("session.created", id)},
	})
	if err != nil {
		return err
	}
	if err := s.Intend(ctx, now, store.Intended{
		Session: sid, Proof: store.Proof{Thumbprint: other, JTI: "2", Expires: now.Add(time.Minute)}, Limit: 20,
		Leases: []store.Lease{{ID: lid, Name: "db", Provider: "vault", State: store.Issuing, Revocability: "revocable", NextAt: now.Add(time.Minute)}},
	}); err != nil {
		return err
	}
	issued := body("lease.issued", id)
	issued.Lease = lid
	got, err := s.Advance(ctx, now, []store.Change{{
		Lease: lid, From: []store.State{store.Issuing}, To: store.Active, Handle: []byte(id), NextAt: now.Add(time.Minute),
		ExpiresAt: now.Add(time.Hour), DiesBy: now.Add(time.Hour), Entries: []store.Entry{issued},
	}})
	if err == nil {
		err = got[0]
	}
	return err
}

// BenchmarkSync is the disk's own speed: an append and a sync of it.
func BenchmarkSync(b *testing.B) {
	f, err := os.Create(filepath.Join(b.TempDir(), "f"))
	if err != nil {
		b.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	page := make([]byte, 4096)
	for b.Loop() {
		if _, err := f.Write(page); err != nil {
			b.Fatal(err)
		}
		if err := f.Sync(); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "syncs/s")
}
