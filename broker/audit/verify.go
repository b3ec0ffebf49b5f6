package audit

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"

	"github.com/runenv/action/broker/store"
)

const (
	// pageSize is the number of entries that are read at once.
	pageSize = 1 << tileHeight

	// maxPending bounds the count of entries that wait.
	maxPending = 10_000

	// maxShown bounds what Show returns.
	maxShown = 10_000
)

// A Report says what was verified.
type Report struct {
	Size        int64     // entries under the signed checkpoint
	First, Last time.Time // of these entries
	Known       int       // checkpoints of clients that the log continues
	Pending     int       // entries not yet under a checkpoint, counted to 10,000; 0 for an export
	Checkpoint  string    // "" for a log that hasn't begun
}

// Altered is what verification finds: the log isn't what was signed.
type Altered struct {
	Index int64 // of the first entry that is bad; -1 if no single one can be named
	Why   string
}

func (a *Altered) Error() string {
	if a.Index < 0 {
		return "the audit log was altered: " + a.Why
	}
	return fmt.Sprintf("the audit log was altered: entry %d %s", a.Index, a.Why)
}

// A check is one verification under way.
type check struct {
	key    note.Verifier
	known  []tlog.Tree // of clients, the smallest first
	tree   builder
	report Report
}

func newCheck(key string, known []string) (*check, error) {
	v, err := verifier(key)
	if err != nil {
		return nil, err
	}
	c := &check{key: v}
	for i, k := range known {
		tree, err := open(strings.TrimSpace(k)+"\n", v)
		if err != nil {
			return nil, fmt.Errorf("checkpoint %d of those given proves nothing: %w", i+1, err)
		}
		c.known = append(c.known, tree)
	}
	slices.SortFunc(c.known, func(a, b tlog.Tree) int { return cmp.Compare(a.N, b.N) })
	for len(c.known) > 0 && c.known[0].N == 0 {
		c.known = c.known[1:] // nothing to be held to
	}
	return c, nil
}

// entry checks the next entry. full is called with the tiles that it fills.
func (c *check) entry(body []byte, full func(level int, n int64, hashes []tlog.Hash) error) (Record, error) {
	index := c.tree.size
	var r Record
	if err := json.Unmarshal(body, &r); err != nil || r.Time.IsZero() {
		return Record{}, &Altered{index, "isn't a record"}
	}
	if index == 0 {
		c.report.First = r.Time
	}
	c.report.Last = r.Time
	if err := c.tree.add(tlog.RecordHash(body), full); err != nil {
		return Record{}, err
	}
	for len(c.known) > 0 && c.known[0].N == c.tree.size {
		if c.tree.root() != c.known[0].Hash {
			return Record{}, &Altered{-1, fmt.Sprintf("a client holds a checkpoint over its first %d entries, and they aren't these", c.tree.size)}
		}
		c.known = c.known[1:]
		c.report.Known++
	}
	return r, nil
}

// finish checks the whole against the log's own checkpoint.
func (c *check) finish(checkpoint string) (Report, error) {
	var tree tlog.Tree
	if checkpoint != "" {
		var err error
		if tree, err = open(checkpoint, c.key); err != nil {
			return Report{}, &Altered{-1, "it ends in " + err.Error()}
		}
	}
	switch {
	case tree.N != c.tree.size:
		return Report{}, &Altered{-1, fmt.Sprintf("its checkpoint speaks of %d entries, and there are %d", tree.N, c.tree.size)}
	case tree.N > 0 && c.tree.root() != tree.Hash:
		return Report{}, &Altered{-1, "its entries don't lead to the root that was signed"}
	case len(c.known) > 0:
		last := c.known[len(c.known)-1]
		return Report{}, &Altered{-1, fmt.Sprintf("a client holds a checkpoint over %d entries, and there are %d", last.N, tree.N)}
	}
	c.report.Size = tree.N
	c.report.Checkpoint = checkpoint
	return c.report, nil
}

// Verify recomputes the log in a store, which may grow meanwhile: every hash,
// every tile, the root and its signature by key, what the entries are found
// by, and that the log continues the checkpoints that clients kept. An error
// of type *[Altered] says that the log isn't what was signed; any other, that
// it couldn't be verified.
func Verify(ctx context.Context, s store.AuditStore, key string, known ...string) (Report, error) {
	c, err := newCheck(key, known)
	if err != nil {
		return Report{}, err
	}
	signed, size, err := s.Checkpoint(ctx)
	if err != nil {
		return Report{}, fmt.Errorf("reading the checkpoint: %w", err)
	}
	matches := func(level int, n int64, hashes []tlog.Hash) error {
		return tileMatches(ctx, s, level, n, hashes)
	}
	for c.tree.size < size {
		first := c.tree.size
		page, err := s.Entries(ctx, first, int(min(pageSize, size-first)))
		if err != nil {
			return Report{}, fmt.Errorf("reading entries from %d: %w", first, err)
		}
		if len(page) == 0 {
			return Report{}, &Altered{first, "is missing"}
		}
		for _, e := range page {
			if e.Index != c.tree.size {
				return Report{}, &Altered{c.tree.size, "is missing"}
			}
			r, err := c.entry(e.Body, matches)
			if err != nil {
				return Report{}, err
			}
			if e.Event != r.Event || e.Request != r.Request || e.Session != r.Session || e.Lease != r.Lease {
				return Report{}, &Altered{e.Index, "is filed under what it doesn't say"}
			}
		}
	}
	if err := c.tree.partial(matches); err != nil {
		return Report{}, err
	}
	report, err := c.finish(string(signed))
	if err != nil {
		return Report{}, err
	}
	if err := nothingAfter(ctx, s, size); err != nil {
		return Report{}, err
	}
	pending, err := s.Pending(ctx, maxPending)
	if err != nil {
		return Report{}, fmt.Errorf("counting entries that wait: %w", err)
	}
	report.Pending = len(pending)
	return report, nil
}

// tileMatches compares a stored tile with what the entries give.
func tileMatches(ctx context.Context, s store.AuditStore, level int, n int64, hashes []tlog.Hash) error {
	first := n << (tileHeight * (level + 1)) // leaf under the tile's first hash
	got, err := s.Tiles(ctx, []store.Tile{{L: level, N: n, W: len(hashes)}})
	if errors.Is(err, store.ErrNotFound) {
		return &Altered{first, fmt.Sprintf("begins a tile of level %d that is missing", level)}
	}
	if err != nil {
		return fmt.Errorf("reading a tile: %w", err)
	}
	if len(got) != 1 || len(got[0].Data) != len(hashes)*tlog.HashSize {
		return fmt.Errorf("the store gave another tile than %d/%d", level, n)
	}
	for i, want := range hashes {
		if !bytes.Equal(got[0].Data[i*tlog.HashSize:(i+1)*tlog.HashSize], want[:]) {
			return &Altered{first + int64(i)<<(tileHeight*level), fmt.Sprintf("isn't what the tile of level %d says", level)}
		}
	}
	return nil
}

// nothingAfter refuses numbered entries beyond the checkpoint, unless the log
// has just grown.
func nothingAfter(ctx context.Context, s store.AuditStore, size int64) error {
	after, err := s.Entries(ctx, size, 1)
	if err != nil {
		return fmt.Errorf("reading entries from %d: %w", size, err)
	}
	if len(after) == 0 {
		return nil
	}
	_, now, err := s.Checkpoint(ctx)
	if err != nil {
		return fmt.Errorf("reading the checkpoint: %w", err)
	}
	if now == size {
		return &Altered{after[0].Index, "stands behind the signed end"}
	}
	return nil
}

// Show returns the entries about a request, session or lease, in the order in
// which they were written, and at most 10,000 of them.
func Show(ctx context.Context, s store.AuditStore, id string) ([]store.Logged, error) {
	found, err := s.EntriesAbout(ctx, id, maxShown)
	if err != nil {
		return nil, fmt.Errorf("looking for entries: %w", err)
	}
	return found, nil
}
