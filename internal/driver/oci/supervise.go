package oci

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime/debug"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/fxamacker/cbor/v2"
	_ "github.com/opencontainers/cgroups/devices" // device rules work only with it linked in
	"github.com/opencontainers/runc/libcontainer"
	_ "github.com/opencontainers/runc/libcontainer/nsenter" // the re-executed init enters namespaces before Go starts
	"github.com/opencontainers/runc/libcontainer/specconv"
	"github.com/opencontainers/runc/libcontainer/utils"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/tutti-run/tutti/internal/driver"
	"github.com/tutti-run/tutti/internal/driver/tasklog"
	"github.com/tutti-run/tutti/internal/fault"
)

// Reexec handles the roles in which this program is started by itself: the first steps inside a
// container, its reaping init process, and the supervisor of a run. It must be called first in
// main; when it returns true, the program is to end.
func Reexec(args []string) bool {
	if len(args) < 2 {
		return false
	}
	switch args[1] {
	case "init":
		if len(args) == 2 {
			awaitFilter()
			libcontainer.Init() // does not return
		}
	case reapArg:
		os.Exit(reap(args[3:]))
	case compileArg:
		os.Exit(beCompiler())
	case superviseArg:
		os.Exit(supervise(args[2], args[3], args[4]))
	}
	return false
}

// reap is PID 1 of a container that asked for one: it runs the task, passes signals on to it and
// collects what others leave behind.
func reap(args []string) int {
	cmd := exec.Command(args[0], args[1:]...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	signals := make(chan os.Signal, 16)
	signal.Notify(signals)
	if err := cmd.Start(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 127
	}
	for s := range signals {
		if s != syscall.SIGCHLD {
			if s != syscall.SIGURG { // the Go runtime's own
				syscall.Kill(cmd.Process.Pid, s.(syscall.Signal))
			}
			continue
		}
		for {
			var ws syscall.WaitStatus
			pid, err := syscall.Wait4(-1, &ws, syscall.WNOHANG, nil)
			if err != nil || pid <= 0 {
				break
			}
			if pid == cmd.Process.Pid {
				return exitCode(ws)
			}
		}
	}
	return 1
}

func exitCode(ws syscall.WaitStatus) int {
	if ws.Signaled() {
		return 128 + int(ws.Signal())
	}
	return ws.ExitStatus()
}

type supervisor struct {
	dir       string
	reaper    string // the file of the program that reaps in containers which ask for that
	task      driver.Task
	log       *tasklog.Writer
	container *libcontainer.Container
	hub       *hub
	console   *os.File // the task's terminal, if it has one
	stdin     *os.File // the write end of the task's input, if it has one
	done      chan struct{}
	listener  net.Listener
	served    chan struct{} // closed when no more connections are taken
	answering sync.WaitGroup

	freezing sync.Mutex // one pause or resume at a time

	mu     sync.Mutex
	status driver.Status
}

// supervise is the whole life of a supervisor. File descriptor 3 tells the agent when the task
// has started, or why not.
func supervise(dir, socket, reaper string) int {

	signal.Ignore(syscall.SIGHUP, syscall.SIGINT, syscall.SIGTERM, syscall.SIGPIPE)
	ready := os.NewFile(3, "ready")
	unix.CloseOnExec(3)
	s := &supervisor{dir: dir, reaper: reaper, hub: newHub(), done: make(chan struct{}), served: make(chan struct{})}
	if err := s.start(socket); err != nil {
		s.set(func(st *driver.Status) {
			st.State, st.Error, st.Finished = driver.Exited, err.Error(), time.Now()
			st.ExitCode = 126
			if fault.Is(err, fault.NotFound) {
				st.ExitCode = 127
			}
		})
		if s.container != nil {
			s.container.Destroy() // what could not be started leaves little
			os.RemoveAll(socket + containerSuffix)
		}
		fmt.Fprintf(ready, "%s\n%s", fault.KindOf(err), err)
		ready.Close()
		return 1
	}
	ready.Write([]byte("ok"))
	ready.Close()
	<-s.done
	os.RemoveAll(socket + containerSuffix)
	s.sayGoodbye()
	os.Remove(socket)
	return 0
}

// lastWords is how long clients have to take what is still to be said to them.
const lastWords = 2 * time.Second

// sayGoodbye lets everybody who is connected see the end, or the last of the output.
func (s *supervisor) sayGoodbye() {
	s.listener.Close()
	<-s.served
	said := make(chan struct{})
	go func() { s.answering.Wait(); close(said) }()
	select {
	case <-said:
	case <-time.After(lastWords):
	}
}

func (s *supervisor) set(change func(*driver.Status)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	change(&s.status)
	if err := writeJSON(filepath.Join(s.dir, statusFile), s.status); err != nil {
		fmt.Fprintln(os.Stderr, "record status:", err)
	}
}

func (s *supervisor) start(socket string) error {
	if err := readJSON(filepath.Join(s.dir, taskFile), &s.task); err != nil {
		return fmt.Errorf("read what to run: %w", err)
	}
	s.status = driver.Status{ID: s.task.ID, State: driver.Created}
	var err error
	if s.log, err = tasklog.Create(s.dir); err != nil {
		return err
	}
	sp, err := spec(&s.task, s.reaper)
	if err != nil {
		return err
	}
	config, err := specconv.CreateLibcontainerConfig(&specconv.CreateOpts{CgroupName: s.task.ID, NoNewKeyring: false, Spec: sp})
	if err != nil {
		return fault.New(fault.Invalid, "configure the container: %w", err)
	}
	profile := config.Seccomp
	var f *filter
	if profile != nil {
		if f, err = filterFor(filepath.Dir(socket), profile); err != nil {
			return err
		}
	}
	if f != nil {
		config.Seccomp = nil // it is loaded by ourselves
	}
	root := socket + containerSuffix // the container ends with the host; what describes it, too
	s.container, err = libcontainer.Create(root, "c", config)
	if err != nil {
		return fmt.Errorf("create the container: %w", err)
	}
	os.Remove(socket)
	if s.listener, err = net.Listen("unix", socket); err != nil {
		return fmt.Errorf("listen for the agent: %w", err)
	}
	p := s.process(sp, &s.task)
	outputs, after, err := s.streams(p, s.task.TTY, s.task.Stdin)
	if err != nil {
		return err
	}
	began := time.Now()
	err = s.run(p, f)
	after()
	if err != nil {
		return startError(s.task.Args[0], err)
	}
	config.Seccomp = profile // for what is executed later
	oom, err := s.container.NotifyOOM()
	if err != nil {
		oom = nil // not every kernel tells; the exit code still does
	}
	pid, err := p.Pid()
	if err != nil {
		return fmt.Errorf("find the task's process: %w", err)
	}
	s.set(func(st *driver.Status) { st.State, st.PID, st.Started = driver.Running, pid, began })
	go s.serve(s.listener)
	go s.watch(p, outputs, oom)
	return nil
}

// run starts the container's first process, with the filter in force.
func (s *supervisor) run(p *libcontainer.Process, f *filter) error {
	if f == nil {
		return s.container.Run(p)
	}
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("make a socket for the seccomp filter: %w", err)
	}
	ours, theirs := os.NewFile(uintptr(fds[0]), "filter"), os.NewFile(uintptr(fds[1]), "filter")
	defer ours.Close()
	p.ExtraFiles = []*os.File{theirs}
	err = s.container.Start(p)
	theirs.Close()
	if err != nil {
		return err
	}
	if err := f.send(ours); err != nil {
		s.container.Signal(unix.SIGKILL) // that it is gone is no error
		return err
	}
	return s.container.Exec()
}

// startError says in a sentence what kept the first instruction from running.
func startError(name string, err error) error {
	text := err.Error()
	if i := strings.LastIndex(text, "exec: "); i >= 0 {
		text = text[i:]
	}
	switch {
	case strings.Contains(text, "executable file not found"), strings.Contains(text, "no such file or directory") && strings.Contains(text, "exec"):
		return fault.New(fault.NotFound, "executable %q was not found in the image", name)
	case strings.Contains(text, "permission denied") && strings.Contains(text, "exec"):
		return fault.New(fault.Invalid, "%q in the image may not be executed", name)
	}
	return fmt.Errorf("start the container: %w", err)
}

func (s *supervisor) process(sp *specs.Spec, t *driver.Task) *libcontainer.Process {
	p := &libcontainer.Process{
		Args: sp.Process.Args, Env: sp.Process.Env, Cwd: sp.Process.Cwd, Init: true, LogLevel: "3",
		UID: int(sp.Process.User.UID), GID: int(sp.Process.User.GID),
		NoNewPrivileges: &sp.Process.NoNewPrivileges,
	}
	for _, g := range sp.Process.User.AdditionalGids {
		p.AdditionalGroups = append(p.AdditionalGroups, int(g))
	}
	return p
}

// streams connects a task's process. outputs are copied by watch; after closes what only the
// process needs.
func (s *supervisor) streams(p *libcontainer.Process, tty, stdin bool) (outputs map[string]*os.File, after func(), err error) {
	if tty {
		parent, child, err := utils.NewSockPair("console")
		if err != nil {
			return nil, nil, fmt.Errorf("make a terminal: %w", err)
		}
		p.ConsoleSocket = child
		outputs = map[string]*os.File{}
		return outputs, func() {
			child.Close()
			if master, err := receiveConsole(parent); err == nil {
				s.console = master
				outputs["stdout"] = master
			}
			parent.Close()
		}, nil
	}
	outR, outW, err := os.Pipe()
	if err != nil {
		return nil, nil, err
	}
	errR, errW, err := os.Pipe()
	if err != nil {
		return nil, nil, err
	}
	var inR *os.File
	if stdin {
		if inR, s.stdin, err = os.Pipe(); err != nil {
			return nil, nil, err
		}
		p.Stdin = inR
	}
	p.Stdout, p.Stderr = outW, errW
	return map[string]*os.File{"stdout": outR, "stderr": errR}, func() {
		outW.Close()
		errW.Close()
		if inR != nil {
			inR.Close()
		}
	}, nil
}

func receiveConsole(socket *os.File) (*os.File, error) {
	oob := make([]byte, unix.CmsgSpace(4))
	name := make([]byte, 4096)
	n, oobn, _, _, err := unix.Recvmsg(int(socket.Fd()), name, oob, unix.MSG_CMSG_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("receive the terminal: %w", err)
	}
	messages, err := unix.ParseSocketControlMessage(oob[:oobn])
	if err != nil || len(messages) != 1 {
		return nil, errors.New("receive the terminal: nothing came")
	}
	fds, err := unix.ParseUnixRights(&messages[0])
	if err != nil || len(fds) != 1 {
		return nil, errors.New("receive the terminal: no descriptor came")
	}
	if err := unix.SetNonblock(fds[0], true); err != nil {
		return nil, fmt.Errorf("receive the terminal: %w", err)
	}
	return os.NewFile(uintptr(fds[0]), string(name[:n])), nil
}

// watch collects the task's output and end, and ends the supervisor with it.
func (s *supervisor) watch(p *libcontainer.Process, outputs map[string]*os.File, oom <-chan struct{}) {
	var copying sync.WaitGroup
	for stream, f := range outputs {
		copying.Go(func() {
			if err := s.log.Copy(stream, f, s.hub.writer(stream)); err != nil {
				fmt.Fprintln(os.Stderr, "write log:", err)
			}
		})
	}
	ps, err := p.Wait()
	code := 255
	if ps != nil {
		code = exitCode(ps.Sys().(syscall.WaitStatus))
	}
	killed := false
	if oom != nil && code == 137 {
		select {
		case _, ok := <-oom:
			killed = ok
		case <-time.After(20 * time.Millisecond):
		}
	}
	s.container.Signal(unix.SIGKILL) // nothing of the tree stays; an empty one is no error
	finished := time.Now()
	drained := make(chan struct{})
	go func() { copying.Wait(); close(drained) }()
	select {
	case <-drained:
	case <-time.After(5 * time.Second): // a descriptor that left the container keeps a pipe open
	}
	if err := s.container.Destroy(); err != nil {
		fmt.Fprintln(os.Stderr, "remove the container:", err)
	}
	s.set(func(st *driver.Status) {
		st.State, st.PID, st.ExitCode, st.Finished, st.OOM = driver.Exited, 0, code, finished, killed
		var exit *exec.ExitError
		if err != nil && ps == nil && !errors.As(err, &exit) {
			st.Error = err.Error()
		}
	})
	s.log.Close()
	s.hub.close()
	close(s.done)
}

// serve answers the agent.
func (s *supervisor) serve(l net.Listener) {
	defer close(s.served)
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		s.answering.Go(func() {
			defer c.Close()
			s.answer(c)
		})
	}
}

func (s *supervisor) answer(c net.Conn) {
	dec, enc := cbor.NewDecoder(c), &sender{enc: cbor.NewEncoder(c)}
	var r request
	if dec.Decode(&r) != nil {
		return
	}
	var err error
	o := output{Done: true}
	switch r.Op {
	case "wait":
		<-s.done
	case "signal":
		s.mu.Lock()
		pid, state := s.status.PID, s.status.State
		s.mu.Unlock()
		if state != driver.Exited {
			err = signalError(unix.Kill(pid, unix.Signal(r.Signal)), r.Signal)
		}
	case "kill":
		if err = s.container.Signal(unix.SIGKILL); err == nil || errors.Is(err, libcontainer.ErrNotRunning) {
			s.container.Resume() // a frozen one cannot die; one that is not frozen is no error
			err = nil
			<-s.done
		}
	case "pause":
		err = s.freeze(driver.Running, driver.Paused, s.container.Pause)
	case "resume":
		err = s.freeze(driver.Paused, driver.Running, s.container.Resume)
	case "stats":
		o.Stats, err = s.stats()
	case "exec":
		o.Exit, err = s.exec(r.Exec, r.Stdin, dec, enc)
	case "attach":
		s.attach(dec, enc)
	default:
		err = fault.New(fault.Unsupported, "the supervisor does not know %q; it is of an older version", r.Op)
	}
	if err != nil {
		o.Error, o.Kind = err.Error(), fault.KindOf(err).String()
	}
	enc.send(o)
}

// signalError leaves out that the process has just ended, which is no error to who signals.
func signalError(err error, signal int) error {
	switch {
	case errors.Is(err, unix.ESRCH):
		return nil
	case errors.Is(err, unix.EINVAL):
		return fault.New(fault.Invalid, "there is no signal %d", signal)
	}
	return err
}

// freeze pauses or resumes a task that is in the state for it.
func (s *supervisor) freeze(from, to driver.State, change func() error) error {
	s.freezing.Lock()
	defer s.freezing.Unlock()
	s.mu.Lock()
	now := s.status.State
	s.mu.Unlock()
	if now != from {
		return fault.New(fault.Conflict, "task %s is %s", s.task.ID, now)
	}
	if err := change(); err != nil {
		return fmt.Errorf("turn task %s from %s to %s: %w", s.task.ID, from, to, err)
	}
	s.set(func(st *driver.Status) {
		if st.State == from { // it may have ended meanwhile
			st.State = to
		}
	})
	return nil
}

// sender lets several goroutines answer on one connection.
type sender struct {
	mu  sync.Mutex
	enc *cbor.Encoder
}

func (s *sender) send(o output) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.enc.Encode(o)
}

func (s *supervisor) stats() (*driver.Stats, error) {
	st, err := s.container.Stats()
	if err != nil {
		return nil, fmt.Errorf("read usage: %w", err)
	}
	cg := st.CgroupStats
	out := &driver.Stats{
		Time: time.Now(), CPUNanoseconds: cg.CpuStats.CpuUsage.TotalUsage,
		MemoryBytes: cg.MemoryStats.Usage.Usage, MemoryLimitBytes: cg.MemoryStats.Usage.Limit, Pids: cg.PidsStats.Current,
	}
	for _, key := range []string{"total_inactive_file", "inactive_file"} {
		if cache, ok := cg.MemoryStats.Stats[key]; ok && cache < out.MemoryBytes {
			out.MemoryBytes -= cache
			break
		}
	}
	for _, e := range cg.BlkioStats.IoServiceBytesRecursive {
		switch strings.ToLower(e.Op) {
		case "read":
			out.ReadBytes += e.Value
		case "write":
			out.WriteBytes += e.Value
		}
	}
	return out, nil
}

// exec runs one more process in the container and passes its streams on. It dies with its client.
func (s *supervisor) exec(e *driver.ExecSpec, stdin bool, dec *cbor.Decoder, enc *sender) (int, error) {
	s.mu.Lock()
	state := s.status.State
	s.mu.Unlock()
	if state != driver.Running { // in a frozen cgroup, a new process would never come to life
		return 0, fault.New(fault.Conflict, "task %s is %s", s.task.ID, state)
	}
	u := &specs.User{}
	var err error
	if e.User != "" {
		if u, err = lookupUser(s.task.Rootfs, e.User, nil); err != nil {
			return 0, err
		}
	} else if u, err = lookupUser(s.task.Rootfs, s.task.User, s.task.Groups); err != nil {
		return 0, err
	}
	cwd := e.WorkingDir
	if cwd == "" {
		cwd = s.task.WorkingDir
	}
	if cwd == "" {
		cwd = "/"
	}
	p := &libcontainer.Process{
		Args: e.Args, Env: append(append([]string{}, s.task.Env...), e.Env...), Cwd: cwd, LogLevel: "3",
		UID: int(u.UID), GID: int(u.GID), ConsoleWidth: uint16(e.Cols), ConsoleHeight: uint16(e.Rows),
	}
	for _, g := range u.AdditionalGids {
		p.AdditionalGroups = append(p.AdditionalGroups, int(g))
	}
	if e.TTY {
		p.Env = append(p.Env, "TERM=xterm")
	}
	child := &supervisor{}
	outputs, after, err := child.streams(p, e.TTY, stdin && !e.TTY)
	if err != nil {
		return 0, err
	}
	err = s.container.Run(p)
	after()
	var pid int
	if err == nil {
		pid, err = p.Pid()
	}
	if err != nil {
		for _, f := range outputs {
			f.Close()
		}
		if child.stdin != nil {
			child.stdin.Close()
		}
		return 0, startError(e.Args[0], err)
	}
	in := child.stdin
	if child.console != nil {
		in = child.console
	}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	go func() {
		takeInput(dec, in, child.console != nil, pid, child.console)
		if ctx.Err() == nil {
			unix.Kill(pid, unix.SIGKILL)
		}
	}()
	var copying sync.WaitGroup
	for stream, f := range outputs {
		copying.Go(func() {
			defer f.Close()
			copyOut(f, func(b []byte) error {
				if stream == "stderr" {
					return enc.send(output{Stderr: b})
				}
				return enc.send(output{Stdout: b})
			})
		})
	}
	ps, err := p.Wait()
	if child.stdin != nil {
		child.stdin.Close()
	}
	waited := make(chan struct{})
	go func() { copying.Wait(); close(waited) }()
	select {
	case <-waited:
	case <-time.After(2 * time.Second): // a child of it holds the output open
	}
	if ps == nil {
		return 0, fmt.Errorf("wait for the process: %w", err)
	}
	return exitCode(ps.Sys().(syscall.WaitStatus)), nil
}

func copyOut(r io.Reader, send func([]byte) error) {
	buf := make([]byte, 32<<10)
	for {
		n, err := r.Read(buf)
		if n > 0 && send(buf[:n]) != nil {
			return
		}
		if err != nil {
			return
		}
	}
}

// takeInput passes a client's input on until the client goes away.
func takeInput(dec *cbor.Decoder, in *os.File, keepOpen bool, pid int, console *os.File) {
	for {
		var m input
		if dec.Decode(&m) != nil {
			return
		}
		switch {
		case m.Closed:
			if in != nil && !keepOpen {
				in.Close()
			} else if in != nil {
				in.Write([]byte{4}) // end of input, as typed at a terminal
			}
		case m.Resize != nil:
			if console != nil {
				unix.IoctlSetWinsize(int(console.Fd()), unix.TIOCSWINSZ, &unix.Winsize{Row: uint16(m.Resize.Rows), Col: uint16(m.Resize.Cols)})
			}
		case m.Signal != 0:
			unix.Kill(pid, unix.Signal(m.Signal))
		case in != nil:
			in.Write(m.Data) // a process that reads no more is no reason to end
		}
	}
}

func (s *supervisor) attach(dec *cbor.Decoder, enc *sender) {
	in := s.stdin
	if s.console != nil {
		in = s.console
	}
	s.mu.Lock()
	pid := s.status.PID
	s.mu.Unlock()
	gone := make(chan struct{})
	go func() {
		defer close(gone)
		takeInput(dec, in, s.console != nil, pid, s.console)
	}()
	sub := s.hub.subscribe()
	defer s.hub.unsubscribe(sub)
	for {
		select {
		case <-gone:
			return
		case o, ok := <-sub:
			if !ok || enc.send(o) != nil {
				return
			}
		}
	}
}

// hub passes a task's output on to everybody attached. One that does not keep up is cut off: it
// must not hold up the task.
type hub struct {
	mu     sync.Mutex
	subs   map[chan output]struct{}
	closed bool
}

func newHub() *hub { return &hub{subs: map[chan output]struct{}{}} }

func (h *hub) subscribe() chan output {
	h.mu.Lock()
	defer h.mu.Unlock()
	c := make(chan output, 256)
	if h.closed {
		close(c)
		return c
	}
	h.subs[c] = struct{}{}
	return c
}

func (h *hub) unsubscribe(c chan output) {
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.subs, c)
}

func (h *hub) close() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.closed = true
	for c := range h.subs {
		close(c)
		delete(h.subs, c)
	}
}

func (h *hub) writer(stream string) io.Writer { return hubWriter{h, stream} }

type hubWriter struct {
	hub    *hub
	stream string
}

func (w hubWriter) Write(p []byte) (int, error) {
	w.hub.mu.Lock()
	defer w.hub.mu.Unlock()
	if len(w.hub.subs) == 0 {
		return len(p), nil
	}
	o := output{Stdout: append([]byte(nil), p...)}
	if w.stream == "stderr" {
		o = output{Stderr: o.Stdout}
	}
	for c := range w.hub.subs {
		select {
		case c <- o:
		default:
			close(c)
			delete(w.hub.subs, c)
		}
	}
	return len(p), nil
}

// removeContainer frees what a container holds whose supervisor did not live to do so.
func removeContainer(root string) {
	defer os.RemoveAll(root)
	c, err := libcontainer.Load(root, "c")
	if err != nil {
		return // never created, or removed already
	}
	c.Signal(unix.SIGKILL) // its process 1, and with it all the others; that it is gone is no error
	for range 50 {         // they need a moment
		if err = c.Destroy(); err == nil {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	fmt.Fprintln(os.Stderr, "remove the container:", err)
}
