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

	"github.com/tutti-run/tutti/internal/driver"
	"github.com/tutti-run/tutti/internal/driver/tasklog"
	"github.com/tutti-run/tutti/internal/model"
)

// leftOutput opens the pipes of a task whose supervisor was killed, by way of its first process: what it printed since
// is in them. Nothing is found of one that has ended, too, or has its output elsewhere.
func leftOutput(t *driver.Task, pid int) map[string]*os.File {
	left := map[string]*os.File{}
	proc := "/proc/" + strconv.Itoa(pid)
	// The number may be another process's by now.
	if text, err := os.ReadFile(filepath.Join(proc, "cgroup")); pid < 2 || err != nil || t.ID == "" || !strings.Contains(string(text), t.ID) {
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
		err = errors.Join(err, log.Copy(stream, drained{f}, nil), f.Close())
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
