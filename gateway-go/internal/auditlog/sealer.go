package auditlog

import (
	"crypto/ed25519"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"vigil/gateway/audit/layout"
	"vigil/gateway/internal/events"
)

const (
	// rotationTitle is the first line of the note of a key record.
	rotationTitle = "vigil audit key rotation"
	// NoteBytesMax bounds a note that comes from elsewhere.
	NoteBytesMax = 8192
	// lagMax is half of what verifiers accept between a checkpoint's tree and its
	// record: a disk that hangs must not make a log look forged.
	lagMax = 1 << 19
	// sealGap lies between two checkpoints that events ask for.
	sealGap = 50 * time.Millisecond
	// checkpointTries are for one with no record between what it covers and itself:
	// only a clock that steps just then can put one there.
	checkpointTries = 3
	// pruneGap lies between two looks at what may be pruned, but for new segments.
	pruneGap   = 30 * time.Second
	algEd25519 = 1
)

// signer signs notes (C2SP signed-note, Ed25519) under one name.
type signer struct {
	name string
	key  ed25519.PrivateKey
}

func (s *signer) public() []byte {
	return append([]byte{algEd25519}, s.key.Public().(ed25519.PublicKey)...)
}

func (s *signer) id() []byte {
	sum := sha256.Sum256(append([]byte(s.name+"\n"), s.public()...))
	return sum[:4]
}

func (s *signer) verifierKey() string {
	return s.name + "+" + hex.EncodeToString(s.id()) + "+" + base64.StdEncoding.EncodeToString(s.public())
}

func (s *signer) line(text string) string {
	packed := append(s.id(), ed25519.Sign(s.key, []byte(text))...)
	return "\u2014 " + s.name + " " + base64.StdEncoding.EncodeToString(packed) + "\n"
}

func signNote(text string, signers ...*signer) []byte {
	note := text + "\n"
	for _, s := range signers {
		note += s.line(text)
	}
	return []byte(note)
}

func checkpointText(origin string, size uint64, root []byte) string {
	return fmt.Sprintf("%s\n%d\n%s\n", origin, size, base64.StdEncoding.EncodeToString(root))
}

// sealer signs checkpoints of one log. A checkpoint is signed over a tree whose
// records were forced to disk before, and only what Latest gives may leave the
// process: so no power cut can make an honest log contradict what others have.
type sealer struct {
	w      *Writer
	keys   *keyFile
	origin string
	wakes  chan struct{}
	stop   chan struct{}
	done   chan struct{}
	once   sync.Once
	// segments: a segment was begun since the last look at what may be pruned.
	segments atomic.Bool
	pruner   *pruner
	pruning  sync.Mutex // held while segments are taken away

	mu     sync.Mutex // held while a checkpoint is made
	signer *signer

	latestMu sync.Mutex
	latest   []byte
	latestAt time.Time
	sealed   uint64
}

func newSealer(w *Writer, keys *keyFile, origin string) (*sealer, error) {
	s := &sealer{w: w, keys: keys, origin: origin, wakes: make(chan struct{}, 1), stop: make(chan struct{}), done: make(chan struct{})}
	s.signer, s.latestAt = &signer{origin, keys.key}, time.Now()
	if w.o.Retention.BytesMax > 0 {
		s.pruner = &pruner{w.o.Folder, w.o.Retention, origin, w.o.Disk, w.Append, time.Now}
	}
	return s, keys.publish(s.signer)
}

func (s *sealer) wake() {
	select {
	case s.wakes <- struct{}{}:
	default:
	}
}

// rotated hears that there is one segment more: older ones may have to go.
func (s *sealer) rotated() {
	s.segments.Store(true)
	s.wake()
}

// endRotation puts the new key in place if a rotation could not: a start needs
// the key record for that, and it may be pruned.
func (s *sealer) endRotation() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.keys.key.Equal(s.signer.key) {
		return nil
	}
	if _, _, err := s.forcedHead(); err != nil {
		return err
	}
	return s.keys.change(s.signer.key)
}

// Prune takes away now what the retention says.
func (w *Writer) Prune() {
	if w.seal != nil {
		w.seal.prune()
	}
}

// prune takes away what the retention says.
func (s *sealer) prune() {
	if s.pruner == nil {
		return
	}
	s.pruning.Lock()
	defer s.pruning.Unlock()
	s.latestMu.Lock()
	sealed := s.sealed
	s.latestMu.Unlock()
	err := s.endRotation()
	if err == nil {
		_, err = s.pruner.run(sealed, s.seal)
	}
	if err != nil && !errors.Is(err, errClosed) && s.w.o.Report != nil {
		s.w.o.Report(fmt.Errorf("nothing was pruned: %w", err))
	}
}

func (s *sealer) run(interval time.Duration) {
	defer close(s.done)
	tick := time.NewTicker(interval)
	defer tick.Stop()
	var looked time.Time
	for {
		select {
		case <-s.stop:
			return
		case <-s.wakes:
		case <-tick.C:
		}
		s.try() // after a failure the next turn tries again
		if !s.w.o.Retention.Manual && (s.segments.Swap(false) || time.Since(looked) >= pruneGap) {
			looked = time.Now()
			s.prune()
			if err := s.w.index(); err != nil && s.w.o.Report != nil {
				s.w.o.Report(fmt.Errorf("no index was written: %w", err))
			}
		}
		select {
		case <-s.stop:
			return
		case <-time.After(sealGap):
		}
	}
}

// forcedHead is the tree's size and root once all its records are on disk.
func (s *sealer) forcedHead() (uint64, []byte, error) {
	size, root, f, err := s.w.head()
	if err != nil {
		return 0, nil, err
	}
	err = errors.Join(s.force(f), f.Close()) // segments before this one were forced when they were left
	if err != nil {
		s.w.notForced(err)
	}
	return size, root, err
}

// force forces to disk what a checkpoint will cover.
func (s *sealer) force(f *os.File) error { return s.w.o.Disk.Datasync(f) }

// try makes a checkpoint, and says why it could not.
func (s *sealer) try() {
	if err := s.seal(); err != nil && s.w.o.Report != nil {
		s.w.o.Report(fmt.Errorf("no checkpoint was signed: %w", err))
	}
}

// seal signs a checkpoint of all records, puts it into the log, and publishes it.
func (s *sealer) seal() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.sealLocked()
}

func (s *sealer) sealLocked() error {
	size, root, err := s.forcedHead()
	if err != nil {
		return err
	}
	if n := s.w.count(); n-size > lagMax {
		return fmt.Errorf("forcing %d records took so long that %d others came; the checkpoint is not made", size, n-size)
	}
	note := signNote(checkpointText(s.origin, size, root), s.signer)
	if _, err := s.w.Append(&Entry{Kind: layout.KindCheckpoint, EventID: events.Checkpoint, Payload: note}); err != nil {
		return err
	}
	if err := s.keys.keep(note); err != nil {
		return err
	}
	s.latestMu.Lock()
	s.latest, s.latestAt, s.sealed = note, time.Now(), size
	s.latestMu.Unlock()
	return nil
}

// rotate takes a new key: a record signed by the old and the new one, then
// checkpoints by the new one. On error the old key stays, unless its record was
// written: from then on only the new one signs.
func (s *sealer) rotate() (string, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.keys.key.Equal(s.signer.key) { // a rotation before could not be ended
		if err := s.keys.change(s.signer.key); err != nil {
			return "", err
		}
	}
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return "", err
	}
	next := &signer{s.origin, key}
	if err := s.keys.publish(next); err != nil {
		return "", err
	}
	if err := s.keys.stage(key); err != nil {
		return "", err
	}
	if _, _, err := s.forcedHead(); err != nil { // so that there is little to force while nobody may append
		return "", err
	}
	stands, err := s.handOver(next)
	if !stands {
		return "", err
	}
	// The record stands: whatever fails from here on, the old key signs nothing any more. The
	// staged key file is taken at the next start if it cannot be now.
	s.signer = next
	if err == nil {
		_, _, err = s.forcedHead()
	}
	if err == nil {
		err = s.keys.change(key)
	}
	if err == nil {
		err = s.sealLocked()
	}
	return next.verifierKey(), err
}

// handOver writes a checkpoint by the old key over everything before, and right
// behind it the record that makes the new key valid. Else what was pruned between
// the last checkpoint and that record would be proven by a key that is trusted
// only later.
func (s *sealer) handOver(next *signer) (stands bool, err error) {
	s.w.mu.Lock()
	defer s.w.mu.Unlock()
	if s.w.closed {
		return false, errClosed
	}
	for range checkpointTries {
		head, err := s.headAlone()
		if err != nil {
			return false, err
		}
		e := &Entry{Kind: layout.KindCheckpoint, EventID: events.Checkpoint, Payload: signNote(head, s.signer)}
		size := s.w.tree.size()
		if _, _, err := s.w.appendAll([]*Entry{e}); err != nil {
			return false, err
		}
		if s.w.tree.size() == size+1 {
			break
		}
	}
	head, err := s.headAlone()
	if err != nil {
		return false, err
	}
	note := signNote(rotationTitle+"\n"+head+next.verifierKey()+"\n", s.signer, next)
	_, stand, err := s.w.appendAll([]*Entry{{Kind: layout.KindKey, EventID: events.KeyRotated, Payload: note}})
	return stand == 1, err
}

// headAlone is the forced tree's head, for whoever holds the writer's lock.
func (s *sealer) headAlone() (string, error) {
	if err := s.force(s.w.f); err != nil {
		s.w.syncError = err
		return "", err
	}
	return checkpointText(s.origin, s.w.tree.size(), s.w.tree.root()), nil
}

func (s *sealer) close() {
	s.once.Do(func() {
		close(s.stop)
		<-s.done
		s.try()
	})
}

// Checkpoint is the latest signed checkpoint; nil before the first.
func (w *Writer) Checkpoint() []byte {
	if w.seal == nil {
		return nil
	}
	w.seal.latestMu.Lock()
	defer w.seal.latestMu.Unlock()
	return w.seal.latest
}

// CheckpointAge is the time since the latest checkpoint, or since the start.
func (w *Writer) CheckpointAge() time.Duration {
	if w.seal == nil {
		return 0
	}
	w.seal.latestMu.Lock()
	defer w.seal.latestMu.Unlock()
	return time.Since(w.seal.latestAt)
}

// Seal makes a checkpoint now and returns it.
func (w *Writer) Seal() ([]byte, error) {
	err := w.seal.seal()
	return w.Checkpoint(), err
}

// RotateKey takes a new signing key and returns its verifier key.
func (w *Writer) RotateKey() (string, error) { return w.seal.rotate() }

// count is the number of records written, over all runs.
func (w *Writer) count() uint64 {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.tree.size()
}

// head is the number of records, their root, and a second descriptor of the file that ends them.
func (w *Writer) head() (uint64, []byte, *os.File, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.closed {
		return 0, nil, nil, errClosed
	}
	f, err := duplicate(w.f)
	return w.tree.size(), w.tree.root(), f, err
}

func originOf(log string, instance [16]byte) string {
	return "vigil/" + log + "/" + hex.EncodeToString(instance[:])
}
