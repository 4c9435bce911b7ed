package ladder

import (
	"encoding/binary"
	"errors"
	"math"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"vigil/gateway/audit"
	"vigil/gateway/gen/inference"
	linkv1 "vigil/gateway/gen/vigil/link/v1"
	perceptionv1 "vigil/gateway/gen/vigil/perception/v1"
)

func key(t *testing.T, tenant string, m proto.Message) Key {
	t.Helper()
	k, ok := forms().KeyOf(tenant, m)
	if !ok {
		t.Fatalf("no key for %v", m)
	}
	return k
}

func inferRequest(change func(*inference.ModelInferRequest)) *inference.ModelInferRequest {
	r := &inference.ModelInferRequest{
		ModelName: "m", Id: "1", RawInputContents: [][]byte{make([]byte, 16)},
		Inputs:     []*inference.ModelInferRequest_InferInputTensor{{Name: "x", Datatype: "FP32", Shape: []int64{1, 4}}},
		Parameters: map[string]*inference.InferParameter{SourceParameter: {ParameterChoice: &inference.InferParameter_StringParam{StringParam: "cam"}}},
	}
	if change != nil {
		change(r)
	}
	return r
}

// What must not share an answer has another key; id and contents do not count.
func TestKeys(t *testing.T) {
	first := key(t, "a", inferRequest(nil))
	same := inferRequest(func(r *inference.ModelInferRequest) { r.Id, r.RawInputContents[0][0] = "2", 7 })
	if key(t, "a", same) != first {
		t.Error("id or contents count")
	}
	text := &inference.InferParameter{ParameterChoice: &inference.InferParameter_StringParam{StringParam: "other"}}
	others := map[string]func(*inference.ModelInferRequest){
		"model":     func(r *inference.ModelInferRequest) { r.ModelName = "n" },
		"version":   func(r *inference.ModelInferRequest) { r.ModelVersion = "1" },
		"source":    func(r *inference.ModelInferRequest) { r.Parameters[SourceParameter] = text },
		"parameter": func(r *inference.ModelInferRequest) { r.Parameters["p"] = text },
		"rows":      func(r *inference.ModelInferRequest) { r.Inputs[0].Shape[0] = 2 },
		"type":      func(r *inference.ModelInferRequest) { r.Inputs[0].Datatype = "FP16" },
		"outputs": func(r *inference.ModelInferRequest) {
			r.Outputs = []*inference.ModelInferRequest_InferRequestedOutputTensor{{Name: "y"}}
		},
	}
	for name, change := range others {
		if key(t, "a", inferRequest(change)) == first {
			t.Errorf("%s does not count", name)
		}
	}
	if key(t, "b", inferRequest(nil)) == first {
		t.Error("the tenant does not count")
	}
	if _, ok := forms().KeyOf("a", inferRequest(func(r *inference.ModelInferRequest) { r.Parameters = nil })); ok {
		t.Error("a request without a source has a key")
	}
	detect := &perceptionv1.DetectRequest{SourceId: "cam", Model: "m", CaptureTimeUs: 1, RequestId: "1"}
	if key(t, "a", detect) != key(t, "a", &perceptionv1.DetectRequest{SourceId: "cam", Model: "m", CaptureTimeUs: 2}) {
		t.Error("capture time or request id count")
	}
	if key(t, "a", detect) == key(t, "a", &perceptionv1.DetectRequest{SourceId: "cam", Model: "m", MinConfidence: 0.5}) {
		t.Error("min_confidence does not count")
	}
}

// Random use: number and bytes stay within their limits, and what is found is the latest kept, not too old.
func TestCacheIsBounded(t *testing.T) {
	const answersMax, bytesMax = 8, 100
	c := NewCache(answersMax, bytesMax)
	latest := map[Key]*Good{}
	random := rand.New(rand.NewPCG(1, 2))
	start := time.Now()
	found := 0
	for i := range 20000 {
		k := Key{byte(random.IntN(16))}
		now := start.Add(time.Duration(i) * time.Millisecond)
		if random.IntN(2) == 0 {
			g := &Good{Message: make([]byte, random.IntN(130)), Given: now}
			c.Keep(k, g)
			latest[k] = g
		} else if g := c.Get(k, 20*time.Millisecond, now); g != nil {
			found++
			if g != latest[k] || now.Sub(g.Given) > 20*time.Millisecond {
				t.Fatal("an answer that is not the latest, or too old")
			}
		}
		if n, bytes := c.Size(); n > answersMax || bytes > bytesMax || bytes < 0 {
			t.Fatalf("%d answers, %d bytes", n, bytes)
		}
	}
	if found < 1000 {
		t.Errorf("only %d were found", found)
	}
}

func forms() Ladder {
	return Ladder{&linkv1.Ladder{
		Model: "m", MaxBatchSize: 4, FiniteInputs: true,
		Inputs:  []*linkv1.TensorForm{{Name: "x", Datatype: "FP32", Shape: []int64{-1, 4}}},
		Outputs: []*linkv1.ConstantOutput{{Name: "y", Datatype: "INT8", Shape: []int64{2}, Raw: []byte{1, 2}}, {Name: "z", Datatype: "INT8", Raw: []byte{3}}},
	}}
}

func TestConstantsAreRepeatedForEachRow(t *testing.T) {
	r := inferRequest(func(r *inference.ModelInferRequest) {
		r.Inputs[0].Shape[0], r.RawInputContents[0] = 3, make([]byte, 48)
		r.Outputs = []*inference.ModelInferRequest_InferRequestedOutputTensor{{Name: "z"}, {Name: "y"}}
	})
	a, err := forms().Constant(r)
	if err != nil {
		t.Fatal(err)
	}
	data, err := a.Encode("", "")
	if err != nil {
		t.Fatal(err)
	}
	out := &inference.ModelInferResponse{}
	if err := proto.Unmarshal(data, out); err != nil {
		t.Fatal(err)
	}
	if out.Outputs[0].Name != "z" || string(out.RawOutputContents[0]) != "\x03\x03\x03" || string(out.RawOutputContents[1]) != "\x01\x02\x01\x02\x01\x02" {
		t.Errorf("got %v", out)
	}
	if out.Parameters["vigil_quality"].GetStringParam() != "rule" || out.Parameters["vigil_stand_in"].GetStringParam() != Constants || out.Id != "1" {
		t.Errorf("marks: %v", out.Parameters)
	}
	want := audit.TensorHash([]audit.Tensor{{Name: "y", Datatype: "INT8", Shape: []uint64{3, 2}, Raw: []byte{1, 2, 1, 2, 1, 2}},
		{Name: "z", Datatype: "INT8", Shape: []uint64{3}, Raw: []byte{3, 3, 3}}})
	if a.OutHash != want {
		t.Error("output hash")
	}
}

// Each fault of a request is named by its field.
func TestWrongRequests(t *testing.T) {
	nan := binary.LittleEndian.AppendUint32(make([]byte, 12), math.Float32bits(float32(math.NaN())))
	for name, c := range map[string]struct {
		field  string
		change func(*inference.ModelInferRequest)
	}{
		"name": {"q", func(r *inference.ModelInferRequest) { r.Inputs[0].Name = "q" }},
		"type": {"x", func(r *inference.ModelInferRequest) { r.Inputs[0].Datatype = "INT8" }},
		"width": {"x", func(r *inference.ModelInferRequest) {
			r.Inputs[0].Shape[1], r.RawInputContents[0] = 5, make([]byte, 20)
		}},
		"rank":     {"x", func(r *inference.ModelInferRequest) { r.Inputs[0].Shape = nil }},
		"negative": {"x", func(r *inference.ModelInferRequest) { r.Inputs[0].Shape[0] = -1 }},
		"huge":     {"x", func(r *inference.ModelInferRequest) { r.Inputs[0].Shape[0] = math.MaxInt64 }},
		"bytes":    {"x", func(r *inference.ModelInferRequest) { r.RawInputContents[0] = nil }},
		"rows": {"inputs", func(r *inference.ModelInferRequest) {
			r.Inputs[0].Shape[0], r.RawInputContents[0] = 5, make([]byte, 80)
		}},
		"no rows":    {"inputs", func(r *inference.ModelInferRequest) { r.Inputs[0].Shape[0], r.RawInputContents[0] = 0, nil }},
		"not finite": {"x", func(r *inference.ModelInferRequest) { r.RawInputContents[0] = nan }},
		"missing":    {"inputs", func(r *inference.ModelInferRequest) { r.Inputs, r.RawInputContents = nil, nil }},
		"items":      {"raw_input_contents", func(r *inference.ModelInferRequest) { r.RawInputContents = append(r.RawInputContents, nil) }},
		"twice": {"x", func(r *inference.ModelInferRequest) {
			r.Inputs, r.RawInputContents = append(r.Inputs, r.Inputs[0]), append(r.RawInputContents, r.RawInputContents[0])
		}},
		"both": {"x", func(r *inference.ModelInferRequest) { r.Inputs[0].Contents = &inference.InferTensorContents{} }},
		"output": {"w", func(r *inference.ModelInferRequest) {
			r.Outputs = []*inference.ModelInferRequest_InferRequestedOutputTensor{{Name: "w"}}
		}},
	} {
		_, err := forms().Constant(inferRequest(c.change))
		var e *InvalidError
		if !errors.As(err, &e) || e.Field != c.field {
			t.Errorf("%s: %v, wanted a fault of %s", name, err, c.field)
		}
	}
	if _, err := (Ladder{&linkv1.Ladder{}}).Constant(inferRequest(nil)); !errors.Is(err, errNone) {
		t.Errorf("without constants: %v", err)
	}
	classes := inferRequest(func(r *inference.ModelInferRequest) {
		three := &inference.InferParameter{ParameterChoice: &inference.InferParameter_Int64Param{Int64Param: 3}}
		r.Outputs = []*inference.ModelInferRequest_InferRequestedOutputTensor{{Name: "y", Parameters: map[string]*inference.InferParameter{"classification": three}}}
	})
	if _, err := forms().Constant(classes); !errors.Is(err, errNone) {
		t.Errorf("classes of constants: %v", err)
	}
}

// Typed contents have the bytes that raw ones have.
func TestTypedContents(t *testing.T) {
	for datatype, c := range map[string]struct {
		in   *inference.InferTensorContents
		want string
	}{
		"BOOL":   {&inference.InferTensorContents{BoolContents: []bool{true, false}}, "\x01\x00"},
		"INT8":   {&inference.InferTensorContents{IntContents: []int32{-1, 2}}, "\xff\x02"},
		"INT16":  {&inference.InferTensorContents{IntContents: []int32{-2, 1}}, "\xfe\xff\x01\x00"},
		"INT32":  {&inference.InferTensorContents{IntContents: []int32{-2, 1}}, "\xfe\xff\xff\xff\x01\x00\x00\x00"},
		"UINT8":  {&inference.InferTensorContents{UintContents: []uint32{255, 2}}, "\xff\x02"},
		"UINT16": {&inference.InferTensorContents{UintContents: []uint32{258, 1}}, "\x02\x01\x01\x00"},
		"UINT32": {&inference.InferTensorContents{UintContents: []uint32{258, 1}}, "\x02\x01\x00\x00\x01\x00\x00\x00"},
		"INT64":  {&inference.InferTensorContents{Int64Contents: []int64{-1, 1}}, "\xff\xff\xff\xff\xff\xff\xff\xff\x01\x00\x00\x00\x00\x00\x00\x00"},
		"UINT64": {&inference.InferTensorContents{Uint64Contents: []uint64{1, 2}}, "\x01\x00\x00\x00\x00\x00\x00\x00\x02\x00\x00\x00\x00\x00\x00\x00"},
		"FP32":   {&inference.InferTensorContents{Fp32Contents: []float32{1, -2}}, "\x00\x00\x80\x3f\x00\x00\x00\xc0"},
		"FP64":   {&inference.InferTensorContents{Fp64Contents: []float64{1, -2}}, "\x00\x00\x00\x00\x00\x00\xf0\x3f\x00\x00\x00\x00\x00\x00\x00\xc0"},
		"BYTES":  {&inference.InferTensorContents{BytesContents: [][]byte{[]byte("ab"), nil}}, "\x02\x00\x00\x00ab\x00\x00\x00\x00"},
	} {
		if raw, n := typed(c.in, datatype); string(raw) != c.want || n != 2 {
			t.Errorf("%s: %q, %d elements", datatype, raw, n)
		}
	}
}

func TestFinite(t *testing.T) {
	le := binary.LittleEndian
	for _, v := range []float64{0, -1, math.MaxFloat32, math.SmallestNonzeroFloat32, math.NaN(), math.Inf(1), math.Inf(-1)} {
		want := !math.IsNaN(v) && !math.IsInf(v, 0)
		if finite("FP32", le.AppendUint32(make([]byte, 4), math.Float32bits(float32(v)))) != want {
			t.Errorf("FP32 %v", v)
		}
		if finite("FP64", le.AppendUint64(make([]byte, 8), math.Float64bits(v))) != want {
			t.Errorf("FP64 %v", v)
		}
	}
	for bits, want := range map[uint16]bool{0x7BFF: true, 0x7C00: false, 0xFC00: false, 0x7E00: false} {
		if finite("FP16", le.AppendUint16(nil, bits)) != want {
			t.Errorf("FP16 %x", bits)
		}
	}
}

func TestFallbackRequests(t *testing.T) {
	l := Ladder{&linkv1.Ladder{FallbackModel: "small"}}
	out := &inference.ModelInferRequest{}
	if err := proto.Unmarshal(l.Fallback(inferRequest(func(r *inference.ModelInferRequest) { r.ModelVersion = "7" })), out); err != nil {
		t.Fatal(err)
	}
	want := inferRequest(func(r *inference.ModelInferRequest) { r.ModelName = "small" })
	if !proto.Equal(out, want) {
		t.Errorf("got %v, wanted %v: a version of the model asked for says nothing about another", out, want)
	}
	if forms().Fallback(inferRequest(nil)) != nil {
		t.Error("a fallback that is none")
	}
}

func TestFrames(t *testing.T) {
	l := Ladder{&linkv1.Ladder{ConstantBoxes: true, Boxes: []*perceptionv1.Box{{XMax: 1, YMax: 0.5, Confidence: 0.6}, {Confidence: 0.2}}}}
	raw := func(bytes int) *perceptionv1.DetectRequest {
		return &perceptionv1.DetectRequest{Model: "m", SourceId: "cam", CaptureTimeUs: 5, MinConfidence: 0.5, Frame: &perceptionv1.Frame{
			Content: &perceptionv1.Frame_Raw{Raw: &perceptionv1.RawFrame{Width: 4, Height: 2, Rgb: make([]byte, bytes)}}}}
	}
	a, err := l.Constant(raw(24))
	if err != nil {
		t.Fatal(err)
	}
	data, err := a.Encode("gateway/"+strings.Repeat("ab", 16)+"/7", "trace")
	if err != nil {
		t.Fatal(err)
	}
	out := &perceptionv1.DetectResponse{}
	if err := proto.Unmarshal(data, out); err != nil {
		t.Fatal(err)
	}
	o := out.Output
	if len(o.Boxes) != 1 || o.Boxes[0].XMax != 4 || o.Boxes[0].YMax != 1 || o.Confidence != 0.6 || o.AuditPosition.GetSequence() != 7 || o.TraceId != "trace" {
		t.Errorf("got %v", o)
	}
	var e *InvalidError
	if _, err := l.Constant(raw(23)); !errors.As(err, &e) || e.Field != "frame.raw.rgb" {
		t.Errorf("got %v", err)
	}
}
