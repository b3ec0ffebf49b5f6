package identity

import (
	"context"
	"testing"

	"github.com/runenv/action/secret"
)

// BenchmarkVerify is what one exchange spends on the CI's token, keys at hand.
func BenchmarkVerify(b *testing.B) {
	for _, alg := range []string{"RS256", "ES256"} {
		b.Run(alg, func(b *testing.B) {
			w := newWorld(b, "github")
			w.Rotate(alg)
			token := secret.FromString(w.Sign(w.GitHub(brokerURL)))
			if err := w.verifier.Ready(context.Background()); err != nil {
				b.Fatal(err)
			}
			b.ReportAllocs()
			for b.Loop() {
				if _, err := w.verifier.Verify(context.Background(), token); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// BenchmarkVerifyForged is what a stranger can make us spend.
func BenchmarkVerifyForged(b *testing.B) {
	w := newWorld(b, "github")
	good := w.Sign(w.GitHub(brokerURL))
	w.wantReason(b, good, "")
	for name, token := range map[string]string{
		"signature": good[:len(good)-8] + "AAAAAAAA",
		"issuer":    w.Sign(w.GitHub(brokerURL, object{"iss": "https://evil.example.com"})),
		"key":       w.SignWith(object{"kid": "nowhere"}, w.GitHub(brokerURL)),
	} {
		b.Run(name, func(b *testing.B) {
			token := secret.FromString(token)
			b.ReportAllocs()
			for b.Loop() {
				if _, err := w.verifier.Verify(context.Background(), token); err == nil {
					b.Fatal("a forged token was accepted")
				}
			}
		})
	}
}
