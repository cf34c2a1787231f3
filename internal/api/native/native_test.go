package native_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/user"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

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

// direct is a Proposer of one server: what is proposed applies at once.
type direct struct{ s *store.Store }

func (d direct) Propose(_ context.Context, data []byte) (store.Result, error) {
	return d.s.Apply(data), nil
}

// fakeNodes stands for all nodes.
type fakeNodes struct {
	logs func(ctx context.Context, ref wire.TaskRef, o driver.LogOptions, yield func(driver.LogEntry) error) error
	exec func(ctx context.Context, ref wire.TaskRef, spec driver.ExecSpec, s driver.Streams) (int, error)

	counts map[string]wire.CountsReply // by node

	paused  []string // instance, whether it is to pause
	archive []byte   // what was copied in last
}

func (f *fakeNodes) Logs(ctx context.Context, _ string, ref wire.TaskRef, o driver.LogOptions, yield func(driver.LogEntry) error) error {
	return f.logs(ctx, ref, o, yield)
}

func (f *fakeNodes) Debug(context.Context, string) (wire.NodeDebug, error) {
	return wire.NodeDebug{}, nil
}

func (f *fakeNodes) Attach(context.Context, string, wire.TaskRef, driver.Streams) error {
	return errors.New("the command line attaches to nothing")
}

func (f *fakeNodes) Dial(_ context.Context, _, _ string, port int, s driver.Streams) error {
	_, err := fmt.Fprintf(s.Stdout, "port %d", port)
	return err
}

func (f *fakeNodes) Signal(context.Context, string, wire.TaskRef, int) error {
	return errors.New("the command line sends no signals")
}

func (f *fakeNodes) Pause(_ context.Context, _ string, ref wire.TaskRef, pause bool) error {
	f.paused = append(f.paused, fmt.Sprint(ref.Instance, " ", pause))
	return nil
}

func (f *fakeNodes) Bound(context.Context, string, wire.TaskRef, model.Bounds) error { return nil }

func (f *fakeNodes) Linked(context.Context, string, string, []model.Address) error { return nil }

func (f *fakeNodes) Stats(context.Context, string, wire.TaskRef) (driver.Stats, error) {
	return driver.Stats{Time: time.Now(), MemoryBytes: 7, Pids: 2}, nil
}

func (f *fakeNodes) Processes(_ context.Context, _ string, ref wire.TaskRef) ([]driver.Process, error) {
	return []driver.Process{{PID: 42, Command: []string{ref.Instance, ref.Task}}}, nil
}

func (f *fakeNodes) Exec(ctx context.Context, _ string, ref wire.TaskRef, spec driver.ExecSpec, s driver.Streams) (int, error) {
	return f.exec(ctx, ref, spec, s)
}

// Files: what was written last is there under every path but /nosuch.

func (f *fakeNodes) FileStat(_ context.Context, _ string, r wire.FilesRequest) (wire.FileStat, error) {
	if r.Path == "/nosuch" {
		return wire.FileStat{}, fault.New(fault.NotFound, "no such file or directory: %s", r.Path)
	}
	return wire.FileStat{Name: path.Base(r.Path), Size: int64(len(f.archive))}, nil
}

func (f *fakeNodes) FileChanges(context.Context, string, wire.TaskRef) ([]wire.FileChange, error) {
	return nil, errors.New("the command line does not ask for changes")
}

func (f *fakeNodes) ReadFiles(_ context.Context, _ string, r wire.FilesRequest, w io.Writer) error {
	if r.Path == "/nosuch" {
		return fault.New(fault.NotFound, "no such file or directory: %s", r.Path)
	}
	if _, err := w.Write(f.archive); err != nil || r.Path != "/torn" {
		return err
	}
	return fault.New(fault.Unavailable, "the node has gone")
}

func (f *fakeNodes) WriteFiles(_ context.Context, _ string, _ wire.FilesRequest, archive io.Reader) (err error) {
	f.archive, err = io.ReadAll(archive)
	return err
}

func (f *fakeNodes) EnsureImage(context.Context, string, string, string) error { return nil }
func (f *fakeNodes) RemoveImage(context.Context, string, string) error         { return nil }
func (f *fakeNodes) AccessLog(_ context.Context, node string, r wire.AccessRequest, yield func(driver.LogEntry) error) error {
	line, err := json.Marshal(wire.Access{Service: "shop/web", Target: "/" + node, Status: 200, Dropped: uint64(r.Options.Tail)})
	return errors.Join(err, yield(driver.LogEntry{Line: line}))
}

func (f *fakeNodes) Flows(context.Context, string, time.Duration) ([]wire.Flow, error) {
	return nil, nil
}

func (f *fakeNodes) Counts(_ context.Context, node string) (wire.CountsReply, error) {
	return f.counts[node], nil
}

func (f *fakeNodes) Sizes(context.Context, string, wire.SizesRequest) (wire.SizesReply, error) {
	return wire.SizesReply{}, nil
}

func (f *fakeNodes) Try(context.Context, string, wire.TryRequest) (wire.TryReply, error) {
	return wire.TryReply{}, nil
}
func (f *fakeNodes) RemoveVolume(context.Context, string, string) error { return nil }

func (f *fakeNodes) ReadVolume(_ context.Context, _ string, v *model.Volume, w io.Writer) error {
	_, err := io.WriteString(w, "archive of "+v.Name)
	return err
}

func (f *fakeNodes) WriteVolume(_ context.Context, _ string, _ *model.Volume, archive io.Reader) error {
	_, err := io.Copy(io.Discard, archive)
	return err
}

// fakeImages takes any archive for one image whose name it is given, or the archive's content.
type fakeImages struct{}

func (fakeImages) Describe(context.Context, string, string) (image.Detail, error) {
	return image.Detail{}, errors.New("not asked for in this test")
}

func (fakeImages) Tag(context.Context, string, string, string) (image.Info, error) {
	return image.Info{}, errors.New("not asked for in this test")
}

func (fakeImages) Pull(context.Context, string, image.PullOptions) (image.Info, error) {
	return image.Info{}, errors.New("not asked for in this test")
}

func (fakeImages) Resolve(context.Context, string, image.Credentials) (image.Remote, error) {
	return image.Remote{}, errors.New("not asked for in this test")
}

func (fakeImages) Signatures(context.Context, string, string, image.Credentials) ([]image.Signature, error) {
	return nil, errors.New("not asked for in this test")
}

func (fakeImages) Push(context.Context, string, string, image.Credentials, func(image.Progress)) (ocispec.Descriptor, error) {
	return ocispec.Descriptor{}, fault.New(fault.Unsupported, "not in this test")
}

func (fakeImages) Export(context.Context, io.Writer, []string) error {
	return errors.New("not asked for in this test")
}

func (fakeImages) Import(_ context.Context, r io.Reader, o image.ImportOptions) ([]image.Info, error) {
	n, err := io.Copy(io.Discard, r)
	if err != nil {
		return nil, err
	}
	if o.Name == "" {
		return nil, fault.New(fault.Invalid, "the archive does not name its image; give one")
	}
	return []image.Info{{Name: "docker.io/library/" + o.Name, Digest: "sha256:abc", SizeBytes: n}}, nil
}

func (fakeImages) Ensure(_ context.Context, name, _ string, _ func(image.Progress)) (image.Info, error) {
	return image.Info{}, fault.New(fault.NotFound, "image %s does not exist", name)
}

type fakeServers struct{ leader string }

func (f fakeServers) Leader() string                      { return f.leader }
func (f fakeServers) Addresses() []wire.ServerAddress     { return nil }
func (fakeServers) Sync(context.Context) error            { return nil }
func (fakeServers) Members() []core.Member                { return nil }
func (fakeServers) Promote(context.Context, string) error { return nil }
func (fakeServers) Demote(context.Context, string) error  { return nil }
func (fakeServers) WriteBackup(to io.Writer) error {
	_, err := io.WriteString(to, "backup")
	return err
}
func (f fakeServers) Remove(context.Context, string) error { return nil }

// house is a server with an API, and a client of it.
type house struct {
	*native.Client
	t      *testing.T
	core   *core.Core
	nodes  *fakeNodes
	trust  *trust.Trust
	socket string
}

func quiet() *slog.Logger { return slog.New(slog.DiscardHandler) }

func newHouse(t *testing.T) *house {
	t.Helper()
	s := store.New(quiet())
	s.SetProposer(direct{s})
	h := &house{t: t, nodes: &fakeNodes{}, trust: trusttest.Found(t, s), socket: filepath.Join(t.TempDir(), "tutti.sock")}
	h.core = core.New(core.Deps{
		Store: s, Trust: h.trust, Remote: h.nodes, Images: fakeImages{}, Servers: fakeServers{leader: "node1"}, NodeID: "node1", Log: quiet(),
	})
	h.put(
		&model.Node{Meta: model.Meta{ID: "node1", Name: "alpha"}, Server: true, Status: model.NodeStatus{State: model.NodeReady}},
	)
	h.serve(native.New(native.Deps{Core: h.core, NodeName: "alpha", Version: "v0", Log: quiet()}))
	h.Client = native.Dial(h.socket)
	t.Cleanup(h.Close)
	return h
}

func (h *house) serve(handler http.Handler) {
	h.t.Helper()
	l, err := native.Listen(h.socket)
	if err != nil {
		h.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- native.Serve(ctx, l, handler) }()
	h.t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			h.t.Errorf("serve: %v", err)
		}
	})
}

func (h *house) put(objects ...model.Object) {
	h.t.Helper()
	cs := &store.ChangeSet{}
	for _, o := range objects {
		cs.Put(o)
	}
	if _, err := h.core.Store.Commit(context.Background(), cs); err != nil {
		h.t.Fatal(err)
	}
}

// shop is an application with one workload and a running instance of it.
func (h *house) shop() {
	meta := func(id, name string) model.Meta {
		return model.Meta{ID: id, Namespace: model.DefaultNamespace, Application: "shop", Name: name}
	}
	w := &model.Workload{Meta: meta("workload1", "web"), Type: model.ServiceWorkload, Count: 1, RevisionID: "workload1.r1"}
	w.Template.Tasks = []model.TaskSpec{{Name: "web"}}
	h.put(
		&model.Application{Meta: model.Meta{ID: "app1", Namespace: model.DefaultNamespace, Name: "shop"}, Version: 1},
		w,
		&model.Service{Meta: meta("service1", "web"), WorkloadID: "workload1", Ports: []model.ServicePort{{Protocol: "tcp", Target: 80, Published: 8080}}},
		&model.Instance{
			Meta: meta("instance1", "web.1"), WorkloadID: "workload1", Slot: 1, RevisionID: "workload1.r1", NodeID: "node1", Desired: model.DesiredRun,
			Status: model.InstanceStatus{State: model.InstanceRunning, Ready: true, Tasks: []model.TaskStatus{{Name: "web", Run: 1, State: "running"}}},
		},
	)
}

func must[T any](v T, err error) func(t *testing.T) T {
	return func(t *testing.T) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

func TestOnlyTheOwnerMayOpenTheSocket(t *testing.T) {
	path := filepath.Join(t.TempDir(), "deep", "tutti.sock")
	for range 2 { // the second replaces what the first leaves
		l, err := native.Listen(path)
		if err != nil {
			t.Fatal(err)
		}
		info, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		if info.Mode().Perm() != 0o600 {
			t.Errorf("the socket has mode %v", info.Mode().Perm())
		}
		entries, err := os.ReadDir(filepath.Dir(path))
		if err != nil || len(entries) != 1 {
			t.Errorf("beside the socket there is %v (%v)", entries, err)
		}
		t.Cleanup(func() { l.Close() })
	}
}

func TestReading(t *testing.T) {
	h := newHouse(t)
	h.shop()
	ctx := t.Context()

	if p := must(h.Ping(ctx))(t); p != (native.Ping{Node: "alpha", Leader: "alpha", Version: "v0"}) {
		t.Errorf("ping says %+v", p)
	}
	if s := must(h.Status(ctx))(t); !s.Healthy || s.Leader != "alpha" || s.Ready != 1 {
		t.Errorf("status says %+v", s)
	}
	apps := must(h.Applications(ctx))(t)
	if len(apps) != 1 || apps[0].Name != "shop" || apps[0].Standing != native.StandingReady || apps[0].Ready != 1 || apps[0].Wanted != 1 {
		t.Errorf("applications are %+v", apps)
	}
	workloads := must(h.Workloads(ctx, "shop"))(t)
	if len(workloads) != 1 || workloads[0].FullName() != "shop/web" || workloads[0].Standing != native.StandingReady || workloads[0].Probed {
		t.Errorf("workloads are %+v", workloads)
	}
	for _, choice := range []native.InstanceChoice{{}, {Ref: "shop"}, {Ref: "shop/web"}, {Ref: "web.1"}, {Ref: "shop/web.1"}, {Ref: "alpha"}, {Application: "shop"}} {
		if choice.Ref == "web.1" {
			continue // an instance has no short form
		}
		list := must(h.Instances(ctx, choice))(t)
		if len(list) != 1 || list[0].Node != "alpha" || list[0].Workload != "shop/web" || !list[0].Current || len(list[0].Ports) != 1 {
			t.Errorf("instances of %+v are %+v", choice, list)
		}
	}
	nodes := must(h.Nodes(ctx))(t)
	if len(nodes) != 1 || !nodes[0].Leader || nodes[0].Instances != 1 || nodes[0].Running != 1 {
		t.Errorf("nodes are %+v", nodes)
	}
	if list := must(h.Services(ctx))(t); len(list) != 1 || list[0].Ports[0].Published != 8080 {
		t.Errorf("services are %+v", list)
	}
	if list := must(h.Networks(ctx))(t); list == nil || len(list) != 0 {
		t.Errorf("networks are %+v", list)
	}
	if f := must(h.Find(ctx, "shop/web"))(t); f.Workload == nil || f.Workload.ID != "workload1" {
		t.Errorf("shop/web is %+v", f)
	}
	if e := must(h.Explain(ctx, "shop/web"))(t); e.Subject != "workload shop/web" {
		t.Errorf("the explanation is of %q", e.Subject)
	}
	for _, server := range []bool{true, false} {
		want := must(h.trust.JoinToken(server))(t)
		if token := must(h.Token(ctx, server))(t); token != want {
			t.Errorf("the token is %q, want %q", token, want)
		}
	}
}

func TestEndedInstancesAreListedOnRequest(t *testing.T) {
	h := newHouse(t)
	h.shop()
	h.put(&model.Instance{
		Meta:       model.Meta{ID: "instance0", Namespace: model.DefaultNamespace, Application: "shop", Name: "web.1"},
		WorkloadID: "workload1", Slot: 1, NodeID: "node1", Desired: model.DesiredStop, Status: model.InstanceStatus{State: model.InstanceCompleted},
	})
	if list := must(h.Instances(t.Context(), native.InstanceChoice{Ref: "shop/web"}))(t); len(list) != 1 {
		t.Errorf("%d instances are listed, the ended one among them", len(list))
	}
	if list := must(h.Instances(t.Context(), native.InstanceChoice{Ref: "shop/web", Ended: true}))(t); len(list) != 2 {
		t.Errorf("%d instances are listed in all", len(list))
	}
}

func TestChanging(t *testing.T) {
	h := newHouse(t)
	ctx := t.Context()
	d := core.Deployment{Application: "shop", Workloads: []*model.Workload{{
		Meta: model.Meta{Name: "web"}, Type: model.ServiceWorkload, Count: 1,
		Template: model.Template{Tasks: []model.TaskSpec{{Name: "web", Driver: "process", Args: []string{"true"}, Entrypoint: []string{}}}},
	}}}
	r := must(h.Deploy(ctx, d))(t)
	if r.Application != "shop" || len(r.Changes) != 1 || r.Changes[0].Action != "created" {
		t.Fatalf("the deployment changed %+v", r)
	}
	find := func() *model.Workload {
		t.Helper()
		return must(h.Find(ctx, "shop/web"))(t).Workload
	}
	if w := find(); w.Template.Tasks[0].Entrypoint == nil {
		t.Error("an empty entrypoint became none on its way")
	}
	before := find().RevisionID
	for _, step := range []struct {
		name  string
		do    func() error
		check func(w *model.Workload) bool
	}{
		{"scale", func() error { return h.Scale(ctx, "shop/web", 3) }, func(w *model.Workload) bool { return w.Count == 3 }},
		{"restart", func() error { return h.Restart(ctx, "shop/web") }, func(w *model.Workload) bool { return w.RevisionID != before }},
		{"rollback", func() error { return h.Rollback(ctx, "shop/web") }, func(w *model.Workload) bool { return w.RevisionID == before }},
	} {
		if err := step.do(); err != nil {
			t.Fatalf("%s: %v", step.name, err)
		}
		if w := find(); !step.check(w) {
			t.Errorf("after %s the workload is %+v", step.name, w)
		}
	}
	if err := h.Remove(ctx, "shop", true); err != nil {
		t.Fatal(err)
	}
	if _, err := h.Find(ctx, "shop"); !fault.Is(err, fault.NotFound) {
		t.Errorf("after it was removed, finding shop says %v", err)
	}
	me, err := user.Current()
	if err != nil {
		t.Fatal(err)
	}
	told := 0
	for e := range store.List[*model.Event](h.core.Store.Snapshot()) {
		if strings.Contains(e.Message, "by "+me.Username+" through cli") {
			told++
		}
	}
	if told < 5 {
		t.Errorf("%d events say who asked, of 5", told)
	}
}

func TestNodes(t *testing.T) {
	h := newHouse(t)
	ctx := t.Context()
	if err := h.SetAvailability(ctx, "alpha", model.Cordoned); err != nil {
		t.Fatal(err)
	}
	if err := h.LabelNode(ctx, "alpha", map[string]string{"disk": "ssd", "zone": "a"}, nil); err != nil {
		t.Fatal(err)
	}
	if err := h.LabelNode(ctx, "alpha", nil, []string{"zone"}); err != nil {
		t.Fatal(err)
	}
	n := must(h.Nodes(ctx))(t)[0]
	if n.Availability != model.Cordoned || len(n.Labels) != 1 || n.Labels["disk"] != "ssd" {
		t.Errorf("the node is %+v", n.Node)
	}
	if err := h.RemoveNode(ctx, "alpha"); !fault.Is(err, fault.Invalid) {
		t.Errorf("removing a node that is up says %v", err)
	}
}

func TestImages(t *testing.T) {
	h := newHouse(t)
	ctx := t.Context()
	const size = 12 << 20
	infos := must(h.ImportImage(ctx, io.LimitReader(zeros{}, size), "redis:7"))(t)
	if len(infos) != 1 || infos[0].SizeBytes != size {
		t.Fatalf("imported %+v", infos)
	}
	list := must(h.Images(ctx))(t)
	if len(list) != 1 || list[0].Name != "docker.io/library/redis:7" || len(list[0].Nodes) != 1 || list[0].Nodes[0] != "alpha" {
		t.Errorf("images are %+v", list)
	}
	if _, err := h.ImportImage(ctx, strings.NewReader("x"), ""); !fault.Is(err, fault.Invalid) {
		t.Errorf("an archive without a name gives %v", err)
	}
	if err := h.RemoveImage(ctx, "redis:7"); err != nil {
		t.Error(err)
	}
	if err := h.RemoveImage(ctx, "redis:7"); !fault.Is(err, fault.NotFound) {
		t.Errorf("removing it again says %v", err)
	}
}

func TestAnArchiveThatEndsEarlyIsNoImage(t *testing.T) {
	h := newHouse(t)
	broken := io.MultiReader(io.LimitReader(zeros{}, 1<<20), failing{})
	if _, err := h.ImportImage(t.Context(), broken, "redis:7"); err == nil {
		t.Error("an archive that could not be read to its end was imported")
	}
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }

type failing struct{}

func (failing) Read([]byte) (int, error) { return 0, errors.New("the disk is gone") }

// raw sends a request as curl would, with HTTP/1.1.
func (h *house) raw(method, path, body string) (*http.Response, string) {
	h.t.Helper()
	c := http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", h.socket)
	}}}
	req, err := http.NewRequestWithContext(h.t.Context(), method, "http://tutti"+path, strings.NewReader(body))
	if err != nil {
		h.t.Fatal(err)
	}
	resp, err := c.Do(req)
	if err != nil {
		h.t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		h.t.Fatal(err)
	}
	return resp, string(text)
}

func TestErrorsAreSentencesWithAKind(t *testing.T) {
	h := newHouse(t)
	h.shop()
	for _, tt := range []struct {
		method, path, body string
		status             int
		kind, says         string
	}{
		{"GET", "/v1/find?ref=nobody", "", 404, "not found", `is called "nobody"`},
		{"GET", "/v1/find", "", 400, "invalid", "nothing was named"},
		{"GET", "/v1/workloads?application=nobody", "", 404, "not found", "application nobody does not exist"},
		{"GET", "/v1/instances?ended=maybe", "", 400, "invalid", "true and false"},
		{"GET", "/v1/logs?ref=shop&tail=few", "", 400, "invalid", "not a number"},
		{"GET", "/v1/logs?ref=alpha", "", 400, "invalid", "alpha is a node"},
		{"GET", "/v1/events?since=yesterday", "", 400, "invalid", "not a time"},
		{"POST", "/v1/scale", `{"ref":"shop/web","count":-1}`, 400, "invalid", "negative"},
		{"POST", "/v1/scale", `{"ref":"shop/web","cuont":1}`, 400, "invalid", `unknown field "cuont"`},
		{"POST", "/v1/scale", "", 400, "invalid", "no body"},
		{"POST", "/v1/exec", `{"ref":"shop/web"}`, 400, "invalid", "no command"},
		{"POST", "/v1/rollback", `{"ref":"shop/web"}`, 400, "invalid", "no earlier revision"},
		{"POST", "/v1/deploy", `{"application":"x","workloads":[{"name":"a","type":"daemon","template":{"tasks":[{"name":"a"}]}}]}`, 501, "unsupported", "not supported yet"},
		{"GET", "/v1/nothing", "", 404, "not found", "GET /v1/nothing is not part of this API"},
		{"DELETE", "/v1/status", "", 404, "not found", "not part of this API"},
	} {
		resp, text := h.raw(tt.method, tt.path, tt.body)
		var body struct{ Error, Kind string }
		if err := json.Unmarshal([]byte(text), &body); err != nil {
			t.Errorf("%s %s: %q is no JSON: %v", tt.method, tt.path, text, err)
		}
		if resp.StatusCode != tt.status || body.Kind != tt.kind || !strings.Contains(body.Error, tt.says) {
			t.Errorf("%s %s answers %d %s: %s", tt.method, tt.path, resp.StatusCode, body.Kind, body.Error)
		}
	}
}

func TestEveryKindArrivesAsItWas(t *testing.T) {
	for kind := fault.Internal; kind <= fault.Unavailable; kind++ {
		h := &house{t: t, socket: filepath.Join(t.TempDir(), "s")}
		h.serve(native.Refuse(fault.New(kind, "no, %s", kind)))
		c := native.Dial(h.socket)
		_, err := c.Ping(t.Context())
		if fault.KindOf(err) != kind || err == nil || err.Error() != "no, "+kind.String() {
			t.Errorf("%v arrives as %v: %v", kind, fault.KindOf(err), err)
		}
		err = c.Logs(t.Context(), "x", driver.LogOptions{}, func(core.LogLine) error { return nil })
		if fault.KindOf(err) != kind {
			t.Errorf("%v arrives from a stream as %v", kind, err)
		}
		_, err = c.Exec(t.Context(), native.ExecRequest{Ref: "x", Args: []string{"y"}}, driver.Streams{})
		if fault.KindOf(err) != kind {
			t.Errorf("%v arrives from exec as %v", kind, err)
		}
		c.Close()
	}
}

func TestNobodyThere(t *testing.T) {
	c := native.Dial(filepath.Join(t.TempDir(), "tutti.sock"))
	if _, err := c.Status(t.Context()); !fault.Is(err, fault.Unavailable) || !errors.Is(err, os.ErrNotExist) {
		t.Errorf("without a socket: %v", err)
	}
}

func TestLogs(t *testing.T) {
	h := newHouse(t)
	h.shop()
	start := time.Date(2026, 1, 2, 3, 4, 5, 6, time.UTC)
	var asked driver.LogOptions
	h.nodes.logs = func(_ context.Context, ref wire.TaskRef, o driver.LogOptions, yield func(driver.LogEntry) error) error {
		asked = o
		for n := range 3 {
			e := driver.LogEntry{Time: start.Add(time.Duration(n) * time.Second), Stream: "stdout", Line: fmt.Appendf(nil, "line %d\n", n)}
			if err := yield(e); err != nil {
				return err
			}
		}
		return nil
	}
	want := driver.LogOptions{Tail: 7, Since: start, Until: start.Add(time.Hour)}
	var got []core.LogLine
	err := h.Logs(t.Context(), "shop/web", want, func(l core.LogLine) error { got = append(got, l); return nil })
	if err != nil {
		t.Fatal(err)
	}
	if asked != want {
		t.Errorf("the node was asked for %+v, want %+v", asked, want)
	}
	if len(got) != 3 || got[2].Name != "shop/web.1" || got[2].Node != "alpha" || string(got[2].Line) != "line 2\n" || !got[2].Time.Equal(start.Add(2*time.Second)) {
		t.Errorf("the lines are %+v", got)
	}
	stop := errors.New("enough")
	if err := h.Logs(t.Context(), "shop/web", want, func(core.LogLine) error { return stop }); !errors.Is(err, stop) {
		t.Errorf("a reader that has enough gets %v", err)
	}
}

func TestNetLog(t *testing.T) {
	h := newHouse(t)
	var got []core.AccessLine
	err := h.NetLog(t.Context(), "", driver.LogOptions{Tail: 7}, func(l core.AccessLine) error { got = append(got, l); return nil })
	if err != nil || len(got) == 0 || got[0].Node == "" || got[0].Service != "shop/web" || got[0].Status != 200 || got[0].Dropped != 7 {
		t.Errorf("the lines are %+v, %v", got, err)
	}
	if err := h.NetLog(t.Context(), "nobody", driver.LogOptions{Tail: -1}, func(core.AccessLine) error { return nil }); !fault.Is(err, fault.NotFound) {
		t.Errorf("the log of nobody: %v", err)
	}
}

func TestCountsAndMetrics(t *testing.T) {
	h := newHouse(t)
	h.put(&model.Service{Meta: model.Meta{ID: "s", Name: "web", Namespace: model.DefaultNamespace, Application: "shop"}})
	h.nodes.counts = map[string]wire.CountsReply{"node1": {
		Counts:   []wire.ServiceCount{{ServiceEntrance: wire.ServiceEntrance{Service: "s", Port: 8080, Protocol: "tcp"}, Connections: 3, Sent: 20, Received: 30}},
		Requests: map[string]uint64{"s": 7},
	}}
	got, err := h.NetCounts(t.Context(), "")
	if err != nil || len(got.Services) != 2 || got.Services[0].Connections != 3 || got.Services[1].Requests != 7 {
		t.Errorf("counts are %+v, %v", got, err)
	}
	client := &http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", h.socket)
	}}}
	resp, err := client.Get("http://tutti/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != 200 || !strings.HasPrefix(resp.Header.Get("Content-Type"), "text/plain; version=0.0.4") {
		t.Errorf("metrics give %s, %v, %v", resp.Status, resp.Header, err)
	}
	for _, line := range []string{
		"# TYPE tutti_service_connections_total counter",
		`tutti_service_connections_total{namespace="default",service="shop/web",entrance=":8080/tcp",node="alpha"} 3`,
		`tutti_service_bytes_total{namespace="default",service="shop/web",entrance=":8080/tcp",node="alpha",direction="sent"} 20`,
		`tutti_service_bytes_total{namespace="default",service="shop/web",entrance=":8080/tcp",node="alpha",direction="received"} 30`,
		`tutti_service_requests_total{namespace="default",service="shop/web",node="alpha"} 7`,
		"tutti_nodes_silent 0",
	} {
		if !strings.Contains(string(text), line+"\n") {
			t.Errorf("metrics have no line %s:\n%s", line, text)
		}
	}
}

func TestALogThatBreaksSaysSoAtItsEnd(t *testing.T) {
	h := newHouse(t)
	h.shop()
	h.nodes.logs = func(_ context.Context, _ wire.TaskRef, _ driver.LogOptions, yield func(driver.LogEntry) error) error {
		return errors.Join(yield(driver.LogEntry{Line: []byte("a\n")}), fault.New(fault.Unavailable, "the node is gone"))
	}
	n := 0
	err := h.Logs(t.Context(), "shop/web", driver.LogOptions{Tail: -1}, func(core.LogLine) error { n++; return nil })
	if n != 1 || !fault.Is(err, fault.Unavailable) || !strings.Contains(err.Error(), "the node is gone") {
		t.Errorf("%d lines, then %v", n, err)
	}
}

func TestLogsFollow(t *testing.T) {
	h := newHouse(t)
	h.shop()
	entries, ended := make(chan string), make(chan struct{})
	h.nodes.logs = func(ctx context.Context, _ wire.TaskRef, _ driver.LogOptions, yield func(driver.LogEntry) error) error {
		defer close(ended)
		for {
			select {
			case <-ctx.Done():
				return ctx.Err()
			case s := <-entries:
				if err := yield(driver.LogEntry{Line: []byte(s)}); err != nil {
					return err
				}
			}
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	got := make(chan string)
	result := make(chan error, 1)
	go func() {
		result <- h.Logs(ctx, "shop/web", driver.LogOptions{Follow: true, Tail: -1}, func(l core.LogLine) error {
			got <- string(l.Line)
			return nil
		})
	}()
	for _, s := range []string{"one\n", "two\n"} {
		entries <- s
		if l := <-got; l != s {
			t.Errorf("got %q, want %q", l, s)
		}
	}
	cancel()
	if err := <-result; err != nil {
		t.Errorf("a reader that goes away gets %v", err)
	}
	<-ended // and the node is told
}

func TestEvents(t *testing.T) {
	h := newHouse(t)
	h.shop()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	if err := h.Scale(ctx, "shop/web", 2); err != nil {
		t.Fatal(err)
	}
	got := make(chan model.Event)
	result := make(chan error, 1)
	go func() {
		result <- h.Events(ctx, time.Time{}, true, func(e model.Event) error { got <- e; return nil })
	}()
	if e := <-got; e.Type != "workload scaled" || e.Subject.Name != "shop/web" {
		t.Errorf("the first event is %+v", e)
	}
	if err := h.Scale(ctx, "shop/web", 3); err != nil {
		t.Fatal(err)
	}
	if e := <-got; !strings.HasPrefix(e.Message, "from 2 to 3") {
		t.Errorf("the next event is %+v", e)
	}
	cancel()
	if err := <-result; err != nil {
		t.Error(err)
	}
	n := 0
	if err := h.Events(t.Context(), time.Now().Add(time.Hour), false, func(model.Event) error { n++; return nil }); err != nil || n != 0 {
		t.Errorf("%d events of the future, %v", n, err)
	}
}

// shout answers each line of input in capitals, says what else reaches it on standard error, and
// ends at the end of input or by a signal.
func shout(ctx context.Context, _ wire.TaskRef, spec driver.ExecSpec, s driver.Streams) (int, error) {
	lines := make(chan string)
	go func() {
		defer close(lines)
		for in := bufio.NewScanner(s.Stdin); in.Scan(); {
			lines <- in.Text()
		}
	}()
	for {
		select {
		case l, ok := <-lines:
			if !ok {
				return 7, nil
			}
			fmt.Fprintln(s.Stdout, strings.ToUpper(l))
		case size := <-s.Resize:
			fmt.Fprintf(s.Stderr, "size %dx%d\n", size.Cols, size.Rows)
		case sig := <-s.Signals:
			return 128 + int(sig.(syscall.Signal)), nil
		case <-ctx.Done():
			return 0, ctx.Err()
		}
	}
}

func TestExecIsAConversation(t *testing.T) {
	h := newHouse(t)
	h.shop()
	var mu sync.Mutex
	var spec driver.ExecSpec
	var ref wire.TaskRef
	h.nodes.exec = func(ctx context.Context, r wire.TaskRef, sp driver.ExecSpec, s driver.Streams) (int, error) {
		mu.Lock()
		spec, ref = sp, r
		mu.Unlock()
		return shout(ctx, r, sp, s)
	}
	stdin, keyboard := io.Pipe()
	screen, stdout := io.Pipe()
	complaints, stderr := io.Pipe()
	resize := make(chan driver.Size)
	type end struct {
		code int
		err  error
	}
	ended := make(chan end, 1)
	req := native.ExecRequest{
		Ref: "shop/web", Task: "web", Args: []string{"sh", "-c", "x"}, Env: []string{"A=b"}, User: "u", WorkingDir: "/w", TTY: true, Rows: 24, Cols: 80,
	}
	go func() {
		code, err := h.Exec(t.Context(), req, driver.Streams{Stdin: stdin, Stdout: stdout, Stderr: stderr, Resize: resize})
		ended <- end{code, err}
	}()
	out, errs := bufio.NewReader(screen), bufio.NewReader(complaints)
	for _, word := range []string{"one", "two"} { // the second after the answer to the first
		fmt.Fprintln(keyboard, word)
		if l := must(out.ReadString('\n'))(t); l != strings.ToUpper(word)+"\n" {
			t.Errorf("%q is answered with %q", word, l)
		}
	}
	resize <- driver.Size{Rows: 50, Cols: 132}
	if l := must(errs.ReadString('\n'))(t); l != "size 132x50\n" {
		t.Errorf("a new size arrives as %q", l)
	}
	keyboard.Close()
	if e := <-ended; e.code != 7 || e.err != nil {
		t.Errorf("it ends with code %d, %v", e.code, e.err)
	}
	want := driver.ExecSpec{Args: req.Args, Env: req.Env, User: "u", WorkingDir: "/w", TTY: true, Rows: 24, Cols: 80}
	mu.Lock()
	defer mu.Unlock()
	if fmt.Sprint(spec) != fmt.Sprint(want) || ref != (wire.TaskRef{Instance: "instance1", Task: "web"}) {
		t.Errorf("it ran %+v in %+v", spec, ref)
	}
}

func TestExecPassesSignalsOn(t *testing.T) {
	h := newHouse(t)
	h.shop()
	h.nodes.exec = shout
	stdin, _ := io.Pipe()
	signals := make(chan os.Signal, 1)
	signals <- syscall.SIGINT
	code, err := h.Exec(t.Context(), native.ExecRequest{Ref: "shop/web.1", Args: []string{"x"}}, driver.Streams{Stdin: stdin, Signals: signals})
	if code != 130 || err != nil {
		t.Errorf("it ends with %d, %v", code, err)
	}
}

func TestExecCarriesMuch(t *testing.T) {
	h := newHouse(t)
	h.shop()
	h.nodes.exec = func(_ context.Context, _ wire.TaskRef, _ driver.ExecSpec, s driver.Streams) (int, error) {
		_, err := io.Copy(s.Stdout, s.Stdin)
		return 0, err
	}
	in := bytes.Repeat([]byte("0123456789\xff\x00"), 1<<18)
	var out bytes.Buffer
	code, err := h.Exec(t.Context(), native.ExecRequest{Ref: "shop/web", Args: []string{"cat"}}, driver.Streams{Stdin: bytes.NewReader(in), Stdout: &out})
	if code != 0 || err != nil || !bytes.Equal(in, out.Bytes()) {
		t.Errorf("code %d, %v, %d bytes of %d", code, err, out.Len(), len(in))
	}
}

func TestExecWithoutInput(t *testing.T) {
	h := newHouse(t)
	h.shop()
	h.nodes.exec = func(_ context.Context, _ wire.TaskRef, _ driver.ExecSpec, s driver.Streams) (int, error) {
		if s.Stdin != nil {
			return 1, nil
		}
		fmt.Fprint(s.Stdout, "done")
		return 0, fault.New(fault.Unavailable, "the node is gone")
	}
	var out bytes.Buffer
	_, err := h.Exec(t.Context(), native.ExecRequest{Ref: "shop/web", Args: []string{"x"}}, driver.Streams{Stdout: &out})
	if !fault.Is(err, fault.Unavailable) || out.String() != "done" {
		t.Errorf("%q, then %v", out.String(), err)
	}
	_, err = h.Exec(t.Context(), native.ExecRequest{Ref: "shop", Args: []string{"x"}}, driver.Streams{})
	if !fault.Is(err, fault.Invalid) {
		t.Errorf("exec in an application: %v", err)
	}
}

func TestAProcessEndsWithItsClient(t *testing.T) {
	h := newHouse(t)
	h.shop()
	ended := make(chan struct{})
	h.nodes.exec = func(ctx context.Context, _ wire.TaskRef, _ driver.ExecSpec, s driver.Streams) (int, error) {
		fmt.Fprintln(s.Stdout, "here I am")
		<-ctx.Done()
		close(ended)
		return 0, ctx.Err()
	}
	ctx, cancel := context.WithCancel(t.Context())
	stdin, _ := io.Pipe()
	screen, stdout := io.Pipe()
	result := make(chan error, 1)
	go func() {
		_, err := h.Exec(ctx, native.ExecRequest{Ref: "shop/web", Args: []string{"x"}}, driver.Streams{Stdin: stdin, Stdout: stdout})
		result <- err
	}()
	must(bufio.NewReader(screen).ReadString('\n'))(t)
	cancel()
	if err := <-result; !errors.Is(err, context.Canceled) {
		t.Errorf("the client got %v", err)
	}
	<-ended
}

func TestServeEndsWhatFollows(t *testing.T) {
	h := newHouse(t)
	socket := filepath.Join(t.TempDir(), "s")
	l, err := native.Listen(socket)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	served := make(chan error, 1)
	go func() {
		served <- native.Serve(ctx, l, native.New(native.Deps{Core: h.core, NodeName: "alpha", Log: quiet()}))
	}()
	c := native.Dial(socket)
	defer c.Close()
	h.shop()
	if err := h.Scale(t.Context(), "shop/web", 2); err != nil {
		t.Fatal(err)
	}
	first := make(chan struct{})
	followed := make(chan error, 1)
	var once sync.Once
	go func() {
		followed <- c.Events(t.Context(), time.Time{}, true, func(model.Event) error { once.Do(func() { close(first) }); return nil })
	}()
	<-first
	cancel()
	if err := <-served; err != nil {
		t.Error(err)
	}
	<-followed
	if _, err := os.Stat(socket); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the socket is still there: %v", err)
	}
}

func TestWhatRunsIsHeldAndLookedAt(t *testing.T) {
	h := newHouse(t)
	h.shop()
	if err := h.Pause(t.Context(), "shop/web", true); err != nil {
		t.Fatal(err)
	}
	if err := h.Pause(t.Context(), "shop/web.1", false); err != nil {
		t.Fatal(err)
	}
	if want := []string{"instance1 true", "instance1 false"}; !slices.Equal(h.nodes.paused, want) {
		t.Errorf("nodes were told %q, want %q", h.nodes.paused, want)
	}
	usage, err := h.Usage(t.Context(), "")
	if err != nil || len(usage) != 1 || usage[0].Instance != "shop/web.1" || usage[0].Node != "alpha" || usage[0].Stats.MemoryBytes != 7 {
		t.Errorf("usage is %+v, %v", usage, err)
	}
	list, err := h.Processes(t.Context(), "shop/web", "web")
	if err != nil || len(list) != 1 || list[0].PID != 42 || !slices.Equal(list[0].Command, []string{"instance1", "web"}) {
		t.Errorf("processes are %+v, %v", list, err)
	}
	if _, err := h.Usage(t.Context(), "nobody"); !fault.Is(err, fault.NotFound) {
		t.Errorf("usage of what does not exist gave %v", err)
	}
}

func TestFilesAreCopiedBothWays(t *testing.T) {
	h := newHouse(t)
	h.shop()
	at := core.Files{Ref: "shop/web.1", Path: "/data"}
	if err := h.WriteFiles(t.Context(), at, strings.NewReader("an archive")); err != nil {
		t.Fatal(err)
	}
	if st, err := h.FileStat(t.Context(), at); err != nil || st.Name != "data" || st.Size != 10 {
		t.Errorf("a file is told of as %+v, %v", st, err)
	}
	var got strings.Builder
	if err := h.ReadFiles(t.Context(), at, &got); err != nil || got.String() != "an archive" {
		t.Errorf("read %q, %v", got.String(), err)
	}
	at.Path = "/nosuch"
	if err := h.ReadFiles(t.Context(), at, io.Discard); !fault.Is(err, fault.NotFound) {
		t.Errorf("what is not there: %v", err)
	}
	at.Path = "/torn"
	if err := h.ReadFiles(t.Context(), at, io.Discard); !fault.Is(err, fault.Unavailable) {
		t.Errorf("what breaks off looks whole: %v", err)
	}
}
