package control_test

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/tutti-run/tutti/internal/model"
)

func (c *cluster) perNode(name string) map[string]int {
	on := map[string]int{}
	for _, i := range c.instances(name) {
		if i.Serving() {
			on[i.NodeID]++
		}
	}
	return on
}

// TestWorkReturnsToAHostThatIsBack loses a host and lets it come back: what asks for it is even
// again after a while, without a moment in which less serves, and then nothing moves any more.
func TestWorkReturnsToAHostThatIsBack(t *testing.T) {
	inCluster(t, 3, func(c *cluster) {
		moves := func(w *model.Workload) { w.Rebalance, w.Update.Order = true, model.StartFirst }
		c.deploy(workload("web", 6, moves))
		c.deploy(workload("api", 6, func(w *model.Workload) { w.Update.Order = model.StartFirst }))
		c.agents()
		c.setNode("n02", func(n *model.Node) { n.Status.State, n.Status.Since = model.NodeDown, time.Now() })
		c.settle()
		for range 20 {
			c.agents()
			time.Sleep(time.Second)
		}
		if on := c.perNode("web"); fmt.Sprint(on) != "map[n00:3 n01:3]" {
			t.Fatalf("after the loss web serves on %v", on)
		}
		c.setNode("n02", func(n *model.Node) { n.Status.State, n.Status.Since = model.NodeReady, time.Now() })
		for range 300 {
			c.agents()
			time.Sleep(time.Second)
			total := 0
			for _, n := range c.perNode("web") {
				total += n
			}
			if total < 6 {
				t.Fatalf("only %d of web serve", total)
			}
		}
		if on := c.perNode("web"); fmt.Sprint(on) != "map[n00:2 n01:2 n02:2]" {
			t.Errorf("web serves on %v, want it even again", on)
		}
		if on := c.perNode("api"); fmt.Sprint(on) != "map[n00:3 n01:3]" {
			t.Errorf("api, which did not ask to move, serves on %v", on)
		}
		told := c.events("instance moves")
		slices.Sort(told)
		if len(told) != 2 {
			t.Errorf("moves: %q; two are enough", told)
		}
		c.wantRest()
	})
}
