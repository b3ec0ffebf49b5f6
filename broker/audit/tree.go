package audit

import (
	"context"
	"fmt"
	"math/bits"

	"golang.org/x/mod/sumdb/tlog"

	"github.com/runenv/action/broker/store"
)

// hashes are the stored hashes of a tree that grows: those of the tree before,
// which are read from tiles and checked against its root, and the new ones.
type hashes struct {
	known map[int64]tlog.Hash
	old   tlog.HashReader
}

func newHashes(ctx context.Context, s store.AuditStore, tree tlog.Tree) *hashes {
	return &hashes{known: map[int64]tlog.Hash{}, old: tlog.TileHashReader(tree, tiles{ctx, s})}
}

// add hangs the n-th leaf into the tree.
func (h *hashes) add(n int64, leaf tlog.Hash) error {
	fresh, err := tlog.StoredHashesForRecordHash(n, leaf, h)
	if err != nil {
		return err
	}
	at := tlog.StoredHashIndex(0, n)
	for i, hash := range fresh {
		h.known[at+int64(i)] = hash
	}
	return nil
}

// ReadHashes implements [tlog.HashReader].
func (h *hashes) ReadHashes(indexes []int64) ([]tlog.Hash, error) {
	var missing []int64
	for _, i := range indexes {
		if _, ok := h.known[i]; !ok {
			missing = append(missing, i)
		}
	}
	if len(missing) > 0 {
		found, err := h.old.ReadHashes(missing)
		if err != nil {
			return nil, fmt.Errorf("the log's tiles: %w", err)
		}
		for i, hash := range found {
			h.known[missing[i]] = hash
		}
	}
	out := make([]tlog.Hash, len(indexes))
	for i, index := range indexes {
		out[i] = h.known[index]
	}
	return out, nil
}

// tiles reads tiles from the store for tlog, whose interface knows no context;
// it lives for one growth.
type tiles struct {
	ctx   context.Context
	store store.AuditStore
}

func (tiles) Height() int                     { return tileHeight }
func (tiles) SaveTiles([]tlog.Tile, [][]byte) {}
func (t tiles) ReadTiles(want []tlog.Tile) ([][]byte, error) {
	ask := make([]store.Tile, len(want))
	for i, w := range want {
		ask[i] = store.Tile{L: w.L, N: w.N, W: w.W}
	}
	got, err := t.store.Tiles(t.ctx, ask)
	if err != nil {
		return nil, err
	}
	data := make([][]byte, len(got))
	for i, g := range got {
		data[i] = g.Data
	}
	return data, nil
}

// A builder computes the tree anew from its leaves, tile by tile, for the
// verification. It shares no code with the sequencer but the hash itself.
type builder struct {
	size   int64
	levels [][]tlog.Hash // the hashes of the last tile of each level
}

// add adds a leaf. It calls full with each tile that this completes, from the
// leaves upwards.
func (b *builder) add(leaf tlog.Hash, full func(level int, n int64, hashes []tlog.Hash) error) error {
	b.size++
	hash := leaf
	for level := 0; ; level++ {
		if level == len(b.levels) {
			b.levels = append(b.levels, make([]tlog.Hash, 0, 1<<tileHeight))
		}
		b.levels[level] = append(b.levels[level], hash)
		if len(b.levels[level]) < 1<<tileHeight {
			return nil
		}
		if err := full(level, b.size>>(tileHeight*(level+1))-1, b.levels[level]); err != nil {
			return err
		}
		hash = perfect(b.levels[level])
		b.levels[level] = b.levels[level][:0]
	}
}

// partial calls each with the tiles that aren't full.
func (b *builder) partial(each func(level int, n int64, hashes []tlog.Hash) error) error {
	for level, hashes := range b.levels {
		if len(hashes) == 0 {
			continue
		}
		if err := each(level, b.size>>(tileHeight*(level+1)), hashes); err != nil {
			return err
		}
	}
	return nil
}

// root returns the root over the leaves so far, of which there must be one.
func (b *builder) root() tlog.Hash {
	var trees []tlog.Hash // perfect ones, the largest first
	for level := len(b.levels) - 1; level >= 0; level-- {
		for rest := b.levels[level]; len(rest) > 0; {
			n := 1 << (bits.Len(uint(len(rest))) - 1)
			trees = append(trees, perfect(rest[:n]))
			rest = rest[n:]
		}
	}
	root := trees[len(trees)-1]
	for i := len(trees) - 2; i >= 0; i-- {
		root = tlog.NodeHash(trees[i], root)
	}
	return root
}

// perfect returns the root over a power of two of hashes.
func perfect(hashes []tlog.Hash) tlog.Hash {
	if len(hashes) == 1 {
		return hashes[0]
	}
	half := len(hashes) / 2
	return tlog.NodeHash(perfect(hashes[:half]), perfect(hashes[half:]))
}
