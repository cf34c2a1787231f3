package docker

import (
	"maps"
	"net/http"
	"slices"
	"strconv"
	"strings"

	"github.com/moby/moby/api/types/swarm"

	"github.com/tutti-run/tutti/internal/fault"
	"github.com/tutti-run/tutti/internal/model"
	"github.com/tutti-run/tutti/internal/store"
)

func findNode(a *API, snap *store.Snapshot, ref string) (*model.Node, error) {
	if ref == "self" {
		ref = a.NodeID
	}
	var prefixed []*model.Node
	for n := range store.List[*model.Node](snap) {
		if n.ID == ref || n.Name == ref {
			return n, nil
		}
		if ref != "" && strings.HasPrefix(n.ID, ref) {
			prefixed = append(prefixed, n)
		}
	}
	if len(prefixed) == 1 {
		return prefixed[0], nil
	}
	if len(prefixed) > 1 {
		return nil, fault.New(fault.Invalid, "node %s is ambiguous (%d matches found)", ref, len(prefixed))
	}
	return nil, fault.New(fault.NotFound, "node %s not found", ref)
}

var availabilities = map[model.Availability]swarm.NodeAvailability{
	model.Active: swarm.NodeAvailabilityActive, "": swarm.NodeAvailabilityActive,
	model.Cordoned: swarm.NodeAvailabilityPause, model.Draining: swarm.NodeAvailabilityDrain,
}

func (a *API) nodeView(n *model.Node) swarm.Node {
	v := swarm.Node{ID: n.ID}
	v.Version.Index, v.CreatedAt, v.UpdatedAt = n.Revision, n.Created.UTC(), n.Status.Since.UTC()
	v.Spec.Labels = map[string]string{}
	for k, l := range n.Labels {
		v.Spec.Labels[k] = l
	}
	v.Spec.Role, v.Spec.Availability = swarm.NodeRoleWorker, availabilities[n.Availability]
	if n.Server {
		v.Spec.Role = swarm.NodeRoleManager
		v.ManagerStatus = &swarm.ManagerStatus{Leader: a.Core.Servers.Leader() == n.ID, Reachability: swarm.ReachabilityReachable, Addr: n.WireAddress}
		if n.Status.State != model.NodeReady {
			v.ManagerStatus.Reachability = swarm.ReachabilityUnreachable
		}
	}
	v.Description = swarm.NodeDescription{
		Hostname: n.Name, Platform: swarm.Platform{OS: n.Attributes["os"], Architecture: machine[n.Attributes["arch"]]},
		Resources: swarm.Resources{NanoCPUs: n.Capacity.NanoCPUs, MemoryBytes: n.Capacity.MemoryBytes},
		Engine:    swarm.EngineDescription{EngineVersion: n.Attributes["version"]},
	}
	v.Description.Resources.GenericResources = genericResources(n.Capacity.Custom, n.Devices)
	v.Status = swarm.NodeStatus{State: swarm.NodeStateUnknown, Message: n.Status.Message, Addr: n.HostAddress}
	switch n.Status.State {
	case model.NodeReady:
		v.Status.State = swarm.NodeStateReady
	case model.NodeDown:
		v.Status.State = swarm.NodeStateDown
	}
	return v
}

// genericResources are what is counted, or has names.
func genericResources(counts map[string]int64, names map[string][]string) (out []swarm.GenericResource) {
	for _, kind := range slices.Sorted(maps.Keys(counts)) {
		for _, name := range names[kind] {
			out = append(out, swarm.GenericResource{NamedResourceSpec: &swarm.NamedGenericResource{Kind: kind, Value: name}})
		}
		if len(names[kind]) == 0 {
			out = append(out, swarm.GenericResource{DiscreteResourceSpec: &swarm.DiscreteGenericResource{Kind: kind, Value: counts[kind]}})
		}
	}
	return out
}

func (a *API) nodeList(w http.ResponseWriter, r *request) error {
	f, err := readFilters(r, "id", "label", "membership", "name", "node.label", "role")
	if err != nil {
		return err
	}
	for _, role := range f["role"] {
		if role != string(swarm.NodeRoleManager) && role != string(swarm.NodeRoleWorker) {
			return fault.New(fault.Invalid, "Invalid role filter: '%s'", role)
		}
	}
	for _, m := range f["membership"] {
		if m != "accepted" && m != "pending" {
			return fault.New(fault.Invalid, "Invalid membership filter: '%s'", m)
		}
	}
	out := []swarm.Node{}
	for n := range store.List[*model.Node](a.snapshot()) {
		v := a.nodeView(n)
		if f.prefix("id", n.ID) && f.prefix("name", n.Name) && f.labels("node.label", n.Labels) && f.labels("label", nil) &&
			f.exact("role", string(v.Spec.Role)) && f.exact("membership", "accepted") {
			out = append(out, v)
		}
	}
	slices.SortFunc(out, func(a, b swarm.Node) int { return strings.Compare(a.Description.Hostname, b.Description.Hostname) })
	return answer(w, http.StatusOK, out)
}

func (a *API) nodeInspect(w http.ResponseWriter, r *request) error {
	n, err := findNode(a, a.snapshot(), r.vars["id"])
	if err != nil {
		return err
	}
	return answer(w, http.StatusOK, a.nodeView(n))
}

func (a *API) nodeUpdate(w http.ResponseWriter, r *request) error {
	n, err := findNode(a, a.snapshot(), r.vars["id"])
	if err != nil {
		return err
	}
	if _, err := strconv.ParseUint(r.query.Get("version"), 10, 64); err != nil {
		return fault.New(fault.Invalid, "invalid node version '%s': %w", r.query.Get("version"), err)
	}
	var spec swarm.NodeSpec
	if err := decode(r, &spec, false); err != nil {
		return err
	}
	if spec.Name != "" {
		return notHonoured("the name of a node", spec.Name)
	}
	var wanted model.Availability
	for ours, theirs := range availabilities {
		if theirs == spec.Availability && ours != "" {
			wanted = ours
		}
	}
	if wanted == "" {
		return fault.New(fault.Invalid, "invalid availability %q", spec.Availability)
	}
	present := a.nodeView(n)
	set, remove := map[string]string{}, []string{}
	for k, v := range spec.Labels {
		if have, ok := n.Labels[k]; !ok || have != v {
			set[k] = v
		}
	}
	for k := range n.Labels {
		if _, ok := spec.Labels[k]; !ok {
			remove = append(remove, k)
		}
	}
	switch {
	case spec.Role == present.Spec.Role:
	case spec.Role == swarm.NodeRoleManager:
		err = a.Core.PromoteServer(r.Context(), r.who, n.Name)
	case spec.Role == swarm.NodeRoleWorker:
		err = a.Core.DemoteServer(r.Context(), r.who, n.Name)
	default:
		err = fault.New(fault.Invalid, "invalid role %q", spec.Role)
	}
	if err != nil {
		return err
	}
	if spec.Availability != present.Spec.Availability {
		if err := a.Core.SetAvailability(r.Context(), r.who, n.Name, wanted); err != nil {
			return err
		}
	}
	if len(set)+len(remove) > 0 {
		if err := a.Core.LabelNode(r.Context(), r.who, n.Name, set, remove); err != nil {
			return err
		}
	}
	return done(w, http.StatusOK)
}

func (a *API) nodeRemove(w http.ResponseWriter, r *request) error {
	n, err := findNode(a, a.snapshot(), r.vars["id"])
	if err != nil {
		return err
	}
	if n.Status.State != model.NodeDown {
		return fault.New(fault.Invalid, "rpc error: code = FailedPrecondition desc = node %s is not down and can't be removed", n.ID)
	}
	if err := a.Core.RemoveNode(r.Context(), r.who, n.Name); err != nil {
		return err
	}
	return done(w, http.StatusOK)
}
