package audit

import (
	"bytes"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/runenv/action/broker/store"
)

const (
	// maxBodyBytes bounds one entry, in bytes.
	maxBodyBytes = 16 << 10

	// maxIDBytes bounds what an entry is found by. These are the broker's own
	// ids, which are far shorter.
	maxIDBytes = 128

	// maxStringBytes bounds each other string of a record, in bytes, unless
	// the record as a whole needs a tighter bound.
	maxStringBytes = 1024

	// timeLayout is the one form of times in the log: RFC 3339 with all six
	// digits, so that lines sort as their times do.
	timeLayout = "2006-01-02T15:04:05.000000Z07:00"

	// maxClaims and maxNotes bound lists.
	maxClaims, maxNotes = 64, 40
)

// A Record is what the broker says about one event: what happened, to whom,
// and why. Zero fields are left out. The order of the fields is their order in
// the log, and part of its format.
//
// A Record holds no secret value: callers put names, ids and classes in it,
// and claims only from their profile's list.
type Record struct {
	Time  time.Time // UTC, kept to the microsecond
	Event string    // what happened, as "session.created" or "lease.revoked"

	Request   string // id that the caller was told
	Session   string
	Lease     string
	LeaseName string // of the lease definition, or the reference; a login's is its provider's
	Provider  string
	// Revocability of a lease: revocable, expires or static.
	Revocability string
	Marker       string // by which the back end's own log knows the lease
	Role         string
	Project      string
	Issuer       string            // name in the issuer table
	Claims       map[string]string // of the identity, from its profile's list
	Reason       string            // why, as a class: one of few words
	Detail       string            // why, for people
	Notes        []string          // what the policy remarked on while it allowed; what a client reported
	Policy       string            // digest of the policy text that decided
	ExpiresAt    time.Time         // when the session or lease ends by itself
	DiesBy       time.Time         // bound of the lease's life
}

// line is a Record as it is written. ID is random, so that equal events give
// different leaves, and the hash of one tells nothing about it.
type line struct {
	Time         string            `json:"time"`
	ID           string            `json:"id"`
	Event        string            `json:"event"`
	Request      string            `json:"request,omitempty"`
	Session      string            `json:"session,omitempty"`
	Lease        string            `json:"lease,omitempty"`
	LeaseName    string            `json:"lease_name,omitempty"`
	Provider     string            `json:"provider,omitempty"`
	Revocability string            `json:"revocability,omitempty"`
	Marker       string            `json:"marker,omitempty"`
	Role         string            `json:"role,omitempty"`
	Project      string            `json:"project,omitempty"`
	Issuer       string            `json:"issuer,omitempty"`
	Claims       map[string]string `json:"claims,omitempty"`
	Reason       string            `json:"reason,omitempty"`
	Detail       string            `json:"detail,omitempty"`
	Notes        []string          `json:"notes,omitempty"`
	Policy       string            `json:"policy,omitempty"`
	ExpiresAt    string            `json:"expires_at,omitempty"`
	DiesBy       string            `json:"dies_by,omitempty"`
}

// UnmarshalJSON reads an entry's body. Fields that it doesn't know, which a
// later broker may write, are passed over.
func (r *Record) UnmarshalJSON(body []byte) error {
	var l line
	if err := json.Unmarshal(body, &l); err != nil {
		return err
	}
	*r = Record{
		Event: l.Event, Request: l.Request, Session: l.Session, Lease: l.Lease, LeaseName: l.LeaseName,
		Provider: l.Provider, Revocability: l.Revocability, Marker: l.Marker, Role: l.Role, Project: l.Project, Issuer: l.Issuer, Claims: l.Claims,
		Reason: l.Reason, Detail: l.Detail, Notes: l.Notes, Policy: l.Policy,
	}
	for _, t := range []struct {
		to   *time.Time
		text string
	}{{&r.Time, l.Time}, {&r.ExpiresAt, l.ExpiresAt}, {&r.DiesBy, l.DiesBy}} {
		if t.text == "" {
			continue
		}
		at, err := time.Parse(timeLayout, t.text)
		if err != nil {
			return fmt.Errorf("a time of another form: %w", err)
		}
		*t.to = at.UTC()
	}
	return nil
}

// Entry returns the record as the store takes it: one line of JSON of at most
// 16 KiB. Strings that are too long are cut, and say so where they end. It is
// an error if the time or event is missing or an id is too long.
func (r Record) Entry() (store.Entry, error) {
	if r.Time.IsZero() || r.Event == "" {
		return store.Entry{}, fmt.Errorf("audit record %q without time or event", r.Event)
	}
	for _, id := range []string{r.Event, r.Request, r.Session, r.Lease} {
		if len(id) > maxIDBytes || !utf8.ValidString(id) {
			return store.Entry{}, fmt.Errorf("audit record %q with an id that can't be looked up", r.Event)
		}
	}
	id := rand.Text()
	for limit := maxStringBytes; ; limit /= 2 {
		body, err := encode(r.line(id, limit))
		if err != nil {
			return store.Entry{}, fmt.Errorf("encoding audit record %q: %w", r.Event, err)
		}
		if len(body) <= maxBodyBytes {
			return store.Entry{Event: r.Event, Request: r.Request, Session: r.Session, Lease: r.Lease, Body: body}, nil
		}
	}
}

// line returns the record with its strings cut to limit bytes.
func (r Record) line(id string, limit int) line {
	l := line{
		Time: stamp(r.Time), ID: id, Event: r.Event, Request: r.Request, Session: r.Session, Lease: r.Lease,
		LeaseName: cut(r.LeaseName, limit), Provider: cut(r.Provider, limit), Revocability: cut(r.Revocability, limit), Marker: cut(r.Marker, limit),
		Role: cut(r.Role, limit), Project: cut(r.Project, limit), Issuer: cut(r.Issuer, limit),
		Reason: cut(r.Reason, limit), Detail: cut(r.Detail, limit), Policy: cut(r.Policy, limit),
		ExpiresAt: stamp(r.ExpiresAt), DiesBy: stamp(r.DiesBy),
	}
	for i, note := range r.Notes {
		if i == maxNotes {
			l.Notes = append(l.Notes, strconv.Itoa(len(r.Notes)-i)+" more")
			break
		}
		l.Notes = append(l.Notes, cut(note, limit))
	}
	names := slices.Sorted(maps.Keys(r.Claims))
	for i, name := range names {
		if l.Claims == nil {
			l.Claims = make(map[string]string, len(names))
		}
		if i == maxClaims {
			l.Claims["…"] = strconv.Itoa(len(names)-i) + " more"
			break
		}
		l.Claims[cut(name, limit)] = cut(r.Claims[name], limit)
	}
	return l
}

// cut returns s in valid UTF-8 and at most limit bytes of it, followed by a
// visible mark if that isn't all.
func cut(s string, limit int) string {
	whole := len(s)
	if whole <= limit {
		return strings.ToValidUTF8(s, "\ufffd")
	}
	s = s[:limit]
	for i := 1; i < utf8.UTFMax && i <= len(s); i++ {
		if tail := s[len(s)-i:]; utf8.RuneStart(tail[0]) {
			if !utf8.FullRuneInString(tail) {
				s = s[:len(s)-i]
			}
			break
		}
	}
	return strings.ToValidUTF8(s, "\ufffd") + "…[cut, " + strconv.Itoa(whole) + " bytes]"
}

// stamp writes a time, in UTC; "" for the zero time.
func stamp(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	return t.UTC().Format(timeLayout)
}

// encode returns v as one line of JSON, its newline taken off.
func encode(v any) ([]byte, error) {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	if err := e.Encode(v); err != nil {
		return nil, err
	}
	return bytes.TrimSuffix(b.Bytes(), []byte("\n")), nil
}
