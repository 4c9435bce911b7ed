package rest

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
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
		Parameters map[string]any `json:"parameters"`
	}
	decoder := json.NewDecoder(bytes.NewReader(object))
	decoder.UseNumber()
	if err := decoder.Decode(&body); err != nil {
		return nil, fmt.Errorf("the request's JSON: %w", err)
	}
	if _, err := decoder.Token(); !errors.Is(err, io.EOF) {
		return nil, errors.New("the request's JSON: there is more behind its end")
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

func repositoryParameter(key string, value any) (*inference.ModelRepositoryParameter, error) {
	switch v := value.(type) {
	case bool:
		return &inference.ModelRepositoryParameter{ParameterChoice: &inference.ModelRepositoryParameter_BoolParam{BoolParam: v}}, nil
	case json.Number:
		n, err := v.Int64()
		if err != nil {
			return nil, fmt.Errorf("parameters.%s: %s is no integer of 64 bits", key, v)
		}
		return &inference.ModelRepositoryParameter{ParameterChoice: &inference.ModelRepositoryParameter_Int64Param{Int64Param: n}}, nil
	case string:
		if !strings.HasPrefix(key, "file:") {
			return &inference.ModelRepositoryParameter{ParameterChoice: &inference.ModelRepositoryParameter_StringParam{StringParam: v}}, nil
		}
		content, err := base64.StdEncoding.DecodeString(v)
		if err != nil {
			return nil, fmt.Errorf("parameters.%s: is not base64: %w", key, err)
		}
		return &inference.ModelRepositoryParameter{ParameterChoice: &inference.ModelRepositoryParameter_BytesParam{BytesParam: content}}, nil
	}
	return nil, fmt.Errorf("parameters.%s: must be a string, a whole number or true or false", key)
}
