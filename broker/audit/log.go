// Package audit keeps the broker's log of what it did so that nobody can
// change it unnoticed.
//
// A [Record] becomes an entry, which the store makes durable together with
// the change that it tells of. The [Log] then numbers entries without gaps,
// hangs them into a Merkle tree (RFC 6962, kept as tiles) and signs a
// checkpoint: the tree's size and root. Clients receive checkpoints with their
// leases, so the broker's own host can't rewrite what came before one without
// a client being able to show it.
//
// [Verify] and [VerifyExport] recompute everything and trust nothing but the
// verifier key and the checkpoints they are given. What they can't show:
// entries that never reached the store, and the removal of entries so recent
// that no checkpoint over them has left the broker's host.
package audit

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"

	"github.com/runenv/action/broker/seal"
	"github.com/runenv/action/broker/store"
)

const (
	// tileHeight is the height of tiles: a full one has 256 hashes.
	tileHeight = 8

	// maxGrowth bounds the entries that one checkpoint adds.
	maxGrowth = 2048

	// maxPause bounds the wait after failures.
	maxPause = 30 * time.Second

	// lastFlush bounds the sequencing when the broker stops.
	lastFlush = 5 * time.Second

	keyPurpose = "audit"
)

// Config says what a Log works with. Store, Keys, Sealer and Origin are
// required.
type Config struct {
	Store store.AuditStore
	// Keys keeps the log's key; a store.Store does.
	Keys interface {
		EnsureKeys(ctx context.Context, now time.Time, keys []store.Key) ([]store.Key, error)
	}
	Sealer seal.Sealer
	// Origin names the log for ever: the host of the broker's URL when the log
	// began. A log that exists keeps its own.
	Origin string
	// Now is the time that the store is told. Default: time.Now.
	Now func() time.Time
	// Log is told of failures. Default: nobody is.
	Log *slog.Logger
	// Interval is the time between checkpoints while the log grows. Default:
	// 500 ms.
	Interval time.Duration
}

// A Log sequences entries and signs checkpoints. It is safe for concurrent
// use, also beside other Logs on the same store.
type Log struct {
	cfg    Config
	signer note.Signer
	key    note.Verifier
	public string

	mu   sync.Mutex // held while the log grows
	tree tlog.Tree

	latest atomic.Pointer[string]
}

// Open makes or opens the log. It fails if the stored checkpoint isn't signed
// by the stored key, or that key doesn't open.
func Open(ctx context.Context, cfg Config) (*Log, error) {
	if cfg.Store == nil || cfg.Keys == nil || cfg.Sealer == nil || cfg.Origin == "" {
		return nil, errors.New("an audit log needs a store, keys, a sealer and an origin")
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.Interval <= 0 {
		cfg.Interval = 500 * time.Millisecond
	}
	l := &Log{cfg: cfg}
	if err := l.loadKey(ctx); err != nil {
		return nil, fmt.Errorf("the audit log's key: %w", err)
	}
	if l.key.Name() != cfg.Origin {
		cfg.Log.InfoContext(ctx, "the audit log keeps the name that it began with", "origin", l.key.Name())
	}
	if err := l.reload(ctx); err != nil {
		return nil, fmt.Errorf("the audit log: %w", err)
	}
	return l, nil
}

// loadKey opens the log's key, and makes it before the first use.
func (l *Log) loadKey(ctx context.Context) error {
	private, public, err := note.GenerateKey(rand.Reader, l.cfg.Origin)
	if err != nil {
		return err
	}
	if _, err := verifier(public); err != nil {
		return fmt.Errorf("the origin %q can't name a log: %w", l.cfg.Origin, err)
	}
	fresh := store.Key{Purpose: keyPurpose, ID: keyPurpose + "-" + rand.Text(), Algorithm: "ed25519", Public: []byte(public)}
	fresh.Sealed, err = seal.Seal(ctx, l.cfg.Sealer, place(fresh.ID), []byte(private))
	if err != nil {
		return err
	}
	keys, err := l.cfg.Keys.EnsureKeys(ctx, l.cfg.Now(), []store.Key{fresh})
	if err != nil {
		return err
	}
	if len(keys) != 1 {
		return fmt.Errorf("the store gave %d keys instead of one", len(keys))
	}
	opened, err := seal.Open(ctx, l.cfg.Sealer, place(keys[0].ID), keys[0].Sealed)
	if err != nil {
		return err
	}
	defer clear(opened)
	if l.signer, err = note.NewSigner(string(opened)); err != nil {
		return errors.New("the stored key isn't one")
	}
	l.public = string(keys[0].Public)
	if l.key, err = verifier(l.public); err != nil {
		return err
	}
	// The public half isn't sealed; it must belong to the sealed one.
	proof, err := note.Sign(&note.Note{Text: "proof\n"}, l.signer)
	if err != nil {
		return err
	}
	if _, err := note.Open(proof, note.VerifierList(l.key)); err != nil {
		return errors.New("the stored public key isn't that of the stored private one")
	}
	return nil
}

// place is where the store keeps the private key.
func place(id string) seal.Field { return seal.Field{Table: "keys", Row: id, Column: "sealed"} }

// reload reads the latest checkpoint, which must continue what is known.
func (l *Log) reload(ctx context.Context) error {
	signed, size, err := l.cfg.Store.Checkpoint(ctx)
	if err != nil {
		return fmt.Errorf("reading the checkpoint: %w", err)
	}
	var tree tlog.Tree
	if signed != nil {
		if tree, err = open(string(signed), l.key); err != nil {
			return err
		}
	}
	switch {
	case tree.N != size:
		return fmt.Errorf("the checkpoint speaks of %d entries, the store of %d", tree.N, size)
	case tree.N < l.tree.N, tree.N == l.tree.N && tree != l.tree:
		return fmt.Errorf("the checkpoint of %d entries doesn't continue that of %d", tree.N, l.tree.N)
	}
	l.tree = tree
	if signed != nil {
		latest := string(signed)
		l.latest.Store(&latest)
	}
	return nil
}

// VerifierKey is what checkpoints are verified by, in the form of sumdb/note.
func (l *Log) VerifierKey() string { return l.public }

// Latest returns the latest signed checkpoint, "" before the first. It costs
// no look into the store.
func (l *Log) Latest() string {
	if p := l.latest.Load(); p != nil {
		return *p
	}
	return ""
}

// Run sequences entries until ctx ends, and once more then. It outlives
// failures of the store, which it logs.
func (l *Log) Run(ctx context.Context) error {
	timer := time.NewTimer(l.cfg.Interval)
	defer timer.Stop()
	pause := l.cfg.Interval
	for {
		select {
		case <-ctx.Done():
			last, cancel := context.WithTimeout(context.WithoutCancel(ctx), lastFlush)
			defer cancel()
			return l.Flush(last)
		case <-timer.C:
		}
		if err := l.Flush(ctx); err != nil && ctx.Err() == nil {
			l.cfg.Log.ErrorContext(ctx, "the audit log can't be continued; its entries are safe and wait", "err", err)
			pause = min(2*pause, max(maxPause, l.cfg.Interval))
		} else {
			pause = l.cfg.Interval
		}
		timer.Reset(pause)
	}
}

// Flush sequences all entries that wait and signs the checkpoint over them.
func (l *Log) Flush(ctx context.Context) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	for {
		grown, err := l.grow(ctx)
		switch {
		case errors.Is(err, store.ErrConflict):
			// Another sequencer was faster: then the log has grown by it.
			size := l.tree.N
			if err := l.reload(ctx); err != nil {
				return fmt.Errorf("following another sequencer: %w", err)
			}
			if l.tree.N == size {
				return fmt.Errorf("continuing the audit log: %w, though it hasn't grown", err)
			}
		case err != nil:
			return fmt.Errorf("continuing the audit log: %w", err)
		case grown < maxGrowth:
			return nil
		}
	}
}

// grow adds what waits, at most maxGrowth entries, and returns their number.
func (l *Log) grow(ctx context.Context) (int, error) {
	pending, err := l.cfg.Store.Pending(ctx, maxGrowth)
	if err != nil || len(pending) == 0 {
		return 0, err
	}
	hashes := newHashes(ctx, l.cfg.Store, l.tree)
	next := store.Sequence{First: l.tree.N}
	tree := l.tree
	for _, e := range pending {
		if err := hashes.add(tree.N, tlog.RecordHash(e.Body)); err != nil {
			return 0, err
		}
		tree.N++
		next.Rows = append(next.Rows, e.Row)
	}
	if tree.Hash, err = tlog.TreeHash(tree.N, hashes); err != nil {
		return 0, err
	}
	for _, t := range tlog.NewTiles(tileHeight, l.tree.N, tree.N) {
		data, err := tlog.ReadTileData(t, hashes)
		if err != nil {
			return 0, err
		}
		next.Tiles = append(next.Tiles, store.Tile{L: t.L, N: t.N, W: t.W, Data: data})
	}
	if next.Checkpoint, err = note.Sign(&note.Note{Text: text(l.key.Name(), tree)}, l.signer); err != nil {
		return 0, fmt.Errorf("signing a checkpoint: %w", err)
	}
	if err := l.cfg.Store.Grow(ctx, l.cfg.Now(), next); err != nil {
		return 0, err
	}
	l.tree = tree
	latest := string(next.Checkpoint)
	l.latest.Store(&latest)
	return len(pending), nil
}
