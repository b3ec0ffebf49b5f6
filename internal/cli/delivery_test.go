package cli

import (
	"bytes"
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/runenv/action/broker/api"
	"github.com/runenv/action/internal/endpoint"
	"github.com/runenv/action/internal/leakscan"
	"github.com/runenv/action/internal/redact"
	"github.com/runenv/action/secret"
)

func value(s string) api.Value { return api.NewValue(secret.FromString(s)) }

// T18: whatever of a lease is to be hidden is hidden, be it a variable's, a
// file's or a part of one.
func TestT18EverySecretOfALeaseIsHidden(t *testing.T) {
	t.Parallel()
	l := api.Lease{
		Name:  "l",
		Env:   []api.Var{{Name: "A", Value: value("env-value-1"), Mask: true}, {Name: "B", Value: value("public-value"), Mask: false}},
		Files: []api.File{{Variable: "C", Value: value("file-value-1"), Mask: true}, {Variable: "D", Value: value("public-file"), Mask: false}},
		Hide:  []api.Value{value("inner-value-1")},
	}
	r := redact.New(secretsOf(l))
	got := string(r.Bytes([]byte("env-value-1 public-value file-value-1 public-file inner-value-1")))
	if want := "[REDACTED:l] public-value [REDACTED:l] public-file [REDACTED:l]"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
}

// Of what can't be hidden only whole values are told: parts of others, such as
// a port, would make a warning of every template.
func TestShortPartsAreNoReasonToWarn(t *testing.T) {
	t.Parallel()
	warned := func(l api.Lease) bool {
		var said bytes.Buffer
		l.Name = "l"
		d := &delivery{a: &app{say: &printer{w: &said}}, o: &runOptions{}}
		d.take([]api.Lease{l})
		d.hide()
		return strings.Contains(said.String(), "under 6 bytes")
	}
	url := []api.Var{{Name: "URL", Value: value("postgres://u:pw-longer@h:5432/x"), Mask: true}}
	if warned(api.Lease{Env: url, Hide: []api.Value{value("5432"), value(" x \n"), value("pw-longer")}}) {
		t.Error("a warning tells of a part")
	}
	if !warned(api.Lease{Env: []api.Var{{Name: "PIN", Value: value("1234"), Mask: true}}}) {
		t.Error("no warning tells of a variable")
	}
	if !warned(api.Lease{Files: []api.File{{Variable: "PIN_FILE", Name: "pin", Value: value("1234"), Mask: true}}}) {
		t.Error("no warning tells of a file")
	}
}

// T35: a lease with values that are easy to guess is named, once, whenever they
// come; parts of others aren't, since nobody can have them shown by themselves.
// The line tells nothing else of a value.
func TestT35EasyGuessesAreWarnedOfOnce(t *testing.T) {
	t.Parallel()
	var said bytes.Buffer
	d := &delivery{a: &app{say: &printer{w: &said}}, o: &runOptions{}, keeper: &endpoint.Keeper{}, again: make(chan struct{}, 1)}
	one := func(name, of string, hide ...api.Value) api.Lease {
		return api.Lease{ID: "1", Name: name, Revocability: "revocable", Env: []api.Var{{Name: "A", Value: value(of), Mask: true}}, Hide: hide}
	}
	warnings := func() (lines []string) {
		for line := range strings.Lines(said.String()) {
			if strings.Contains(line, "warning") {
				lines = append(lines, line)
			}
		}
		said.Reset()
		return lines
	}
	d.take([]api.Lease{one("url", "postgres://app:changeme@db.example.com/x", value("changeme")), one("hard", "k7q9vtz2mw"), one("pin", "493817")})
	d.hide()
	first := warnings()
	if len(first) != 1 || !strings.Contains(first[0], `lease "pin" has a value that is easy to guess: `) || strings.Contains(first[0], "493817") {
		t.Errorf("it says %q", first)
	}
	d.fresh(one("pin", "12345678"))
	if again := warnings(); len(again) > 0 {
		t.Errorf("of other values of the same lease it says %q", again)
	}
	// A whole value that is a part of another lease's.
	d.fresh(one("hard", "changeme"))
	late := warnings()
	if len(late) != 1 || late[0] != strings.Replace(first[0], `"pin"`, `"hard"`, 1) {
		t.Errorf("of a lease that comes later it says %q, want the words of %q", late, first)
	}
}

// T31: what this process knows of values is overwritten at the end.
func TestT31ValuesAreForgotten(t *testing.T) {
	t.Parallel()
	raw := []byte("env-value-1")
	d := &delivery{a: &app{say: &printer{w: &bytes.Buffer{}}}, o: &runOptions{}}
	d.take([]api.Lease{{Name: "l", Env: []api.Var{{Name: "A", Value: api.NewValue(secret.New(raw)), Mask: true}}}})
	d.hide()
	set := d.hiding.Needles()
	if !set.Any([]byte("env-value-1")) {
		t.Fatal("the value isn't looked for")
	}
	d.forget()
	if string(raw) != strings.Repeat("\x00", len(raw)) {
		t.Errorf("the value is %q still", raw)
	}
	if set.Any([]byte("env-value-1")) {
		t.Error("the needles are there still")
	}
}

// An old value stays hidden when another lease has taken its lease's place.
func TestT18ReplacedValuesStayHidden(t *testing.T) {
	t.Parallel()
	var said bytes.Buffer
	d := &delivery{a: &app{say: &printer{w: &said}}, o: &runOptions{}, keeper: &endpoint.Keeper{}, again: make(chan struct{}, 1)}
	d.take([]api.Lease{{ID: "1", Name: "l", Env: []api.Var{{Name: "A", Value: value("first-value"), Mask: true}}}})
	d.hide()
	d.fresh(api.Lease{ID: "2", Name: "l", Revocability: "revocable", Env: []api.Var{{Name: "A", Value: value("second-value"), Mask: true}}})
	if got := string(d.hiding.Bytes([]byte("first-value second-value"))); got != "[REDACTED:l] [REDACTED:l]" {
		t.Errorf("%q", got)
	}
	if len(d.leases) != 1 || d.leases[0].ID != "2" {
		t.Errorf("the command gets %v", leaseNames(d.leases))
	}
	if strings.Contains(said.String(), "value") || len(d.again) != 1 {
		t.Errorf("it says %q, and is to be started again: %d", said.String(), len(d.again))
	}
}

// T35: a scan tells that a value was guessed and where, and nothing by which
// the next guess is better: neither a part of it nor how near a miss was.
func TestT35HitsTellPlacesAlone(t *testing.T) {
	t.Parallel()
	var said bytes.Buffer
	p := &printer{w: &said}
	l := &leaks{mode: scanFail}
	for i := range 30 {
		l.Hits = append(l.Hits, leakscan.Hit{Path: fmt.Sprintf("/ws/%d", i), Where: leakscan.Content, Lease: "db", Offset: 7, Count: 2})
	}
	l.MoreHits = 5
	p.leaks(l, true)
	text := said.String()
	for _, want := range []string{
		"runenv: error: the command left leased values in files\n", "runenv: lease \"db\" in /ws/0 at byte 7 and 1 other place\n", "runenv: and 15 more hits\n",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("no %q in:\n%s", want, text)
		}
	}
	if n := strings.Count(text, "\n"); n != 1+maxShown+1+1 {
		t.Errorf("%d lines", n)
	}
}

func TestLeaksThatFail(t *testing.T) {
	t.Parallel()
	hit, gone := leakscan.Hit{Lease: "l"}, leakscan.Hit{Lease: "l", Scrubbed: true}
	for _, tt := range []struct {
		mode string
		hits []leakscan.Hit
		more int
		err  error
		want bool
	}{
		{scanFail, nil, 0, nil, false},
		{scanFail, []leakscan.Hit{hit}, 0, nil, true},
		{scanFail, []leakscan.Hit{gone}, 0, nil, true}, // it was there
		{scanFail, nil, 0, os.ErrClosed, true},
		{scanScrub, []leakscan.Hit{gone}, 0, nil, false},
		{scanScrub, []leakscan.Hit{gone, hit}, 0, nil, true},
		{scanScrub, []leakscan.Hit{gone}, 1, nil, true},
		{scanWarn, []leakscan.Hit{hit}, 1, nil, false},
	} {
		l := &leaks{mode: tt.mode, Report: leakscan.Report{Hits: tt.hits, MoreHits: tt.more}}
		if tt.err != nil {
			l.errs = []error{tt.err}
		}
		if got := l.fails(); got != tt.want {
			t.Errorf("%s with %+v: fails = %t, want %t", tt.mode, tt.hits, got, tt.want)
		}
	}
}

func TestWorkspace(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct{ github, gitlab, want string }{
		{"", "", "/here"}, {"/gh", "/gl", "/gh"}, {"", "/gl", "/gl"}, {"relative", "", "/here"},
	} {
		env := Env{Environ: []string{"GITHUB_WORKSPACE=" + tt.github, "CI_PROJECT_DIR=" + tt.gitlab}}
		if got := workspace(env.Getenv, "/here"); got != tt.want {
			t.Errorf("%q, %q: %q, want %q", tt.github, tt.gitlab, got, tt.want)
		}
	}
	a := &app{env: Env{Environ: []string{"GITHUB_WORKSPACE=/ws", "HOME=/home/me"}, Dir: "/ws/sub"}}
	got := strings.Join(a.scanFolders([]string{"cache", "/ws/", "/ws/sub/cache", "~/.npm", "~x"}), " ")
	if want := "/ws /ws/sub/cache /home/me/.npm /ws/sub/~x"; got != want {
		t.Errorf("folders %q, want %q", got, want)
	}
}
