package agent

import (
	"slices"
	"testing"

	"github.com/tutti-run/tutti/internal/driver"
	"github.com/tutti-run/tutti/internal/model"
)

// TestNamespacesOfAnotherWorkload: an instance waits for the one whose network and processes it uses, and then has its
// network namespace, host name and files, and the processes of the task that it names.
func TestNamespacesOfAnotherWorkload(t *testing.T) {
	inWorld(t, func(w *world) {
		guest := w.assignment("guest", task("serve"))
		guest.Instance.Name, guest.Instance.Addresses, guest.Template.Networks = "debug", nil, nil
		guest.Template.Sharing = &model.Sharing{NetworkOf: "web", PIDsOf: "web", PIDsTask: "side"}
		host := w.assignment("host", task("serve"), named("side", "serve"))
		host.Instance.Name, host.Template.Hostname = "web", "front"
		w.assign(guest)
		w.wantState("guest", model.InstancePreparing)
		w.assign(host)
		w.untilState("guest", model.InstanceRunning)
		started := w.state.Started()
		at := slices.IndexFunc(started, func(t driver.Task) bool { return t.ID == runID("guest", "app", 1) })
		if at < 0 {
			t.Fatalf("the guest was not started: %v", w.runs())
		}
		got := started[at]
		if got.NetNS != "/netns/host" || got.Hostname != "front" || got.PIDNS != "/proc/1000/ns/pid" {
			t.Errorf("it has network %q, host name %q, processes %q", got.NetNS, got.Hostname, got.PIDNS)
		}
		hosts := slices.IndexFunc(got.Mounts, func(m driver.Mount) bool { return m.Target == "/etc/hosts" })
		w.agent.mu.Lock()
		want := w.agent.workers["host"].filesDir() + "/hosts"
		w.agent.mu.Unlock()
		if hosts < 0 || got.Mounts[hosts].Source != want {
			t.Errorf("its files are %+v", got.Mounts)
		}
	})
}
