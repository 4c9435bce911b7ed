package auditlog

import (
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"vigil/gateway/audit"
	"vigil/gateway/audit/layout"
	"vigil/gateway/internal/events"
)

const (
	holdLimit = 30 * time.Millisecond
	endless   = 20 * time.Second // far above every limit
)

// hangingDisk does not return from its operation number at before it is released.
type hangingDisk struct {
	failingDisk
	hold       int64
	held, free chan struct{}
	operations atomic.Int64
}

func newHangingDisk(at int64) *hangingDisk {
	d := &hangingDisk{hold: at, held: make(chan struct{}), free: make(chan struct{})}
	d.failingDisk = failingDisk{Disk: RealDisk}
	d.before = func() {
		if d.operations.Add(1) == d.hold {
			close(d.held)
			<-d.free
		}
	}
	return d
}

func (d *hangingDisk) holds() bool { return isClosed(d.held) && !isClosed(d.free) }

func isClosed(c chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}

// hungLife is a log's life with callers, and what each was told.
type hungLife struct {
	t        *testing.T
	disk     *hangingDisk
	log      *Recorder
	mu       sync.Mutex
	told     map[uint64]string
	recorded []uint64
	calls    atomic.Uint64
}

func (l *hungLife) call() {
	id := l.calls.Add(1)
	kind := []uint16{layout.KindRefusal, layout.KindAnswer}[id%2]
	sequence, err := l.log.Append(&Entry{Kind: kind, EventID: events.LimitHit, LatencyNs: id})
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.told[id] = "unlogged"; err == nil && sequence != Unlogged {
		l.told[id] = "recorded"
		l.recorded = append(l.recorded, id)
	}
}

// until waits for one of the channels, or for the disk to hold something.
func (l *hungLife) until(done chan struct{}) (held bool) {
	held = true
	hold := l.disk.held
	if isClosed(l.disk.free) {
		hold = nil
	}
	select {
	case <-done:
		held = false
	case <-hold:
	case <-time.After(endless):
		l.t.Fatalf("endless, operation %d", l.disk.hold)
	}
	return held || l.disk.holds()
}

func begin(work func()) chan struct{} {
	done := make(chan struct{})
	go func() { defer close(done); work() }()
	return done
}

// step does one thing; while the disk holds it, or what runs beside it, others call.
func (l *hungLife) step(work func(), isCall bool) {
	one := begin(work)
	if l.until(one) {
		waiting := []chan struct{}{begin(l.call), begin(l.call), begin(l.call)}
		if isCall {
			waiting = append(waiting, one)
		}
		for _, c := range waiting { // nobody waits for the disk
			select {
			case <-c:
			case <-time.After(endless):
				l.t.Fatalf("a caller waits for operation %d", l.disk.hold)
			}
		}
		close(l.disk.free)
	}
	select {
	case <-one:
	case <-time.After(endless):
		l.t.Fatalf("operation %d: the work does not end", l.disk.hold)
	}
	for end := time.Now().Add(endless); l.log.Failure() != ""; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			l.t.Fatalf("operation %d: %s", l.disk.hold, l.log.Failure())
		}
	}
}

func liveHung(t *testing.T, folder string, disk *hangingDisk, policy Policy) *hungLife {
	t.Helper()
	l := &hungLife{t: t, disk: disk, told: map[uint64]string{}}
	o := failingOptions(folder, disk)
	o.Describe = func(text string, fields map[string]string) []byte { return fmt.Append(nil, fields["sequences"]) }
	var w *Writer
	var err error
	opening := begin(func() { w, err = Open(o) })
	if l.until(opening) {
		close(disk.free) // nobody is served yet: a supervisor limits the start
		<-opening
	}
	if err != nil {
		t.Fatal(err)
	}
	l.log = NewRecorder(w, policy, holdLimit, 1<<20)
	for i := range 70 {
		l.step(l.call, true)
		if i%12 == 7 {
			l.step(func() { _ = w.seal.seal() }, false)
			l.step(w.Prune, false)
		}
		if i == 40 {
			l.step(func() { _, _ = w.RotateKey() }, false)
		}
	}
	closing := begin(func() { _ = l.log.Close() })
	if l.until(closing) {
		close(disk.free)
	}
	<-closing
	return l
}

// judge holds what callers heard against the log.
func (l *hungLife) judge(folder string) {
	t, at := l.t, l.disk.hold
	w, err := Open(failingOptions(folder, RealDisk))
	if err != nil {
		t.Fatalf("operation %d: %v", at, err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	report, err := audit.Verify(filepath.Join(folder, "log"), firstKey(t, folder)...)
	if err != nil || report.ExitCode != audit.ExitVerified {
		t.Fatalf("operation %d: %v %+v %v", at, err, report, report.Damage)
	}
	found, superseded, stated := map[uint64]uint64{}, map[string]bool{}, uint64(0)
	if _, err := audit.Read(filepath.Join(folder, "log"), func(r *audit.Record) error {
		h := r.Header
		switch binary.LittleEndian.Uint32(h[layout.OffEventID:]) {
		case events.LimitHit:
			found[binary.LittleEndian.Uint64(h[layout.OffLatencyNs:])] = r.Sequence
		case events.Unlogged:
			stated += uint64(binary.LittleEndian.Uint32(h[layout.OffBatchSize:]))
		case events.Undelivered:
			for _, s := range strings.Split(string(r.Payload), ",") {
				superseded[s] = true
			}
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	gone := uint64(0)
	for _, id := range l.recorded {
		if found[id] == 0 {
			gone++
		}
	}
	unlogged := uint64(l.log.UnloggedTotal())
	if gone > report.Pruned || (report.Pruned == 0 && stated != unlogged) {
		t.Fatalf("operation %d: %d gone, %d pruned; %d stated, %d left out", at, gone, report.Pruned, stated, unlogged)
	}
	late := uint64(0) // records that stand although their callers were told something else
	for id, word := range l.told {
		if word == "recorded" || found[id] == 0 {
			continue
		}
		if s := fmt.Sprintf("%d-%d", found[id], found[id]); l.log.Policy != Refuse || id%2 == 0 {
			late++ // no longer counted
		} else if !superseded[s] {
			t.Fatalf("operation %d: record %s stands, its caller was refused, and nothing says so", at, s)
		}
	}
	if told := uint64(len(l.told) - len(l.recorded)); told != unlogged+late && report.Pruned == 0 {
		t.Fatalf("operation %d: %d callers were told, %d left out, %d late", at, told, unlogged, late)
	}
}

// Whichever operation hangs: no caller waits for it, the account is complete, the
// log verifies with its first key.
func TestEachOperationHangsOnce(t *testing.T) {
	for _, policy := range []Policy{Refuse, Continue} {
		counting := newHangingDisk(0)
		folder := t.TempDir()
		liveHung(t, folder, counting, policy).judge(folder)
		total, left := counting.operations.Load(), int64(0)
		for at := int64(1); at <= total; at++ {
			folder, err := os.MkdirTemp(t.TempDir(), "")
			if err != nil {
				t.Fatal(err)
			}
			disk := newHangingDisk(at)
			l := liveHung(t, folder, disk, policy)
			l.judge(folder)
			left += l.log.UnloggedTotal()
		}
		t.Logf("%s: %d operations hung, %d records left out and stated", policy, total, left)
		if left < 30 {
			t.Error("no hang left anything out")
		}
	}
}

// No checkpoint between an event and a change of the key, the key record in the
// next segment, and only the segments before it pruned.
func TestKeptRecordsBeforeARotationAreProvenByTheOldKey(t *testing.T) {
	folder := t.TempDir()
	w, err := Open(failingOptions(folder, RealDisk))
	if err != nil {
		t.Fatal(err)
	}
	segments := func() []string {
		found, err := filepath.Glob(filepath.Join(folder, "log", "segment-*.vlog"))
		if err != nil {
			t.Fatal(err)
		}
		return found
	}
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	fill := func(n int) {
		for len(segments()) < n {
			refusal(t, w, 1)
		}
	}
	fill(2)
	must(w.seal.seal())
	second := segments()[1]
	_, err = w.Append(&Entry{Kind: layout.KindSystem, EventID: events.ClockStepped})
	must(err)
	fill(3)
	_, err = w.RotateKey()
	must(err)
	for range 1000 {
		if _, err := os.Stat(second); err != nil {
			break
		}
		refusal(t, w, 1)
		w.Prune()
		must(w.seal.seal())
	}
	must(w.Close())
	report, err := audit.Verify(filepath.Join(folder, "log"), firstKey(t, folder)...)
	if err != nil || report.ExitCode != audit.ExitVerified || report.Rotations != 1 || report.Pruned == 0 {
		t.Fatalf("%v %+v %v", err, report, report.Damage)
	}
}
