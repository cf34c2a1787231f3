package oci

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/opencontainers/cgroups"
	"github.com/opencontainers/cgroups/manager"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/tutti-run/tutti/internal/cgroup"
	"github.com/tutti-run/tutti/internal/driver"
	"github.com/tutti-run/tutti/internal/driver/supervisor"
	"github.com/tutti-run/tutti/internal/fault"
)

// foreign is the body of a task whose container another OCI runtime makes, a program of the host
// such as runc, crun or runsc. It is handed the same specification as the built-in one, in a bundle,
// and is spoken to by its command line, which ends after each command; what it leaves behind becomes
// the supervisor's, which waits for it. So all that a supervisor promises holds as it does otherwise.
//
// Usage, members and want of memory are read from the container's cgroup: not every runtime tells.
type foreign struct {
	task *driver.Task
	spec *specs.Spec
	dir  string
	usage
	reaper *supervisor.Reaper
	files  atomic.Int64 // numbers what is made for single commands
	first  atomic.Int64 // process ID of the first process, while it runs

	mu     sync.Mutex
	paused bool
}

// foreignVersion is the version of the specification that runtimes in use know of; what is new in
// later ones is not in bundles.
const foreignVersion = "1.0.2"

func newForeign(t *driver.Task, dir, reaper string) (supervisor.Body, error) {
	f := &foreign{task: t, dir: dir}
	var err error
	if f.spec, err = spec(t, reaper); err != nil {
		return nil, err
	}
	if err := restrict(t, f.spec); err != nil {
		return nil, err
	}
	f.spec.Version = foreignVersion
	if f.spec.Process.Rlimits, err = posixLimits(t.Ulimits); err != nil {
		return nil, err
	}
	if f.group, err = cgroupOf(t); err != nil {
		return nil, err
	}
	if f.reaper, err = supervisor.NewReaper(); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(f.bundle(), 0o700); err != nil {
		return nil, fmt.Errorf("make the container's bundle: %w", err)
	}
	return f, f.write(filepath.Join("bundle", "config.json"), f.spec)
}

// cgroupOf looks at the cgroup of a container that is another program's to make.
func cgroupOf(t *driver.Task) (cgroups.Manager, error) {
	path := filepath.Join(t.CgroupParent, t.ID)
	m, err := manager.NewWithPaths(&cgroups.Cgroup{Path: path, Resources: &cgroups.Resources{SkipDevices: true}}, t.Cgroups.Paths(path))
	if err != nil {
		return nil, fmt.Errorf("find the container's cgroup: %w", err)
	}
	return m, nil
}

func (f *foreign) bundle() string { return filepath.Join(f.dir, "bundle") }

func (f *foreign) write(name string, v any) error {
	data, err := json.Marshal(v)
	if err == nil {
		err = os.WriteFile(filepath.Join(f.dir, name), data, 0o600)
	}
	if err != nil {
		return fmt.Errorf("write %s for OCI runtime %s: %w", name, f.task.Runtime, err)
	}
	return nil
}

// arguments are those of a command of a runtime: its state lies in dir, and its errors go to log.
func arguments(t *driver.Task, dir, log string, command ...string) []string {
	return append([]string{t.RuntimePath, "--root", filepath.Join(dir, "state"), "--log", log, "--log-format", "json"}, command...)
}

var runtimeEnv = []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}

// command lets the runtime do something, with these standard files; nil is none.
func (f *foreign) command(files [3]*os.File, args ...string) error {
	none, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer none.Close()
	var fds []uintptr
	for _, file := range files {
		if file == nil {
			file = none
		}
		fds = append(fds, file.Fd())
	}
	log := filepath.Join(f.dir, "log"+strconv.FormatInt(f.files.Add(1), 10))
	defer os.Remove(log)
	child, err := f.reaper.Start(f.task.RuntimePath, arguments(f.task, f.dir, log, args...), &syscall.ProcAttr{Dir: f.bundle(), Env: runtimeEnv, Files: fds})
	if err != nil {
		return fmt.Errorf("start OCI runtime %s: %w", f.task.Runtime, err)
	}
	ws, err := child.Wait()
	if err != nil || ws.Exited() && ws.ExitStatus() == 0 {
		return err
	}
	said, _ := os.ReadFile(log) // where there is none, it said nothing
	return fmt.Errorf("OCI runtime %s: %s: %s", f.task.Runtime, args[0], lastError(said, ws))
}

// lastError is the last thing that a runtime's log has to say.
func lastError(log []byte, ws syscall.WaitStatus) string {
	text := "it gave no reason, and ended with exit code " + strconv.Itoa(ws.ExitStatus())
	for line := range bytes.Lines(log) {
		var entry struct{ Level, Msg string }
		switch {
		case json.Unmarshal(line, &entry) == nil && entry.Msg != "":
			text = entry.Msg
		case len(bytes.TrimSpace(line)) > 0:
			text = string(bytes.TrimSpace(line))
		}
	}
	return text
}

// Start implements supervisor.Body.
func (f *foreign) Start(files *supervisor.Files) (supervisor.Process, error) {
	defer f.reaper.Expect()()
	p, err := f.begin(files, "create", "--bundle", f.bundle())
	if err != nil {
		return nil, startError(f.task.Args[0], err)
	}
	f.first.Store(int64(p.PID()))
	if err := f.command([3]*os.File{}, "start", containerID); err != nil {
		if files.Console != nil {
			files.Console.Close()
			files.Console = nil
		}
		return nil, startError(f.task.Args[0], err)
	}
	return &firstProcess{p, f}, nil
}

// firstProcess notes its end.
type firstProcess struct {
	*supervisor.Child
	f *foreign
}

// Wait implements supervisor.Process.
func (p *firstProcess) Wait() (syscall.WaitStatus, error) {
	ws, err := p.Child.Wait()
	p.f.first.Store(0)
	return ws, err
}

// Exec implements supervisor.Body.
func (f *foreign) Exec(e *driver.ExecSpec, files *supervisor.Files) (supervisor.Process, error) {
	p, err := execProcess(f.task, f.spec, e)
	if err != nil {
		return nil, err
	}
	name := "process" + strconv.FormatInt(f.files.Add(1), 10)
	if err := f.write(name, p); err != nil {
		return nil, err
	}
	defer os.Remove(filepath.Join(f.dir, name))
	defer f.reaper.Expect()()
	child, err := f.begin(files, "exec", "--detach", "--process", filepath.Join(f.dir, name))
	if err != nil {
		return nil, startError(e.Args[0], err)
	}
	return child, nil
}

// begin starts a process by a command that leaves it behind. Its caller expects such.
func (f *foreign) begin(files *supervisor.Files, args ...string) (*supervisor.Child, error) {
	number := strconv.FormatInt(f.files.Add(1), 10)
	pidFile := filepath.Join(f.dir, "pid"+number)
	defer os.Remove(pidFile)
	args = append(args, "--pid-file", pidFile)
	standard := [3]*os.File{files.Stdin, files.Stdout, files.Stderr}
	var err error
	if files.TTY {
		err = f.commandWithTerminal(files, filepath.Join(f.dir, "c"+number), append(args, containerID))
	} else {
		err = f.command(standard, append(args, containerID)...)
	}
	if err != nil {
		return nil, err
	}
	text, err := os.ReadFile(pidFile)
	if err != nil {
		return nil, fmt.Errorf("OCI runtime %s: it does not say which process it started: %w", f.task.Runtime, err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil || pid < 2 {
		return nil, fmt.Errorf("OCI runtime %s: it started process %q", f.task.Runtime, text)
	}
	return f.reaper.Adopt(pid), nil
}

// commandWithTerminal lets the runtime start a process whose terminal it hands over at a socket.
func (f *foreign) commandWithTerminal(files *supervisor.Files, socket string, args []string) error {
	console, err := listenForConsole(socket)
	if err != nil {
		return err
	}
	defer console.Close()
	type accepted struct {
		file *os.File
		err  error
	}
	got := make(chan accepted, 1)
	go func() {
		file, err := acceptConsole(console)
		got <- accepted{file, err}
	}()
	// The name of the container comes last.
	last := len(args) - 1
	err = f.command([3]*os.File{}, append(slices.Clone(args[:last]), "--console-socket", socket, args[last])...)
	if err != nil {
		console.Close() // nothing will come
	}
	terminal := <-got
	if err = cmp.Or(err, terminal.err); err != nil {
		if terminal.file != nil {
			terminal.file.Close()
		}
		return err
	}
	files.Console = terminal.file
	if files.Rows > 0 && files.Cols > 0 {
		size := &unix.Winsize{Row: uint16(files.Rows), Col: uint16(files.Cols)}
		if err := unix.IoctlSetWinsize(int(files.Console.Fd()), unix.TIOCSWINSZ, size); err != nil {
			fmt.Fprintln(os.Stderr, "set the size of a terminal:", err)
		}
	}
	return nil
}

// consoleWait is how long a runtime may take to hand a terminal over.
const consoleWait = time.Minute

func listenForConsole(path string) (*net.UnixListener, error) {
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		return nil, fmt.Errorf("make a terminal: %w", err)
	}
	return l, l.SetDeadline(time.Now().Add(consoleWait))
}

func acceptConsole(l *net.UnixListener) (*os.File, error) {
	c, err := l.AcceptUnix()
	if err != nil {
		return nil, fmt.Errorf("receive the terminal: %w", err)
	}
	defer c.Close()
	socket, err := c.File()
	if err != nil {
		return nil, fmt.Errorf("receive the terminal: %w", err)
	}
	defer socket.Close()
	if err := unix.SetNonblock(int(socket.Fd()), false); err != nil {
		return nil, fmt.Errorf("receive the terminal: %w", err)
	}
	return receiveConsole(socket)
}

// Signal implements supervisor.Signaller.
func (f *foreign) Signal(signal int) error {
	err := f.command([3]*os.File{}, "kill", containerID, strconv.Itoa(signal))
	if err != nil && f.first.Load() == 0 {
		return nil
	}
	return err
}

// sharesPIDs reports whether the end of the first process is not that of all.
func (f *foreign) sharesPIDs() bool {
	return !slices.ContainsFunc(f.spec.Linux.Namespaces, func(n specs.LinuxNamespace) bool { return n.Type == specs.PIDNamespace && n.Path == "" })
}

// Kill implements supervisor.Body.
func (f *foreign) Kill() error {
	if f.sharesPIDs() {
		return cgroup.KillAll(f.group)
	}
	if f.first.Load() == 0 {
		return nil // and with it all others
	}
	err := f.command([3]*os.File{}, "kill", containerID, "KILL")
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.paused { // a frozen one cannot die
		if rerr := f.command([3]*os.File{}, "resume", containerID); rerr == nil {
			f.paused = false
		}
	}
	if err != nil && f.first.Load() != 0 {
		return err
	}
	return nil
}

// Pause implements supervisor.Body.
func (f *foreign) Pause() error { return f.freeze("pause", true) }

// Resume implements supervisor.Body.
func (f *foreign) Resume() error { return f.freeze("resume", false) }

func (f *foreign) freeze(command string, paused bool) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := f.command([3]*os.File{}, command, containerID); err != nil {
		return err
	}
	f.paused = paused
	return nil
}

// Update implements supervisor.Body.
func (f *foreign) Update(t *driver.Task) error {
	r, err := boundsOf(t, f.spec)
	if err != nil {
		return err
	}
	name := "bounds" + strconv.FormatInt(f.files.Add(1), 10)
	told := *r
	told.Devices = nil // they stay as they are
	if err := f.write(name, &told); err != nil {
		return err
	}
	defer os.Remove(filepath.Join(f.dir, name))
	if err := f.command([3]*os.File{}, "update", "--resources", filepath.Join(f.dir, name), containerID); err != nil {
		return fault.New(fault.Conflict, "%w", err)
	}
	f.spec.Linux.Resources = r
	return nil
}

// Destroy implements supervisor.Body.
func (f *foreign) Destroy() error {
	err := f.command([3]*os.File{}, "delete", "--force", containerID)
	if kerr := cgroup.KillAll(f.group); kerr != nil {
		return kerr
	}
	if derr := f.group.Destroy(); derr != nil { // the runtime has done it, unless it failed
		return derr
	}
	return err
}

// buryForeign frees what a container of another runtime holds whose supervisor did not live to do so.
func buryForeign(t *driver.Task, dir string) error {
	log := filepath.Join(dir, "log")
	cmd := exec.Command(t.RuntimePath)
	cmd.Args, cmd.Env = arguments(t, dir, log, "delete", "--force", containerID), runtimeEnv
	err := cmd.Run() // it fails for one that was never made, too: what is left in the cgroup tells
	m, cerr := cgroupOf(t)
	if cerr != nil {
		return errors.Join(err, cerr)
	}
	if pids, merr := cgroup.Members(m); merr != nil || len(pids) > 0 {
		err = errors.Join(err, merr, cgroup.KillAll(m))
	} else {
		err = nil
	}
	return errors.Join(err, m.Destroy())
}
