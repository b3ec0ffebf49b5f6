package cli

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/pflag"

	"github.com/runenv/action/broker/api"
	"github.com/runenv/action/internal/filesecret"
	"github.com/runenv/action/internal/guardian"
	"github.com/runenv/action/internal/inject"
	"github.com/runenv/action/internal/redact"
	"github.com/runenv/action/secret"
)

// fileOptions say how file secrets get to the command.
type fileOptions struct {
	files    string // memory, or disk where there is none
	isolate  string // off, auto or require
	maxReads int    // how often each can be read; 0: plain files, without end
}

func fileFlags(f *pflag.FlagSet, o *fileOptions) {
	f.StringVar(&o.files, "files", "memory", "`WHERE` file secrets may lie: memory, or a disk where no memory file system is found")
}

// check refuses what can't be meant; command is the one whose flags they are.
func (o *fileOptions) check(command string) error {
	if o.files != "memory" && o.files != "disk" {
		return &usageError{fmt.Sprintf("--files is %q, and not memory or disk", o.files), command}
	}
	return nil
}

// delivered are the file secrets of one command.
type delivered struct {
	vars    []inject.Var    // the paths
	secrets []redact.Secret // what of the files is to be hidden and looked for

	// start goes into [proc.Config].Start; nil where there is nothing to it.
	// An error of the command's start is the caller's by startError.
	start func(path string, args []string, attr *os.ProcAttr) (*os.Process, error)

	say      *printer
	dir      *filesecret.Dir  // nil without files
	guardian *guardian.Handle // one for the files alone, where the session has none
}

// deliver makes the files of all leases in one folder. Call [delivered.remove]
// in the end, as soon as the command and its leftovers are gone, and before
// the session's guardian is dismissed.
func (a *app) deliver(p *process, h *held, leases []api.Lease, o fileOptions) (*delivered, error) {
	d := &delivered{say: a.say}
	files, err := plan(leases)
	if err != nil || len(files) == 0 {
		return d, err
	}
	if d.dir, err = filesecret.Open(a.fileFolders(p, o)); err != nil {
		return nil, err
	}
	if err := a.fill(p, h, d, files); err != nil {
		d.remove()
		return nil, p.orSignal(err)
	}
	return d, nil
}

// fill writes the files, after everybody who has to know was told.
func (a *app) fill(p *process, h *held, d *delivered, files []planned) error {
	if !d.dir.Memory() {
		a.say.warning("file secrets lie on a disk, at " + d.dir.Path() + " (--files=disk): what is deleted there can be recovered")
		if err := h.session.Report(p.starting, api.Report{Files: api.FilesDisk}); err != nil {
			return fmt.Errorf("having it recorded that file secrets lie on a disk: %w", err)
		}
	}
	d.guard(p, h)
	for _, f := range files {
		path, err := d.dir.Write(f.name, f.content.Reveal())
		if err != nil {
			return fmt.Errorf("lease %q: %w", f.lease, err)
		}
		d.vars = append(d.vars, inject.Var{Name: f.variable, Value: secret.FromString(path), Lease: f.lease})
		d.secrets = append(d.secrets, f.secrets...)
	}
	return nil
}

// guard tells the session's guardian of the folder, or one of its own.
func (d *delivered) guard(p *process, h *held) {
	g := h.guardian
	var err error
	if g == nil {
		if g, err = guardian.Start(""); err == nil {
			if err = g.Guard(guardian.Config{}); err == nil {
				d.guardian = g
			}
		}
	}
	if err == nil {
		err = g.Files(d.dir.Path())
	}
	if err != nil {
		p.say.problem("if RunEnv is killed, file secrets stay in memory until it is started again", err)
	}
}

// startError is the error of a command that didn't start.
func (d *delivered) startError(err error) error { return err }

// remove overwrites and removes the files. It does no harm to call it twice,
// or on nil.
func (d *delivered) remove() {
	if d == nil || d.dir == nil {
		return
	}
	if err := d.dir.Remove(); err != nil {
		d.say.problem("some file secrets may be left", err)
	}
	if d.guardian != nil {
		_ = d.guardian.Done() // what it would have done is done
		d.guardian = nil
	}
}

// sweepFiles removes the folders of file secrets that killed runs of this user
// left. It costs nothing worth telling where there are none.
func (a *app) sweepFiles() {
	_, err := filesecret.Sweep(filesecret.Options{Getenv: a.env.Getenv, Disk: true})
	if err != nil {
		a.say.problem("file secrets of an earlier run may be left", err)
	}
}

// fileFolders say where the folder may be: in nothing that a cache or an
// artifact takes up.
func (a *app) fileFolders(p *process, o fileOptions) filesecret.Options {
	opt := filesecret.Options{Getenv: a.env.Getenv, Disk: o.files == "disk", Outside: []string{a.env.Dir, p.dir}}
	for _, name := range []string{"GITHUB_WORKSPACE", "CI_PROJECT_DIR", "RUNNER_TEMP", "RUNNER_TOOL_CACHE", "XDG_CACHE_HOME"} {
		opt.Outside = append(opt.Outside, a.env.Getenv(name))
	}
	// Everything lies in the root: a job that works there caches something
	// narrower.
	opt.Outside = slices.DeleteFunc(opt.Outside, func(dir string) bool { return !filepath.IsAbs(dir) || filepath.Dir(dir) == dir })
	return opt
}

// A planned file is one to be made.
type planned struct {
	variable, lease string
	name            string
	content         secret.Value
	secrets         []redact.Secret
}

// plan settles names: one that two leases chose becomes name-2, before its
// ending.
func plan(leases []api.Lease) ([]planned, error) {
	var files []planned
	taken := map[string]bool{}
	for _, lease := range leases {
		for _, f := range lease.Files {
			if f.Kind != "" {
				return nil, &settingError{fmt.Sprintf("lease %q: this version of RunEnv can't make a file of the kind %q", lease.Name, oneLine(f.Kind)), "use a newer runenv"}
			}
			one := planned{variable: f.Variable, lease: lease.Name, name: unique(taken, f.Name), content: f.Value.Value}
			if f.Mask {
				one.secrets = []redact.Secret{{Lease: lease.Name, Value: f.Value.Value}}
			}
			files = append(files, one)
		}
	}
	if len(files) > filesecret.MaxFiles {
		return nil, errors.New("these leases have too many files for one command")
	}
	return files, nil
}

// unique is name, or name with a number that nobody has taken. Some file
// systems don't tell upper case from lower.
func unique(taken map[string]bool, name string) string {
	out := name
	stem := strings.TrimSuffix(name, filepath.Ext(name))
	for n := 2; taken[strings.ToLower(out)]; n++ {
		out = fmt.Sprintf("%s-%d%s", stem, n, filepath.Ext(name))
	}
	taken[strings.ToLower(out)] = true
	return out
}
