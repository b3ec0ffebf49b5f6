package api

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"
)

// Bounds of a [Report].
const (
	MaxReport      = 16 << 10 // the request, in bytes
	MaxScanIgnore  = 32       // globs
	maxScanPattern = 256      // one glob, in bytes
	maxScanHits    = 1 << 20
)

// Where a command's file secrets lay.
const (
	FilesMemory = "memory"
	FilesDisk   = "disk"
)

// A Report says what a client did for its session that is to stand in the
// broker's audit log: that file secrets went to a disk, that the leak scan
// passed over something or found something. The broker takes the client's word
// for it. Zero fields say nothing, and a Report without any is refused.
type Report struct {
	Files      string   `json:"files,omitempty"`       // FilesMemory or FilesDisk
	Scan       string   `json:"scan,omitempty"`        // off, warn, fail or scrub
	ScanIgnore []string `json:"scan_ignore,omitempty"` // globs as they were typed
	ScanHits   int      `json:"scan_hits,omitempty"`   // what the scan found, 2^20 standing for more too
}

// Check reports what is wrong with r. Its error holds no part of it.
func (r Report) Check() error {
	switch {
	case r.Files == "" && r.Scan == "" && len(r.ScanIgnore) == 0 && r.ScanHits == 0:
		return errors.New("a report that says nothing")
	case !slices.Contains([]string{"", FilesMemory, FilesDisk}, r.Files):
		return errors.New("files is memory or disk")
	case !slices.Contains([]string{"", "off", "warn", "fail", "scrub"}, r.Scan):
		return errors.New("scan is off, warn, fail or scrub")
	case r.ScanHits < 0 || r.ScanHits > maxScanHits:
		return fmt.Errorf("scan_hits is 0 to %d", maxScanHits)
	case len(r.ScanIgnore) > MaxScanIgnore:
		return fmt.Errorf("scan_ignore has over %d globs", MaxScanIgnore)
	}
	for _, glob := range r.ScanIgnore {
		if glob == "" || len(glob) > maxScanPattern || !utf8.ValidString(glob) || strings.ContainsFunc(glob, func(c rune) bool { return !unicode.IsPrint(c) }) {
			return fmt.Errorf("a glob of scan_ignore isn't 1 to %d bytes of printable text", maxScanPattern)
		}
	}
	return nil
}
