// Package leakscan searches files for leased values that a command left where
// they don't belong: in its workspace, in a cache folder, in the files by which
// a step talks to its CI.
//
// What changed since a [Start] is read; of the rest only its change times are.
// Values are looked for as package needle does, in contents, in the names of
// files and folders, in the targets of symbolic links, and inside gzip, zlib,
// zip and tar, one inside the other to a bounded depth.
//
// It promises that no symbolic link is followed and no folder left, whatever is
// swapped meanwhile; that nothing it opens can hold it up; that memory is
// bounded; that a report never shows a value; and that what couldn't be
// searched is in the report as a [Gap], never passed over.
//
// It can't find what was transformed in another way (encrypted, packed by
// another program, put in another character set), nor values of less than
// [needle.MinBytes] bytes. Extended attributes aren't read.
package leakscan

import (
	"cmp"
	"context"
	"fmt"
	"runtime"
	"slices"
	"sync/atomic"

	"github.com/runenv/action/internal/needle"
)

const (
	// maxHits and maxGaps bound a report. What is beyond them is counted.
	maxHits = 1000
	maxGaps = 1000
	// maxWorkers bounds memory: each has a buffer of bufBytes and, inside
	// archives, one of innerBytes for each level.
	maxWorkers = 16
)

// Config says what to search for, and where.
type Config struct {
	// Needles are the values.
	Needles *needle.Set
	// Paths are folders, searched with all that is in them, and files. A
	// symbolic link among them is followed, as whoever named it wanted; none
	// is that stands in a folder.
	Paths []string
	// Since leaves out what hasn't changed since then. Nil searches all.
	Since *Start
	// Ignore has patterns of what to leave out, against the path below the
	// folder that was named: * and ? don't match a slash, ** stands for any
	// number of whole segments. A folder is left out with all that is in it.
	Ignore []string
	// Scrub overwrites each value found in a file that is no archive with as
	// many asterisks. Names and members of archives stay as they are, and so
	// does all below a path that leads elsewhere than it did at Since: by a
	// symbolic link that a command put there, files would be overwritten that
	// nobody named.
	Scrub bool

	limits limits // zero: defaultLimits
}

// Where in an entry of a folder or an archive a value stands.
type Where string

// The places.
const (
	Content Where = "content"
	Name    Where = "name"   // of the file, or of the path that ends with it
	Target  Where = "target" // of a symbolic link
)

// A Hit says where a value of a lease was found: once for each file or member
// of an archive, place and lease. Its path and member have no value in them,
// and no character that a terminal or a CI would act on.
type Hit struct {
	Path string `json:"path"`
	// Member is the path inside an archive, with !/ after each archive.
	Member string `json:"member,omitempty"`
	Where  Where  `json:"where"`
	Lease  string `json:"lease"`
	// Offset of the first, in bytes; for a name from the folder searched.
	Offset int64 `json:"offset"`
	// Count of places; overlapping ones count once.
	Count int `json:"count"`
	// Scrubbed says that all of them were overwritten.
	Scrubbed bool `json:"scrubbed,omitempty"`
}

// A Gap is something that couldn't be searched, or not to its end.
type Gap struct {
	Path   string `json:"path"`
	Member string `json:"member,omitempty"`
	Reason string `json:"reason"`
}

// A Report is what a search found. It holds no value.
type Report struct {
	Hits []Hit `json:"hits"` // in order of path, member, place and lease
	Gaps []Gap `json:"gaps"`
	// MoreHits and MoreGaps count what there was no room for.
	MoreHits int `json:"more_hits,omitempty"`
	MoreGaps int `json:"more_gaps,omitempty"`
	Counts
}

// Counts tell how much was done.
type Counts struct {
	Folders  int64 `json:"folders"`  // that were listed
	Files    int64 `json:"files"`    // regular ones that were met
	Read     int64 `json:"read"`     // of those, searched: they had changed
	Bytes    int64 `json:"bytes"`    // of contents
	Inflated int64 `json:"inflated"` // bytes that came out of compressed data
	Members  int64 `json:"members"`  // of archives
	Ignored  int64 `json:"ignored"`  // files and folders that a pattern left out
	Special  int64 `json:"special"`  // devices, sockets, named pipes: their names alone were searched
	Vanished int64 `json:"vanished"` // went away between being listed and opened
}

func (c *Counts) add(d Counts) {
	c.Folders += d.Folders
	c.Files += d.Files
	c.Read += d.Read
	c.Bytes += d.Bytes
	c.Inflated += d.Inflated
	c.Members += d.Members
	c.Ignored += d.Ignored
	c.Special += d.Special
	c.Vanished += d.Vanished
}

// Run searches. It fails on a pattern that makes no sense and when ctx ends;
// then the report says what was found until then. What is wrong with a path is
// a gap in the report, a path that doesn't exist included.
func Run(ctx context.Context, cfg Config) (*Report, error) {
	ignore, err := compileGlobs(cfg.Ignore)
	if err != nil {
		return nil, err
	}
	if cfg.limits == (limits{}) {
		cfg.limits = defaultLimits
	}
	s := &search{
		ctx: ctx, set: cfg.Needles, since: cfg.Since.now(), ignore: ignore, scrub: cfg.Scrub,
		limits: cfg.limits, inflated: new(atomic.Int64),
	}
	found := s.run(cfg.Paths, min(runtime.GOMAXPROCS(0), maxWorkers))
	report := &Report{
		Hits: found.hits.sorted(), Gaps: found.gaps.sorted(),
		MoreHits: found.hits.dropped, MoreGaps: found.gaps.dropped, Counts: found.counts,
	}
	if err := ctx.Err(); err != nil {
		return report, fmt.Errorf("searching for leaks: %w", err)
	}
	return report, nil
}

// findings are what one worker found.
type findings struct {
	hits   first[Hit]
	gaps   first[Gap]
	counts Counts
}

func newFindings() findings {
	return findings{hits: first[Hit]{max: maxHits, order: compareHits}, gaps: first[Gap]{max: maxGaps, order: compareGaps}}
}

func compareHits(a, b Hit) int {
	return cmp.Or(
		cmp.Compare(a.Path, b.Path), cmp.Compare(a.Member, b.Member), cmp.Compare(a.Where, b.Where),
		cmp.Compare(a.Lease, b.Lease), cmp.Compare(a.Offset, b.Offset),
	)
}

func compareGaps(a, b Gap) int {
	return cmp.Or(cmp.Compare(a.Path, b.Path), cmp.Compare(a.Member, b.Member), cmp.Compare(a.Reason, b.Reason))
}

// first keeps the first max items in their order, whatever the order in which
// they come, and counts the others.
type first[T any] struct {
	max     int
	order   func(a, b T) int
	items   []T
	dropped int
}

func (f *first[T]) add(items ...T) {
	for _, item := range items {
		f.items = append(f.items, item)
		if len(f.items) >= 2*f.max {
			f.cut()
		}
	}
}

func (f *first[T]) cut() {
	slices.SortFunc(f.items, f.order)
	if over := len(f.items) - f.max; over > 0 {
		f.dropped += over
		f.items = slices.Delete(f.items, f.max, len(f.items))
	}
}

func (f *first[T]) sorted() []T {
	f.cut()
	if f.items == nil {
		return []T{}
	}
	return f.items
}
