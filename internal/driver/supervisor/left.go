package supervisor

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/tutti-run/tutti/internal/driver/tasklog"
	"github.com/tutti-run/tutti/internal/model"
)

// OrphanSignal is what the first process of a task gets from the kernel when its supervisor is killed: it is stopped,
// so that it neither ends nor lets go of its pipes before an agent has read what is in them. The kernel sends it when
// the thread ends that has started the process, which therefore is one that stays: see Supervise.
const OrphanSignal = unix.SIGSTOP

// leftOutput opens the pipes of a task whose supervisor was killed, by way of its first process: what it printed since
// is in them. Nothing is found of one that has ended, too, or has its output elsewhere.
func leftOutput(id string, pid int) map[string]*os.File {
	left := map[string]*os.File{}
	proc := "/proc/" + strconv.Itoa(pid)
	// The number may be another process's by now.
	if text, err := os.ReadFile(filepath.Join(proc, "cgroup")); pid < 2 || err != nil || id == "" || !strings.Contains(string(text), id) {
		return left
	}
	for stream, fd := range map[string]string{"stdout": "1", "stderr": "2"} {
		path := filepath.Join(proc, "fd", fd)
		if to, err := os.Readlink(path); err != nil || !strings.HasPrefix(to, "pipe:") {
			continue
		}
		if fd, err := unix.Open(path, unix.O_RDONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0); err == nil {
			left[stream] = os.NewFile(uintptr(fd), stream)
		}
	}
	return left
}

// heldOutput is the pipes of a task that is waited for. What is in them outlives the task as well as its supervisor,
// should both end before this agent has seen that.
type heldOutput struct {
	waiters int
	files   map[string]*os.File // by stream; none once they were taken
}

// holdOutput keeps a task's pipes open until the function that it returns is called.
func (d *Driver) holdOutput(id string, pid int) (release func()) {
	d.mu.Lock()
	defer d.mu.Unlock()
	h := d.held[id]
	if h == nil {
		h = &heldOutput{files: leftOutput(id, pid)}
		d.held[id] = h
	}
	h.waiters++
	return func() {
		d.mu.Lock()
		defer d.mu.Unlock()
		if h.waiters--; h.waiters > 0 {
			return
		}
		delete(d.held, id)
		for _, f := range h.files {
			f.Close()
		}
	}
}

// takeOutput returns the pipes of a task whose supervisor was killed.
func (d *Driver) takeOutput(id string, pid int) map[string]*os.File {
	d.mu.Lock()
	defer d.mu.Unlock()
	h := d.held[id]
	if h == nil || len(h.files) == 0 {
		return leftOutput(id, pid)
	}
	files := h.files
	h.files = nil
	return files
}

// keepOutput appends what is in a task's pipes to its log, now that nothing of it runs any more.
func keepOutput(dir string, policy *model.LogPolicy, left map[string]*os.File) error {
	if len(left) == 0 {
		return nil
	}
	log, err := tasklog.Create(dir, policy)
	if err != nil {
		return err
	}
	for stream, f := range left {
		err = errors.Join(err, log.Copy(stream, nil, drained{f}, nil), f.Close())
	}
	return errors.Join(err, log.Close())
}

// drained reads what is in a pipe, and does not wait for more: something may have taken its other end out of the task.
type drained struct{ f *os.File }

func (d drained) Read(p []byte) (int, error) {
	raw, err := d.f.SyscallConn()
	if err != nil {
		return 0, err
	}
	n := 0
	rerr := raw.Read(func(fd uintptr) bool {
		n, err = unix.Read(int(fd), p)
		return true
	})
	switch {
	case n == 0 && err == nil && rerr == nil, errors.Is(err, unix.EAGAIN):
		return 0, io.EOF
	case err != nil || rerr != nil:
		return 0, fmt.Errorf("read what is left in a pipe: %w", errors.Join(rerr, err))
	}
	return n, nil
}
