package auditlog

import (
	"encoding/binary"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"vigil/gateway/audit"
	"vigil/gateway/audit/layout"
	"vigil/gateway/internal/events"
)

// failingDisk fails its operation number at once, with an error of its own.
type failingDisk struct {
	Disk
	count  atomic.Int64
	at     int64
	err    error
	before func() // each operation, when it is not nil
}

func (d *failingDisk) next() error {
	if d.before != nil {
		d.before()
	}
	if d.count.Add(1) == d.at {
		return d.err
	}
	return nil
}

func (d *failingDisk) Open(path string, create bool) (*os.File, error) {
	if err := d.next(); err != nil {
		return nil, err
	}
	return d.Disk.Open(path, create)
}

func (d *failingDisk) do(work func() error) error {
	if err := d.next(); err != nil {
		return err
	}
	return work()
}

func (d *failingDisk) Allocate(f *os.File, size int64) error {
	return d.do(func() error { return d.Disk.Allocate(f, size) })
}

func (d *failingDisk) WriteAt(f *os.File, data []byte, offset int64) error {
	if err := d.next(); err != nil {
		_ = d.Disk.WriteAt(f, data[:len(data)/2], offset) // what a full disk leaves
		return err
	}
	return d.Disk.WriteAt(f, data, offset)
}

func (d *failingDisk) Datasync(f *os.File) error {
	return d.do(func() error { return d.Disk.Datasync(f) })
}
func (d *failingDisk) Sync(f *os.File) error { return d.do(func() error { return d.Disk.Sync(f) }) }
func (d *failingDisk) Rename(from, to string) error {
	return d.do(func() error { return d.Disk.Rename(from, to) })
}
func (d *failingDisk) Remove(path string) error {
	return d.do(func() error { return d.Disk.Remove(path) })
}
func (d *failingDisk) SyncFolder(path string) error {
	return d.do(func() error { return d.Disk.SyncFolder(path) })
}

func failingOptions(folder string, disk Disk) Options {
	o := options(filepath.Join(folder, "log"), "power")
	o.SegmentBytes, o.KeyFolder, o.CheckpointRecords, o.CheckpointInterval = 12<<10, filepath.Join(folder, "keys"), 1<<30, time.Hour
	o.Disk, o.Retention = disk, Retention{BytesMax: 36 << 10, KeptBytesMax: 1 << 20, Manual: true}
	return o
}

// life gives the latency fields, each used once, of the records that were
// acknowledged, and how often somebody was told of a failure.
func life(t *testing.T, folder string, disk Disk) (acknowledged []uint64, told int) {
	t.Helper()
	var w *Writer
	var err error
	for range 3 { // a start that failed is tried again, as a supervisor does
		if w, err = Open(failingOptions(folder, disk)); err == nil {
			break
		}
		told++
	}
	if err != nil {
		t.Fatal(err)
	}
	note := func(err error) {
		if err != nil {
			told++
		}
	}
	for i := range uint64(110) {
		_, err := w.Append(&Entry{Kind: layout.KindRefusal, EventID: events.LimitHit, LatencyNs: i + 1, Payload: make([]byte, i%50)})
		note(err)
		if err == nil {
			acknowledged = append(acknowledged, i+1)
		}
		if i%20 == 9 {
			note(w.seal.seal())
			w.Prune()
		}
		if i == 50 {
			_, err := w.RotateKey()
			note(err)
		}
	}
	note(w.Close())
	return acknowledged, told
}

func present(t *testing.T, folder string) map[uint64]bool {
	t.Helper()
	found := map[uint64]bool{}
	if _, err := audit.Read(filepath.Join(folder, "log"), func(r *audit.Record) error {
		found[binary.LittleEndian.Uint64(r.Header[layout.OffLatencyNs:])] = true
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	return found
}

// Whichever operation fails: the log goes on or refuses, opens again, verifies
// with its first key, and has what it acknowledged and did not prune by right.
func TestEachOperationFailsOnce(t *testing.T) {
	counting := &failingDisk{Disk: RealDisk}
	life(t, t.TempDir(), counting)
	total := 0
	for trial := range 2 * counting.count.Load() {
		folder, at := filepath.Join(t.TempDir(), "life"), trial/2+1
		err := []error{unix.EIO, unix.ENOSPC}[trial%2]
		acknowledged, told := life(t, folder, &failingDisk{Disk: RealDisk, at: at, err: err})
		total += told
		w, err := Open(failingOptions(folder, RealDisk))
		if err != nil {
			t.Fatalf("operation %d: %v", at, err)
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		data, err := os.ReadFile(filepath.Join(folder, "keys", "audit-gateway.pub"))
		if err != nil {
			t.Fatal(err)
		}
		keys, err := audit.ParseKeys([]byte(strings.Fields(string(data))[0]))
		if err != nil {
			t.Fatal(err)
		}
		report, err := audit.Verify(filepath.Join(folder, "log"), keys...)
		if err != nil || report.ExitCode != audit.ExitVerified {
			t.Fatalf("operation %d: %v %+v %v", at, err, report, report.Damage)
		}
		found, first := present(t, folder), 0
		for first < len(acknowledged) && !found[acknowledged[first]] {
			first++
		}
		if uint64(first) > report.Pruned {
			t.Fatalf("operation %d: %d records are gone, %d were pruned", at, first, report.Pruned)
		}
		for _, id := range acknowledged[first:] {
			if !found[id] {
				t.Fatalf("operation %d: record %d was acknowledged and is gone", at, id)
			}
		}
	}
	t.Logf("%d operations failed, each in two ways, %d times somebody was told", counting.count.Load(), total)
	if total == 0 {
		t.Error("nobody was told of any failure")
	}
}
