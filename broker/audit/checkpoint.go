package audit

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"

	"github.com/runenv/action/broker/store"
)

// maxCheckpointBytes bounds a signed checkpoint, in bytes. One of ours has
// about 300.
const maxCheckpointBytes = 4 << 10

// text is the body of a checkpoint, in the form of C2SP's tlog-checkpoint.
func text(origin string, tree tlog.Tree) string {
	return fmt.Sprintf("%s\n%d\n%s\n", origin, tree.N, tree.Hash)
}

// open checks a signed checkpoint and returns the tree that it speaks of. It
// takes exactly one form of each, so that no byte of one can be changed.
func open(checkpoint string, key note.Verifier) (tlog.Tree, error) {
	if len(checkpoint) > maxCheckpointBytes {
		return tlog.Tree{}, errors.New("a checkpoint of more than 4 KiB")
	}
	n, err := note.Open([]byte(checkpoint), note.VerifierList(key))
	if err != nil {
		return tlog.Tree{}, fmt.Errorf("a checkpoint that isn't signed by %s: %w", key.Name(), err)
	}
	// note.Open passes over signatures that it doesn't know or has seen.
	if len(n.Sigs) != 1 || checkpoint != n.Text+"\n— "+key.Name()+" "+n.Sigs[0].Base64+"\n" {
		return tlog.Tree{}, errors.New("a checkpoint with more than one signature")
	}
	// The spare bits of base64's last digit would be free to choose.
	if _, err := base64.StdEncoding.Strict().DecodeString(n.Sigs[0].Base64); err != nil {
		return tlog.Tree{}, errors.New("a checkpoint whose signature is written in another form")
	}
	lines := strings.Split(n.Text, "\n")
	if len(lines) != 4 || lines[3] != "" || lines[0] != key.Name() {
		return tlog.Tree{}, errors.New("a signed note that is no checkpoint of this log")
	}
	size, err := strconv.ParseInt(lines[1], 10, 64)
	if err != nil || size < 0 {
		return tlog.Tree{}, errors.New("a checkpoint without a size")
	}
	hash, err := tlog.ParseHash(lines[2])
	if err != nil {
		return tlog.Tree{}, errors.New("a checkpoint without a hash")
	}
	tree := tlog.Tree{N: size, Hash: hash}
	if text(lines[0], tree) != n.Text {
		return tlog.Tree{}, errors.New("a checkpoint written in another form")
	}
	return tree, nil
}

// verifier parses a verifier key as [Log.VerifierKey] gives it.
func verifier(key string) (note.Verifier, error) {
	v, err := note.NewVerifier(strings.TrimSpace(key))
	if err != nil {
		return nil, fmt.Errorf("the verifier key: %w", err)
	}
	return v, nil
}

// StoredKey returns the verifier key that stands in the store. Who can change
// the log there can change the key too: it shows accidents, and for more the
// key has to come from elsewhere.
func StoredKey(ctx context.Context, s interface {
	Keys(ctx context.Context) ([]store.Key, error)
}) (string, error) {
	keys, err := s.Keys(ctx)
	if err != nil {
		return "", fmt.Errorf("reading the audit key: %w", err)
	}
	for _, k := range keys {
		if k.Purpose == keyPurpose {
			return string(k.Public), nil
		}
	}
	return "", errors.New("the store holds no audit key: no broker has used it yet")
}
