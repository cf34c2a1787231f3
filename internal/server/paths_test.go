package server_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/raft"

	"github.com/tutti-run/tutti/internal/agent"
	"github.com/tutti-run/tutti/internal/core"
	"github.com/tutti-run/tutti/internal/driver"
	"github.com/tutti-run/tutti/internal/driver/fake"
	"github.com/tutti-run/tutti/internal/fault"
	"github.com/tutti-run/tutti/internal/image"
	"github.com/tutti-run/tutti/internal/model"
	"github.com/tutti-run/tutti/internal/server"
	"github.com/tutti-run/tutti/internal/store"
	"github.com/tutti-run/tutti/internal/wire"
)

var quiet = slog.New(slog.DiscardHandler)

// blobs are the images of a node.
type blobs struct{}

func (blobs) Blob(_ context.Context, digest string) (io.ReadCloser, int64, error) {
	return io.NopCloser(strings.NewReader(digest)), int64(len(digest)), nil
}
func (blobs) Remove(context.Context, string) error { return nil }

// keep is a cluster of one server, with real keys, and a port that serves all that a server's does.
type keep struct {
	*testing.T
	authority *wire.Authority
	port      *wire.Port
	server    *server.Server
	address   string
}

func newKeep(t *testing.T) *keep {
	k := &keep{T: t}
	var err error
	if k.authority, err = wire.NewAuthority(); err != nil {
		t.Fatal(err)
	}
	k.port = k.listen("server-1", wire.RoleServer)
	k.address = k.port.Addr().String()
	k.server, err = server.New(server.Config{
		NodeID: "server-1", Name: "alpha", Address: k.address, DataDir: t.TempDir(),
		Founding: k.authority, Founded: func() error { return nil }, AddressPool: "10.1.0.0/16", NodePool: "10.2.0.0/16",
		Port: k.port, Log: quiet,
	})
	if err != nil {
		t.Fatal(err)
	}
	a, err := agent.New(agent.Deps{
		NodeID: "server-1", NodeName: "alpha", DataDir: filepath.Join(t.TempDir(), "agent"),
		Drivers: map[string]driver.Driver{"oci": fake.New(fake.NewState(nil))}, Log: quiet,
	})
	if err != nil {
		t.Fatal(err)
	}
	a.Handle(k.port, blobs{})
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 2)
	go func() { ended <- k.port.Serve(ctx) }()
	go func() { ended <- k.server.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		for range 2 {
			if err := <-ended; err != nil {
				t.Error(err)
			}
		}
		if err := k.server.Shutdown(); err != nil {
			t.Error(err)
		}
	})
	if err := k.server.Begin(t.Context()); err != nil {
		t.Fatal(err)
	}
	return k
}

func (k *keep) listen(id string, role wire.Role) *wire.Port {
	k.Helper()
	csr, key, err := wire.NewRequest()
	if err != nil {
		k.Fatal(err)
	}
	cert, err := k.authority.Sign(csr, id, role)
	if err != nil {
		k.Fatal(err)
	}
	p, err := wire.Listen("127.0.0.1:0", &wire.Identity{NodeID: id, Role: role, CertPEM: cert, KeyPEM: key, CAPEM: k.authority.CertPEM}, quiet)
	if err != nil {
		k.Fatal(err)
	}
	return p
}

// as returns a port with a certificate for the node and role, as a thief would have it.
func (k *keep) as(id string, role wire.Role) *wire.Port {
	k.Helper()
	p := k.listen(id, role)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- p.Serve(ctx) }()
	k.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			k.Error(err)
		}
	})
	return p
}

func (k *keep) commit(fill func(cs *store.ChangeSet)) {
	k.Helper()
	cs := &store.ChangeSet{}
	fill(cs)
	if _, err := k.server.Core().Store.Commit(k.Context(), cs); err != nil {
		k.Fatal(err)
	}
}

// remove forgets a node, which it calls down as often as the leader calls it up.
func (k *keep) remove(id string) {
	k.Helper()
	for end := time.Now().Add(10 * time.Second); ; {
		k.commit(func(cs *store.ChangeSet) {
			n, _ := store.Get[*model.Node](k.server.Core().Store.Snapshot(), id)
			c := n.Clone()
			c.Status.State = model.NodeDown
			cs.PutStatus(c)
		})
		err := k.server.Core().RemoveNode(k.Context(), core.Local("anna", "test"), id)
		if err == nil {
			return
		}
		if time.Now().After(end) {
			k.Fatal(err)
		}
	}
}

// decisions is who may use each path that a port serves. A path without a decision fails the test:
// think about what an agent whose certificate was stolen could do with it.
var decisions = map[string][]wire.Role{
	// Anybody: the secret of a join token decides.
	wire.PathJoin: {},
	// An agent's own: it greets as itself or not at all, is told what it runs, and reports on that.
	agent.SessionPath: {wire.RoleServer, wire.RoleAgent},
	// A certificate for itself, in the role that it has.
	wire.PathRenew: {wire.RoleServer, wire.RoleAgent},
	// Content of images, by digest: nodes take it from servers. Whoever knows a digest may read it;
	// images are no place for secrets.
	wire.PathBlob: {wire.RoleServer, wire.RoleAgent},

	// The login at a registry, of an image that the agent is to run.
	wire.PathRegistry: {wire.RoleServer, wire.RoleAgent},

	// Servers among themselves.
	"/server/propose":    {wire.RoleServer},
	"/server/read-index": {wire.RoleServer},
	"/server/beats":      {wire.RoleServer},
	"/server/term":       {wire.RoleServer},
	"/server/member":     {wire.RoleServer},
	"/server/progress":   {wire.RoleServer},
	"/server/leader":     {wire.RoleServer},
	"/server/key":        {wire.RoleServer},
	"/server/audit":      {wire.RoleServer},

	// What nodes do for servers.
	wire.PathLogs:         {wire.RoleServer},
	wire.PathAccess:       {wire.RoleServer},
	wire.PathExec:         {wire.RoleServer},
	wire.PathAttach:       {wire.RoleServer},
	wire.PathSignal:       {wire.RoleServer},
	wire.PathStats:        {wire.RoleServer},
	wire.PathUsage:        {wire.RoleServer},
	wire.PathSizes:        {wire.RoleServer},
	wire.PathEnsureImage:  {wire.RoleServer},
	wire.PathRemoveImage:  {wire.RoleServer},
	wire.PathRemoveVolume: {wire.RoleServer},
	wire.PathReadVolume:   {wire.RoleServer},
	wire.PathWriteVolume:  {wire.RoleServer},
	wire.PathPause:        {wire.RoleServer},
	wire.PathBound:        {wire.RoleServer},
	wire.PathLinked:       {wire.RoleServer},
	wire.PathProcesses:    {wire.RoleServer},
	wire.PathFileStat:     {wire.RoleServer},
	wire.PathFileChanges:  {wire.RoleServer},
	wire.PathReadFiles:    {wire.RoleServer},
	wire.PathWriteFiles:   {wire.RoleServer},
	wire.PathDial:         {wire.RoleServer},
	wire.PathTry:          {wire.RoleServer},
	wire.PathFlows:        {wire.RoleServer},
	wire.PathCounts:       {wire.RoleServer},
}

// TestAStolenAgentCertificate tries every path that a server's port serves, as the port itself lists
// them, with certificates of an agent that is of the cluster, of one that was removed, of a removed
// server, and of no one.
func TestAStolenAgentCertificate(t *testing.T) {
	k := newKeep(t)
	k.commit(func(cs *store.ChangeSet) {
		for _, id := range []string{"agent-1", "agent-2", "agent-gone", "server-gone"} {
			cs.Put(&model.Node{
				Meta: model.Meta{ID: id, Name: id}, Server: strings.HasPrefix(id, "server"),
				Status: model.NodeStatus{State: model.NodeDown},
			})
		}
	})
	thieves := map[string]*wire.Port{
		"an agent":         k.as("agent-1", wire.RoleAgent),
		"a removed agent":  k.as("agent-gone", wire.RoleAgent),
		"a removed server": k.as("server-gone", wire.RoleServer),
	}
	// A session of the one to be removed, open when that happens.
	open, err := thieves["a removed agent"].Client().Stream(t.Context(), k.address, agent.SessionPath)
	if err != nil {
		t.Fatal(err)
	}
	defer open.Close()
	if err := open.Send(wire.AgentMessage{Hello: greeting("agent-gone")}); err != nil {
		t.Fatal(err)
	}
	var m wire.ServerMessage
	if err := open.Receive(&m); err != nil || m.Refused != nil {
		t.Fatalf("a session of a member gave %+v, %v", m, err)
	}
	for _, id := range []string{"agent-gone", "server-gone"} {
		k.remove(id)
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for open.Receive(&m) == nil {
		}
	}()
	select {
	case <-ended:
	case <-time.After(5 * time.Second):
		t.Error("the session of a node goes on after the node was removed")
	}

	var tried int
	for _, route := range k.port.Routes() {
		want, decided := decisions[route.Pattern]
		if !decided {
			t.Errorf("%s is served, and nobody has decided who may use it: see decisions", route.Pattern)
			continue
		}
		if !slices.Equal(want, route.Roles) {
			t.Errorf("%s is served to %v; decided was %v", route.Pattern, route.Roles, want)
		}
		for who, port := range thieves {
			if len(want) == 0 {
				continue
			}
			mine := who == "an agent" && slices.Contains(want, wire.RoleAgent)
			tried++
			for how, try := range ways(port.Client(), k.address, route.Pattern) {
				if mine && route.Pattern == agent.SessionPath && how != "a stream" {
					continue // it would wait for a greeting
				}
				patience := 20 * time.Second
				if mine {
					patience = 500 * time.Millisecond // what is let in may wait for more
				}
				ctx, cancel := context.WithTimeout(t.Context(), patience)
				err := try(ctx)
				cancel()
				if refused := fault.Is(err, fault.Forbidden); refused == mine {
					t.Errorf("%s of %s by %s: %v; may it: %v", how, route.Pattern, who, err, mine)
				}
			}
		}
	}
	if tried < 3*10 {
		t.Errorf("only %d tries: the port lists too little", tried)
	}
	for path := range decisions {
		if !slices.ContainsFunc(k.port.Routes(), func(r wire.Route) bool { return r.Pattern == path }) {
			t.Errorf("%s is decided about, and not served", path)
		}
	}
	for who, port := range thieves {
		if c, err := port.RaftLayer().Dial(raft.ServerAddress(k.address), time.Second); err == nil {
			c.SetReadDeadline(time.Now().Add(time.Second))
			if _, err := c.Read(make([]byte, 1)); err == nil || errors.Is(err, context.DeadlineExceeded) || isTimeout(err) {
				t.Errorf("the replication of %s is open: %v", who, err)
			}
			c.Close()
		}
	}
	k.agentKeepsToItself(thieves["an agent"])
}

func isTimeout(err error) bool {
	ne, ok := errors.AsType[net.Error](err)
	return ok && ne.Timeout()
}

// ways are those of asking for a path: whatever its handler makes of the request.
func ways(c *wire.Client, address, path string) map[string]func(ctx context.Context) error {
	return map[string]func(ctx context.Context) error{
		"a call": func(ctx context.Context) error {
			_, err := wire.Call[wire.Empty, any](ctx, c, address, path, wire.Empty{})
			if path == wire.PathRenew && fault.Is(err, fault.Invalid) {
				return nil // it has no request for a certificate in it
			}
			return err
		},
		"a stream": func(ctx context.Context) error {
			s, err := c.Stream(ctx, address, path)
			if err == nil {
				s.Close()
			}
			return err
		},
		"a blob": func(ctx context.Context) error {
			body, _, err := c.Get(ctx, address, path)
			if err == nil {
				body.Close()
			}
			return err
		},
	}
}

func greeting(id string) *wire.Hello {
	return &wire.Hello{Session: "s-" + id, Node: &model.Node{Meta: model.Meta{ID: id, Name: id}, WireAddress: "127.0.0.1:1"}}
}

// agentKeepsToItself goes through what is open to an agent, and asks for what is another one's.
func (k *keep) agentKeepsToItself(thief *wire.Port) {
	t := k.T
	secretKey, err := k.server.Core().Trust.SecretKey()
	if err != nil || len(secretKey) == 0 {
		t.Fatalf("the key of secrets: %v", err)
	}
	k.commit(func(cs *store.ChangeSet) {
		cs.Put(&model.Revision{Meta: model.Meta{ID: "w.1", Namespace: "default", Name: "w.1"}, WorkloadID: "w", Template: model.Template{
			Tasks: []model.TaskSpec{{Name: "main", Image: "registry.example.com/shop/web:1", Mounts: []model.Mount{{Type: model.MountConfig, Source: "c1"}}}},
		}})
		cs.Put(&model.Config{Meta: model.Meta{ID: "c1", Namespace: "default", Name: "c1"}, Data: []byte("of the other node")})
		cs.Put(&model.Instance{
			Meta: model.Meta{ID: "i2", Namespace: "default", Name: "w.1"}, WorkloadID: "w", RevisionID: "w.1", NodeID: "agent-2",
			Desired: model.DesiredRun, Status: model.InstanceStatus{State: model.InstanceRunning, Ready: true},
		})
	})
	session := func(hello *wire.Hello) (*wire.Stream, wire.ServerMessage) {
		t.Helper()
		s, err := thief.Client().Stream(t.Context(), k.address, agent.SessionPath)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { s.Close() })
		if err := s.Send(wire.AgentMessage{Hello: hello}); err != nil {
			t.Fatal(err)
		}
		var m wire.ServerMessage
		if err := s.Receive(&m); err != nil {
			t.Fatal(err)
		}
		return s, m
	}
	if _, m := session(greeting("agent-2")); m.Refused == nil || m.Refused.Kind != fault.Forbidden.String() {
		t.Errorf("agent-1 greets as agent-2 and is told %+v", m)
	}
	s, m := session(greeting("agent-1"))
	for m.Assign == nil {
		m = wire.ServerMessage{}
		if err := s.Receive(&m); err != nil {
			t.Fatal(err)
		}
	}
	if len(m.Assign.Put) > 0 {
		t.Errorf("agent-1 is told to run %+v", m.Assign.Put)
	}
	report := wire.Report{Instances: map[string]model.InstanceStatus{"i2": {State: model.InstanceFailed}}}
	becomesServer := &model.Node{Meta: model.Meta{ID: "agent-1", Name: "agent-1"}, Server: true, Availability: model.Draining}
	poses := &model.Node{Meta: model.Meta{ID: "agent-2", Name: "agent-2"}, WireAddress: "127.0.0.1:6"}
	for _, out := range []wire.AgentMessage{{Status: &report}, {Node: becomesServer}, {Node: poses}} {
		if err := s.Send(out); err != nil {
			t.Fatal(err)
		}
	}
	for s.Receive(&m) == nil { // speaking for another ends the session: all before it was taken in
	}
	k.commit(func(cs *store.ChangeSet) {
		cs.Put(&model.Config{Meta: model.Meta{ID: "c2", Namespace: "default", Name: "c2"}})
	})
	snap := k.server.Core().Store.Snapshot()
	// The leader may have found out meanwhile that there is no such node.
	if i, ok := store.Get[*model.Instance](snap, "i2"); ok && i.Status.State == model.InstanceFailed {
		t.Errorf("agent-1 reported on an instance of agent-2: %+v", i.Status)
	}
	if n, _ := store.Get[*model.Node](snap, "agent-1"); n.Server || n.Availability == model.Draining {
		t.Errorf("agent-1 made itself %+v", n)
	}
	if n, _ := store.Get[*model.Node](snap, "agent-2"); n.WireAddress != "" {
		t.Errorf("agent-1 spoke for agent-2: %+v", n)
	}

	wanted := image.Wanted{Name: "registry.example.com/shop/web:1"}
	if got, err := wire.Call[image.Wanted, []image.Endpoint](t.Context(), thief.Client(), k.address, wire.PathRegistry, wanted); err == nil {
		t.Errorf("agent-1 is told how an image of agent-2 is pulled: %+v", got)
	}
	csr, key, err := wire.NewRequest()
	if err != nil {
		t.Fatal(err)
	}
	resp, err := wire.Call[wire.RenewRequest, wire.RenewResponse](t.Context(), thief.Client(), k.address, wire.PathRenew, wire.RenewRequest{CSR: csr})
	if err != nil {
		t.Fatal(err)
	}
	next, err := thief.Identity().Renewed(resp, key) // refuses a certificate of another node or role
	if err != nil || next.Role != wire.RoleAgent || !bytes.Equal(next.CAPEM, k.authority.CertPEM) {
		t.Errorf("renewal gave %+v, %v", next, err)
	}
	_, err = wire.Call[wire.JoinRequest, wire.JoinResponse](t.Context(), thief.Client(), k.address, wire.PathJoin,
		wire.JoinRequest{Newcomer: wire.Newcomer{NodeID: "n9"}, Secret: "guessed", CSR: csr})
	if !fault.Is(err, fault.Forbidden) {
		t.Errorf("joining without the secret gave %v", err)
	}
}
