package rest

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"unicode/utf8"

	"vigil/gateway/gen/inference"
)

// Response is an infer response in its REST form: a JSON object, and the binary data that
// follows it, if any.
type Response struct {
	Object []byte
	Binary [][]byte
}

// Answer makes the REST form of an answer, whose contents are raw. Elements stand flat.
// Values that JSON does not have are an error that says so.
func Answer(m *inference.ModelInferResponse, wanted *Wanted) (*Response, error) {
	if len(m.RawOutputContents) != len(m.Outputs) {
		return nil, errors.New("the answer's contents are not raw")
	}
	out := &Response{}
	dst := appendField([]byte("{"), "model_name", m.ModelName)
	dst = appendField(append(dst, ','), "model_version", m.ModelVersion)
	if m.Id != "" {
		dst = appendField(append(dst, ','), "id", m.Id)
	}
	if len(m.Parameters) > 0 {
		dst = appendParameters(append(dst, ','), m.Parameters, -1)
	}
	dst = append(dst, `,"outputs":[`...)
	for i, t := range m.Outputs {
		if i > 0 {
			dst = append(dst, ',')
		}
		dst = appendField(append(dst, '{'), "name", t.Name)
		dst = appendField(append(dst, ','), "datatype", t.Datatype)
		dst = append(dst, `,"shape":[`...)
		for j, n := range t.Shape {
			if j > 0 {
				dst = append(dst, ',')
			}
			dst = strconv.AppendInt(dst, n, 10)
		}
		dst = append(dst, ']')
		raw, size := m.RawOutputContents[i], -1
		_, elsewhere := t.Parameters["shared_memory_region"]
		if !elsewhere && wanted.binary(t.Name) {
			size = len(raw)
			out.Binary = append(out.Binary, raw)
		}
		// Where it lies its reader knows; Triton's C++ client takes parameters without a size of binary data for a fault.
		if !elsewhere && (len(t.Parameters) > 0 || size >= 0) {
			dst = appendParameters(append(dst, ','), t.Parameters, size)
		}
		if size < 0 && !elsewhere {
			var err error
			if dst, err = appendData(append(dst, `,"data":[`...), t.Datatype, raw); err != nil {
				return nil, fmt.Errorf("output '%s' %w", t.Name, err)
			}
			dst = append(dst, ']')
		}
		dst = append(dst, '}')
	}
	out.Object = append(dst, ']', '}')
	return out, nil
}

// appendString appends a JSON string.
func appendString(dst []byte, text string) []byte {
	quoted, err := json.Marshal(text)
	if err != nil { // it never is: any string has a form
		return append(dst, `""`...)
	}
	return append(dst, quoted...)
}

func appendField(dst []byte, name, value string) []byte {
	return appendString(append(appendString(dst, name), ':'), value)
}

// appendParameters appends a member "parameters", in order of names, with the size of
// binary data unless that is negative.
func appendParameters(dst []byte, given map[string]*inference.InferParameter, size int) []byte {
	dst = append(dst, `"parameters":{`...)
	first := true
	next := func(name string) {
		if !first {
			dst = append(dst, ',')
		}
		first = false
		dst = append(appendString(dst, name), ':')
	}
	for _, name := range slices.Sorted(maps.Keys(given)) {
		next(name)
		switch p := given[name].ParameterChoice.(type) {
		case *inference.InferParameter_BoolParam:
			dst = strconv.AppendBool(dst, p.BoolParam)
		case *inference.InferParameter_Int64Param:
			dst = strconv.AppendInt(dst, p.Int64Param, 10)
		case *inference.InferParameter_Uint64Param:
			dst = strconv.AppendUint(dst, p.Uint64Param, 10)
		case *inference.InferParameter_DoubleParam:
			dst = strconv.AppendFloat(dst, p.DoubleParam, 'g', -1, 64)
		case *inference.InferParameter_StringParam:
			dst = appendString(dst, p.StringParam)
		default:
			dst = append(dst, "null"...)
		}
	}
	if size >= 0 {
		next(binarySize)
		dst = strconv.AppendInt(dst, int64(size), 10)
	}
	return append(dst, '}')
}

// appendData appends the elements of raw contents.
func appendData(dst []byte, datatype string, raw []byte) ([]byte, error) {
	k, known := kinds[datatype]
	if !known || k.size > 0 && k.decode == nil {
		return dst, fmt.Errorf("is of datatype %s, which has no form in JSON; ask for it as binary data", datatype)
	}
	first := true
	separate := func() {
		if !first {
			dst = append(dst, ',')
		}
		first = false
	}
	if k.size == 0 {
		err := bytesElements(raw, func(element []byte) error {
			if !utf8.Valid(element) {
				return errors.New("holds bytes that are not UTF-8, which JSON does not have; ask for it as binary data")
			}
			separate()
			dst = appendString(dst, string(element))
			return nil
		})
		return dst, err
	}
	if len(raw)%k.size != 0 {
		return dst, fmt.Errorf("has %d bytes, which are no whole number of %s", len(raw), datatype)
	}
	for ; len(raw) > 0; raw = raw[k.size:] {
		separate()
		var err error
		if dst, err = k.decode(dst, raw[:k.size]); err != nil {
			return dst, err
		}
	}
	return dst, nil
}
