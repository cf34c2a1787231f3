package balance

import (
	"net"
	"slices"
	"testing"

	"github.com/tutti-run/tutti/internal/model"
	"github.com/tutti-run/tutti/internal/wire"
)

// TestFlowsAreToldOnce has an instance, a node and a host outside ask, and both nodes tell of it: each connection is
// told of by one of them.
func TestFlowsAreToldOnce(t *testing.T) {
	l := newLAN(t)
	l.state.Networks = []*model.Network{network("front", "10.99.1.0/24", false)}
	client := l.attach(l.a, "client", "front=10.99.1.2")
	l.serve(l.attach(l.b, "server", "front=10.99.1.18"), ":80", "server")
	l.state.Services = []wire.NetworkService{{
		ID: "s", VirtualIPs: at("front=10.99.1.200"), Ports: []model.ServicePort{{Protocol: "tcp", Target: 80, Published: 8080}},
		Endpoints: []wire.Endpoint{{Instance: "server", NodeID: "b", Addresses: at("front=10.99.1.18")}},
	}}
	l.sync()
	look := func() (out []map[flow]tracking) {
		for _, h := range []*host{l.a, l.b} {
			l.in(h.ns, func() error {
				m, err := h.balance.tracked()
				out = append(out, m)
				return err
			})
		}
		return out
	}
	before := look()
	l.want(client, "10.99.1.200:80", "server 10.99.1.2")
	l.want(client, "10.99.1.18:80", "server 10.99.1.2")
	l.want(l.a.ns, "10.99.1.18:80", "server 10.250.0.1")
	l.want(l.outside, "192.168.50.1:8080", "server 10.250.0.1")
	l.want(l.outside, "192.168.50.2:8080", "server 192.168.50.3")
	got := map[wire.FlowEnds]wire.Flow{}
	for k, after := range look() {
		for _, f := range between(before[k], after) {
			if _, again := got[f.FlowEnds]; again && f.From != "" {
				t.Errorf("%+v was told of twice", f.FlowEnds)
			}
			f.Begun += got[f.FlowEnds].Begun
			got[f.FlowEnds] = f
		}
	}
	ends := func(from, via string, port uint16) wire.FlowEnds {
		return wire.FlowEnds{From: from, To: "10.99.1.18", Via: via, Protocol: "tcp", Port: port, Target: 80}
	}
	for e, count := range map[wire.FlowEnds]int{
		ends("10.99.1.2", "10.99.1.200", 80): 1, ends("10.99.1.2", "", 80): 1, ends(wire.FlowNode, "", 80): 1, ends("", wire.FlowNode, 8080): 2,
	} {
		f := got[e]
		if f.Begun != count || f.Sent == 0 || f.Received == 0 {
			t.Errorf("%+v: %+v, want %d connections with bytes", e, f, count)
		}
		delete(got, e)
	}
	for e := range got {
		if !slices.Contains([]string{"10.99.1.2", ""}, e.From) || net.ParseIP(e.To) != nil {
			t.Errorf("it is told of %+v, too", e)
		}
	}
}
