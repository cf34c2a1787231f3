package control_test

import (
	"slices"
	"testing"

	"github.com/tutti-run/tutti/internal/model"
)

// TestTaints tells what of what runs on a node stays when it gets a taint: all of it where only what
// comes is kept off, and what tolerates the taint where it evicts.
func TestTaints(t *testing.T) {
	inCluster(t, 3, func(c *cluster) {
		tolerates := func(w *model.Workload) {
			w.Template.Placement.Tolerations = []model.Toleration{{Key: "upkeep"}}
		}
		c.deploy(workload("web", 3), workload("tough", 3, tolerates),
			workload("agent", 0, kind(model.GlobalWorkload)), workload("guard", 0, kind(model.GlobalWorkload), tolerates))
		c.agents()
		on := func(name string) []string { return nodesOf(c.instances(name)) }
		all, rest := []string{"n00", "n01", "n02"}, []string{"n00", "n02"}
		want := func(when string, want map[string][]string) {
			t.Helper()
			c.settle()
			c.agents()
			for name, nodes := range want {
				if got := on(name); !slices.Equal(slices.Compact(got), nodes) {
					t.Errorf("%s: %s is on %v, want %v", when, name, got, nodes)
				}
			}
		}
		taint := func(effect string) {
			c.setNode("n01", func(n *model.Node) { n.Taints = []model.Taint{{Key: "upkeep", Effect: effect}} })
		}
		want("before", map[string][]string{"web": all, "tough": all, "agent": all, "guard": all})
		taint("noSchedule")
		want("with a taint for what comes", map[string][]string{"web": all, "tough": all, "agent": all, "guard": all})
		taint("noExecute")
		want("with a taint that evicts", map[string][]string{"web": rest, "tough": all, "agent": rest, "guard": all})
		if n := len(on("web")); n != 3 {
			t.Errorf("%d instances of web are left, want 3", n)
		}
		c.setNode("n01", func(n *model.Node) { n.Taints = nil })
		want("afterwards", map[string][]string{"web": rest, "tough": all, "agent": all, "guard": all})
		c.wantRest()
	})
}
