package core_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/tutti-run/tutti/internal/core"
	"github.com/tutti-run/tutti/internal/model"
	"github.com/tutti-run/tutti/internal/store"
)

// reachBench has an application of three services on two networks, with a policy of one of them.
func reachBench(t *testing.T) *bench {
	b := newBench(t)
	task := func(networks ...string) model.Template {
		tmpl := model.Template{Tasks: []model.TaskSpec{{Name: "main", Image: "i"}}}
		for _, n := range networks {
			tmpl.Networks = append(tmpl.Networks, model.Attachment{Network: n})
		}
		return tmpl
	}
	workload := func(name string, networks ...string) *model.Workload {
		return &model.Workload{Meta: model.Meta{Name: name}, Type: model.ServiceWorkload, Count: 1, Template: task(networks...)}
	}
	front := model.Selector{Network: "front"}
	b.deploy(core.Deployment{
		Application: "shop",
		Networks:    []*model.Network{{Meta: model.Meta{Name: "front"}}, {Meta: model.Meta{Name: "back"}, Internal: true}},
		Workloads:   []*model.Workload{workload("web", "front"), workload("db", "front", "back"), workload("job", "back")},
		Services: []*model.Service{
			{Meta: model.Meta{Name: "db"}, WorkloadID: "db", Networks: []string{"front", "back"}, Ports: []model.ServicePort{{Protocol: "tcp", Target: 5432, Published: 15432}}},
		},
		Policies: []*model.Policy{{
			Meta: model.Meta{Name: "db"}, Subject: model.Selector{Application: "shop", Workload: "db"}, IsolateIn: true,
			Rules: []model.PolicyRule{
				{Direction: model.DirectionIn, Peers: []model.Peer{{Selector: &front}, {CIDR: "192.0.2.0/24"}}, Ports: []model.PortRange{{Protocol: "tcp", From: 5432}}},
				{Direction: model.DirectionIn, Deny: true, Peers: []model.Peer{{CIDR: "192.0.2.7/32"}}},
			},
		}},
	})
	addresses := map[string][]string{"web": {"front=10.1.1.2"}, "db": {"front=10.1.1.3", "back=10.1.2.3"}, "job": {"back=10.1.2.4"}}
	for name, list := range addresses {
		w := b.workload(name)
		i := &model.Instance{
			Meta: model.Meta{ID: "instance-" + name, Namespace: w.Namespace, Application: "shop", Name: name + ".1"}, WorkloadID: w.ID, RevisionID: w.RevisionID, Slot: 1,
			NodeID: map[string]string{"web": "n1", "db": "n2", "job": "n1"}[name], Desired: model.DesiredRun,
			Status: model.InstanceStatus{State: model.InstanceRunning, Ready: true},
		}
		for _, a := range list {
			n, ip, _ := strings.Cut(a, "=")
			for _, at := range w.Template.Networks {
				if netName(b, at.Network) == n {
					i.Addresses = append(i.Addresses, model.Address{Network: at.Network, IP: ip})
				}
			}
		}
		b.put(i)
	}
	return b
}

func TestReach(t *testing.T) {
	b := reachBench(t)
	me := core.Local("me", "test")
	for _, c := range []struct {
		from, to string
		port     int
		reaches  bool
		says     string // among the steps
	}{
		{"shop/web", "shop/db", 0, true, "policy true shop/web.1 to shop/db.1, port 5432/tcp: by policy shop/db: allow from * on network shop/front, 192.0.2.0/24 at 5432/tcp"},
		{"shop/web", "shop/db", 0, true, "node true shop/db.1 is at 10.1.1.3 on node-n2, through the tunnel"},
		{"shop/web", "shop/db.1", 22, false, "policy false shop/web.1 to shop/db.1, port 22/tcp: refused by policy shop/db, which lets only those connections to its instances begin that a rule allows"},
		{"shop/job", "shop/db", 5432, false, "policy false shop/job.1 to shop/db.1, port 5432/tcp: refused by policy shop/db"},
		{"shop/web", "shop/job", 80, false, "network false they share no network"},
		{"shop/web", "10.1.2.4", 80, false, "network false they share no network"},
		{"192.0.2.1", "shop/db", 0, true, "policy true 192.0.2.1 to shop/db.1, port 5432/tcp: by policy shop/db"},
		{"192.0.2.7", "shop/db", 0, false, "policy false 192.0.2.7 to shop/db.1, port 5432/tcp: refused by policy shop/db: deny from 192.0.2.7/32"},
		{"192.0.2.1", "shop/web", 80, false, "port false no such port is published"},
		{"shop/web", "192.0.2.1", 80, true, "network true out by shop/front"},
		{"shop/job", "192.0.2.1", 80, false, "network false all networks of shop/job.1 are internal"},
	} {
		r, err := b.Reach(t.Context(), me, core.ReachQuestion{From: c.from, To: c.to, Port: c.port, Try: c.reaches})
		var steps []string
		for _, s := range r.Steps {
			steps = append(steps, fmt.Sprint(s.What, " ", s.OK, " ", s.Says))
		}
		if all := strings.Join(steps, "\n"); err != nil || r.Reaches != c.reaches || !strings.Contains(all, c.says) {
			t.Errorf("%s to %s: %v, %v:\n%s\nwant %v and %q", c.from, c.to, r.Reaches, err, all, c.reaches, c.says)
		}
	}
	if err := b.remove("shop", false); err != nil {
		t.Fatal(err)
	}
	if r, err := b.Reach(t.Context(), me, core.ReachQuestion{From: "shop/web", To: "shop/db"}); err == nil {
		t.Errorf("without the application it is %+v", r)
	}
}

func netName(b *bench, id string) string {
	n, ok := store.Get[*model.Network](b.Store.Snapshot(), id)
	if !ok {
		b.Fatalf("there is no network %s", id)
	}
	return n.Name
}
