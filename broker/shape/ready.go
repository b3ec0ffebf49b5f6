package shape

import (
	"bytes"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"net/url"
	"strings"

	"github.com/runenv/action/broker/api"
	"github.com/runenv/action/secret"
)

// The ready shapes: files that programs know by their form.
const (
	asProfile    = api.KindAWSProfile
	asDocker     = api.KindDockerConfig
	asKubeconfig = "kubeconfig"
	asSSHKey     = "ssh-key"
)

// Names of profiles and registries are short; kubeconfig's CA is a chain.
const (
	maxProfile  = 64
	maxRegistry = 255
	maxCA       = 64 << 10
)

// checkFile reports what is wrong with what is for files alone.
func (v Var) checkFile() error {
	file := v.FileName()
	isReady := v.As == asProfile || v.As == asDocker || v.As == asKubeconfig || v.As == asSSHKey
	if file != "" {
		if err := api.CheckFileName(file); err != nil {
			return err
		}
	}
	switch {
	case isReady && file == "":
		return hinted{errors.New(v.As + " is for a file"), "write the variable under file:, or give it a name that ends in " + FileSuffix}
	case isReady && v.Default != nil:
		return errors.New("default is a text of your own, and " + v.As + " has a form")
	case v.As == asSSHKey && v.Field == "":
		return errors.New("ssh-key is made of one field: say which")
	case (v.As == asProfile) != (v.Profile != ""):
		return hinted{errors.New("aws-profile and profile belong together"), "write {as: aws-profile, profile: NAME}"}
	case v.As == asProfile && !isPlain(v.Profile, maxProfile, ""):
		return fmt.Errorf("profile is 1 to %d letters, digits and _ . -", maxProfile)
	case v.Registry != "" && v.As != asDocker:
		return errors.New("registry is for docker-config alone")
	case v.Registry != "" && !isPlain(v.Registry, maxRegistry, ":/"):
		return errRegistry
	case (v.Server != "" || v.CA != "") && v.As != asKubeconfig:
		return errors.New("server and ca are for kubeconfig alone")
	}
	if v.Server != "" {
		if err := checkServer(v.Server); err != nil {
			return err
		}
	}
	if v.CA != "" {
		if _, err := certificates([]byte(v.CA)); err != nil {
			return err
		}
	}
	return nil
}

// isPlain reports whether s has 1 to limit letters, digits, _ . - and what of
// more.
func isPlain(s string, limit int, more string) bool {
	if s == "" || len(s) > limit {
		return false
	}
	for _, c := range []byte(s) {
		if (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && (c < '0' || c > '9') && !strings.ContainsRune("_.-"+more, rune(c)) {
			return false
		}
	}
	return true
}

// first is the field of the first of the names that the credential has; the
// names are one thing's at several back ends.
func first(fields map[string]secret.Value, names ...string) (field string, value []byte) {
	for _, name := range names {
		if v, ok := fields[name]; ok && v.Len() > 0 {
			return name, bytes.Clone(v.Reveal())
		}
	}
	return "", nil
}

// profile is one section of an AWS credentials file.
func (v Var) profile(fields map[string]secret.Value) ([]byte, []part, error) {
	var b bytes.Buffer
	fmt.Fprintf(&b, "[%s]\n", v.Profile)
	var parts []part
	missing := &MissingError{}
	for _, line := range []struct {
		key              string
		names            []string // AWS's own, and Vault's
		secret, optional bool
	}{
		{"aws_access_key_id", []string{"access_key_id", "access_key"}, true, false},
		{"aws_secret_access_key", []string{"secret_access_key", "secret_key"}, true, false},
		{"aws_session_token", []string{"session_token", "security_token"}, true, true},
		{"region", []string{"region"}, false, true},
	} {
		field, value := first(fields, line.names...)
		switch {
		case field == "" && line.optional:
			continue
		case field == "":
			missing.Fields = append(missing.Fields, line.names[0])
			continue
		case !isPlain(string(value), maxValue, "+/=:~"):
			// Another line would be another key, or another profile; quotes
			// and comments are read in several ways, or not at all.
			return nil, nil, fmt.Errorf("field %s has more than letters, digits and + / = : ~ _ . -", field)
		}
		fmt.Fprintf(&b, "%s = %s\n", line.key, value)
		if line.secret {
			parts = append(parts, part{field, value})
		}
	}
	if len(missing.Fields) > 0 {
		return nil, nil, missing
	}
	return b.Bytes(), parts, nil
}

var errRegistry = fmt.Errorf("registry is a host, with a port or a path if it has one, of %d bytes at most", maxRegistry)

// dockerConfig is a config.json with one login.
func (v Var) dockerConfig(fields map[string]secret.Value) ([]byte, []part, error) {
	_, user := first(fields, "username")
	field, password := first(fields, "password")
	registry := []byte(v.Registry)
	missing := &MissingError{}
	if user == nil {
		missing.Fields = append(missing.Fields, "username")
	}
	if password == nil {
		missing.Fields = append(missing.Fields, "password")
	}
	if len(registry) == 0 {
		if _, registry = first(fields, "registry"); registry == nil {
			missing.Fields = append(missing.Fields, "registry")
		}
	}
	switch {
	case len(missing.Fields) > 0:
		return nil, nil, missing
	case !isPlain(string(registry), maxRegistry, ":/"):
		return nil, nil, errRegistry
	case bytes.ContainsAny(user, ":\x00\r\n") || bytes.ContainsAny(password, "\x00\r\n"):
		return nil, nil, errors.New("username or password holds what a login to a registry can't")
	}
	pair := append(append(user, ':'), password...)
	auth := base64.StdEncoding.EncodeToString(pair)
	text, err := marshal(map[string]any{"auths": map[string]any{string(registry): map[string]string{"auth": auth}}})
	return text, []part{{field, password}, {"", []byte(auth)}}, err
}

// kubeconfig is one of a cluster that takes a bearer token.
func (v Var) kubeconfig(fields map[string]secret.Value) ([]byte, []part, error) {
	field, token := first(fields, "token", "access_token", "service_account_token") // Vault's last, GCP's before it
	server, ca := []byte(v.Server), []byte(v.CA)
	missing := &MissingError{}
	if token == nil {
		missing.Fields = append(missing.Fields, "token")
	}
	if len(server) == 0 {
		if _, server = first(fields, "server"); server == nil {
			missing.Fields = append(missing.Fields, "server")
		}
	}
	if len(missing.Fields) > 0 {
		return nil, nil, missing
	}
	if err := checkServer(string(server)); err != nil {
		return nil, nil, err
	}
	cluster := map[string]any{"server": string(server)}
	if len(ca) == 0 {
		_, ca = first(fields, "ca")
	}
	if len(ca) > 0 {
		pem, err := certificates(ca)
		if err != nil {
			return nil, nil, err
		}
		cluster["certificate-authority-data"] = base64.StdEncoding.EncodeToString(pem)
	}
	if bytes.ContainsFunc(token, func(r rune) bool { return r <= ' ' || r > '~' }) {
		return nil, nil, fmt.Errorf("field %s isn't a word in ASCII", field)
	}
	const name = "runenv"
	text, err := marshal(map[string]any{ // JSON is YAML
		"apiVersion": "v1", "kind": "Config", "current-context": name,
		"clusters": []any{map[string]any{"name": name, "cluster": cluster}},
		"users":    []any{map[string]any{"name": name, "user": map[string]string{"token": string(token)}}},
		"contexts": []any{map[string]any{"name": name, "context": map[string]string{"cluster": name, "user": name}}},
	})
	return text, []part{{field, token}}, err
}

// checkServer keeps a token from going over a network in the clear, and a
// password out of a URL.
func checkServer(server string) error {
	u, err := url.Parse(server)
	if err != nil || u.Scheme != "https" || u.Host == "" || u.User != nil || u.RawQuery != "" || u.Fragment != "" || len(server) > 1024 {
		return errors.New("server isn't an https URL without user and query")
	}
	return nil
}

// certificates checks PEM, which may be in base64 as the clouds give it.
func certificates(ca []byte) ([]byte, error) {
	if !bytes.Contains(ca, []byte("-----BEGIN")) {
		if raw, err := decode("base64", ca); err == nil {
			ca = raw
		}
	}
	rest := ca
	for n := 0; ; n++ {
		var block *pem.Block
		block, rest = pem.Decode(rest)
		switch {
		case block == nil && n > 0 && len(bytes.TrimSpace(rest)) == 0 && len(ca) <= maxCA:
			return ca, nil
		case block == nil || block.Type != "CERTIFICATE":
			return nil, fmt.Errorf("ca isn't certificates in PEM, or base64 of that, of %d bytes at most", maxCA)
		}
	}
}

// sshKey is a private key as OpenSSH reads it: lines that end in one newline
// each, the last too.
func sshKey(value []byte) ([]byte, error) {
	value = append(bytes.TrimSpace(bytes.ReplaceAll(value, []byte("\r\n"), []byte("\n"))), '\n')
	block, rest := pem.Decode(value)
	if block == nil || !strings.HasSuffix(block.Type, "PRIVATE KEY") || len(rest) > 0 || !bytes.HasPrefix(value, []byte("-----BEGIN ")) {
		return nil, errors.New("its value isn't one private key in PEM or OpenSSH's form")
	}
	return value, nil
}
