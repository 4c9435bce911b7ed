package auditlog

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"vigil/gateway/audit/layout"
)

func leafHash(record []byte) [32]byte {
	h := sha256.New()
	h.Write([]byte{0})
	h.Write(record)
	return [32]byte(h.Sum(nil))
}

func segmentName(first uint64) string { return fmt.Sprintf("segment-%020d.vlog", first) }

// listSegments gives the segments in the order of their sequences. A pattern
// would read meaning into the folder's own name, and find nothing.
func listSegments(folder string) ([]string, error) {
	entries, err := os.ReadDir(folder)
	if err != nil {
		return nil, err
	}
	var paths []string
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), "segment-") && strings.HasSuffix(e.Name(), ".vlog") {
			paths = append(paths, filepath.Join(folder, e.Name()))
		}
	}
	return paths, nil
}

func syncFolder(folder string) error {
	d, err := os.Open(folder)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}

type segmentHead struct {
	instance  [16]byte
	first     uint64
	previous  [32]byte
	createdNs uint64
	log       string
	tree      []byte // compact range of the leaves before
}

func (h *segmentHead) encode() []byte {
	b := make([]byte, layout.SegmentHeaderBytes)
	le := binary.LittleEndian
	copy(b, layout.SegmentMagic)
	le.PutUint16(b[layout.SegOffVersion:], layout.SegmentVersion)
	le.PutUint16(b[layout.SegOffRecordVersion:], layout.Version)
	le.PutUint32(b[layout.SegOffHeaderBytes:], layout.SegmentHeaderBytes)
	copy(b[layout.SegOffInstance:], h.instance[:])
	le.PutUint64(b[layout.SegOffFirstSequence:], h.first)
	copy(b[layout.SegOffPreviousLeafHash:], h.previous[:])
	le.PutUint64(b[layout.SegOffCreatedNs:], h.createdNs)
	copy(b[layout.SegOffLogName:layout.SegOffTreeRange], h.log)
	copy(b[layout.SegOffTreeRange:layout.SegOffCrc32c], h.tree)
	le.PutUint32(b[layout.SegOffCrc32c:], crc32.Checksum(b[:layout.SegOffCrc32c], castagnoli))
	return b
}

// createSegment makes a preallocated, synced segment; its name appears only
// when it is whole.
func createSegment(disk Disk, folder string, size int64, head *segmentHead) (*os.File, error) {
	final := filepath.Join(folder, segmentName(head.first))
	partial := final + ".partial"
	if _, err := os.Lstat(final); !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%s is there already: no log is ever written over", filepath.Base(final))
	}
	f, err := disk.Open(partial, true)
	if err != nil {
		return nil, err
	}
	err = disk.Allocate(f, size)
	if err == nil {
		err = disk.WriteAt(f, head.encode(), 0)
	}
	if err == nil {
		err = disk.Sync(f)
	}
	if err == nil {
		err = disk.Rename(partial, final)
	}
	if err == nil {
		err = disk.SyncFolder(folder)
	}
	if err != nil {
		f.Close()
		_ = disk.Remove(partial)
		_ = disk.Remove(final) // the log goes on in the segment before, which must stay the last
		return nil, err
	}
	return f, nil
}

// logEnd is where the next record goes.
type logEnd struct {
	head      segmentHead
	offset    int64
	first     uint64 // sequence that the segment begins with
	next      uint64
	leaf      [32]byte
	tree      *tree
	keyNote   []byte // payload of the segment's last key record
	torn      int
	lastEvent uint32
	// followers: whole records behind the end; a power cut may lose one that was
	// not forced to disk, and keep a later one. laterNotes: the notes of the
	// checkpoints among them; what these cover was on disk.
	followers  int
	laterNotes [][]byte
}

// findEnd scans a segment for the end of the log, or for record most.
func findEnd(path string, most uint64) (*logEnd, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	le := binary.LittleEndian
	if len(data) < layout.SegmentHeaderBytes || !bytes.HasPrefix(data, []byte(layout.SegmentMagic)) ||
		le.Uint32(data[layout.SegOffCrc32c:]) != crc32.Checksum(data[:layout.SegOffCrc32c], castagnoli) {
		return nil, fmt.Errorf("%s: no valid segment header; move the folder away to start a new log", filepath.Base(path))
	}
	end := &logEnd{offset: layout.SegmentHeaderBytes, next: le.Uint64(data[layout.SegOffFirstSequence:])}
	end.first = end.next
	copy(end.head.instance[:], data[layout.SegOffInstance:])
	copy(end.leaf[:], data[layout.SegOffPreviousLeafHash:])
	if end.tree, err = decodeTree(end.next-1, data[layout.SegOffTreeRange:layout.SegOffCrc32c]); err != nil {
		return nil, fmt.Errorf("%s: %w; move the folder away to start a new log", filepath.Base(path), err)
	}
	for int(end.offset)+layout.HeaderBytes <= len(data) && end.next <= most {
		r := data[end.offset:]
		length := int(le.Uint16(r[layout.OffLength:]))
		if string(r[:4]) != layout.Magic || length < layout.HeaderBytes || length > len(r) {
			break
		}
		r = r[:length]
		crc := crc32.Update(0, castagnoli, r[:layout.OffCrc32c])
		crc = crc32.Update(crc, castagnoli, r[layout.HeaderBytes:])
		if le.Uint32(r[layout.OffCrc32c:]) != crc || le.Uint64(r[layout.OffSequence:]) != end.next ||
			!bytes.Equal(r[layout.OffPreviousLeafHash:layout.OffPreviousLeafHash+32], end.leaf[:]) {
			break
		}
		end.leaf = leafHash(r)
		if kind := le.Uint16(r[layout.OffKind:]); kind != layout.KindCheckpoint && kind != layout.KindAnchor { // these may follow the closing record
			end.lastEvent = le.Uint32(r[layout.OffEventID:])
		}
		end.tree.append(end.leaf)
		if le.Uint16(r[layout.OffKind:]) == layout.KindKey {
			end.keyNote = bytes.Clone(r[layout.HeaderBytes:])
		}
		end.next++
		end.offset += int64(length)
	}
	end.torn = len(bytes.TrimRight(data[end.offset:], "\x00"))
	end.findFollowers(data[min(end.offset+1, int64(len(data))):])
	return end, nil
}

// lastKeyNote is the payload of the log's last key record.
func lastKeyNote(folder string) ([]byte, error) {
	segments, err := listSegments(folder)
	if err != nil {
		return nil, err
	}
	for _, path := range slices.Backward(segments) {
		end, err := findEnd(path, math.MaxUint64)
		if err != nil {
			return nil, err
		}
		if end.keyNote != nil {
			return end.keyNote, nil
		}
	}
	return nil, nil
}

// findFollowers looks for whole records anywhere in data.
func (end *logEnd) findFollowers(data []byte) {
	le := binary.LittleEndian
	for {
		at := bytes.Index(data, []byte(layout.Magic))
		if at < 0 {
			return
		}
		data = data[at:]
		after := 1
		if len(data) >= layout.HeaderBytes {
			length := int(le.Uint16(data[layout.OffLength:]))
			if length >= layout.HeaderBytes && length <= len(data) {
				crc := crc32.Update(0, castagnoli, data[:layout.OffCrc32c])
				if crc32.Update(crc, castagnoli, data[layout.HeaderBytes:length]) == le.Uint32(data[layout.OffCrc32c:]) {
					end.followers++
					after = length
					if le.Uint16(data[layout.OffKind:]) == layout.KindCheckpoint {
						end.laterNotes = append(end.laterNotes, bytes.Clone(data[layout.HeaderBytes:length]))
					}
				}
			}
		}
		data = data[after:]
	}
}
