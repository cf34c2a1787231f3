package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sync/errgroup"

	"github.com/tutti-run/tutti/internal/atomicfile"
	"github.com/tutti-run/tutti/internal/driver"
	"github.com/tutti-run/tutti/internal/fault"
	"github.com/tutti-run/tutti/internal/image"
	"github.com/tutti-run/tutti/internal/model"
	"github.com/tutti-run/tutti/internal/overlay"
	"github.com/tutti-run/tutti/internal/secret"
	"github.com/tutti-run/tutti/internal/userns"
	"github.com/tutti-run/tutti/internal/wire"
)

// Images makes images available as root file systems.
type Images interface {
	Ensure(ctx context.Context, name, digest string, progress func(image.Progress)) (image.Info, error)
	Mount(ctx context.Context, key, digest string, users *userns.Users) (rootfs string, err error)
	Unmount(ctx context.Context, key string) error
	Mounted(ctx context.Context) ([]string, error)
	// Changed calls fn with what was written into the root file system of a key, as overlayfs keeps
	// it, and with what that was made of.
	Changed(ctx context.Context, key string, fn func(upper, base string) error) error
	// Written is where overlayfs keeps what was written into the root file system of a key, and how much is in what
	// that was made of; fault.NotFound when there is none.
	Written(ctx context.Context, key string) (upper string, below int64, err error)
}

// Links gives instances their network namespaces.
type Links interface {
	Attach(ctx context.Context, a overlay.Attachment) (overlay.Attached, error)
	Detach(ctx context.Context, instance string) error
	Attached(ctx context.Context) ([]string, error)
}

// Volumes gives volumes their place on this host.
type Volumes interface {
	Ensure(ctx context.Context, v *model.Volume) (hostPath string, err error)
	// Fill copies what the image has at target into an empty volume.
	Fill(ctx context.Context, path, rootfs, target string, first uint32) error
	Remove(ctx context.Context, id string) error
	// Replace puts what fill writes into a directory in place of what a volume holds.
	Replace(ctx context.Context, v *model.Volume, fill func(dir string) error) error
	// RemoveOf removes the anonymous volumes of an instance.
	RemoveOf(ctx context.Context, instance string) error
	// Held is where a volume holds what it has of its own; fault.NotFound when it is not here.
	Held(id string) (dir string, err error)
}

// SecretFiles keeps secrets and configs in memory-backed files.
type SecretFiles interface {
	Put(instance string, files []secret.File) (dir string, err error)
	// PutFolders lays out the folders of a tar archive below the directory that it returns, all at once.
	PutFolders(instance, name string, archive []byte) (dir string, err error)
	// Dir returns the directory of files put earlier; fault.NotFound when there is none.
	Dir(instance string) (string, error)
	Remove(instance string) error
}

// Artifacts fetches what processes are made of into their sandboxes.
type Artifacts interface {
	Place(ctx context.Context, sandbox string, uid, gid int, list []model.Artifact) error
}

// Devices are those that this host has names for, as CDI does.
type Devices interface {
	Has(device string) bool
	// Inject returns what a container's specification needs for devices.
	Inject(devices []string) (*specs.Spec, error)
}

// NetworkState is something that follows the cluster's network state: the overlay, the
// balancer, the names.
type NetworkState interface {
	Sync(ctx context.Context, n *wire.Network) error
}

// Keeper is a NetworkState that has to be looked after also while the state stays the same, such
// as one that has a process of its own.
type Keeper interface {
	Keep(ctx context.Context) error
}

// Session is the connection to the cluster: the agent hands it statuses, it hands the agent
// assignments by calling Agent.Assign and Agent.Network.
type Session interface {
	Report(instance string, status model.InstanceStatus)
	Forget(instance string)
	Applied(revision uint64)
}

// Deps is all that an agent works with.
type Deps struct {
	NodeID   string
	NodeName string
	Address  string // under which other hosts reach this one
	DataDir  string // <data dir>/agent
	RunDir   string
	// SandboxDir is where processes of the host have their own directories; their users must be
	// able to reach it.
	SandboxDir string
	// CgroupParent is where the cgroups of instances are made, e.g. "/tutti".
	CgroupParent string
	// PidsPerTask bounds the processes and threads of a task that has no limit of its own; 0 does not.
	PidsPerTask int64
	Drivers     map[string]driver.Driver // by name: "oci", "process"
	Devices     Devices                  // those with names; nil: there are none
	Images      Images
	Links       Links
	Volumes     Volumes
	Secrets     SecretFiles
	Artifacts   Artifacts
	Network     []NetworkState // synced in this order
	// Flows tells of the connections that clients of this node have within a span.
	Flows func(ctx context.Context, span time.Duration) ([]wire.Flow, error)
	// Counts tells what came to services by this node so far.
	Counts func(context.Context) ([]wire.ServiceCount, error)
	// Access reads the access log of this node's ingress; nil: there is no ingress.
	Access func(ctx context.Context, r wire.AccessRequest, yield func(driver.LogEntry) error) error
	// Debug says how this node is; nil: nobody can ask.
	Debug func() wire.NodeDebug
	// Requests counts those that came to this node's ingress, by service ID; nil: there is no ingress.
	Requests func(context.Context) (map[string]uint64, error)
	Log      *slog.Logger
}

// Agent runs the instances of one node.
type Agent struct {
	Deps
	session Session
	users   *userns.Pool

	adopted chan struct{} // closed when what was kept is adopted, or could not be

	mu       sync.Mutex
	workers  map[string]*worker
	closed   bool
	group    *errgroup.Group
	ctx      context.Context
	revision uint64        // newest of the assignments taken over
	sequence atomic.Uint64 // of the latest status

	lease          *lease
	turns          turns
	sizes          *sizes
	network        networkState
	networkWake    chan struct{}              // capacity 1: there is something new to put in force
	networkKnows   map[string][]model.Address // of the instances of the state in force
	networkChanged chan struct{}              // closed and replaced when a state comes in force
}

// New returns an agent; Run starts it.
func New(d Deps) (*Agent, error) {
	for _, dir := range []string{d.assignments(), d.files()} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return nil, fmt.Errorf("make the agent's directory: %w", err)
		}
	}
	epoch, err := d.nextEpoch()
	if err != nil {
		return nil, err
	}
	a := &Agent{
		Deps: d, users: userns.NewPool(filepath.Join(d.RunDir, "users")), adopted: make(chan struct{}), workers: map[string]*worker{},
		lease: newLease(d.Drivers), turns: newTurns(), sizes: newSizes(), networkWake: make(chan struct{}, 1), networkChanged: make(chan struct{}),
	}
	a.sequence.Store(epoch << epochShift)
	return a, nil
}

// epochShift leaves room for the statuses that one agent tells.
const epochShift = 32

// nextEpoch counts the agents of this node, so that each numbers its statuses beyond those of the one
// before.
func (d *Deps) nextEpoch() (uint64, error) {
	path := filepath.Join(d.DataDir, "epoch")
	var epoch uint64
	if data, err := os.ReadFile(path); err == nil {
		if epoch, err = strconv.ParseUint(strings.TrimSpace(string(data)), 10, 31); err != nil {
			d.Log.Error("the count of this node's agents is damaged, and begins anew", "file", path, "error", err)
		}
	}
	epoch++
	if err := atomicfile.WriteSynced(path, strconv.AppendUint(nil, epoch, 10)); err != nil {
		return 0, fmt.Errorf("count this node's agents: %w", err)
	}
	return epoch, nil
}

// outnumber makes the next statuses come after one that the cluster has of this node, and tells all
// again that would not: the count of agents was lost.
func (a *Agent) outnumber(seq uint64) {
	for {
		now := a.sequence.Load()
		if seq <= now {
			return
		}
		if a.sequence.CompareAndSwap(now, seq) {
			break
		}
	}
	a.mu.Lock()
	workers := slices.Collect(maps.Values(a.workers))
	a.mu.Unlock()
	for _, w := range workers {
		w.tellAgain()
	}
}

func (d *Deps) assignments() string { return filepath.Join(d.DataDir, "assignments") }

// files is where what is mounted into an instance is kept; it ends with the host, as what runs does.
func (d *Deps) files() string { return filepath.Join(d.RunDir, "files") }

func (d *Deps) revisionFile() string { return filepath.Join(d.DataDir, "revision") }

// Run adopts what an earlier agent left running, then works until ctx is done. Instances go on
// running when it returns.
func (a *Agent) Run(ctx context.Context, s Session) error {
	g, ctx := errgroup.WithContext(ctx)
	a.mu.Lock()
	a.session, a.group, a.ctx = s, g, ctx
	a.mu.Unlock()

	g.Go(func() error {
		<-ctx.Done()
		a.mu.Lock()
		a.closed = true // nothing more may join the group
		a.mu.Unlock()
		return nil
	})
	g.Go(func() error {
		a.lease.watch(ctx, a.lapse)
		return nil
	})
	g.Go(func() error {
		err := a.adopt(ctx)
		close(a.adopted)
		if err != nil {
			return err
		}
		return a.runNetwork(ctx)
	})
	return g.Wait()
}

// Adopted is closed when the agent has taken over what an earlier one left.
func (a *Agent) Adopted() <-chan struct{} { return a.adopted }

// adopt takes over what an earlier agent left: instances that are still wanted, and the removal
// of the others.
func (a *Agent) adopt(ctx context.Context) error {
	kept, damaged, err := loadAssignments(a.assignments())
	if err != nil {
		return err
	}
	if damaged != nil {
		a.Log.Error("kept assignments were damaged, and dropped until the cluster tells them again", "error", damaged)
	}
	var revision uint64
	if data, err := os.ReadFile(a.revisionFile()); err == nil && wire.Unmarshal(data, &revision) != nil {
		revision = 0 // cut short by a crash
	}
	a.mu.Lock()
	a.revision = revision
	a.mu.Unlock()
	known := make(map[string]bool, len(kept))
	for _, as := range kept {
		known[as.Instance.ID] = true
	}
	runs := map[string][]string{} // by instance
	for name, d := range a.Drivers {
		list, err := d.List(ctx)
		if err != nil {
			return fmt.Errorf("find what driver %s runs: %w", name, err)
		}
		for _, r := range list {
			id, _, _ := splitRunID(r.ID)
			if known[id] {
				runs[id] = append(runs[id], r.ID)
			} else if err := d.Remove(ctx, r.ID); err != nil && !fault.Is(err, fault.NotFound) {
				a.Log.Warn("a run that belongs to nothing could not be removed", "run", r.ID, "error", err)
			}
		}
	}
	if err := a.sweepSandboxes(known); err != nil {
		a.Log.Warn("sandboxes of earlier instances could not all be removed", "error", err)
	}
	if err := a.sweep(ctx, known); err != nil {
		a.Log.Warn("left-overs of earlier instances could not all be removed", "error", err)
	}
	for _, as := range kept {
		a.start(as, true, runs[as.Instance.ID])
	}
	if len(kept) > 0 {
		a.Log.Info("instances adopted", "count", len(kept))
	}
	return nil
}

// lapse says that there is no lease: what needs one is suspended by those who watch over it.
func (a *Agent) lapse() {
	a.Log.Warn("this node could not renew its lease: instances that need one are suspended")
}

// renewed takes over a lease.
func (a *Agent) renewed(until time.Duration) error {
	anew, err := a.lease.extend(until)
	if err != nil || !anew {
		return err
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, w := range a.workers {
		if w.leased() {
			w.poke()
		}
	}
	return nil
}

// Assign takes over what a server wants of this node. It waits until the agent has adopted what
// an earlier one left. It reports false when what it has then is not what it should have, and
// everything has to be told anew.
func (a *Agent) Assign(m *wire.Assign) bool {
	<-a.adopted
	if m.Full {
		a.outnumber(m.Seq)
		keep := make(map[string]bool, len(m.Put)+len(m.Keep))
		for _, as := range m.Put {
			keep[as.Instance.ID] = true
		}
		for _, id := range m.Keep {
			keep[id] = true
		}
		for _, id := range a.Instances() {
			if !keep[id] {
				a.remove(id)
			}
		}
	}
	for i := range m.Put {
		as := m.Put[i]
		if err := saveAssignment(a.assignments(), &as); err != nil {
			a.Log.Error("assignment could not be kept on disk", "instance", as.Instance.ID, "error", err)
		}
		a.mu.Lock()
		w := a.workers[as.Instance.ID]
		a.mu.Unlock()
		if w == nil {
			a.start(&as, false, nil)
		} else {
			w.update(&as)
		}
	}
	for _, id := range m.Remove {
		a.remove(id)
	}
	a.mu.Lock()
	newer := m.Revision > a.revision
	a.revision = max(a.revision, m.Revision)
	a.mu.Unlock()
	if newer {
		if err := save(a.revisionFile(), m.Revision); err != nil {
			a.Log.Error("revision of the assignments could not be kept on disk", "error", err)
		}
	}
	return m.Full || len(a.Held()) == m.Total
}

// Held returns the instances that this agent has been assigned, each with the key of its assignment;
// "" where a part of that is missing.
func (a *Agent) Held() map[string]string {
	a.mu.Lock()
	defer a.mu.Unlock()
	held := make(map[string]string, len(a.workers))
	for id, w := range a.workers {
		if key, ok := w.key(); ok {
			held[id] = key
		}
	}
	return held
}

// Revision returns the newest store revision of which this node was given assignments, also to an
// earlier agent.
func (a *Agent) Revision() uint64 {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.revision
}

// Instances returns the IDs of all instances that this agent holds.
func (a *Agent) Instances() []string {
	a.mu.Lock()
	defer a.mu.Unlock()
	ids := make([]string, 0, len(a.workers))
	for id := range a.workers {
		ids = append(ids, id)
	}
	return ids
}

// Statuses returns the latest status of every instance, for a new session.
func (a *Agent) Statuses() map[string]model.InstanceStatus {
	a.mu.Lock()
	workers := make([]*worker, 0, len(a.workers))
	for _, w := range a.workers {
		workers = append(workers, w)
	}
	a.mu.Unlock()
	out := make(map[string]model.InstanceStatus, len(workers))
	for _, w := range workers {
		if st, ok := w.reported(); ok {
			out[w.id] = st
		}
	}
	return out
}

// start begins an instance, or goes on with one whose runs are given.
func (a *Agent) start(as *wire.Assignment, adopted bool, runs []string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.closed || a.workers[as.Instance.ID] != nil {
		return
	}
	w := newWorker(a, as, adopted)
	w.recall(runs)
	a.workers[w.id] = w
	a.group.Go(func() error {
		w.run(a.ctx)
		return nil
	})
}

func (a *Agent) remove(id string) {
	a.mu.Lock()
	w := a.workers[id]
	a.mu.Unlock()
	if w != nil {
		w.remove()
	}
}

// forget is called by a worker as its last act, when nothing of its instance is left.
func (a *Agent) forget(id string) {
	a.mu.Lock()
	delete(a.workers, id)
	a.mu.Unlock()
	a.session.Forget(id)
}

// sweep removes what instances left that this agent no longer knows: their assignment went
// before everything else was gone.
func (a *Agent) sweep(ctx context.Context, known map[string]bool) error {
	var errs []error
	attached, err := a.Links.Attached(ctx)
	errs = append(errs, err)
	for _, id := range attached {
		if !known[id] {
			errs = append(errs, a.Links.Detach(ctx, id))
		}
	}
	mounted, err := a.Images.Mounted(ctx)
	errs = append(errs, err)
	for _, key := range mounted {
		if id, _, _ := strings.Cut(key, "."); !known[id] {
			errs = append(errs, a.Images.Unmount(ctx, key))
		}
	}
	held, err := a.users.Held()
	errs = append(errs, err)
	for _, id := range held {
		if !known[id] {
			errs = append(errs, a.users.Release(id))
		}
	}
	return errors.Join(errs...)
}

// adoptPatience is how long a question about an instance waits for a new agent to take over what an
// earlier one left.
const adoptPatience = 10 * time.Second

// worker returns the worker of an instance held here. An agent that has just started first takes over
// what an earlier one left: what it does not know yet may be among that, and is waited for.
func (a *Agent) worker(instance string) (*worker, error) {
	find := func() *worker {
		a.mu.Lock()
		defer a.mu.Unlock()
		return a.workers[instance]
	}
	if w := find(); w != nil {
		return w, nil
	}
	select {
	case <-a.adopted:
	case <-time.After(adoptPatience):
		return nil, fault.New(fault.Unavailable, "node %s is still taking over what runs there: try again", a.NodeName)
	}
	if w := find(); w != nil {
		return w, nil
	}
	return nil, fault.New(fault.NotFound, "instance %s is not on node %s", model.ShortID(instance), a.NodeName)
}

// find returns the driver and the newest run of a task of an instance held here. An empty task
// name means the only, or first, task.
func (a *Agent) find(instance, task string) (driver.Driver, string, error) {
	w, err := a.worker(instance)
	if err != nil {
		return nil, "", err
	}
	return w.latestRun(task)
}

// Logs yields the log of a task over all of its kept runs, oldest first; see driver.Driver. A
// follower is led from run to run until the instance has ended.
func (a *Agent) Logs(ctx context.Context, instance, task string, o driver.LogOptions, yield func(driver.LogEntry) error) error {
	w, err := a.worker(instance)
	if err != nil {
		return err
	}
	return w.logs(ctx, task, o, yield)
}

// Exec runs a process in a task; see driver.Driver.
func (a *Agent) Exec(ctx context.Context, instance, task string, spec driver.ExecSpec, s driver.Streams) (int, error) {
	d, id, err := a.find(instance, task)
	if err != nil {
		return 0, err
	}
	return d.Exec(ctx, id, spec, s)
}

// Stats reads the usage of a task.
func (a *Agent) Stats(ctx context.Context, instance, task string) (driver.Stats, error) {
	d, id, err := a.find(instance, task)
	if err != nil {
		return driver.Stats{}, err
	}
	out, err := d.Stats(ctx, id)
	if err != nil {
		return out, err
	}
	w, err := a.worker(instance)
	if err != nil {
		return out, err
	}
	as, _, _ := w.desired()
	pid := 0
	if st, err := d.Status(ctx, id); err == nil && !as.Template.HostNetwork {
		pid = st.PID
	}
	addHost(&out, pid)
	return out, nil
}

// Usage reads what all instances use that run here, and what came to the ingress. An instance with a task
// that cannot be read is left out.
func (a *Agent) Usage(ctx context.Context) (wire.NodeUsage, error) {
	out := wire.NodeUsage{Time: time.Now(), Instances: map[string]wire.InstanceUsage{}}
	a.mu.Lock()
	workers := maps.Clone(a.workers)
	a.mu.Unlock()
	for id, w := range workers {
		if used, ok := w.usage(ctx); ok {
			out.Instances[id] = used
		}
	}
	if a.Requests == nil {
		return out, nil
	}
	var err error
	out.Requests, err = a.Requests(ctx)
	return out, err
}

// Processes lists the processes of a task.
func (a *Agent) Processes(ctx context.Context, instance, task string) ([]driver.Process, error) {
	d, id, err := a.find(instance, task)
	if err != nil {
		return nil, err
	}
	return d.Processes(ctx, id)
}

// Pause stops the processes of an instance's task where they are, or lets them go on; an empty task
// name means all of its tasks.
func (a *Agent) Pause(ctx context.Context, instance, task string, pause bool) error {
	w, err := a.worker(instance)
	if err != nil {
		return err
	}
	return w.pause(ctx, task, pause)
}

func parseAddresses(list []model.Address) (map[string][2]netip.Addr, error) {
	out := make(map[string][2]netip.Addr, len(list))
	for _, a := range list {
		ip, err := netip.ParseAddr(a.IP)
		if err != nil {
			return nil, fault.New(fault.Invalid, "address %q on network %s: %w", a.IP, a.Network, err)
		}
		both := [2]netip.Addr{ip}
		if a.IP6 != "" {
			if both[1], err = netip.ParseAddr(a.IP6); err != nil {
				return nil, fault.New(fault.Invalid, "address %q on network %s: %w", a.IP6, a.Network, err)
			}
		}
		out[a.Network] = both
	}
	return out, nil
}
