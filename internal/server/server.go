package server

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"path/filepath"
	"slices"
	"time"

	"github.com/hashicorp/raft"
	"golang.org/x/sync/errgroup"

	"github.com/tutti-run/tutti/internal/agent"
	"github.com/tutti-run/tutti/internal/audit"
	"github.com/tutti-run/tutti/internal/certify"
	"github.com/tutti-run/tutti/internal/consensus"
	"github.com/tutti-run/tutti/internal/control"
	"github.com/tutti-run/tutti/internal/core"
	"github.com/tutti-run/tutti/internal/dispatch"
	"github.com/tutti-run/tutti/internal/fault"
	"github.com/tutti-run/tutti/internal/image"
	"github.com/tutti-run/tutti/internal/model"
	"github.com/tutti-run/tutti/internal/secret"
	"github.com/tutti-run/tutti/internal/store"
	"github.com/tutti-run/tutti/internal/trust"
	"github.com/tutti-run/tutti/internal/wire"
)

// Paths between servers.
const (
	pathBeats    = "/server/beats"    // call: []dispatch.Beat → dispatch.Heard
	pathMember   = "/server/member"   // call: membership → Empty
	pathProgress = "/server/progress" // call: Empty → memberProgress
	pathLeader   = "/server/leader"   // call: Empty → leaderAnswer
	pathAudit    = "/server/audit"    // call: core.AuditQuery → []core.AuditEntry
)

// networkBits is the size of a new cluster's networks: 256 addresses.
const networkBits = 24

// Config says what server to be.
type Config struct {
	NodeID  string
	Name    string // of the node
	Address string // host:port under which other nodes reach this one
	DataDir string
	// Founding is the authority of the cluster that this server founds, nil when it founds none, or
	// has done so; Founded is called once the cluster's state holds it.
	Founding *wire.Authority
	Founded  func() error
	// AddressPool and NodePool are those of a cluster that this server founds, in CIDR form.
	AddressPool, NodePool string
	// Known are servers through which this one can become a member.
	Known []wire.ServerAddress
	Port  *wire.Port
	// Keys opens the cluster's own keys in the state; nil is the file cluster.key in the directory
	// of the identity below DataDir.
	Keys *secret.KeyFile
	// CertificateLife is how long certificates of nodes are valid; 0 is wire.CertificateLife.
	CertificateLife time.Duration
	Images          core.Images // this node's own
	// Version is that of this program.
	Version string
	// DeadServerAfter is for how long another server is dead before it is removed, if the others are
	// enough without it; zero or less is never.
	DeadServerAfter time.Duration
	Log             *slog.Logger
	// Transport and Storage replace those of the port and of DataDir; for simulations.
	Transport raft.Transport
	Storage   *consensus.Storage
}

// Server is the half of a node that holds the cluster's state.
type Server struct {
	cfg      Config
	port     *wire.Port
	log      *slog.Logger
	store    *store.Store
	raft     *consensus.Raft
	sessions *dispatch.Sessions
	liveness *dispatch.Liveness
	control  *control.Controller
	scaler   *control.Scaler
	core     *core.Core
	trust    *trust.Trust
	// audit holds what people do, audited what components do all the time.
	audit, audited *audit.Log

	confirmer   *confirmer
	membersWake chan struct{}
	// caughtUp is closed once the state is as new as the cluster's when this server started.
	caughtUp chan struct{}
}

// New builds a server, which begins to replicate at once; Run makes it work. Shutdown must follow.
func New(cfg Config) (*Server, error) {
	s := &Server{cfg: cfg, port: cfg.Port, log: cfg.Log, store: store.New(cfg.Log), membersWake: make(chan struct{}, 1), caughtUp: make(chan struct{})}
	var err error
	if cfg.Keys == nil {
		if cfg.Keys, err = secret.LoadKeyFile(KeyFile(cfg.DataDir)); err != nil {
			return nil, err
		}
	}
	if s.audit, err = audit.Open(filepath.Join(cfg.DataDir, "audit"), cfg.Name, cfg.Log); err != nil {
		return nil, err
	}
	if s.audited, err = audit.Open(filepath.Join(cfg.DataDir, "audit", "frequent"), cfg.Name, cfg.Log); err != nil {
		return nil, err
	}
	s.confirmer = s.newConfirmer()
	s.raft, err = consensus.New(consensus.Config{
		NodeID: cfg.NodeID, Address: cfg.Address, DataDir: StateDir(cfg.DataDir),
		Bootstrap: cfg.Founding != nil, Layer: cfg.Port.RaftLayer(), Transport: cfg.Transport, Storage: cfg.Storage,
		FSM: s.store, Calls: consensus.OverWire(cfg.Port.Client()), Confirm: s.confirmer.confirm, Log: cfg.Log,
	})
	if err != nil {
		return nil, err
	}
	s.store.SetProposer(s.raft)
	s.trust = trust.New(trust.Deps{
		Store: s.store, Keys: cfg.Keys, NodeID: cfg.NodeID, Client: s.port.Client(), Addresses: s.Addresses,
		CertificateLife: cfg.CertificateLife, Changed: s.trustChanged, Log: cfg.Log,
	})
	s.port.SetGate(s.mayPass)
	s.liveness = dispatch.NewLiveness(s.store, cfg.Log)
	s.liveness.Reach, s.liveness.Contact = s.port.Reach, s.raft.LastContact
	s.sessions = dispatch.New(dispatch.Deps{Store: s.store, Servers: s, Open: s.trust.OpenSecret, Trust: s.trust.Trust, Log: cfg.Log})
	heat := control.NewHeat()
	s.control = control.New(control.Deps{Store: s.store, Sessions: s.liveness, Heat: heat, Log: cfg.Log})
	remote := &dispatch.Remote{Store: s.store, Client: s.port.Client()}
	s.scaler = &control.Scaler{Store: s.store, Heat: heat, HTTP: &http.Client{}, Log: cfg.Log}
	s.scaler.Usage = func(ctx context.Context, nodeID, instance, task string) (control.TaskUsage, error) {
		st, err := remote.Stats(ctx, nodeID, wire.TaskRef{Instance: instance, Task: task})
		return control.TaskUsage{Time: st.Time, CPUNanoseconds: st.CPUNanoseconds, MemoryBytes: st.MemoryBytes}, err
	}
	s.scaler.Node = func(ctx context.Context, nodeID string) (control.NodeUsage, error) {
		used, err := remote.Usage(ctx, nodeID)
		out := control.NodeUsage{Time: used.Time, Requests: used.Requests, Instances: make(map[string]control.InstanceUsage, len(used.Instances))}
		for id, u := range used.Instances {
			out.Instances[id] = control.InstanceUsage(u)
		}
		return out, err
	}
	s.core = core.New(core.Deps{
		Store: s.store, Trust: s.trust, Remote: remote,
		Images: cfg.Images, Servers: s, NodeID: cfg.NodeID, Log: cfg.Log,
		Audit: auditLogs{s}, Demand: control.Demand,
	})
	s.handle()
	return s, nil
}

// mayPass is the port's gate.
func (s *Server) mayPass(peer wire.Peer, replication bool) error {
	return s.trust.MayPass(peer, replication, s.hasCaughtUp())
}

// trustChanged ends the connections of nodes that were removed, and hands out what could not be
// opened before.
func (s *Server) trustChanged() {
	s.port.Enforce()
	s.sessions.Wake()
}

// Core returns the use cases over this server's state.
func (s *Server) Core() *core.Core { return s.core }

// Outside is how registries outside of the cluster are reached.
func (s *Server) Outside() *core.Outside { return &core.Outside{Store: s.store, Trust: s.trust} }

// Replication returns this server's part in it.
func (s *Server) Replication() *consensus.Raft { return s.raft }

// Shutdown hands leadership over, where there is someone to take it, and ends the replication.
// It comes after Run has returned.
func (s *Server) Shutdown() error {
	return errors.Join(s.raft.Shutdown(), s.audit.Close(), s.audited.Close())
}

// handle registers what servers answer to other nodes.
func (s *Server) handle() {
	s.raft.Handle(s.port)
	s.port.Handle(pathTerm, wire.HandleCall(func(context.Context, wire.Empty) (uint64, error) { return s.raft.Term(), nil }), wire.RoleServer)
	s.port.Handle(pathBeats, wire.HandleCall(s.hear), wire.RoleServer)
	s.port.Handle(pathMember, wire.HandleCall(func(ctx context.Context, m membership) (wire.Empty, error) {
		return wire.Empty{}, s.changeMember(ctx, m)
	}), wire.RoleServer)
	s.port.Handle(pathLeader, wire.HandleCall(func(context.Context, wire.Empty) (leaderAnswer, error) {
		return leaderAnswer{Leader: s.Leader()}, nil
	}), wire.RoleServer)
	s.port.Handle(pathProgress, wire.HandleCall(func(context.Context, wire.Empty) (memberProgress, error) {
		return memberProgress{Applied: s.raft.Applied()}, nil
	}), wire.RoleServer)
	s.port.Handle(agent.SessionPath, wire.HandleStream(s.serveSession), wire.RoleServer, wire.RoleAgent)
	s.port.Handle(pathAudit, wire.HandleCall(func(_ context.Context, q core.AuditQuery) ([]core.AuditEntry, error) {
		return s.readAudit(q)
	}), wire.RoleServer)
	s.port.Handle(trust.PathKey, wire.HandleCall(s.trust.ShareKey), wire.RoleServer)
	s.port.Handle(wire.PathRenew, wire.HandleCall(func(ctx context.Context, r wire.RenewRequest) (wire.RenewResponse, error) {
		return s.trust.Renew(ctx, wire.PeerOf(ctx), r)
	}), wire.RoleServer, wire.RoleAgent)
	s.port.Handle(wire.PathRegistry, wire.HandleCall(func(ctx context.Context, w image.Wanted) ([]image.Endpoint, error) {
		return s.Outside().ForNode(ctx, wire.PeerOf(ctx).NodeID, w)
	}), wire.RoleServer, wire.RoleAgent)
	s.port.HandleOpen(wire.PathJoin, wire.HandleCall(s.trust.Admit))
}

// Run works until ctx is done. It returns after the leader's work has ended, and before the
// replication is shut down.
func (s *Server) Run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return s.sessions.Run(ctx) })
	g.Go(func() error { return s.raft.RunAsLeader(ctx, s.lead) })
	g.Go(func() error { return s.stayMember(ctx) })
	g.Go(func() error { return s.catchUp(ctx) })
	g.Go(func() error { return s.trust.Run(ctx) })
	return g.Wait()
}

// catchUp waits until what this server missed while it was away has been applied.
func (s *Server) catchUp(ctx context.Context) error {
	if err := s.raft.Sync(ctx); err != nil {
		return nil // the end has come
	}
	close(s.caughtUp)
	return nil
}

// serveSession serves an agent once this server knows what the agent should do: by an older state
// it would be told to drop what it was given since.
func (s *Server) serveSession(ctx context.Context, stream *wire.Stream) error {
	select {
	case <-s.caughtUp:
		return s.sessions.Serve(ctx, stream)
	case <-ctx.Done():
		return ctx.Err()
	}
}

// lead is the leader's work.
func (s *Server) lead(ctx context.Context) error {
	s.log.Info("this server leads")
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return s.liveness.Run(ctx) })
	g.Go(func() error { return s.control.Run(ctx) })
	g.Go(func() error { return s.keepMembers(ctx) })
	g.Go(func() error { return s.trust.Lead(ctx) })
	g.Go(func() error { return (&control.Expiry{Store: s.store, Log: s.log}).Run(ctx) })
	g.Go(func() error { return s.scaler.Run(ctx) })
	g.Go(func() error {
		return certify.New(certify.Deps{
			Store: s.store, Live: s.liveness.Live, Applied: s.liveness.Applied, Key: s.trust.SecretKey, Open: s.trust.OpenSecret,
			Issue: s.trust.IssueHost, Authority: s.trust.Authority, Log: s.log,
		}).Run(ctx)
	})
	err := g.Wait()
	s.log.Info("this server leads no more")
	return err
}

// Begin waits until the state can be used; a founder writes the cluster's first object.
func (s *Server) Begin(ctx context.Context) error {
	if s.cfg.Founding == nil {
		return nil
	}
	if err := s.raft.Sync(ctx); err != nil {
		return err
	}
	for {
		err := s.foundCluster(ctx)
		if err == nil {
			return s.cfg.Founded()
		}
		if !fault.Is(err, fault.Unavailable) {
			return fmt.Errorf("found the cluster: %w", err)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// WhenReady puts the call of ready off until this server's state shows its own node as ready.
func (s *Server) WhenReady(ctx context.Context, ready func()) func() {
	if ready == nil {
		return nil
	}
	return func() {
		go func() {
			for {
				n, ok := store.Get[*model.Node](s.store.Snapshot(), s.cfg.NodeID)
				if ok && n.Status.State == model.NodeReady {
					ready()
					return
				}
				select {
				case <-ctx.Done():
					return
				case <-time.After(5 * time.Millisecond):
				}
			}
		}()
	}
}

func (s *Server) foundCluster(ctx context.Context) error {
	if _, ok := store.Get[*model.Cluster](s.store.Snapshot(), model.ClusterID); ok {
		return nil
	}
	now := time.Now()
	cl := &model.Cluster{
		Meta:        model.Meta{ID: model.ClusterID, Name: model.ClusterID, Created: now},
		AddressPool: s.cfg.AddressPool, NetworkBits: networkBits, NodePool: s.cfg.NodePool,
	}
	if err := s.trust.Found(cl, s.cfg.Founding); err != nil {
		return err
	}
	host, _, err := net.SplitHostPort(s.cfg.Address)
	if err != nil {
		return fmt.Errorf("read this server's address: %w", err)
	}
	cs := &store.ChangeSet{}
	cs.Expect(model.KindCluster, model.ClusterID, 0)
	cs.Put(cl)
	cs.Put(&model.Node{
		Meta: model.Meta{ID: s.cfg.NodeID, Name: s.cfg.Name, Created: now}, Server: true, Availability: model.Active,
		WireAddress: s.cfg.Address, HostAddress: host, Status: model.NodeStatus{State: model.NodeUnknown, Since: now},
	})
	_, err = s.store.Commit(ctx, cs)
	return err
}

// Addresses implements dispatch.Servers and core.Servers.
func (s *Server) Addresses() []wire.ServerAddress {
	var out []wire.ServerAddress
	for _, m := range s.raft.Servers() {
		out = append(out, wire.ServerAddress{ID: m.ID, Address: m.Address})
	}
	return out
}

// Tell implements dispatch.Servers.
func (s *Server) Tell(ctx context.Context, beats []dispatch.Beat) (dispatch.Heard, error) {
	if s.raft.IsLeader() {
		return s.hear(ctx, beats)
	}
	_, address := s.raft.Leader()
	if address == "" {
		return dispatch.Heard{}, fault.New(fault.Unavailable, "no server leads")
	}
	return wire.Call[[]dispatch.Beat, dispatch.Heard](ctx, s.port.Client(), address, pathBeats, beats)
}

// hear takes in signs of life as the leader. A leader that was stopped for a while, and replaced,
// may not know so yet: what it says counts only once others have confirmed that it leads.
func (s *Server) hear(ctx context.Context, beats []dispatch.Beat) (dispatch.Heard, error) {
	said := s.liveness.Hear(beats)
	return said, s.confirmer.confirm(ctx)
}

// Sync implements core.Servers.
func (s *Server) Sync(ctx context.Context) error { return s.raft.Sync(ctx) }

// Hesitate says whether this server should rather not lead, if another one can.
func (s *Server) Hesitate(hesitates bool) { s.raft.Hesitate(hesitates) }

// Leader implements core.Servers.
func (s *Server) Leader() string {
	id, _ := s.raft.Leader()
	return id
}

// auditLogs are those of all servers; what is recorded goes to this one's.
type auditLogs struct{ s *Server }

// Record implements core.AuditLog.
func (l auditLogs) Record(e core.AuditEntry) {
	if e.Frequent() {
		l.s.audited.Record(e)
		return
	}
	l.s.audit.Record(e)
}

// readAudit returns what this server has, in the order of time, the latest of it.
func (s *Server) readAudit(q core.AuditQuery) ([]core.AuditEntry, error) {
	out, err := s.audit.Read(q)
	if err != nil {
		return nil, err
	}
	frequent, err := s.audited.Read(q)
	if err != nil || len(frequent) == 0 {
		return out, err
	}
	out = append(out, frequent...)
	slices.SortStableFunc(out, func(a, b core.AuditEntry) int { return a.Time.Compare(b.Time) })
	return out[max(0, len(out)-cmp.Or(q.Limit, len(out))):], nil
}

// Read implements core.AuditLog.
func (l auditLogs) Read(ctx context.Context, q core.AuditQuery) (entries []core.AuditEntry, silent []string, err error) {
	if entries, err = l.s.readAudit(q); err != nil {
		return nil, nil, err
	}
	for _, other := range l.s.Addresses() {
		if other.ID == l.s.cfg.NodeID {
			continue
		}
		ask, cancel := context.WithTimeout(ctx, 5*time.Second)
		more, err := wire.Call[core.AuditQuery, []core.AuditEntry](ask, l.s.port.Client(), other.Address, pathAudit, q)
		cancel()
		if err != nil {
			name := other.Address
			if n, ok := store.Get[*model.Node](l.s.store.Snapshot(), other.ID); ok {
				name = n.Name
			}
			silent = append(silent, name)
			continue
		}
		entries = append(entries, more...)
	}
	slices.SortStableFunc(entries, func(a, b core.AuditEntry) int { return a.Time.Compare(b.Time) })
	return entries, silent, nil
}
