package auditlog

import (
	"bytes"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"io/fs"
	"os"
	"runtime"
	"slices"
	"strings"

	"vigil/gateway/audit/layout"
)

const (
	indexMagic      = "VGLIDX1\x00"
	indexEntryBytes = 12
	indexYield      = 1024
)

func indexPath(segment string) string { return strings.TrimSuffix(segment, ".vlog") + ".index" }

// index writes the indexes of finished segments that have none: the first eight
// bytes of each trace id, in order, with its record's place (docs/audit-format.md).
// They are for searching, no evidence, and can be written again at any time.
func (w *Writer) index() error {
	segments, err := listSegments(w.o.Folder)
	if err != nil || len(segments) == 0 {
		return err
	}
	for _, path := range segments[:len(segments)-1] {
		if _, err := os.Stat(indexPath(path)); err == nil {
			continue
		}
		table, err := indexOf(path)
		if errors.Is(err, fs.ErrNotExist) { // pruned meanwhile
			continue
		}
		if err != nil {
			return err
		}
		data := binary.LittleEndian.AppendUint32([]byte(indexMagic), uint32(len(table)/indexEntryBytes))
		data = binary.LittleEndian.AppendUint32(data, crc32.Checksum(table, castagnoli))
		partial := indexPath(path) + ".partial"
		if err := os.WriteFile(partial, append(data, table...), 0o644); err != nil {
			return err
		}
		if err := w.o.Disk.Rename(partial, indexPath(path)); err != nil {
			return err
		}
	}
	return nil
}

// indexOf is the index of a segment: 8 bytes of a trace id and 4 of a place, each.
func indexOf(path string) ([]byte, error) {
	var entries [][indexEntryBytes]byte
	at, count := uint32(layout.SegmentHeaderBytes), 0
	_, err := walk(&prunable{path: path}, func(r place) bool {
		if trace := r.record[layout.OffTraceID : layout.OffTraceID+8]; !bytes.Equal(trace, make([]byte, 8)) {
			var entry [indexEntryBytes]byte
			copy(entry[:], trace)
			binary.LittleEndian.PutUint32(entry[8:], at)
			entries = append(entries, entry)
		}
		at += uint32(len(r.record))
		if count++; count%indexYield == 0 {
			runtime.Gosched() // serving goes first
		}
		return false
	})
	slices.SortFunc(entries, func(a, b [indexEntryBytes]byte) int {
		if c := bytes.Compare(a[:8], b[:8]); c != 0 {
			return c
		}
		return int(binary.LittleEndian.Uint32(a[8:])) - int(binary.LittleEndian.Uint32(b[8:]))
	})
	table := make([]byte, 0, len(entries)*indexEntryBytes)
	for i := range entries {
		table = append(table, entries[i][:]...)
	}
	return table, err
}
