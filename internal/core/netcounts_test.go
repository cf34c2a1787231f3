package core_test

import (
	"testing"

	"github.com/tutti-run/tutti/internal/core"
	"github.com/tutti-run/tutti/internal/fault"
	"github.com/tutti-run/tutti/internal/model"
	"github.com/tutti-run/tutti/internal/wire"
)

// TestNetCountsNamesWhatNodesCount for who may see everything, or one namespace, or asks about one workload.
func TestNetCountsNamesWhatNodesCount(t *testing.T) {
	b := newBench(t)
	for _, s := range []struct{ namespace, name string }{{"default", "web"}, {"default", "db"}, {"other", "spy"}} {
		b.put(&model.Workload{Meta: model.Meta{ID: "w-" + s.name, Name: s.name, Namespace: s.namespace, Application: "shop"}})
		b.put(&model.Service{Meta: model.Meta{ID: s.name, Name: s.name, Namespace: s.namespace, Application: "shop"}, WorkloadID: "w-" + s.name})
	}
	b.put(&model.Instance{Meta: model.Meta{ID: "i", Name: "db.1", Namespace: "default", Application: "shop"}, WorkloadID: "w-db", NodeID: "n1"})
	at := func(e wire.ServiceEntrance, n uint64) wire.ServiceCount {
		return wire.ServiceCount{ServiceEntrance: e, Connections: n, Sent: 10 * n, Received: 100 * n}
	}
	b.counts = map[string]wire.CountsReply{
		"n1": {Counts: []wire.ServiceCount{
			at(wire.ServiceEntrance{Service: "web", IP: "10.0.0.9"}, 3), at(wire.ServiceEntrance{Service: "web", Port: 8080, Protocol: "tcp"}, 4),
			at(wire.ServiceEntrance{Instance: "i", IP: "127.0.0.1", Port: 5432, Protocol: "tcp"}, 5), at(wire.ServiceEntrance{Service: "spy", IP: "fd00::9"}, 6),
			at(wire.ServiceEntrance{Service: "group default/shop/many", Port: 81, Protocol: "udp"}, 7), at(wire.ServiceEntrance{Service: "gone", IP: "10.0.0.8"}, 8),
		}, Requests: map[string]uint64{"web": 9, "gone": 1}},
		"n2": {Counts: []wire.ServiceCount{at(wire.ServiceEntrance{Service: "web", IP: "10.0.0.9"}, 1)}},
	}
	type line struct {
		service, entrance, node string
		n                       uint64
	}
	ask := func(who core.Caller, ref string, want ...line) {
		t.Helper()
		got, err := b.NetCounts(t.Context(), who, ref)
		if err != nil {
			t.Fatal(err)
		}
		var lines []line
		for _, s := range got.Services {
			lines = append(lines, line{s.Service, s.Entrance, s.Node, s.Connections + s.Requests})
			if s.Sent != 10*s.Connections || s.Received != 100*s.Connections {
				t.Errorf("bytes are mixed up: %+v", s)
			}
		}
		if len(lines) != len(want) {
			t.Fatalf("counts of %q are %+v, want %+v", ref, lines, want)
		}
		for i := range want {
			if lines[i] != want[i] {
				t.Errorf("counts of %q have %+v, want %+v", ref, lines[i], want[i])
			}
		}
	}
	all := []line{
		{"shop/db.1", "127.0.0.1:5432/tcp", "node-n1", 5}, {"shop/many", ":81/udp", "node-n1", 7},
		{"shop/web", "10.0.0.9", "node-n1", 3}, {"shop/web", "10.0.0.9", "node-n2", 1}, {"shop/web", ":8080/tcp", "node-n1", 4}, {"shop/web", "ingress", "node-n1", 9},
	}
	ask(core.Caller{Grants: []model.Grant{{Role: model.RoleViewer, Namespace: "default"}}}, "", all...)
	ask(core.Caller{Grants: []model.Grant{{Role: model.RoleViewer}}}, "", append(all, line{"shop/spy", "fd00::9", "node-n1", 6})...)
	ask(core.Caller{Grants: []model.Grant{{Role: model.RoleViewer}}}, "shop/db", all[0])
	if _, err := b.NetCounts(t.Context(), core.Caller{Grants: []model.Grant{{Role: model.RoleViewer}}}, "shop/db.1"); !fault.Is(err, fault.Invalid) {
		t.Errorf("counts of an instance give %v", err)
	}
}
