package agent

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/tutti-run/tutti/internal/model"
	"github.com/tutti-run/tutti/internal/wire"
)

// separately is an assignment whose tasks live by themselves.
func (w *world) separately(condition model.RestartCondition, tasks ...model.TaskSpec) *wire.Assignment {
	as := w.assignment("i1", tasks...)
	as.Template.Separate = true
	as.Template.Restart = model.RestartPolicy{Condition: condition, Delay: 10 * time.Second, MaxDelay: 5 * time.Minute, Window: 10 * time.Minute, AtOnce: true}
	return as
}

func taskOf(st model.InstanceStatus, name string) model.TaskStatus {
	i := slices.IndexFunc(st.Tasks, func(t model.TaskStatus) bool { return t.Name == name })
	if i < 0 {
		return model.TaskStatus{}
	}
	return st.Tasks[i]
}

func TestASeparateTaskIsStartedAnewAlone(t *testing.T) {
	inWorld(t, func(w *world) {
		w.assign(w.separately(model.RestartAlways, named("app", "serve"), named("other", "nap", "1m", "3")))
		st := w.wantState("i1", model.InstanceRunning)
		if !st.Ready || st.Restarts != 0 || !taskOf(st, "other").Ready {
			t.Fatalf("status is %+v", st)
		}
		time.Sleep(61 * time.Second) // ends once: started anew at once
		st = w.wantState("i1", model.InstanceRunning)
		other := taskOf(st, "other")
		if other.Run != 2 || other.State != "running" || other.Restarts != 1 || other.Before.ExitCode != 3 || other.Before.Run != 1 || st.Restarts != 1 {
			t.Errorf("the task that ended is %+v", other)
		}
		if app := taskOf(st, "app"); app.Run != 1 || app.Restarts != 0 || app.State != "running" {
			t.Errorf("the task beside it is %+v", app)
		}
		time.Sleep(60 * time.Second) // ends again: now it waits
		st = w.status("i1")
		if other = taskOf(st, "other"); other.State != "exited" || !strings.Contains(other.Waiting, "restarting in 10s") || st.Ready {
			t.Errorf("the task that ended twice is %+v, the instance ready: %v", other, st.Ready)
		}
		time.Sleep(10 * time.Second)
		if other = taskOf(w.status("i1"), "other"); other.Run != 3 || other.Waiting != "" {
			t.Errorf("the task that ended twice is %+v", other)
		}
	})
}

func TestSeparateTasksThatEndForGoodEndTheInstance(t *testing.T) {
	for _, c := range []struct {
		condition model.RestartCondition
		code      string
		state     model.InstanceState
	}{
		{model.RestartNever, "0", model.InstanceCompleted},
		{model.RestartNever, "4", model.InstanceFailed},
		{model.RestartOnFailure, "0", model.InstanceCompleted},
	} {
		inWorld(t, func(w *world) {
			w.assign(w.separately(c.condition, named("a", "nap", "1s", "0"), named("b", "nap", "5s", c.code)))
			time.Sleep(2 * time.Second)
			if st := w.wantState("i1", model.InstanceRunning); st.Ready || taskOf(st, "a").State != "exited" {
				t.Errorf("with one task ended it is %+v", st)
			}
			time.Sleep(4 * time.Second)
			w.wantState("i1", c.state)
		})
	}
}

func TestInitTasksSidecarsAndTasksComeAndGoInOrder(t *testing.T) {
	inWorld(t, func(w *world) {
		as := w.separately(model.RestartAlways, named("app", "serve"))
		side := named("side", "serve")
		side.Sidecar = true
		as.Template.InitTasks = []model.TaskSpec{named("first", "nap", "3s", "0"), side, named("second", "nap", "2s", "0")}
		w.assign(as)
		time.Sleep(time.Second)
		if st := w.wantState("i1", model.InstanceStarting); len(st.Tasks) != 1 {
			t.Errorf("in the first init task's time there is %+v", st.Tasks)
		}
		time.Sleep(3 * time.Second)
		if st := w.wantState("i1", model.InstanceStarting); taskOf(st, "side").State != "running" || taskOf(st, "second").State != "running" || taskOf(st, "app").Run != 0 {
			t.Errorf("in the second init task's time there is %+v", st.Tasks)
		}
		time.Sleep(3 * time.Second)
		w.wantState("i1", model.InstanceRunning)
		w.start() // the agent anew: what has completed is not run again
		if st := w.wantState("i1", model.InstanceRunning); taskOf(st, "first").Run != 1 || taskOf(st, "app").Run != 1 || !st.Ready {
			t.Errorf("after the agent was restarted there is %+v", st.Tasks)
		}
		w.want(as, model.DesiredStop)
		st := w.wantState("i1", model.InstanceCompleted)
		if app, side := taskOf(st, "app"), taskOf(st, "side"); app.Finished.After(side.Finished) {
			t.Errorf("the sidecar ended at %s, before the task at %s", side.Finished, app.Finished)
		}
	})
}

func TestAnInitTaskThatFailsIsTriedAgainOrFailsTheInstance(t *testing.T) {
	inWorld(t, func(w *world) {
		as := w.separately(model.RestartAlways, named("app", "serve"))
		as.Template.InitTasks = []model.TaskSpec{named("first", "nap", "1s", "1")}
		w.assign(as)
		time.Sleep(5 * time.Second)
		if first := taskOf(w.wantState("i1", model.InstanceStarting), "first"); first.Restarts != 1 || first.Waiting == "" {
			t.Errorf("the init task is %+v", first)
		}
		w.want(as, model.DesiredStop)
		w.wantState("i1", model.InstanceCompleted)
	})
	inWorld(t, func(w *world) {
		as := w.separately(model.RestartNever, named("app", "serve"))
		as.Template.InitTasks = []model.TaskSpec{named("first", "nap", "1s", "1")}
		w.assign(as)
		time.Sleep(2 * time.Second)
		if st := w.wantState("i1", model.InstanceFailed); taskOf(st, "app").Run != 0 || !strings.Contains(st.Message, "init first") {
			t.Errorf("status is %+v", st)
		}
	})
}

func TestProbesOfSeparateTasks(t *testing.T) {
	inWorld(t, func(w *world) {
		app := named("app", "serve")
		// The fake driver's exec of what is no program fails; "nap" is one.
		app.Liveness = &model.Probe{Exec: []string{"nap", "10ms", "1"}, Interval: 10 * time.Second, Retries: 3, Delay: time.Minute}
		app.Readiness = &model.Probe{Exec: []string{"nap", "10ms", "0"}, Interval: 10 * time.Second, Retries: 3}
		other := named("other", "serve")
		w.assign(w.separately(model.RestartAlways, app, other))
		time.Sleep(time.Second)
		if st := w.wantState("i1", model.InstanceRunning); !st.Ready || !taskOf(st, "app").Up {
			t.Errorf("status is %+v", st)
		}
		time.Sleep(70 * time.Second)
		if st := w.wantState("i1", model.InstanceRunning); taskOf(st, "app").Restarts != 0 {
			t.Errorf("after two failures in a row it is %+v", taskOf(st, "app"))
		}
		time.Sleep(15 * time.Second)
		st := w.wantState("i1", model.InstanceRunning)
		if app := taskOf(st, "app"); app.Restarts != 1 || app.Run != 2 || taskOf(st, "other").Run != 1 {
			t.Errorf("after three failures in a row it is %+v", app)
		}
	})
	inWorld(t, func(w *world) {
		app := named("app", "serve")
		app.Startup = &model.Probe{Exec: []string{"nap", "10ms", "1"}, Interval: time.Second, Retries: 5}
		w.assign(w.separately(model.RestartAlways, app))
		time.Sleep(3 * time.Second)
		if st := w.wantState("i1", model.InstanceRunning); st.Ready || taskOf(st, "app").Up || taskOf(st, "app").Run != 1 {
			t.Errorf("while it comes up it is %+v", st)
		}
		time.Sleep(4 * time.Second)
		if st := w.status("i1"); taskOf(st, "app").Run != 2 {
			t.Errorf("after it did not come up it is %+v", taskOf(st, "app"))
		}
	})
}
