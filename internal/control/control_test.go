package control_test

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/tutti-run/tutti/internal/control"
	"github.com/tutti-run/tutti/internal/fault"
	"github.com/tutti-run/tutti/internal/model"
	"github.com/tutti-run/tutti/internal/store"
)

// cluster is a store with a controller at work, in a bubble of its own time; the test plays the
// people, the agents and the sessions.
type cluster struct {
	*testing.T
	store *store.Store
	heat  *control.Heat
	stop  func()

	mu      sync.Mutex
	applied map[string]uint64    // by node; everything, if a node is not in it
	fences  map[string]time.Time // when the leases of nodes end
	silent  map[string]bool
	refuse  int                // proposals still to be refused
	outrun  func() (done bool) // called before a proposal is applied, until it has done what it is for
}

// Propose applies at once.
func (c *cluster) Propose(_ context.Context, data []byte) (store.Result, error) {
	c.mu.Lock()
	f, refused := c.outrun, c.refuse > 0
	c.outrun, c.refuse = nil, max(0, c.refuse-1)
	c.mu.Unlock()
	if f != nil && !f() {
		c.setOutrun(f)
	}
	if refused {
		return store.Result{}, fault.New(fault.Unavailable, "no quorum")
	}
	return c.store.Apply(data), nil
}

func (c *cluster) setOutrun(f func() bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.outrun = f
}

// wantOutrun makes sure that what was set by setOutrun has happened.
func (c *cluster) wantOutrun() {
	c.Helper()
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.outrun != nil {
		c.Error("the controller was not outrun")
	}
}

func (c *cluster) Applied(id string) uint64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	if r, ok := c.applied[id]; ok {
		return r
	}
	return 1 << 60
}

func (c *cluster) setApplied(revision uint64, nodes ...string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, id := range nodes {
		c.applied[id] = revision
	}
}

func (c *cluster) Fence(id string) time.Duration {
	c.mu.Lock()
	defer c.mu.Unlock()
	return max(0, time.Until(c.fences[id]))
}

func (c *cluster) Live(id string) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return !c.silent[id]
}

// inCluster runs a test against a cluster of some nodes.
func inCluster(t *testing.T, nodes int, test func(c *cluster)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		c := &cluster{T: t, store: store.New(slog.New(slog.DiscardHandler)), heat: control.NewHeat(), applied: map[string]uint64{}, fences: map[string]time.Time{}, silent: map[string]bool{}}
		c.store.SetProposer(c)
		c.put(&model.Cluster{
			Meta: model.Meta{ID: model.ClusterID, Name: model.ClusterID}, AddressPool: "10.210.0.0/16", NetworkBits: 24, NodePool: "10.211.0.0/16",
		})
		for n := range nodes {
			c.addNode(n)
		}
		c.lead()
		defer func() { c.stop() }()
		test(c)
	})
}

// lead starts a controller, as on a server that has just become the leader.
func (c *cluster) lead() {
	if c.stop != nil {
		c.stop()
	}
	c.stop = c.start("controller", control.New(control.Deps{Store: c.store, Sessions: c, Heat: c.heat, Log: slog.New(slog.DiscardHandler)}).Run)
}

// start runs a part of the leader's work until it is told to stop.
func (c *cluster) start(what string, run func(context.Context) error) (stop func()) {
	ctx, cancel := context.WithCancel(c.Context())
	done := make(chan error, 1)
	go func() { done <- run(ctx) }()
	return func() {
		cancel()
		if err := <-done; err != nil {
			c.Errorf("the %s ended with %v", what, err)
		}
	}
}

func (c *cluster) commit(fill func(cs *store.ChangeSet)) {
	c.Helper()
	var cs store.ChangeSet
	fill(&cs)
	if _, err := c.store.Commit(c.Context(), &cs); err != nil {
		c.Fatal(err)
	}
}

func (c *cluster) put(obj model.Object) {
	c.Helper()
	c.commit(func(cs *store.ChangeSet) { cs.Put(obj) })
}

func (c *cluster) addNode(n int) {
	id := fmt.Sprintf("n%02d", n)
	c.put(&model.Node{
		Meta: model.Meta{ID: id, Name: "node" + id[1:]}, HostAddress: fmt.Sprint("192.168.0.", n+1),
		Capacity: model.Resources{NanoCPUs: 4e9, MemoryBytes: 8 << 30}, Status: model.NodeStatus{State: model.NodeReady},
	})
}

// settle gives the controller time for what it can do by itself.
func (c *cluster) settle() {
	time.Sleep(100 * time.Millisecond)
	synctest.Wait()
}

func (c *cluster) setNode(id string, change func(n *model.Node)) {
	c.Helper()
	n := get[*model.Node](c, id).Clone()
	change(n)
	c.commit(func(cs *store.ChangeSet) { cs.Put(n); cs.PutStatus(n) })
}

func get[T model.Object](c *cluster, id string) T {
	c.Helper()
	obj, ok := store.Get[T](c.store.Snapshot(), id)
	if !ok {
		c.Fatalf("%s does not exist", id)
	}
	return obj
}

// workload returns a workload of an application called shop.
func workload(name string, count int, change ...func(w *model.Workload)) *model.Workload {
	w := &model.Workload{
		Meta: model.Meta{ID: "w-" + name, Namespace: "default", Application: "shop", Name: name}, Type: model.ServiceWorkload, Count: count,
		Template: model.Template{Tasks: []model.TaskSpec{{Name: "main"}}, Restart: model.RestartPolicy{Condition: model.RestartAlways}},
		Update:   model.UpdatePolicy{Parallelism: 1, Monitor: time.Second},
	}
	for _, f := range change {
		f(w)
	}
	return w
}

func joins(networks ...string) func(w *model.Workload) {
	return func(w *model.Workload) {
		for _, n := range networks {
			w.Template.Networks = append(w.Template.Networks, model.Attachment{Network: n})
		}
	}
}

func reserves(memory int64) func(w *model.Workload) {
	return func(w *model.Workload) { w.Template.Tasks[0].Reserve.MemoryBytes = memory }
}

func mounts(volumes ...string) func(w *model.Workload) {
	return func(w *model.Workload) {
		for _, v := range volumes {
			w.Template.Tasks[0].Mounts = append(w.Template.Tasks[0].Mounts, model.Mount{Type: model.MountVolume, Source: v, Target: "/" + v})
		}
	}
}

func dependsOn(name string, c model.DependencyCondition) func(w *model.Workload) {
	return func(w *model.Workload) {
		w.DependsOn = append(w.DependsOn, model.Dependency{Workload: name, Condition: c})
	}
}

func kind(k model.WorkloadKind) func(w *model.Workload) {
	return func(w *model.Workload) {
		w.Type = k
		if k == model.JobWorkload {
			w.Template.Restart.Condition = model.RestartOnFailure
		}
	}
}

// deploy writes workloads and their revisions, as package core does.
func (c *cluster) deploy(workloads ...*model.Workload) {
	c.Helper()
	snap := c.store.Snapshot()
	c.commit(func(cs *store.ChangeSet) {
		for _, w := range workloads {
			w = w.Clone()
			hash := w.Template.Hash()
			w.RevisionID, w.Generation = model.RevisionIDOf(w.ID, hash), 1
			if old, ok := store.Get[*model.Workload](snap, w.ID); ok {
				w.Generation, w.PreviousRevisionID = old.Generation+1, old.PreviousRevisionID
				if old.RevisionID != w.RevisionID {
					w.PreviousRevisionID = old.RevisionID
				}
			}
			number := 1
			for r := range store.RevisionsOfWorkload(snap, w.ID) {
				number = max(number, r.Number+1)
			}
			cs.Put(w)
			if _, ok := store.Get[*model.Revision](snap, w.RevisionID); !ok {
				cs.Put(&model.Revision{Meta: model.Meta{ID: w.RevisionID, Name: w.RevisionID}, WorkloadID: w.ID, Hash: hash, Number: number, Template: w.Template})
			}
		}
	})
	c.settle()
}

func network(id string) *model.Network {
	return &model.Network{Meta: model.Meta{ID: id, Namespace: "default", Application: "shop", Name: id}}
}

// instances returns those of a workload that have not ended, by slot and age.
func (c *cluster) instances(name string) []*model.Instance {
	var out []*model.Instance
	for i := range store.InstancesOfWorkload(c.store.Snapshot(), "w-"+name) {
		if !i.Status.State.Final() {
			out = append(out, i)
		}
	}
	slices.SortFunc(out, func(a, b *model.Instance) int {
		return cmp.Or(cmp.Compare(a.Slot, b.Slot), a.Created.Compare(b.Created), cmp.Compare(a.NodeID, b.NodeID))
	})
	return out
}

// agents lets the agents of all nodes that are up catch up with what is wanted of them: what
// should run gets ready, what should end ends. It goes on until there is nothing more to do.
func (c *cluster) agents() {
	c.Helper()
	for range 100 {
		moved := false
		snap := c.store.Snapshot()
		c.commit(func(cs *store.ChangeSet) {
			for i := range store.List[*model.Instance](snap) {
				n, ok := store.Get[*model.Node](snap, i.NodeID)
				if !ok || n.Status.State != model.NodeReady || i.Status.State.Final() {
					continue
				}
				d := i.Clone()
				switch {
				case i.Desired == model.DesiredRun && i.Status.State != model.InstanceRunning:
					d.Status = model.InstanceStatus{State: model.InstanceRunning, Ready: true, Started: time.Now(), ReadySince: time.Now()}
				case i.Desired == model.DesiredStop || i.Desired == model.DesiredRemove:
					d.Status = model.InstanceStatus{State: model.InstanceCompleted, Finished: time.Now()}
				default:
					continue
				}
				moved = true
				cs.PutStatus(d)
			}
		})
		c.settle()
		if !moved {
			return
		}
	}
	c.Fatal("the agents are kept busy for ever")
}

func (c *cluster) setStatus(i *model.Instance, st model.InstanceStatus) {
	c.Helper()
	d := get[*model.Instance](c, i.ID).Clone()
	d.Status = st
	c.commit(func(cs *store.ChangeSet) { cs.PutStatus(d) })
	c.settle()
}

func (c *cluster) events(kind string) (messages []string) {
	for e := range store.List[*model.Event](c.store.Snapshot()) {
		if e.Type == kind {
			messages = append(messages, e.Message)
		}
	}
	return messages
}

// wantRest makes sure that the controller changes nothing any more, whatever time it is given.
func (c *cluster) wantRest() {
	c.Helper()
	c.settle()
	time.Sleep(time.Minute)
	synctest.Wait()
	before := c.store.Snapshot().Revision()
	time.Sleep(10 * time.Minute)
	synctest.Wait()
	if now := c.store.Snapshot().Revision(); now != before {
		c.Errorf("with nothing to do, the controller committed %d times in ten minutes", now-before)
	}
}

func nodesOf(list []*model.Instance) []string {
	var out []string
	for _, i := range list {
		out = append(out, i.NodeID)
	}
	slices.Sort(out)
	return out
}

// checkAddresses makes sure that no address is given out twice, and returns how many there are.
func (c *cluster) checkAddresses() int {
	c.Helper()
	owner := map[string]string{}
	note := func(who string, list []model.Address) {
		for _, a := range list {
			key := a.Network + " " + a.IP
			if owner[key] != "" {
				c.Errorf("%s is given to %s and to %s", key, owner[key], who)
			}
			owner[key] = who
			n := get[*model.Network](c, a.Network)
			subnet, err := netip.ParsePrefix(n.Status.Subnet)
			ip, err2 := netip.ParseAddr(a.IP)
			if err != nil || err2 != nil || !subnet.Contains(ip) || ip == subnet.Addr() || ip == subnet.Addr().Next() {
				c.Errorf("%s has %s, which is no address of %s", who, a.IP, n.Status.Subnet)
			}
		}
	}
	snap := c.store.Snapshot()
	for i := range store.List[*model.Instance](snap) {
		if !i.Status.State.Final() {
			note(i.Name, i.Addresses)
		}
	}
	for s := range store.List[*model.Service](snap) {
		note("service "+s.Name, s.Status.VirtualIPs)
	}
	return len(owner)
}

func TestDeploymentIsPlacedAndAddressed(t *testing.T) {
	inCluster(t, 3, func(c *cluster) {
		c.put(network("front"))
		c.put(network("back"))
		web := workload("web", 6, joins("front", "back"))
		c.put(&model.Service{Meta: model.Meta{ID: "s-web", Namespace: "default", Application: "shop", Name: "web"}, WorkloadID: web.ID, Networks: []string{"front", "back"}})
		c.deploy(web)
		got := c.instances("web")
		if want := []string{"n00", "n00", "n01", "n01", "n02", "n02"}; !slices.Equal(nodesOf(got), want) {
			t.Errorf("instances are on %v, want %v", nodesOf(got), want)
		}
		for k, i := range got {
			if i.Slot != k+1 || i.Name != fmt.Sprint("web.", k+1) || len(i.Addresses) != 2 || !strings.Contains(i.Reason, "best of 3 nodes") {
				t.Errorf("instance %d is %+v", k, i)
			}
		}
		if n := c.checkAddresses(); n != 6*2+2 {
			t.Errorf("%d addresses are given out, want 14", n)
		}
		for _, id := range []string{"front", "back"} {
			n := get[*model.Network](c, id)
			holders := map[string]netip.Prefix{}
			for _, b := range n.Status.Blocks {
				holders[b.NodeID] = netip.MustParsePrefix(b.CIDR)
			}
			if len(n.Status.Blocks) != 3 || len(holders) != 3 {
				t.Errorf("network %s has the blocks %v, want one for each node", id, n.Status.Blocks)
			}
			for _, i := range got {
				for _, a := range i.Addresses {
					if a.Network == id && !holders[i.NodeID].Contains(netip.MustParseAddr(a.IP)) {
						t.Errorf("%s is not of the block of %s, %s", a.IP, i.NodeID, holders[i.NodeID])
					}
				}
			}
		}
		overlay := map[string]bool{}
		for n := range store.List[*model.Node](c.store.Snapshot()) {
			overlay[n.OverlayAddress] = true
		}
		if len(overlay) != 3 || overlay[""] {
			t.Errorf("nodes have the addresses %v", slices.Collect(maps.Keys(overlay)))
		}
		if w := get[*model.Workload](c, "w-web"); w.Status.Generation != 1 || w.Status.Released != w.RevisionID {
			t.Errorf("status %+v", w.Status)
		}
		c.agents()
		c.wantRest()
		if n := len(c.events("instance placed")); n != 6 {
			t.Errorf("%d events tell of placements, want 6", n)
		}
	})
}

func TestWhatRunsOnALostNodeIsReplaced(t *testing.T) {
	inCluster(t, 3, func(c *cluster) {
		c.deploy(workload("web", 3))
		c.agents()
		c.setNode("n01", func(n *model.Node) { n.Status.State = model.NodeDown })
		c.settle()
		got := c.instances("web")
		if len(got) != 3 || slices.Contains(nodesOf(got), "n01") {
			t.Fatalf("instances are on %v", nodesOf(got))
		}
		lost := c.events("instance lost")
		if len(lost) != 1 || lost[0] != "node node01 is down" {
			t.Errorf("events of loss: %v", lost)
		}
		for i := range store.InstancesOnNode(c.store.Snapshot(), "n01") {
			if i.Status.State != model.InstanceLost || i.Status.Ready || i.Status.Finished.IsZero() {
				t.Errorf("what was lost is %+v", i.Status)
			}
		}
		c.agents()
		// The node is taken out for good, and with another one what runs there.
		c.commit(func(cs *store.ChangeSet) {
			cs.Delete(model.KindNode, "n01")
			cs.Delete(model.KindNode, "n02")
		})
		c.settle()
		if got := c.instances("web"); len(got) != 3 || nodesOf(got)[2] != "n00" {
			t.Errorf("instances are on %v", nodesOf(got))
		}
		c.agents()
		c.wantRest()
	})
}

func TestAnInstanceServesUntilEveryBalancerHasFollowed(t *testing.T) {
	inCluster(t, 3, func(c *cluster) {
		c.deploy(workload("web", 1))
		c.agents()
		i := c.instances("web")[0]
		c.setApplied(c.store.Snapshot().Revision(), "n00", "n01", "n02")
		c.deploy(workload("web", 0))
		left := get[*model.Instance](c, i.ID)
		if left.Desired != model.DesiredDrain || left.Cause != "scaled down" {
			t.Fatalf("it is %s (%s), want drain", left.Desired, left.Cause)
		}
		c.setApplied(left.Revision, "n00", "n02")
		time.Sleep(time.Second)
		if d := get[*model.Instance](c, i.ID).Desired; d != model.DesiredDrain {
			t.Fatalf("node01 still sends it connections, but it is to %s", d)
		}
		c.setApplied(left.Revision, "n01")
		c.settle()
		if d := get[*model.Instance](c, i.ID).Desired; d != model.DesiredStop {
			t.Errorf("all have followed, but it is to %s", d)
		}
	})
}

func TestDrainingWaitsForNobodyWhoIsSilentNorForEver(t *testing.T) {
	for name, let := range map[string]func(c *cluster){
		"silent": func(c *cluster) { c.mu.Lock(); c.silent["n01"] = true; c.mu.Unlock() },
		"stuck":  func(*cluster) { time.Sleep(10 * time.Second) },
	} {
		t.Run(name, func(t *testing.T) {
			inCluster(t, 2, func(c *cluster) {
				c.deploy(workload("web", 1, func(w *model.Workload) {
					w.Template.Placement.Constraints = []model.Constraint{{Key: "node.id", Operator: model.Equal, Values: []string{"n00"}}}
				}))
				c.agents()
				i := c.instances("web")[0]
				c.setApplied(c.store.Snapshot().Revision(), "n01")
				c.deploy(workload("web", 0))
				if d := get[*model.Instance](c, i.ID).Desired; d != model.DesiredDrain {
					t.Fatalf("it is to %s at once", d)
				}
				let(c)
				c.settle()
				if d := get[*model.Instance](c, i.ID).Desired; d != model.DesiredStop {
					t.Errorf("it is to %s", d)
				}
			})
		})
	}
}

func TestADrainedNodeGivesUpItsWorkWithoutAGap(t *testing.T) {
	inCluster(t, 2, func(c *cluster) {
		c.deploy(workload("web", 2))
		c.agents()
		c.setNode("n00", func(n *model.Node) { n.Availability = model.Draining })
		c.settle()
		if got := c.instances("web"); len(got) != 3 || !got[0].Serving() || !got[1].Serving() && !got[2].Serving() {
			t.Errorf("before the replacement is ready: %v", nodesOf(got))
		}
		c.agents()
		if got := c.instances("web"); !slices.Equal(nodesOf(got), []string{"n01", "n01"}) {
			t.Errorf("instances are on %v", nodesOf(got))
		}
		c.wantRest()
	})
}

func TestDependencies(t *testing.T) {
	running := model.InstanceStatus{State: model.InstanceRunning, Health: model.HealthStarting}
	ready := model.InstanceStatus{State: model.InstanceRunning, Health: model.HealthHealthy, Ready: true}
	completed := model.InstanceStatus{State: model.InstanceCompleted}
	failed := model.InstanceStatus{State: model.InstanceFailed, Message: "exited with code 1"}
	for _, d := range []struct {
		condition model.DependencyCondition
		kind      model.WorkloadKind
		status    model.InstanceStatus
		waiting   string // "" when the condition is met
	}{
		{model.DependencyStarted, model.ServiceWorkload, model.InstanceStatus{State: model.InstanceStarting}, "waiting for db to run"},
		{model.DependencyStarted, model.ServiceWorkload, running, ""},
		{model.DependencyStarted, model.JobWorkload, completed, ""},
		{model.DependencyHealthy, model.ServiceWorkload, running, "waiting for db to be healthy"},
		{model.DependencyHealthy, model.ServiceWorkload, ready, ""},
		{model.DependencyCompleted, model.JobWorkload, ready, "waiting for db to complete"},
		{model.DependencyCompleted, model.JobWorkload, failed, "waiting for db to complete, which failed: exited with code 1"},
		{model.DependencyCompleted, model.JobWorkload, completed, ""},
	} {
		t.Run(fmt.Sprint(d.condition, " ", d.status.State, d.status.Ready), func(t *testing.T) {
			inCluster(t, 1, func(c *cluster) {
				c.deploy(workload("db", 1, kind(d.kind)), workload("web", 2, dependsOn("db", d.condition)))
				if n := len(c.instances("web")); n != 0 {
					t.Fatalf("%d instances did not wait", n)
				}
				c.setStatus(c.instances("db")[0], d.status)
				w := get[*model.Workload](c, "w-web")
				if n := len(c.instances("web")); w.Status.Waiting != d.waiting || (n == 2) != (d.waiting == "") {
					t.Errorf("%d instances, %q; want %q", n, w.Status.Waiting, d.waiting)
				}
				if n := len(c.events("workload waits")); n < 1 || n > 2 {
					t.Errorf("%d events tell of waiting", n)
				}
			})
		})
	}
}

func TestAJobThatWasStoppedHasNotCompleted(t *testing.T) {
	inCluster(t, 1, func(c *cluster) {
		migrate := workload("migrate", 1, kind(model.JobWorkload))
		c.deploy(migrate, workload("web", 1, dependsOn("migrate", model.DependencyCompleted)))
		migrate.Suspended = true
		c.deploy(migrate)
		c.agents() // ends it, as it is told
		if n := len(c.instances("web")); n != 0 {
			t.Error("web started after a migration that was cut short")
		}
		migrate.Suspended = false
		c.deploy(migrate)
		c.setStatus(c.instances("migrate")[0], model.InstanceStatus{State: model.InstanceCompleted})
		if n := len(c.instances("web")); n != 1 {
			t.Error("web did not start after the migration")
		}
	})
}

func TestADependencyThatComesAndGoes(t *testing.T) {
	inCluster(t, 1, func(c *cluster) {
		c.deploy(workload("web", 1, dependsOn("db", model.DependencyStarted)), workload("log", 1, func(w *model.Workload) {
			w.DependsOn = []model.Dependency{{Workload: "db", Condition: model.DependencyStarted, Optional: true}}
		}))
		if n := len(c.instances("log")); n != 1 {
			t.Errorf("log has %d instances, though what it depends on is optional", n)
		}
		if w := get[*model.Workload](c, "w-web"); w.Status.Waiting != "waiting for db to exist" {
			t.Errorf("web is %q", w.Status.Waiting)
		}
		c.deploy(workload("db", 1))
		if w := get[*model.Workload](c, "w-web"); w.Status.Waiting != "waiting for db to run" {
			t.Errorf("web is %q", w.Status.Waiting)
		}
		c.agents()
		if n := len(c.instances("web")); n != 1 {
			t.Errorf("web has %d instances", n)
		}
		// One that is optional holds nothing up once it is gone.
		c.deploy(workload("cache", 0), workload("api", 1, func(w *model.Workload) {
			w.DependsOn = []model.Dependency{{Workload: "cache", Condition: model.DependencyHealthy, Optional: true}}
		}))
		if n := len(c.instances("api")); n != 0 {
			t.Errorf("api has %d instances before the cache", n)
		}
		c.commit(func(cs *store.ChangeSet) { cs.Delete(model.KindWorkload, "w-cache") })
		c.settle()
		if n := len(c.instances("api")); n != 1 {
			t.Errorf("api has %d instances now that there is no cache", n)
		}
		// Once released, it does not wait again.
		c.commit(func(cs *store.ChangeSet) { cs.Delete(model.KindWorkload, "w-db") })
		c.setStatus(c.instances("web")[0], model.InstanceStatus{State: model.InstanceFailed, Finished: time.Now()})
		time.Sleep(2 * time.Second)
		if n := len(c.instances("web")); n != 1 {
			t.Errorf("web has %d instances after a failure", n)
		}
	})
}

// TestAnUpdateThatWaitsKeepsWhatRuns: a new revision waits for a migration; until then the
// earlier one is kept up, scaled and moved.
func TestAnUpdateThatWaitsKeepsWhatRuns(t *testing.T) {
	inCluster(t, 3, func(c *cluster) {
		c.deploy(workload("web", 3))
		c.agents()
		first := get[*model.Workload](c, "w-web").RevisionID
		next := workload("web", 3, dependsOn("migrate", model.DependencyCompleted), reserves(1<<20))
		c.deploy(workload("migrate", 1, kind(model.JobWorkload)), next)
		check := func(when string, count int, nodes ...string) {
			t.Helper()
			got := c.instances("web")
			for _, i := range got {
				if i.RevisionID != first || !i.Serving() {
					t.Errorf("%s: %s is %s of %s", when, i.Name, i.Desired, i.RevisionID)
				}
			}
			if len(got) != count || len(nodes) > 0 && !slices.Equal(nodesOf(got), nodes) {
				t.Errorf("%s: instances are on %v", when, nodesOf(got))
			}
		}
		check("waiting", 3)
		c.setNode("n01", func(n *model.Node) { n.Status.State = model.NodeDown })
		c.settle()
		c.agents2("web")
		check("after a loss", 3)
		next.Count = 2
		c.deploy(next)
		c.agents2("web")
		check("scaled down", 2)
		c.setNode("n00", func(n *model.Node) { n.Availability = model.Draining })
		c.settle()
		c.agents2("web")
		check("drained", 2, "n02", "n02")
		if w := get[*model.Workload](c, "w-web"); w.Status.Waiting != "waiting for migrate to complete" || w.Status.Rollout.State != model.RolloutUpdating {
			t.Errorf("status %+v", w.Status)
		}
		c.setStatus(c.instances("migrate")[0], model.InstanceStatus{State: model.InstanceCompleted})
		c.agents()
		time.Sleep(5 * time.Second)
		c.agents()
		time.Sleep(5 * time.Second)
		w := get[*model.Workload](c, "w-web")
		for _, i := range c.instances("web") {
			if i.RevisionID != w.RevisionID || !i.Serving() {
				t.Errorf("after the migration: %s is %s of %s", i.Name, i.Desired, i.RevisionID)
			}
		}
		if w.Status.Rollout.State != model.RolloutCompleted || w.Status.Waiting != "" || w.Status.Released != w.RevisionID {
			t.Errorf("status %+v", w.Status)
		}
	})
}

// agents2 is agents for one workload: those of others do nothing.
func (c *cluster) agents2(name string) {
	c.Helper()
	for range 10 {
		for _, i := range c.instances(name) {
			switch {
			case i.NodeID == "":
			case i.Desired == model.DesiredStop:
				c.setStatus(i, model.InstanceStatus{State: model.InstanceCompleted})
			case i.Desired == model.DesiredRun && !i.Status.Ready:
				c.setStatus(i, model.InstanceStatus{State: model.InstanceRunning, Ready: true, Started: time.Now(), ReadySince: time.Now()})
			}
		}
		c.settle()
	}
}

func TestRemovedWorkloadsLeaveNothingBehind(t *testing.T) {
	inCluster(t, 2, func(c *cluster) {
		c.deploy(workload("web", 3))
		c.agents()
		c.deploy(workload("web", 3, reserves(1<<20)))
		c.deploy(workload("full", 2, reserves(1<<40))) // never placed
		if n := len(c.events("instance pending")); n != 2 {
			t.Errorf("%d events tell that there is no room", n)
		}
		c.commit(func(cs *store.ChangeSet) {
			cs.Delete(model.KindWorkload, "w-web")
			cs.Delete(model.KindWorkload, "w-full")
		})
		c.settle()
		for _, i := range c.instances("web") {
			if i.Desired != model.DesiredRemove || i.Cause != "its workload is gone" {
				t.Errorf("%s is to %s: %s", i.Name, i.Desired, i.Cause)
			}
		}
		if n := len(c.instances("full")); n != 0 {
			t.Errorf("%d instances that were never placed are still there", n)
		}
		c.agents()
		snap := c.store.Snapshot()
		for i := range store.List[*model.Instance](snap) {
			t.Errorf("%s is still there", i.Name)
		}
		for r := range store.List[*model.Revision](snap) {
			t.Errorf("%s is still there", r.ID)
		}
		c.wantRest()
	})
}

func TestAnInstanceThatHasNoRoomIsToldOfOnce(t *testing.T) {
	inCluster(t, 2, func(c *cluster) {
		c.deploy(workload("big", 1, reserves(9<<30)))
		i := c.instances("big")[0]
		if want := "2 of 2 nodes have too little memory (8 GiB free, 9 GiB wanted on node00)"; i.Reason != want {
			t.Errorf("reason %q, want %q", i.Reason, want)
		}
		for n := range 20 { // others come and go
			c.deploy(workload("web", 1+n%2))
			c.agents()
		}
		c.wantRest()
		if n := len(c.events("instance pending")); n != 1 {
			t.Errorf("%d events tell of it", n)
		}
		c.setNode("n01", func(n *model.Node) { n.Capacity.MemoryBytes = 64 << 30 })
		c.settle()
		if i := c.instances("big")[0]; i.NodeID != "n01" {
			t.Errorf("there is room now, but it is on %q: %s", i.NodeID, i.Reason)
		}
	})
}

// TestReasonsFollowWithoutHaste: many instances have no room, while others come and go all the
// time, so that the reason reads a little different after each change.
func TestReasonsFollowWithoutHaste(t *testing.T) {
	inCluster(t, 1, func(c *cluster) {
		c.deploy(workload("big", 50, reserves(9<<30)))
		watch := c.store.Watch(c.store.Snapshot().Revision(), model.KindInstance)
		for n := range 40 { // four seconds of it
			c.deploy(workload("web", 1, reserves(int64(n+1)<<20), func(w *model.Workload) { w.Update.Order = model.StartFirst }))
		}
		writes := 0
		for {
			ctx, cancel := context.WithTimeout(c.Context(), time.Millisecond)
			b, err := watch.Next(ctx)
			cancel()
			if err != nil {
				break
			}
			for _, ch := range b.Changes {
				if i, ok := ch.New.(*model.Instance); ok && i.WorkloadID == "w-big" {
					writes++
				}
			}
		}
		if writes == 0 || writes > 6*50 {
			t.Errorf("reasons of 50 instances were written %d times in four seconds", writes)
		}
		c.deploy(workload("web", 0))
		c.agents()
		time.Sleep(2 * time.Second)
		for _, i := range c.instances("big") {
			if want := "1 of 1 nodes have too little memory (8 GiB free, 9 GiB wanted on node00)"; i.Reason != want {
				t.Errorf("%s: %q", i.Name, i.Reason)
			}
		}
	})
}

func TestGoingBackWaitsForNothing(t *testing.T) {
	inCluster(t, 1, func(c *cluster) {
		c.deploy(workload("db", 1))
		c.agents()
		web := workload("web", 1, dependsOn("db", model.DependencyHealthy), func(w *model.Workload) { w.Update.OnFailure = model.RollBackOnFailure })
		c.deploy(web)
		c.agents()
		good := get[*model.Workload](c, "w-web").RevisionID
		next := web.Clone()
		next.Template.Tasks[0].Args = []string{"--broken"}
		c.deploy(next)
		c.setStatus(c.instances("db")[0], model.InstanceStatus{State: model.InstanceRunning, Health: model.HealthUnhealthy})
		c.deployBroken(next)
		c.agents2("web")
		if got := c.instances("web"); len(got) != 1 || got[0].RevisionID != good || !got[0].Serving() {
			t.Errorf("%d instances, status %+v", len(got), get[*model.Workload](c, "w-web").Status)
		}
		if n := len(c.events("workload waits")); n != 0 {
			t.Errorf("%d events tell of waiting", n)
		}
	})
}

func TestGlobalWorkloads(t *testing.T) {
	inCluster(t, 2, func(c *cluster) {
		agent := workload("agent", 0, kind(model.GlobalWorkload), reserves(6<<30))
		// Both are placed in one pass: what the one takes, the other lacks.
		c.deploy(workload("web", 2, reserves(4<<30)), agent)
		got := c.instances("agent")
		if !slices.Equal(nodesOf(got), []string{"n00", "n01"}) || got[0].Name != "agent.node00" || got[1].Name != "agent.node01" {
			t.Fatalf("instances are on %v", nodesOf(got))
		}
		for _, i := range c.instances("web") {
			if i.NodeID != "" {
				t.Errorf("%s is on %s, which is full", i.Name, i.NodeID)
			}
		}
		c.agents()
		c.setNode("n00", func(n *model.Node) { n.Availability = model.Cordoned })
		c.addNode(2)
		c.settle()
		c.agents()
		if got := c.instances("agent"); !slices.Equal(nodesOf(got), []string{"n00", "n01", "n02"}) || got[0].Desired != model.DesiredRun {
			t.Errorf("instances are on %v: a cordoned node keeps what it has, and a new one gets its own", nodesOf(got))
		}
		c.setStatus(c.instances("agent")[0], model.InstanceStatus{State: model.InstanceFailed, Finished: time.Now()})
		time.Sleep(2 * time.Second)
		if got := c.instances("agent"); !slices.Equal(nodesOf(got), []string{"n00", "n01", "n02"}) {
			t.Errorf("after a failure on a cordoned node, instances are on %v", nodesOf(got))
		}
		c.setNode("n01", func(n *model.Node) { n.Availability = model.Draining })
		c.settle()
		c.agents()
		if got := c.instances("agent"); !slices.Equal(nodesOf(got), []string{"n00", "n02"}) {
			t.Errorf("after a node was drained, instances are on %v", nodesOf(got))
		}
		c.wantRest()
	})
}

func TestGlobalWorkloadsWithoutRoom(t *testing.T) {
	inCluster(t, 2, func(c *cluster) {
		c.deploy(workload("web", 2, reserves(6<<30)))
		c.agents()
		c.deploy(workload("agent", 0, kind(model.GlobalWorkload), reserves(4<<30)))
		time.Sleep(time.Minute)
		if n := len(c.instances("agent")); n != 0 {
			t.Fatalf("%d instances are on nodes that have no room", n)
		}
		told := c.events("instance pending")
		slices.Sort(told)
		if len(told) != 2 || told[1] != "no room for agent.node01: 1 of 1 nodes have too little memory (2 GiB free, 4 GiB wanted on node01)" {
			t.Errorf("events: %q", told)
		}
		c.deploy(workload("web", 0))
		c.agents()
		time.Sleep(2 * time.Second)
		if got := c.instances("agent"); !slices.Equal(nodesOf(got), []string{"n00", "n01"}) {
			t.Errorf("there is room now, but instances are on %v", nodesOf(got))
		}
	})
}

func TestWhatSharesANewVolumeSharesANode(t *testing.T) {
	inCluster(t, 3, func(c *cluster) {
		for _, id := range []string{"data", "other", "third"} {
			c.put(&model.Volume{Meta: model.Meta{ID: id, Namespace: "default", Application: "shop", Name: id}})
		}
		c.deploy(workload("db", 2, mounts("data")), workload("backup", 1, mounts("data", "other")))
		home := get[*model.Volume](c, "data").NodeID
		if home == "" || get[*model.Volume](c, "other").NodeID != home {
			t.Errorf("the volumes live on %q and %q", home, get[*model.Volume](c, "other").NodeID)
		}
		for _, i := range append(c.instances("db"), c.instances("backup")...) {
			if i.NodeID != home {
				t.Errorf("%s is on %q, its volume on %s: %s", i.Name, i.NodeID, home, i.Reason)
			}
		}
		c.deploy(workload("lost", 1, mounts("data", "nothing")))
		if i := c.instances("lost")[0]; i.NodeID != "" || i.Reason != "volume nothing does not exist" {
			t.Errorf("it is on %q: %s", i.NodeID, i.Reason)
		}
		v := get[*model.Volume](c, "third").Clone()
		v.NodeID = map[string]string{"n00": "n01", "n01": "n02", "n02": "n00"}[home]
		c.put(v)
		c.deploy(workload("both", 1, mounts("data", "third")))
		if i := c.instances("both")[0]; i.NodeID != "" || !strings.Contains(i.Reason, "do not hold both the volume shop/data, which lives on node") {
			t.Errorf("it is on %q: %s", i.NodeID, i.Reason)
		}
	})
}

func TestHostPortsAreHeldByOne(t *testing.T) {
	inCluster(t, 2, func(c *cluster) {
		c.put(&model.Service{
			Meta: model.Meta{ID: "s-web", Namespace: "default", Name: "web"}, WorkloadID: "w-web",
			Ports: []model.ServicePort{{Protocol: "tcp", Target: 80, Published: 8080, HostMode: true}, {Protocol: "tcp", Target: 81, Published: 8081}},
		})
		c.deploy(workload("web", 3))
		got := c.instances("web")
		if !slices.Equal(nodesOf(got), []string{"", "n00", "n01"}) {
			t.Errorf("instances are on %v", nodesOf(got))
		}
		for _, i := range got {
			if i.NodeID == "" && i.Reason != "2 of 2 nodes have port 8080/tcp taken" {
				t.Errorf("reason %q", i.Reason)
			}
			if i.NodeID != "" && !slices.Equal(i.HostPorts, []model.HostPort{{Protocol: "tcp", Published: 8080, Target: 80}}) {
				t.Errorf("ports %v", i.HostPorts)
			}
		}
	})
}

// TestASmallNetworkServesManyNodes: there are fewer blocks than nodes, and as many instances as
// the subnet has addresses for.
func TestASmallNetworkServesManyNodes(t *testing.T) {
	inCluster(t, 20, func(c *cluster) {
		c.put(network("front"))
		c.deploy(workload("web", 200, joins("front")))
		placed := 0
		for _, i := range c.instances("web") {
			if i.NodeID != "" {
				placed++
			} else if i.Reason != "network shop/front has no address left in 10.210.0.0/24" {
				t.Errorf("reason %q", i.Reason)
			}
		}
		if placed != 190 { // three quarters of 256, but for the first two
			t.Errorf("%d instances have an address, want 190", placed)
		}
		if n := c.checkAddresses(); n != placed {
			t.Errorf("%d addresses are given out", n)
		}
		blocks := map[string]bool{}
		for _, b := range get[*model.Network](c, "front").Status.Blocks {
			blocks[b.CIDR] = true
			if netip.MustParsePrefix(b.CIDR).Overlaps(netip.MustParsePrefix("10.210.0.192/26")) {
				t.Errorf("block %s reaches into the virtual IPs", b.CIDR)
			}
		}
		if len(blocks) != 12 || len(get[*model.Network](c, "front").Status.Blocks) != 12 {
			t.Errorf("blocks %v", get[*model.Network](c, "front").Status.Blocks)
		}
	})
}

func TestBlocksOfNodesThatAreGoneAreUsedAgain(t *testing.T) {
	inCluster(t, 1, func(c *cluster) {
		c.put(network("front"))
		for n := range 40 {
			c.deploy(workload("web", 1, joins("front")))
			c.agents()
			id := fmt.Sprintf("n%02d", n)
			if got := c.instances("web"); len(got) != 1 || got[0].NodeID != id {
				t.Fatalf("instances are on %v, want %s", nodesOf(got), id)
			}
			c.addNode(n + 1)
			c.setNode(id, func(n *model.Node) { n.Status.State = model.NodeDown })
			c.settle()
			c.agents()
			c.commit(func(cs *store.ChangeSet) { cs.Delete(model.KindNode, id) })
			c.settle()
		}
		if b := get[*model.Network](c, "front").Status.Blocks; len(b) > 2 {
			t.Errorf("one node is left, and %d blocks", len(b))
		}
	})
}

func TestSubnets(t *testing.T) {
	inCluster(t, 1, func(c *cluster) {
		for _, n := range []struct{ id, subnet, want, message string }{
			{"a", "", "10.210.0.0/24", ""},
			{"b", "10.210.1.7/24", "10.210.1.0/24", ""},
			{"c", "", "10.210.2.0/24", ""},
			{"d", "10.210.0.0/22", "", "subnet 10.210.0.0/22 overlaps with 10.210.0.0/24, which is in use"},
			{"e", "10.211.3.0/24", "", "subnet 10.211.3.0/24 overlaps with 10.211.0.0/16, which is in use"},
			{"f", "fd00::/64", "", `subnet "fd00::/64": an IPv4 range such as 10.20.0.0/16, of /28 or larger, is accepted`},
		} {
			want := network(n.id)
			want.Subnet = n.subnet
			c.put(want)
			c.settle()
			if got := get[*model.Network](c, n.id).Status; got.Subnet != n.want || got.Message != n.message {
				t.Errorf("network %s: %q, %q", n.id, got.Subnet, got.Message)
			}
		}
		c.wantRest()
		// What is in the way goes away.
		c.commit(func(cs *store.ChangeSet) {
			for _, id := range []string{"a", "b", "c"} {
				cs.Delete(model.KindNetwork, id)
			}
		})
		c.settle()
		if got := get[*model.Network](c, "d").Status; got.Subnet != "10.210.0.0/22" || got.Message != "" {
			t.Errorf("network d: %+v", got)
		}
	})
}

func TestAFixedAddressPassesOn(t *testing.T) {
	inCluster(t, 2, func(c *cluster) {
		c.put(network("front"))
		w := workload("web", 1, joins("front"))
		w.Template.Networks[0].Address = "10.210.0.77"
		c.deploy(w)
		c.agents()
		for range 3 {
			i := c.instances("web")[0]
			if len(i.Addresses) != 1 || i.Addresses[0].IP != "10.210.0.77" {
				t.Fatalf("%s has %v: %s", i.Name, i.Addresses, i.Reason)
			}
			c.setStatus(i, model.InstanceStatus{State: model.InstanceFailed, Finished: time.Now()})
			time.Sleep(20 * time.Second)
		}
		taken := workload("other", 1, joins("front"))
		taken.Template.Networks[0].Address = "10.210.0.77"
		c.deploy(taken)
		if i := c.instances("other")[0]; i.NodeID != "" || i.Reason != "address 10.210.0.77 of network shop/front is taken" {
			t.Errorf("on %q: %s", i.NodeID, i.Reason)
		}
	})
}

// deployBroken deploys a revision of web that fails as often as it is started.
func (c *cluster) deployBroken(w *model.Workload) {
	c.Helper()
	w.Template.Tasks[0].Args = []string{"--broken"}
	c.deploy(w)
	broken := get[*model.Workload](c, w.ID).RevisionID
	for range 100 {
		snap := c.store.Snapshot()
		for i := range store.InstancesOfWorkload(snap, w.ID) {
			if i.RevisionID == broken && i.WantsToRun() && i.NodeID != "" {
				c.setStatus(i, model.InstanceStatus{State: model.InstanceFailed, Message: "exited with code 2", Finished: time.Now()})
			}
		}
		if get[*model.Workload](c, w.ID).Status.Rollout.State != model.RolloutUpdating {
			return
		}
		for i := range store.InstancesOfWorkload(snap, w.ID) {
			if i.Desired == model.DesiredStop && !i.Status.State.Final() {
				c.setStatus(i, model.InstanceStatus{State: model.InstanceCompleted, Finished: time.Now()})
			}
		}
	}
	c.Fatal("the update goes on and on")
}

func TestABrokenRevisionIsRolledBack(t *testing.T) {
	inCluster(t, 2, func(c *cluster) {
		web := workload("web", 3, func(w *model.Workload) { w.Update.OnFailure = model.RollBackOnFailure })
		c.deploy(web)
		c.agents()
		good := get[*model.Workload](c, "w-web").RevisionID
		c.deployBroken(web.Clone())
		time.Sleep(10 * time.Second)
		c.agents()
		time.Sleep(10 * time.Second)
		w := get[*model.Workload](c, "w-web")
		if w.RevisionID != good || w.PreviousRevisionID == good || w.Template.Hash() != web.Template.Hash() || w.Generation != 3 {
			t.Errorf("the workload is at %s, generation %d", w.RevisionID, w.Generation)
		}
		if r := w.Status.Rollout; r.State != model.RolloutRolledBack || !strings.Contains(r.Message, "1 of 3 instances failed (web.1: exited with code 2)") {
			t.Errorf("rollout %+v", r)
		}
		for _, i := range c.instances("web") {
			if i.RevisionID != good || !i.Serving() {
				t.Errorf("%s is of %s", i.Name, i.RevisionID)
			}
		}
		for _, kind := range []string{"rollout updating", "rollout rollingBack", "rollout rolledBack"} {
			if n := len(c.events(kind)); n != 1 {
				t.Errorf("%d events %q", n, kind)
			}
		}
		c.wantRest()
	})
}

func TestRollingBackToWhatIsNotKept(t *testing.T) {
	inCluster(t, 2, func(c *cluster) {
		web := workload("web", 2, func(w *model.Workload) { w.Update.OnFailure = model.RollBackOnFailure })
		c.deploy(web)
		c.agents()
		good := get[*model.Workload](c, "w-web").RevisionID
		c.commit(func(cs *store.ChangeSet) { cs.Delete(model.KindRevision, good) })
		c.deployBroken(web.Clone())
		w := get[*model.Workload](c, "w-web")
		if r := w.Status.Rollout; w.RevisionID == good || r.State != model.RolloutPaused || !strings.Contains(r.Message, "is no longer kept") {
			t.Errorf("rollout of %s: %+v", w.RevisionID, r)
		}
	})
}

func TestOldRevisionsAreForgotten(t *testing.T) {
	inCluster(t, 1, func(c *cluster) {
		count := func() int {
			return len(slices.Collect(store.RevisionsOfWorkload(c.store.Snapshot(), "w-web")))
		}
		var first string
		for n := range 25 {
			c.deploy(workload("web", 1, reserves(int64(n+1))))
			c.agents()
			time.Sleep(5 * time.Second)
			c.agents()
			if n == 0 { // something of the first one never ends
				first = get[*model.Workload](c, "w-web").RevisionID
				c.addNode(1)
				c.setNode("n01", func(n *model.Node) { n.Status.State = model.NodeUnknown })
				c.put(&model.Instance{
					Meta: model.Meta{ID: "old", Name: "web.2"}, WorkloadID: "w-web", Slot: 2, RevisionID: first, NodeID: "n01",
					Desired: model.DesiredStop, Status: model.InstanceStatus{State: model.InstanceRunning},
				})
			}
		}
		if n := count(); n != 11 {
			t.Errorf("%d revisions are kept, want the latest 10 and one that still runs", n)
		}
		get[*model.Revision](c, first)
		w := get[*model.Workload](c, "w-web")
		for _, id := range []string{w.RevisionID, w.PreviousRevisionID, c.instances("web")[0].RevisionID} {
			get[*model.Revision](c, id)
		}
	})
}

func TestAFailedCommitIsMadeUpFor(t *testing.T) {
	inCluster(t, 2, func(c *cluster) {
		c.commit(func(cs *store.ChangeSet) {
			w := workload("web", 2)
			w.RevisionID = "r1"
			cs.Put(w)
			cs.Put(&model.Revision{Meta: model.Meta{ID: "r1", Name: "r1"}, WorkloadID: w.ID, Template: w.Template})
		})
		c.mu.Lock()
		c.refuse = 3
		c.mu.Unlock()
		time.Sleep(time.Second)
		synctest.Wait()
		if got := c.instances("web"); len(got) != 2 || !slices.Equal(nodesOf(got), []string{"n00", "n01"}) {
			t.Errorf("instances are on %v", nodesOf(got))
		}
	})
}

func TestANewLeaderGoesOn(t *testing.T) {
	inCluster(t, 3, func(c *cluster) {
		c.put(network("front"))
		c.deploy(workload("web", 4, joins("front")))
		c.agents()
		c.deploy(workload("web", 4, joins("front"), reserves(1<<20)))
		for range 60 { // each leads for a moment
			c.lead()
			time.Sleep(150 * time.Millisecond)
			for _, i := range c.instances("web") {
				if i.Desired == model.DesiredStop {
					c.setStatus(i, model.InstanceStatus{State: model.InstanceCompleted})
				} else if i.NodeID != "" && !i.Status.Ready {
					c.setStatus(i, model.InstanceStatus{State: model.InstanceRunning, Ready: true, Started: time.Now(), ReadySince: time.Now()})
				}
			}
		}
		w := get[*model.Workload](c, "w-web")
		if w.Status.Rollout.State != model.RolloutCompleted {
			t.Errorf("rollout %+v", w.Status.Rollout)
		}
		if got := c.instances("web"); len(got) != 4 || got[3].RevisionID != w.RevisionID {
			t.Errorf("%d instances", len(got))
		}
		c.checkAddresses()
		c.wantRest()
	})
}

// TestPeopleAreNotOverwritten changes objects between the controller's look and its commit.
func TestPeopleAreNotOverwritten(t *testing.T) {
	inCluster(t, 1, func(c *cluster) {
		c.settle()
		c.setOutrun(func() bool {
			n, ok := store.Get[*model.Node](c.store.Snapshot(), "n01")
			if ok {
				c.setNode(n.ID, func(n *model.Node) { n.Availability = model.Cordoned })
			}
			return ok
		})
		c.addNode(1)
		c.settle()
		if n := get[*model.Node](c, "n01"); n.Availability != model.Cordoned || n.OverlayAddress != "10.211.0.2" {
			t.Errorf("node is %q at %q", n.Availability, n.OverlayAddress)
		}
		c.wantOutrun()

		c.put(&model.Volume{Meta: model.Meta{ID: "data", Name: "data"}})
		c.setOutrun(func() bool {
			_, wanted := store.Get[*model.Workload](c.store.Snapshot(), "w-db")
			if wanted { // and the controller is about to give its volume a home
				c.put(&model.Volume{Meta: model.Meta{ID: "data", Name: "data"}, Options: map[string]string{"o": "ro"}})
			}
			return wanted
		})
		c.deploy(workload("db", 1, mounts("data")))
		if v := get[*model.Volume](c, "data"); v.Options["o"] != "ro" || v.NodeID != "n00" {
			t.Errorf("volume lives on %q with the options %v", v.NodeID, v.Options)
		}
		c.wantOutrun()

		// A workload is changed by hand while its update is about to be rolled back.
		web := workload("web", 2, func(w *model.Workload) { w.Update.OnFailure = model.RollBackOnFailure })
		c.deploy(web)
		c.agents()
		c.setOutrun(func() bool {
			w := get[*model.Workload](c, "w-web").Clone()
			failed := false
			for i := range store.InstancesOfWorkload(c.store.Snapshot(), w.ID) {
				failed = failed || i.Status.State == model.InstanceFailed
			}
			if failed {
				w.Count = 5
				c.put(w)
			}
			return failed
		})
		c.deployBroken(web.Clone())
		if w := get[*model.Workload](c, "w-web"); w.Count != 5 || w.Status.Rollout.State != model.RolloutRolling {
			t.Errorf("%d are wanted, rollout %+v", w.Count, w.Status.Rollout)
		}
		c.wantOutrun()
	})
}
