package audit

import (
	"bytes"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"

	"github.com/transparency-dev/merkle/compact"
	"github.com/transparency-dev/merkle/proof"
	"github.com/transparency-dev/merkle/rfc6962"

	"vigil/gateway/audit/layout"
)

// ErrNotProven says that no proof can be made of a record.
var ErrNotProven = errors.New("not proven")

// from are the segments from the one on that holds a sequence; whole says that
// they are all there are. None when the sequence was pruned.
func from(folder string, sequence uint64) (paths []string, whole bool, err error) {
	all, err := listSegments(folder)
	if err != nil {
		return nil, false, err
	}
	if len(all) == 0 {
		return nil, false, fmt.Errorf("%s: %w", folder, ErrNoLog)
	}
	at := 0
	for i, path := range all {
		if firstOf(path) <= sequence {
			at = i
		}
	}
	if firstOf(all[at]) > sequence {
		return nil, false, nil
	}
	return all[at:], at == 0, nil
}

// MakeProof gives a proof (C2SP tlog-proof) with the record in it that a record
// is under the first checkpoint behind it. It reads from the record's segment to
// that checkpoint, twice: the segment's header has the tree before it. Whether a
// trusted key signed is for CheckProof to say. ErrNotProven or a *Damage says why
// there is none.
func MakeProof(folder string, sequence uint64) ([]byte, error) {
	paths, _, err := from(folder, sequence)
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
	case err != nil && (!errors.As(err, &damage) || record == nil):
		return nil, err
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

// VerifyPart checks the records of a log from one sequence to another, 0 being
// the first and the last there are, against its signed checkpoints: whole
// segments are read, from the one that holds the first to the first trusted
// checkpoint behind the last. Progress hears, after every thousand records,
// how many records and bytes were read, and of how many bytes. A part is judged by
// the keys that sign in it: rotations before it are not followed. Pruning, what was
// kept and the anchors of other logs are judged when nothing is left out.
func VerifyPart(folder string, first, last uint64, trusted []Key, progress func(records, bytes, total uint64)) (*Report, error) {
	for try := 0; ; try++ {
		report, err := verifyPart(folder, first, last, trusted, progress)
		if try == prunedTriesMax || !errors.Is(err, fs.ErrNotExist) || errors.Is(err, ErrNoLog) {
			return report, err
		}
	}
}

func verifyPart(folder string, first, last uint64, trusted []Key, progress func(records, bytes, total uint64)) (*Report, error) {
	paths, whole, err := from(folder, first)
	if err == nil && len(paths) == 0 { // it was pruned, or is 0: from the first on that there is
		whole = true
		paths, err = listSegments(folder)
	}
	if err != nil {
		return nil, err
	}
	total, read := uint64(0), uint64(0)
	for _, path := range paths {
		if info, err := os.Stat(path); err == nil && (last == 0 || firstOf(path) <= last) {
			total += uint64(info.Size())
		}
	}
	l := newLog(folder, trusted, nil)
	l.part = !whole || last > 0
	err = readSegments(paths, l.opened, func(r *Record) error {
		if err := l.record(r); err != nil {
			return err
		}
		read += uint64(len(r.Header) + len(r.Payload))
		if l.report.Records%1024 == 0 {
			progress(l.report.Records, read, total)
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
	return l.report, nil
}
