package rollout_test

import (
	"flag"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/tutti-run/tutti/internal/model"
)

// explorer goes through every order in which a few things can happen: each instance takes its next
// step or crashes, or the next step of the rollout is taken. Every rollout step is held against the
// availability floor by the world it happens in. Steps lie so far apart that times do not tell
// states apart.
type explorer struct {
	*testing.T
	seen  map[string]bool
	edges int
}

var deep = flag.Bool("deep", false, "explore updates of three instances, too, and two crashes, which takes minutes")

const between = 20 * time.Second

// copyOf returns a world that goes on by itself.
func (w *world) copyOf() *world {
	c := *w
	c.w = w.w.Clone()
	c.instances = make(map[string]*model.Instance, len(w.instances))
	for id, i := range w.instances {
		c.instances[id] = i.Clone()
	}
	c.created = map[int]int{}
	c.rnd = rand.New(rand.NewPCG(1, 1))
	c.story = slices.Clip(w.story)
	return &c
}

// key is equal for worlds that go on alike.
func (w *world) key(crashes int) string {
	list := w.list()
	slices.SortFunc(list, func(a, b *model.Instance) int { return strings.Compare(a.ID, b.ID) })
	var b strings.Builder
	r := &w.w.Status.Rollout
	fmt.Fprint(&b, crashes, r.State, r.Revision, r.From, r.Step, min(r.Failures, 3), r.Domain, w.w.RevisionID, ";")
	for _, i := range list {
		old := w.now.Sub(i.Created) > 8*time.Minute // near the deadline for getting ready
		fmt.Fprint(&b, i.Slot, i.RevisionID, i.Desired, i.Status.State, i.Status.Ready, i.Status.Health, i.Standby, i.NodeID != "", i.Status.Restarts > 0, old, ";")
	}
	return b.String()
}

func (e *explorer) from(w *world, crashes, depth int) {
	if key := w.key(crashes); depth == 0 || e.seen[key] {
		return
	} else {
		e.seen[key] = true
	}
	then := func(crashes int, do func(c *world) bool) {
		c := w.copyOf()
		c.now = c.now.Add(between)
		if do(c) {
			e.edges++
			e.from(c, crashes, depth-1)
		}
	}
	then(crashes, func(c *world) bool {
		out := c.next()
		return len(out.Actions) > 0 || out.RollBackTo != "" || out.Rollout != w.w.Status.Rollout
	})
	for _, i := range w.list() {
		then(crashes, func(c *world) bool { return c.proceed(c.instances[i.ID]) })
		if crashes > 0 && i.Status.State == model.InstanceRunning {
			then(crashes-1, func(c *world) bool {
				j := c.instances[i.ID]
				unready(j, model.InstanceFailed)
				j.Status.Finished = c.now
				c.tell("%s crashes", j.ID)
				return true
			})
		}
	}
}

// TestTheFloorHoldsInAnyOrder explores updates of two instances with a crash, or with -deep of three with two,
// for good revisions and bad ones, in every way in which they can be rolled out.
func TestTheFloorHoldsInAnyOrder(t *testing.T) {
	type setup struct {
		name   string
		policy model.UpdatePolicy
		plan   model.RolloutPlan
	}
	back, crashes := model.RollBackOnFailure, 1
	if *deep {
		crashes = 2
	}
	setups := []setup{
		{"stop first", model.UpdatePolicy{Parallelism: 1, Order: model.StopFirst, OnFailure: back}, model.RolloutPlan{}},
		{"start first", model.UpdatePolicy{Parallelism: 1, Order: model.StartFirst, OnFailure: back}, model.RolloutPlan{}},
		{"surge and unavailable", model.UpdatePolicy{MaxSurge: 1, MaxUnavailable: 1, OnFailure: back}, model.RolloutPlan{}},
		{"paused on failure", model.UpdatePolicy{Parallelism: 1, Order: model.StopFirst, OnFailure: model.PauseOnFailure}, model.RolloutPlan{}},
		{"canary", model.UpdatePolicy{Parallelism: 2, Order: model.StopFirst, OnFailure: back}, model.RolloutPlan{Canary: []model.CanaryStep{{Percent: 34}}}},
		{"blue and green", model.UpdatePolicy{OnFailure: back}, model.RolloutPlan{BlueGreen: true}},
		{"domains", model.UpdatePolicy{Parallelism: 2, Order: model.StopFirst, OnFailure: back}, model.RolloutPlan{Domains: "node.labels.ud"}},
	}
	for _, s := range setups {
		for _, c := range []conduct{probed, broken} {
			for _, count := range []int{2, 3} {
				if count == 3 && !*deep {
					continue
				}
				t.Run(fmt.Sprintf("%s/%s/%d", s.name, c, count), func(t *testing.T) {
					w := newWorld(t, rand.New(rand.NewPCG(1, 1)), model.ServiceWorkload, count)
					w.w.Update, w.w.Plan = s.policy, s.plan
					w.deploy(probed)
					w.settle()
					w.deploy(c)
					e := &explorer{T: t, seen: map[string]bool{}}
					e.from(w, crashes, 60)
					if len(e.seen) < 100 {
						t.Errorf("only %d states were reached", len(e.seen))
					}
					t.Logf("%d states, %d steps", len(e.seen), e.edges)
				})
			}
		}
	}
}
