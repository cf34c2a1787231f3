package driver

import (
	"context"
	"time"

	"golang.org/x/sys/unix"
)

// Leaser is what a driver is that can be trusted with tasks of which there must not be two: those
// with Task.Leased run only as long as the node holds a lease. When that ends they are suspended: frozen, whether or not
// anybody tells them, also while the process that started them is stopped or gone. What is suspended runs again only when
// GoOn says so, as another may have its place by then, and is killed after SuspendedFor.
type Leaser interface {
	// Lease lets such tasks run until Clock shows a time, and none of them start or run after it. It
	// is called again with a later time whenever the lease was renewed, and never with an earlier
	// one.
	Lease(until time.Duration) error
	// GoOn lets a task that is suspended run again, under the lease that there is now. One that is not suspended is left alone.
	GoOn(ctx context.Context, id string) error
	// Clock is the host's clock that leases are measured by.
	Clock() time.Duration
}

// SuspendedFor is how long a task is suspended before it is killed.
const SuspendedFor = 20 * time.Second

// Lapsed is the Error of a task that was suspended for too long, and of one that cannot start.
const Lapsed = "the node's lease ended"

// Suspended is what an error begins with of what cannot be done to a task that is suspended, such as sending it a signal.
const Suspended = "it is suspended, as the node's lease ended"

// SinceBoot is the time since this host was started, with the time that it was suspended. Nobody
// sets it, and it goes on while processes are stopped.
func SinceBoot() time.Duration {
	var t unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &t); err != nil {
		panic("the kernel has no CLOCK_BOOTTIME: " + err.Error()) // since 2.6.39 it has
	}
	return time.Duration(t.Nano())
}
