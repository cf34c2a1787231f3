package dispatch

import (
	"bytes"
	"fmt"
	"maps"
	"slices"
	"sync"

	"github.com/fxamacker/cbor/v2"

	"github.com/tutti-run/tutti/internal/model"
	"github.com/tutti-run/tutti/internal/store"
	"github.com/tutti-run/tutti/internal/wire"
)

// network is the network state of the cluster as of a revision, and what was changed lately. Every
// server makes the same of the same revision, so that a node that comes from another server needs only
// what was changed since. The state itself is made of the snapshot whenever it is needed: kept beside,
// it would be as large as a third of the store.
type network struct {
	mu      sync.Mutex
	snap    *store.Snapshot // up to which the store was followed
	changed uint64          // of the latest difference, or of the state to begin with
	changes []difference    // ascending
	kept    int             // bytes of messages in changes
	floor   uint64          // changes after this revision are kept
	open    func(*model.Secret) ([]byte, error)
	full    cbor.RawMessage // wire.ServerMessage with all parts; nil: to be made when asked for
}

// part is a node, network, service or instance.
type part struct {
	kind model.Kind
	data cbor.RawMessage
}

// difference is a message that leads to the state as of a revision from the one before it.
type difference struct {
	revision uint64
	message  cbor.RawMessage // wire.ServerMessage
}

// What is kept of differences: who is further behind gets everything.
const (
	mostDifferences = 4096
	mostKept        = 8 << 20 // bytes
)

// rawNetwork is wire.Network with its parts encoded.
type rawNetwork struct {
	Revision    uint64            `json:"revision"`
	Since       uint64            `json:"since,omitempty"`
	Gone        []string          `json:"gone,omitempty"`
	Nodes       []cbor.RawMessage `json:"nodes"`
	Networks    []cbor.RawMessage `json:"networks"`
	Services    []cbor.RawMessage `json:"services"`
	Instances   []cbor.RawMessage `json:"instances"`
	Policies    []cbor.RawMessage `json:"policies,omitempty"`
	NodePool    string            `json:"nodePool"`
	AddressPool string            `json:"addressPool"`

	AddressPool6 string `json:"addressPool6,omitempty"`
}

type rawMessage struct {
	Network *rawNetwork `json:"network"`
}

func (r *rawNetwork) add(p part) {
	switch p.kind {
	case model.KindNode:
		r.Nodes = append(r.Nodes, p.data)
	case model.KindNetwork:
		r.Networks = append(r.Networks, p.data)
	case model.KindService:
		r.Services = append(r.Services, p.data)
	case model.KindInstance:
		r.Instances = append(r.Instances, p.data)
	case model.KindPolicy:
		r.Policies = append(r.Policies, p.data)
	}
}

// reset takes the state of a snapshot; nobody is helped by a difference to it.
func (n *network) reset(snap *store.Snapshot) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.snap, n.changes, n.kept, n.full = snap, nil, 0, nil
	n.changed, n.floor = snap.Revision(), snap.Revision()
}

// told are the kinds of objects of which the network state is made.
var told = []model.Kind{model.KindNode, model.KindNetwork, model.KindService, model.KindInstance, model.KindPolicy}

func objects(snap *store.Snapshot, kind model.Kind) func(yield func(model.Object) bool) {
	return func(yield func(model.Object) bool) {
		switch kind {
		case model.KindNode:
			for o := range store.List[*model.Node](snap) {
				if !yield(o) {
					return
				}
			}
		case model.KindNetwork:
			for o := range store.List[*model.Network](snap) {
				if !yield(o) {
					return
				}
			}
		case model.KindService:
			for o := range store.List[*model.Service](snap) {
				if !yield(o) {
					return
				}
			}
		case model.KindInstance:
			for o := range store.List[*model.Instance](snap) {
				if !yield(o) {
					return
				}
			}
		case model.KindPolicy:
			for o := range store.List[*model.Policy](snap) {
				if !yield(o) {
					return
				}
			}
		}
	}
}

// follow takes over what changed up to a snapshot. It reports whether the state did.
func (n *network) follow(snap *store.Snapshot, changed []store.Change) (bool, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	out := &rawNetwork{Revision: snap.Revision(), Since: n.changed}
	pools, before := poolsOf(snap), n.snap
	differs := pools != poolsOf(before)
	out.NodePool, out.AddressPool, out.AddressPool6 = pools[0], pools[1], pools[2]
	seen := map[string]bool{}
	look := func(kind model.Kind, id string) error {
		if seen[id] || !slices.Contains(told, kind) {
			return nil
		}
		seen[id] = true
		had, was, err := n.partOf(before, kind, id)
		if err != nil {
			return err
		}
		p, is, err := n.partOf(snap, kind, id)
		if err != nil {
			return err
		}
		switch {
		case is && !(was && bytes.Equal(had.data, p.data)):
			out.add(p)
			differs = true
		case !is && was:
			out.Gone = append(out.Gone, id)
			differs = true
		}
		return nil
	}
	for _, c := range withSecrets(snap, changed) {
		if err := look(c.Kind, c.ID); err != nil {
			return false, err
		}
		if renamed(c) {
			for i := range store.InstancesOfWorkload(snap, c.ID) {
				if err := look(model.KindInstance, i.ID); err != nil {
					return false, err
				}
			}
		}
	}
	n.snap = snap
	if !differs {
		return false, nil
	}
	message, err := wire.Marshal(rawMessage{out})
	if err != nil {
		return false, fmt.Errorf("encode a difference of the network state: %w", err)
	}
	n.full, n.changed = nil, snap.Revision()
	n.changes = append(n.changes, difference{n.changed, message})
	n.kept += len(message)
	drop := 0
	for ; len(n.changes)-drop > mostDifferences || n.kept > mostKept; drop++ {
		n.kept -= len(n.changes[drop].message)
		n.floor = n.changes[drop].revision
	}
	n.changes = slices.Delete(n.changes, 0, drop)
	return true, nil
}

// since returns the messages that lead from the state as of a revision to the present one, and the
// revision as of which the state is then right. 0 stands for no state.
func (n *network) since(revision uint64) (messages []cbor.RawMessage, now uint64, err error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	now = n.snap.Revision()
	if revision != 0 && revision >= n.floor && revision <= now {
		i, _ := slices.BinarySearchFunc(n.changes, revision+1, func(d difference, r uint64) int {
			switch {
			case d.revision < r:
				return -1
			case d.revision > r:
				return 1
			}
			return 0
		})
		for _, d := range n.changes[i:] {
			messages = append(messages, d.message)
		}
		return messages, now, nil
	}
	if n.full == nil {
		pools := poolsOf(n.snap)
		all := &rawNetwork{Revision: now, NodePool: pools[0], AddressPool: pools[1], AddressPool6: pools[2]}
		for _, kind := range told {
			for o := range objects(n.snap, kind) {
				p, ok, err := n.partOf(n.snap, kind, o.GetMeta().ID)
				if err != nil {
					return nil, 0, err
				}
				if ok {
					all.add(p)
				}
			}
		}
		if n.full, err = wire.Marshal(rawMessage{all}); err != nil {
			return nil, 0, fmt.Errorf("encode the network state: %w", err)
		}
	}
	return []cbor.RawMessage{n.full}, now, nil
}

// renamed reports whether a workload has another name or other labels: its instances are known by them.
func renamed(c store.Change) bool {
	old, _ := c.Old.(*model.Workload)
	now, _ := c.New.(*model.Workload)
	return old != nil && now != nil && (old.Name != now.Name || !maps.Equal(old.Labels, now.Labels))
}

func poolsOf(snap *store.Snapshot) (p [3]string) {
	if c, ok := store.Get[*model.Cluster](snap, model.ClusterID); ok {
		p = [3]string{c.NodePool, c.AddressPool, model.Pool6(c)}
	}
	return p
}

// withSecrets adds the services whose routes have a secret that changed.
func withSecrets(snap *store.Snapshot, changed []store.Change) []store.Change {
	secrets := map[string]bool{}
	for _, c := range changed {
		if c.Kind == model.KindSecret {
			secrets[c.ID] = true
		}
	}
	if len(secrets) == 0 {
		return changed
	}
	changed = slices.Clone(changed)
	for s := range store.List[*model.Service](snap) {
		if slices.ContainsFunc(s.Routes, func(r model.Route) bool {
			return slices.ContainsFunc(r.Secrets(s.Namespace), func(id string) bool { return secrets[id] })
		}) {
			changed = append(changed, store.Change{Kind: model.KindService, ID: s.ID})
		}
	}
	return changed
}

// routeSecrets are what hosts need for a service's routes. One that is not there, or that a locked server
// cannot open, is left out: the ingress has no certificate for that host then, say.
func (n *network) routeSecrets(snap *store.Snapshot, s *model.Service) map[string][]byte {
	var out map[string][]byte
	for _, r := range s.Routes {
		for _, id := range r.Secrets(s.Namespace) {
			secret, ok := store.Get[*model.Secret](snap, id)
			if !ok {
				continue
			}
			if data, err := n.open(secret); err == nil {
				if out == nil {
					out = map[string][]byte{}
				}
				out[id] = data
			}
		}
	}
	return out
}

// partOf makes of an object what nodes need of it; ok is false when they need nothing.
func (n *network) partOf(snap *store.Snapshot, kind model.Kind, id string) (p part, ok bool, err error) {
	var v any
	switch kind {
	case model.KindNode:
		if n, found := store.Get[*model.Node](snap, id); found && n.OverlayAddress != "" {
			v = wire.NetworkNode{
				ID: n.ID, Name: n.Name, HostAddress: n.HostAddress,
				OverlayAddress: n.OverlayAddress, TunnelKey: n.Attributes[model.WireGuardKeyAttribute], Down: n.Status.State == model.NodeDown,
			}
		}
	case model.KindNetwork:
		if n, found := store.Get[*model.Network](snap, id); found && n.Status.Subnet != "" {
			c := *n
			c.Revision = 0 // what it says did not change with it
			v = &c
		}
	case model.KindService:
		if s, found := store.Get[*model.Service](snap, id); found {
			var links []string
			for _, id := range s.Networks {
				if n, ok := store.Get[*model.Network](snap, id); ok && n.Underlay != nil {
					links = append(links, id)
				}
			}
			v = wire.NetworkService{
				ID: s.ID, Name: s.Name, Application: s.Application, Namespace: s.Namespace,
				Aliases: s.Aliases, VirtualIPs: s.Status.VirtualIPs, OnHosts: links, Ports: s.Ports,
				RoundRobin: s.DNSRoundRobin, Balance: s.Balance, WorkloadID: s.WorkloadID, PortGroup: s.PortGroup,
				Direct: s.Direct, Backends: s.Backends, OutsideIPs: s.OutsideIPs, ExternalName: s.ExternalName, Routes: s.Routes, Secrets: n.routeSecrets(snap, s),
			}
		}
	case model.KindInstance:
		if i, found := store.Get[*model.Instance](snap, id); found && i.NodeID != "" && !i.Status.State.Final() {
			v = networkInstance(snap, i)
		}
	case model.KindPolicy:
		if found, ok := store.Get[*model.Policy](snap, id); ok {
			c := *found
			c.Revision = 0
			v = &c
		}
	}
	if v == nil {
		return part{}, false, nil
	}
	data, err := wire.Marshal(v)
	if err != nil {
		return part{}, false, fmt.Errorf("encode %s %s for nodes: %w", kind, id, err)
	}
	return part{kind, data}, true, nil
}

func networkInstance(snap *store.Snapshot, inst *model.Instance) wire.NetworkInstance {
	ni := wire.NetworkInstance{
		ID: inst.ID, Name: inst.Name, Application: inst.Application, Namespace: inst.Namespace,
		NodeID: inst.NodeID, Addresses: inst.Addresses, HostPorts: inst.HostPorts,
		WorkloadID: inst.WorkloadID, Serves: inst.Serving(),
	}
	if w, ok := store.Get[*model.Workload](snap, inst.WorkloadID); ok {
		ni.Workload, ni.Labels = w.Name, w.Labels
	}
	if rev, ok := store.Get[*model.Revision](snap, inst.RevisionID); ok {
		for _, at := range rev.Template.Networks {
			if len(at.Aliases) > 0 {
				if ni.Aliases == nil {
					ni.Aliases = map[string][]string{}
				}
				ni.Aliases[at.Network] = at.Aliases
			}
		}
		ni.DNS, ni.Weight = rev.Template.DNS.Servers, rev.Template.Weight
	}
	return ni
}
