package edge

import (
	"fmt"
	"io"
	"net/http"
	"strconv"

	"vigil/gateway/gen/inference"
)

// settings adds the paths of Triton's trace and logging extensions: GET tells, POST changes.
func (s *restful) settings(mux *http.ServeMux) {
	for _, method := range []string{"GET ", "POST "} {
		mux.HandleFunc(method+"/v2/trace/setting", s.trace)
		mux.HandleFunc(method+"/v2/models/{model}/trace/setting", s.trace)
		mux.HandleFunc(method+"/v2/logging", s.logging)
	}
}

// setting reads the JSON object of a change; a GET has none.
func (s *restful) setting(rw http.ResponseWriter, r *http.Request, take func(name string, value any) error) bool {
	var given map[string]any
	if r.Method == http.MethodPost && !s.smallJSON(rw, r, &given) {
		return false
	}
	if r.Method == http.MethodGet {
		_, _ = io.Copy(io.Discard, http.MaxBytesReader(rw, r.Body, smallBody))
	}
	for name, value := range given {
		if err := take(name, value); err != nil {
			s.refuse(rw, r, http.StatusBadRequest, err)
			return false
		}
	}
	return true
}

func (s *restful) trace(rw http.ResponseWriter, r *http.Request) {
	request := &inference.TraceSettingRequest{ModelName: r.PathValue("model"), Settings: map[string]*inference.TraceSettingRequest_SettingValue{}}
	take := func(name string, value any) error {
		out := &inference.TraceSettingRequest_SettingValue{}
		values, several := value.([]any)
		if !several && value != nil { // null is no value: what the setting was at the start
			values = []any{value}
		}
		for _, v := range values {
			switch text := v.(type) {
			case string:
				out.Value = append(out.Value, text)
			case float64:
				out.Value = append(out.Value, strconv.FormatFloat(text, 'f', -1, 64))
			default:
				return fmt.Errorf("%s: must be a string, a number or null", name)
			}
		}
		request.Settings[name] = out
		return nil
	}
	m := &inference.TraceSettingResponse{}
	if !s.setting(rw, r, take) || !s.ask(rw, r, "TraceSetting", request, m) {
		return
	}
	out := map[string]any{}
	for name, value := range m.Settings {
		if name == "trace_level" { // the one that is a list
			out[name] = value.Value
		} else {
			out[name] = value.Value[0]
		}
	}
	writeJSON(rw, http.StatusOK, out)
}

func (s *restful) logging(rw http.ResponseWriter, r *http.Request) {
	request := &inference.LogSettingsRequest{Settings: map[string]*inference.LogSettingsRequest_SettingValue{}}
	take := func(name string, value any) error {
		out := &inference.LogSettingsRequest_SettingValue{}
		switch v := value.(type) {
		case bool:
			out.ParameterChoice = &inference.LogSettingsRequest_SettingValue_BoolParam{BoolParam: v}
		case string:
			out.ParameterChoice = &inference.LogSettingsRequest_SettingValue_StringParam{StringParam: v}
		case float64:
			n := uint32(max(0, min(v, 1<<32-1)))
			if float64(n) != v {
				return fmt.Errorf("%s: %v is no whole number of 32 bits", name, v)
			}
			out.ParameterChoice = &inference.LogSettingsRequest_SettingValue_Uint32Param{Uint32Param: n}
		default:
			return fmt.Errorf("%s: must be a string, a whole number or true or false", name)
		}
		request.Settings[name] = out
		return nil
	}
	m := &inference.LogSettingsResponse{}
	if !s.setting(rw, r, take) || !s.ask(rw, r, "LogSettings", request, m) {
		return
	}
	out := map[string]any{}
	for name, value := range m.Settings {
		switch v := value.ParameterChoice.(type) {
		case *inference.LogSettingsResponse_SettingValue_BoolParam:
			out[name] = v.BoolParam
		case *inference.LogSettingsResponse_SettingValue_Uint32Param:
			out[name] = v.Uint32Param
		case *inference.LogSettingsResponse_SettingValue_StringParam:
			out[name] = v.StringParam
		}
	}
	writeJSON(rw, http.StatusOK, out)
}
