package auditlog

import (
	"encoding/binary"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"vigil/gateway/audit"
	"vigil/gateway/audit/layout"
	"vigil/gateway/internal/events"
)

var errDisk = errors.New("input/output error")

// faultyDisk fails the next calls of one operation, and notes where is written.
type faultyDisk struct {
	Disk
	failing string
	times   int
	writes  [][2]int64
}

func (d *faultyDisk) ask(operation string) error {
	if d.failing == operation && d.times > 0 {
		d.times--
		return errDisk
	}
	return nil
}

func (d *faultyDisk) WriteAt(f *os.File, data []byte, offset int64) error {
	if err := d.ask("write"); err != nil {
		return err
	}
	d.writes = append(d.writes, [2]int64{offset, int64(len(data))})
	return d.Disk.WriteAt(f, data, offset)
}

func (d *faultyDisk) Datasync(f *os.File) error {
	return errors.Join(d.ask("datasync"), d.Disk.Datasync(f))
}

func (d *faultyDisk) Rename(from, to string) error {
	if err := d.ask("rename"); err != nil {
		return err
	}
	return d.Disk.Rename(from, to)
}

func (d *faultyDisk) SyncFolder(path string) error {
	return errors.Join(d.ask("folder"), d.Disk.SyncFolder(path))
}

// faulty opens a log whose checkpoints are made by the test.
func faulty(t *testing.T, folder, durability string) (*Writer, *faultyDisk) {
	t.Helper()
	d := &faultyDisk{Disk: RealDisk}
	o := signedOptions(folder)
	o.Durability, o.SegmentBytes, o.Disk = durability, 16<<10, d
	w, err := Open(o)
	if err != nil {
		t.Fatal(err)
	}
	w.seal.close()
	return w, d
}

func verified(t *testing.T, folder string) *audit.Report {
	t.Helper()
	r, err := audit.Verify(filepath.Join(folder, "log"), firstKey(t, folder)...)
	if err != nil || r.ExitCode != audit.ExitVerified {
		t.Fatalf("%+v %v", r, err)
	}
	return r
}

// finish makes the last checkpoint, which the test has taken over, and closes.
func finish(t *testing.T, w *Writer) {
	t.Helper()
	if err := w.system(events.LogClosed, "closed", nil); err != nil {
		t.Fatal(err)
	}
	if err := w.seal.seal(); err != nil {
		t.Fatal(err)
	}
	w.mu.Lock()
	w.closed = true
	err := errors.Join(w.f.Close(), w.lock.Close())
	w.mu.Unlock()
	if err != nil {
		t.Fatal(err)
	}
}

// After a failed force the segment is written again before anything is promised.
func TestFailedForceIsWrittenAgain(t *testing.T) {
	for _, where := range []string{"append", "checkpoint"} {
		folder := t.TempDir()
		w, d := faulty(t, folder, "power")
		refusal(t, w, 3)
		d.failing, d.times = "datasync", 1
		var err error
		if where == "append" {
			_, err = w.Append(&Entry{Kind: layout.KindRefusal, EventID: events.LimitHit})
		} else {
			err = w.seal.seal()
		}
		if !errors.Is(err, errDisk) {
			t.Fatal(err)
		}
		used := w.offset
		d.writes = nil
		refusal(t, w, 1)
		if d.writes[0] != [2]int64{0, used} {
			t.Fatalf("%s: wrote %v", where, d.writes)
		}
		finish(t, w)
		verified(t, folder)
	}
}

// Whatever fails while a segment is begun, the log stays whole.
func TestSegmentThatCannotBeBegun(t *testing.T) {
	for _, operation := range []string{"rename", "folder", "datasync", "write"} {
		folder := t.TempDir()
		w, d := faulty(t, folder, "process")
		d.failing, d.times = operation, 2
		refused := uint64(0)
		for range 120 {
			if _, err := w.Append(&Entry{Kind: layout.KindRefusal, EventID: events.LimitHit, Payload: make([]byte, 40)}); err != nil {
				refused++
			}
		}
		finish(t, w)
		r := verified(t, folder)
		if refused < 1 || refused > 2 || r.Segments < 3 || r.Kinds["refusal"] != 120-refused {
			t.Fatalf("%s: %d refused, %+v", operation, refused, r)
		}
	}
}

// A rotation whose key file cannot be changed: the record stands, so only the
// new key signs from there on, over restarts too.
func TestRotationThatCannotBeEnded(t *testing.T) {
	folder := t.TempDir()
	w, _ := faulty(t, folder, "process")
	private := w.keys.private
	w.keys.private = filepath.Join(folder, "none", "there")
	if _, err := w.RotateKey(); err == nil {
		t.Fatal("no error")
	}
	refusal(t, w, 2)
	if err := w.seal.seal(); err != nil {
		t.Fatal(err)
	}
	w.keys.private = private
	if _, err := w.RotateKey(); err != nil {
		t.Fatal(err)
	}
	finish(t, w)
	w, _ = faulty(t, folder, "process")
	finish(t, w)
	if r := verified(t, folder); r.Rotations != 2 {
		t.Fatalf("%+v", r)
	}
}

// A checkpoint that fails is told.
func TestFailedCheckpointIsTold(t *testing.T) {
	w, d := faulty(t, t.TempDir(), "process")
	var told error
	w.o.Report = func(err error) { told = err }
	d.failing, d.times = "datasync", 1
	w.seal.try()
	if told == nil || !strings.Contains(told.Error(), "no checkpoint was signed") {
		t.Fatal(told)
	}
	finish(t, w)
}

// An orderly stop leaves no record of a recovery at the next start.
func TestOrderlyStopIsNoCrash(t *testing.T) {
	folder := t.TempDir()
	for range 3 {
		w, err := Open(signedOptions(folder))
		if err != nil {
			t.Fatal(err)
		}
		refusal(t, w, 2)
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
	}
	found := map[uint32]int{}
	_, err := audit.Read(filepath.Join(folder, "log"), func(r *audit.Record) error {
		found[binary.LittleEndian.Uint32(r.Header[layout.OffEventID:])]++
		return nil
	})
	if err != nil || found[events.LogRecovered] != 0 || found[events.LogClosed] != 3 {
		t.Fatal(found, err)
	}
}
