package audit

import (
	"bytes"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strings"

	"github.com/transparency-dev/merkle/compact"
	"github.com/transparency-dev/merkle/proof"
	"github.com/transparency-dev/merkle/rfc6962"

	"vigil/gateway/audit/layout"
)

// ErrNotProven says that no proof can be made of a record; ErrPart that a part
// cannot be verified by itself.
var (
	ErrNotProven = errors.New("not proven")
	ErrPart      = errors.New("no such part")
)

// from are the segments from the one on that holds a sequence; none when the
// sequence is before the first one.
func from(folder string, sequence uint64) ([]string, error) {
	all, err := listSegments(folder)
	if err != nil {
		return nil, err
	}
	if len(all) == 0 {
		return nil, fmt.Errorf("%s: %w", folder, ErrNoLog)
	}
	at := 0
	for i, path := range all {
		if firstOf(path) <= sequence {
			at = i
		}
	}
	if firstOf(all[at]) > sequence {
		return nil, nil
	}
	return all[at:], nil
}

// whileThere tries again when segments are pruned meanwhile.
func whileThere[T any](do func() (T, error)) (T, error) {
	for try := 0; ; try++ {
		out, err := do()
		if try == prunedTriesMax || !errors.Is(err, fs.ErrNotExist) || errors.Is(err, ErrNoLog) {
			return out, err
		}
	}
}

// MakeProof gives a proof (C2SP tlog-proof) with the record in it that a record
// is under the first checkpoint behind it. It reads from the record's segment to
// that checkpoint, twice: the segment's header has the tree before it. Whether a
// trusted key signed is for CheckProof to say. ErrNotProven or a *Damage says why
// there is none.
func MakeProof(folder string, sequence uint64) ([]byte, error) {
	return whileThere(func() ([]byte, error) { return makeProof(folder, sequence) })
}

func makeProof(folder string, sequence uint64) ([]byte, error) {
	paths, err := from(folder, sequence)
	if err != nil {
		return nil, err
	}
	if len(paths) == 0 {
		return keptProof(folder, sequence)
	}
	var begin *tree
	var record, checkpoint []byte
	var size uint64
	opened := func(b []byte) (err error) {
		if begin == nil {
			first := binary.LittleEndian.Uint64(b[layout.SegOffFirstSequence:])
			begin, err = decodeTree(first-1, b[layout.SegOffTreeRange:layout.SegOffCrc32c])
		}
		return err
	}
	err = readSegments(paths, opened, func(r *Record) error {
		if r.Sequence == sequence {
			record = bytes.Join([][]byte{r.Header, r.Payload}, nil)
			return nil
		}
		if record == nil || binary.LittleEndian.Uint16(r.Header[layout.OffKind:]) != layout.KindCheckpoint {
			return nil
		}
		text, _, err := openNote(r.Payload, nil)
		if err != nil {
			return err
		}
		head, err := parseHead(text)
		if err != nil {
			return err
		}
		if head.size < sequence || head.size >= r.Sequence {
			return nil
		}
		checkpoint, size = bytes.Clone(r.Payload), head.size
		return errEnough
	})
	var damage *Damage
	switch {
	case err != nil && !errors.As(err, &damage):
		return nil, err
	case err != nil && (record == nil || !writtenNow(folder)):
		return nil, damage
	case record == nil:
		return nil, fmt.Errorf("%w: record %d is not in the log", ErrNotProven, sequence)
	case checkpoint == nil:
		return nil, fmt.Errorf("%w: no checkpoint covers record %d yet; wait for the next one (audit.checkpoint_interval_s)", ErrNotProven, sequence)
	}
	path, err := inclusion(paths, begin, sequence-1, size)
	if err != nil {
		return nil, err
	}
	b64 := base64.StdEncoding.EncodeToString
	lines := []string{proofTitle, "extra " + b64(record), fmt.Sprintf("index %d", sequence-1)}
	for _, hash := range path {
		lines = append(lines, b64(hash))
	}
	return []byte(strings.Join(lines, "\n") + "\n\n" + string(checkpoint)), nil
}

// inclusion is the audit path of a leaf in the tree of size records.
func inclusion(paths []string, begin *tree, index, size uint64) ([][]byte, error) {
	nodes, err := proof.Inclusion(index, size)
	if err != nil {
		return nil, err
	}
	hashes := map[compact.NodeID][]byte{}
	for _, id := range nodes.IDs {
		hashes[id] = nil
	}
	keep := func(id compact.NodeID, hash []byte) {
		if _, ok := hashes[id]; ok {
			hashes[id] = hash
		}
	}
	before := make([][]byte, len(begin.hashes))
	for i := range begin.hashes {
		before[i] = begin.hashes[i][:]
	}
	for i, id := range compact.RangeNodes(0, begin.size, nil) {
		keep(id, before[i])
	}
	factory := compact.RangeFactory{Hash: rfc6962.DefaultHasher.HashChildren}
	all, err := factory.NewRange(0, begin.size, before)
	if err != nil {
		return nil, err
	}
	if err := readSegments(paths, func([]byte) error { return nil }, func(r *Record) error {
		if r.Sequence > size {
			return errEnough
		}
		return all.Append(bytes.Clone(r.Leaf[:]), keep)
	}); err != nil {
		return nil, err
	}
	path := make([][]byte, len(nodes.IDs))
	for i, id := range nodes.IDs {
		if path[i] = hashes[id]; path[i] == nil {
			return nil, fmt.Errorf("%w: the log's tree before its segment does not fit", ErrNotProven)
		}
	}
	return nodes.Rehash(path, factory.Hash)
}

// keptProof is the proof of a record that was kept when its segment was pruned.
func keptProof(folder string, sequence uint64) ([]byte, error) {
	found, err := readKept(folder)
	if err != nil {
		return nil, err
	}
	for _, k := range found {
		if k.proven.Sequence == sequence {
			return k.proof, nil
		}
	}
	return nil, fmt.Errorf("%w: record %d was pruned, and is not among the kept ones; look for its segment in the archive", ErrNotProven, sequence)
}

// VerifyPart checks the records of a log from one sequence to another, both 0
// being the whole log, against its signed checkpoints. From 0 the beginning of the
// log is judged too, as VerifyAll does. A part that begins later is read in whole
// segments, from the one that holds its first record to the first trusted checkpoint
// behind its last; what comes before it is not judged, and says the verdict. Nor are
// rotations before it followed: of several keys for one log nobody could say which
// was in force, so that is ErrPart, as is a part that begins before the log does.
// Anchors of other logs are for VerifyAll. Progress hears, after every thousand
// records, how many records and bytes were read, and of how many bytes.
func VerifyPart(folder string, first, last uint64, trusted []Key, progress func(records, bytes, total uint64)) (*Report, error) {
	var place Damage
	for try := 0; ; try++ {
		l, err := whileThere(func() (*log, error) { return verifyPart(folder, first, last, trusted, progress) })
		if err != nil {
			return nil, err
		}
		if try == prunedTriesMax || !l.again(&place) {
			return l.report, nil
		}
	}
}

func verifyPart(folder string, first, last uint64, trusted []Key, progress func(records, bytes, total uint64)) (*log, error) {
	paths, err := from(folder, first)
	if first == 0 && err == nil {
		paths, err = listSegments(folder)
	}
	if err != nil {
		return nil, err
	}
	if len(paths) == 0 {
		return nil, fmt.Errorf("%w: record %d is before the first one here; it was pruned, or taken out: verify from 0", ErrPart, first)
	}
	total, read := uint64(0), uint64(0)
	for _, path := range paths {
		if info, err := os.Stat(path); err == nil && (last == 0 || first == 0 || firstOf(path) <= last) {
			total += uint64(info.Size())
		}
	}
	l := newLog(folder, trusted, nil)
	l.part = first > 0
	err = readSegments(paths, l.opened, func(r *Record) error {
		if err := l.record(r); err != nil {
			return err
		}
		read += uint64(len(r.Header) + len(r.Payload))
		if l.report.Records%1024 == 0 {
			progress(l.report.Records, read, total)
		}
		if !l.part {
			return nil
		}
		if covered := l.seals.sealed >= last || (len(l.seals.active) == 0 && l.seals.lastSize >= last); last > 0 && r.Sequence >= last && covered {
			return errEnough
		}
		return nil
	})
	if err := l.finish(err, len(paths)); err != nil {
		return nil, err
	}
	if r := l.report; last > 0 && r.Sealed > 0 {
		r.Unsealed = 0
		if end := min(last, r.LastSequence); end > r.Sealed {
			r.Unsealed = end - r.Sealed
		}
	}
	l.judge()
	if r := l.report; l.part && r.Damage == nil {
		mine := slices.Clone(trusted)
		if mine = slices.DeleteFunc(mine, func(k Key) bool { return k.Name() != r.Log }); len(mine) > 1 {
			return nil, fmt.Errorf("%w: %d keys of this log are given; give the one that was in force there, or verify from 0", ErrPart, len(mine))
		}
		r.Verdict += fmt.Sprintf("; of records %d to %d: what comes before is not judged", r.FirstSequence, r.LastSequence)
	}
	return l, nil
}
