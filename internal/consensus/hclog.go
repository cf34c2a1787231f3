package consensus

import (
	"context"
	"io"
	"log"
	"log/slog"

	"github.com/hashicorp/go-hclog"
)

// hcLog lets raft write to slog, one level lower: its news are details to an operator.
type hcLog struct {
	log  *slog.Logger
	name string
}

func newHCLog(l *slog.Logger) hclog.Logger { return &hcLog{log: l} }

func (h *hcLog) Log(level hclog.Level, msg string, args ...any) {
	to := slog.LevelDebug
	switch level {
	case hclog.Error:
		to = slog.LevelWarn
	case hclog.Warn:
		to = slog.LevelInfo
	}
	h.log.Log(context.Background(), to, "raft: "+msg, args...)
}

func (h *hcLog) Trace(msg string, args ...any)       {}
func (h *hcLog) Debug(msg string, args ...any)       { h.Log(hclog.Debug, msg, args...) }
func (h *hcLog) Info(msg string, args ...any)        { h.Log(hclog.Info, msg, args...) }
func (h *hcLog) Warn(msg string, args ...any)        { h.Log(hclog.Warn, msg, args...) }
func (h *hcLog) Error(msg string, args ...any)       { h.Log(hclog.Error, msg, args...) }
func (h *hcLog) IsTrace() bool                       { return false }
func (h *hcLog) IsDebug() bool                       { return false }
func (h *hcLog) IsInfo() bool                        { return true }
func (h *hcLog) IsWarn() bool                        { return true }
func (h *hcLog) IsError() bool                       { return true }
func (h *hcLog) ImpliedArgs() []any                  { return nil }
func (h *hcLog) With(args ...any) hclog.Logger       { return &hcLog{log: h.log.With(args...), name: h.name} }
func (h *hcLog) Name() string                        { return h.name }
func (h *hcLog) Named(name string) hclog.Logger      { return &hcLog{log: h.log, name: name} }
func (h *hcLog) ResetNamed(name string) hclog.Logger { return h.Named(name) }
func (h *hcLog) SetLevel(hclog.Level)                {}
func (h *hcLog) GetLevel() hclog.Level               { return hclog.Info }
func (h *hcLog) StandardLogger(*hclog.StandardLoggerOptions) *log.Logger {
	return log.New(io.Discard, "", 0)
}
func (h *hcLog) StandardWriter(*hclog.StandardLoggerOptions) io.Writer { return io.Discard }
