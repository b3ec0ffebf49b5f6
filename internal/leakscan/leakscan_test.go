package leakscan_test

import (
	"archive/tar"
	"archive/zip"
	"bytes"
	"compress/gzip"
	"compress/zlib"
	"context"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/runenv/action/internal/leakscan"
	"github.com/runenv/action/internal/needle"
	"github.com/runenv/action/secret"
)

const value = "s3cr3t-Value/of+db=readonly"

// needles are of leases lease-0, lease-1 and so on.
func needles(values ...string) *needle.Set {
	var s []needle.Secret
	for i, v := range values {
		s = append(s, needle.Secret{Lease: fmt.Sprintf("lease-%d", i), Value: secret.FromString(v)})
	}
	return needle.New(s)
}

func write(tb testing.TB, path string, content []byte) {
	tb.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		tb.Fatal(err)
	}
	if err := os.WriteFile(path, content, 0o600); err != nil {
		tb.Fatal(err)
	}
}

// tree makes files in a folder of the test's own.
func tree(tb testing.TB, files map[string]string) string {
	tb.Helper()
	dir := tb.TempDir()
	for name, content := range files {
		write(tb, filepath.Join(dir, filepath.FromSlash(name)), []byte(content))
	}
	return dir
}

func search(tb testing.TB, cfg leakscan.Config) *leakscan.Report {
	tb.Helper()
	if cfg.Needles == nil {
		cfg.Needles = needles(value)
	}
	r, err := leakscan.Run(context.Background(), cfg)
	if err != nil {
		tb.Fatal(err)
	}
	return r
}

// told are the hits in short, with paths below dir.
func told(r *leakscan.Report, dir string) []string {
	out := []string{}
	for _, h := range r.Hits {
		path := h.Path
		if rel, err := filepath.Rel(dir, h.Path); err == nil {
			path = filepath.ToSlash(rel)
		}
		if h.Member != "" {
			path += "!/" + h.Member
		}
		out = append(out, fmt.Sprintf("%s %s %s@%d x%d", path, h.Where, h.Lease, h.Offset, h.Count))
	}
	return out
}

func gaps(r *leakscan.Report, dir string) []string {
	out := []string{}
	for _, g := range r.Gaps {
		path := g.Path
		if rel, err := filepath.Rel(dir, g.Path); err == nil {
			path = filepath.ToSlash(rel)
		}
		if g.Member != "" {
			path += "!/" + g.Member
		}
		out = append(out, path+": "+g.Reason)
	}
	return out
}

func gzipped(content string) string {
	var b bytes.Buffer
	w := gzip.NewWriter(&b)
	if _, err := w.Write([]byte(content)); err != nil {
		panic(err)
	}
	if err := w.Close(); err != nil {
		panic(err)
	}
	return b.String()
}

func zlibbed(content string) string {
	var b bytes.Buffer
	w := zlib.NewWriter(&b)
	if _, err := w.Write([]byte(content)); err != nil {
		panic(err)
	}
	if err := w.Close(); err != nil {
		panic(err)
	}
	return b.String()
}

func tarred(members ...string) string {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for i := 0; i < len(members); i += 2 {
		if err := w.WriteHeader(&tar.Header{Name: members[i], Mode: 0o600, Size: int64(len(members[i+1]))}); err != nil {
			panic(err)
		}
		if _, err := w.Write([]byte(members[i+1])); err != nil {
			panic(err)
		}
	}
	if err := w.Close(); err != nil {
		panic(err)
	}
	return b.String()
}

func zipped(method uint16, members ...string) string {
	var b bytes.Buffer
	w := zip.NewWriter(&b)
	for i := 0; i < len(members); i += 2 {
		f, err := w.CreateHeader(&zip.FileHeader{Name: members[i], Method: method})
		if err != nil {
			panic(err)
		}
		if _, err := f.Write([]byte(members[i+1])); err != nil {
			panic(err)
		}
	}
	if err := w.Close(); err != nil {
		panic(err)
	}
	return b.String()
}

// zippedRaw has sizes in its members' heads, as the zip program writes them.
func zippedRaw(name, content string) string {
	var b bytes.Buffer
	w := zip.NewWriter(&b)
	f, err := w.CreateRaw(&zip.FileHeader{Name: name, CompressedSize64: uint64(len(content)), UncompressedSize64: uint64(len(content))})
	if err != nil {
		panic(err)
	}
	if _, err := f.Write([]byte(content)); err != nil {
		panic(err)
	}
	if err := w.Close(); err != nil {
		panic(err)
	}
	return b.String()
}

func TestFindsWhereverAValueMayLie(t *testing.T) {
	t.Parallel()
	b64 := base64.StdEncoding.EncodeToString([]byte("user:" + value + ":x"))
	for _, tt := range []struct {
		name    string
		file    string
		content string
		want    []string
	}{
		{"nothing", "a", "nothing", []string{}},
		{"an empty file", "a", "", []string{}},
		{"the value", "a", "x=" + value + "\n", []string{"a content lease-0@2 x1"}},
		{"twice", "d/a", value + " " + value, []string{"d/a content lease-0@0 x2"}},
		{"hex", "a", hex.EncodeToString([]byte(value)), []string{"a content lease-0@0 x1"}},
		{"base64", "a", b64, []string{"a content lease-0@7 x1"}},
		{"all but its last byte", "a", value[:len(value)-1], []string{}},
		{".git", ".git/config", "url=https://x:" + value + "@host", []string{".git/config content lease-0@14 x1"}},
		{"an object of git", ".git/objects/3f/a0", zlibbed("blob 30\x00" + value), []string{".git/objects/3f/a0!/a0 content lease-0@8 x1"}},
		{"text that begins like zlib", "a", "x^" + value, []string{"a content lease-0@2 x1"}},
		{"gzip", "l/app.log.gz", gzipped("line\n" + value), []string{"l/app.log.gz!/app.log content lease-0@5 x1"}},
		{"gzip in two members", "a.gz", gzipped(value[:9]) + gzipped(value[9:]), []string{"a.gz!/a content lease-0@0 x1"}},
		{"behind a gzip", "a.gz", gzipped("x") + value, []string{"a.gz content lease-0@" + fmt.Sprint(len(gzipped("x"))) + " x1"}},
		{"tar", "a.tar", tarred("d/b", "12"+value), []string{"a.tar!/d/b content lease-0@2 x1"}},
		{"tar.gz", "a.tgz", gzipped(tarred("b", value)), []string{"a.tgz!/a.tar!/b content lease-0@0 x1"}},
		{"zip", "a.zip", zipped(zip.Deflate, "c", "none", "d/b", value), []string{"a.zip!/d/b content lease-0@0 x1"}},
		{"zip, stored as a stream", "a.zip", zipped(zip.Store, "b", value), []string{"a.zip content lease-0@31 x1"}},
		{"zip, stored", "a.zip", zippedRaw("b", gzipped(value)), []string{"a.zip!/b!/b content lease-0@0 x1"}},
		{"a jar in a tar.gz", "a.tar.gz", gzipped(tarred("lib/x.jar", zipped(zip.Deflate, "META-INF/m", value))),
			[]string{"a.tar.gz!/a.tar!/lib/x.jar!/META-INF/m content lease-0@0 x1"}},
		{"a program with a zip behind it", "a.pex", "#!/usr/bin/python\n" + zipped(zip.Deflate, "b", value), []string{"a.pex!/b content lease-0@0 x1"}},
		{"a zip with damage in front", "a.zip", "PK\x03\x04garbage" + zipped(zip.Deflate, "b", value), []string{"a.zip!/b content lease-0@0 x1"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			dir := tree(t, map[string]string{tt.file: tt.content})
			r := search(t, leakscan.Config{Paths: []string{dir}})
			if diff := cmp.Diff(tt.want, told(r, dir)); diff != "" {
				t.Errorf("hits (-want +got):\n%s", diff)
			}
		})
	}
}

func TestFindsValuesInNames(t *testing.T) {
	t.Parallel()
	plain := "s3cr3t-value-of-db"
	dir := tree(t, map[string]string{
		"a-" + plain + "-b": "", "d/" + plain + "/below": "", "a.tar": tarred(plain+".txt", "x"),
		"split/s3cr3t": "", "a.zip": zipped(zip.Deflate, "d/"+plain, "x"),
	})
	r := search(t, leakscan.Config{Paths: []string{dir}, Needles: needles(plain, "split/s3cr3t")})
	want := []string{
		"a-[REDACTED:lease-0]-b name lease-0@2 x1",
		"a.tar!/[REDACTED:lease-0].txt name lease-0@0 x1",
		"a.zip!/d/[REDACTED:lease-0] name lease-0@2 x1",
		"d/[REDACTED:lease-0] name lease-0@2 x1",
		"[REDACTED:lease-1] name lease-1@0 x1",
	}
	slices.Sort(want)
	got := told(r, dir)
	slices.Sort(got)
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("hits (-want +got):\n%s", diff)
	}
}

// P2, T35: whoever sees a report learns no value from it, and no more of one
// than that the whole of it was there.
func TestT35ReportTellsNoValue(t *testing.T) {
	t.Parallel()
	plain := "s3cr3t-value-of-db"
	dir := tree(t, map[string]string{
		plain: plain, "e-" + hex.EncodeToString([]byte(plain)): "", plain + ".gz": "\x1f\x8b\x08broken",
		"a.tar.gz": gzipped(tarred(plain, plain)), "head": plain[:len(plain)-1], "tail": plain[1:], "short": "12345",
	})
	r := search(t, leakscan.Config{Paths: []string{dir}, Needles: needles(plain, "12345")})
	text, err := json.Marshal(r)
	if err != nil {
		t.Fatal(err)
	}
	for _, bad := range []string{plain, hex.EncodeToString([]byte(plain))} {
		if bytes.Contains(text, []byte(bad)) {
			t.Errorf("the report has the value in it: %s", text)
		}
	}
	for _, h := range r.Hits {
		if strings.HasSuffix(h.Path, "head") || strings.HasSuffix(h.Path, "tail") || strings.HasSuffix(h.Path, "short") {
			t.Errorf("a part of a value, or a short one, is told of: %+v", h)
		}
	}
	if len(r.Hits) == 0 || len(r.Gaps) == 0 {
		t.Errorf("%d hits and %d gaps, want some of each", len(r.Hits), len(r.Gaps))
	}
}

// T27: a name can't speak to a terminal or to the runner.
func TestT27NamesCannotSpeak(t *testing.T) {
	t.Parallel()
	dir := tree(t, map[string]string{"a.tar": tarred("a\n::add-mask::x\r\x1b[2J\u202e\xff", value)})
	r := search(t, leakscan.Config{Paths: []string{dir}})
	want := []string{`a.tar!/a\x0a::add-mask::x\x0d\x1b[2J\xe2\x80\xae\xff content lease-0@0 x1`}
	if diff := cmp.Diff(want, told(r, dir)); diff != "" {
		t.Errorf("hits (-want +got):\n%s", diff)
	}
}

// T35: a name that is shown in part shows no part of a value; thousands of long
// ones fit into memory.
func TestT35LongNamesAreShortened(t *testing.T) {
	t.Parallel()
	var members []string
	for i := range 40 {
		members = append(members, strings.Repeat("a", 480+i)+value+strings.Repeat("b", 60<<10), "x")
	}
	dir := tree(t, map[string]string{"a.tar": tarred(members...), "a.zip": zipped(zip.Store, members...)})
	r := search(t, leakscan.Config{Paths: []string{dir}, Needles: needles(value)})
	if len(r.Hits) < 80 {
		t.Fatalf("%d hits, want one for each member", len(r.Hits))
	}
	for _, h := range r.Hits {
		if len(h.Member) > 1<<10 {
			t.Fatalf("a name of %d bytes is shown", len(h.Member))
		}
		for n := 6; n <= len(value); n++ {
			if strings.Contains(h.Member, value[:n]) || strings.Contains(h.Member, value[len(value)-n:]) {
				t.Fatalf("a part of the value is shown: %q", h.Member)
			}
		}
	}
}

func TestPathsMayBeFilesAndNamedTwice(t *testing.T) {
	t.Parallel()
	dir := tree(t, map[string]string{"a": value, "d/b": value})
	r := search(t, leakscan.Config{Paths: []string{
		dir, dir, filepath.Join(dir, "d"), filepath.Join(dir, "none"),
	}})
	if diff := cmp.Diff([]string{"a content lease-0@0 x1", "d/b content lease-0@0 x1"}, told(r, dir)); diff != "" {
		t.Errorf("hits (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff([]string{"none: there is no such file or folder"}, gaps(r, dir)); diff != "" {
		t.Errorf("gaps (-want +got):\n%s", diff)
	}
	r = search(t, leakscan.Config{Paths: []string{filepath.Join(dir, "a")}, Ignore: []string{"**"}})
	if diff := cmp.Diff([]string{"a content lease-0@0 x1"}, told(r, dir)); diff != "" {
		t.Errorf("hits of a file that was named (-want +got):\n%s", diff)
	}
}

func TestIgnore(t *testing.T) {
	t.Parallel()
	files := map[string]string{"tfplan": value, "infra/tfplan": value, "infra/deep/x.plan": value, "keep/tfplan.txt": value}
	for _, tt := range []struct {
		globs   []string
		want    []string
		ignored int64
	}{
		{nil, []string{"infra/deep/x.plan", "infra/tfplan", "keep/tfplan.txt", "tfplan"}, 0},
		{[]string{"tfplan"}, []string{"infra/deep/x.plan", "infra/tfplan", "keep/tfplan.txt"}, 1},
		{[]string{"**/tfplan"}, []string{"infra/deep/x.plan", "keep/tfplan.txt"}, 2},
		{[]string{"infra/*"}, []string{"keep/tfplan.txt", "tfplan"}, 2},
		{[]string{"./infra/"}, []string{"keep/tfplan.txt", "tfplan"}, 1},
		{[]string{"infra/**/x.plan", "keep/tf?lan.[a-z]xt"}, []string{"infra/tfplan", "tfplan"}, 2},
		{[]string{"*/x.plan", "*"}, []string{}, 3},
	} {
		dir := tree(t, files)
		r := search(t, leakscan.Config{Paths: []string{dir}, Ignore: tt.globs})
		got := []string{}
		for _, h := range told(r, dir) {
			got = append(got, strings.Fields(h)[0])
		}
		if diff := cmp.Diff(tt.want, got); diff != "" || r.Ignored != tt.ignored {
			t.Errorf("Ignore %q: %d ignored, want %d; hits (-want +got):\n%s", tt.globs, r.Ignored, tt.ignored, diff)
		}
	}
	for _, bad := range []string{"", "/abs", "a//b", "../a", "a/[", ".", "**/a/**/b/**/c/**/d/**"} {
		if _, err := leakscan.Run(t.Context(), leakscan.Config{Needles: needles(value), Ignore: []string{bad}}); err == nil {
			t.Errorf("pattern %q is taken", bad)
		}
	}
}

func TestReportIsBoundedAndInOrder(t *testing.T) {
	t.Parallel()
	files := map[string]string{}
	for i := range 1500 {
		files[fmt.Sprintf("d%d/f%04d", i%7, i)] = value
	}
	dir := tree(t, files)
	r := search(t, leakscan.Config{Paths: []string{dir}})
	if len(r.Hits) != 1000 || r.MoreHits != 500 {
		t.Fatalf("%d hits and %d more, want 1000 and 500", len(r.Hits), r.MoreHits)
	}
	again := search(t, leakscan.Config{Paths: []string{dir}})
	if diff := cmp.Diff(r, again); diff != "" {
		t.Errorf("another run reports something else (-first +second):\n%s", diff)
	}
	if !slices.IsSortedFunc(r.Hits, func(a, b leakscan.Hit) int { return strings.Compare(a.Path, b.Path) }) {
		t.Error("the hits aren't in order")
	}
}

func TestEndsWithItsContext(t *testing.T) {
	t.Parallel()
	dir := tree(t, map[string]string{"d/a": value})
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := leakscan.Run(ctx, leakscan.Config{Needles: needles(value), Paths: []string{dir}}); !errors.Is(err, context.Canceled) {
		t.Errorf("Run = %v, want %v", err, context.Canceled)
	}
}

// P1: what is unpacked goes nowhere, and nothing is left of a search.
func TestP1SearchWritesNothing(t *testing.T) {
	t.Parallel()
	dir := tree(t, map[string]string{"a.tar.gz": gzipped(tarred("b", value)), "a": value, "d/b.zip": zipped(zip.Deflate, "c", value)})
	list := func() map[string]string {
		out := map[string]string{}
		err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
			if err != nil || d.IsDir() {
				return err
			}
			text, err := os.ReadFile(path)
			info, _ := d.Info()
			out[path] = info.ModTime().String() + string(text)
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		return out
	}
	before := list()
	start := leakscan.Begin(dir)
	search(t, leakscan.Config{Paths: []string{dir}, Since: start})
	search(t, leakscan.Config{Paths: []string{dir}})
	if diff := cmp.Diff(before, list()); diff != "" {
		t.Errorf("the tree changed (-before +after):\n%s", diff)
	}
}

func TestScrub(t *testing.T) {
	t.Parallel()
	second := "another-value-here"
	b64 := base64.StdEncoding.EncodeToString([]byte(value))
	long := strings.Repeat("x", 300<<10)
	packed := gzipped(value)
	dir := tree(t, map[string]string{
		"a": "x=" + value + ";y=" + second + "\n", "b": b64, "long": long + value + long + second, "p.gz": packed,
		"n": "nothing", value[:12] + "-x": "", "z": "x^" + value,
	})
	if err := os.Link(filepath.Join(dir, "a"), filepath.Join(dir, "a2")); err != nil {
		t.Fatal(err)
	}
	r := search(t, leakscan.Config{Paths: []string{dir}, Scrub: true, Needles: needles(value, second)})
	for _, h := range r.Hits {
		if want := h.Member == ""; h.Scrubbed != want {
			t.Errorf("%+v: scrubbed %t, want %t", h, h.Scrubbed, want)
		}
	}
	stars := func(s string) string { return strings.Repeat("*", len(s)) }
	for name, want := range map[string]string{
		"a": "x=" + stars(value) + ";y=" + stars(second) + "\n", "b": stars(b64), "long": long + stars(value) + long + stars(second),
		"p.gz": packed, "n": "nothing", "z": "x^" + stars(value),
	} {
		got, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil || string(got) != want {
			t.Errorf("%s: %d bytes, %v, want %d: other bytes than those of the values changed, or not all of those", name, len(got), err, len(want))
		}
	}
	if left := told(search(t, leakscan.Config{Paths: []string{dir}, Needles: needles(value, second)}), dir); len(left) != 1 {
		t.Errorf("left: %q, want the archive alone", left)
	}
}
