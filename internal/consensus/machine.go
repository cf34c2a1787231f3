package consensus

import (
	"errors"
	"io"
	"slices"
	"sync"

	"github.com/hashicorp/raft"

	"github.com/tutti-run/tutti/internal/store"
)

// FSM is the state machine: the store.
type FSM interface {
	ApplyAll(sets [][]byte) []store.Result
	Snapshot() *store.Snapshot
	Restore(r io.Reader) error
}

// machine adapts the FSM to raft.
type machine struct {
	fsm      FSM
	progress progress
	sets     [][]byte // reused
	// recalled is up to where the state machine was brought without raft, raftAt how far raft has come
	// since. Raft asks for one thing at a time.
	recalled, raftAt uint64
}

// applied answers a log entry.
type applied struct {
	index   uint64
	term    uint64
	results []store.Result // by set
}

// ApplyBatch implements raft.BatchingFSM. Entries that this version cannot read stop the server:
// to go on without them would be another state than that of the others.
func (m *machine) ApplyBatch(logs []*raft.Log) []any {
	m.sets = m.sets[:0]
	ends := make([]int, len(logs))
	done := m.progress.now()
	for i, l := range logs {
		if l.Type == raft.LogCommand && l.Index > done { // else it was recalled
			var err error
			if m.sets, err = setsOf(l.Data, m.sets); err != nil {
				panic(err)
			}
		}
		ends[i] = len(m.sets)
	}
	var results []store.Result
	if len(m.sets) > 0 {
		results = m.fsm.ApplyAll(m.sets)
	}
	answers := make([]any, len(logs))
	from := 0
	for i, l := range logs {
		answers[i] = applied{l.Index, l.Term, results[from:ends[i]:ends[i]]}
		from = ends[i]
	}
	clear(m.sets)
	m.raftAt = logs[len(logs)-1].Index
	m.progress.advance(m.raftAt)
	return answers
}

// Apply implements raft.FSM.
func (m *machine) Apply(l *raft.Log) any { return m.ApplyBatch([]*raft.Log{l})[0] }

// Restore implements raft.FSM. A snapshot that is older than what was recalled takes nothing back.
func (m *machine) Restore(r io.ReadCloser) error {
	defer r.Close()
	inner := r
	if w, ok := r.(raft.ReadCloserWrapper); ok { // it counts what is read
		inner = w.WrappedReadCloser()
	}
	f, ok := inner.(*snapshotFile)
	if ok && f.meta.Index <= m.recalled {
		m.raftAt = f.meta.Index
		return nil
	}
	if err := m.fsm.Restore(r); err != nil {
		return err
	}
	if ok {
		m.raftAt = f.meta.Index
		m.progress.set(f.meta.Index)
	}
	return nil
}

// Snapshot implements raft.FSM. Raft takes it for the state at the entry up to which it has come; until
// that is where the state was recalled to, it is newer, and whoever began with it would apply entries
// a second time.
func (m *machine) Snapshot() (raft.FSMSnapshot, error) {
	if m.raftAt < m.recalled {
		return nil, raft.ErrNothingNewToSnapshot
	}
	return &persist{m.fsm.Snapshot()}, nil
}

type persist struct{ snapshot *store.Snapshot }

func (p *persist) Persist(sink raft.SnapshotSink) error {
	if err := p.snapshot.Write(sink); err != nil {
		return errors.Join(err, sink.Cancel())
	}
	return sink.Close()
}

func (p *persist) Release() {}

// progress is how far the state machine has come, in indexes of the log.
type progress struct {
	mu      sync.Mutex
	index   uint64
	waiting []waiter
}

type waiter struct {
	index uint64
	then  func()
}

// after calls then once what has the index was applied, maybe at once; then must not block.
func (p *progress) after(index uint64, then func()) {
	p.mu.Lock()
	if p.index < index {
		p.waiting = append(p.waiting, waiter{index, then})
		p.mu.Unlock()
		return
	}
	p.mu.Unlock()
	then()
}

func (p *progress) advance(index uint64) { p.set(max(index, p.now())) }

func (p *progress) set(index uint64) {
	p.mu.Lock()
	p.index = index
	var now []waiter
	p.waiting = slices.DeleteFunc(p.waiting, func(w waiter) bool {
		if w.index <= p.index {
			now = append(now, w)
		}
		return w.index <= p.index
	})
	p.mu.Unlock()
	for _, w := range now {
		w.then()
	}
}

func (p *progress) now() uint64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.index
}
