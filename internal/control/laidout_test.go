package control_test

import (
	"testing"

	"github.com/tutti-run/tutti/internal/model"
)

// TestASuspendedWorkloadIsLaidOut: it gets an instance that has a node and is held, once; and keeps that one when it is started.
func TestASuspendedWorkloadIsLaidOut(t *testing.T) {
	inCluster(t, 2, func(c *cluster) {
		c.put(network("front"))
		with := func(laidOut, suspended bool, starts uint64) func(w *model.Workload) {
			return func(w *model.Workload) {
				w.Template.KeepEnded, w.Suspended, w.LaidOut, w.Starts, w.RemoveWhenEnded = true, suspended, laidOut, starts, true
			}
		}
		c.deploy(workload("box", 1, with(false, true, 0), joins("front")))
		if list := c.instances("box"); len(list) != 0 {
			t.Fatalf("suspended, it has %v", list)
		}
		c.deploy(workload("box", 1, with(true, true, 0), joins("front")))
		c.settle()
		list := c.instances("box")
		if len(list) != 1 || list[0].NodeID == "" || list[0].Desired != model.DesiredHold || len(list[0].Addresses) != 1 {
			t.Fatalf("laid out, it has %+v", list)
		}
		held := list[0]
		c.setStatus(held, model.InstanceStatus{State: model.InstanceHeld})
		c.wantRest()
		if now := c.instances("box"); len(now) != 1 || now[0].ID != held.ID || now[0].Desired != model.DesiredHold {
			t.Fatalf("held, there are %+v", now)
		}
		c.deploy(workload("box", 1, with(false, false, 1), joins("front")))
		c.settle()
		if now := c.instances("box"); len(now) != 1 || now[0].ID != held.ID || now[0].Desired != model.DesiredRun || now[0].Starts != 1 {
			t.Errorf("started, there are %+v", now)
		}
	})
}

// TestWhatCannotBePlacedIsNotLaidOut: its instance waits for a node as long as it is to be laid out.
func TestWhatCannotBePlacedIsNotLaidOut(t *testing.T) {
	inCluster(t, 1, func(c *cluster) {
		with := func(laidOut bool) func(w *model.Workload) {
			return func(w *model.Workload) { w.Template.KeepEnded, w.Suspended, w.LaidOut = true, true, laidOut }
		}
		c.deploy(workload("box", 1, with(true), reserves(1<<60)))
		c.settle()
		if list := c.instances("box"); len(list) != 1 || list[0].NodeID != "" || list[0].Reason == "" {
			t.Fatalf("it has %+v", list)
		}
		c.deploy(workload("box", 1, with(false), reserves(1<<60)))
		c.settle()
		if list := c.instances("box"); len(list) != 0 {
			t.Errorf("given up, it has %+v", list)
		}
	})
}
