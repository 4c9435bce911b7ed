// Package telemetry makes the gateway visible: JSON logs, Prometheus metrics
// with trace exemplars, OpenTelemetry spans.
package telemetry

import (
	"context"
	"io"
	"log/slog"
	"sync/atomic"
	"time"
)

// Levels says which lines of a log are written; it can be changed at any time.
type Levels struct{ Debug, Info, Warning, Error atomic.Bool }

// Set takes the least severity that is written: debug, info, warning or error.
func (l *Levels) Set(least string) {
	l.Debug.Store(least == "debug")
	l.Info.Store(least == "debug" || least == "info")
	l.Warning.Store(least != "error")
	l.Error.Store(true)
}

func (l *Levels) enabled(level slog.Level) bool {
	switch {
	case level < slog.LevelInfo:
		return l.Debug.Load()
	case level < slog.LevelWarn:
		return l.Info.Load()
	case level < slog.LevelError:
		return l.Warning.Load()
	}
	return l.Error.Load()
}

// leveled asks levels before it hands a line on.
type leveled struct {
	slog.Handler
	levels *Levels
}

func (h leveled) Enabled(_ context.Context, level slog.Level) bool { return h.levels.enabled(level) }

func (h leveled) WithAttrs(attrs []slog.Attr) slog.Handler {
	return leveled{h.Handler.WithAttrs(attrs), h.levels}
}

func (h leveled) WithGroup(name string) slog.Handler {
	return leveled{h.Handler.WithGroup(name), h.levels}
}

// LevelsOf gives what a logger of NewLog asks; for another logger one that changes nothing.
func LevelsOf(log *slog.Logger) *Levels {
	if h, ok := log.Handler().(leveled); ok {
		return h.levels
	}
	return &Levels{}
}

// NewLog makes a logger with the keys that the sidecar uses too.
func NewLog(w io.Writer, level string) *slog.Logger {
	levels := &Levels{}
	levels.Set(level)
	handler := slog.NewJSONHandler(w, &slog.HandlerOptions{Level: slog.LevelDebug, ReplaceAttr: func(_ []string, a slog.Attr) slog.Attr {
		switch a.Key {
		case slog.TimeKey:
			return slog.String("time", a.Value.Time().UTC().Format(time.RFC3339Nano))
		case slog.LevelKey:
			text := map[string]string{"DEBUG": "debug", "INFO": "info", "WARN": "warning", "ERROR": "error"}[a.Value.String()]
			return slog.String("level", text)
		}
		return a
	}})
	return slog.New(leveled{handler, levels}).With("component", "gateway")
}
