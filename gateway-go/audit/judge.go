package audit

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"slices"
	"strings"

	"vigil/gateway/audit/layout"
	"vigil/gateway/internal/events"
)

// log is one log on its way through verification.
type log struct {
	report  *Report
	trusted []Key
	wanted  map[uint64]bool
	seals   *seals
	boots   map[string]bool
	kinds   map[uint16]uint64
	head    [32]byte
	boot    string
	monoNs  uint64
	lastNs  uint64
	part    bool // not the whole log: pruning and what was kept are not judged
}

func (l *log) opened(b []byte) error {
	le := binary.LittleEndian
	name := string(bytes.TrimRight(b[layout.SegOffLogName:layout.SegOffTreeRange], "\x00"))
	origin := "vigil/" + name + "/" + hex.EncodeToString(b[layout.SegOffInstance:layout.SegOffInstance+16])
	size, data := le.Uint64(b[layout.SegOffFirstSequence:])-1, b[layout.SegOffTreeRange:layout.SegOffCrc32c]
	stated, err := decodeTree(size, data)
	if err != nil {
		return err
	}
	if l.seals == nil {
		l.report.Log, l.report.Pruned = origin, size
		l.seals = newSeals(origin, l.trusted, stated, l.wanted)
		instance := b[layout.SegOffInstance : layout.SegOffInstance+16]
		if !l.part {
			l.report.Kept, l.report.KeptUnproven, err = checkKept(l.report.Folder, l.seals, instance)
		}
		if err != nil {
			return err
		}
	}
	if origin != l.report.Log {
		return errors.New("a segment of another log")
	}
	if stated.root() != l.seals.root() {
		return errors.New("the segment's tree is not that of the records before it")
	}
	l.seals.segment()
	return nil
}

func (l *log) record(r *Record) error {
	le, report := binary.LittleEndian, l.report
	if b := r.Header[layout.OffBootID : layout.OffBootID+16]; string(b) != l.boot { // no allocation: the compiler sees to it
		boot := string(b)
		if l.boots[boot] {
			return errors.New("a run goes on after another one began")
		}
		l.boots[boot] = true
		l.boot, l.monoNs = boot, 0
	}
	mono, timeNs := le.Uint64(r.Header[layout.OffMonotonicNs:]), le.Uint64(r.Header[layout.OffTimeNs:])
	if mono < l.monoNs {
		return errors.New("monotonic time runs backwards within a run")
	}
	l.monoNs, l.lastNs = mono, timeNs
	kind := le.Uint16(r.Header[layout.OffKind:])
	if kind != layout.KindCheckpoint {
		report.Closed = le.Uint32(r.Header[layout.OffEventID:]) == events.LogClosed
	}
	if err := l.seals.record(kind, r.Sequence, timeNs, r.Payload, r.Leaf); err != nil {
		return err
	}
	if report.Records == 0 {
		report.FirstSequence = r.Sequence
	}
	report.Records++
	report.LastSequence, l.head = r.Sequence, r.Leaf
	if le.Uint32(r.Header[layout.OffEventID:]) == events.Unlogged {
		report.Unlogged += uint64(le.Uint32(r.Header[layout.OffBatchSize:]))
	}
	l.kinds[kind]++
	return nil
}

// readLog reads a log that may be written and pruned meanwhile: then once more.
func readLog(folder string, trusted []Key, wanted map[uint64]bool) (*log, error) {
	var place Damage
	for try := 0; ; try++ {
		l, err := readOnce(folder, trusted, wanted)
		gone := errors.Is(err, fs.ErrNotExist) && !errors.Is(err, ErrNoLog)
		if try == prunedTriesMax || (!gone && (err != nil || !l.again(&place))) {
			return l, err
		}
	}
}

// again says whether damage may have been a record in the making: then it is not
// there another time. Place is where it was the time before.
func (l *log) again(place *Damage) bool {
	d := l.report.Damage
	if d == nil || *d == *place || !writtenNow(l.report.Folder) {
		return false
	}
	*place = *d
	return true
}

// prunedTriesMax is how often a log is read again whose segments are pruned meanwhile.
const prunedTriesMax = 5

func newLog(folder string, trusted []Key, wanted map[uint64]bool) *log {
	return &log{report: &Report{Folder: folder, Kinds: map[string]uint64{}, UnsealedS: -1, UnwitnessedS: -1},
		trusted: trusted, wanted: wanted, boots: map[string]bool{}, kinds: map[uint16]uint64{}}
}

func readOnce(folder string, trusted []Key, wanted map[uint64]bool) (*log, error) {
	l := newLog(folder, trusted, wanted)
	segments, err := read(folder, l.opened, l.record)
	return l, l.finish(err, segments)
}

// finish takes what ended the reading into the report; the error is about reading.
func (l *log) finish(err error, segments int) error {
	l.report.Segments, l.report.Boots = segments, len(l.boots)
	for kind, count := range l.kinds {
		l.report.Kinds[layout.KindNames[kind]] = count
	}
	if l.report.Records > 0 {
		l.report.Head = hex.EncodeToString(l.head[:])
	}
	var damage *Damage
	switch {
	case errors.As(err, &damage):
		torn, err := l.tornBytes(l.report.Folder, damage)
		if err != nil {
			return err
		}
		l.report.TornBytes, l.report.Intact = torn, torn > 0
		if torn == 0 {
			l.report.Damage = damage
		}
	case err != nil:
		return err
	default:
		l.report.Intact = true
	}
	if s := l.seals; s != nil {
		l.report.Checkpoints, l.report.Rotations, l.report.Sealed = s.checkpoints, s.rotations, s.sealed
		l.report.Root = hex.EncodeToString([]byte(s.root()))
		l.report.Unsealed = l.report.Pruned + l.report.Records - s.sealed
		if s.sealed > 0 {
			if l.report.Pruned > 0 && !l.part && !s.prunedByRight() {
				l.damaged(l.report.Pruned+1, "the log begins here, and no signed record says that those before were pruned")
			}
			if s.endsWithSeal {
				l.report.Unsealed--
			}
			l.report.UnsealedS = seconds(s.sealedNs, l.lastNs)
		}
	}
	return nil
}

func seconds(from, to uint64) float64 {
	if to < from {
		return 0
	}
	return float64(to-from) / 1e9
}

// damaged notes what only another log shows.
func (l *log) damaged(sequence uint64, format string, args ...any) {
	if l.report.Damage == nil {
		l.report.Intact, l.report.Damage = false, &Damage{Sequence: sequence, Reason: fmt.Sprintf(format, args...)}
	}
}

func (l *log) judge() {
	r := l.report
	switch {
	case !r.Intact:
		r.ExitCode, r.Verdict = ExitForged, "FORGED OR DAMAGED"
	case r.Sealed == 0:
		r.ExitCode, r.Verdict = ExitNoKey, "intact, but no signature by a trusted key"
	case r.Unsealed > 0 || r.TornBytes > 0:
		r.ExitCode, r.Verdict = ExitUnsealed, fmt.Sprintf("verified but for an unsealed tail of %d records (%.1f s)", r.Unsealed, r.UnsealedS)
		if r.TornBytes > 0 {
			r.Verdict += fmt.Sprintf(" and %d torn bytes", r.TornBytes)
		}
	default:
		r.ExitCode, r.Verdict = ExitVerified, "verified"
	}
}

type anchored struct {
	head *treeHead
	anchor
	by string
}

// crossCheck compares each log with what others anchored of it. An anchor counts
// when a trusted checkpoint of the log that holds it covers it, whoever signed
// the note: that log vouches for what it was given, and one that was cut off
// before a rotation does not name the later key any more. In the unsealed end
// anybody may have put an anchor: there it needs the signature of a known key.
func crossCheck(logs []*log, trusted []Key, witnesses []Witness) error {
	byOrigin, byName := map[string]*log{}, map[string]*log{}
	for _, l := range logs {
		if l.seals != nil {
			if first := byOrigin[l.report.Log]; first != nil {
				l.damaged(0, "the same log as %s: give each once, and every one that there is", first.report.Folder)
				continue
			}
			byOrigin[l.report.Log] = l
			byName[path.Dir(l.report.Log)] = l
		}
	}
	found := map[string][]anchored{}
	for _, l := range logs {
		if l.seals == nil || byOrigin[l.report.Log] != l {
			continue
		}
		for _, a := range l.seals.anchors {
			origin, _, _ := strings.Cut(string(a.note), "\n")
			other, keys := byOrigin[origin], trusted
			if other != nil {
				keys = slices.Concat(trusted, other.seals.known())
			}
			text, signed, err := openNote(a.note, keys)
			var head *treeHead
			if err == nil {
				head, err = parseHead(text)
			}
			covered := a.sequence <= l.seals.sealed
			// What is no checkpoint witnesses nothing.
			if err == nil && other != l && (covered || len(signed) > 0) {
				found[origin] = append(found[origin], anchored{head, a, l.report.Log})
			}
		}
	}
	for _, w := range witnesses {
		text, _, err := openNote(w.Note, trusted)
		var head *treeHead
		if err == nil {
			head, err = parseHead(text)
		}
		if err != nil {
			return fmt.Errorf("%w %s: %w", ErrWitness, w.Name, err)
		}
		if byName[path.Dir(head.origin)] == nil {
			return fmt.Errorf("%w %s: it is of %s, which is not given", ErrWitness, w.Name, head.origin)
		}
		found[head.origin] = append(found[head.origin], anchored{head, anchor{}, "witness " + w.Name})
	}
	for origin, anchors := range found {
		if l := byOrigin[origin]; l != nil {
			if err := l.compare(anchors, trusted); err != nil {
				return err
			}
		} else if l := byName[path.Dir(origin)]; l != nil {
			most := slices.MaxFunc(anchors, bySize)
			l.damaged(0, "%s holds a checkpoint of %d records of %s: that log is not here; give it too, or it was replaced by this one",
				most.by, most.head.size, origin)
		}
	}
	return nil
}

func bySize(a, b anchored) int { return cmp.Compare(a.head.size, b.head.size) }

func (l *log) compare(anchors []anchored, trusted []Key) error {
	r := l.report
	most := slices.MaxFunc(anchors, bySize)
	if most.head.size > r.LastSequence && r.Intact { // it may be written just now: the others were read later
		fresh, err := readLog(r.Folder, trusted, nil)
		if err != nil {
			return err
		}
		*l, r = *fresh, fresh.report
	}
	if most.head.size > r.LastSequence && (r.Damage == nil || r.Damage.Sequence > most.head.size) {
		l.damaged(r.LastSequence+1, "%s holds a checkpoint of %d records, %d are here: the end was cut off", most.by, most.head.size, r.LastSequence)
		return nil
	}
	wanted := map[uint64]bool{}
	for _, a := range anchors {
		wanted[a.head.size] = true
	}
	again, err := readLog(r.Folder, trusted, wanted)
	if err != nil {
		return err
	}
	for _, a := range anchors {
		if root, ok := again.seals.roots[a.head.size]; ok && root != a.head.root {
			l.damaged(a.head.size, "%s holds another root at %d records", a.by, a.head.size)
		}
	}
	r.Witnessed, r.UnwitnessedS = most.head.size, -1
	if most.timeNs > 0 { // a kept checkpoint has no time
		r.UnwitnessedS = seconds(most.timeNs, l.lastNs)
	}
	return nil
}

// ErrWitness says that a witness is no checkpoint of a log given.
var ErrWitness = errors.New("witness")

// Witness is a checkpoint that somebody kept outside.
type Witness struct {
	Name string
	Note []byte
}

// VerifyAll checks logs, each by itself and against what the others anchored of
// it and what outside witnesses kept. What is wrong with a log is in its report; the error is about reading.
// Keys that lie inside a log are never trusted.
func VerifyAll(folders []string, trusted []Key, witnesses ...Witness) ([]*Report, error) {
	var logs []*log
	for _, folder := range folders {
		l, err := readLog(folder, trusted, nil)
		if err != nil {
			return nil, err
		}
		logs = append(logs, l)
	}
	if err := crossCheck(logs, trusted, witnesses); err != nil {
		return nil, err
	}
	reports := make([]*Report, len(logs))
	for i, l := range logs {
		l.judge()
		reports[i] = l.report
	}
	return reports, nil
}

// Verify checks one log by itself.
func Verify(folder string, trusted ...Key) (*Report, error) {
	reports, err := VerifyAll([]string{folder}, trusted)
	if err != nil {
		return nil, err
	}
	return reports[0], nil
}
