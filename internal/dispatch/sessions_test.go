package dispatch_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/tutti-run/tutti/internal/agent"
	"github.com/tutti-run/tutti/internal/dispatch"
	"github.com/tutti-run/tutti/internal/driver"
	"github.com/tutti-run/tutti/internal/driver/drivertest/script"
	"github.com/tutti-run/tutti/internal/driver/fake"
	"github.com/tutti-run/tutti/internal/fault"
	"github.com/tutti-run/tutti/internal/image"
	"github.com/tutti-run/tutti/internal/model"
	"github.com/tutti-run/tutti/internal/overlay"
	"github.com/tutti-run/tutti/internal/secret"
	"github.com/tutti-run/tutti/internal/store"
	"github.com/tutti-run/tutti/internal/userns"
	"github.com/tutti-run/tutti/internal/wire"
)

var quiet = slog.New(slog.DiscardHandler)

// hall is a server with its sessions, and what it knows of the cluster.
type hall struct {
	*testing.T
	ctx       context.Context // ends with the patience of the test
	authority *wire.Authority
	store     *store.Store
	servers   *servers
	address   string
	close     func()
}

// servers is what the sessions know of other servers, and of the leader.
type servers struct {
	mu        sync.Mutex
	addresses []wire.ServerAddress
	told      []dispatch.Beat
	tells     int
	fail      error
	heard     dispatch.Heard
}

func (s *servers) Addresses() []wire.ServerAddress {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.addresses
}

func (s *servers) Tell(_ context.Context, beats []dispatch.Beat) (dispatch.Heard, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.tells++
	if s.fail == nil {
		s.told = append(s.told, beats...)
	}
	return s.heard, s.fail
}

func (s *servers) set(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.fail = err
}

func (s *servers) count() (tells int, told []dispatch.Beat) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.tells, slices.Clone(s.told)
}

func newHall(t *testing.T) *hall {
	t.Helper()
	a, err := wire.NewAuthority()
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	t.Cleanup(cancel)
	s := store.New(quiet)
	s.SetProposer(alone{s})
	h := &hall{T: t, ctx: ctx, authority: a, store: s}
	h.open()
	h.commit(&model.Cluster{Meta: model.Meta{ID: model.ClusterID, Name: model.ClusterID}, AddressPool: "10.1.0.0/16", NodePool: "10.0.0.0/16"})
	return h
}

// open begins another server over the same state, and remembers it as the hall's.
func (h *hall) open() (address string) {
	h.Helper()
	h.servers = &servers{}
	sessions := dispatch.New(dispatch.Deps{
		Store: h.store, Servers: h.servers, Log: quiet,
		Open: func(s *model.Secret) ([]byte, error) { return []byte("opened " + string(s.Sealed)), nil },
	})
	port := h.listen("server-1", wire.RoleServer)
	port.Handle(agent.SessionPath, wire.HandleStream(sessions.Serve), wire.RoleServer, wire.RoleAgent)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 2)
	go func() { done <- sessions.Run(ctx) }()
	go func() { done <- port.Serve(ctx) }()
	var once sync.Once
	h.close = func() {
		once.Do(func() {
			cancel()
			for range 2 {
				if err := <-done; err != nil {
					h.Errorf("the server ended with %v", err)
				}
			}
		})
	}
	h.Cleanup(h.close)
	h.address = port.Addr().String()
	return h.address
}

func (h *hall) listen(id string, role wire.Role) *wire.Port {
	h.Helper()
	csr, key, err := wire.NewRequest()
	if err != nil {
		h.Fatal(err)
	}
	cert, err := h.authority.Sign(csr, id, role)
	if err != nil {
		h.Fatal(err)
	}
	port, err := wire.Listen("127.0.0.1:0", &wire.Identity{NodeID: id, Role: role, CertPEM: cert, KeyPEM: key, CAPEM: h.authority.CertPEM}, quiet)
	if err != nil {
		h.Fatal(err)
	}
	return port
}

// admit makes a node of which nothing has been heard, as joining does.
func (h *hall) admit(id string) {
	h.Helper()
	if _, ok := store.Get[*model.Node](h.store.Snapshot(), id); !ok {
		h.commit(&model.Node{Meta: model.Meta{ID: id, Name: "node-" + id}, Status: model.NodeStatus{State: model.NodeUnknown}})
	}
}

// client serves a port of a node for as long as the test lasts, and returns its client.
func (h *hall) client(id string, role wire.Role) *wire.Client {
	h.Helper()
	h.admit(id)
	port := h.listen(id, role)
	h.serve(port)
	return port.Client()
}

// listenAs is client for an agent that is not admitted.
func (h *hall) listenAs(id string) *wire.Client {
	port := h.listen(id, wire.RoleAgent)
	h.serve(port)
	return port.Client()
}

func (h *hall) serve(port *wire.Port) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- port.Serve(ctx) }()
	h.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			h.Errorf("a port ended with %v", err)
		}
	})
}

func (h *hall) commit(objects ...model.Object) {
	h.Helper()
	cs := &store.ChangeSet{}
	for _, o := range objects {
		cs.Put(o)
	}
	if _, err := h.store.Commit(h.ctx, cs); err != nil {
		h.Fatal(err)
	}
}

// report writes the status of an instance, as others than its node's sessions do.
func (h *hall) report(id string, st model.InstanceStatus) {
	h.Helper()
	c := h.instance(id).Clone()
	c.Status = st
	cs := &store.ChangeSet{}
	cs.PutStatus(c)
	if _, err := h.store.Commit(h.ctx, cs); err != nil {
		h.Fatal(err)
	}
}

func (h *hall) instance(id string) *model.Instance {
	h.Helper()
	i, ok := store.Get[*model.Instance](h.store.Snapshot(), id)
	if !ok {
		h.Fatalf("instance %s does not exist", id)
	}
	return i
}

func (h *hall) node(id string) *model.Node {
	n, _ := store.Get[*model.Node](h.store.Snapshot(), id)
	return n
}

func (h *hall) until(what string, ok func() bool) {
	h.Helper()
	for !ok() {
		select {
		case <-h.ctx.Done():
			h.Fatalf("%s: never", what)
		case <-time.After(2 * time.Millisecond):
		}
	}
}

// workload puts a workload whose instances have a network, a secret, a configuration and a volume.
func (h *hall) workload() {
	h.commit(
		&model.Network{Meta: model.Meta{ID: "net", Name: "net"}, Status: model.NetworkStatus{Subnet: "10.1.0.0/24", Blocks: []model.Block{{NodeID: "n1", CIDR: "10.1.0.0/28"}}}},
		&model.Secret{Meta: model.Meta{ID: "s1", Name: "key"}, Sealed: []byte("key")},
		&model.Secret{Meta: model.Meta{ID: "s2", Name: "other"}, Sealed: []byte("other")},
		&model.Config{Meta: model.Meta{ID: "c1", Name: "conf"}, Data: []byte("a: b")},
		&model.Volume{Meta: model.Meta{ID: "v1", Name: "data"}},
		&model.Workload{Meta: model.Meta{ID: "w", Name: "web", Application: "shop"}},
		&model.Revision{Meta: model.Meta{ID: "w.1", Name: "web"}, WorkloadID: "w", Template: model.Template{
			Networks: []model.Attachment{{Network: "net", Aliases: []string{"www"}}},
			Restart:  model.RestartPolicy{Condition: model.RestartAlways},
			Tasks: []model.TaskSpec{{Name: "app", Image: "app", Digest: "sha256:app", Entrypoint: []string{script.Name, "echo"}, Mounts: []model.Mount{
				{Type: model.MountSecret, Source: "s1", Target: "/key"},
				{Type: model.MountConfig, Source: "c1", Target: "/conf"},
				{Type: model.MountVolume, Source: "v1", Target: "/data"},
			}}},
		}},
		&model.Service{Meta: model.Meta{ID: "svc", Name: "web", Application: "shop"}, WorkloadID: "w", Status: model.ServiceStatus{VirtualIPs: []model.Address{{Network: "net", IP: "10.1.0.2"}}}},
	)
}

func placed(id, node string) *model.Instance {
	return &model.Instance{
		Meta: model.Meta{ID: id, Name: "web." + id, Application: "shop"}, WorkloadID: "w", RevisionID: "w.1", NodeID: node, Desired: model.DesiredRun,
		Addresses: []model.Address{{Network: "net", IP: "10.1.0." + strings.TrimPrefix(id, "i")}},
	}
}

// guest is the other end of a session, by hand.
type guest struct {
	h      *hall
	stream *wire.Stream
	in     chan wire.ServerMessage // closed at the end of the session
}

func (h *hall) connect(id string, hello *wire.Hello) *guest {
	h.Helper()
	return h.connectAs(h.client(id, wire.RoleAgent), wire.AgentMessage{Hello: hello})
}

func (h *hall) connectAs(c *wire.Client, first wire.AgentMessage) *guest {
	h.Helper()
	stream, err := c.Stream(h.ctx, h.address, agent.SessionPath)
	if err != nil {
		h.Fatal(err)
	}
	h.Cleanup(func() { stream.Close() })
	g := &guest{h: h, stream: stream, in: make(chan wire.ServerMessage, 100)}
	go func() {
		defer close(g.in)
		for {
			var m wire.ServerMessage
			if stream.Receive(&m) != nil {
				return
			}
			g.in <- m
		}
	}()
	g.send(first)
	return g
}

func greeting(id string) *wire.Hello {
	return &wire.Hello{Session: "of " + id, Node: &model.Node{Meta: model.Meta{ID: id, Name: "node-" + id}, WireAddress: id + ":1"}}
}

func (g *guest) send(m wire.AgentMessage) {
	g.h.Helper()
	if err := g.stream.Send(m); err != nil {
		g.h.Fatal(err)
	}
}

// next returns the next message other than leases, which come at any time.
func (g *guest) next() (wire.ServerMessage, bool) {
	g.h.Helper()
	for {
		select {
		case m, ok := <-g.in:
			if m.Lease == nil {
				return m, ok
			}
		case <-g.h.ctx.Done():
			g.h.Fatal("no message came")
		}
	}
}

// assign returns the next assignment.
func (g *guest) assign() *wire.Assign {
	g.h.Helper()
	for {
		m, ok := g.next()
		if !ok {
			g.h.Fatal("the session ended before an assignment came")
		}
		if m.Assign != nil {
			return m.Assign
		}
	}
}

func (g *guest) lease() {
	g.h.Helper()
	for {
		select {
		case m, ok := <-g.in:
			if !ok {
				g.h.Fatal("the session ended before a lease came")
			}
			if m.Lease != nil {
				return
			}
		case <-g.h.ctx.Done():
			g.h.Fatal("no lease came")
		}
	}
}

func ids(list []wire.Assignment) (out []string) {
	for _, as := range list {
		out = append(out, as.Instance.ID)
	}
	slices.Sort(out)
	return out
}

func TestASessionTellsEverythingAndThenDifferences(t *testing.T) {
	h := newHall(t)
	h.workload()
	h.commit(placed("i1", "n1"), placed("i2", "n2"))
	g := h.connect("n1", greeting("n1"))
	m, _ := g.next()
	if m.Network == nil || len(m.Network.Instances) != 2 || len(m.Network.Networks) != 1 || m.Network.AddressPool != "10.1.0.0/16" || len(m.Network.Networks[0].Status.Blocks) != 1 {
		t.Fatalf("the first message is %+v, want the whole network", m)
	}
	if i := m.Network.Instances[0]; i.Workload != "web" || i.Aliases["net"][0] != "www" || i.Name != "web.i1" {
		t.Errorf("an instance is told as %+v", i)
	}
	full := g.assign()
	if !full.Full || !slices.Equal(ids(full.Put), []string{"i1"}) || len(full.Remove) != 0 || full.Revision != h.store.Snapshot().Revision() {
		t.Fatalf("the first assignment is %+v, want all of this node", full)
	}
	as := full.Put[0]
	if len(as.Template.Tasks) != 1 || as.Workload.Name != "web" || len(as.Networks) != 1 || len(as.Networks[0].Status.Blocks) != 0 || len(as.Volumes) != 1 {
		t.Errorf("the assignment is %+v", as)
	}
	if len(as.Secrets) != 1 || string(as.Secrets["s1"]) != "opened key" || string(as.Configs["c1"]) != "a: b" {
		t.Errorf("secrets are %q, configurations %q; want those that are mounted", as.Secrets, as.Configs)
	}

	h.commit(placed("i3", "n1"), placed("i4", "n2"))
	if got := g.assign(); got.Full || !slices.Equal(ids(got.Put), []string{"i3"}) || len(got.Remove) != 0 {
		t.Errorf("the next is %+v, want only what is new", got)
	}
	stopping := h.instance("i1").Clone()
	stopping.Desired = model.DesiredStop
	h.commit(stopping)
	if got := g.assign(); !slices.Equal(ids(got.Put), []string{"i1"}) || got.Put[0].Instance.Desired != model.DesiredStop {
		t.Errorf("the next is %+v, want what changed", got)
	}
	h.report("i1", model.InstanceStatus{State: model.InstanceCompleted})
	removed := h.instance("i1").Clone()
	removed.Desired = model.DesiredRemove
	h.commit(removed)
	if got := g.assign(); len(got.Put) != 0 || !slices.Equal(got.Remove, []string{"i1"}) {
		t.Errorf("the next is %+v, want that what ended is to be forgotten", got)
	}
	h.report("i3", model.InstanceStatus{State: model.InstanceLost})
	if got := g.assign(); len(got.Put) != 0 || !slices.Equal(got.Remove, []string{"i3"}) {
		t.Errorf("the next is %+v, want that what was given up is to be dropped", got)
	}
}

func TestTheNetworkIsToldWhenItChanges(t *testing.T) {
	h := newHall(t)
	h.workload()
	h.commit(placed("i1", "n1"))
	h.report("i1", model.InstanceStatus{State: model.InstanceRunning})
	g := h.connect("n1", greeting("n1"))
	first := g.assign() // and with it the network
	network := func() *wire.Network {
		t.Helper()
		for {
			m, ok := g.next()
			if !ok {
				t.Fatal("the session ended")
			}
			if m.Network != nil && m.Network.Revision > first.Revision {
				return m.Network
			}
		}
	}
	if len(first.Put) != 1 {
		t.Fatalf("the first assignment is %+v", first)
	}
	h.commit(&model.Config{Meta: model.Meta{ID: "c2", Name: "c2"}}) // has nothing to do with the network
	h.report("i1", model.InstanceStatus{State: model.InstanceRunning, Ready: true})
	n := network()
	if n.Since == 0 || len(n.Instances) != 1 || !n.Instances[0].Serves || n.Instances[0].Addresses[0].IP != "10.1.0.1" || len(n.Services)+len(n.Networks)+len(n.Gone) > 0 {
		t.Errorf("what serves is told as %+v; want only what changed", n)
	}
	since := n.Revision
	draining := h.instance("i1").Clone()
	draining.Desired = model.DesiredDrain
	h.commit(draining)
	if n = network(); n.Since != since || len(n.Instances) != 1 || n.Instances[0].Serves {
		t.Errorf("what drains is told as %+v; want it reachable, and given nothing new", n)
	}
	// What was reported meanwhile makes the instance's revision newer; the leader waits for that.
	h.report("i1", model.InstanceStatus{State: model.InstanceRunning, Ready: true, Message: "busy"})
	if n = network(); n.Revision < h.instance("i1").Revision || len(n.Instances)+len(n.Nodes) > 0 {
		t.Errorf("that nothing changed is told as %+v", n)
	}
	h.report("i1", model.InstanceStatus{State: model.InstanceLost})
	if n = network(); !slices.Equal(n.Gone, []string{"i1"}) {
		t.Errorf("what is gone is told as %+v", n)
	}
}

func TestReportsAreOfOwnInstances(t *testing.T) {
	h := newHall(t)
	h.workload()
	h.commit(placed("i1", "n1"), placed("i2", "n2"), placed("i3", "n1"), placed("i4", "n1"))
	h.report("i3", model.InstanceStatus{State: model.InstanceLost})
	g := h.connect("n1", greeting("n1"))
	g.assign()
	now := time.Now()
	ready := model.InstanceStatus{State: model.InstanceRunning, Ready: true, ReadySince: now, Tasks: []model.TaskStatus{{Name: "app", State: "running", Started: now}}}
	report := func(list ...string) {
		m := &wire.Report{Instances: map[string]model.InstanceStatus{}}
		for _, id := range list {
			m.Instances[id] = ready
		}
		g.send(wire.AgentMessage{Status: m})
	}
	report("i1", "i2", "i3", "unknown")
	h.until("the report is written", func() bool { return h.instance("i1").Status.Ready })
	if st := h.instance("i1").Status; !st.ReadySince.Equal(now) || len(st.Tasks) != 1 || !st.Tasks[0].Started.Equal(now) {
		t.Errorf("what was reported is written as %+v", st)
	}
	if st := h.instance("i2").Status; st.State != "" {
		t.Errorf("an instance of another node became %+v", st)
	}
	if st := h.instance("i3").Status; st.State != model.InstanceLost {
		t.Errorf("an instance that was given up became %+v", st)
	}
	// Said again, it is not written again; what comes with it is.
	before := h.instance("i1").Revision
	report("i1", "i4")
	h.until("the other is written", func() bool { return h.instance("i4").Status.Ready })
	if now := h.instance("i1").Revision; now != before {
		t.Errorf("a status that had not changed was written again: revision %d after %d", now, before)
	}
}

// unwilling fails some proposals.
type unwilling struct {
	alone
	mu   sync.Mutex
	fail error
	// before is applied ahead of the next proposal, as what this server had not seen yet.
	before func(*store.Store)
}

func (u *unwilling) Propose(ctx context.Context, data []byte) (store.Result, error) {
	u.mu.Lock()
	fail, before := u.fail, u.before
	if fail == nil {
		u.before = nil
	}
	u.mu.Unlock()
	if fail != nil {
		return store.Result{}, fail
	}
	if before != nil {
		before(u.Store)
	}
	return u.alone.Propose(ctx, data)
}

func (u *unwilling) set(fail error) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.fail = fail
}

func TestReportsAreNotLostForWantOfALeader(t *testing.T) {
	h := newHall(t)
	h.workload()
	h.commit(placed("i1", "n1"))
	g := h.connect("n1", greeting("n1"))
	g.assign()
	u := &unwilling{alone: alone{h.store}, fail: fault.New(fault.Unavailable, "no server leads")}
	h.store.SetProposer(u)
	g.send(wire.AgentMessage{Status: &wire.Report{Instances: map[string]model.InstanceStatus{"i1": {State: model.InstanceStarting}}}})
	g.send(wire.AgentMessage{Status: &wire.Report{Instances: map[string]model.InstanceStatus{"i1": {State: model.InstanceRunning}}}})
	time.Sleep(20 * time.Millisecond)
	u.set(nil)
	h.until("the report is written", func() bool { return h.instance("i1").Status.State == model.InstanceRunning })
}

func TestALeaseIsTheLeadersWord(t *testing.T) {
	h := newHall(t)
	h.servers.addresses = []wire.ServerAddress{{ID: "server-1", Address: h.address}}
	h.workload()
	h.commit(placed("i1", "n1"))
	g := h.connect("n1", greeting("n1"))
	h.until("the greeting is a sign of life", func() bool { _, told := h.servers.count(); return len(told) > 0 })
	g.lease()
	for { // with its first lease a node is told of all servers
		m, ok := g.next()
		if !ok {
			t.Fatal("the session ended")
		}
		if len(m.Servers) > 0 {
			if !slices.Equal(m.Servers, h.servers.addresses) {
				t.Errorf("the node is told of the servers %v", m.Servers)
			}
			break
		}
	}
	g.send(wire.AgentMessage{Heartbeat: &wire.Heartbeat{Applied: 7}})
	g.lease()
	_, told := h.servers.count()
	if last := told[len(told)-1]; last.NodeID != "n1" || last.Session != "of n1" || last.Applied != 7 || last.Age < 0 {
		t.Errorf("the leader was told %+v", last)
	}
	// Without the leader, no lease: the agent is to look for another server.
	h.servers.set(fault.New(fault.Unavailable, "no server leads"))
	before, _ := h.servers.count()
	g.send(wire.AgentMessage{Heartbeat: &wire.Heartbeat{Applied: 8}})
	h.until("the leader was to be told", func() bool { tells, _ := h.servers.count(); return tells > before })
	h.commit(placed("i5", "n1"))
	for {
		m, ok := <-g.in
		if !ok || m.Lease != nil {
			t.Fatalf("a lease was given although the leader does not know: %+v", m)
		}
		if m.Assign != nil && slices.Equal(ids(m.Assign.Put), []string{"i5"}) {
			break
		}
	}
	h.servers.set(nil)
	g.send(wire.AgentMessage{Heartbeat: &wire.Heartbeat{Applied: 9}})
	g.lease()
}

func TestGreetings(t *testing.T) {
	h := newHall(t)
	c := h.client("n1", wire.RoleAgent)
	for name, test := range map[string]struct {
		first wire.AgentMessage
		kind  fault.Kind
		text  string
	}{
		"nothing":           {wire.AgentMessage{Heartbeat: &wire.Heartbeat{}}, fault.Invalid, "begins with a greeting"},
		"of another":        {wire.AgentMessage{Hello: greeting("n2")}, fault.Forbidden, "node n1 greets as node n2"},
		"without a node":    {wire.AgentMessage{Hello: &wire.Hello{Session: "x"}}, fault.Invalid, "begins with a greeting"},
		"under a used name": {wire.AgentMessage{Hello: &wire.Hello{Session: "x", Node: &model.Node{Meta: model.Meta{ID: "n1", Name: "taken"}}}}, fault.Conflict, "exists already"},
	} {
		t.Run(name, func(t *testing.T) {
			if name == "under a used name" {
				h.commit(&model.Node{Meta: model.Meta{ID: "n9", Name: "taken"}})
			}
			g := h.connectAs(c, test.first)
			m, _ := g.next()
			if m.Refused == nil || m.Refused.Kind != test.kind.String() || !strings.Contains(m.Refused.Error, test.text) {
				t.Errorf("the answer is %+v, want a refusal that says %q", m, test.text)
			}
			if m, ok := g.next(); ok {
				t.Errorf("after the refusal came %+v", m)
			}
		})
	}
	if n := h.node("n1"); n.WireAddress != "" || n.Name != "node-n1" {
		t.Errorf("a node that was refused is registered: %+v", n)
	}
}

func TestNodesRegisterWhatTheyKnow(t *testing.T) {
	h := newHall(t)
	hello := greeting("n1")
	hello.Node.Server = true // which its certificate denies
	hello.Node.Labels = map[string]string{"zone": "a"}
	hello.Node.Status.State = model.NodeReady
	h.connect("n1", hello).assign()
	n := h.node("n1")
	if n.Name != "node-n1" || n.Server || n.Status.State != model.NodeUnknown || n.WireAddress != "n1:1" || len(n.Labels) > 0 {
		t.Errorf("a new node is registered as %+v", n)
	}
	c := n.Clone()
	c.Availability, c.Labels, c.OverlayAddress = model.Cordoned, map[string]string{"zone": "b"}, "10.0.0.1"
	c.Taints = []model.Taint{{Key: "k", Effect: "noSchedule"}}
	c.Overcommit, c.Capacity.Custom, c.Devices = 1.5, map[string]int64{"gpu": 1}, map[string][]string{"gpu": {"a"}}
	h.commit(c)
	hello.Node.Attributes = map[string]string{"kernel": "7"}
	h.connect("n1", hello).assign()
	n = h.node("n1")
	if n.Availability != model.Cordoned || n.Labels["zone"] != "b" || n.OverlayAddress != "10.0.0.1" || len(n.Taints) != 1 || n.Attributes["kernel"] != "7" ||
		n.Overcommit != 1.5 || n.Capacity.Custom["gpu"] != 1 || len(n.Devices["gpu"]) != 1 {
		t.Errorf("a known node is registered as %+v; want what people set kept, and what it says taken over", n)
	}
	before := h.store.Snapshot().Revision()
	h.connect("n1", hello).assign()
	if now := h.store.Snapshot().Revision(); now != before {
		t.Errorf("a node that said nothing new was written again")
	}
	server := greeting("s1")
	h.connectAs(h.client("s1", wire.RoleServer), wire.AgentMessage{Hello: server}).assign()
	if !h.node("s1").Server {
		t.Error("a server's node is registered as none")
	}
	// A node that was removed does not come back by saying that it is there.
	cs := &store.ChangeSet{}
	cs.Delete(model.KindNode, "n1")
	if _, err := h.store.Commit(t.Context(), cs); err != nil {
		t.Fatal(err)
	}
	g := h.connectAs(h.listenAs("n1"), wire.AgentMessage{Hello: hello})
	if m, _ := g.next(); m.Refused == nil || m.Refused.Kind != fault.Forbidden.String() {
		t.Errorf("a removed node is told %+v", m)
	}
	if n := h.node("n1"); n != nil {
		t.Errorf("a removed node is registered again: %+v", n)
	}
}

// A server that lags behind must not take away what it has not heard of.
func TestAServerCatchesUpWithItsAgents(t *testing.T) {
	h := newHall(t)
	h.workload()
	h.commit(&model.Node{Meta: model.Meta{ID: "n1", Name: "node-n1"}, WireAddress: "n1:1"})
	h.commit(placed("i1", "n1"))
	u := &unwilling{alone: alone{h.store}, fail: fault.New(fault.Unavailable, "no server leads"), before: func(s *store.Store) {
		cs := &store.ChangeSet{}
		cs.Put(placed("i2", "n1"))
		if _, err := (alone{s}).commit(cs); err != nil {
			t.Error(err)
		}
	}}
	h.store.SetProposer(u)
	hello := greeting("n1")
	hello.Revision = h.store.Snapshot().Revision() + 1
	g := h.connect("n1", hello)
	if m, _ := g.next(); m.Refused == nil || m.Refused.Kind != fault.Unavailable.String() {
		t.Errorf("a server that is behind and has no leader answers %+v", m)
	}
	u.set(nil)
	if got := h.connect("n1", hello).assign(); !slices.Equal(ids(got.Put), []string{"i1", "i2"}) {
		t.Errorf("it assigns %v, want also what the agent got elsewhere", ids(got.Put))
	}
	// A state that was restored from an earlier day is behind for good, and right.
	hello.Revision = 1_000_000
	if got := h.connect("n1", hello).assign(); !slices.Equal(ids(got.Put), []string{"i1", "i2"}) {
		t.Errorf("it assigns %v", ids(got.Put))
	}
}

// commit goes through the encoding of a change set, without the store's own proposer.
func (a alone) commit(cs *store.ChangeSet) (uint64, error) {
	s := store.New(quiet)
	s.SetProposer(a)
	return s.Commit(context.Background(), cs)
}

func TestANodeThatIsDownStaysSoUnderANewLeader(t *testing.T) {
	inWatched(t, func(w *watched) {
		w.beat(dispatch.Beat{NodeID: "a", Session: "s1"}, time.Second)
		time.Sleep(2 * dead)
		w.want("a", model.NodeDown)
		before := w.store.Snapshot().Revision()
		w.lead()
		for range 20 {
			time.Sleep(100 * time.Millisecond)
			w.want("a", model.NodeDown)
		}
		if now := w.store.Snapshot().Revision(); now != before {
			t.Errorf("its status was written %d times, and nothing had happened", now-before)
		}
		w.beat(dispatch.Beat{NodeID: "a", Session: "s1"}, 10*time.Millisecond)
		time.Sleep(100 * time.Millisecond)
		w.want("a", model.NodeReady)
	})
}

// inn is a node with a real agent, whose tasks are functions.
type inn struct {
	h          *hall
	state      *fake.State
	agent      *agent.Agent
	connection *agent.Connection
	address    string
	remembered atomic.Int32
}

func (h *hall) openInn(addresses ...string) *inn {
	h.Helper()
	n := &inn{h: h, state: fake.NewState(map[string]fake.Program{script.Name: script.Run})}
	var err error
	n.agent, err = agent.New(agent.Deps{
		NodeID: "n1", NodeName: "node-n1", DataDir: filepath.Join(h.TempDir(), "agent"), RunDir: h.TempDir(),
		Drivers: map[string]driver.Driver{"oci": fake.New(n.state)},
		Images:  images{}, Links: links{}, Volumes: volumes{}, Secrets: secrets{}, Log: quiet,
	})
	if err != nil {
		h.Fatal(err)
	}
	h.admit("n1")
	port := h.listen("n1", wire.RoleAgent)
	n.agent.Handle(port, blobs{})
	h.serve(port)
	n.address = port.Addr().String()
	var list []wire.ServerAddress
	for i, a := range addresses {
		list = append(list, wire.ServerAddress{ID: fmt.Sprint("server-", i), Address: a})
	}
	n.connection = agent.NewConnection(agent.ConnectionDeps{
		Client: port.Client(), Log: quiet,
		Node: func() *model.Node {
			return &model.Node{Meta: model.Meta{ID: "n1", Name: "node-n1"}, WireAddress: n.address}
		},
		Remember: func([]wire.ServerAddress) { n.remembered.Add(1) },
	}, n.agent, list)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 2)
	go func() { done <- n.connection.Run(ctx) }() // it waits for the agent
	go func() { done <- n.agent.Run(ctx, n.connection) }()
	h.Cleanup(func() {
		cancel()
		for range 2 {
			if err := <-done; err != nil {
				h.Errorf("the agent ended with %v", err)
			}
		}
		n.state.End()
	})
	return n
}

type images struct{}

func (images) Ensure(_ context.Context, name, digest string, _ func(image.Progress)) (image.Info, error) {
	if name == "unknown" {
		return image.Info{}, fault.New(fault.NotFound, "image %s is nowhere", name)
	}
	return image.Info{Name: name, Digest: digest}, nil
}
func (images) Mount(_ context.Context, key, _ string, _ *userns.Users) (string, error) {
	return "/rootfs/" + key, nil
}
func (images) Unmount(context.Context, string) error     { return nil }
func (images) Mounted(context.Context) ([]string, error) { return nil, nil }
func (images) Changed(_ context.Context, key string, _ func(string, string) error) error {
	return fault.New(fault.NotFound, "%s has no root file system", key)
}

func (images) Written(_ context.Context, key string) (string, int64, error) {
	return "", 0, fault.New(fault.NotFound, "%s has no root file system", key)
}

type links struct{}

func (links) Attach(_ context.Context, a overlay.Attachment) (overlay.Attached, error) {
	return overlay.Attached{NetNS: "/netns/" + a.Instance}, nil
}
func (links) Detach(context.Context, string) error       { return nil }
func (links) Attached(context.Context) ([]string, error) { return nil, nil }

type volumes struct{}

func (volumes) Ensure(_ context.Context, v *model.Volume) (string, error) {
	return "/volumes/" + v.ID, nil
}
func (volumes) Fill(context.Context, string, string, string, uint32) error { return nil }
func (volumes) Remove(_ context.Context, id string) error {
	if id == "busy" {
		return fault.New(fault.Conflict, "volume %s is still in use", id)
	}
	return nil
}
func (volumes) RemoveOf(context.Context, string) error { return nil }
func (volumes) Held(id string) (string, error)         { return "", fault.New(fault.NotFound, "%s", id) }
func (volumes) Replace(context.Context, *model.Volume, func(string) error) error {
	return nil
}

type secrets struct{}

func (secrets) Put(instance string, _ []secret.File) (string, error) {
	return "/secrets/" + instance, nil
}
func (secrets) PutFolders(instance, _ string, _ []byte) (string, error) {
	return "/secrets/" + instance, nil
}
func (secrets) Dir(instance string) (string, error) { return "/secrets/" + instance, nil }
func (secrets) Remove(string) error                 { return nil }

type blobs struct{}

func (blobs) Blob(_ context.Context, digest string) (io.ReadCloser, int64, error) {
	return io.NopCloser(strings.NewReader(digest)), int64(len(digest)), nil
}
func (blobs) Remove(_ context.Context, name string) error {
	return fault.New(fault.NotFound, "image %s is not here", name)
}

func TestARealAgentMovesToAnotherServer(t *testing.T) {
	h := newHall(t)
	h.workload()
	first, firstServers, closeFirst := h.address, h.servers, h.close
	second := h.open()
	secondServers := h.servers
	for _, s := range []*servers{firstServers, secondServers} {
		s.addresses = []wire.ServerAddress{{ID: "a", Address: first}, {ID: "b", Address: second}}
	}
	h.commit(placed("i1", "n1"))
	n := h.openInn(first)
	h.until("the instance runs", func() bool { return h.instance("i1").Status.Ready })
	h.until("the agent knows both servers", func() bool { return len(n.connection.Servers()) == 2 && n.remembered.Load() > 0 })
	if n.agent.Revision() == 0 {
		t.Error("the agent does not remember how far its server had come")
	}
	// The server loses the leader, and says so by silence.
	firstServers.set(fault.New(fault.Unavailable, "no server leads"))
	h.until("the other server hears of the node", func() bool { _, told := secondServers.count(); return len(told) > 0 })
	h.commit(placed("i2", "n1"))
	h.until("the other server assigns", func() bool { return h.instance("i2").Status.Ready })
	// The other goes away altogether.
	firstServers.set(nil)
	_, before := firstServers.count()
	h.close()
	h.until("the first server hears of the node again", func() bool { _, told := firstServers.count(); return len(told) > len(before) })
	gone := h.instance("i1").Clone()
	gone.Desired = model.DesiredRemove
	h.commit(gone)
	h.until("the instance ends", func() bool { return h.instance("i1").Status.State.Final() })
	h.until("the agent forgets it", func() bool { return slices.Equal(n.agent.Instances(), []string{"i2"}) })
	if started := n.state.Started(); len(started) != 2 {
		t.Errorf("%d runs were begun, want one for each instance", len(started))
	}
	closeFirst()
}

func TestReachingIntoANode(t *testing.T) {
	h := newHall(t)
	h.workload()
	h.commit(placed("i1", "n1"))
	n := h.openInn(h.address)
	h.until("the instance runs", func() bool { return h.instance("i1").Status.Ready })
	r := &dispatch.Remote{Store: h.store, Client: h.client("server-9", wire.RoleServer)}
	ref := wire.TaskRef{Instance: "i1", Task: "app"}

	var lines []string
	ctx, cancel := context.WithCancel(h.ctx)
	followed := make(chan error, 1)
	said := make(chan string, 10)
	go func() {
		followed <- r.Logs(ctx, "n1", ref, driver.LogOptions{Follow: true, Tail: -1}, func(e driver.LogEntry) error {
			said <- string(e.Line)
			return nil
		})
	}()
	if got := <-said; got != "ready\n" {
		t.Errorf("the log begins with %q", got)
	}
	d := fake.New(n.state)
	if err := d.Signal(h.ctx, "i1.app.1", int(syscall.SIGUSR1)); err != nil {
		t.Fatal(err)
	}
	if got := <-said; got != "got 10\n" {
		t.Errorf("the log goes on with %q", got)
	}
	cancel()
	if err := <-followed; !errors.Is(err, context.Canceled) {
		t.Errorf("who leaves a log gets %v", err)
	}
	var at time.Time
	err := r.Logs(h.ctx, "n1", ref, driver.LogOptions{Tail: -1}, func(e driver.LogEntry) error {
		lines, at = append(lines, string(e.Line)), e.Time
		return nil
	})
	if err != nil || !slices.Equal(lines, []string{"ready\n", "got 10\n"}) || at.Nanosecond() == 0 {
		t.Errorf("the log holds %q, the last of %s, %v", lines, at, err)
	}
	enough := errors.New("enough")
	if err := r.Logs(h.ctx, "n1", ref, driver.LogOptions{Tail: -1}, func(driver.LogEntry) error { return enough }); !errors.Is(err, enough) {
		t.Errorf("a reader that fails gets %v", err)
	}
	if err := r.Logs(h.ctx, "n1", wire.TaskRef{Instance: "i9"}, driver.LogOptions{}, nil); !fault.Is(err, fault.NotFound) {
		t.Errorf("the log of an unknown instance gives %v", err)
	}

	var out, errs strings.Builder
	code, err := r.Exec(h.ctx, "n1", ref, driver.ExecSpec{Args: []string{script.Name, "cat"}},
		driver.Streams{Stdin: strings.NewReader(strings.Repeat("hello", 50_000)), Stdout: &out, Stderr: &errs})
	if err != nil || code != 3 || out.Len() != 250_000 || errs.String() != "bye" {
		t.Errorf("exec gave %d, %d bytes, %q, %v", code, out.Len(), errs.String(), err)
	}
	signals := make(chan os.Signal, 1)
	resize := make(chan driver.Size)
	close(resize)
	signals <- syscall.SIGTERM
	close(signals)
	if code, err := r.Exec(h.ctx, "n1", ref, driver.ExecSpec{Args: []string{script.Name, "sleep"}}, driver.Streams{Signals: signals, Resize: resize}); err != nil || code != 128+15 {
		t.Errorf("a process that was sent a signal gave %d, %v", code, err)
	}
	if _, err := r.Exec(h.ctx, "n1", ref, driver.ExecSpec{Args: []string{"/nothing"}}, driver.Streams{}); !fault.Is(err, fault.NotFound) {
		t.Errorf("running what is not there gave %v", err)
	}
	ctx, cancel = context.WithCancel(h.ctx)
	left := make(chan error, 1)
	go func() {
		_, err := r.Exec(ctx, "n1", ref, driver.ExecSpec{Args: []string{script.Name, "sleep"}}, driver.Streams{Stdout: writer(func() { cancel() })})
		left <- err
	}()
	if err := <-left; !errors.Is(err, context.Canceled) {
		t.Errorf("who leaves a process gets %v", err)
	}
	h.until("the process goes with who asked for it", func() bool {
		st, err := d.Stats(h.ctx, "i1.app.1")
		return err == nil && st.Pids == 1
	})

	if err := r.EnsureImage(h.ctx, "n1", "app", "sha256:x"); err != nil {
		t.Errorf("ensure an image: %v", err)
	}
	if err := r.EnsureImage(h.ctx, "n1", "unknown", ""); !fault.Is(err, fault.NotFound) {
		t.Errorf("ensure an image that is nowhere: %v", err)
	}
	if err := r.RemoveImage(h.ctx, "n1", "app"); err != nil {
		t.Errorf("remove an image that is not there: %v", err)
	}
	if err := r.RemoveVolume(h.ctx, "n1", "busy"); !fault.Is(err, fault.Conflict) {
		t.Errorf("remove a volume that is used: %v", err)
	}
	if err := r.RemoveVolume(h.ctx, "nobody", "v"); !fault.Is(err, fault.NotFound) {
		t.Errorf("a node that does not exist gives %v", err)
	}
	down := h.node("n1").Clone()
	down.Status.State = model.NodeDown
	cs := &store.ChangeSet{}
	cs.PutStatus(down)
	if _, err := h.store.Commit(h.ctx, cs); err != nil {
		t.Fatal(err)
	}
	if err := r.RemoveVolume(h.ctx, "n1", "v"); !fault.Is(err, fault.Unavailable) || !strings.Contains(err.Error(), "node node-n1 is down") {
		t.Errorf("a node that is down gives %v", err)
	}
	agents := h.client("n7", wire.RoleAgent)
	if err := wire.CallAny(h.ctx, agents, n.address, wire.PathRemoveVolume, wire.VolumeRef{ID: "v"}, &wire.Empty{}); !fault.Is(err, fault.Forbidden) {
		t.Errorf("an agent that reaches into another gets %v", err)
	}
	body, _, err := agents.Get(h.ctx, n.address, wire.PathBlob+"sha256:x")
	if err != nil {
		t.Fatal(err)
	}
	defer body.Close()
	if data, err := io.ReadAll(body); err != nil || !reflect.DeepEqual(data, []byte("sha256:x")) {
		t.Errorf("a blob for another agent is %q, %v", data, err)
	}
}

// writer calls a function when something is written to it.
type writer func()

func (w writer) Write(p []byte) (int, error) { w(); return len(p), nil }
