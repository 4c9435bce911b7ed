package rules

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"google.golang.org/protobuf/encoding/prototext"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"

	_ "vigil/gateway/gen/inference"
	_ "vigil/gateway/gen/vigil/audit/v1"
	_ "vigil/gateway/gen/vigil/models/v1"
	_ "vigil/gateway/gen/vigil/perception/v1"
	_ "vigil/gateway/gen/vigil/safety/v1"
)

const corpus = "../../../tests/conformance/corpus"

// Verdict and violated fields of each message are those that its file states;
// the sidecar's rules are run on the same files.
func TestCorpus(t *testing.T) {
	files, err := filepath.Glob(filepath.Join(corpus, "*.txtpb"))
	if err != nil || len(files) < 300 {
		t.Fatalf("corpus has %d files (%v), at least 300 are needed", len(files), err)
	}
	for _, file := range files {
		t.Run(filepath.Base(file), func(t *testing.T) {
			data, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			lines := strings.SplitN(string(data), "\n", 3)
			name := strings.TrimPrefix(lines[0], "# message: ")
			want := strings.Fields(strings.TrimPrefix(lines[1], "# violated:"))
			kind, err := protoregistry.GlobalTypes.FindMessageByName(protoreflect.FullName(name))
			if err != nil {
				t.Fatal(err)
			}
			m := kind.New().Interface()
			if err := prototext.Unmarshal([]byte(lines[2]), m); err != nil {
				t.Fatal(err)
			}
			var got []string
			if err := Check(m); err != nil {
				for _, v := range err.(*Error).Violations {
					got = append(got, v.Field)
				}
			}
			slices.Sort(got)
			slices.Sort(want)
			if !slices.Equal(got, want) {
				t.Fatalf("violated %q, the file states %q", got, want)
			}
			again, err := proto.Marshal(m)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := Decode(kind, again); (err != nil) != (len(want) > 0) {
				t.Fatalf("Decode says %v", err)
			}
		})
	}
}

// Bytes that are no message are refused with the message's name.
func TestGarbage(t *testing.T) {
	kind, err := protoregistry.GlobalTypes.FindMessageByName("inference.ModelInferRequest")
	if err != nil {
		t.Fatal(err)
	}
	_, err = Decode(kind, []byte{0xff, 0xff, 0xff})
	if err == nil || !strings.Contains(err.Error(), "not a inference.ModelInferRequest") {
		t.Fatalf("got %v", err)
	}
}

// A small message that would become a huge structure is refused before it is built.
func TestAmplification(t *testing.T) {
	kind, err := protoregistry.GlobalTypes.FindMessageByName("inference.ModelInferRequest")
	if err != nil {
		t.Fatal(err)
	}
	for name, data := range map[string]string{
		"inputs": strings.Repeat("\x2a\x00", 4<<20), "raw": strings.Repeat("\x3a\x00", 4<<20),
		"nested": "\x2a\x80\x80\x80\x01" + strings.Repeat("\x22\x00", 1<<20),
	} {
		allocated := testing.AllocsPerRun(1, func() { _, err = Decode(kind, []byte(data)) })
		if err == nil || allocated > 100000 {
			t.Errorf("%s: %v after %.0f allocations", name, err, allocated)
		}
	}
}
