package store

import (
	"maps"

	"github.com/tutti-run/tutti/internal/model"
	"github.com/tutti-run/tutti/internal/store/tree"
)

// state is everything at one revision. It is never changed.
type state struct {
	revision uint64
	tables   map[model.Kind]*table
	keys     tree.Tree[*KeyValue]
}

var noObjects table

func (s *state) table(kind model.Kind) *table {
	if t := s.tables[kind]; t != nil {
		return t
	}
	return &noObjects
}

// stateEdit makes a state out of another.
type stateEdit struct {
	base     *state
	revision uint64
	tables   map[model.Kind]*tableEdit // those that were changed
	keys     tree.Edit[*KeyValue]
}

func (s *state) edit() *stateEdit {
	return &stateEdit{base: s, revision: s.revision, tables: map[model.Kind]*tableEdit{}, keys: s.keys.Edit()}
}

func (e *stateEdit) table(info *kindInfo) *tableEdit {
	t := e.tables[info.kind]
	if t == nil {
		t = e.base.table(info.kind).edit(info)
		e.tables[info.kind] = t
	}
	return t
}

// share returns the state as it is now.
func (e *stateEdit) share() *state {
	s := &state{revision: e.revision, keys: e.keys.Share(), tables: e.base.tables}
	if len(e.tables) > 0 {
		s.tables = make(map[model.Kind]*table, len(kinds))
		maps.Copy(s.tables, e.base.tables)
		for kind, t := range e.tables {
			s.tables[kind] = t.share()
		}
	}
	return s
}
