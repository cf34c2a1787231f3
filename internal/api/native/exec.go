package native

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"os"
	"syscall"

	"github.com/tutti-run/tutti/internal/core"
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
	ctx, cancel := context.WithCancel(r.Context())
	defer cancel()
	out := newLines(w)
	if out.flush() != nil {
		return
	}
	code, err := s.runExec(ctx, cancel, callerOf(r.Context()), &req, in, out)
	end := &wire.End{ExitCode: code}
	if err != nil {
		end.Error, end.Kind = err.Error(), fault.KindOf(err).String()
	}
	_ = out.send(wire.ExecOutput{End: end}) // a failure to write shows at the other end
}

// runExec joins the request's two directions with the process. cancel ends it when the client
// goes away.
func (s *server) runExec(ctx context.Context, cancel context.CancelFunc, who core.Caller, req *ExecRequest, in *json.Decoder, out *lines) (int, error) {
	stdin, input := io.Pipe()
	resize := make(chan driver.Size, 4)
	signals := make(chan os.Signal, 4)
	streams := driver.Streams{
		Stdout:  writerFunc(func(p []byte) error { return out.send(wire.ExecOutput{Stdout: p}) }),
		Stderr:  writerFunc(func(p []byte) error { return out.send(wire.ExecOutput{Stderr: p}) }),
		Resize:  resize,
		Signals: signals,
	}
	if req.Stdin {
		streams.Stdin = stdin
	}
	go passInput(ctx, cancel, in, input, resize, signals)
	defer stdin.Close()
	return s.Core.Exec(ctx, who, req.Ref, req.Task, req.spec(), streams)
}

// passInput reads what the client sends until it ends. The server closes the request's body when
// exec returns, so this returns soon after.
func passInput(ctx context.Context, cancel context.CancelFunc, in *json.Decoder, input *io.PipeWriter, resize chan<- driver.Size, signals chan<- os.Signal) {
	defer input.Close()
	for {
		var m wire.ExecInput
		if err := in.Decode(&m); err != nil {
			if !errors.Is(err, io.EOF) {
				cancel() // the client is gone: so should be its process
			}
			return
		}
		switch {
		case m.Closed:
			input.Close()
		case m.Resize != nil:
			select {
			case resize <- *m.Resize:
			default: // a newer size will follow
			}
		case m.Signal != 0:
			select {
			case signals <- syscall.Signal(m.Signal):
			case <-ctx.Done():
			}
		default:
			_, _ = input.Write(m.Data) // a process that closed its input may still want signals
		}
	}
}

// send writes one value at once. Errors of the process's output are the client's going away.
func (l *lines) send(v any) error {
	if err := l.add(v); err != nil {
		return err
	}
	return l.flush()
}

type writerFunc func([]byte) error

func (f writerFunc) Write(p []byte) (int, error) {
	if err := f(p); err != nil {
		return 0, err
	}
	return len(p), nil
}
