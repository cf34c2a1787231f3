package supervisor

import (
	"errors"
	"fmt"
	"os"
	"os/signal"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// Reaper starts the supervisor's children and collects them, and everybody who is left to it: the
// supervisor takes the place of the host's init process for what its task leaves behind, so that
// none of it is lost from sight.
type Reaper struct {
	mu       sync.Mutex
	children map[int]chan syscall.WaitStatus
	// strangers have ended without anybody having known them; they are kept while someone may still
	// say that they are known: see Expect.
	strangers map[int]syscall.WaitStatus
	expecting int
}

// NewReaper makes this process one that collects all orphans below it.
func NewReaper() (*Reaper, error) {
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		return nil, fmt.Errorf("adopt what the task leaves behind: %w", err)
	}
	r := &Reaper{children: map[int]chan syscall.WaitStatus{}, strangers: map[int]syscall.WaitStatus{}}
	ended := make(chan os.Signal, 1)
	signal.Notify(ended, syscall.SIGCHLD)
	go func() {
		for range ended {
			r.collect()
		}
	}()
	return r, nil
}

// Child is a process that a Reaper waits for.
type Child struct {
	pid int
	// Ended gets how it ended, once.
	Ended <-chan syscall.WaitStatus
}

// PID implements Process.
func (c *Child) PID() int { return c.pid }

// Wait implements Process.
func (c *Child) Wait() (syscall.WaitStatus, error) { return <-c.Ended, nil }

// Start starts a child. The lock is held meanwhile: a child must not be collected before it is known.
func (r *Reaper) Start(path string, args []string, attr *syscall.ProcAttr) (*Child, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	pid, err := syscall.ForkExec(path, args, attr)
	if err != nil {
		return nil, fmt.Errorf("start a process: %w", err)
	}
	return r.know(pid), nil
}

func (r *Reaper) know(pid int) *Child {
	ended := make(chan syscall.WaitStatus, 1)
	r.children[pid] = ended
	return &Child{pid, ended}
}

// Expect keeps note of who ends unknown until the function that it returns is called, so that Adopt
// finds even one that was over at once.
func (r *Reaper) Expect() (done func()) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.expecting++
	return func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		if r.expecting--; r.expecting == 0 {
			clear(r.strangers)
		}
	}
}

// Adopt is for a process that a child has started and left behind.
func (r *Reaper) Adopt(pid int) *Child {
	r.mu.Lock()
	defer r.mu.Unlock()
	if ws, over := r.strangers[pid]; over {
		delete(r.strangers, pid)
		ended := make(chan syscall.WaitStatus, 1)
		ended <- ws
		return &Child{pid, ended}
	}
	return r.know(pid)
}

func (r *Reaper) collect() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for {
		var ws syscall.WaitStatus
		pid, err := syscall.Wait4(-1, &ws, syscall.WNOHANG, nil)
		if errors.Is(err, syscall.EINTR) {
			continue
		}
		if err != nil || pid <= 0 {
			return
		}
		if !ws.Exited() && !ws.Signaled() {
			continue
		}
		if ended := r.children[pid]; ended != nil {
			delete(r.children, pid)
			ended <- ws
		} else if r.expecting > 0 {
			r.strangers[pid] = ws
		}
	}
}
