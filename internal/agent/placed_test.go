package agent

import (
	"slices"
	"testing"
	"time"

	"github.com/tutti-run/tutti/internal/fault"
	"github.com/tutti-run/tutti/internal/model"
	"github.com/tutti-run/tutti/internal/wire"
)

// TestWhatATaskIsToldOnceItIsPlaced holds that names in braces are filled in, and that Env wins.
func TestWhatATaskIsToldOnceItIsPlaced(t *testing.T) {
	inWorld(t, func(w *world) {
		spec := task("serve")
		spec.PlacedEnv = []string{"A={port.0},{port.1},{port.2}", "ID={instance.id}.{run}", "B=placed", "C={node.name}{unknown}", "R={node.room.cpu/1000},{node.room.memory/1024},{node.room.x/1}"}
		spec.Env = []string{"B=own"}
		as := w.assignment("i1", spec)
		as.Instance.HostPorts = []model.HostPort{{Protocol: "tcp", Published: 21000, Target: 80}, {Protocol: "udp", Published: 21001, Target: 21001}}
		as.Room = &model.Resources{NanoCPUs: 15e8, MemoryBytes: 4097}
		w.assign(as)
		w.wantState("i1", model.InstanceRunning)
		env := w.state.Started()[0].Env
		for _, want := range []string{"A=21000,21001,{port.2}", "ID=i1.1", "B=own", "C=" + w.agent.NodeName + "{unknown}", "R=2,5,{node.room.x/1}"} {
			if !slices.Contains(env, want) {
				t.Errorf("%s is not in %v", want, env)
			}
		}
	})
}

// TestTemplatesOfFiles: what a template may say, what it may not, and that only files that are templates are filled in.
func TestTemplatesOfFiles(t *testing.T) {
	inWorld(t, func(w *world) {
		spec := task("serve")
		spec.Env, spec.PlacedEnv = []string{"MODE=fast"}, []string{"HERE={node.name}"}
		spec.Mounts = []model.Mount{
			{Type: model.MountConfig, Source: "c1", Target: "/etc/app.conf"},
			{Type: model.MountConfig, Source: "c2", Target: "/plain"},
			{Type: model.MountSecret, Source: "s1", Target: "/run/secrets/password"},
		}
		as := w.assignment("i1", spec)
		as.Instance.Slot, as.Workload.Application, as.Workload.Name = 3, "shop", "web"
		as.Configs = map[string][]byte{
			"c1": []byte(`{{.Service.Name}} {{.Service.Labels.tier}} {{.Node.Hostname}} {{.Task.Slot}} {{.Task.Name}} {{env "MODE"}} {{env "HERE"}} {{secret "password"}} {{config "/plain"}}`),
			"c2": []byte("{{as it is}}"),
		}
		as.Secrets = map[string][]byte{"s1": []byte("open sesame")}
		as.Templated, as.Labels = map[string]bool{"c1": true}, map[string]string{"tier": "front"}
		w.assign(as)
		w.wantState("i1", model.InstanceRunning)
		want := []string{"shop_web front " + w.agent.NodeName + " 3 shop_web.3.i1 fast " + w.agent.NodeName + " open sesame {{as it is}}", "{{as it is}}", "open sesame"}
		files := w.secrets.files["i1"]
		if len(files) != len(want) {
			t.Fatalf("%d files, want %d", len(files), len(want))
		}
		for i, f := range files {
			if string(f.Data) != want[i] {
				t.Errorf("file %s is %q, want %q", f.Name, f.Data, want[i])
			}
		}
	})
	w := &worker{agent: &Agent{}}
	for _, bad := range []string{"{{", "{{.Service.Label}}", `{{secret "other"}}`, `{{define "x"}}{{template "x"}}{{end}}`, `{{printf "%100000s" "x" | printf "%s%s" | html}}{{nothing}}`} {
		as := &wire.Assignment{Instance: &model.Instance{}}
		if got, err := w.fillInFile(as, &model.TaskSpec{}, &model.Mount{Type: model.MountConfig, Target: "/c"}, []byte(bad)); !fault.Is(err, fault.Invalid) && !fault.Is(err, fault.NotFound) {
			t.Errorf("%s became %q, %v", bad, got, err)
		}
	}
}

// TestProbeOnce holds that a probe that is to pass once stops asking then, and does not end the task.
func TestProbeOnce(t *testing.T) {
	p := model.Probe{Interval: time.Second, Retries: 1, Once: true}
	s := newProbeState(p, time.Unix(0, 0), model.HealthNone)
	if got := s.result(time.Unix(100, 0), false); got != model.HealthStarting {
		t.Errorf("it failed and is %s", got)
	}
	if got := s.result(time.Unix(101, 0), true); got != model.HealthHealthy {
		t.Errorf("it passed and is %s", got)
	}
}
