package vault

import (
	"crypto/tls"
	"errors"
	"fmt"
	"os"
	"regexp"

	"github.com/runenv/action/providers/endpoint"
)

// maxClientFileBytes bounds `client_cert`, with its chain, and `client_key`.
const maxClientFileBytes = 64 << 10

var hostName = regexp.MustCompile(`^[A-Za-z0-9]([A-Za-z0-9.-]{0,251}[A-Za-z0-9])?$`)

// tls is how the provider speaks TLS.
func (k *keys) tls() (*tls.Config, error) {
	cfg := &tls.Config{MinVersion: tls.VersionTLS12}
	var err error
	if cfg.RootCAs, err = endpoint.Roots(k.CAFile); err != nil {
		return nil, err
	}
	if k.TLSServerName != "" {
		if !hostName.MatchString(k.TLSServerName) {
			return nil, errors.New("`tls_server_name` isn't the name of a host, such as vault.example.com")
		}
		cfg.ServerName = k.TLSServerName
	}
	if (k.ClientCert == "") != (k.ClientKey == "") {
		return nil, errors.New("`client_cert` and `client_key` belong together")
	}
	if k.ClientCert == "" {
		return cfg, nil
	}
	// Read for each connection: such certificates are short-lived, and whoever
	// renews the files needn't tell the broker.
	read := func() (*tls.Certificate, error) { return readPair(k.ClientCert, k.ClientKey) }
	if _, err := read(); err != nil {
		return nil, err
	}
	cfg.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return read() }
	return cfg, nil
}

func readPair(certFile, keyFile string) (*tls.Certificate, error) {
	cert, err := readFile("client_cert", certFile, maxClientFileBytes)
	if err != nil {
		return nil, err
	}
	key, err := readFile("client_key", keyFile, maxClientFileBytes)
	if err != nil {
		return nil, err
	}
	defer clear(key)
	pair, err := tls.X509KeyPair(cert, key)
	if err != nil {
		// Its text may describe what it found in the key's file.
		return nil, fmt.Errorf("`client_cert` %s and `client_key` %s aren't a certificate and its key in PEM", certFile, keyFile)
	}
	return &pair, nil
}

// readFile reads a file that a key names, up to limit bytes.
func readFile(key, path string, limit int64) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("`%s`: %w", key, err)
	}
	defer func() { _ = f.Close() }()
	b, err := readBounded(f, limit)
	if err != nil {
		return nil, fmt.Errorf("`%s` %s: %w", key, path, err)
	}
	return b, nil
}
