package awstest

import (
	"bytes"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"

	"github.com/runenv/action/providers/providertest"
)

// A Fault stands between a request and its answer.
type Fault func(s *Server, next http.Handler) http.Handler

func always(f http.HandlerFunc) Fault {
	return func(*Server, http.Handler) http.Handler { return f }
}

// Refuse answers with an error in the request's protocol.
func Refuse(status int, code, message string) Fault {
	return always(func(w http.ResponseWriter, r *http.Request) { refuseAs(w, r, status, code, message) })
}

// Raw answers with a status and a body as they are.
func Raw(status int, body string) Fault {
	return always(func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(status)
		_, _ = io.WriteString(w, body)
	})
}

// Redirect answers with one.
func Redirect(to string) Fault {
	return always(func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, to, http.StatusTemporaryRedirect) })
}

// Stall takes the request and never answers.
func Stall() Fault {
	return func(s *Server, _ http.Handler) http.Handler {
		return http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
			select {
			case <-r.Context().Done():
			case <-s.done:
			}
		})
	}
}

// Huge answers without end.
func Huge() Fault {
	return always(func(w http.ResponseWriter, r *http.Request) {
		head := "<AssumeRoleResponse><AssumeRoleResult><Credentials><SecretAccessKey>"
		if r.Header.Get("X-Amz-Target") != "" {
			head = `{"SecretString":"`
		}
		_, _ = io.WriteString(w, head)
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

// HalfReply does what was asked and closes the connection amid the answer.
func HalfReply() Fault {
	return func(_ *Server, next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			rec := httptest.NewRecorder()
			next.ServeHTTP(rec, r)
			w.WriteHeader(rec.Code)
			_, _ = w.Write(rec.Body.Bytes()[:rec.Body.Len()/2])
			_ = http.NewResponseController(w).Flush()
			panic(http.ErrAbortHandler)
		})
	}
}

// Signed lets f act on requests that are signed: on all but web identities.
func Signed(f Fault) Fault {
	return func(s *Server, next http.Handler) http.Handler {
		bad := f(s, next)
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.Header.Get("Authorization") != "" {
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

// byProtocol names an error as the JSON services and the query services do.
func byProtocol(status int, json, query string) Fault {
	return always(func(w http.ResponseWriter, r *http.Request) {
		code := query
		if r.Header.Get("X-Amz-Target") != "" {
			code = json
		}
		refuseAs(w, r, status, code, strings.ToLower(code))
	})
}

// InjectFault shows a fault of the conformance suite.
func (s *Server) InjectFault(f providertest.Fault) {
	faults := map[providertest.Fault]Fault{
		providertest.Deny:          byProtocol(http.StatusForbidden, "AccessDeniedException", "AccessDenied"),
		providertest.NotFound:      byProtocol(http.StatusNotFound, "ResourceNotFoundException", "NoSuchEntity"),
		providertest.Invalid:       byProtocol(http.StatusBadRequest, "ValidationException", "ValidationError"),
		providertest.Stall:         Stall(),
		providertest.Fail500:       byProtocol(http.StatusInternalServerError, "InternalServiceError", "InternalFailure"),
		providertest.Throttle429:   byProtocol(http.StatusBadRequest, "ThrottlingException", "Throttling"),
		providertest.Garbage:       Raw(http.StatusOK, "<html>"+Echo+"</html>"),
		providertest.Huge:          Huge(),
		providertest.CutConnection: Cut(),
		providertest.LoseReply:     LoseReply(),
		providertest.HalfReply:     HalfReply(),
		providertest.ErrorIn200:    byProtocol(http.StatusOK, "AccessDeniedException", "AccessDenied"),
		providertest.ThrottleOnce:  First(1, byProtocol(http.StatusBadRequest, "ThrottlingException", "Throttling")),
		providertest.LoginExpired:  Signed(byProtocol(http.StatusBadRequest, "ExpiredTokenException", "ExpiredToken")),
	}
	s.Inject(faults[f])
}
