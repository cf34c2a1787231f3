package native

import (
	"cmp"
	"slices"

	"github.com/tutti-run/tutti/internal/core"
	"github.com/tutti-run/tutti/internal/fault"
	"github.com/tutti-run/tutti/internal/model"
	"github.com/tutti-run/tutti/internal/store"
)

// Ping says who answers.
type Ping struct {
	Node    string `json:"node"`
	Leader  string `json:"leader,omitempty"` // node name; empty: this server knows of none
	Version string `json:"version,omitempty"`
}

// ApplicationView is an application and how its workloads are, taken together.
type ApplicationView struct {
	model.Application
	Workloads int      `json:"workloads"`
	Wanted    int      `json:"wanted"` // instances
	Ready     int      `json:"ready"`  // instances that serve, and completed ones of jobs
	Standing  Standing `json:"standing"`
}

// WorkloadView is a workload and how it is.
type WorkloadView struct {
	model.Workload
	Progress
}

// InstanceView is an instance with the names of what it refers to.
type InstanceView struct {
	model.Instance
	Workload string `json:"workload"` // full name; empty once the workload is gone
	Node     string `json:"node,omitempty"`
	// Current is whether it runs the revision that its workload should run.
	Current bool `json:"current"`
	// Ports are those that its workload's services publish on every host.
	Ports []model.ServicePort `json:"ports,omitempty"`
}

// NodeView is a node and what runs there.
type NodeView struct {
	model.Node
	Leader    bool            `json:"leader"`
	Instances int             `json:"instances"` // not ended
	Running   int             `json:"running"`
	Taken     model.Resources `json:"taken"` // reserved by its instances
}

// ImageView is an image and the names of the servers that keep it.
type ImageView struct {
	model.Image
	Nodes []string `json:"nodes,omitempty"`
}

// byFullName sorts as people read: by application, then name.
func byFullName[T any](list []T, meta func(*T) *model.Meta) []T {
	slices.SortStableFunc(list, func(a, b T) int {
		x, y := meta(&a), meta(&b)
		return cmp.Or(cmp.Compare(x.Namespace, y.Namespace), cmp.Compare(x.Application, y.Application),
			natural(x.Name, y.Name), x.Created.Compare(y.Created))
	})
	return list
}

// natural compares names in which numbers count as numbers: web.2 comes before web.10.
func natural(a, b string) int {
	for a != "" && b != "" {
		m, restA := leading(a)
		n, restB := leading(b)
		if isDigit(a[0]) && isDigit(b[0]) {
			m, n = trimZeros(m), trimZeros(n)
			if c := cmp.Or(cmp.Compare(len(m), len(n)), cmp.Compare(m, n)); c != 0 {
				return c
			}
		} else if c := cmp.Compare(m, n); c != 0 {
			return c
		}
		a, b = restA, restB
	}
	return cmp.Compare(len(a), len(b))
}

func isDigit(c byte) bool { return c >= '0' && c <= '9' }

// leading cuts off the longest beginning that is all digits or has none.
func leading(s string) (part, rest string) {
	n := 1
	for n < len(s) && isDigit(s[n]) == isDigit(s[0]) {
		n++
	}
	return s[:n], s[n:]
}

func trimZeros(s string) string {
	for len(s) > 1 && s[0] == '0' {
		s = s[1:]
	}
	return s
}

// plain lists all objects of a kind.
func plain[T any, P interface {
	*T
	model.Object
}](snap *store.Snapshot) []T {
	out := []T{}
	for o := range store.List[P](snap) {
		out = append(out, *o)
	}
	return byFullName(out, func(o *T) *model.Meta { return P(o).GetMeta() })
}

func applications(snap *store.Snapshot) []ApplicationView {
	out := []ApplicationView{}
	for a := range store.List[*model.Application](snap) {
		v := ApplicationView{Application: *a, Standing: StandingReady}
		for w := range store.ByApplication[*model.Workload](snap, a.Namespace, a.Name) {
			if _, within := store.Within(snap, w); within {
				continue
			}
			p := ProgressOf(w, slices.Collect(store.InstancesOf(snap, w)))
			v.Workloads++
			v.Wanted += p.Wanted
			v.Ready += p.Ready + p.Completed
			v.Standing = worse(v.Standing, p.Standing)
		}
		out = append(out, v)
	}
	return byFullName(out, func(v *ApplicationView) *model.Meta { return &v.Meta })
}

// workloads lists those of an application, or all when it is empty; none that another one stands for.
func workloads(snap *store.Snapshot, namespace, application string) []WorkloadView {
	out := []WorkloadView{}
	list := store.List[*model.Workload](snap)
	if application != "" {
		list = store.ByApplication[*model.Workload](snap, namespace, application)
	}
	for w := range list {
		if _, within := store.Within(snap, w); !within {
			out = append(out, WorkloadView{Workload: *w, Progress: ProgressOf(w, slices.Collect(store.InstancesOf(snap, w)))})
		}
	}
	return byFullName(out, func(v *WorkloadView) *model.Meta { return &v.Workload.Meta })
}

// InstanceChoice says which instances to list: those of one reference, of one application (also
// one that is being removed), or all.
type InstanceChoice struct {
	Ref         string
	Application string
	// Ended also lists those that have ended and that nobody wants any more.
	Ended bool
}

func (s *server) instances(who core.Caller, snap *store.Snapshot, c InstanceChoice) ([]InstanceView, error) {
	list, err := s.choose(who, snap, c)
	if err != nil {
		return nil, err
	}
	n := namesOf(snap)
	out := []InstanceView{}
	for _, i := range list {
		if c.Ended || !i.Status.State.Final() || i.Desired == model.DesiredRun {
			out = append(out, n.instance(i))
		}
	}
	return byFullName(out, func(v *InstanceView) *model.Meta { return &v.Meta }), nil
}

func (s *server) choose(who core.Caller, snap *store.Snapshot, c InstanceChoice) ([]*model.Instance, error) {
	if c.Application != "" {
		return instancesOfApplication(snap, namespaceOf(who), c.Application), nil
	}
	if c.Ref == "" {
		return slices.Collect(store.List[*model.Instance](snap)), nil
	}
	f, err := s.Core.Find(who, c.Ref)
	if err != nil {
		return nil, err
	}
	switch {
	case f.Application != nil:
		return instancesOfApplication(snap, f.Application.Namespace, f.Application.Name), nil
	case f.Workload != nil:
		return slices.Collect(store.InstancesOf(snap, f.Workload)), nil
	case f.Node != nil:
		return slices.Collect(store.InstancesOnNode(snap, f.Node.ID)), nil
	}
	return []*model.Instance{f.Instance}, nil
}

// instancesOfApplication are its own, and those that its workloads stand for.
func instancesOfApplication(snap *store.Snapshot, namespace, application string) []*model.Instance {
	out := slices.Collect(store.ByApplication[*model.Instance](snap, namespace, application))
	for w := range store.ByApplication[*model.Workload](snap, namespace, application) {
		if w.Followed != nil {
			out = append(out, slices.Collect(store.InstancesOf(snap, w))...)
		}
	}
	return out
}

// names looks up, once for a whole list, what instances refer to.
type names struct {
	snap  *store.Snapshot
	nodes map[string]string
	ports map[string][]model.ServicePort // by workload ID
}

func namesOf(snap *store.Snapshot) names {
	n := names{snap: snap, nodes: map[string]string{}, ports: map[string][]model.ServicePort{}}
	for node := range store.List[*model.Node](snap) {
		n.nodes[node.ID] = node.Name
	}
	for svc := range store.List[*model.Service](snap) {
		for _, p := range svc.Ports {
			if p.Published != 0 && !p.HostMode {
				n.ports[svc.WorkloadID] = append(n.ports[svc.WorkloadID], p)
			}
		}
	}
	return n
}

func (n names) instance(i *model.Instance) InstanceView {
	v := InstanceView{Instance: *i, Node: n.nodes[i.NodeID]}
	if v.Node == "" {
		v.Node = model.ShortID(i.NodeID)
	}
	if w, ok := store.Get[*model.Workload](n.snap, i.WorkloadID); ok {
		v.Workload, v.Current = w.FullName(), w.RevisionID == i.RevisionID
	}
	if !i.Status.State.Final() {
		v.Ports = n.ports[i.WorkloadID]
	}
	return v
}

func (s *server) nodes(snap *store.Snapshot) []NodeView {
	leader := s.Core.Servers.Leader()
	templates := map[string]model.Resources{} // what an instance of a revision reserves
	out := []NodeView{}
	for n := range store.List[*model.Node](snap) {
		v := NodeView{Node: *n, Leader: n.ID == leader}
		for i := range store.InstancesOnNode(snap, n.ID) {
			if i.Status.State.Final() {
				continue
			}
			v.Instances++
			if i.Status.State == model.InstanceRunning {
				v.Running++
			}
			need, ok := templates[i.RevisionID]
			if !ok {
				need = reservation(snap, i.RevisionID)
				templates[i.RevisionID] = need
			}
			v.Taken.NanoCPUs += need.NanoCPUs
			v.Taken.MemoryBytes += need.MemoryBytes
		}
		out = append(out, v)
	}
	return byFullName(out, func(v *NodeView) *model.Meta { return &v.Meta })
}

func reservation(snap *store.Snapshot, revisionID string) (sum model.Resources) {
	if r, ok := store.Get[*model.Revision](snap, revisionID); ok {
		for _, t := range r.Template.Tasks {
			sum.NanoCPUs += t.Reserve.NanoCPUs
			sum.MemoryBytes += t.Reserve.MemoryBytes
		}
	}
	return sum
}

func images(snap *store.Snapshot) []ImageView {
	out := []ImageView{}
	for i := range store.List[*model.Image](snap) {
		v := ImageView{Image: *i}
		for _, id := range i.Status.Nodes {
			if n, ok := store.Get[*model.Node](snap, id); ok {
				v.Nodes = append(v.Nodes, n.Name)
			}
		}
		slices.Sort(v.Nodes)
		out = append(out, v)
	}
	return byFullName(out, func(v *ImageView) *model.Meta { return &v.Meta })
}

func (s *server) ping() Ping {
	p := Ping{Node: s.NodeName, Version: s.Version}
	if id := s.Core.Servers.Leader(); id != "" {
		p.Leader = model.ShortID(id)
		if n, ok := store.Get[*model.Node](s.Core.Store.Snapshot(), id); ok {
			p.Leader = n.Name
		}
	}
	return p
}

// known says whether an application exists, as an error.
func known(snap *store.Snapshot, namespace, application string) error {
	if _, ok := store.ByName[*model.Application](snap, namespace, "", application); !ok {
		return fault.New(fault.NotFound, "application %s does not exist", application)
	}
	return nil
}
