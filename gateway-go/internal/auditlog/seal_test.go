package auditlog

import (
	"bytes"
	"encoding/binary"
	"hash/crc32"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"vigil/gateway/audit"
	"vigil/gateway/audit/layout"
	"vigil/gateway/internal/events"
)

func signedOptions(folder string) Options {
	o := options(filepath.Join(folder, "log"), "process")
	o.KeyFolder, o.CheckpointRecords, o.CheckpointInterval = filepath.Join(folder, "keys"), 50, time.Hour
	return o
}

func firstKey(t testing.TB, folder string) []audit.Key {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(folder, "keys", "audit-gateway.pub"))
	if err != nil {
		t.Fatal(err)
	}
	keys, err := audit.ParseKeys([]byte(strings.Split(string(data), "\n")[0]))
	if err != nil {
		t.Fatal(err)
	}
	return keys
}

func refusal(t testing.TB, w *Writer, count int) {
	t.Helper()
	for range count {
		if _, err := w.Append(&Entry{Kind: layout.KindRefusal, EventID: events.LimitHit}); err != nil {
			t.Fatal(err)
		}
	}
}

// A log over two runs and a rotation verifies with the key that it began with.
func TestSealedLog(t *testing.T) {
	folder := t.TempDir()
	w, err := Open(signedOptions(folder))
	if err != nil {
		t.Fatal(err)
	}
	refusal(t, w, 120)
	if _, err := w.RotateKey(); err != nil {
		t.Fatal(err)
	}
	refusal(t, w, 30)
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if w, err = Open(signedOptions(folder)); err != nil {
		t.Fatal(err)
	}
	refusal(t, w, 3000)
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatalf("closed twice: %v", err)
	}
	r, err := audit.Verify(filepath.Join(folder, "log"), firstKey(t, folder)...)
	if err != nil || r.ExitCode != audit.ExitVerified || r.Rotations != 1 || r.Boots != 2 || r.Segments < 2 || r.Checkpoints < 5 {
		t.Fatalf("%+v %v", r, err)
	}
	info, err := os.Stat(filepath.Join(folder, "keys", "audit-gateway.key"))
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Fatalf("mode %v, %v", info.Mode(), err)
	}
}

// A killed writer leaves an unsealed tail, which is told; the next run seals it.
func TestUnsealedTail(t *testing.T) {
	folder := t.TempDir()
	w, err := Open(signedOptions(folder))
	if err != nil {
		t.Fatal(err)
	}
	close(w.seal.stop) // checkpoints are made by the test from here on
	<-w.seal.done
	if err := w.seal.seal(); err != nil {
		t.Fatal(err)
	}
	refusal(t, w, 7)
	w.lock.Close() // as if the process had been killed
	r, err := audit.Verify(w.o.Folder, firstKey(t, folder)...)
	if err != nil || r.ExitCode != audit.ExitUnsealed || r.Unsealed != 8 {
		t.Fatalf("%+v %v", r, err)
	}
	again, err := Open(signedOptions(folder))
	if err != nil {
		t.Fatal(err)
	}
	if err := again.Close(); err != nil {
		t.Fatal(err)
	}
	r, err = audit.Verify(w.o.Folder, firstKey(t, folder)...)
	if err != nil || r.ExitCode != audit.ExitVerified {
		t.Fatalf("%+v %v", r, err)
	}
}

// A record that a power cut lost is cut off; one that a checkpoint behind it
// covers was on disk, so the log was changed.
func TestHoleUnderACheckpointIsNoCrash(t *testing.T) {
	for _, sealed := range []bool{false, true} {
		folder := t.TempDir()
		o := signedOptions(folder)
		w, err := Open(o)
		if err != nil {
			t.Fatal(err)
		}
		close(w.seal.stop)
		<-w.seal.done
		if err := w.seal.seal(); err != nil {
			t.Fatal(err)
		}
		at := w.offset
		refusal(t, w, 10)
		if sealed {
			if err := w.seal.seal(); err != nil {
				t.Fatal(err)
			}
		}
		refusal(t, w, 1)
		if _, err := w.f.WriteAt(make([]byte, 400), at+3*layout.HeaderBytes); err != nil {
			t.Fatal(err)
		}
		w.lock.Close()
		again, err := Open(o)
		if sealed {
			if err == nil || !strings.Contains(err.Error(), "keep the folder as evidence") {
				t.Fatal(err)
			}
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		if err := again.Close(); err != nil {
			t.Fatal(err)
		}
		if r, err := audit.Verify(o.Folder, firstKey(t, folder)...); err != nil || r.ExitCode != audit.ExitVerified || r.Kinds["refusal"] != 3 {
			t.Fatalf("%+v %v", r, err)
		}
	}
}

// However the bytes of a sealed log are changed, with all CRCs computed anew, it
// is called verified only when it was not changed at all.
func FuzzSealedLog(f *testing.F) {
	folder := f.TempDir()
	w, err := Open(signedOptions(folder))
	if err != nil {
		f.Fatal(err)
	}
	refusal(f, w, 60)
	if err := w.Close(); err != nil {
		f.Fatal(err)
	}
	keys := firstKey(f, folder)
	honest, err := os.ReadFile(filepath.Join(folder, "log", segmentName(1)))
	if err != nil {
		f.Fatal(err)
	}
	honest = append(bytes.TrimRight(honest, "\x00"), make([]byte, 64)...)
	f.Add([]byte{0, 0, 0, 0})
	f.Add([]byte{17, 100, 1, 0, 16, 6, 0xff, 3})
	f.Fuzz(func(t *testing.T, edits []byte) {
		data := bytes.Clone(honest)
		for ; len(edits) >= 4; edits = edits[4:] {
			at := int(binary.LittleEndian.Uint16(edits)) % len(data)
			data[at] ^= edits[2]
			if edits[3]&1 == 1 { // take a piece out
				data = append(data[:at], data[min(at+int(edits[3]), len(data)):]...)
				if len(data) == 0 {
					return
				}
			}
		}
		fixCRCs(data)
		copied := filepath.Join(t.TempDir(), segmentName(1))
		if err := os.WriteFile(copied, data, 0o600); err != nil {
			t.Fatal(err)
		}
		r, err := audit.Verify(filepath.Dir(copied), keys...)
		if err != nil {
			t.Fatal(err)
		}
		last := bytes.LastIndex(honest, []byte(layout.Magic)) // the last checkpoint's own record is not covered
		if len(data) >= layout.SegmentHeaderBytes {           // created_ns is under no signature, and the page says so
			copy(data[layout.SegOffCreatedNs:layout.SegOffLogName], honest[layout.SegOffCreatedNs:])
			copy(data[layout.SegOffCrc32c:layout.SegOffCrc32c+4], honest[layout.SegOffCrc32c:])
		}
		if r.ExitCode == audit.ExitVerified && !bytes.Equal(data[:last], honest[:last]) {
			t.Fatalf("verified: %+v", r)
		}
	})
}

// fixCRCs computes the CRC of every record anew, as somebody who forges would.
func fixCRCs(data []byte) {
	le := binary.LittleEndian
	if len(data) >= layout.SegmentHeaderBytes {
		le.PutUint32(data[layout.SegOffCrc32c:], crc32.Checksum(data[:layout.SegOffCrc32c], castagnoli))
	}
	for at := layout.SegmentHeaderBytes; at+layout.HeaderBytes <= len(data); {
		r := data[at:]
		length := int(le.Uint16(r[layout.OffLength:]))
		if length < layout.HeaderBytes || length > len(r) {
			return
		}
		crc := crc32.Update(0, castagnoli, r[:layout.OffCrc32c])
		le.PutUint32(r[layout.OffCrc32c:], crc32.Update(crc, castagnoli, r[layout.HeaderBytes:length]))
		at += length
	}
}
