package audit

import (
	"bytes"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"hash/crc32"
	"strconv"
	"strings"

	"github.com/transparency-dev/merkle/proof"
	"github.com/transparency-dev/merkle/rfc6962"

	"vigil/gateway/audit/layout"
)

// ErrNoTrustedKey says that no trusted key signed what a proof rests on.
var ErrNoTrustedKey = errors.New("no signature by a trusted key")

const (
	proofTitle    = "c2sp.org/tlog-proof@v1"
	proofBytesMax = 1 << 20
)

// Proven is a record whose inclusion in a signed tree was checked.
type Proven struct {
	Log      string `json:"log"`
	Sequence uint64 `json:"sequence"`
	EventID  uint32 `json:"event_id"`
	TraceID  string `json:"trace_id"`
	TimeNs   uint64 `json:"time_ns"`
	TreeSize uint64 `json:"tree_size"`
	SignedBy string `json:"signed_by"`
	Record   []byte `json:"record"`
}

// proofParts are the parts of a proof that holds by itself: the record is in
// the tree of the checkpoint. Who signed that is another question.
type proofParts struct {
	proven     *Proven
	head       *treeHead
	checkpoint []byte
}

// CheckProof checks a proof of inclusion with the record in it (C2SP
// tlog-proof, the record as its extra data) against trusted keys.
func CheckProof(data []byte, trusted []Key) (*Proven, error) {
	parts, err := openProof(data)
	if err != nil {
		return nil, err
	}
	_, signed, err := openNote(parts.checkpoint, trusted)
	if err != nil {
		return nil, err
	}
	for _, k := range signed { // witnesses may have signed too
		if k.Name() == parts.head.origin {
			parts.proven.SignedBy = k.Name()
			return parts.proven, nil
		}
	}
	return nil, ErrNoTrustedKey
}

// OpenProof checks that a proof holds by itself: the record is in the tree of its
// checkpoint. Who signed that is not asked.
func OpenProof(data []byte) (*Proven, error) {
	parts, err := openProof(data)
	if err != nil {
		return nil, err
	}
	return parts.proven, nil
}

// decodeBase64 is strict, and passes over no line break either.
func decodeBase64(text string) ([]byte, error) {
	if strings.ContainsAny(text, "\r\n") {
		return nil, errors.New("a line break in base64")
	}
	return base64.StdEncoding.Strict().DecodeString(text)
}

func openProof(data []byte) (*proofParts, error) {
	if len(data) > proofBytesMax {
		return nil, fmt.Errorf("the proof has %d bytes, the limit is %d", len(data), proofBytesMax)
	}
	top, checkpoint, ok := bytes.Cut(data, []byte("\n\n"))
	lines := strings.Split(string(top), "\n")
	if !ok || len(lines) < 3 || lines[0] != proofTitle {
		return nil, errors.New("not a tlog-proof: it needs " + proofTitle + ", extra, index and a checkpoint")
	}
	packed, isExtra := strings.CutPrefix(lines[1], "extra ")
	number, isIndex := strings.CutPrefix(lines[2], "index ")
	record, err := decodeBase64(packed)
	if !isExtra || !isIndex || err != nil {
		return nil, errors.New("not a proof of a record: extra (the record in base64) and index must come first")
	}
	index, err := strconv.ParseUint(number, 10, 63)
	if err != nil || strconv.FormatUint(index, 10) != number {
		return nil, errors.New("the index is not a plain number")
	}
	var path [][]byte
	for _, line := range lines[3:] {
		hash, err := decodeBase64(line)
		if err != nil || len(hash) != 32 {
			return nil, errors.New("a hash of the proof is not 32 bytes of base64")
		}
		path = append(path, hash)
	}
	text, _, err := openNote(checkpoint, nil)
	if err != nil {
		return nil, err
	}
	head, err := parseHead(text)
	if err != nil {
		return nil, err
	}
	leaf := rfc6962.DefaultHasher.HashLeaf(record)
	if err := proof.VerifyInclusion(rfc6962.DefaultHasher, index, head.size, leaf, path, []byte(head.root)); err != nil {
		return nil, fmt.Errorf("the record is not in the tree that was signed: %w", err)
	}
	p, err := provenRecord(record, index, head)
	return &proofParts{p, head, checkpoint}, err
}

func provenRecord(r []byte, index uint64, head *treeHead) (*Proven, error) {
	le := binary.LittleEndian
	if len(r) < layout.HeaderBytes || string(r[:4]) != layout.Magic || le.Uint16(r[layout.OffVersion:]) != layout.Version ||
		int(le.Uint16(r[layout.OffLength:])) != len(r) {
		return nil, errors.New("the extra data is not a record")
	}
	crc := crc32.Update(crc32.Update(0, castagnoli, r[:layout.OffCrc32c]), castagnoli, r[layout.HeaderBytes:])
	sequence, instance := le.Uint64(r[layout.OffSequence:]), hex.EncodeToString(r[layout.OffInstance:layout.OffInstance+16])
	if crc != le.Uint32(r[layout.OffCrc32c:]) || sequence != index+1 || !strings.HasSuffix(head.origin, "/"+instance) {
		return nil, errors.New("the record does not belong at this place of this log")
	}
	return &Proven{
		Log: head.origin, Sequence: sequence, EventID: le.Uint32(r[layout.OffEventID:]), TreeSize: head.size,
		TraceID: hex.EncodeToString(r[layout.OffTraceID : layout.OffTraceID+16]), TimeNs: le.Uint64(r[layout.OffTimeNs:]), Record: r,
	}, nil
}
