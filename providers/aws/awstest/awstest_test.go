package awstest_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net/http"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/service/ssm"
	"github.com/aws/smithy-go"

	"github.com/runenv/action/providers/aws/awstest"
)

type change func(*http.Request)

func (c change) RoundTrip(r *http.Request) (*http.Response, error) {
	r = r.Clone(r.Context())
	c(r)
	return http.DefaultTransport.RoundTrip(r)
}

// TestSignaturesAreChecked: what isn't signed as it came is refused.
func TestSignaturesAreChecked(t *testing.T) {
	t.Parallel()
	s := awstest.New(t)
	s.PutParameter("/a", "String", "one")
	s.PutParameter("/b", "String", "two")
	id, key := s.User("u")
	body := func(text string) change {
		return func(r *http.Request) {
			r.Body, r.ContentLength = io.NopCloser(bytes.NewReader([]byte(text))), int64(len(text))
		}
	}
	tests := []struct {
		name    string
		id, key string
		change  change
		late    time.Duration
		want    string
	}{
		{"as it is", id, key, func(*http.Request) {}, 0, ""},
		{"another key", id, "x" + key, func(*http.Request) {}, 0, "InvalidSignatureException"},
		{"an unknown id", "AKIAX", key, func(*http.Request) {}, 0, "UnrecognizedClientException"},
		{"another body", id, key, body(`{"Name":"/b","Foo":"123456789012"}`), 0, "InvalidSignatureException"},
		{"another operation", id, key, func(r *http.Request) { r.Header.Set("X-Amz-Target", "secretsmanager.GetSecretValue") }, 0, "InvalidSignatureException"},
		{"another path", id, key, func(r *http.Request) { r.URL.Path = "/x" }, 0, "InvalidSignatureException"},
		{"another token", id, key, func(r *http.Request) { r.Header.Set("X-Amz-Security-Token", "x") }, 0, "UnrecognizedClientException"},
		{"unsigned", id, key, func(r *http.Request) { r.Header.Del("Authorization") }, 0, "MissingAuthenticationToken"},
		{"late", id, key, func(*http.Request) {}, 6 * time.Minute, "InvalidSignatureException"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s.Now = func() time.Time { return time.Now().Add(tt.late) }
			client := ssm.New(ssm.Options{
				Region: "eu-west-1", Credentials: credentials.NewStaticCredentialsProvider(tt.id, tt.key, ""), BaseEndpoint: &s.URL,
				HTTPClient: &http.Client{Transport: tt.change}, Retryer: aws.NopRetryer{},
			})
			_, err := client.GetParameter(context.Background(), &ssm.GetParameterInput{Name: aws.String("/a")})
			code := ""
			if api, ok := errors.AsType[smithy.APIError](err); ok {
				code = api.ErrorCode()
			}
			if code != tt.want || (err == nil) != (tt.want == "") {
				t.Errorf("GetParameter = %v, want %q", err, tt.want)
			}
		})
	}
}
