package oci

import (
	"os/exec"
	"strings"
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

// lines counts what a task has printed.
func (e *env) lines(id string) (n int) {
	e.t.Helper()
	err := e.d.Logs(e.ctx, id, driver.LogOptions{Tail: -1}, func(driver.LogEntry) error { n++; return nil })
	if err != nil {
		e.t.Fatal(err)
	}
	return n
}

// TestALeasedTaskIsSuspendedWithTheLease: on time, and at once when its supervisor was stopped meanwhile, also if
// there is another lease by then; and not while the lease is renewed. It goes on when it is told to, under a lease.
func TestALeasedTaskIsSuspendedWithTheLease(t *testing.T) {
	e := setUp(t)
	first := e.lease(8 * time.Second) // a busy machine takes its time to start three
	all := []string{"i.plain.1", "i.frozen.1", "i.stopped.1"}
	for _, id := range all {
		e.start(id, leased, "tick")
	}
	if err := e.d.Pause(e.ctx, "i.frozen.1"); err != nil {
		t.Fatal(err)
	}
	e.lease(first + 4*time.Second - e.d.Clock())
	time.Sleep(first + 20*time.Millisecond - e.d.Clock())
	suspended := func(id string) bool {
		t.Helper()
		_, err := e.d.Exec(e.ctx, id, driver.ExecSpec{Args: []string{"/prog", "exit", "0"}}, driver.Streams{})
		return err != nil && strings.Contains(err.Error(), driver.Suspended)
	}
	for _, id := range all {
		if suspended(id) {
			t.Fatalf("%s is suspended under a lease", id)
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
	time.Sleep(until + 400*time.Millisecond - e.d.Clock())
	printed := e.lines("i.plain.1")
	for _, id := range all[:2] {
		if !suspended(id) {
			t.Errorf("%s is not suspended without a lease", id)
		}
		if err := e.d.Signal(e.ctx, id, 15); err == nil || !strings.Contains(err.Error(), driver.Suspended) {
			t.Errorf("%s can be sent a signal: %v", id, err)
		}
		if err := e.d.GoOn(e.ctx, id); !fault.Is(err, fault.Unavailable) {
			t.Errorf("%s goes on without a lease: %v", id, err)
		}
	}
	time.Sleep(300 * time.Millisecond)
	if now := e.lines("i.plain.1"); printed == 0 || now != printed {
		t.Errorf("what is suspended printed %d lines, and then %d", printed, now)
	}
	e.lease(time.Hour)
	if err := exec.Command("kill", "-CONT", supervisor).Run(); err != nil {
		t.Fatal(err)
	}
	for began := time.Now(); !suspended("i.stopped.1"); time.Sleep(time.Millisecond) {
		if time.Since(began) > 10*time.Second {
			t.Fatal("what had a stopped supervisor while there was no lease is not suspended")
		}
	}
	for _, id := range all {
		if err := e.d.GoOn(e.ctx, id); err != nil {
			t.Errorf("%s does not go on: %v", id, err)
		}
		if suspended(id) {
			t.Errorf("%s is suspended still", id)
		}
	}
	if st, err := e.d.Status(e.ctx, "i.frozen.1"); err != nil || st.State != driver.Paused {
		t.Errorf("what was paused before is %+v, %v", st, err)
	}
	for began := time.Now(); e.lines("i.plain.1") == printed; time.Sleep(10 * time.Millisecond) {
		if time.Since(began) > 10*time.Second {
			t.Fatal("what goes on prints nothing")
		}
	}
}

// TestWhatIsSuspendedIsKilled: when it is told to be, and after a while by itself.
func TestWhatIsSuspendedIsKilled(t *testing.T) {
	e := setUp(t)
	until := e.lease(5 * time.Second)
	e.start("i.told.1", leased, "tick")
	e.start("i.long.1", leased, "tick")
	time.Sleep(until + 300*time.Millisecond - e.d.Clock())
	if err := e.d.Kill(e.ctx, "i.told.1"); err != nil {
		t.Fatal(err)
	}
	if st := e.wait("i.told.1"); st.ExitCode != 128+9 {
		t.Errorf("what was killed ended as %+v", st)
	}
	if st := e.wait("i.long.1"); st.Error != driver.Lapsed || e.d.Clock() < until+driver.SuspendedFor {
		t.Errorf("what was suspended for long ended as %+v, %s before its time", st, until+driver.SuspendedFor-e.d.Clock())
	}
}
