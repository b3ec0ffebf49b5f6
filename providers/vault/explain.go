package vault

import (
	"fmt"

	"github.com/runenv/action/providers"
)

// explainLogin says what is wrong in the words of RunEnv's and Vault's roles.
func (p *Provider) explainLogin(err *callError, role string) error {
	denied := func(note, hint string) {
		err.note, err.hint, err.classes = note, hint, []error{providers.ErrDenied}
	}
	refused := err.is(providers.ErrDenied) || err.is(providers.ErrNotFound)
	switch mount := p.auth.Mount; p.auth.Method {
	case methodToken:
		if err.is(providers.ErrDenied) {
			err.hint = "the configured token has ended, or lacks the right to update auth/token/create"
		}
	case methodAppRole:
		switch {
		case err.known == noAppRole:
			denied("it takes neither this role id nor this secret id",
				fmt.Sprintf("read the role id again (vault read auth/%s/role/NAME/role-id), and make a new secret id: one may have run out or been used up", mount))
		case refused:
			err.hint = fmt.Sprintf("is the AppRole auth method enabled at auth/%s, in this namespace?", mount)
		}
	case methodKubernetes:
		switch {
		case err.known == noKubernetesRole:
			denied(fmt.Sprintf("its Kubernetes role %q isn't there, or isn't for the broker's service account", p.role(role)),
				fmt.Sprintf("create it: vault write auth/%s/role/%s bound_service_account_names=… bound_service_account_namespaces=… token_policies=… token_ttl=5m", mount, p.role(role)))
		case refused:
			err.hint = fmt.Sprintf("is the Kubernetes auth method enabled at auth/%s, in this namespace, and may Vault review the cluster's tokens?", mount)
		}
	default:
		p.explainJWT(err, role, denied)
	}
	return err
}

// explainJWT is for the methods that trade an ID token.
func (p *Provider) explainJWT(err *callError, role string, denied func(note, hint string)) {
	name, mount, whose := p.role(role), p.auth.Mount, "the broker's"
	subject, issuer := " bound_subject=runenv:role:"+role, "the broker's issuer_url"
	if p.auth.Method == methodCI {
		whose, subject, issuer = "the CI's", " bound_claims=…", "the CI's issuer"
	}
	switch err.known {
	case noRole:
		err.note = fmt.Sprintf("it has no JWT role %q", name)
		err.hint = fmt.Sprintf("create it: vault write auth/%s/role/%s role_type=jwt user_claim=sub%s bound_audiences=%s token_policies=… token_ttl=5m",
			mount, name, subject, p.auth.Audience)
	case badAudience:
		denied(fmt.Sprintf("its JWT role %q takes another audience", name),
			fmt.Sprintf("set bound_audiences=%s on that Vault role, or `audience` here to what it takes", p.auth.Audience))
	case badSubject:
		denied(fmt.Sprintf("its JWT role %q is for another RunEnv role", name),
			fmt.Sprintf("set%s on that Vault role if it may serve this one", subject))
	case badClaims:
		denied(fmt.Sprintf("its JWT role %q doesn't take these claims", name),
			fmt.Sprintf("compare bound_claims of auth/%s/role/%s with the claims of %s token", mount, name, whose))
	case badTime:
		denied(fmt.Sprintf("it finds %s token too old, or too new", whose), "set the clocks of Vault and of this machine: they differ")
	case badAlgorithm:
		denied(fmt.Sprintf("it doesn't take the algorithm of %s token", whose), fmt.Sprintf("name ES256 in jwt_supported_algs of auth/%s/config", mount))
	case badSignature:
		denied(fmt.Sprintf("it doesn't know the key of %s token", whose),
			fmt.Sprintf("let oidc_discovery_url of auth/%s/config be %s, which Vault must be able to reach", mount, issuer))
	case noAuthConfig:
		err.hint = fmt.Sprintf("configure it: vault write auth/%s/config oidc_discovery_url=<%s>", mount, issuer)
	default:
		if err.is(providers.ErrDenied) || err.is(providers.ErrNotFound) {
			err.hint = fmt.Sprintf("is the JWT auth method enabled at auth/%s, in this namespace?", mount)
		}
	}
}
