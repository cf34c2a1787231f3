package control

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"time"

	"github.com/tutti-run/tutti/internal/model"
	"github.com/tutti-run/tutti/internal/schedule"
	"github.com/tutti-run/tutti/internal/store"
)

// Sessions tells what is known of nodes beyond the store.
type Sessions interface {
	// Applied is the store revision whose network state a node has in force; 0 is unknown.
	Applied(nodeID string) uint64
	// Live reports whether the node was heard of in time.
	Live(nodeID string) bool
	// Fence is for how much longer the node may hold a lease; zero: it surely holds none, and gets
	// none before its status says that it is back.
	Fence(nodeID string) time.Duration
}

// Deps is what a Controller works with.
type Deps struct {
	Store    *store.Store
	Sessions Sessions
	// Heat, unless nil, tells what is measured of nodes.
	Heat *Heat
	Log  *slog.Logger
}

// Controller does the leader's work.
type Controller struct {
	Deps
	dirty    map[string]bool      // workload IDs to look at
	touched  map[string]bool      // instance IDs to look at
	timers   map[string]time.Time // workload ID → when to look again
	sweep    bool                 // look at everything
	swept    time.Time            // when that was done last
	reasoned time.Time            // when reasons of unplaced instances were brought up to date last
	draining map[string]time.Time // instance ID → since when it is known to be drained
	crossing map[string]bool      // IDs of workloads that wait for one of another application
	fenced   map[string]bool      // IDs of instances that wait for the end of a lease
	refused  map[string]string    // workload and node → why an instance has no room there
	cursors  map[string]uint32    // network and node → the address given out last
}

// New returns a Controller.
func New(d Deps) *Controller { return &Controller{Deps: d} }

const (
	coalesce     = 2 * time.Millisecond
	drainPoll    = 10 * time.Millisecond
	retryAfter   = 50 * time.Millisecond
	sweepEvery   = 30 * time.Second
	reasonEvery  = time.Second // at most, reasons of unplaced instances are rewritten
	refusedAfter = time.Second // until a full node is asked again for an instance of a global workload
	maxDrainWait = 10 * time.Second
)

// Run works until ctx, the leadership, is done.
func (c *Controller) Run(ctx context.Context) error {
	c.dirty, c.touched, c.timers = map[string]bool{}, map[string]bool{}, map[string]time.Time{}
	c.fenced, c.crossing = map[string]bool{}, map[string]bool{}
	c.draining, c.refused, c.cursors = map[string]time.Time{}, map[string]string{}, map[string]uint32{}
	c.sweep = true
	snap := c.Store.Snapshot()
	watch := c.Store.Watch(snap.Revision())
	var batches []store.Batch
	unsure := false // whether what was decided before may still happen
	for ctx.Err() == nil {
		var again time.Duration
		var err error
		if unsure {
			// A change that changes nothing comes after all that was proposed earlier: once it shows
			// here, so does that, or it never will. To decide before would be to decide twice.
			_, err = c.Store.Commit(ctx, &store.ChangeSet{})
		}
		snap = c.Store.Snapshot()
		if err == nil {
			again, err = c.pass(ctx, snap, batches)
			batches = nil
		}
		unsure = err != nil
		if err != nil {
			if ctx.Err() != nil {
				return nil
			}
			c.Log.Warn("changes could not be made, trying again", "error", err)
			c.sweep = true
			again = retryAfter
		}
		more, err := c.wait(ctx, watch, again)
		switch {
		case errors.Is(err, store.ErrTooOld):
			c.sweep = true
			watch = c.Store.Watch(c.Store.Snapshot().Revision())
		case err != nil && ctx.Err() == nil:
			return fmt.Errorf("follow the store: %w", err)
		}
		c.mark(c.Store.Snapshot(), more)
		batches = more
	}
	return nil
}

// wait returns the next changes, or nothing when it is time to look again anyway.
func (c *Controller) wait(ctx context.Context, w *store.Watcher, again time.Duration) ([]store.Batch, error) {
	wctx, cancel := context.WithTimeout(ctx, again)
	defer cancel()
	b, err := w.Next(wctx)
	if err != nil {
		if wctx.Err() != nil {
			return nil, nil
		}
		return nil, err
	}
	out := []store.Batch{b}
	gather, cancelGather := context.WithTimeout(ctx, coalesce)
	defer cancelGather()
	for len(out) < 1000 {
		b, err := w.Next(gather)
		if err != nil {
			if gather.Err() != nil {
				return out, nil
			}
			return out, err
		}
		out = append(out, b)
	}
	return out, nil
}

// mark notes which workloads and instances the changes concern.
func (c *Controller) mark(snap *store.Snapshot, batches []store.Batch) {
	type application struct{ namespace, name string }
	moved := map[application]bool{} // where something happened that others may wait for
	for _, b := range batches {
		for _, ch := range b.Changes {
			obj := ch.New
			if obj == nil {
				obj = ch.Old
			}
			switch o := obj.(type) {
			case *model.Workload:
				c.dirty[o.ID] = true
				if o.OwnerID != "" {
					c.dirty[o.OwnerID] = true
				}
				moved[application{o.Namespace, o.Application}] = true
				if ch.New == nil {
					for i := range store.InstancesOfWorkload(snap, o.ID) {
						c.touched[i.ID] = true
					}
				}
			case *model.Instance:
				c.dirty[o.WorkloadID], c.touched[o.ID] = true, true
				if w, ok := store.Get[*model.Workload](snap, o.WorkloadID); ok && w.OwnerID != "" {
					c.dirty[w.OwnerID] = true
				}
				moved[application{o.Namespace, o.Application}] = true
			case *model.Node:
				if ch.New == nil {
					for i := range store.InstancesOnNode(snap, o.ID) {
						c.touched[i.ID] = true
					}
				}
				if old, _ := ch.Old.(*model.Node); old == nil || ch.New == nil || differs(old, o) {
					for w := range store.List[*model.Workload](snap) {
						c.dirty[w.ID] = true
					}
				}
			}
		}
	}
	if len(moved) > 0 {
		for id := range c.crossing {
			c.dirty[id] = true
		}
		clear(c.crossing) // those that wait still say so when they are looked at
	}
	for a := range moved {
		for w := range store.ByApplication[*model.Workload](snap, a.namespace, a.name) {
			if w.Status.Released != w.RevisionID {
				c.dirty[w.ID] = true
			}
		}
	}
}

// differs reports whether a change of a node may concern what should run there.
func differs(a, b *model.Node) bool {
	return a.Status.State != b.Status.State || a.Availability != b.Availability || a.Server != b.Server || a.HostAddress != b.HostAddress ||
		a.Name != b.Name || !slices.Equal(a.Taints, b.Taints) || !maps.Equal(a.Labels, b.Labels) || !maps.Equal(a.Attributes, b.Attributes)
}

// pass looks at what is due and commits what follows, in one change set unless that is a lot. It
// returns after how long to look again even if nothing changes.
func (c *Controller) pass(ctx context.Context, snap *store.Snapshot, batches []store.Batch) (time.Duration, error) {
	now := time.Now()
	c.due(snap, now)
	p := &pass{c: c, snap: snap, cs: &store.ChangeSet{}, now: now, changed: map[string]model.Object{}}
	p.observe(batches)
	p.addressNodes()
	p.addressNetworks()
	p.addressServices()
	p.loseInstances()
	for _, id := range slices.Sorted(maps.Keys(c.dirty)) {
		if w, ok := store.Get[*model.Workload](snap, id); ok {
			if err := p.workload(w); err != nil {
				c.Log.Error("workload could not be looked after", "workload", w.FullName(), "error", err)
				c.timers[id] = now.Add(5 * time.Second)
			}
		}
		p.tidyRevisions(id)
		p.cut()
	}
	p.place()
	p.rebalance()
	draining := p.drain()
	p.tidy()
	if err := p.commit(ctx); err != nil {
		return 0, err // what has been committed is built upon in the next pass
	}
	clear(c.dirty)
	clear(c.touched)
	if p.reasoned {
		c.reasoned = now
	}
	next := c.swept.Add(sweepEvery)
	for _, at := range c.timers {
		if at.Before(next) {
			next = at
		}
	}
	if at := c.reasoned.Add(reasonEvery); p.unreasoned && at.Before(next) {
		next = at
	}
	again := max(next.Sub(now), time.Millisecond)
	if draining {
		again = min(again, drainPoll)
	}
	if p.fence > 0 {
		again = min(again, p.fence)
	}
	return again, nil
}

// due notes what is to be looked at because it is time.
func (c *Controller) due(snap *store.Snapshot, now time.Time) {
	if c.sweep || !now.Before(c.swept.Add(sweepEvery)) {
		c.sweep, c.swept = false, now
		for w := range store.List[*model.Workload](snap) {
			c.dirty[w.ID] = true
		}
		for i := range store.List[*model.Instance](snap) {
			c.dirty[i.WorkloadID], c.touched[i.ID] = true, true
		}
		for r := range store.List[*model.Revision](snap) {
			c.dirty[r.WorkloadID] = true
		}
	}
	for id, at := range c.timers {
		if !at.After(now) {
			c.dirty[id] = true
			delete(c.timers, id)
		}
	}
}

// pass is one look at the whole; it collects its decisions in cs.
type pass struct {
	c    *Controller
	snap *store.Snapshot
	cs   *store.ChangeSet
	full []*store.ChangeSet // to be committed before cs
	now  time.Time
	// loose are those of full that do not depend on each other, from one position to before another.
	loose [2]int
	homes bool // volumes got a home, upon which what follows depends
	// changed holds objects that this pass has changed already, by ID, so that a later step
	// builds on it.
	changed map[string]model.Object

	reasoned   bool // reasons of unplaced instances were rewritten
	unreasoned bool // reasons are out of date, as it is too early to rewrite them

	fence time.Duration // when the next lease that is waited for ends, or the next wait for a node

	// What follows is found out when first asked for.

	nodes    *nodes
	seen     []*schedule.NodeView
	seenByID map[string]*schedule.NodeView
	ports    map[string][]model.HostPort // host ports by workload ID
	pools    map[string]*pool            // by network ID
	taken6   []netip.Prefix              // subnets of IPv6 in use
	taken    map[string]map[uint32]bool  // addresses in use, by network ID
	claims   map[string]*model.Network   // networks of which nodes got blocks, by ID
	removed  map[string]bool             // workloads that this pass removes, by ID

	chosen    map[string]bool            // ports of nodes that this pass chose
	devices   map[string]map[device]bool // held on nodes, by their IDs
	published map[model.HostPort]bool    // ports that services publish

	asked    map[*model.Template]schedule.Request
	avoiding []avoider
	held     map[string]map[string]int64 // sizes of images by node ID and digest
}

// put writes the desired part of an object. The leader alone writes that of instances; what
// people write too needs an expectation.
func (p *pass) put(o model.Object) {
	p.changed[o.GetMeta().ID] = o
	p.cs.Put(o)
}

// current returns the object as this pass left it.
func current[T model.Object](p *pass, o T) T {
	if c, ok := p.changed[o.GetMeta().ID].(T); ok {
		return c
	}
	return o
}

func (p *pass) event(kind string, o model.Object, message string) {
	p.cs.Put(model.NewEvent(p.now, kind, o, message))
}

// observe turns changes that others made into events for people.
func (p *pass) observe(batches []store.Batch) {
	for _, b := range batches {
		for _, ch := range b.Changes {
			switch n := ch.New.(type) {
			case *model.Instance:
				old, _ := ch.Old.(*model.Instance)
				p.observeInstance(old, n)
			case *model.Node:
				if old, ok := ch.Old.(*model.Node); ok && old.Status.State != n.Status.State {
					p.event("node "+string(n.Status.State), n, n.Status.Message)
				}
			}
		}
	}
}

// loops is after how many restarts in place an instance is said to crash for ever.
const loops = 5

func (p *pass) observeInstance(old, n *model.Instance) {
	if old == nil {
		return
	}
	a, b := &old.Status, &n.Status
	switch {
	case b.Restarts > a.Restarts && b.Restarts >= loops && a.Restarts < loops:
		p.event("instance crash-loops", n, fmt.Sprintf("it was restarted %d times, and the pause before the next time grows: %s", b.Restarts, a.Message))
	case b.Restarts > a.Restarts:
		p.event("instance restarted", n, a.Message)
	case a.State != b.State && b.State == model.InstanceFailed:
		p.event("instance failed", n, b.Message)
	case a.State != b.State && b.State == model.InstanceCompleted:
		p.event("instance ended", n, b.Message)
	case a.State != b.State && b.State == model.InstanceWaiting:
		p.event("instance waits", n, b.Message)
	case !a.Ready && b.Ready:
		p.event("instance ready", n, "")
	case a.Health != b.Health && b.Health == model.HealthUnhealthy:
		p.event("instance unhealthy", n, b.Message)
	}
}
