package audit

import (
	"encoding/hex"
	"encoding/json"
	"os"
	"testing"
)

// The pinned encoding gives the published hashes; the sidecar passes the same vectors.
func TestHashVectors(t *testing.T) {
	data, err := os.ReadFile("../../tests/vectors/hashes.json")
	if err != nil {
		t.Fatal(err)
	}
	var vectors struct {
		Tensors []struct {
			Name    string
			Tensors []struct {
				Name, Datatype string
				Shape          []uint64
				Raw            string
			}
			SHA256 string
		}
		Frames []struct {
			Frame         string
			CaptureTimeUs int64  `json:"capture_time_us"`
			SourceID      string `json:"source_id"`
			SHA256        string
		}
	}
	if err := json.Unmarshal(data, &vectors); err != nil || len(vectors.Tensors) < 8 {
		t.Fatal(err, len(vectors.Tensors))
	}
	for _, v := range vectors.Tensors {
		var tensors []Tensor
		for _, x := range v.Tensors {
			raw, err := hex.DecodeString(x.Raw)
			if err != nil {
				t.Fatal(err)
			}
			tensors = append(tensors, Tensor{x.Name, x.Datatype, x.Shape, raw})
		}
		if got := TensorHash(tensors); hex.EncodeToString(got[:]) != v.SHA256 {
			t.Errorf("%s: %x", v.Name, got)
		}
	}
	for _, v := range vectors.Frames {
		frame, err := hex.DecodeString(v.Frame)
		if err != nil {
			t.Fatal(err)
		}
		if got := FrameHash(frame, v.CaptureTimeUs, v.SourceID); hex.EncodeToString(got[:]) != v.SHA256 {
			t.Errorf("%s: %x", v.SourceID, got)
		}
	}
}
