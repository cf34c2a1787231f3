package agent

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/tutti-run/tutti/internal/driver"
	"github.com/tutti-run/tutti/internal/model"
)

// TestOneNamespaceOfProcesses: what holds it begins before the tasks and ends after them, and each run of these enters it.
func TestOneNamespaceOfProcesses(t *testing.T) {
	inWorld(t, func(w *world) {
		serve := w.state.Programs["serve"]
		w.state.Programs[driver.Hold] = serve
		as := w.separately(model.RestartAlways, task("serve"), named("other", "fail"))
		as.Template.Sharing = &model.Sharing{OnePIDs: true}
		w.assign(as)
		w.untilState("i1", model.InstanceRunning)
		time.Sleep(time.Second) // "other" has been started anew
		holder := runID("i1", holderName, 1)
		if st := w.driverStatus(holder); st.State != driver.Running {
			t.Fatalf("what holds the namespace is %+v", st)
		}
		started := w.state.Started()
		if len(started) < 4 || started[0].ID != holder {
			t.Fatalf("started were %v", w.runs())
		}
		want := fmt.Sprintf("/proc/%d/ns/pid", w.driverStatus(holder).PID)
		for _, got := range started {
			if got.ID != holder && got.PIDNS != want {
				t.Errorf("%s entered %q, not %q", got.ID, got.PIDNS, want)
			}
		}
		if at := slices.IndexFunc(started, func(t driver.Task) bool { return t.ID == holder }); started[at].PIDNS != "" || !started[at].Init || len(started[at].Mounts) > 0 {
			t.Errorf("what holds the namespace is %+v", started[at])
		}
		w.want(as, model.DesiredStop)
		w.until("all has ended", func() bool { return w.driverStatus(holder).State == driver.Exited })
		if app := w.driverStatus(runID("i1", "app", 1)); app.State != driver.Exited || w.driverStatus(holder).Finished.Before(app.Finished) {
			t.Errorf("it ended before %+v", app)
		}
	})
}
