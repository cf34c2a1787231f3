package dispatch_test

import (
	"fmt"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/tutti-run/tutti/internal/dispatch"
	"github.com/tutti-run/tutti/internal/model"
	"github.com/tutti-run/tutti/internal/store"
)

// TestLeasesAreShortWhereSignsOfLifeAreFrequent: and a new leader, which knows by the node's status how long they
// are at most, waits for no longer.
func TestLeasesAreShortWhereSignsOfLifeAreFrequent(t *testing.T) {
	inWatched(t, func(w *watched) {
		a := dispatch.Beat{NodeID: "a", Session: "s1", Told: true}
		w.beat(a, 500*time.Millisecond)
		h := w.Hear([]dispatch.Beat{a})
		if h.Lease != dispatch.ShortLease || len(h.Refused) > 0 {
			t.Errorf("a node of two hears %+v", h)
		}
		// The leader before this one may have granted a longer one, and so the status must not say yet that none is.
		if n := w.want("a", model.NodeReady); n.Status.Lease != 0 {
			t.Errorf("while a longer lease may be in force, the status says that none is longer than %s", n.Status.Lease)
		}
		w.beat(a, dispatch.LongestLease)
		if n := w.want("a", model.NodeReady); n.Status.Lease != dispatch.ShortLease {
			t.Errorf("the status says that leases last for %s at most", n.Status.Lease)
		}
		w.Hear([]dispatch.Beat{a})
		granted := time.Now()
		if left := w.Fence("a"); left < dispatch.ShortLease || left > dispatch.ShortLease+time.Second {
			t.Errorf("after a lease of %s was granted, %s are waited", dispatch.ShortLease, left)
		}
		w.lead()
		if left := w.Fence("a"); left < time.Until(granted.Add(dispatch.ShortLease)) || left > dispatch.ShortLease+time.Second {
			t.Errorf("a new leader waits for %s", left)
		}
		if left := w.Fence("unheard of"); left < dispatch.LongestLease {
			t.Errorf("a new leader waits for %s only for a lease of a node that is no more", left)
		}
	})
}

// TestAServerThatGrantsByItself, being of an earlier version, makes leases long before it grants any.
func TestAServerThatGrantsByItself(t *testing.T) {
	inWatched(t, func(w *watched) {
		a := dispatch.Beat{NodeID: "a", Session: "s1", Told: true}
		w.beat(a, 2*dispatch.LongestLease)
		w.want("a", model.NodeReady)
		a.Told = false
		if h := w.Hear([]dispatch.Beat{a}); !slices.Equal(h.Refused, []string{"a"}) {
			t.Errorf("it would grant a long lease which the node's status does not tell of: %+v", h)
		}
		synctest.Wait()
		if n := w.want("a", model.NodeReady); n.Status.Lease != 0 {
			t.Errorf("the status says that leases last for %s at most", n.Status.Lease)
		}
		if h := w.Hear([]dispatch.Beat{a}); len(h.Refused) > 0 || h.Lease != dispatch.LongestLease {
			t.Errorf("then it hears %+v", h)
		}
		if left := w.Fence("a"); left < dispatch.LongestLease {
			t.Errorf("then %s are waited", left)
		}
		// It is upgraded, and counts for a while.
		a.Told = true
		w.beat(a, 30*time.Second)
		if n := w.want("a", model.NodeReady); n.Status.Lease != 0 {
			t.Errorf("a short while after, leases last for %s at most", n.Status.Lease)
		}
		w.beat(a, time.Minute)
		if n := w.want("a", model.NodeReady); n.Status.Lease != dispatch.ShortLease {
			t.Errorf("a good while after, leases last for %s at most", n.Status.Lease)
		}
	})
}

// TestLeasesFollowTheSizeOfTheCluster: whatever was granted, the status never says that leases are shorter than one
// that may be in force.
func TestLeasesFollowTheSizeOfTheCluster(t *testing.T) {
	inWatched(t, func(w *watched) {
		a := dispatch.Beat{NodeID: "a", Session: "s1", Told: true}
		w.beat(a, 2*dispatch.LongestLease)
		longest := time.Now() // until when a lease may be in force
		check := func() {
			h := w.Hear([]dispatch.Beat{a})
			if len(h.Refused) == 0 {
				if until := time.Now().Add(h.Lease); until.After(longest) {
					longest = until
				}
			}
			synctest.Wait()
			n, _ := store.Get[*model.Node](w.store.Snapshot(), "a")
			says := n.Status.Lease
			if says == 0 {
				says = dispatch.LongestLease
			}
			if time.Until(longest) > says || time.Until(longest) > w.Fence("a") {
				t.Errorf("a lease lasts for another %s, the status says %s at most, and %s are waited", time.Until(longest), says, w.Fence("a"))
			}
		}
		for round := range 3 {
			cs := &store.ChangeSet{}
			for k := range 200 {
				id := fmt.Sprintf("n%d", k)
				n := &model.Node{Meta: model.Meta{ID: id, Name: id}, Status: model.NodeStatus{State: model.NodeUnknown}}
				if round%2 == 0 {
					cs.Put(n)
				} else {
					cs.Delete(model.KindNode, n.ID)
				}
			}
			if _, err := w.store.Commit(t.Context(), cs); err != nil {
				t.Fatal(err)
			}
			for range 40 {
				check()
				time.Sleep(250 * time.Millisecond)
			}
			want := []time.Duration{0, dispatch.ShortLease}[round%2]
			if n := w.want("a", model.NodeReady); n.Status.Lease != want {
				t.Errorf("in the end the status says %s, want %s", n.Status.Lease, want)
			}
		}
	})
}
