package supervisor

import (
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
// supervisor of every leased task reads: the time of the host's clock at which it ends, and the same
// with all bits turned, so that a half written one is not believed. Supervisors do not need the
// agent to end their tasks in time.
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
	if _, err := d.lease.WriteAt(b, 0); err != nil {
		return fmt.Errorf("keep the node's lease: %w", err)
	}
	return nil
}

// Clock implements driver.Leaser.
func (d *Driver) Clock() time.Duration { return driver.SinceBoot() }

// readLease returns when the lease ends; 0 when there is none, or it is just being written.
func readLease(f *os.File) time.Duration {
	var b [16]byte
	if _, err := f.ReadAt(b[:], 0); err != nil {
		return 0
	}
	until := binary.LittleEndian.Uint64(b[:])
	if ^until != binary.LittleEndian.Uint64(b[8:]) {
		return 0
	}
	return time.Duration(until)
}

// guard ends the task when the node's lease ends, and lets it not begin without one. The timer is the
// kernel's, of a clock that goes on while the host is suspended: when this process, or the host,
// comes back after the lease, the task is killed before anything else.
func (s *supervisor) guard(dir string) error {
	f, err := os.Open(filepath.Join(dir, leaseFile))
	if err != nil {
		return fault.New(fault.Unavailable, "%s, or was never granted: %w", driver.Lapsed, err)
	}
	until := readLease(f)
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
	go func() {
		defer f.Close()
		defer timer.Close()
		for {
			until = max(until, readLease(f))
			if driver.SinceBoot() >= until {
				break
			}
			spec := unix.ItimerSpec{Value: unix.NsecToTimespec(int64(until))}
			if err := unix.TimerfdSettime(fd, unix.TFD_TIMER_ABSTIME, &spec, nil); err != nil {
				fmt.Fprintln(os.Stderr, "set the timer of the lease:", err)
				break
			}
			if _, err := timer.Read(make([]byte, 8)); err != nil {
				fmt.Fprintln(os.Stderr, "wait for the end of the lease:", err)
				break
			}
		}
		s.lapse()
	}()
	return nil
}

// lapse kills the task, however often that takes: it may be just starting.
func (s *supervisor) lapse() {
	s.lapsed.Store(true)
	for {
		if err := s.body.Kill(); err != nil {
			fmt.Fprintln(os.Stderr, "end the task with the lease:", err)
		}
		select {
		case <-s.done:
			return
		case <-time.After(20 * time.Millisecond):
		}
	}
}
