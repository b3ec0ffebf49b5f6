package audit

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strconv"

	"golang.org/x/mod/sumdb/tlog"

	"github.com/runenv/action/broker/store"
)

// maxLineBytes bounds a line of an export: an entry, in which the store may
// have put an id, and what is around it.
const maxLineBytes = maxBodyBytes + 1024

// trailer is the last line of an export.
type trailer struct {
	Checkpoint string `json:"checkpoint"`
}

// Export writes the log as JSON lines: an object with index, hash and entry
// for each entry under the latest checkpoint, then one with that checkpoint.
// [VerifyExport] needs no more than this and the verifier key.
func Export(ctx context.Context, s store.AuditStore, w io.Writer) error {
	signed, size, err := s.Checkpoint(ctx)
	if err != nil {
		return fmt.Errorf("reading the checkpoint: %w", err)
	}
	var out []byte
	for index := int64(0); index < size; {
		page, err := s.Entries(ctx, index, int(min(pageSize, size-index)))
		if err != nil {
			return fmt.Errorf("reading entries from %d: %w", index, err)
		}
		if len(page) == 0 || page[0].Index != index {
			return &Altered{index, "is missing"}
		}
		out = out[:0]
		for _, e := range page {
			if bytes.ContainsAny(e.Body, "\r\n") || !json.Valid(e.Body) {
				return &Altered{e.Index, "isn't a line of JSON"}
			}
			out = append(head(out, e.Index, tlog.RecordHash(e.Body)), e.Body...)
			out = append(out, "}\n"...)
			index = e.Index + 1
		}
		if _, err := w.Write(out); err != nil {
			return fmt.Errorf("writing the export: %w", err)
		}
	}
	last, err := encode(trailer{string(signed)})
	if err != nil {
		return fmt.Errorf("writing the export: %w", err)
	}
	if _, err := w.Write(append(last, '\n')); err != nil {
		return fmt.Errorf("writing the export: %w", err)
	}
	return nil
}

// head appends what stands before an entry's body. There is one way to write
// it, and the reader takes no other.
func head(to []byte, index int64, hash tlog.Hash) []byte {
	to = append(to, `{"index":`...)
	to = strconv.AppendInt(to, index, 10)
	to = append(to, `,"hash":"`...)
	to = append(to, hash.String()...)
	return append(to, `","entry":`...)
}

// VerifyExport is [Verify] for what [Export] wrote. It reads r to its end, a
// line at a time.
func VerifyExport(ctx context.Context, r io.Reader, key string, known ...string) (Report, error) {
	c, err := newCheck(key, known)
	if err != nil {
		return Report{}, err
	}
	lines := bufio.NewReaderSize(r, maxLineBytes)
	var expected []byte
	for {
		if err := ctx.Err(); err != nil {
			return Report{}, err
		}
		line, err := readLine(lines)
		if err != nil {
			return Report{}, fmt.Errorf("reading line %d: %w", c.tree.size+1, err)
		}
		if !bytes.HasPrefix(line, []byte(`{"index":`)) {
			return c.last(line, lines)
		}
		body, ok := bodyOf(line)
		if !ok {
			return Report{}, &Altered{c.tree.size, "isn't in the form of an export"}
		}
		expected = head(expected[:0], c.tree.size, tlog.RecordHash(body))
		if !bytes.Equal(line[:len(line)-len(body)-1], expected) {
			return Report{}, &Altered{c.tree.size, "isn't where it was, or isn't what its hash says"}
		}
		if _, err := c.entry(body, func(int, int64, []tlog.Hash) error { return nil }); err != nil {
			return Report{}, err
		}
	}
}

// last checks the trailer, after which nothing may come.
func (c *check) last(line []byte, rest *bufio.Reader) (Report, error) {
	var t trailer
	if err := json.Unmarshal(line, &t); err != nil {
		return Report{}, &Altered{c.tree.size, "isn't in the form of an export"}
	}
	if again, err := encode(t); err != nil || !bytes.Equal(again, line) {
		return Report{}, &Altered{-1, "its checkpoint isn't in the form of an export"}
	}
	if _, err := rest.ReadByte(); !errors.Is(err, io.EOF) {
		return Report{}, &Altered{-1, "something stands after its checkpoint"}
	}
	return c.finish(t.Checkpoint)
}

// readLine returns the next line without its newline, which it must have. It
// is overwritten by the next.
func readLine(r *bufio.Reader) ([]byte, error) {
	line, err := r.ReadSlice('\n')
	switch {
	case errors.Is(err, bufio.ErrBufferFull):
		return nil, fmt.Errorf("longer than %d bytes", maxLineBytes)
	case errors.Is(err, io.EOF):
		return nil, errors.New("the export ends before its checkpoint")
	case err != nil:
		return nil, err
	}
	return line[:len(line)-1], nil
}

// bodyOf returns the entry in a line.
func bodyOf(line []byte) ([]byte, bool) {
	_, body, ok := bytes.Cut(line, []byte(`,"entry":`))
	if !ok || !bytes.HasSuffix(body, []byte("}")) {
		return nil, false
	}
	return body[:len(body)-1], true
}
