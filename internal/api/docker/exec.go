package docker

import (
	"context"
	"io"
	"net/http"
	"slices"
	"sync"
	"time"

	"github.com/moby/moby/api/types/container"

	"github.com/tutti-run/tutti/internal/driver"
	"github.com/tutti-run/tutti/internal/fault"
	"github.com/tutti-run/tutti/internal/model"
)

// execs remembers the processes that clients of this host made in containers.
type execs struct {
	mu   sync.Mutex
	byID map[string]*process
}

type process struct {
	id, box string
	config  container.ExecCreateRequest
	made    time.Time

	// of execs.mu
	running bool
	ended   time.Time
	exit    *int
}

// How many are kept, and for how long after they ended or were not begun.
const (
	maxExecs  = 10_000
	keptExecs = 10 * time.Minute
)

func (e *execs) add(p *process) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.byID == nil {
		e.byID = map[string]*process{}
	}
	for id, old := range e.byID {
		since := old.ended
		if since.IsZero() {
			since = old.made
		}
		if !old.running && p.made.Sub(since) > keptExecs {
			delete(e.byID, id)
		}
	}
	if len(e.byID) >= maxExecs {
		return fault.New(fault.Exhausted, "%d exec instances are kept; ask again in a few minutes", len(e.byID))
	}
	e.byID[p.id] = p
	return nil
}

func (e *execs) get(id string) (*process, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if p, ok := e.byID[id]; ok {
		return p, nil
	}
	return nil, fault.New(fault.NotFound, "No such exec instance: %s", id)
}

// of lists the IDs of what runs in a container, nil when nothing does.
func (e *execs) of(box string) []string {
	e.mu.Lock()
	defer e.mu.Unlock()
	var out []string
	for id, p := range e.byID {
		if p.box == box && p.running {
			out = append(out, id)
		}
	}
	slices.Sort(out)
	return out
}

// begin marks a process as running; it can be done once.
func (e *execs) begin(p *process) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	switch {
	case p.running:
		return fault.New(fault.Conflict, "exec instance %s is already running", p.id)
	case p.exit != nil:
		return fault.New(fault.Conflict, "exec instance %s has already run", p.id)
	}
	p.running = true
	return nil
}

func (e *execs) end(p *process, code int) {
	e.mu.Lock()
	defer e.mu.Unlock()
	p.running, p.exit, p.ended = false, &code, time.Now()
}

func (a *API) execCreate(w http.ResponseWriter, r *request) error {
	b, err := a.box(r)
	if err != nil {
		return err
	}
	p := &process{id: digestOf(model.NewID()), box: b.id, made: time.Now()}
	var req struct {
		container.ExecCreateRequest
		Container string // again, as python's client says it
	}
	if err := decode(r, &req, false); err != nil {
		return err
	}
	p.config = req.ExecCreateRequest
	if len(p.config.Cmd) == 0 {
		return fault.New(fault.Invalid, "No exec command specified")
	}
	if _, err := detachKeys(p.config.DetachKeys); err != nil {
		return err
	}
	if err := execable(b); err != nil {
		return err
	}
	if err := a.execs.add(p); err != nil {
		return err
	}
	return answer(w, http.StatusCreated, map[string]string{"Id": p.id})
}

func execable(b *box) error {
	switch b.state() {
	case container.StatePaused:
		return fault.New(fault.Conflict, "Container %s is paused, unpause the container before exec", b.id)
	case container.StateRestarting:
		return fault.New(fault.Conflict, "Container %s is restarting, wait until the container is running", b.id)
	case container.StateRunning:
		return nil
	}
	return fault.New(fault.Conflict, "container %s is not running", b.id)
}

func (a *API) execStart(w http.ResponseWriter, r *request) error {
	p, err := a.execs.get(r.vars["id"])
	if err != nil {
		return err
	}
	var req container.ExecStartRequest
	if err := decode(r, &req, true); err != nil {
		return err
	}
	if req.ConsoleSize != nil && !p.config.Tty {
		return fault.New(fault.Invalid, "console size is only supported when TTY is enabled")
	}
	b := a.boxByID(a.snapshot(), p.box)
	if b == nil {
		return fault.New(fault.NotFound, "No such container: %s", p.box)
	}
	if err := execable(b); err != nil {
		return err
	}
	if err := a.execs.begin(p); err != nil {
		return err
	}
	spec := driver.ExecSpec{
		Args: p.config.Cmd, Env: p.config.Env, User: p.config.User, WorkingDir: p.config.WorkingDir, TTY: p.config.Tty, Privileged: p.config.Privileged,
	}
	for _, size := range []*[2]uint{p.config.ConsoleSize, req.ConsoleSize} {
		if size != nil {
			spec.Rows, spec.Cols = int(size[0]), int(size[1])
		}
	}
	if req.Detach {
		go a.execute(r.lifetime, r, b, p, spec, driver.Streams{})
		return done(w, http.StatusOK)
	}
	conn, err := hijack(w, r, mediaOf(r, p.config.Tty))
	if err != nil {
		a.execs.end(p, 126)
		return err
	}
	defer conn.end()
	ctx, cancel := context.WithCancel(r.lifetime)
	detached := make(chan struct{})
	size, closeTerminal := a.terminals.open(p.id)
	out := &frames{w: &untilOver{conn, detached}, raw: p.config.Tty}
	s := driver.Streams{Resize: size}
	if p.config.AttachStdin {
		s.Stdin = conn
		if p.config.Tty {
			keys, _ := detachKeys(p.config.DetachKeys) // checked when it was made
			s.Stdin = &detachReader{r: conn, keys: keys, detached: sync.OnceFunc(func() { close(detached) })}
		}
	}
	if p.config.AttachStdout {
		s.Stdout = out.stream(stdout)
	}
	if p.config.AttachStderr && !p.config.Tty {
		s.Stderr = out.stream(stderr)
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		defer cancel()
		defer closeTerminal()
		if err := a.execute(ctx, r, b, p, spec, s); err != nil && ctx.Err() == nil {
			_, _ = io.WriteString(out.stream(stdout), err.Error()+"\r\n")
		}
	}()
	select {
	case <-ended:
	case <-detached: // the process goes on without its client
	}
	return nil
}

// execute runs the process and notes how it ended. An error says why it could not be started.
func (a *API) execute(ctx context.Context, r *request, b *box, p *process, spec driver.ExecSpec, s driver.Streams) error {
	code, err := a.Core.Exec(ctx, r.who, b.instance.ID, b.spec().Name, spec, s)
	switch {
	case err == nil:
	case fault.Is(err, fault.NotFound):
		code = 127
		err = fault.New(fault.NotFound, "OCI runtime exec failed: exec failed: exec: %q: executable file not found in $PATH: %w", spec.Args[0], err)
	case fault.Is(err, fault.Invalid):
		code = 126
	case ctx.Err() != nil || fault.Is(err, fault.Unavailable): // it was killed
		code = 137
	default:
		code = 126
	}
	a.execs.end(p, code)
	a.Log.Debug("process of an exec ended", "container", b.id, "code", code, "error", err, "context", ctx.Err())
	return err
}

func (a *API) execResize(w http.ResponseWriter, r *request) error {
	p, err := a.execs.get(r.vars["id"])
	if err != nil {
		return err
	}
	size, err := sizeOf(r)
	if err != nil {
		return err
	}
	a.terminals.resize(p.id, size)
	return done(w, http.StatusOK)
}

func (a *API) execInspect(w http.ResponseWriter, r *request) error {
	p, err := a.execs.get(r.vars["id"])
	if err != nil {
		return err
	}
	a.execs.mu.Lock()
	defer a.execs.mu.Unlock()
	privileged := p.config.Privileged
	return answer(w, http.StatusOK, container.ExecInspectResponse{
		ID: p.id, Running: p.running, ExitCode: p.exit, ContainerID: p.box,
		ProcessConfig: &container.ExecProcessConfig{
			Tty: p.config.Tty, Entrypoint: p.config.Cmd[0], Arguments: p.config.Cmd[1:], Privileged: &privileged, User: p.config.User,
		},
		OpenStdin: p.config.AttachStdin, OpenStdout: p.config.AttachStdout, OpenStderr: p.config.AttachStderr,
		CanRemove: p.exit != nil, DetachKeys: []byte{},
	})
}
