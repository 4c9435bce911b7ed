package audit

import (
	"bufio"
	"bytes"
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"

	"vigil/gateway/audit/layout"
	"vigil/gateway/internal/events"
)

// keptForm is the name of a file of kept records: what pruning took out of a log
// and must not be lost, of one class and one segment, each with its proof.
var keptForm = regexp.MustCompile(`^kept-([a-z]+)-[0-9]{20}\.proofs$`)

const keptBytesMax = 1 << 30

// kept is one kept record.
type kept struct {
	file   string
	offset int64
	class  string
	proof  []byte
	*proofParts
}

func (k *kept) fault(err error) error {
	return fmt.Errorf("%s, byte %d: kept record %d: %w", k.file, k.offset, k.proven.Sequence, err)
}

// readKept reads every file of kept records of a folder.
func readKept(folder string) ([]*kept, error) {
	entries, err := os.ReadDir(folder)
	if err != nil {
		return nil, err
	}
	var out []*kept
	for _, e := range entries {
		match := keptForm.FindStringSubmatch(e.Name())
		if match == nil {
			continue
		}
		info, err := e.Info()
		if err != nil {
			return nil, err
		}
		if !e.Type().IsRegular() || info.Size() > keptBytesMax {
			return nil, fmt.Errorf("%s is no regular file of at most %d bytes", e.Name(), keptBytesMax)
		}
		found, err := readKeptFile(filepath.Join(folder, e.Name()), match[1])
		if err != nil {
			return nil, err
		}
		out = append(out, found...)
	}
	return out, nil
}

func readKeptFile(path, class string) ([]*kept, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	in, name, at := bufio.NewReader(f), filepath.Base(path), int64(0)
	var out []*kept
	for {
		line, err := in.ReadSlice('\n')
		if err == io.EOF && len(line) == 0 {
			return out, nil
		}
		size := 0
		if err == nil && len(line) <= 8 && line[0] != '0' && bytes.IndexFunc(line[:len(line)-1], notDigit) < 0 {
			size, err = strconv.Atoi(string(line[:len(line)-1]))
		} else {
			err = errors.New("no length")
		}
		if err != nil {
			return nil, fmt.Errorf("%s, byte %d: no length of a proof", name, at)
		}
		taken := int64(len(line))
		data := make([]byte, size)
		if _, err := io.ReadFull(in, data); err != nil {
			return nil, fmt.Errorf("%s, byte %d: the proof is cut off", name, at)
		}
		parts, err := openProof(data)
		if err != nil {
			return nil, fmt.Errorf("%s, byte %d: %w", name, at, err)
		}
		out = append(out, &kept{name, at, class, data, parts})
		at += taken + int64(size)
	}
}

func notDigit(r rune) bool { return r < '0' || r > '9' }

// checkKept checks every kept record against its checkpoint, and follows the key
// rotations among them; s has seen no record yet. It tells how many a trusted key
// proves, and how many not: from the first that is proven on, each must be. Those
// that still, or again, stand in the log itself are left out.
func checkKept(folder string, s *seals, instance []byte) (proven, unproven int, err error) {
	found, err := readKept(folder)
	if err != nil {
		return 0, 0, err
	}
	found = slices.DeleteFunc(found, func(k *kept) bool { return k.proven.Sequence > s.begin })
	slices.SortStableFunc(found, func(a, b *kept) int {
		return cmp.Or(cmp.Compare(a.head.size, b.head.size), cmp.Compare(a.proven.Sequence, b.proven.Sequence))
	})
	seen := map[uint64]bool{}
	for len(found) > 0 {
		together := found
		if end := slices.IndexFunc(found, func(k *kept) bool { return k.head.size != found[0].head.size }); end > 0 {
			together = found[:end]
		}
		found = found[len(together):]
		for _, k := range together {
			if binary.LittleEndian.Uint16(k.proven.Record[layout.OffKind:]) == layout.KindKey {
				if err := s.trust(k.proven.Record[layout.HeaderBytes:]); err != nil {
					return 0, 0, err
				}
			}
		}
		for _, k := range together {
			if err := k.belongs(s, instance, seen[k.proven.Sequence]); err != nil {
				return 0, 0, k.fault(err)
			}
			seen[k.proven.Sequence] = true
			switch {
			case s.signedNow(k.checkpoint):
				proven++
			case proven > 0:
				return 0, 0, k.fault(errors.New("its checkpoint is not signed by the key that is trusted then"))
			default:
				unproven++
			}
		}
	}
	return proven, unproven, nil
}

func (k *kept) belongs(s *seals, instance []byte, twice bool) error {
	record := k.proven.Record
	if k.head.origin != s.origin || !bytes.Equal(record[layout.OffInstance:layout.OffInstance+16], instance) {
		return errors.New("it is of another log")
	}
	if keptClass(k.proven.EventID) != k.class {
		return fmt.Errorf("event %d is not of the class %s", k.proven.EventID, k.class)
	}
	if twice {
		return errors.New("it is there twice")
	}
	return nil
}

// keptClass is the class under which a record of this event is kept.
func keptClass(event uint32) string {
	if event == events.Checkpoint || event == events.Anchored || event == events.Pruned || events.Classes[event] == "call" {
		return ""
	}
	return events.Classes[event]
}
