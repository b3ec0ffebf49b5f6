package cli

import (
	"bytes"
	"errors"
	"fmt"
	"path/filepath"
	"runtime"
	"slices"
	"strings"

	"github.com/runenv/action/broker/api"
	"github.com/runenv/action/internal/filesecret"
	"github.com/runenv/action/internal/isolate"
	"github.com/runenv/action/secret"
)

// A planned file is one to be made.
type planned struct {
	variable, lease string
	name            string // in the folder of file secrets
	folder          string // that the variable is to hold in place of name
	content         secret.Value
	links           []link
}

// A link stands beside a planned file.
type link struct{ name, target string }

func (f planned) path() string {
	if f.folder != "" {
		return f.folder
	}
	return f.name
}

// plan settles what files there will be. Files of one variable and of a kind
// that can be put together are put together; a name that two others have
// becomes name-2 for the second, before its ending.
func (a *app) plan(leases []api.Lease) ([]planned, error) {
	var out []planned
	taken := map[string]bool{}
	together := map[[2]string][]section{}
	var order [][2]string
	for _, lease := range leases {
		for _, f := range lease.Files {
			if err := f.Check(); err != nil {
				return nil, &settingError{fmt.Sprintf("lease %q: %v", lease.Name, err), "if the broker is newer than this runenv, use a newer one here too"}
			}
			if f.Kind != "" {
				key := [2]string{f.Kind, f.Variable}
				if together[key] == nil {
					order = append(order, key)
				}
				together[key] = append(together[key], section{lease.Name, f.Name, f.Value.Reveal()})
				continue
			}
			out = append(out, planned{variable: f.Variable, lease: lease.Name, name: unique(taken, f.Name), content: f.Value.Value})
		}
	}
	for _, key := range order {
		sections := together[key]
		one := planned{variable: key[1], lease: sections[0].lease, name: unique(taken, sections[0].name)}
		var err error
		if key[0] == api.KindDockerConfig {
			err = a.dockerConfig(&one, sections)
		} else {
			one.content, err = profiles(sections)
		}
		if err != nil {
			return nil, err
		}
		out = append(out, one)
	}
	if len(out) > filesecret.MaxFiles {
		return nil, errors.New("these leases have too many files for one command")
	}
	return out, nil
}

// unique is name, or name with a number that nobody has taken. Some file
// systems don't tell upper case from lower.
func unique(taken map[string]bool, name string) string {
	out := name
	stem := strings.TrimSuffix(name, filepath.Ext(name))
	for n := 2; taken[strings.ToLower(out)]; n++ {
		out = fmt.Sprintf("%s-%d%s", stem, n, filepath.Ext(name))
	}
	taken[strings.ToLower(out)] = true
	return out
}

// A section is what one lease gives to a file that it shares.
type section struct {
	lease, name string
	text        []byte
}

// isSectionHead: it begins a section of an AWS credentials file.
func isSectionHead(line string) bool {
	const letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_.-"
	name, ok := strings.CutPrefix(line, "[")
	name, closed := strings.CutSuffix(name, "]")
	return ok && closed && name != "" && len(name) <= 64 && strings.Trim(name, letters) == ""
}

// profiles puts sections of an AWS credentials file together. Every SDK reads
// the region there too, so one file is enough for several accounts, and the
// job's own configuration file stays what it is.
func profiles(sections []section) (secret.Value, error) {
	var out bytes.Buffer
	by := map[string]string{}
	for _, s := range sections {
		lines := bytes.Split(bytes.TrimSpace(s.text), []byte("\n"))
		head := string(lines[0])
		if !isSectionHead(head) || slices.ContainsFunc(lines[1:], func(l []byte) bool { return bytes.HasPrefix(bytes.TrimSpace(l), []byte("[")) }) {
			return secret.Value{}, fmt.Errorf("lease %q: not one profile of an AWS credentials file", s.lease)
		}
		if other, ok := by[head]; ok {
			return secret.Value{}, &settingError{fmt.Sprintf("leases %q and %q both have the AWS profile %s", other, s.lease, head), "give one of them another `profile` in the broker's file"}
		}
		by[head] = s.lease
		out.Write(bytes.Join(lines, []byte("\n")))
		out.WriteString("\n")
	}
	return secret.New(out.Bytes()), nil
}

// asIsolateError finds a refusal of the isolation in an error's chain.
func asIsolateError(err error) (*isolate.Error, bool) { return errors.AsType[*isolate.Error](err) }

// link makes links beside a file. Windows needs a privilege for one.
func (d *delivered) link(links []link) error {
	if len(links) > 0 && runtime.GOOS == "windows" {
		d.a.say.warning("Docker's own settings but those of its config.json (builders, plugins, contexts) aren't seen by the command")
		return nil
	}
	for _, l := range links {
		if err := d.dir.Link(l.name, l.target); err != nil {
			return err
		}
	}
	return nil
}
