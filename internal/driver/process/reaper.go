package process

import (
	"errors"
	"fmt"
	"os"
	"os/signal"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// reaper starts the supervisor's children and collects them, and everybody who is left to it: the
// supervisor takes the place of the host's init process for what its task leaves behind, so that
// none of it is lost from sight.
type reaper struct {
	mu       sync.Mutex
	children map[int]chan syscall.WaitStatus
}

func newReaper() (*reaper, error) {
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		return nil, fmt.Errorf("adopt what the task leaves behind: %w", err)
	}
	r := &reaper{children: map[int]chan syscall.WaitStatus{}}
	ended := make(chan os.Signal, 1)
	signal.Notify(ended, syscall.SIGCHLD)
	go func() {
		for range ended {
			r.collect()
		}
	}()
	return r, nil
}

// start holds the lock: a child must not be collected before it is known.
func (r *reaper) start(path string, args []string, attr *syscall.ProcAttr) (*child, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	pid, err := syscall.ForkExec(path, args, attr)
	if err != nil {
		return nil, fmt.Errorf("start a process: %w", err)
	}
	ended := make(chan syscall.WaitStatus, 1)
	r.children[pid] = ended
	return &child{pid, ended}, nil
}

func (r *reaper) collect() {
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
		if ended := r.children[pid]; ended != nil && (ws.Exited() || ws.Signaled()) {
			delete(r.children, pid)
			ended <- ws
		}
	}
}
