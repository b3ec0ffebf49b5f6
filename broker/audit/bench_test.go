package audit_test

import (
	"bytes"
	"testing"

	"github.com/runenv/action/broker/audit"
)

// BenchmarkFlush sequences 2,048 entries at a time, in memory.
func BenchmarkFlush(b *testing.B) {
	s := newStore(b)
	l := openLog(b, s)
	n := 0
	for b.Loop() {
		b.StopTimer()
		record(b, s, n, n+2048)
		n += 2048
		b.StartTimer()
		flush(b, l)
	}
	b.ReportMetric(float64(n)/b.Elapsed().Seconds(), "entries/s")
}

// BenchmarkVerifyExport verifies an export of 2,048 entries.
func BenchmarkVerifyExport(b *testing.B) {
	s, l := newLogged(b, 2048)
	var export bytes.Buffer
	if err := audit.Export(b.Context(), s, &export); err != nil {
		b.Fatal(err)
	}
	b.SetBytes(int64(export.Len()))
	for b.Loop() {
		if _, err := audit.VerifyExport(b.Context(), bytes.NewReader(export.Bytes()), l.VerifierKey()); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(2048*b.N)/b.Elapsed().Seconds(), "entries/s")
}
