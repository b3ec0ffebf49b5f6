package leakscan

// An id tells one file or folder from every other of a machine.
type id struct{ dev, ino uint64 }

type kind uint8

const (
	special kind = iota // a device, a socket, a named pipe
	regular
	directory
	symlink
)

// meta is what a file system says of an entry.
type meta struct {
	kind    kind
	id      id
	size    int64 // in bytes
	stored  int64 // in bytes: less than size if there are holes
	changed int64 // its status, in nanoseconds since 1970
}
