package consensus

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"
)

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
	// Calls ask the server that leads. Nil refuses what only the leader can do.
	Calls Calls
	// Confirm returns nil when a majority has said, after it was called, that this server leads. Nil
	// takes raft's word, which counts answers that were on their way before: of a process that was
	// stopped, they may be of a time when it still led, and a read be answered from there.
	Confirm func(ctx context.Context) error
	Log     *slog.Logger

	// Timings; zero values are 500 ms, 500 ms, 300 ms and 25 ms.
	HeartbeatTimeout, ElectionTimeout, LeaseTimeout, CommitTimeout time.Duration
}

// leaseTimeout is for how long a leader goes on that hears of no majority.
const leaseTimeout = 300 * time.Millisecond

// Raft is this server's part in the replication.
type Raft struct {
	cfg       Config
	raft      *raft.Raft
	machine   *machine
	wal       *wal
	transport raft.Transport
	hangUp    func() // ends what other servers opened

	queue      *queue
	entries    chan entry // to be resolved, in order
	entrySlots chan struct{}
	passes     chan pass
	passSlots  chan struct{}
	standing   *standing
	spread     spread
	vain       atomic.Int64 // the last reign in which nobody took leadership over
	hesitates  atomic.Bool
	// reads are rounds of Sync, verified those of the leader.
	reads, verified rounds

	stopping  context.Context // ends first
	stopNow   context.CancelFunc
	ended     chan struct{} // closed when raft has ended
	pumping   sync.WaitGroup
	following sync.WaitGroup
	workersMu sync.Mutex // held while a worker is started
	workers   sync.WaitGroup
}

// work starts what ends before raft does, unless that is ending already.
func (r *Raft) work(f func()) bool {
	r.workersMu.Lock()
	defer r.workersMu.Unlock()
	if r.stopping.Err() != nil {
		return false
	}
	r.workers.Go(f)
	return true
}

// New opens the log and joins in.
func New(cfg Config) (*Raft, error) {
	storage, err := cfg.storage()
	if err != nil {
		return nil, err
	}
	hlog := newHCLog(cfg.Log)
	fsm := &machine{fsm: cfg.FSM}
	wal, err := storage.openLog(hlog, fsm.progress.now)
	if err != nil {
		return nil, err
	}
	snapshots, err := storage.openSnapshots()
	if err != nil {
		return nil, errors.Join(fmt.Errorf("open snapshots: %w", err), wal.Close())
	}
	lost := make(chan struct{}, 1)
	transport, hangUp := cfg.transport(hlog, lost)
	rc := cfg.raftConfig(storage)
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
	if err := fsm.recall(wal, snapshots); err != nil {
		return nil, errors.Join(fmt.Errorf("recall the state: %w", err), closeTransport(transport), wal.Close())
	}
	rc.NoSnapshotRestoreOnStart = true // it is there
	notify := make(chan bool)
	rc.NotifyCh = notify
	r, err := raft.NewRaft(rc, fsm, wal, wal, snapshots, transport)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("start replication: %w", err), closeTransport(transport), wal.Close())
	}
	out := &Raft{
		cfg: cfg, raft: r, machine: fsm, wal: wal, transport: transport, hangUp: hangUp,
		queue: newQueue(), standing: newStanding(), spread: spread{telling: map[raft.ServerID]bool{}}, ended: make(chan struct{}),
		entries: make(chan entry, entriesInFlight), entrySlots: make(chan struct{}, entriesInFlight),
		passes: make(chan pass, passesInFlight), passSlots: make(chan struct{}, passesInFlight),
	}
	out.stopping, out.stopNow = context.WithCancel(context.Background())
	out.reads.ask, out.verified.ask = out.readIndex, out.verify
	observed := make(chan raft.Observation, 16)
	r.RegisterObserver(raft.NewObserver(observed, true, func(o *raft.Observation) bool {
		_, ok := o.Data.(raft.LeaderObservation)
		return ok
	}))
	out.following.Go(func() { out.follow(notify, observed) })
	stood := make(chan raft.Observation, 16)
	r.RegisterObserver(raft.NewObserver(stood, false, func(o *raft.Observation) bool {
		_, ok := o.Data.(raft.RequestPreVoteRequest)
		return ok
	}))
	out.following.Go(func() { out.mindLeader(lost, stood) })
	if cfg.Layer != nil {
		out.following.Go(out.keepWarm)
	}
	out.pumping.Go(out.pump)
	out.workers.Go(out.resolveEntries)
	for range passesInFlight {
		out.workers.Go(out.passOn)
	}
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

func (c *Config) raftConfig(storage Storage) *raft.Config {
	rc := raft.DefaultConfig()
	rc.LocalID = raft.ServerID(c.NodeID)
	rc.Logger = newHCLog(c.Log)
	rc.HeartbeatTimeout = or(c.HeartbeatTimeout, 500*time.Millisecond)
	rc.ElectionTimeout = or(c.ElectionTimeout, 500*time.Millisecond)
	rc.LeaderLeaseTimeout = or(c.LeaseTimeout, leaseTimeout)
	rc.CommitTimeout = or(c.CommitTimeout, 25*time.Millisecond) // see spread
	rc.MaxAppendEntries = 512
	rc.SnapshotThreshold = or(storage.SnapshotAfter, 16384)
	rc.TrailingLogs = or(storage.KeptEntries, 8192)
	rc.SnapshotInterval = or(storage.SnapshotEvery, rc.SnapshotInterval)
	rc.BatchApplyCh = true
	rc.ShutdownOnRemove = false // it stays, and can be added again
	return rc
}

func (c *Config) storage() (Storage, error) {
	if c.Storage != nil {
		return *c.Storage, nil
	}
	return onDisk(c.DataDir)
}

// transport returns the way to the other servers, and what ends the ways from them. Lost gets a value
// when one of these ended by itself.
func (c *Config) transport(log hclog.Logger, lost chan<- struct{}) (t raft.Transport, hangUp func()) {
	if c.Transport != nil {
		return c.Transport, func() {}
	}
	streams := newLayer(c.Layer, lost)
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

func or[T comparable](v, otherwise T) T {
	var zero T
	if v == zero {
		return otherwise
	}
	return v
}

// IsLeader reports whether this server leads at the moment.
func (r *Raft) IsLeader() bool { return r.raft.State() == raft.Leader }

// LastContact is when this server, while it did not lead, heard of a leader last, or of one that it voted for; zero: never.
func (r *Raft) LastContact() time.Time { return r.raft.LastContact() }

// Leader returns the leading server, empty when none is known.
func (r *Raft) Leader() (id, address string) {
	a, i := r.raft.LeaderWithID()
	return string(i), string(a)
}

// Shutdown hands leadership over, where there is someone to take it, and stops.
func (r *Raft) Shutdown() error {
	if r.IsLeader() && len(r.Servers()) > 1 {
		if err := r.HandOver(); err != nil {
			r.cfg.Log.Info("leadership could not be handed over", "error", err)
		}
	}
	return r.stop()
}

// stop ends this server's part without a word to the others, who notice by its silence. Raft is
// stopped after it has answered all that it was given: what it has not, it never does.
func (r *Raft) stop() error {
	r.workersMu.Lock()
	r.stopNow()
	r.workersMu.Unlock()
	r.queue.close()
	r.pumping.Wait()
	close(r.entries)
	close(r.passes)
	r.workers.Wait()
	r.hangUp() // before the log is closed: heartbeats are written to it, raft or no raft
	err := r.raft.Shutdown().Error()
	close(r.ended)
	r.following.Wait()
	return errors.Join(err, closeTransport(r.transport), r.wal.Close())
}
