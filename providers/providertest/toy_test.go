package providertest_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/runenv/action/providers"
	"github.com/runenv/action/providers/providertest"
	"github.com/runenv/action/ref"
	"github.com/runenv/action/secret"
)

const canary = "c4n4ry-toy"

// A toy is a back end in memory with its provider, which has every ability.
// broken names what it does wrong; empty: nothing.
type toy struct {
	broken string

	mu       sync.Mutex
	fault    providertest.Fault
	n        int
	creds    map[string]string // handle -> login
	markers  map[string]string // handle -> marker
	logins   map[string]bool
	requests int
	log      strings.Builder
	shared   secret.Value
}

// Format shows nothing of what is inside.
func (*toy) Format(s fmt.State, _ rune) { _, _ = io.WriteString(s, "toy") }

func newToy(broken string) *toy {
	return &toy{
		broken: broken, creds: map[string]string{}, markers: map[string]string{}, logins: map[string]bool{},
		shared: secret.FromString(canary + "-value"),
	}
}

func (b *toy) is(broken string) bool { return b.broken == broken }

func fail(class error, more ...error) error {
	return fmt.Errorf("toy: %w", errors.Join(append([]error{class}, more...)...))
}

// do is one request to the back end: f, unless a fault comes between.
func (b *toy) do(ctx context.Context, marker, login string, f func() error) error {
	if err := ctx.Err(); err != nil && !b.is("ignores a context that is over") {
		return fail(providers.ErrUnavailable, providers.ErrNotIssued, err)
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.requests++
	if !b.is("hides its markers") {
		b.log.WriteString(marker + "\n")
	}
	run := func() error {
		if login != "" && !b.logins[login] {
			return fail(providers.ErrDenied)
		}
		return f()
	}
	switch b.fault {
	case providertest.Deny:
		if b.is("repeats the back end's words") {
			return fail(providers.ErrDenied, errors.New(canary))
		}
		return fail(providers.ErrDenied)
	case providertest.NotFound:
		return fail(providers.ErrNotFound)
	case providertest.Invalid:
		return fail(providers.ErrInvalid)
	case providertest.Stall:
		b.mu.Unlock()
		<-ctx.Done()
		b.mu.Lock()
		if b.is("takes a cancelled call for a refusal") && errors.Is(ctx.Err(), context.Canceled) {
			return fail(providers.ErrDenied, ctx.Err())
		}
		return fail(providers.ErrUnavailable, ctx.Err())
	case providertest.Fail500, providertest.CutConnection:
		return fail(providers.ErrUnavailable)
	case providertest.Throttle429:
		return fail(providers.ErrUnavailable, providers.ErrNotIssued)
	case providertest.Garbage, providertest.Huge:
		return fail(providers.ErrMalformed)
	case providertest.LoseReply:
		_ = run()
		if b.is("says that nothing was issued, though something was") {
			return fail(providers.ErrUnavailable, providers.ErrNotIssued)
		}
		return fail(providers.ErrUnavailable)
	case providertest.HalfReply:
		if err := run(); err != nil || b.is("takes half an answer") {
			return err
		}
		return fail(providers.ErrUnavailable)
	case providertest.ErrorIn200:
		if b.is("takes an error for a success") {
			return run()
		}
		return fail(providers.ErrMalformed)
	case providertest.ThrottleOnce:
		b.fault = providertest.Healthy
		if b.is("gives up when throttled once") {
			return fail(providers.ErrUnavailable, providers.ErrNotIssued)
		}
		return run()
	case providertest.LoginExpired:
		switch {
		case login == "":
			return run()
		case b.is("takes an expired login for an outage"):
			return fail(providers.ErrUnavailable)
		}
		return fail(providers.ErrDenied)
	}
	return run()
}

func (b *toy) next(prefix string) string {
	b.n++
	return prefix + canary + strconv.Itoa(b.n)
}

// handleOf reads a handle of the form prefix + canary + number.
func (b *toy) handleOf(v secret.Value, prefix string) (string, error) {
	text := string(v.Reveal())
	if !strings.HasPrefix(text, prefix+canary) && !b.is("takes handles that aren't its own") {
		return "", fail(providers.ErrInvalid)
	}
	return text, nil
}

type toyDefinition struct{ shown string }

func (toyDefinition) Templates() []providers.Template      { return nil }
func (toyDefinition) Revocability() providers.Revocability { return providers.Revocable }

// A boundedDefinition says more of itself.
type boundedDefinition struct {
	toyDefinition
	longest time.Duration
	field   string
}

func (d boundedDefinition) Bounds() (shortest, longest time.Duration) {
	return 2 * time.Minute, d.longest
}

func (d boundedDefinition) DefaultEnv() []providers.DefaultVar {
	return []providers.DefaultVar{{Name: "TOY", Field: d.field, Mask: true}}
}

func (b *toy) Define(decode func(any) error) (providers.Definition, error) {
	var k struct {
		Path string `yaml:"path"`
	}
	if err := decode(&k); err != nil {
		if b.is("hides the decoder's refusal") {
			err = errors.New("bad definition")
		}
		return nil, err
	}
	if b.is("asks the back end while it defines") {
		_ = b.do(context.Background(), "", "", func() error { return nil })
	}
	d := boundedDefinition{longest: time.Hour, field: "value"}
	switch {
	case b.is("has a definition that shows a value"):
		d.shown = canary
	case b.is("has bounds that no life fits"):
		d.longest = time.Minute
	case b.is("has a default variable of no field"):
		d.field = "none"
	}
	return d, nil
}

func (b *toy) Schemes() []string { return []string{"toy"} }

func (b *toy) Reference(r ref.Ref) (providers.Definition, error) {
	if r.Scheme != "toy" && !b.is("takes references of any scheme") {
		return nil, errors.New("not a reference to the toy")
	}
	return toyDefinition{}, nil
}

func (b *toy) Issue(ctx context.Context, req providers.Request) (*providers.Credential, error) {
	if req.Definition == nil || !ofToy(req.Definition) && !b.is("takes another provider's definition") {
		return nil, fail(providers.ErrInvalid)
	}
	login, err := b.handleOf(req.Login, "login")
	if err != nil {
		return nil, err
	}
	var handle string
	err = b.do(ctx, req.Marker, login, func() error {
		handle = b.next("cred")
		b.creds[handle], b.markers[handle] = login, req.Marker
		return nil
	})
	if err != nil {
		return nil, err
	}
	value := secret.FromString(canary + "-value")
	if b.is("hands out the same bytes twice") {
		value = b.shared
	}
	cred := &providers.Credential{
		Fields: map[string]secret.Value{"value": value}, Handle: secret.FromString(handle),
		Expires: time.Now().Add(req.TTL), Revocability: providers.Revocable, Renewable: true,
	}
	switch {
	case b.is("leaves a field out"):
		cred.Fields = map[string]secret.Value{}
	case b.is("gives every credential ten minutes"):
		cred.Expires = time.Now().Add(10 * time.Minute)
	}
	return cred, nil
}

func ofToy(d providers.Definition) bool {
	switch d.(type) {
	case toyDefinition, boundedDefinition:
		return true
	}
	return false
}

func (b *toy) Renew(ctx context.Context, handle, login secret.Value, ttl time.Duration) (time.Time, error) {
	h, err := b.handleOf(handle, "cred")
	if err != nil {
		return time.Time{}, err
	}
	l, err := b.handleOf(login, "login")
	if err != nil {
		return time.Time{}, err
	}
	err = b.do(ctx, "", l, func() error {
		if _, ok := b.creds[h]; !ok {
			return fail(providers.ErrNotFound)
		}
		return nil
	})
	if b.is("renews for longer than asked") {
		ttl *= 2
	}
	return time.Now().Add(ttl), err
}

func (b *toy) Revoke(ctx context.Context, handle, login secret.Value) error {
	h, err := b.handleOf(handle, "cred")
	if err != nil {
		return err
	}
	err = b.do(ctx, "", "", func() error {
		if !b.is("revokes nothing") {
			delete(b.creds, h)
		}
		return nil
	})
	switch {
	case b.is("takes any trouble for the end"), errors.Is(err, providers.ErrNotFound):
		return nil
	case errors.Is(err, providers.ErrDenied):
		return fail(providers.ErrWithLogin)
	}
	return err
}

func (b *toy) Find(ctx context.Context, marker string, login secret.Value) ([]secret.Value, error) {
	var found []secret.Value
	err := b.do(ctx, "", "", func() error {
		for h := range b.creds {
			if b.markers[h] == marker && !b.is("finds nothing") {
				found = append(found, secret.FromString(h))
			}
		}
		return nil
	})
	return found, err
}

func (b *toy) Audience() string { return "toy" }

func (b *toy) LoginTTL() time.Duration { return providers.LoginTTL }

func (b *toy) Login(ctx context.Context, req providers.LoginRequest) (*providers.Login, error) {
	if req.Tokens == nil {
		return nil, fail(providers.ErrInvalid)
	}
	audience := b.Audience()
	if b.is("asks for a token for somebody else") {
		audience = "else"
	}
	if _, err := req.Tokens(ctx, audience); err != nil {
		return nil, fail(providers.ErrUnavailable, providers.ErrNotIssued, err)
	}
	var handle string
	err := b.do(ctx, req.Marker, "", func() error {
		handle = b.next("login")
		b.logins[handle] = true
		return nil
	})
	if err != nil {
		return nil, err
	}
	l := &providers.Login{Handle: secret.FromString(handle), Expires: time.Now().Add(b.LoginTTL())}
	if b.is("doesn't say when a login ends") {
		l.Expires = time.Time{}
	}
	return l, nil
}

func (b *toy) RenewLogin(ctx context.Context, login secret.Value) (time.Time, error) {
	l, err := b.handleOf(login, "login")
	if err != nil {
		return time.Time{}, err
	}
	ttl := b.LoginTTL()
	if b.is("renews a login for too long") {
		ttl *= 2
	}
	return time.Now().Add(ttl), b.do(ctx, "", l, func() error { return nil })
}

func (b *toy) Logout(ctx context.Context, login secret.Value) error {
	l, err := b.handleOf(login, "login")
	if err != nil {
		return err
	}
	err = b.do(ctx, "", "", func() error {
		delete(b.logins, l)
		if !b.is("leaves credentials when it logs out") {
			maps.DeleteFunc(b.creds, func(_, of string) bool { return of == l })
		}
		return nil
	})
	if b.is("takes a failed logout for one") {
		return nil
	}
	return err
}

func (b *toy) Check(ctx context.Context, req providers.LoginRequest) (providers.Checked, error) {
	l, err := b.Login(ctx, req)
	if err != nil {
		return providers.Checked{}, err
	}
	if b.is("leaves a login when it checks") {
		return providers.Checked{As: "toy"}, nil
	}
	return providers.Checked{As: "toy"}, b.Logout(ctx, l.Handle)
}
