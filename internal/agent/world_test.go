package agent

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/tutti-run/tutti/internal/driver"
	"github.com/tutti-run/tutti/internal/driver/drivertest/script"
	"github.com/tutti-run/tutti/internal/driver/fake"
	"github.com/tutti-run/tutti/internal/fault"
	"github.com/tutti-run/tutti/internal/image"
	"github.com/tutti-run/tutti/internal/model"
	"github.com/tutti-run/tutti/internal/overlay"
	"github.com/tutti-run/tutti/internal/secret"
	"github.com/tutti-run/tutti/internal/userns"
	"github.com/tutti-run/tutti/internal/wire"
)

// world is a host: what outlives an agent, and the agent of the moment.
type world struct {
	*testing.T
	dir     string
	state   *fake.State
	images  *fakeImages
	links   *fakeLinks
	volumes *fakeVolumes
	secrets *fakeSecrets
	network []NetworkState
	policy  model.RestartPolicy // of the instances that assign makes

	agent   *Agent
	session *recorder
	end     func()
}

// inWorld runs a test in a bubble of its own time, with an agent at work.
func inWorld(t *testing.T, test func(w *world)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.start()
		defer w.state.End()
		defer func() { w.end() }()
		test(w)
	})
}

func newWorld(t *testing.T) *world {
	w := &world{
		T: t, dir: t.TempDir(), state: fake.NewState(programs()), images: newFakeImages(), links: &fakeLinks{attached: map[string]overlay.Attachment{}},
		volumes: &fakeVolumes{}, secrets: &fakeSecrets{files: map[string][]secret.File{}},
		policy: model.RestartPolicy{Condition: model.RestartAlways, Delay: time.Second},
	}
	w.end = func() {}
	return w
}

// start begins an agent, and ends the one before it.
func (w *world) start() {
	w.Helper()
	w.begin()
	<-w.agent.Adopted()
	w.settle()
}

func (w *world) begin() {
	w.Helper()
	w.end()
	var err error
	w.agent, err = New(Deps{
		NodeID: "n1", NodeName: "node-1", DataDir: filepath.Join(w.dir, "agent"), RunDir: filepath.Join(w.dir, "run"), CgroupParent: "/tutti",
		Drivers: map[string]driver.Driver{"oci": fake.New(w.state)},
		Images:  w.images, Links: w.links, Volumes: w.volumes, Secrets: w.secrets, Network: w.network,
		Log: quiet,
	})
	if err != nil {
		w.Fatal(err)
	}
	w.session = &recorder{latest: map[string]model.InstanceStatus{}, states: map[string][]string{}}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- w.agent.Run(ctx, w.session) }()
	w.end = func() {
		cancel()
		if err := <-done; err != nil {
			w.Errorf("the agent ended with %v", err)
		}
		w.end = func() {}
	}
}

// settle waits until nothing happens any more without the passing of time.
func (w *world) settle() { synctest.Wait() }

// assign wants an instance of some tasks; the first change that is not nil may alter it.
func (w *world) assignment(id string, tasks ...model.TaskSpec) *wire.Assignment {
	return &wire.Assignment{
		Instance: &model.Instance{
			Meta: model.Meta{ID: id, Name: "web.1", Application: "shop"}, Desired: model.DesiredRun,
			Addresses: []model.Address{{Network: "net", IP: "10.1.0.7"}},
		},
		Template: &model.Template{
			Tasks: tasks, Restart: w.policy, StopGrace: 10 * time.Second, Networks: []model.Attachment{{Network: "net"}},
		},
		Networks: []*model.Network{{Meta: model.Meta{ID: "net", Name: "net"}}},
	}
}

func (w *world) assign(list ...*wire.Assignment) {
	m := &wire.Assign{}
	for _, as := range list {
		m.Put = append(m.Put, *as)
	}
	w.agent.Assign(m)
	w.settle()
}

// want changes what the cluster wants of an instance.
func (w *world) want(as *wire.Assignment, d model.DesiredState) {
	c := *as
	c.Instance = as.Instance.Clone()
	c.Instance.Desired = d
	w.assign(&c)
}

func task(args ...string) model.TaskSpec {
	return model.TaskSpec{Name: "app", Image: "app", Digest: "sha256:app", Entrypoint: args}
}

func named(name string, args ...string) model.TaskSpec {
	t := task(args...)
	t.Name = name
	return t
}

// status returns what was reported of an instance last.
func (w *world) status(id string) model.InstanceStatus {
	w.Helper()
	w.settle()
	w.session.mu.Lock()
	defer w.session.mu.Unlock()
	st, ok := w.session.latest[id]
	if !ok {
		w.Fatalf("nothing was reported of instance %s", id)
	}
	return st
}

func (w *world) wantState(id string, state model.InstanceState) model.InstanceStatus {
	w.Helper()
	st := w.status(id)
	if st.State != state {
		w.Fatalf("instance %s is %s (%s), want %s; it was %s", id, st.State, st.Message, state, strings.Join(w.session.states[id], ", "))
	}
	return st
}

// until lets time pass until a condition holds, and says how much.
func (w *world) until(what string, ok func() bool) time.Duration {
	w.Helper()
	began := time.Now()
	for w.settle(); !ok(); w.settle() {
		if time.Since(began) > time.Hour {
			w.Fatalf("%s: not within an hour", what)
		}
		time.Sleep(10 * time.Millisecond)
	}
	return time.Since(began)
}

func (w *world) untilState(id string, state model.InstanceState) time.Duration {
	w.Helper()
	return w.until("instance is "+string(state), func() bool { return w.status(id).State == state })
}

// runs returns the IDs of all runs ever begun, in order.
func (w *world) runs() []string {
	w.settle()
	var out []string
	for _, t := range w.state.Started() {
		out = append(out, t.ID)
	}
	return out
}

// wantRuns checks which runs there were; the order is that within each instance.
func (w *world) wantRuns(ids ...string) {
	w.Helper()
	got := w.runs()
	slices.SortStableFunc(got, func(a, b string) int {
		x, _, _ := splitRunID(a)
		y, _, _ := splitRunID(b)
		return strings.Compare(x, y)
	})
	if !slices.Equal(got, ids) {
		w.Errorf("runs begun are %v, want %v", got, ids)
	}
}

// driverState returns the state of a run, "" when it is not known.
func (w *world) driverStatus(run string) driver.Status {
	w.settle()
	st, err := fake.New(w.state).Status(context.Background(), run)
	if err != nil && !fault.Is(err, fault.NotFound) {
		w.Fatal(err)
	}
	return st
}

// onDisk returns the files of the agent whose content holds a text.
func (w *world) onDisk(text string) (found []string) {
	err := filepath.WalkDir(w.dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		data, err := os.ReadFile(path)
		if strings.Contains(string(data), text) {
			found = append(found, path)
		}
		return err
	})
	if err != nil {
		w.Fatal(err)
	}
	return found
}

// programs are what tasks can run here, besides the script of the drivers' suite.
func programs() map[string]fake.Program {
	polite := func(stop ...int) fake.Program {
		return func(p *fake.Process) int {
			signals := p.Notify(stop...)
			fmt.Fprintln(p.Stdout, "serving")
			select {
			case n := <-signals:
				fmt.Fprintln(p.Stdout, "signal", n)
				return 0
			case <-p.Done:
				return 0
			}
		}
	}
	return map[string]fake.Program{
		script.Name: script.Run,
		"serve":     polite(15),
		"quit":      polite(3),
		"stubborn":  func(p *fake.Process) int { <-p.Done; return 0 },
		// nap DURATION CODE
		"nap": func(p *fake.Process) int {
			d, err := time.ParseDuration(p.Args[1])
			if err != nil {
				panic(err)
			}
			select {
			case <-time.After(d):
			case <-p.Done:
			}
			var code int
			fmt.Sscan(p.Args[2], &code)
			fmt.Fprintln(p.Stdout, "slept")
			return code
		},
	}
}

// recorder is a session that remembers.
type recorder struct {
	mu       sync.Mutex
	latest   map[string]model.InstanceStatus
	states   map[string][]string // without repetitions; "+" marks ready
	forgot   []string
	applied  []uint64
	statuses int
}

func (r *recorder) Report(instance string, st model.InstanceStatus) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.statuses++
	r.latest[instance] = st
	state := string(st.State)
	if st.Health != "" {
		state += "/" + string(st.Health)
	}
	if st.Ready {
		state += "+"
	}
	if all := r.states[instance]; len(all) == 0 || all[len(all)-1] != state {
		r.states[instance] = append(all, state)
	}
}

func (r *recorder) Forget(instance string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.forgot = append(r.forgot, instance)
}

func (r *recorder) Applied(revision uint64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.applied = append(r.applied, revision)
}

func (w *world) states(id string) string {
	w.settle()
	w.session.mu.Lock()
	defer w.session.mu.Unlock()
	return strings.Join(w.session.states[id], " ")
}

// fakeImages has every image; what one says is in settings, by name.
type fakeImages struct {
	mu       sync.Mutex
	settings map[string]image.Settings
	fail     error // of Ensure
	ensured  int
	mounted  map[string]bool
	written  string // what is written to root file systems is below it, by key; "" pretends
}

func newFakeImages() *fakeImages {
	return &fakeImages{settings: map[string]image.Settings{}, mounted: map[string]bool{}}
}

func (f *fakeImages) Changed(_ context.Context, key string, _ func(upper, base string) error) error {
	return fault.New(fault.NotFound, "%s has no root file system here", key)
}

func (f *fakeImages) Written(_ context.Context, key string) (string, int64, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.written == "" || !f.mounted[key] {
		return "", 0, fault.New(fault.NotFound, "%s has no root file system here", key)
	}
	return filepath.Join(f.written, key), 1000, nil
}

func (f *fakeImages) set(fail error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.fail = fail
}

func (f *fakeImages) Ensure(_ context.Context, name, digest string, progress func(image.Progress)) (image.Info, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.ensured++
	progress(image.Progress{Blob: digest, Bytes: 1})
	if f.fail != nil {
		return image.Info{}, f.fail
	}
	return image.Info{Name: name, Digest: digest, Config: f.settings[name]}, nil
}

func (f *fakeImages) Mount(_ context.Context, key, digest string, _ *userns.Users) (string, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.mounted[key] = true
	return "/rootfs/" + key, nil
}

func (f *fakeImages) Unmount(_ context.Context, key string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.mounted, key)
	return nil
}

func (f *fakeImages) Mounted(context.Context) ([]string, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Sorted(maps.Keys(f.mounted)), nil
}

type fakeLinks struct {
	mu       sync.Mutex
	attached map[string]overlay.Attachment
	fail     error
}

func (f *fakeLinks) Attach(_ context.Context, a overlay.Attachment) (overlay.Attached, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.fail != nil {
		return overlay.Attached{}, f.fail
	}
	f.attached[a.Instance] = a
	return overlay.Attached{NetNS: "/netns/" + a.Instance}, nil
}

func (f *fakeLinks) Detach(_ context.Context, instance string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.attached, instance)
	return nil
}

func (f *fakeLinks) Attached(context.Context) ([]string, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Sorted(maps.Keys(f.attached)), nil
}

type fakeVolumes struct {
	root string // where volumes are; "" pretends
	mu   sync.Mutex
	log  []string
}

func (f *fakeVolumes) note(format string, args ...any) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.log = append(f.log, fmt.Sprintf(format, args...))
}

func (f *fakeVolumes) Ensure(_ context.Context, v *model.Volume) (string, error) {
	path := filepath.Join("/volumes", v.ID)
	if f.root != "" {
		path = filepath.Join(f.root, v.ID)
		if err := os.MkdirAll(path, 0o755); err != nil {
			return "", err
		}
	}
	return path, nil
}

func (f *fakeVolumes) Fill(_ context.Context, path, rootfs, target string, _ uint32) error {
	f.note("fill %s from %s%s", filepath.Base(path), rootfs, target)
	return nil
}

func (f *fakeVolumes) Remove(_ context.Context, id string) error { f.note("remove %s", id); return nil }

func (f *fakeVolumes) Replace(context.Context, *model.Volume, func(string) error) error {
	return errors.New("not asked for in these tests")
}

func (f *fakeVolumes) Held(id string) (string, error) { return filepath.Join(f.root, id), nil }

func (f *fakeVolumes) RemoveOf(_ context.Context, instance string) error {
	f.note("remove those of %s", instance)
	return nil
}

// fakeSecrets keeps files as memory does: until the host is gone, not the agent.
type fakeSecrets struct {
	mu    sync.Mutex
	files map[string][]secret.File
}

func (f *fakeSecrets) Put(instance string, files []secret.File) (string, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.files[instance] = files
	return "/secrets/" + instance, nil
}

func (f *fakeSecrets) PutFolders(instance, _ string, archive []byte) (string, error) {
	return f.Put(instance, []secret.File{{Name: "folders", Data: archive}})
}

func (f *fakeSecrets) Dir(instance string) (string, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.files[instance] == nil {
		return "", fault.New(fault.NotFound, "no secrets are kept for instance %s", instance)
	}
	return "/secrets/" + instance, nil
}

func (f *fakeSecrets) Remove(instance string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.files, instance)
	return nil
}

var errAway = fault.New(fault.Unavailable, "it is away at the moment")

var errStop = errors.New("enough")

var quiet = slog.New(slog.DiscardHandler)
