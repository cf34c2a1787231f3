package supervisor

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/fxamacker/cbor/v2"
	"golang.org/x/sys/unix"

	"github.com/tutti-run/tutti/internal/cgroup"
	"github.com/tutti-run/tutti/internal/driver"
	"github.com/tutti-run/tutti/internal/driver/helper"
	"github.com/tutti-run/tutti/internal/driver/launch"
	"github.com/tutti-run/tutti/internal/driver/tasklog"
	"github.com/tutti-run/tutti/internal/fault"
	"github.com/tutti-run/tutti/internal/model"
)

// Config says where a driver keeps things, and what is its own.
type Config struct {
	StateDir string // one directory per run; survives everything
	RunDir   string // sockets, and what ends with the host
	Log      *slog.Logger
	// Role is the first argument by which the program beside a task knows whose it is; its main
	// function hands the others to Supervise.
	Role string
	// Check refuses what can never be run, before anything is made, and adds what is of this host.
	Check func(*driver.Task) error
	// First writes down how a task's first process is begun by the program beside it; nil, or nothing returned: Supervise does it, by the
	// task's body. dir and reaper are those that NewBody gets, files the descriptors in that program of the process's
	// standard files, below zero for none.
	First func(t *driver.Task, dir, reaper string, files [3]int) *First
	// Usage finds what a task uses up, where that can be seen from outside of it; nil, or nothing returned: its supervisor is asked.
	Usage func(t *driver.Task) (Usage, error)
	// Bury ends and frees what a task had whose supervisor was killed; dir is the one that Body got.
	Bury func(t *driver.Task, dir string)
}

// Driver is the agent's side: it starts supervisors, reads what they write and asks them for the
// rest. See package driver.
type Driver struct {
	Config
	helper *helper.Program

	burying sync.Mutex

	leasing sync.Mutex
	lease   *os.File // opened by the first Lease

	mu       sync.Mutex
	starting map[string]chan struct{} // by ID; closed when the Start under way is over
	held     map[string]*heldOutput   // of tasks that are waited for, by ID
}

var (
	_ driver.Driver = (*Driver)(nil)
	_ driver.Leaser = (*Driver)(nil)
)

// New returns a driver over whatever an earlier one left in the directories.
func New(c Config) (*Driver, error) {
	for _, dir := range []string{c.StateDir, c.RunDir} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return nil, fmt.Errorf("make the driver's directory: %w", err)
		}
	}
	h, err := helper.Open(c.RunDir)
	if err != nil {
		return nil, err
	}
	return &Driver{Config: c, helper: h, starting: map[string]chan struct{}{}, held: map[string]*heldOutput{}}, nil
}

// dir is where a run is kept.
func (d *Driver) dir(id string) string { return filepath.Join(d.StateDir, id) }

// Start implements driver.Driver.
func (d *Driver) Start(ctx context.Context, t driver.Task) error {
	if t.ID == "" || t.ID == "." || t.ID == ".." || strings.ContainsAny(t.ID, "/\x00") || len(t.Args) == 0 {
		return fault.New(fault.Invalid, "task %q: an ID and something to run are needed", t.ID)
	}
	if err := d.Check(&t); err != nil {
		return err
	}
	for {
		d.mu.Lock()
		other := d.starting[t.ID]
		if other == nil {
			d.starting[t.ID] = make(chan struct{})
		}
		d.mu.Unlock()
		if other == nil {
			break
		}
		select {
		case <-other:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	defer func() {
		d.mu.Lock()
		close(d.starting[t.ID])
		delete(d.starting, t.ID)
		d.mu.Unlock()
	}()
	return d.start(t)
}

// isStarting says that a run's directory is just being filled: it is not one that lost its
// supervisor.
func (d *Driver) isStarting(id string) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.starting[id] != nil
}

// startTimeout is how long a supervisor may take until its task runs; on an idle machine it takes
// some hundredths of a second.
const startTimeout = 2 * time.Minute

func (d *Driver) start(t driver.Task) error {
	dir := d.dir(t.ID)
	if _, err := os.Stat(filepath.Join(dir, taskFile)); err == nil {
		return nil // started before
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("start task %s: %w", t.ID, err)
	}
	lock, err := os.OpenFile(filepath.Join(dir, lockFile), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return fmt.Errorf("start task %s: %w", t.ID, err)
	}
	defer lock.Close()
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return fmt.Errorf("start task %s: its directory is in use: %w", t.ID, err)
	}
	reaper := ""
	if t.Init {
		if reaper, err = d.helper.File(); err != nil {
			return fmt.Errorf("start task %s: %w", t.ID, err)
		}
	}
	if err := writeJSON(filepath.Join(dir, taskFile), t); err != nil {
		return fmt.Errorf("start task %s: %w", t.ID, err)
	}
	ready, child, err := os.Pipe()
	if err != nil {
		return fmt.Errorf("start task %s: %w", t.ID, err)
	}
	defer ready.Close()
	errorLog, err := os.OpenFile(filepath.Join(dir, "supervisor.log"), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		child.Close()
		return fmt.Errorf("start task %s: %w", t.ID, err)
	}
	defer errorLog.Close()
	// The lock is the supervisor's: it inherits the very open file, and the kernel lets go of it
	// when the last holder has ended.
	cmd := &exec.Cmd{
		Path: d.helper.Path(), Args: []string{"tutti", d.Role, dir, socketPath(d.RunDir, t.ID), reaper},
		Env: []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "GOMAXPROCS=1"}, Dir: "/",
		Stderr: errorLog, ExtraFiles: []*os.File{child, lock},
		SysProcAttr: &syscall.SysProcAttr{Setsid: true, PidFD: new(int)},
	}
	first, err := d.first(&t, cmd, reaper)
	if err == nil {
		err = cmd.Start()
	}
	for _, f := range cmd.ExtraFiles {
		if f != lock {
			f.Close()
		}
	}
	if err != nil {
		return fmt.Errorf("start task %s: start its supervisor: %w", t.ID, err)
	}
	go reap(cmd)
	if err := ready.SetReadDeadline(time.Now().Add(startTimeout)); err != nil {
		return fmt.Errorf("start task %s: %w", t.ID, err)
	}
	answer, err := io.ReadAll(ready)
	if errors.Is(err, os.ErrDeadlineExceeded) {
		cmd.Process.Kill() // what it has begun ends as that of any supervisor that is lost
		return fault.New(fault.Unavailable, "start task %s: its supervisor did not say within %s that it runs", t.ID, startTimeout)
	}
	if err != nil {
		return fmt.Errorf("start task %s: %w", t.ID, err)
	}
	if string(answer) == "ok" {
		return nil
	}
	var step, errno int
	if n, _ := fmt.Sscanf(string(answer), "step %d %d", &step, &errno); n == 2 && first != nil {
		why := first.Failed(step, syscall.Errno(errno))
		st := driver.Status{ID: t.ID}
		notStarted(&st, why)
		return errors.Join(why, writeJSON(filepath.Join(dir, statusFile), st))
	}
	kind, text, _ := strings.Cut(string(answer), "\n")
	if text == "" {
		text = "its supervisor ended early"
	}
	return fault.New(fault.ParseKind(kind), "%s", text)
}

// first has the program beside a task begin its first process, where the driver knows how.
func (d *Driver) first(t *driver.Task, cmd *exec.Cmd, reaper string) (*First, error) {
	if d.First == nil || t.TTY || t.Stdin || t.Leased {
		return nil, nil
	}
	socket := socketPath(d.RunDir, t.ID)
	first := d.First(t, socket+bodySuffix, reaper, [3]int{-1, launch.OutputFile, launch.ErrorsFile})
	if first == nil {
		return nil, nil
	}
	w, err := watchOf(t, d.dir(t.ID), socket)
	if err != nil {
		return nil, err
	}
	handed, err := handOver(first.Hand(w))
	if err != nil {
		return nil, err
	}
	cmd.ExtraFiles = append(cmd.ExtraFiles, handed)
	p, err := openPipes(false, false, true)
	if err != nil {
		return nil, err
	}
	cmd.ExtraFiles = append(cmd.ExtraFiles, p.outputs["stdout"], p.outputs["stderr"], p.files.Stdout, p.files.Stderr)
	cmd.Args = append(cmd.Args, "begin")
	return first, nil
}

// watchOf is how the first process of a task is watched before there is a supervisor, which does the same.
func watchOf(t *driver.Task, dir, socket string) (w launch.Watch, err error) {
	id, err := json.Marshal(t.ID)
	if err != nil {
		return w, err
	}
	w = launch.Watch{
		Record:  filepath.Join(dir, statusFile),
		Running: fmt.Sprintf(`{"id":%s,"state":%q,"pid":`, id, driver.Running),
		Ended:   fmt.Sprintf(`{"id":%s,"state":%q`, id, driver.Exited),
		Socket:  socket,
	}
	w.Log, w.LogRoom = tasklog.File(dir, t.Log)
	for _, m := range []struct {
		to      *[]byte
		message any
	}{
		{&w.Wait, request{Op: "wait"}}, {&w.Kill, request{Op: "kill"}}, {&w.Signal, request{Op: "signal", Signal: 1}}, {&w.Done, output{Done: true}},
	} {
		if *m.to, err = cbor.Marshal(m.message); err != nil {
			return w, err
		}
	}
	w.Signal = w.Signal[:len(w.Signal)-1] // without the number
	return w, nil
}

// handOver makes a file of memory.
func handOver(data []byte) (*os.File, error) {
	fd, err := unix.MemfdCreate("tutti-begin", unix.MFD_CLOEXEC)
	if err != nil {
		return nil, os.NewSyscallError("memfd_create", err)
	}
	f := os.NewFile(uintptr(fd), "begin")
	if _, err := f.Write(data); err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// reap waits for a supervisor that was started with a PidFD, only so that it leaves no zombie while this agent lives: by the runtime's
// poller, as to wait in the kernel takes a thread for each.
func reap(cmd *exec.Cmd) {
	fd := *cmd.SysProcAttr.PidFD
	if fd < 0 { // a kernel before 5.4
		cmd.Wait()
		return
	}
	defer cmd.Process.Release()
	unix.SetNonblock(fd, true) // what makes a file one for the poller
	ended := os.NewFile(uintptr(fd), "supervisor")
	defer ended.Close()
	conn, err := ended.SyscallConn()
	if err == nil {
		err = conn.Read(func(uintptr) bool {
			pid, err := unix.Wait4(cmd.Process.Pid, nil, unix.WNOHANG, nil)
			return err != unix.EINTR && (err != nil || pid != 0)
		})
	}
	if err != nil {
		unix.Wait4(cmd.Process.Pid, nil, 0, nil)
	}
}

// Status implements driver.Driver.
func (d *Driver) Status(ctx context.Context, id string) (driver.Status, error) {
	var st driver.Status
	dir := d.dir(id)
	starting := d.isStarting(id) // asked first: when it is over, everything is written
	if err := readJSON(filepath.Join(dir, statusFile), &st); err != nil {
		if _, terr := os.Stat(filepath.Join(dir, taskFile)); terr != nil {
			return st, fault.New(fault.NotFound, "task %s is not known here", id)
		}
		if _, damaged := errors.AsType[*json.SyntaxError](err); !damaged && !errors.Is(err, os.ErrNotExist) {
			return st, fmt.Errorf("read status of task %s: %w", id, err)
		}
		// Not written yet, or cut short by a crash of the machine: then nothing of it runs.
		st = driver.Status{ID: id, State: driver.Created}
	}
	if st.State == driver.Exited || starting || d.supervised(dir) {
		return st, nil
	}
	// Between the two looks the supervisor may have recorded the end and gone.
	if err := readJSON(filepath.Join(dir, statusFile), &st); err == nil && st.State == driver.Exited {
		return st, nil
	}
	return d.bury(id, st)
}

// supervised reports whether the run's supervisor lives.
func (d *Driver) supervised(dir string) bool {
	f, err := os.OpenFile(filepath.Join(dir, lockFile), os.O_RDWR, 0)
	if err != nil {
		return false
	}
	defer f.Close()
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return true
	}
	return false
}

// bury ends a container whose supervisor was killed, and records that.
func (d *Driver) bury(id string, st driver.Status) (driver.Status, error) {
	d.burying.Lock()
	defer d.burying.Unlock()
	dir := d.dir(id)
	if err := readJSON(filepath.Join(dir, statusFile), &st); err == nil && st.State == driver.Exited {
		return st, nil
	}
	var t driver.Task
	if err := readJSON(filepath.Join(dir, taskFile), &t); err != nil {
		d.Log.Warn("what a task was made of cannot be read", "task", id, "error", err)
	}
	left := d.takeOutput(id, st.PID)
	d.Bury(&t, socketPath(d.RunDir, id)+bodySuffix)
	if err := keepOutput(dir, t.Log, left); err != nil {
		d.Log.Warn("the last of what a task printed that lost its supervisor could not be kept", "task", id, "error", err)
	}
	st.ID, st.State, st.PID, st.ExitCode, st.Finished = id, driver.Exited, 0, 255, time.Now()
	st.Error = "its supervisor was killed"
	d.Log.Warn("a task lost its supervisor and was ended", "task", id)
	if err := writeJSON(filepath.Join(dir, statusFile), st); err != nil {
		return st, fmt.Errorf("record the end of task %s: %w", id, err)
	}
	return st, nil
}

// call makes one request of the run's supervisor and returns its last answer.
func (d *Driver) call(ctx context.Context, id string, r request) (output, error) {
	var o output
	c, err := d.connect(ctx, id)
	if err != nil {
		return o, err
	}
	defer c.Close()
	stop := context.AfterFunc(ctx, func() { c.Close() })
	defer stop()
	if err := cbor.NewEncoder(c).Encode(r); err == nil {
		err = cbor.NewDecoder(c).Decode(&o)
		if err == nil {
			return o, answerError(o)
		}
	}
	if ctx.Err() != nil {
		return o, ctx.Err()
	}
	return o, errGone
}

// errGone says that the supervisor went away in the middle of a request.
var errGone = errors.New("the task's supervisor has gone")

func answerError(o output) error {
	if o.Error == "" {
		return nil
	}
	return fault.New(fault.ParseKind(o.Kind), "%s", o.Error)
}

// connect reaches the supervisor of a task that has not exited.
func (d *Driver) connect(ctx context.Context, id string) (net.Conn, error) {
	st, err := d.Status(ctx, id)
	if err != nil {
		return nil, err
	}
	if st.State == driver.Exited {
		return nil, errNotRunning(id)
	}
	for n := 0; ; n++ {
		c, err := new(net.Dialer).DialContext(ctx, "unix", socketPath(d.RunDir, id))
		if err == nil {
			return c, nil
		}
		if n == 50 || ctx.Err() != nil {
			return nil, fault.New(fault.Unavailable, "the supervisor of task %s does not answer: %w", id, err)
		}
		time.Sleep(10 * time.Millisecond) // it is just starting, or just ending
		if st, err := d.Status(ctx, id); err == nil && st.State == driver.Exited {
			return nil, errNotRunning(id)
		}
	}
}

// Wait implements driver.Driver.
func (d *Driver) Wait(ctx context.Context, id string) (driver.Status, error) {
	holding := false
	for {
		st, err := d.Status(ctx, id)
		if err != nil || st.State == driver.Exited {
			return st, err
		}
		if !holding && st.PID > 0 {
			holding = true
			defer d.holdOutput(id, st.PID)()
		}
		if _, err := d.call(ctx, id, request{Op: "wait"}); err != nil {
			if ctx.Err() != nil {
				return st, ctx.Err()
			}
			select {
			case <-ctx.Done():
				return st, ctx.Err()
			case <-time.After(20 * time.Millisecond):
			}
		}
	}
}

// ignoreEnded makes it no error that a task has ended already.
func (d *Driver) ignoreEnded(ctx context.Context, id string, err error) error {
	if err == nil || ctx.Err() != nil {
		return err
	}
	if st, serr := d.Status(ctx, id); serr != nil || st.State == driver.Exited {
		return serr
	}
	return err
}

// Signal implements driver.Driver.
func (d *Driver) Signal(ctx context.Context, id string, signal int) error {
	_, err := d.call(ctx, id, request{Op: "signal", Signal: signal})
	return d.ignoreEnded(ctx, id, err)
}

// Kill implements driver.Driver.
func (d *Driver) Kill(ctx context.Context, id string) error {
	_, err := d.call(ctx, id, request{Op: "kill"})
	return d.ignoreEnded(ctx, id, err)
}

// Pause implements driver.Driver.
func (d *Driver) Pause(ctx context.Context, id string) error {
	_, err := d.call(ctx, id, request{Op: "pause"})
	return err
}

// Resume implements driver.Driver.
func (d *Driver) Resume(ctx context.Context, id string) error {
	_, err := d.call(ctx, id, request{Op: "resume"})
	return err
}

// Update implements driver.Driver.
func (d *Driver) Update(ctx context.Context, id string, b model.Bounds) error {
	_, err := d.call(ctx, id, request{Op: "update", Bounds: &b})
	return err
}

// usage looks at what runs from here: for that, no supervisor needs to be more than it is. nil: it is to be asked.
func (d *Driver) usage(ctx context.Context, id string) (Usage, error) {
	st, err := d.Status(ctx, id)
	if err != nil || d.Usage == nil {
		return nil, err
	}
	if st.State == driver.Exited {
		return nil, errNotRunning(id)
	}
	var t driver.Task
	if err := readJSON(filepath.Join(d.dir(id), taskFile), &t); err != nil {
		return nil, fmt.Errorf("read what task %s was made of: %w", id, err)
	}
	return d.Usage(&t)
}

// Stats implements driver.Driver.
func (d *Driver) Stats(ctx context.Context, id string) (driver.Stats, error) {
	u, err := d.usage(ctx, id)
	if err != nil {
		return driver.Stats{}, err
	}
	if u != nil {
		st, err := u.Stats()
		if err != nil {
			return driver.Stats{}, d.unlessEnded(ctx, id, err)
		}
		return *st, nil
	}
	o, err := d.call(ctx, id, request{Op: "stats"})
	if err != nil || o.Stats == nil {
		return driver.Stats{}, err
	}
	return *o.Stats, nil
}

// Processes implements driver.Driver.
func (d *Driver) Processes(ctx context.Context, id string) ([]driver.Process, error) {
	u, err := d.usage(ctx, id)
	if err != nil {
		return nil, err
	}
	if u != nil {
		out, err := processesOf(u)
		return out, d.unlessEnded(ctx, id, err)
	}
	o, err := d.call(ctx, id, request{Op: "processes"})
	return o.Processes, err
}

func errNotRunning(id string) error {
	return fault.New(fault.Unavailable, "task %s is not running", id)
}

// unlessEnded tells of a task that has ended, rather than of what could not be read of it then.
func (d *Driver) unlessEnded(ctx context.Context, id string, err error) error {
	if err == nil {
		return nil
	}
	if st, serr := d.Status(ctx, id); serr == nil && st.State == driver.Exited {
		return errNotRunning(id)
	}
	return err
}

// Logs implements driver.Driver.
func (d *Driver) Logs(ctx context.Context, id string, o driver.LogOptions, yield func(driver.LogEntry) error) error {
	if _, err := d.Status(ctx, id); err != nil {
		return err
	}
	ended := func() bool {
		st, err := d.Status(ctx, id)
		return err != nil || st.State == driver.Exited
	}
	return tasklog.Read(ctx, d.dir(id), o, ended, yield)
}

// List implements driver.Driver.
func (d *Driver) List(ctx context.Context) ([]driver.Status, error) {
	entries, err := os.ReadDir(d.StateDir)
	if err != nil {
		return nil, fmt.Errorf("list tasks: %w", err)
	}
	var out []driver.Status
	for _, e := range entries {
		st, err := d.Status(ctx, e.Name())
		if fault.Is(err, fault.NotFound) {
			if !d.isStarting(e.Name()) && !d.supervised(d.dir(e.Name())) {
				os.RemoveAll(d.dir(e.Name())) // cut short before it was anything, or after it was all
			}
			continue
		}
		if err != nil {
			return nil, err
		}
		out = append(out, st)
	}
	return out, nil
}

// Remove implements driver.Driver.
func (d *Driver) Remove(ctx context.Context, id string) error {
	if _, err := d.Status(ctx, id); err != nil {
		return err
	}
	if err := d.Kill(ctx, id); err != nil && !fault.Is(err, fault.Unavailable) {
		return fmt.Errorf("remove task %s: %w", id, err)
	}
	if _, err := d.Wait(ctx, id); err != nil {
		return fmt.Errorf("remove task %s: %w", id, err)
	}
	for d.supervised(d.dir(id)) { // it has recorded the end, and is about to go
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(2 * time.Millisecond):
		}
	}
	os.Remove(socketPath(d.RunDir, id))
	var t driver.Task
	if err := readJSON(filepath.Join(d.dir(id), taskFile), &t); err != nil {
		d.Log.Warn("what a removed task was made of cannot be read", "task", id, "error", err)
	}
	if err := os.RemoveAll(d.dir(id)); err != nil {
		return fmt.Errorf("remove task %s: %w", id, err)
	}
	removeParent(t.CgroupParent)
	return nil
}

// removeParent removes the cgroup above tasks once its last task is gone; the kernel refuses as
// long as there is another.
func removeParent(cgroupParent string) {
	clean := filepath.Clean("/" + cgroupParent)
	roots, err := cgroup.Hierarchies()
	if err != nil || clean == "/" {
		return
	}
	for _, root := range roots {
		unix.Rmdir(filepath.Join(root, clean))
	}
}
