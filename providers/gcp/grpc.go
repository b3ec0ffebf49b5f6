package gcp

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"net/url"
	"sync/atomic"
	"time"

	"cloud.google.com/go/secretmanager/apiv1/secretmanagerpb"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/encoding"
	"google.golang.org/grpc/encoding/proto"
	"google.golang.org/grpc/mem"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/stats"

	"github.com/runenv/action/providers"
)

const (
	// maxSecretAnswer bounds an answer of Secret Manager, whose payloads have
	// 64 KiB at most; maxMessage what gRPC takes into memory to find that out.
	maxSecretAnswer = 256 << 10
	maxMessage      = 1 << 20
	// idleAfter closes a connection that nobody uses, so that a provider that
	// was opened anew leaves none behind.
	idleAfter = 5 * time.Minute
)

// grpcSide is one connection to Secret Manager, shared by all sessions; each
// call brings its own token.
//
// It is Google's generated client on gRPC alone. The client around it that
// Google's package has besides makes the program 2.8 MB larger and reads the
// environment (measured 2026-11, CGO_ENABLED=0, stripped).
type grpcSide struct {
	conn   *grpc.ClientConn
	client secretmanagerpb.SecretManagerServiceClient
	secure bool
}

// newGRPCSide makes no network call: gRPC connects when it is first used.
func newGRPCSide(endpoint string, tlsConfig *tls.Config) (*grpcSide, error) {
	u, err := url.Parse(endpoint)
	if err != nil {
		return nil, errors.New("`endpoints`: `secretmanager` isn't an origin")
	}
	secure := u.Scheme == "https"
	transport := insecure.NewCredentials()
	port := u.Port()
	if secure {
		transport = credentials.NewTLS(tlsConfig.Clone())
		if port == "" {
			port = "443"
		}
	} else if port == "" {
		port = "80"
	}
	conn, err := grpc.NewClient("dns:///"+net.JoinHostPort(u.Hostname(), port),
		grpc.WithTransportCredentials(transport),
		grpc.WithNoProxy(),
		grpc.WithDisableServiceConfig(),
		grpc.WithDisableRetry(),
		grpc.WithIdleTimeout(idleAfter),
		grpc.WithUserAgent("runenv-broker"),
		grpc.WithStatsHandler(speech{}),
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff:           backoff.Config{BaseDelay: 100 * time.Millisecond, Multiplier: 1.6, Jitter: 0.2, MaxDelay: 3 * time.Second},
			MinConnectTimeout: 5 * time.Second,
		}),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxMessage)),
	)
	if err != nil {
		return nil, errors.New("`endpoints`: `secretmanager` isn't an address that gRPC takes")
	}
	return &grpcSide{conn: conn, client: secretmanagerpb.NewSecretManagerServiceClient(conn), secure: secure}, nil
}

// access reads one version.
func (p *core) access(ctx context.Context, name, bearer, marker string) (*secretmanagerpb.AccessSecretVersionResponse, *callError) {
	var resp *secretmanagerpb.AccessSecretVersionResponse
	err := p.again(ctx, always, func(ctx context.Context) *callError {
		var s said
		// The header by which Google finds the place of what is asked for.
		tctx := metadata.AppendToOutgoingContext(context.WithValue(ctx, saidKey{}, &s), "x-goog-request-params", "name="+url.QueryEscape(name))
		if marker != "" {
			tctx = metadata.AppendToOutgoingContext(tctx, reasonHeader, reason(marker))
		}
		var err error
		resp, err = p.secrets.client.AccessSecretVersion(tctx, &secretmanagerpb.AccessSecretVersionRequest{Name: name},
			grpc.PerRPCCredentials(bearerToken{bearer, p.secrets.secure}),
			grpc.ForceCodecV2(strictCodec{encoding.GetCodecV2(proto.Name), &s}))
		switch {
		case s.unreadable != nil:
			return malformed("reading "+name, s.unreadable.Error(), "", providers.ErrNotIssued)
		case err != nil:
			return failed(ctx, "reading "+name, s.trailer.Load(), err)
		}
		return nil
	})
	return resp, err
}

// bearerToken goes over TLS alone, but for a loopback address.
type bearerToken struct {
	token  string
	secure bool
}

func (b bearerToken) GetRequestMetadata(context.Context, ...string) (map[string]string, error) {
	return map[string]string{"authorization": "Bearer " + b.token}, nil
}

func (b bearerToken) RequireTransportSecurity() bool { return b.secure }

// said notes what gRPC's codes don't tell: whether a server ended its answer
// itself, and whether it could be read.
type said struct {
	trailer    atomic.Bool
	unreadable error
}

type saidKey struct{}

// speech fills in the said of each call.
type speech struct{}

func (speech) TagRPC(ctx context.Context, _ *stats.RPCTagInfo) context.Context { return ctx }

func (speech) HandleRPC(ctx context.Context, s stats.RPCStats) {
	if _, ok := s.(*stats.InTrailer); ok {
		if note, ok := ctx.Value(saidKey{}).(*said); ok {
			note.trailer.Store(true)
		}
	}
}

func (speech) TagConn(ctx context.Context, _ *stats.ConnTagInfo) context.Context { return ctx }

func (speech) HandleConn(context.Context, stats.ConnStats) {}

// strictCodec bounds and notes what one call reads.
type strictCodec struct {
	encoding.CodecV2
	said *said
}

func (c strictCodec) Unmarshal(data mem.BufferSlice, into any) error {
	err := errTooLarge
	if data.Len() <= maxSecretAnswer {
		err = nil
		if c.CodecV2.Unmarshal(data, into) != nil {
			err = errNotSecret
		}
	}
	c.said.unreadable = err
	return err
}
