package fake

import (
	"context"
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
	if d.state.lease <= clock() {
		d.state.since = clock()
	}
	d.state.lease = max(d.state.lease, until)
	return nil
}

// Clock implements driver.Leaser: it is the time of the bubble that the test is in.
func (d *Driver) Clock() time.Duration { return clock() }

func clock() time.Duration { return time.Duration(time.Now().UnixNano()) }

// GoOn implements driver.Leaser.
func (d *Driver) GoOn(_ context.Context, id string) error {
	t, err := d.running(id)
	if err != nil {
		return err
	}
	d.state.mu.Lock()
	until := d.state.lease
	d.state.mu.Unlock()
	t.mu.Lock()
	defer t.mu.Unlock()
	if !t.suspended {
		return nil
	}
	if clock() >= until {
		return fault.New(fault.Unavailable, "task %s cannot go on: %s", id, driver.Lapsed)
	}
	t.suspended = false
	if t.status.State != driver.Paused {
		t.gate.release()
	}
	t.main.suspend(false)
	t.goneOn <- until
	return nil
}

// unleased says why a leased task may not start; the lock is held.
func (s *State) unleased(spec *driver.Task) error {
	if spec.Leased && clock() >= s.lease {
		return fault.New(fault.Unavailable, "%s before the task was started", driver.Lapsed)
	}
	return nil
}

// guard suspends a leased task when the lease ends, as a supervisor does, with or without a driver.
func (s *State) guard(t *task, until time.Duration) {
	for {
		s.mu.Lock()
		gap := s.since > until
		until = max(until, s.lease)
		s.mu.Unlock()
		left := until - clock()
		if gap || left <= 0 {
			t.mu.Lock()
			t.suspended = true
			t.gate.shut()
			t.main.suspend(true)
			t.mu.Unlock()
			select {
			case <-t.over:
				return
			case until = <-t.goneOn:
				continue
			case <-time.After(driver.SuspendedFor):
			}
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
