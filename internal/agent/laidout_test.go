package agent

import (
	"testing"

	"github.com/tutti-run/tutti/internal/fault"
	"github.com/tutti-run/tutti/internal/model"
)

// TestAnInstanceIsLaidOutBeforeItIsStarted: it is prepared and held without a run, also by the next agent, and then started
// where it is.
func TestAnInstanceIsLaidOutBeforeItIsStarted(t *testing.T) {
	inWorld(t, func(w *world) {
		as := w.assignment("i1", task("serve"))
		as.Template.KeepEnded = true
		as.Instance.Desired = model.DesiredHold
		w.assign(as)
		w.wantState("i1", model.InstanceHeld)
		w.wantRuns()
		if st, _ := w.agent.workers["i1"].reported(); !st.Finished.IsZero() || len(st.Tasks) > 0 {
			t.Errorf("it never ran, and is %+v", st)
		}
		if p := w.agent.workers["i1"].prepared; p == nil || p.rootfs["app"] == "" {
			t.Errorf("it has no files: %+v", p)
		}
		w.start()
		w.wantRuns()
		started := *as
		started.Instance = as.Instance.Clone()
		started.Instance.Desired, started.Instance.Starts = model.DesiredRun, 1
		w.assign(&started)
		w.untilState("i1", model.InstanceRunning)
		w.wantRuns("i1.app.1")

		w.images.fail = fault.New(fault.Invalid, "no such image")
		other := w.assignment("i2", task("serve"))
		other.Template.KeepEnded = true
		other.Instance.Desired = model.DesiredHold
		w.assign(other)
		w.untilState("i2", model.InstanceFailed)
	})
}
