package wire

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/tutti-run/tutti/internal/model"
)

// naive is a network state as a list of the latest of each part.
type naive struct {
	nodes     map[string]NetworkNode
	services  map[string]NetworkService
	instances map[string]NetworkInstance
	networks  map[string]*model.Network
}

func (a *naive) apply(m *Network) {
	for _, id := range m.Gone {
		delete(a.nodes, id)
		delete(a.services, id)
		delete(a.instances, id)
		delete(a.networks, id)
	}
	for _, v := range m.Networks {
		a.networks[v.ID] = v
	}
	for _, v := range m.Nodes {
		a.nodes[v.ID] = v
	}
	for _, v := range m.Services {
		a.services[v.ID] = v
	}
	for _, v := range m.Instances {
		a.instances[v.ID] = v
	}
}

// endpoints are the IDs of those that a service should lead to.
func (a *naive) endpoints(s *NetworkService, holder func(string) *NetworkInstance) (out []string) {
	if s.Direct {
		for _, b := range s.Backends {
			if in := holder(b.Address); in != nil {
				if !a.nodes[in.NodeID].Down {
					out = append(out, in.ID)
				}
			} else if n := a.networks["x0"]; n == nil || !netip.MustParsePrefix(n.Status.Subnet).Contains(netip.MustParseAddr(b.Address)) {
				out = append(out, "")
			}
		}
		return out
	}
	for _, id := range slices.Sorted(maps.Keys(a.instances)) {
		if in := a.instances[id]; in.Serves && in.WorkloadID == s.WorkloadID {
			out = append(out, id)
		}
	}
	return out
}

func chanceMessage(r *rand.Rand) *Network {
	m := &Network{Since: 1}
	id := func(kind string, n int) string { return fmt.Sprint(kind, r.IntN(n)) }
	for range 1 + r.IntN(4) {
		switch r.IntN(7) {
		case 6:
			if m.Networks = nil; r.IntN(2) == 0 {
				m.Gone = append(m.Gone, "x0")
				break
			}
			n := &model.Network{}
			n.ID, n.Status.Subnet = "x0", fmt.Sprintf("10.0.0.0/%d", 29+r.IntN(2))
			m.Networks = append(m.Networks, n)
		case 0:
			m.Gone = append(m.Gone, id("s", 5), id("i", 12))
			if r.IntN(4) == 0 {
				m.Gone = append(m.Gone, id("n", 2))
			}
		case 1:
			m.Nodes = append(m.Nodes, NetworkNode{ID: id("n", 2), Down: r.IntN(2) == 0})
		case 2:
			s := NetworkService{ID: id("s", 5), WorkloadID: id("w", 3), Ports: []model.ServicePort{{Published: 80 + r.IntN(2)}, {Published: 90, HostMode: true}}}
			if r.IntN(3) == 0 {
				s.PortGroup = id("g", 2)
			}
			if r.IntN(3) == 0 {
				s.Direct, s.WorkloadID, s.VirtualIPs = true, "", []model.Address{{IP: "10.0.1.1"}}
				s.Backends = []model.Backend{{Address: fmt.Sprint("10.0.0.", r.IntN(12))}, {Address: fmt.Sprint("10.0.0.", r.IntN(12))}}
			}
			m.Services = append(m.Services, s)
		default:
			n := r.IntN(12)
			address := n
			if r.IntN(5) == 0 {
				address = r.IntN(12) // of another one, too
			}
			m.Instances = append(m.Instances, NetworkInstance{
				ID: fmt.Sprint("i", n), WorkloadID: id("w", 3), NodeID: id("n", 2), Serves: r.IntN(2) == 0, Addresses: []model.Address{{IP: fmt.Sprint("10.0.0.", address)}},
			})
		}
	}
	return m
}

// TestKeptNetworkFollowsChanges compares what changes come to with what the latest of each part does, and
// holds that whatever differs is said to.
func TestKeptNetworkFollowsChanges(t *testing.T) {
	for seed := range uint64(20) {
		r := rand.New(rand.NewPCG(seed, 3))
		kept, all := NewKeptNetwork(), &naive{map[string]NetworkNode{}, map[string]NetworkService{}, map[string]NetworkInstance{}, map[string]*model.Network{}}
		kept.Apply(&Network{NodePool: "p"})
		before := map[string]NetworkService{}
		for step := range 300 {
			m := chanceMessage(r)
			all.apply(m)
			kept.Apply(m)
			if r.IntN(4) == 0 {
				continue
			}
			n := kept.Next()
			got := map[string]NetworkInstance{}
			for _, in := range n.Instances {
				if got[in.ID] = in; n.Instance(in.ID) == nil || n.Instance(in.ID).ID != in.ID {
					t.Fatalf("%d.%d: instance %s is not found", seed, step, in.ID)
				}
			}
			if !reflect.DeepEqual(got, all.instances) {
				t.Fatalf("%d.%d: instances are %v, want %v", seed, step, got, all.instances)
			}
			holder := func(address string) *NetworkInstance {
				in := n.Holder(netip.MustParseAddr(address))
				has := false
				for _, i := range all.instances {
					has = has || i.Addresses[0].IP == address
				}
				if has != (in != nil) || in != nil && in.Addresses[0].IP != address {
					t.Fatalf("%d.%d: %s is held by %v, and somebody has it: %v", seed, step, address, in, has)
				}
				return in
			}
			groups := map[string][]string{}
			now := map[string]NetworkService{}
			for i, s := range n.Services {
				now[s.ID] = s
				if n.Service(s.ID) != &n.Services[i] {
					t.Fatalf("%d.%d: service %s is not found", seed, step, s.ID)
				}
				var ids []string
				for _, e := range s.Endpoints {
					ids = append(ids, e.Instance)
				}
				told, ok := all.services[s.ID]
				if !ok {
					groups[s.PortGroup] = ids
					continue
				}
				if want := all.endpoints(&told, holder); fmt.Sprint(ids) != fmt.Sprint(want) {
					t.Fatalf("%d.%d: service %s leads to %v, want %v", seed, step, s.ID, ids, want)
				}
				if published := s.Ports[0].Published != 0; published != (s.PortGroup == "") || s.Ports[1].Published != 90 {
					t.Fatalf("%d.%d: service %s of group %q has ports %+v", seed, step, s.ID, s.PortGroup, s.Ports)
				}
			}
			want := map[string][]string{}
			for _, id := range slices.Sorted(maps.Keys(all.services)) {
				if s := all.services[id]; s.PortGroup != "" {
					want[s.PortGroup] = append(want[s.PortGroup], all.endpoints(&s, holder)...)
				}
			}
			if fmt.Sprint(groups) != fmt.Sprint(want) || len(n.Services) != len(all.services)+len(want) {
				t.Fatalf("%d.%d: groups lead to %v, want %v; %d services", seed, step, groups, want, len(n.Services))
			}
			for id := range maps.All(before) {
				if _, ok := now[id]; !ok {
					now[id] = NetworkService{}
				}
			}
			for id, s := range now {
				if n.Changes != nil && !reflect.DeepEqual(s, before[id]) && !n.Changes.Services[id] && !n.Changes.Led[id] {
					t.Fatalf("%d.%d: service %s was %+v and is %+v, and nothing says so", seed, step, id, before[id], s)
				}
			}
			before = maps.Clone(now)
			maps.DeleteFunc(before, func(id string, s NetworkService) bool { return s.ID == "" })
		}
	}
}

func TestServicesOfAGroupPublishTogether(t *testing.T) {
	port := model.ServicePort{Protocol: "tcp", Target: 80, Published: 8080}
	own := model.ServicePort{Protocol: "tcp", Target: 81, Published: 8081, HostMode: true}
	service := func(id, group string, ports ...model.ServicePort) NetworkService {
		return NetworkService{ID: id, WorkloadID: id, Namespace: "default", Application: "containers", PortGroup: group, Ports: ports}
	}
	told := []NetworkService{service("a", "g", port, own), service("b", "g", port), service("c", "", model.ServicePort{Protocol: "tcp", Target: 80, Published: 9000})}
	kept := NewKeptNetwork()
	kept.Apply(&Network{Services: told, Instances: []NetworkInstance{{ID: "1", WorkloadID: "a", Serves: true}, {ID: "2", WorkloadID: "b", Serves: true}}})
	out := kept.Next().Services
	if len(out) != 4 || told[0].Ports[0].Published != 8080 {
		t.Fatalf("%d services; what was told says %+v", len(out), told[0].Ports)
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
	if !slices.Equal(g.Ports, []model.ServicePort{port}) || len(g.Endpoints) != 2 || len(g.VirtualIPs) != 0 || !strings.HasPrefix(g.ID, "group ") {
		t.Errorf("the group is %+v", g)
	}
}
