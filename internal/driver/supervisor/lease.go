package supervisor

import (
	"context"
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/tutti-run/tutti/internal/driver"
	"github.com/tutti-run/tutti/internal/fault"
)

// The node's lease is one file beside the supervisors' sockets, which the agent rewrites and the
// supervisor of every leased task reads: the time of the host's clock at which it ends, the same
// with all bits turned, so that a half written one is not believed, and since when there was a lease
// all the time, which is written first. Supervisors do not need the agent to suspend their tasks in time.
const leaseFile = "lease"

// Lease implements driver.Leaser.
func (d *Driver) Lease(until time.Duration) error {
	d.leasing.Lock()
	defer d.leasing.Unlock()
	if d.lease == nil {
		f, err := os.OpenFile(filepath.Join(d.RunDir, leaseFile), os.O_CREATE|os.O_RDWR, 0o600)
		if err != nil {
			return fmt.Errorf("keep the node's lease: %w", err)
		}
		d.lease = f
	}
	b := binary.LittleEndian.AppendUint64(nil, uint64(until))
	b = binary.LittleEndian.AppendUint64(b, ^uint64(until))
	if had, _ := readLease(d.lease); had <= driver.SinceBoot() {
		since := binary.LittleEndian.AppendUint64(nil, uint64(driver.SinceBoot()))
		if _, err := d.lease.WriteAt(since, int64(len(b))); err != nil {
			return fmt.Errorf("keep the node's lease: %w", err)
		}
	}
	if _, err := d.lease.WriteAt(b, 0); err != nil {
		return fmt.Errorf("keep the node's lease: %w", err)
	}
	return nil
}

// GoOn implements driver.Leaser. A supervisor of an older version suspends nothing.
func (d *Driver) GoOn(ctx context.Context, id string) error {
	_, err := d.call(ctx, id, request{Op: "go on"})
	if fault.Is(err, fault.Unsupported) {
		return nil
	}
	return err
}

// Clock implements driver.Leaser.
func (d *Driver) Clock() time.Duration { return driver.SinceBoot() }

// readLease returns when the lease ends, and since when there was one all the time; until is 0 when there is none,
// or it is just being written.
func readLease(f *os.File) (until, since time.Duration) {
	var b [16]byte
	if _, err := f.ReadAt(b[:], 0); err != nil {
		return 0, 0
	}
	end := binary.LittleEndian.Uint64(b[:])
	if ^end != binary.LittleEndian.Uint64(b[8:]) {
		return 0, 0
	}
	if _, err := f.ReadAt(b[:8], 16); err != nil {
		return 0, 0
	}
	return time.Duration(end), time.Duration(binary.LittleEndian.Uint64(b[:]))
}

// guard suspends the task when the node's lease ends, and lets it not begin without one. The timer is the
// kernel's, of a clock that goes on while the host is suspended: when this process, or the host,
// comes back after the lease, the task is suspended before anything else, also if there is another lease by then.
func (s *supervisor) guard(dir string) error {
	f, err := os.Open(filepath.Join(dir, leaseFile))
	if err != nil {
		return fault.New(fault.Unavailable, "%s, or was never granted: %w", driver.Lapsed, err)
	}
	until, _ := readLease(f)
	if driver.SinceBoot() >= until {
		f.Close()
		return fault.New(fault.Unavailable, "%s before the task was started", driver.Lapsed)
	}
	fd, err := unix.TimerfdCreate(unix.CLOCK_BOOTTIME, unix.TFD_NONBLOCK|unix.TFD_CLOEXEC)
	if err != nil {
		f.Close()
		return fmt.Errorf("make a timer for the node's lease: %w", err)
	}
	timer := os.NewFile(uintptr(fd), "lease timer")
	s.lease = f
	go func() {
		defer timer.Close()
		for s.underLease(timer, until) {
			if until = s.suspend(); until == 0 {
				break
			}
		}
		s.lapse()
	}()
	return nil
}

// underLease returns once the lease has ended that ends then, if it is not renewed. It reports whether the task can be suspended.
func (s *supervisor) underLease(timer *os.File, until time.Duration) bool {
	for {
		now, since := readLease(s.lease)
		if since > until { // between two leases there was none
			return true
		}
		until = max(until, now)
		if driver.SinceBoot() >= until {
			return true
		}
		spec := unix.ItimerSpec{Value: unix.NsecToTimespec(int64(until))}
		if err := unix.TimerfdSettime(int(timer.Fd()), unix.TFD_TIMER_ABSTIME, &spec, nil); err != nil {
			fmt.Fprintln(os.Stderr, "set the timer of the lease:", err)
			return false
		}
		if _, err := timer.Read(make([]byte, 8)); err != nil {
			fmt.Fprintln(os.Stderr, "wait for the end of the lease:", err)
			return false
		}
	}
}

// suspendWithin is how long suspending a task may wait for a process that is just being started in it.
const suspendWithin = 100 * time.Millisecond

// suspend freezes the task until it may go on, and returns until when; 0: it has to be killed.
func (s *supervisor) suspend() (until time.Duration) {
	for began := time.Now(); !s.freezing.TryLock(); time.Sleep(time.Millisecond) {
		if time.Since(began) > suspendWithin {
			return 0
		}
	}
	var err error
	switch state := s.state(); state {
	case driver.Running:
		err = s.body.Pause()
	case driver.Paused:
	default: // it is just starting
		err = fault.New(fault.Conflict, "task %s is %s", s.task.ID, state)
	}
	s.suspended.Store(err == nil)
	s.freezing.Unlock()
	if err != nil {
		fmt.Fprintln(os.Stderr, "suspend the task with the end of the lease:", err)
		return 0
	}
	select {
	case until = <-s.goneOn:
		return until
	case <-s.done:
	case <-time.After(driver.SuspendedFor):
	}
	return 0
}

// goOn lets a task run again that is suspended.
func (s *supervisor) goOn() error {
	s.freezing.Lock()
	defer s.freezing.Unlock()
	if !s.suspended.Load() {
		return nil
	}
	until, _ := readLease(s.lease)
	if driver.SinceBoot() >= until {
		return fault.New(fault.Unavailable, "task %s cannot go on: %s", s.task.ID, driver.Lapsed)
	}
	if s.state() == driver.Running {
		if err := s.body.Resume(); err != nil {
			return fmt.Errorf("let task %s go on: %w", s.task.ID, err)
		}
	}
	s.suspended.Store(false)
	s.goneOn <- until
	return nil
}

// errSuspended says what a task is that is suspended, nil of another.
func (s *supervisor) errSuspended() error {
	if s.suspended.Load() {
		return fault.New(fault.Unavailable, "%s: task %s", driver.Suspended, s.task.ID)
	}
	return nil
}

// kill ends the whole tree. Nothing of a task that is suspended may run for even a moment: all of it is sent the signal
// before the first of it is thawed.
func (s *supervisor) kill() error {
	if s.suspended.Load() {
		pids, err := s.body.Members()
		if err != nil {
			fmt.Fprintln(os.Stderr, "find the processes of the task that is suspended:", err)
		}
		for _, pid := range pids {
			unix.Kill(pid, unix.SIGKILL)
		}
	}
	return s.body.Kill()
}

// lapse kills the task, however often that takes: it may be just starting.
func (s *supervisor) lapse() {
	s.lapsed.Store(true)
	for {
		if err := s.kill(); err != nil {
			fmt.Fprintln(os.Stderr, "end the task with the lease:", err)
		}
		select {
		case <-s.done:
			return
		case <-time.After(20 * time.Millisecond):
		}
	}
}
