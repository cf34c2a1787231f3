package agent

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"time"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"

	"github.com/tutti-run/tutti/internal/driver"
	"github.com/tutti-run/tutti/internal/fault"
	"github.com/tutti-run/tutti/internal/model"
	"github.com/tutti-run/tutti/internal/wire"
)

// sharedMemoryDir is where, among an instance's files, the shared memory is that others may use.
const sharedMemoryDir = "shm"

const defaultSharedMemory = 64 << 20

// sharedMemory makes the /dev/shm of an instance whose IPC others may join: it outlives single runs.
func (w *worker) sharedMemory(as *wire.Assignment) (driver.Mount, error) {
	dir := filepath.Join(w.filesDir(), sharedMemoryDir)
	m := driver.Mount{Type: "bind", Source: dir, Target: "/dev/shm"}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return m, fmt.Errorf("make shared memory: %w", err)
	}
	if mounted, err := mountinfo.Mounted(dir); err != nil || mounted {
		return m, err
	}
	size := as.Template.Tasks[0].ShmBytes
	if size == 0 {
		size = defaultSharedMemory
	}
	err := unix.Mount("shm", dir, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "mode=1777,size="+strconv.FormatInt(size, 10))
	if err != nil {
		return m, fmt.Errorf("mount shared memory: %w", err)
	}
	return m, nil
}

// dropMount unmounts what may be mounted there.
func dropMount(dir string) error {
	if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil && err != unix.EINVAL && err != unix.ENOENT {
		return os.NewSyscallError("umount", err)
	}
	return nil
}

// joinOthers finds the namespaces of other instances that a task is to enter.
func (w *worker) joinOthers(ctx context.Context, task *driver.Task) error {
	as, _, _ := w.desired()
	shared := as.Template.Shared()
	if _, name, _ := splitRunID(task.ID); shared.OnePIDs && name != holderName {
		pid, err := w.awaitHolder(ctx)
		if err != nil {
			return err
		}
		task.PIDNS = fmt.Sprintf("/proc/%d/ns/pid", pid)
	}
	if shared.PIDsOf != "" {
		_, pid, err := w.awaitOther(ctx, as, shared.PIDsOf, shared.PIDsTask)
		if err != nil {
			return err
		}
		task.PIDNS = fmt.Sprintf("/proc/%d/ns/pid", pid)
	}
	if shared.IPCOf != "" {
		other, pid, err := w.awaitOther(ctx, as, shared.IPCOf, "")
		if err != nil {
			return err
		}
		task.IPCNS = fmt.Sprintf("/proc/%d/ns/ipc", pid)
		shm := driver.Mount{Type: "bind", Source: "/dev/shm", Target: "/dev/shm"}
		if theirs, _, _ := other.desired(); !theirs.Template.HostIPC {
			shm.Source = filepath.Join(other.filesDir(), sharedMemoryDir)
		}
		task.Mounts = append(task.Mounts[:len(task.Mounts):len(task.Mounts)], shm)
	}
	return nil
}

// holderName is what the process runs as, beside an instance's tasks, that holds the namespace of processes which these
// have together. No task has the name.
const holderName = "_processes"

// holder is that process, as a task that no template has: its root is an empty directory, and it may do nothing.
func holder() *model.TaskSpec {
	return &model.TaskSpec{Name: holderName, Init: true, Args: []string{driver.Hold}, CapDrop: []string{"ALL"}, SecurityOpts: []string{"no-new-privileges"}, ReadOnlyRoot: true}
}

// prepareHolder makes the directory that is the holder's root.
func (w *worker) prepareHolder(p *prepared) error {
	dir := filepath.Join(w.filesDir(), holderName)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("make a root for what holds the processes' namespace: %w", err)
	}
	p.rootfs[holderName] = dir
	return nil
}

// awaitHolder waits until the holder runs, and returns its process ID.
func (w *worker) awaitHolder(ctx context.Context) (int, error) {
	for {
		w.mu.Lock()
		runs := w.runs[holderName]
		w.mu.Unlock()
		if len(runs) > 0 {
			st, err := w.agent.Drivers["oci"].Status(ctx, runID(w.id, holderName, runs[len(runs)-1]))
			if err == nil && st.State == driver.Running && st.PID > 0 {
				return st.PID, nil
			}
		}
		if _, want, _ := w.desired(); !want {
			return 0, fault.New(fault.Unavailable, "stopped before it was started")
		}
		select {
		case <-ctx.Done():
			return 0, ctx.Err()
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// otherWait is how long an instance that was placed where another is waits for the node to be told of that.
const otherWait = 10 * time.Second

// awaitOther waits until a task of an instance of another workload runs here, the first one unless one is named, and
// returns its process ID.
func (w *worker) awaitOther(ctx context.Context, as *wire.Assignment, workload, task string) (other *worker, pid int, err error) {
	other, err = w.await(ctx, as, workload, func(other *worker) bool {
		theirs, _, _ := other.desired()
		st, _ := other.reported()
		t := &theirs.Template.Tasks[0]
		if task == "" && st.State != model.InstanceRunning {
			return false
		}
		if task != "" {
			all := slices.Concat(theirs.Template.InitTasks, theirs.Template.Tasks)
			at := slices.IndexFunc(all, func(t model.TaskSpec) bool { return t.Name == task })
			if at < 0 {
				return false
			}
			t = &all[at]
		}
		at := slices.IndexFunc(st.Tasks, func(have model.TaskStatus) bool { return have.Name == t.Name })
		if at < 0 {
			return false
		}
		run, err := w.agent.Drivers[driverName(t)].Status(ctx, runID(other.id, t.Name, st.Tasks[at].Run))
		pid = run.PID
		return err == nil && pid > 0
	})
	return other, pid, err
}

// awaitNetworkOf waits until an instance of another workload has its network here, and returns what that is.
func (w *worker) awaitNetworkOf(ctx context.Context, as *wire.Assignment, workload string) (other *worker, theirs *prepared, err error) {
	other, err = w.await(ctx, as, workload, func(other *worker) bool {
		other.mu.Lock()
		theirs = other.prepared
		other.mu.Unlock()
		return theirs != nil
	})
	return other, theirs, err
}

// await waits until an instance of another workload is here, and is as it is wanted. That there is none on this node is
// not found: the cluster places the instance anew.
func (w *worker) await(ctx context.Context, as *wire.Assignment, workload string, ready func(*worker) bool) (*worker, error) {
	for since := time.Now(); ; {
		other := w.agent.instanceOf(workload, as.Instance)
		if other != nil {
			since = time.Now()
			if st, _ := other.reported(); st.State == model.InstanceHeld {
				return nil, fault.New(fault.Unavailable, "%s, whose namespaces it is to enter, is not running", workload)
			}
			if ready(other) {
				return other, nil
			}
			w.set(func(st *model.InstanceStatus) { st.Message = "waiting for " + workload + " to run" })
		} else if time.Since(since) > otherWait {
			return nil, fault.New(fault.NotFound, "no instance of %s, whose namespaces it is to enter, is on node %s", workload, w.agent.NodeName)
		}
		if !w.sleep(ctx, 50*time.Millisecond) {
			if ctx.Err() != nil {
				return nil, ctx.Err()
			}
			return nil, fault.New(fault.Unavailable, "stopped before it was started")
		}
	}
}

// instanceOf finds an instance of a workload here, as the other calls it, that has not ended.
func (a *Agent) instanceOf(workload string, other *model.Instance) *worker {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, w := range a.workers {
		as, want, _ := w.desired()
		if st, _ := w.reported(); want && !st.State.Final() && as.Instance.ID != other.ID && as.Instance.IsOf(workload, a.NodeName, other) {
			return w
		}
	}
	return nil
}
