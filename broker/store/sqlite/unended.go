package sqlite

import (
	"context"

	"github.com/runenv/action/broker/store"
)

// Unended returns all leases that aren't in a terminal state, logins included,
// oldest first. It is for the broker's tools, which look at one file.
func (s *Store) Unended(ctx context.Context) ([]store.Lease, error) {
	var found []store.Lease
	err := s.read(ctx, func(c *conn) (err error) {
		found, err = leasesWhere(c, notTerminal)
		return err
	})
	if err != nil {
		return nil, err
	}
	return found, nil
}
