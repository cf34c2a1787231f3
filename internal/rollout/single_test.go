package rollout

import (
	"testing"

	"github.com/tutti-run/tutti/internal/model"
)

func TestNothingTakesThePlaceOfASingleInstance(t *testing.T) {
	w := &model.Workload{Meta: model.Meta{ID: "w", Name: "one"}, Type: model.SingleWorkload, Count: 1, RevisionID: "w.1"}
	out := Next(Input{Workload: w})
	if len(out.Actions) != 1 || out.Actions[0].Type != Create || out.Actions[0].Slot != 1 || out.Actions[0].RevisionID != "w.1" {
		t.Fatalf("first there is to be done %+v", out.Actions)
	}
	for _, state := range []model.InstanceState{model.InstancePending, model.InstanceRunning, model.InstanceCompleted, model.InstanceFailed, model.InstanceLost} {
		i := &model.Instance{Meta: model.Meta{ID: "i"}, WorkloadID: "w", Slot: 1, RevisionID: "w.0", NodeID: "n", Desired: model.DesiredRun, Status: model.InstanceStatus{State: state}}
		if out := Next(Input{Workload: w, Instances: []*model.Instance{i}, Leaving: map[string]bool{"n": true}}); len(out.Actions) != 0 {
			t.Errorf("once it is %s there is to be done %+v", state, out.Actions)
		}
	}
}
