package placing

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strconv"
	"sync"
	"time"

	"github.com/tutti-run/tutti/bench/internal/report"
	"github.com/tutti-run/tutti/internal/control"
	"github.com/tutti-run/tutti/internal/model"
	"github.com/tutti-run/tutti/internal/store"
)

// loopShapes are those on which the whole of the leader's work is measured.
func loopShapes(brief bool) []shape {
	if brief {
		return []shape{{basic, 1_000, 10, 10_000}}
	}
	return []shape{{basic, 1_000, 10, 10_000}, {basic, 5_000, 10, 50_000}, {spread, 5_000, 10, 50_000}}
}

// compareLoop measures like with like: on both sides the scheduler finds what is pending in the
// store, decides, and puts the placements into the store. Nothing is replicated.
func (r *run) compareLoop(ctx context.Context, s shape) error {
	r.sheet.Say("the leader's loop over %s", s)
	took, err := loop(ctx, s)
	if err != nil {
		return err
	}
	peer, err := r.swarmKit(ctx, s)
	if err != nil {
		return err
	}
	return r.sheet.Add(report.Row{
		Name: "schedule/loop/" + s.String(), Value: float64(s.instances) / took.Seconds(), Unit: "placements/s",
		Peer: swarmKitName, PeerValue: peer.rate(),
		Counted: "Tutti: decided by the leader's control loop and put into the store in memory, with events; " + peer.counted(s) +
			"; neither replicated nor on disk; processor time of one core",
	})
}

// loop lets the leader's controller place a shape in a store that is not replicated.
func loop(ctx context.Context, s shape) (took time.Duration, err error) {
	st := store.New(quiet)
	return took, onStore(ctx, st, alone{st}, s, func(work func() error) error {
		took, err = cost(work)
		return err
	})
}

// Durably lets the leader's controller place instances of ten workloads in a store that a proposer
// replicates, and returns how long that took.
func Durably(ctx context.Context, st *store.Store, p store.Proposer, nodes, instances int) (took time.Duration, err error) {
	defer st.SetProposer(p)
	return took, onStore(ctx, st, p, shape{basic, nodes, 10, instances}, func(work func() error) error {
		began := time.Now()
		err := work()
		took = time.Since(began)
		return err
	})
}

var quiet = slog.New(slog.DiscardHandler)

// onStore fills a store with pending instances and measures how the controller places them.
func onStore(ctx context.Context, st *store.Store, p store.Proposer, s shape, measure func(work func() error) error) error {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	st.SetProposer(p)
	if err := populate(ctx, st, s); err != nil {
		return fmt.Errorf("fill the store: %w", err)
	}
	w := &watched{Proposer: p, store: st, done: make(chan struct{})}
	st.SetProposer(w)
	c := control.New(control.Deps{Store: st, Sessions: everybody{}, Log: quiet})
	return measure(func() error {
		ctx, stop := context.WithCancel(ctx)
		ended := make(chan error, 1)
		go func() { ended <- c.Run(ctx) }()
		var timeout error
		select {
		case <-w.done:
		case <-ctx.Done():
			timeout = errors.New("not everything was placed in time")
		}
		stop()
		return errors.Join(timeout, <-ended)
	})
}

// populate writes nodes, workloads and their pending instances.
func populate(ctx context.Context, st *store.Store, s shape) error {
	const chunk = 1000
	cs := &store.ChangeSet{}
	put := func(o model.Object) error {
		cs.Put(o)
		if cs.Len() < chunk {
			return nil
		}
		full := cs
		cs = &store.ChangeSet{}
		_, err := st.Commit(ctx, full)
		return err
	}
	for i := range s.nodes {
		if err := put(node(i)); err != nil {
			return err
		}
	}
	count := make([]int, s.workloads)
	for i := range s.instances {
		w := s.workloadOf(i)
		count[w]++
		if err := put(pending(i, w, count[w])); err != nil {
			return err
		}
	}
	for w := range count {
		for _, o := range workload(w, count[w], s.template(w)) {
			if err := put(o); err != nil {
				return err
			}
		}
	}
	_, err := st.Commit(ctx, cs)
	return err
}

const revisionHash = "0123456789abcdef"

func workloadID(w int) string { return "workload-" + strconv.Itoa(w) }

// workload returns the n-th workload and its revision.
func workload(n, count int, t *model.Template) []model.Object {
	id := workloadID(n)
	revision := model.RevisionIDOf(id, revisionHash)
	return []model.Object{
		&model.Revision{
			Meta:       model.Meta{ID: revision, Namespace: model.DefaultNamespace, Name: revision, Created: epoch},
			WorkloadID: id, Hash: revisionHash, Number: 1, Template: *t,
		},
		&model.Workload{
			Meta: model.Meta{ID: id, Namespace: model.DefaultNamespace, Name: id, Created: epoch},
			Type: model.ServiceWorkload, Count: count, Template: *t, RevisionID: revision, Generation: 1,
			Status: model.WorkloadStatus{Generation: 1, Released: revision},
		},
	}
}

func pending(n, w, slot int) *model.Instance {
	return &model.Instance{
		Meta: model.Meta{
			ID: "instance-" + strconv.Itoa(n), Namespace: model.DefaultNamespace, Created: epoch,
			Name: workloadID(w) + "." + strconv.Itoa(slot),
		},
		WorkloadID: workloadID(w), Slot: slot, RevisionID: model.RevisionIDOf(workloadID(w), revisionHash),
		Desired: model.DesiredRun, Status: model.InstanceStatus{State: model.InstancePending},
	}
}

// epoch is when everything was created.
var epoch = time.Unix(1_700_000_000, 0)

// alone is the replication of a cluster without other servers and without a disk.
type alone struct{ store *store.Store }

// Propose implements store.Proposer.
func (a alone) Propose(ctx context.Context, data []byte) (store.Result, error) {
	return a.store.Apply(data), nil
}

// watched notices when nothing is pending any more.
type watched struct {
	store.Proposer
	store *store.Store
	done  chan struct{}
	once  sync.Once
}

// Propose implements store.Proposer.
func (w *watched) Propose(ctx context.Context, data []byte) (store.Result, error) {
	r, err := w.Proposer.Propose(ctx, data)
	for range store.UnplacedInstances(w.store.Snapshot()) {
		return r, err
	}
	w.once.Do(func() { close(w.done) })
	return r, err
}

// everybody knows every node to be alive.
type everybody struct{}

func (everybody) Applied(string) uint64      { return 0 }
func (everybody) Live(string) bool           { return true }
func (everybody) Fence(string) time.Duration { return 0 }
