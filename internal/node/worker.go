package node

import (
	"context"
	"fmt"
	"io"
	"net/netip"
	"path/filepath"
	"slices"
	"sync"

	"golang.org/x/sync/errgroup"

	"github.com/tutti-run/tutti/internal/agent"
	"github.com/tutti-run/tutti/internal/artifact"
	"github.com/tutti-run/tutti/internal/balance"
	"github.com/tutti-run/tutti/internal/balance/ingress"
	"github.com/tutti-run/tutti/internal/balance/names"
	"github.com/tutti-run/tutti/internal/core"
	"github.com/tutti-run/tutti/internal/driver"
	"github.com/tutti-run/tutti/internal/driver/oci"
	"github.com/tutti-run/tutti/internal/driver/process"
	"github.com/tutti-run/tutti/internal/fault"
	"github.com/tutti-run/tutti/internal/image"
	"github.com/tutti-run/tutti/internal/model"
	"github.com/tutti-run/tutti/internal/overlay"
	"github.com/tutti-run/tutti/internal/secret"
	"github.com/tutti-run/tutti/internal/store"
	"github.com/tutti-run/tutti/internal/volume"
	"github.com/tutti-run/tutti/internal/wire"
)

// worker is the half of a node that runs instances.
type worker struct {
	agent       *agent.Agent
	connection  *agent.Connection
	credentials *credentials
	cfg         *Config
	care        *care
	ready       func()
}

// openImages opens this node's images; blobs that it lacks come from servers.
func openImages(cfg *Config, peers *peers) (*image.Store, error) {
	return image.Open(image.Config{
		Root: cfg.imagesDir(), Mounts: filepath.Join(cfg.RunDir, "rootfs"),
		Peers: peers, Reach: peers.reach, Log: cfg.Log,
	})
}

// openDrivers opens what runs tasks, by name.
func openDrivers(cfg *Config) (map[string]driver.Driver, error) {
	containers, err := oci.New(oci.Config{
		StateDir: filepath.Join(cfg.DataDir, "tasks"), FilterDir: filepath.Join(cfg.DataDir, "seccomp"), RunDir: filepath.Join(cfg.RunDir, "tasks"),
		Log: cfg.Log, Runtimes: cfg.Runtimes,
	})
	if err != nil {
		return nil, err
	}
	processes, err := process.New(process.Config{StateDir: filepath.Join(cfg.DataDir, "processes"), RunDir: filepath.Join(cfg.RunDir, "processes"), Log: cfg.Log})
	if err != nil {
		return nil, err
	}
	return map[string]driver.Driver{"oci": containers, "process": processes}, nil
}

func (c *Config) sandboxDir() string { return filepath.Join(c.DataDir, "sandboxes") }

// newWorker builds the worker half.
func newWorker(cfg *Config, id *identity, port *wire.Port, images *image.Store, blobs agent.Blobs) (*worker, error) {
	drivers, err := openDrivers(cfg)
	if err != nil {
		return nil, err
	}
	artifacts, err := artifact.Open(filepath.Join(cfg.DataDir, "artifacts"))
	if err != nil {
		return nil, err
	}
	links, err := overlay.New(overlay.Config{NodeID: id.NodeID, HostAddress: netip.MustParseAddr(cfg.Address), RunDir: cfg.RunDir, Sealed: cfg.features.sealed, Log: cfg.Log})
	if err != nil {
		return nil, err
	}
	volumes, err := volume.New(filepath.Join(cfg.DataDir, "volumes"))
	if err != nil {
		return nil, err
	}
	secrets, err := secret.NewFiles(filepath.Join(cfg.RunDir, "secrets"))
	if err != nil {
		return nil, err
	}
	leads := ingressProcess(cfg, id.NodeID)
	looks := newCare(cfg)
	balancer := balance.New(balance.Config{NodeID: id.NodeID, Log: cfg.Log})
	a, err := agent.New(agent.Deps{
		NodeID: id.NodeID, NodeName: cfg.Name, Address: cfg.Address,
		DataDir: filepath.Join(cfg.DataDir, "agent"), RunDir: cfg.RunDir, CgroupParent: cfg.Cgroup,
		SandboxDir: cfg.sandboxDir(), PidsPerTask: protect(cfg),
		Drivers: drivers, Devices: cfg.features.devices, Images: images, Links: links, Volumes: volumes, Secrets: secrets, Artifacts: artifacts,
		Network:  []agent.NetworkState{links, balancer, namesProcess(cfg), leads},
		Requests: leads.Requests,
		Access:   leads.Access,
		Flows:    balancer.Flows,
		Counts:   balancer.Counts,
		Debug:    looks.debug,
		Log:      cfg.Log,
	})
	if err != nil {
		return nil, err
	}
	a.Handle(port, blobs)
	servers := id.servers
	if id.Role == wire.RoleServer {
		servers = append([]wire.ServerAddress{{ID: id.NodeID, Address: cfg.wireAddress()}}, servers...)
	}
	held := newCredentials(cfg, port)
	c := agent.NewConnection(agent.ConnectionDeps{
		Client: port.Client(), Log: cfg.Log,
		Believe: held.believe,
		Node: func() *model.Node {
			n := cfg.node(id.NodeID, id.Role == wire.RoleServer)
			n.Certificate = held.standing()
			looks.describe(n)
			return n
		},
		Remember: func(servers []wire.ServerAddress) {
			if err := cfg.remember(servers); err != nil {
				cfg.Log.Warn("the list of servers could not be kept", "error", err)
			}
		},
	}, a, servers)
	held.servers, held.changed = c.Servers, c.NodeChanged
	looks.changed, looks.evict = c.NodeChanged, a.Evict
	looks.fill = func(d *wire.NodeDebug) {
		d.Instances, d.Network = len(a.Instances()), a.NetworkRevision()
		for _, s := range c.Servers() {
			d.Servers = append(d.Servers, s.Address)
		}
	}
	if id.Role == wire.RoleAgent {
		port.SetGate(func(peer wire.Peer, _ bool) error { return c.Knows(peer) })
	}
	return &worker{agent: a, connection: c, credentials: held, care: looks, cfg: cfg, ready: cfg.Ready}, nil
}

func ingressProcess(cfg *Config, nodeID string) *ingress.Process {
	p := ingress.New(filepath.Join(cfg.RunDir, "ingress"), nodeID, ":80", ":443", cfg.Log)
	p.Logs = filepath.Join(cfg.DataDir, "ingress")
	for _, text := range cfg.IngressProxies {
		if r, err := netip.ParsePrefix(text); err == nil { // which was looked at before
			p.Proxies = append(p.Proxies, r.Masked())
		}
	}
	return p
}

func namesProcess(cfg *Config) *names.Process {
	return names.New(filepath.Join(cfg.RunDir, "names"), overlay.GatewayAddress+":53", cfg.Log)
}

// run works until ctx is done; instances go on running.
func (w *worker) run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return w.agent.Run(ctx, &session{Connection: w.connection, ready: w.ready}) })
	g.Go(func() error { return w.connection.Run(ctx) })
	g.Go(func() error { return w.credentials.run(ctx) })
	g.Go(func() error { return w.cfg.features.watch(ctx, w.cfg, w.connection.NodeChanged) })
	g.Go(func() error { return w.care.run(ctx) })
	return g.Wait()
}

// session is the agent's connection; it notices when the network is in force for the first time.
type session struct {
	*agent.Connection
	once  sync.Once
	ready func()
}

// Applied implements agent.Session.
func (s *session) Applied(revision uint64) {
	s.Connection.Applied(revision)
	if s.ready != nil {
		s.once.Do(s.ready)
	}
}

// peers fetches blobs from the cluster's servers, which hold every image that was imported, and know who has
// others.
type peers struct {
	client *wire.Client
	self   string
	// servers is set once the connection is there, and outside on a server.
	servers func() []wire.ServerAddress
	outside *core.Outside
}

// FetchBlob implements image.Peers.
func (p *peers) FetchBlob(ctx context.Context, of, digest string) (io.ReadCloser, int64, error) {
	last := error(fault.New(fault.NotFound, "no server holds %s", digest))
	for _, s := range p.servers() {
		if s.ID == p.self {
			continue
		}
		body, size, err := p.client.Get(ctx, s.Address, wire.PathBlob+digest+"?"+wire.BlobOf+"="+of)
		if err == nil {
			return body, size, nil
		}
		if !fault.Is(err, fault.NotFound) {
			last = fmt.Errorf("ask server %s: %w", s.Address, err)
		}
	}
	return nil, 0, last
}

// reach is an image.Reach: what a server knows, others ask one.
func (p *peers) reach(ctx context.Context, w image.Wanted) ([]image.Endpoint, error) {
	if p.outside != nil {
		return p.outside.Reach(ctx, w)
	}
	last := error(fault.New(fault.Unavailable, "no server is known"))
	for _, s := range p.servers() {
		out, err := wire.Call[image.Wanted, []image.Endpoint](ctx, p.client, s.Address, wire.PathRegistry, w)
		if err == nil {
			return out, nil
		}
		last = fmt.Errorf("ask server %s how the registry of %s is reached: %w", s.Address, w.Name, err)
	}
	return nil, last
}

// shelf is what this node's images have for others; on a server also what other nodes' have.
type shelf struct {
	*image.Store
	client *wire.Client
	state  *store.Store
}

// relayed is how many nodes are asked for a blob.
const relayed = 3

// BlobOf implements agent.Relay: nodes that run an image have it, such as one of a platform that no server is of.
func (s shelf) BlobOf(ctx context.Context, of, digest string) (io.ReadCloser, int64, error) {
	last := error(fault.New(fault.NotFound, "no node is known to hold %s", digest))
	if of == "" {
		return nil, 0, last
	}
	snap := s.state.Snapshot()
	asked := map[string]bool{}
	for i := range store.List[*model.Instance](snap) {
		if len(asked) == relayed {
			break
		}
		n, ok := store.Get[*model.Node](snap, i.NodeID)
		if !ok || asked[n.ID] || n.Server || n.Status.State != model.NodeReady || i.Status.State != model.InstanceRunning {
			continue
		}
		r, ok := store.Get[*model.Revision](snap, i.RevisionID)
		if !ok || !slices.ContainsFunc(r.Template.Tasks, func(t model.TaskSpec) bool { return t.Digest == of }) {
			continue
		}
		asked[n.ID] = true
		body, size, err := s.client.Get(ctx, n.WireAddress, wire.PathBlob+digest)
		if err == nil {
			return body, size, nil
		}
		if !fault.Is(err, fault.NotFound) {
			last = fmt.Errorf("ask node %s: %w", n.Name, err)
		}
	}
	return nil, 0, last
}
