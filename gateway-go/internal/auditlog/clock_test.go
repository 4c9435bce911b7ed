package auditlog

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/binary"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"vigil/gateway/audit"
	"vigil/gateway/audit/layout"
	"vigil/gateway/internal/events"
)

// A jump beyond what slewing explains is a step; a change of status is told once.
func TestClockWatch(t *testing.T) {
	const s = int64(time.Second)
	for _, c := range []struct{ passed, jump, want int64 }{
		{s, 0, 0}, {s, 149_000_000, 0}, {s, 151_000_000, 151_000_000}, {s, -151_000_000, -151_000_000},
		{3600 * s, 359 * s, 0}, {3600 * s, -361 * s, -361 * s}, {1, 51_000_000, 51_000_000}, {1, 49_000_000, 0},
	} {
		var w clockWatch
		w.look(1e18, s, 1, 1)
		if got, words := w.look(1e18+c.passed+c.jump, s+c.passed, 1, 1); got != c.want || words != "" {
			t.Errorf("%+v: %d %q", c, got, words)
		}
	}
	var w clockWatch
	w.look(1e18, s, 1, 1)
	if _, words := w.look(1e18+s, 2*s, 1, 2); words != "synchronised (kernel), now free-running (kernel)" {
		t.Error(words)
	}
	if _, words := w.look(1e18+2*s, 3*s, 1, 2); words != "" {
		t.Error(words)
	}
}

// The step stands before the first record that the stepped clock dates, and
// hashes are keyed with the key that both writers share.
func TestStepAndKeyedHashes(t *testing.T) {
	folder := t.TempDir()
	key, err := HashKey(filepath.Join(folder, "keys"))
	if err != nil {
		t.Fatal(err)
	}
	if again, err := HashKey(filepath.Join(folder, "keys")); err != nil || string(again) != string(key) {
		t.Fatal("another key at the second start", err)
	}
	var shift time.Duration
	o := options(filepath.Join(folder, "log"), "process")
	o.HashKey, o.Now = key, func() time.Time { return time.Now().Add(shift) }
	w, err := Open(o)
	if err != nil {
		t.Fatal(err)
	}
	shift = time.Hour
	plain := sha256.Sum256([]byte("id"))
	sequence, err := w.Append(&Entry{Kind: layout.KindRefusal, EventID: events.LimitHit, RequestIDHash: plain})
	if err != nil || w.Close() != nil {
		t.Fatal(err)
	}
	mac := hmac.New(sha256.New, key)
	mac.Write(plain[:])
	stepped := uint64(0)
	_, err = audit.Read(o.Folder, func(r *audit.Record) error {
		if binary.LittleEndian.Uint32(r.Header[layout.OffEventID:]) == events.ClockStepped {
			stepped = r.Sequence
		}
		if r.Sequence == sequence {
			if got := r.Header[layout.OffRequestIDHash : layout.OffRequestIDHash+32]; !hmac.Equal(got, mac.Sum(nil)) {
				t.Error("the hash is not keyed")
			}
			if binary.LittleEndian.Uint16(r.Header[layout.OffFlags:]) != layout.FlagKeyed {
				t.Error("no flag says that it is")
			}
		}
		return nil
	})
	if err != nil || stepped != sequence-1 {
		t.Fatal(err, stepped, sequence)
	}
	path := filepath.Join(folder, "keys", "audit-hash.key")
	if err := os.Chmod(path, 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := HashKey(filepath.Join(folder, "keys")); err == nil || !strings.Contains(err.Error(), "others may read") {
		t.Error(err)
	}
}
