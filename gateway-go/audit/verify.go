// Package audit reads and verifies audit logs offline. It shares nothing with
// the writers but the generated layout (docs/audit-format.md).
package audit

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"time"

	"vigil/gateway/audit/layout"
	"vigil/gateway/internal/events"
)

// ErrNoLog says that a folder holds no audit log.
var ErrNoLog = errors.New("no audit log (segment-*.vlog) here")

// Damage says where a log stops being intact, and why.
type Damage struct {
	File     string `json:"file"`
	Offset   int64  `json:"offset"`
	Sequence uint64 `json:"sequence"`
	Reason   string `json:"reason"`
}

// Error lets a Damage travel as an error.
func (d *Damage) Error() string {
	if d.File == "" { // what only another log shows has no place in this one
		return fmt.Sprintf("record %d: %s", d.Sequence, d.Reason)
	}
	return fmt.Sprintf("record %d (%s, byte %d): %s", d.Sequence, d.File, d.Offset, d.Reason)
}

// Exit codes of a verification.
const (
	ExitVerified   = 0
	ExitUnreadable = 1
	ExitUnsealed   = 3
	ExitForged     = 4
	ExitNoLog      = 5
	ExitNoKey      = 6
)

// Report is what a verification found. Intact says that every record is whole
// and chained, which anybody who can write the folder can bring about. Only
// Sealed records are covered by the signature of a trusted key; ExitCode is the
// verdict (docs/audit-format.md).
type Report struct {
	Folder        string            `json:"folder"`
	Intact        bool              `json:"intact"`
	ExitCode      int               `json:"exit_code"`
	Verdict       string            `json:"verdict"`
	Log           string            `json:"log"`
	Records       uint64            `json:"records"`
	FirstSequence uint64            `json:"first_sequence"`
	LastSequence  uint64            `json:"last_sequence"`
	Pruned        uint64            `json:"pruned"`
	Kept          int               `json:"kept"`
	KeptUnproven  int               `json:"kept_unproven"`
	Sealed        uint64            `json:"sealed"`
	Unsealed      uint64            `json:"unsealed"`
	UnsealedS     float64           `json:"unsealed_s"`
	Witnessed     uint64            `json:"witnessed"`
	UnwitnessedS  float64           `json:"unwitnessed_s"`
	Checkpoints   uint64            `json:"checkpoints"`
	Rotations     uint64            `json:"rotations"`
	Unlogged      uint64            `json:"unlogged"`
	TornBytes     int64             `json:"torn_bytes"`
	Boots         int               `json:"boots"`
	Closed        bool              `json:"closed"`
	Kinds         map[string]uint64 `json:"kinds"`
	Segments      int               `json:"segments"`
	Head          string            `json:"head"`
	Root          string            `json:"root"`
	Damage        *Damage           `json:"damage"`
}

// Record is one record as read. Header and Payload are valid until the next.
type Record struct {
	File     string
	Offset   int64
	Sequence uint64
	Header   []byte
	Payload  []byte
	Leaf     [32]byte
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

type reader struct {
	next     uint64
	leaf     [32]byte
	instance []byte
	opened   func(header []byte) error
	visit    func(*Record) error
	record   Record
	// taken: bytes of the record that was visited last, still before the reader.
	taken int
	event uint32 // the last id that was found in the catalogue
}

func (r *reader) damage(file string, offset int64, format string, args ...any) error {
	return &Damage{file, offset, r.next, fmt.Sprintf(format, args...)}
}

func (r *reader) header(name string, in io.Reader) error {
	b := make([]byte, layout.SegmentHeaderBytes)
	if _, err := io.ReadFull(in, b); err != nil {
		return r.damage(name, 0, "segment is shorter than its header")
	}
	le := binary.LittleEndian
	if string(b[:layout.SegOffVersion]) != layout.SegmentMagic {
		return r.damage(name, 0, "not a segment: wrong magic")
	}
	v, rv := le.Uint16(b[layout.SegOffVersion:]), le.Uint16(b[layout.SegOffRecordVersion:])
	if v != layout.SegmentVersion || rv != layout.Version {
		return r.damage(name, 8, "unknown layout version %d/%d", v, rv)
	}
	if n := le.Uint32(b[layout.SegOffHeaderBytes:]); n != layout.SegmentHeaderBytes {
		return r.damage(name, 12, "header of %d bytes, expected %d", n, layout.SegmentHeaderBytes)
	}
	if !logName.Match(b[layout.SegOffLogName:layout.SegOffTreeRange]) {
		return r.damage(name, 80, "the log's name is not of small letters, digits and hyphens")
	}
	rest := b[layout.SegOffCrc32c+4:]
	if le.Uint32(b[layout.SegOffCrc32c:]) != crc32.Checksum(b[:layout.SegOffCrc32c], castagnoli) || !zero(rest) {
		return r.damage(name, layout.SegOffCrc32c, "segment header is damaged")
	}
	first := le.Uint64(b[layout.SegOffFirstSequence:])
	if r.instance == nil && first > 1 { // whether the beginning was pruned is for opened to judge
		r.next = first
		copy(r.leaf[:], b[layout.SegOffPreviousLeafHash:])
	}
	if first != r.next || name != fmt.Sprintf("segment-%020d.vlog", first) {
		return r.damage(name, 0, "segment starts at %d, expected %d", first, r.next)
	}
	instance := b[layout.SegOffInstance : layout.SegOffInstance+16]
	previous := b[layout.SegOffPreviousLeafHash : layout.SegOffPreviousLeafHash+32]
	if !bytes.Equal(previous, r.leaf[:]) || (r.instance != nil && !bytes.Equal(instance, r.instance)) {
		return r.damage(name, 0, "segment does not continue the one before")
	}
	r.instance = bytes.Clone(instance)
	if err := r.opened(b); err != nil {
		return r.damage(name, 0, "%v", err)
	}
	return nil
}

var zeros [readAhead]byte

// zero says whether all bytes, at most readAhead, are 0.
func zero(b []byte) bool { return bytes.Equal(b, zeros[:len(b)]) }

func (r *reader) tail(name string, at int64, in *bufio.Reader) error {
	for {
		b, err := in.Peek(in.Size())
		if !zero(b) {
			return r.damage(name, at, "bytes behind the last record")
		}
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		_, _ = in.Discard(len(b))
	}
}

func (r *reader) check(name string, at int64, head, payload []byte) error {
	le := binary.LittleEndian
	crc := crc32.Update(crc32.Update(0, castagnoli, head[:layout.OffCrc32c]), castagnoli, payload)
	if crc != le.Uint32(head[layout.OffCrc32c:]) {
		return r.damage(name, at, "CRC-32C does not match: the record was changed")
	}
	if id := le.Uint32(head[layout.OffEventID:]); id != r.event || id == 0 { // mostly as before
		if events.Names[id] == "" {
			return r.damage(name, at, "event %d is not in the catalogue", id)
		}
		r.event = id
	}
	if kind := le.Uint16(head[layout.OffKind:]); layout.KindNames[kind] == "" {
		return r.damage(name, at, "unknown kind %d", kind)
	}
	if sequence := le.Uint64(head[layout.OffSequence:]); sequence != r.next {
		return r.damage(name, at, "sequence is %d, expected %d", sequence, r.next)
	}
	if !bytes.Equal(head[layout.OffInstance:layout.OffInstance+16], r.instance) {
		return r.damage(name, at, "record of another log")
	}
	if !bytes.Equal(head[layout.OffPreviousLeafHash:layout.OffPreviousLeafHash+32], r.leaf[:]) {
		return r.damage(name, at, "does not chain to the record before")
	}
	return nil
}

// fresh says whether a file was written just now.
func fresh(f *os.File) bool {
	info, err := f.Stat()
	return err == nil && time.Since(info.ModTime()).Abs() < writtenAgo
}

// writtenNow says whether the last segment was written just now.
func writtenNow(folder string) bool {
	paths, err := listSegments(folder)
	if err != nil || len(paths) == 0 {
		return false
	}
	info, err := os.Stat(paths[len(paths)-1])
	return err == nil && time.Since(info.ModTime()).Abs() < writtenAgo
}

// segment reads one segment. At a fault in the last one of a log, if it was
// written just now, it is read again: a record in the making can be seen in part.
func (r *reader) segment(path string, last bool) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	name := filepath.Base(path)
	if err := r.header(name, f); err != nil {
		return err
	}
	in := bufio.NewReaderSize(f, readAhead)
	if err := r.seek(f, in, layout.SegmentHeaderBytes); err != nil {
		return err
	}
	for at, tries := int64(layout.SegmentHeaderBytes), 0; ; {
		length, err := r.read(in, name, at)
		var damage *Damage
		switch {
		case err == io.EOF:
			return nil
		case last && tries < tornTries && errors.As(err, &damage) && fresh(f):
			tries++
			time.Sleep(tornWait)
			if err := r.seek(f, in, at); err != nil {
				return err
			}
			continue
		case err != nil:
			return err
		}
		if err := r.visit(&r.record); errors.Is(err, errEnough) {
			return err
		} else if err != nil {
			return r.damage(name, at, "%v", err)
		}
		r.next++
		at, tries = at+int64(length), 0
	}
}

// seek lets the reader go on at a record. It stays one byte before it.
func (r *reader) seek(f *os.File, in *bufio.Reader, at int64) error {
	r.taken = 0
	_, err := f.Seek(at-1, io.SeekStart)
	in.Reset(f)
	return err
}

// readAhead is the size of the reader's buffer; a record fits.
const readAhead = 1 << 20

// read reads the next record and checks it against the one before; io.EOF is the end.
func (r *reader) read(in *bufio.Reader, name string, at int64) (length int, err error) {
	if _, err := in.Discard(r.taken); err != nil {
		return 0, err
	}
	r.taken = 0
	le := binary.LittleEndian
	b, err := in.Peek(1 + layout.HeaderBytes)
	if err != nil && err != io.EOF {
		return 0, err
	}
	head := b[min(1, len(b)):]
	if (len(head) == 0 || head[0] == 0) && zero(head) {
		_, _ = in.Discard(min(1, len(b)))
		if err := r.tail(name, at, in); err != nil {
			return 0, err
		}
		return 0, io.EOF
	}
	if len(head) < layout.HeaderBytes {
		return 0, r.damage(name, at, "record is cut off")
	}
	if string(head[:4]) != layout.Magic || le.Uint16(head[layout.OffVersion:]) != layout.Version {
		return 0, r.damage(name, at, "no record here: wrong magic or version")
	}
	if length = int(le.Uint16(head[layout.OffLength:])); length < layout.HeaderBytes {
		return 0, r.damage(name, at, "length %d is shorter than a header", length)
	}
	if b, err = in.Peek(1 + length); err == io.EOF {
		return 0, r.damage(name, at, "record is cut off")
	} else if err != nil {
		return 0, err
	}
	head, payload := b[1:1+layout.HeaderBytes], b[1+layout.HeaderBytes:]
	if err := r.check(name, at, head, payload); err != nil {
		return 0, err
	}
	b[0] = 0 // the last byte of the record before, which was visited: a leaf is hashed behind a zero
	r.leaf = sha256.Sum256(b)
	r.record = Record{name, at, r.next, head, payload, r.leaf}
	r.taken = length
	return length, nil
}

// Read visits every record of a log in order. A fault of the log, or what visit
// objects to, is a *Damage.
func Read(folder string, visit func(*Record) error) (segments int, err error) {
	return read(folder, func([]byte) error { return nil }, visit)
}

var logName = regexp.MustCompile(`^[a-z0-9-]{1,31}\x00+$`)

// segmentBytesMax is as large as audit.segment_bytes may be.
const segmentBytesMax = 1 << 30

// segmentForm is the name of a segment: its first sequence in 20 digits.
var segmentForm = regexp.MustCompile(`^segment-[0-9]{20}\.vlog$`)

func listSegments(folder string) ([]string, error) {
	entries, err := os.ReadDir(folder) // sorted by name; a pattern would read meaning into the folder's own name
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%s: %w", folder, ErrNoLog)
	}
	if err != nil {
		return nil, err
	}
	var paths []string
	for _, e := range entries {
		if !segmentForm.MatchString(e.Name()) {
			continue
		}
		if !e.Type().IsRegular() {
			return nil, fmt.Errorf("%s is not a regular file", filepath.Join(folder, e.Name()))
		}
		info, err := e.Info()
		if errors.Is(err, fs.ErrNotExist) { // pruned meanwhile
			continue
		}
		if err != nil {
			return nil, err
		}
		if info.Size() > segmentBytesMax {
			return nil, fmt.Errorf("%s has more than %d bytes, which no writer makes", filepath.Join(folder, e.Name()), segmentBytesMax)
		}
		paths = append(paths, filepath.Join(folder, e.Name()))
	}
	return paths, nil
}

func read(folder string, opened func(header []byte) error, visit func(*Record) error) (segments int, err error) {
	paths, err := listSegments(folder)
	if err != nil {
		return 0, err
	}
	if len(paths) == 0 {
		return 0, fmt.Errorf("%s: %w", folder, ErrNoLog)
	}
	return len(paths), readSegments(paths, opened, visit)
}

// errEnough is what visit returns when nothing more is to be read.
var errEnough = errors.New("enough was read")

// readSegments reads neighbouring segments of a log in order.
func readSegments(paths []string, opened func(header []byte) error, visit func(*Record) error) error {
	r := &reader{next: 1, opened: opened, visit: visit}
	for i, path := range paths {
		if err := r.segment(path, i == len(paths)-1); errors.Is(err, errEnough) {
			return nil
		} else if err != nil {
			return err
		}
	}
	return nil
}
