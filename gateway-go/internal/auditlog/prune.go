package auditlog

import (
	"bytes"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/bits"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/transparency-dev/merkle/rfc6962"

	"golang.org/x/mod/sumdb/note"

	"vigil/gateway/audit/layout"
	"vigil/gateway/internal/events"
)

// Retention is how much of a log stays: bytes of its segments, their age (0: no
// limit), bytes of each class of kept records, and where pruned segments are
// copied first (empty: nowhere).
type Retention struct {
	BytesMax     int64
	Age          time.Duration
	KeptBytesMax int64
	Archive      string
	// Manual: only Writer.Prune takes segments away.
	Manual bool
}

const pruneTitle = "vigil audit prune"

// keptClasses are the classes of events that pruning keeps, each in its own room.
var keptClasses = []string{"audit", "clock", "model", "safety", "security"}

// keptClass is the class under which a record of this event is kept; empty when it is not.
func keptClass(event uint32) string {
	if event == events.Checkpoint || event == events.Anchored || event == events.Pruned {
		return "" // worth nothing once what they stand for is gone
	}
	if class := events.Classes[event]; slices.Contains(keptClasses, class) {
		return class
	}
	return ""
}

// pruner takes the oldest segments away. What remains still proves that it is
// the same log. Order, so that a cut between any two steps leaves a log that
// verifies: copy to the archive; write the kept records; record the cut; sign a
// checkpoint over that record; take the segments away, oldest first.
type pruner struct {
	folder    string
	retention Retention
	origin    string
	disk      Disk
	append    func(*Entry) (uint64, error)
	now       func() time.Time
}

type prunable struct {
	path      string
	first     uint64
	size      int64
	createdNs uint64
	tree      *tree
}

// run prunes what may go, given that a published checkpoint covers sealed
// records; seal signs one now. After an error the next call goes on.
func (p *pruner) run(sealed uint64, seal func() error) (int, error) {
	segments, err := p.segments()
	if err != nil {
		return 0, err
	}
	count := p.due(segments, sealed)
	if count == 0 {
		return 0, nil
	}
	for i := range segments[:count] {
		if p.retention.Archive != "" {
			if err := p.copy(segments[i].path); err != nil {
				return 0, fmt.Errorf("archive: %w", err)
			}
		}
		if err := p.keep(segments[i:]); err != nil {
			return 0, err
		}
	}
	cut := segments[count]
	text := pruneTitle + "\n" + checkpointText(p.origin, cut.first-1, cut.tree.root())
	if _, err := p.append(&Entry{Kind: layout.KindPrune, EventID: events.Pruned, Payload: []byte(text)}); err != nil {
		return 0, err
	}
	if err := seal(); err != nil {
		return 0, err
	}
	for _, s := range segments[:count] {
		if err := p.disk.Remove(s.path); err != nil {
			return 0, err
		}
		_ = os.Remove(indexPath(s.path))                    // it only points
		if err := p.disk.SyncFolder(p.folder); err != nil { // else a later one could be gone after a cut, and this one not
			return 0, err
		}
	}
	return count, p.dropKept()
}

func (p *pruner) segments() ([]prunable, error) {
	paths, err := listSegments(p.folder)
	if err != nil {
		return nil, err
	}
	var out []prunable
	for _, path := range paths {
		f, err := os.Open(path)
		if err != nil {
			return nil, err
		}
		head := make([]byte, layout.SegmentHeaderBytes)
		_, err = io.ReadFull(f, head)
		info, statErr := f.Stat()
		f.Close()
		if err := errors.Join(err, statErr); err != nil {
			return nil, err
		}
		first := binary.LittleEndian.Uint64(head[layout.SegOffFirstSequence:])
		t, err := decodeTree(first-1, head[layout.SegOffTreeRange:layout.SegOffCrc32c])
		if err != nil {
			return nil, err
		}
		out = append(out, prunable{path, first, info.Size(), binary.LittleEndian.Uint64(head[layout.SegOffCreatedNs:]), t})
	}
	return out, nil
}

// due is how many of the oldest segments go: all of their records are under a
// checkpoint, and the last segment stays.
func (p *pruner) due(segments []prunable, sealed uint64) int {
	var total int64
	for _, s := range segments {
		total += s.size
	}
	oldest, count := p.now().Add(-p.retention.Age).UnixNano(), 0
	for i := 0; i+1 < len(segments); i++ {
		later := segments[i+1]
		aged := p.retention.Age > 0 && int64(later.createdNs) < oldest
		if later.first-1 > sealed || (total <= p.retention.BytesMax && !aged) {
			break
		}
		total -= segments[i].size
		count++
	}
	return count
}

func (p *pruner) copy(path string) error {
	target := filepath.Join(p.retention.Archive, filepath.Base(p.folder), filepath.Base(path))
	data, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	if info, err := os.Stat(target); err == nil && info.Size() == int64(len(data)) {
		return nil
	}
	if err := os.MkdirAll(filepath.Dir(target), 0o755); err != nil {
		return err
	}
	return replaceFile(target, data, 0o640)
}

// place is a record by its fixed offsets, unchecked: the writer reads what it wrote.
type place struct {
	sequence uint64
	kind     uint16
	event    uint32
	record   []byte
}

// walk visits the records of a segment until visit says stop.
func walk(s *prunable, visit func(place) (stop bool)) (bool, error) {
	data, err := os.ReadFile(s.path)
	if err != nil {
		return false, err
	}
	le, sequence := binary.LittleEndian, s.first
	for at := layout.SegmentHeaderBytes; at+layout.HeaderBytes <= len(data); sequence++ {
		r := data[at:]
		length := int(le.Uint16(r[layout.OffLength:]))
		if string(r[:4]) != layout.Magic || length < layout.HeaderBytes || length > len(r) {
			break
		}
		if visit(place{sequence, le.Uint16(r[layout.OffKind:]), le.Uint32(r[layout.OffEventID:]), r[:length]}) {
			return true, nil
		}
		at += length
	}
	return false, nil
}

// keep writes the kept records of the first of these segments, each with a proof
// to the first checkpoint over all of them.
func (p *pruner) keep(segments []prunable) error {
	var wanted []place
	if _, err := walk(&segments[0], func(r place) bool {
		if keptClass(r.event) != "" {
			r.record = bytes.Clone(r.record)
			wanted = append(wanted, r)
		}
		return false
	}); err != nil || len(wanted) == 0 {
		return err
	}
	checkpoint, size, leaves, err := covering(segments, wanted[len(wanted)-1].sequence)
	if err != nil {
		return err
	}
	s := newSubtrees(segments[0].tree, leaves)
	files := map[string][]byte{}
	for _, r := range wanted {
		b64 := base64.StdEncoding.EncodeToString
		lines := []string{"c2sp.org/tlog-proof@v1", "extra " + b64(r.record), fmt.Sprintf("index %d", r.sequence-1)}
		for _, hash := range s.path(r.sequence-1, size) {
			lines = append(lines, b64(hash))
		}
		proof := strings.Join(lines, "\n") + "\n\n" + string(checkpoint)
		class := keptClass(r.event)
		files[class] = append(files[class], fmt.Sprintf("%d\n%s", len(proof), proof)...)
	}
	for _, class := range keptClasses {
		if len(files[class]) > 0 {
			if err := p.write(filepath.Join(p.folder, fmt.Sprintf("kept-%s-%020d.proofs", class, segments[0].first)), files[class]); err != nil {
				return err
			}
		}
	}
	return nil
}

// covering finds the first checkpoint over a record, its size, and the leaf
// hashes up to there: each stands in the record behind.
func covering(segments []prunable, sequence uint64) (checkpoint []byte, size uint64, leaves [][]byte, err error) {
	for i := range segments {
		found, err := walk(&segments[i], func(r place) bool {
			if r.sequence > segments[0].first {
				leaves = append(leaves, bytes.Clone(r.record[layout.OffPreviousLeafHash:layout.OffPreviousLeafHash+32]))
			}
			if r.kind != layout.KindCheckpoint || r.sequence <= sequence {
				return false
			}
			var stranger *note.UnverifiedNoteError
			_, err := note.Open(r.record[layout.HeaderBytes:], note.VerifierList())
			if !errors.As(err, &stranger) {
				return false
			}
			if _, size, _ = treeHead(stranger.Note.Text); size < sequence {
				return false
			}
			checkpoint = bytes.Clone(r.record[layout.HeaderBytes:])
			return true
		})
		if err != nil || found {
			return checkpoint, size, leaves, err
		}
	}
	return nil, 0, nil, fmt.Errorf("record %d is under no checkpoint", sequence)
}

func (p *pruner) write(path string, data []byte) error {
	partial := path + ".partial"
	f, err := p.disk.Open(partial, true)
	if err != nil {
		return err
	}
	err = p.disk.WriteAt(f, data, 0)
	if err == nil {
		err = p.disk.Sync(f)
	}
	if err := errors.Join(err, f.Close()); err != nil {
		return err
	}
	if err := p.disk.Rename(partial, path); err != nil {
		return err
	}
	return p.disk.SyncFolder(p.folder)
}

// dropKept: each class has room of its own, so that many events of one do not
// push out another's.
func (p *pruner) dropKept() error {
	entries, err := os.ReadDir(p.folder)
	if err != nil {
		return err
	}
	room := map[string]int64{}
	for _, e := range slices.Backward(entries) {
		parts := strings.Split(e.Name(), "-")
		if len(parts) != 3 || parts[0] != "kept" || !strings.HasSuffix(e.Name(), ".proofs") {
			continue
		}
		info, err := e.Info()
		if err != nil {
			return err
		}
		room[parts[1]] += info.Size()
		if room[parts[1]] > p.retention.KeptBytesMax {
			if err := p.disk.Remove(filepath.Join(p.folder, e.Name())); err != nil {
				return err
			}
		}
	}
	return nil
}

// subtrees gives roots of subtrees where the first leaves are known by their
// compact range only.
type subtrees struct {
	size   uint64
	hashes [][]byte // of the compact range, largest first
	leaves [][]byte
	known  map[[2]uint64][]byte
}

func newSubtrees(base *tree, leaves [][]byte) *subtrees {
	return &subtrees{base.size(), base.r.Hashes(), leaves, map[[2]uint64][]byte{}}
}

// root of the leaves [begin, end), a subtree of an inclusion proof.
func (s *subtrees) root(begin, end uint64) []byte {
	if begin >= s.size {
		return s.node(begin-s.size, end-s.size)
	}
	at := uint64(0)
	for i, hash := range s.hashes { // the suffix of the range that begins here
		width := uint64(1) << (bits.Len64(s.size-at) - 1)
		if at != begin {
			at += width
			continue
		}
		if end == at+width {
			return hash
		}
		r, err := ranges.NewRange(0, s.size-begin, slices.Clone(s.hashes[i:])) // appending writes into what it is given
		for _, leaf := range s.leaves[:end-s.size] {
			err = errors.Join(err, r.Append(leaf, nil))
		}
		if err == nil {
			var root []byte
			if root, err = r.GetRootHash(nil); err == nil {
				return root
			}
		}
		panic(err) // the range is one that decodeTree made
	}
	panic("a subtree that no inclusion proof has")
}

func (s *subtrees) node(begin, end uint64) []byte {
	if end-begin == 1 {
		return s.leaves[begin]
	}
	key := [2]uint64{begin, end}
	if s.known[key] == nil {
		split := begin + 1<<(bits.Len64(end-begin-1)-1)
		s.known[key] = rfc6962.DefaultHasher.HashChildren(s.node(begin, split), s.node(split, end))
	}
	return s.known[key]
}

// path is the inclusion proof of a leaf in the tree of size leaves, nearest
// first (RFC 6962, section 2.1.1).
func (s *subtrees) path(index, size uint64) [][]byte {
	var out [][]byte
	begin, end := uint64(0), size
	for end-begin > 1 {
		split := begin + 1<<(bits.Len64(end-begin-1)-1)
		if index < split {
			out, end = append(out, s.root(split, end)), split
		} else {
			out, begin = append(out, s.root(begin, split)), split
		}
	}
	slices.Reverse(out)
	return out
}
