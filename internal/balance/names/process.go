package names

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/tutti-run/tutti/internal/wire"
)

// Process keeps one responder running on this node.
type Process struct {
	Dir    string // state and lock
	Listen string // host:port
	Log    *slog.Logger

	state *journal
}

// Sync writes what should be answered, and makes sure that somebody does: when it returns, the responder
// has read it.
func (p *Process) Sync(ctx context.Context, n *wire.Network) error {
	if err := os.MkdirAll(p.Dir, 0o700); err != nil {
		return fmt.Errorf("write names: %w", err)
	}
	if p.state == nil {
		p.state = &journal{path: filepath.Join(p.Dir, stateFile)}
	}
	if err := p.state.write(n); err != nil {
		return fmt.Errorf("write names: %w", err)
	}
	pid, running := p.running()
	if !running {
		return p.start()
	}
	err := p.tell(ctx)
	if err == nil {
		return nil
	}
	// It does not hear, as one of an earlier version: another takes its place.
	p.Log.Warn("the names responder is replaced", "pid", pid, "error", err)
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil && !errors.Is(err, syscall.ESRCH) {
		return fmt.Errorf("stop the names responder: %w", err)
	}
	for deadline := time.Now().Add(startPatience); running && time.Now().Before(deadline); _, running = p.running() {
		time.Sleep(time.Millisecond)
	}
	return p.start()
}

// tell has the responder read what is new.
func (p *Process) tell(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, startPatience)
	defer cancel()
	c, err := new(net.Dialer).DialContext(ctx, "unix", filepath.Join(p.Dir, socket))
	if err != nil {
		return err
	}
	defer c.Close()
	if deadline, ok := ctx.Deadline(); ok {
		if err := c.SetDeadline(deadline); err != nil {
			return err
		}
	}
	answer, err := io.ReadAll(c)
	if err == nil && strings.TrimSpace(string(answer)) != "ok" {
		err = fmt.Errorf("it says: %q", answer)
	}
	return err
}

// running returns the responder that holds the lock.
func (p *Process) running() (int, bool) {
	f, err := os.OpenFile(filepath.Join(p.Dir, lockFile), os.O_RDWR, 0)
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
	lock, err := os.OpenFile(filepath.Join(p.Dir, lockFile), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return fmt.Errorf("start the names responder: %w", err)
	}
	defer lock.Close()
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return fmt.Errorf("start the names responder: another one holds its lock: %w", err)
	}
	if err := lock.Truncate(0); err != nil { // not before: the other one's number is in it
		return fmt.Errorf("start the names responder: %w", err)
	}
	exe, err := os.Executable()
	if err != nil {
		return fmt.Errorf("start the names responder: %w", err)
	}
	errorLog, err := os.OpenFile(filepath.Join(p.Dir, "names.log"), os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o600)
	if err != nil {
		return fmt.Errorf("start the names responder: %w", err)
	}
	defer errorLog.Close()
	ready, child, err := os.Pipe()
	if err != nil {
		return fmt.Errorf("start the names responder: %w", err)
	}
	defer ready.Close()
	cmd := &exec.Cmd{
		Path: exe, Args: []string{"tutti", reexecArg, p.Dir, p.Listen}, Dir: "/", Env: []string{"GOMEMLIMIT=64MiB"},
		Stderr: errorLog, ExtraFiles: []*os.File{lock, child}, SysProcAttr: &syscall.SysProcAttr{Setsid: true},
	}
	err = cmd.Start()
	child.Close()
	if err != nil {
		return fmt.Errorf("start the names responder: %w", err)
	}
	ended := make(chan struct{})
	go func() {
		cmd.Wait() // so that it leaves no zombie while this agent lives
		close(ended)
	}()
	giveUp := func(err error) error { // and leave nothing that seems to answer
		err = errors.Join(fmt.Errorf("start the names responder: %w", err), cmd.Process.Kill())
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
		return errors.Join(fmt.Errorf("the names responder ended: %s", strings.TrimSpace(string(reason))), err)
	}
	p.Log.Info("names responder started", "pid", cmd.Process.Pid, "listen", p.Listen)
	return nil
}

// startPatience is how long a responder may take to begin.
const startPatience = 10 * time.Second

// Keep starts the responder again if it has ended; before the first Sync there is none to keep.
func (p *Process) Keep(ctx context.Context) error {
	if _, running := p.running(); running {
		return nil
	}
	if _, err := os.Stat(filepath.Join(p.Dir, stateFile)); errors.Is(err, os.ErrNotExist) {
		return nil
	}
	p.Log.Warn("the names responder has ended, and is started again")
	return p.start()
}

// Remove stops the responder.
func (p *Process) Remove(ctx context.Context) error {
	if pid, running := p.running(); running {
		if err := syscall.Kill(pid, syscall.SIGTERM); err != nil && !errors.Is(err, syscall.ESRCH) {
			return fmt.Errorf("stop the names responder: %w", err)
		}
	}
	return nil
}
