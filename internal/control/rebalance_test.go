package control_test

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/tutti-run/tutti/internal/control"
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

// TestWorkLeavesAHotHost lets a service of some instances use so much that one node is hot, for hours and
// with noise. Each node is relieved by few moves, nothing returns to where it came from, and what has
// moved stays.
func TestWorkLeavesAHotHost(t *testing.T) {
	inCluster(t, 3, func(c *cluster) {
		var mu sync.Mutex
		began, cores := time.Now(), map[string]float64{}
		noise := func() float64 { return 1 + 0.1*float64(time.Now().Unix()*7919%11-5)/5 }
		used := map[string]float64{} // nanoseconds, by instance
		last := map[string]time.Time{}
		s := &control.Scaler{Store: c.store, Heat: c.heat, Log: slog.New(slog.DiscardHandler)}
		s.Node = func(_ context.Context, node string) (control.NodeUsage, error) {
			mu.Lock()
			defer mu.Unlock()
			out := control.NodeUsage{Time: time.Now(), Instances: map[string]control.InstanceUsage{}}
			for name := range cores {
				for _, i := range c.instances(name) {
					if i.NodeID != node || !i.Serving() {
						continue
					}
					if at, ok := last[i.ID]; ok {
						used[i.ID] += time.Since(at).Seconds() * cores[name] * 1e9 * noise()
					}
					last[i.ID] = time.Now()
					out.Instances[i.ID] = control.InstanceUsage{CPUNanoseconds: uint64(used[i.ID])}
				}
			}
			return out, nil
		}
		defer c.start("scaler", s.Run)()
		// Three services of one instance each share a node, by what they ask for.
		at := func(w *model.Workload) {
			w.Rebalance, w.Update.Order = true, model.StartFirst
			w.Template.Placement.Strategy = model.BinPack
			w.Template.Tasks[0].Reserve.NanoCPUs = 1e8
		}
		c.deploy(workload("a", 1, at), workload("b", 1, at), workload("c", 1, at))
		c.follow("a", 5*time.Second)
		home := c.instances("a")[0].NodeID
		if c.perNode("b")[home]+c.perNode("c")[home] != 2 {
			t.Fatalf("they are not together: %v %v %v", c.perNode("a"), c.perNode("b"), c.perNode("c"))
		}
		set := func(a, b, d float64) {
			mu.Lock()
			defer mu.Unlock()
			cores["a"], cores["b"], cores["c"] = a, b, d
		}
		set(1.6, 1.4, 0.9) // of four: 98 %
		c.follow("a", 10*time.Minute)
		told := c.events("instance moves")
		if len(told) != 1 || !strings.Contains(told[0], "of its cores") {
			t.Fatalf("moves: %q, want one for heat", told)
		}
		for name := range cores {
			if list := c.instances(name); len(list) != 1 || !list[0].Serving() {
				t.Errorf("%s: %d instances", name, len(list))
			}
		}
		set(0.1, 0.1, 0.1)
		c.follow("a", 90*time.Minute)
		set(1.6, 1.4, 0.9)
		c.follow("a", 90*time.Minute)
		if now := c.events("instance moves"); len(now) != 1 {
			t.Errorf("after %s of coming and going load: %q", time.Since(began), now)
		}
	})
}

// TestRoomIsMade keeps a large instance waiting, which one would have room if a small one were elsewhere.
func TestRoomIsMade(t *testing.T) {
	inCluster(t, 2, func(c *cluster) {
		gib := int64(1) << 30
		c.deploy(workload("fixed", 2, reserves(4*gib))) // of eight, on each
		c.deploy(workload("small", 2, reserves(3*gib/2), func(w *model.Workload) { w.Rebalance, w.Update.Order = true, model.StartFirst }))
		c.follow("small", 40*time.Second)
		c.deploy(workload("large", 1, reserves(3*gib)))
		c.follow("small", 3*time.Minute)
		if list := c.instances("large"); len(list) != 1 || !list[0].Serving() {
			t.Errorf("large is %+v; moves %q", list, c.events("instance moves"))
		}
		if told := c.events("instance moves"); len(told) != 1 || !strings.Contains(told[0], "makes room") {
			t.Errorf("moves: %q", told)
		}
	})
}
