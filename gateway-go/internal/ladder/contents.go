package ladder

import (
	"encoding/binary"
	"fmt"
	"math"
	"slices"

	"vigil/gateway/gen/inference"
	linkv1 "vigil/gateway/gen/vigil/link/v1"
)

type linkForm = linkv1.TensorForm

// itemBytes of the types whose elements have one size.
var itemBytes = map[string]int64{
	"BOOL": 1, "UINT8": 1, "UINT16": 2, "UINT32": 4, "UINT64": 8, "INT8": 1, "INT16": 2, "INT32": 4, "INT64": 8,
	"FP16": 2, "FP32": 4, "FP64": 8,
}

// contents is the raw form of an input, from whichever form the request has.
func contents(r *inference.ModelInferRequest, i int, count int64) ([]byte, error) {
	t := r.Inputs[i]
	var raw []byte
	switch {
	case len(r.RawInputContents) > 0 && t.Contents != nil:
		return nil, wrong(t.Name, "contents and raw_input_contents exclude each other")
	case len(r.RawInputContents) > 0:
		raw = r.RawInputContents[i]
	default:
		var elements int
		if !inRange(t.Contents, t.Datatype) {
			return nil, wrong(t.Name, "a value is outside "+t.Datatype)
		}
		if raw, elements = typed(t.Contents, t.Datatype); int64(elements) != count {
			return nil, wrong(t.Name, fmt.Sprintf("has %d elements of %s, the shape has %d", elements, t.Datatype, count))
		}
	}
	if t.Datatype == "BOOL" && slices.ContainsFunc(raw, func(b byte) bool { return b > 1 }) {
		return nil, wrong(t.Name, "BOOL bytes must be 0 or 1")
	}
	if size, fixed := itemBytes[t.Datatype]; fixed && int64(len(raw)) != size*count {
		return nil, wrong(t.Name, fmt.Sprintf("shape %v of %s needs %d bytes, got %d", t.Shape, t.Datatype, size*count, len(raw)))
	}
	return raw, nil
}

// inRange says whether typed contents fit their type, which may be narrower than the field.
func inRange(c *inference.InferTensorContents, datatype string) bool {
	bits := 8 * itemBytes[datatype]
	switch datatype {
	case "INT8", "INT16":
		return !slices.ContainsFunc(c.GetIntContents(), func(v int32) bool { return v < -1<<(bits-1) || v >= 1<<(bits-1) })
	case "UINT8", "UINT16":
		return !slices.ContainsFunc(c.GetUintContents(), func(v uint32) bool { return v >= 1<<bits })
	}
	return true
}

// typed is the raw little-endian form of typed contents, and how many elements they have.
func typed(c *inference.InferTensorContents, datatype string) ([]byte, int) {
	var out []byte
	le := binary.LittleEndian
	switch datatype {
	case "BOOL":
		for _, v := range c.GetBoolContents() {
			if v {
				out = append(out, 1)
			} else {
				out = append(out, 0)
			}
		}
	case "INT8", "INT16", "INT32":
		for _, v := range c.GetIntContents() {
			out = le.AppendUint32(out, uint32(v))[:len(out)+int(itemBytes[datatype])]
		}
	case "UINT8", "UINT16", "UINT32":
		for _, v := range c.GetUintContents() {
			out = le.AppendUint32(out, v)[:len(out)+int(itemBytes[datatype])]
		}
	case "INT64":
		for _, v := range c.GetInt64Contents() {
			out = le.AppendUint64(out, uint64(v))
		}
	case "UINT64":
		for _, v := range c.GetUint64Contents() {
			out = le.AppendUint64(out, v)
		}
	case "FP32":
		for _, v := range c.GetFp32Contents() {
			out = le.AppendUint32(out, math.Float32bits(v))
		}
	case "FP64":
		for _, v := range c.GetFp64Contents() {
			out = le.AppendUint64(out, math.Float64bits(v))
		}
	case "BYTES":
		for _, v := range c.GetBytesContents() {
			out = append(le.AppendUint32(out, uint32(len(v))), v...)
		}
		return out, len(c.GetBytesContents())
	}
	return out, len(out) / int(max(1, itemBytes[datatype]))
}

// finite says whether no number of a tensor is infinite or none.
func finite(datatype string, raw []byte) bool {
	le := binary.LittleEndian
	switch datatype {
	case "FP16":
		for ; len(raw) >= 2; raw = raw[2:] {
			if le.Uint16(raw)&0x7C00 == 0x7C00 {
				return false
			}
		}
	case "FP32":
		for ; len(raw) >= 4; raw = raw[4:] {
			if le.Uint32(raw)&0x7F800000 == 0x7F800000 {
				return false
			}
		}
	case "FP64":
		for ; len(raw) >= 8; raw = raw[8:] {
			if le.Uint64(raw)&0x7FF0000000000000 == 0x7FF0000000000000 {
				return false
			}
		}
	}
	return true
}
