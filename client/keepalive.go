package client

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"sync"
	"time"

	"github.com/runenv/action/broker/api"
	"github.com/runenv/action/internal/backoff"
	"github.com/runenv/action/internal/roots"
)

const (
	heartbeatJitter     = 0.1
	heartbeatFirstRetry = time.Second
	heartbeatTimeout    = 10 * time.Second

	// aliveAfter is how long a session must have lived to be worth heartbeats
	// and a stream: most commands are over by then, nothing is renewed so soon,
	// and no heartbeat is due in less than a second.
	aliveAfter        = 250 * time.Millisecond
	watchFirstRetry   = time.Second
	watchMostRetry    = 30 * time.Second
	watchOpenTimeout  = 15 * time.Second
	maxWatchLineBytes = 64 << 10
)

// An EndedError says that the broker ended the session, and why.
type EndedError struct{ Reason string }

func (e *EndedError) Error() string {
	if e.Reason == "" {
		return "the broker ended the session"
	}
	return "the broker ended the session: " + e.Reason
}

// KeepAlive keeps the session alive until ctx is done, and then returns nil.
// After a quarter of a second it begins to send heartbeats at the interval that
// the broker wants, and holds the broker's stream of events open; on, unless nil,
// is called with each event that concerns a lease (api.EventRenewed,
// api.EventExpiring), one at a time. It may take its time and call
// [Session.Renew]: heartbeats don't wait for it. If the broker ends the session,
// KeepAlive returns an [*EndedError]; whatever else goes wrong it tries again.
func (s *Session) KeepAlive(ctx context.Context, on func(api.Event)) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	// Many a session ends soon: its end needn't wait for its proof, and nothing
	// else is begun for it.
	_ = s.prover.prepare(http.MethodDelete, s.EndURL(), s.access)
	if s.c.wait(ctx, aliveAfter) != nil {
		return nil
	}
	beat := make(chan struct{}, 1)
	var both sync.WaitGroup
	both.Go(func() { cancelIf(cancel, s.sendHeartbeats(ctx, beat)) })
	both.Go(func() { cancelIf(cancel, s.watch(ctx, beat, on)) })
	both.Wait()
	if ended, ok := errors.AsType[*EndedError](context.Cause(ctx)); ok {
		return ended
	}
	return nil
}

func cancelIf(cancel context.CancelCauseFunc, ended *EndedError) {
	if ended != nil {
		cancel(ended)
	}
}

// sendHeartbeats returns when ctx is done or the session has ended. A value on
// now asks for a heartbeat at once.
func (s *Session) sendHeartbeats(ctx context.Context, now <-chan struct{}) *EndedError {
	every, failures := s.heartbeat, 0
	for {
		wait := backoff.Jitter(every, heartbeatJitter)
		if failures > 0 {
			wait = backoff.Delay(failures, min(heartbeatFirstRetry, every), every)
		}
		if !s.waitOr(ctx, wait, now) {
			return nil
		}
		answer, err := s.beat(ctx)
		switch ended := endedBy(err); {
		case ctx.Err() != nil:
			return nil
		case ended != nil:
			return ended
		case err != nil:
			failures++
			s.c.log.DebugContext(ctx, "heartbeat failed", "error", err, "failures", failures)
			if s.c.now().After(s.hardEnd) {
				return &EndedError{"it reached its hard end"}
			}
		default:
			every, failures = interval(answer.HeartbeatSeconds), 0
		}
	}
}

// waitOr waits for d or for a value; it is false when ctx is done.
func (s *Session) waitOr(ctx context.Context, d time.Duration, now <-chan struct{}) bool {
	waitCtx, cancel := context.WithCancel(ctx)
	defer cancel()
	done := make(chan struct{})
	go func() {
		_ = s.c.wait(waitCtx, d) // only that it's over counts
		close(done)
	}()
	select {
	case <-done:
	case <-now:
		cancel()
		<-done
	}
	return ctx.Err() == nil
}

func (s *Session) beat(ctx context.Context) (api.Heartbeat, error) {
	var answer api.Heartbeat
	err := s.c.do(ctx, call{
		doing:      "sending a heartbeat",
		method:     http.MethodPost,
		path:       api.PathHeartbeat,
		authorize:  s.authorize,
		limit:      api.MaxRequest,
		tries:      1,
		tryTimeout: heartbeatTimeout,
	}, &answer)
	return answer, err
}

// endedBy tells a session that is over from a request that failed.
func endedBy(err error) *EndedError {
	refusal, ok := errors.AsType[*api.Error](err)
	switch {
	case !ok:
		return nil
	case refusal.Code == api.CodeSessionEnded:
		return &EndedError{refusal.Description}
	case refusal.Status == http.StatusUnauthorized && refusal.Code != api.CodeInvalidDPoP:
		return &EndedError{"it no longer takes its heartbeats"}
	}
	return nil
}

// watch holds the stream open, and opens it again when it breaks. It returns
// when ctx is done, the session has ended, or the broker has no stream.
func (s *Session) watch(ctx context.Context, beat chan<- struct{}, on func(api.Event)) *EndedError {
	for failures := 1; ; failures++ {
		opened, ended, err := s.stream(ctx, on)
		switch {
		case ended != nil:
			return ended
		case ctx.Err() != nil:
			return nil
		case opened:
			// The broker takes a broken stream for a sign of death, until
			// the next heartbeat.
			failures = 1
			select {
			case beat <- struct{}{}:
			default: // one is asked for already
			}
		}
		if refusal, ok := errors.AsType[*Error](err); ok && refusal.Refusal.Status == http.StatusNotFound {
			return nil // heartbeats do without
		}
		s.c.log.DebugContext(ctx, "watch broke off", "error", err, "failures", failures)
		if s.c.wait(ctx, backoff.Delay(failures, watchFirstRetry, watchMostRetry)) != nil {
			return nil
		}
	}
}

// stream reads events until the stream breaks.
func (s *Session) stream(ctx context.Context, on func(api.Event)) (opened bool, ended *EndedError, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	req, err := s.c.request(ctx, call{method: http.MethodGet, path: api.PathWatch, authorize: s.authorize})
	if err != nil {
		return false, nil, err
	}
	tooSlow := time.AfterFunc(watchOpenTimeout, cancel)
	resp, err := s.c.http.Do(req)
	tooSlow.Stop()
	if err != nil {
		return false, nil, roots.Quiet(ctx, err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		_, err := s.c.refused(resp)
		return false, endedBy(err), err
	}
	lines := bufio.NewScanner(resp.Body)
	lines.Buffer(make([]byte, 0, 4<<10), maxWatchLineBytes)
	for lines.Scan() {
		var event api.Event
		if json.Unmarshal(lines.Bytes(), &event) != nil {
			return true, nil, errors.New("a line that isn't an event")
		}
		switch {
		case event.Event == api.EventHello:
			s.c.log.DebugContext(ctx, "the broker's stream is open")
		case event.Event == api.EventEnded:
			return true, &EndedError{clean(event.Reason)}, nil
		case event.Lease != nil && on != nil:
			cleanLease(event.Lease)
			on(event)
		}
	}
	if err := lines.Err(); err != nil {
		return true, nil, fmt.Errorf("reading events: %w", roots.Quiet(ctx, err))
	}
	return true, nil, io.EOF
}
