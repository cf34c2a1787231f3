package native

import (
	"context"
	"encoding/json"
	"net/http"

	"github.com/tutti-run/tutti/internal/driver"
	"github.com/tutti-run/tutti/internal/fault"
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
	s.both(w, r, in, req.Stdin, func(ctx context.Context, streams driver.Streams) (int, error) {
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
