//go:build !darwin

package filesecret

// ownDisks: who has tmpfs needs no disk, and Windows has none to offer.
func ownDisks() disks { return nil }
