package docker

import (
	"bytes"
	"cmp"
	"encoding/hex"
	"encoding/json"
	"slices"
	"strings"
	"sync"

	"github.com/tutti-run/tutti/internal/fault"
	"github.com/tutti-run/tutti/internal/model"
	"github.com/tutti-run/tutti/internal/store"
)

// isContainer reports whether a workload is a container of this API, by how its extension begins.
func isContainer(w *model.Workload) bool {
	return w.Application == application && bytes.HasPrefix(w.Extensions[extension], []byte(`{"config":`))
}

// decodeRequest is the request that a container was made by; nil when the workload is none.
func decodeRequest(w *model.Workload) *created {
	if !isContainer(w) {
		return nil
	}
	c := new(created)
	if json.Unmarshal(w.Extensions[extension], c) != nil || c.Config == nil || c.HostConfig == nil {
		return nil
	}
	return c
}

// requests remembers decoded requests by the workloads that keep them: lists would decode all again
// and again.
type requests struct {
	mu sync.Mutex
	of map[string]keptRequest
}

type keptRequest struct {
	from []byte // what it was decoded from, which nobody changes in place
	made *created
}

// maxRequests is how many are remembered before all are forgotten: as many containers are a large cluster.
const maxRequests = 50_000

// madeOf is the request that a container was made by, to be looked at only; nil when the workload is none.
func (a *API) madeOf(w *model.Workload) *created {
	if !isContainer(w) {
		return nil
	}
	data := w.Extensions[extension]
	a.requests.mu.Lock()
	e, ok := a.requests.of[w.ID]
	a.requests.mu.Unlock()
	if ok && &e.from[0] == &data[0] {
		return e.made
	}
	made := decodeRequest(w)
	a.requests.mu.Lock()
	defer a.requests.mu.Unlock()
	if a.requests.of == nil || len(a.requests.of) >= maxRequests {
		a.requests.of = map[string]keptRequest{}
	}
	a.requests.of[w.ID] = keptRequest{data, made}
	return made
}

// boxes lists the containers of the cluster, newest first.
func (a *API) boxes(snap *store.Snapshot) []*box {
	ports := map[string][]model.ServicePort{}
	for s := range store.List[*model.Service](snap) {
		if len(s.Ports) > 0 {
			ports[s.WorkloadID] = append(ports[s.WorkloadID], s.Ports...)
		}
	}
	var out []*box
	for w := range store.List[*model.Workload](snap) {
		out = append(out, a.boxesOf(snap, w, ports[w.ID])...)
	}
	slices.SortStableFunc(out, func(a, b *box) int {
		return cmp.Or(b.created().Compare(a.created()), cmp.Compare(a.name, b.name))
	})
	return out
}

func (a *API) boxesOf(snap *store.Snapshot, w *model.Workload, ports []model.ServicePort) (out []*box) {
	b := a.ownBox(snap, w, ports)
	if b != nil {
		out = append(out, b)
	}
	for i := range store.InstancesOfWorkload(snap, w.ID) {
		if b == nil || i.Slot != 1 {
			out = append(out, instanceBoxes(snap, w, i, ports)...)
		}
	}
	return out
}

// ownBox is the container that a workload was made for; nil when it is that of a service.
func (a *API) ownBox(snap *store.Snapshot, w *model.Workload, ports []model.ServicePort) *box {
	made := a.madeOf(w)
	if made == nil {
		return nil
	}
	b := &box{id: containerID(w.ID, 0), name: dockerName(&w.Meta), workload: w, template: &w.Template, made: made, ports: ports}
	for i := range store.InstancesOfWorkload(snap, w.ID) {
		if i.Slot == 1 && (b.instance == nil || newer(i, b.instance)) {
			b.instance = i
		}
	}
	return b.at(snap)
}

// instanceBoxes are the containers of an instance of a service, none while it has no node.
func instanceBoxes(snap *store.Snapshot, w *model.Workload, i *model.Instance, ports []model.ServicePort) []*box {
	if i.NodeID == "" {
		return nil
	}
	template := &w.Template
	if r, ok := store.Get[*model.Revision](snap, i.RevisionID); ok {
		template = &r.Template
	}
	var out []*box
	for n := range template.Tasks {
		b := &box{id: containerID(i.ID, n), name: instanceName(w, i), workload: w, instance: i, template: template, nth: n, ports: ports}
		if n > 0 {
			b.name += "." + template.Tasks[n].Name
		}
		out = append(out, b.at(snap))
	}
	return out
}

// boxesBehind are the containers of what has an ID: of a workload, or of an instance.
func (a *API) boxesBehind(snap *store.Snapshot, id string) []*box {
	if w, ok := store.Get[*model.Workload](snap, id); ok {
		if b := a.ownBox(snap, w, portsOf(snap, w)); b != nil {
			return []*box{b}
		}
		return nil
	}
	i, ok := store.Get[*model.Instance](snap, id)
	if !ok {
		return nil
	}
	w, ok := store.Get[*model.Workload](snap, i.WorkloadID)
	if !ok || a.madeOf(w) != nil && i.Slot == 1 {
		return nil
	}
	return instanceBoxes(snap, w, i, portsOf(snap, w))
}

func (a *API) boxByID(snap *store.Snapshot, id string) *box {
	owner := ownerOf(id)
	for _, b := range a.boxesBehind(snap, owner) {
		if b.id == id {
			return b
		}
	}
	if owner != "" {
		return nil
	}
	for _, b := range a.boxes(snap) { // of an object whose ID is none of ours
		if b.id == id {
			return b
		}
	}
	return nil
}

// findBox says which container a reference means: its whole ID, its name, with that of its node
// before it or not, or the beginning of its ID. Most references lead to one container at once; the
// others are looked for among all.
func (a *API) findBox(snap *store.Snapshot, ref string) (*box, error) {
	name := strings.TrimPrefix(ref, "/")
	if b := a.directly(snap, name); b != nil {
		return b, nil
	}
	var prefixed []*box
	for _, b := range a.boxes(snap) {
		full := ""
		if b.instance != nil {
			full = b.instance.FullName()
		}
		if b.id == name || b.name == name || full == name && b.nth == 0 || b.node != "" && b.node+"/"+b.name == name {
			return b, nil
		}
		if name != "" && strings.HasPrefix(b.id, name) {
			prefixed = append(prefixed, b)
		}
	}
	switch {
	case len(prefixed) == 1:
		return prefixed[0], nil
	case len(prefixed) > 1:
		return nil, fault.New(fault.Invalid, "Multiple IDs found with provided prefix: %s", name)
	}
	return nil, fault.New(fault.NotFound, "No such container: %s", ref)
}

// box is the container that a request is about.
func (a *API) box(r *request) (*box, error) { return a.findBox(a.snapshot(), r.vars["name"]) }

// directly finds a container by what the store has an index of; nil says nothing.
func (a *API) directly(snap *store.Snapshot, name string) *box {
	if len(name) == 64 {
		for _, b := range a.boxesBehind(snap, ownerOf(name)) {
			if b.id == name {
				return b
			}
		}
	}
	if w, ok := store.ByName[*model.Workload](snap, model.DefaultNamespace, application, name); ok {
		if b := a.ownBox(snap, w, portsOf(snap, w)); b != nil {
			return b
		}
	}
	if dot := strings.LastIndexByte(name, '.'); dot >= 0 { // "service.1.instance"
		for _, b := range a.boxesBehind(snap, name[dot+1:]) {
			if b.name == name {
				return b
			}
		}
	}
	owners := ownersFrom(snap, name)
	if len(owners) > 2 {
		return nil
	}
	var only *box
	for _, owner := range owners {
		for _, b := range a.boxesBehind(snap, owner) {
			switch {
			case !strings.HasPrefix(b.id, name):
			case only != nil:
				return nil
			default:
				only = b
			}
		}
	}
	return only
}

// ownersFrom are the IDs of the workloads and instances whose containers' IDs begin so, a few more at most:
// what of the beginning makes whole digits of our own IDs is looked up. Of a short one there are none, as
// names are looked for first and may be the same.
func ownersFrom(snap *store.Snapshot, prefix string) (out []string) {
	const enough = 12 // digits: what people copy
	if len(prefix) < enough || len(prefix) > 30 || !isHex(prefix) {
		return nil
	}
	raw, err := hex.DecodeString(prefix[:len(prefix)/2*2])
	if err != nil {
		return nil
	}
	own := idEncoding.EncodeToString(raw)[:len(raw)*8/5]
	for w := range store.ByIDPrefix[*model.Workload](snap, own) {
		out = append(out, w.ID)
	}
	for i := range store.ByIDPrefix[*model.Instance](snap, own) {
		out = append(out, i.ID)
	}
	return out
}

// portsOf are the ports of the services that lead to a workload. That of a container has its name.
func portsOf(snap *store.Snapshot, w *model.Workload) []model.ServicePort {
	if isContainer(w) {
		if s, ok := store.ByName[*model.Service](snap, w.Namespace, w.Application, w.Name); ok && s.WorkloadID == w.ID {
			return s.Ports
		}
		return nil
	}
	var out []model.ServicePort
	for s := range store.ByApplication[*model.Service](snap, w.Namespace, w.Application) {
		if s.WorkloadID == w.ID {
			out = append(out, s.Ports...)
		}
	}
	return out
}
