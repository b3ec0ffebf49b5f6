package lease_test

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/runenv/action/broker/lease"
	"github.com/runenv/action/broker/store"
	"github.com/runenv/action/providers"
	"github.com/runenv/action/secret"
)

// plain is a back end of stored values: it makes nothing, so there is nothing
// to log in to, to revoke or to find.
type plain struct{ providers.Provider }

// counting counts the verbs that make something durable.
type counting struct {
	store.Store
	intend, advance int
	fail            error // of Intend
}

func (c *counting) Intend(ctx context.Context, now time.Time, in store.Intended) error {
	c.intend++
	if c.fail != nil {
		return c.fail
	}
	return c.Store.Intend(ctx, now, in)
}

func (c *counting) Advance(ctx context.Context, now time.Time, changes []store.Change) ([]error, error) {
	c.advance++
	return c.Store.Advance(ctx, now, changes)
}

func (r *rig) storedOnly() *counting {
	r.provider = plain{r.back}
	c := &counting{Store: r.store}
	r.verbs = c
	r.engine = r.newEngine()
	return c
}

// Stored values are handed out after one durable step, which says so.
func TestP3StoredValuesTakeOneStep(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	c := r.storedOnly()
	s := r.session()
	issued := r.issue(s, r.def("a", providers.Static), r.def("b", providers.Static))
	if c.intend != 1 || c.advance != 0 {
		t.Errorf("%d and %d durable steps, want one", c.intend, c.advance)
	}
	if got, want := r.states(s), "a=disclosed b=disclosed"; got != want {
		t.Errorf("rows = %q, want %q", got, want)
	}
	for _, is := range issued {
		if got := r.entries(is.Lease.ID); !slices.Equal(got, []string{"lease.disclosed"}) || len(is.Env) != 1 || is.Lease.State != store.Disclosed {
			t.Errorf("%s: entries %v, %d variables, %s", is.Lease.Name, got, len(is.Env), is.Lease.State)
		}
	}
}

// What can't be recorded isn't handed out, and a refusal leaves no trace of a
// disclosure.
func TestP3StoredValuesThatArentRecorded(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	c := r.storedOnly()
	s := r.session()
	req := r.request(s, r.def("a", providers.Static))
	c.fail = errors.New("no space left on device")
	if _, err := r.engine.Issue(t.Context(), req); !errors.Is(err, c.fail) {
		t.Errorf("Issue() without a store = %v", err)
	}
	c.fail = nil
	if _, err := r.engine.Issue(t.Context(), req); err != nil {
		t.Fatalf("Issue() = %v: the proof counts once a verb isn't refused", err)
	}
	if _, err := r.engine.Issue(t.Context(), req); !errors.Is(err, store.ErrProofReplayed) {
		t.Errorf("Issue() with a used proof = %v", err)
	}
	over := r.request(s, r.def("a", providers.Static), r.def("b", providers.Static))
	over.Limit = 1
	if _, err := r.engine.Issue(t.Context(), over); !errors.Is(err, store.ErrLimit) {
		t.Errorf("Issue() beyond the limit = %v", err)
	}
	r.back.set("issue b", providers.ErrNotFound)
	if _, err := r.engine.Issue(t.Context(), r.request(s, r.def("a", providers.Static), r.def("b", providers.Static))); !errors.Is(err, providers.ErrNotFound) {
		t.Errorf("Issue() with a neighbour that isn't there = %v", err)
	}
	r.end(s)
	if _, err := r.engine.Issue(t.Context(), r.request(s, r.def("a", providers.Static))); !errors.Is(err, store.ErrEnded) {
		t.Errorf("Issue() in an ended session = %v", err)
	}
	if got, want := r.states(s), "a=disclosed"; got != want {
		t.Errorf("rows = %q, want %q", got, want)
	}
}

// P4: where something could be made after all, the intent comes first.
func TestP4OnlyStoredValuesGoWithoutAnIntent(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name     string
		provider func(b *backEnd) providers.Provider
		kinds    []providers.Revocability
	}{
		{"a neighbour that is revocable", func(b *backEnd) providers.Provider { return plain{b} }, []providers.Revocability{providers.Static, providers.Revocable}},
		{"a provider that logs in", func(b *backEnd) providers.Provider { return expireOnly{b} }, []providers.Revocability{providers.Static}},
		{"a provider that revokes", func(b *backEnd) providers.Provider { return bare{b, b} }, []providers.Revocability{providers.Static}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			r := newRig(t)
			c := r.storedOnly()
			r.provider = tt.provider(r.back)
			s := r.session()
			var defs []lease.Definition
			for _, kind := range tt.kinds {
				defs = append(defs, r.def(string(kind), kind))
			}
			c.fail = errors.New("no space left on device")
			if _, err := r.engine.Issue(t.Context(), r.request(s, defs...)); !errors.Is(err, c.fail) {
				t.Errorf("Issue() = %v", err)
			}
			if n := r.back.calls("issue") + r.back.calls("login"); n != 0 {
				t.Errorf("%d calls to the back end before the intent was durable", n)
			}
		})
	}
}

// cloud is an expire-only back end that can cut off what it issued.
type cloud struct {
	expireOnly
	steps   []providers.Containment
	err     error
	handles []string
	applied []bool
}

func (c *cloud) Contain(_ context.Context, _ string, handles []secret.Value, apply bool) ([]providers.Containment, error) {
	c.handles = nil
	for _, h := range handles {
		c.handles = append(c.handles, string(h.Reveal()))
	}
	c.applied = append(c.applied, apply)
	steps := slices.Clone(c.steps)
	for i := range steps {
		steps[i].Done = apply && (c.err == nil || i == 0)
	}
	return steps, c.err
}

func TestContain(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	c := &cloud{expireOnly: expireOnly{r.back}, steps: []providers.Containment{{Target: "role/a", Policy: "{}", Undo: "undo"}, {Target: "role/b"}}}
	r.provider = c
	r.back.ttl = 30 * time.Minute
	s := r.session()
	r.issue(s, r.def("sts", providers.Expires), r.def("two", providers.Expires))
	r.end(s)
	cutter := lease.Cutter{
		Store: r.store, Sealer: r.sealer, Now: r.time.Now,
		Provider: func(string) (providers.Provider, bool) { return r.provider, r.provider != nil },
	}
	steps, err := cutter.Contain(t.Context(), s.ID, false)
	if err != nil || len(steps) != 2 || steps[0].Done {
		t.Errorf("Contain(dry) = %+v, %v", steps, err)
	}
	slices.Sort(c.handles)
	if !slices.Equal(c.handles, []string{"cred-2", "cred-3"}) {
		t.Errorf("handles = %v, want those of the two leases and no login's", c.handles)
	}
	before := len(r.entries(s.ID))
	if steps, err = cutter.Contain(t.Context(), s.ID, true); err != nil || !steps[0].Done || !steps[1].Done {
		t.Errorf("Contain(apply) = %+v, %v", steps, err)
	}
	if got, want := r.entries(s.ID)[before:], []string{"lease.containing", "lease.contained", "lease.contained"}; !slices.Equal(got, want) {
		t.Errorf("entries = %v, want %v", got, want)
	}
	// What was done before it failed is recorded.
	c.err = providers.ErrDenied
	before = len(r.entries(s.ID))
	if steps, err = cutter.Contain(t.Context(), s.ID, true); !errors.Is(err, providers.ErrDenied) || len(steps) != 2 {
		t.Errorf("Contain(half) = %+v, %v", steps, err)
	}
	if got, want := r.entries(s.ID)[before:], []string{"lease.containing", "lease.contained"}; !slices.Equal(got, want) {
		t.Errorf("entries = %v, want %v", got, want)
	}
	// Fail closed: without a log nothing is applied.
	broken := cutter
	broken.Store = unrecorded{r.store}
	calls := len(c.applied)
	if _, err := broken.Contain(t.Context(), s.ID, true); err == nil || len(c.applied) != calls {
		t.Errorf("Contain without a log = %v after %d calls", err, len(c.applied)-calls)
	}
	r.provider = r.back
	if _, err := cutter.Contain(t.Context(), s.ID, true); err == nil {
		t.Error("a provider that contains nothing gave no error")
	}
	r.provider = c
	c.err = nil
	r.time.add(31 * time.Minute)
	if steps, err := cutter.Contain(t.Context(), s.ID, true); err != nil || len(steps) != 0 {
		t.Errorf("after their end Contain = %+v, %v, want nothing to do", steps, err)
	}
	if _, err := cutter.Contain(t.Context(), "s-unknown", true); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("Contain(unknown) = %v", err)
	}
}

// Whose answer was lost may live, and nothing is known of it that says where to
// cut it off: that is told, beside what can be done for the others.
func TestContainTellsWhatItCannotReach(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	c := &cloud{expireOnly: expireOnly{r.back}, steps: []providers.Containment{{Target: "role/a"}}}
	r.provider = c
	s := r.session()
	r.issue(s, r.def("sts", providers.Expires))
	r.back.set("issue", providers.ErrUnavailable)
	if _, err := r.engine.Issue(t.Context(), r.request(s, r.def("lost", providers.Expires))); err == nil {
		t.Fatal("Issue() succeeded")
	}
	cutter := lease.Cutter{
		Store: r.store, Sealer: r.sealer, Now: r.time.Now,
		Provider: func(string) (providers.Provider, bool) { return c, true },
	}
	steps, err := cutter.Contain(t.Context(), s.ID, false)
	if len(steps) != 1 || err == nil || !strings.Contains(err.Error(), "lost") {
		t.Errorf("Contain() = %+v, %v, want a step for the one and an error about the other", steps, err)
	}
}

// unrecorded is a store whose log can't be written.
type unrecorded struct{ store.Store }

func (unrecorded) Record(context.Context, time.Time, []store.Entry) error {
	return errors.New("no space left on device")
}
