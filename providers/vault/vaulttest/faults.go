package vaulttest

import (
	"bytes"
	"io"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"sync/atomic"

	"github.com/runenv/action/providers/providertest"
)

// A Fault stands between a request and its answer.
type Fault func(s *Server, next http.Handler) http.Handler

func always(f http.HandlerFunc) Fault {
	return func(*Server, http.Handler) http.Handler { return f }
}

// Status answers with a status and errors in Vault's form.
func Status(status int, errors ...string) Fault {
	return always(func(w http.ResponseWriter, _ *http.Request) { refuse(w, status, errors...) })
}

// Sealed answers as a sealed Vault does.
func Sealed() Fault { return Status(http.StatusServiceUnavailable, "Vault is sealed") }

// Raw answers with a status and a body as they are.
func Raw(status int, body string) Fault {
	return always(func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(status)
		_, _ = io.WriteString(w, body)
	})
}

// Redirect answers as a standby does that can't forward.
func Redirect(to string) Fault {
	return always(func(w http.ResponseWriter, r *http.Request) {
		http.Redirect(w, r, to+r.URL.Path, http.StatusTemporaryRedirect)
	})
}

// Stall takes the request and never answers.
func Stall() Fault {
	return func(s *Server, _ http.Handler) http.Handler {
		return http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
			_, _ = io.Copy(io.Discard, r.Body)
			select {
			case <-r.Context().Done():
			case <-s.done:
			}
		})
	}
}

// Huge answers without end.
func Huge() Fault {
	return always(func(w http.ResponseWriter, _ *http.Request) {
		_, _ = io.WriteString(w, `{"request_id":"x","data":{"a":"`)
		chunk := bytes.Repeat([]byte("c4n4ry-"), 64<<10/7)
		for {
			if _, err := w.Write(chunk); err != nil {
				return
			}
		}
	})
}

// Cut closes the connection and does nothing.
func Cut() Fault {
	return always(func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) })
}

// LoseReply does what was asked and closes the connection.
func LoseReply() Fault {
	return func(_ *Server, next http.Handler) http.Handler {
		return http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
			next.ServeHTTP(httptest.NewRecorder(), r)
			panic(http.ErrAbortHandler)
		})
	}
}

// HalfReply does what was asked and ends the connection in the middle of the
// answer.
func HalfReply() Fault {
	return func(_ *Server, next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			rec := httptest.NewRecorder()
			next.ServeHTTP(rec, r)
			w.Header().Set("Content-Length", strconv.Itoa(rec.Body.Len()))
			w.WriteHeader(rec.Code)
			_, _ = w.Write(rec.Body.Bytes()[:rec.Body.Len()/2])
			panic(http.ErrAbortHandler)
		})
	}
}

// Rewrite changes the body of each answer.
func Rewrite(change func(body string) string) Fault {
	return func(_ *Server, next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			rec := httptest.NewRecorder()
			next.ServeHTTP(rec, r)
			w.WriteHeader(rec.Code)
			_, _ = io.WriteString(w, change(rec.Body.String()))
		})
	}
}

// On lets f act on paths that begin with prefix alone.
func On(prefix string, f Fault) Fault {
	return func(s *Server, next http.Handler) http.Handler {
		bad := f(s, next)
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if strings.HasPrefix(strings.TrimPrefix(r.URL.Path, "/v1/"), prefix) {
				bad.ServeHTTP(w, r)
				return
			}
			next.ServeHTTP(w, r)
		})
	}
}

// First lets f act on the first n requests that come to it.
func First(n int64, f Fault) Fault {
	var seen atomic.Int64
	return func(s *Server, next http.Handler) http.Handler {
		bad := f(s, next)
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if seen.Add(1) > n {
				next.ServeHTTP(w, r)
				return
			}
			bad.ServeHTTP(w, r)
		})
	}
}

// faults are how it shows those of the conformance suite.
var faults = map[providertest.Fault]Fault{
	providertest.Deny:          Status(http.StatusForbidden, "permission denied "+Echo),
	providertest.NotFound:      Status(http.StatusNotFound),
	providertest.Invalid:       Status(http.StatusBadRequest, "invalid: "+Echo),
	providertest.Stall:         Stall(),
	providertest.Fail500:       Status(http.StatusInternalServerError, "internal error "+Echo),
	providertest.Throttle429:   Status(http.StatusTooManyRequests, "request path: rate limit quota exceeded "+Echo),
	providertest.Garbage:       Raw(http.StatusOK, "<html>"+Echo+"</html>"),
	providertest.Huge:          Huge(),
	providertest.CutConnection: Cut(),
	providertest.LoseReply:     LoseReply(),
	providertest.HalfReply:     HalfReply(),
	providertest.ErrorIn200:    Raw(http.StatusOK, `{"errors":["1 error occurred: `+Echo+`"]}`),
	providertest.LoginExpired:  Status(http.StatusForbidden, "2 errors occurred:\n\t* permission denied\n\t* invalid token\n\n"),
}

// More are the faults of the conformance suite that it shows besides the ten.
func More() []providertest.Fault {
	return []providertest.Fault{providertest.HalfReply, providertest.ErrorIn200, providertest.ThrottleOnce, providertest.LoginExpired}
}

// InjectFault shows a fault of the conformance suite.
func (s *Server) InjectFault(f providertest.Fault) {
	if f == providertest.ThrottleOnce { // it counts
		s.Inject(First(1, faults[providertest.Throttle429]))
		return
	}
	s.Inject(faults[f])
}
