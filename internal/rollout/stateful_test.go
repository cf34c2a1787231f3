package rollout_test

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/tutti-run/tutti/internal/model"
	"github.com/tutti-run/tutti/internal/rollout"
)

// checkOrder holds a step of a stateful workload against what makes it one: never two instances in
// a slot, and slots that wait for each other.
func (w *world) checkOrder(in rollout.Input, out rollout.Output) {
	w.Helper()
	if w.w.Type != model.StatefulWorkload {
		return
	}
	live := map[int]int{}
	for _, i := range w.instances {
		if !i.Status.State.Final() {
			if live[i.Slot]++; live[i.Slot] > 1 {
				w.fail("slot %d holds two instances that have not ended", i.Slot)
			}
		}
	}
	if w.w.Start == model.Parallel {
		return
	}
	slots := map[string]int{}
	last := 0
	for _, i := range in.Instances {
		if slots[i.ID] = i.Slot; !i.Status.State.Final() {
			last = max(last, i.Slot)
		}
	}
	for _, a := range out.Actions {
		if s := slots[a.InstanceID]; s > in.Workload.Count && (a.Type == rollout.Drain || a.Type == rollout.Stop) && s < last {
			w.fail("slot %d is ended before slot %d", s, last)
		}
	}
}

// inline reports whether an empty slot waits for those before it to serve: an update does not wait
// for that, which might be for ever.
func (w *world) inline(slot string) bool {
	if w.w.Type != model.StatefulWorkload || w.w.Start == model.Parallel {
		return false
	}
	for _, i := range w.instances {
		if w.slotOf(i) == slot && !i.Status.State.Final() {
			return false
		}
	}
	return true
}

func stateful(count int, change ...func(*model.Workload)) *model.Workload {
	w := service(count)
	w.Type = model.StatefulWorkload
	for _, f := range change {
		f(w)
	}
	return w
}

func parallel(w *model.Workload) { w.Start = model.Parallel }

// TestStateful: B is the present revision, A the one before; instances at() a slot run and are ready
// unless the test says otherwise.
func TestStateful(t *testing.T) {
	going := desired(model.DesiredStop)
	starting := func(i *model.Instance) { i.Status.State, i.Status.Ready = model.InstanceStarting, false }
	lost := state(model.InstanceLost, 0)
	for _, c := range []struct {
		name      string
		workload  *model.Workload
		instances []*model.Instance
		want      []string
	}{
		{"starts with the first", stateful(3), nil, []string{"create B in 1"}},
		{"goes on when that is ready", stateful(3), []*model.Instance{at(1, "B")}, []string{"create B in 2"}},
		{"and not before", stateful(3), []*model.Instance{at(1, "B", starting)}, nil},
		{"starts all at once", stateful(3, parallel), nil, []string{"create B in 1", "create B in 2", "create B in 3"}},
		{"replaces what was lost", stateful(2), []*model.Instance{at(1, "B"), at(2, "B", lost)}, []string{"create B in 2"}},
		{"waits for what has not ended", stateful(1), []*model.Instance{at(1, "B", going)}, nil},
		{"ends the last first", stateful(1), []*model.Instance{at(1, "B"), at(2, "B"), at(3, "B")}, []string{"drain B3"}},
		{"and then the one before", stateful(1), []*model.Instance{at(1, "B"), at(2, "B"), at(3, "B", going)}, nil},
		{"ends all at once", stateful(1, parallel), []*model.Instance{at(1, "B"), at(2, "B"), at(3, "B")}, []string{"drain B2", "drain B3"}},
		{"updates the last first", in(stateful(3), model.RolloutUpdating), []*model.Instance{at(1, "A"), at(2, "A"), at(3, "A")}, []string{"drain A3"}},
		{"one at a time", in(stateful(3), model.RolloutUpdating), []*model.Instance{at(1, "A"), at(2, "A"), at(3, "A", going)}, nil},
		{"leaves a node stop first", stateful(1), []*model.Instance{at(1, "B", on("gone"))}, []string{"drain B1"}},
		{"and one at a time", stateful(2), []*model.Instance{at(1, "B", on("gone")), at(2, "B", on("gone"))}, []string{"drain B2"}},
		{"also where nothing can be started yet", stateful(2), []*model.Instance{at(1, "B", on("gone")), at(2, "B", on(""), starting)}, []string{"drain B1"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			out := rollout.Next(rollout.Input{Workload: c.workload, Instances: c.instances, Leaving: map[string]bool{"gone": true}, Now: dawn})
			if got := told(out); !slices.Equal(got, c.want) {
				t.Errorf("to do: %q, want %q (%s)", got, c.want, fmt.Sprint(out.Rollout))
			}
		})
	}
}

// TestADrainKeepsEnough drains the nodes of what has to end before it is replaced; so many stay ready as
// the workload asks for.
func TestADrainKeepsEnough(t *testing.T) {
	for name, c := range map[string]struct {
		kind model.WorkloadKind
		keep int
		ends int
	}{
		"slots":               {model.StatefulWorkload, 2, 1},
		"all of them at once": {model.StatefulWorkload, 0, 3},
		"none":                {model.StatefulWorkload, 3, 0},
		"fixed addresses":     {model.ServiceWorkload, 1, 2},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, rand.New(rand.NewPCG(1, 1)), c.kind, 3)
			w.w.Start, w.w.MinAvailable = model.Parallel, c.keep
			if c.kind == model.ServiceWorkload {
				w.w.Start, w.w.Template.Networks = "", []model.Attachment{{Network: "n", Address: "10.0.0.7"}}
			}
			w.deploy(probed)
			w.settle()
			for _, n := range w.nodes {
				n.Availability = model.Draining
			}
			out := rollout.Next(w.input())
			ends := 0
			for _, a := range out.Actions {
				switch a.Type {
				case rollout.Drain, rollout.Stop:
					ends++
				case rollout.Create:
					t.Errorf("%+v: another one starts before the old one has ended", a)
				}
			}
			if ends != c.ends {
				t.Errorf("%d end, want %d: %+v", ends, c.ends, out.Actions)
			}
		})
	}
}
