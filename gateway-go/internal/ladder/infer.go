package ladder

import (
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"time"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	"vigil/gateway/audit"
	"vigil/gateway/gen/inference"
)

// errNone says that there is nothing that could stand in.
var errNone = errors.New("nothing stands in")

const elementsMax = 1 << 31

// Mark appends to an encoded ModelInferResponse what says that it is degraded: the
// parameters vigil_quality, vigil_age_ms and vigil_stand_in. Fields that stand twice
// count as they stand last (protobuf's encoding), maps too.
func Mark(message []byte, quality, source string, age time.Duration) []byte {
	marks := &inference.ModelInferResponse{Parameters: map[string]*inference.InferParameter{
		// SR-010
		"vigil_quality":  {ParameterChoice: &inference.InferParameter_StringParam{StringParam: quality}},
		"vigil_age_ms":   {ParameterChoice: &inference.InferParameter_Int64Param{Int64Param: age.Milliseconds()}},
		"vigil_stand_in": {ParameterChoice: &inference.InferParameter_StringParam{StringParam: source}},
	}}
	out, err := proto.MarshalOptions{Deterministic: true}.MarshalAppend(slices.Clip(message), marks)
	if err != nil {
		panic(err) // three short texts
	}
	return out
}

func (l Ladder) repeatInfer(r *inference.ModelInferRequest, g *Good, out *Answer) error {
	inputs, _, err := l.inputs(r)
	if err != nil {
		return err
	}
	given := &inference.ModelInferResponse{}
	if err := proto.Unmarshal(g.Message, given); err != nil {
		return err
	}
	outputs := make([]audit.Tensor, 0, len(given.Outputs))
	for i, t := range given.Outputs {
		if i >= len(given.RawOutputContents) {
			return errNone
		}
		outputs = append(outputs, tensor(t.Name, t.Datatype, t.Shape, given.RawOutputContents[i]))
	}
	out.InputHash, out.OutHash = audit.TensorHash(inputs), audit.TensorHash(outputs)
	if digest, err := hex.DecodeString(given.Parameters["vigil_model_digest"].GetStringParam()); err == nil {
		copy(out.ModelDigest[:], digest)
	}
	out.encode = func(string, string) ([]byte, error) {
		message := Mark(g.Message, out.Quality, out.Source, out.Age)
		message = protowire.AppendTag(message, 3, protowire.BytesType) // id: this request's, not that of the one answered first
		return protowire.AppendString(message, r.Id), nil
	}
	return nil
}

func (l Ladder) constantInfer(r *inference.ModelInferRequest, out *Answer) error {
	if len(l.Outputs) == 0 {
		return errNone
	}
	inputs, rows, err := l.inputs(r)
	if err != nil {
		return err
	}
	wanted, err := l.wanted(r)
	if err != nil {
		return err
	}
	response := &inference.ModelInferResponse{ModelName: r.ModelName, Id: r.Id}
	var outputs []audit.Tensor
	for _, name := range wanted {
		o := l.Outputs[slices.Index(l.outputNames(), name)]
		shape, raw := o.Shape, o.Raw
		if rows > 0 {
			shape, raw = append([]int64{rows}, shape...), slices.Repeat(raw, int(rows))
		}
		response.Outputs = append(response.Outputs, &inference.ModelInferResponse_InferOutputTensor{Name: name, Datatype: o.Datatype, Shape: shape})
		response.RawOutputContents = append(response.RawOutputContents, raw)
		outputs = append(outputs, tensor(name, o.Datatype, shape, raw))
	}
	out.InputHash, out.OutHash = audit.TensorHash(inputs), audit.TensorHash(outputs)
	out.encode = func(string, string) ([]byte, error) {
		data, err := proto.Marshal(response)
		return Mark(data, out.Quality, out.Source, 0), err
	}
	return nil
}

func (l Ladder) outputNames() []string {
	names := make([]string, len(l.Outputs))
	for i, o := range l.Outputs {
		names[i] = o.Name
	}
	return names
}

// wanted is what a request asks for, all outputs when it does not say.
func (l Ladder) wanted(r *inference.ModelInferRequest) ([]string, error) {
	all := l.outputNames()
	if len(r.Outputs) == 0 {
		return all, nil
	}
	var names []string
	for _, o := range r.Outputs {
		if !slices.Contains(all, o.Name) || slices.Contains(names, o.Name) {
			return nil, wrong(o.Name, fmt.Sprintf("unexpected inference output '%s' for model '%s'", clip(o.Name), r.ModelName))
		}
		if _, ok := o.Parameters["classification"]; ok {
			return nil, errNone // constants have no classes
		}
		names = append(names, o.Name)
	}
	return names, nil
}

func tensor(name, datatype string, shape []int64, raw []byte) audit.Tensor {
	out := audit.Tensor{Name: name, Datatype: datatype, Raw: raw}
	for _, d := range shape {
		out.Shape = append(out.Shape, uint64(d))
	}
	return out
}

// InvalidError says what is wrong with a request.
type InvalidError struct{ Field, Text string }

func (e *InvalidError) Error() string { return e.Field + ": " + e.Text }

func wrong(field, text string) error { return &InvalidError{clip(field), text} }

func clip(text string) string { return text[:min(len(text), 256)] }

// inputs are a request's tensors in raw form, held against the model's own inputs, and
// its rows (0: the model does not batch). The error names field and limit.
func (l Ladder) inputs(r *inference.ModelInferRequest) ([]audit.Tensor, int64, error) {
	if len(r.RawInputContents) > 0 && len(r.RawInputContents) != len(r.Inputs) {
		return nil, 0, wrong("raw_input_contents", fmt.Sprintf("has %d items, the request has %d inputs", len(r.RawInputContents), len(r.Inputs)))
	}
	rows := int64(-1)
	out := make([]audit.Tensor, 0, len(r.Inputs))
	seen := map[string]bool{}
	for i, t := range r.Inputs {
		count, err := l.checkForm(t, seen)
		if err != nil {
			return nil, 0, err
		}
		raw, err := contents(r, i, count)
		if err != nil {
			return nil, 0, err
		}
		if l.FiniteInputs && !finite(t.Datatype, raw) {
			return nil, 0, wrong(t.Name, "has a number that is not finite")
		}
		if l.MaxBatchSize > 0 {
			if len(t.Shape) == 0 || (rows >= 0 && t.Shape[0] != rows) {
				return nil, 0, wrong(t.Name, "inputs have different first dimensions")
			}
			rows = t.Shape[0]
		}
		out = append(out, tensor(t.Name, t.Datatype, t.Shape, raw))
	}
	if len(seen) != len(l.Inputs) {
		return nil, 0, wrong("inputs", fmt.Sprintf("expected %d inputs but got %d", len(l.Inputs), len(seen)))
	}
	if l.MaxBatchSize == 0 {
		return out, 0, nil
	}
	if rows < 1 || rows > int64(l.MaxBatchSize) {
		return nil, 0, wrong("inputs", fmt.Sprintf("inference request batch-size is %d, allowed is 1..%d for '%s'", rows, l.MaxBatchSize, r.ModelName))
	}
	return out, rows, nil
}

// checkForm holds name, type and shape of an input against the model's; it returns
// how many elements there are.
func (l Ladder) checkForm(t *inference.ModelInferRequest_InferInputTensor, seen map[string]bool) (int64, error) {
	at := slices.IndexFunc(l.Inputs, func(s *linkForm) bool { return s.Name == t.Name })
	switch {
	case at < 0:
		return 0, wrong(t.Name, fmt.Sprintf("unexpected inference input '%s' for model '%s'", clip(t.Name), l.Model))
	case seen[t.Name]:
		return 0, wrong(t.Name, "is given twice")
	case l.Inputs[at].Datatype != t.Datatype:
		return 0, wrong(t.Name, fmt.Sprintf("data-type is '%s', but model '%s' expects '%s'", clip(t.Datatype), l.Model, l.Inputs[at].Datatype))
	case len(t.Shape) != len(l.Inputs[at].Shape):
		return 0, wrong(t.Name, fmt.Sprintf("unexpected shape: expected %v, got %v", l.Inputs[at].Shape, t.Shape))
	}
	seen[t.Name] = true
	count := int64(1)
	for i, d := range t.Shape {
		// SR-013
		if w := l.Inputs[at].Shape[i]; d < 0 || d > elementsMax || (w != -1 && w != d) {
			return 0, wrong(t.Name, fmt.Sprintf("unexpected shape: expected %v, got %v", l.Inputs[at].Shape, t.Shape))
		}
		if count *= d; count > elementsMax {
			return 0, wrong(t.Name, "has more than "+strconv.Itoa(elementsMax)+" elements")
		}
	}
	return count, nil
}
