package audit_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"golang.org/x/mod/sumdb/tlog"

	"github.com/runenv/action/broker/audit"
	"github.com/runenv/action/broker/store"
)

// tampered is a store in which somebody changed something.
type tampered struct {
	store.AuditStore
	entries    func([]store.Logged) []store.Logged // the whole log
	tile       func(t store.Tile, data []byte)
	checkpoint func([]byte) []byte
	size       int64
}

func (t *tampered) Entries(ctx context.Context, first int64, n int) ([]store.Logged, error) {
	if t.entries == nil {
		return t.AuditStore.Entries(ctx, first, n)
	}
	all, err := t.AuditStore.Entries(ctx, 0, 1<<20)
	if err != nil {
		return nil, err
	}
	for i := range all {
		all[i].Body = bytes.Clone(all[i].Body)
	}
	all = t.entries(all)
	all = slices.DeleteFunc(all, func(e store.Logged) bool { return e.Index < first })
	return all[:min(n, len(all))], nil
}

func (t *tampered) Tiles(ctx context.Context, want []store.Tile) ([]store.Tile, error) {
	got, err := t.AuditStore.Tiles(ctx, want)
	if t.tile != nil {
		for i := range got {
			got[i].Data = bytes.Clone(got[i].Data)
			t.tile(got[i], got[i].Data)
		}
	}
	return got, err
}

func (t *tampered) Checkpoint(ctx context.Context) ([]byte, int64, error) {
	b, size, err := t.AuditStore.Checkpoint(ctx)
	if t.checkpoint != nil {
		b = t.checkpoint(bytes.Clone(b))
	}
	if t.size != 0 {
		size = t.size
	}
	return b, size, err
}

// wantAltered wants verification to fail and to name entry index; -2 for any.
func wantAltered(t *testing.T, what string, err error, index int64) {
	t.Helper()
	var a *audit.Altered
	if !errors.As(err, &a) {
		t.Errorf("%s: %v, want it seen as altered", what, err)
		return
	}
	if index != -2 && a.Index != index {
		t.Errorf("%s: %v names entry %d, want %d", what, a, a.Index, index)
	}
}

func TestT19EveryByteOfAnEntryCounts(t *testing.T) {
	t.Parallel()
	s, l := newLogged(t, 5)
	entries, err := s.Entries(t.Context(), 0, 5)
	if err != nil {
		t.Fatal(err)
	}
	for i, e := range entries {
		for at := range e.Body {
			bad := &tampered{AuditStore: s, entries: func(all []store.Logged) []store.Logged {
				all[i].Body[at] ^= 1
				return all
			}}
			_, err := audit.Verify(t.Context(), bad, l.VerifierKey())
			// A tile is compared when its last leaf is known, and still names
			// the entry.
			wantAltered(t, fmt.Sprintf("entry %d, byte %d", i, at), err, int64(i))
		}
	}
}

func TestT19EveryByteOfATileCounts(t *testing.T) {
	t.Parallel()
	const size = 256*2 + 3
	s, l := newLogged(t, size)
	seen := map[string]int{}
	look := &tampered{AuditStore: s, tile: func(tl store.Tile, data []byte) { seen[fmt.Sprint(tl.L, "/", tl.N)] = len(data) }}
	verify(t, look, l.VerifierKey())
	if len(seen) != 4 {
		t.Fatalf("verification read tiles %v, want all four", seen)
	}
	for name, n := range seen {
		step := 1
		if n > 1000 {
			step = 509 // here and there in a hash
		}
		for at := 0; at < n; at += step {
			bad := &tampered{AuditStore: s, tile: func(tl store.Tile, data []byte) {
				if fmt.Sprint(tl.L, "/", tl.N) == name {
					data[at] ^= 0x80
				}
			}}
			_, err := audit.Verify(t.Context(), bad, l.VerifierKey())
			wantAltered(t, fmt.Sprintf("tile %s, byte %d", name, at), err, -2)
		}
	}
}

func TestT19EveryBitOfACheckpointCounts(t *testing.T) {
	t.Parallel()
	s, l := newLogged(t, 7)
	for bit := range len(l.Latest()) * 8 {
		flip := func(b []byte) []byte { b[bit/8] ^= 1 << (bit % 8); return b }
		_, err := audit.Verify(t.Context(), &tampered{AuditStore: s, checkpoint: flip}, l.VerifierKey())
		wantAltered(t, fmt.Sprint("bit ", bit), err, -1)
		// Whoever holds a broken checkpoint accuses nobody with it.
		_, err = audit.Verify(t.Context(), s, l.VerifierKey(), string(flip([]byte(l.Latest()))))
		var a *audit.Altered
		if err == nil && bit/8 < len(l.Latest())-1 || errors.As(err, &a) {
			t.Errorf("bit %d of a client's checkpoint: %v, want an error about the checkpoint", bit, err)
		}
	}
	// The last digit of the signature has two bits that its value doesn't use.
	digits := "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
	head, last := l.Latest()[:len(l.Latest())-3], l.Latest()[len(l.Latest())-3]
	spare := head + string(digits[strings.IndexByte(digits, last)+1]) + "=\n"
	lines := strings.SplitAfter(l.Latest(), "\n")
	signature := lines[4]
	for name, b := range map[string]string{
		"spare bits": spare, "signed twice": l.Latest() + signature, "signed by another too": l.Latest() + strings.Replace(signature, "runenv", "other", 1),
		"nothing": "", "two": l.Latest() + l.Latest(), "huge": l.Latest() + strings.Repeat("x", 1<<20),
	} {
		_, err := audit.Verify(t.Context(), &tampered{AuditStore: s, checkpoint: func([]byte) []byte { return []byte(b) }}, l.VerifierKey())
		wantAltered(t, name, err, -1)
	}
}

func TestT19EntriesCantBeMoved(t *testing.T) {
	t.Parallel()
	s, l := newLogged(t, 300)
	renumber := func(all []store.Logged) []store.Logged {
		for i := range all {
			all[i].Index = int64(i)
		}
		return all
	}
	for name, tt := range map[string]struct {
		change func([]store.Logged) []store.Logged
		index  int64
	}{
		"one is missing": {func(all []store.Logged) []store.Logged { return slices.Delete(all, 10, 11) }, 10},
		"one is missing, renumbered": {func(all []store.Logged) []store.Logged {
			return renumber(slices.Delete(all, 10, 11))
		}, 10},
		"the first is missing": {func(all []store.Logged) []store.Logged { return all[1:] }, 0},
		"the last is missing":  {func(all []store.Logged) []store.Logged { return all[:299] }, 299},
		"all are missing":      {func(all []store.Logged) []store.Logged { return nil }, 0},
		"two are swapped": {func(all []store.Logged) []store.Logged {
			all[20], all[21] = all[21], all[20]
			return renumber(all)
		}, 20},
		"one is doubled": {func(all []store.Logged) []store.Logged {
			return renumber(slices.Insert(all, 30, all[30]))
		}, 31},
		"one is behind the end": {func(all []store.Logged) []store.Logged {
			return renumber(append(all, all[0]))
		}, 300},
		"a number is skipped": {func(all []store.Logged) []store.Logged {
			for i := 290; i < len(all); i++ {
				all[i].Index++
			}
			return all
		}, 290},
		"filed under another session": {func(all []store.Logged) []store.Logged {
			all[40].Session = "s-41"
			return all
		}, 40},
		"filed under no request": {func(all []store.Logged) []store.Logged {
			all[41].Request = ""
			return all
		}, 41},
		"filed under a lease": {func(all []store.Logged) []store.Logged {
			all[42].Lease = "l-1"
			return all
		}, 42},
		"filed as another event": {func(all []store.Logged) []store.Logged {
			all[43].Event = "session.ended"
			return all
		}, 43},
		"no record": {func(all []store.Logged) []store.Logged {
			all[44].Body = []byte("[]")
			return all
		}, 44},
	} {
		_, err := audit.Verify(t.Context(), &tampered{AuditStore: s, entries: tt.change}, l.VerifierKey())
		wantAltered(t, name, err, tt.index)
	}
}

// The broker's host holds the key: it can sign another past, but not one that
// fits what clients kept.
func TestT19HistorySignedAnewDoesntFitItsWitnesses(t *testing.T) {
	t.Parallel()
	honest, l := newLogged(t, 100)
	early := l.Latest()
	record(t, honest, 100, 200)
	flush(t, l)
	late := l.Latest()
	key := l.VerifierKey()
	verify(t, honest, key, late, early, early)

	// The same key signs another log in another store.
	keys, err := honest.Keys(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	forge := func(n int) store.Store {
		s := newStore(t)
		if _, err := s.EnsureKeys(t.Context(), t0, keys); err != nil {
			t.Fatal(err)
		}
		forger := openLog(t, s)
		if forger.VerifierKey() != key {
			t.Fatal("the forger has another key")
		}
		record(t, s, 0, n)
		flush(t, forger)
		return s
	}
	rewritten := forge(200)
	verify(t, rewritten, key) // on its own it is a fine log
	_, err = audit.Verify(t.Context(), rewritten, key, early)
	wantAltered(t, "rewritten, held against an early checkpoint", err, -1)
	_, err = audit.Verify(t.Context(), rewritten, key, late)
	wantAltered(t, "rewritten, held against a late checkpoint", err, -1)
	grafted := &tampered{AuditStore: rewritten, checkpoint: func([]byte) []byte { return []byte(late) }}
	_, err = audit.Verify(t.Context(), grafted, key)
	wantAltered(t, "rewritten with its tiles, under the honest checkpoint", err, -1)
	_, err = audit.Verify(t.Context(), forge(99), key, early)
	wantAltered(t, "cut", err, -1)

	// Cut back to an earlier state of itself: every signature is genuine.
	cut, cutLog := newLogged(t, 100)
	kept := cutLog.Latest()
	record(t, cut, 100, 200)
	flush(t, cutLog)
	rolledBack := &tampered{
		AuditStore: cut, size: 100, checkpoint: func([]byte) []byte { return []byte(kept) },
		entries: func(all []store.Logged) []store.Logged { return all[:100] },
	}
	verify(t, rolledBack, cutLog.VerifierKey())
	_, err = audit.Verify(t.Context(), rolledBack, cutLog.VerifierKey(), cutLog.Latest())
	wantAltered(t, "rolled back", err, -1)

	// Another log's key or checkpoint proves nothing.
	_, err = audit.Verify(t.Context(), honest, cutLog.VerifierKey())
	wantAltered(t, "another key", err, -1)
	var a *audit.Altered
	if _, err = audit.Verify(t.Context(), honest, key, kept); err == nil || errors.As(err, &a) {
		t.Errorf("another log's checkpoint: %v, want it refused as proof", err)
	}
	if _, err = audit.Verify(t.Context(), honest, "no key"); err == nil {
		t.Error("no key: nil, want an error")
	}
}

func TestT19EveryByteOfAnExportCounts(t *testing.T) {
	t.Parallel()
	s, l := newLogged(t, 3)
	var b bytes.Buffer
	if err := audit.Export(t.Context(), s, &b); err != nil {
		t.Fatal(err)
	}
	export := b.Bytes()
	check := func(b []byte, known ...string) error {
		_, err := audit.VerifyExport(t.Context(), bytes.NewReader(b), l.VerifierKey(), known...)
		return err
	}
	if err := check(export, l.Latest()); err != nil {
		t.Fatalf("VerifyExport() = %v", err)
	}
	for bit := range len(export) * 8 {
		bad := bytes.Clone(export)
		bad[bit/8] ^= 1 << (bit % 8)
		if check(bad) == nil {
			t.Errorf("byte %d, bit %d flipped (%q to %q): VerifyExport() = nil", bit/8, bit%8, export[bit/8], bad[bit/8])
		}
	}
	for n := range export {
		if check(export[:n]) == nil {
			t.Errorf("cut to %d bytes: VerifyExport() = nil", n)
		}
		if check(slices.Insert(bytes.Clone(export), n, ' ')) == nil {
			t.Errorf("a space before byte %d: VerifyExport() = nil", n)
		}
	}
	lines := bytes.SplitAfter(export, []byte("\n")) // three entries, the checkpoint, nothing
	join := func(l ...[]byte) []byte { return bytes.Join(l, nil) }
	_, honest, _ := strings.Cut(strings.TrimSuffix(string(lines[0]), "}\n"), `"entry":`)
	other := strings.Replace(honest, "deploy", "prod42", 1)
	hash := func(body string) []byte { return []byte(tlog.RecordHash([]byte(body)).String()) }
	forged := bytes.Replace(bytes.Replace(lines[0], []byte(honest), []byte(other), 1), hash(honest), hash(other), 1)
	for name, tt := range map[string]struct {
		export []byte
		index  int64
	}{
		"altered, hash too":   {join(forged, lines[1], lines[2], lines[3]), -1},
		"swapped":             {join(lines[0], lines[2], lines[1], lines[3]), 1},
		"doubled":             {join(lines[0], lines[0], lines[1], lines[2], lines[3]), 1},
		"first is missing":    {join(lines[1], lines[2], lines[3]), 0},
		"last is missing":     {join(lines[0], lines[1], lines[3]), -1},
		"two checkpoints":     {join(export, lines[3]), -1},
		"entry at the end":    {join(export, lines[0]), -1},
		"checkpoint early":    {join(lines[0], lines[3]), -1},
		"checkpoint first":    {join(lines[3], lines[0]), -1},
		"no entries":          {lines[3], -1},
		"another member":      {join(lines[0], lines[1], lines[2], []byte(`{"pending":1,`), lines[3][1:]), -1},
		"space in the last":   {join(lines[0], lines[1], lines[2], []byte(`{ `), lines[3][1:]), -1},
		"not JSON":            {join(lines[0], []byte("x\n")), 1},
		"an endless line":     {join(lines[0], bytes.Repeat([]byte("x"), 1<<20)), -3},
		"an entry of nothing": {join([]byte(`{"index":0,"hash":"","entry":}`+"\n"), lines[3]), 0},
		"only its beginning":  {[]byte(`{"index":`), -3},
		"an empty file":       {nil, -3},
		"an empty line":       {[]byte("\n"), 0},
	} {
		err := check(tt.export)
		if tt.index == -3 {
			if err == nil {
				t.Errorf("%s: nil, want an error", name)
			}
			continue
		}
		wantAltered(t, name, err, tt.index)
	}

	empty := newStore(t)
	b.Reset()
	if err := audit.Export(t.Context(), empty, &b); err != nil || b.String() != `{"checkpoint":""}`+"\n" {
		t.Errorf("Export of an empty log = %q, %v", &b, err)
	}
	if err := check(b.Bytes()); err != nil {
		t.Errorf("VerifyExport of an empty log = %v", err)
	}
	wantAltered(t, "emptied", check(b.Bytes(), l.Latest()), -1)
}

func TestExportIsLinesForASIEM(t *testing.T) {
	t.Parallel()
	s, _ := newLogged(t, 2)
	var b bytes.Buffer
	if err := audit.Export(t.Context(), s, &b); err != nil {
		t.Fatal(err)
	}
	const want = `{"index":1,"hash":"`
	line := strings.Split(b.String(), "\n")[1]
	if !strings.HasPrefix(line, want) || !strings.Contains(line, `","entry":{"time":"2026-11-23T12:00:01.123456Z","id":"`) ||
		!strings.HasSuffix(line, `","event":"session.created","request":"r-1","session":"s-1","role":"deploy","claims":{"ref":"refs/heads/main"}}}`) {
		t.Errorf("a line of the export is\n%s", line)
	}
	gap := &tampered{AuditStore: s, entries: func(all []store.Logged) []store.Logged { return all[1:] }}
	wantAltered(t, "Export of a log with a gap", audit.Export(t.Context(), gap, &b), 0)
	two := &tampered{AuditStore: s, entries: func(all []store.Logged) []store.Logged {
		all[1].Body = []byte("{}\n{}")
		return all
	}}
	wantAltered(t, "Export of two lines", audit.Export(t.Context(), two, &b), 1)
}

func TestVerificationStops(t *testing.T) {
	t.Parallel()
	s, l := newLogged(t, 3)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	var b bytes.Buffer
	if err := audit.Export(t.Context(), s, &b); err != nil {
		t.Fatal(err)
	}
	if _, err := audit.VerifyExport(ctx, &b, l.VerifierKey()); !errors.Is(err, context.Canceled) {
		t.Errorf("VerifyExport() = %v, want Canceled", err)
	}
	if _, err := audit.Verify(ctx, s, l.VerifierKey()); !errors.Is(err, context.Canceled) {
		t.Errorf("Verify() = %v, want Canceled", err)
	}
}

// What verifies is what was signed, whatever bytes are around it.
func FuzzVerifyExport(f *testing.F) {
	s, l := newLogged(f, 3)
	var b bytes.Buffer
	if err := audit.Export(f.Context(), s, &b); err != nil {
		f.Fatal(err)
	}
	whole := b.Bytes()
	f.Add(whole)
	f.Add(whole[:len(whole)/2])
	f.Add([]byte(`{"checkpoint":""}` + "\n"))
	f.Add([]byte(`{"index":0,"hash":"` + strings.Repeat("A", 44) + `","entry":{"time":"2026-11-23T12:00:00.000000Z"}}` + "\n"))
	f.Fuzz(func(t *testing.T, export []byte) {
		_, err := audit.VerifyExport(t.Context(), bytes.NewReader(export), l.VerifierKey(), l.Latest())
		if err == nil && !bytes.Equal(export, whole) {
			t.Errorf("another export than the signed one verifies:\n%s", export)
		}
	})
}
