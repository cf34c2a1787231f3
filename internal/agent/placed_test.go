package agent

import (
	"slices"
	"testing"
	"time"

	"github.com/tutti-run/tutti/internal/model"
)

// TestWhatATaskIsToldOnceItIsPlaced holds that names in braces are filled in, and that Env wins.
func TestWhatATaskIsToldOnceItIsPlaced(t *testing.T) {
	inWorld(t, func(w *world) {
		spec := task("serve")
		spec.PlacedEnv = []string{"A={port.0},{port.1},{port.2}", "ID={instance.id}.{run}", "B=placed", "C={node.name}{unknown}"}
		spec.Env = []string{"B=own"}
		as := w.assignment("i1", spec)
		as.Instance.HostPorts = []model.HostPort{{Protocol: "tcp", Published: 21000, Target: 80}, {Protocol: "udp", Published: 21001, Target: 21001}}
		w.assign(as)
		w.wantState("i1", model.InstanceRunning)
		env := w.state.Started()[0].Env
		for _, want := range []string{"A=21000,21001,{port.2}", "ID=i1.1", "B=own", "C=" + w.agent.NodeName + "{unknown}"} {
			if !slices.Contains(env, want) {
				t.Errorf("%s is not in %v", want, env)
			}
		}
	})
}

// TestProbeOnce holds that a probe that is to pass once stops asking then, and does not end the task.
func TestProbeOnce(t *testing.T) {
	p := model.Probe{Interval: time.Second, Retries: 1, Once: true}
	s := newProbeState(p, time.Unix(0, 0), model.HealthNone)
	if got := s.result(time.Unix(100, 0), false); got != model.HealthStarting {
		t.Errorf("it failed and is %s", got)
	}
	if got := s.result(time.Unix(101, 0), true); got != model.HealthHealthy {
		t.Errorf("it passed and is %s", got)
	}
}
