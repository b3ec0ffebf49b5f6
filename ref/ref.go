// Package ref reads references: texts that name one secret of a back end, such
// as
//
//	vault://secret/ci/npm?version=3#token
//	aws-sm://prod/db?stage=AWSPREVIOUS#password
//	aws-ssm://prod/db/url
//	gcp-sm://project/name?field=token#7
//
// and the peers' own spellings of the same, so that moving here is a paste.
// Each has one canonical text, [Ref.String], which policy judges and the audit
// log shows. A reference holds no secret.
//
// Nothing is decoded or cleaned: a text with a percent sign, a doubled slash,
// "." or ".." as a segment, or a character outside a short list is refused, so
// that what was granted, what is logged and what the back end is asked for can't
// be three things.
package ref

import "strings"

// Schemes of references.
const (
	SchemeVault = "vault"
	SchemeAWSSM = "aws-sm"  // Secrets Manager
	SchemeSSM   = "aws-ssm" // SSM Parameter Store
	SchemeGCPSM = "gcp-sm"  // Secret Manager
)

// MaxBytes bounds a reference's text. The longest that a back end has is the
// ARN of a secret, whose name may have 512 bytes.
const MaxBytes = 1024

// A Ref names a secret of a back end. It is comparable: two are the same
// exactly if their texts are.
type Ref struct {
	// Scheme says what kind of secret it is: vault, aws-sm, aws-ssm or gcp-sm.
	Scheme string
	// Provider is the name of an entry under `providers:`; empty for the only
	// one, or the one that is named as its type, that has this scheme.
	Provider string
	// Path is where the secret lies: plain segments with slashes between.
	//
	//   - vault: MOUNT/PATH as `vault kv get` takes it, without "data"
	//   - aws-sm: the secret's name, or its whole ARN
	//   - aws-ssm: the parameter's name without a slash in front, or its ARN
	//   - gcp-sm: PROJECT/NAME
	Path string
	// Version is a version, a stage or an alias; empty for the latest.
	//
	//   - vault: a decimal number
	//   - aws-sm: a version's id where [IsVersionID] says so, else a stage; empty
	//     stands for AWSCURRENT
	//   - aws-ssm: a number or a label
	//   - gcp-sm: a number or an alias; empty stands for latest
	Version string
	// Field is the field of the secret, or a JSON pointer (RFC 6901) into it,
	// with a slash in front, whose first token is the field; empty for the
	// whole.
	Field string
}

// IsVersionID reports whether the version of an aws-sm reference is the id of a
// version and no stage: 32 to 64 letters, digits and hyphens, as AWS makes them.
func IsVersionID(version string) bool {
	return len(version) >= 32 && len(version) <= 64 && only(version, letters+digits+"-")
}

// Credential is the reference without its field: what one issue at the back end
// answers, whichever fields are wanted of it.
func (r Ref) Credential() Ref {
	r.Field = ""
	return r
}

// String is the canonical text, which [Parse] reads back.
func (r Ref) String() string {
	var query []string
	fragment := r.Field
	add := func(key, value string) {
		if value != "" {
			query = append(query, key+"="+value)
		}
	}
	if r.Scheme == SchemeGCPSM {
		add("field", r.Field)
		fragment = r.Version
	}
	add("provider", r.Provider)
	switch {
	case r.Scheme == SchemeGCPSM:
	case r.Scheme == SchemeAWSSM && !IsVersionID(r.Version):
		add("stage", r.Version)
	default:
		add("version", r.Version)
	}
	s := r.Scheme + "://" + r.Path
	if len(query) > 0 {
		s += "?" + strings.Join(query, "&")
	}
	if fragment != "" {
		s += "#" + fragment
	}
	return s
}

// root is the field that is read: of a JSON pointer the first token.
func (r Ref) root() string {
	pointer, ok := strings.CutPrefix(r.Field, "/")
	if !ok {
		return r.Field
	}
	first, _, _ := strings.Cut(pointer, "/")
	return unescape(first)
}

// last is the last token of the field.
func (r Ref) last() string {
	if !strings.HasPrefix(r.Field, "/") {
		return r.Field
	}
	return unescape(r.Field[strings.LastIndexByte(r.Field, '/')+1:])
}

func unescape(token string) string {
	return strings.NewReplacer("~1", "/", "~0", "~").Replace(token)
}
