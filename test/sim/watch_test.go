package sim_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/tutti-run/tutti/internal/dispatch"
	"github.com/tutti-run/tutti/internal/model"
	"github.com/tutti-run/tutti/internal/schedule"
	"github.com/tutti-run/tutti/internal/store"
	"github.com/tutti-run/tutti/internal/wire"
)

// watch follows the changes on every server and knows what must hold: that all servers apply the
// same, in order and once, and what must hold after each change.
type watch struct {
	c *course

	mu        sync.Mutex
	objects   stream
	keys      stream
	revision  uint64 // the newest that any server applied
	table     map[objectKey]model.Object
	instances map[string]*model.Instance
	types     map[string]model.WorkloadKind // by workload ID
	services  map[string]*model.Service
	networks  map[string]*model.Network
	nodes     map[string]*model.Node
	reserved  map[string]int64 // memory by revision ID
	draining  map[string]drain
	doubled   map[string]time.Time // slot → since when two serve
	down      map[string]time.Time // node → since when the cluster knows that it is down
}

type objectKey struct {
	kind model.Kind
	id   string
}

// drain is when an instance left the traffic.
type drain struct {
	revision uint64
	since    time.Time
}

func newWatch(c *course) *watch {
	return &watch{
		c: c, objects: stream{prints: map[uint64][32]byte{}}, keys: stream{prints: map[uint64][32]byte{}}, table: map[objectKey]model.Object{},
		instances: map[string]*model.Instance{}, types: map[string]model.WorkloadKind{}, services: map[string]*model.Service{},
		networks: map[string]*model.Network{}, nodes: map[string]*model.Node{}, reserved: map[string]int64{},
		draining: map[string]drain{}, doubled: map[string]time.Time{}, down: map[string]time.Time{},
	}
}

// stream is what watchers of one sort are told: the revisions that have something for them, in
// order, with a print of what that is, as the first server to apply it told it.
type stream struct {
	revisions []uint64
	prints    map[uint64][32]byte
	floor     uint64 // what was told up to there is not all known
}

// see compares what a watcher is told, who was told everything up to a revision, with what others
// were. It returns whether this is the first time.
func (s *stream) see(at, revision uint64, print [32]byte) (first bool, err error) {
	if revision <= at {
		return false, fmt.Errorf("change set %d follows upon %d", revision, at)
	}
	if at >= s.floor {
		i, _ := slices.BinarySearch(s.revisions, at+1)
		if i < len(s.revisions) && s.revisions[i] != revision {
			return false, fmt.Errorf("change set %d follows upon %d, but elsewhere %d did: acknowledged writes were lost, or a watcher missed one", revision, at, s.revisions[i])
		}
	}
	known, ok := s.prints[revision]
	switch {
	case ok && known != print:
		return false, fmt.Errorf("change set %d is another than on a server before: acknowledged writes were lost, or servers apply differently", revision)
	case ok || revision <= s.floor:
		return false, nil
	}
	s.revisions, s.prints[revision] = append(s.revisions, revision), print
	return true, nil
}

// follow takes in what a server applies, for as long as it lives.
func (w *watch) follow(p *process) {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	go func() {
		<-p.done
		cancel()
	}()
	st := p.srv.Core().Store
	var both sync.WaitGroup
	both.Go(func() {
		w.followOne(ctx, p, func(at uint64) *store.Watcher { return st.Watch(at) }, func(at uint64, b *store.Batch) { w.take(p, at, b) })
	})
	both.Go(func() {
		w.followOne(ctx, p, func(at uint64) *store.Watcher { return st.WatchKeys(at, "", "") }, func(at uint64, b *store.Batch) {
			w.mu.Lock()
			defer w.mu.Unlock()
			if _, err := w.keys.see(at, b.Revision, fingerprint(b)); err != nil {
				w.c.broken("keys, on %s: %v", p.h.id, err)
			}
		})
	})
	both.Wait()
}

func (w *watch) followOne(ctx context.Context, p *process, watch func(after uint64) *store.Watcher, take func(at uint64, b *store.Batch)) {
	at := uint64(0)
	watcher := watch(at)
	for {
		b, err := watcher.Next(ctx)
		if p.dead.Load() || ctx.Err() != nil {
			return // what it still says does not count
		}
		if errors.Is(err, store.ErrTooOld) {
			snap := p.srv.Core().Store.Snapshot()
			if snap.Revision() < at {
				w.c.broken("the state of %s was set back from revision %d to %d", p.h.id, at, snap.Revision())
			}
			at = snap.Revision()
			watcher = watch(at)
			w.c.count("watch too old")
			w.jump(snap)
			continue
		}
		if err != nil {
			w.c.broken("follow the state of %s: %v", p.h.id, err)
			return
		}
		take(at, &b)
		at = b.Revision
	}
}

// take compares a change set with what other servers made of it, or is the first to see it.
func (w *watch) take(p *process, at uint64, b *store.Batch) {
	w.mu.Lock()
	defer w.mu.Unlock()
	first, err := w.objects.see(at, b.Revision, fingerprint(b))
	if err != nil {
		w.c.broken("on %s: %v: %s", p.h.id, err, changesOf(b))
	}
	if !first {
		return
	}
	w.revision = b.Revision
	for _, ch := range b.Changes {
		w.keep(ch)
	}
	w.checkNodes()
	w.checkAddresses()
}

// jump takes over a snapshot that is newer than all changes seen: those in between were applied by
// nobody who lived to tell, but for a server that restored them and went on before it was asked.
func (w *watch) jump(snap *store.Snapshot) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if snap.Revision() <= w.revision {
		return
	}
	w.c.count("changes seen in a snapshot only")
	gone := maps.Clone(w.table)
	everything(snap, func(o model.Object) {
		key := objectKey{o.Kind(), o.GetMeta().ID}
		old := gone[key]
		delete(gone, key)
		if old == nil || old.GetMeta().Revision != o.GetMeta().Revision {
			w.keep(store.Change{Kind: key.kind, ID: key.id, Old: old, New: o})
		}
	})
	for key, o := range gone {
		w.keep(store.Change{Kind: key.kind, ID: key.id, Old: o})
	}
	w.revision = snap.Revision()
	w.objects.floor, w.keys.floor = w.revision, w.revision
}

// fingerprint is of what a change set did, object by object.
func fingerprint(b *store.Batch) [32]byte {
	h := sha256.New()
	for _, ch := range b.Changes {
		fmt.Fprintf(h, "%s/%s;", ch.Kind, ch.ID)
		if ch.New != nil {
			h.Write(encoded(ch.New))
		}
	}
	for _, ch := range b.Keys {
		fmt.Fprintf(h, "%s;%v;%v", ch.Key(), ch.Old, ch.New)
	}
	return [32]byte(h.Sum(nil))
}

func encoded(o model.Object) []byte {
	data, err := wire.Marshal(o)
	if err != nil {
		panic(err) // it came out of such an encoding
	}
	return data
}

func changesOf(b *store.Batch) string {
	var out []string
	for _, ch := range b.Changes {
		out = append(out, fmt.Sprint(ch.Kind, " ", ch.ID))
	}
	return fmt.Sprint(out)
}

// same compares all of a server's tables with what the changes add up to.
func (w *watch) same(p *process) {
	w.mu.Lock()
	defer w.mu.Unlock()
	snap := p.srv.Core().Store.Snapshot()
	n := 0
	everything(snap, func(o model.Object) {
		n++
		if known := w.table[objectKey{o.Kind(), o.GetMeta().ID}]; known == nil || !bytes.Equal(encoded(known), encoded(o)) {
			w.c.broken("%s holds %s %s otherwise than the changes say", p.h.id, o.Kind(), o.GetMeta().ID)
		}
	})
	if n != len(w.table) {
		w.c.broken("%s holds %d objects at the end, the changes add up to %d", p.h.id, n, len(w.table))
	}
}

// everything yields every object of a snapshot.
func everything(snap *store.Snapshot, yield func(model.Object)) {
	each[*model.Cluster](snap, yield)
	each[*model.Node](snap, yield)
	each[*model.Application](snap, yield)
	each[*model.Workload](snap, yield)
	each[*model.Revision](snap, yield)
	each[*model.Instance](snap, yield)
	each[*model.Service](snap, yield)
	each[*model.Network](snap, yield)
	each[*model.Volume](snap, yield)
	each[*model.Secret](snap, yield)
	each[*model.Config](snap, yield)
	each[*model.Image](snap, yield)
	each[*model.Event](snap, yield)
}

func each[T model.Object](snap *store.Snapshot, yield func(model.Object)) {
	for o := range store.List[T](snap) {
		yield(o)
	}
}

func (w *watch) nodesReady() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	n := 0
	for _, node := range w.nodes {
		if node.Status.State == model.NodeReady && node.OverlayAddress != "" {
			n++
		}
	}
	return n
}

func (w *watch) keep(ch store.Change) {
	key := objectKey{ch.Kind, ch.ID}
	if ch.New == nil {
		delete(w.table, key)
	} else {
		w.table[key] = ch.New
	}
	switch n := ch.New.(type) {
	case *model.Instance:
		w.checkStep(w.instances[n.ID], n)
		w.instances[n.ID] = n
	case *model.Service:
		w.services[n.ID] = n
	case *model.Network:
		w.networks[n.ID] = n
	case *model.Revision:
		w.reserved[n.ID] = schedule.Wanted(&n.Template).MemoryBytes
	case *model.Workload:
		w.types[n.ID] = n.Type
		if old, ok := ch.Old.(*model.Workload); ok && old.Status.Rollout != n.Status.Rollout {
			r := &n.Status.Rollout
			w.c.tell("rollout of %s: %s to %s from %s: %s", n.Name, r.State, short(r.Revision), short(r.From), r.Message)
		}
	case *model.Node:
		w.nodes[n.ID] = n
		if old, ok := ch.Old.(*model.Node); ok && old.Status.State != n.Status.State {
			w.c.tell("%s is %s", n.ID, n.Status.State)
			delete(w.down, n.ID)
			if n.Status.State == model.NodeDown {
				w.down[n.ID] = time.Now()
			}
		}
	case nil:
		delete(w.instances, ch.ID)
		delete(w.services, ch.ID)
		delete(w.networks, ch.ID)
		delete(w.nodes, ch.ID)
		delete(w.draining, ch.ID)
	}
}

func short(id string) string { return id[max(0, len(id)-4):] }

// checkStep holds the change of one instance against its life: it never changes node, ends once,
// and is not stopped while a live balancer may still send it connections.
func (w *watch) checkStep(old, n *model.Instance) {
	if old == nil {
		w.c.tell("%s %s of %s is created in place of %s", n.Name, model.ShortID(n.ID), short(n.RevisionID), model.ShortID(n.Replaces))
		return
	}
	if old.NodeID != n.NodeID || old.Desired != n.Desired || old.Status.State != n.Status.State || old.Status.Ready != n.Status.Ready {
		w.c.tell("%s %s is to %s on %q: %s %s ready=%v %s", n.Name, model.ShortID(n.ID), n.Desired, n.NodeID, n.Status.State, n.Status.Health, n.Status.Ready, n.Status.Message)
	}
	switch {
	case old.NodeID != "" && old.NodeID != n.NodeID:
		w.c.broken("%s moves from %s to %q", n.Name, old.NodeID, n.NodeID)
	case old.Status.State.Final() && old.Status.State != n.Status.State:
		w.c.broken("%s was %s and is %s", n.Name, old.Status.State, n.Status.State)
	case old.RevisionID != n.RevisionID || old.Slot != n.Slot || old.WorkloadID != n.WorkloadID:
		w.c.broken("%s becomes another", n.Name)
	case old.Desired != model.DesiredRun && n.Desired == model.DesiredRun:
		w.c.broken("%s was to %s and is to run again", n.Name, old.Desired)
	}
	switch {
	case old.Desired == model.DesiredRun && n.Desired == model.DesiredDrain:
		w.draining[n.ID] = drain{w.revision, time.Now()}
	case old.Desired == model.DesiredDrain && n.Desired == model.DesiredStop:
		d := w.draining[n.ID]
		if time.Since(d.since) > 9*time.Second {
			return // after ten it may be stopped anyway
		}
		for _, h := range w.c.hosts {
			if applied, calm := w.c.calm(h); calm && applied < d.revision {
				w.c.broken("%s is stopped after %s, while %s has %d in force and would send connections until %d",
					n.Name, time.Since(d.since), h.id, applied, d.revision)
			}
		}
	}
}

// checkNodes makes sure that no node has more than it can hold, and no port twice.
func (w *watch) checkNodes() {
	memory, ports := map[string]int64{}, map[string]string{}
	for _, i := range w.instances {
		if i.NodeID == "" || i.Status.State.Final() {
			continue
		}
		memory[i.NodeID] += w.reserved[i.RevisionID]
		for _, p := range i.HostPorts {
			key := fmt.Sprint(i.NodeID, " ", p.Protocol, "/", p.Published)
			if other := ports[key]; other != "" {
				w.c.broken("%s is held by %s and by %s", key, other, i.ID)
			}
			ports[key] = i.ID
		}
	}
	for node, used := range memory {
		if used > nodeMemory {
			w.c.broken("%s bytes are reserved on %s, which has %d", fmt.Sprint(used), node, nodeMemory)
		}
	}
}

// checkAddresses makes sure that no address belongs to two, and that blocks do not overlap.
func (w *watch) checkAddresses() {
	owner := map[model.Address]string{}
	note := func(who string, list []model.Address) {
		for _, a := range list {
			if other := owner[a]; other != "" {
				w.c.broken("%s belongs to %s and to %s", a.IP, other, who)
			}
			owner[a] = who
		}
	}
	for _, i := range w.instances {
		if !i.Status.State.Final() {
			note(i.ID, i.Addresses)
		}
	}
	for _, s := range w.services {
		note("service "+s.Name, s.Status.VirtualIPs)
	}
	for _, n := range w.networks {
		held := map[string]bool{}
		for _, b := range n.Status.Blocks {
			if held[b.CIDR] {
				w.c.broken("block %s of network %s is held twice", b.CIDR, n.Name)
			}
			held[b.CIDR] = true
		}
	}
}

// overTime checks what the leader is to put right, and may take a moment for: that two serve in
// one slot, and that something runs on a node that is down. It asks only of a cluster that nothing
// has happened to for a while.
func (w *watch) overTime() {
	const patience = 2 * time.Second
	if !w.c.quietFor(patience) {
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, id := range slices.Sorted(maps.Keys(w.instances)) {
		i := w.instances[id]
		if i.Leased && !w.c.quietFor(patience+dispatch.LongestLease) {
			continue // a leader waits for as long as the one before may have granted a lease
		}
		if since, ok := w.down[i.NodeID]; ok && !i.Status.State.Final() && time.Since(since) > patience {
			w.c.broken("%s is still %s, though %s has been down for %s", i.Name, i.Status.State, i.NodeID, time.Since(since))
		}
	}
	type slot struct {
		workload, node string
		number         int
	}
	serving := map[slot]int{}
	for _, i := range w.instances {
		if i.Serving() {
			s := slot{workload: i.WorkloadID, number: i.Slot}
			if w.types[i.WorkloadID] == model.GlobalWorkload {
				s.node = i.NodeID
			}
			serving[s]++
		}
	}
	twice := map[string]int{}
	for s, n := range serving {
		if n > 1 {
			twice[fmt.Sprint(s)] = n
		}
	}
	maps.DeleteFunc(w.doubled, func(slot string, _ time.Time) bool { return twice[slot] == 0 })
	for _, slot := range slices.Sorted(maps.Keys(twice)) {
		since, ok := w.doubled[slot]
		if !ok {
			w.doubled[slot] = time.Now()
			continue
		}
		if time.Since(since) > patience {
			w.c.broken("%d instances have served in slot %s for %s", twice[slot], slot, time.Since(since))
		}
	}
}
