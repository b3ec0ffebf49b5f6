package cli

import (
	"fmt"
	"path/filepath"
	"strings"
	"sync"

	"github.com/runenv/action/broker/api"
	"github.com/runenv/action/internal/leakscan"
)

// What --scan can be.
const (
	scanFail  = "fail"
	scanScrub = "scrub"
	scanWarn  = "warn"
	scanOff   = "off"
)

var scanModes = []string{scanFail, scanScrub, scanWarn, scanOff}

// maxShown bounds how many hits, and how many gaps, are printed one by one.
const maxShown = 20

// scanOptions say where to look for leaks and what to do about them.
type scanOptions struct {
	mode          string
	paths, ignore []string
}

// check refuses patterns that mean nothing, and those that couldn't be told to
// the audit log.
func (o *scanOptions) check() error {
	if err := leakscan.CheckIgnore(o.ignore); err != nil || len(o.ignore) == 0 {
		return err
	}
	return api.Report{ScanIgnore: o.ignore}.Check()
}

// commandFiles are the variables that name the files by which a step talks to
// GitHub's runner, and how it reads them.
var commandFiles = [...]struct {
	variable string
	format   leakscan.Format
}{
	{"GITHUB_ENV", leakscan.Entries}, {"GITHUB_OUTPUT", leakscan.Entries}, {"GITHUB_STATE", leakscan.Entries},
	{"GITHUB_PATH", leakscan.Lines}, {"GITHUB_STEP_SUMMARY", leakscan.Lines},
}

// A leakSearch is a leak scan that is to come.
type leakSearch struct {
	folders []string
	start   *leakscan.Start
	told    sync.WaitGroup // the audit log is being told of how it was set
}

// workspace is the folder that a cache or an artifact may take up.
func workspace(getenv func(string) string, dir string) string {
	for _, name := range []string{"GITHUB_WORKSPACE", "CI_PROJECT_DIR"} {
		if folder := getenv(name); filepath.IsAbs(folder) {
			return folder
		}
	}
	return dir
}

// beginSearch comes before the command; nil if there will be no search.
func (d *delivery) beginSearch() *leakSearch {
	s := &leakSearch{}
	if o := d.o.scan; o.mode != scanFail || len(o.ignore) > 0 {
		s.told.Go(func() { d.report(api.Report{Scan: o.mode, ScanIgnore: o.ignore}) })
	}
	if d.o.scan.mode == scanOff {
		return s
	}
	s.folders = d.a.scanFolders(d.o.scan.paths)
	s.start = leakscan.Begin(s.folders...)
	return s
}

// scanFolders are the folders and files to search, each once. ~ is the home
// folder, as in the paths of a CI's caches, which no shell expands either.
func (a *app) scanFolders(more []string) []string {
	var out []string
	seen := map[string]bool{}
	for _, path := range append([]string{workspace(a.env.Getenv, a.env.Dir)}, more...) {
		if path == "" {
			continue
		}
		if below, ok := strings.CutPrefix(path, "~/"); ok && a.env.Getenv("HOME") != "" {
			path = filepath.Join(a.env.Getenv("HOME"), below)
		}
		if !filepath.IsAbs(path) {
			path = filepath.Join(a.env.Dir, path)
		}
		if path = filepath.Clean(path); !seen[path] {
			seen[path] = true
			out = append(out, path)
		}
	}
	return out
}

// leaks are what a search found.
type leaks struct {
	mode string
	leakscan.Report
	errs []error // what kept it from searching
}

// fails says whether the run is to fail for it.
func (l *leaks) fails() bool {
	switch l.mode {
	case scanFail:
		return len(l.Hits) > 0 || len(l.errs) > 0
	case scanScrub:
		for _, h := range l.Hits {
			if !h.Scrubbed {
				return true
			}
		}
		return l.MoreHits > 0 || len(l.errs) > 0
	}
	return false
}

// find is the leak scan; nil where there was nothing to look for, or no
// command.
func (d *delivery) find() *leaks {
	if d.search == nil {
		return nil
	}
	d.search.told.Wait()
	if d.search.start == nil || d.hiding == nil || d.hiding.Needles().Longest() == 0 {
		return nil
	}
	set := d.hiding.Needles()
	found := &leaks{mode: d.o.scan.mode}
	getenv := d.a.env.Getenv
	if d.o.step != nil {
		getenv = d.o.step.getenv
	}
	// They come first: the runner reads them as soon as we are gone, however we
	// go.
	for _, f := range commandFiles {
		path := getenv(f.variable)
		if path == "" {
			continue
		}
		hits, err := leakscan.ScrubCommandFile(path, f.format, set)
		found.Hits = append(found.Hits, hits...)
		if err != nil {
			found.errs = append(found.errs, err)
		}
	}
	report, err := leakscan.Run(d.p.ending, leakscan.Config{
		Needles: set, Paths: d.search.folders, Since: d.search.start, Ignore: d.o.scan.ignore, Scrub: d.o.scan.mode == scanScrub,
	})
	if err != nil {
		found.errs = append(found.errs, err)
	}
	if report != nil {
		commands := found.Hits
		found.Report = *report
		found.Hits = append(commands, report.Hits...)
	}
	d.p.log.Debug("searched for leaks", "folders", len(d.search.folders), "files", found.Files, "read", found.Read, "bytes", found.Bytes, "hits", len(found.Hits), "gaps", len(found.Gaps))
	return found
}

// tell says what a search found, here and to the broker's audit log.
func (d *delivery) tell(found *leaks) {
	d.a.say.leaks(found, d.o.verbose || d.o.debug)
	if n := len(found.Hits) + found.MoreHits; n > 0 {
		d.report(api.Report{Scan: found.mode, ScanHits: min(n, maxReportedHits)})
	}
}

// maxReportedHits stands for more, too.
const maxReportedHits = 1 << 20

// leaks says what a search found: what makes a run fail as an error.
func (p *printer) leaks(l *leaks, verbose bool) {
	if lines := hitLines(l); len(lines) > 0 {
		if err := (&leakError{lines}); l.fails() {
			p.failure(err)
		} else {
			p.problem("--scan="+l.mode, err)
		}
	}
	for _, err := range l.errs {
		p.problem("the leak scan isn't complete", err)
	}
	n := len(l.Gaps) + l.MoreGaps
	if n == 0 {
		return
	}
	first := l.Gaps[0]
	p.warning(fmt.Sprintf("the leak scan couldn't search %s, the first being %s: %s", count(n, "place"), within(first.Path, first.Member), first.Reason))
	if verbose {
		for _, g := range l.Gaps[:min(len(l.Gaps), maxShown)] {
			p.note("not searched: " + within(g.Path, g.Member) + ": " + g.Reason)
		}
	}
}

// hitLines are a line for each hit, up to a bound.
func hitLines(l *leaks) []string {
	var lines []string
	for _, h := range l.Hits[:min(len(l.Hits), maxShown)] {
		lines = append(lines, hitText(h))
	}
	if more := len(l.Hits) + l.MoreHits - len(lines); more > 0 {
		lines = append(lines, "and "+count(more, "more hit"))
	}
	return lines
}

func hitText(h leakscan.Hit) string {
	where := map[leakscan.Where]string{leakscan.Content: "in", leakscan.Name: "in the name of", leakscan.Target: "in the target of the link"}[h.Where]
	text := fmt.Sprintf("lease %q %s %s at byte %d", h.Lease, where, within(h.Path, h.Member), h.Offset)
	if h.Count > 1 {
		text += fmt.Sprintf(" and %s", count(h.Count-1, "other place"))
	}
	if h.Scrubbed {
		text += " (removed)"
	}
	return text
}

func within(path, member string) string {
	if member == "" {
		return path
	}
	return path + "!/" + member
}

func count(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}

// A leakError is what a search found, a line for each.
type leakError struct{ lines []string }

func (e *leakError) Error() string { return "the command left leased values in files" }

// Lines say where.
func (e *leakError) Lines() []string { return e.lines }

// Hint names the cure.
func (e *leakError) Hint() string {
	return "have the command write no value there; where it must, --scan-ignore GLOB (the action's `scan-ignore:`) leaves a path out, and the audit log says so"
}
