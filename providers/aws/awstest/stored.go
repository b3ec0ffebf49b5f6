package awstest

import (
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"
)

// A version is one of a secret's; the last one is AWSCURRENT.
type version struct {
	id     string
	text   *string
	binary []byte
}

type parameter struct{ kind, value string }

// PutSecret stores a new version of a secret and gives its id.
func (s *Server) PutSecret(name, text string) string { return s.put(name, version{text: &text}) }

// PutBinary is PutSecret for bytes.
func (s *Server) PutBinary(name string, b []byte) string { return s.put(name, version{binary: b}) }

func (s *Server) put(name string, v version) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	v.id = strings.ToLower(rand.Text() + rand.Text())[:36]
	s.secrets[name] = append(s.secrets[name], v)
	return v.id
}

// PutParameter stores a new version of a parameter; kind is String, StringList
// or SecureString, which is given only to who asks for it decrypted.
func (s *Server) PutParameter(name, kind, value string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.parameters[name] = append(s.parameters[name], parameter{kind, value})
}

// SecretARN is the ARN of a secret in a region.
func SecretARN(region, name string) string {
	return "arn:aws:secretsmanager:" + region + ":" + Account + ":secret:" + name + "-AbCdEf"
}

// account is where things are said to be. The caller holds the lock.
func (s *Server) account() string {
	if s.lie.Account != "" {
		return s.lie.Account
	}
	return Account
}

func (s *Server) getSecretValue(w http.ResponseWriter, r *http.Request, c *call) {
	var in struct{ SecretID, VersionID, VersionStage string }
	if json.Unmarshal(c.body, &in) != nil {
		refuse(w, r, &refusal400{"SerializationException", "bad"})
		return
	}
	name := in.SecretID
	if strings.HasPrefix(name, "arn:") {
		parts := strings.SplitN(name, ":", 7)
		if len(parts) != 7 || parts[3] != c.region {
			refuse(w, r, &refusal400{"ResourceNotFoundException", "Secrets Manager can't find the specified secret."})
			return
		}
		name = strings.TrimSuffix(parts[6], "-AbCdEf")
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	versions := s.secrets[name]
	i := len(versions) - 1
	switch {
	case in.VersionID != "":
		i = slices.IndexFunc(versions, func(v version) bool { return v.id == in.VersionID })
	case in.VersionStage == "AWSPREVIOUS":
		i--
	case in.VersionStage != "" && in.VersionStage != "AWSCURRENT":
		i = -1
	}
	if i < 0 {
		refuse(w, r, &refusal400{"ResourceNotFoundException", "Secrets Manager can't find the specified secret."})
		return
	}
	v := versions[i]
	arn := "arn:aws:secretsmanager:" + c.region + ":" + s.account() + ":secret:" + name + "-AbCdEf"
	out := map[string]any{"ARN": arn, "Name": name, "VersionId": v.id, "CreatedDate": 1.5e9}
	if v.text != nil {
		out["SecretString"] = *v.text
	} else {
		out["SecretBinary"] = base64.StdEncoding.EncodeToString(v.binary)
	}
	replyJSON(w, out)
}

// show is a parameter as it is answered. The caller holds the lock.
func (s *Server) show(name string, n int, region string, decrypt bool) map[string]any {
	p := s.parameters[name][n-1]
	value := p.value
	if p.kind == "SecureString" && !decrypt {
		value = "AQICAHencrypted"
	}
	return map[string]any{
		"ARN": "arn:aws:ssm:" + region + ":" + s.account() + ":parameter/" + strings.TrimPrefix(name, "/"), "Name": name, "Type": p.kind, "Value": value, "Version": n,
	}
}

func (s *Server) getParameter(w http.ResponseWriter, r *http.Request, c *call) {
	var in struct {
		Name           string
		WithDecryption bool
	}
	_ = json.Unmarshal(c.body, &in)
	name := in.Name
	if _, rest, ok := strings.Cut(name, ":parameter"); ok && strings.HasPrefix(name, "arn:") {
		name = rest
	}
	name, selector, selected := strings.Cut(name, ":")
	s.mu.Lock()
	defer s.mu.Unlock()
	n := len(s.parameters[name])
	if n == 0 {
		refuse(w, r, &refusal400{"ParameterNotFound", ""})
		return
	}
	if selected {
		asked, err := strconv.Atoi(selector)
		if err != nil || asked < 1 || asked > n {
			refuse(w, r, &refusal400{"ParameterVersionNotFound", ""})
			return
		}
		n = asked
	}
	replyJSON(w, map[string]any{"Parameter": s.show(name, n, c.region, in.WithDecryption)})
}

func (s *Server) getParametersByPath(w http.ResponseWriter, r *http.Request, c *call) {
	var in struct {
		Path, NextToken           string
		Recursive, WithDecryption bool
	}
	_ = json.Unmarshal(c.body, &in)
	s.mu.Lock()
	defer s.mu.Unlock()
	var names []string
	for _, name := range slices.Sorted(maps.Keys(s.parameters)) {
		rest, under := strings.CutPrefix(name, strings.TrimSuffix(in.Path, "/")+"/")
		if under && (in.Recursive || !strings.Contains(rest, "/")) {
			names = append(names, name)
		}
	}
	start := 0
	if in.NextToken != "" {
		var err error
		if start, err = strconv.Atoi(strings.TrimPrefix(in.NextToken, "page-")); err != nil || start > len(names) {
			refuse(w, r, &refusal400{"InvalidNextToken", ""})
			return
		}
	}
	size := s.PageSize
	if size == 0 {
		size = 10
	}
	end := min(start+size, len(names))
	page := []any{}
	for _, name := range names[start:end] {
		page = append(page, s.show(name, len(s.parameters[name]), c.region, in.WithDecryption))
	}
	out := map[string]any{"Parameters": page}
	if end < len(names) {
		out["NextToken"] = fmt.Sprintf("page-%d", end)
	}
	replyJSON(w, out)
}

func (s *Server) getAuthorizationToken(w http.ResponseWriter, c *call) {
	var in struct {
		RegistryIDs []string `json:"registryIds"`
	}
	_ = json.Unmarshal(c.body, &in)
	s.mu.Lock()
	defer s.mu.Unlock()
	registry := s.account()
	if len(in.RegistryIDs) > 0 && s.lie.Account == "" {
		registry = in.RegistryIDs[0]
	}
	password := "c4n4ry-ecr-" + rand.Text()
	replyJSON(w, map[string]any{"authorizationData": []any{map[string]any{
		"authorizationToken": base64.StdEncoding.EncodeToString([]byte("AWS:" + password)),
		"expiresAt":          float64(s.now().Add(12*time.Hour+s.lie.Longer).UnixMilli()) / 1000,
		"proxyEndpoint":      "https://" + registry + ".dkr.ecr." + c.region + ".amazonaws.com",
	}}})
}
