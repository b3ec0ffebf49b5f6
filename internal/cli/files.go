package cli

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"

	"github.com/spf13/pflag"

	"github.com/runenv/action/broker/api"
	"github.com/runenv/action/internal/filesecret"
	"github.com/runenv/action/internal/guardian"
	"github.com/runenv/action/internal/inject"
	"github.com/runenv/action/internal/isolate"
	"github.com/runenv/action/secret"
)

// Helper runs what RunEnv starts of itself, if a program with these arguments
// (os.Args, whole) is that.
func Helper(args []string) (status int, is bool) {
	switch {
	case guardian.IsGuardian(args):
		return guardian.Main(context.Background()), true
	case isolate.Is(args):
		return isolate.Main(args), true
	}
	return 0, false
}

const (
	filesMemory    = "memory"
	filesDisk      = "disk"
	isolateOff     = "off"
	isolateAuto    = "auto"
	isolateRequire = "require"

	maxMaxReads = 1000
)

// fileOptions say how file secrets get to the command.
type fileOptions struct {
	files    string // memory, or disk where there is none
	isolate  string // off, auto or require
	maxReads int    // how often each can be read; 0: plain files, without end

	onRecord *bool // the broker's audit log tells of files on a disk
}

func fileFlags(f *pflag.FlagSet, o *fileOptions) {
	o.onRecord = new(bool)
	f.StringVar(&o.files, "files", filesMemory, "`WHERE` file secrets may lie: memory, or a disk where no memory file system is found")
	f.StringVar(&o.isolate, "isolate", isolateOff, "`WHETHER` file secrets are mounted for the command alone (Linux; not with sudo or docker -v): off, auto where it can be, or require")
	f.IntVar(&o.maxReads, "mount-max-reads", 0, "let each file secret be read `N` times, from a FIFO, which breaks programs that read twice or seek; 0: a plain file")
}

// check refuses what can't be meant; command is the one whose flags they are.
func (o *fileOptions) check(command string) error {
	switch {
	case o.files != filesMemory && o.files != filesDisk:
		return &usageError{fmt.Sprintf("--files is %q, and not memory or disk", o.files), command}
	case !slices.Contains([]string{isolateOff, isolateAuto, isolateRequire}, o.isolate):
		return &usageError{fmt.Sprintf("--isolate is %q, and not off, auto or require", o.isolate), command}
	case o.isolate == isolateRequire && runtime.GOOS != "linux":
		return &usageError{"--isolate=require needs mount namespaces, which only Linux has", command}
	case o.maxReads < 0 || o.maxReads > maxMaxReads:
		return &usageError{fmt.Sprintf("--mount-max-reads isn't 0 to %d", maxMaxReads), command}
	case o.maxReads > 0 && runtime.GOOS == "windows":
		return &usageError{"--mount-max-reads needs FIFOs, which Windows doesn't have", command}
	case o.maxReads > 0 && o.isolate != isolateOff:
		return &usageError{"--mount-max-reads and --isolate don't go together", command}
	}
	return nil
}

// delivered are the file secrets of one command.
type delivered struct {
	vars []inject.Var // the paths

	// start goes into [proc.Config].Start; nil where there is nothing to it. An
	// error of the command's start is what startError makes of it.
	start func(path string, args []string, attr *os.ProcAttr) (*os.Process, error)

	a        *app
	p        *process
	h        *held
	o        fileOptions
	dir      *filesecret.Dir  // nil without files
	guardian *guardian.Handle // one for the files alone, where the session has none
}

// deliver makes the files of all leases, and more, in one folder. Call [delivered.remove]
// in the end, as soon as the command and its leftovers are gone, and before
// the session's guardian is dismissed.
func (a *app) deliver(p *process, h *held, leases []api.Lease, o fileOptions, more ...planned) (*delivered, error) {
	d := &delivered{a: a, p: p, h: h, o: o}
	files, err := a.plan(leases)
	files = append(files, more...)
	if err != nil || len(files) == 0 {
		return d, err
	}
	if d.dir, err = filesecret.Open(a.fileFolders(p, o)); err != nil {
		return nil, err
	}
	if err := d.fill(files); err != nil {
		d.remove()
		return nil, p.orSignal(err)
	}
	return d, nil
}

// fill writes the files, or has them written for the command alone, once the
// guardian knows of their folder.
func (d *delivered) fill(files []planned) error {
	d.guard()
	for _, f := range files {
		d.vars = append(d.vars, inject.Var{Name: f.variable, Value: secret.FromString(filepath.Join(d.dir.Path(), f.path())), Lease: f.lease})
	}
	if d.o.isolate == isolateOff {
		return d.write(files)
	}
	stage := &isolate.Stage{Dir: d.dir.Path(), Files: staged(files)}
	if d.o.isolate == isolateAuto {
		stage.Fallback = func(why error) error {
			d.p.log.Debug("file secrets aren't isolated (--isolate=auto)", "error", why)
			return d.write(files)
		}
	}
	d.start = stage.Start
	return nil
}

func staged(files []planned) []isolate.File {
	var out []isolate.File
	for _, f := range files {
		out = append(out, isolate.File{Name: f.name, Content: f.content.Reveal()})
		for _, l := range f.links {
			out = append(out, isolate.File{Name: l.name, Target: l.target})
		}
	}
	return out
}

// write makes the files where every process of this user finds them.
func (d *delivered) write(files []planned) error {
	switch {
	case !d.dir.Memory():
		if err := d.record(); err != nil {
			return err
		}
	case d.dir.Swappable() && d.o.maxReads == 0:
		d.a.say.warning("file secrets lie in memory that this machine may swap to a disk; --isolate=require keeps them off it")
	}
	for _, f := range files {
		var err error
		if d.o.maxReads > 0 {
			_, err = d.dir.Serve(f.name, f.content.Reveal(), d.o.maxReads)
		} else {
			_, err = d.dir.Write(f.name, f.content.Reveal())
		}
		if err != nil {
			return fmt.Errorf("lease %q: %w", f.lease, err)
		}
		if err := d.link(f.links); err != nil {
			return fmt.Errorf("lease %q: %w", f.lease, err)
		}
	}
	return nil
}

// record says aloud, and has the broker's audit log tell, that file secrets
// are about to be written to a disk.
func (d *delivered) record() error {
	if *d.o.onRecord {
		return nil
	}
	d.a.say.warning("file secrets lie on a disk, in " + filepath.Dir(d.dir.Path()) + " (--files=disk): what is deleted there may be recovered")
	if err := d.h.session.Report(d.p.starting, api.Report{Files: api.FilesDisk}); err != nil {
		return fmt.Errorf("having the audit log tell that file secrets lie on a disk: %w", err)
	}
	*d.o.onRecord = true
	return nil
}

// guard tells the session's guardian of the folder, or one of its own.
func (d *delivered) guard() {
	g, err := d.h.guardian, error(nil)
	if g == nil {
		g, err = guardian.Start("")
		if err == nil {
			err = g.Guard(guardian.Config{})
		}
		if err == nil {
			d.guardian = g
		}
	}
	if err == nil {
		err = g.Files(d.dir.Path())
	}
	if err != nil {
		d.a.say.problem("if RunEnv is killed, file secrets stay until it is started again", err)
	}
}

// startError is what an error of the command's start means: where RunEnv
// refused it, it isn't the command's.
func (d *delivered) startError(err error) error {
	if refused, ok := asIsolateError(err); ok {
		return refused
	}
	return err
}

// remove overwrites and removes the files. It does no harm to call it twice,
// or on nil.
func (d *delivered) remove() {
	if d == nil || d.dir == nil {
		return
	}
	if err := d.dir.Remove(); err != nil {
		d.a.say.problem("some file secrets may be left", err)
	}
	if d.guardian != nil {
		_ = d.guardian.Done() // what it would have done is done
		d.guardian = nil
	}
}

// sweepFiles removes the folders of file secrets that killed runs of this user
// left. Where there are none it costs next to nothing.
func (a *app) sweepFiles() {
	if _, err := filesecret.Sweep(filesecret.Options{Getenv: a.env.Getenv, Disk: true}); err != nil {
		a.say.problem("file secrets of an earlier run may be left", err)
	}
}

// fileFolders say where the folder may be: in nothing that a cache or an
// artifact takes up.
func (a *app) fileFolders(p *process, o fileOptions) filesecret.Options {
	opt := filesecret.Options{
		Getenv: a.env.Getenv,
		// Where it is mounted over, it is no more than a place.
		Disk:    o.files == filesDisk || o.isolate == isolateRequire,
		Outside: []string{a.env.Dir, p.dir},
	}
	for _, name := range []string{"GITHUB_WORKSPACE", "CI_PROJECT_DIR", "RUNNER_TEMP", "RUNNER_TOOL_CACHE", "XDG_CACHE_HOME"} {
		opt.Outside = append(opt.Outside, a.env.Getenv(name))
	}
	// Everything lies in the root: whoever works there caches something
	// narrower.
	opt.Outside = slices.DeleteFunc(opt.Outside, func(dir string) bool { return !filepath.IsAbs(dir) || filepath.Dir(dir) == dir })
	return opt
}
