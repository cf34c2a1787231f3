package oci

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"syscall"
	"time"

	"github.com/opencontainers/cgroups"
	"github.com/opencontainers/cgroups/manager"
	"github.com/opencontainers/runc/libcontainer"
	"github.com/opencontainers/runc/libcontainer/configs"
	"github.com/opencontainers/runc/libcontainer/configs/validate"
	"github.com/opencontainers/runc/libcontainer/system"
	"golang.org/x/sys/unix"

	"github.com/tutti-run/tutti/internal/cgroup"
	"github.com/tutti-run/tutti/internal/driver"
	"github.com/tutti-run/tutti/internal/driver/launch"
	"github.com/tutti-run/tutti/internal/driver/supervisor"
)

// direct is the body of a task whose container is made by a list of steps, without libcontainer's
// first process in it. The list does what libcontainer does, in the same order, from the same
// configuration; what it does not know is left to libcontainer (see steps). What is executed in the container
// later is begun in the same way; where it has a terminal libcontainer does it, which finds the container as one that it
// has made itself.
type direct struct {
	usage
	lib *container // its c is nil until it is asked for

	mu      sync.Mutex
	first   int // the ID of the first process once it was started, until it was waited for: then 0
	started bool
	traces  bool // see traced
}

func newDirect(c *container) (*direct, error) {
	if err := validate.Validate(c.config); err != nil {
		return nil, fmt.Errorf("create the container: %w", err)
	}
	m, err := manager.NewWithPaths(c.config.Cgroups, c.task.Cgroups.Paths(c.spec.Linux.CgroupsPath))
	if err != nil {
		return nil, fmt.Errorf("find the container's cgroup: %w", err)
	}
	return &direct{usage: usage{m}, lib: c}, nil
}

// prepare makes the container's cgroup, and writes its first steps down.
func (d *direct) prepare(files standard) (p *launch.Program, flags uintptr, err error) {
	if d.group.Exists() {
		if pids, err := cgroup.Members(d.group); err != nil {
			return nil, 0, err
		} else if len(pids) > 0 {
			return nil, 0, fmt.Errorf("create the container: there are %d processes in its cgroup, and should be none", len(pids))
		}
		if err := d.Resume(); err != nil {
			return nil, 0, fmt.Errorf("create the container: %w", err)
		}
	}
	// The process joins by itself, as the first of its steps.
	if err := d.group.Apply(-1); err != nil {
		return nil, 0, fmt.Errorf("make the container's cgroup: %w", err)
	}
	if err := d.group.Set(d.lib.config.Cgroups.Resources); err != nil {
		return nil, 0, fmt.Errorf("limit the container: %w", err)
	}
	return steps(d.lib, d.group.GetPaths(), files)
}

// notBegun says why a process could not be begun.
func (d *direct) notBegun(name string, err error) error {
	if failed, ok := errors.AsType[*launch.Error](err); ok && failed.Exec {
		return startError(name, fmt.Errorf("exec: %w", failed.Errno))
	}
	return fmt.Errorf("start the container: %w", err)
}

// Start implements supervisor.Body.
func (d *direct) Start(files *supervisor.Files) (supervisor.Process, error) {
	p, flags, err := d.prepare(standardOf(files))
	if err != nil {
		return nil, err
	}
	first, err := p.Run(flags)
	if err != nil {
		return nil, d.notBegun(d.lib.task.Args[0], err)
	}
	return d.Adopt(first, nil), nil
}

// Adopt implements supervisor.Adopter.
func (d *direct) Adopt(pid int, ended *syscall.WaitStatus) supervisor.Process {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.started = true; ended != nil {
		return endedProcess{pid, *ended}
	}
	d.first = pid
	return &directProcess{pid, d, d.lib.strays.leave(pid)}
}

// endedProcess is one that was waited for.
type endedProcess struct {
	pid    int
	status syscall.WaitStatus
}

// PID implements supervisor.Process.
func (p endedProcess) PID() int { return p.pid }

// Wait implements supervisor.Process.
func (p endedProcess) Wait() (syscall.WaitStatus, error) { return p.status, nil }

// prepareFirst has a container begun before its supervisor is there: nil where that has to do it, be it that steps do not know all, be it
// to say what is wrong.
func prepareFirst(t *driver.Task, dir, reaper string, files [3]int) *supervisor.First {
	if t.Runtime != "" || t.Users != nil { // with users of its own, libcontainer would give their root the devices of all that come later
		return nil
	}
	c := &container{task: t, dir: dir}
	if c.configure(reaper, readFilter) != nil || confined(t) && c.filter == nil || !stepsKnow(t, c.config) {
		return nil
	}
	d, err := newDirect(c)
	if err != nil {
		return nil
	}
	p, flags, err := d.prepare(files)
	if err != nil {
		d.Destroy()
		return nil
	}
	return &supervisor.First{
		Hand: func(w launch.Watch) []byte {
			w.Groups, w.OOM = groupsOf(d.group)
			return p.Hand(flags, w)
		},
		Failed: func(step int, errno syscall.Errno) error {
			d.Destroy()
			return d.notBegun(t.Args[0], p.Failure(step, errno))
		},
	}
}

// groupsOf returns the directories of a cgroup, and the file that counts who was killed in it for want of memory.
func groupsOf(m cgroups.Manager) (dirs []string, oom string) {
	dirs = slices.Sorted(maps.Values(m.GetPaths()))
	if oom = filepath.Join(m.Path("memory"), "memory.oom_control"); cgroups.IsCgroup2UnifiedMode() {
		oom = filepath.Join(m.Path(""), "memory.events")
	}
	return slices.Compact(dirs), oom
}

type directProcess struct {
	pid   int
	d     *direct
	ended func()
}

// PID implements supervisor.Process.
func (p *directProcess) PID() int { return p.pid }

// Wait implements supervisor.Process.
func (p *directProcess) Wait() (ws syscall.WaitStatus, err error) {
	defer p.ended()
	// Its ID is its own until it is waited for, and then nobody is to send it a signal any more.
	if err := again(func() error { return unix.Waitid(unix.P_PID, p.pid, nil, unix.WEXITED|unix.WNOWAIT, nil) }); err != nil {
		return 0, os.NewSyscallError("waitid", err)
	}
	p.d.mu.Lock()
	defer p.d.mu.Unlock()
	p.d.first = 0
	return waitFor(p.pid)
}

// again makes a system call until no signal interrupts it.
func again(call func() error) error {
	for {
		if err := call(); err != unix.EINTR {
			return err
		}
	}
}

func waitFor(pid int) (ws syscall.WaitStatus, err error) {
	err = again(func() error { _, err := syscall.Wait4(pid, &ws, 0, nil); return err })
	return ws, os.NewSyscallError("wait4", err)
}

// furtherProcess is one that was executed later.
type furtherProcess struct {
	pid   int
	ended func()
}

// PID implements supervisor.Process.
func (p *furtherProcess) PID() int { return p.pid }

// Wait implements supervisor.Process.
func (p *furtherProcess) Wait() (syscall.WaitStatus, error) {
	defer p.ended()
	return waitFor(p.pid)
}

// Kill implements supervisor.Body.
func (d *direct) Kill() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	switch {
	case !d.started: // it may be on its way
		return cgroup.KillAll(d.group)
	case d.first == 0: // and with it all others
		return nil
	}
	err := unix.Kill(d.first, unix.SIGKILL)
	d.Resume() // a frozen one cannot die; one that is not frozen is no error
	return os.NewSyscallError("kill", err)
}

// Pause implements supervisor.Body.
func (d *direct) Pause() error { return d.group.Freeze(cgroups.Frozen) }

// Resume implements supervisor.Body.
func (d *direct) Resume() error { return d.group.Freeze(cgroups.Thawed) }

// Update implements supervisor.Body.
func (d *direct) Update(t *driver.Task) error {
	return d.lib.update(t, func(r *cgroups.Resources) error {
		before := d.lib.config.Cgroups.Resources
		if err := d.group.Set(r); err != nil {
			return errors.Join(err, d.group.Set(before)) // some of it may be in force
		}
		d.lib.config.Cgroups.Resources = r
		return nil
	})
}

// Destroy implements supervisor.Body.
func (d *direct) Destroy() error { return d.group.Destroy() }

// Exec implements supervisor.Body.
func (d *direct) Exec(e *driver.ExecSpec, files *supervisor.Files) (supervisor.Process, error) {
	if files.TTY || d.traced(e) {
		return d.execByLibrary(e, files)
	}
	spec, err := execProcess(d.lib.task, d.lib.spec, e)
	if err != nil {
		return nil, err
	}
	first, err := d.openFirst()
	if err != nil {
		return nil, err
	}
	defer unix.Close(first)
	p, err := stepsIn(d.lib, d.group.GetPaths(), spec, first, standardOf(files))
	if err != nil {
		return nil, err
	}
	pid, ended, err := d.lib.strays.run(func() (int, error) { return p.RunAmong(first) })
	switch {
	case errors.Is(err, unix.EBUSY): // it has divided its cgroup, which nothing can join any more
		return d.execByLibrary(e, files)
	case err != nil:
		return nil, d.notBegun(e.Args[0], err)
	}
	return &furtherProcess{pid, ended}, nil
}

// traced reports whether something in the container may look into the memory of others, be it that this is executed to do so: what is
// executed by steps is among the container's processes while it shares its supervisor's memory.
func (d *direct) traced(e *driver.ExecSpec) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.traces = d.traces || e.Privileged || slices.Contains(d.lib.spec.Process.Capabilities.Bounding, "CAP_SYS_PTRACE")
	return d.traces
}

func (d *direct) execByLibrary(e *driver.ExecSpec, files *supervisor.Files) (supervisor.Process, error) {
	if err := d.join(); err != nil {
		return nil, err
	}
	return d.lib.Exec(e, files)
}

var errEnded = errors.New("the container has ended")

// openFirst returns a pidfd of the first process.
func (d *direct) openFirst() (int, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.first == 0 {
		return 0, errEnded
	}
	fd, err := unix.PidfdOpen(d.first, 0)
	return fd, os.NewSyscallError("pidfd_open", err)
}

// join lets libcontainer know of the container, by the file that it would have written.
func (d *direct) join() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	switch {
	case d.lib.c != nil:
		return nil
	case d.first == 0:
		return errEnded
	}
	err := d.writeState(d.first)
	if err == nil {
		d.lib.c, err = libcontainer.Load(d.lib.dir, containerID)
	}
	return err
}

// writeState is called while the first process has not been waited for.
func (d *direct) writeState(pid int) error {
	stat, err := system.Stat(pid)
	if err != nil {
		return fmt.Errorf("ask when the container began: %w", err)
	}
	config := *d.lib.config
	if config.Seccomp, err = d.lib.profile(); err != nil {
		return err
	}
	state := libcontainer.State{
		BaseState: libcontainer.BaseState{
			ID: containerID, InitProcessPid: pid, InitProcessStartTime: stat.StartTime, Created: time.Now().UTC(), Config: config,
		},
		CgroupPaths: d.group.GetPaths(), NamespacePaths: map[configs.NamespaceType]string{},
	}
	for _, kind := range configs.NamespaceTypes() {
		if configs.IsNamespaceSupported(kind) {
			ns := configs.Namespace{Type: kind}
			state.NamespacePaths[kind] = ns.GetPath(pid)
		}
	}
	for _, ns := range config.Namespaces {
		state.NamespacePaths[ns.Type] = ns.GetPath(pid)
	}
	text, err := json.Marshal(state)
	if err != nil {
		return fmt.Errorf("encode the container's state: %w", err)
	}
	dir := filepath.Join(d.lib.dir, containerID)
	if err := os.MkdirAll(dir, 0o711); err != nil {
		return fmt.Errorf("keep the container's state: %w", err)
	}
	if err := os.WriteFile(filepath.Join(dir, "state.json"), text, 0o600); err != nil {
		return fmt.Errorf("keep the container's state: %w", err)
	}
	return nil
}

// buryGroup ends and frees a container of which there is nothing but its cgroup.
func buryGroup(t *driver.Task) error {
	m, err := cgroupOf(t)
	if err != nil {
		return err
	}
	if err := cgroup.KillAll(m); err != nil {
		return err
	}
	return m.Destroy()
}
