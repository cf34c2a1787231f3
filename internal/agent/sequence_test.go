package agent

import (
	"os"
	"path/filepath"
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
