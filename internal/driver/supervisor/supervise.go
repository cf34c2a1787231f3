package supervisor

import (
	"errors"
	"fmt"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/fxamacker/cbor/v2"
	"golang.org/x/sys/unix"

	"github.com/tutti-run/tutti/internal/driver"
	"github.com/tutti-run/tutti/internal/driver/launch"
	"github.com/tutti-run/tutti/internal/driver/tasklog"
	"github.com/tutti-run/tutti/internal/fault"
	"github.com/tutti-run/tutti/internal/model"
)

func exitCode(ws syscall.WaitStatus) int {
	if ws.Signaled() {
		return 128 + int(ws.Signal())
	}
	return ws.ExitStatus()
}

type supervisor struct {
	dir       string
	task      driver.Task
	log       *tasklog.Writer
	body      Body
	hub       *hub
	console   *os.File          // the task's terminal, if it has one
	stdin     *os.File          // the write end of the task's input, if it has one
	unkept    map[string][]byte // of its output, by stream: what was read before there was a supervisor, and is in no file yet
	done      chan struct{}
	listener  net.Listener
	served    chan struct{} // closed when no more connections are taken
	answering sync.WaitGroup

	// freezing is held for a pause or resume, and for reading while a process is started in the task: one
	// that is frozen on its way in would never get there, and hold up who wants to resume the task.
	freezing  sync.RWMutex
	suspended atomic.Bool        // the node's lease ended: what runs is frozen, whatever the status says; see suspend
	goneOn    chan time.Duration // until when a task may run that is suspended no more
	lease     *os.File           // of a leased task
	lapsed    atomic.Bool

	bounding sync.Mutex // held while the task is bounded anew

	mu     sync.Mutex
	status driver.Status
}

// Supervise is the whole life of a supervisor; args are those that follow its role. File descriptor
// 3 tells the agent when the task has started, or why not, unless that was told when the task was begun. It returns the exit code.
func Supervise(args []string, newBody NewBody, begun launch.Begun) int {
	runtime.LockOSThread() // see OrphanSignal
	dir, socket, reaper := args[0], args[1], args[2]
	// Taken and left alone rather than ignored, which the task would inherit.
	signal.Notify(make(chan os.Signal, 1), syscall.SIGHUP, syscall.SIGINT, syscall.SIGTERM, syscall.SIGPIPE)
	heedSignals()
	ready := os.Stderr // where it is too late to tell the agent
	if !begun.Watched {
		ready = os.NewFile(3, "ready")
		unix.CloseOnExec(3)
		unix.CloseOnExec(4) // the lock, which must end with this process
	}
	s := &supervisor{dir: dir, hub: newHub(), unkept: map[string][]byte{}, done: make(chan struct{}), served: make(chan struct{}), goneOn: make(chan time.Duration, 1)}
	if err := s.start(socket, reaper, newBody, begun); err != nil {
		if begun.PID > 0 {
			unix.Kill(begun.PID, unix.SIGKILL)
			unix.Wait4(begun.PID, nil, 0, nil)
		}
		s.set(func(st *driver.Status) { notStarted(st, err) })
		if s.body != nil {
			s.body.Destroy() // what could not be started leaves little
		}
		os.RemoveAll(socket + bodySuffix)
		fmt.Fprintf(ready, "%s\n%s", fault.KindOf(err), err)
		ready.Close()
		return 1
	}
	if !begun.Watched {
		ready.Write([]byte("ok"))
		ready.Close()
	}
	<-s.done
	os.RemoveAll(socket + bodySuffix)
	s.sayGoodbye()
	os.Remove(socket)
	return 0
}

// notStarted is the status of a task that could not be started.
func notStarted(st *driver.Status, why error) {
	st.State, st.PID, st.Error, st.Finished = driver.Exited, 0, why.Error(), time.Now()
	st.ExitCode = 126
	if fault.Is(why, fault.NotFound) {
		st.ExitCode = 127
	}
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

// state is how the task is now.
func (s *supervisor) state() driver.State {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.status.State
}

func (s *supervisor) start(socket, reaper string, newBody NewBody, begun launch.Begun) error {
	if err := readJSON(filepath.Join(s.dir, taskFile), &s.task); err != nil {
		return fmt.Errorf("read what to run: %w", err)
	}
	s.status = driver.Status{ID: s.task.ID, State: driver.Created}
	var err error
	if s.log, err = tasklog.Create(s.dir, s.task.Log); err != nil {
		return err
	}
	if s.body, err = newBody(&s.task, socket+bodySuffix, reaper); err != nil {
		return err
	}
	if begun.Watched {
		s.listener, err = net.FileListener(os.NewFile(uintptr(begun.Listener), "listener"))
	} else {
		os.Remove(socket)
		s.listener, err = net.Listen("unix", socket)
	}
	if err != nil {
		return fmt.Errorf("listen for the agent: %w", err)
	}
	if begun.PID > 0 {
		return s.adopt(begun)
	}
	p, err := openPipes(s.task.TTY, s.task.Stdin, true)
	if err != nil {
		return err
	}
	if s.task.Leased {
		if err := s.guard(filepath.Dir(socket)); err != nil {
			return err
		}
	}
	began := time.Now()
	process, err := s.body.Start(&p.files)
	p.started()
	if err != nil {
		return err
	}
	s.stdin, s.console = p.stdin, p.files.Console
	s.run(process, p.outputs, began)
	return nil
}

// adopt takes over what was begun before.
func (s *supervisor) adopt(begun launch.Begun) error {
	body, ok := s.body.(Adopter)
	if !ok {
		return fmt.Errorf("what was begun is of a kind that this program does not know: %T", s.body)
	}
	outputs := map[string]*os.File{}
	for n, stream := range []string{"stdout", "stderr"} {
		o := begun.Outputs[n]
		var err error
		if o.FD < 0 { // it was closed
			outputs[stream], err = os.Open(os.DevNull)
		} else if err = unix.SetNonblock(o.FD, true); err == nil { // otherwise it would take a thread
			outputs[stream] = os.NewFile(uintptr(o.FD), stream)
		}
		if err != nil {
			return fmt.Errorf("take %s over: %w", stream, err)
		}
		s.unkept[stream] = o.Unkept
	}
	if begun.Watched {
		s.hub = resumeHub(begun.At, begun.Early)
	}
	s.run(body.Adopt(begun.PID, begun.Ended), outputs, begun.At)
	for _, fd := range begun.Asking {
		s.answerFile(fd, nil)
	}
	for _, fd := range begun.Waiting {
		s.answerFile(fd, &request{Op: "wait"})
	}
	return nil
}

// answerFile answers on a connection that was made before there was a supervisor.
func (s *supervisor) answerFile(fd int, asked *request) {
	f := os.NewFile(uintptr(fd), "connection")
	defer f.Close()
	c, err := net.FileConn(f)
	if err != nil { // who has asked sees that nobody answers, and asks again
		fmt.Fprintln(os.Stderr, "take a connection over:", err)
		return
	}
	s.answering.Go(func() { s.answer(c, asked) })
}

// run goes on with a first process that runs.
func (s *supervisor) run(process Process, outputs map[string]*os.File, began time.Time) {
	s.set(func(st *driver.Status) { st.State, st.PID, st.Started = driver.Running, process.PID(), began })
	go s.serve(s.listener)
	go s.watch(process, outputs)
}

// watch collects the task's output and end, and ends the supervisor with it.
func (s *supervisor) watch(p Process, outputs map[string]*os.File) {
	var copying sync.WaitGroup
	for stream, f := range outputs {
		unkept := s.unkept[stream]
		copying.Go(func() {
			if err := s.log.Copy(stream, unkept, f, s.hub.writer(stream)); err != nil {
				fmt.Fprintln(os.Stderr, "write log:", err)
			}
		})
	}
	ws, err := p.Wait()
	code := 255
	if err == nil {
		code = exitCode(ws)
	}
	oom := code != 0 && s.body.OutOfMemory()
	if err := s.body.Kill(); err != nil { // nothing of the tree stays
		fmt.Fprintln(os.Stderr, "kill what is left of the task:", err)
	}
	finished := time.Now()
	drained := make(chan struct{})
	go func() { copying.Wait(); close(drained) }()
	select {
	case <-drained:
	case <-time.After(5 * time.Second): // a descriptor that left the task keeps a pipe open
	}
	if err := s.body.Destroy(); err != nil {
		fmt.Fprintln(os.Stderr, "free what the task held:", err)
	}
	s.set(func(st *driver.Status) {
		st.State, st.PID, st.ExitCode, st.Finished, st.OOM = driver.Exited, 0, code, finished, oom
		if err != nil {
			st.Error = err.Error()
		}
		if s.lapsed.Load() {
			st.Error = driver.Lapsed
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
		s.answering.Go(func() { s.answer(c, nil) })
	}
}

// answer answers a request; nil is one that is still to be read.
func (s *supervisor) answer(c net.Conn, r *request) {
	defer c.Close()
	dec, enc := cbor.NewDecoder(c), &sender{enc: cbor.NewEncoder(c)}
	if r == nil {
		r = &request{}
		if dec.Decode(r) != nil {
			return
		}
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
		if err = s.errSuspended(); err == nil && state != driver.Exited {
			err = s.signal(pid, r.Signal)
		}
	case "kill":
		if err = s.kill(); err == nil {
			<-s.done
		}
	case "pause":
		err = s.freeze(driver.Running, driver.Paused, s.body.Pause)
	case "resume":
		err = s.freeze(driver.Paused, driver.Running, s.body.Resume)
	case "go on":
		err = s.goOn()
	case "update":
		err = s.update(r.Bounds)
	case "stats":
		o.Stats, err = s.body.Stats()
	case "processes":
		o.Processes, err = processesOf(s.body)
	case "exec":
		o.Exit, err = s.exec(r.Exec, r.Stdin, dec, enc)
	case "attach":
		s.attach(r.FromStart, dec, enc)
	default:
		err = fault.New(fault.Unsupported, "the supervisor does not know %q; it is of an older version", r.Op)
	}
	if err != nil {
		o.Error, o.Kind = err.Error(), fault.KindOf(err).String()
	}
	enc.send(o)
}

// update bounds the task anew, and remembers that.
func (s *supervisor) update(b *model.Bounds) error {
	if b == nil {
		return fault.New(fault.Invalid, "nothing was said of how to bound the task")
	}
	s.bounding.Lock()
	defer s.bounding.Unlock()
	if s.state() == driver.Exited {
		return fault.New(fault.Unavailable, "task %s is not running", s.task.ID)
	}
	next := s.task
	next.Limit, next.Reserve, next.Tuning = b.Limit, b.Reserve, b.Tuning
	if err := s.body.Update(&next); err != nil {
		return err
	}
	s.task.Limit, s.task.Reserve, s.task.Tuning = b.Limit, b.Reserve, b.Tuning
	return writeJSON(filepath.Join(s.dir, taskFile), s.task)
}

// signal sends a signal to the task's first process.
func (s *supervisor) signal(pid, signal int) error {
	if b, ok := s.body.(Signaller); ok && signal > 0 && signal <= lastSignal {
		return b.Signal(signal)
	}
	return signalError(unix.Kill(pid, unix.Signal(signal)), signal)
}

// lastSignal is the highest number of a signal.
const lastSignal = 64

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
	if err := s.errSuspended(); err != nil {
		return err
	}
	if now := s.state(); now != from {
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
