package dispatch_test

import (
	"context"
	"fmt"
	"log/slog"
	"testing"
	"testing/synctest"
	"time"

	"github.com/tutti-run/tutti/internal/dispatch"
	"github.com/tutti-run/tutti/internal/model"
	"github.com/tutti-run/tutti/internal/store"
)

// dead is the silence that a small cluster takes for death.
var dead = dispatch.PaceFor(3).Dead

type alone struct{ *store.Store }

func (a alone) Propose(_ context.Context, data []byte) (store.Result, error) {
	return a.Apply(data), nil
}

// watched is a store with two nodes and a Liveness at work, in a bubble of its own time.
type watched struct {
	*testing.T
	*dispatch.Liveness
	store *store.Store
	stop  func()
}

func inWatched(t *testing.T, test func(w *watched)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		w := &watched{T: t, store: store.New(slog.New(slog.DiscardHandler))}
		w.store.SetProposer(alone{w.store})
		for _, id := range []string{"a", "b"} {
			var cs store.ChangeSet
			cs.Put(&model.Node{Meta: model.Meta{ID: id, Name: id}, Status: model.NodeStatus{State: model.NodeUnknown}})
			if _, err := w.store.Commit(t.Context(), &cs); err != nil {
				t.Fatal(err)
			}
		}
		w.Liveness = dispatch.NewLiveness(w.store, slog.New(slog.DiscardHandler))
		w.lead()
		defer func() { w.stop() }()
		test(w)
	})
}

func (w *watched) lead() {
	if w.stop != nil {
		w.stop()
	}
	ctx, cancel := context.WithCancel(w.Context())
	done := make(chan error, 1)
	go func() { done <- w.Liveness.Run(ctx) }()
	w.stop = func() {
		cancel()
		if err := <-done; err != nil {
			w.Error(err)
		}
	}
	synctest.Wait()
}

// beat lets a node be heard every 300 ms for a while.
func (w *watched) beat(b dispatch.Beat, d time.Duration) {
	for end := time.Now().Add(d); time.Now().Before(end); time.Sleep(300 * time.Millisecond) {
		w.Hear([]dispatch.Beat{b})
	}
	synctest.Wait()
}

func (w *watched) want(id string, state model.NodeState) *model.Node {
	w.Helper()
	n, _ := store.Get[*model.Node](w.store.Snapshot(), id)
	if n.Status.State != state {
		w.Errorf("node %s is %s (%s), want %s", id, n.Status.State, n.Status.Message, state)
	}
	return n
}

func TestNodesComeAndGo(t *testing.T) {
	inWatched(t, func(w *watched) {
		time.Sleep(10 * time.Second)
		w.want("a", model.NodeUnknown) // never heard of, and not to be called down
		w.beat(dispatch.Beat{NodeID: "a", Session: "s1", Applied: 7}, 3*time.Second)
		first := w.want("a", model.NodeReady)
		if first.Status.Session != "s1" || w.Applied("a") != 7 || !w.Live("a") || w.Live("b") {
			t.Errorf("status %+v, applied %d", first.Status, w.Applied("a"))
		}
		time.Sleep(dead - 400*time.Millisecond)
		w.want("a", model.NodeReady)
		time.Sleep(450 * time.Millisecond)
		if n := w.want("a", model.NodeDown); n.Status.Message != fmt.Sprintf("silent for %s", dead) || w.Live("a") {
			t.Errorf("status %+v", n.Status)
		}
		before := w.store.Snapshot().Revision()
		time.Sleep(time.Minute)
		if now := w.store.Snapshot().Revision(); now != before {
			t.Errorf("nothing happened, but the status was written %d times", now-before)
		}
		w.beat(dispatch.Beat{NodeID: "a", Session: "s1", Applied: 9}, 10*time.Millisecond)
		if n := w.want("a", model.NodeReady); !n.Status.Since.After(first.Status.Since) || n.Status.Message != "" {
			t.Errorf("status %+v", n.Status)
		}
	})
}

func TestAnOldSignOfLifeCounts(t *testing.T) {
	inWatched(t, func(w *watched) {
		time.Sleep(5 * time.Second)
		w.Hear([]dispatch.Beat{{NodeID: "a", Session: "s1", Age: 2 * time.Second}})
		time.Sleep(100 * time.Millisecond)
		w.want("a", model.NodeDown) // for as long as it is: it was heard two seconds ago
		w.Hear([]dispatch.Beat{{NodeID: "a", Session: "s1", Age: time.Second}})
		time.Sleep(100 * time.Millisecond)
		w.want("a", model.NodeReady)
		time.Sleep(500 * time.Millisecond)
		w.want("a", model.NodeDown)
	})
}

// TestARestartedAgentProvesAnewWhatIsInForce: instances are stopped once all balancers have
// followed, so that what an agent had in force before a restart must not count.
func TestARestartedAgentProvesAnewWhatIsInForce(t *testing.T) {
	inWatched(t, func(w *watched) {
		for _, c := range []struct {
			beat    dispatch.Beat
			applied uint64
			session string
		}{
			{dispatch.Beat{NodeID: "a", Session: "s1", Applied: 50}, 50, "s1"},
			{dispatch.Beat{NodeID: "a", Session: "s1", Applied: 40}, 50, "s1"}, // overtaken on the way
			{dispatch.Beat{NodeID: "a", Session: "s2", Applied: 10}, 10, "s2"},
			{dispatch.Beat{NodeID: "a", Session: "s1", Applied: 60, Age: time.Second}, 10, "s2"}, // late, through another server
			{dispatch.Beat{NodeID: "a", Session: "s2", Applied: 20}, 20, "s2"},
		} {
			time.Sleep(100 * time.Millisecond)
			w.Hear([]dispatch.Beat{c.beat})
			time.Sleep(100 * time.Millisecond)
			if got := w.Applied("a"); got != c.applied {
				t.Errorf("after %+v: %d is in force, want %d", c.beat, got, c.applied)
			}
			if n := w.want("a", model.NodeReady); n.Status.Session != c.session {
				t.Errorf("after %+v: session %s", c.beat, n.Status.Session)
			}
		}
	})
}

func TestANewLeaderCountsTheTimeWithoutOne(t *testing.T) {
	inWatched(t, func(w *watched) {
		w.beat(dispatch.Beat{NodeID: "a", Session: "s1", Applied: 5}, 3*time.Second)
		time.Sleep(dead - 300*time.Millisecond)
		w.lead()
		if w.Applied("a") != 0 {
			t.Errorf("the new leader claims to know that %d is in force", w.Applied("a"))
		}
		const leaderless = 300 * time.Millisecond
		time.Sleep(dead - leaderless - 100*time.Millisecond)
		w.want("a", model.NodeReady)
		time.Sleep(200 * time.Millisecond)
		w.want("a", model.NodeDown)
	})
	for without, counts := range map[time.Duration]time.Duration{500 * time.Millisecond: 500 * time.Millisecond, 800 * time.Millisecond: 600 * time.Millisecond, 0: 300 * time.Millisecond} {
		inWatched(t, func(w *watched) {
			w.beat(dispatch.Beat{NodeID: "a", Session: "s1", Applied: 5}, 3*time.Second)
			lost := time.Now()
			w.Contact = func() time.Time { return lost }
			time.Sleep(without)
			w.lead()
			time.Sleep(dead - counts - 100*time.Millisecond)
			w.want("a", model.NodeReady)
			time.Sleep(200 * time.Millisecond)
			w.want("a", model.NodeDown)
		})
	}
}
