package store

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/hashicorp/go-memdb"

	"github.com/tutti-run/tutti/internal/fault"
	"github.com/tutti-run/tutti/internal/model"
)

// keptEvents bounds the events table; the oldest give way.
const keptEvents = 10_000

// Result is what applying a change set came to; it is the same on every server.
type Result struct {
	Revision uint64 `json:"revision"`
	Error    string `json:"error,omitempty"`
	Kind     string `json:"kind,omitempty"`
}

// Err returns the refusal as an error, nil when the change set was applied.
func (r Result) Err() error {
	if r.Error == "" {
		return nil
	}
	return fault.New(fault.ParseKind(r.Kind), "%s", r.Error)
}

func refusal(err error) Result {
	return Result{Error: err.Error(), Kind: fault.KindOf(err).String()}
}

// Proposer replicates an encoded change set. It returns once the set was applied to this
// server's tables, or with an error when that is not certain.
type Proposer interface {
	Propose(ctx context.Context, data []byte) (Result, error)
}

// Store is the state of the cluster as this server knows it. It is safe for concurrent use.
type Store struct {
	log      *slog.Logger
	proposer Proposer

	db      atomic.Pointer[memdb.MemDB]
	mu      sync.Mutex // one writer
	history *history
	events  []string // IDs, oldest first; guarded by mu
}

// New returns an empty store. SetProposer must be called before the first Commit.
func New(log *slog.Logger) *Store {
	s := &Store{log: log, history: newHistory()}
	s.db.Store(emptyDB())
	return s
}

func emptyDB() *memdb.MemDB {
	db, err := memdb.NewMemDB(schema())
	if err != nil {
		panic(fmt.Sprintf("the schema is wrong: %v", err))
	}
	return db
}

// SetProposer says who replicates. It is for the time of building, before anything runs.
func (s *Store) SetProposer(p Proposer) { s.proposer = p }

// Snapshot returns a view of the present state.
func (s *Store) Snapshot() *Snapshot {
	txn := s.db.Load().Txn(false)
	return &Snapshot{txn: txn, revision: revisionOf(txn)}
}

func revisionOf(txn *memdb.Txn) uint64 {
	raw, err := txn.First(tableCounter, indexID, "revision")
	if err != nil || raw == nil {
		return 0
	}
	return raw.(*counter).Revision
}

// Commit replicates a change set and returns the revision it got. Errors carry fault.Conflict
// when an expectation failed, fault.Unavailable when there is no leader or quorum; after
// Unavailable the set may still be applied.
func (s *Store) Commit(ctx context.Context, cs *ChangeSet) (uint64, error) {
	data, err := cs.encode()
	if err != nil {
		return 0, err
	}
	r, err := s.proposer.Propose(ctx, data)
	if err != nil {
		return 0, err
	}
	return r.Revision, r.Err()
}

// Apply applies an encoded change set. Only the replication calls it, in log order.
func (s *Store) Apply(data []byte) Result {
	ops, err := decodeOps(data)
	if err != nil {
		return refusal(err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	txn := s.db.Load().Txn(true)
	defer txn.Abort()
	revision := revisionOf(txn) + 1
	batch := Batch{Revision: revision}
	events := s.events
	var fresh []string // events of this set
	for i := range ops {
		change, err := applyOp(txn, &ops[i], revision)
		if err != nil {
			return refusal(err)
		}
		if change == nil {
			continue
		}
		batch.Changes = append(batch.Changes, *change)
		if change.Kind != model.KindEvent {
			continue
		}
		if change.Old != nil { // it leaves its place
			same := func(id string) bool { return id == change.ID }
			events, fresh = slices.DeleteFunc(slices.Clone(events), same), slices.DeleteFunc(fresh, same)
		}
		if change.New != nil {
			fresh = append(fresh, change.ID)
		}
	}
	slices.Sort(fresh) // the order that a restored server finds, too
	events = append(events, fresh...)
	for len(events) > keptEvents {
		change, err := applyOp(txn, &op{Type: opDelete, Kind: model.KindEvent, ID: events[0]}, revision)
		if err != nil {
			return refusal(err)
		}
		if change != nil {
			batch.Changes = append(batch.Changes, *change)
		}
		events = events[1:]
	}
	if err := txn.Insert(tableCounter, &counter{Name: "revision", Revision: revision}); err != nil {
		return refusal(err)
	}
	txn.Commit()
	s.events = events
	s.history.append(batch)
	return Result{Revision: revision}
}

// applyOp changes the transaction; it returns nil when there was nothing to do.
func applyOp(txn *memdb.Txn, o *op, revision uint64) (*Change, error) {
	info, ok := kinds[o.Kind]
	if !ok {
		return nil, fault.New(fault.Unsupported, "unknown kind of object %q", o.Kind)
	}
	table := string(o.Kind)
	raw, err := txn.First(table, indexID, o.ID)
	if err != nil {
		return nil, err
	}
	var old model.Object
	if raw != nil {
		old = raw.(model.Object)
	}
	switch o.Type {
	case opExpect:
		var have uint64
		if old != nil {
			have = old.GetMeta().Revision
		}
		if have != o.Revision {
			return nil, fault.New(fault.Conflict, "%s %s was changed meanwhile: revision %d was expected, %d is there", o.Kind, o.ID, o.Revision, have)
		}
		return nil, nil
	case opDelete:
		if old == nil {
			return nil, nil
		}
		if err := txn.Delete(table, old); err != nil && !errors.Is(err, memdb.ErrNotFound) {
			return nil, err
		}
		return &Change{Kind: o.Kind, ID: o.ID, Old: old}, nil
	case opPut, opPutStatus:
		obj, err := decodeObject(o.Kind, o.Object)
		if err != nil {
			return nil, err
		}
		if obj.GetMeta().ID != o.ID || o.ID == "" {
			return nil, fault.New(fault.Invalid, "%s has ID %q, its change says %q", o.Kind, obj.GetMeta().ID, o.ID)
		}
		if o.Type == opPutStatus && !info.observed {
			return nil, fault.New(fault.Invalid, "%s %s has no status that could be written", o.Kind, o.ID)
		}
		if o.Type == opPutStatus && (old == nil || info.over != nil && info.over(old, obj)) {
			return nil, nil
		}
		if old != nil && o.Type == opPut {
			obj.AdoptStatus(old)
		}
		if old != nil && o.Type == opPutStatus {
			obj.AdoptDesired(old)
		}
		if !info.repeats {
			other, err := txn.First(table, indexName, obj.GetMeta().UniqueName())
			if err != nil {
				return nil, err
			}
			if other != nil && other.(model.Object).GetMeta().ID != o.ID {
				return nil, fault.New(fault.Conflict, "%s %s exists already", o.Kind, obj.GetMeta().FullName())
			}
		}
		obj.GetMeta().Revision = revision
		if err := txn.Insert(table, obj); err != nil {
			return nil, err
		}
		return &Change{Kind: o.Kind, ID: o.ID, Old: old, New: obj}, nil
	}
	return nil, fault.New(fault.Unsupported, "unknown change %d", o.Type)
}
