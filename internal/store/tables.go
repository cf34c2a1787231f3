package store

import (
	"cmp"
	"iter"
	"strings"
	"unsafe"

	"github.com/tutti-run/tutti/internal/model"
	"github.com/tutti-run/tutti/internal/store/tree"
)

// kindInfo is what the store must know of a kind.
type kindInfo struct {
	kind  model.Kind
	empty func() model.Object
	// observed says that objects have a status, with a writer of its own.
	observed bool
	// over reports that a status allows no other to follow.
	over func(old, next model.Object) bool
	// repeats says that names may occur more than once.
	repeats bool
	// object returns the object that begins with a Meta; see as.
	object func(*model.Meta) model.Object
	// indexes besides those of all kinds.
	workload, node func(*model.Meta) string
}

// as returns the object, of the type that pointers T point to, that begins with a Meta. Tables hold
// objects as their Meta: pointers are half as large as interfaces, which counts where a million objects
// stand in four orders each, and what they are ordered by is read without a call.
func as[T model.Object](m *model.Meta) T { return *(*T)(unsafe.Pointer(&m)) }

// kindOf describes the kind of objects that pointers T point to, which must begin with their Meta.
func kindOf[S any, T interface {
	*S
	model.Object
}](info kindInfo) kindInfo {
	zero := T(new(S))
	if unsafe.Pointer(zero.GetMeta()) != unsafe.Pointer(zero) {
		panic(string(zero.Kind()) + " does not begin with its Meta")
	}
	info.kind = zero.Kind()
	info.empty = func() model.Object { return T(new(S)) }
	info.object = func(m *model.Meta) model.Object { return as[T](m) }
	return info
}

var kinds = func() map[model.Kind]*kindInfo {
	out := map[model.Kind]*kindInfo{}
	for _, info := range []kindInfo{
		kindOf[model.Node](kindInfo{observed: true}),
		kindOf[model.Application](kindInfo{}),
		kindOf[model.Workload](kindInfo{observed: true,
			workload: func(m *model.Meta) string { return as[*model.Workload](m).OwnerID }}),
		kindOf[model.Revision](kindInfo{repeats: true,
			workload: func(m *model.Meta) string { return as[*model.Revision](m).WorkloadID }}),
		kindOf[model.Instance](kindInfo{observed: true, repeats: true, over: overtaken,
			workload: func(m *model.Meta) string { return as[*model.Instance](m).WorkloadID },
			node:     func(m *model.Meta) string { return as[*model.Instance](m).NodeID }}),
		kindOf[model.Service](kindInfo{observed: true}),
		kindOf[model.Network](kindInfo{observed: true}),
		kindOf[model.Volume](kindInfo{}),
		kindOf[model.Secret](kindInfo{}),
		kindOf[model.Config](kindInfo{}),
		kindOf[model.Image](kindInfo{observed: true}),
		kindOf[model.Event](kindInfo{repeats: true}),
		kindOf[model.Cluster](kindInfo{}),
		kindOf[model.User](kindInfo{}),
		kindOf[model.Policy](kindInfo{}),
	} {
		out[info.kind] = &info
	}
	return out
}()

// overtaken reports whether a status of an instance comes too late. Its end is final: it was replaced,
// and what it used given to others, so that a late report of its node, which may have been cut off,
// must not bring it back. Nor does an earlier status replace a later one, other than by the leader,
// which gives up what is on a dead node.
func overtaken(old, next model.Object) bool {
	a, b := &old.(*model.Instance).Status, &next.(*model.Instance).Status
	return a.State.Final() && a.State != b.State || b.Seq < a.Seq && b.State != model.InstanceLost
}

// table holds the objects of a kind: by ID, and in the order of each index, ID last.
type table struct {
	byID          tree.Tree[*model.Meta]
	byName        tree.Tree[*model.Meta] // not of kinds whose names repeat
	byApplication tree.Tree[*model.Meta]
	byWorkload    tree.Tree[*model.Meta] // of kinds that belong to one
	byNode        tree.Tree[*model.Meta]
}

// Where objects stand in the orders.

func atID(id string) func(*model.Meta) int {
	return func(m *model.Meta) int { return strings.Compare(m.ID, id) }
}

func atName(namespace, application, name string) func(*model.Meta) int {
	return func(m *model.Meta) int {
		return cmp.Or(strings.Compare(m.Namespace, namespace), strings.Compare(m.Application, application), strings.Compare(m.Name, name))
	}
}

func inApplication(namespace, application string) func(*model.Meta) int {
	return func(m *model.Meta) int {
		if c := strings.Compare(m.Application, application); c != 0 {
			return c
		}
		return strings.Compare(m.Namespace, namespace)
	}
}

func inGroup(groupOf func(*model.Meta) string, group string) func(*model.Meta) int {
	return func(m *model.Meta) int { return strings.Compare(groupOf(m), group) }
}

// then orders by ID what is alike otherwise.
func then(at func(*model.Meta) int, id string) func(*model.Meta) int {
	return func(m *model.Meta) int {
		if c := at(m); c != 0 {
			return c
		}
		return strings.Compare(m.ID, id)
	}
}

// tableEdit changes a table.
type tableEdit struct {
	info                                            *kindInfo
	byID, byName, byApplication, byWorkload, byNode tree.Edit[*model.Meta]
}

func (t *table) edit(info *kindInfo) *tableEdit {
	return &tableEdit{info, t.byID.Edit(), t.byName.Edit(), t.byApplication.Edit(), t.byWorkload.Edit(), t.byNode.Edit()}
}

func (t *tableEdit) share() *table {
	return &table{t.byID.Share(), t.byName.Share(), t.byApplication.Share(), t.byWorkload.Share(), t.byNode.Share()}
}

// indexes calls f with the orders besides that of IDs.
func (t *tableEdit) indexes(m *model.Meta, f func(e *tree.Edit[*model.Meta], at func(*model.Meta) int)) {
	if !t.info.repeats {
		f(&t.byName, atName(m.Namespace, m.Application, m.Name))
	}
	f(&t.byApplication, then(inApplication(m.Namespace, m.Application), m.ID))
	if of := t.info.workload; of != nil {
		f(&t.byWorkload, then(inGroup(of, of(m)), m.ID))
	}
	if of := t.info.node; of != nil {
		f(&t.byNode, then(inGroup(of, of(m)), m.ID))
	}
}

// put writes an object in place of an older version of it, nil when there was none.
func (t *tableEdit) put(old, obj *model.Meta) {
	t.byID.Put(obj, atID(obj.ID))
	if old != nil {
		t.indexes(old, func(e *tree.Edit[*model.Meta], at func(*model.Meta) int) {
			if at(obj) != 0 { // it moves
				e.Remove(at)
			}
		})
	}
	t.indexes(obj, func(e *tree.Edit[*model.Meta], at func(*model.Meta) int) { e.Put(obj, at) })
}

func (t *tableEdit) remove(obj *model.Meta) {
	t.byID.Remove(atID(obj.ID))
	t.indexes(obj, func(e *tree.Edit[*model.Meta], at func(*model.Meta) int) { e.Remove(at) })
}

// Snapshot is a consistent view of everything at one revision. It costs nothing to take or keep.
// Objects read from it are shared: Clone before changing one.
type Snapshot struct {
	state *state
	sees  func(model.Object) bool // nil: everything
}

// Only returns the same view without the objects that sees does not let through, whichever way they
// are asked for.
func (s *Snapshot) Only(sees func(model.Object) bool) *Snapshot { return &Snapshot{s.state, sees} }

func (s *Snapshot) shows(o model.Object) bool { return s.sees == nil || s.sees(o) }

// Revision returns the revision of the last change that the snapshot shows.
func (s *Snapshot) Revision() uint64 { return s.state.revision }

func tableOf[T model.Object](s *Snapshot) *table {
	var zero T // a nil pointer; Kind does not look at it
	return s.state.table(zero.Kind())
}

// Get returns the object of an ID.
func Get[T model.Object](s *Snapshot, id string) (T, bool) {
	return one[T](s, tableOf[T](s).byID, atID(id))
}

func one[T model.Object](s *Snapshot, t tree.Tree[*model.Meta], at func(*model.Meta) int) (T, bool) {
	if m, ok := t.Get(at); ok {
		if o := as[T](m); s.shows(o) {
			return o, true
		}
	}
	var zero T
	return zero, false
}

// those yields the objects that stand at the same place.
func those[T model.Object](s *Snapshot, t tree.Tree[*model.Meta], at func(*model.Meta) int) iter.Seq[T] {
	return func(yield func(T) bool) {
		t.From(at, func(m *model.Meta) bool {
			o := as[T](m)
			return at(m) == 0 && (!s.shows(o) || yield(o))
		})
	}
}

// List yields all objects of a kind in the order of their IDs.
func List[T model.Object](s *Snapshot) iter.Seq[T] {
	return func(yield func(T) bool) {
		tableOf[T](s).byID.All(func(m *model.Meta) bool {
			o := as[T](m)
			return !s.shows(o) || yield(o)
		})
	}
}

// Count returns the number of objects of a kind, those left out by Only included.
func Count[T model.Object](s *Snapshot) int { return tableOf[T](s).byID.Len() }

// Shows reports whether a change set was applied, when that can be seen: by an event in it, or an
// object that it makes under an ID of its own. It is for sets whose commit ended without an answer,
// soon after and on a view that is surely newer.
func (s *Snapshot) Shows(cs *ChangeSet) (applied, known bool) {
	if cs.made.id == "" {
		return false, false
	}
	_, applied = s.state.table(cs.made.kind).byID.Get(atID(cs.made.id))
	return applied, true
}

// ByIDPrefix yields the objects whose ID begins with prefix.
func ByIDPrefix[T model.Object](s *Snapshot, prefix string) iter.Seq[T] {
	return those[T](s, tableOf[T](s).byID, func(m *model.Meta) int {
		return strings.Compare(m.ID[:min(len(m.ID), len(prefix))], prefix)
	})
}

// ByName returns the object of a name; only for kinds whose names are unique.
func ByName[T model.Object](s *Snapshot, namespace, application, name string) (T, bool) {
	return one[T](s, tableOf[T](s).byName, atName(namespace, application, name))
}

// ByApplication yields the members of an application.
func ByApplication[T model.Object](s *Snapshot, namespace, application string) iter.Seq[T] {
	return those[T](s, tableOf[T](s).byApplication, inApplication(namespace, application))
}

// InstancesOfWorkload yields the instances of a workload, those that ended included.
func InstancesOfWorkload(s *Snapshot, workloadID string) iter.Seq[*model.Instance] {
	t := s.state.table(model.KindInstance)
	return those[*model.Instance](s, t.byWorkload, inGroup(kinds[model.KindInstance].workload, workloadID))
}

// OwnedBy yields the workloads that a workload owns.
func OwnedBy(s *Snapshot, workloadID string) iter.Seq[*model.Workload] {
	t := s.state.table(model.KindWorkload)
	return those[*model.Workload](s, t.byWorkload, inGroup(kinds[model.KindWorkload].workload, workloadID))
}

// InstancesOf yields the instances that people see of a workload: its own, or, of one that another platform
// keeps, those of the workloads that it owns.
func InstancesOf(s *Snapshot, w *model.Workload) iter.Seq[*model.Instance] {
	if w.Followed == nil || w.Type == model.CronWorkload {
		return InstancesOfWorkload(s, w.ID)
	}
	return func(yield func(*model.Instance) bool) {
		for owned := range OwnedBy(s, w.ID) {
			for i := range InstancesOfWorkload(s, owned.ID) {
				if !yield(i) {
					return
				}
			}
		}
	}
}

// Within is the workload of another platform in whose place nobody wants to see w; false when w stands for
// itself.
func Within(s *Snapshot, w *model.Workload) (*model.Workload, bool) {
	if w.OwnerID == "" || w.Followed != nil {
		return nil, false
	}
	owner, ok := Get[*model.Workload](s, w.OwnerID)
	return owner, ok && owner.Followed != nil
}

// InstancesOnNode yields the instances placed on a node, those that ended included.
func InstancesOnNode(s *Snapshot, nodeID string) iter.Seq[*model.Instance] {
	t := s.state.table(model.KindInstance)
	return those[*model.Instance](s, t.byNode, inGroup(kinds[model.KindInstance].node, nodeID))
}

// UnplacedInstances yields the instances without a node.
func UnplacedInstances(s *Snapshot) iter.Seq[*model.Instance] { return InstancesOnNode(s, "") }

// RevisionsOfWorkload yields the kept revisions of a workload.
func RevisionsOfWorkload(s *Snapshot, workloadID string) iter.Seq[*model.Revision] {
	t := s.state.table(model.KindRevision)
	return those[*model.Revision](s, t.byWorkload, inGroup(kinds[model.KindRevision].workload, workloadID))
}
