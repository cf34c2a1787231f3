package consensus

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"

	"github.com/tutti-run/tutti/internal/fault"
	"github.com/tutti-run/tutti/internal/store"
)

// FSM is the state machine: the store.
type FSM interface {
	// ApplyAll applies proposals in their order and returns what each came to.
	ApplyAll(entries [][]byte) []store.Result
	Snapshot() *store.Snapshot
	Restore(r io.Reader) error
}

// Config says how a server takes part.
type Config struct {
	NodeID  string
	Address string // host:port under which other servers reach this one
	DataDir string // for the log and snapshots
	// Bootstrap makes this server the first of a new cluster; ignored when it has data.
	Bootstrap bool
	Layer     raft.StreamLayer
	// Transport and Storage replace the network over Layer and the disk at DataDir; for simulations.
	Transport raft.Transport
	Storage   *Storage

	FSM FSM
	// Forward proposes through the leader at the address. Nil refuses instead.
	Forward func(ctx context.Context, leaderID, leaderAddress string, data []byte) (store.Result, error)
	Log     *slog.Logger

	// Timings; zero values are 500 ms, 500 ms and 300 ms.
	HeartbeatTimeout, ElectionTimeout, LeaseTimeout time.Duration
}

// Server is a server as the others know it.
type Server struct {
	ID      string `json:"id"`
	Address string `json:"address"`
	Voter   bool   `json:"voter"`
	Leader  bool   `json:"leader"`
}

// Raft is this server's part in the replication.
type Raft struct {
	cfg       Config
	raft      *raft.Raft
	machine   *machine
	wal       *wal
	transport raft.Transport
	hangUp    func()        // ends what other servers opened
	stopped   chan struct{} // closed when nothing is replicated any more
}

// New opens the log and joins in.
func New(cfg Config) (*Raft, error) {
	storage, err := cfg.storage()
	if err != nil {
		return nil, err
	}
	hlog := newHCLog(cfg.Log)
	wal, err := storage.openLog(hlog)
	if err != nil {
		return nil, err
	}
	snapshots, err := storage.openSnapshots()
	if err != nil {
		return nil, errors.Join(fmt.Errorf("open snapshots: %w", err), wal.Close())
	}
	transport, hangUp := cfg.transport(hlog)
	rc := raft.DefaultConfig()
	rc.LocalID = raft.ServerID(cfg.NodeID)
	rc.Logger = hlog
	rc.HeartbeatTimeout = or(cfg.HeartbeatTimeout, 500*time.Millisecond)
	rc.ElectionTimeout = or(cfg.ElectionTimeout, 500*time.Millisecond)
	rc.LeaderLeaseTimeout = or(cfg.LeaseTimeout, 300*time.Millisecond)
	rc.CommitTimeout = 5 * time.Millisecond
	rc.MaxAppendEntries = 512
	rc.SnapshotThreshold = 16384
	rc.TrailingLogs = 8192
	rc.BatchApplyCh = true
	rc.ShutdownOnRemove = false // it stays, and can be added again
	if cfg.Bootstrap {
		has, err := raft.HasExistingState(wal, wal, snapshots)
		if err == nil && !has {
			err = raft.BootstrapCluster(rc, wal, wal, snapshots, transport, raft.Configuration{Servers: []raft.Server{
				{ID: rc.LocalID, Address: raft.ServerAddress(cfg.Address)},
			}})
		}
		if err != nil {
			return nil, errors.Join(fmt.Errorf("begin a new cluster: %w", err), closeTransport(transport), wal.Close())
		}
	}
	fsm := &machine{fsm: cfg.FSM}
	r, err := raft.NewRaft(rc, fsm, wal, wal, snapshots, transport)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("start replication: %w", err), closeTransport(transport), wal.Close())
	}
	out := &Raft{cfg: cfg, raft: r, machine: fsm, wal: wal, transport: transport, hangUp: hangUp, stopped: make(chan struct{})}
	if servers := out.Servers(); len(servers) == 1 && servers[0].ID == cfg.NodeID {
		// Nobody else could lead. A shorter timeout makes raft look at its timers now; it finds
		// that it has never heard a leader, and elects itself.
		shorter := r.ReloadableConfig()
		shorter.HeartbeatTimeout -= time.Millisecond
		if err := r.ReloadConfig(shorter); err != nil {
			return nil, errors.Join(fmt.Errorf("start replication: %w", err), out.Shutdown())
		}
	}
	return out, nil
}

func (c *Config) storage() (Storage, error) {
	if c.Storage != nil {
		return *c.Storage, nil
	}
	return onDisk(c.DataDir)
}

// transport returns the way to the other servers, and what ends the ways from them.
func (c *Config) transport(log hclog.Logger) (t raft.Transport, hangUp func()) {
	if c.Transport != nil {
		return c.Transport, func() {}
	}
	streams := newLayer(c.Layer)
	return raft.NewNetworkTransportWithConfig(&raft.NetworkTransportConfig{
		Stream: streams, MaxPool: 4, MaxRPCsInFlight: 64, Timeout: 2 * time.Second, Logger: log,
	}), streams.hangUp
}

func closeTransport(t raft.Transport) error {
	if c, ok := t.(raft.WithClose); ok {
		return c.Close()
	}
	return nil
}

func or(d, otherwise time.Duration) time.Duration {
	if d == 0 {
		return otherwise
	}
	return d
}

// machine adapts the FSM to raft.
type machine struct {
	fsm FSM
	// applied is the index of the last command that the FSM has applied. What raft calls applied
	// was only handed over.
	applied atomic.Uint64
}

func (m *machine) Apply(l *raft.Log) any {
	res := m.fsm.ApplyAll([][]byte{l.Data})[0]
	m.applied.Store(l.Index)
	return res
}

func (m *machine) Restore(r io.ReadCloser) error       { defer r.Close(); return m.fsm.Restore(r) }
func (m *machine) Snapshot() (raft.FSMSnapshot, error) { return &persist{m.fsm.Snapshot()}, nil }

type persist struct{ snapshot *store.Snapshot }

func (p *persist) Persist(sink raft.SnapshotSink) error {
	if err := p.snapshot.Write(sink); err != nil {
		return errors.Join(err, sink.Cancel())
	}
	return sink.Close()
}

func (p *persist) Release() {}

// proposeTimeout bounds a proposal whose context has no nearer end.
const proposeTimeout = 10 * time.Second

// Propose replicates data and returns once this server's state machine has applied it. While no
// leader is known it waits for one, as long as ctx allows and ten seconds at most.
func (r *Raft) Propose(ctx context.Context, data []byte) (store.Result, error) {
	ctx, cancel := context.WithTimeout(ctx, proposeTimeout)
	defer cancel()
	for {
		var res store.Result
		var err error
		address, id := r.raft.LeaderWithID()
		switch {
		case r.IsLeader():
			res, err = r.ProposeLocal(ctx, data)
		case id == "" || string(id) == r.cfg.NodeID:
			err = errNotSent
		case r.cfg.Forward == nil:
			return res, fault.New(fault.Unavailable, "this server does not lead")
		default:
			res, err = r.cfg.Forward(ctx, string(id), string(address), data)
			if err == nil {
				return res, r.catchUp(ctx, res.Revision)
			}
		}
		// Only what surely was not taken up may be tried again.
		if err == nil || !errors.Is(err, errNotSent) {
			return res, err
		}
		select {
		case <-ctx.Done():
			return res, fault.New(fault.Unavailable, "no server leads: %w", ctx.Err())
		case <-time.After(10 * time.Millisecond):
		}
	}
}

// errNotSent marks a proposal that no server took up.
var errNotSent = fault.New(fault.Unavailable, "this server does not lead")

// NotSent returns the error with which Forward says that the leader did not take the proposal up,
// so that it is safe to try again.
func NotSent() error { return errNotSent }

// ProposeLocal replicates data if this server leads, and fails with fault.Unavailable otherwise;
// unless it is NotSent, the data may still be replicated.
func (r *Raft) ProposeLocal(ctx context.Context, data []byte) (store.Result, error) {
	timeout := proposeTimeout
	if deadline, ok := ctx.Deadline(); ok {
		timeout = max(time.Until(deadline), time.Millisecond)
	}
	f := r.raft.Apply(data, timeout)
	done := make(chan error, 1)
	go func() { done <- f.Error() }() // which never returns for what was queued when raft was shut down
	var err error
	select {
	case err = <-done:
	case <-ctx.Done():
		err = ctx.Err()
	case <-r.stopped:
		err = raft.ErrRaftShutdown
	}
	switch {
	case err == nil:
		return f.Response().(store.Result), nil
	case errors.Is(err, raft.ErrNotLeader), errors.Is(err, raft.ErrLeadershipTransferInProgress), errors.Is(err, raft.ErrEnqueueTimeout):
		return store.Result{}, errNotSent
	}
	return store.Result{}, fault.New(fault.Unavailable, "replicate: %w", err)
}

// catchUp waits until this server's state shows a revision.
func (r *Raft) catchUp(ctx context.Context, revision uint64) error {
	for wait := time.Millisecond; r.cfg.FSM.Snapshot().Revision() < revision; wait = min(2*wait, 20*time.Millisecond) {
		select {
		case <-ctx.Done():
			return fault.New(fault.Unavailable, "the change was made, but this server does not show it yet: %w", ctx.Err())
		case <-time.After(wait):
		}
	}
	return nil
}

// IsLeader reports whether this server leads at the moment.
func (r *Raft) IsLeader() bool { return r.raft.State() == raft.Leader }

// Leader returns the leading server, empty when none is known.
func (r *Raft) Leader() (id, address string) {
	a, i := r.raft.LeaderWithID()
	return string(i), string(a)
}

// RunAsLeader runs work each time this server comes to lead, after all earlier entries were
// applied. When leadership ends work's context is cancelled, and nothing follows before it has
// returned. It blocks until ctx is done.
func (r *Raft) RunAsLeader(ctx context.Context, work func(ctx context.Context) error) error {
	for {
		term, ok := r.awaitLeadership(ctx)
		if !ok {
			return nil
		}
		if err := r.raft.Barrier(5 * time.Second).Error(); err != nil {
			select { // lost again, or being handed over, before it was of use
			case <-ctx.Done():
				return nil
			case <-time.After(leadershipPoll):
			}
			continue
		}
		workCtx, cancel := context.WithCancel(ctx)
		var wg sync.WaitGroup
		wg.Go(func() {
			defer cancel()
			r.awaitLoss(workCtx, term)
		})
		err := work(workCtx)
		cancel()
		wg.Wait()
		if ctx.Err() != nil {
			return nil
		}
		if err != nil && r.IsLeader() {
			return fmt.Errorf("work of the leader: %w", err)
		}
	}
}

// Leadership is polled: raft's own channel holds one value and loses quick changes.
const leadershipPoll = 25 * time.Millisecond

// awaitLeadership returns the term in which this server leads; it is asked for first, so that the
// barrier that follows is of this term or fails.
func (r *Raft) awaitLeadership(ctx context.Context) (term uint64, ok bool) {
	for {
		term = r.raft.CurrentTerm()
		if r.IsLeader() {
			return term, ctx.Err() == nil
		}
		select {
		case <-ctx.Done():
			return 0, false
		case <-time.After(leadershipPoll):
		}
	}
}

// awaitLoss returns when this server does not lead any more in the term, though perhaps again in
// another one, whose earlier entries it may not have applied yet.
func (r *Raft) awaitLoss(ctx context.Context, term uint64) {
	for r.IsLeader() && r.raft.CurrentTerm() == term {
		select {
		case <-ctx.Done():
			return
		case <-time.After(leadershipPoll):
		}
	}
}

// AddServer makes a server a voter, or changes its address. Only the leader can.
func (r *Raft) AddServer(ctx context.Context, id, address string) error {
	return r.change(r.raft.AddVoter(raft.ServerID(id), raft.ServerAddress(address), 0, proposeTimeout), "add server "+id)
}

// RemoveServer takes a server out. Only the leader can.
func (r *Raft) RemoveServer(ctx context.Context, id string) error {
	return r.change(r.raft.RemoveServer(raft.ServerID(id), 0, proposeTimeout), "remove server "+id)
}

func (r *Raft) change(f raft.Future, what string) error {
	if err := f.Error(); err != nil {
		return fault.New(fault.Unavailable, "%s: %w", what, err)
	}
	return nil
}

// Servers returns the servers of the latest known configuration.
func (r *Raft) Servers() []Server {
	f := r.raft.GetConfiguration()
	if f.Error() != nil {
		return nil
	}
	leader, _ := r.Leader()
	var out []Server
	for _, s := range f.Configuration().Servers {
		out = append(out, Server{
			ID: string(s.ID), Address: string(s.Address),
			Voter: s.Suffrage == raft.Voter, Leader: string(s.ID) == leader,
		})
	}
	return out
}

// WaitReady returns once a leader is known and this server has applied all that it knew of when it
// was asked, its own log included. What others committed while it was away may still be missing:
// who must see it has to make a proposal.
func (r *Raft) WaitReady(ctx context.Context) error {
	last := r.raft.LastIndex()
	for {
		id, _ := r.Leader()
		commit := r.raft.CommitIndex()
		// A new leader may cut off what was never committed.
		target := max(commit, min(last, r.raft.LastIndex()))
		if id != "" && commit > 0 && r.raft.AppliedIndex() >= target {
			command, err := r.lastCommand(target)
			if err != nil {
				return err
			}
			if r.machine.applied.Load() >= command {
				return nil
			}
		}
		select {
		case <-ctx.Done():
			return fault.New(fault.Unavailable, "no leader was found: %w", ctx.Err())
		case <-time.After(5 * time.Millisecond):
		}
	}
}

// lastCommand returns the index of the last command up to an index, 0 when a snapshot holds them all.
func (r *Raft) lastCommand(upTo uint64) (uint64, error) {
	snapshot, err := strconv.ParseUint(r.raft.Stats()["last_snapshot_index"], 10, 64)
	if err != nil {
		return 0, fmt.Errorf("read the index of the snapshot: %w", err)
	}
	for ; upTo > snapshot; upTo-- {
		var l raft.Log
		if err := r.wal.GetLog(upTo, &l); errors.Is(err, raft.ErrLogNotFound) {
			return 0, nil // a snapshot has just replaced it
		} else if err != nil {
			return 0, fmt.Errorf("read the log at %d: %w", upTo, err)
		}
		if l.Type == raft.LogCommand {
			return upTo, nil
		}
	}
	return 0, nil
}

// Shutdown hands leadership over, where there is someone to take it, and stops.
func (r *Raft) Shutdown() error {
	if r.IsLeader() && len(r.Servers()) > 1 {
		if err := r.raft.LeadershipTransfer().Error(); err != nil {
			r.cfg.Log.Info("leadership could not be handed over", "error", err)
		}
	}
	return r.stop()
}

// stop ends this server's part at once; the others notice by its silence.
func (r *Raft) stop() error {
	r.hangUp() // before the log is closed: heartbeats are written to it, raft or no raft
	err := r.raft.Shutdown().Error()
	close(r.stopped)
	return errors.Join(err, closeTransport(r.transport), r.wal.Close())
}
