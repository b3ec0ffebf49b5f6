package devissuer

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
)

// MaxEventBytes bounds an event file, in bytes. It is GitHub's own bound of a
// webhook's payload.
const MaxEventBytes = 25 << 20

// An Event is what the payload of a webhook says about the jobs that it starts.
type Event struct {
	// Claims are those that follow from the payload, for [Config.Claims]. What
	// it doesn't say is left to the defaults.
	Claims map[string]any
	// NoToken says why GitHub gives these jobs no token at all; empty if it
	// gives one.
	NoToken string
}

// kinds are the keys of a payload by which one tells its event.
var kinds = []struct{ key, event string }{
	{"review", "pull_request_review"},
	{"workflow_run", "workflow_run"},
	{"pull_request", "pull_request"},
	{"issue", "issues"},
	{"discussion", "discussion"},
	{"release", "release"},
	{"deployment_status", "deployment_status"},
	{"deployment", "deployment"},
	{"merge_group", "merge_group"},
	{"client_payload", "repository_dispatch"},
	{"inputs", "workflow_dispatch"},
	{"schedule", "schedule"},
}

// ParseEvent reads an event file, such as GITHUB_EVENT_PATH names and act is
// given. The file doesn't hold its event's name: an empty name means the one
// that the payload looks like, and a push if it looks like nothing else.
//
// It refuses what isn't one JSON object, and fields of another kind than
// GitHub's. No error holds more of the file than a field's name.
func ParseEvent(payload []byte, name string) (Event, error) {
	if len(payload) > MaxEventBytes {
		return Event{}, fmt.Errorf("it has more than %d bytes", MaxEventBytes)
	}
	dec := json.NewDecoder(bytes.NewReader(payload))
	dec.UseNumber()
	var root map[string]any
	if err := dec.Decode(&root); err != nil || root == nil {
		return Event{}, errors.New("it isn't a JSON object")
	}
	if dec.More() {
		return Event{}, errors.New("something follows its JSON object")
	}
	p := &payloadReader{root: root}
	if name == "" {
		name = p.event()
	}
	e := Event{Claims: map[string]any{"event_name": name}}
	set := func(claim, value string) {
		if value != "" {
			e.Claims[claim] = value
		}
	}
	set("repository", p.text("repository", "full_name"))
	set("repository_id", p.id("repository", "id"))
	set("repository_owner_id", p.id("repository", "owner", "id"))
	set("repository_visibility", p.visibility())
	set("actor", p.text("sender", "login"))
	set("actor_id", p.id("sender", "id"))
	set("head_ref", p.text("pull_request", "head", "ref"))
	set("base_ref", p.text("pull_request", "base", "ref"))
	ref := p.ref(name)
	set("ref", ref)
	if strings.HasPrefix(ref, "refs/tags/") {
		set("ref_type", "tag")
	}
	sha := p.text("after")
	if ofPullRequest(name) {
		sha = p.text("pull_request", "merge_commit_sha")
	}
	for _, claim := range []string{"sha", "workflow_sha", "job_workflow_sha"} {
		set(claim, sha)
	}
	switch {
	case ofPullRequest(name) && p.fork():
		e.NoToken = "a pull request from a fork gets no token"
	case e.Claims["actor"] == "dependabot[bot]" && (ofPullRequest(name) || name == "push"):
		e.NoToken = "a job that Dependabot starts gets no token"
	}
	return e, p.err
}

// ofPullRequest tells the events whose jobs run the proposed code, on the
// commit that merges it.
func ofPullRequest(event string) bool {
	return event == "pull_request" || event == "pull_request_review" || event == "pull_request_review_comment"
}

// A payloadReader reads fields of a payload and keeps the first error.
type payloadReader struct {
	root map[string]any
	err  error
}

// at is the field of that path; nil where there is none, or null.
func (p *payloadReader) at(path ...string) any {
	var v any = p.root
	for i, name := range path {
		object, ok := v.(map[string]any)
		if !ok {
			if v != nil {
				p.wrong(path[:i], "an object")
			}
			return nil
		}
		v = object[name]
	}
	return v
}

func (p *payloadReader) wrong(path []string, want string) {
	if p.err == nil {
		p.err = fmt.Errorf("its field %s isn't %s", strings.Join(path, "."), want)
	}
}

func (p *payloadReader) text(path ...string) string {
	v := p.at(path...)
	s, ok := v.(string)
	if !ok && v != nil {
		p.wrong(path, "a string")
	}
	return s
}

// id is a decimal number; "" where there is none.
func (p *payloadReader) id(path ...string) string {
	v := p.at(path...)
	n, ok := v.(json.Number)
	if (!ok || strings.Trim(n.String(), "0123456789") != "") && v != nil {
		p.wrong(path, "an id")
		return ""
	}
	return n.String()
}

func (p *payloadReader) visibility() string {
	if s := p.text("repository", "visibility"); s != "" {
		return s
	}
	switch v := p.at("repository", "private").(type) {
	case nil:
	case bool:
		if v {
			return "private"
		}
		return "public"
	default:
		p.wrong([]string{"repository", "private"}, "a boolean")
	}
	return ""
}

// event is the name of the event that the payload looks like.
func (p *payloadReader) event() string {
	if p.at("comment") != nil {
		switch {
		case p.at("pull_request") != nil:
			return "pull_request_review_comment"
		case p.at("issue") != nil:
			return "issue_comment"
		case p.at("discussion") != nil:
			return "discussion_comment"
		}
	}
	for _, k := range kinds {
		if p.at(k.key) != nil {
			return k.event
		}
	}
	return "push"
}

// ref is what the event's jobs run on; "" where the payload doesn't say.
func (p *payloadReader) ref(event string) string {
	switch {
	case event == "push" || event == "workflow_dispatch":
		ref := p.text("ref")
		if ref != "" && !strings.HasPrefix(ref, "refs/") {
			p.wrong([]string{"ref"}, "a whole ref, like refs/heads/main")
		}
		return ref
	case ofPullRequest(event):
		number := p.id("pull_request", "number")
		if number == "" {
			number = p.id("number")
		}
		if number == "" {
			number = "1"
		}
		return "refs/pull/" + number + "/merge"
	case event == "release":
		if tag := p.text("release", "tag_name"); tag != "" {
			return "refs/tags/" + tag
		}
	}
	if branch := p.text("repository", "default_branch"); branch != "" {
		return "refs/heads/" + branch
	}
	return ""
}

// fork tells whether a pull request comes from another repository. One whose
// repository is gone came from a fork.
func (p *payloadReader) fork() bool {
	head, _ := p.at("pull_request", "head").(map[string]any)
	if _, said := head["repo"]; !said {
		return false
	}
	if head["repo"] == nil {
		return true
	}
	for _, base := range [][]string{{"pull_request", "base", "repo"}, {"repository"}} {
		for _, key := range []string{"id", "full_name"} {
			from, to := p.at("pull_request", "head", "repo", key), p.at(append(base[:len(base):len(base)], key)...)
			if from != nil && to != nil {
				return fmt.Sprint(from) != fmt.Sprint(to)
			}
		}
	}
	is, _ := p.at("pull_request", "head", "repo", "fork").(bool)
	return is
}
