// Package telemetry makes the gateway visible: JSON logs, Prometheus metrics
// with trace exemplars, OpenTelemetry spans.
package telemetry

import (
	"io"
	"log/slog"
	"time"
)

// NewLog makes a logger with the keys that the sidecar uses too.
func NewLog(w io.Writer, level string) *slog.Logger {
	var l slog.Level
	if level == "warning" {
		level = "warn"
	}
	if err := l.UnmarshalText([]byte(level)); err != nil {
		l = slog.LevelInfo
	}
	handler := slog.NewJSONHandler(w, &slog.HandlerOptions{Level: l, ReplaceAttr: func(_ []string, a slog.Attr) slog.Attr {
		switch a.Key {
		case slog.TimeKey:
			return slog.String("time", a.Value.Time().UTC().Format(time.RFC3339Nano))
		case slog.LevelKey:
			text := map[string]string{"DEBUG": "debug", "INFO": "info", "WARN": "warning", "ERROR": "error"}[a.Value.String()]
			return slog.String("level", text)
		}
		return a
	}})
	return slog.New(handler).With("component", "gateway")
}
