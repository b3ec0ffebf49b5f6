package client

import (
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"strings"
	"syscall"
	"unicode"

	"github.com/runenv/action/broker/api"
)

// maxCleanBytes bounds each text of an answer that is shown to people.
const maxCleanBytes = 1000

// An Error is a refusal by the broker. It wraps the [*api.Error] that stood in
// the answer, whose texts hold no control characters.
type Error struct {
	Refusal *api.Error
	hint    string // what only this client knows; "" if nothing
}

func (e *Error) Error() string { return e.Refusal.Error() }

func (e *Error) Unwrap() error { return e.Refusal }

// Hint names the cure for the class of refusal, or is empty.
func (e *Error) Hint() string {
	if e.hint != "" {
		return e.hint
	}
	show := ""
	if pastable(e.Refusal.RequestID) {
		show = "; the broker's operator reads the reason with: runenv-broker audit show " + e.Refusal.RequestID
	}
	switch e.Refusal.Code {
	case api.CodeInvalidRequest, api.CodeInvalidTarget, api.CodeAccessDenied:
		return "check the names of role and leases, and compare `runenv whoami` with the role" + show
	case api.CodeInvalidDPoP:
		return "check this machine's clock" + show
	case api.CodeLimitExceeded:
		return "the role's `limits` bound the sessions of one job and the leases of one session" + show
	case api.CodeRateLimited, api.CodeTemporarily:
		return "the broker is busy: run the job again later"
	case api.CodeProviderDenied, api.CodeProviderNotFound:
		return "the back end refused what the broker's configuration asks of it" + show
	case api.CodeProviderUnavailable, api.CodeProviderFailed, api.CodeServerError:
		return "the trouble is behind the broker" + show
	case api.CodeSessionEnded:
		return "a session ends at its hard end, or after missed heartbeats" + show
	}
	return strings.TrimPrefix(show, "; ")
}

// pastable says whether an id can be an argument in a shell, and no flag.
func pastable(id string) bool {
	return id != "" && len(id) <= 64 && id[0] != '-' &&
		strings.Trim(id, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_.") == ""
}

// An UnreachableError says that the broker's answer didn't arrive.
type UnreachableError struct {
	URL string
	Err error
}

func (e *UnreachableError) Error() string { return "the broker at " + e.URL + ": " + e.Err.Error() }

func (e *UnreachableError) Unwrap() error { return e.Err }

// wsaRefused is Windows' name for a refused connection, which Go doesn't take
// for ECONNREFUSED. No other system has the number.
const wsaRefused = syscall.Errno(10061)

// Hint names the cure where the cause is known.
func (e *UnreachableError) Hint() string {
	_, unknown := errors.AsType[x509.UnknownAuthorityError](e.Err)
	_, name := errors.AsType[x509.HostnameError](e.Err)
	_, invalid := errors.AsType[x509.CertificateInvalidError](e.Err)
	_, dns := errors.AsType[*net.DNSError](e.Err)
	switch {
	case unknown:
		return "if the broker's certificate comes from a private CA, give that CA with --ca-file or RUNENV_CA_FILE"
	case name:
		return "the broker's certificate is for another name: check the URL"
	case invalid:
		return "the broker's certificate isn't valid now: check it and this machine's clock"
	case dns:
		return "check the broker's URL, and this machine's DNS"
	case errors.Is(e.Err, syscall.ECONNREFUSED), errors.Is(e.Err, wsaRefused):
		return "nothing listens there: check the broker's URL, and that the broker runs"
	}
	return "check that this machine may reach the broker (firewall, HTTPS_PROXY)"
}

// An answerError is an answer that no broker gives: a proxy's, say.
type answerError struct {
	status   int
	location string
}

func (e *answerError) Error() string {
	s := fmt.Sprintf("an answer that isn't RunEnv's: HTTP status %d %s", e.status, http.StatusText(e.status))
	if u, err := url.Parse(e.location); err == nil && u.Host != "" {
		s += clean(" to " + u.Scheme + "://" + u.Host)
	}
	return s
}

// Hint names the cure where the status tells.
func (e *answerError) Hint() string {
	switch {
	case e.status >= http.StatusMultipleChoices && e.status < http.StatusBadRequest:
		return "redirects aren't followed: give the broker's own URL"
	case e.status == http.StatusNotFound:
		return "no broker answers at this URL: give the `url` of the broker's configuration"
	}
	return "something between here and the broker answered: a proxy or a load balancer"
}

// clean makes a text from outside fit for a terminal and a CI log.
func clean(s string) string {
	if len(s) > maxCleanBytes {
		s = s[:maxCleanBytes]
	}
	return strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) || r == unicode.ReplacementChar {
			return ' '
		}
		return r
	}, s)
}

// cleanLease does so to every text of a lease; the names and values of its
// variables are for whoever sets them to judge.
func cleanLease(l *api.Lease) {
	for _, s := range []*string{&l.ID, &l.Name, &l.Provider, &l.State, &l.Revocability} {
		*s = clean(*s)
	}
}

func cleanLeases(leases []api.Lease) {
	for i := range leases {
		cleanLease(&leases[i])
	}
}
