package agent

import (
	"slices"
	"testing"

	"github.com/tutti-run/tutti/internal/model"
	"github.com/tutti-run/tutti/internal/wire"
)

func TestServicesOfAGroupPublishTogether(t *testing.T) {
	port := model.ServicePort{Protocol: "tcp", Target: 80, Published: 8080}
	own := model.ServicePort{Protocol: "tcp", Target: 81, Published: 8081, HostMode: true}
	service := func(id, group string, ports ...model.ServicePort) wire.NetworkService {
		return wire.NetworkService{ID: id, Namespace: "default", Application: "containers", PortGroup: group, Ports: ports, Endpoints: []wire.Endpoint{{Instance: "of " + id}}}
	}
	in := []wire.NetworkService{service("a", "g", port, own), service("b", "g", port), service("c", "", model.ServicePort{Protocol: "tcp", Target: 80, Published: 9000})}
	kept := in[0].Ports
	out := groupPorts(in)
	if len(out) != 4 || kept[0].Published != 8080 {
		t.Fatalf("%d services; what was given says %+v", len(out), kept)
	}
	for i, want := range []int{0, 0, 9000} {
		if got := out[i].Ports[0].Published; got != want {
			t.Errorf("service %d publishes %d, want %d", i, got, want)
		}
	}
	if out[0].Ports[1] != own {
		t.Errorf("a port of the host alone became %+v", out[0].Ports[1])
	}
	g := out[3]
	if !slices.Equal(g.Ports, []model.ServicePort{port}) || len(g.Endpoints) != 2 || len(g.VirtualIPs) != 0 {
		t.Errorf("the group is %+v", g)
	}
}
