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
	"math"
	"os"
	"path/filepath"
	"slices"
	"sort"
	"strconv"
	"strings"
	"time"

	"vigil/gateway/audit/layout"
	"vigil/gateway/internal/events"
)

// Query says which records Select visits: every field that is set must match.
type Query struct {
	// FromNs inclusive, ToNs exclusive, UTC nanoseconds; 0 leaves it open.
	FromNs, ToNs uint64
	TraceID      [16]byte
	// Events and Tenants (hashes) hold any of which one must match.
	Events  []uint32
	Tenants [][32]byte
	// After and Before are sequences, both exclusive; 0 leaves it open.
	After, Before uint64
	NewestFirst   bool
	// Match judges what the header does not tell; nil for nothing.
	Match func(*Record) bool
	// Pause is asked now and then whether to stop; nil never stops.
	Pause func() bool
}

// Selected says what Select did.
type Selected struct {
	// Read counts the records that were looked at.
	Read uint64
	// Paused: where Pause stopped it, the After (or Before) with which to go on; else 0.
	Paused uint64
}

const (
	// clockMarginNs: a clock may have been set back between two segments.
	clockMarginNs = uint64(time.Hour)
	// tornTries is how often an unfinished record at the end of a log that is written is read again.
	tornTries = 20
	tornWait  = 5 * time.Millisecond
	// writtenAgo is how long ago a file that is being written was changed at most.
	writtenAgo = 2 * time.Second
	// pauseRecords is after how many records Pause is asked.
	pauseRecords = 4096
	pausePlaces  = 256

	indexMagic       = "VGLIDX1\x00"
	indexHeaderBytes = 16
	indexEntryBytes  = 12
)

// Select visits the records of a log that a query means, until visit returns
// false. Records are checked by themselves, not
// against each other or a signature: that is for verification. A trace is found
// by the segments' indexes where there are any, which only point; other segments
// that cannot hold what is asked for are passed over. A fault is a *Damage.
func Select(folder string, q *Query, visit func(*Record) (more bool)) (Selected, error) {
	parts, err := q.segments(folder)
	if err != nil {
		return Selected{}, err
	}
	if q.NewestFirst {
		slices.Reverse(parts)
	}
	s := &selecting{q: q, visit: visit}
	for i, part := range parts {
		switch err := s.segment(part); {
		case errors.Is(err, errEnough):
			return s.Selected, nil
		case err != nil && !errors.Is(err, os.ErrNotExist): // pruned meanwhile
			return s.Selected, err
		}
		if i+1 < len(parts) && q.Pause != nil && q.Pause() {
			s.Paused = parts[i+1].first - 1
			if q.NewestFirst {
				s.Paused = part.first
			}
			break
		}
	}
	return s.Selected, nil
}

type segmentPart struct {
	path  string
	first uint64
	last  bool // the one that is written
}

// segments are those that may hold what is asked for.
func (q *Query) segments(folder string) ([]segmentPart, error) {
	paths, err := listSegments(folder)
	if err != nil {
		return nil, err
	}
	if len(paths) == 0 {
		return nil, fmt.Errorf("%s: %w", folder, ErrNoLog)
	}
	var out []segmentPart
	for i, path := range paths {
		part := segmentPart{path, firstOf(path), i == len(paths)-1}
		if q.Before > 0 && part.first >= q.Before {
			break
		}
		if !part.last && firstOf(paths[i+1])-1 <= q.After {
			continue
		}
		if q.FromNs > clockMarginNs && !part.last {
			created, err := createdNs(paths[i+1]) // a segment is made when the one before is full: what that holds is older
			if err == nil && created < q.FromNs-clockMarginNs {
				continue
			}
		}
		if q.ToNs > 0 {
			if created, err := createdNs(path); err == nil && created > q.ToNs+clockMarginNs {
				continue
			}
		}
		out = append(out, part)
	}
	return out, nil
}

// firstOf is the first sequence of a segment by its name.
func firstOf(path string) uint64 {
	digits := strings.TrimSuffix(strings.TrimPrefix(filepath.Base(path), "segment-"), ".vlog")
	first, err := strconv.ParseUint(digits, 10, 64)
	if err != nil { // twenty digits can be too much
		return math.MaxUint64
	}
	return first
}

func createdNs(path string) (uint64, error) {
	f, err := os.Open(path)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	var b [8]byte
	if _, err := f.ReadAt(b[:], layout.SegOffCreatedNs); err != nil {
		return 0, err
	}
	return binary.LittleEndian.Uint64(b[:]), nil
}

type selecting struct {
	Selected
	q      *Query
	visit  func(*Record) bool
	buffer [1 + layout.RecordBytesMax]byte
}

func (s *selecting) segment(part segmentPart) error {
	f, err := os.Open(part.path)
	if err != nil {
		return err
	}
	defer f.Close()
	if s.q.TraceID != [16]byte{} {
		if places, ok := placesOf(part.path, s.q.TraceID); ok {
			return s.places(f, part, places)
		}
	}
	if !s.q.NewestFirst {
		return s.walk(f, part, func(at int64, head []byte) error {
			if !s.q.matches(head) {
				return nil
			}
			return s.give(f, part, at)
		})
	}
	var places []int64
	if err := s.walk(f, part, func(at int64, head []byte) error {
		if s.q.matches(head) {
			places = append(places, at)
		}
		return nil
	}); err != nil && !errors.Is(err, errEnough) {
		return err
	}
	return s.places(f, part, places)
}

func (s *selecting) places(f *os.File, part segmentPart, places []int64) error {
	if s.q.NewestFirst {
		slices.Reverse(places)
	}
	for i, at := range places {
		if err := s.give(f, part, at); err != nil {
			return err
		}
		if (i+1)%pausePlaces == 0 && s.q.Pause != nil && s.q.Pause() {
			s.Paused = binary.LittleEndian.Uint64(s.buffer[1+layout.OffSequence:])
			return errEnough
		}
	}
	return nil
}

// walk visits the header of each record; only its frame was checked. It ends
// with errEnough behind the last sequence that is asked for.
func (s *selecting) walk(f *os.File, part segmentPart, visit func(at int64, head []byte) error) error {
	if _, err := f.Seek(layout.SegmentHeaderBytes, io.SeekStart); err != nil {
		return err
	}
	in, at, sequence, name := bufio.NewReaderSize(f, 1<<18), int64(layout.SegmentHeaderBytes), part.first, filepath.Base(part.path)
	for ; ; sequence++ {
		head, err := in.Peek(layout.HeaderBytes)
		if err != nil && err != io.EOF {
			return err
		}
		if zero(head) {
			return nil
		}
		if s.q.Before > 0 && sequence >= s.q.Before {
			return errEnough
		}
		length := 0
		if len(head) == layout.HeaderBytes && framed(head) && binary.LittleEndian.Uint64(head[layout.OffSequence:]) == sequence {
			length = int(binary.LittleEndian.Uint16(head[layout.OffLength:]))
		}
		if length == 0 {
			if part.last && fresh(f) { // it is being written
				return nil
			}
			return &Damage{name, at, sequence, "no record here: wrong magic, version, length or sequence"}
		}
		if s.Read++; s.Read%pauseRecords == 0 && !s.q.NewestFirst && sequence-1 > s.q.After && s.q.Pause != nil && s.q.Pause() {
			s.Paused = sequence - 1
			return errEnough
		}
		if err := visit(at, head); err != nil {
			return err
		}
		if _, err := in.Discard(length); err != nil {
			return nil // cut off: visit has seen to it if it was asked for
		}
		at += int64(length)
	}
}

func framed(head []byte) bool {
	le := binary.LittleEndian
	return string(head[:4]) == layout.Magic && le.Uint16(head[layout.OffVersion:]) == layout.Version &&
		int(le.Uint16(head[layout.OffLength:])) >= layout.HeaderBytes
}

// matches judges a header.
func (q *Query) matches(head []byte) bool {
	le := binary.LittleEndian
	sequence, timeNs := le.Uint64(head[layout.OffSequence:]), le.Uint64(head[layout.OffTimeNs:])
	if sequence <= q.After || (q.Before > 0 && sequence >= q.Before) || timeNs < q.FromNs || (q.ToNs > 0 && timeNs >= q.ToNs) {
		return false
	}
	if q.TraceID != [16]byte{} && !bytes.Equal(head[layout.OffTraceID:layout.OffTraceID+16], q.TraceID[:]) {
		return false
	}
	if len(q.Events) > 0 && !slices.Contains(q.Events, le.Uint32(head[layout.OffEventID:])) {
		return false
	}
	return len(q.Tenants) == 0 || slices.Contains(q.Tenants, [32]byte(head[layout.OffTenantHash:layout.OffTenantHash+32]))
}

// give reads and checks the record at a place, and visits it when it is meant.
func (s *selecting) give(f *os.File, part segmentPart, at int64) error {
	var r *Record
	var err error
	for try := 0; ; try++ {
		r, err = s.record(f, part, at)
		var damage *Damage
		if err == nil || !part.last || try == tornTries || !errors.As(err, &damage) || !fresh(f) {
			break
		}
		time.Sleep(tornWait)
	}
	if err != nil {
		return err
	}
	if !s.q.matches(r.Header) || (s.q.Match != nil && !s.q.Match(r)) {
		return nil
	}
	if !s.visit(r) {
		return errEnough
	}
	return nil
}

// record reads the record at a place and checks it by itself.
func (s *selecting) record(f *os.File, part segmentPart, at int64) (*Record, error) {
	le, name := binary.LittleEndian, filepath.Base(part.path)
	head := s.buffer[1 : 1+layout.HeaderBytes]
	if _, err := f.ReadAt(head, at); err != nil && err != io.EOF {
		return nil, err
	}
	sequence := le.Uint64(head[layout.OffSequence:])
	damage := func(reason string) error { return &Damage{name, at, sequence, reason} }
	if !framed(head) {
		return nil, damage("no record here: wrong magic, version or length")
	}
	length := int(le.Uint16(head[layout.OffLength:]))
	payload := s.buffer[1+layout.HeaderBytes : 1+length]
	if n, err := f.ReadAt(payload, at+layout.HeaderBytes); err != nil && (err != io.EOF || n < len(payload)) {
		return nil, damage("record is cut off")
	}
	if crc := crc32.Update(crc32.Update(0, castagnoli, head[:layout.OffCrc32c]), castagnoli, payload); crc != le.Uint32(head[layout.OffCrc32c:]) {
		return nil, damage("CRC-32C does not match: the record was changed")
	}
	if id, kind := le.Uint32(head[layout.OffEventID:]), le.Uint16(head[layout.OffKind:]); events.Names[id] == "" || layout.KindNames[kind] == "" {
		return nil, damage(fmt.Sprintf("event %d or kind %d is unknown", id, kind))
	}
	return &Record{name, at, sequence, head, payload, sha256.Sum256(s.buffer[:1+length])}, nil
}

// placesOf are where records with a trace id may stand, by the index of a
// finished segment (docs/audit-format.md); false without a sound one.
func placesOf(segment string, trace [16]byte) ([]int64, bool) {
	if zero(trace[:8]) { // such are not in an index
		return nil, false
	}
	path := strings.TrimSuffix(segment, ".vlog") + ".index"
	info, err := os.Lstat(path)
	if err != nil || !info.Mode().IsRegular() || info.Size() > segmentBytesMax/layout.HeaderBytes*indexEntryBytes {
		return nil, false
	}
	data, err := os.ReadFile(path)
	if err != nil || len(data) < indexHeaderBytes || string(data[:8]) != indexMagic {
		return nil, false
	}
	table, count := data[indexHeaderBytes:], int(binary.LittleEndian.Uint32(data[8:]))
	if len(table) != count*indexEntryBytes || crc32.Checksum(table, castagnoli) != binary.LittleEndian.Uint32(data[12:]) {
		return nil, false
	}
	prefix := trace[:8]
	at := sort.Search(count, func(i int) bool { return bytes.Compare(table[i*indexEntryBytes:i*indexEntryBytes+8], prefix) >= 0 })
	var places []int64
	for ; at < count && bytes.Equal(table[at*indexEntryBytes:at*indexEntryBytes+8], prefix); at++ {
		place := int64(binary.LittleEndian.Uint32(table[at*indexEntryBytes+8:]))
		if len(places) > 0 && place <= places[len(places)-1] {
			return nil, false
		}
		places = append(places, place)
	}
	return places, true
}
