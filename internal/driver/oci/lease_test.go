package oci

import (
	"os/exec"
	"testing"
	"time"

	"github.com/tutti-run/tutti/internal/driver"
	"github.com/tutti-run/tutti/internal/fault"
)

func leased(task *driver.Task) { task.Leased = true }

func (e *env) lease(d time.Duration) (until time.Duration) {
	e.t.Helper()
	until = e.d.Clock() + d
	if err := e.d.Lease(until); err != nil {
		e.t.Fatal(err)
	}
	return until
}

func TestNothingLeasedStartsWithoutALease(t *testing.T) {
	e := setUp(t)
	for _, id := range []string{"i.never.1", "i.over.1"} {
		task := e.task()
		task.ID, task.Args, task.Leased = id, []string{"/prog", "sleep"}, true
		if err := e.d.Start(e.ctx, task); !fault.Is(err, fault.Unavailable) {
			t.Errorf("%s was started: %v", id, err)
		}
		e.lease(-time.Millisecond)
	}
	e.start("i.free.1", nil, "exit", "0") // what needs none does
	if st := e.wait("i.free.1"); st.ExitCode != 0 {
		t.Errorf("what needs no lease ended as %+v", st)
	}
}

// TestALeasedTaskEndsWithTheLease: on time, also when it is frozen, and at once when its supervisor
// was stopped meanwhile; and not while the lease is renewed.
func TestALeasedTaskEndsWithTheLease(t *testing.T) {
	e := setUp(t)
	first := e.lease(8 * time.Second) // a busy machine takes its time to start three
	for _, id := range []string{"i.plain.1", "i.frozen.1", "i.stopped.1"} {
		e.start(id, leased, "sleep")
	}
	if err := e.d.Pause(e.ctx, "i.frozen.1"); err != nil {
		t.Fatal(err)
	}
	e.lease(first + 4*time.Second - e.d.Clock())
	time.Sleep(first + 20*time.Millisecond - e.d.Clock())
	for _, id := range []string{"i.plain.1", "i.frozen.1", "i.stopped.1"} {
		if st, err := e.d.Status(e.ctx, id); err != nil || st.State == driver.Exited {
			t.Fatalf("%s ended under a lease: %+v, %v", id, st, err)
		}
	}
	until := e.lease(first + 4500*time.Millisecond - e.d.Clock())
	st, err := e.d.Status(e.ctx, "i.stopped.1")
	if err != nil {
		t.Fatal(err)
	}
	supervisor := parentOf(t, st.PID)
	if err := exec.Command("kill", "-STOP", supervisor).Run(); err != nil {
		t.Fatal(err)
	}
	for _, id := range []string{"i.plain.1", "i.frozen.1"} {
		if st := e.wait(id); st.Error != driver.Lapsed || e.d.Clock() < until {
			t.Errorf("%s ended as %+v, %s before the end of the lease", id, st, until-e.d.Clock())
		}
	}
	time.Sleep(100 * time.Millisecond)
	if err := exec.Command("kill", "-CONT", supervisor).Run(); err != nil {
		t.Fatal(err)
	}
	if st := e.wait("i.stopped.1"); st.Error != driver.Lapsed {
		t.Errorf("what had a stopped supervisor ended as %+v", st)
	}
}
