package apps

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/tutti-run/tutti/internal/api/marathon"
	"github.com/tutti-run/tutti/internal/core"
	"github.com/tutti-run/tutti/internal/model"
	"github.com/tutti-run/tutti/internal/store"
)

// town is the API over a store of its own, with a hundred nodes that are played: whatever is wanted of them
// runs at once.
type town struct {
	store *store.Store
	core  *core.Core
	api   *marathon.API
	url   string
	// remote and images are never asked: nothing reaches into nodes, and plain processes have no images.
	core.Remote
	core.Images
	core.Trust
	core.Servers
}

const nodes = 100

// Propose implements store.Proposer without replication or disk.
func (t *town) Propose(_ context.Context, data []byte) (store.Result, error) {
	return t.store.Apply(data), nil
}

func (t *town) Leader() string { return nodeName(0) }

func nodeName(n int) string { return fmt.Sprintf("node-%03d", n) }

// open returns a town that is served until ctx ends.
func open(ctx context.Context, g *errgroup.Group) (*town, error) {
	log := slog.New(slog.DiscardHandler)
	t := &town{store: store.New(log)}
	t.store.SetProposer(t)
	t.core = core.New(core.Deps{Store: t.store, Trust: t, Remote: t, Images: t, Servers: t, NodeID: nodeName(0), Log: log})
	t.api = marathon.New(marathon.Deps{
		Core: t.core, NodeName: nodeName(0), NodeID: nodeName(0), Address: "10.0.0.1", Version: "bench", Log: log,
		Caller: func(context.Context) core.Caller { return core.Local("bench", "marathon") },
	})
	cs := &store.ChangeSet{}
	cs.Put(&model.Cluster{Meta: model.Meta{ID: model.ClusterID, Name: model.ClusterID}, AddressPool: "10.210.0.0/16", CACertificate: []byte("ca")})
	for n := range nodes {
		node := &model.Node{
			Meta: model.Meta{ID: nodeName(n), Name: nodeName(n)}, Server: n == 0, Availability: model.Active, HostAddress: fmt.Sprintf("10.0.1.%d", n),
			Capacity: model.Resources{NanoCPUs: 64e9, MemoryBytes: 256 << 30, DiskBytes: 1 << 40}, Attributes: map[string]string{"os": "linux"},
			Status: model.NodeStatus{State: model.NodeReady},
		}
		cs.Put(node)
		cs.PutStatus(node)
	}
	if _, err := t.store.Commit(ctx, cs); err != nil {
		return nil, err
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, fmt.Errorf("listen for the API: %w", err)
	}
	t.url = "http://" + l.Addr().String()
	server := &http.Server{Handler: t.api, ReadHeaderTimeout: 10 * time.Second}
	watch := t.store.Watch(t.store.Snapshot().Revision(), model.KindWorkload)
	g.Go(func() error { return t.play(ctx, watch) })
	g.Go(func() error { return t.api.Run(ctx) })
	g.Go(func() error {
		if err := server.Serve(l); err != http.ErrServerClosed {
			return err
		}
		return nil
	})
	g.Go(func() error {
		<-ctx.Done()
		return server.Close()
	})
	return t, nil
}

// play makes every workload as it is wanted, as the leader and the agents would.
func (t *town) play(ctx context.Context, watch *store.Watcher) error {
	turn := 0
	for {
		b, err := watch.Next(ctx)
		if err != nil {
			if ctx.Err() != nil {
				return nil
			}
			return fmt.Errorf("follow the workloads: %w", err)
		}
		snap := t.store.Snapshot()
		cs := &store.ChangeSet{}
		for _, ch := range b.Changes {
			w, ok := store.Get[*model.Workload](snap, ch.ID)
			if !ok {
				for i := range store.InstancesOfWorkload(snap, ch.ID) {
					cs.Delete(model.KindInstance, i.ID)
				}
				continue
			}
			if w.Status.Generation != w.Generation || w.Status.Released != w.RevisionID {
				t.fill(snap, cs, w, &turn)
			}
		}
		if _, err := t.store.Commit(ctx, cs); err != nil && ctx.Err() == nil {
			return fmt.Errorf("play what runs: %w", err)
		}
	}
}

// fill gives a workload the instances that it should have.
func (t *town) fill(snap *store.Snapshot, cs *store.ChangeSet, w *model.Workload, turn *int) {
	n := 0
	for i := range store.InstancesOfWorkload(snap, w.ID) {
		if n++; n > w.Count || i.RevisionID != w.RevisionID {
			cs.Delete(model.KindInstance, i.ID)
			n--
		}
	}
	for ; n < w.Count; n++ {
		*turn++
		now := time.Now()
		i := &model.Instance{
			Meta:       model.Meta{ID: model.NewID(), Namespace: w.Namespace, Application: w.Application, Name: w.Name, Created: now},
			WorkloadID: w.ID, RevisionID: w.RevisionID, Slot: n + 1, NodeID: nodeName(*turn % nodes), Desired: model.DesiredRun,
			HostPorts: []model.HostPort{{Protocol: "tcp", Published: 21000 + *turn/nodes%9000, Target: 1}},
		}
		i.Status = model.InstanceStatus{State: model.InstanceRunning, Ready: true, Started: now, ReadySince: now, Tasks: []model.TaskStatus{{Name: "main", Run: 1, State: "running"}}}
		cs.Put(i)
		cs.PutStatus(i)
	}
	c := w.Clone()
	c.Status.Generation, c.Status.Released = w.Generation, w.RevisionID
	cs.PutStatus(c)
}
