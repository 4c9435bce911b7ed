package audit

import (
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"os"
	"strings"
	"testing"

	"github.com/transparency-dev/merkle/compact"
	"github.com/transparency-dev/merkle/proof"
	"github.com/transparency-dev/merkle/rfc6962"
)

type vectors struct {
	Records     []string `json:"records"`
	Roots       []string `json:"roots"`
	Range       []string `json:"compact_range_of_7"`
	Path        []string `json:"inclusion_of_index_4"`
	Origin      string   `json:"origin"`
	VerifierKey string   `json:"verifier_key"`
	Checkpoint  string   `json:"checkpoint"`
}

func readVectors(t testing.TB) *vectors {
	data, err := os.ReadFile("../../tests/vectors/audit.json")
	if err != nil {
		t.Fatal(err)
	}
	v := &vectors{}
	if err := json.Unmarshal(data, v); err != nil {
		t.Fatal(err)
	}
	return v
}

// The published vectors hold for other people's libraries: the tree for
// transparency-dev/merkle, key and note for x/mod/sumdb/note.
func TestVectors(t *testing.T) {
	v := readVectors(t)
	r := (&compact.RangeFactory{Hash: rfc6962.DefaultHasher.HashChildren}).NewEmptyRange(0)
	mine := &tree{}
	rootOf := func(*compact.Range) string {
		root, err := r.GetRootHash(nil)
		if err != nil {
			t.Fatal(err)
		}
		if root == nil {
			root = rfc6962.DefaultHasher.EmptyRoot()
		}
		if string(root) != mine.root() {
			t.Fatalf("our tree of %d leaves has another root than the library's", mine.size)
		}
		return string(root)
	}
	for i, record := range v.Records {
		if hex.EncodeToString([]byte(rootOf(r))) != v.Roots[i] {
			t.Fatalf("root of %d", i)
		}
		mine.append([32]byte(rfc6962.DefaultHasher.HashLeaf([]byte(record))))
		if err := r.Append(rfc6962.DefaultHasher.HashLeaf([]byte(record)), nil); err != nil {
			t.Fatal(err)
		}
	}
	if hex.EncodeToString([]byte(rootOf(r))) != v.Roots[7] {
		t.Fatal("root of 7")
	}
	for i, h := range r.Hashes() {
		if hex.EncodeToString(h) != v.Range[i] {
			t.Fatalf("compact range: %x", h)
		}
	}
	var path [][]byte
	for _, h := range v.Path {
		b, _ := hex.DecodeString(h)
		path = append(path, b)
	}
	leaf := rfc6962.DefaultHasher.HashLeaf([]byte(v.Records[4]))
	if err := proof.VerifyInclusion(rfc6962.DefaultHasher, 4, 7, leaf, path, []byte(rootOf(r))); err != nil {
		t.Fatal(err)
	}
	keys, err := ParseKeys([]byte("# of the vectors\n" + v.VerifierKey + "\n"))
	if err != nil {
		t.Fatal(err)
	}
	text, signed, err := openNote([]byte(v.Checkpoint), keys)
	if err != nil || len(signed) != 1 {
		t.Fatal(signed, err)
	}
	head, err := parseHead(text)
	if err != nil || head.origin != v.Origin || head.size != 7 || head.root != rootOf(r) {
		t.Fatal(head, err)
	}
	changed := strings.Replace(v.Checkpoint, "\n7\n", "\n6\n", 1)
	if _, _, err := openNote([]byte(changed), keys); err == nil {
		t.Fatal("a changed note was opened")
	}
}

// Notes of every odd form are taken or refused as the Python verifier does it.
func TestNotes(t *testing.T) {
	data, err := os.ReadFile("../../tests/vectors/notes.json")
	if err != nil {
		t.Fatal(err)
	}
	var v struct {
		Trusted string
		Notes   []struct {
			Name    string
			Note    []byte
			Trusted any `json:"trusted_signatures"`
		}
	}
	if err := json.Unmarshal(data, &v); err != nil {
		t.Fatal(err)
	}
	keys, err := ParseKeys([]byte(v.Trusted))
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range v.Notes {
		_, signed, err := openNote(n.Note, keys)
		var got any = float64(len(signed))
		if err != nil {
			got = "refused"
		}
		if got != n.Trusted {
			t.Errorf("%s: %v (%v), expected %v", n.Name, got, err, n.Trusted)
		}
	}
}

// Whatever bytes are given as a proof, the reader neither crashes nor hangs; what
// it accepts is tested with real records elsewhere (tests/e2e/test_forgeries.py).
func FuzzProof(f *testing.F) {
	v := readVectors(f)
	lines := "c2sp.org/tlog-proof@v1\nextra " + base64.StdEncoding.EncodeToString([]byte(v.Records[4])) + "\nindex 4\n"
	for _, h := range v.Path {
		b, _ := hex.DecodeString(h)
		lines += base64.StdEncoding.EncodeToString(b) + "\n"
	}
	f.Add([]byte(lines + "\n" + v.Checkpoint))
	f.Add([]byte(v.Checkpoint))
	keys, err := ParseKeys([]byte(v.VerifierKey))
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		if p, err := CheckProof(data, keys); err == nil {
			t.Fatalf("verified: %+v", p) // the leaf of the vectors is no record, so nothing can be
		}
	})
}
