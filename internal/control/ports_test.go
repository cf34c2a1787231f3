package control_test

import (
	"strings"
	"testing"
	"time"

	"github.com/tutti-run/tutti/internal/model"
)

// TestPortsOfNodes holds that every instance gets the ports that it asks for, no two on a node the same,
// and that one that is asked for by its number is there once on each node.
func TestPortsOfNodes(t *testing.T) {
	inCluster(t, 2, func(c *cluster) {
		c.put(&model.Service{
			Meta:  model.Meta{ID: "s", Namespace: "default", Name: "s"},
			Ports: []model.ServicePort{{Protocol: "tcp", Published: model.FirstChosenPort}},
		})
		c.deploy(workload("any", 40, func(w *model.Workload) {
			w.Template.Ports = []model.PortRequest{{Protocol: "tcp"}, {Protocol: "udp", Target: 53}}
		}))
		taken := map[string]bool{}
		for _, i := range c.instances("any") {
			if len(i.HostPorts) != 2 || i.HostPorts[0].Target != i.HostPorts[0].Published || i.HostPorts[1].Target != 53 {
				t.Fatalf("%s holds %+v", i.Name, i.HostPorts)
			}
			for _, p := range i.HostPorts {
				key := i.NodeID + p.Protocol + string(rune(p.Published))
				if taken[key] || p.Published <= model.FirstChosenPort && p.Protocol == "tcp" || p.Published > model.LastChosenPort {
					t.Errorf("%s got port %d/%s", i.Name, p.Published, p.Protocol)
				}
				taken[key] = true
			}
		}
		c.deploy(workload("one", 3, func(w *model.Workload) { w.Template.Ports = []model.PortRequest{{Protocol: "tcp", Host: 8080}} }))
		placed := map[string]int{}
		for _, i := range c.instances("one") {
			if placed[i.NodeID]++; i.NodeID == "" && !strings.Contains(i.Reason, "port 8080/tcp taken") {
				t.Errorf("%s waits as %q", i.Name, i.Reason)
			}
		}
		if placed["n00"] != 1 || placed["n01"] != 1 || placed[""] != 1 {
			t.Errorf("they are placed as %v", placed)
		}
	})
}

// TestPatienceWithASilentNode holds that what runs on a node that is down is replaced when its workload
// says so, and goes on when the node is back before.
func TestPatienceWithASilentNode(t *testing.T) {
	down := func(c *cluster, id string) {
		c.setNode(id, func(n *model.Node) { n.Status.State, n.Status.Since = model.NodeDown, time.Now() })
		c.settle()
	}
	for name, policy := range map[string]model.UnreachablePolicy{
		"at once": {}, "after a while": {ReplaceAfter: time.Minute}, "never": {Never: true},
	} {
		t.Run(name, func(t *testing.T) {
			inCluster(t, 2, func(c *cluster) {
				c.deploy(workload("web", 1, func(w *model.Workload) { w.Unreachable = policy }))
				c.agents()
				first := c.instances("web")[0]
				down(c, first.NodeID)
				c.agents()
				now := c.instances("web")
				if name == "at once" {
					if now[0].ID == first.ID {
						t.Error("it was not replaced at once")
					}
					return
				}
				if now[0].ID != first.ID || now[0].Status.Ready || !strings.Contains(now[0].Status.Message, "waited for") {
					t.Errorf("it is %+v, %s", now[0].ID == first.ID, now[0].Status.Message)
				}
				time.Sleep(59 * time.Second)
				c.settle()
				if c.instances("web")[0].ID != first.ID {
					t.Error("it was replaced too early")
				}
				time.Sleep(2 * time.Second)
				c.settle()
				if replaced := c.instances("web")[0].ID != first.ID; replaced != (name == "after a while") {
					t.Errorf("after a minute, it was replaced: %v", replaced)
				}
			})
		})
	}
}

// TestWaitingForAnotherApplication holds that a workload waits until all of one elsewhere is ready.
func TestWaitingForAnotherApplication(t *testing.T) {
	inCluster(t, 2, func(c *cluster) {
		c.deploy(
			workload("db", 2, func(w *model.Workload) { w.Application = "" }),
			workload("web", 1, dependsOn("/db", model.DependencyReady)),
		)
		if got := len(c.instances("web")); got != 0 {
			t.Fatalf("%d run before what they wait for", got)
		}
		c.setStatus(c.instances("db")[0], model.InstanceStatus{State: model.InstanceRunning, Ready: true, Started: time.Now()})
		if got := len(c.instances("web")); got != 0 {
			t.Fatalf("%d run when half of it is ready", got)
		}
		c.setStatus(c.instances("db")[1], model.InstanceStatus{State: model.InstanceRunning, Ready: true, Started: time.Now()})
		if got := len(c.instances("web")); got != 1 {
			t.Fatalf("%d run when all of it is ready", got)
		}
	})
}
