package fake

import (
	"bytes"
	"context"
	"io"
	"maps"
	"os"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/tutti-run/tutti/internal/driver"
	"github.com/tutti-run/tutti/internal/fault"
	"github.com/tutti-run/tutti/internal/model"
)

// State is what outlives a driver: the tasks, which go on running without one. Its programs, by
// the first word of what is run, are for the time of building.
type State struct {
	Programs map[string]Program
	// Refuse, when it is set and returns an error, keeps a task from starting.
	Refuse func(driver.Task) error

	mu      sync.Mutex
	tasks   map[string]*task
	started []driver.Task
	lease   time.Duration // until when leased tasks may run
	since   time.Duration // since when there was a lease all the time
}

// NewState returns a State without tasks.
func NewState(programs map[string]Program) *State {
	return &State{Programs: programs, tasks: map[string]*task{}}
}

// Started returns every task that Start was asked to run, in order, also those removed since.
func (s *State) Started() []driver.Task {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.started)
}

// End kills everything that runs, so that no goroutine is left.
func (s *State) End() {
	d := New(s)
	list, err := d.List(context.Background())
	for _, st := range list {
		if err == nil {
			err = d.Kill(context.Background(), st.ID)
		}
	}
	if err != nil {
		panic(err) // in memory, nothing of this can fail
	}
}

// Driver is a driver over a State.
type Driver struct{ state *State }

var _ driver.Driver = (*Driver)(nil)

// New returns a driver over whatever an earlier one left in the state.
func New(s *State) *Driver { return &Driver{state: s} }

// task is one run. Its goroutines belong to the State.
type task struct {
	spec driver.Task
	gate gate
	log  log
	over chan struct{} // closed when status is final

	goneOn    chan time.Duration // as a supervisor's
	suspended bool               // with mu

	mu       sync.Mutex
	status   driver.Status
	main     *process // nil when it could not be started
	stdin    *io.PipeWriter
	execs    map[*process]struct{}
	attached map[*attachment]struct{}
}

func (d *Driver) find(id string) (*task, error) {
	d.state.mu.Lock()
	defer d.state.mu.Unlock()
	if t := d.state.tasks[id]; t != nil {
		return t, nil
	}
	return nil, fault.New(fault.NotFound, "task %s is not known here", id)
}

// Start implements driver.Driver.
func (d *Driver) Start(ctx context.Context, spec driver.Task) error {
	if spec.ID == "" || len(spec.Args) == 0 {
		return fault.New(fault.Invalid, "task %q: an ID and something to run are needed", spec.ID)
	}
	s := d.state
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.tasks[spec.ID] != nil {
		return nil // started before
	}
	s.started = append(s.started, spec)
	t := &task{
		spec: spec, over: make(chan struct{}), goneOn: make(chan time.Duration, 1), status: driver.Status{ID: spec.ID, State: driver.Created},
		execs: map[*process]struct{}{}, attached: map[*attachment]struct{}{},
	}
	t.log.news = make(chan struct{})
	s.tasks[spec.ID] = t
	program, err := s.program(spec.Args[0])
	if err == nil && s.Refuse != nil {
		err = s.Refuse(spec)
	}
	if err == nil {
		err = s.unleased(&spec)
	}
	if err != nil {
		code := 126
		if fault.Is(err, fault.NotFound) {
			code = 127
		}
		t.status.State, t.status.ExitCode, t.status.Error, t.status.Finished = driver.Exited, code, err.Error(), time.Now()
		t.log.end()
		close(t.over)
		return err
	}
	t.begin(program)
	if spec.Leased {
		go s.guard(t, s.lease)
	}
	return nil
}

func (s *State) program(name string) (Program, error) {
	if p := s.Programs[name]; p != nil {
		return p, nil
	}
	return nil, fault.New(fault.NotFound, "executable %q was not found in the image", name)
}

// firstPID makes the process IDs look like such.
const firstPID = 1000

func (t *task) begin(program Program) {
	p := &Process{
		Args: t.spec.Args, Env: t.spec.Env, Dir: t.spec.WorkingDir,
		Stdout: &taskWriter{task: t, stream: "stdout"}, Stderr: &taskWriter{task: t, stream: "stderr"},
	}
	if t.spec.TTY {
		p.Stderr = p.Stdout
	}
	var in io.Reader
	if t.spec.Stdin || t.spec.TTY {
		in, t.stdin = io.Pipe()
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.status.State, t.status.PID, t.status.Started = driver.Running, firstPID, time.Now()
	t.main = run(program, p, in, true)
	go t.watch(t.main, p)
}

// watch records the end of the task.
func (t *task) watch(main *process, p *Process) {
	<-main.over
	p.Stdout.(*taskWriter).flush()
	p.Stderr.(*taskWriter).flush()
	t.mu.Lock()
	execs := slices.Collect(maps.Keys(t.execs))
	t.mu.Unlock()
	for _, e := range execs {
		e.kill(int(syscall.SIGKILL))
		<-e.over
	}
	if t.stdin != nil {
		t.stdin.Close()
	}
	t.mu.Lock()
	t.status.State, t.status.PID, t.status.ExitCode, t.status.Finished = driver.Exited, 0, main.code, time.Now()
	attached := slices.Collect(maps.Keys(t.attached))
	t.mu.Unlock()
	t.log.end()
	for _, a := range attached {
		a.end()
	}
	close(t.over)
}

// errSuspended says what a task is that is suspended, nil of another; the lock is held.
func (t *task) errSuspended() error {
	if t.suspended && t.status.State != driver.Exited {
		return fault.New(fault.Unavailable, "%s: task %s", driver.Suspended, t.spec.ID)
	}
	return nil
}

func (t *task) current() driver.Status {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.status
}

// running returns the task of an ID, if it has not ended.
func (d *Driver) running(id string) (*task, error) {
	t, err := d.find(id)
	if err == nil && t.current().State == driver.Exited {
		return nil, fault.New(fault.Unavailable, "task %s is not running", id)
	}
	return t, err
}

// Status implements driver.Driver.
func (d *Driver) Status(ctx context.Context, id string) (driver.Status, error) {
	t, err := d.find(id)
	if err != nil {
		return driver.Status{}, err
	}
	return t.current(), nil
}

// Wait implements driver.Driver.
func (d *Driver) Wait(ctx context.Context, id string) (driver.Status, error) {
	t, err := d.find(id)
	if err != nil {
		return driver.Status{}, err
	}
	select {
	case <-t.over:
		return t.current(), nil
	case <-ctx.Done():
		return t.current(), ctx.Err()
	}
}

// Signal implements driver.Driver.
func (d *Driver) Signal(ctx context.Context, id string, signal int) error {
	if signal < 1 || signal > 64 {
		return fault.New(fault.Invalid, "there is no signal %d", signal)
	}
	t, err := d.find(id)
	if err != nil {
		return err
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if err := t.errSuspended(); err != nil {
		return err
	}
	if t.status.State != driver.Exited {
		t.main.signal(signal)
	}
	return nil
}

// Kill implements driver.Driver.
func (d *Driver) Kill(ctx context.Context, id string) error {
	t, err := d.find(id)
	if err != nil || t.current().State == driver.Exited {
		return err
	}
	t.main.kill(int(syscall.SIGKILL))
	<-t.over
	return nil
}

// Pause implements driver.Driver. What a paused task writes is held up.
func (d *Driver) Pause(ctx context.Context, id string) error { return d.freeze(id, true) }

// Resume implements driver.Driver.
func (d *Driver) Resume(ctx context.Context, id string) error { return d.freeze(id, false) }

func (d *Driver) freeze(id string, pause bool) error {
	t, err := d.running(id)
	if err != nil {
		return err
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	from, to := driver.Running, driver.Paused
	if !pause {
		from, to = to, from
	}
	if err := t.errSuspended(); err != nil {
		return err
	}
	if t.status.State != from {
		return fault.New(fault.Conflict, "task %s is %s", id, t.status.State)
	}
	t.status.State = to
	if pause {
		t.gate.shut()
	} else {
		t.gate.release()
	}
	return nil
}

// Exec implements driver.Driver.
func (d *Driver) Exec(ctx context.Context, id string, spec driver.ExecSpec, s driver.Streams) (int, error) {
	if len(spec.Args) == 0 {
		return 0, fault.New(fault.Invalid, "nothing was said to run")
	}
	t, err := d.running(id)
	if err != nil {
		return 0, err
	}
	program, err := d.state.program(spec.Args[0])
	if err != nil {
		return 0, err
	}
	p := &Process{Args: spec.Args, Env: append(slices.Clone(t.spec.Env), spec.Env...), Dir: spec.WorkingDir}
	if p.Dir == "" {
		p.Dir = t.spec.WorkingDir
	}
	p.Stdout, p.Stderr = outputs(s, spec.TTY)
	t.mu.Lock()
	if err := t.errSuspended(); err != nil {
		t.mu.Unlock()
		return 0, err
	}
	if t.status.State != driver.Running {
		state := t.status.State
		t.mu.Unlock()
		return 0, fault.New(fault.Conflict, "task %s is %s", id, state)
	}
	e := run(program, p, s.Stdin, false)
	t.execs[e] = struct{}{}
	t.mu.Unlock()
	defer func() {
		t.mu.Lock()
		delete(t.execs, e)
		t.mu.Unlock()
	}()
	signals := s.Signals
	for {
		select {
		case <-e.over:
			return e.code, nil
		case <-ctx.Done():
			e.kill(int(syscall.SIGKILL))
			<-e.over
			return 0, ctx.Err()
		case sig, ok := <-signals:
			if n, isNumber := sig.(syscall.Signal); ok && isNumber {
				e.signal(int(n))
			}
			if !ok {
				signals = nil
			}
		}
	}
}

// attachment is one client of a task's own streams.
type attachment struct {
	stdout, stderr io.Writer
	once           sync.Once
	over           chan struct{}
}

func (a *attachment) end() { a.once.Do(func() { close(a.over) }) }

// Attach implements driver.Driver.
func (d *Driver) Attach(ctx context.Context, id string, s driver.Streams) error {
	t, err := d.running(id)
	if err != nil {
		return err
	}
	a := &attachment{over: make(chan struct{})}
	a.stdout, a.stderr = outputs(s, t.spec.TTY)
	t.mu.Lock()
	t.attached[a] = struct{}{}
	ended := t.status.State == driver.Exited
	t.mu.Unlock()
	defer func() {
		t.mu.Lock()
		delete(t.attached, a)
		t.mu.Unlock()
	}()
	if ended {
		return nil
	}
	if s.Stdin != nil && t.stdin != nil {
		go func() {
			if _, err := io.Copy(t.stdin, s.Stdin); err == nil {
				t.stdin.Close()
			}
		}()
	}
	signals := s.Signals
	for {
		select {
		case <-a.over:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		case sig, ok := <-signals:
			if n, isNumber := sig.(syscall.Signal); ok && isNumber {
				t.main.signal(int(n))
			}
			if !ok {
				signals = nil
			}
		}
	}
}

// Logs implements driver.Driver.
func (d *Driver) Logs(ctx context.Context, id string, o driver.LogOptions, yield func(driver.LogEntry) error) error {
	t, err := d.find(id)
	if err != nil {
		return err
	}
	return t.log.read(ctx, o, yield)
}

// Update implements driver.Driver.
func (d *Driver) Update(_ context.Context, id string, b model.Bounds) error {
	t, err := d.running(id)
	if err != nil {
		return err
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.spec.Limit, t.spec.Reserve, t.spec.Tuning = b.Limit, b.Reserve, b.Tuning
	return nil
}

// Stats implements driver.Driver.
func (d *Driver) Stats(ctx context.Context, id string) (driver.Stats, error) {
	t, err := d.running(id)
	if err != nil {
		return driver.Stats{}, err
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	return driver.Stats{Time: time.Now(), MemoryBytes: 1 << 20, MemoryLimitBytes: uint64(t.spec.Limit.MemoryBytes), Pids: uint64(1 + len(t.execs))}, nil
}

// Processes implements driver.Driver.
func (d *Driver) Processes(ctx context.Context, id string) ([]driver.Process, error) {
	t, err := d.running(id)
	if err != nil {
		return nil, err
	}
	st := t.current()
	return []driver.Process{{PID: st.PID, State: "S", Started: st.Started, MemoryBytes: 1 << 20, Command: t.spec.Args}}, nil
}

// List implements driver.Driver.
func (d *Driver) List(ctx context.Context) ([]driver.Status, error) {
	d.state.mu.Lock()
	tasks := slices.Collect(maps.Values(d.state.tasks))
	d.state.mu.Unlock()
	var out []driver.Status
	for _, t := range tasks {
		out = append(out, t.current())
	}
	slices.SortFunc(out, func(a, b driver.Status) int { return strings.Compare(a.ID, b.ID) })
	return out, nil
}

// Remove implements driver.Driver.
func (d *Driver) Remove(ctx context.Context, id string) error {
	if err := d.Kill(ctx, id); err != nil {
		return err
	}
	d.state.mu.Lock()
	defer d.state.mu.Unlock()
	delete(d.state.tasks, id)
	return nil
}

// taskWriter takes what a task writes, for the log, line by line, and for whoever is attached.
type taskWriter struct {
	task   *task
	stream string
	mu     sync.Mutex
	buf    []byte
}

// maxLine is the log's limit; longer lines are kept in parts.
const maxLine = 16 << 10

func (w *taskWriter) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	t := w.task
	t.mu.Lock()
	main := t.main
	t.mu.Unlock()
	t.gate.pass(main.done)
	select {
	case <-main.done:
		return 0, os.ErrClosed
	default:
	}
	t.mu.Lock()
	attached := slices.Collect(maps.Keys(t.attached))
	t.mu.Unlock()
	for _, a := range attached {
		to := a.stdout
		if w.stream == "stderr" {
			to = a.stderr
		}
		if _, err := to.Write(p); err != nil {
			a.end()
		}
	}
	w.buf = append(w.buf, p...)
	for {
		i := bytes.IndexByte(w.buf, '\n')
		switch {
		case i >= 0 && i < maxLine:
			t.log.add(w.stream, w.buf[:i+1])
			w.buf = w.buf[i+1:]
		case len(w.buf) >= maxLine:
			t.log.add(w.stream, w.buf[:maxLine])
			w.buf = w.buf[maxLine:]
		default:
			return len(p), nil
		}
	}
}

func (w *taskWriter) flush() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.buf) > 0 {
		w.task.log.add(w.stream, w.buf)
		w.buf = nil
	}
}

// log keeps entries and wakes those who follow.
type log struct {
	mu      sync.Mutex
	entries []driver.LogEntry
	ended   bool
	news    chan struct{} // closed and replaced at each change
}

func (l *log) add(stream string, line []byte) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.entries = append(l.entries, driver.LogEntry{Time: time.Now(), Stream: stream, Line: bytes.Clone(line)})
	close(l.news)
	l.news = make(chan struct{})
}

func (l *log) end() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.ended = true
	close(l.news)
	l.news = make(chan struct{})
}

func (l *log) read(ctx context.Context, o driver.LogOptions, yield func(driver.LogEntry) error) error {
	next, first := 0, true
	for {
		l.mu.Lock()
		fresh, ended, news := l.entries[next:], l.ended, l.news
		next = len(l.entries)
		l.mu.Unlock()
		var wanted []driver.LogEntry
		for _, e := range fresh {
			if (o.Since.IsZero() || !e.Time.Before(o.Since)) && (o.Until.IsZero() || !e.Time.After(o.Until)) {
				wanted = append(wanted, e)
			}
		}
		if first && o.Tail >= 0 && len(wanted) > o.Tail {
			wanted = wanted[len(wanted)-o.Tail:]
		}
		first = false
		for _, e := range wanted {
			if err := yield(e); err != nil {
				return err
			}
		}
		if !o.Follow || ended {
			return nil
		}
		select {
		case <-ctx.Done():
			return nil
		case <-news:
		}
	}
}
