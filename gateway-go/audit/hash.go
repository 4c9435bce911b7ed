package audit

import (
	"cmp"
	"crypto/sha256"
	"encoding/binary"
	"slices"
)

// Tensor is one input or output: name, datatype (Open Inference spelling),
// dimensions, and raw little-endian bytes as raw_input_contents carries them.
type Tensor struct {
	Name, Datatype string
	Shape          []uint64
	Raw            []byte
}

// AppendTensor appends the hashed encoding of a tensor (docs/audit-format.md).
func AppendTensor(dst []byte, t *Tensor) []byte {
	dst = binary.AppendUvarint(dst, uint64(len(t.Name)))
	dst = append(dst, t.Name...)
	dst = binary.AppendUvarint(dst, uint64(len(t.Datatype)))
	dst = append(dst, t.Datatype...)
	dst = binary.AppendUvarint(dst, uint64(len(t.Shape)))
	for _, d := range t.Shape {
		dst = binary.AppendUvarint(dst, d)
	}
	dst = binary.LittleEndian.AppendUint64(dst, uint64(len(t.Raw)))
	return append(dst, t.Raw...)
}

// TensorHash is SHA-256 over the tensors in ascending order of their names.
func TensorHash(tensors []Tensor) [32]byte {
	sorted := slices.Clone(tensors)
	slices.SortFunc(sorted, func(a, b Tensor) int { return cmp.Compare(a.Name, b.Name) })
	var data []byte
	for i := range sorted {
		data = AppendTensor(data, &sorted[i])
	}
	return sha256.Sum256(data)
}

// FrameHash is the input hash of a typed perception call: the frame's bytes as
// received, then capture time and source.
func FrameHash(frame []byte, captureTimeUs int64, source string) [32]byte {
	var data []byte
	data = AppendTensor(data, &Tensor{"frame", "UINT8", []uint64{uint64(len(frame))}, frame})
	data = AppendTensor(data, &Tensor{"capture_time_us", "INT64", nil, binary.LittleEndian.AppendUint64(nil, uint64(captureTimeUs))})
	data = AppendTensor(data, &Tensor{"source_id", "BYTES", nil, []byte(source)})
	return sha256.Sum256(data)
}
