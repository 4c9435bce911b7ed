package auditlog

import (
	"bytes"
	"crypto/ed25519"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"vigil/gateway/audit"
	"vigil/gateway/audit/layout"
	"vigil/gateway/internal/events"
)

// written is a log of several segments with a few traces, events and tenants,
// indexed, and pruned when that is asked for.
func written(t *testing.T, prune bool) (log string, keys []audit.Key) {
	t.Helper()
	folder := t.TempDir()
	o := signedOptions(folder)
	o.Retention = Retention{Manual: true}
	if prune {
		o.Retention.BytesMax, o.Retention.KeptBytesMax = 5<<20, 1<<20
	}
	w, err := Open(o)
	if err != nil {
		t.Fatal(err)
	}
	random := rand.New(rand.NewPCG(1, 2))
	for i := range 14000 {
		e := &Entry{Kind: layout.KindRefusal, EventID: []uint32{events.LimitHit, events.SemanticViolation}[random.IntN(2)], Payload: make([]byte, random.IntN(300))}
		if random.IntN(3) > 0 {
			e.TraceID[0], e.TraceID[15] = byte(random.IntN(40)), byte(random.IntN(3))
		}
		e.TenantHash[0] = byte(random.IntN(5))
		if _, err := w.Append(e); err != nil {
			t.Fatal(err)
		}
		if i%400 == 0 {
			if _, err := w.Seal(); err != nil {
				t.Fatal(err)
			}
		}
		if i%3000 == 0 {
			w.Prune()
		}
	}
	w.Prune()
	if err := w.index(); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return o.Folder, firstKey(t, folder)
}

func bySequence(t *testing.T, log string) (all []audit.Record) {
	t.Helper()
	if _, err := audit.Read(log, func(r *audit.Record) error {
		all = append(all, audit.Record{Sequence: r.Sequence, Header: bytes.Clone(r.Header), Leaf: r.Leaf})
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	return all
}

func meant(q *audit.Query, r *audit.Record) bool {
	le := binary.LittleEndian
	at := le.Uint64(r.Header[layout.OffTimeNs:])
	return r.Sequence > q.After && (q.Before == 0 || r.Sequence < q.Before) && at >= q.FromNs && (q.ToNs == 0 || at < q.ToNs) &&
		(q.TraceID == [16]byte{} || q.TraceID == [16]byte(r.Header[layout.OffTraceID:])) &&
		(len(q.Events) == 0 || slices.Contains(q.Events, le.Uint32(r.Header[layout.OffEventID:]))) &&
		(len(q.Tenants) == 0 || slices.Contains(q.Tenants, [32]byte(r.Header[layout.OffTenantHash:])))
}

func selected(t *testing.T, log string, q *audit.Query, most int) (sequences []uint64, read uint64) {
	t.Helper()
	done, err := audit.Select(log, q, func(r *audit.Record) bool {
		sequences = append(sequences, r.Sequence)
		return len(sequences) < most
	})
	if err != nil {
		t.Fatal(err)
	}
	return sequences, done.Read
}

// What Select finds is what reading everything finds, for random queries in both orders.
func TestSelectFindsWhatReadingFinds(t *testing.T) {
	log, _ := written(t, false)
	all := bySequence(t, log)
	random := rand.New(rand.NewPCG(3, 4))
	timeOf := func() uint64 { return binary.LittleEndian.Uint64(all[random.IntN(len(all))].Header[layout.OffTimeNs:]) }
	found := 0
	for range 300 {
		q := &audit.Query{NewestFirst: random.IntN(2) == 0}
		if random.IntN(3) == 0 {
			q.TraceID[0], q.TraceID[15] = byte(random.IntN(41)), byte(1+random.IntN(3))
		}
		if random.IntN(3) == 0 {
			q.Events = []uint32{events.SemanticViolation, events.Checkpoint}
		}
		if random.IntN(3) == 0 {
			q.Tenants = [][32]byte{{byte(random.IntN(6))}}
		}
		if random.IntN(4) == 0 {
			q.FromNs = timeOf()
		}
		if random.IntN(4) == 0 {
			q.ToNs = timeOf()
		}
		if random.IntN(3) == 0 {
			q.After = uint64(random.IntN(len(all)))
		}
		if random.IntN(3) == 0 {
			q.Before = uint64(random.IntN(len(all)))
		}
		var want []uint64
		for i := range all {
			if meant(q, &all[i]) {
				want = append(want, all[i].Sequence)
			}
		}
		if q.NewestFirst {
			slices.Reverse(want)
		}
		most := 1 + random.IntN(2000)
		if got, _ := selected(t, log, q, most); !slices.Equal(got, want[:min(most, len(want))]) {
			t.Fatalf("%+v: %d found, %d expected", q, len(got), len(want))
		}
		found += len(want)
	}
	if found < 10000 {
		t.Fatalf("the queries found %d records only", found)
	}
}

// A trace is found by the indexes: only the segment that is written is read; a
// broken index is not believed.
func TestTraceIsFoundByIndex(t *testing.T) {
	log, _ := written(t, false)
	q := &audit.Query{TraceID: [16]byte{0: 7, 15: 1}}
	want, read := selected(t, log, q, 1<<30)
	if all := uint64(len(bySequence(t, log))); len(want) < 50 || read > all/3 {
		t.Fatalf("%d found, %d of %d records were read", len(want), read, all)
	}
	indexes, err := filepath.Glob(filepath.Join(log, "*.index"))
	if err != nil || len(indexes) < 3 {
		t.Fatal(indexes, err)
	}
	for _, path := range indexes {
		data, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		data[len(data)/2] ^= 1
		if err := os.WriteFile(path, data, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if got, _ := selected(t, log, q, 1<<30); !slices.Equal(got, want) {
		t.Fatalf("with broken indexes %d were found, %d before", len(got), len(want))
	}
}

// Every record of a log, pruned or not, has a proof, or words why not.
func TestEveryRecordIsProven(t *testing.T) {
	for _, prune := range []bool{false, true} {
		log, keys := written(t, prune)
		all := bySequence(t, log)
		if first := all[0].Sequence; (first > 1) != prune {
			t.Fatalf("the log begins at %d", first)
		}
		for i := 0; i < len(all)-1; i += 61 { // the last one is the closing checkpoint, which covers all before it
			data, err := audit.MakeProof(log, all[i].Sequence)
			if err != nil {
				t.Fatal(err)
			}
			if p, err := audit.CheckProof(data, keys); err != nil || p.Sequence != all[i].Sequence {
				t.Fatalf("record %d: %+v %v", all[i].Sequence, p, err)
			}
		}
		if _, err := audit.MakeProof(log, all[len(all)-1].Sequence+1); !errors.Is(err, audit.ErrNotProven) {
			t.Fatal(err)
		}
		if !prune {
			continue
		}
		if data, err := audit.MakeProof(log, 1); err != nil { // log_opened is kept
			t.Fatal(err)
		} else if p, err := audit.CheckProof(data, keys); err != nil || p.EventID != events.LogOpened {
			t.Fatal(p, err)
		}
		if _, err := audit.MakeProof(log, 3); !errors.Is(err, audit.ErrNotProven) {
			t.Fatal(err)
		}
	}
}

// Any part of a log verifies by itself, and a change within it is found; one
// behind it is not looked at.
func TestPartsVerify(t *testing.T) {
	log, keys := written(t, true)
	all := bySequence(t, log)
	begin, end := all[0].Sequence, all[len(all)-1].Sequence
	random := rand.New(rand.NewPCG(5, 6))
	for range 40 {
		first := begin + random.Uint64N(end-begin-300)
		last := first + random.Uint64N(end-200-first)
		calls, total := 0, uint64(0)
		r, err := audit.VerifyPart(log, first, last, keys, func(_, read, all uint64) { calls, total = calls+1, max(read, all) })
		if err != nil || r.ExitCode != audit.ExitVerified || r.FirstSequence > first || r.LastSequence < last || r.Sealed < last {
			t.Fatalf("%d..%d: %+v %v", first, last, r, err)
		}
		if r.Records > 1024 && (calls == 0 || total == 0) {
			t.Fatalf("no progress over %d records", r.Records)
		}
		if r, err = audit.VerifyPart(log, first, last, nil, func(_, _, _ uint64) {}); err != nil || r.ExitCode != audit.ExitNoKey {
			t.Fatalf("without a key: %+v %v", r, err)
		}
	}
	paths, err := filepath.Glob(filepath.Join(log, "segment-*.vlog"))
	if err != nil || len(paths) < 3 {
		t.Fatal(paths, err)
	}
	data, err := os.ReadFile(paths[2])
	if err != nil {
		t.Fatal(err)
	}
	changed := binary.LittleEndian.Uint64(data[layout.SegmentHeaderBytes+layout.OffSequence:])
	data[layout.SegmentHeaderBytes+layout.OffLatencyNs] ^= 1
	if err := os.WriteFile(paths[2], data, 0o644); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		first, last uint64
		code        int
	}{
		{begin, begin + 100, audit.ExitVerified}, {0, 0, audit.ExitForged}, {0, begin + 100, audit.ExitForged},
		{begin + 10, changed, audit.ExitForged}, {changed + 1, changed + 2, audit.ExitForged},
	} {
		r, err := audit.VerifyPart(log, c.first, c.last, keys, func(_, _, _ uint64) {})
		if err != nil || r.ExitCode != c.code || (c.code == audit.ExitForged && r.Damage.Sequence != changed) {
			t.Fatalf("%d..%d: %+v %v", c.first, c.last, r, err)
		}
	}
}

// A part that begins before the log does is refused; from 0 a beginning that was
// taken away is found; and of several keys nobody knows which was in force.
func TestPartsSayWhatTheyDoNotJudge(t *testing.T) {
	log, keys := written(t, false)
	quiet := func(_, _, _ uint64) {}
	r, err := audit.VerifyPart(log, 5000, 6000, keys, quiet)
	if err != nil || r.ExitCode != audit.ExitVerified || !strings.Contains(r.Verdict, "what comes before is not judged") {
		t.Fatalf("%+v %v", r, err)
	}
	stranger := &signer{keys[0].Name(), ed25519.NewKeyFromSeed(make([]byte, 32))}
	other, err := audit.ParseKeys([]byte(stranger.verifierKey()))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := audit.VerifyPart(log, 5000, 6000, slices.Concat(keys, other), quiet); !errors.Is(err, audit.ErrPart) {
		t.Fatal(err)
	}
	paths, err := filepath.Glob(filepath.Join(log, "segment-*.vlog"))
	if err != nil || os.Remove(paths[0]) != nil {
		t.Fatal(err)
	}
	if _, err := audit.VerifyPart(log, 1, 100, keys, quiet); !errors.Is(err, audit.ErrPart) {
		t.Fatal(err)
	}
	for _, last := range []uint64{0, 9000} {
		if r, err := audit.VerifyPart(log, 0, last, keys, quiet); err != nil || r.ExitCode != audit.ExitForged {
			t.Fatalf("0..%d of a log without its beginning: %+v %v", last, r, err)
		}
	}
}

// An index that is no file, or that is out of order, is not believed.
func TestHostileIndexes(t *testing.T) {
	log, _ := written(t, false)
	q := &audit.Query{TraceID: [16]byte{0: 7, 15: 1}}
	want, _ := selected(t, log, q, 1<<30)
	indexes, err := filepath.Glob(filepath.Join(log, "*.index"))
	if err != nil || len(indexes) < 3 {
		t.Fatal(indexes, err)
	}
	for i, path := range indexes {
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
		target := []string{"/dev/zero", filepath.Join(log, "nothing")}[i%2]
		if err := os.Symlink(target, path); err != nil {
			t.Fatal(err)
		}
	}
	if got, _ := selected(t, log, q, 1<<30); !slices.Equal(got, want) {
		t.Fatalf("%d found, %d before", len(got), len(want))
	}
}

// Damage in the last segment is told, once nobody writes it any more.
func TestDamageAtTheEndIsTold(t *testing.T) {
	log, keys := written(t, false)
	paths, err := filepath.Glob(filepath.Join(log, "segment-*.vlog"))
	if err != nil {
		t.Fatal(err)
	}
	last := paths[len(paths)-1]
	data, err := os.ReadFile(last)
	if err != nil {
		t.Fatal(err)
	}
	first := firstSequence(last)
	length := int(binary.LittleEndian.Uint16(data[layout.SegmentHeaderBytes+layout.OffLength:]))
	data[layout.SegmentHeaderBytes+length] ^= 0xFF // the second record's magic
	if err := os.WriteFile(last, data, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Chtimes(last, time.Time{}, time.Unix(1, 0)); err != nil {
		t.Fatal(err)
	}
	var damage *audit.Damage
	found := 0
	if _, err := audit.Select(log, &audit.Query{After: first - 3}, func(*audit.Record) bool { found++; return true }); !errors.As(err, &damage) || found != 3 {
		t.Fatalf("%d found, %v", found, err)
	}
	if _, err := audit.MakeProof(log, first); !errors.As(err, &damage) {
		t.Fatal(err)
	}
	if r, err := audit.VerifyPart(log, first, 0, keys, func(_, _, _ uint64) {}); err != nil || r.ExitCode != audit.ExitForged {
		t.Fatalf("%+v %v", r, err)
	}
}

// A record that is being written can be seen in part: it is read again, and
// nothing is called damaged that is whole a moment later.
func TestARecordInTheMakingIsNoDamage(t *testing.T) {
	log, keys := written(t, false)
	paths, err := filepath.Glob(filepath.Join(log, "segment-*.vlog"))
	if err != nil {
		t.Fatal(err)
	}
	last := paths[len(paths)-1]
	whole, err := os.ReadFile(last)
	if err != nil {
		t.Fatal(err)
	}
	for _, cut := range []int{0, 4, 100, layout.HeaderBytes, layout.HeaderBytes + 1} {
		part := bytes.Clone(whole)
		clear(part[layout.SegmentHeaderBytes : layout.SegmentHeaderBytes+cut]) // the page before came later
		if cut == 0 {
			clear(part[layout.SegmentHeaderBytes+50 : layout.SegmentHeaderBytes+200])
		}
		if err := os.WriteFile(last, part, 0o644); err != nil {
			t.Fatal(err)
		}
		done := make(chan error)
		go func() {
			time.Sleep(40 * time.Millisecond)
			f, err := os.OpenFile(last, os.O_WRONLY, 0)
			if err == nil {
				_, err = f.WriteAt(whole, 0)
				err = errors.Join(err, f.Close())
			}
			done <- err
		}()
		r, err := audit.VerifyPart(log, firstSequence(last), 0, keys, func(_, _, _ uint64) {})
		if err := errors.Join(err, <-done); err != nil || r.ExitCode != audit.ExitVerified {
			t.Fatalf("%d bytes: %+v %v", cut, r, err)
		}
	}
}

func firstSequence(segment string) (first uint64) {
	_, _ = fmt.Sscanf(filepath.Base(segment), "segment-%d.vlog", &first)
	return first
}
