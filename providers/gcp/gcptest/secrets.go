package gcptest

import (
	"context"
	"hash/crc32"
	"slices"
	"strconv"
	"strings"

	"cloud.google.com/go/secretmanager/apiv1/secretmanagerpb"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
)

func first(values []string) string {
	if len(values) == 0 {
		return ""
	}
	return values[0]
}

// AccessSecretVersion is Secret Manager's.
func (s *Server) AccessSecretVersion(ctx context.Context, req *secretmanagerpb.AccessSecretVersionRequest) (*secretmanagerpb.AccessSecretVersionResponse, error) {
	md, _ := metadata.FromIncomingContext(ctx)
	caller, ok := s.caller(first(md.Get("authorization")))
	if !ok {
		return nil, refusal(codes.Unauthenticated, "ACCESS_TOKEN_EXPIRED", "Request had invalid authentication credentials.")
	}
	name, version, ok := strings.Cut(req.GetName(), "/versions/")
	if !ok || first(md.Get("x-goog-request-params")) == "" {
		return nil, refusal(codes.InvalidArgument, "", "The name or the routing header is missing.")
	}
	secret, ok := s.Secrets[name]
	if !ok || !slices.Contains(secret.Readers, caller) {
		if ok {
			return nil, refusal(codes.PermissionDenied, "IAM_PERMISSION_DENIED", "Permission 'secretmanager.versions.access' denied for resource (or it may not exist).")
		}
		return nil, refusal(codes.NotFound, "", "Secret ["+name+"] not found or has no versions.")
	}
	n, err := strconv.Atoi(version)
	if alias := secret.Aliases[version]; err != nil {
		n = alias
	}
	if version == "latest" {
		n = len(secret.Versions)
	}
	if n < 1 || n > len(secret.Versions) {
		return nil, refusal(codes.NotFound, "", "Secret Version ["+req.GetName()+"] not found.")
	}
	data := secret.Versions[n-1]
	if data == nil {
		return nil, refusal(codes.FailedPrecondition, "", "Secret Version ["+req.GetName()+"] is in DISABLED state.")
	}
	parts := strings.Split(name, "/")
	if number := s.ProjectNumbers[parts[1]]; number != "" {
		parts[1] = number
	}
	crc := int64(crc32.Checksum(data, crc32.MakeTable(crc32.Castagnoli)))
	resp := &secretmanagerpb.AccessSecretVersionResponse{
		Name:    strings.Join(parts, "/") + "/versions/" + strconv.Itoa(n),
		Payload: &secretmanagerpb.SecretPayload{Data: slices.Clone(data), DataCrc32C: &crc},
	}
	s.mu.Lock()
	tamper := s.tamper
	s.mu.Unlock()
	if tamper != nil {
		tamper(resp)
	}
	return resp, nil
}

func refusal(code codes.Code, reason, message string) error {
	st := status.New(code, message+" "+Echo)
	if reason != "" {
		if detailed, err := st.WithDetails(&errdetails.ErrorInfo{Reason: reason, Domain: "googleapis.com"}); err == nil {
			st = detailed
		}
	}
	return st.Err()
}
