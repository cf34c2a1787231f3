package dispatch_test

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/tutti-run/tutti/internal/dispatch"
	"github.com/tutti-run/tutti/internal/model"
	"github.com/tutti-run/tutti/internal/store"
)

// TestALeaseIsWaitedFor: what runs under a lease is given up only when no lease that was granted can
// be in force any more, and after that no lease is granted before the node counts as back.
func TestALeaseIsWaitedFor(t *testing.T) {
	inWatched(t, func(w *watched) {
		a := []dispatch.Beat{{NodeID: "a", Session: "s1"}}
		w.beat(a[0], 3*time.Second)
		if h := w.Hear(a); len(h.Refused) > 0 || h.Revision != w.store.Snapshot().Revision() {
			t.Errorf("a node that is ready hears %+v", h)
		}
		granted := time.Now()
		time.Sleep(dispatch.LongestLease)
		synctest.Wait()
		w.want("a", model.NodeDown)
		if left := w.Fence("a"); left <= 0 {
			t.Error("the fence is open at the very end of the lease, without a margin")
		} else {
			time.Sleep(left)
		}
		if took := time.Since(granted); w.Fence("a") != 0 || took < dispatch.LongestLease {
			t.Errorf("the fence is open for another %s after %s", w.Fence("a"), took)
		}
		// The first sign of life after that may find its instances about to be given up.
		if h := w.Hear(a); !slices.Equal(h.Refused, []string{"a"}) {
			t.Errorf("a node that is down hears %+v; want no lease", h)
		}
		if w.Fence("a") != 0 {
			t.Error("a lease that was refused is waited for")
		}
		time.Sleep(100 * time.Millisecond)
		synctest.Wait()
		w.want("a", model.NodeReady)
		if h := w.Hear(a); len(h.Refused) > 0 {
			t.Errorf("a node that is back hears %+v", h)
		}
		if w.Fence("a") == 0 {
			t.Error("the new lease is not waited for")
		}
	})
}

// TestANewLeaderWaitsForTheLeasesOfTheOneBefore, which may have granted one just before its end.
func TestANewLeaderWaitsForTheLeasesOfTheOneBefore(t *testing.T) {
	inWatched(t, func(w *watched) {
		w.beat(dispatch.Beat{NodeID: "a", Session: "s1"}, time.Second)
		time.Sleep(time.Minute)
		if w.Fence("a") != 0 {
			t.Error("a lease of long ago is waited for")
		}
		w.stop()
		if h := w.Hear([]dispatch.Beat{{NodeID: "b", Session: "s1"}}); len(h.Refused) != 1 {
			t.Errorf("who does not lead grants a lease: %+v", h)
		}
		if w.Fence("a") < dispatch.LongestLease {
			t.Error("who does not lead says that no lease is in force")
		}
		w.stop = nil
		w.lead()
		for _, id := range []string{"a", "b", "removed"} {
			if w.Fence(id) < dispatch.LongestLease {
				t.Errorf("a new leader waits only %s for a lease of node %s", w.Fence(id), id)
			}
		}
		time.Sleep(dispatch.LongestLease + time.Second)
		if w.Fence("a") != 0 || w.Fence("removed") != 0 {
			t.Error("the leases of the leader before are waited for without end")
		}
	})
}

// reached is a Liveness that can ask hosts.
func reached(w *watched, answers *atomic.Bool) (asked *atomic.Int32) {
	asked = new(atomic.Int32)
	w.stop()
	w.stop = nil
	w.Reach = func(ctx context.Context, address string) bool {
		asked.Add(1)
		if answers.Load() {
			return true
		}
		<-ctx.Done() // nobody answers, not even with a refusal
		return false
	}
	w.lead()
	return asked
}

// TestAStoppedProcessIsNoDeadHost: its kernel answers for it, for a while.
func TestAStoppedProcessIsNoDeadHost(t *testing.T) {
	inWatched(t, func(w *watched) {
		var answers atomic.Bool
		asked := reached(w, &answers)
		w.beat(dispatch.Beat{NodeID: "a", Session: "s1"}, 3*time.Second)
		if asked.Load() > 0 {
			t.Error("a host was asked though its node was heard")
		}
		answers.Store(true)
		began := time.Now()
		for time.Since(began) < 4*time.Second {
			time.Sleep(100 * time.Millisecond)
			synctest.Wait()
			w.want("a", model.NodeReady)
		}
		if n := w.want("a", model.NodeReady); n.Status.Message == "" || asked.Load() == 0 {
			t.Errorf("after four seconds its status says %q; it was asked %d times", n.Status.Message, asked.Load())
		}
		w.beat(dispatch.Beat{NodeID: "a", Session: "s1"}, 50*time.Millisecond)
		time.Sleep(100 * time.Millisecond)
		synctest.Wait()
		if n := w.want("a", model.NodeReady); n.Status.Message != "" {
			t.Errorf("once it goes on, its status says %q", n.Status.Message)
		}
		time.Sleep(12 * time.Second)
		synctest.Wait()
		w.want("a", model.NodeDown) // not for ever
	})
}

func TestADeadHostIsNoticedInTimeThoughItIsAsked(t *testing.T) {
	inWatched(t, func(w *watched) {
		asked := reached(w, new(atomic.Bool))
		w.beat(dispatch.Beat{NodeID: "a", Session: "s1"}, 3*time.Second)
		w.Hear([]dispatch.Beat{{NodeID: "a", Session: "s1"}})
		time.Sleep(dead + 60*time.Millisecond)
		synctest.Wait()
		w.want("a", model.NodeDown)
		if asked.Load() == 0 {
			t.Error("its host was not asked")
		}
	})
}

// TestManyNodes: at ten thousand nodes, a silent one is noticed within five seconds, and the others
// stay.
func TestManyNodes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const nodes = 10_000
		s := store.New(slog.New(slog.DiscardHandler))
		s.SetProposer(alone{s})
		cs := &store.ChangeSet{}
		var beats []dispatch.Beat
		for k := range nodes {
			id := fmt.Sprint("n", k)
			cs.Put(&model.Node{Meta: model.Meta{ID: id, Name: id}, Status: model.NodeStatus{State: model.NodeReady, Session: "s"}})
			beats = append(beats, dispatch.Beat{NodeID: id, Session: "s"})
		}
		if _, err := s.Commit(t.Context(), cs); err != nil {
			t.Fatal(err)
		}
		l := dispatch.NewLiveness(s, slog.New(slog.DiscardHandler))
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- l.Run(ctx) }()
		defer func() { cancel(); <-done }()
		pace := dispatch.PaceFor(nodes)
		down := func() (out int) {
			for n := range store.List[*model.Node](s.Snapshot()) {
				if n.Status.State == model.NodeDown {
					out++
				}
			}
			return out
		}
		for range 3 {
			time.Sleep(pace.Beat)
			l.Hear(beats)
		}
		silent := time.Now() // the last of node 0, at worst
		for down() == 0 {
			time.Sleep(pace.Beat)
			l.Hear(beats[1:])
			synctest.Wait()
			if time.Since(silent) > 10*time.Second {
				t.Fatal("a silent node is not noticed")
			}
		}
		if n, _ := store.Get[*model.Node](s.Snapshot(), "n0"); down() != 1 || n.Status.Since.Sub(silent) > 5*time.Second {
			t.Errorf("%d nodes are down; the silent one was noticed after %s", down(), n.Status.Since.Sub(silent))
		}
	})
}

func TestPace(t *testing.T) {
	last := dispatch.Pace{}
	for _, n := range []int{0, 2, 100, 101, 1000, 10_000, 100_000} {
		p := dispatch.PaceFor(n)
		if p.Beat < last.Beat || p.Dead < last.Dead || 4*p.Beat > p.Dead+50*time.Millisecond {
			t.Errorf("the pace at %d nodes is %+v", n, p)
		}
		last = p
	}
	if p := dispatch.PaceFor(1); p.Beat > dispatch.PaceFor(2).Dead*2/3 || 3*p.Beat > p.Dead {
		t.Errorf("the pace of the only node is %+v: it would be taken for dead when another one joins", p)
	}
	if p := dispatch.PaceFor(100); p.Dead >= 1300*time.Millisecond {
		t.Errorf("at 100 nodes, silence is noticed after %s", p.Dead)
	}
	if p := dispatch.PaceFor(10_000); p.Dead >= 5*time.Second {
		t.Errorf("at 10,000 nodes, silence is noticed after %s", p.Dead)
	}
}

// stalled is a proposer that stands still now and then, and with it the leader's judgement, as all
// does when a process is stopped.
type stalled struct {
	alone
	pause atomic.Int64
}

func (s *stalled) Propose(ctx context.Context, data []byte) (store.Result, error) {
	time.Sleep(time.Duration(s.pause.Swap(0)))
	return s.alone.Propose(ctx, data)
}

// TestALeaderThatWasStoppedGivesEverybodyTheFullTime, however long it was: it heard nobody because
// it could not.
func TestALeaderThatWasStoppedGivesEverybodyTheFullTime(t *testing.T) {
	inWatched(t, func(w *watched) {
		s := &stalled{alone: alone{w.store}}
		w.store.SetProposer(s)
		w.beat(dispatch.Beat{NodeID: "a", Session: "s1"}, 3*time.Second)
		time.Sleep(dead - 500*time.Millisecond) // it has little time left: it was heard up to 300 ms before
		s.pause.Store(int64(4 * time.Second))
		w.Hear([]dispatch.Beat{{NodeID: "b", Session: "s1"}}) // whose status is to be written
		time.Sleep(4*time.Second + 100*time.Millisecond)
		synctest.Wait()
		w.want("a", model.NodeReady)
		time.Sleep(dead - 200*time.Millisecond)
		synctest.Wait()
		w.want("a", model.NodeReady)
		time.Sleep(300 * time.Millisecond)
		synctest.Wait()
		w.want("a", model.NodeDown) // it really is silent
	})
}
