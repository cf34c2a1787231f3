package sim_test

import (
	"context"
	"fmt"
	"hash/fnv"
	"io"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/tutti-run/tutti/internal/core"
	"github.com/tutti-run/tutti/internal/driver"
	"github.com/tutti-run/tutti/internal/driver/fake"
	"github.com/tutti-run/tutti/internal/fault"
	"github.com/tutti-run/tutti/internal/image"
	"github.com/tutti-run/tutti/internal/model"
	"github.com/tutti-run/tutti/internal/overlay"
	"github.com/tutti-run/tutti/internal/secret"
	"github.com/tutti-run/tutti/internal/userns"
	"github.com/tutti-run/tutti/internal/wire"
)

// conduct is how instances of a revision do; it is the program of their task.
type conduct string

const (
	good   conduct = "good"   // a probe says that it is healthy
	plain  conduct = "plain"  // no probe says so
	broken conduct = "broken" // fails before it is ready
	finite conduct = "finite" // ends by itself, as it should
	writer conduct = "writer" // of a slot, of which there must be one
)

// programs are what tasks run; write begins the work of a slot's writer, and returns its end.
func programs(dice func(n int64) int64, write func(slot string) (end func())) map[string]fake.Program {
	upTo := func(d time.Duration) time.Duration { return time.Duration(dice(int64(d))) }
	serve := func(p *fake.Process) int {
		stop := p.Notify(int(syscall.SIGTERM))
		select {
		case <-stop:
		case <-p.Done:
			return 137
		}
		select {
		case <-time.After(upTo(300 * time.Millisecond)):
			return 0
		case <-p.Done:
			return 137
		}
	}
	last := func(d time.Duration, code int) fake.Program {
		return func(p *fake.Process) int {
			select {
			case <-time.After(upTo(d)):
				return code
			case <-p.Done:
				return 137
			}
		}
	}
	return map[string]fake.Program{
		string(good): serve, string(plain): serve,
		string(broken): last(time.Second, 1), string(finite): last(2*time.Second, 0),
		string(writer): func(p *fake.Process) int {
			i := slices.IndexFunc(p.Env, func(e string) bool { return strings.HasPrefix(e, "HOSTNAME=") })
			var mu sync.Mutex // what is suspended writes nothing
			end := write(p.Env[i])
			p.OnSuspend(func(suspended bool) {
				mu.Lock()
				defer mu.Unlock()
				end()
				if end = (func() {}); !suspended {
					end = write(p.Env[i])
				}
			})
			defer func() {
				p.OnSuspend(nil)
				mu.Lock()
				defer mu.Unlock()
				end()
			}()
			return serve(p)
		},
		"check": last(20*time.Millisecond, 0),
	}
}

// world is what of a host outlives its processes: what runs there, and what was made for it. It
// ends with the power, apart from volumes.
type world struct {
	mu       sync.Mutex
	tasks    *fake.State
	mounted  map[string]bool
	attached map[string]bool
	secrets  map[string][]secret.File
}

func newWorld(tasks *fake.State) *world {
	w := &world{}
	w.boot(tasks)
	return w
}

// boot empties the world, and returns what ran there.
func (w *world) boot(tasks *fake.State) (old *fake.State) {
	w.mu.Lock()
	defer w.mu.Unlock()
	old = w.tasks
	w.tasks, w.mounted, w.attached, w.secrets = tasks, map[string]bool{}, map[string]bool{}, map[string][]secret.File{}
	return old
}

// life tells whether a process lives; what it does afterwards has no effect.
type life struct{ dead atomic.Bool }

var errDead = fault.New(fault.Unavailable, "the process was killed")

func (l *life) check() error {
	if l.dead.Load() {
		return errDead
	}
	return nil
}

// hands is how one process reaches the world: no further than it lives.
type hands struct {
	*life
	w *world
	// secretsPut is told which secrets are written for an instance.
	secretsPut func(instance string, files []secret.File)
}

// do runs f on the world, if the process lives.
func (h *hands) do(f func(w *world)) error {
	h.w.mu.Lock()
	defer h.w.mu.Unlock()
	if err := h.check(); err != nil {
		return err
	}
	f(h.w)
	return nil
}

// images implements agent.Images and agent.Blobs: every image is there.
type images struct{ *hands }

func (i images) Ensure(_ context.Context, name, digest string, _ func(image.Progress)) (image.Info, error) {
	if digest == "" {
		h := fnv.New64a()
		fmt.Fprint(h, name)
		digest = fmt.Sprintf("sha256:%x", h.Sum64())
	}
	return image.Info{Name: name, Digest: digest}, i.check()
}

func (i images) Mount(_ context.Context, key, _ string, _ *userns.Users) (string, error) {
	return "/rootfs/" + key, i.do(func(w *world) { w.mounted[key] = true })
}

func (i images) Unmount(_ context.Context, key string) error {
	return i.do(func(w *world) { delete(w.mounted, key) })
}

func (images) Changed(_ context.Context, key string, _ func(upper, base string) error) error {
	return fault.New(fault.NotFound, "%s has no root file system", key)
}

func (images) Written(_ context.Context, key string) (string, int64, error) {
	return "", 0, fault.New(fault.NotFound, "%s has no root file system", key)
}

func (i images) Mounted(context.Context) (keys []string, err error) {
	return keys, i.do(func(w *world) { keys = slices.Sorted(maps.Keys(w.mounted)) })
}

func (i images) Blob(context.Context, string) (io.ReadCloser, int64, error) {
	return nil, 0, fault.New(fault.NotFound, "no image has content here")
}

func (i images) Remove(context.Context, string) error { return i.check() }

// serverImages is what servers ask of their own images here: to find them. Nothing else is.
type serverImages struct {
	core.Images // nil
	images      images
}

func (s serverImages) Ensure(ctx context.Context, name, digest string, progress func(image.Progress)) (image.Info, error) {
	return s.images.Ensure(ctx, name, digest, progress)
}

// links implements agent.Links.
type links struct{ *hands }

func (l links) Attach(_ context.Context, a overlay.Attachment) (overlay.Attached, error) {
	return overlay.Attached{NetNS: "/netns/" + a.Instance}, l.do(func(w *world) { w.attached[a.Instance] = true })
}

func (l links) Detach(_ context.Context, instance string) error {
	return l.do(func(w *world) { delete(w.attached, instance) })
}

func (l links) Attached(context.Context) (all []string, err error) {
	return all, l.do(func(w *world) { all = slices.Sorted(maps.Keys(w.attached)) })
}

// volumes implements agent.Volumes.
type volumes struct{ *hands }

func (v volumes) Ensure(_ context.Context, vol *model.Volume) (string, error) {
	return filepath.Join("/volumes", vol.ID), v.check()
}
func (v volumes) Fill(context.Context, string, string, string, uint32) error { return v.check() }
func (v volumes) Remove(context.Context, string) error                       { return v.check() }
func (v volumes) Replace(context.Context, *model.Volume, func(string) error) error {
	return v.check()
}
func (v volumes) RemoveOf(context.Context, string) error { return v.check() }
func (v volumes) Held(id string) (string, error)         { return filepath.Join("/volumes", id), v.check() }

// secretFiles implements agent.SecretFiles.
type secretFiles struct{ *hands }

func (s secretFiles) Put(instance string, files []secret.File) (string, error) {
	err := s.do(func(w *world) { w.secrets[instance] = files })
	if err == nil {
		s.secretsPut(instance, files)
	}
	return "/secrets/" + instance, err
}

func (s secretFiles) PutFolders(instance, _ string, archive []byte) (string, error) {
	return s.Put(instance, []secret.File{{Name: "folders", Data: archive}})
}

func (s secretFiles) Dir(instance string) (string, error) {
	found := false
	err := s.do(func(w *world) { found = w.secrets[instance] != nil })
	if err == nil && !found {
		err = fault.New(fault.NotFound, "no secrets are kept for instance %s", instance)
	}
	return "/secrets/" + instance, err
}

func (s secretFiles) Remove(instance string) error {
	return s.do(func(w *world) { delete(w.secrets, instance) })
}

// network implements agent.NetworkState: what a kernel would be told takes a moment.
type network struct {
	*hands
	dice func(n int64) int64
}

func (n network) Sync(ctx context.Context, _ *wire.Network) error {
	select {
	case <-time.After(time.Duration(n.dice(int64(40 * time.Millisecond)))):
	case <-ctx.Done():
		return ctx.Err()
	}
	return n.check()
}

// reach implements driver.Driver, and driver.Leaser, for one process.
type reach struct {
	*fake.Driver
	*life
}

func (r reach) Lease(until time.Duration) error {
	if err := r.check(); err != nil {
		return err
	}
	return r.Driver.Lease(until)
}

func (r reach) Start(ctx context.Context, t driver.Task) error {
	if err := r.check(); err != nil {
		return err
	}
	return r.Driver.Start(ctx, t)
}

func (r reach) Signal(ctx context.Context, id string, signal int) error {
	if err := r.check(); err != nil {
		return err
	}
	return r.Driver.Signal(ctx, id, signal)
}

func (r reach) Kill(ctx context.Context, id string) error {
	if err := r.check(); err != nil {
		return err
	}
	return r.Driver.Kill(ctx, id)
}

func (r reach) Remove(ctx context.Context, id string) error {
	if err := r.check(); err != nil {
		return err
	}
	return r.Driver.Remove(ctx, id)
}

func (r reach) Exec(ctx context.Context, id string, spec driver.ExecSpec, s driver.Streams) (int, error) {
	if err := r.check(); err != nil {
		return 0, err
	}
	return r.Driver.Exec(ctx, id, spec, s)
}
