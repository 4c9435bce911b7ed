package auditlog

import (
	"errors"
	"math/bits"

	"github.com/transparency-dev/merkle/compact"
	"github.com/transparency-dev/merkle/rfc6962"
)

var ranges = &compact.RangeFactory{Hash: rfc6962.DefaultHasher.HashChildren}

// tree is the Merkle tree of RFC 6962 over a log's leaf hashes, as its compact range.
type tree struct{ r *compact.Range }

func newTree() *tree { return &tree{ranges.NewEmptyRange(0)} }

// decodeTree reads a compact range as a segment's header has it.
func decodeTree(size uint64, data []byte) (*tree, error) {
	count := bits.OnesCount64(size)
	if 32*count > len(data) {
		return nil, errors.New("the compact range does not fit its size")
	}
	hashes := make([][]byte, count)
	for i := range hashes {
		hashes[i] = append([]byte(nil), data[32*i:32*i+32]...)
	}
	r, err := ranges.NewRange(0, size, hashes)
	return &tree{r}, err
}

func (t *tree) append(leaf [32]byte) {
	if err := t.r.Append(append([]byte(nil), leaf[:]...), nil); err != nil {
		panic(err) // a range that begins at 0 takes every leaf
	}
}

func (t *tree) size() uint64 { return t.r.End() }

func (t *tree) root() []byte {
	if t.size() == 0 {
		return rfc6962.DefaultHasher.EmptyRoot()
	}
	root, err := t.r.GetRootHash(nil)
	if err != nil {
		panic(err)
	}
	return root
}

func (t *tree) encode() []byte {
	var out []byte
	for _, h := range t.r.Hashes() {
		out = append(out, h...)
	}
	return out
}
