package auditlog

import (
	"slices"
	"testing"

	"vigil/gateway/audit"
)

// A search that is stopped again and again, in either order, finds in all what an
// undisturbed one finds, each record once and in order.
func TestPausedSearchesGoOn(t *testing.T) {
	log, _ := written(t, false)
	for _, newest := range []bool{false, true} {
		for _, q := range []audit.Query{{}, {TraceID: [16]byte{0: 7, 15: 1}}, {Match: func(r *audit.Record) bool { return r.Sequence%97 == 0 }}} {
			q.NewestFirst = newest
			want, _ := selected(t, log, &q, 1<<30)
			var got []uint64
			pages := 1
			q.Pause = func() bool { return true }
			for {
				done, err := audit.Select(log, &q, func(r *audit.Record) bool { got = append(got, r.Sequence); return true })
				if err != nil || pages > 5000 {
					t.Fatal(pages, err)
				}
				if done.Paused == 0 {
					break
				}
				if pages++; newest {
					q.Before = done.Paused
				} else {
					q.After = done.Paused
				}
			}
			if !slices.Equal(got, want) || pages < 5 {
				t.Fatalf("newest first %v: %d found in %d pages, %d at once", newest, len(got), pages, len(want))
			}
		}
	}
}
