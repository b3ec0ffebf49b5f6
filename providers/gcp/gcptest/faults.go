package gcptest

import (
	"bytes"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"sync/atomic"

	"google.golang.org/grpc/codes"

	"github.com/runenv/action/providers/providertest"
)

// A Fault stands between a request and its answer.
type Fault func(s *Server, next http.Handler) http.Handler

func always(f http.HandlerFunc) Fault {
	return func(*Server, http.Handler) http.Handler { return f }
}

// A Refusal is one in the three protocols.
type Refusal struct {
	OAuth       string // error of STS, with status 400; empty: Status in Google's form
	Description string // of OAuth's
	Status      int    // of HTTP
	Reason      string // of google.rpc.ErrorInfo
	Code        codes.Code
}

// Refuse refuses every request.
func Refuse(r Refusal) Fault {
	return always(func(w http.ResponseWriter, req *http.Request) {
		switch {
		case isGRPC(req):
			w.Header().Set("Content-Type", "application/grpc")
			w.Header().Set("Grpc-Status", strconv.Itoa(int(r.Code)))
			w.Header().Set("Grpc-Message", r.Description+" "+Echo)
			w.WriteHeader(http.StatusOK)
		case req.URL.Path == "/v1/token" && r.OAuth != "":
			refuseOAuth(w, r.OAuth, r.Description)
		default:
			refuseAPI(w, r.Status, r.Code.String(), r.Reason, r.Description)
		}
	})
}

// Raw answers with a status and a body as they are; over gRPC the body is one
// message.
func Raw(status int, body string) Fault {
	return always(func(w http.ResponseWriter, r *http.Request) {
		if isGRPC(r) {
			w.Header().Set("Content-Type", "application/grpc")
			w.Header().Set("Trailer", "Grpc-Status")
			w.WriteHeader(status)
			_, _ = w.Write([]byte{0, 0, 0, 0, byte(len(body))})
			_, _ = io.WriteString(w, body)
			w.Header().Set("Grpc-Status", "0")
			return
		}
		w.WriteHeader(status)
		_, _ = io.WriteString(w, body)
	})
}

// Redirect leads elsewhere.
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
	return always(func(w http.ResponseWriter, r *http.Request) {
		start := []byte(`{"access_token":"`)
		if isGRPC(r) {
			w.Header().Set("Content-Type", "application/grpc")
			start = []byte{0, 0x7f, 0xff, 0xff, 0xff}
		}
		_, _ = w.Write(start)
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
	return always(func(_ http.ResponseWriter, r *http.Request) { cut(r) })
}

// cut closes the connection under the request, so that HTTP/2 sees an end of
// all and not of a stream.
func cut(r *http.Request) {
	if c, ok := r.Context().Value(connKey{}).(net.Conn); ok {
		_ = c.Close()
	}
	panic(http.ErrAbortHandler)
}

// Half sends half of the answer and closes the connection.
func Half() Fault {
	return func(_ *Server, next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			rec := httptest.NewRecorder()
			next.ServeHTTP(rec, r)
			body := rec.Body.Bytes()
			for name, values := range rec.Header() {
				if !strings.HasPrefix(name, http.TrailerPrefix) {
					w.Header()[name] = values
				}
			}
			if !isGRPC(r) {
				w.Header().Set("Content-Length", strconv.Itoa(len(body)))
			}
			w.WriteHeader(rec.Code)
			_, _ = w.Write(body[:len(body)/2])
			_ = http.NewResponseController(w).Flush()
			cut(r)
		})
	}
}

// LoseReply does what was asked and closes the connection.
func LoseReply() Fault {
	return func(_ *Server, next http.Handler) http.Handler {
		return http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
			next.ServeHTTP(httptest.NewRecorder(), r)
			cut(r)
		})
	}
}

// Lie changes the members of each answer over HTTP.
func Lie(change func(body map[string]any)) Fault {
	return func(_ *Server, next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if isGRPC(r) {
				next.ServeHTTP(w, r)
				return
			}
			rec := httptest.NewRecorder()
			next.ServeHTTP(rec, r)
			var body map[string]any
			if json.Unmarshal(rec.Body.Bytes(), &body) == nil {
				change(body)
			}
			reply(w, rec.Code, body)
		})
	}
}

// On lets f act on paths that have part in them alone.
func On(part string, f Fault) Fault {
	return func(s *Server, next http.Handler) http.Handler {
		bad := f(s, next)
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if strings.Contains(r.URL.Path, part) {
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

// suite is how it shows a fault of the conformance suite.
func suite(f providertest.Fault) Fault {
	switch f {
	case providertest.Deny:
		return Refuse(Refusal{OAuth: "unauthorized_client", Description: "The given credential is rejected by the attribute condition.", Status: http.StatusForbidden, Code: codes.PermissionDenied})
	case providertest.NotFound:
		return Refuse(Refusal{OAuth: "invalid_target", Description: "The target service is invalid.", Status: http.StatusNotFound, Code: codes.NotFound})
	case providertest.Invalid:
		return Refuse(Refusal{OAuth: "invalid_request", Description: "Invalid.", Status: http.StatusBadRequest, Code: codes.InvalidArgument})
	case providertest.Stall:
		return Stall()
	case providertest.Fail500:
		return Refuse(Refusal{Description: "Internal error encountered.", Status: http.StatusInternalServerError, Code: codes.Internal})
	case providertest.Throttle429:
		return Refuse(Refusal{Description: "Quota exceeded.", Status: http.StatusTooManyRequests, Code: codes.ResourceExhausted})
	case providertest.Garbage:
		return Raw(http.StatusOK, "<html>"+Echo+"</html>")
	case providertest.Huge:
		return Huge()
	case providertest.CutConnection:
		return Cut()
	case providertest.LoseReply:
		return LoseReply()
	case providertest.HalfReply:
		return Half()
	case providertest.ErrorIn200:
		return always(func(w http.ResponseWriter, _ *http.Request) {
			refuseAPI(w, http.StatusOK, "INTERNAL", "", "Internal error encountered.")
		})
	case providertest.ThrottleOnce:
		return First(1, suite(providertest.Throttle429))
	case providertest.LoginExpired:
		expired := Refuse(Refusal{Description: "Request had invalid authentication credentials.", Status: http.StatusUnauthorized, Reason: "ACCESS_TOKEN_EXPIRED", Code: codes.Unauthenticated})
		return func(s *Server, next http.Handler) http.Handler {
			return On(":generate", expired)(s, On("AccessSecretVersion", expired)(s, next))
		}
	case providertest.Healthy:
	}
	return nil
}

// InjectFault shows a fault of the conformance suite.
func (s *Server) InjectFault(f providertest.Fault) { s.Inject(suite(f)) }
