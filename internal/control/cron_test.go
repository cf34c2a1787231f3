package control_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/tutti-run/tutti/internal/model"
	"github.com/tutti-run/tutti/internal/store"
)

// scheduled returns a workload that starts a run every five minutes. The clock of a bubble begins
// at midnight UTC.
func scheduled(change ...func(w *model.Workload)) *model.Workload {
	return workload("backup", 1, append([]func(w *model.Workload){func(w *model.Workload) {
		w.Type, w.Cron = model.CronWorkload, model.CronPolicy{Schedule: "*/5 * * * *"}
		w.Template.Restart.Condition = model.RestartNever
	}}, change...)...)
}

func overlap(o model.CronOverlap) func(w *model.Workload) {
	return func(w *model.Workload) { w.Cron.Overlap = o }
}

// runsOf names the runs that there are, oldest first.
func (c *cluster) runsOf(id string) (names []string) {
	for w := range store.List[*model.Workload](c.store.Snapshot()) {
		if w.OwnerID == id {
			names = append(names, strings.TrimPrefix(w.Name, "backup-20000101-"))
		}
	}
	slices.Sort(names)
	return names
}

// pass lets time go by, and agents run what is there; finish lets tasks complete.
func (c *cluster) pass(d time.Duration, finish bool) {
	c.Helper()
	time.Sleep(d)
	synctest.Wait()
	c.agents()
	if !finish {
		return
	}
	for i := range store.List[*model.Instance](c.store.Snapshot()) {
		if i.Status.State == model.InstanceRunning && i.Desired == model.DesiredRun {
			c.setStatus(i, model.InstanceStatus{State: model.InstanceCompleted, Finished: time.Now()})
		}
	}
}

func TestScheduleStartsRuns(t *testing.T) {
	inCluster(t, 2, func(c *cluster) {
		c.deploy(scheduled())
		if runs := c.runsOf("w-backup"); len(runs) != 0 {
			t.Fatalf("runs at once: %v", runs)
		}
		c.pass(5*time.Minute, true)
		c.pass(5*time.Minute, true)
		if runs := c.runsOf("w-backup"); fmt.Sprint(runs) != "[0005 0010]" {
			t.Errorf("after ten minutes: %v", runs)
		}
		for range 8 {
			c.pass(5*time.Minute, true)
		}
		if runs := c.runsOf("w-backup"); fmt.Sprint(runs) != "[0040 0045 0050]" {
			t.Errorf("of ten runs that completed there are still %v, want the last three", runs)
		}
		w := get[*model.Workload](c, "w-backup")
		if next := w.Status.Cron.Next.Format("15:04"); next != "00:55" || w.Status.Cron.Active != 0 {
			t.Errorf("status: %+v", w.Status.Cron)
		}
		c.commit(func(cs *store.ChangeSet) {
			for w := range store.List[*model.Workload](c.store.Snapshot()) {
				cs.Delete(model.KindWorkload, w.ID)
			}
		})
		c.pass(time.Minute, false)
		for i := range store.List[*model.Instance](c.store.Snapshot()) {
			t.Errorf("%s is left behind", i.Name)
		}
	})
}

func TestRunsThatOverlap(t *testing.T) {
	for policy, want := range map[model.CronOverlap]string{
		"":                   "[0005 0010 0015]",
		model.OverlapForbid:  "[0005]",
		model.OverlapReplace: "[0015]",
	} {
		inCluster(t, 2, func(c *cluster) {
			c.deploy(scheduled(overlap(policy)))
			for range 3 {
				c.pass(5*time.Minute, false)
			}
			if runs := c.runsOf("w-backup"); fmt.Sprint(runs) != want {
				t.Errorf("%q: %v, want %s", policy, runs, want)
			}
			skipped := get[*model.Workload](c, "w-backup").Status.Cron.Skipped
			if (policy == model.OverlapForbid) != strings.Contains(skipped, "an earlier run has not ended") {
				t.Errorf("%q: left out: %q", policy, skipped)
			}
		})
	}
}

// TestMissedRuns: while nobody leads, nothing is started; then the latest run is, unless it is too late.
func TestMissedRuns(t *testing.T) {
	for within, want := range map[time.Duration]string{0: "[0020]", time.Minute: "[]", 3 * time.Minute: "[0020]"} {
		inCluster(t, 1, func(c *cluster) {
			c.deploy(scheduled(func(w *model.Workload) { w.Cron.StartWithin = within }))
			c.stop()
			c.stop = nil
			time.Sleep(22 * time.Minute)
			c.lead()
			c.settle()
			if runs := c.runsOf("w-backup"); fmt.Sprint(runs) != want {
				t.Errorf("within %s: %v, want %s", within, runs, want)
			}
		})
	}
}

func TestASuspendedScheduleMakesUpForNothing(t *testing.T) {
	inCluster(t, 1, func(c *cluster) {
		c.deploy(scheduled(func(w *model.Workload) { w.Suspended = true }))
		c.pass(12*time.Minute, false)
		c.deploy(scheduled())
		if runs := c.runsOf("w-backup"); len(runs) != 0 {
			t.Errorf("runs of while it was suspended: %v", runs)
		}
		c.pass(5*time.Minute, false)
		if runs := c.runsOf("w-backup"); fmt.Sprint(runs) != "[0015]" {
			t.Errorf("runs: %v, want that of 00:15", runs)
		}
	})
}

func TestAJobOnEveryNode(t *testing.T) {
	inCluster(t, 3, func(c *cluster) {
		c.deploy(workload("scan", 0, kind(model.GlobalJobWorkload), func(w *model.Workload) { w.Template.Restart.Condition = model.RestartOnFailure }))
		c.pass(time.Second, true)
		c.addNode(3)
		c.pass(time.Second, true)
		c.pass(time.Minute, true)
		on := map[string]int{}
		for i := range store.InstancesOfWorkload(c.store.Snapshot(), "w-scan") {
			on[i.NodeID]++
			if i.Status.State != model.InstanceCompleted {
				t.Errorf("%s is %s", i.Name, i.Status.State)
			}
		}
		if len(on) != 4 || on["n00"] != 1 || on["n03"] != 1 {
			t.Errorf("runs by node: %v, want one on each of four", on)
		}
		c.wantRest()
	})
}
