package agent

import (
	"strings"
	"testing"
	"time"

	"github.com/tutti-run/tutti/internal/model"
)

func TestTheInstanceThatCanBestBeSparedIsEnded(t *testing.T) {
	inWorld(t, func(w *world) {
		low, plain, reserved, pod := w.assignment("low", task("serve")), w.assignment("plain", task("serve")), w.assignment("reserved", task("serve")), w.assignment("pod", task("serve"))
		low.Template.Placement.Priority, pod.Template.Placement.Priority, pod.Template.Separate = -1, 1, true
		reserved.Template.Tasks[0].Reserve.MemoryBytes = 1 << 30
		w.assign(low, plain, reserved, pod, w.leased("slot", "serve"))
		w.renew(5 * time.Second)
		for _, id := range []string{"low", "plain", "reserved", "pod", "slot"} {
			w.wantState(id, model.InstanceRunning)
		}
		for _, want := range []string{"low", "plain", "slot", "pod"} {
			if name := w.agent.Evict(t.Context(), "memory"); name == "" {
				t.Fatalf("nothing is ended, want %s", want)
			}
			w.renew(5 * time.Second)
			time.Sleep(time.Second)
			if st := w.status(want); !st.State.Final() || !strings.Contains(st.Message, "is short of memory: it used 1 MiB of memory that it had not reserved") {
				t.Fatalf("%s is %s: %s", want, st.State, st.Message)
			}
		}
		if name := w.agent.Evict(t.Context(), "memory"); name != "" {
			t.Errorf("%s is ended, which uses no more than it reserved", name)
		}
		w.wantState("reserved", model.InstanceRunning)
	})
}
