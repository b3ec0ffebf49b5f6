package lease

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/runenv/action/broker/audit"
	"github.com/runenv/action/broker/seal"
	"github.com/runenv/action/broker/store"
	"github.com/runenv/action/providers"
	"github.com/runenv/action/secret"
)

// A Cutter cuts off what can't be revoked. It needs no running engine. All
// fields are required.
type Cutter struct {
	Store  store.Store
	Sealer seal.Sealer
	// Provider finds an open provider by its entry's name.
	Provider func(name string) (providers.Provider, bool)
	Now      func() time.Time
}

// Contain says how to cut off the session's credentials that live and only
// expire, and does so if apply is set. What is about to be applied and what was
// is recorded (lease.containing, lease.contained): if the first can't be,
// nothing is applied. Providers that can't contain are reported by the error,
// beside what the others said, and so are credentials of which nothing is known
// that says where: whose answer was lost or is under way.
// store.ErrNotFound: no such session.
func (c Cutter) Contain(ctx context.Context, session string, apply bool) ([]providers.Containment, error) {
	s, err := c.Store.Session(ctx, session)
	if err != nil {
		return nil, fmt.Errorf("reading session %s: %w", session, err)
	}
	rows, err := c.Store.Leases(ctx, session)
	if err != nil {
		return nil, fmt.Errorf("reading the leases of session %s: %w", session, err)
	}
	var names []string
	handles := map[string][]secret.Value{}
	var failed error
	for _, row := range rows {
		if !c.live(row) {
			continue
		}
		if !slices.Contains(names, row.Provider) {
			names = append(names, row.Provider)
		}
		if len(row.Handle) == 0 {
			failed = errors.Join(failed, fmt.Errorf("lease %s (%s) of provider %q may live until %s, and nothing is known of it by which it could be cut off: do it by hand",
				row.ID, row.Name, row.Provider, row.DiesBy.UTC().Format(time.RFC3339)))
			continue
		}
		b, err := seal.Open(ctx, c.Sealer, handleField(row.ID), row.Handle)
		if err != nil {
			return nil, fmt.Errorf("opening the handle of %s: %w", row.ID, err)
		}
		handles[row.Provider] = append(handles[row.Provider], secret.New(b))
	}
	var all []providers.Containment
	for _, name := range names {
		steps, err := c.one(ctx, s, name, handles[name], apply)
		all = append(all, steps...)
		if err != nil {
			failed = errors.Join(failed, fmt.Errorf("containing session %s at provider %q: %w", session, name, err))
		}
	}
	return all, failed
}

// live reports whether a row is a credential that somebody may have, that works
// and that nobody can revoke.
func (c Cutter) live(row store.Lease) bool {
	return !row.IsLogin && providers.Revocability(row.Revocability) == providers.Expires &&
		!row.State.Terminal() && row.State != store.Intent && c.Now().Before(row.DiesBy)
}

func (c Cutter) one(ctx context.Context, s store.Session, name string, handles []secret.Value, apply bool) ([]providers.Containment, error) {
	p, ok := c.Provider(name)
	if !ok {
		return nil, errors.New("it is no longer in the broker's file")
	}
	container, ok := p.(providers.Container)
	if !ok {
		return nil, errors.New("it has no way to cut off what it can't revoke")
	}
	if apply {
		if err := c.record(ctx, s, name, "lease.containing", ""); err != nil {
			return nil, err
		}
	}
	steps, failed := container.Contain(ctx, s.ID, handles, apply)
	for _, step := range steps {
		if !step.Done {
			continue
		}
		if err := c.record(ctx, s, name, "lease.contained", step.Target); err != nil {
			failed = errors.Join(failed, err)
		}
	}
	return steps, failed
}

func (c Cutter) record(ctx context.Context, s store.Session, provider, event, target string) error {
	entry, err := audit.Record{
		Time: c.Now(), Event: event, Session: s.ID, Role: s.Role, Project: s.Project, Issuer: s.Issuer,
		Provider: provider, Detail: target,
	}.Entry()
	if err != nil {
		return err
	}
	if err := c.Store.Record(context.WithoutCancel(ctx), c.Now(), []store.Entry{entry}); err != nil {
		return fmt.Errorf("recording %s: %w", event, err)
	}
	return nil
}
