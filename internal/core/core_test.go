package core_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	godigest "github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/tutti-run/tutti/internal/core"
	"github.com/tutti-run/tutti/internal/driver"
	"github.com/tutti-run/tutti/internal/fault"
	"github.com/tutti-run/tutti/internal/image"
	"github.com/tutti-run/tutti/internal/model"
	"github.com/tutti-run/tutti/internal/store"
	"github.com/tutti-run/tutti/internal/trust/trusttest"
	"github.com/tutti-run/tutti/internal/wire"
)

var anna = core.Local("anna", "test")

// bench is a Core over a store of its own, with the rest of the cluster played by the test.
type bench struct {
	*testing.T
	*core.Core

	mu      sync.Mutex
	outrun  func()   // called once, before the next proposal is applied
	lost    []bool   // of the next proposals there is no answer; whether they are applied
	removed []string // volumes
	signals []string // node, task, signal
	paused  []string // node, instance, whether it is to pause
	reads   int      // of usage
	left    []string // servers taken out of the quorum
	flows   map[string][]wire.Flow
	counts  map[string]wire.CountsReply
	access  func(ctx context.Context, node string, r wire.AccessRequest, yield func(driver.LogEntry) error) error

	restored   []string          // volumes
	registry   map[string]string // what is in registries, by name
	pulled     []pulled
	signatures []image.Signature // of any image
}

type pulled struct {
	name string
	as   image.Credentials
}

func newBench(t *testing.T) *bench {
	b := &bench{T: t}
	s := store.New(slog.New(slog.DiscardHandler))
	s.SetProposer(b)
	b.Core = &core.Core{Deps: core.Deps{Store: s}} // for Propose, until the rest is there
	b.Core = core.New(core.Deps{Store: s, Trust: trusttest.Found(t, s), Remote: b, Images: b, Servers: quorum{b}, NodeID: "n1", Log: slog.New(slog.DiscardHandler)})
	for _, id := range []string{"n1", "n2"} {
		b.put(&model.Node{
			Meta: model.Meta{ID: id, Name: "node-" + id}, Server: id == "n1",
			Capacity: model.Resources{NanoCPUs: 2e9, MemoryBytes: 4 << 30}, Status: model.NodeStatus{State: model.NodeReady},
		})
	}
	return b
}

func (b *bench) Propose(_ context.Context, data []byte) (store.Result, error) {
	b.mu.Lock()
	f := b.outrun
	b.outrun = nil
	var lost, applied bool
	if len(b.lost) > 0 {
		lost, applied, b.lost = true, b.lost[0], b.lost[1:]
	}
	b.mu.Unlock()
	if f != nil {
		f()
	}
	if lost && !applied {
		return store.Result{}, errNoAnswer
	}
	r := b.Store.Apply(data)
	if lost {
		return store.Result{}, errNoAnswer
	}
	return r, nil
}

var errNoAnswer = fault.New(fault.Unavailable, "the leader did not answer")

func (b *bench) put(obj model.Object) {
	b.Helper()
	var cs store.ChangeSet
	cs.Put(obj)
	if _, err := b.Store.Commit(b.Context(), &cs); err != nil {
		b.Fatal(err)
	}
}

// What a bench plays of other nodes, of images and of the quorum.

func (b *bench) Logs(context.Context, string, wire.TaskRef, driver.LogOptions, func(driver.LogEntry) error) error {
	return nil
}

func (b *bench) Dial(_ context.Context, _, instance string, port int, s driver.Streams) error {
	_, err := fmt.Fprintf(s.Stdout, "%s:%d", instance, port)
	return err
}

func (b *bench) Attach(_ context.Context, node string, _ wire.TaskRef, s driver.Streams) error {
	_, err := s.Stdout.Write([]byte(node))
	return err
}

func (b *bench) Signal(_ context.Context, node string, ref wire.TaskRef, signal int) error {
	b.signals = append(b.signals, fmt.Sprint(node, " ", ref.Task, " ", signal))
	return nil
}

func (b *bench) Pause(_ context.Context, node string, ref wire.TaskRef, pause bool) error {
	b.paused = append(b.paused, fmt.Sprint(node, " ", ref.Instance, " ", pause))
	return nil
}

func (b *bench) Bound(_ context.Context, node string, ref wire.TaskRef, bounds model.Bounds) error {
	b.paused = append(b.paused, fmt.Sprint(node, " ", ref.Instance, " ", bounds.Limit.MemoryBytes))
	return nil
}

// Linked finds every instance on its networks.
func (b *bench) Debug(_ context.Context, node string) (wire.NodeDebug, error) {
	return wire.NodeDebug{Time: time.Now().Add(time.Minute), Kernel: "of " + node}, nil
}
func (b *bench) Linked(context.Context, string, string, []model.Address) error { return nil }

// Sizes are those of the node n1; the others do not answer.
func (b *bench) Sizes(_ context.Context, node string, r wire.SizesRequest) (out wire.SizesReply, _ error) {
	if node != "n1" {
		return out, fault.New(fault.Unavailable, "%s is away", node)
	}
	for _, t := range r.Tasks {
		size := wire.TaskSize{Written: 5, Total: 105}
		if t.Task == "unknown" {
			size = wire.TaskSize{Written: wire.UnknownSize, Total: wire.UnknownSize}
		}
		out.Tasks = append(out.Tasks, size)
	}
	for range r.Volumes {
		out.Volumes = append(out.Volumes, 7)
	}
	return out, nil
}

// Stats tells of a node n1 with tasks that use half a processor; n2 does not answer.
func (b *bench) Stats(_ context.Context, node string, _ wire.TaskRef) (driver.Stats, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if node != "n1" {
		return driver.Stats{}, fault.New(fault.Unavailable, "node is down")
	}
	b.reads++
	n := uint64(b.reads)
	return driver.Stats{Time: time.Unix(int64(n), 0), CPUNanoseconds: n * 5e8, MemoryBytes: 7, Pids: 2}, nil
}

func (b *bench) Processes(_ context.Context, node string, ref wire.TaskRef) ([]driver.Process, error) {
	return []driver.Process{{PID: 42, Command: []string{node, ref.Instance, ref.Task}}}, nil
}

func (b *bench) Exec(_ context.Context, node string, ref wire.TaskRef, _ driver.ExecSpec, _ driver.Streams) (int, error) {
	return len(node + ref.Instance), nil
}

// Files are told of by where they were asked for.

func (b *bench) FileStat(_ context.Context, node string, r wire.FilesRequest) (wire.FileStat, error) {
	return wire.FileStat{Name: node + " " + r.Instance + " " + r.Path}, nil
}

func (b *bench) FileChanges(context.Context, string, wire.TaskRef) ([]wire.FileChange, error) {
	return nil, errors.New("not asked for in this test")
}

func (b *bench) ReadFiles(_ context.Context, node string, r wire.FilesRequest, w io.Writer) error {
	_, err := fmt.Fprint(w, node, " ", r.Instance, " ", r.Path, " ", r.What)
	return err
}

func (b *bench) WriteFiles(context.Context, string, wire.FilesRequest, io.Reader) error {
	return errors.New("not asked for in this test")
}

func (b *bench) EnsureImage(context.Context, string, string, string) error { return nil }
func (b *bench) RemoveImage(context.Context, string, string) error         { return nil }

func (b *bench) AccessLog(ctx context.Context, node string, r wire.AccessRequest, yield func(driver.LogEntry) error) error {
	if b.access == nil {
		return nil
	}
	return b.access(ctx, node, r, yield)
}

func (b *bench) Flows(_ context.Context, node string, _ time.Duration) ([]wire.Flow, error) {
	return b.flows[node], nil
}

func (b *bench) Counts(_ context.Context, node string) (wire.CountsReply, error) {
	return b.counts[node], nil
}

func (b *bench) Try(_ context.Context, node string, r wire.TryRequest) (wire.TryReply, error) {
	return wire.TryReply{Addresses: []string{"10.0.0.1"}}, nil
}

func (b *bench) ReadVolume(_ context.Context, node string, v *model.Volume, w io.Writer) error {
	_, err := fmt.Fprintf(w, "%s of %s", v.Name, node)
	return err
}

func (b *bench) WriteVolume(_ context.Context, node string, v *model.Volume, archive io.Reader) error {
	data, err := io.ReadAll(archive)
	b.mu.Lock()
	defer b.mu.Unlock()
	b.restored = append(b.restored, fmt.Sprintf("%s on %s: %s", v.FullName(), node, data))
	return err
}

func (b *bench) RemoveVolume(_ context.Context, node, id string) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.removed = append(b.removed, node+" "+id)
	return nil
}

func (b *bench) Describe(context.Context, string, string) (image.Detail, error) {
	return image.Detail{}, errors.New("not asked for in this test")
}

func (b *bench) Tag(context.Context, string, string, string) (image.Info, error) {
	return image.Info{}, errors.New("not asked for in this test")
}

func (b *bench) Push(context.Context, string, string, image.Credentials, func(image.Progress)) (ocispec.Descriptor, error) {
	return ocispec.Descriptor{}, fault.New(fault.Unavailable, "not played")
}

func (b *bench) Pull(_ context.Context, ref string, o image.PullOptions) (image.Info, error) {
	b.pulled = append(b.pulled, pulled{ref, o.As})
	digest, ok := b.registry[ref]
	if !ok {
		return image.Info{}, fault.New(fault.NotFound, "%s is in no registry", ref)
	}
	return image.Info{Name: ref, Digest: digest, Pulled: true}, nil
}

func (b *bench) Resolve(_ context.Context, ref string, _ image.Credentials) (image.Remote, error) {
	digest, ok := b.registry[ref]
	if !ok {
		return image.Remote{}, fault.New(fault.Unavailable, "the registry of %s is silent", ref)
	}
	return image.Remote{Target: ocispec.Descriptor{Digest: godigest.Digest(digest)}}, nil
}

func (b *bench) Signatures(context.Context, string, string, image.Credentials) ([]image.Signature, error) {
	return b.signatures, nil
}

func (b *bench) Export(context.Context, io.Writer, []string) error {
	return errors.New("not asked for in this test")
}

func (b *bench) Import(context.Context, io.Reader, image.ImportOptions) ([]image.Info, error) {
	return nil, nil
}

func (b *bench) Ensure(_ context.Context, name, _ string, _ func(image.Progress)) (image.Info, error) {
	if strings.Contains(name, "missing") {
		return image.Info{}, fault.New(fault.NotFound, "image %s does not exist", name)
	}
	full, err := image.Normalize(name)
	return image.Info{Name: full, Digest: "sha256:" + full}, err
}

func (b *bench) remove(ref string, data bool) error {
	return b.Remove(b.Context(), anna, ref, data)
}

// quorum is the bench as core sees the servers.
type quorum struct{ b *bench }

func (q quorum) Leader() string                  { return "n1" }
func (q quorum) Addresses() []wire.ServerAddress { return nil }

func (q quorum) Members() []core.Member                { return nil }
func (q quorum) Sync(ctx context.Context) error        { return ctx.Err() }
func (q quorum) Promote(context.Context, string) error { return nil }
func (q quorum) Demote(context.Context, string) error  { return nil }
func (quorum) WriteBackup(to io.Writer) error {
	_, err := io.WriteString(to, "backup")
	return err
}
func (q quorum) Remove(_ context.Context, id string) error {
	q.b.left = append(q.b.left, id)
	return nil
}

// shop is an application of a web and a database that it depends on.
func shop(change ...func(d *core.Deployment)) core.Deployment {
	d := core.Deployment{
		Application: "shop", Source: "compose",
		Networks: []*model.Network{{Meta: model.Meta{Name: "front"}}},
		Volumes:  []*model.Volume{{Meta: model.Meta{Name: "data"}}},
		Secrets:  []core.SecretData{{Meta: model.Meta{Name: "password"}, Data: []byte("geheim")}},
		Configs:  []*model.Config{{Meta: model.Meta{Name: "settings"}, Data: []byte("colour=red")}},
		Workloads: []*model.Workload{
			{Meta: model.Meta{Name: "web"}, Type: model.ServiceWorkload, Count: 2, DependsOn: []model.Dependency{{Workload: "db", Condition: model.DependencyHealthy}},
				Template: model.Template{
					Networks: []model.Attachment{{Network: "front"}},
					Tasks:    []model.TaskSpec{{Name: "main", Image: "web:1", Mounts: []model.Mount{{Type: model.MountConfig, Source: "settings", Target: "/settings"}}}},
				}},
			{Meta: model.Meta{Name: "db"}, Type: model.ServiceWorkload, Count: 1,
				Template: model.Template{Tasks: []model.TaskSpec{{Name: "main", Image: "db:5", Mounts: []model.Mount{
					{Type: model.MountVolume, Source: "data", Target: "/data"}, {Type: model.MountSecret, Source: "password", Target: "/password"},
				}}}}},
		},
		Services: []*model.Service{{
			Meta: model.Meta{Name: "web"}, WorkloadID: "web", Networks: []string{"front"}, Aliases: map[string][]string{"front": {"www"}},
			Ports: []model.ServicePort{{Protocol: "tcp", Target: 80, Published: 8080}},
		}},
	}
	for _, f := range change {
		f(&d)
	}
	return d
}

func (b *bench) deploy(d core.Deployment) core.DeployResult {
	b.Helper()
	r, err := b.Deploy(b.Context(), anna, d)
	if err != nil {
		b.Fatal(err)
	}
	return r
}

// changes returns what a deployment did, apart from what it left alone.
func changes(r core.DeployResult) []string {
	var out []string
	for _, ch := range r.Changes {
		if ch.Action != "unchanged" {
			out = append(out, fmt.Sprint(ch.Action, " ", ch.Kind, " ", ch.Name))
		}
	}
	slices.Sort(out)
	return out
}

func (b *bench) workload(name string) *model.Workload {
	b.Helper()
	w, ok := store.ByName[*model.Workload](b.Store.Snapshot(), model.DefaultNamespace, "shop", name)
	if !ok {
		b.Fatalf("shop/%s does not exist", name)
	}
	return w
}

func named[T model.Object](b *bench, name string) T {
	b.Helper()
	obj, ok := store.ByName[T](b.Store.Snapshot(), model.DefaultNamespace, "shop", name)
	if !ok {
		b.Fatalf("%s does not exist", name)
	}
	return obj
}

func (b *bench) events() (out []string) {
	_ = b.Events(b.Context(), anna, time.Time{}, false, func(e *model.Event) error {
		out = append(out, e.Type+": "+e.Message)
		return nil
	})
	return out
}

func TestDeploy(t *testing.T) {
	b := newBench(t)
	want := []string{
		"created config settings", "created network front", "created secret password", "created service web",
		"created volume data", "created workload db", "created workload web",
	}
	dry := shop()
	dry.DryRun = true
	if got := changes(b.deploy(dry)); !slices.Equal(got, want) {
		t.Errorf("it would have %q", got)
	}
	for w := range store.List[*model.Workload](b.Store.Snapshot()) {
		t.Errorf("a dry run made %s", w.FullName())
	}
	before := b.Store.Snapshot().Revision()
	if got := changes(b.deploy(shop())); !slices.Equal(got, want) {
		t.Errorf("it has %q", got)
	}
	if now := b.Store.Snapshot().Revision(); now != before+1 {
		t.Errorf("it took %d change sets, and so happened in parts", now-before)
	}

	front, data := named[*model.Network](b, "front"), named[*model.Volume](b, "data")
	web, db, svc := b.workload("web"), b.workload("db"), named[*model.Service](b, "web")
	if at := web.Template.Networks[0].Network; at != front.ID {
		t.Errorf("web is attached to %q, want %q", at, front.ID)
	}
	if m := db.Template.Tasks[0].Mounts[0].Source; m != data.ID {
		t.Errorf("db mounts %q, want %q", m, data.ID)
	}
	if d := web.Template.Tasks[0].Digest; d != "sha256:docker.io/library/web:1" {
		t.Errorf("the image of web is %q", d)
	}
	if svc.WorkloadID != web.ID || svc.Networks[0] != front.ID || svc.Aliases[front.ID][0] != "www" {
		t.Errorf("service %+v", svc)
	}
	if sec := named[*model.Secret](b, "password"); strings.Contains(string(sec.Sealed)+sec.Digest, "geheim") {
		t.Error("the secret is readable in the state")
	}
	for _, w := range []*model.Workload{web, db} {
		r, ok := store.Get[*model.Revision](b.Store.Snapshot(), w.RevisionID)
		if !ok || w.Template.Hash() != r.Hash || r.Template.Hash() != r.Hash || r.Number != 1 || w.Generation != 1 || w.PreviousRevisionID != "" {
			t.Errorf("%s: generation %d, revision %+v", w.Name, w.Generation, r)
		}
	}
	if a, ok := store.ByName[*model.Application](b.Store.Snapshot(), model.DefaultNamespace, "", "shop"); !ok || a.Version != 1 || a.Source != "compose" {
		t.Errorf("application %+v", a)
	}
}

func TestDeployingTheSameAgainChangesNothing(t *testing.T) {
	b := newBench(t)
	b.deploy(shop())
	if err := b.RestartWorkload(t.Context(), anna, "shop/web"); err != nil {
		t.Fatal(err)
	}
	before := b.Store.Snapshot().Revision()
	if got := changes(b.deploy(shop())); len(got) > 0 {
		t.Errorf("it has %q", got)
	}
	if now := b.Store.Snapshot().Revision(); now != before {
		t.Errorf("the state was written %d times", now-before)
	}
}

func TestDeployingChanges(t *testing.T) {
	for name, c := range map[string]struct {
		change  func(d *core.Deployment)
		want    []string
		updated []string // workloads with a new revision
	}{
		"count": {func(d *core.Deployment) { d.Workloads[0].Count = 5 }, []string{"updated workload web"}, nil},
		"image": {func(d *core.Deployment) { d.Workloads[0].Template.Tasks[0].Image = "web:2" }, []string{"updated workload web"}, []string{"web"}},
		"secret": {func(d *core.Deployment) { d.Secrets[0].Data = []byte("anders") },
			[]string{"updated secret password", "updated workload db"}, []string{"db"}},
		"config": {func(d *core.Deployment) { d.Configs[0].Data = []byte("colour=blue") },
			[]string{"updated config settings", "updated workload web"}, []string{"web"}},
		"port":    {func(d *core.Deployment) { d.Services[0].Ports[0].Published = 8081 }, []string{"updated service web"}, nil},
		"labels":  {func(d *core.Deployment) { d.Networks[0].Labels = map[string]string{"a": "b"} }, []string{"updated network front"}, nil},
		"fewer":   {func(d *core.Deployment) { d.Workloads = d.Workloads[1:]; d.Services = nil }, []string{"removed service web", "removed workload web"}, nil},
		"no data": {func(d *core.Deployment) { d.Workloads[1].Template.Tasks[0].Mounts = nil; d.Volumes = nil }, []string{"updated workload db"}, []string{"db"}},
		"an other": {func(d *core.Deployment) {
			d.Networks = append(d.Networks, &model.Network{Meta: model.Meta{Name: "back"}})
		}, []string{"created network back"}, nil},
		"kept": {func(d *core.Deployment) { d.Workloads = d.Workloads[1:]; d.Services = nil; d.KeepOthers = true }, nil, nil},
	} {
		t.Run(name, func(t *testing.T) {
			b := newBench(t)
			b.deploy(shop())
			before := map[string]*model.Workload{"web": b.workload("web"), "db": b.workload("db")}
			if got := changes(b.deploy(shop(c.change))); !slices.Equal(got, c.want) {
				t.Errorf("it has %q, want %q", got, c.want)
			}
			for name, old := range before {
				w, ok := store.Get[*model.Workload](b.Store.Snapshot(), old.ID)
				if !ok {
					continue
				}
				updated := slices.Contains(c.updated, name)
				if (w.RevisionID != old.RevisionID) != updated || updated && w.PreviousRevisionID != old.RevisionID {
					t.Errorf("%s went from revision %s to %s, coming from %q", name, old.RevisionID, w.RevisionID, w.PreviousRevisionID)
				}
				if _, ok := store.Get[*model.Revision](b.Store.Snapshot(), w.RevisionID); !ok {
					t.Errorf("revision %s of %s does not exist", w.RevisionID, name)
				}
				if changed := slices.Contains(c.want, "updated workload "+name); (w.Generation == old.Generation+1) != changed {
					t.Errorf("%s went from generation %d to %d", name, old.Generation, w.Generation)
				}
			}
			if got := changes(b.deploy(shop(c.change))); len(got) > 0 {
				t.Errorf("deployed again, it has %q", got)
			}
			if _, ok := store.ByName[*model.Volume](b.Store.Snapshot(), model.DefaultNamespace, "shop", "data"); !ok {
				t.Error("the data is gone")
			}
		})
	}
}

func TestDeployRefuses(t *testing.T) {
	for name, c := range map[string]struct {
		change func(d *core.Deployment)
		kind   fault.Kind
		says   string
	}{
		"application name": {func(d *core.Deployment) { d.Application = "-x" }, fault.Invalid, `application name "-x" is not valid`},
		"workload name":    {func(d *core.Deployment) { d.Workloads[0].Name = "a b" }, fault.Invalid, `workload name "a b" is not valid`},
		"twice":            {func(d *core.Deployment) { d.Workloads[0].Name = "db" }, fault.Invalid, "workload db is there twice"},
		"count":            {func(d *core.Deployment) { d.Workloads[0].Count = -1 }, fault.Invalid, "count -1 is negative"},
		"no task":          {func(d *core.Deployment) { d.Workloads[0].Template.Tasks = nil }, fault.Invalid, "workload web has no task"},
		"kind":             {func(d *core.Deployment) { d.Workloads[0].Type = "daemon" }, fault.Unsupported, `kind "daemon" is not supported yet`},
		"dependency":       {func(d *core.Deployment) { d.Workloads[0].DependsOn[0].Workload = "cache" }, fault.Invalid, "depends on cache, which does not exist"},
		"network":          {func(d *core.Deployment) { d.Networks = nil }, fault.NotFound, `network "front" does not exist in application shop`},
		"external": {func(d *core.Deployment) { d.Workloads[0].Template.Networks[0].Network = "/front" }, fault.NotFound,
			`workload web: external network "front" does not exist`},
		"secret": {func(d *core.Deployment) { d.Secrets = nil }, fault.NotFound, `secret "password" does not exist`},
		"image":  {func(d *core.Deployment) { d.Workloads[0].Template.Tasks[0].Image = "missing:1" }, fault.NotFound, "workload web: image missing:1 does not exist"},
		"too large": {func(d *core.Deployment) { d.Workloads[1].Template.Tasks[0].Reserve.MemoryBytes = 5 << 30 }, fault.Invalid,
			"workload db can run on no node: 2 of 2 nodes have too little memory"},
		"a container as a unit": {func(d *core.Deployment) {
			d.Workloads[0].Template.Tasks[0].Runtime = model.UnitRuntime
		}, fault.Invalid, "workload web: runtime systemd: systemd is for processes of the host, and all others are for containers"},
		"a process of an OCI runtime": {func(d *core.Deployment) {
			d.Workloads[0].Template.Tasks[0].Driver, d.Workloads[0].Template.Tasks[0].Runtime = "process", "runc"
		}, fault.Invalid, "workload web: runtime runc: systemd is for processes of the host, and all others are for containers"},
		"clocks": {func(d *core.Deployment) {
			d.Workloads[0].Template.Tasks[0].Runtime, d.Workloads[0].Template.Tasks[0].Tuning = "runc", &model.Tuning{Clocks: &model.Clocks{Boot: 1}}
		}, fault.Invalid, "workload web: clocks of its own (a time namespace) are for the built-in OCI runtime; it names runc"},
		"huge pages": {func(d *core.Deployment) {
			d.Workloads[0].Template.Tasks[0].Tuning = &model.Tuning{HugePages: map[string]uint64{"2M": 1}}
		}, fault.Invalid, `workload web: huge pages of "2M": a size is one that the kernel has`},
		"port twice": {func(d *core.Deployment) { d.Services[0].Ports[0].Published = 9090 }, fault.Conflict,
			"service web: port 9090/tcp is already published by other"},
		"port twice on one address": {func(d *core.Deployment) {
			d.Services[0].Ports[0].Published, d.Services[0].Ports[0].HostIP = 9091, "127.0.0.1"
		}, fault.Conflict, "service web: port 9091/tcp is already published by other"},
		"no address": {func(d *core.Deployment) { d.Services[0].Ports[0].HostIP = "eth0" }, fault.Invalid,
			`service web: "eth0" is no address of a host to publish port 8080 on`},
		"both publish": {func(d *core.Deployment) {
			s := d.Services[0].Clone()
			s.Name = "www"
			d.Services = append(d.Services, s)
		}, fault.Invalid, "services web and www both publish port 8080/tcp"},
	} {
		t.Run(name, func(t *testing.T) {
			b := newBench(t)
			b.put(&model.Service{Meta: model.Meta{ID: "o", Namespace: model.DefaultNamespace, Name: "other"}, Ports: []model.ServicePort{
				{Protocol: "tcp", Target: 1, Published: 9090}, {Protocol: "tcp", Target: 1, Published: 9091, HostIP: "127.0.0.1"},
			}})
			_, err := b.Deploy(t.Context(), anna, shop(c.change))
			if fault.KindOf(err) != c.kind || !strings.Contains(fmt.Sprint(err), c.says) {
				t.Errorf("it says (%v) %v; want (%v) %q", fault.KindOf(err), err, c.kind, c.says)
			}
			snap := b.Store.Snapshot()
			for w := range store.List[*model.Workload](snap) {
				t.Errorf("%s was made", w.FullName())
			}
			for n := range store.List[*model.Network](snap) {
				t.Errorf("network %s was made", n.Name)
			}
		})
	}
}

// TestOnePortOnTwoAddresses publishes a number that another service has on another address, twice.
func TestOnePortOnTwoAddresses(t *testing.T) {
	b := newBench(t)
	b.put(&model.Service{Meta: model.Meta{ID: "o", Namespace: model.DefaultNamespace, Name: "other"}, Ports: []model.ServicePort{{Protocol: "tcp", Target: 1, Published: 8080, HostIP: "192.0.2.1"}}})
	b.deploy(shop(func(d *core.Deployment) {
		port := d.Services[0].Ports[0]
		port.HostIP = "127.0.0.1"
		other := port
		other.HostIP = "192.0.2.2"
		d.Services[0].Ports = []model.ServicePort{port, other}
	}))
}

func TestChangesByOthersMeanwhileAreKept(t *testing.T) {
	b := newBench(t)
	b.deploy(shop())
	b.outrun = func() { // the leader writes a status, somebody else scales
		w := b.workload("web").Clone()
		w.Count = 7
		w.Labels = map[string]string{"by": "somebody"}
		b.put(w)
		w.Status.Released = w.RevisionID
		var cs store.ChangeSet
		cs.PutStatus(w)
		if _, err := b.Store.Commit(b.Context(), &cs); err != nil {
			t.Error(err)
		}
	}
	if err := b.RestartWorkload(t.Context(), anna, "shop/web"); err != nil {
		t.Fatal(err)
	}
	w := b.workload("web")
	if w.Count != 7 || w.Labels["by"] != "somebody" || w.Template.ForceUpdate != 1 || w.RevisionID != model.RevisionIDOf(w.ID, w.Template.Hash()) {
		t.Errorf("%+v", w)
	}
}

// TestADeploymentKeepsTheCountThatTheClusterChose, unless it is chosen no more.
func TestADeploymentKeepsTheCountThatTheClusterChose(t *testing.T) {
	b := newBench(t)
	scaled := func(d *core.Deployment) { d.Workloads[0].Autoscale = &model.Autoscale{Min: 1, Max: 9} }
	b.deploy(shop(scaled))
	first := b.workload("web").Count
	if err := b.Scale(t.Context(), anna, "shop/web", first+3); err != nil {
		t.Fatal(err)
	}
	b.deploy(shop(scaled))
	if n := b.workload("web").Count; n != first+3 {
		t.Errorf("the count is %d, want %d", n, first+3)
	}
	b.deploy(shop())
	if n := b.workload("web").Count; n != first {
		t.Errorf("the count is %d, want %d", n, first)
	}
	bad := func(d *core.Deployment) { d.Workloads[0].Autoscale = &model.Autoscale{Min: 4, Max: 3} }
	if _, err := b.Deploy(t.Context(), anna, shop(bad)); !fault.Is(err, fault.Invalid) || !strings.Contains(err.Error(), "min 4 and max 3") {
		t.Error(err)
	}
}

// TestAChangeHappensOnceWhenItsLeaderIsLost: nobody knows whether the change was made; it is made once.
func TestAChangeHappensOnceWhenItsLeaderIsLost(t *testing.T) {
	for _, lost := range [][]bool{{true}, {false}, {false, true}, {false, false}} {
		b := newBench(t)
		b.lost = slices.Clone(lost)
		b.deploy(shop())
		b.lost = slices.Clone(lost)
		if err := b.RestartWorkload(t.Context(), anna, "shop/web"); err != nil {
			t.Fatalf("%v: %v", lost, err)
		}
		if w := b.workload("web"); w.Template.ForceUpdate != 1 {
			t.Errorf("%v: restarted %d times, want once", lost, w.Template.ForceUpdate)
		}
		if n := store.Count[*model.Workload](b.Store.Snapshot()); n != 2 {
			t.Errorf("%v: there are %d workloads, want 2", lost, n)
		}
	}
}

// TestARevisionForgottenMeanwhileIsMadeAnew: the leader forgets an old revision while somebody
// returns to it.
func TestARevisionForgottenMeanwhileIsMadeAnew(t *testing.T) {
	b := newBench(t)
	second := func(d *core.Deployment) { d.Workloads[0].Template.Tasks[0].Image = "web:2" }
	b.deploy(shop())
	first := b.workload("web").RevisionID
	b.deploy(shop(second))
	forget := func() {
		var cs store.ChangeSet
		cs.Delete(model.KindRevision, first)
		if _, err := b.Store.Commit(b.Context(), &cs); err != nil {
			t.Error(err)
		}
	}
	b.outrun = forget
	b.deploy(shop())
	if w := b.workload("web"); w.RevisionID != first {
		t.Fatalf("web is at %s, want %s", w.RevisionID, first)
	}
	if _, ok := store.Get[*model.Revision](b.Store.Snapshot(), first); !ok {
		t.Error("web is at a revision that does not exist")
	}
	b.deploy(shop(second))
	b.outrun = forget
	if err := b.Rollback(t.Context(), anna, "shop/web"); !fault.Is(err, fault.Invalid) {
		t.Errorf("rolled back to a revision that is gone: %v", err)
	}
}

func TestScaleRestartAndRollBack(t *testing.T) {
	b := newBench(t)
	b.deploy(shop())
	ctx := t.Context()
	first := b.workload("web")
	for _, c := range []struct {
		what string
		do   func() error
		says string // "" succeeds
	}{
		{"scale", func() error { return b.Scale(ctx, anna, "web", 4) }, ""},
		{"scale by ID", func() error { return b.Scale(ctx, anna, first.ID[:8], 4) }, ""},
		{"scale an application", func() error { return b.Scale(ctx, anna, "shop", 4) }, "shop is an application; name one of its workloads: shop/"},
		{"scale below zero", func() error { return b.Scale(ctx, anna, "web", -1) }, "count -1 is negative"},
		{"scale a node", func() error { return b.Scale(ctx, anna, "node-n1", 1) }, "node-n1 is node node-n1, not a workload"},
		{"scale nothing", func() error { return b.Scale(ctx, anna, "cache", 1) }, `no application, workload, instance or node is called "cache"`},
		{"roll back the first revision", func() error { return b.Rollback(ctx, anna, "web") }, "shop/web has no earlier revision to return to"},
	} {
		if err := c.do(); (err == nil) != (c.says == "") || !strings.Contains(fmt.Sprint(err), c.says) && c.says != "" {
			t.Errorf("%s: %v, want %q", c.what, err, c.says)
		}
	}
	if w := b.workload("web"); w.Count != 4 || w.Generation != first.Generation+1 || w.RevisionID != first.RevisionID {
		t.Errorf("scaled: %+v", w)
	}
	if err := b.RestartWorkload(ctx, anna, "shop/web"); err != nil {
		t.Fatal(err)
	}
	restarted := b.workload("web")
	if restarted.RevisionID == first.RevisionID || restarted.PreviousRevisionID != first.RevisionID {
		t.Errorf("restarted: revision %s, from %s", restarted.RevisionID, restarted.PreviousRevisionID)
	}
	for k, want := range []string{first.RevisionID, restarted.RevisionID, first.RevisionID} { // to and fro
		if err := b.Rollback(ctx, anna, "shop/web"); err != nil {
			t.Fatal(err)
		}
		if w := b.workload("web"); w.RevisionID != want || model.RevisionIDOf(w.ID, w.Template.Hash()) != want {
			t.Errorf("rolled back %d times: revision %s", k+1, w.RevisionID)
		}
	}
	var scaled int
	for _, e := range b.events() {
		if strings.HasPrefix(e, "workload scaled: from 2 to 4, by anna through test") {
			scaled++
		}
	}
	if scaled != 1 {
		t.Errorf("%d events tell of scaling once:\n%s", scaled, strings.Join(b.events(), "\n"))
	}
}

func TestRemove(t *testing.T) {
	b := newBench(t)
	b.deploy(shop())
	web, data := b.workload("web"), named[*model.Volume](b, "data").Clone()
	data.NodeID = "n2"
	b.put(data)
	b.put(&model.Instance{Meta: model.Meta{ID: "i1", Name: "web.1"}, WorkloadID: web.ID, NodeID: "n1", Desired: model.DesiredRun})
	if err := b.remove("shop/web", false); err != nil {
		t.Fatal(err)
	}
	snap := b.Store.Snapshot()
	if i, _ := store.Get[*model.Instance](snap, "i1"); i.Desired != model.DesiredRemove {
		t.Errorf("its instance is to %s", i.Desired)
	}
	if _, ok := store.ByName[*model.Service](snap, model.DefaultNamespace, "shop", "web"); ok {
		t.Error("its service is still there")
	}
	if b.workload("db") == nil {
		t.Error("the other workload is gone")
	}

	b.deploy(shop())
	if err := b.remove("shop", false); err != nil {
		t.Fatal(err)
	}
	snap = b.Store.Snapshot()
	left := []string{}
	for _, list := range [][]string{
		names[*model.Application](snap), names[*model.Workload](snap), names[*model.Service](snap), names[*model.Network](snap),
		names[*model.Secret](snap), names[*model.Config](snap), names[*model.Volume](snap),
	} {
		left = append(left, list...)
	}
	if !slices.Equal(left, []string{"data"}) || len(b.removed) > 0 {
		t.Errorf("%v are left, of which only the data should be; removed from nodes: %v", left, b.removed)
	}
}

func names[T model.Object](snap *store.Snapshot) (out []string) {
	for obj := range store.List[T](snap) {
		out = append(out, obj.GetMeta().Name)
	}
	return out
}

func TestRemoveWithDataWaitsForInstances(t *testing.T) {
	b := newBench(t)
	b.deploy(shop())
	data := named[*model.Volume](b, "data").Clone()
	data.NodeID = "n2"
	b.put(data)
	b.put(&model.Instance{Meta: model.Meta{ID: "i1", Name: "db.1"}, WorkloadID: b.workload("db").ID, NodeID: "n2", Desired: model.DesiredRun})
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	err := b.Remove(ctx, anna, "shop", true)
	cancel()
	if !fault.Is(err, fault.Unavailable) || !strings.Contains(err.Error(), "1 instances have not ended yet; their volumes are kept") || len(b.removed) > 0 {
		t.Fatalf("error %v, removed %v", err, b.removed)
	}
	b.deploy(shop())
	var cs store.ChangeSet
	cs.Delete(model.KindInstance, "i1")
	if _, err := b.Store.Commit(t.Context(), &cs); err != nil {
		t.Fatal(err)
	}
	if err := b.remove("shop", true); err != nil {
		t.Fatal(err)
	}
	if want := []string{"n2 " + data.ID}; !slices.Equal(b.removed, want) || len(names[*model.Volume](b.Store.Snapshot())) > 0 {
		t.Errorf("removed %v, want %v; %v are left", b.removed, want, names[*model.Volume](b.Store.Snapshot()))
	}
}

func TestNodes(t *testing.T) {
	b := newBench(t)
	ctx := t.Context()
	if err := b.SetAvailability(ctx, anna, "node-n2", "sleepy"); !fault.Is(err, fault.Invalid) {
		t.Errorf("an availability that does not exist: %v", err)
	}
	if err := b.SetAvailability(ctx, anna, "node-n2", model.Draining); err != nil {
		t.Fatal(err)
	}
	if err := b.LabelNode(ctx, anna, "node-n2", map[string]string{"zone": "a", "rack": "1"}, nil); err != nil {
		t.Fatal(err)
	}
	if err := b.LabelNode(ctx, anna, "node-n2", map[string]string{"zone": "b"}, []string{"rack"}); err != nil {
		t.Fatal(err)
	}
	n, _ := store.Get[*model.Node](b.Store.Snapshot(), "n2")
	if n.Availability != model.Draining || len(n.Labels) != 1 || n.Labels["zone"] != "b" || n.Status.State != model.NodeReady {
		t.Errorf("%+v", n)
	}
	for _, id := range []string{"n1", "n2"} {
		if err := b.RemoveNode(ctx, anna, "node-"+id); !fault.Is(err, fault.Invalid) || !strings.Contains(err.Error(), "only a node that is down can be removed") {
			t.Errorf("a live node: %v", err)
		}
		n, _ := store.Get[*model.Node](b.Store.Snapshot(), id)
		n = n.Clone()
		n.Status.State = model.NodeDown
		var cs store.ChangeSet
		cs.PutStatus(n)
		if _, err := b.Store.Commit(ctx, &cs); err != nil {
			t.Fatal(err)
		}
		if err := b.RemoveNode(ctx, anna, "node-"+id); err != nil {
			t.Errorf("a dead node: %v", err)
		}
	}
	if left := names[*model.Node](b.Store.Snapshot()); len(left) > 0 || !slices.Equal(b.left, []string{"n1"}) {
		t.Errorf("nodes %v are left; out of the quorum are %v", left, b.left)
	}
}

func TestFind(t *testing.T) {
	b := newBench(t)
	b.deploy(shop())
	b.deploy(core.Deployment{Application: "blog", Workloads: []*model.Workload{{
		Meta: model.Meta{Name: "web"}, Type: model.ServiceWorkload, Template: model.Template{Tasks: []model.TaskSpec{{Name: "main"}}},
	}}})
	web := b.workload("web")
	at := func(id string, slot int, desired model.DesiredState, age time.Duration) {
		b.put(&model.Instance{
			Meta:       model.Meta{ID: id, Namespace: model.DefaultNamespace, Application: "shop", Name: fmt.Sprint("web.", slot), Created: time.Now().Add(-age)},
			WorkloadID: web.ID, Slot: slot, NodeID: "n1", Desired: desired, Status: model.InstanceStatus{State: model.InstanceRunning},
		})
	}
	at("aaaa1111", 1, model.DesiredStop, time.Minute)
	at("aaaa2222", 1, model.DesiredRun, time.Hour)
	at("bbbb3333", 2, model.DesiredRun, time.Hour)
	at("bbbb4444", 2, model.DesiredRun, time.Minute)
	for _, c := range []struct{ ref, want string }{
		{"shop", "application shop"},
		{"shop/web", "workload web of shop"},
		{"db", "workload db of shop"},
		{"shop/web.1", "instance aaaa2222"}, // the one that is wanted
		{"shop/web.2", "instance bbbb4444"}, // the newer one
		{"node-n2", "node n2"},
		{"aaaa1", "instance aaaa1111"},
		{web.ID, "workload web of shop"},
		{"web", "invalid"}, // there are two
		{"bbbb", "invalid"},
		{"bbb", "notFound"},
		{"shop/cache", "notFound"},
		{"", "invalid"},
	} {
		f, err := b.Find(anna, c.ref)
		got := fault.KindOf(err).String()
		switch {
		case err != nil:
		case f.Application != nil:
			got = "application " + f.Application.Name
		case f.Workload != nil:
			got = "workload " + f.Workload.Name + " of " + f.Workload.Application
		case f.Instance != nil:
			got = "instance " + f.Instance.ID
		case f.Node != nil:
			got = "node " + f.Node.ID
		}
		if !strings.EqualFold(strings.ReplaceAll(got, " ", ""), strings.ReplaceAll(c.want, " ", "")) {
			t.Errorf("%q is %s (%v), want %s", c.ref, got, err, c.want)
		}
	}
	if n, err := b.Core.Exec(t.Context(), anna, "shop/web.1", "", driver.ExecSpec{}, driver.Streams{}); err != nil || n != len("n1aaaa2222") {
		t.Errorf("exec led to %d, %v", n, err)
	}
}

func TestNamespacesAndTaints(t *testing.T) {
	b := newBench(t)
	b.deploy(shop())
	share := model.NamespaceShare{Weight: 2, Quota: model.Resources{NanoCPUs: 4e9}, MaxInstances: 9}
	if err := b.SetNamespace(b.Context(), anna, "default", share); err != nil {
		t.Fatal(err)
	}
	list, err := b.Namespaces(b.Context(), anna)
	if err != nil || len(list) != 1 || list[0].Name != "default" || list[0].Weight != 2 || list[0].MaxInstances != 9 {
		t.Errorf("namespaces: %+v, %v", list, err)
	}
	if err := b.SetNamespace(b.Context(), anna, "default", model.NamespaceShare{}); err != nil {
		t.Fatal(err)
	}
	if list, _ = b.Namespaces(b.Context(), anna); len(list) != 0 {
		t.Errorf("a namespace without quota and instances is listed: %+v", list)
	}
	if err := b.SetNamespace(b.Context(), anna, "default", model.NamespaceShare{Weight: -1}); !fault.Is(err, fault.Invalid) {
		t.Errorf("a negative weight: %v", err)
	}
	taint := func(key, effect string) []model.Taint { return []model.Taint{{Key: key, Effect: effect}} }
	if err := b.TaintNode(b.Context(), anna, "node-n2", taint("gpu", "never"), nil); !fault.Is(err, fault.Invalid) {
		t.Errorf("an unknown effect: %v", err)
	}
	for _, step := range []struct {
		set    []model.Taint
		remove []string
		want   string
	}{
		{taint("gpu", "noSchedule"), nil, "[{gpu  noSchedule}]"},
		{taint("gpu", "preferNoSchedule"), nil, "[{gpu  preferNoSchedule}]"},
		{taint("gpu", "noExecute"), nil, "[{gpu  noExecute}]"},
		{nil, []string{"gpu"}, "[]"},
	} {
		if err := b.TaintNode(b.Context(), anna, "node-n2", step.set, step.remove); err != nil {
			t.Fatal(err)
		}
		n, _ := store.ByName[*model.Node](b.Store.Snapshot(), "", "", "node-n2")
		if fmt.Sprint(n.Taints) != step.want {
			t.Errorf("taints are %v, want %s", n.Taints, step.want)
		}
	}
	for _, bad := range []struct {
		counts  map[string]int64
		devices map[string][]string
	}{{counts: map[string]int64{"gpu": 0}}, {devices: map[string][]string{"gpu": {"a", "a"}}}, {devices: map[string][]string{"gpu": {"a b"}}}, {counts: map[string]int64{"g=u": 1}}} {
		if err := b.SetNodeResources(b.Context(), anna, "node-n2", bad.counts, bad.devices, nil); !fault.Is(err, fault.Invalid) {
			t.Errorf("%+v: %v", bad, err)
		}
	}
	if err := errors.Join(
		b.SetNodeResources(b.Context(), anna, "node-n2", map[string]int64{"gpu": 3, "fpga": 1}, nil, nil),
		b.SetNodeResources(b.Context(), anna, "node-n2", map[string]int64{"licence": 9}, map[string][]string{"gpu": {"a", "b"}}, []string{"fpga"}),
	); err != nil {
		t.Fatal(err)
	}
	if n, _ := store.ByName[*model.Node](b.Store.Snapshot(), "", "", "node-n2"); fmt.Sprint(n.Capacity.Custom, n.Devices) != "map[gpu:2 licence:9] map[gpu:[a b]]" {
		t.Errorf("the node has %v and %v", n.Capacity.Custom, n.Devices)
	}
	n2, _ := store.ByName[*model.Node](b.Store.Snapshot(), "", "", "node-n2")
	if err := b.ReserveNode(b.Context(), anna, "node-n2", model.Resources{NanoCPUs: n2.Capacity.NanoCPUs + 1}); !fault.Is(err, fault.Invalid) {
		t.Errorf("more is kept back than there is: %v", err)
	}
	if err := b.ReserveNode(b.Context(), anna, "node-n2", model.Resources{NanoCPUs: n2.Capacity.NanoCPUs / 2}); err != nil {
		t.Fatal(err)
	}
	if n, _ := store.ByName[*model.Node](b.Store.Snapshot(), "", "", "node-n2"); n.Reserved.NanoCPUs == 0 || n.Reserved.NanoCPUs != n2.Capacity.NanoCPUs/2 || n.Capacity.Custom["gpu"] != 2 {
		t.Errorf("of %d, %d are kept back", n2.Capacity.NanoCPUs, n.Reserved.NanoCPUs)
	}
	if err := b.Overcommit(b.Context(), anna, "node-n2", 0.5); !fault.Is(err, fault.Invalid) {
		t.Errorf("half of what is there: %v", err)
	}
}

func TestRollouts(t *testing.T) {
	b := newBench(t)
	b.deploy(shop())
	ctx, ref := t.Context(), "shop/web"
	first := b.workload("web").RevisionID
	for range 2 {
		if err := b.RestartWorkload(ctx, anna, ref); err != nil {
			t.Fatal(err)
		}
	}
	info, err := b.Rollout(ctx, anna, ref)
	if err != nil || len(info.Revisions) != 3 || !info.Revisions[0].Present || !info.Revisions[1].Previous || info.Revisions[2].Number != 1 {
		t.Fatalf("%+v, %v", info, err)
	}
	if err := b.Undo(ctx, anna, ref, 7); !fault.Is(err, fault.NotFound) || !strings.Contains(err.Error(), "kept are [3 2 1]") {
		t.Errorf("a revision that is not kept: %v", err)
	}
	if err := b.Undo(ctx, anna, ref, 1); err != nil || b.workload("web").RevisionID != first {
		t.Errorf("undo: %v, at %s", err, b.workload("web").RevisionID)
	}
	if err := b.Undo(ctx, anna, ref, 1); !fault.Is(err, fault.Invalid) {
		t.Errorf("undo to where it is: %v", err)
	}
	if err := b.ResumeRollout(ctx, anna, ref); !fault.Is(err, fault.Invalid) {
		t.Errorf("resume of what is not paused: %v", err)
	}
	if err := b.PauseRollout(ctx, anna, ref); err != nil || !b.workload("web").Paused {
		t.Errorf("pause: %v", err)
	}
	if err := b.ResumeRollout(ctx, anna, ref); err != nil || b.workload("web").Paused {
		t.Errorf("resume: %v", err)
	}
	if err := b.Promote(ctx, anna, ref, false); !fault.Is(err, fault.Invalid) {
		t.Errorf("promotion of nothing: %v", err)
	}
	if err := b.Suspend(ctx, anna, ref, true); err != nil || !b.workload("web").Suspended || b.workload("web").Count != shop().Workloads[0].Count {
		t.Errorf("suspend: %v, %+v", err, b.workload("web"))
	}
	b.deploy(shop()) // a deployment neither wakes it up nor lets it be updated
	if w := b.workload("web"); !w.Suspended {
		t.Errorf("deploying again has resumed it")
	}
	if err := b.Suspend(ctx, anna, ref, false); err != nil || b.workload("web").Suspended {
		t.Errorf("resume: %v", err)
	}
}
