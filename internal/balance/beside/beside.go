// Package beside runs the processes of a node that go on while the agent is away: this same program,
// re-executed in a role. The agent writes to a file what such a process should do, tells it, and waits
// until it has taken it over; one that has ended is started again, and one that does not hear is replaced.
package beside

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Process keeps one process of a role running on this node. Its directory has its lock, its socket and
// its errors, and what its owner writes there.
type Process struct {
	Dir  string
	Role string   // the program's first argument; Dir is the second
	Args []string // the others
	Env  []string
	Log  *slog.Logger
}

// Reexec reports whether the program was started in a role, and returns the directory and the other
// arguments.
func Reexec(args []string, role string) (dir string, rest []string, ok bool) {
	if len(args) < 3 || args[1] != role {
		return "", nil, false
	}
	return args[2], args[3:], true
}

func (p *Process) file(kind string) string {
	return filepath.Join(p.Dir, strings.TrimPrefix(p.Role, "tutti-")+"."+kind)
}

func socketIn(dir string) string { return filepath.Join(dir, "socket") }

// Tell has the process take over what its owner wrote, and starts it if there is none. When it returns, that
// is in force.
func (p *Process) Tell(ctx context.Context) error {
	pid, running := p.Running()
	if !running {
		return p.start()
	}
	said, err := Ask(ctx, p.Dir, "load")
	if err == nil && said != "ok" {
		return fmt.Errorf("%s: %s", p.Role, said)
	}
	if err == nil {
		return nil
	}
	// It does not hear, as one of an earlier version: another takes its place.
	p.Log.Warn("a helper is replaced", "role", p.Role, "pid", pid, "error", err)
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil && !errors.Is(err, syscall.ESRCH) {
		return fmt.Errorf("stop %s: %w", p.Role, err)
	}
	for deadline := time.Now().Add(startPatience); running && time.Now().Before(deadline); _, running = p.Running() {
		time.Sleep(time.Millisecond)
	}
	return p.start()
}

// Ask says a word to the process of a directory, and returns what it answers.
func Ask(ctx context.Context, dir, word string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, startPatience)
	defer cancel()
	c, err := new(net.Dialer).DialContext(ctx, "unix", socketIn(dir))
	if err != nil {
		return "", err
	}
	defer c.Close()
	if deadline, ok := ctx.Deadline(); ok {
		if err := c.SetDeadline(deadline); err != nil {
			return "", err
		}
	}
	if _, err := fmt.Fprintln(c, word); err != nil {
		return "", err
	}
	answer, err := io.ReadAll(c)
	return strings.TrimSpace(string(answer)), err
}

// Serve is the process's side: it takes orders until it is told to end or something fails. ready is closed
// by whoever begins to work, when it does; answer is given each word of the agent's.
func Serve(dir string, ready <-chan struct{}, failed <-chan error, answer func(word string) string) error {
	began := os.NewFile(4, "ready") // tells the agent
	defer began.Close()
	signals := make(chan os.Signal, 4)
	signal.Notify(signals, syscall.SIGTERM)
	signal.Ignore(syscall.SIGINT, syscall.SIGPIPE, syscall.SIGHUP)
	if err := os.Remove(socketIn(dir)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("answer the agent: %w", err)
	}
	l, err := net.Listen("unix", socketIn(dir))
	if err != nil {
		return fmt.Errorf("answer the agent: %w", err)
	}
	defer l.Close()
	l.(*net.UnixListener).SetUnlinkOnClose(false) // another may have come in this one's place
	broken := make(chan error, 1)
	go func() { broken <- hear(l, answer) }()
	for {
		select {
		case err := <-failed:
			return err
		case err := <-broken:
			return fmt.Errorf("answer the agent: %w", err)
		case <-ready:
			ready = nil
			if _, err := began.WriteString("ok"); err != nil {
				fmt.Fprintln(os.Stderr, err) // the agent has gone, and another will find this process
			}
			began.Close()
		case <-signals:
			return nil
		}
	}
}

func hear(l net.Listener, answer func(word string) string) error {
	for {
		c, err := l.Accept()
		if err != nil {
			return err
		}
		c.SetDeadline(time.Now().Add(startPatience)) // a socket has deadlines
		var word string
		if _, err := fmt.Fscanln(c, &word); err == nil {
			fmt.Fprintln(c, answer(word)) // an agent that has gone asks again
		}
		c.Close()
	}
}

// Running returns the process that holds the lock.
func (p *Process) Running() (int, bool) {
	f, err := os.OpenFile(p.file("lock"), os.O_RDWR, 0)
	if err != nil {
		return 0, false
	}
	defer f.Close()
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err == nil {
		return 0, false
	}
	var b [16]byte
	n, _ := f.ReadAt(b[:], 0)
	pid, err := strconv.Atoi(strings.TrimSpace(string(b[:n])))
	return pid, err == nil && pid > 1
}

func (p *Process) start() error {
	lock, err := os.OpenFile(p.file("lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return fmt.Errorf("start %s: %w", p.Role, err)
	}
	defer lock.Close()
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return fmt.Errorf("start %s: another one holds its lock: %w", p.Role, err)
	}
	if err := lock.Truncate(0); err != nil { // not before: the other one's number is in it
		return fmt.Errorf("start %s: %w", p.Role, err)
	}
	exe, err := os.Executable()
	if err != nil {
		return fmt.Errorf("start %s: %w", p.Role, err)
	}
	errorLog, err := os.OpenFile(p.file("log"), os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o600)
	if err != nil {
		return fmt.Errorf("start %s: %w", p.Role, err)
	}
	defer errorLog.Close()
	ready, child, err := os.Pipe()
	if err != nil {
		return fmt.Errorf("start %s: %w", p.Role, err)
	}
	defer ready.Close()
	cmd := &exec.Cmd{
		Path: exe, Args: append([]string{"tutti", p.Role, p.Dir}, p.Args...), Dir: "/", Env: p.Env,
		Stderr: errorLog, ExtraFiles: []*os.File{lock, child}, SysProcAttr: &syscall.SysProcAttr{Setsid: true},
	}
	err = cmd.Start()
	child.Close()
	if err != nil {
		return fmt.Errorf("start %s: %w", p.Role, err)
	}
	ended := make(chan struct{})
	go func() {
		cmd.Wait() // so that it leaves no zombie while this agent lives
		close(ended)
	}()
	giveUp := func(err error) error { // and leave nothing that seems to answer
		err = errors.Join(fmt.Errorf("start %s: %w", p.Role, err), cmd.Process.Kill())
		<-ended
		return err
	}
	if _, err := fmt.Fprintf(lock, "%d\n", cmd.Process.Pid); err != nil {
		return giveUp(err)
	}
	if err := ready.SetReadDeadline(time.Now().Add(startPatience)); err != nil {
		return giveUp(err)
	}
	answer, err := io.ReadAll(ready)
	if err != nil {
		return giveUp(fmt.Errorf("it does not begin to answer: %w", err))
	}
	if string(answer) != "ok" {
		<-ended
		reason, err := os.ReadFile(errorLog.Name())
		return errors.Join(fmt.Errorf("%s ended: %s", p.Role, strings.TrimSpace(string(reason))), err)
	}
	p.Log.Info("helper started", "role", p.Role, "pid", cmd.Process.Pid)
	return nil
}

// startPatience is how long a process may take to begin, or to take something over.
const startPatience = 30 * time.Second

// Keep starts the process again if it has ended; before the first Tell there is none to keep.
func (p *Process) Keep(ctx context.Context) error {
	if _, running := p.Running(); running {
		return nil
	}
	if _, err := os.Stat(p.file("log")); errors.Is(err, os.ErrNotExist) {
		return nil
	}
	p.Log.Warn("a helper has ended, and is started again", "role", p.Role)
	return p.start()
}

// Remove stops the process.
func (p *Process) Remove(ctx context.Context) error {
	if pid, running := p.Running(); running {
		if err := syscall.Kill(pid, syscall.SIGTERM); err != nil && !errors.Is(err, syscall.ESRCH) {
			return fmt.Errorf("stop %s: %w", p.Role, err)
		}
	}
	return nil
}
