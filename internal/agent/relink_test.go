package agent

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/tutti-run/tutti/internal/model"
)

// TestLinksFollowWhileTasksRun: an instance joins and leaves networks without a new run, also while it is held, and
// who waits for that is told when it has happened.
func TestLinksFollowWhileTasksRun(t *testing.T) {
	inWorld(t, func(w *world) {
		as := w.assignment("i1", task("serve"))
		as.Template.KeepEnded = true
		w.assign(as)
		w.wantState("i1", model.InstanceRunning)

		side := *as
		side.Instance = as.Instance.Clone()
		template := as.Template.Clone()
		side.Template = &template
		side.Template.Networks = []model.Attachment{{Network: "side"}}
		side.Networks = []*model.Network{{Meta: model.Meta{ID: "side", Name: "side"}}}
		side.Instance.Addresses = []model.Address{{Network: "side", IP: "10.2.0.7"}}
		told := make(chan error, 1)
		go func() { told <- w.agent.Linked(context.Background(), "i1", side.Instance.Addresses) }()
		w.settle()
		select {
		case err := <-told:
			t.Fatalf("it is said to be linked before it is: %v", err)
		default:
		}
		w.assign(&side)
		if err := <-told; err != nil {
			t.Errorf("waiting for its links ended with %v", err)
		}
		if at := w.links.attached["i1"]; len(at.Interfaces) != 1 || at.Interfaces[0].IP.String() != "10.2.0.7" {
			t.Errorf("it is attached as %+v", at)
		}
		w.wantRuns("i1.app.1")
		hosts, err := os.ReadFile(filepath.Join(w.agent.files(), "i1", "hosts"))
		if err != nil || strings.Contains(string(hosts), "10.1.0.7") || !strings.Contains(string(hosts), "10.2.0.7\tweb-1") {
			t.Errorf("/etc/hosts is %q, %v", hosts, err)
		}

		w.want(&side, model.DesiredHold)
		w.untilState("i1", model.InstanceHeld)
		back := *as
		back.Instance = as.Instance.Clone()
		back.Instance.Desired = model.DesiredHold
		w.assign(&back)
		if at := w.links.attached["i1"]; len(at.Interfaces) != 1 || at.Interfaces[0].IP.String() != "10.1.0.7" {
			t.Errorf("held, it is attached as %+v", at)
		}
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		if err := w.agent.Linked(ctx, "i1", side.Instance.Addresses); err == nil {
			t.Error("it is said to have links that it has left")
		}
	})
}
