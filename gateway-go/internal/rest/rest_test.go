package rest

import (
	"bytes"
	"encoding/json"
	"fmt"
	"math"
	"math/rand/v2"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"

	"vigil/gateway/gen/inference"
)

const limit = 1 << 20

// Data flat, nested and as binary data make the same message.
func TestFormsOfData(t *testing.T) {
	flat := `{"id":"7","inputs":[{"name":"x","datatype":"INT32","shape":[2,2],"data":[1,-2,3,4]}]}`
	nested := `{"id":"7","inputs":[{"name":"x","datatype":"INT32","shape":[2,2],"data":[[1,-2], [ 3 , 4 ]]}]}`
	binary := `{"id":"7","inputs":[{"name":"x","datatype":"INT32","shape":[2,2],"parameters":{"binary_data_size":16}}]}`
	raw := []byte{1, 0, 0, 0, 254, 255, 255, 255, 3, 0, 0, 0, 4, 0, 0, 0}
	want := &inference.ModelInferRequest{
		ModelName: "m", ModelVersion: "3", Id: "7", RawInputContents: [][]byte{raw},
		Inputs: []*inference.ModelInferRequest_InferInputTensor{{Name: "x", Datatype: "INT32", Shape: []int64{2, 2}}},
	}
	for form, tail := range map[string][]byte{flat: nil, nested: nil, binary: raw} {
		got, _, err := Request("m", "3", []byte(form), tail, limit)
		if err != nil || !proto.Equal(got, want) {
			t.Errorf("%s: %v, %v", form, got, err)
		}
	}
}

// Parameters keep their kinds; those of the transport are taken out and heeded.
func TestParameters(t *testing.T) {
	form := `{"parameters":{"binary_data_output":true,"b":false,"i":-3,"u":18446744073709551615,"d":1.5,"s":"t\n"},
		"inputs":[],"outputs":[{"name":"y","parameters":{"binary_data":false,"classification":3}},{"name":"z"}]}`
	got, wanted, err := Request("m", "", []byte(form), nil, limit)
	if err != nil {
		t.Fatal(err)
	}
	want := &inference.ModelInferRequest{ModelName: "m", Parameters: map[string]*inference.InferParameter{
		"b": {ParameterChoice: &inference.InferParameter_BoolParam{BoolParam: false}},
		"i": {ParameterChoice: &inference.InferParameter_Int64Param{Int64Param: -3}},
		"u": {ParameterChoice: &inference.InferParameter_Uint64Param{Uint64Param: math.MaxUint64}},
		"d": {ParameterChoice: &inference.InferParameter_DoubleParam{DoubleParam: 1.5}},
		"s": {ParameterChoice: &inference.InferParameter_StringParam{StringParam: "t\n"}},
	}, Outputs: []*inference.ModelInferRequest_InferRequestedOutputTensor{
		{Name: "y", Parameters: map[string]*inference.InferParameter{"classification": {ParameterChoice: &inference.InferParameter_Int64Param{Int64Param: 3}}}},
		{Name: "z"},
	}}
	if !proto.Equal(got, want) {
		t.Errorf("%v", got)
	}
	if wanted.binary("y") || !wanted.binary("z") || !wanted.binary("another") {
		t.Error("what is wanted as binary data was not understood")
	}
}

func input(datatype, shape, data string) string {
	return fmt.Sprintf(`{"inputs":[{"name":"x","datatype":"%s","shape":%s,%s}]}`, datatype, shape, data)
}

// Every text names the field, the value and what is allowed.
func TestBadRequests(t *testing.T) {
	for _, c := range []struct{ form, tail, text string }{
		{`{"inputs":`, "", "failed to parse the request JSON buffer"},
		{`[1]`, "", "JSON array"},
		{"{\"id\":\"\xff\"}", "", "not UTF-8"},
		{`{"inputs":[{"shape":["a"]}]}`, "", "inputs.shape"},
		{input("FP8", "[1]", `"data":[1]`), "", "inputs[0] ('x'): datatype 'FP8' is not known"},
		{input("FP32", "[2]", `"data":[1]`), "", "data has 1 elements, the shape has 2"},
		{input("FP32", "[2]", `"data":[1,2,3]`), "", "more elements than the 2 of the shape"},
		{input("FP32", "[-1]", `"data":[1]`), "", "negative dimension"},
		{input("FP32", "[4611686018427387904,4611686018427387904]", `"data":[1]`), "", "more elements than can be counted"},
		{input("FP32", "[1000000]", `"data":[1]`), "", "limits.message_bytes_max"},
		{input("FP32", "[1]", `"data":[1e39]`), "", "data[0]: 1e39 is beyond the range of FP32"},
		{input("FP32", "[1]", `"data":["1"]`), "", `data[0]: "1" is not a number`},
		{input("FP32", "[1]", `"data":[null]`), "", "null is not a number"},
		{input("FP32", "[1]", `"data":[{"a":1}]`), "", "holds an object"},
		{input("FP32", "[1]", `"data":1`), "", "data is not an array"},
		{input("FP32", "[1]", `"data":null`), "", "data"},
		{input("FP32", "[1]", `"data":`+strings.Repeat("[", 40)+"1"+strings.Repeat("]", 40)), "", "nested deeper than 32"},
		{input("INT8", "[1]", `"data":[128]`), "", "128 is outside -128..127"},
		{input("UINT16", "[1]", `"data":[-1]`), "", "-1 is not a whole number of 0..65535"},
		{input("INT64", "[1]", `"data":[1.0]`), "", "1.0 is not a whole number"},
		{input("BOOL", "[1]", `"data":[2]`), "", "2 is neither true nor false"},
		{input("BYTES", "[1]", `"data":[2]`), "", "2 is not a string"},
		{input("FP16", "[1]", `"data":[1]`), "", "FP16 has no form in JSON"},
		{input("FP32", "[1]", `"parameters":{}`), "", "has neither data nor binary_data_size"},
		{input("FP32", "[1]", `"parameters":{"binary_data_size":4},"data":[1]`), "", "has both data and binary_data_size"},
		{input("FP32", "[1]", `"parameters":{"binary_data_size":5}`), "four", "binary_data_size is 5, but 4 bytes are left"},
		{input("FP32", "[1]", `"parameters":{"binary_data_size":-4}`), "four", "expected a whole number of bytes"},
		{input("FP32", "[1]", `"parameters":{"binary_data_size":4}`), "five!", "1 bytes follow"},
		{`{"parameters":{"a":[1]}}`, "", "parameters.a is [1], expected a boolean, a number or a string"},
		{`{"parameters":{"binary_data_output":1}}`, "", "parameters.binary_data_output is 1, expected true or false"},
		{`{"outputs":[{"name":"y","parameters":{"binary_data":"yes"}}]}`, "", "outputs[0].parameters.binary_data"},
		{`{"inputs":[` + strings.Repeat("{},", 1024) + `{}]}`, "", "the limit of each is 1024"},
	} {
		if _, _, err := Request("m", "", []byte(c.form), []byte(c.tail), limit); err == nil || !strings.Contains(err.Error(), c.text) {
			t.Errorf("%.120s: %v, expected %q", c.form, err, c.text)
		}
	}
}

// What is answered in JSON is read as the same bytes when it is sent, for every datatype
// that JSON has.
func TestElementsComeBack(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	for datatype, k := range kinds {
		if k.encode == nil {
			continue
		}
		for range 50 {
			count := random.IntN(20)
			var raw []byte
			for range count {
				switch {
				case k.size == 0:
					text := strings.Repeat("é\"\\\n,[]", random.IntN(3))
					raw = append(putInt(raw, uint64(len(text)), 4), text...)
				case datatype == "BOOL":
					raw = append(raw, byte(random.IntN(2)))
				case datatype == "FP32":
					raw = putInt(raw, uint64(math.Float32bits(float32(random.NormFloat64()*math.Pow(10, float64(random.IntN(60)-30))))), 4)
				case datatype == "FP64":
					raw = putInt(raw, math.Float64bits(random.NormFloat64()*math.Pow(10, float64(random.IntN(600)-300))), 8)
				default:
					raw = putInt(raw, random.Uint64(), k.size)
				}
			}
			answer, err := Answer(&inference.ModelInferResponse{
				ModelName: "m", RawOutputContents: [][]byte{raw},
				Outputs: []*inference.ModelInferResponse_InferOutputTensor{{Name: "x", Datatype: datatype, Shape: []int64{int64(count)}}},
			}, &Wanted{})
			if err != nil {
				t.Fatal(err)
			}
			object := strings.Replace(string(answer.Object), `"outputs"`, `"inputs"`, 1)
			back, _, err := Request("m", "", []byte(object), nil, limit)
			if err != nil || !bytes.Equal(back.RawInputContents[0], raw) {
				t.Fatalf("%s: %v\n%s", datatype, err, object)
			}
		}
	}
}

// An answer's JSON is valid, whatever its names and parameters are; binary data follows
// in the order of outputs.
func TestAnswers(t *testing.T) {
	odd := "\"\\<é\u2028"
	m := &inference.ModelInferResponse{
		ModelName: odd, ModelVersion: "2", Id: odd, RawOutputContents: [][]byte{{1, 2}, {9, 9}, {0}},
		Parameters: map[string]*inference.InferParameter{
			odd: {ParameterChoice: &inference.InferParameter_StringParam{StringParam: odd}},
			"b": {ParameterChoice: &inference.InferParameter_BoolParam{BoolParam: true}},
			"n": {},
		},
		Outputs: []*inference.ModelInferResponse_InferOutputTensor{
			{Name: "a", Datatype: "UINT8", Shape: []int64{2}}, {Name: "h", Datatype: "FP16", Shape: []int64{1}},
			{Name: odd, Datatype: "BOOL", Shape: []int64{}},
		},
	}
	answer, err := Answer(m, &Wanted{byName: map[string]bool{"a": true, "h": true}})
	if err != nil {
		t.Fatal(err)
	}
	var read struct {
		Model      string `json:"model_name"`
		ID         string `json:"id"`
		Parameters map[string]any
		Outputs    []struct {
			Name       string
			Shape      []int
			Parameters map[string]any
			Data       []any
		}
	}
	if err := json.Unmarshal(answer.Object, &read); err != nil {
		t.Fatalf("%v: %s", err, answer.Object)
	}
	if read.Model != odd || read.ID != odd || read.Parameters[odd] != odd || read.Parameters["b"] != true || read.Outputs[2].Name != odd ||
		read.Outputs[0].Parameters["binary_data_size"] != 2.0 || read.Outputs[0].Data != nil || read.Outputs[2].Data[0] != false || read.Outputs[2].Shape == nil {
		t.Errorf("%s", answer.Object)
	}
	if !bytes.Equal(bytes.Join(answer.Binary, nil), []byte{1, 2, 9, 9}) {
		t.Errorf("%v", answer.Binary)
	}
	for _, c := range []struct {
		datatype string
		raw      []byte
		text     string
	}{
		{"FP16", []byte{0, 0}, "no form in JSON"},
		{"FP32", putInt(nil, uint64(math.Float32bits(float32(math.NaN()))), 4), "output 'y' holds a value that JSON does not have"},
		{"FP64", putInt(nil, math.Float64bits(math.Inf(-1)), 8), "holds a value that JSON does not have"},
		{"BYTES", append(putInt(nil, 1, 4), 0xff), "not UTF-8"},
		{"BYTES", putInt(nil, 9, 4), "cut off"},
		{"INT32", []byte{1, 2, 3}, "no whole number of INT32"},
	} {
		_, err := Answer(&inference.ModelInferResponse{
			RawOutputContents: [][]byte{c.raw}, Outputs: []*inference.ModelInferResponse_InferOutputTensor{{Name: "y", Datatype: c.datatype}},
		}, &Wanted{})
		if err == nil || !strings.Contains(err.Error(), c.text) {
			t.Errorf("%s: %v, expected %q", c.datatype, err, c.text)
		}
	}
}

// Whatever is sent is refused or understood, never a crash, and what is understood is no
// larger than the limit.
func FuzzRequest(f *testing.F) {
	f.Add([]byte(input("BYTES", "[2]", `"data":["a\\\"","b"]`)), []byte(nil))
	f.Add([]byte(input("FP32", "[1]", `"parameters":{"binary_data_size":4}`)), []byte("four"))
	f.Add([]byte(input("INT64", "[1,2]", `"data":[[1,2]]`)), []byte(nil))
	f.Add([]byte(`{"inputs":[{"data":["\\`), []byte(nil))
	f.Fuzz(func(t *testing.T, object, tail []byte) {
		const most = 256
		m, wanted, err := Request("m", "", object, tail, most)
		if err != nil {
			return
		}
		total := 0
		for _, raw := range m.RawInputContents {
			total += len(raw)
		}
		if wanted == nil || len(m.Inputs) != len(m.RawInputContents) || total > most+len(tail) {
			t.Errorf("%d bytes of %d inputs", total, len(m.Inputs))
		}
	})
}

// Few bytes that would be many in memory are refused before they are made into values;
// large data is not counted.
func TestWhatWouldGrow(t *testing.T) {
	many := 1 << 17
	for form, text := range map[string]string{
		`{"inputs":[` + strings.Repeat("{},", many) + `{}]}`:              "more than 65536 members and elements",
		`{"parameters":{` + strings.Repeat(`"a":1,`, many) + `"b":1}}`:    "more than 65536 members and elements",
		`{"inputs":[{"shape":[` + strings.Repeat("1,", many) + `1]}]}`:    "more than 65536 members and elements",
		strings.Repeat("[", 1000):                                         "nested deeper than 64",
		`{"inputs":[{"data":[` + strings.Repeat(`{"a":1},`, 9) + `{}]}]}`: "data holds an object",
	} {
		if _, _, err := Request("m", "", []byte(form), nil, limit); err == nil || !strings.Contains(err.Error(), text) {
			t.Errorf("%.60s: %v, expected %q", form, err, text)
		}
	}
	nested := `"data":[` + strings.Repeat("[1],", many-1) + `[1]]`
	if _, _, err := Request("m", "", []byte(input("UINT8", fmt.Sprintf("[%d,1]", many), nested)), nil, limit); err != nil {
		t.Error(err)
	}
	data := `"data":[["` + `]}{[,` + `"` + strings.Repeat(`,"x"`, many-1) + `]]`
	if _, _, err := Request("m", "", []byte(input("BYTES", fmt.Sprintf("[%d]", many), data)), nil, limit); err != nil {
		t.Error(err)
	}
}
