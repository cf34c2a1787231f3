// Package sim_test simulates whole clusters: the real store, the real leader's work and the real
// judgement of which nodes live, over nodes that are played by the test and fail in all the ways
// that hosts do. Everything happens in a bubble of its own time, so that a minute takes no time,
// and in an order that follows from a seed, so that a failure can be seen again.
package sim_test

import (
	"cmp"
	"context"
	"flag"
	"fmt"
	"hash/fnv"
	"log/slog"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/cryptotest"
	"testing/synctest"
	"time"

	"github.com/tutti-run/tutti/internal/control"
	"github.com/tutti-run/tutti/internal/core"
	"github.com/tutti-run/tutti/internal/dispatch"
	"github.com/tutti-run/tutti/internal/fault"
	"github.com/tutti-run/tutti/internal/model"
	"github.com/tutti-run/tutti/internal/store"
	"github.com/tutti-run/tutti/internal/trust"
)

var (
	seeds = flag.Int("seeds", 20, "how many different courses to simulate")
	only  = flag.Int("seed", -1, "simulate only the course of this seed, and tell all of it")
)

// TestSim simulates one cluster for each seed.
func TestSim(t *testing.T) {
	first, n := 0, *seeds
	if *only >= 0 {
		first, n = *only, 1
	}
	for seed := first; seed < first+n; seed++ {
		t.Run(fmt.Sprint("seed=", seed), func(t *testing.T) { simulate(t, uint64(seed)) })
	}
}

// TestTheSameSeedIsTheSameCourse makes sure that a failure can be seen again.
func TestTheSameSeedIsTheSameCourse(t *testing.T) {
	var courses []uint64
	for range 2 {
		t.Run("course", func(t *testing.T) { courses = append(courses, simulate(t, 1)) })
	}
	if courses[0] != courses[1] {
		t.Error("two courses of the same seed differ")
	}
}

// cluster is one simulated cluster. A single goroutine plays nodes, people and faults; between
// its steps the leader's goroutines do theirs.
type cluster struct {
	*testing.T
	seed     uint64
	rnd      *rand.Rand
	store    *store.Store
	core     *core.Core
	liveness *dispatch.Liveness
	nodes    []*node
	stopLead func()

	quorum quorum

	watcher *store.Watcher
	watch   *watch
	course  uint64 // a hash over all that happened
	story   []string
}

func simulate(t *testing.T, seed uint64) (course uint64) {
	cryptotest.SetGlobalRandom(t, seed) // identifiers are drawn from it
	synctest.Test(t, func(t *testing.T) {
		c := &cluster{T: t, seed: seed, rnd: rand.New(rand.NewPCG(seed, 17)), store: store.New(slog.New(slog.DiscardHandler))}
		c.quorum.store = c.store
		c.store.SetProposer(&c.quorum)
		c.liveness = dispatch.NewLiveness(c.store, slog.New(slog.DiscardHandler))
		c.core = core.New(core.Deps{Store: c.store, Trust: trust.New(trust.Deps{Store: c.store}), NodeID: "n0", Log: slog.New(slog.DiscardHandler)})
		c.watcher, c.watch = c.store.Watch(0), newWatch(c)
		c.found()
		c.lead()
		defer func() { c.stopLead() }()
		c.chaos()
		c.converge()
		course = c.course
		if *only >= 0 {
			t.Log(strings.Join(c.story, "\n"))
		}
	})
	return course
}

// quorum replicates nothing, but fails as if it had to.
type quorum struct {
	store *store.Store

	mu      sync.Mutex
	absent  time.Time // until when there is none
	forgets int       // answers that are still to be lost, after the fact
}

func (q *quorum) Propose(_ context.Context, data []byte) (store.Result, error) {
	q.mu.Lock()
	absent := time.Now().Before(q.absent)
	forget := !absent && q.forgets > 0
	if forget {
		q.forgets--
	}
	q.mu.Unlock()
	if absent {
		return store.Result{}, fault.New(fault.Unavailable, "no quorum")
	}
	r := q.store.Apply(data)
	if forget {
		return store.Result{}, fault.New(fault.Unavailable, "the answer was lost")
	}
	return r, nil
}

// fail takes the quorum away until a time, and makes the next answers after that be lost.
func (q *quorum) fail(until time.Time, forgets int) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.absent, q.forgets = until, forgets
}

// since is for how long there has been a quorum.
func (q *quorum) since() time.Duration {
	q.mu.Lock()
	defer q.mu.Unlock()
	return time.Since(q.absent)
}

func (c *cluster) tell(format string, args ...any) {
	line := fmt.Sprintf("%8.3f  ", time.Since(dawn).Seconds()) + fmt.Sprintf(format, args...)
	c.story = append(c.story, line)
	h := fnv.New64a()
	fmt.Fprint(h, c.course, line)
	c.course = h.Sum64()
}

// dawn is when time begins in a bubble.
var dawn = time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC)

func (c *cluster) fail(format string, args ...any) {
	c.Helper()
	lines := c.story
	if *only < 0 {
		lines = lines[max(0, len(lines)-40):]
	}
	for _, n := range c.nodes {
		lines = append(lines, n.describe())
	}
	c.Fatalf("%s\n%s\nto see all of it again: go test ./test/sim -run TestSim -count=1 -args -seed=%d",
		fmt.Sprintf(format, args...), strings.Join(lines, "\n"), c.seed)
}

// commit is for what must happen.
func (c *cluster) commit(fill func(cs *store.ChangeSet)) {
	c.Helper()
	var cs store.ChangeSet
	fill(&cs)
	if _, err := c.store.Commit(c.Context(), &cs); err != nil {
		c.fail("commit: %v", err)
	}
}

// found makes the cluster and its nodes.
func (c *cluster) found() {
	c.commit(func(cs *store.ChangeSet) {
		cs.Put(&model.Cluster{Meta: model.Meta{ID: model.ClusterID, Name: model.ClusterID}, AddressPool: "10.210.0.0/16", NetworkBits: 24, NodePool: "10.211.0.0/16", SecretKey: make([]byte, 32)})
		for k := range 3 + c.rnd.IntN(4) {
			id := fmt.Sprint("n", k)
			c.nodes = append(c.nodes, newNode(c, id))
			cs.Put(&model.Node{
				Meta: model.Meta{ID: id, Name: "node" + id, Labels: map[string]string{"zone": fmt.Sprint(k % 2)}}, HostAddress: fmt.Sprint("192.168.0.", k+1),
				Capacity: model.Resources{NanoCPUs: 4e9, MemoryBytes: nodeMemory}, Status: model.NodeStatus{State: model.NodeUnknown},
			})
		}
	})
}

const (
	nodeMemory = 5 << 29
	most       = 5 // instances of a workload, so that three nodes hold everything
)

// lead makes a server the leader, with a Controller that knows nothing.
func (c *cluster) lead() {
	if c.stopLead != nil {
		c.stopLead()
	}
	ctx, cancel := context.WithCancel(c.Context())
	ctl := control.New(control.Deps{Store: c.store, Sessions: c.liveness, Log: slog.New(slog.DiscardHandler)})
	done := make(chan error, 2)
	go func() { done <- c.liveness.Run(ctx) }()
	synctest.Wait()
	time.Sleep(1237 * time.Microsecond) // so that the two never wake at the same moment
	go func() { done <- ctl.Run(ctx) }()
	synctest.Wait()
	c.stopLead = func() {
		cancel()
		for range 2 {
			if err := <-done; err != nil {
				c.Errorf("the leader's work ended with %v", err)
			}
		}
	}
}

// names of the workloads that come and go.
var names = []string{"web", "api", "agent", "import"}

// deployment returns an application of random policies, or, at the end, of ones that work.
func (c *cluster) deployment(final bool) core.Deployment {
	d := core.Deployment{Application: "shop", Networks: []*model.Network{{Meta: model.Meta{Name: "front"}}}}
	for k, name := range names {
		if !final && c.rnd.IntN(8) == 0 {
			continue // removed
		}
		does := []conduct{good, plain, good, plain, broken}[c.rnd.IntN(5)]
		if final && does == broken {
			does = good
		}
		w := &model.Workload{
			Meta: model.Meta{Name: name}, Type: model.ServiceWorkload, Count: 1 + c.rnd.IntN(most),
			Update: c.policy(), Rollback: c.policy(),
			Template: model.Template{
				Networks: []model.Attachment{{Network: "front"}},
				Restart:  model.RestartPolicy{Condition: model.RestartAlways},
				Tasks:    []model.TaskSpec{{Name: "main", Reserve: model.Resources{MemoryBytes: int64(k+1) * 128 << 20}}},
			},
		}
		s := &model.Service{Meta: model.Meta{Name: name}, WorkloadID: name, Networks: []string{"front"}}
		switch name {
		case "api":
			w.Template.Placement.Spread = []string{"node.labels.zone"}
			w.DependsOn = []model.Dependency{{Workload: "import", Condition: model.DependencyCompleted, Optional: true}}
		case "agent":
			w.Type, w.Count = model.GlobalWorkload, 0
			w.Template.Tasks[0].Reserve.MemoryBytes = 64 << 20
			s.Ports = []model.ServicePort{{Protocol: "tcp", Target: 80, Published: 9100, HostMode: true}}
		case "import":
			w.Type, w.Count, does = model.JobWorkload, 1+c.rnd.IntN(3), finite
			w.Template.Restart.Condition = model.RestartOnFailure
		}
		w.Template.Tasks[0].Args = []string{string(does), fmt.Sprint(c.rnd.IntN(3))}
		if final { // an update, whatever was there before
			w.Template.Tasks[0].Args = append(w.Template.Tasks[0].Args, "final")
		}
		d.Workloads, d.Services = append(d.Workloads, w), append(d.Services, s)
	}
	return d
}

func (c *cluster) policy() model.UpdatePolicy {
	return model.UpdatePolicy{
		Parallelism: c.rnd.IntN(3), Monitor: time.Duration(1+c.rnd.IntN(4)) * time.Second,
		Order:           []model.UpdateOrder{model.StopFirst, model.StartFirst}[c.rnd.IntN(2)],
		OnFailure:       []model.FailureAction{model.PauseOnFailure, model.ContinueOnFailure, model.RollBackOnFailure, model.RollBackOnFailure}[c.rnd.IntN(4)],
		MaxFailureRatio: []float64{0, 0, 0.3}[c.rnd.IntN(3)],
	}
}

var people = core.Caller{Name: "people", Via: "sim"}

func (c *cluster) deploy(final bool) error {
	d := c.deployment(final)
	var told []string
	for _, w := range d.Workloads {
		told = append(told, fmt.Sprintf("%s %d×%v %+v", w.Name, w.Count, w.Template.Tasks[0].Args, w.Update))
	}
	_, err := c.core.Deploy(c.Context(), people, d)
	c.tell("deploy %s: %v", strings.Join(told, "; "), err)
	return err
}

// tick lets some time pass, and every node do what is due, in random order.
func (c *cluster) tick() {
	for _, k := range c.rnd.Perm(len(c.nodes)) {
		time.Sleep(time.Duration(1 + c.rnd.IntN(5_000_000)))
		c.nodes[k].step()
		synctest.Wait()
		c.look()
	}
}

// look holds everything that happened since the last look against what must always hold.
func (c *cluster) look() {
	now := c.store.Snapshot().Revision()
	for c.watch.revision < now {
		b, err := c.watcher.Next(c.Context())
		if err != nil {
			c.fail("follow the store: %v", err)
		}
		c.watch.see(b)
	}
	c.watch.overTime()
}

// chaos lets the cluster work while people change their minds and everything fails that may.
func (c *cluster) chaos() {
	for c.deploy(false) != nil {
	}
	for end := time.Now().Add(time.Duration(20+c.rnd.IntN(30)) * time.Second); time.Now().Before(end); {
		c.tick()
		n := c.nodes[c.rnd.IntN(len(c.nodes))]
		switch c.rnd.IntN(400) {
		case 0:
			n.crash()
			c.tell("%s crashes", n.id)
		case 1, 2:
			n.connected = false
			c.tell("%s is cut off", n.id)
		case 3, 4, 5, 6, 7, 8:
			n.join()
			c.tell("%s is there", n.id)
		case 9, 10:
			n.crash()
			n.start()
			c.tell("%s restarts", n.id)
		case 11, 12, 13, 14:
			n.stumble(c.rnd)
		case 15:
			_ = c.deploy(false) // may be refused while there is no quorum
		case 16, 17:
			err := c.core.Scale(c.Context(), people, "shop/"+names[c.rnd.IntN(2)], c.rnd.IntN(most+1))
			c.tell("scale: %v", err)
		case 18:
			err := c.core.Rollback(c.Context(), people, "shop/"+names[c.rnd.IntN(2)])
			c.tell("roll back: %v", err)
		case 19, 20:
			a := []model.Availability{model.Draining, model.Cordoned, model.Active}[c.rnd.IntN(3)]
			err := c.core.SetAvailability(c.Context(), people, "node"+n.id, a)
			c.tell("%s is to be %s: %v", n.id, a, err)
		case 21, 22:
			c.lead()
			c.watch.newLeader()
			c.tell("another server leads")
		case 23:
			until := time.Now().Add(time.Duration(c.rnd.IntN(1000)) * time.Millisecond)
			c.quorum.fail(until, 0)
			c.tell("no quorum until %.3f", until.Sub(dawn).Seconds())
		case 24, 25:
			n := 1 + c.rnd.IntN(2)
			c.quorum.fail(time.Time{}, n)
			c.tell("the next %d answers are lost", n)
		case 26:
			if c.rnd.IntN(4) == 0 {
				err := c.core.Remove(c.Context(), people, "shop", false)
				c.tell("remove: %v", err)
			}
		}
	}
}

// converge ends the faults, and expects the cluster to come to rest as it should be.
func (c *cluster) converge() {
	c.tell("the faults end")
	c.quorum.fail(time.Time{}, 0)
	for _, n := range c.nodes {
		n.join()
		if err := c.core.SetAvailability(c.Context(), people, "node"+n.id, model.Active); err != nil {
			c.fail("%v", err)
		}
	}
	for end := time.Now().Add(3 * time.Second); time.Now().Before(end); { // what was restarted starts
		c.tick()
	}
	if err := c.deploy(true); err != nil {
		c.fail("deploy: %v", err)
	}
	calm, revision := time.Now(), uint64(0)
	// The slowest update takes half a minute; a look at everything is due that often too, and must
	// not be what it takes.
	for end := time.Now().Add(time.Minute + 15*time.Second); time.Since(calm) < 15*time.Second; {
		if time.Now().After(end) {
			c.fail("it does not come to rest: %s", c.wrong())
		}
		c.tick()
		if now := c.store.Snapshot().Revision(); now != revision || c.wrong() != "" {
			calm, revision = time.Now(), now
		}
	}
}

// wrong says what is not yet as it should be, "" when nothing is.
func (c *cluster) wrong() string {
	snap := c.store.Snapshot()
	for n := range store.List[*model.Node](snap) {
		if n.Status.State != model.NodeReady || n.OverlayAddress == "" {
			return fmt.Sprintf("node %s is %s", n.Name, n.Status.State)
		}
	}
	ready, wanted := map[string]int{}, map[string]int{}
	for w := range store.List[*model.Workload](snap) {
		wanted[w.ID] = w.Count
		if w.Type == model.GlobalWorkload {
			wanted[w.ID] = len(c.nodes)
		}
		switch s := w.Status.Rollout.State; s {
		case model.RolloutNone, model.RolloutCompleted:
		default:
			return fmt.Sprintf("the update of %s is %s: %s", w.Name, s, w.Status.Rollout.Message)
		}
		if w.Status.Generation != w.Generation || w.Status.Released != w.RevisionID {
			return fmt.Sprintf("status of %s: %+v", w.Name, w.Status)
		}
	}
	for i := range store.List[*model.Instance](snap) {
		w, ok := store.Get[*model.Workload](snap, i.WorkloadID)
		switch {
		case !ok:
			return i.Name + " outlives its workload"
		case w.Type == model.JobWorkload && i.Status.State == model.InstanceCompleted && i.Desired == model.DesiredRun && i.RevisionID == w.RevisionID:
			ready[w.ID]++
		case i.Status.State.Final():
		case !i.Serving() || i.RevisionID != w.RevisionID || w.Type == model.JobWorkload:
			return fmt.Sprintf("%s of %s on %q is to %s and %s (%s)", i.Name, i.RevisionID, i.NodeID, i.Desired, i.Status.State, cmp.Or(i.Status.Message, i.Reason))
		default:
			ready[w.ID]++
		}
	}
	for w := range store.List[*model.Workload](snap) {
		if ready[w.ID] != wanted[w.ID] {
			return fmt.Sprintf("%s has %d of %d instances", w.Name, ready[w.ID], wanted[w.ID])
		}
	}
	for s := range store.List[*model.Service](snap) {
		if len(s.Status.VirtualIPs) != 1 {
			return "service " + s.Name + " has no virtual IP: " + s.Status.Message
		}
	}
	for _, n := range c.nodes {
		running := []string{}
		for id, r := range n.runs {
			if i, ok := store.Get[*model.Instance](snap, id); !ok || i.NodeID != n.id || i.Status.State != r.status.State {
				running = append(running, id)
			}
		}
		if slices.Sort(running); len(running) > 0 {
			return fmt.Sprintf("%s runs %v, of which the cluster does not know so", n.id, running)
		}
	}
	return ""
}
