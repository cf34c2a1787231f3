package fake

import (
	"syscall"
	"time"

	"github.com/tutti-run/tutti/internal/driver"
	"github.com/tutti-run/tutti/internal/fault"
)

var _ driver.Leaser = (*Driver)(nil)

// Lease implements driver.Leaser.
func (d *Driver) Lease(until time.Duration) error {
	d.state.mu.Lock()
	defer d.state.mu.Unlock()
	d.state.lease = max(d.state.lease, until)
	return nil
}

// Clock implements driver.Leaser: it is the time of the bubble that the test is in.
func (d *Driver) Clock() time.Duration { return clock() }

func clock() time.Duration { return time.Duration(time.Now().UnixNano()) }

// unleased says why a leased task may not start; the lock is held.
func (s *State) unleased(spec *driver.Task) error {
	if spec.Leased && clock() >= s.lease {
		return fault.New(fault.Unavailable, "%s before the task was started", driver.Lapsed)
	}
	return nil
}

// guard ends a leased task with the lease, as a supervisor does, with or without a driver.
func (s *State) guard(t *task) {
	for {
		s.mu.Lock()
		left := s.lease - clock()
		s.mu.Unlock()
		if left <= 0 {
			break
		}
		select {
		case <-t.over:
			return
		case <-time.After(left):
		}
	}
	t.mu.Lock()
	t.status.Error = driver.Lapsed
	t.mu.Unlock()
	t.main.kill(int(syscall.SIGKILL))
}
