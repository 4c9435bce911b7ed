package auditlog

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"vigil/gateway/audit/layout"
	"vigil/gateway/internal/events"
)

// Options of a writer.
type Options struct {
	Folder       string
	Log          string
	Durability   string // process, interval, power
	SyncInterval time.Duration
	SegmentBytes int64
	// KeyFolder holds the signing key; empty leaves the log unsigned.
	KeyFolder          string
	CheckpointRecords  uint64
	CheckpointInterval time.Duration
	// Retention says what is pruned; its zero value prunes nothing.
	Retention Retention
	// Report hears why a checkpoint could not be made, or nothing was pruned.
	Report func(error)
	// HashKey makes the hashes of what callers sent HMACs; nil leaves them plain.
	HashKey []byte
	// Disk is the file system when it is nil, Now the wall clock, Clock what the kernel says of it.
	Disk  Disk
	Now   func() time.Time
	Clock func() ClockStatus
	// Describe encodes the payload of the log's own events.
	Describe func(text string, fields map[string]string) []byte
}

// Writer writes one log folder. Append may be called at the same time from
// anywhere; it returns after the write has returned (with durability power,
// after fdatasync). When writing fails nothing advances, and the next Append
// tries the same place again.
type Writer struct {
	o       Options
	mu      sync.Mutex
	f, lock *os.File
	s       stamp
	offset  int64
	size    int64
	next    uint64
	leaf    [32]byte
	tree    *tree
	// sealedAt: records when a checkpoint was last asked for.
	sealedAt uint64
	seal     *sealer
	keys     *keyFile
	clockAt  int64    // monotonic ns of the last reading of the clock's status
	late     []*Entry // what happened to the clock and has no record yet
	watch    clockWatch
	closed   bool
	closing  bool // the closing record is written: only the last checkpoint may follow
	// path of the segment that is written; placedAt: when it was last seen there.
	path     string
	placedAt time.Time
	// syncError: the last forced write in the background failed; the next Append tries it first.
	syncError error
	syncBegan atomic.Int64 // Unix nanoseconds of the forced write under way in the background, or 0
	dirty     chan struct{}
	done      chan struct{}
	// buffer and leaves: records that are encoded and not written yet.
	buffer []byte
	leaves [][32]byte
}

// Open opens or creates the log; after a crash its end is found, and a torn
// tail cut. The error says what to do.
func Open(o Options) (*Writer, error) {
	o.fill()
	w := &Writer{o: o, dirty: make(chan struct{}, 1), done: make(chan struct{})}
	if err := os.MkdirAll(o.Folder, 0o755); err != nil {
		return nil, fmt.Errorf("audit log: %w; give --data-dir a folder that can be written", err)
	}
	lock, err := os.OpenFile(filepath.Join(o.Folder, "writer.lock"), os.O_RDWR|os.O_CREATE, 0o640)
	if err != nil {
		return nil, fmt.Errorf("audit log: %w; give --data-dir a folder that can be written", err)
	}
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		lock.Close()
		return nil, fmt.Errorf("audit log %s: another process writes it; give --data-dir another folder", o.Folder)
	}
	w.lock = lock
	rand.Read(w.s.boot[:])
	w.s.hashKey = o.HashKey
	if o.KeyFolder != "" {
		if w.keys, err = openKey(o.KeyFolder, o.Log); err != nil {
			lock.Close()
			return nil, err
		}
	}
	if err := w.open(); err != nil {
		lock.Close()
		return nil, fmt.Errorf("audit log: %w", err)
	}
	if err := w.startSealing(); err != nil {
		lock.Close()
		return nil, err
	}
	if o.Durability == "interval" {
		go w.syncLoop()
	} else {
		close(w.done)
	}
	return w, nil
}

func (w *Writer) startSealing() error {
	if w.keys == nil {
		return nil
	}
	origin := originOf(w.o.Log, w.s.instance)
	seal, err := newSealer(w, w.keys, origin)
	if err != nil {
		return err
	}
	w.mu.Lock()
	w.seal = seal
	w.mu.Unlock()
	seal.wake()
	go seal.run(w.o.CheckpointInterval)
	return nil
}

func (w *Writer) open() error {
	segments, err := listSegments(w.o.Folder)
	if err != nil {
		return err
	}
	if len(segments) == 0 {
		rand.Read(w.s.instance[:])
		w.next, w.tree = 1, newTree()
		if err := w.newSegment(); err != nil {
			return err
		}
		return w.system(events.LogOpened, "new log", nil)
	}
	last := segments[len(segments)-1]
	end, err := findEnd(last, math.MaxUint64)
	if err != nil {
		return err
	}
	if end.followers > 0 && w.wasOnDisk(end) {
		return fmt.Errorf("%s: record %d (byte %d) is damaged, although it was on disk before later ones; "+
			"keep the folder as evidence, and move it away to start a new log", filepath.Base(last), end.next, end.offset)
	}
	if w.keys != nil {
		origin := originOf(w.o.Log, end.head.instance)
		if err := w.keys.settle(origin, func() ([]byte, error) { return lastKeyNote(w.o.Folder) }); err != nil {
			return err
		}
		if err := w.checkHead(origin); err != nil {
			return err
		}
	}
	if w.f, err = w.o.Disk.Open(last, false); err != nil {
		return err
	}
	w.path = last
	info, err := w.f.Stat()
	if err != nil {
		return err
	}
	w.s.instance, w.offset, w.size, w.next, w.leaf, w.tree = end.head.instance, end.offset, info.Size(), end.next, end.leaf, end.tree
	if end.torn > 0 {
		if err := w.o.Disk.WriteAt(w.f, make([]byte, end.torn), end.offset); err != nil {
			return err
		}
	}
	if end.torn > 0 || end.lastEvent != events.LogClosed {
		fields := map[string]string{
			"segment": filepath.Base(last), "torn_bytes": fmt.Sprint(end.torn), "last_sequence": fmt.Sprint(end.next - 1),
			"records_dropped": fmt.Sprint(end.followers),
		}
		if err := w.system(events.LogRecovered, "the writer before did not close the log", fields); err != nil {
			return err
		}
	}
	return w.system(events.LogOpened, "log continued", nil)
}

func (w *Writer) newSegment() error {
	if w.f != nil { // the old segment is on disk before the new one's name is
		if err := w.o.Disk.Datasync(w.f); err != nil {
			w.syncError = err
			return err
		}
	}
	f, err := createSegment(w.o.Disk, w.o.Folder, w.o.SegmentBytes, &segmentHead{
		w.s.instance, w.next, w.leaf, uint64(time.Now().UnixNano()), w.o.Log, w.tree.encode(),
	})
	if err != nil {
		return err
	}
	if w.f != nil {
		w.f.Close()
	}
	w.path = filepath.Join(w.o.Folder, segmentName(w.next))
	w.f, w.offset, w.size = f, layout.SegmentHeaderBytes, w.o.SegmentBytes
	if w.seal != nil {
		w.seal.rotated()
	}
	return nil
}

func (w *Writer) system(event uint32, text string, fields map[string]string) error {
	_, err := w.Append(&Entry{Kind: layout.KindSystem, EventID: event, Payload: w.o.Describe(text, fields)})
	return err
}

// Instance names the log, hex.
func (w *Writer) Instance() string { return hex.EncodeToString(w.s.instance[:]) }

// Boot names this run of the writer, hex.
func (w *Writer) Boot() string { return hex.EncodeToString(w.s.boot[:]) }

// Position is LOG/BOOT/SEQ of a record of this run.
func (w *Writer) Position(sequence uint64) string {
	return fmt.Sprintf("%s/%s/%d", w.o.Log, w.Boot(), sequence)
}

// notForced notes that data could not be forced to disk: the next Append must
// bring that about before it promises anything.
func (w *Writer) notForced(err error) {
	w.mu.Lock()
	w.syncError = err
	w.mu.Unlock()
}

// forceAgain writes the segment's bytes once more and forces them. After a
// failed force the kernel may call pages clean that never reached the disk, so
// that forcing alone would succeed and promise nothing.
func (w *Writer) forceAgain() error {
	data := make([]byte, w.offset)
	if _, err := w.f.ReadAt(data, 0); err != nil {
		return err
	}
	if err := w.o.Disk.WriteAt(w.f, data, 0); err != nil {
		return err
	}
	return w.o.Disk.Datasync(w.f)
}

// forced says whether records of a kind are forced to disk at once.
func forced(kind uint16) bool {
	return kind == layout.KindModel || kind == layout.KindState || kind == layout.KindSystem || kind == layout.KindKey || kind == layout.KindPrune
}

// checkPlace asks at most every 0.4 s whether the file that is written is
// still the one that readers find.
func (w *Writer) checkPlace() error {
	now := time.Now()
	if now.Sub(w.placedAt) < lookGap {
		return nil
	}
	found, err := os.Stat(w.path)
	own, err2 := w.f.Stat()
	if err != nil || err2 != nil || !os.SameFile(found, own) {
		return errors.New("its file was deleted or replaced")
	}
	w.placedAt = now
	return nil
}

// look notices a file that was deleted or replaced, also while nothing is written.
func (w *Writer) look() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.closed {
		return nil
	}
	return w.checkPlace()
}

func (w *Writer) syncLoop() {
	defer close(w.done)
	for range w.dirty {
		w.mu.Lock()
		if w.closed {
			w.mu.Unlock()
			return
		}
		f, err := duplicate(w.f)
		w.mu.Unlock()
		if err == nil {
			w.syncBegan.Store(time.Now().UnixNano())
			err = errors.Join(w.o.Disk.Datasync(f), f.Close())
			w.syncBegan.Store(0)
		}
		if err != nil {
			w.notForced(err)
		}
		time.Sleep(w.o.SyncInterval)
	}
}

// Close writes the closing record and forces everything to disk.
func (w *Writer) Close() error {
	w.mu.Lock()
	closed := w.closed
	w.mu.Unlock()
	if closed {
		return nil
	}
	err := w.system(events.LogClosed, "closed", nil)
	if w.seal != nil {
		w.seal.close()
	}
	w.mu.Lock()
	if w.closed {
		w.mu.Unlock()
		return err
	}
	w.closed = true
	err = errors.Join(err, w.o.Disk.Datasync(w.f), w.f.Close(), w.lock.Close())
	close(w.dirty)
	w.mu.Unlock()
	<-w.done
	return err
}
