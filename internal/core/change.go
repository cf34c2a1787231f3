package core

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/tutti-run/tutti/internal/fault"
	"github.com/tutti-run/tutti/internal/model"
	"github.com/tutti-run/tutti/internal/store"
)

// Scale sets the count of a workload.
func (c *Core) Scale(ctx context.Context, who Caller, ref string, count int) (err error) {
	a, err := c.begin(who, "scale", fmt.Sprintf("%s to %d", ref, count))
	if err != nil {
		return err
	}
	defer a.end(&err)
	if count < 0 {
		return fault.New(fault.Invalid, "count %d is negative", count)
	}
	return c.changeAny(ctx, a, ref, func(w *model.Workload, snap *store.Snapshot, cs *store.ChangeSet, now time.Time) error {
		if !w.Scalable() {
			return w.Refusal()
		}
		switch w.Type {
		case model.ServiceWorkload, model.StatefulWorkload, model.JobWorkload, model.CronWorkload:
		default:
			return fault.New(fault.Invalid, "%s is of kind %s, which has no count", w.FullName(), w.Type)
		}
		if w.Count == count {
			return nil
		}
		event(cs, now, "workload scaled", w, fmt.Sprintf("from %d to %d, by %s through %s", w.Count, count, who.Name, who.Via))
		w.Count = count
		return nil
	})
}

// RestartWorkload replaces all instances of a workload as its update policy says.
func (c *Core) RestartWorkload(ctx context.Context, who Caller, ref string) (err error) {
	a, err := c.begin(who, "restart", ref)
	if err != nil {
		return err
	}
	defer a.end(&err)
	return c.changeWorkload(ctx, a, ref, func(w *model.Workload, snap *store.Snapshot, cs *store.ChangeSet, now time.Time) error {
		w.Template.ForceUpdate++
		setRevision(snap, cs, w, now)
		event(cs, now, "workload restarted", w, fmt.Sprintf("by %s through %s", who.Name, who.Via))
		return nil
	})
}

// Rollback returns a workload to the revision before the present one.
func (c *Core) Rollback(ctx context.Context, who Caller, ref string) (err error) {
	a, err := c.begin(who, "rollback", ref)
	if err != nil {
		return err
	}
	defer a.end(&err)
	return c.changeWorkload(ctx, a, ref, func(w *model.Workload, snap *store.Snapshot, cs *store.ChangeSet, now time.Time) error {
		r, ok := store.Get[*model.Revision](snap, w.PreviousRevisionID)
		if !ok {
			return fault.New(fault.Invalid, "%s has no earlier revision to return to", w.FullName())
		}
		cs.Expect(model.KindRevision, r.ID, r.Revision)
		w.PreviousRevisionID, w.RevisionID = w.RevisionID, r.ID
		w.Template = r.Template.Clone()
		event(cs, now, "workload rolled back", w, fmt.Sprintf("to revision %d, by %s through %s", r.Number, who.Name, who.Via))
		return nil
	})
}

// setRevision makes the workload's present template its desired revision.
func setRevision(snap *store.Snapshot, cs *store.ChangeSet, w *model.Workload, now time.Time) {
	hash := w.Template.Hash()
	next := model.RevisionIDOf(w.ID, hash)
	if next == w.RevisionID {
		return
	}
	w.PreviousRevisionID, w.RevisionID = w.RevisionID, next
	keepRevision(snap, cs, w, hash, now)
}

// changeWorkload changes a workload, unless it belongs to another platform.
func (c *Core) changeWorkload(ctx context.Context, a *act, ref string, change func(*model.Workload, *store.Snapshot, *store.ChangeSet, time.Time) error) error {
	return c.changeAny(ctx, a, ref, func(w *model.Workload, snap *store.Snapshot, cs *store.ChangeSet, now time.Time) error {
		if err := w.Refusal(); err != nil {
			return err
		}
		return change(w, snap, cs, now)
	})
}

func (c *Core) changeAny(ctx context.Context, a *act, ref string, change func(*model.Workload, *store.Snapshot, *store.ChangeSet, time.Time) error) error {
	return c.update(ctx, func(snap *store.Snapshot, cs *store.ChangeSet) error {
		old, err := findWorkload(snap.Only(a.who.sees), a.who.namespace(), ref)
		if err == nil {
			err = a.in(old.Namespace)
		}
		if err != nil {
			return err
		}
		w := old.Clone()
		if err := change(w, snap, cs, time.Now()); err != nil {
			return err
		}
		if same(w, old) {
			return nil
		}
		w.Generation++
		put(cs, w)
		return nil
	})
}

// Remove removes an application or a workload. Volumes, and what they hold, stay unless
// withVolumes; then it returns only after the instances have ended and the data is gone.
func (c *Core) Remove(ctx context.Context, who Caller, ref string, withVolumes bool) (err error) {
	a, err := c.begin(who, "remove", removalText(ref, withVolumes))
	if err != nil {
		return err
	}
	defer a.end(&err)
	var volumes []*model.Volume
	var workloads []string
	err = c.update(ctx, func(snap *store.Snapshot, cs *store.ChangeSet) error {
		volumes, workloads = nil, nil
		f, err := find(snap.Only(who.sees), who.namespace(), ref)
		if err == nil {
			err = a.about(f)
		}
		if err != nil {
			return err
		}
		now := time.Now()
		switch {
		case f.Application != nil:
			for w := range store.ByApplication[*model.Workload](snap, f.Application.Namespace, f.Application.Name) {
				if err := w.Refusal(); err != nil {
					return err
				}
			}
			volumes = c.removeApplication(snap, cs, f.Application, &workloads)
			event(cs, now, "application removed", f.Application, fmt.Sprintf("by %s through %s", who.Name, who.Via))
		case f.Workload != nil:
			w := f.Workload
			if err := w.Refusal(); err != nil {
				return err
			}
			workloads = append(workloads, w.ID)
			removeWorkload(snap, cs, w, nil)
			removeServices(snap, cs, w)
			event(cs, now, "workload removed", w, fmt.Sprintf("by %s through %s", who.Name, who.Via))
		default:
			return fault.New(fault.Invalid, "%s is %s; an application or a workload can be removed", ref, f.describe())
		}
		return nil
	})
	if err != nil || !withVolumes || len(volumes) == 0 {
		return err
	}
	if err := c.awaitGone(ctx, workloads); err != nil {
		return err
	}
	return c.removeVolumes(ctx, volumes)
}

func (c *Core) removeApplication(snap *store.Snapshot, cs *store.ChangeSet, a *model.Application, workloads *[]string) []*model.Volume {
	ns, app := a.Namespace, a.Name
	cs.Expect(model.KindApplication, a.ID, a.Revision)
	cs.Delete(model.KindApplication, a.ID)
	for w := range store.ByApplication[*model.Workload](snap, ns, app) {
		*workloads = append(*workloads, w.ID)
		if _, run := store.Get[*model.Workload](snap, w.OwnerID); !run { // or else it goes with its schedule
			removeWorkload(snap, cs, w, nil)
		}
	}
	for s := range store.ByApplication[*model.Service](snap, ns, app) {
		cs.Delete(model.KindService, s.ID)
	}
	for n := range store.ByApplication[*model.Network](snap, ns, app) {
		cs.Delete(model.KindNetwork, n.ID)
	}
	for s := range store.ByApplication[*model.Secret](snap, ns, app) {
		cs.Delete(model.KindSecret, s.ID)
	}
	for f := range store.ByApplication[*model.Config](snap, ns, app) {
		cs.Delete(model.KindConfig, f.ID)
	}
	for p := range store.ByApplication[*model.Policy](snap, ns, app) {
		cs.Delete(model.KindPolicy, p.ID)
	}
	return slices.Collect(store.ByApplication[*model.Volume](snap, ns, app))
}

// awaitGone waits until no instance of the workloads is left.
func (c *Core) awaitGone(ctx context.Context, workloads []string) error {
	for {
		left := 0
		snap := c.Store.Snapshot()
		for _, id := range workloads {
			for range store.InstancesOfWorkload(snap, id) {
				left++
			}
		}
		if left == 0 {
			return nil
		}
		select {
		case <-ctx.Done():
			return fault.New(fault.Unavailable, "%d instances have not ended yet; their volumes are kept: %w", left, ctx.Err())
		case <-time.After(50 * time.Millisecond):
		}
	}
}

func (c *Core) removeVolumes(ctx context.Context, volumes []*model.Volume) error {
	var failed []string
	for _, v := range volumes {
		if v.Shared() { // each node that had it lets go of it; what it holds stays
			for n := range store.List[*model.Node](c.Store.Snapshot()) {
				if n.Status.State != model.NodeReady {
					continue
				}
				if err := c.Remote.RemoveVolume(ctx, n.ID, v.ID); err != nil && !fault.Is(err, fault.NotFound) {
					c.Log.Warn("a node did not let go of a volume", "volume", v.FullName(), "node", n.Name, "error", err)
				}
			}
		}
		if v.NodeID != "" {
			if err := c.Remote.RemoveVolume(ctx, v.NodeID, v.ID); err != nil && !fault.Is(err, fault.NotFound) {
				failed = append(failed, fmt.Sprintf("%s: %v", v.FullName(), err))
				continue
			}
		}
		cs := &store.ChangeSet{}
		cs.Delete(model.KindVolume, v.ID)
		if _, err := c.Store.Commit(ctx, cs); err != nil {
			return fmt.Errorf("remove volume %s: %w", v.FullName(), err)
		}
	}
	if len(failed) > 0 {
		return fault.New(fault.Unavailable, "volumes could not be removed: %s", strings.Join(failed, "; "))
	}
	return nil
}

// SetAvailability makes a node take work, take no new work, or give up what it has.
func (c *Core) SetAvailability(ctx context.Context, who Caller, ref string, to model.Availability) (err error) {
	a, err := c.begin(who, "node availability", fmt.Sprintf("%s to %s", ref, to))
	if err != nil {
		return err
	}
	defer a.end(&err)
	switch to {
	case model.Active, model.Cordoned, model.Draining:
	default:
		return fault.New(fault.Invalid, "availability %q: active, cordoned and draining are accepted", to)
	}
	return c.changeNode(ctx, ref, func(n *model.Node, cs *store.ChangeSet) {
		n.Availability = to
		event(cs, time.Now(), "node "+string(to), n, fmt.Sprintf("by %s through %s", who.Name, who.Via))
	})
}

// LabelNode sets and removes labels of a node.
func (c *Core) LabelNode(ctx context.Context, who Caller, ref string, set map[string]string, remove []string) (err error) {
	a, err := c.begin(who, "node labels", ref)
	if err != nil {
		return err
	}
	defer a.end(&err)
	return c.changeNode(ctx, ref, func(n *model.Node, cs *store.ChangeSet) {
		if n.Labels == nil {
			n.Labels = map[string]string{}
		}
		for k, v := range set {
			n.Labels[k] = v
		}
		for _, k := range remove {
			delete(n.Labels, k)
		}
	})
}

func (c *Core) changeNode(ctx context.Context, ref string, change func(*model.Node, *store.ChangeSet)) error {
	return c.update(ctx, func(snap *store.Snapshot, cs *store.ChangeSet) error {
		old, err := findNode(snap, ref)
		if err != nil {
			return err
		}
		n := old.Clone()
		change(n, cs)
		put(cs, n)
		return nil
	})
}

// RemoveNode forgets a node that is down or never came, and takes it out of the quorum if it is a
// server. Its certificate lets it in no more.
func (c *Core) RemoveNode(ctx context.Context, who Caller, ref string) (err error) {
	a, err := c.begin(who, "node remove", ref)
	if err != nil {
		return err
	}
	defer a.end(&err)
	n, err := findNode(c.Store.Snapshot(), ref)
	if err != nil {
		return err
	}
	if n.Status.State != model.NodeDown && n.Status.State != model.NodeUnknown {
		return fault.New(fault.Invalid, "node %s is %s; only a node that is down can be removed", n.Name, n.Status.State)
	}
	if n.Server {
		if err := c.Servers.Remove(ctx, n.ID); err != nil {
			return fmt.Errorf("take server %s out of the quorum: %w", n.Name, err)
		}
	}
	return c.update(ctx, func(snap *store.Snapshot, cs *store.ChangeSet) error {
		n, ok := store.Get[*model.Node](snap, n.ID)
		if !ok {
			return nil // somebody else did the same
		}
		now := time.Now()
		cs.Delete(model.KindNode, n.ID)
		event(cs, now, "node removed", n, fmt.Sprintf("by %s through %s", who.Name, who.Via))
		if n.Server {
			shutOut(snap, cs, n.ID, now)
		}
		return nil
	})
}

// longestLife is more than any certificate of a node is valid.
const longestLife = 400 * 24 * time.Hour

// shutOut remembers a removed server: others may have to speak with servers that they have not heard of
// yet, but never again with this one.
func shutOut(snap *store.Snapshot, cs *store.ChangeSet, id string, now time.Time) {
	old, ok := store.Get[*model.Cluster](snap, model.ClusterID)
	if !ok || len(old.Sealed) == 0 { // of the form of earlier versions, which know nothing of it
		return
	}
	cl := old.Clone()
	cl.Removed = slices.DeleteFunc(cl.Removed, func(r model.RemovedServer) bool { return now.After(r.Until) })
	cl.Removed = append(cl.Removed, model.RemovedServer{ID: id, Until: now.Add(longestLife)})
	put(cs, cl)
}

// JoinToken returns the token with which a host joins, as a server or as an agent only.
func (c *Core) JoinToken(ctx context.Context, who Caller, server bool) (token string, err error) {
	a, err := c.begin(who, "token show", tokenText(server, !server))
	if err != nil {
		return "", err
	}
	defer a.end(&err)
	return c.Trust.JoinToken(server)
}

func removalText(ref string, withVolumes bool) string {
	if withVolumes {
		return ref + " with its volumes"
	}
	return ref
}
