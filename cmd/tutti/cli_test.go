package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/tutti-run/tutti/internal/api/native"
	"github.com/tutti-run/tutti/internal/core"
	"github.com/tutti-run/tutti/internal/driver"
	"github.com/tutti-run/tutti/internal/fault"
	"github.com/tutti-run/tutti/internal/image"
	"github.com/tutti-run/tutti/internal/model"
	"github.com/tutti-run/tutti/internal/store"
	"github.com/tutti-run/tutti/internal/trust"
	"github.com/tutti-run/tutti/internal/trust/trusttest"
	"github.com/tutti-run/tutti/internal/wire"
)

type direct struct{ s *store.Store }

func (d direct) Propose(_ context.Context, data []byte) (store.Result, error) {
	return d.s.Apply(data), nil
}

type noNodes struct{ core.Remote }

func (noNodes) Logs(_ context.Context, _ string, _ wire.TaskRef, _ driver.LogOptions, yield func(driver.LogEntry) error) error {
	return yield(driver.LogEntry{Time: time.Unix(0, 0).UTC(), Stream: "stdout", Line: []byte("hello\n")})
}

func (noNodes) EnsureImage(context.Context, string, string, string) error { return nil }

type noImages struct{ core.Images }

func (noImages) Import(_ context.Context, r io.Reader, _ image.ImportOptions) ([]image.Info, error) {
	n, err := io.Copy(io.Discard, r)
	return []image.Info{{Name: "docker.io/shop/web:v1", Digest: "sha256:0123456789abcdef", SizeBytes: n}}, err
}

func (noImages) Ensure(_ context.Context, name, _ string, _ func(image.Progress)) (image.Info, error) {
	return image.Info{}, fault.New(fault.NotFound, "image %s does not exist", name)
}

type servers struct{ leader string }

func (s servers) Leader() string                      { return s.leader }
func (s servers) Addresses() []wire.ServerAddress     { return nil }
func (servers) Members() []core.Member                { return nil }
func (servers) Sync(context.Context) error            { return nil }
func (servers) Promote(context.Context, string) error { return nil }
func (servers) Demote(context.Context, string) error  { return nil }
func (servers) WriteBackup(to io.Writer) error {
	_, err := io.WriteString(to, "backup")
	return err
}
func (s servers) Remove(context.Context, string) error { return nil }

// town is a run directory with hosts in it.
type town struct {
	t    *testing.T
	dir  string
	core *core.Core

	trust *trust.Trust
}

func newTown(t *testing.T) *town {
	s := store.New(slog.New(slog.DiscardHandler))
	s.SetProposer(direct{s})
	c := &town{t: t, dir: t.TempDir(), trust: trusttest.Found(t, s)}
	c.core = c.newCore(s, "node1")
	c.put(
		&model.Node{Meta: model.Meta{ID: "node1", Name: "alpha"}, Server: true, HostAddress: "10.0.0.1", Status: model.NodeStatus{State: model.NodeReady}},
		&model.Image{Meta: model.Meta{ID: "image1", Name: "docker.io/shop/web:v1"}, Digest: "sha256:1"},
		&model.Image{Meta: model.Meta{ID: "image2", Name: "docker.io/shop/web:v2"}, Digest: "sha256:2"},
	)
	return c
}

func (c *town) newCore(s *store.Store, leader string) *core.Core {
	return core.New(core.Deps{Store: s, Trust: c.trust, Remote: noNodes{}, Images: noImages{}, Servers: servers{leader}, NodeID: "node1", Log: slog.New(slog.DiscardHandler)})
}

func (c *town) put(objects ...model.Object) {
	c.t.Helper()
	cs := &store.ChangeSet{}
	for _, o := range objects {
		cs.Put(o)
		switch o.Kind() {
		case model.KindWorkload, model.KindInstance, model.KindNode:
			cs.PutStatus(o)
		}
	}
	if _, err := c.core.Store.Commit(context.Background(), cs); err != nil {
		c.t.Fatal(err)
	}
}

// host serves at a path below the run directory.
func (c *town) host(path string, h native.Deps) {
	c.t.Helper()
	l, err := native.Listen(filepath.Join(c.dir, path))
	if err != nil {
		c.t.Fatal(err)
	}
	h.Log = slog.New(slog.DiscardHandler)
	handler := native.Refuse(fault.New(fault.Forbidden, "node beta is no server"))
	if h.Core != nil {
		handler = native.New(h)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- native.Serve(ctx, l, handler) }()
	c.t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			c.t.Error(err)
		}
	})
}

func (c *town) server() { c.host(socketName, native.Deps{Core: c.core, NodeName: "alpha"}) }

// tutti runs a command line.
func (c *town) tutti(args ...string) (stdout, stderr string, err error) {
	c.t.Helper()
	root := rootCommand(&globals{})
	var out, errOut strings.Builder
	root.SetOut(&out)
	root.SetErr(&errOut)
	root.SetArgs(append([]string{"--run-dir", c.dir}, args...))
	err = root.ExecuteContext(c.t.Context())
	return out.String(), errOut.String(), err
}

// says runs a command line that is to succeed and to say all of these.
func (c *town) says(args string, want ...string) {
	c.t.Helper()
	out, _, err := c.tutti(strings.Fields(args)...)
	if err != nil {
		c.t.Errorf("tutti %s: %v", args, err)
	}
	for _, w := range want {
		if !strings.Contains(out, w) {
			c.t.Errorf("tutti %s lacks %q:\n%s", args, w, out)
		}
	}
}

func (c *town) shop() {
	meta := func(id, name string) model.Meta {
		return model.Meta{ID: id, Namespace: model.DefaultNamespace, Application: "shop", Name: name, Created: time.Now().Add(-time.Hour)}
	}
	w := &model.Workload{Meta: meta("workload1", "web"), Type: model.ServiceWorkload, Count: 1, RevisionID: "workload1.r1"}
	w.Template.Tasks = []model.TaskSpec{{Name: "web", Image: "shop/web:v1"}}
	c.put(
		&model.Application{Meta: model.Meta{ID: "app1", Namespace: model.DefaultNamespace, Name: "shop", Created: time.Now()}, Source: "compose", Version: 3},
		w,
		&model.Service{Meta: meta("service1", "web"), WorkloadID: "workload1", Ports: []model.ServicePort{{Protocol: "tcp", Target: 80, Published: 8080}},
			Status: model.ServiceStatus{VirtualIPs: []model.Address{{Network: "network1", IP: "10.64.0.2"}}}},
		&model.Network{Meta: meta("network1", "default"), Status: model.NetworkStatus{Subnet: "10.64.0.0/24"}},
		&model.Volume{Meta: meta("volume1", "data"), Driver: "local", NodeID: "node1"},
		&model.Instance{
			Meta: meta("instance1", "web.1"), WorkloadID: "workload1", Slot: 1, RevisionID: "workload1.r1", NodeID: "node1", Desired: model.DesiredRun,
			Addresses: []model.Address{{Network: "network1", IP: "10.64.0.7"}},
			Status: model.InstanceStatus{State: model.InstanceRunning, Ready: true, Health: model.HealthHealthy, Restarts: 4,
				Tasks: []model.TaskStatus{{Name: "web", Run: 1, State: "running"}}},
		})
}

func TestLooking(t *testing.T) {
	c := newTown(t)
	c.server()
	c.says("ls", "no applications are deployed")
	c.shop()
	c.says("ls", "shop   ready   1/1     1           3         compose")
	c.says("ls shop", "shop/web   service   ready   1/1     shop/web:v1   60m")
	c.says("ps", "shop/web.1   instance1   healthy   alpha   10.64.0.7   8080->80/tcp   4          60m")
	c.says("ps alpha", "shop/web.1")
	c.says("services", "shop/web   10.64.0.2   8080->80/tcp")
	c.says("networks", "shop/default   network1   10.64.0.0/24   no")
	c.says("volumes", "shop/data   volume1   local    alpha")
	c.says("nodes", "alpha   ready   leader   10.0.0.1   1")
	c.says("image ls", "shop/web:v1   1", "shop/web:v2   2")
	agents, err := c.trust.JoinToken(false)
	if err != nil {
		t.Fatal(err)
	}
	servers, err := c.trust.JoinToken(true)
	if err != nil {
		t.Fatal(err)
	}
	c.says("token", agents)
	c.says("token --server", servers)
	c.says("token -o json", `"token": "`+agents+`"`)
	c.says("status", "All is well", "instances     1 of 1 ready")
	c.says("explain shop/web", "workload shop/web", "1 of 1 ready")
	c.says("logs shop", "shop/web.1 | hello\n")
	c.says("logs -t --no-prefix shop/web.1", "T", "hello\n")
	c.says("logs -o json shop", `"name":"shop/web.1"`)
	c.says("inspect shop/web", `"id": "workload1"`)
	c.says("inspect shop/default", `"subnet": "10.64.0.0/24"`)
	c.says("inspect alpha -o yaml", "id: node1\n")
	c.says("scale shop/web=2 -d", "")
	c.says("events", "workload shop/web scaled: from 1 to 2")
	c.says("node label alpha disk=ssd", "")
	c.says("node cordon alpha", "alpha takes no new work")
	c.says("nodes -o json", `"disk": "ssd"`, `"availability": "cordoned"`)
	c.says("version", "tutti ")

	var list []native.InstanceView
	out, _, err := c.tutti("ps", "-o", "json")
	if err == nil {
		err = json.Unmarshal([]byte(out), &list)
	}
	if err != nil || len(list) != 1 || list[0].ID != "instance1" {
		t.Errorf("ps -o json: %v\n%s", err, out)
	}
}

func TestStatusFailsWhenSomethingIsWrong(t *testing.T) {
	c := newTown(t)
	c.server()
	c.put(&model.Node{Meta: model.Meta{ID: "node2", Name: "beta"}, Status: model.NodeStatus{State: model.NodeDown}})
	for _, format := range []string{"table", "json"} {
		out, errOut, err := c.tutti("status", "-o", format)
		if code := exitCode(0); !errors.As(err, &code) || code != 1 {
			t.Errorf("it ends with %v", err)
		}
		if !strings.Contains(out, "beta is down") || errOut != "" {
			t.Errorf("it says %q and %q", out, errOut)
		}
	}
}

func TestConnect(t *testing.T) {
	c := newTown(t)
	_, _, err := c.tutti("ls")
	if err == nil || err.Error() != "no cluster runs on this host: start one with `tutti up`" {
		t.Errorf("without any host: %v", err)
	}
	stale := filepath.Join(c.dir, "hosts", "host-0", socketName)
	if l, err := native.Listen(stale); err != nil {
		t.Fatal(err)
	} else if err := os.Rename(stale, stale+".x"); err != nil {
		t.Fatal(err)
	} else {
		l.Close()
		os.Rename(stale+".x", stale)
	}
	if _, _, err := c.tutti("ls"); !fault.Is(err, fault.Unavailable) || !strings.Contains(err.Error(), "no server of the cluster answers") {
		t.Errorf("with a host that is down: %v", err)
	}
	c.host(socketName, native.Deps{})
	if _, _, err := c.tutti("ls"); !fault.Is(err, fault.Forbidden) || err.Error() != "node beta is no server" {
		t.Errorf("with an agent: %v", err)
	}
	find := func() string {
		t.Helper()
		g := &globals{RunDir: c.dir}
		client, err := g.connect(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		defer client.Close()
		p, err := client.Ping(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return p.Node
	}
	c.host(filepath.Join("hosts", "host-1", socketName), native.Deps{Core: c.newCore(c.core.Store, ""), NodeName: "leaderless"})
	if node := find(); node != "leaderless" {
		t.Errorf("with a server that knows no leader, it is %s", node)
	}
	c.host(filepath.Join("hosts", "host-2", socketName), native.Deps{Core: c.core, NodeName: "led"})
	if node := find(); node != "led" {
		t.Errorf("with a server that knows the leader too, it is %s", node)
	}
}

func TestCommandLinesThatCannotBeUnderstood(t *testing.T) {
	c := newTown(t)
	for args, says := range map[string]string{
		"frobnicate":       `no command "frobnicate"`,
		"deplyo":           "perhaps deploy was meant",
		"node":             "",
		"node frob x":      `tutti node has no command "frob"`,
		"ls a b":           "one application and nothing more",
		"status x":         "takes no arguments",
		"inspect":          "needs something",
		"scale":            "such as shop/web=3",
		"scale web":        "such as shop/web=3",
		"ps --frob":        "unknown flag",
		"ps -o xml":        "table, json and yaml",
		"exec web":         "an instance and a command",
		"logs x --since y": "is not a time",
		"image pack":       "--name",
	} {
		_, _, err := c.tutti(strings.Fields(args)...)
		if says == "" {
			if err != nil {
				t.Errorf("%s: %v", args, err)
			}
			continue
		}
		if !isUsage(err) || !strings.Contains(err.Error(), says) {
			t.Errorf("%s: %v", args, err)
		}
	}
}

func TestCompletion(t *testing.T) {
	c := newTown(t)
	c.server()
	c.shop()
	for args, want := range map[string]string{
		"logs ":       "shop\nshop/web\nshop/web.1\n",
		"logs shop/":  "shop/web\nshop/web.1\n",
		"scale ":      "shop/web=\n",
		"node drain ": "alpha\n",
		"image rm ":   "shop/web:v1\nshop/web:v2\n",
		"ps -o ":      "table\njson\nyaml\n",
	} {
		words := strings.Split(args, " ")
		out, _, err := c.tutti(append([]string{"__complete"}, words...)...)
		if err != nil || !strings.HasPrefix(out, want+":") {
			t.Errorf("%s completes to %q, %v", args, out, err)
		}
	}
}

func TestImportTellsWhatCame(t *testing.T) {
	c := newTown(t)
	c.server()
	path := filepath.Join(c.dir, "web.tar")
	if err := os.WriteFile(path, make([]byte, 3<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	c.says("image import "+path, "imported shop/web:v1 (3.0 MiB, 0123456789ab)")
	c.says("image import -o json "+path, `"sizeBytes": 3145728`)
	if _, _, err := c.tutti("image", "import", path+".gone"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a file that is not there: %v", err)
	}
}

const composeFile = `
services:
  web:
    image: shop/web:%s
    ports: ["8080:80"]
    deploy:
      replicas: 2
`

// control does a reconciler's work in one step: finish says what becomes of each workload that was
// not looked at yet.
func (c *town) control(finish func(w *model.Workload) []model.Object) {
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan struct{})
	c.t.Cleanup(func() { cancel(); <-ended })
	go func() {
		defer close(ended)
		for ctx.Err() == nil {
			for w := range store.List[*model.Workload](c.core.Store.Snapshot()) {
				if w.Status.Generation < w.Generation {
					w = w.Clone()
					w.Status.Generation, w.Status.Released = w.Generation, w.RevisionID
					c.put(append(finish(w), w)...)
				}
			}
			time.Sleep(5 * time.Millisecond)
		}
	}()
}

func healthy(w *model.Workload) []model.Object {
	var out []model.Object
	for slot := 1; slot <= w.Count; slot++ {
		out = append(out, &model.Instance{
			Meta:       model.Meta{ID: model.NewID(), Namespace: w.Namespace, Application: w.Application, Name: fmt.Sprintf("%s.%d", w.Name, slot), Created: time.Now()},
			WorkloadID: w.ID, Slot: slot, RevisionID: w.RevisionID, NodeID: "node1", Desired: model.DesiredRun,
			Status: model.InstanceStatus{State: model.InstanceRunning, Ready: true, Health: model.HealthHealthy},
		})
	}
	return out
}

func (c *town) compose(tag string) string {
	c.t.Helper()
	path := filepath.Join(c.dir, tag+".yaml")
	if err := os.WriteFile(path, fmt.Appendf(nil, composeFile, tag), 0o600); err != nil {
		c.t.Fatal(err)
	}
	return path
}

func TestDeployWaitsUntilAllIsReady(t *testing.T) {
	c := newTown(t)
	c.server()
	c.control(healthy)
	v1 := c.compose("v1")
	c.says("deploy --dry-run shop -f "+v1, "workload shop/web would be created")
	c.says("deploy shop -f "+v1, "workload shop/web created", "shop/web: ready (2/2)", "shop is deployed: 1 workload ready", "web is at port 8080 (tcp) of every node")
	c.says("deploy shop -f "+v1, "nothing was changed", "shop is deployed")
	c.says("scale shop/web=3", "shop/web: ready (3/3)")
	c.says("restart shop", "shop/web: ready (3/3)")

	out, errOut, err := c.tutti("deploy", "shop", "-o", "json", "-f", c.compose("v2"))
	var report deployReport
	if err == nil {
		err = json.Unmarshal([]byte(out), &report)
	}
	if err != nil || len(report.Outcomes) != 1 || report.Outcomes[0].State != "ready" || !strings.Contains(errOut, "workload shop/web updated") {
		t.Errorf("%v\n%s\n%s", err, out, errOut)
	}
}

// TestMarathonFilesAreKnownByTheirShape holds which files go to which reader, and what is said of those that
// go to none.
func TestMarathonFilesAreKnownByTheirShape(t *testing.T) {
	c := newTown(t)
	deps := native.Deps{Core: c.core, NodeName: "alpha", Manifests: map[string]core.ReadManifests{}}
	var got core.Manifests
	deps.Manifests["marathon"] = func(_ context.Context, _ core.Caller, m core.Manifests) ([]core.DeployResult, error) {
		got = m
		return []core.DeployResult{{Application: "shop", Changes: []core.Change{{Action: "created", Kind: model.KindWorkload, Name: "web"}}}}, nil
	}
	c.host(socketName, deps)
	file := func(name, body string) string {
		path := filepath.Join(c.dir, name)
		if err := os.WriteFile(path, []byte(body), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	app, group := file("app.json", `{"id": "/shop/web", "cmd": "x"}`), file("group", ` [{"id": "/g", "apps": []}]`)
	c.says("deploy -d -f "+app+" -f "+group, "workload shop/web created")
	if len(got.Files) != 2 || got.Files[0].Name != app || string(got.Files[1].Body) != ` [{"id": "/g", "apps": []}]` {
		t.Errorf("it was given %+v", got)
	}
	for args, want := range map[string]string{
		"deploy -f " + app + " -f " + c.compose("v1"):                               "deploy them one after the other",
		"deploy shop -f " + app:                                                     "leave it out",
		"deploy --profile x -f " + app:                                              "are for Compose files",
		"deploy -f " + file("bad.json", "{\n\"id\": }"):                             "bad.json: line 2: invalid character",
		"deploy shop -f " + file("c.json", `{"id": 1, "services": {"x": {"a":1}}}`): "services.x",
	} {
		if _, _, err := c.tutti(strings.Fields(args)...); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("tutti %s: %v; want %q", args, err, want)
		}
	}
}

func TestDeployFailsWhenItIsRolledBack(t *testing.T) {
	c := newTown(t)
	c.server()
	good := ""
	c.control(func(w *model.Workload) []model.Object {
		if good == "" {
			good = w.RevisionID
		}
		if w.RevisionID != good {
			w.PreviousRevisionID, w.RevisionID = w.RevisionID, good
			w.Status.Rollout = model.RolloutStatus{State: model.RolloutRolledBack, Revision: good, Message: "rolled back: web.1: unhealthy: no answer"}
			w.Status.Released = good
		}
		return healthy(w)
	})
	c.says("deploy shop -f "+c.compose("v1"), "shop is deployed")
	out, errOut, err := c.tutti("deploy", "shop", "-f", c.compose("v2"))
	if err == nil || err.Error() != "the deployment of shop did not succeed: shop/web is rolled back" {
		t.Errorf("it ends with %v", err)
	}
	if !strings.Contains(out, "shop/web: rolled back (2/2): web.1: unhealthy: no answer") || strings.Contains(out, "is deployed") || !strings.Contains(errOut, "workload shop/web") {
		t.Errorf("it says %q and %q", out, errOut)
	}
}

func TestDeployGivesUpInTime(t *testing.T) {
	c := newTown(t)
	c.server()
	_, errOut, err := c.tutti("deploy", "shop", "--timeout", "300ms", "-f", c.compose("v1"))
	if !fault.Is(err, fault.Unavailable) || !strings.Contains(err.Error(), "did not come to an end within 300ms") {
		t.Errorf("it ends with %v", err)
	}
	if !strings.Contains(errOut, "workload shop/web") {
		t.Errorf("it explains %q", errOut)
	}
	if _, _, err := c.tutti("deploy", "shop", "-d", "-f", c.compose("v2")); err != nil {
		t.Errorf("without waiting: %v", err)
	}
	if _, _, err := c.tutti("deploy", "shop", "-f", c.compose("v3")); !fault.Is(err, fault.NotFound) || !strings.Contains(err.Error(), "shop/web:v3") {
		t.Errorf("with an image that is not there: %v", err)
	}
}

func TestRemoveWaitsUntilInstancesHaveEnded(t *testing.T) {
	c := newTown(t)
	c.server()
	c.shop()
	_, _, err := c.tutti("rm", "shop", "--timeout", "200ms")
	if !fault.Is(err, fault.Unavailable) || !strings.Contains(err.Error(), "1 instance has not ended yet") {
		t.Errorf("with an instance that does not end: %v", err)
	}
	cs := &store.ChangeSet{}
	cs.Delete(model.KindInstance, "instance1")
	if _, err := c.core.Store.Commit(t.Context(), cs); err != nil {
		t.Fatal(err)
	}
	c.put(&model.Workload{Meta: model.Meta{ID: "workload2", Namespace: model.DefaultNamespace, Name: "alone"}, Type: model.ServiceWorkload})
	c.says("rm alone", "alone is removed")
	if _, _, err := c.tutti("rm", "alone"); !fault.Is(err, fault.NotFound) {
		t.Errorf("removing it again: %v", err)
	}
}

func TestJudge(t *testing.T) {
	view := func(edit func(v *native.WorkloadView)) *native.WorkloadView {
		v := &native.WorkloadView{Progress: native.Progress{Standing: native.StandingReady, Wanted: 2, Ready: 2, Updated: 2, Probed: true}}
		v.RevisionID = "want"
		edit(v)
		return v
	}
	elsewhere := func(state model.RolloutState) *native.WorkloadView {
		return view(func(v *native.WorkloadView) {
			v.RevisionID, v.Status.Rollout.State = "other", state
		})
	}
	for _, tt := range []struct {
		name     string
		v        *native.WorkloadView
		state    string
		good     bool
		ended    bool
		unproven time.Duration
	}{
		{"ready", view(func(*native.WorkloadView) {}), "ready", true, true, 0},
		{"ready, rolled back long ago", view(func(v *native.WorkloadView) { v.Status.Rollout.State = model.RolloutRolledBack }), "ready", true, true, 0},
		{"running without a probe", view(func(v *native.WorkloadView) { v.Probed = false }), "ready", true, true, proof},
		{"running without a probe, again", view(func(v *native.WorkloadView) { v.Probed, v.Restarts = false, 1 }), "ready", true, true, longProof},
		{"watched by the update", view(func(v *native.WorkloadView) {
			v.Probed, v.Status.Rollout.State = false, model.RolloutCompleted
		}), "ready", true, true, 0},
		{"on its way", view(func(v *native.WorkloadView) { v.Standing = native.StandingProgressing }), "progressing", false, false, 0},
		{"waiting", view(func(v *native.WorkloadView) { v.Standing = native.StandingWaiting }), "waiting", false, false, 0},
		{"failed", view(func(v *native.WorkloadView) { v.Standing = native.StandingFailed }), "failed", false, true, 0},
		{"being rolled back", elsewhere(model.RolloutRolling), "rollingBack", false, false, 0},
		{"rolled back", elsewhere(model.RolloutRolledBack), "rolledBack", false, true, 0},
		{"not even rolled back", elsewhere(model.RolloutFailed), "failed", false, true, 0},
		{"changed by somebody", elsewhere(model.RolloutUpdating), "changed", false, true, 0},
		{"removed by somebody", nil, "removed", false, true, 0},
	} {
		o := judge(goal{id: "w", name: "shop/web", revision: "want"}, tt.v)
		if o.State != tt.state || o.standing.Good() != tt.good || o.ended() != tt.ended || o.unproven != tt.unproven {
			t.Errorf("%s: it is %+v", tt.name, o)
		}
	}
}

func TestFinished(t *testing.T) {
	of := func(standings ...native.Standing) []outcome {
		var out []outcome
		for _, s := range standings {
			out = append(out, outcome{standing: s})
		}
		return out
	}
	const ready, failed, waiting, progressing = native.StandingReady, native.StandingFailed, native.StandingWaiting, native.StandingProgressing
	for _, tt := range []struct {
		list []outcome
		want bool
	}{
		{of(), true},
		{of(ready, native.StandingCompleted), true},
		{of(ready, failed), true},
		{of(ready, waiting), false},
		{of(failed, waiting), true},
		{of(failed, waiting, progressing), false},
	} {
		if got := finished(tt.list); got != tt.want {
			t.Errorf("%+v: %v", tt.list, got)
		}
	}
}

func TestWaitingOutlivesTheServer(t *testing.T) {
	c := newTown(t)
	c.server()
	c.shop()
	list, err := native.Dial(filepath.Join(c.dir, socketName)).Workloads(t.Context(), "")
	if err != nil {
		t.Fatal(err)
	}
	for name, asked := range map[string]string{
		"that is gone":           filepath.Join(c.dir, "gone.sock"),
		"that has lost the rest": filepath.Join(c.dir, "lost.sock"),
	} {
		if strings.HasSuffix(asked, "lost.sock") {
			stale := newTown(t) // knows of no workload, and of no leader
			stale.dir = c.dir
			stale.shop()
			stale.put(&model.Workload{Meta: model.Meta{ID: "workload1", Namespace: model.DefaultNamespace, Application: "shop", Name: "web"},
				Type: model.ServiceWorkload, Count: 9, RevisionID: "workload1.r1"})
			stale.host("lost.sock", native.Deps{Core: stale.newCore(stale.core.Store, ""), NodeName: "lost"})
		}
		w := &waiter{g: &globals{RunDir: c.dir}, client: native.Dial(asked), goals: goalsOf(list), board: boardFor(io.Discard)}
		out, err := w.settle(t.Context(), 20*time.Second, "it", io.Discard)
		if err != nil || len(out) != 1 || out[0].State != "ready" {
			t.Errorf("after a server %s: %+v, %v", name, out, err)
		}
	}
}
