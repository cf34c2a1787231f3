package agent

import (
	"bytes"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"github.com/tutti-run/tutti/internal/model"
	"github.com/tutti-run/tutti/internal/wire"
)

// TestStatusesAreNumberedAcrossAgents: what an earlier agent told, and is still under way somewhere, is
// known to be older than all that the next one tells.
func TestStatusesAreNumberedAcrossAgents(t *testing.T) {
	inWorld(t, func(w *world) {
		w.assign(w.assignment("i1", task("serve")))
		first := w.wantState("i1", model.InstanceRunning)
		w.start()
		second := w.wantState("i1", model.InstanceRunning)
		if second.Seq <= first.Seq {
			t.Errorf("the second agent's status has number %d, the first one's had %d", second.Seq, first.Seq)
		}
		// The count of agents is lost: the cluster says how far it was.
		w.end()
		if err := os.Remove(filepath.Join(w.dir, "agent", "epoch")); err != nil {
			t.Fatal(err)
		}
		w.start()
		if third := w.status("i1"); third.Seq >= second.Seq {
			t.Fatalf("the third agent begins at %d, as if it knew the count; the second one was at %d", third.Seq, second.Seq)
		}
		w.agent.Assign(&wire.Assign{Full: true, Keep: []string{"i1"}, Total: 1, Seq: second.Seq})
		third := w.wantState("i1", model.InstanceRunning)
		if third.Seq <= second.Seq {
			t.Errorf("the third agent's status has number %d, the second one's had %d", third.Seq, second.Seq)
		}
		w.agent.Assign(&wire.Assign{Full: true, Keep: []string{"i1"}, Total: 1, Seq: third.Seq})
		if again := w.status("i1"); again.Seq != third.Seq {
			t.Errorf("what the cluster knows was told again, under number %d", again.Seq)
		}
	})
}

// TestTheLatestStatusIsKept: of statuses that several parts of a worker come upon at the same time, the one with the
// highest number is on disk in the end.
func TestTheLatestStatusIsKept(t *testing.T) {
	var log bytes.Buffer
	w := &worker{id: "i1", agent: &Agent{Deps: Deps{DataDir: t.TempDir()}}, log: slog.New(slog.NewTextHandler(&log, nil))}
	if err := os.MkdirAll(w.agent.assignments(), 0o700); err != nil {
		t.Fatal(err)
	}
	const last = 200
	var all sync.WaitGroup
	for n := range last {
		all.Go(func() { w.keep(&keptStatus{Status: model.InstanceStatus{Seq: uint64(n + 1)}}) })
	}
	all.Wait()
	if kept, ok := loadStatus(w.agent.assignments(), "i1"); !ok || kept.Status.Seq != last || log.Len() > 0 {
		t.Errorf("%d is kept (%v), want %d; %s", kept.Status.Seq, ok, last, log.String())
	}
}
