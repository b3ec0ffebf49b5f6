package storetest

import (
	"bytes"
	"fmt"

	"github.com/runenv/action/broker/store"
)

// tile is a tile whose hashes all have the byte b.
func tile(l int, n int64, w int, b byte) store.Tile {
	return store.Tile{L: l, N: n, W: w, Data: bytes.Repeat([]byte{b}, 32*w)}
}

// record makes n entries pending and returns their rows.
func (w *world) record(n int) []int64 {
	w.Helper()
	var entries []store.Entry
	for i := range n {
		entries = append(entries, entry(fmt.Sprint("e", i), "s", "l"))
	}
	if err := w.s.Record(w.ctx, t0, entries); err != nil {
		w.Fatalf("Record() = %v", err)
	}
	pending, err := w.s.Pending(w.ctx, 1000)
	if err != nil {
		w.Fatalf("Pending() = %v", err)
	}
	var rows []int64
	for _, e := range pending {
		rows = append(rows, e.Row)
	}
	return rows
}

func indexes(logged []store.Logged) []int64 {
	out := []int64{}
	for _, e := range logged {
		out = append(out, e.Index)
	}
	return out
}

var auditTests = map[string]func(*world){
	"EntriesWaitInOrderOfCommit": func(w *world) {
		w.wantEvents()
		rows := w.record(3)
		w.wantEvents("e0", "e1", "e2")
		pending, err := w.s.Pending(w.ctx, 2)
		w.wantErr("Pending", err, nil)
		w.same("the first two", []store.Logged{
			{Entry: entry("e0", "s", "l"), Row: rows[0], Index: -1},
			{Entry: entry("e1", "s", "l"), Row: rows[1], Index: -1},
		}, pending)
		entries, err := w.s.Entries(w.ctx, 0, 10)
		if err != nil || len(entries) != 0 {
			w.Errorf("Entries() = %v, %v, want none before they are numbered", entries, err)
		}
		bad := []store.Entry{entry("good", "", ""), {Event: "bad", Body: []byte("two\nlines")}}
		if err := w.s.Record(w.ctx, t0, bad); err == nil {
			w.Error("Record of an entry of two lines = nil, want an error")
		}
		w.wantEvents("e0", "e1", "e2")
	},

	"GrowNumbersRowsInTheOrderGiven": func(w *world) {
		note, size, err := w.s.Checkpoint(w.ctx)
		if err != nil || note != nil || size != 0 {
			w.Errorf("Checkpoint() of an empty log = %q, %d, %v", note, size, err)
		}
		rows := w.record(5)
		grow := func(first int64, checkpoint string, tiles []store.Tile, rows ...int64) error {
			return w.s.Grow(w.ctx, t0, store.Sequence{First: first, Rows: rows, Tiles: tiles, Checkpoint: []byte(checkpoint)})
		}
		w.wantErr("Grow", grow(0, "one", []store.Tile{tile(0, 0, 2, 'a')}, rows[0], rows[2]), nil)
		w.wantEvents("e1", "e3", "e4")
		w.wantErr("Grow", grow(2, "two", []store.Tile{tile(0, 0, 4, 'b')}, rows[1], rows[3]), nil)
		w.wantEvents("e4")
		w.wantErr("Grow", grow(4, "three", []store.Tile{tile(0, 0, 3, 'c')}, rows[4]), nil)
		w.wantEvents()
		note, size, err = w.s.Checkpoint(w.ctx)
		if err != nil || string(note) != "three" || size != 5 {
			w.Errorf("Checkpoint() = %q, %d, %v", note, size, err)
		}
		got, err := w.s.Entries(w.ctx, 1, 3)
		w.wantErr("Entries", err, nil)
		w.same("the entries from 1 on", []store.Logged{
			{Entry: entry("e2", "s", "l"), Row: rows[2], Index: 1},
			{Entry: entry("e1", "s", "l"), Row: rows[1], Index: 2},
			{Entry: entry("e3", "s", "l"), Row: rows[3], Index: 3},
		}, got)
		got, err = w.s.Entries(w.ctx, 5, 3)
		if err != nil || len(got) != 0 {
			w.Errorf("Entries() behind the end = %v, %v", got, err)
		}
		// A narrower tile doesn't replace a wider one.
		tiles, err := w.s.Tiles(w.ctx, []store.Tile{{L: 0, N: 0, W: 4}, {L: 0, N: 0, W: 1}})
		w.wantErr("Tiles", err, nil)
		w.same("tiles", []store.Tile{tile(0, 0, 4, 'b'), tile(0, 0, 1, 'b')}, tiles)
		more := w.record(1)
		w.wantErr("Grow", grow(5, "four", nil, more...), nil)
		w.wantEvents()
	},

	"GrowGivesWayToWhoWasFaster": func(w *world) {
		rows := w.record(3)
		grow := func(first int64, rows ...int64) error {
			return w.s.Grow(w.ctx, t0, store.Sequence{First: first, Rows: rows, Tiles: []store.Tile{tile(0, first, 1, 'x')}, Checkpoint: []byte("lost")})
		}
		won := store.Sequence{First: 0, Rows: rows[:1], Tiles: []store.Tile{tile(0, 0, 1, 'a')}, Checkpoint: []byte("won")}
		w.wantErr("Grow", w.s.Grow(w.ctx, t0, won), nil)
		w.wantErr("the same again", w.s.Grow(w.ctx, t0, won), store.ErrConflict)
		w.wantErr("another size", grow(2, rows[1]), store.ErrConflict)
		w.wantErr("a row that has its place", grow(1, rows[0]), store.ErrConflict)
		w.wantErr("a row twice", grow(1, rows[1], rows[1]), store.ErrConflict)
		w.wantErr("a row that isn't", grow(1, rows[1], 1<<40), store.ErrConflict)
		for name, g := range map[string]store.Sequence{
			"no rows":       {First: 1, Checkpoint: []byte("x")},
			"no checkpoint": {First: 1, Rows: rows[1:2]},
			"a torn tile":   {First: 1, Rows: rows[1:2], Checkpoint: []byte("x"), Tiles: []store.Tile{{L: 0, N: 1, W: 2, Data: make([]byte, 63)}}},
			"an empty tile": {First: 1, Rows: rows[1:2], Checkpoint: []byte("x"), Tiles: []store.Tile{{L: 0, N: 1}}},
		} {
			if err := w.s.Grow(w.ctx, t0, g); err == nil {
				w.Errorf("%s: Grow() = nil, want an error", name)
			}
		}
		w.wantEvents("e1", "e2")
		note, size, err := w.s.Checkpoint(w.ctx)
		if err != nil || string(note) != "won" || size != 1 {
			w.Errorf("Checkpoint() = %q, %d, %v, want what won", note, size, err)
		}
		_, err = w.s.Tiles(w.ctx, []store.Tile{{L: 0, N: 0, W: 1}, {L: 0, N: 1, W: 1}})
		w.wantErr("a tile of a growth that lost", err, store.ErrNotFound)
		_, err = w.s.Tiles(w.ctx, []store.Tile{{L: 0, N: 0, W: 2}})
		w.wantErr("a wider tile than there is", err, store.ErrNotFound)
	},

	"EntriesAboutFindsEveryMention": func(w *world) {
		e := func(event, request, session, lease string) store.Entry {
			return store.Entry{Event: event, Request: request, Session: session, Lease: lease, Body: []byte("{}")}
		}
		w.wantErr("Record", w.s.Record(w.ctx, t0, []store.Entry{
			e("1", "id", "", ""), e("2", "", "id", ""), e("3", "", "", "id"), e("4", "id", "id", "id"), e("5", "other", "", ""), e("6", "", "", ""),
		}), nil)
		pending, err := w.s.Pending(w.ctx, 2)
		w.wantErr("Pending", err, nil)
		w.wantErr("Grow", w.s.Grow(w.ctx, t0, store.Sequence{Rows: []int64{pending[1].Row, pending[0].Row}, Checkpoint: []byte("c")}), nil)
		about := func(id string, n int) []store.Logged {
			got, err := w.s.EntriesAbout(w.ctx, id, n)
			w.wantErr("EntriesAbout", err, nil)
			return got
		}
		w.same("places in the log", []int64{1, 0, -1, -1}, indexes(about("id", 10)))
		w.same("the first three", []int64{1, 0, -1}, indexes(about("id", 3)))
		w.same("another", []int64{-1}, indexes(about("other", 10)))
		w.same("nothing", []int64{}, indexes(about("", 10)))
		w.same("unknown", []int64{}, indexes(about("unknown", 10)))
	},
}
