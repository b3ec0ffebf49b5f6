package store

import (
	"context"
	"time"
)

// An Entry is one record of the audit log, as it is handed to a verb. Body is
// the leaf that the log proves: one line of JSON without its newline. The
// other fields are an index for look-ups and are part of Body already.
type Entry struct {
	Event   string
	Request string
	Session string
	Lease   string
	Body    []byte
}

// A Logged entry has its place in the database, and in the log once it was
// sequenced.
type Logged struct {
	Entry
	Row   int64 // order of commit
	Index int64 // place in the log from 0; -1 while pending
}

// A Tile is a tlog tile's data: L, N and W are its level, number and width,
// of height 8.
type Tile struct {
	L    int
	N    int64
	W    int
	Data []byte
}

// A Sequence is one growth of the log.
type Sequence struct {
	First      int64   // index of the first row
	Rows       []int64 // pending rows in the order they get
	Tiles      []Tile  // new tiles; a wider one replaces a narrower
	Checkpoint []byte  // signed note of the size after this growth
}

// An AuditStore keeps the audit log.
type AuditStore interface {
	// Record makes entries durable that belong to no other verb.
	Record(ctx context.Context, now time.Time, entries []Entry) error
	// Pending returns at most n entries that aren't sequenced, in order of
	// commit.
	Pending(ctx context.Context, n int) ([]Logged, error)
	// Grow sequences pending rows. ErrConflict if the log's size isn't
	// s.First or a row isn't pending: another replica was faster.
	Grow(ctx context.Context, now time.Time, s Sequence) error
	// Checkpoint returns the latest signed one and the size it speaks of;
	// nil and 0 before the first.
	Checkpoint(ctx context.Context) ([]byte, int64, error)
	// Entries returns sequenced entries from index first on, at most n.
	Entries(ctx context.Context, first int64, n int) ([]Logged, error)
	// EntriesAbout returns the entries, pending ones included, whose request,
	// session or lease is id, in order of commit, at most n.
	EntriesAbout(ctx context.Context, id string, n int) ([]Logged, error)
	// Tiles returns the data of the tiles named by L, N and W, in order. A
	// stored wider tile serves a narrower request, cut. ErrNotFound.
	Tiles(ctx context.Context, want []Tile) ([]Tile, error)
}
