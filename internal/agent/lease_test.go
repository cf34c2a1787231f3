package agent

import (
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/tutti-run/tutti/internal/driver"
	"github.com/tutti-run/tutti/internal/model"
	"github.com/tutti-run/tutti/internal/wire"
)

// leased is an instance of a stateful workload that the cluster may replace elsewhere.
func (w *world) leased(id string, args ...string) *wire.Assignment {
	as := w.assignment(id, task(args...))
	as.Instance.Name, as.Instance.Stateful, as.Instance.Leased, as.Instance.Created = "db-0", true, true, time.Now()
	return as
}

func (w *world) renew(d time.Duration) {
	w.Helper()
	if err := w.agent.renewed(w.agent.lease.clock() + d); err != nil {
		w.Fatal(err)
	}
	w.settle()
}

// suspended says whether a task is, which nothing can be sent to then.
func (w *world) suspended(id string) bool {
	w.Helper()
	err := w.agent.Drivers["oci"].Signal(w.Context(), id, 0x20)
	if err != nil && !isSuspended(err) {
		w.Fatal(err)
	}
	return err != nil
}

func TestALeasedInstanceRunsAsLongAsTheLease(t *testing.T) {
	inWorld(t, func(w *world) {
		w.assign(w.leased("i1", "serve"), w.assignment("i2", task("serve")))
		w.wantState("i2", model.InstanceRunning)
		if st := w.status("i1"); st.State == model.InstanceRunning || !strings.Contains(st.Message, "waiting for a lease") {
			t.Errorf("without a lease it is %s: %s", st.State, st.Message)
		}
		for range 10 {
			w.renew(5 * time.Second)
			time.Sleep(time.Second)
			w.wantState("i1", model.InstanceRunning)
		}
		if w.suspended("i1.app.1") {
			t.Error("it is suspended under a lease")
		}
		time.Sleep(4100 * time.Millisecond)
		if !w.suspended("i1.app.1") || w.suspended("i2.app.1") {
			t.Error("what needs a lease is not suspended without, or the other is")
		}
		w.renew(5 * time.Second)
		if w.suspended("i1.app.1") {
			t.Error("it does not go on with the next lease")
		}
		w.wantRuns("i1.app.1", "i2.app.1")
		time.Sleep(5*time.Second + driver.SuspendedFor + time.Second)
		if st := w.wantState("i1", model.InstanceWaiting); w.driverStatus("i1.app.1").Error != driver.Lapsed || !strings.Contains(st.Message, "lease") {
			t.Errorf("suspended for too long it is %s: %s", st.State, st.Message)
		}
		time.Sleep(time.Minute)
		w.wantState("i1", model.InstanceWaiting)
		w.renew(5 * time.Second)
		if st := w.wantState("i1", model.InstanceRunning); st.Restarts != 0 {
			t.Errorf("the end of the lease counts as %d restarts", st.Restarts)
		}
		w.wantState("i2", model.InstanceRunning)
		w.wantRuns("i1.app.1", "i1.app.2", "i2.app.1")
	})
}

// TestWhatWasGivenUpDoesNotGoOn: what a node is told of first, before it gets another lease. Not even the signal to end
// reaches it.
func TestWhatWasGivenUpDoesNotGoOn(t *testing.T) {
	inWorld(t, func(w *world) {
		w.renew(5 * time.Second)
		as := w.leased("i1", "serve")
		w.assign(as)
		w.wantState("i1", model.InstanceRunning)
		time.Sleep(6 * time.Second)
		if !w.suspended("i1.app.1") {
			t.Fatal("it is not suspended")
		}
		w.want(as, model.DesiredStop)
		w.renew(5 * time.Second)
		if st := w.driverStatus("i1.app.1"); st.State != driver.Exited || st.ExitCode != 128+9 {
			t.Errorf("it ended as %+v, want it killed", st)
		}
	})
}

// TestPodsAreSuspendedToo, whose tasks live by themselves.
func TestPodsAreSuspendedToo(t *testing.T) {
	inWorld(t, func(w *world) {
		w.renew(5 * time.Second)
		as := w.leased("i1", "serve")
		as.Template.Separate = true
		w.assign(as)
		w.wantState("i1", model.InstanceRunning)
		time.Sleep(6 * time.Second)
		if !w.suspended("i1.app.1") {
			t.Error("it is not suspended")
		}
		w.renew(5 * time.Second)
		if w.suspended("i1.app.1") {
			t.Error("it does not go on with the next lease")
		}
		time.Sleep(5*time.Second + driver.SuspendedFor + time.Second)
		w.wantState("i1", model.InstanceWaiting)
		w.renew(5 * time.Second)
		w.wantState("i1", model.InstanceRunning)
		w.wantRuns("i1.app.1", "i1.app.2")
	})
}

// TestALeaseIsKeptWithoutTheAgent: an agent that is gone renews nothing, and its supervisors suspend
// what runs, and end it later; with one that is back soon all goes on.
func TestALeaseIsKeptWithoutTheAgent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.start()
		defer w.state.End()
		defer func() { w.end() }()
		w.renew(5 * time.Second)
		w.assign(w.leased("i1", "serve"))
		w.end()
		time.Sleep(2 * time.Second)
		w.start()
		w.assign(w.leased("i1", "serve")) // told again, before it has a lease of its own
		w.wantState("i1", model.InstanceRunning)
		w.renew(5 * time.Second)
		time.Sleep(3 * time.Second)
		w.wantState("i1", model.InstanceRunning)
		w.end()
		time.Sleep(6 * time.Second)
		w.start()
		w.assign(w.leased("i1", "serve"))
		if !w.suspended("i1.app.1") {
			t.Error("it was not suspended without an agent, or goes on before there is a lease")
		}
		w.renew(5 * time.Second)
		if w.suspended("i1.app.1") {
			t.Error("the next agent does not let it go on")
		}
		w.end()
		time.Sleep(6*time.Second + driver.SuspendedFor)
		if st := w.driverStatus("i1.app.1"); st.State != driver.Exited || st.Error != driver.Lapsed {
			t.Errorf("without an agent it is %+v", st)
		}
		w.start()
		if st := w.wantState("i1", model.InstanceWaiting); !strings.Contains(st.Message, "lease") {
			t.Errorf("the next agent finds it %s: %s", st.State, st.Message)
		}
		w.renew(5 * time.Second)
		w.wantState("i1", model.InstanceRunning)
		w.wantRuns("i1.app.1", "i1.app.2")
	})
}

// TestTheNextOfASlotWaitsForTheOneBefore, where both are on this node.
func TestTheNextOfASlotWaitsForTheOneBefore(t *testing.T) {
	inWorld(t, func(w *world) {
		one := w.leased("i1", "stubborn")
		one.Instance.Leased = false // its volume lives here
		w.assign(one)
		w.wantState("i1", model.InstanceRunning)
		time.Sleep(time.Second)
		two := w.leased("i2", "serve")
		two.Instance.Leased = false
		w.agent.Assign(&wire.Assign{Put: []wire.Assignment{*two}, Remove: []string{"i1"}})
		time.Sleep(time.Second)
		if st := w.status("i2"); st.State == model.InstanceRunning || !strings.Contains(st.Message, "has this slot still") {
			t.Errorf("while the other is being ended, it is %s: %s", st.State, st.Message)
		}
		if took := w.untilState("i2", model.InstanceRunning); took.Round(time.Second) != 9*time.Second {
			t.Errorf("it waited for %s more, want the rest of the other's grace period", took)
		}
	})
}

func TestADriverThatKeepsNoLeaseGetsNoLeasedTask(t *testing.T) {
	inWorld(t, func(w *world) {
		w.agent.Drivers["oci"] = struct{ driver.Driver }{w.agent.Drivers["oci"]}
		w.renew(5 * time.Second)
		w.assign(w.leased("i1", "serve"))
		if st := w.wantState("i1", model.InstanceFailed); !strings.Contains(st.Message, "does not end tasks with the node's lease") {
			t.Errorf("message is %q", st.Message)
		}
	})
}
