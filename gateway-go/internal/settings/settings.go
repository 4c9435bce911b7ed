// Package settings reads the configuration: defaults, vigil.toml, VIGIL_*,
// flags, in rising order. The table is generated from settings/settings.yaml.
package settings

import (
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/BurntSushi/toml"
)

// Spec is one setting.
type Spec struct {
	Key, Type, Default string
	Min, Max           float64
	Allowed            []string
	Flag, Doc          string
	field              func(*Settings) any
}

// Error says which key has which impossible value and what is allowed.
type Error struct{ text string }

func (e *Error) Error() string { return e.text }

func refuse(key, value, origin, allowed string) error {
	return &Error{fmt.Sprintf("%s = %q (%s): allowed is %s", key, value, origin, allowed)}
}

// Table lists every setting in order.
func Table() []Spec { return slices.Clone(table) }

func (s *Spec) parse(text, origin string, into *Settings) error {
	switch p := s.field(into).(type) {
	case *string:
		if len(s.Allowed) > 0 && !slices.Contains(s.Allowed, text) {
			return refuse(s.Key, text, origin, strings.Join(s.Allowed, ", "))
		}
		*p = text
	case *int64:
		v, err := strconv.ParseInt(text, 10, 64)
		if err != nil {
			return refuse(s.Key, text, origin, "a whole number")
		}
		if float64(v) < s.Min || float64(v) > s.Max {
			return refuse(s.Key, text, origin, fmt.Sprintf("%.0f..%.0f", s.Min, s.Max))
		}
		*p = v
	case *float64:
		v, err := strconv.ParseFloat(text, 64)
		if err != nil || v != v {
			return refuse(s.Key, text, origin, "a number")
		}
		if v < s.Min || v > s.Max {
			return refuse(s.Key, text, origin, fmt.Sprintf("%g..%g", s.Min, s.Max))
		}
		*p = v
	case *bool:
		switch strings.ToLower(text) {
		case "true", "1", "yes":
			*p = true
		case "false", "0", "no":
			*p = false
		default:
			return refuse(s.Key, text, origin, "true or false")
		}
	case *[]string:
		*p = nil
		for _, part := range strings.Split(text, ",") {
			if part = strings.TrimSpace(part); part != "" {
				*p = append(*p, part)
			}
		}
	}
	return nil
}

func flatten(prefix string, in map[string]any, out map[string]any) {
	for k, v := range in {
		if t, ok := v.(map[string]any); ok {
			flatten(prefix+k+".", t, out)
		} else {
			out[prefix+k] = v
		}
	}
}

// text gives a TOML value as text, or false when its type does not fit.
func (s *Spec) text(v any) (string, bool) {
	switch x := v.(type) {
	case string:
		return x, s.Type == "string"
	case int64:
		return strconv.FormatInt(x, 10), s.Type == "int" || s.Type == "float"
	case float64:
		return strconv.FormatFloat(x, 'g', -1, 64), s.Type == "float"
	case bool:
		return strconv.FormatBool(x), s.Type == "bool"
	case []any:
		parts := make([]string, 0, len(x))
		for _, item := range x {
			t, ok := item.(string)
			if !ok {
				return fmt.Sprint(v), false
			}
			parts = append(parts, t)
		}
		return strings.Join(parts, ","), s.Type == "list"
	}
	return fmt.Sprint(v), false
}

// Load returns the settings. file may be empty; environment is in the form of
// os.Environ; flags maps keys to text. An unknown key or impossible value is an
// *Error: show it and stop.
func Load(file string, environment []string, flags map[string]string) (*Settings, error) {
	s := &Settings{}
	byKey, byEnv := map[string]*Spec{}, map[string]*Spec{}
	for i := range table {
		spec := &table[i]
		byKey[spec.Key] = spec
		byEnv["VIGIL_"+strings.ToUpper(strings.ReplaceAll(spec.Key, ".", "_"))] = spec
		if err := spec.parse(spec.Default, "default", s); err != nil {
			return nil, err
		}
	}
	if file != "" {
		data, err := os.ReadFile(file)
		if err != nil {
			return nil, &Error{fmt.Sprintf("%s: %v; give --config an existing file", file, err)}
		}
		tree, flat := map[string]any{}, map[string]any{}
		if err := toml.Unmarshal(data, &tree); err != nil {
			return nil, &Error{fmt.Sprintf("%s: not TOML: %v", file, err)}
		}
		flatten("", tree, flat)
		for key, value := range flat {
			spec := byKey[key]
			if spec == nil {
				return nil, &Error{fmt.Sprintf("%s: unknown key %s = %v; `vigil config show` lists all keys", file, key, value)}
			}
			text, ok := spec.text(value)
			if !ok {
				return nil, refuse(key, text, file, "a "+spec.Type)
			}
			if err := spec.parse(text, file, s); err != nil {
				return nil, err
			}
		}
	}
	for _, pair := range environment {
		name, text, _ := strings.Cut(pair, "=")
		if !strings.HasPrefix(name, "VIGIL_") {
			continue
		}
		spec := byEnv[name]
		if spec == nil {
			return nil, &Error{fmt.Sprintf("unknown environment variable %s=%q; `vigil config show` lists all keys", name, text)}
		}
		if err := spec.parse(text, name, s); err != nil {
			return nil, err
		}
	}
	for key, text := range flags {
		spec := byKey[key]
		if spec == nil {
			return nil, &Error{fmt.Sprintf("unknown key %s = %q (flag); `vigil config show` lists all keys", key, text)}
		}
		if err := spec.parse(text, "flag", s); err != nil {
			return nil, err
		}
	}
	return s, s.agree()
}

// agree refuses settings that contradict each other.
func (s *Settings) agree() error {
	for _, pair := range []struct {
		key, other          string
		value, least, times int64
	}{
		{"link.heartbeat_timeout_ms", "link.heartbeat_interval_ms", s.LinkHeartbeatTimeoutMs, s.LinkHeartbeatIntervalMs, 2},
		{"link.hang_ms", "link.heartbeat_interval_ms", s.LinkHangMs, s.LinkHeartbeatIntervalMs, 3},
		{"ladder.wait_ms", "link.heartbeat_interval_ms", s.LadderWaitMs, s.LinkHeartbeatIntervalMs, 2},
		{"audit.retention_bytes", "audit.segment_bytes", s.AuditRetentionBytes, s.AuditSegmentBytes, 2},
	} {
		if pair.value < pair.times*pair.least && (pair.key != "link.hang_ms" || pair.value != 0) {
			return refuse(pair.key, strconv.FormatInt(pair.value, 10), "settings",
				fmt.Sprintf("at least %s %s (%d)", []string{"", "once", "twice", "three times"}[pair.times], pair.other, pair.least))
		}
	}
	return nil
}
