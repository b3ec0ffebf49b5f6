// Package ref reads references: texts that name one secret of a back end, such
// as
//
//	vault://secret/ci/npm#token?version=3
//	aws-sm://prod/db#password
//	aws-ssm://prod/db/url
//	gcp-sm://project/name#version
//
// and the peers' own spellings of the same, so that moving here is a paste.
// Each has one canonical text, [Ref.String], which policy judges and the audit
// log shows. A reference holds no secret.
package ref

// A Ref names a secret of a back end.
type Ref struct {
	// Scheme says what kind of secret it is: vault, aws-sm, aws-ssm or gcp-sm.
	Scheme string
	// Provider is the name of an entry under `providers:`; empty for the only
	// one, or the one that is named as its type, that has this scheme.
	Provider string
	// Path is where the secret lies: plain segments with slashes between.
	Path string
	// Version is a version, a stage or an alias; empty for the latest.
	Version string
	// Field is the field of the secret, or a JSON pointer into it (with a
	// slash in front); empty for the whole.
	Field string
}
