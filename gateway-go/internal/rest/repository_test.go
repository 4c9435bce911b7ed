package rest

import (
	"strings"
	"testing"
)

func TestRepositoryParameters(t *testing.T) {
	given, err := RepositoryParameters([]byte(`{"parameters": {"config": "{}", "file:1/model.onnx": "AAEC", "unload_dependents": true, "n": -7}, "x": 1}`))
	if err != nil || given["config"].GetStringParam() != "{}" || string(given["file:1/model.onnx"].GetBytesParam()) != "\x00\x01\x02" ||
		!given["unload_dependents"].GetBoolParam() || given["n"].GetInt64Param() != -7 {
		t.Fatal(given, err)
	}
	for _, empty := range []string{"", " \n", "{}", `{"parameters": null}`} {
		if given, err := RepositoryParameters([]byte(empty)); err != nil || len(given) != 0 {
			t.Errorf("%q: %v %v", empty, given, err)
		}
	}
	for body, want := range map[string]string{
		`{`: "JSON", `[]`: "JSON", `{} {}`: "JSON", `{"parameters": []}`: "JSON", `{"parameters": {"a": 1.5}}`: "parameters.a: 1.5",
		`{"parameters": {"a": [1]}}`: "parameters.a: must be", `{"parameters": {"a": null}}`: "parameters.a: must be",
		`{"parameters": {"file:1/m": "@"}}`: "not base64", `{"parameters": {"n": 99999999999999999999}}`: "64 bits",
		`{"parameters": {"a": [` + strings.Repeat("{},", 70000) + `{}]}}`: "",
		`{"parameters": {"a": "` + "\xff" + `"}}`:                         "UTF-8",
		`{"parameters": {"a": 1}`:                                         "JSON",
	} {
		if _, err := RepositoryParameters([]byte(body)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", body, err, want)
		}
	}
}
