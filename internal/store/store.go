package store

import (
	"context"
	"log/slog"
	"sync"
	"sync/atomic"

	"github.com/tutti-run/tutti/internal/fault"
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

	state   atomic.Pointer[state]
	mu      sync.Mutex // one writer
	history *history
	events  []string // IDs, oldest first; guarded by mu
	words   words    // guarded by mu
}

// New returns an empty store. SetProposer must be called before the first Commit.
func New(log *slog.Logger) *Store {
	s := &Store{log: log}
	s.state.Store(&state{})
	s.history = newHistory(s.state.Load())
	return s
}

// SetProposer says who replicates. It is for the time of building, before anything runs.
func (s *Store) SetProposer(p Proposer) { s.proposer = p }

// Snapshot returns a view of the present state.
func (s *Store) Snapshot() *Snapshot { return &Snapshot{state: s.state.Load()} }

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
