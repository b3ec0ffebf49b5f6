// Package secret holds leased values and tokens so that they can't be shown
// by accident.
//
// A [Value] can't be printed, logged or marshalled; its bytes leave it only
// through [Value.Reveal], so that a search for that word finds each place
// where a secret is used. The package imports the standard library alone and
// has no state.
package secret

import (
	"crypto/subtle"
	"errors"
	"fmt"
	"io"
	"log/slog"
)

// Shown is what a Value shows wherever it is printed or logged.
const Shown = "[secret]"

// ErrMarshal is what every attempt to marshal a Value returns.
var ErrMarshal = errors.New("secret: a value can't be marshalled")

// A Value is a secret in memory. Every way of printing it gives [Shown] or an
// address; only [Value.Reveal] returns the bytes. The zero Value is empty.
//
// The bytes sit behind a func on purpose: fmt skips methods on unexported
// fields, and prints a slice or a pointer that it finds there.
type Value struct{ reveal func() []byte }

// New returns a Value that takes ownership of b.
func New(b []byte) Value { return Value{func() []byte { return b }} }

// FromString returns a Value that holds s. Strings can't be wiped: prefer
// [New] where the bytes are at hand.
func FromString(s string) Value { return New([]byte(s)) }

// Reveal returns the bytes themselves, not a copy: the caller neither changes
// nor keeps them.
func (v Value) Reveal() []byte {
	if v.reveal == nil {
		return nil
	}
	return v.reveal()
}

// Len is the length in bytes.
func (v Value) Len() int { return len(v.Reveal()) }

// Equal compares in time that depends on the lengths alone.
func (v Value) Equal(w Value) bool {
	return subtle.ConstantTimeCompare(v.Reveal(), w.Reveal()) == 1
}

// Wipe overwrites the bytes with zeros, for this Value and every copy of it.
func (v Value) Wipe() { clear(v.Reveal()) }

// Format shows [Shown] for every verb and flag.
func (Value) Format(s fmt.State, _ rune) { _, _ = io.WriteString(s, Shown) }

// LogValue shows [Shown] in every slog handler.
func (Value) LogValue() slog.Value { return slog.StringValue(Shown) }

// MarshalJSON fails with [ErrMarshal].
func (Value) MarshalJSON() ([]byte, error) { return nil, ErrMarshal }

// MarshalText fails with [ErrMarshal].
func (Value) MarshalText() ([]byte, error) { return nil, ErrMarshal }

// MarshalBinary fails with [ErrMarshal]; encoding/gob asks for it.
func (Value) MarshalBinary() ([]byte, error) { return nil, ErrMarshal }
