package needle

// An arena is memory for copies of values.
type arena struct {
	b      []byte
	mapped bool // it isn't the garbage collector's
}
