package ref

import (
	"errors"
	"strings"
)

// withoutData drops the segment with which the API of Vault's KV version 2
// marks a read: secret/data/ci/npm is secret/ci/npm.
func withoutData(path string) string {
	mount, rest, ok := strings.Cut(path, "/data/")
	if !ok || strings.Contains(mount, "/") || mount == "" {
		return path
	}
	return mount + "/" + rest
}

// vaultAction reads "secret/data/ci/npm token". Its selectors are paths of keys
// with dots between, and a key with a dot of its own stands in quotes.
func vaultAction(path, field string) (Ref, error) {
	r := Ref{Scheme: SchemeVault, Path: withoutData(path)}
	quoted, isQuoted := strings.CutPrefix(field, `"`)
	switch {
	case isQuoted:
		var closed bool
		if r.Field, closed = strings.CutSuffix(quoted, `"`); !closed || strings.HasPrefix(r.Field, "/") {
			return Ref{}, errors.New("not a key in quotes")
		}
	case strings.HasPrefix(field, "/"):
		return Ref{}, errors.New("a key of vault-action begins with no slash")
	case strings.Contains(field, "."):
		r.Field = "/" + strings.ReplaceAll(field, ".", "/")
	default:
		r.Field = field
	}
	if r.Field == "" {
		return Ref{}, errors.New("a path and no key: write PATH KEY")
	}
	return r, nil
}

// bankVaults reads what stands behind "vault:": PATH#KEY or PATH#KEY#VERSION.
func bankVaults(rest string) (Ref, error) {
	path, rest, _ := strings.Cut(rest, "#")
	field, version, versioned := strings.Cut(rest, "#")
	if field == "" || versioned && version == "" || strings.HasPrefix(field, "/") {
		return Ref{}, errors.New("behind vault: stands no PATH#KEY")
	}
	return Ref{Scheme: SchemeVault, Path: withoutData(path), Field: field, Version: version}, nil
}

var errARN = errors.New("an ARN of neither a secret of Secrets Manager nor a parameter of SSM: arn:PARTITION:SERVICE:REGION:ACCOUNT:secret:NAME, or …:parameter/NAME")

// arn reads an ARN, and what ECS writes behind one. The path of the reference
// is the whole ARN, which says region and account, too.
func arn(text string) (Ref, error) {
	part := strings.Split(text, ":")
	// arn, partition, service, region, account, resource …
	if len(part) < 6 || part[1] == "" || part[3] == "" || !only(part[4], digits) || len(part[4]) != 12 {
		return Ref{}, errARN
	}
	switch name, isParameter := strings.CutPrefix(part[5], "parameter/"); {
	case part[2] == "secretsmanager" && part[5] == "secret" && len(part) >= 7:
		r := Ref{Scheme: SchemeAWSSM, Path: strings.Join(part[:7], ":")}
		return r, r.behindARN(part[7:])
	case part[2] == "ssm" && isParameter && name != "" && len(part) <= 7:
		r := Ref{Scheme: SchemeSSM, Path: strings.Join(part[:6], ":")}
		if len(part) == 7 {
			if r.Version = part[6]; r.Version == "" {
				return Ref{}, errARN
			}
		}
		return r, nil
	}
	return Ref{}, errARN
}

// behindARN reads field, stage and id, each of which may be empty.
func (r *Ref) behindARN(part []string) error {
	part = append(part, "", "", "")
	r.Field = part[0]
	stage, id := part[1], part[2]
	switch {
	case len(part) > 6:
		return errors.New("more behind the ARN of a secret than field, stage and id of a version")
	case strings.HasPrefix(r.Field, "/"):
		return errors.New("a field behind an ARN begins with no slash")
	case stage != "" && id != "":
		return errors.New("a reference with both version and stage: one says which")
	case id != "" && !IsVersionID(id) || IsVersionID(stage):
		return errors.New("behind the ARN of a secret stand field, stage and id of a version, in this order")
	}
	r.Version = stage + id
	return nil
}

// berglas reads what stands behind "sm://".
func berglas(rest string) (Ref, error) {
	path, version, marked := strings.Cut(rest, "#")
	if marked && version == "" {
		return Ref{}, errors.New("a reference with nothing behind ? or #")
	}
	r := Ref{Scheme: SchemeGCPSM, Path: path, Version: version}
	if strings.HasPrefix(path, "projects/") && strings.Contains(path, "/secrets/") {
		var err error
		if r, err = googleName(path); err != nil || !marked {
			return r, err
		}
		if r.Version != "" {
			return Ref{}, errors.New("a reference with two versions")
		}
		r.Version = version
		return r, nil
	}
	if part := strings.Split(path, "/"); len(part) == 3 && !marked {
		r.Path, r.Version = part[0]+"/"+part[1], part[2]
		if r.Version == "" {
			return Ref{}, errors.New("a reference with an empty segment: no slash in front, at the end, or twice")
		}
	}
	return r, nil
}

// googleName reads projects/P/secrets/S and projects/P/secrets/S/versions/V.
func googleName(name string) (Ref, error) {
	part := strings.Split(name, "/")
	named := len(part) >= 4 && part[0] == "projects" && part[2] == "secrets"
	switch {
	case named && len(part) == 4:
		return Ref{Scheme: SchemeGCPSM, Path: part[1] + "/" + part[3]}, nil
	case named && len(part) == 6 && part[4] == "versions" && part[5] != "":
		return Ref{Scheme: SchemeGCPSM, Path: part[1] + "/" + part[3], Version: part[5]}, nil
	}
	return Ref{}, errors.New("not the name of a secret: projects/PROJECT/secrets/NAME/versions/VERSION")
}
