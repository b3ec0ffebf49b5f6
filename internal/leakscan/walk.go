package leakscan

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/runenv/action/internal/needle"
)

const (
	// maxDepth bounds how deep folders may lie in each other: each is open
	// while what is in it waits.
	maxDepth = 512
	// batch is how many entries of a folder one worker takes on at once.
	batch = 128
	// bufBytes is how much of a file is read at once, innerBytes how much of a
	// member of an archive. No unpacker peeks further than maxHeader.
	bufBytes   = 256 << 10
	innerBytes = 32 << 10
)

// A search is one run over some paths.
type search struct {
	ctx    context.Context // of this one run
	set    *needle.Set
	since  *Start
	ignore globs
	scrub  bool
	limits limits
	roots  []id

	inflated *atomic.Int64 // by all workers

	mu    sync.Mutex
	more  sync.Cond
	stack []task // the newest first: few folders are open at once
	busy  int    // workers that may push
}

// A task is a folder to list (sub), or some names in one to look at.
type task struct {
	in    *dir
	sub   string
	names []string
}

// A dir is an open folder. It is closed when no task needs it any more.
type dir struct {
	*folder
	id     id
	root   string // as it was named
	rel    string // below root, with forward slashes; "" for root itself
	since  int64  // what changed before it is left out
	depth  int
	users  atomic.Int32
	single bool // of a file that was named: nothing of it is ignored
	keep   bool // nothing in it is overwritten
}

func (d *dir) release() {
	if d.users.Add(-1) == 0 {
		d.close()
	}
}

func (d *dir) join(name string) string {
	if d.rel == "" {
		return name
	}
	return d.rel + "/" + name
}

func (s *search) run(paths []string, workers int) findings {
	s.more.L = &s.mu
	all := newFindings()
	var dirs []*dir
	for _, path := range paths {
		f, m, name, err := openRoot(path)
		if err != nil {
			all.gaps.add(Gap{Path: show(s.set, path), Reason: reason(err)})
			continue
		}
		d := &dir{folder: f, id: m.id, root: path, since: s.since.of(m.id.dev), single: name != "", keep: s.since.misled(path)}
		d.users.Add(1)
		switch {
		case !keepsFiles(f):
			all.gaps.add(Gap{Path: show(s.set, path), Reason: reasonKernel})
			d.release()
		case d.single:
			if real, err := filepath.EvalSymlinks(path); err == nil {
				d.root = filepath.Dir(real)
			}
			s.stack = append(s.stack, task{in: d, names: []string{name}})
		case slices.Contains(s.roots, m.id):
			d.release() // named twice
		default:
			s.roots = append(s.roots, m.id)
			dirs = append(dirs, d)
		}
	}
	list := newWorker(s)
	for _, d := range dirs {
		list.list(d)
		d.release()
	}
	found := make([]findings, workers)
	var wg sync.WaitGroup
	s.busy = workers
	for i := range workers {
		wg.Go(func() {
			w := newWorker(s)
			w.work()
			found[i] = w.findings
		})
	}
	wg.Wait()
	for _, f := range append(found, list.findings) {
		all.hits.add(f.hits.items...)
		all.gaps.add(f.gaps.items...)
		all.hits.dropped += f.hits.dropped
		all.gaps.dropped += f.gaps.dropped
		all.counts.add(f.counts)
	}
	return all
}

func (s *search) push(t task) {
	t.in.users.Add(1)
	s.mu.Lock()
	s.stack = append(s.stack, t)
	s.mu.Unlock()
	s.more.Signal()
}

// pop waits for a task. It says false when none can come any more.
func (s *search) pop() (task, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.busy--
	for len(s.stack) == 0 {
		if s.busy == 0 {
			s.more.Broadcast()
			return task{}, false
		}
		s.more.Wait()
	}
	t := s.stack[len(s.stack)-1]
	s.stack = s.stack[:len(s.stack)-1]
	s.busy++
	return t, true
}

func (w *worker) work() {
	for {
		t, ok := w.pop()
		if !ok {
			return
		}
		switch {
		case w.ctx.Err() != nil: // only what is open is closed
		case t.sub != "":
			w.enter(t.in, t.sub)
		default:
			for _, name := range t.names {
				w.entry(t.in, name)
			}
		}
		t.in.release()
	}
}

// enter opens a folder in another and lists it.
func (w *worker) enter(in *dir, name string) {
	f, m, err := in.sub(name)
	if err != nil {
		w.failed(in, name, err)
		return
	}
	d := &dir{folder: f, id: m.id, root: in.root, rel: in.join(name), since: in.since, depth: in.depth + 1, keep: in.keep}
	d.users.Add(1)
	defer d.release()
	if m.id.dev != in.id.dev {
		d.since = w.since.of(m.id.dev)
		if !keepsFiles(f) {
			w.gap(in, in.join(name), "", reasonKernel)
			return
		}
	}
	w.list(d)
}

func (w *worker) list(d *dir) {
	w.counts.Folders++
	for w.ctx.Err() == nil {
		names, err := d.names(batch)
		if len(names) > 0 {
			w.push(task{in: d, names: names})
		}
		if err != nil {
			if !errors.Is(err, io.EOF) {
				w.gap(d, d.rel, "", reason(err))
			}
			return
		}
	}
}

// entry looks at one entry of a folder.
func (w *worker) entry(in *dir, name string) {
	m, err := in.stat(name)
	if err != nil {
		w.failed(in, name, err)
		return
	}
	if m.kind == regular {
		w.counts.Files++
	}
	changed := m.changed >= in.since
	if !changed && m.kind != directory {
		return
	}
	rel := in.join(name)
	if !in.single && w.ignore.match(rel) {
		w.counts.Ignored++
		return
	}
	if changed {
		w.name(in, rel, rel, len(rel)-len(name), Name)
	}
	switch m.kind {
	case directory:
		switch {
		case m.id != (id{}) && slices.Contains(w.roots, m.id): // it is searched by itself
		case in.depth == maxDepth:
			w.gap(in, rel, "", reasonDeep)
		default:
			w.push(task{in: in, sub: name})
		}
	case symlink:
		target, err := in.target(name)
		if err != nil {
			w.failed(in, name, err)
			return
		}
		w.name(in, rel, target, 0, Target)
	case regular:
		w.file(in, name, rel)
	case special:
		w.counts.Special++
	}
}

// failed tells of an entry that couldn't be looked at. That it is gone is fine.
func (w *worker) failed(in *dir, name string, err error) {
	if gone(err) {
		w.counts.Vanished++
		return
	}
	w.gap(in, in.join(name), "", reason(err))
}

// Reasons of gaps. Those of the system are in words of ours too, so that they
// are the same everywhere and hold no path.
const (
	reasonMissing    = "there is no such file or folder"
	reasonDenied     = "permission denied"
	reasonSwapped    = "it became something else while it was looked at"
	reasonUnreadable = "it can't be read"
	reasonKernel     = "it is no file system that keeps files"
	reasonDeep       = "folders are nested too deeply"
	reasonNested     = "archives are nested too deeply"
	reasonMalformed  = "the archive is damaged or cut off"
	reasonEncrypted  = "it is encrypted"
	reasonMethod     = "it is packed in a way that can't be unpacked here"
	reasonInflated   = "it unpacks to too much"
	reasonHollow     = "it is an archive that is made of holes"
	reasonMembers    = "the archive has too many members"
)

func reason(err error) string {
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return reasonMissing
	case errors.Is(err, fs.ErrPermission):
		return reasonDenied
	case swapped(err):
		return reasonSwapped
	}
	return reasonUnreadable
}
