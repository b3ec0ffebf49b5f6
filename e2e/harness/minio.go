package harness

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	v4 "github.com/aws/aws-sdk-go-v2/aws/signer/v4"
)

// A MinIOServer is a real MinIO, whose STS verifies web identities: it fetches
// an issuer's keys over the network and refuses what they didn't sign.
type MinIOServer struct {
	Address  string // http://127.0.0.1:…
	Audience string // that a token must have
	// RoleARN is the one role that web identities assume. It may read objects
	// and nothing else.
	RoleARN string
	// RootUser and RootPassword are an administrator's keys.
	RootUser, RootPassword string
	process                *process
}

var minioRole = regexp.MustCompile(`arn:minio:iam:::role/\S+`)

// MinIO starts one that trusts the tokens of the issuer, whose discovery
// document must be up, for the audience. The issuer's certificate is of [CA].
// It needs RUNENV_E2E_MINIO: the path of the program.
func MinIO(tb testing.TB, issuerURL, audience string) *MinIOServer {
	tb.Helper()
	dir := tb.TempDir()
	m := &MinIOServer{
		Address:  fmt.Sprintf("http://127.0.0.1:%d", freePort(tb)),
		Audience: audience, RootUser: "root" + randomWord()[:8], RootPassword: randomWord(),
	}
	if err := os.MkdirAll(filepath.Join(dir, "certs", "CAs"), 0o700); err != nil {
		tb.Fatal(err)
	}
	writeFile(tb, filepath.Join(dir, "certs", "CAs", "ca.crt"), CA(tb))
	cmd := exec.Command(tool(tb, "RUNENV_E2E_MINIO"), "server", "--certs-dir", filepath.Join(dir, "certs"),
		"--address", m.Address[len("http://"):], filepath.Join(dir, "data"))
	cmd.Env = []string{
		"HOME=" + dir, "MINIO_ROOT_USER=" + m.RootUser, "MINIO_ROOT_PASSWORD=" + m.RootPassword,
		"MINIO_BROWSER=off", "MINIO_UPDATE=off",
		"MINIO_IDENTITY_OPENID_CONFIG_URL=" + issuerURL + "/.well-known/openid-configuration",
		"MINIO_IDENTITY_OPENID_CLIENT_ID=" + audience,
		"MINIO_IDENTITY_OPENID_ROLE_POLICY=readonly",
	}
	m.process = start(tb, cmd, new(log))
	m.process.await(tb, "minio", func(ctx context.Context) error {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, m.Address+"/minio/health/ready", http.NoBody)
		if err != nil {
			return err
		}
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			return err
		}
		_ = resp.Body.Close()
		if resp.StatusCode != http.StatusOK {
			return fmt.Errorf("health: %s", resp.Status)
		}
		if m.RoleARN = minioRole.FindString(m.process.log.String()); m.RoleARN == "" {
			return fmt.Errorf("its log names no role yet")
		}
		return nil
	})
	return m
}

// Put makes a bucket (PATH of one segment) or an object in one, as root.
func (m *MinIOServer) Put(tb testing.TB, path string, content []byte) {
	tb.Helper()
	req, err := http.NewRequestWithContext(tb.Context(), http.MethodPut, m.Address+"/"+path, bytes.NewReader(content))
	if err != nil {
		tb.Fatal(err)
	}
	sum := sha256.Sum256(content)
	hash := hex.EncodeToString(sum[:])
	req.Header.Set("X-Amz-Content-Sha256", hash)
	root := aws.Credentials{AccessKeyID: m.RootUser, SecretAccessKey: m.RootPassword}
	if err := v4.NewSigner().SignHTTP(tb.Context(), root, req, hash, "s3", "us-east-1", time.Now()); err != nil {
		tb.Fatal(err)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		tb.Fatal(err)
	}
	_ = resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		tb.Fatalf("putting %s: %s", path, resp.Status)
	}
}
