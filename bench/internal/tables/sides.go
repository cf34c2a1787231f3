package tables

import (
	"cmp"
	"fmt"
	"strings"
	"sync/atomic"

	"github.com/cilium/statedb"
	"github.com/cilium/statedb/index"
	"github.com/hashicorp/go-memdb"

	"github.com/tutti-run/tutti/internal/model"
	"github.com/tutti-run/tutti/internal/store/tree"
)

// trees are indexes as the store has them.
type trees struct {
	now  atomic.Pointer[[4]tree.Tree[model.Object]]
	edit [4]tree.Edit[model.Object]
}

func newTrees() (side, error) {
	t := &trees{}
	t.now.Store(&[4]tree.Tree[model.Object]{})
	for i := range t.edit {
		t.edit[i] = t.now.Load()[i].Edit()
	}
	return t, nil
}

// groups are what the orders besides that of IDs go by.
var groups = [4]func(i *model.Instance) string{
	nil,
	func(i *model.Instance) string { return i.Application },
	func(i *model.Instance) string { return i.WorkloadID },
	func(i *model.Instance) string { return i.NodeID },
}

func at(order int, i *model.Instance) func(model.Object) int {
	if order == 0 {
		return func(o model.Object) int { return strings.Compare(o.GetMeta().ID, i.ID) }
	}
	of := groups[order]
	group := of(i)
	return func(o model.Object) int {
		return cmp.Or(strings.Compare(of(o.(*model.Instance)), group), strings.Compare(o.GetMeta().ID, i.ID))
	}
}

func (t *trees) write(list []*model.Instance) error {
	for _, i := range list {
		for order := range t.edit {
			t.edit[order].Put(i, at(order, i))
		}
	}
	var next [4]tree.Tree[model.Object]
	for order := range t.edit {
		next[order] = t.edit[order].Share()
	}
	t.now.Store(&next)
	return nil
}

func (t *trees) get(id string) (*model.Instance, bool) {
	o, ok := t.now.Load()[0].Get(func(o model.Object) int { return strings.Compare(o.GetMeta().ID, id) })
	if !ok {
		return nil, false
	}
	return o.(*model.Instance), true
}

func (t *trees) onNode(node string) (n int) {
	at := func(o model.Object) int { return strings.Compare(o.(*model.Instance).NodeID, node) }
	t.now.Load()[3].From(at, func(o model.Object) bool {
		if at(o) != 0 {
			return false
		}
		n++
		return true
	})
	return n
}

// radix is hashicorp's, with indexes as the store had them.
type radix struct{ db *memdb.MemDB }

type byString func(i *model.Instance) string

func (f byString) FromObject(raw any) (bool, []byte, error) {
	i, ok := raw.(*model.Instance)
	if !ok {
		return false, nil, fmt.Errorf("%T is no instance", raw)
	}
	return true, append([]byte(f(i)), 0), nil
}

func (f byString) FromArgs(args ...any) ([]byte, error) {
	return append([]byte(args[0].(string)), 0), nil
}

func newMemDB() (side, error) {
	indexes := map[string]*memdb.IndexSchema{"id": {Name: "id", Unique: true, Indexer: byString(func(i *model.Instance) string { return i.ID })}}
	for order, name := range []string{1: "application", 2: "workload", 3: "node"} {
		if order > 0 {
			indexes[name] = &memdb.IndexSchema{Name: name, Indexer: byString(groups[order])}
		}
	}
	db, err := memdb.NewMemDB(&memdb.DBSchema{Tables: map[string]*memdb.TableSchema{"instance": {Name: "instance", Indexes: indexes}}})
	return &radix{db}, err
}

func (r *radix) write(list []*model.Instance) error {
	txn := r.db.Txn(true)
	defer txn.Abort()
	for _, i := range list {
		if err := txn.Insert("instance", i); err != nil {
			return err
		}
	}
	txn.Commit()
	return nil
}

func (r *radix) get(id string) (*model.Instance, bool) {
	raw, err := r.db.Txn(false).First("instance", "id", id)
	i, ok := raw.(*model.Instance)
	return i, err == nil && ok
}

func (r *radix) onNode(node string) (n int) {
	it, err := r.db.Txn(false).Get("instance", "node", node)
	if err != nil {
		return 0
	}
	for raw := it.Next(); raw != nil; raw = it.Next() {
		n++
	}
	return n
}

// part is cilium's.
type part struct {
	db       *statedb.DB
	table    statedb.RWTable[*model.Instance]
	id, node statedb.Index[*model.Instance, string]
}

func partIndex(name string, unique bool, of func(i *model.Instance) string) statedb.Index[*model.Instance, string] {
	return statedb.Index[*model.Instance, string]{
		Name: name, Unique: unique,
		FromObject: func(i *model.Instance) index.KeySet { return index.NewKeySet(index.String(of(i))) },
		FromKey:    index.String,
	}
}

func newStateDB() (side, error) {
	p := &part{db: statedb.New(), id: partIndex("id", true, func(i *model.Instance) string { return i.ID }), node: partIndex("node", false, groups[3])}
	header := func() []string { return []string{"ID"} }
	row := func(i *model.Instance) []string { return []string{i.ID} }
	var err error
	p.table, err = statedb.NewTableAny(p.db, "instances", header, row, p.id, partIndex("application", false, groups[1]), partIndex("workload", false, groups[2]), p.node)
	return p, err
}

func (p *part) write(list []*model.Instance) error {
	txn := p.db.WriteTxn(p.table)
	defer txn.Abort()
	for _, i := range list {
		if _, _, err := p.table.Insert(txn, i); err != nil {
			return err
		}
	}
	txn.Commit()
	return nil
}

func (p *part) get(id string) (*model.Instance, bool) {
	i, _, ok := p.table.Get(p.db.ReadTxn(), p.id.Query(id))
	return i, ok
}

func (p *part) onNode(node string) (n int) {
	for range p.table.List(p.db.ReadTxn(), p.node.Query(node)) {
		n++
	}
	return n
}
