package ingress

import (
	"fmt"
	"math/rand/v2"
	"reflect"
	"testing"

	"github.com/tutti-run/tutti/internal/model"
	"github.com/tutti-run/tutti/internal/wire"
)

// TestOnlyWhatConcernsRoutesIsComputed follows a small world by what changes in it, and holds that wherever routes are
// left as they are, they would be the same.
func TestOnlyWhatConcernsRoutesIsComputed(t *testing.T) {
	for seed := range uint64(10) {
		r := rand.New(rand.NewPCG(seed, 9))
		kept, left := wire.NewKeptNetwork(), 0
		kept.Apply(&wire.Network{NodePool: "10.250.0.0/16"})
		p := &Process{nodeID: "a"}
		var last *Config
		for range 300 {
			m := &wire.Network{Since: 1}
			for range 1 + r.IntN(2) {
				switch r.IntN(6) {
				case 0:
					m.Gone = append(m.Gone, fmt.Sprint("s", r.IntN(4)), fmt.Sprint("i", r.IntN(10)))
				case 1:
					m.Nodes = append(m.Nodes, wire.NetworkNode{ID: "b", Down: r.IntN(2) == 0})
				case 2:
					s := wire.NetworkService{ID: fmt.Sprint("s", r.IntN(4)), WorkloadID: fmt.Sprint("w", r.IntN(3)), Secrets: map[string][]byte{"c": {byte(r.IntN(2))}}}
					if r.IntN(3) == 0 {
						s.Routes = []model.Route{{Host: fmt.Sprint(r.IntN(2)), Target: 80, Certificate: "c"}}
					}
					if r.IntN(3) == 0 {
						s.Direct, s.WorkloadID, s.VirtualIPs = true, "", []model.Address{{Network: "n", IP: "10.0.1.1"}}
						s.Backends = []model.Backend{{Address: fmt.Sprint("10.0.0.", r.IntN(10))}}
					}
					m.Services = append(m.Services, s)
				default:
					n := r.IntN(10)
					m.Instances = append(m.Instances, wire.NetworkInstance{
						ID: fmt.Sprint("i", n), WorkloadID: fmt.Sprint("w", r.IntN(3)), NodeID: []string{"a", "b"}[r.IntN(2)], Serves: r.IntN(2) == 0,
						Addresses: []model.Address{{Network: "n", IP: fmt.Sprint("10.0.0.", n)}},
					})
				}
			}
			kept.Apply(m)
			n := kept.Next()
			now := Compute(n, "a")
			if !p.concerned(n) {
				left++
				if !reflect.DeepEqual(now, last) {
					t.Fatalf("seed %d: routes were left, and are now %+v instead of %+v", seed, now, last)
				}
				continue
			}
			p.routed = map[string]bool{}
			for i := range now.Routes {
				p.routed[now.Routes[i].ServiceID] = true
			}
			last = now
		}
		if left < 20 {
			t.Errorf("seed %d: routes were left %d times only", seed, left)
		}
	}
}
