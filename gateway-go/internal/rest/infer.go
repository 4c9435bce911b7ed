package rest

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"strconv"
	"unicode/utf8"

	"vigil/gateway/gen/inference"
)

const (
	// depthMax bounds how deep data may be nested: ONNX tensors seldom have more than 8 axes.
	depthMax = 32
	// tensorsMax bounds inputs and outputs of a request.
	tensorsMax = 1024
	binarySize = "binary_data_size"
	binaryData = "binary_data"
	binaryAll  = "binary_data_output"
)

// Wanted says which outputs a caller wants as binary data.
type Wanted struct {
	all    bool
	byName map[string]bool
}

// binary says whether an output leaves as binary data.
func (w *Wanted) binary(name string) bool {
	if set, known := w.byName[name]; known {
		return set
	}
	return w.all
}

type requestForm struct {
	ID         string                     `json:"id"`
	Parameters map[string]json.RawMessage `json:"parameters"`
	Inputs     []tensorForm               `json:"inputs"`
	Outputs    []tensorForm               `json:"outputs"`
}

type tensorForm struct {
	Name       string                     `json:"name"`
	Datatype   string                     `json:"datatype"`
	Shape      []int64                    `json:"shape"`
	Parameters map[string]json.RawMessage `json:"parameters"`
	Data       json.RawMessage            `json:"data"`
}

// Request makes the gRPC message of an infer request: a JSON object, followed by the
// binary data of inputs that say so, in order. All contents are raw. bytesMax bounds the
// bytes of the tensors together. Errors name field, value and limit.
func Request(model, version string, object, tail []byte, bytesMax int64) (*inference.ModelInferRequest, *Wanted, error) {
	var form requestForm
	if err := decode(object, &form); err != nil {
		return nil, nil, err
	}
	if len(form.Inputs) > tensorsMax || len(form.Outputs) > tensorsMax {
		return nil, nil, fmt.Errorf("%d inputs and %d outputs; the limit of each is %d", len(form.Inputs), len(form.Outputs), tensorsMax)
	}
	out := &inference.ModelInferRequest{ModelName: model, ModelVersion: version, Id: form.ID}
	wanted := &Wanted{byName: map[string]bool{}}
	var err error
	if wanted.all, err = takeBool(form.Parameters, binaryAll, "parameters"); err != nil {
		return nil, nil, err
	}
	if out.Parameters, err = parameters(form.Parameters, "parameters"); err != nil {
		return nil, nil, err
	}
	for i := range form.Inputs {
		input, raw, rest, err := form.Inputs[i].input(fmt.Sprintf("inputs[%d]", i), tail, bytesMax)
		if err != nil {
			return nil, nil, err
		}
		tail, bytesMax = rest, bytesMax-int64(len(raw))
		out.Inputs = append(out.Inputs, input)
		if raw != nil { // it lies in shared memory otherwise
			out.RawInputContents = append(out.RawInputContents, raw)
		}
	}
	if len(tail) > 0 {
		return nil, nil, fmt.Errorf("%d bytes follow the binary data that the inputs declare", len(tail))
	}
	for i, o := range form.Outputs {
		field := fmt.Sprintf("outputs[%d].parameters", i)
		if _, set := o.Parameters[binaryData]; set {
			if wanted.byName[o.Name], err = takeBool(o.Parameters, binaryData, field); err != nil {
				return nil, nil, err
			}
		}
		given, err := parameters(o.Parameters, field)
		if err != nil {
			return nil, nil, err
		}
		out.Outputs = append(out.Outputs, &inference.ModelInferRequest_InferRequestedOutputTensor{Name: o.Name, Parameters: given})
	}
	return out, wanted, nil
}

// decode reads one JSON value, and says where it is broken.
func decode(object []byte, into any) error {
	if !utf8.Valid(object) {
		return errors.New("the request is not UTF-8")
	}
	if err := measure(object); err != nil {
		return err
	}
	err := json.Unmarshal(object, into)
	var syntax *json.SyntaxError
	var kind *json.UnmarshalTypeError
	switch {
	case errors.As(err, &syntax):
		return fmt.Errorf("failed to parse the request JSON buffer: %w at %d", err, syntax.Offset)
	case errors.As(err, &kind):
		return fmt.Errorf("%s is a JSON %s, expected %s", kind.Field, kind.Value, kind.Type)
	}
	return err
}

// input makes one input's message and raw contents, nil for one in shared memory, and
// gives what is left of the binary data.
func (t *tensorForm) input(field string, tail []byte, bytesMax int64) (*inference.ModelInferRequest_InferInputTensor, []byte, []byte, error) {
	fail := func(format string, args ...any) (*inference.ModelInferRequest_InferInputTensor, []byte, []byte, error) {
		return nil, nil, nil, fmt.Errorf("%s ('%s'): "+format, append([]any{field, t.Name}, args...)...)
	}
	kind, known := kinds[t.Datatype]
	if !known {
		return fail("datatype '%s' is not known", t.Datatype)
	}
	count, err := elementCount(t.Shape, max(int64(kind.size), 1), bytesMax)
	if err != nil {
		return fail("%w", err)
	}
	size, binary := t.Parameters[binarySize]
	delete(t.Parameters, binarySize)
	out := &inference.ModelInferRequest_InferInputTensor{Name: t.Name, Datatype: t.Datatype, Shape: t.Shape}
	if out.Parameters, err = parameters(t.Parameters, field+".parameters"); err != nil {
		return nil, nil, nil, err
	}
	if binary {
		n, err := strconv.ParseUint(string(size), 10, 63)
		switch {
		case err != nil:
			return fail("%s is %s, expected a whole number of bytes", binarySize, shown(size))
		case t.Data != nil:
			return fail("has both data and %s", binarySize)
		case n > uint64(len(tail)):
			return fail("%s is %d, but %d bytes are left of the request", binarySize, n, len(tail))
		}
		return out, append([]byte{}, tail[:n]...), tail[n:], nil
	}
	if _, elsewhere := t.Parameters["shared_memory_region"]; elsewhere && t.Data == nil {
		return out, nil, tail, nil
	}
	if t.Data == nil {
		return fail("has neither data nor %s", binarySize)
	}
	raw, err := encode(t.Data, t.Datatype, kind, count, bytesMax)
	if err != nil {
		return fail("%w", err)
	}
	return out, raw, tail, nil
}

// elementCount is the product of a shape, held against what fits into the limit.
func elementCount(shape []int64, size, bytesMax int64) (int64, error) {
	count := int64(1)
	for _, n := range shape {
		if n < 0 {
			return 0, fmt.Errorf("shape %v has a negative dimension", shape)
		}
		if n > 0 && count > math.MaxInt64/n {
			return 0, fmt.Errorf("shape %v has more elements than can be counted", shape)
		}
		count *= n
	}
	if count > max(bytesMax, 0)/size {
		return 0, fmt.Errorf("shape %v has %d elements of %d bytes; %d bytes are left of the limit (limits.message_bytes_max)", shape, count, size, max(bytesMax, 0))
	}
	return count, nil
}

// encode makes raw contents of data: an array, flat or nested, of so many elements.
func encode(data []byte, datatype string, k kind, count, bytesMax int64) ([]byte, error) {
	if k.encode == nil {
		return nil, fmt.Errorf("%s has no form in JSON; send it as binary data (%s)", datatype, binarySize)
	}
	if data[0] != '[' {
		return nil, errors.New("data is not an array")
	}
	raw, found := make([]byte, 0, count*int64(k.size)), int64(0)
	err := eachElement(data, func(token []byte) error {
		if found == count {
			return fmt.Errorf("data has more elements than the %d of the shape", count)
		}
		found++
		var err error
		if raw, err = k.encode(raw, token); err != nil {
			return fmt.Errorf("data[%d]: %w", found-1, err)
		}
		if int64(len(raw)) > bytesMax {
			return fmt.Errorf("more than %d bytes are left of the limit (limits.message_bytes_max)", bytesMax)
		}
		return nil
	})
	if err == nil && found != count {
		err = fmt.Errorf("data has %d elements, the shape has %d", found, count)
	}
	return raw, err
}

// eachElement gives each element of a valid JSON array, however nested, in order.
func eachElement(data []byte, each func(token []byte) error) error {
	depth := 0
	for i := 0; i < len(data); {
		switch c := data[i]; c {
		case ' ', '\t', '\n', '\r', ',':
			i++
		case '[':
			if depth++; depth > depthMax {
				return fmt.Errorf("data is nested deeper than %d", depthMax)
			}
			i++
		case ']':
			depth--
			i++
		case '{':
			return errors.New("data holds an object")
		default:
			end := tokenEnd(data, i)
			if err := each(data[i:end]); err != nil {
				return err
			}
			i = end
		}
	}
	return nil
}

// tokenEnd is where a string, number or word that begins at i ends.
func tokenEnd(data []byte, i int) int {
	if data[i] != '"' {
		for i < len(data) && data[i] != ',' && data[i] != ']' && data[i] > ' ' {
			i++
		}
		return i
	}
	return stringEnd(data, i)
}

// takeBool takes a boolean out of parameters; false when it is not there.
func takeBool(given map[string]json.RawMessage, name, field string) (bool, error) {
	raw, known := given[name]
	delete(given, name)
	switch {
	case !known || string(raw) == "false":
		return false, nil
	case string(raw) == "true":
		return true, nil
	}
	return false, fmt.Errorf("%s.%s is %s, expected true or false", field, name, shown(raw))
}

// parameters makes gRPC's parameters of JSON's: booleans, numbers and strings.
func parameters(given map[string]json.RawMessage, field string) (map[string]*inference.InferParameter, error) {
	if len(given) == 0 {
		return nil, nil
	}
	out := map[string]*inference.InferParameter{}
	for name, raw := range given {
		p, text := &inference.InferParameter{}, ""
		switch {
		case string(raw) == "true" || string(raw) == "false":
			p.ParameterChoice = &inference.InferParameter_BoolParam{BoolParam: string(raw) == "true"}
		case json.Unmarshal(raw, &text) == nil && raw[0] == '"':
			p.ParameterChoice = &inference.InferParameter_StringParam{StringParam: text}
		default:
			if n, err := strconv.ParseInt(string(raw), 10, 64); err == nil {
				p.ParameterChoice = &inference.InferParameter_Int64Param{Int64Param: n}
			} else if n, err := strconv.ParseUint(string(raw), 10, 64); err == nil {
				p.ParameterChoice = &inference.InferParameter_Uint64Param{Uint64Param: n}
			} else if x, err := strconv.ParseFloat(string(raw), 64); err == nil {
				p.ParameterChoice = &inference.InferParameter_DoubleParam{DoubleParam: x}
			} else {
				return nil, fmt.Errorf("%s.%s is %s, expected a boolean, a number or a string", field, name, shown(raw))
			}
		}
		out[name] = p
	}
	return out, nil
}

// bytesElements gives each element of raw BYTES contents.
func bytesElements(raw []byte, each func(element []byte) error) error {
	for len(raw) > 0 {
		if len(raw) < 4 || uint64(binary.LittleEndian.Uint32(raw)) > uint64(len(raw)-4) {
			return errors.New("elements of BYTES are cut off")
		}
		n := binary.LittleEndian.Uint32(raw)
		if err := each(raw[4 : 4+n]); err != nil {
			return err
		}
		raw = raw[4+n:]
	}
	return nil
}
