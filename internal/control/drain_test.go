package control_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/tutti-run/tutti/internal/model"
)

// follow lets agents work, a second at a time, and returns the fewest that served meanwhile.
func (c *cluster) follow(name string, d time.Duration) int {
	least := 1 << 30
	for end := time.Now().Add(d); time.Now().Before(end); {
		c.agents()
		time.Sleep(time.Second)
		serving := 0
		for _, n := range c.perNode(name) {
			serving += n
		}
		least = min(least, serving)
	}
	return least
}

// TestADrainWaitsForTheWindow drains a node of services with and without a maintenance window; the clock
// of the test begins at midnight.
func TestADrainWaitsForTheWindow(t *testing.T) {
	inCluster(t, 3, func(c *cluster) {
		at2 := func(w *model.Workload) { w.Maintenance = []model.Window{{At: "0 2 * * *", For: time.Hour}} }
		c.deploy(workload("web", 3, at2), workload("api", 3), workload("each", 0, at2, func(w *model.Workload) { w.Type = model.GlobalWorkload }))
		c.follow("web", 5*time.Second)
		c.setNode("n02", func(n *model.Node) { n.Availability = model.Draining })
		c.follow("web", 10*time.Minute)
		if on := c.perNode("api"); on["n02"] != 0 {
			t.Errorf("api, without a window, serves on %v", on)
		}
		if on := fmt.Sprint(c.perNode("web"), c.perNode("each")); on != "map[n00:1 n01:1 n02:1] map[n00:1 n01:1 n02:1]" {
			t.Fatalf("before the window web and each serve on %s", on)
		}
		if least := c.follow("web", 2*time.Hour); least < 3 {
			t.Errorf("only %d of web served at a time", least)
		}
		if on := fmt.Sprint(c.perNode("web")["n02"], c.perNode("each")); on != "0 map[n00:1 n01:1]" {
			t.Errorf("after the window began web and each serve on the node, and each on: %s", on)
		}
	})
}

// TestAFlappingNodeKeepsItsInstances loses a node for less, and then for more, than its instances are
// waited for.
func TestAFlappingNodeKeepsItsInstances(t *testing.T) {
	inCluster(t, 3, func(c *cluster) {
		c.deploy(workload("web", 3, func(w *model.Workload) { w.Unreachable.ReplaceAfter = 2 * time.Minute }))
		c.follow("web", 5*time.Second)
		before := map[string]bool{}
		for _, i := range c.instances("web") {
			before[i.ID] = true
		}
		state := func(s model.NodeState) {
			c.setNode("n02", func(n *model.Node) { n.Status.State, n.Status.Since = s, time.Now() })
			c.settle()
		}
		for range 3 {
			state(model.NodeDown)
			time.Sleep(time.Minute)
			state(model.NodeReady)
			c.follow("web", 10*time.Second)
		}
		for _, i := range c.instances("web") {
			if !before[i.ID] || i.Status.State.Final() {
				t.Errorf("%s, %s %q: not one of those from before", i.ID, i.Status.State, i.Status.Message)
			}
		}
		state(model.NodeDown)
		time.Sleep(3 * time.Minute)
		c.settle()
		told := strings.Join(c.events("instance lost"), "\n")
		if !strings.Contains(told, "is down") {
			t.Errorf("after longer it is not given up: %q", told)
		}
	})
}
