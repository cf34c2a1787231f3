package core_test

import (
	"strings"
	"testing"

	"github.com/tutti-run/tutti/internal/core"
	"github.com/tutti-run/tutti/internal/fault"
	"github.com/tutti-run/tutti/internal/model"
	"github.com/tutti-run/tutti/internal/store"
)

// onHosts puts the shop's network where the hosts are.
func onHosts(d *core.Deployment) {
	d.Networks[0].Driver, d.Networks[0].Subnet, d.Networks[0].Underlay = model.DriverMacvlan, "192.168.1.0/24", &model.Underlay{Parent: "eth0"}
	d.Services[0].Ports[0].Published = 0
}

func TestNetworkOfHostsIsDeployed(t *testing.T) {
	b := newBench(t)
	for n := range store.List[*model.Node](b.Store.Snapshot()) {
		n = n.Clone()
		n.Attributes = map[string]string{model.DriverMacvlan: "eth0"}
		b.put(n)
	}
	b.deploy(shop(onHosts))
	w, _ := store.ByName[*model.Workload](b.Store.Snapshot(), model.DefaultNamespace, "shop", "web")
	if at := w.Template.Networks[0].Link; at == nil || *at != (model.Link{Driver: model.DriverMacvlan, Parent: "eth0"}) {
		t.Errorf("what it needs of hosts is %+v", at)
	}
	if got := changes(b.deploy(shop(onHosts))); len(got) > 0 {
		t.Errorf("deployed again it says %q", got)
	}
	for name, c := range map[string]struct {
		kind   fault.Kind
		says   string
		change func(d *core.Deployment)
	}{
		"published": {fault.Unsupported, "port 8080 is not published from instances that are on network front", func(d *core.Deployment) { d.Services[0].Ports[0].Published = 8080 }},
		"route":     {fault.Unsupported, "routes do not lead", func(d *core.Deployment) { d.Services[0].Routes = []model.Route{{Host: "a.example", Target: 80}} }},
		"moved":     {fault.Conflict, "cannot be changed", func(d *core.Deployment) { d.Networks[0].Underlay.Parent = "eth1" }},
		"no parent": {fault.Invalid, "parent=eth0", func(d *core.Deployment) { d.Networks[0].Underlay.Parent = "" }},
	} {
		if _, err := b.Deploy(t.Context(), anna, shop(onHosts, c.change)); fault.KindOf(err) != c.kind || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
