package audit

import (
	"crypto/sha256"
	"errors"
	"math/bits"
)

// tree is the Merkle tree of RFC 6962 over leaf hashes, as its compact range:
// roots of the perfect subtrees, largest first. A million leaves a second go
// through it, so it allocates nothing; a test compares it with a library's.
type tree struct {
	size   uint64
	hashes [][32]byte
}

func node(left, right *[32]byte) [32]byte {
	var b [65]byte
	b[0] = 1
	copy(b[1:], left[:])
	copy(b[33:], right[:])
	return sha256.Sum256(b[:])
}

func (t *tree) append(leaf [32]byte) {
	for size := t.size; size&1 == 1; size >>= 1 {
		last := len(t.hashes) - 1
		leaf = node(&t.hashes[last], &leaf)
		t.hashes = t.hashes[:last]
	}
	t.hashes = append(t.hashes, leaf)
	t.size++
}

func (t *tree) extend(leaves [][32]byte) {
	for i := range leaves {
		t.append(leaves[i])
	}
}

func (t *tree) root() string {
	if len(t.hashes) == 0 {
		sum := sha256.Sum256(nil)
		return string(sum[:])
	}
	root := t.hashes[len(t.hashes)-1]
	for i := len(t.hashes) - 2; i >= 0; i-- {
		root = node(&t.hashes[i], &root)
	}
	return string(root[:])
}

// decodeTree reads a compact range as a segment's header has it.
func decodeTree(size uint64, data []byte) (*tree, error) {
	count := bits.OnesCount64(size)
	if 32*count > len(data) || !zero(data[32*count:]) {
		return nil, errors.New("the compact range does not fit its size")
	}
	t := &tree{size: size}
	for i := range count {
		t.hashes = append(t.hashes, [32]byte(data[32*i:]))
	}
	return t, nil
}
