package core

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/tutti-run/tutti/internal/fault"
	"github.com/tutti-run/tutti/internal/model"
	"github.com/tutti-run/tutti/internal/schedule"
	"github.com/tutti-run/tutti/internal/store"
)

// SetNamespace gives a namespace a weight and a quota; one that is empty takes both away.
func (c *Core) SetNamespace(ctx context.Context, who Caller, name string, share model.NamespaceShare) (err error) {
	a, err := c.begin(who, "namespace set", name)
	if err != nil {
		return err
	}
	defer a.end(&err)
	if err := model.CheckName(name); err != nil {
		return fault.New(fault.Invalid, "namespace name %w", err)
	}
	q := &share.Quota
	if share.Weight < 0 || share.MaxInstances < 0 || q.NanoCPUs < 0 || q.MemoryBytes < 0 || q.DiskBytes < 0 {
		return fault.New(fault.Invalid, "namespace %s: a weight and a quota are not negative", name)
	}
	return c.update(ctx, func(snap *store.Snapshot, cs *store.ChangeSet) error {
		old, ok := store.Get[*model.Cluster](snap, model.ClusterID)
		if !ok {
			return fault.New(fault.Unavailable, "the cluster is still being set up")
		}
		cluster := old.Clone()
		if same(share, model.NamespaceShare{}) {
			delete(cluster.Namespaces, name)
		} else {
			if cluster.Namespaces == nil {
				cluster.Namespaces = map[string]model.NamespaceShare{}
			}
			cluster.Namespaces[name] = share
		}
		if same(cluster.Namespaces, old.Namespaces) {
			return nil
		}
		put(cs, cluster)
		event(cs, time.Now(), "namespace changed", cluster, fmt.Sprintf("%s, by %s through %s", name, who.Name, who.Via))
		return nil
	})
}

// Namespace is a namespace with what it may have and has.
type Namespace struct {
	Name string `json:"name"`
	model.NamespaceShare
	Used      model.Resources `json:"used,omitzero"`
	Instances int             `json:"instances"`
}

// Namespaces lists those that have a share of their own or instances.
func (c *Core) Namespaces(ctx context.Context, who Caller) ([]Namespace, error) {
	if _, err := c.begin(who, "look", ""); err != nil {
		return nil, err
	}
	snap := c.Store.Snapshot()
	byName := map[string]*Namespace{}
	of := func(name string) *Namespace {
		if byName[name] == nil {
			byName[name] = &Namespace{Name: name}
		}
		return byName[name]
	}
	if cluster, ok := store.Get[*model.Cluster](snap, model.ClusterID); ok {
		for name, share := range cluster.Namespaces {
			of(name).NamespaceShare = share
		}
	}
	for i := range store.List[*model.Instance](snap) {
		if i.NodeID == "" || i.Status.State.Final() {
			continue
		}
		n := of(i.Namespace)
		n.Instances++
		if r, ok := store.Get[*model.Revision](snap, i.RevisionID); ok {
			wanted := schedule.Wanted(&r.Template)
			n.Used.NanoCPUs += wanted.NanoCPUs
			n.Used.MemoryBytes += wanted.MemoryBytes
			n.Used.DiskBytes += wanted.DiskBytes
		}
	}
	out := []Namespace{}
	for _, n := range byName {
		if who.has(model.RoleViewer, n.Name) {
			out = append(out, *n)
		}
	}
	slices.SortFunc(out, func(a, b Namespace) int { return strings.Compare(a.Name, b.Name) })
	return out, nil
}

// TaintNode adds taints to a node, in place of those of the same key, and removes others by key.
func (c *Core) TaintNode(ctx context.Context, who Caller, ref string, set []model.Taint, remove []string) (err error) {
	a, err := c.begin(who, "node taints", ref)
	if err != nil {
		return err
	}
	defer a.end(&err)
	for _, t := range set {
		switch {
		case t.Key == "":
			return fault.New(fault.Invalid, "a taint needs a key")
		case t.Effect != "noSchedule" && t.Effect != "preferNoSchedule" && t.Effect != "noExecute":
			return fault.New(fault.Invalid, "taint %s: effect %q is none of noSchedule, preferNoSchedule and noExecute", t.Key, t.Effect)
		}
	}
	return c.changeNode(ctx, ref, func(n *model.Node, cs *store.ChangeSet) {
		n.Taints = slices.DeleteFunc(n.Taints, func(have model.Taint) bool {
			return slices.Contains(remove, have.Key) || slices.ContainsFunc(set, func(t model.Taint) bool { return t.Key == have.Key })
		})
		n.Taints = append(n.Taints, set...)
	})
}

// SetNodeResources says of which devices or metrics a node has how many, or which by name, and which
// it has no longer. What instances hold of a device that is gone they keep until they end.
func (c *Core) SetNodeResources(ctx context.Context, who Caller, ref string, counts map[string]int64, devices map[string][]string, remove []string) (err error) {
	a, err := c.begin(who, "node resources", ref)
	if err != nil {
		return err
	}
	defer a.end(&err)
	counted := maps.Clone(counts)
	if counted == nil {
		counted = map[string]int64{}
	}
	for kind, names := range devices {
		counted[kind] = int64(len(names))
		seen := map[string]bool{}
		for _, n := range names {
			if n == "" || strings.ContainsAny(n, ", \t\n") || seen[n] {
				return fault.New(fault.Invalid, "device %q of %s: names that differ, without spaces and commas, are accepted", n, kind)
			}
			seen[n] = true
		}
	}
	for kind, n := range counted {
		switch {
		case kind == "" || strings.ContainsAny(kind, "=, \t\n"):
			return fault.New(fault.Invalid, "resource %q: a name without spaces, commas and equals signs is accepted", kind)
		case n < 1:
			return fault.New(fault.Invalid, "resource %s: a count from 1, or names of devices, is accepted", kind)
		}
	}
	if n, err := findNode(c.Store.Snapshot(), ref); err == nil {
		for _, kind := range slices.Concat(remove, slices.Collect(maps.Keys(counted))) {
			if _, own := n.Attributes[model.CDIAttribute+kind]; own {
				return fault.New(fault.Conflict, "devices of the kind %s are described by files on node %s, which counts them itself", kind, n.Name)
			}
		}
	}
	return c.changeNode(ctx, ref, func(n *model.Node, cs *store.ChangeSet) {
		if n.Capacity.Custom == nil {
			n.Capacity.Custom = map[string]int64{}
		}
		if n.Devices == nil {
			n.Devices = map[string][]string{}
		}
		for _, kind := range remove {
			delete(n.Capacity.Custom, kind)
			delete(n.Devices, kind)
		}
		for kind, count := range counted {
			n.Capacity.Custom[kind] = count
			delete(n.Devices, kind)
			if names := devices[kind]; len(names) > 0 {
				n.Devices[kind] = names
			}
		}
	})
}

// Overcommit lets burstable instances set aside so many times the cores of a node; 1 or 0: no more
// than it has.
func (c *Core) Overcommit(ctx context.Context, who Caller, ref string, times float64) (err error) {
	a, err := c.begin(who, "node overcommit", fmt.Sprintf("%s to %g", ref, times))
	if err != nil {
		return err
	}
	defer a.end(&err)
	if times != 0 && (times < 1 || times > 100) {
		return fault.New(fault.Invalid, "overcommit %g: a number from 1 to 100 is accepted", times)
	}
	return c.changeNode(ctx, ref, func(n *model.Node, cs *store.ChangeSet) { n.Overcommit = times })
}

// TrustNode says whether whoever administers a host that is an agent has the whole cluster, by way of the
// host's socket: those of servers have it anyway.
func (c *Core) TrustNode(ctx context.Context, who Caller, ref string, trusted bool) (err error) {
	what := ref
	if !trusted {
		what += " no more"
	}
	a, err := c.begin(who, "node trust", what)
	if err != nil {
		return err
	}
	defer a.end(&err)
	return c.changeNode(ctx, ref, func(n *model.Node, _ *store.ChangeSet) { n.Trusted = trusted })
}

// ReserveNode keeps something of a node back from instances, for the host itself and what else runs on
// it; what is zero is not kept back. What is placed there already stays.
func (c *Core) ReserveNode(ctx context.Context, who Caller, ref string, kept model.Resources) (err error) {
	a, err := c.begin(who, "node reserve", ref)
	if err != nil {
		return err
	}
	defer a.end(&err)
	n, err := findNode(c.Store.Snapshot(), ref)
	if err != nil {
		return err
	}
	for _, r := range []struct {
		what       string
		kept, have int64
	}{
		{"cores (in billionths)", kept.NanoCPUs, n.Capacity.NanoCPUs},
		{"bytes of memory", kept.MemoryBytes, n.Capacity.MemoryBytes},
		{"bytes of disk", kept.DiskBytes, n.Capacity.DiskBytes},
	} {
		if r.kept < 0 || r.kept > r.have {
			return fault.New(fault.Invalid, "keep back %d %s: node %s has %d; up to that is accepted", r.kept, r.what, n.Name, r.have)
		}
	}
	return c.changeNode(ctx, ref, func(n *model.Node, cs *store.ChangeSet) {
		n.Reserved.NanoCPUs, n.Reserved.MemoryBytes, n.Reserved.DiskBytes = kept.NanoCPUs, kept.MemoryBytes, kept.DiskBytes
	})
}
