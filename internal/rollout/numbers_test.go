package rollout_test

import (
	"slices"
	"testing"
	"time"

	"github.com/tutti-run/tutti/internal/model"
	"github.com/tutti-run/tutti/internal/rollout"
)

// TestWhoGoesFirst holds which instances end when there are too many, and that others keep their slots.
func TestWhoGoesFirst(t *testing.T) {
	age := func(h int) func(*model.Instance) {
		return func(i *model.Instance) { i.Created = dawn.Add(-time.Duration(h) * time.Hour) }
	}
	all := []*model.Instance{at(1, "B", age(1)), at(2, "B", age(4)), at(3, "B", age(2)), at(4, "B", age(3))}
	for _, c := range []struct {
		name  string
		order model.EndOrder
		count int
		have  []*model.Instance
		ends  []string
		made  []int
	}{
		{"the highest slots", "", 2, all, []string{"B3", "B4"}, nil},
		{"the youngest", model.YoungestFirst, 2, all, []string{"B1", "B3"}, nil},
		{"the oldest", model.OldestFirst, 2, all, []string{"B2", "B4"}, nil},
		{"none", model.YoungestFirst, 4, all, nil, nil},
		{"one whose end was asked for makes no room", model.YoungestFirst, 3, []*model.Instance{at(1, "B", desired(model.DesiredStop)), at(2, "B"), at(3, "B"), at(4, "B")}, nil, nil},
		{"what is missing takes the lowest numbers", model.YoungestFirst, 3, []*model.Instance{at(3, "B", age(1))}, nil, []int{1, 2}},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := in(service(c.count), model.RolloutCompleted)
			w.EndFirst = c.order
			out := rollout.Next(rollout.Input{Workload: w, Instances: c.have, Now: dawn.Add(time.Minute)})
			var ends []string
			var made []int
			for _, a := range out.Actions {
				switch a.Type {
				case rollout.Drain, rollout.Stop:
					ends = append(ends, a.InstanceID)
				case rollout.Create:
					made = append(made, a.Slot)
				}
			}
			slices.Sort(ends)
			if !slices.Equal(ends, c.ends) || !slices.Equal(made, c.made) {
				t.Errorf("%v end and %v are made; want %v and %v", ends, made, c.ends, c.made)
			}
		})
	}
}

// TestAnUpdateThatWaits holds that an update which is to wait for what fails neither goes on nor ends.
func TestAnUpdateThatWaits(t *testing.T) {
	w := service(3)
	w.Update.OnFailure = model.WaitOnFailure
	have := []*model.Instance{at(1, "B", state(model.InstanceWaiting, time.Second)), at(1, "A", named("A1")), at(2, "A"), at(3, "A")}
	out := rollout.Next(rollout.Input{Workload: w, Instances: have, Now: dawn.Add(time.Hour)})
	if len(out.Actions) != 0 || out.Rollout.State != model.RolloutUpdating {
		t.Errorf("it does %+v and is %s", out.Actions, out.Rollout.State)
	}
}
