package agent

import (
	"context"
	"testing"
	"time"

	"github.com/tutti-run/tutti/internal/fault"
	"github.com/tutti-run/tutti/internal/model"
)

// TestBoundsFollowWhileTasksRun: an instance is bounded anew without a new run, at once or as its assignment says, also
// after a restart of the agent, and its next run begins with the bounds and the restart policy of by then.
func TestBoundsFollowWhileTasksRun(t *testing.T) {
	inWorld(t, func(w *world) {
		limit := func() uint64 {
			w.Helper()
			st, err := w.agent.Stats(context.Background(), "i1", "app")
			if err != nil {
				w.Fatal(err)
			}
			return st.MemoryLimitBytes
		}
		as := w.assignment("i1", task("serve"))
		as.Template.KeepEnded = true
		with := func(bytes int64, restart model.RestartCondition) {
			c := *as
			template := as.Template.Clone()
			template.Tasks[0].Limit.MemoryBytes, template.Restart = bytes, model.RestartPolicy{Condition: restart, Delay: time.Second}
			c.Template = &template
			as = &c
			w.assign(as)
		}
		w.assign(as)
		w.wantState("i1", model.InstanceRunning)
		if err := w.agent.Bound(context.Background(), "i1", "app", model.Bounds{Limit: model.Resources{MemoryBytes: 7 << 20}}); err != nil {
			w.Fatal(err)
		}
		if got := limit(); got != 7<<20 {
			w.Errorf("told at once, it is bounded to %d bytes", got)
		}
		with(9<<20, model.RestartAlways)
		if got := limit(); got != 9<<20 {
			w.Errorf("assigned so, it is bounded to %d bytes", got)
		}
		w.start()
		with(11<<20, model.RestartAlways)
		if got := limit(); got != 11<<20 {
			w.Errorf("after a restart of the agent it is bounded to %d bytes", got)
		}
		w.wantRuns("i1.app.1")

		kill := func(run string) {
			if err := w.agent.Drivers["oci"].Kill(context.Background(), run); err != nil {
				w.Fatal(err)
			}
		}
		kill("i1.app.1")
		time.Sleep(5 * time.Second)
		w.wantRuns("i1.app.1", "i1.app.2")
		if got := limit(); got != 11<<20 {
			w.Errorf("its next run is bounded to %d bytes", got)
		}
		with(11<<20, model.RestartNever)
		kill("i1.app.2")
		w.untilState("i1", model.InstanceHeld)
		if err := w.agent.Bound(context.Background(), "i1", "app", model.Bounds{}); !fault.Is(err, fault.Unavailable) {
			w.Errorf("bounding what has ended gave %v", err)
		}
	})
}
