package client

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"

	"github.com/runenv/action/broker/api"
)

// Explain says what leases would deliver if they were taken, as in
// [Session.LeaseAll], and takes none. A refusal is an [*Error].
func (s *Session) Explain(ctx context.Context, request api.LeaseRequest) (api.Explanation, error) {
	var answer api.Explanation
	request.Leases = append([]string{}, request.Leases...) // [], not null
	body, err := json.Marshal(request)
	if err != nil {
		return answer, fmt.Errorf("encoding the request: %w", err)
	}
	if len(body) > api.MaxRequest {
		return answer, fmt.Errorf("a request of %d bytes: the most are %d", len(body), api.MaxRequest)
	}
	err = s.c.do(ctx, call{
		doing:       "asking what would be leased",
		method:      http.MethodPost,
		path:        api.PathExplain,
		contentType: "application/json",
		body:        func(context.Context) ([]byte, error) { return body, nil },
		authorize:   s.authorize,
		limit:       api.MaxAnswer,
		tryTimeout:  leaseTryTimeout,
	}, &answer)
	for i := range answer.Leases {
		l := &answer.Leases[i]
		for _, text := range []*string{&l.Name, &l.Provider, &l.Revocability} {
			*text = clean(*text)
		}
		for j := range l.Variables {
			l.Variables[j].Name = clean(l.Variables[j].Name)
		}
	}
	return answer, err
}
