package flow

import (
	"context"
	"fmt"
	"slices"
	"strconv"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"

	"vigil/gateway/gen/inference"
	"vigil/gateway/internal/events"
	"vigil/gateway/internal/rules"
	"vigil/gateway/internal/telemetry"
)

// What TraceSetting and LogSettings tell and change, with the names of Triton's trace and
// logging extensions. Changes last until the gateway ends; settings of the start stay
// in the files.

func settingError(field, text string) *CallError {
	return &CallError{
		Code: codes.InvalidArgument, Event: events.SemanticViolation, Reason: "SEMANTIC_VIOLATION", Text: "'" + field + "' " + text,
		Violations: []rules.Violation{{Field: "settings[" + field + "]", Description: text}},
	}
}

// traceSetting answers TraceSetting: sampling of all models' calls.
func traceSetting(_ context.Context, s *Service, m proto.Message) (proto.Message, error) {
	r := m.(*inference.TraceSettingRequest)
	if len(r.Settings) > 0 && r.ModelName != "" {
		return nil, settingError("model_name", "must be empty in a change: calls are sampled before their model is known")
	}
	sampling := s.tracer.Sampling()
	for name, value := range r.Settings {
		if err := changeTrace(&sampling, s.tracer.AtStart(), name, value.GetValue()); err != nil {
			return nil, err
		}
	}
	if sampling.On && sampling.Endpoint == "" {
		return nil, settingError("trace_level", "cannot be TIMESTAMPS: no receiver is set (trace.otlp_endpoint)")
	}
	if len(r.Settings) > 0 {
		s.tracer.Sample(sampling)
	}
	level := "OFF"
	if sampling.On {
		level = "TIMESTAMPS"
	}
	out := &inference.TraceSettingResponse{Settings: map[string]*inference.TraceSettingResponse_SettingValue{}}
	for name, value := range map[string]string{
		"trace_level": level, "trace_rate": strconv.FormatUint(sampling.Rate, 10), "trace_count": "-1", "trace_mode": "opentelemetry",
		"url": sampling.Endpoint,
	} {
		out.Settings[name] = &inference.TraceSettingResponse_SettingValue{Value: []string{value}}
	}
	return out, nil
}

// changeTrace takes one setting; without values it is again what it was at the start.
func changeTrace(sampling *telemetry.Sampling, start telemetry.Sampling, name string, values []string) error {
	if len(values) > 1 {
		return settingError(name, fmt.Sprintf("has %d values, must have one", len(values)))
	}
	value := ""
	if len(values) == 1 {
		value = values[0]
	}
	switch name {
	case "trace_level":
		if value != "" && !slices.Contains([]string{"OFF", "TIMESTAMPS"}, value) {
			return settingError(name, "is '"+value+"', must be OFF or TIMESTAMPS; what went in and out is in the audit log, as hashes")
		}
		sampling.On = value == "TIMESTAMPS" || value == "" && start.On
	case "trace_rate":
		if value == "" {
			*sampling = sampling.AtRateOf(start)
			return nil
		}
		rate, err := strconv.ParseUint(value, 10, 32)
		if err != nil || rate == 0 {
			return settingError(name, "is '"+value+"', must be a whole number from 1 to 4294967295: one call in so many is traced")
		}
		*sampling = sampling.AtRate(rate)
	case "trace_count", "trace_mode":
		if fixed := map[string]string{"trace_count": "-1", "trace_mode": "opentelemetry"}[name]; value != "" && value != fixed {
			return settingError(name, "is '"+value+"', must be "+fixed)
		}
	default:
		return settingError(name, "cannot be changed; there are trace_level and trace_rate")
	}
	return nil
}

func (s *Service) logFlags() map[string]interface{ Store(bool) } {
	levels := telemetry.LevelsOf(s.log)
	return map[string]interface{ Store(bool) }{"log_info": &levels.Info, "log_warning": &levels.Warning, "log_error": &levels.Error}
}

// logSettings leaves the answer to the sidecar, which knows the same settings.
func logSettings(_ context.Context, s *Service, m proto.Message) (proto.Message, error) {
	flags, settings := s.logFlags(), m.(*inference.LogSettingsRequest).Settings
	for name, value := range settings {
		_, boolean := value.GetParameterChoice().(*inference.LogSettingsRequest_SettingValue_BoolParam)
		_, number := value.GetParameterChoice().(*inference.LogSettingsRequest_SettingValue_Uint32Param)
		switch {
		case flags[name] != nil && !boolean:
			return nil, settingError(name, "must be true or false")
		case name == "log_verbose_level" && !number:
			return nil, settingError(name, "must be a whole number")
		case flags[name] == nil && name != "log_verbose_level":
			return nil, settingError(name, "cannot be changed; there are log_info, log_warning, log_error and log_verbose_level")
		}
	}
	return nil, errNotHere
}

// logSettingsApplied lets the gateway's lines follow once the sidecar's do.
func logSettingsApplied(s *Service, m proto.Message) {
	flags := s.logFlags()
	for name, value := range m.(*inference.LogSettingsRequest).Settings {
		if flag := flags[name]; flag != nil {
			flag.Store(value.GetBoolParam())
		} else {
			telemetry.LevelsOf(s.log).Debug.Store(value.GetUint32Param() > 0)
		}
	}
}
