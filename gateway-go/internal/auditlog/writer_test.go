package auditlog

import (
	"bytes"
	"encoding/binary"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"go.uber.org/goleak"

	"vigil/gateway/audit"
	"vigil/gateway/audit/layout"
	"vigil/gateway/internal/events"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func options(folder, durability string) Options {
	return Options{
		Folder: folder, Log: "gateway", Durability: durability, SyncInterval: 1, SegmentBytes: 1 << 20,
		Describe: func(text string, _ map[string]string) []byte { return []byte(text) },
	}
}

func write(t *testing.T, folder, durability string, count int) {
	t.Helper()
	w, err := Open(options(folder, durability))
	if err != nil {
		t.Fatal(err)
	}
	var group sync.WaitGroup
	for range 4 {
		group.Add(1)
		go func() {
			defer group.Done()
			for i := range count / 4 {
				e := &Entry{Kind: layout.KindRefusal, EventID: events.LimitHit, StatusCode: 8, Payload: bytes.Repeat([]byte{1}, i%60)}
				if _, err := w.Append(e); err != nil {
					t.Error(err)
				}
			}
		}()
	}
	group.Wait()
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
}

// Records of concurrent callers are chained and in sequence, over segments and runs.
func TestRoundTrip(t *testing.T) {
	for _, durability := range []string{"process", "interval", "power"} {
		t.Run(durability, func(t *testing.T) {
			folder := t.TempDir()
			write(t, folder, durability, 4000)
			write(t, folder, durability, 8)
			report, err := audit.Verify(folder)
			if err != nil || !report.Intact {
				t.Fatalf("%+v %v", report, err)
			}
			if report.Records != 4012 || report.Boots != 2 || report.Segments < 2 || report.Kinds["refusal"] != 4008 {
				t.Fatalf("%+v", report)
			}
		})
	}
}

// A flipped byte is named with its record.
func TestFlippedByte(t *testing.T) {
	folder := t.TempDir()
	write(t, folder, "process", 40)
	path := filepath.Join(folder, segmentName(1))
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	at := int64(layout.SegmentHeaderBytes)
	for sequence := uint64(1); sequence <= 20; sequence++ {
		length := int64(binary.LittleEndian.Uint16(data[at+layout.OffLength:]))
		forged := bytes.Clone(data)
		forged[at+layout.OffTraceID] ^= 1
		if err := os.WriteFile(path, forged, 0o600); err != nil {
			t.Fatal(err)
		}
		report, err := audit.Verify(folder)
		if err != nil || report.Intact || report.Damage.Sequence != sequence || report.Damage.Offset != at {
			t.Fatalf("record %d: %+v %v", sequence, report.Damage, err)
		}
		at += length
	}
}

// After a crash the torn tail is cut, and the recovery is itself a record.
func TestRecovery(t *testing.T) {
	folder := t.TempDir()
	w, err := Open(options(folder, "process"))
	if err != nil {
		t.Fatal(err)
	}
	for range 5 {
		if _, err := w.Append(&Entry{Kind: layout.KindRefusal, EventID: events.LimitHit}); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := w.f.WriteAt([]byte("VGLA torn"), w.offset); err != nil {
		t.Fatal(err)
	}
	w.lock.Close() // as if the process had been killed
	w.f.Close()
	again, err := Open(options(folder, "process"))
	if err != nil {
		t.Fatal(err)
	}
	if err := again.Close(); err != nil {
		t.Fatal(err)
	}
	found := 0
	_, err = audit.Read(folder, func(r *audit.Record) error {
		if binary.LittleEndian.Uint32(r.Header[layout.OffEventID:]) == events.LogRecovered {
			found++
		}
		return nil
	})
	if err != nil || found != 1 {
		t.Fatalf("%d recoveries, %v", found, err)
	}
}

// Damage with whole records behind it is no torn tail: the writer refuses and leaves the evidence.
func TestChangedLogIsNotOpened(t *testing.T) {
	folder := t.TempDir()
	write(t, folder, "process", 40)
	path := filepath.Join(folder, segmentName(1))
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	data[layout.SegmentHeaderBytes+3*400] ^= 1
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
	if w, err := Open(options(folder, "process")); err == nil {
		w.Close()
		t.Fatal("a changed log was opened")
	}
	after, err := os.ReadFile(path)
	if err != nil || !bytes.Equal(after, data) {
		t.Fatal("the evidence was touched", err)
	}
}

// Two writers of one folder cannot be.
func TestSecondWriter(t *testing.T) {
	folder := t.TempDir()
	w, err := Open(options(folder, "process"))
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	if _, err := Open(options(folder, "process")); err == nil {
		t.Fatal("a second writer was let in")
	}
}
