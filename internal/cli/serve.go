package cli

import (
	"cmp"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/runenv/action/broker/api"
	"github.com/runenv/action/internal/endpoint"
	"github.com/runenv/action/internal/inject"
	"github.com/runenv/action/internal/redact"
	"github.com/runenv/action/ref"
	"github.com/runenv/action/secret"
)

// What --serve can begin with.
const (
	serveAWS   = "aws"
	serveGCE   = "gce"
	serveVault = "vault"
)

const (
	// endpointName stands for a lease where a bearer of the endpoint is hidden
	// or found.
	endpointName = "credential-endpoint"

	// gcloudFolder is where gcloud keeps its settings, among the file secrets.
	gcloudFolder, varGcloud = "gcloud-config", "CLOUDSDK_CONFIG"
)

// serveOptions say what the command's tools can ask for on loopback.
type serveOptions struct {
	texts []string

	aws   *endpoint.AWS
	gce   *endpoint.GCE
	vault []endpoint.Vault // of leases by name
	refs  []string         // names of leases by a reference of Vault's
	all   bool             // every such lease
}

func (o *serveOptions) any() bool { return len(o.texts) > 0 }

// check reads the texts.
func (o *serveOptions) check() error {
	o.aws, o.gce, o.vault, o.refs, o.all = nil, nil, nil, nil, false
	for _, text := range o.texts {
		what, rest, given := strings.Cut(text, "=")
		if given && rest == "" {
			return errors.New("names no lease behind the =")
		}
		var err error
		switch {
		case what == serveAWS && o.aws == nil:
			o.aws = &endpoint.AWS{Lease: rest}
		case what == serveGCE && o.gce == nil:
			o.gce = &endpoint.GCE{Lease: rest}
		case what == serveAWS || what == serveGCE:
			err = errors.New("has " + what + " twice: one lease can be served so")
		case what == serveVault && !given:
			o.all = true
		case what == serveVault:
			err = o.vaultLease(rest)
		default:
			err = fmt.Errorf("is %q, and not aws, gce or vault, with = and a lease behind it where it needs one", what)
		}
		if err != nil {
			return err
		}
	}
	if o.gce != nil && runtime.GOOS != "linux" {
		return errors.New("can't have gce here: only Linux tells who asks, and its protocol has no secret")
	}
	return nil
}

// vaultLease reads what stands behind vault=.
func (o *serveOptions) vaultLease(text string) error {
	if strings.HasPrefix(text, ref.SchemeVault+"://") {
		r, err := ref.Parse(text)
		if err != nil || r.Field != "" {
			return errors.New("has a reference behind vault= that can't be read, or has a field: it is like vault://database/creds/ro")
		}
		o.refs = append(o.refs, r.String())
		return nil
	}
	lease, rest, named := strings.Cut(text, ":")
	path, fields, mapped := strings.Cut(rest, "#")
	if !named || !mapped || lease == "" || path == "" {
		return errors.New("isn't like vault=LEASE:PATH#FIELD=VARIABLE,FIELD=VARIABLE")
	}
	v := endpoint.Vault{Lease: lease, Path: path, Fields: map[string]string{}}
	if mount, below, kv := strings.Cut(path, "/data/"); kv {
		v.Mount, v.Path = mount, mount+"/"+below
	}
	for pair := range strings.SplitSeq(fields, ",") {
		field, variable, ok := strings.Cut(pair, "=")
		if !ok || field == "" || v.Fields[field] != "" || api.CheckVariable(variable) != nil {
			return errors.New("has a field that isn't like FIELD=VARIABLE, or has one twice")
		}
		v.Fields[field] = variable
	}
	o.vault = append(o.vault, v)
	return nil
}

// vaults are Vault's paths, of the leases that there are.
func (o *serveOptions) vaults(request api.LeaseRequest, leases []api.Lease) ([]endpoint.Vault, error) {
	all := slices.Clone(o.vault)
	for i, v := range all {
		lease := slices.IndexFunc(leases, func(l api.Lease) bool { return l.Name == v.Lease })
		if v.Mount == "" && lease >= 0 {
			all[i].Mount = mountOf(leases[lease].ExpiresAt, v.Path)
		}
	}
	if !o.all && len(o.refs) == 0 {
		return all, nil
	}
	served := map[string]endpoint.Vault{}
	var order []string
	for _, given := range request.References {
		r, err := ref.Parse(given.Ref)
		name := r.Credential().String()
		// A pointer, or the whole, is no field of Vault's; a file can't be served.
		if err != nil || r.Scheme != ref.SchemeVault || !o.all && !slices.Contains(o.refs, name) ||
			r.Field == "" || strings.HasPrefix(r.Field, "/") || strings.HasSuffix(given.Variable, "_FILE") {
			continue
		}
		v, ok := served[name]
		if !ok {
			lease := slices.IndexFunc(leases, func(l api.Lease) bool { return l.Name == name })
			if lease < 0 {
				continue
			}
			v = endpoint.Vault{Lease: name, Path: r.Path, Mount: mountOf(leases[lease].ExpiresAt, r.Path), Fields: map[string]string{}}
			order = append(order, name)
		}
		v.Fields[r.Field] = given.Variable
		served[name] = v
	}
	for _, name := range o.refs {
		if _, ok := served[name]; !ok {
			return nil, noVaultReference("no lease is " + name + " with a field")
		}
	}
	if len(order) == 0 {
		return nil, noVaultReference("no lease comes from a reference of Vault's with a field")
	}
	for _, name := range order {
		all = append(all, served[name])
	}
	return all, nil
}

func noVaultReference(what string) error {
	return &settingError{"--serve vault: " + what, "take one with --lease, like DB_PASSWORD=vault://database/creds/ro#password, or name lease and path: --serve vault=LEASE:PATH#FIELD=VARIABLE"}
}

// mountOf is where the KV engine of a path is mounted, or "" if it isn't one's:
// what KV holds never expires.
func mountOf(expires time.Time, path string) string {
	if !expires.IsZero() {
		return ""
	}
	mount, _, _ := strings.Cut(path, "/")
	return mount
}

// serves reports whether a lease's variable would be asked for.
func (o *serveOptions) serves(lease, variable string) bool {
	is := func(name string, variables ...string) bool {
		return (name == "" || name == lease) && slices.Contains(variables, variable)
	}
	if o.aws != nil && is(o.aws.Lease, endpoint.AWSVariables()...) || o.gce != nil && is(o.gce.Lease, endpoint.GCEVariables()...) {
		return true
	}
	for _, v := range o.vault {
		for _, name := range v.Fields {
			if is(v.Lease, name) {
				return true
			}
		}
	}
	return slices.Contains(o.refs, lease) || o.all && strings.HasPrefix(lease, ref.SchemeVault+"://")
}

func completeServe(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
	return []string{serveAWS, serveGCE, serveVault}, cobra.ShellCompDirectiveNoSpace | cobra.ShellCompDirectiveNoFileComp
}

// serve keeps leases fresh that the command's tools can ask for, or for which
// it is started again.
func (d *delivery) serve(leases []api.Lease) error {
	if !d.o.serve.any() && !d.o.watchRestart {
		return nil
	}
	request := d.o.leaseRequest()
	vaults, err := d.o.serve.vaults(request, leases)
	if err != nil {
		return err
	}
	d.mu.Lock() // nothing is fresh before it is known who serves it
	defer d.mu.Unlock()
	d.keeper, err = endpoint.Keep(endpoint.KeepConfig{
		Session: d.session, References: request.References, Leases: leases, OnlyServed: !d.o.watchRestart,
		OnValues: d.fresh, OnFailure: d.stale, Log: d.p.log,
	})
	if err != nil {
		return err
	}
	d.held.keeper.Store(d.keeper)
	if !d.o.serve.any() {
		return nil
	}
	cfg := endpoint.Config{Keeper: d.keeper, AWS: d.o.serve.aws, Vault: vaults, Log: d.p.log}
	if gce := d.o.serve.gce; gce != nil {
		getenv, err := d.lookup(nil)
		if err != nil {
			return err
		}
		one := *gce
		one.Project = cmp.Or(getenv("GOOGLE_CLOUD_PROJECT"), getenv("CLOUDSDK_CORE_PROJECT"))
		cfg.GCE = &one
	}
	if d.server, err = endpoint.Serve(cfg); err != nil {
		return &settingError{err.Error(), "--serve needs a lease that has what the tool asks for: see docs/long-jobs.md"}
	}
	for _, bearer := range d.server.Secrets() {
		d.bearers = append(d.bearers, redact.Secret{Lease: endpointName, Value: bearer})
	}
	d.learn(d.bearers)
	return nil
}

// fresh takes a lease that has new values, which nobody has seen yet. They are
// hidden from now on. Where they aren't served, the command is started again.
func (d *delivery) fresh(l api.Lease) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.learn(secretsOf(l))
	d.leases = slices.DeleteFunc(slices.Clone(d.leases), func(old api.Lease) bool { return old.Name == l.Name })
	d.leases = append(d.leases, l)
	if d.keeper.Serves(l.Name) {
		d.p.log.Debug("lease is leased anew", "lease", l.Name, "expires", l.ExpiresAt)
		return
	}
	d.a.say.note(fmt.Sprintf("lease %q is leased anew: %s", l.Name, promise(l)))
	select {
	case d.again <- struct{}{}:
	default: // it is to be started again already
	}
}

// stale tells of a lease that can't be renewed.
func (d *delivery) stale(l api.Lease, err error) {
	d.a.say.problem(fmt.Sprintf("lease %q isn't leased anew yet, and %s", l.Name, expires(l)), err)
}

// unserve comes when the command has ended.
func (d *delivery) unserve() {
	if d.server != nil {
		if err := d.server.Close(); err != nil {
			d.p.log.Debug("the credential endpoint's end", "error", err)
		}
	}
	if d.keeper != nil {
		d.keeper.Close()
	}
}

// lookup reads the environment that the command would have without what is
// served: leased variables, paths of files, inherited ones. mu is held.
func (d *delivery) lookup(paths []inject.Var) (func(string) string, error) {
	inherited, err := inject.Environ(d.a.env.Environ, nil, d.o.injection(nil))
	if err != nil {
		return nil, err
	}
	env := Env{Environ: inherited}
	return func(name string) string {
		for _, v := range paths {
			if v.Name == name {
				return string(v.Value.Reveal())
			}
		}
		for _, l := range d.leases {
			for _, v := range l.Env {
				if v.Name == name {
					return string(v.Value.Reveal())
				}
			}
		}
		return env.Getenv(name)
	}, nil
}

// endpointFiles are those that tools which ask the endpoint need. gcloud writes
// down what it is told there: so its folder is in memory, unless it was chosen.
func (d *delivery) endpointFiles() ([]planned, error) {
	if d.o.serve.gce == nil {
		return nil, nil
	}
	getenv, err := d.lookup(nil)
	if err != nil || getenv(varGcloud) != "" {
		return nil, err
	}
	return []planned{{
		variable: varGcloud, lease: endpointName, name: gcloudFolder + "/made-by-runenv", folder: gcloudFolder,
		content: secret.FromString("gcloud's folder for as long as the command runs\n"),
	}}, nil
}

// endpointVars is what the endpoint changes in an environment.
func (d *delivery) endpointVars(opt *inject.Options, paths []inject.Var) error {
	if d.server == nil {
		return nil
	}
	getenv, err := d.lookup(paths)
	if err != nil {
		return err
	}
	opt.Withhold = d.server.Withholds()
	for _, v := range d.server.Variables(getenv) {
		opt.Set = append(opt.Set, inject.Var{Name: v.Name, Value: v.Value, Lease: endpointName})
	}
	return nil
}
