package rest

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"strings"

	"vigil/gateway/gen/inference"
)

const parametersMax = 1024

// RepositoryParameters reads the body of a load or unload: {"parameters": {...}}, where
// files are base64, as in Triton's model repository extension. A body may be empty.
func RepositoryParameters(object []byte) (map[string]*inference.ModelRepositoryParameter, error) {
	if len(bytes.TrimSpace(object)) == 0 {
		return nil, nil
	}
	var body struct {
		Parameters map[string]json.RawMessage `json:"parameters"`
	}
	if err := decode(object, &body); err != nil {
		return nil, err
	}
	if len(body.Parameters) > parametersMax {
		return nil, fmt.Errorf("parameters: has %d members, allowed are %d", len(body.Parameters), parametersMax)
	}
	out := map[string]*inference.ModelRepositoryParameter{}
	for key, value := range body.Parameters {
		p, err := repositoryParameter(key, value)
		if err != nil {
			return nil, err
		}
		out[key] = p
	}
	return out, nil
}

func repositoryParameter(key string, given json.RawMessage) (*inference.ModelRepositoryParameter, error) {
	if len(given) == 0 || given[0] == '{' || given[0] == '[' {
		return nil, fmt.Errorf("parameters.%.200s: must be a string, a whole number or true or false", key)
	}
	var value any
	decoder := json.NewDecoder(bytes.NewReader(given))
	decoder.UseNumber()
	if err := decoder.Decode(&value); err != nil {
		return nil, fmt.Errorf("parameters.%.200s: %w", key, err)
	}
	switch v := value.(type) {
	case bool:
		return &inference.ModelRepositoryParameter{ParameterChoice: &inference.ModelRepositoryParameter_BoolParam{BoolParam: v}}, nil
	case json.Number:
		n, err := v.Int64()
		if err != nil {
			return nil, fmt.Errorf("parameters.%.200s: %.40s is no integer of 64 bits", key, v)
		}
		return &inference.ModelRepositoryParameter{ParameterChoice: &inference.ModelRepositoryParameter_Int64Param{Int64Param: n}}, nil
	case string:
		if !strings.HasPrefix(key, "file:") {
			return &inference.ModelRepositoryParameter{ParameterChoice: &inference.ModelRepositoryParameter_StringParam{StringParam: v}}, nil
		}
		content, err := base64.StdEncoding.DecodeString(v)
		if err != nil {
			return nil, fmt.Errorf("parameters.%.200s: is not base64: %w", key, err)
		}
		return &inference.ModelRepositoryParameter{ParameterChoice: &inference.ModelRepositoryParameter_BytesParam{BytesParam: content}}, nil
	}
	return nil, fmt.Errorf("parameters.%.200s: must be a string, a whole number or true or false", key)
}
