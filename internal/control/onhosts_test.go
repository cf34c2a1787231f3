package control_test

import (
	"slices"
	"strings"
	"testing"

	"github.com/tutti-run/tutti/internal/model"
)

// TestNetworksOfHosts: addresses come from the range that is the cluster's, whatever the node; services have no
// virtual IP; and nodes that are not on the network take nothing that is to be.
func TestNetworksOfHosts(t *testing.T) {
	inCluster(t, 3, func(c *cluster) {
		for _, id := range []string{"n00", "n01"} {
			n := get[*model.Node](c, id).Clone()
			if n.Attributes == nil {
				n.Attributes = map[string]string{}
			}
			n.Attributes[model.DriverMacvlan] = "eth0,lan1"
			c.put(n)
		}
		lan := network("lan")
		lan.Driver, lan.Subnet = model.DriverMacvlan, "192.168.1.0/24"
		lan.Underlay = &model.Underlay{Parent: "lan1", Range: "192.168.1.0/29", Reserved: []string{"192.168.1.3"}}
		c.put(lan)
		c.put(network("front"))
		on := func(w *model.Workload) {
			w.Template.Networks = []model.Attachment{{Network: "lan", Link: &model.Link{Driver: lan.Driver, Parent: "lan1"}}, {Network: "front"}}
		}
		lost := workload("lost", 1, func(w *model.Workload) {
			w.Template.Networks = []model.Attachment{{Network: "lan", Link: &model.Link{Driver: lan.Driver, Parent: "lan2"}}}
		})
		c.deploy(lost)
		c.settle()
		if i := c.instances("lost"); len(i) != 1 || i[0].NodeID != "" || !strings.Contains(i[0].Reason, "no interface lan2 that networks of the driver macvlan can be on") {
			t.Errorf("with no such interface it is %+v", *i[0])
		}
		web := workload("web", 5, on)
		c.put(&model.Service{Meta: model.Meta{ID: "s-web", Namespace: "default", Application: "shop", Name: "web"}, WorkloadID: web.ID, Networks: []string{"lan", "front"}})
		c.deploy(web)
		c.settle()
		var got []string
		for _, i := range c.instances("web") {
			if i.NodeID != "n00" && i.NodeID != "n01" {
				t.Errorf("%s is on %q: %s", i.Name, i.NodeID, i.Reason)
				continue
			}
			got = append(got, i.Addresses[0].IP)
		}
		slices.Sort(got)
		if want := []string{"192.168.1.2", "192.168.1.4", "192.168.1.5", "192.168.1.6", "192.168.1.7"}; !slices.Equal(got, want) {
			t.Errorf("they have %v, want %v", got, want)
		}
		if v := get[*model.Service](c, "s-web").Status.VirtualIPs; len(v) != 1 || v[0].Network != "front" {
			t.Errorf("the service has %v", v)
		}
		if n := get[*model.Network](c, "lan").Status; n.Subnet != lan.Subnet || len(n.Blocks) > 0 {
			t.Errorf("the network is %+v", n)
		}
		other := workload("other", 1, on)
		c.deploy(other)
		c.settle()
		if i := c.instances("other"); len(i) != 1 || i[0].NodeID != "" || !strings.Contains(i[0].Reason, "no address left in 192.168.1.0/29") {
			t.Errorf("with no address left it is %+v", *i[0])
		}
	})
}
