package million

import (
	"context"
	"fmt"
	"time"

	"github.com/tutti-run/tutti/internal/model"
	"github.com/tutti-run/tutti/internal/store"
	"github.com/tutti-run/tutti/internal/wire"
)

// size is how large a state is.
type size struct{ instances, nodes, workloads int }

func (s size) String() string {
	return fmt.Sprintf("%d instances of %d workloads on %d nodes", s.instances, s.workloads, s.nodes)
}

var labels = map[string]string{"com.example.team": "shop", "com.example.tier": "front"}

const (
	image     = "registry.example.com/shop/front"
	digest    = "sha256:6c3c624b58dbbcd3c0dd82b4c53f04194d1247c6eebdaab7c610cf7d66709b3b"
	networkID = "network1network1network1"
)

func nodeID(n int) string       { return fmt.Sprintf("node%020d", n) }
func workloadID(n int) string   { return fmt.Sprintf("workload%016d", n) }
func revisionID(n int) string   { return workloadID(n) + ".4c71" }
func application(n int) string  { return fmt.Sprintf("app%05d", n/4) }
func workloadName(n int) string { return fmt.Sprintf("front%d", n%4) }

var began = time.Date(2026, 11, 1, 12, 0, 0, 123456789, time.UTC)

func template(n int) model.Template {
	return model.Template{Labels: labels, Tasks: []model.TaskSpec{{
		Name: "front", Image: image, Digest: digest, Env: []string{"PORT=8080", fmt.Sprintf("SHARD=%d", n)},
		Reserve: model.Resources{NanoCPUs: 100_000_000, MemoryBytes: 64 << 20},
	}}, Networks: []model.Attachment{{Network: networkID}}}
}

// instance is as the leader creates and places it.
func (s size) instance(n int) *model.Instance {
	w := n % s.workloads
	slot := n/s.workloads + 1
	return &model.Instance{
		Meta: model.Meta{
			ID: fmt.Sprintf("%08x%016x", uint32(n)*2654435761, n), Namespace: model.DefaultNamespace, Application: application(w),
			Name: fmt.Sprintf("%s.%d", workloadName(w), slot), Labels: labels, Created: began.Add(time.Duration(n) * time.Millisecond),
		},
		WorkloadID: workloadID(w), Slot: slot, RevisionID: revisionID(w), NodeID: nodeID(n % s.nodes),
		Reason: "fewest instances of the workload, then the least loaded", Desired: model.DesiredRun,
		Addresses: []model.Address{{Network: networkID, IP: fmt.Sprintf("10.%d.%d.%d", n>>16&255, n>>8&255, n&255)}},
		Status:    model.InstanceStatus{State: model.InstancePending},
	}
}

// running is what its node reports.
func running(i *model.Instance, n int) *model.Instance {
	at := i.Created.Add(time.Second)
	i.Status = model.InstanceStatus{
		State: model.InstanceRunning, Ready: true, Started: at, ReadySince: at.Add(time.Millisecond),
		Tasks: []model.TaskStatus{{Name: "front", RunID: i.ID + ".front.1", Run: 1, State: "running", PID: 1000 + n%30000, Started: at, Image: digest}},
	}
	return i
}

// fill makes the state by change sets, as servers do: what there is, then instances, then their
// statuses.
func (s size) fill(st *store.Store, a *wire.Authority) error {
	var cs store.ChangeSet
	commit := func() error {
		if cs.Len() == 0 {
			return nil
		}
		_, err := st.Commit(context.Background(), &cs)
		cs = store.ChangeSet{}
		return err
	}
	each := func(count int, add func(n int)) error {
		for n := range count {
			add(n)
			if cs.Len() >= 500 {
				if err := commit(); err != nil {
					return err
				}
			}
		}
		return commit()
	}
	cs.Put(&model.Cluster{Meta: model.Meta{ID: model.ClusterID, Name: model.ClusterID}, AddressPool: "10.0.0.0/8", NetworkBits: 8, NodePool: "172.16.0.0/12",
		CACertificate: a.CertPEM, CAKey: a.KeyPEM, SecretKey: make([]byte, 32)}) // as an earlier version left it: the server seals it
	cs.Put(&model.Network{Meta: model.Meta{ID: networkID, Namespace: model.DefaultNamespace, Name: "shop"}, Status: model.NetworkStatus{Subnet: "10.0.0.0/8"}})
	steps := []func() error{
		func() error {
			return each(s.nodes, func(n int) {
				cs.Put(&model.Node{
					Meta:        model.Meta{ID: nodeID(n), Name: fmt.Sprintf("node-%05d", n), Labels: map[string]string{"zone": fmt.Sprint("z", n%3)}, Created: began},
					HostAddress: fmt.Sprintf("172.20.%d.%d", n>>8, n&255), Server: n == 0, Availability: model.Active,
					Capacity: model.Resources{NanoCPUs: 64e9, MemoryBytes: 256 << 30},
					Status:   model.NodeStatus{State: model.NodeReady, Session: fmt.Sprint("session", n), Since: began},
				})
			})
		},
		func() error {
			return each(s.workloads/4, func(n int) {
				cs.Put(&model.Application{Meta: model.Meta{ID: fmt.Sprintf("application%013d", n), Namespace: model.DefaultNamespace, Name: application(4 * n), Created: began}, Source: "compose", Version: 1})
			})
		},
		func() error {
			return each(s.workloads, func(n int) {
				meta := model.Meta{ID: workloadID(n), Namespace: model.DefaultNamespace, Application: application(n), Name: workloadName(n), Created: began}
				cs.Put(&model.Workload{Meta: meta, Type: model.ServiceWorkload, Count: s.instances / s.workloads, Template: template(n), RevisionID: revisionID(n)})
				meta.ID = revisionID(n)
				cs.Put(&model.Revision{Meta: meta, WorkloadID: workloadID(n), Number: 1, Template: template(n)})
			})
		},
		func() error { return each(s.instances, func(n int) { cs.Put(s.instance(n)) }) },
		func() error {
			return each(s.instances, func(n int) { cs.PutStatus(running(s.instance(n), n)) })
		},
	}
	for _, step := range steps {
		if err := step(); err != nil {
			return err
		}
	}
	return nil
}
