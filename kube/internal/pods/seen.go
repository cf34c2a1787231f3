package pods

import (
	"slices"
	"sync"

	"github.com/tutti-run/tutti/internal/core"
	"github.com/tutti-run/tutti/internal/model"
)

// mirror is what Tutti has, as far as it was told.
type mirror struct {
	mu        sync.Mutex
	nodes     map[string]*model.Node
	instances map[string]*model.Instance // by ID
	workloads map[string]string          // workload ID → instance ID, of what the bridge made
	names     map[string][]string        // namespace/name → IDs of those instances
	ends      map[string]*model.Instance // workload ID → its instance as it ended, which is no more
	services  map[string]*model.Service
	foreign   map[string]*model.Instance // by ID, of other APIs' workloads
	owners    map[string]*model.Workload // by ID, which those belong to
	whole     bool
}

func newMirror() *mirror {
	return &mirror{
		nodes: map[string]*model.Node{}, instances: map[string]*model.Instance{}, workloads: map[string]string{}, services: map[string]*model.Service{},
		foreign: map[string]*model.Instance{}, owners: map[string]*model.Workload{}, names: map[string][]string{}, ends: map[string]*model.Instance{},
	}
}

// news is what something that was told is about: by ID a workload of the bridge's, a node, or an instance of
// others; or a workload that shows what makes Pods.
type news struct {
	workload, node, foreign string
	followed                *model.Workload
}

// take takes over what was told.
func (m *mirror) take(s *core.Seen) (n news) {
	m.mu.Lock()
	defer m.mu.Unlock()
	switch s.Kind {
	case "":
		m.whole = true
	case model.KindNode:
		delete(m.nodes, s.ID)
		if s.Node != nil {
			m.nodes[s.ID] = s.Node
		}
		n.node = s.ID
	case model.KindWorkload:
		before := m.owners[s.ID]
		delete(m.owners, s.ID)
		if s.Workload != nil && s.Workload.Application != application {
			m.owners[s.ID] = s.Workload
			before = s.Workload
		}
		if before != nil && before.Followed != nil {
			n.followed = before
		}
	case model.KindService:
		delete(m.services, s.ID)
		if s.Service != nil {
			m.services[s.ID] = s.Service
		}
	case model.KindInstance:
		old := m.instances[s.ID]
		delete(m.instances, s.ID)
		if old != nil && s.Instance == nil {
			if m.workloads[old.WorkloadID] == s.ID {
				delete(m.workloads, old.WorkloadID)
			}
			m.unname(old)
			if old.Status.State.Final() {
				m.ends[old.WorkloadID] = old
			}
			n.workload = old.WorkloadID
			return n
		}
		if s.Instance != nil && s.Instance.Application == application {
			if old == nil || named(old) != named(s.Instance) {
				m.unname(old)
				m.names[named(s.Instance)] = append(m.names[named(s.Instance)], s.ID)
			}
			m.instances[s.ID] = s.Instance
			m.workloads[s.Instance.WorkloadID] = s.ID
			n.workload = s.Instance.WorkloadID
			return n
		}
		_, known := m.foreign[s.ID]
		delete(m.foreign, s.ID)
		if s.Instance != nil {
			m.foreign[s.ID] = s.Instance
		}
		if known || s.Instance != nil {
			n.foreign = s.ID
		}
	}
	return n
}

// workload is one of others, or one that shows what makes Pods; nil when there is none of the ID.
func (m *mirror) workload(id string) *model.Workload {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.owners[id]
}

// allFollowed are the workloads that show what makes Pods.
func (m *mirror) allFollowed() (out []*model.Workload) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, w := range m.owners {
		if w.Followed != nil {
			out = append(out, w)
		}
	}
	return out
}

// followed are those of them that show what has a name.
func (m *mirror) followed(kind, namespace, name string) []*model.Workload {
	return slices.DeleteFunc(m.allFollowed(), func(w *model.Workload) bool {
		return w.Belongs.Kind != kind || w.Namespace != namespace || w.Belongs.Name != name
	})
}

// others returns an instance of another API's workload, with that; nil when there is none.
func (m *mirror) others(id string) (*model.Instance, *model.Workload) {
	m.mu.Lock()
	defer m.mu.Unlock()
	i := m.foreign[id]
	if i == nil {
		return nil, nil
	}
	return i, m.owners[i.WorkloadID]
}

func (m *mirror) synced() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.whole
}

func (m *mirror) node(id string) *model.Node {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.nodes[id]
}

func (m *mirror) allNodes() (out []*model.Node) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, n := range m.nodes {
		out = append(out, n)
	}
	return out
}

// instance is that of a workload, nil when there is none.
func (m *mirror) instance(workloadID string) *model.Instance {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.instances[m.workloads[workloadID]]
}

// end is how the instance of a workload ended that is no more; nil when that is not known.
func (m *mirror) end(workloadID string) *model.Instance {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.ends[workloadID]
}

func (m *mirror) forget(workloadID string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.ends, workloadID)
}

// namesakes are the workloads, other than one, that have an instance of a name.
func (m *mirror) namesakes(namespace, name, workloadID string) (out []string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, id := range m.names[namespace+"/"+name] {
		if i := m.instances[id]; i.WorkloadID != workloadID {
			out = append(out, i.WorkloadID)
		}
	}
	return out
}

func named(i *model.Instance) string { return i.Namespace + "/" + i.Name }

// unname forgets the name of an instance; the lock is held.
func (m *mirror) unname(i *model.Instance) {
	if i == nil {
		return
	}
	left := slices.DeleteFunc(m.names[named(i)], func(id string) bool { return id == i.ID })
	if m.names[named(i)] = left; len(left) == 0 {
		delete(m.names, named(i))
	}
}

// service is the ID of the service of a name that the bridge made; "" when there is none.
func (m *mirror) service(namespace, name string) string {
	m.mu.Lock()
	defer m.mu.Unlock()
	for id, s := range m.services {
		if s.Application == application && s.Namespace == namespace && s.Name == nameOf(name) {
			return id
		}
	}
	return ""
}

func (m *mirror) ourServices() (out []*model.Service) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, s := range m.services {
		if s.Application == application {
			out = append(out, s)
		}
	}
	return out
}

// ephemeral are the workloads of a Pod's ephemeral containers that have an instance.
func (m *mirror) ephemeral(uid string) (out []string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for id := range m.workloads {
		if id != uid && uidOf(id) == uid {
			out = append(out, id)
		}
	}
	return out
}

// made are the workloads that have an instance.
func (m *mirror) made() (out []string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for id := range m.workloads {
		out = append(out, id)
	}
	return out
}
