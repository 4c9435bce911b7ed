package auditlog

import (
	"testing"
	"time"

	"vigil/gateway/audit/layout"
	"vigil/gateway/internal/events"
)

// What a record costs the writer, alone and within a batch: `make bench` reads this.
func BenchmarkAppend(b *testing.B) {
	for name, size := range map[string]int{"alone": 1, "within_64": 64} {
		b.Run(name, func(b *testing.B) {
			o := signedOptions(b.TempDir())
			o.SegmentBytes, o.CheckpointRecords, o.CheckpointInterval = 64<<20, 4096, 10*time.Second
			w, err := Open(o)
			if err != nil {
				b.Fatal(err)
			}
			batch := make([]*Entry, size)
			for i := range batch {
				batch[i] = &Entry{Kind: layout.KindRefusal, EventID: events.LimitHit, Payload: make([]byte, 50)}
			}
			b.ResetTimer()
			for n := 0; n < b.N; n += size {
				if _, _, err := w.AppendAll(batch); err != nil {
					b.Fatal(err)
				}
			}
			b.StopTimer()
			if err := w.Close(); err != nil {
				b.Fatal(err)
			}
		})
	}
}
