// Package ci gets the OIDC token by which a CI job proves who it is.
//
// [Detect] looks for RunEnv's own variables first (RUNENV_ID_TOKEN_FILE,
// RUNENV_ID_TOKEN: GitLab and every other CI), then for GitHub's token
// endpoint. [Peek] reads a token's claims without verifying anything.
//
// The package speaks HTTP with the token endpoint alone, through net/http,
// and with nobody else. Its errors hold no token and no part of an answer.
package ci

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
	"time"

	"github.com/runenv/action/secret"
)

// Names of the variables that are read. Those of RunEnv and of GitHub's
// endpoint are what a command under `runenv run` doesn't get to see.
const (
	VarTokenFile    = "RUNENV_ID_TOKEN_FILE"
	VarToken        = "RUNENV_ID_TOKEN"
	VarRequestURL   = "ACTIONS_ID_TOKEN_REQUEST_URL"
	VarRequestToken = "ACTIONS_ID_TOKEN_REQUEST_TOKEN"
)

// maxTokenBytes bounds a token, in bytes, as the broker does.
const maxTokenBytes = 16 << 10

// A Source gives the job's token. It is safe for concurrent use.
type Source interface {
	// Token returns a token for the audience: a new one where the CI mints on
	// demand, else the one that the job was given, whose audience was fixed
	// in the job's definition.
	Token(ctx context.Context, audience string) (secret.Value, error)
	// Name says where tokens come from, for people.
	Name() string
}

// Config is what [Detect] reads from.
type Config struct {
	Getenv func(string) string
	// HTTP reaches GitHub's token endpoint; nil means a client with the
	// default transport. Its redirect policy isn't used: none is followed.
	HTTP *http.Client
	// Wait waits between tries; nil means [backoff.Wait].
	Wait func(context.Context, time.Duration) error
}

// Detect finds the job's token source. Without one the error is a
// [*NoTokenError].
func Detect(cfg Config) (Source, error) {
	if path := cfg.Getenv(VarTokenFile); path != "" {
		return fileSource(path), nil
	}
	if token := cfg.Getenv(VarToken); token != "" {
		return variableSource{secret.FromString(token)}, nil
	}
	requestURL, requestToken := cfg.Getenv(VarRequestURL), cfg.Getenv(VarRequestToken)
	if requestURL != "" && requestToken != "" {
		return newGitHub(requestURL, secret.FromString(requestToken), cfg)
	}
	return nil, &NoTokenError{CI: Kind(cfg.Getenv)}
}

// A NoTokenError says that the job was given no way to prove who it is.
type NoTokenError struct {
	CI string // as from [Kind]
}

func (e *NoTokenError) Error() string { return "no OIDC token source in the environment" }

// Hint names the cure for the CI at hand.
func (e *NoTokenError) Hint() string {
	switch e.CI {
	case "github":
		return `add "permissions: id-token: write" to the job; GitHub gives no token to pull requests from forks and to Dependabot: see --if-no-token`
	case "gitlab":
		return `add "id_tokens: RUNENV_ID_TOKEN: aud: <the broker's URL>" to the job`
	case "":
		return "outside of CI, set " + VarToken + " or " + VarTokenFile + ", or try `runenv-broker dev`"
	}
	return "set " + VarToken + " or " + VarTokenFile + " to the OIDC token that your CI gives the job"
}

// Kind names the CI that the process runs in: "github", "gitlab", "other", or
// "" where nothing speaks of one. A process that was given a CI token runs in
// CI, even if nothing else says so: a container often gets little more.
func Kind(getenv func(string) string) string {
	switch {
	case isSet(getenv("GITHUB_ACTIONS")) || getenv(VarRequestURL) != "":
		return "github"
	case isSet(getenv("GITLAB_CI")):
		return "gitlab"
	case isSet(getenv("CI")):
		return "other"
	}
	for _, name := range []string{VarToken, VarTokenFile, "BITBUCKET_BUILD_NUMBER", "BUILDKITE", "CIRCLECI", "CODEBUILD_BUILD_ID", "JENKINS_URL", "TEAMCITY_VERSION", "TF_BUILD", "TFC_RUN_ID"} {
		if isSet(getenv(name)) {
			return "other"
		}
	}
	return ""
}

func isSet(value string) bool {
	return value != "" && value != "0" && !strings.EqualFold(value, "false")
}

// A variableSource holds the one token that the job was given.
type variableSource struct{ token secret.Value }

func (variableSource) Name() string { return VarToken }

func (s variableSource) Token(context.Context, string) (secret.Value, error) {
	return tidy(s.token.Reveal(), VarToken)
}

// A fileSource is the path of a file that whoever gave the token may renew.
type fileSource string

func (fileSource) Name() string { return VarTokenFile }

// Token gives up with ctx, though the file may be a pipe that nobody writes to.
func (s fileSource) Token(ctx context.Context, _ string) (secret.Value, error) {
	type result struct {
		token secret.Value
		err   error
	}
	read := make(chan result, 1)
	go func() {
		token, err := s.read()
		read <- result{token, err}
	}()
	select {
	case r := <-read:
		return r.token, r.err
	case <-ctx.Done():
		return secret.Value{}, fmt.Errorf("reading %s: %w", VarTokenFile, context.Cause(ctx))
	}
}

func (s fileSource) read() (secret.Value, error) {
	f, err := os.Open(string(s))
	if err != nil {
		return secret.Value{}, fmt.Errorf("reading %s: %w", VarTokenFile, err)
	}
	defer func() { _ = f.Close() }() // nothing was written
	content, err := io.ReadAll(io.LimitReader(f, maxTokenBytes+1))
	if err != nil {
		return secret.Value{}, fmt.Errorf("reading %s: %w", VarTokenFile, err)
	}
	return tidy(content, VarTokenFile)
}

// tidy drops white space around a token, and refuses what can't be one.
func tidy(raw []byte, name string) (secret.Value, error) {
	token := strings.TrimSpace(string(raw))
	switch {
	case len(raw) > maxTokenBytes:
		return secret.Value{}, fmt.Errorf("%s holds over %d bytes", name, maxTokenBytes)
	case !looksLikeJWT(token):
		return secret.Value{}, &malformedError{name}
	}
	return secret.FromString(token), nil
}

// looksLikeJWT keeps line breaks and the like out of requests.
func looksLikeJWT(token string) bool {
	dots := 0
	for _, c := range []byte(token) {
		switch {
		case c == '.':
			dots++
		case !('a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || c == '-' || c == '_'):
			return false
		}
	}
	return dots == 2
}

// A malformedError says that the job's own token isn't one.
type malformedError struct{ name string }

func (e *malformedError) Error() string { return e.name + " doesn't hold a JSON Web Token" }

func (e *malformedError) Hint() string {
	return "GitLab leaves a variable unexpanded where `id_tokens:` doesn't define it; check the name there"
}

// errBody says that GitHub's endpoint answered 200 with something else.
var errBody = errors.New("the token endpoint's answer holds no token")
