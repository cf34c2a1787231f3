package balance

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/tutti-run/tutti/internal/model"
	"github.com/tutti-run/tutti/internal/wire"
)

// TestDirectServicesAreLedAsToldLast tells two nodes by differences, in any order, of a direct service with a
// virtual IP outside of the network, of its backends and of the instances that have their addresses; after each it
// is led to the backends that are instances on nodes that are up, by its ports alone, to those that they have there, and refuses where there are none.
func TestDirectServicesAreLedAsToldLast(t *testing.T) {
	l := newLAN(t)
	l.state.Networks = []*model.Network{network("pods", "10.244.0.0/24", false)}
	l.state.Networks[0].Status.Blocks = []model.Block{{NodeID: "a", CIDR: "10.244.0.0/26"}, {NodeID: "b", CIDR: "10.244.0.64/26"}}
	client := l.attach(l.a, "client", "pods=10.244.0.2")
	var all []wire.NetworkInstance
	for i, address := range []string{"10.244.0.3", "10.244.0.66", "10.244.0.67"} {
		h := []*host{l.a, l.b, l.b}[i]
		name := fmt.Sprint("pod", i)
		ns := l.attach(h, name, "pods="+address)
		l.serve(ns, ":6379", name+":6379")
		l.serve(ns, ":6380", name+":6380")
		all = append(all, l.state.Instances[len(l.state.Instances)-1])
	}
	l.state.Instances = l.state.Instances[:1] // the client
	l.sync()
	r := rand.New(rand.NewPCG(6, 6))
	kept := []*wire.KeptNetwork{wire.NewKeptNetwork(), wire.NewKeptNetwork()}
	for _, k := range kept {
		k.Apply(l.state)
	}
	var service *wire.NetworkService
	down, held := false, map[string]bool{}
	for step := range 120 {
		m := &wire.Network{Since: 1}
		for range 1 + r.IntN(2) {
			switch what := r.IntN(10); {
			case what == 0 && service != nil:
				m.Gone, service, m.Services = append(m.Gone, "cache"), nil, nil
			case what < 5:
				service = &wire.NetworkService{
					ID: "cache", Name: "cache", Namespace: "default", Direct: true, VirtualIPs: at("pods=10.212.7.9"),
					Ports: []model.ServicePort{{Name: "other", Protocol: "tcp", Virtual: 7000, Target: 6379 + r.IntN(2)}, {Name: "same", Protocol: "tcp", Virtual: 6379, Target: 6379}},
				}
				for _, in := range all {
					if r.IntN(2) == 0 {
						backend := model.Backend{Address: in.Addresses[0].IP}
						if r.IntN(2) == 0 {
							backend.Targets = map[string]int{[]string{"other", "same", "none"}[r.IntN(3)]: 6379 + r.IntN(2)}
						}
						service.Backends = append(service.Backends, backend)
					}
				}
				if r.IntN(4) == 0 {
					service.Balance.Local = model.LocalOnly
				}
				m.Services, m.Gone = []wire.NetworkService{*service}, slices.DeleteFunc(m.Gone, func(id string) bool { return id == "cache" })
			case what < 7:
				down = !down
				m.Nodes = []wire.NetworkNode{{ID: "b", HostAddress: "192.168.50.2", OverlayAddress: "10.250.0.2", Down: down}}
			default:
				in := all[r.IntN(len(all))]
				m.Gone = slices.DeleteFunc(m.Gone, func(id string) bool { return id == in.ID })
				m.Instances = slices.DeleteFunc(m.Instances, func(other wire.NetworkInstance) bool { return other.ID == in.ID })
				if held[in.ID] = !held[in.ID]; held[in.ID] {
					m.Instances = append(m.Instances, in)
				} else {
					m.Gone = append(m.Gone, in.ID)
				}
			}
		}
		for i, h := range []*host{l.a, l.b} {
			kept[i].Apply(m)
			n := kept[i].Next()
			l.in(h.ns, func() error { return errors.Join(h.overlay.Sync(t.Context(), n), h.balance.Sync(t.Context(), n)) })
		}
		if service == nil {
			continue
		}
		for k := range service.Ports {
			p := &service.Ports[k]
			var want []string
			for i, in := range all {
				at := slices.IndexFunc(service.Backends, func(b model.Backend) bool { return b.Address == in.Addresses[0].IP })
				gone := down && in.NodeID == "b" || !held[in.ID]
				near := service.Balance.Local != model.LocalOnly || in.NodeID == "a" && held[in.ID]
				if at < 0 || gone || !near {
					continue
				}
				if port := p.TargetOf(service.Backends[at].Targets); port != 0 {
					want = append(want, fmt.Sprintf("pod%d:%d 10.244.0.2", i, port))
				}
			}
			got, err := ask(client, fmt.Sprint("10.212.7.9:", p.Virtual))
			if len(want) == 0 && err == nil || len(want) > 0 && !slices.Contains(want, got) {
				t.Fatalf("step %d: port %s answers %q, %v; want one of %q; told %+v", step, p.Name, got, err, want, m)
			}
		}
		l.refused(client, "10.212.7.9:6381")
	}
}

// TestBackendsThatAreHostsKeepTheirConnections has a backend leave a service of hosts, as one of several API servers does: connections to the
// others go on, and to it, as it may well be there; once its node is down they are cut.
func TestBackendsThatAreHostsKeepTheirConnections(t *testing.T) {
	l := newLAN(t)
	l.state.Networks = []*model.Network{network("pods", "10.244.0.0/24", false)}
	client := l.attach(l.a, "client", "pods=10.244.0.2")
	kept := wire.NewKeptNetwork()
	kept.Apply(l.state)
	tell := func(down bool, backends ...string) {
		t.Helper()
		s := wire.NetworkService{
			ID: "api", Name: "api", Namespace: "default", Direct: true, VirtualIPs: at("pods=10.212.7.9"),
			Ports: []model.ServicePort{{Protocol: "tcp", Virtual: 443, Target: 6443}},
		}
		for _, b := range backends {
			s.Backends = append(s.Backends, model.Backend{Address: b})
		}
		kept.Apply(&wire.Network{Since: 1, Services: []wire.NetworkService{s}, Nodes: []wire.NetworkNode{
			{ID: "b", HostAddress: "192.168.50.2", OverlayAddress: "10.250.0.2", Down: down},
		}})
		n := kept.Next()
		l.in(l.a.ns, func() error { return errors.Join(l.a.overlay.Sync(t.Context(), n), l.a.balance.Sync(t.Context(), n)) })
	}
	hosts := []string{"192.168.50.1", "192.168.50.2"}
	for i, h := range []*host{l.a, l.b} {
		l.serve(h.ns, hosts[i]+":6443", hosts[i])
	}
	tell(false, hosts...)
	count := func(to string) int { return l.connectionsTo(l.a, ipv4, to) }
	for range 8 { // both are met
		c, err := dial(client, "10.212.7.9:443")
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
	}
	stays, leaves := count(hosts[0]), count(hosts[1])
	if stays == 0 || leaves == 0 || stays+leaves != 8 {
		t.Fatalf("%d and %d connections are led", stays, leaves)
	}
	tell(false, hosts[0])
	if a, b := count(hosts[0]), count(hosts[1]); a != stays || b != leaves {
		t.Errorf("when one has left %d and %d connections are there, of %d and %d", a, b, stays, leaves)
	}
	tell(false, hosts...)
	tell(true, hosts[0])
	if a, b := count(hosts[0]), count(hosts[1]); a != stays || b != 0 {
		t.Errorf("when one's node is down %d and %d connections are there, of %d and %d", a, b, stays, leaves)
	}
}
