package store

import (
	"fmt"
	"iter"

	"github.com/hashicorp/go-memdb"

	"github.com/tutti-run/tutti/internal/model"
)

// kindInfo is what the store must know of a kind.
type kindInfo struct {
	empty func() model.Object
	// observed says that objects have a status, with a writer of its own.
	observed bool
	// over reports that a status allows no other to follow.
	over func(old, next model.Object) bool
	// repeats says that names may occur more than once.
	repeats bool
	// indexes besides id, name and application.
	indexes map[string]func(model.Object) string
}

var kinds = map[model.Kind]kindInfo{
	model.KindNode:        {observed: true, empty: func() model.Object { return new(model.Node) }},
	model.KindApplication: {empty: func() model.Object { return new(model.Application) }},
	model.KindWorkload:    {observed: true, empty: func() model.Object { return new(model.Workload) }},
	model.KindRevision: {empty: func() model.Object { return new(model.Revision) }, repeats: true,
		indexes: map[string]func(model.Object) string{indexWorkload: func(o model.Object) string { return o.(*model.Revision).WorkloadID }}},
	model.KindInstance: {observed: true, empty: func() model.Object { return new(model.Instance) }, repeats: true, over: ended,
		indexes: map[string]func(model.Object) string{
			indexWorkload: func(o model.Object) string { return o.(*model.Instance).WorkloadID },
			indexNode:     func(o model.Object) string { return o.(*model.Instance).NodeID },
		}},
	model.KindService: {observed: true, empty: func() model.Object { return new(model.Service) }},
	model.KindNetwork: {observed: true, empty: func() model.Object { return new(model.Network) }},
	model.KindVolume:  {empty: func() model.Object { return new(model.Volume) }},
	model.KindSecret:  {empty: func() model.Object { return new(model.Secret) }},
	model.KindConfig:  {empty: func() model.Object { return new(model.Config) }},
	model.KindImage:   {observed: true, empty: func() model.Object { return new(model.Image) }},
	model.KindEvent:   {empty: func() model.Object { return new(model.Event) }, repeats: true},
	model.KindCluster: {empty: func() model.Object { return new(model.Cluster) }},
}

// ended keeps the end of an instance final: it was replaced, and what it used given to others, so
// that a late report of its node, which may have been cut off, must not bring it back.
func ended(old, next model.Object) bool {
	a, b := old.(*model.Instance).Status.State, next.(*model.Instance).Status.State
	return a.Final() && a != b
}

const (
	indexID          = "id"
	indexName        = "name"
	indexApplication = "application"
	indexWorkload    = "workload"
	indexNode        = "node"

	tableCounter = "counter"
)

// stringIndex derives an index value from an object. Values end in a zero byte, so that no value
// is the prefix of another.
type stringIndex func(model.Object) string

func (f stringIndex) FromObject(raw any) (bool, []byte, error) {
	o, ok := raw.(model.Object)
	if !ok {
		return false, nil, fmt.Errorf("%T is not an object", raw)
	}
	return true, append([]byte(f(o)), 0), nil
}

func (f stringIndex) FromArgs(args ...any) ([]byte, error) {
	return append([]byte(args[0].(string)), 0), nil
}

func (f stringIndex) PrefixFromArgs(args ...any) ([]byte, error) {
	return []byte(args[0].(string)), nil
}

func applicationKey(namespace, application string) string { return namespace + "/" + application }

func schema() *memdb.DBSchema {
	s := &memdb.DBSchema{Tables: map[string]*memdb.TableSchema{
		tableCounter: {Name: tableCounter, Indexes: map[string]*memdb.IndexSchema{
			indexID: {Name: indexID, Unique: true, Indexer: &memdb.StringFieldIndex{Field: "Name"}},
		}},
	}}
	for kind, info := range kinds {
		indexes := map[string]*memdb.IndexSchema{
			indexID:   {Name: indexID, Unique: true, Indexer: stringIndex(func(o model.Object) string { return o.GetMeta().ID })},
			indexName: {Name: indexName, Indexer: stringIndex(func(o model.Object) string { return o.GetMeta().UniqueName() })},
			indexApplication: {Name: indexApplication, Indexer: stringIndex(func(o model.Object) string {
				return applicationKey(o.GetMeta().Namespace, o.GetMeta().Application)
			})},
		}
		if info.repeats {
			delete(indexes, indexName)
		}
		for name, f := range info.indexes {
			indexes[name] = &memdb.IndexSchema{Name: name, Indexer: stringIndex(f)}
		}
		s.Tables[string(kind)] = &memdb.TableSchema{Name: string(kind), Indexes: indexes}
	}
	return s
}

// counter is the one row that holds the revision.
type counter struct {
	Name     string
	Revision uint64
}

// Snapshot is a consistent view of everything at one revision. It costs nothing to take or keep.
// Objects read from it are shared: Clone before changing one.
type Snapshot struct {
	txn      *memdb.Txn
	revision uint64
}

// Revision returns the revision of the last change that the snapshot shows.
func (s *Snapshot) Revision() uint64 { return s.revision }

func kindOf[T model.Object]() model.Kind {
	var zero T // a nil pointer; Kind does not look at it
	return zero.Kind()
}

// Get returns the object of an ID.
func Get[T model.Object](s *Snapshot, id string) (T, bool) {
	var zero T
	raw, err := s.txn.First(string(kindOf[T]()), indexID, id)
	if err != nil || raw == nil {
		return zero, false
	}
	return raw.(T), true
}

func all[T model.Object](s *Snapshot, index string, args ...any) iter.Seq[T] {
	return func(yield func(T) bool) {
		it, err := s.txn.Get(string(kindOf[T]()), index, args...)
		if err != nil {
			panic(fmt.Sprintf("index %s of %s: %v", index, kindOf[T](), err)) // the schema is ours
		}
		for raw := it.Next(); raw != nil; raw = it.Next() {
			if !yield(raw.(T)) {
				return
			}
		}
	}
}

// List yields all objects of a kind in the order of their IDs.
func List[T model.Object](s *Snapshot) iter.Seq[T] { return all[T](s, indexID+"_prefix", "") }

// ByIDPrefix yields the objects whose ID begins with prefix.
func ByIDPrefix[T model.Object](s *Snapshot, prefix string) iter.Seq[T] {
	return all[T](s, indexID+"_prefix", prefix)
}

// ByName returns the object of a name; only for kinds whose names are unique.
func ByName[T model.Object](s *Snapshot, namespace, application, name string) (T, bool) {
	var zero T
	m := model.Meta{Namespace: namespace, Application: application, Name: name}
	raw, err := s.txn.First(string(kindOf[T]()), indexName, m.UniqueName())
	if err != nil || raw == nil {
		return zero, false
	}
	return raw.(T), true
}

// ByApplication yields the members of an application.
func ByApplication[T model.Object](s *Snapshot, namespace, application string) iter.Seq[T] {
	return all[T](s, indexApplication, applicationKey(namespace, application))
}

// InstancesOfWorkload yields the instances of a workload, those that ended included.
func InstancesOfWorkload(s *Snapshot, workloadID string) iter.Seq[*model.Instance] {
	return all[*model.Instance](s, indexWorkload, workloadID)
}

// InstancesOnNode yields the instances placed on a node, those that ended included.
func InstancesOnNode(s *Snapshot, nodeID string) iter.Seq[*model.Instance] {
	return all[*model.Instance](s, indexNode, nodeID)
}

// UnplacedInstances yields the instances without a node.
func UnplacedInstances(s *Snapshot) iter.Seq[*model.Instance] {
	return all[*model.Instance](s, indexNode, "")
}

// RevisionsOfWorkload yields the kept revisions of a workload.
func RevisionsOfWorkload(s *Snapshot, workloadID string) iter.Seq[*model.Revision] {
	return all[*model.Revision](s, indexWorkload, workloadID)
}
