package endpoint

import (
	"errors"
	"fmt"
	"net/http"
	"os"
	"slices"
	"time"

	"github.com/runenv/action/broker/api"
	"github.com/runenv/action/secret"
)

// AWS serves one lease as container credentials, which every AWS SDK asks for
// where its environment names AWS_CONTAINER_CREDENTIALS_FULL_URI.
type AWS struct {
	// Lease has the variables AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and
	// AWS_SESSION_TOKEN, and an end; AWS_ACCOUNT_ID is passed on if it is
	// there. "" means the only lease that does.
	Lease string
}

const (
	awsPath         = "/aws/credentials"
	awsKeyID        = "AWS_ACCESS_KEY_ID"
	awsSecretKey    = "AWS_SECRET_ACCESS_KEY"
	awsSessionToken = "AWS_SESSION_TOKEN"
	awsAccountID    = "AWS_ACCOUNT_ID"
)

// awsElsewhere keeps tools from credentials that aren't the lease's: SDKs read
// the files before they ask here, and some ask the machine's metadata server
// when they get no answer here.
func awsElsewhere() []Variable {
	plain := func(name, value string) Variable { return Variable{Name: name, Value: secret.FromString(value)} }
	return []Variable{
		plain("AWS_SHARED_CREDENTIALS_FILE", os.DevNull), plain("AWS_CONFIG_FILE", os.DevNull), plain("AWS_EC2_METADATA_DISABLED", "true"),
	}
}

// AWSVariables are those that a lease must have to be served.
func AWSVariables() []string { return []string{awsKeyID, awsSecretKey, awsSessionToken} }

type awsService struct {
	lease  *kept
	bearer secret.Value
}

func openAWS(k *Keeper, cfg AWS) (*awsService, error) {
	needs := AWSVariables()
	l, err := k.fits("AWS", cfg.Lease, func(lease api.Lease) error { return lacks(lease, needs...) })
	if err != nil {
		return nil, err
	}
	if l.now().ExpiresAt.IsZero() {
		return nil, fmt.Errorf("AWS: lease %q never expires: leave it in the command's environment", l.name)
	}
	l.require(needs...)
	return &awsService{l, newBearer()}, nil
}

func (s *awsService) answer(r *http.Request) answer {
	switch {
	case r.Method != http.MethodGet:
		return awsError(http.StatusMethodNotAllowed, "MethodNotAllowed", "only GET is served")
	case !authorized(r.Header.Values("Authorization"), s.bearer):
		return awsError(http.StatusForbidden, "AccessDenied", "the Authorization header isn't AWS_CONTAINER_AUTHORIZATION_TOKEN as runenv set it")
	}
	lease, _, err := s.lease.current(r.Context())
	if err != nil {
		return awsError(http.StatusServiceUnavailable, "ExpiredToken", err.Error())
	}
	text := func(name string) string {
		value, _ := variable(lease, name)
		return string(value.Reveal())
	}
	return answer{kind: kindAWS, status: http.StatusOK, contentType: jsonType, body: encode(struct {
		AccessKeyID     string `json:"AccessKeyId"`
		SecretAccessKey string
		Token           string
		Expiration      string
		AccountID       string `json:"AccountId,omitempty"`
	}{text(awsKeyID), text(awsSecretKey), text(awsSessionToken), lease.ExpiresAt.UTC().Format(time.RFC3339), text(awsAccountID)})}
}

func awsError(status int, code, message string) answer {
	return answer{kindAWS, status, jsonType, encode(map[string]string{"code": code, "message": "runenv: " + message}), message}
}

// fits finds the lease of a name, or with no name the only one that will do.
func (k *Keeper) fits(what, name string, check func(api.Lease) error) (*kept, error) {
	if name != "" {
		l := k.lease(name)
		if l == nil {
			return nil, fmt.Errorf("%s: no lease is named %q", what, name)
		}
		if err := check(l.now()); err != nil {
			return nil, fmt.Errorf("%s: lease %q: %w", what, name, err)
		}
		return l, nil
	}
	var fit []*kept
	for _, l := range k.leases {
		if check(l.now()) == nil {
			fit = append(fit, l)
		}
	}
	switch len(fit) {
	case 0:
		return nil, fmt.Errorf("%s: no lease has its variables", what)
	case 1:
		return fit[0], nil
	}
	return nil, fmt.Errorf("%s: leases %q and %q both have its variables: name one", what, fit[0].name, fit[1].name)
}

// lacks says which of the variables a lease hasn't.
func lacks(lease api.Lease, names ...string) error {
	i := slices.IndexFunc(names, func(name string) bool {
		value, ok := variable(lease, name)
		return !ok || value.Len() == 0
	})
	if i < 0 {
		return nil
	}
	if slices.ContainsFunc(lease.Files, func(f api.File) bool { return f.Variable == names[i] }) {
		return fmt.Errorf("its variable %s is a file, which can't be served", names[i])
	}
	return errors.New("it has no variable " + names[i])
}
