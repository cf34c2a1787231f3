package native

import (
	"context"
	"encoding/json"
	"net/http"

	"github.com/tutti-run/tutti/internal/driver"
	"github.com/tutti-run/tutti/internal/fault"
	"github.com/tutti-run/tutti/internal/wire"
)

// ExecRequest is the first line that a client sends; lines of wire.ExecInput follow. The server
// answers with lines of wire.ExecOutput, of which the last carries the end.
type ExecRequest struct {
	Ref        string   `json:"ref"`
	Task       string   `json:"task,omitempty"` // "" is the instance's first
	Args       []string `json:"args"`
	Env        []string `json:"env,omitempty"`
	User       string   `json:"user,omitempty"`
	WorkingDir string   `json:"workingDir,omitempty"`
	TTY        bool     `json:"tty,omitempty"`
	Privileged bool     `json:"privileged,omitempty"`
	Rows       int      `json:"rows,omitempty"`
	Cols       int      `json:"cols,omitempty"`
	// Stdin says that input follows; without it, the process reads nothing.
	Stdin bool `json:"stdin,omitempty"`
}

func (r *ExecRequest) spec() driver.ExecSpec {
	return driver.ExecSpec{
		Args: r.Args, Env: r.Env, User: r.User, WorkingDir: r.WorkingDir,
		TTY: r.TTY, Privileged: r.Privileged, Rows: r.Rows, Cols: r.Cols,
	}
}

func (s *server) exec(w http.ResponseWriter, r *http.Request) {
	in := json.NewDecoder(r.Body)
	in.DisallowUnknownFields()
	var req ExecRequest
	if err := in.Decode(&req); err != nil {
		s.fail(w, r, fault.New(fault.Invalid, "the request cannot be read: %w", err))
		return
	}
	if len(req.Args) == 0 {
		s.fail(w, r, fault.New(fault.Invalid, "no command was given"))
		return
	}
	rc := http.NewResponseController(w)
	if err := rc.EnableFullDuplex(); err != nil {
		s.fail(w, r, fault.New(fault.Unsupported, "exec needs HTTP/2: %w", err))
		return
	}
	out := newLines(w)
	if out.flush() != nil {
		return
	}
	start := wire.ExecStart{Stdin: req.Stdin, Stdout: true, Stderr: true}
	receive := func(m *wire.ExecInput) error { return in.Decode(m) }
	send := func(o wire.ExecOutput) error { return out.send(o) }
	// The server closes the request's body when this returns, which ends the reading of it. A
	// failure to write shows at the other end.
	_ = wire.ServeExec(r.Context(), start, receive, send, func(ctx context.Context, streams driver.Streams) (int, error) {
		return s.Core.Exec(ctx, callerOf(r), req.Ref, req.Task, req.spec(), streams)
	})
}

// send writes one value at once. Errors of the process's output are the client's going away.
func (l *lines) send(v any) error {
	if err := l.add(v); err != nil {
		return err
	}
	return l.flush()
}
