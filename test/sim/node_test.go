package sim_test

import (
	"cmp"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/tutti-run/tutti/internal/dispatch"
	"github.com/tutti-run/tutti/internal/model"
	"github.com/tutti-run/tutti/internal/store"
)

// conduct is how instances of a revision do; it travels as the argument of their task.
type conduct string

const (
	good   conduct = "good"
	plain  conduct = "plain"  // no probe says that it is healthy
	broken conduct = "broken" // fails before it is ready
	finite conduct = "finite" // ends by itself, as it should
)

// node is a simulated host with its agent. It does what real ones do, as far as the cluster can
// tell: takes up instances late, reports late, fails, is cut off, restarts.
type node struct {
	c         *cluster
	id        string
	up        bool
	connected bool
	session   int
	applied   uint64 // the revision whose network state is in force
	following uint64 // the one that is being put in force
	followed  time.Time
	began     time.Time // when the agent was started, or reached a server again
	lastBeat  time.Time
	heard     time.Time // as a server tells the leader
	runs      map[string]*run

	// What is on its way into the state.
	sent *store.ChangeSet
	told []*run
	due  time.Time
}

// run is an instance as its node sees it.
type run struct {
	status   model.InstanceStatus
	desired  model.DesiredState
	does     conduct
	next     time.Time // when something happens by itself
	reported bool
}

func newNode(c *cluster, id string) *node {
	return &node{c: c, id: id, up: true, connected: true, session: 1, runs: map[string]*run{}}
}

func (n *node) soon(d time.Duration) time.Time {
	return time.Now().Add(time.Duration(n.c.rnd.Int64N(int64(d))))
}

// crash takes the host away, with all that runs there.
func (n *node) crash() {
	n.up = false
	n.applied, n.following = 0, 0
	n.sent = nil
	clear(n.runs)
}

func (n *node) start() {
	if !n.up {
		n.up, n.session, n.lastBeat, n.began = true, n.session+1, time.Time{}, time.Now()
	}
}

// join lets the node reach the servers.
func (n *node) join() {
	n.start()
	if !n.connected {
		n.connected, n.began = true, time.Now()
	}
}

// step lets the node do what is due.
func (n *node) step() {
	if !n.up {
		return
	}
	if n.connected {
		n.takeUp()
	}
	for _, id := range slices.Sorted(maps.Keys(n.runs)) {
		n.proceed(n.runs[id])
	}
	if n.connected {
		n.follow()
		n.report()
		if time.Since(n.lastBeat) >= 300*time.Millisecond {
			n.beat()
		}
	}
}

// beat gives a sign of life, which takes a while through another server.
func (n *node) beat() {
	now := time.Now()
	n.lastBeat = now
	if at := now.Add(-time.Duration(n.c.rnd.IntN(20)) * time.Millisecond); at.After(n.heard) {
		n.heard = at
	} else {
		n.heard = now
	}
	n.c.liveness.Hear([]dispatch.Beat{{NodeID: n.id, Session: fmt.Sprint(n.session), Applied: n.applied, Age: now.Sub(n.heard)}})
}

// takeUp makes the node's runs those that are assigned to it.
func (n *node) takeUp() {
	snap := n.c.store.Snapshot()
	assigned := map[string]bool{}
	for i := range store.InstancesOnNode(snap, n.id) {
		st := &i.Status
		if st.State == model.InstanceLost || i.Desired == model.DesiredRemove && st.State.Final() {
			continue
		}
		assigned[i.ID] = true
		r := n.runs[i.ID]
		if r == nil {
			r = &run{status: i.Status, does: plain}
			if rev, ok := store.Get[*model.Revision](snap, i.RevisionID); ok {
				r.does = conduct(rev.Template.Tasks[0].Args[0])
			}
			switch {
			case st.State.Final():
			case st.State == model.InstancePending:
				r.status.State, r.next = model.InstancePreparing, n.soon(500*time.Millisecond)
			default: // it ran before the host was restarted
				r.fail("the host was restarted")
				r.next = n.soon(500 * time.Millisecond)
			}
			n.runs[i.ID] = r
		}
		if r.desired != i.Desired {
			r.desired = i.Desired
			if (i.Desired == model.DesiredStop || i.Desired == model.DesiredRemove) && !r.status.State.Final() {
				r.status.State, r.status.Ready, r.status.Health = model.InstanceStopping, false, model.HealthNone
				r.next, r.reported = n.soon(time.Second), false
			}
		}
	}
	maps.DeleteFunc(n.runs, func(id string, _ *run) bool { return !assigned[id] })
}

// fail ends the present run of an instance that will be started again in place.
func (r *run) fail(message string) {
	r.status.State, r.status.Ready, r.status.Health = model.InstanceWaiting, false, model.HealthNone
	r.status.Message, r.status.Finished, r.reported = message, time.Now(), false
}

func (n *node) proceed(r *run) {
	st := &r.status
	if r.next.IsZero() || time.Now().Before(r.next) || st.State.Final() {
		return
	}
	r.next, r.reported = time.Time{}, false
	switch st.State {
	case model.InstanceStopping:
		st.State, st.Message, st.Finished = model.InstanceCompleted, "stopped", time.Now()
	case model.InstancePreparing, model.InstanceWaiting:
		if st.State == model.InstanceWaiting {
			st.Restarts++
		}
		st.State, st.Message, st.Started, st.Finished = model.InstanceRunning, "", time.Now(), time.Time{}
		switch r.does {
		case good, broken:
			st.Health, r.next = model.HealthStarting, n.soon(time.Second)
		case finite:
			st.Ready, st.ReadySince, r.next = true, time.Now(), n.soon(3*time.Second)
		default:
			st.Ready, st.ReadySince = true, time.Now()
		}
	case model.InstanceRunning:
		switch {
		case r.does == finite:
			st.State, st.Ready, st.Finished = model.InstanceCompleted, false, time.Now()
		case r.does == broken && st.Restarts < 3:
			r.fail("exited with code 1")
			r.next = n.soon(time.Second)
		case r.does == broken:
			st.State, st.Ready, st.Health, st.Message, st.Finished = model.InstanceFailed, false, model.HealthNone, "exited with code 1", time.Now()
		case !st.Ready:
			st.Health, st.Ready, st.ReadySince = model.HealthHealthy, true, time.Now()
		}
	}
}

// stumble makes one of the node's instances fail out of turn.
func (n *node) stumble(rnd *rand.Rand) {
	ids := slices.Sorted(maps.Keys(n.runs))
	if len(ids) == 0 {
		return
	}
	if r := n.runs[ids[rnd.IntN(len(ids))]]; r.status.State == model.InstanceRunning {
		r.fail("exited with code 137")
		r.next = n.soon(time.Second)
	}
}

// follow puts the network state in force, some time after it changed.
func (n *node) follow() {
	if n.following > n.applied && !time.Now().Before(n.followed) {
		n.applied = n.following
	}
	if revision := n.c.store.Snapshot().Revision(); n.following == n.applied && revision > n.applied {
		n.following, n.followed = revision, n.soon(60*time.Millisecond)
		if n.applied == 0 { // all of it, after a start
			n.followed = n.soon(time.Second)
		}
	}
}

// report writes what changed, as package dispatch does for a real agent: decided on what is there
// now, and committed a little later.
func (n *node) report() {
	if n.sent != nil {
		if time.Now().Before(n.due) {
			return
		}
		_, err := n.c.store.Commit(n.c.Context(), n.sent)
		for _, r := range n.told {
			r.reported = r.reported && err == nil
		}
		n.sent, n.told = nil, nil
	}
	snap := n.c.store.Snapshot()
	cs := &store.ChangeSet{}
	for _, id := range slices.Sorted(maps.Keys(n.runs)) {
		r := n.runs[id]
		if r.reported {
			continue
		}
		i, ok := store.Get[*model.Instance](snap, id)
		if !ok || i.Status.State == model.InstanceLost {
			continue
		}
		c := i.Clone()
		c.Status = r.status
		cs.PutStatus(c)
		n.told = append(n.told, r)
		r.reported = true
	}
	if cs.Len() > 0 {
		n.sent, n.due = cs, n.soon(10*time.Millisecond)
	}
}

func (n *node) describe() string {
	state := "down"
	if n.up {
		state = "up"
		if !n.connected {
			state = "cut off"
		}
	}
	return fmt.Sprintf("%s %s, %s in force", n.id, state, cmp.Or(fmt.Sprint(n.applied), "nothing"))
}
