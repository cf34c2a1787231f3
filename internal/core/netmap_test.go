package core_test

import (
	"testing"

	"github.com/tutti-run/tutti/internal/core"
	"github.com/tutti-run/tutti/internal/fault"
	"github.com/tutti-run/tutti/internal/model"
	"github.com/tutti-run/tutti/internal/wire"
)

// TestNetMapSaysWhoTalksToWhom sums up what two nodes tell, for who may know both ends, one of them, and none.
func TestNetMapSaysWhoTalksToWhom(t *testing.T) {
	b := newBench(t)
	for _, w := range []struct{ namespace, name, ip string }{{"default", "web", "10.0.0.1"}, {"default", "db", "10.0.0.2"}, {"other", "spy", "10.0.0.3"}} {
		b.put(&model.Workload{Meta: model.Meta{ID: w.name, Name: w.name, Namespace: w.namespace, Application: "shop"}})
		b.put(&model.Instance{
			Meta: model.Meta{ID: w.name + "-1", Name: w.name + ".1", Namespace: w.namespace, Application: "shop"}, WorkloadID: w.name, NodeID: "n1",
			Addresses: []model.Address{{Network: "x", IP: w.ip}},
		})
	}
	b.put(&model.Service{
		Meta: model.Meta{ID: "s", Name: "db", Namespace: "default", Application: "shop"}, WorkloadID: "db",
		Status: model.ServiceStatus{VirtualIPs: []model.Address{{Network: "x", IP: "10.0.0.200"}}},
	})
	ends := func(from, to, via string, port uint16) wire.FlowEnds {
		return wire.FlowEnds{From: from, To: to, Via: via, Protocol: "tcp", Port: port, Target: 5432}
	}
	b.flows = map[string][]wire.Flow{
		"n1": {
			{FlowEnds: ends("10.0.0.1", "10.0.0.2", "10.0.0.200", 5432), Begun: 3, Open: 2, Sent: 100, Received: 1000},
			{FlowEnds: ends("", "10.0.0.2", wire.FlowNode, 8000), Begun: 1},
		},
		"n2": {
			{FlowEnds: ends("10.0.0.1", "10.0.0.2", "10.0.0.200", 5432), Begun: 4, Sent: 10, Received: 20},
			{FlowEnds: ends("10.0.0.3", "10.0.0.2", "", 5432), Open: 1},
			{FlowEnds: ends("10.0.0.3", "", "", 443), Open: 1},
		},
	}
	ask := func(who core.Caller, q core.NetMapQuestion) core.NetMap {
		m, err := b.NetMap(t.Context(), who, q)
		if err != nil {
			t.Fatal(err)
		}
		return m
	}
	edge := func(from, via string, begun, open int, sent, received uint64) core.NetEdge {
		return core.NetEdge{From: from, To: "shop/db", Via: via, Protocol: "tcp", Port: 5432, Begun: begun, Open: open, Sent: sent, Received: received}
	}
	want := func(what string, got core.NetMap, edges ...core.NetEdge) {
		t.Helper()
		if len(got.Edges) != len(edges) {
			t.Fatalf("%s: %+v, want %+v", what, got.Edges, edges)
		}
		for i := range edges {
			if got.Edges[i] != edges[i] {
				t.Errorf("%s: %+v, want %+v", what, got.Edges[i], edges[i])
			}
		}
	}
	viewer := core.Caller{Name: "ann", Grants: []model.Grant{{Role: model.RoleViewer, Namespace: "default"}}}
	m := ask(viewer, core.NetMapQuestion{})
	want("a viewer of one namespace", m, edge("another namespace", "", 0, 1, 0, 0), edge("outside", "port 8000", 1, 0, 0, 0), edge("shop/web", "shop/db", 7, 2, 110, 1020))
	if len(m.Services) != 1 || m.Services[0] != (core.NetCount{Service: "shop/db", Begun: 8, Open: 3, Sent: 110, Received: 1020}) {
		t.Errorf("services: %+v", m.Services)
	}
	want("of one workload", ask(viewer, core.NetMapQuestion{Ref: "shop/web"}), edge("shop/web", "shop/db", 7, 2, 110, 1020))
	one := edge("shop/web.1", "shop/db", 7, 2, 110, 1020)
	one.To = "shop/db.1"
	want("each instance", ask(viewer, core.NetMapQuestion{Ref: "shop/web", Instances: true}), one)
	if _, err := b.NetMap(t.Context(), viewer, core.NetMapQuestion{For: 2 * wire.MostFlowsSpan}); !fault.Is(err, fault.Invalid) {
		t.Errorf("for longer than nodes remember: %v", err)
	}
}
