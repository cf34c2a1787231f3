package rollout_test

import (
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/tutti-run/tutti/internal/model"
)

// planned returns a world in which a good revision runs, and a probed one is deployed on a plan.
func planned(t *testing.T, count int, plan model.RolloutPlan, change ...func(w *model.Workload)) *world {
	w := newWorld(t, rand.New(rand.NewPCG(5, 5)), model.ServiceWorkload, count)
	w.w.Update = model.UpdatePolicy{OnFailure: model.RollBackOnFailure, Order: model.StartFirst}
	w.w.Plan = plan
	for _, f := range change {
		f(w.w)
	}
	w.deploy(probed)
	w.settle()
	return w
}

// rest lets things go on for a while without promoting anything.
func (w *world) rest(d time.Duration) {
	for end := w.now.Add(d); w.now.Before(end); w.now = w.now.Add(100 * time.Millisecond) {
		w.next()
		for _, i := range w.list() {
			w.proceed(i)
		}
	}
}

// running counts the instances of the present revision, and how many of those serve.
func (w *world) running() (fresh, serving int) {
	for _, i := range w.instances {
		if i.RevisionID == w.w.RevisionID && i.WantsToRun() {
			fresh++
			if i.Serving() {
				serving++
			}
		}
	}
	return fresh, serving
}

func (w *world) want(fresh, serving int, message string) {
	w.Helper()
	if f, s := w.running(); f != fresh || s != serving || !strings.Contains(w.w.Status.Rollout.Message, message) {
		w.fail("%d new instances, of which %d serve, message %q; want %d, %d and %q", f, s, w.w.Status.Rollout.Message, fresh, serving, message)
	}
}

func (w *world) promote() {
	w.w.Promoted = model.Promotion{RevisionID: w.w.RevisionID, Steps: w.w.Status.Rollout.Step + 1}
}

func TestCanaryGoesStepByStep(t *testing.T) {
	w := planned(t, 10, model.RolloutPlan{Canary: []model.CanaryStep{{Percent: 10, Hold: time.Minute}, {Percent: 50, Manual: true}}})
	w.deploy(probed)
	w.rest(30 * time.Second)
	w.want(1, 1, "step 1 of 2: 1 of 10 instances are updated, the next step comes at ")
	w.rest(time.Minute)
	w.want(5, 5, "step 2 of 2: 5 of 10 instances are updated, and the others wait for `tutti rollout promote`")
	w.rest(time.Hour)
	w.want(5, 5, "promote")
	w.promote()
	w.rest(time.Minute)
	w.want(10, 10, "")
	if s := w.w.Status.Rollout.State; s != model.RolloutCompleted {
		w.fail("the update is %s", s)
	}
}

func TestABadCanaryIsTakenBack(t *testing.T) {
	w := planned(t, 10, model.RolloutPlan{Canary: []model.CanaryStep{{Percent: 10, Manual: true}}})
	good := w.w.RevisionID
	w.deploy(broken)
	w.rest(20 * time.Minute)
	if w.w.RevisionID != good || w.w.Status.Rollout.State != model.RolloutRolledBack {
		w.fail("it is at %s, %s", w.w.RevisionID, w.w.Status.Rollout.State)
	}
	w.checkComplete(good)
}

func TestBlueGreenSwitchesAtOnce(t *testing.T) {
	w := planned(t, 3, model.RolloutPlan{BlueGreen: true, Manual: true})
	w.deploy(probed)
	w.rest(time.Minute)
	w.want(3, 0, "3 of 3 new instances are ready beside the old ones, and wait for `tutti rollout promote`")
	if n := len(w.serving()); n != 3 {
		w.fail("%d slots serve meanwhile", n)
	}
	w.promote()
	w.next()
	w.want(3, 3, "")
	w.settle()
	w.checkComplete(w.w.RevisionID)
}

// TestBlueGreenThatIsTakenOver: a third revision comes while the second waits beside the first, which
// has to serve on.
func TestBlueGreenThatIsTakenOver(t *testing.T) {
	w := planned(t, 3, model.RolloutPlan{BlueGreen: true, Manual: true})
	first := w.w.RevisionID
	w.deploy(probed)
	w.rest(time.Minute)
	w.deploy(probed)
	w.rest(time.Minute)
	w.want(3, 0, "3 of 3 new instances are ready")
	for _, i := range w.list() {
		if i.Serving() && i.RevisionID != first {
			w.fail("%s of %s serves", i.ID, i.RevisionID)
		}
	}
	w.promote()
	w.settle()
	w.checkComplete(w.w.RevisionID)
}

func TestUpgradeDomainsOneByOne(t *testing.T) {
	w := planned(t, 8, model.RolloutPlan{Domains: "node.labels.ud"}, func(w *model.Workload) { w.Update.Order = model.StopFirst })
	domains := w.input().Domains
	before := map[string]string{}
	for id, i := range w.instances {
		before[id] = domains[i.NodeID]
	}
	w.deploy(probed)
	for range 600 {
		w.next()
		for id, i := range w.instances { // nothing of b is touched before a is through
			if before[id] != "b" || i.Desired == model.DesiredRun {
				continue
			}
			for other, d := range before {
				if o := w.instances[other]; d == "a" && o != nil && o.WantsToRun() && o.RevisionID != w.w.RevisionID {
					w.fail("%s in b is replaced while %s in a has the old revision", id, other)
				}
			}
		}
		for _, i := range w.list() {
			w.proceed(i)
		}
		w.now = w.now.Add(100 * time.Millisecond)
	}
	w.settle()
	w.checkComplete(w.w.RevisionID)
}

func TestPausedByPeople(t *testing.T) {
	w := planned(t, 4, model.RolloutPlan{}, func(w *model.Workload) { w.Update.Parallelism = 1 })
	old := w.w.RevisionID
	w.w.Paused = true
	w.deploy(probed)
	w.rest(time.Minute)
	w.want(0, 0, "")
	w.crash(w.list()[0])
	w.rest(time.Minute)
	w.checkComplete(old) // kept up meanwhile
	w.w.Paused = false
	w.settle()
	w.checkComplete(w.w.RevisionID)
}

func TestAFailedUpdateGoesOnWhenAsked(t *testing.T) {
	w := planned(t, 2, model.RolloutPlan{}, func(w *model.Workload) {
		w.Update = model.UpdatePolicy{Parallelism: 1, OnFailure: model.PauseOnFailure, Order: model.StartFirst}
	})
	w.deploy(broken)
	w.rest(time.Minute)
	if s := w.w.Status.Rollout.State; s != model.RolloutPaused {
		w.fail("the update is %s", s)
	}
	w.conducts[w.w.RevisionID] = probed // what was wrong elsewhere is put right
	w.w.Proceed++
	w.settle()
	w.checkComplete(w.w.RevisionID)
}
