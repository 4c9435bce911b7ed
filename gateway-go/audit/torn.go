package audit

import (
	"bytes"
	"encoding/binary"
	"hash/crc32"
	"os"
	"path/filepath"

	"vigil/gateway/audit/layout"
)

// tornBytes is the length of a torn tail at the place of damage, 0 when it is
// none. A power cut tears the end of the last segment only. It may lose a record
// that was not forced to disk and keep a later one; but what a checkpoint covers
// was forced. So whole records behind the place are honest, unless one of them is
// a checkpoint that covers it. In a log without any checkpoint every one counts.
func (l *log) tornBytes(folder string, d *Damage) (int64, error) {
	paths, err := listSegments(folder)
	if err != nil {
		return 0, err
	}
	last := paths[len(paths)-1]
	if filepath.Base(last) != d.File || d.Offset < layout.SegmentHeaderBytes || l.seals == nil {
		return 0, nil
	}
	data, err := os.ReadFile(last) // at most segmentBytesMax
	if err != nil {
		return 0, err
	}
	le := binary.LittleEndian
	instance := data[layout.SegOffInstance : layout.SegOffInstance+16]
	for at := int(d.Offset); ; {
		next := bytes.Index(data[min(at, len(data)):], []byte(layout.Magic))
		if next < 0 {
			break
		}
		at += next
		r := data[at:]
		after := 1
		if len(r) >= layout.HeaderBytes && bytes.Equal(r[layout.OffInstance:layout.OffInstance+16], instance) &&
			le.Uint16(r[layout.OffVersion:]) == layout.Version && le.Uint64(r[layout.OffSequence:]) >= d.Sequence {
			length := int(le.Uint16(r[layout.OffLength:]))
			if length >= layout.HeaderBytes && length <= len(r) {
				crc := crc32.Update(crc32.Update(0, castagnoli, r[:layout.OffCrc32c]), castagnoli, r[layout.HeaderBytes:length])
				if crc == le.Uint32(r[layout.OffCrc32c:]) {
					sealing := le.Uint16(r[layout.OffKind:]) == layout.KindCheckpoint && covers(r[layout.HeaderBytes:length], d.Sequence)
					if at == int(d.Offset) || l.seals.checkpoints == 0 || sealing {
						return 0, nil
					}
					after = length
				}
			}
		}
		at += after
	}
	return int64(len(bytes.TrimRight(data[d.Offset:], "\x00"))), nil
}

func covers(payload []byte, sequence uint64) bool {
	text, _, err := openNote(payload, nil)
	if err != nil {
		return false
	}
	head, err := parseHead(text)
	return err == nil && head.size >= sequence
}
