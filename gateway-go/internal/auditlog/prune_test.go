package auditlog

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"testing"

	"github.com/transparency-dev/merkle/proof"
	"github.com/transparency-dev/merkle/rfc6962"
)

// Whatever was pruned, every remaining leaf has its proof, however many are asked for one after another.
func TestSubtreesProveEveryLeaf(t *testing.T) {
	for _, size := range []uint64{1, 2, 7, 64, 100, 133} {
		var leaves [][]byte
		whole := newTree()
		for i := range size {
			leaf := sha256.Sum256([]byte(fmt.Sprint(i)))
			leaves = append(leaves, leaf[:])
			whole.append(leaf)
		}
		for begin := range size {
			base := newTree()
			for _, leaf := range leaves[:begin] {
				base.append([32]byte(leaf))
			}
			root := base.root()
			s := newSubtrees(base, leaves[begin:])
			for index := begin; index < size; index++ {
				if err := proof.VerifyInclusion(rfc6962.DefaultHasher, index, size, leaves[index], s.path(index, size), whole.root()); err != nil {
					t.Fatalf("leaf %d of %d behind %d: %v", index, size, begin, err)
				}
			}
			if !bytes.Equal(root, base.root()) {
				t.Fatalf("the range of %d leaves was changed", begin)
			}
		}
	}
}
