package broker

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"net/http"
	"runtime/debug"

	"github.com/runenv/action/broker/api"
	"github.com/runenv/action/broker/lease"
	"github.com/runenv/action/broker/shape"
	"github.com/runenv/action/broker/store"
	"github.com/runenv/action/providers"
)

// maxMissing bounds how much of what a credential lacks a caller is told, in
// bytes.
const maxMissing = 4 << 10

// handler serves one call and returns its refusal, which call writes.
type handler func(w http.ResponseWriter, r *http.Request, request string) error

// call gives every call an id, maps its error to the wire, and keeps a panic
// from showing anything.
func (b *Broker) call(h handler) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		request := lease.NewID("r")
		w.Header().Set(api.HeaderRequestID, request)
		defer func() {
			if p := recover(); p != nil {
				if p == http.ErrAbortHandler { //nolint:errorlint // net/http compares it so
					panic(p)
				}
				// The panic's own text may hold anything.
				b.cfg.Log.ErrorContext(r.Context(), "a handler panicked", "request", request, "route", r.Pattern, "stack", string(debug.Stack()))
				b.metrics.calls.WithLabelValues(r.Pattern, api.CodeServerError).Inc()
				writeError(w, &api.Error{Status: http.StatusInternalServerError, Code: api.CodeServerError, RequestID: request})
			}
		}()
		err := h(w, r, request)
		if err == nil {
			b.metrics.calls.WithLabelValues(r.Pattern, "ok").Inc()
			return
		}
		answer := toAPI(err)
		answer.RequestID = request
		b.metrics.calls.WithLabelValues(r.Pattern, answer.Code).Inc()
		level := slog.LevelInfo
		switch {
		case answer.Code == api.CodeServerError:
			level = slog.LevelError
		case answer.Status >= http.StatusInternalServerError:
			level = slog.LevelWarn
		}
		// The route, since a path holds what the caller put there.
		b.cfg.Log.Log(r.Context(), level, "refused", "request", request, "route", r.Pattern, "code", answer.Code, "err", err)
		writeError(w, answer)
	}
}

// refusal is an answer with the cause that only the log is told.
type refusal struct {
	answer *api.Error
	cause  error
}

func (r *refusal) Error() string {
	if r.cause == nil {
		return r.answer.Error()
	}
	return r.answer.Error() + ": " + r.cause.Error()
}

func (r *refusal) Unwrap() error { return r.cause }

func refuse(status int, code, description string, cause error) error {
	return &refusal{&api.Error{Status: status, Code: code, Description: description}, cause}
}

func badRequest(description string, cause error) error {
	return refuse(http.StatusBadRequest, api.CodeInvalidRequest, description, cause)
}

var errNotFound = &refusal{&api.Error{Status: http.StatusNotFound, Code: api.CodeNotFound, Description: "no such lease in this session"}, nil}

// toAPI is the one place where errors become answers.
func toAPI(err error) *api.Error {
	answer := &api.Error{Status: http.StatusInternalServerError, Code: api.CodeServerError, Description: "the broker failed; its log says why"}
	if r, ok := errors.AsType[*refusal](err); ok {
		answer = new(*r.answer)
		return answer
	}
	if f, ok := errors.AsType[*lease.Failure](err); ok {
		answer = providerError(f.Err)
		answer.Lease = f.Lease
		return answer
	}
	if m, ok := errors.AsType[*lease.MissingError](err); ok {
		// Names of fields are the operator's words, or the caller's own.
		return &api.Error{
			Status: http.StatusBadGateway, Code: api.CodeProviderNotFound, Lease: m.Leases[0].Lease,
			Description: "the back end has no such field: " + printable(m.Error(), maxMissing),
		}
	}
	if c, ok := errors.AsType[*shape.CollisionError](err); ok {
		return &api.Error{Status: http.StatusBadRequest, Code: api.CodeInvalidRequest, Description: c.Error()}
	}
	switch {
	case errors.Is(err, store.ErrEnded):
		return &api.Error{Status: http.StatusUnauthorized, Code: api.CodeSessionEnded, Description: "the session has ended"}
	case errors.Is(err, store.ErrProofReplayed):
		return &api.Error{Status: http.StatusUnauthorized, Code: api.CodeInvalidDPoP, Description: "the proof was used before"}
	case errors.Is(err, store.ErrLimit):
		return &api.Error{Status: http.StatusForbidden, Code: api.CodeLimitExceeded, Description: "the role's limit is reached"}
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, context.Canceled):
		return &api.Error{Status: http.StatusServiceUnavailable, Code: api.CodeTemporarily, Description: "the broker didn't get done in time"}
	}
	return answer
}

func providerError(err error) *api.Error {
	if s, ok := errors.AsType[*lease.ShapeError](err); ok {
		// Asked again, it would come out the same.
		return &api.Error{Status: http.StatusUnprocessableEntity, Code: api.CodeProviderFailed, Description: printable(s.Error(), maxMissing)}
	}
	switch {
	case errors.Is(err, providers.ErrDenied), errors.Is(err, providers.ErrInvalid):
		return &api.Error{Status: http.StatusBadGateway, Code: api.CodeProviderDenied, Description: "the back end refused; the broker's log says why"}
	case errors.Is(err, providers.ErrNotFound):
		return &api.Error{Status: http.StatusBadGateway, Code: api.CodeProviderNotFound, Description: "the back end has no such secret or field"}
	case errors.Is(err, providers.ErrMalformed):
		return &api.Error{Status: http.StatusBadGateway, Code: api.CodeProviderFailed, Description: "the back end's answer can't be used"}
	default:
		return &api.Error{Status: http.StatusServiceUnavailable, Code: api.CodeProviderUnavailable, Description: "the back end can't be reached"}
	}
}

func writeError(w http.ResponseWriter, e *api.Error) {
	if e.Status == http.StatusTooManyRequests {
		w.Header().Set("Retry-After", "1")
	}
	if e.Status == http.StatusUnauthorized {
		code := e.Code
		if code != api.CodeInvalidDPoP {
			code = api.CodeInvalidToken
		}
		w.Header().Set("WWW-Authenticate", `DPoP algs="ES256", error="`+code+`"`)
	}
	_ = writeJSON(w, e.Status, e)
}

// writeJSON answers. A caller that went away is no error.
func writeJSON(w http.ResponseWriter, status int, v any) error {
	_, err := sendJSON(w, status, v)
	return err
}

// sendJSON is writeJSON for whom it matters if the answer is known to be lost.
func sendJSON(w http.ResponseWriter, status int, v any) (sent bool, err error) {
	body, err := json.Marshal(v)
	if err != nil {
		return false, err
	}
	defer clear(body) // it may hold values
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_, werr := w.Write(body)
	return werr == nil, nil
}
