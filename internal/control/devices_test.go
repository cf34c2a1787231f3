package control_test

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/tutti-run/tutti/internal/model"
)

// TestDevicesAreHeldByOne makes sure that each named device has one holder, that the next one waits for
// it, and gets it when it is free.
func TestDevicesAreHeldByOne(t *testing.T) {
	inCluster(t, 2, func(c *cluster) {
		devices := map[string][]string{"n00": {"gpu-a", "gpu-b", "gpu-c"}, "n01": {"gpu-d"}}
		for id, names := range devices {
			c.setNode(id, func(n *model.Node) {
				n.Capacity.Custom = map[string]int64{"gpu": int64(len(names)), "licence": 8}
				n.Devices = map[string][]string{"gpu": names}
			})
		}
		wants := func(w *model.Workload) {
			w.Template.Tasks[0].Reserve.Custom = map[string]int64{"gpu": 1, "licence": 1}
		}
		check := func(when string, want int) {
			t.Helper()
			c.settle()
			c.agents()
			holder := map[string]string{}
			for _, name := range []string{"train", "later"} {
				for _, i := range c.instances(name) {
					for kind, names := range i.Devices {
						for _, d := range names {
							if holder[d] != "" || kind != "gpu" || !slices.Contains(devices[i.NodeID], d) {
								t.Errorf("%s: %s on %s holds %s, as does %q", when, i.Name, i.NodeID, d, holder[d])
							}
							holder[d] = i.Name
						}
					}
				}
			}
			if len(holder) != want {
				t.Errorf("%s: devices are held by %v, want %d of them", when, holder, want)
			}
		}
		c.deploy(workload("train", 3, wants))
		check("three of four", 3)
		c.deploy(workload("later", 2, wants))
		check("one too many", 4)
		c.setStatus(c.instances("train")[0], model.InstanceStatus{State: model.InstanceFailed, Finished: time.Now()})
		time.Sleep(time.Minute)
		check("one ended", 4)
		c.deploy(workload("train", 0))
		time.Sleep(time.Minute)
		check("all of them ended", 2)
		if left := c.instances("later"); fmt.Sprint(len(left)) != "2" {
			t.Errorf("%d instances are left, want 2", len(left))
		}
	})
}
