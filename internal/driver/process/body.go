package process

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"

	"github.com/coreos/go-systemd/v22/dbus"
	"github.com/opencontainers/cgroups"
	"github.com/opencontainers/cgroups/manager"
	"golang.org/x/sys/unix"

	"github.com/tutti-run/tutti/internal/cgroup"
	"github.com/tutti-run/tutti/internal/driver"
	"github.com/tutti-run/tutti/internal/driver/supervisor"
	"github.com/tutti-run/tutti/internal/driver/users"
	"github.com/tutti-run/tutti/internal/fault"
	"github.com/tutti-run/tutti/internal/model"
)

// body is a task's processes.
type body struct {
	task   *driver.Task
	cgroup cgroups.Manager
	reaper *supervisor.Reaper
	first  int // process ID of the first process

	killing sync.Mutex
}

// cgroupOf is where a task's processes live.
func cgroupOf(t *driver.Task) (cgroups.Manager, error) {
	c := &cgroups.Cgroup{Path: filepath.Join(t.CgroupParent, t.ID), Resources: resources(t)}
	if t.Runtime == model.UnitRuntime {
		c = &cgroups.Cgroup{
			Systemd: true, Parent: unitSlice, ScopePrefix: "tutti", Name: t.ID, Resources: c.Resources,
			SystemdProps: []dbus.Property{dbus.PropDescription("Tutti task " + t.ID)},
		}
	}
	m, err := manager.New(c)
	if err != nil {
		return nil, fmt.Errorf("find the cgroups of task %s: %w", t.ID, err)
	}
	return m, nil
}

// unitSlice is where the units of tasks are.
const unitSlice = "tutti.slice"

const cpuPeriod = 100_000 // microseconds

func resources(t *driver.Task) *cgroups.Resources {
	r := &cgroups.Resources{SkipDevices: true, Memory: t.Limit.MemoryBytes}
	if t.Limit.NanoCPUs > 0 {
		r.CpuPeriod, r.CpuQuota = cpuPeriod, max(t.Limit.NanoCPUs*cpuPeriod/1e9, 1000)
	}
	if t.Reserve.NanoCPUs > 0 {
		r.CpuShares = uint64(max(t.Reserve.NanoCPUs*1024/1e9, 2))
		r.CpuWeight = cgroups.ConvertCPUSharesToCgroupV2Value(r.CpuShares)
	}
	if t.Limit.Pids > 0 {
		limit := t.Limit.Pids
		r.PidsLimit = &limit
	}
	return r
}

func newBody(t *driver.Task, _, _ string) (supervisor.Body, error) {
	m, err := cgroupOf(t)
	if err != nil {
		return nil, err
	}
	r, err := supervisor.NewReaper()
	if err != nil {
		return nil, err
	}
	return &body{task: t, cgroup: m, reaper: r}, nil
}

// Start implements supervisor.Body.
func (b *body) Start(files *supervisor.Files) (supervisor.Process, error) {
	s, err := b.step(b.task.Args, b.task.User, b.task.Groups, workingDir(b.task, ""))
	if err != nil {
		return nil, err
	}
	s.Env, s.NetNS, s.Mounts, s.Sandbox, s.First = b.task.Env, b.task.NetNS, b.task.Mounts, b.task.Sandbox, true
	p, err := b.run(s, files, func(pid int) error {
		if err := b.cgroup.Apply(pid); err != nil {
			return fmt.Errorf("put the process into its cgroup: %w", err)
		}
		if err := b.cgroup.Set(resources(b.task)); err != nil {
			return fmt.Errorf("limit the process: %w", err)
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	b.first = p.PID()
	return p, nil
}

// Exec implements supervisor.Body.
func (b *body) Exec(e *driver.ExecSpec, files *supervisor.Files) (supervisor.Process, error) {
	name, groups := b.task.User, b.task.Groups
	if e.User != "" {
		name, groups = e.User, nil
	}
	s, err := b.step(e.Args, name, groups, workingDir(b.task, e.WorkingDir))
	if err != nil {
		return nil, err
	}
	env := b.task.Env
	if e.TTY {
		env = append(slices.Clone(env), "TERM=xterm")
	}
	s.Env, s.NetNS = over(env, e.Env), b.task.NetNS
	if len(b.task.Mounts) > 0 {
		s.MountNS = fmt.Sprintf("/proc/%d/ns/mnt", b.first)
	}
	return b.run(s, files, func(pid int) error {
		for controller, dir := range b.cgroup.GetPaths() {
			if controller == "devices" {
				continue // processes are not restricted by it, and have no cgroup there
			}
			if err := cgroups.WriteCgroupProc(dir, pid); err != nil {
				return fmt.Errorf("put the process into its cgroup: %w", err)
			}
		}
		return nil
	})
}

// over returns an environment in which others replace variables of the same name.
func over(env, others []string) []string {
	name := func(e string) string { n, _, _ := strings.Cut(e, "="); return n }
	out := slices.DeleteFunc(slices.Clone(env), func(e string) bool {
		return slices.ContainsFunc(others, func(o string) bool { return name(o) == name(e) })
	})
	return append(out, others...)
}

// step says what a process of the task is to be.
func (b *body) step(args []string, name string, groups []string, dir string) (*step, error) {
	u, err := users.Lookup("/", name, groups)
	if err != nil {
		return nil, err
	}
	s := &step{
		Args: args, Dir: dir, UID: int(u.UID), GID: int(u.GID), OOMScoreAdjust: b.task.OOMScoreAdjust, Umask: b.task.Umask,
		NoNewPrivileges: slices.ContainsFunc(b.task.SecurityOpts, func(o string) bool { return strings.HasPrefix(o, "no-new-privileges") }),
	}
	for _, g := range u.AdditionalGids {
		s.Groups = append(s.Groups, int(g))
	}
	for _, l := range b.task.Ulimits {
		s.Limits = append(s.Limits, limit{limits[l.Name], unix.Rlimit{Cur: uint64(l.Soft), Max: uint64(l.Hard)}})
	}
	return s, nil
}

// run starts a process by its first step; admit puts it into its cgroup before it does anything.
func (b *body) run(s *step, files *supervisor.Files, admit func(pid int) error) (*supervisor.Child, error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("make a socket: %w", err)
	}
	ours, theirs := os.NewFile(uintptr(fds[0]), "step"), os.NewFile(uintptr(fds[1]), "step")
	defer ours.Close()
	standard, terminal, err := standardFiles(files)
	if err != nil {
		theirs.Close()
		return nil, err
	}
	attr := &syscall.ProcAttr{
		Dir: "/", Env: []string{"GOMAXPROCS=1"}, Files: append(standard, theirs.Fd()),
		Sys: &syscall.SysProcAttr{Setsid: true, Setctty: files.TTY},
	}
	if len(s.Mounts) > 0 {
		attr.Sys.Cloneflags = unix.CLONE_NEWNS
	}
	c, err := b.reaper.Start("/proc/self/exe", []string{"tutti", stepArg}, attr)
	theirs.Close()
	for _, f := range terminal {
		f.Close()
	}
	if err == nil {
		if err = admit(c.PID()); err == nil {
			err = converse(ours, s)
		}
		if err != nil {
			unix.Kill(c.PID(), unix.SIGKILL) // it has ended by itself, or is still waiting
			<-c.Ended
		}
	}
	if err != nil {
		if files.Console != nil {
			files.Console.Close()
			files.Console = nil
		}
		return nil, err
	}
	return c, nil
}

// converse tells a first step what to be and returns once it is that, or why it cannot.
func converse(socket *os.File, s *step) error {
	if err := json.NewEncoder(socket).Encode(s); err != nil {
		return fmt.Errorf("tell the process what to be: %w", err)
	}
	said, err := io.ReadAll(socket)
	if err != nil {
		return fmt.Errorf("wait for the process: %w", err)
	}
	if len(said) == 0 {
		return errors.New("the process ended before its first instruction")
	}
	if string(said) == stepDone {
		return nil
	}
	kind, text, _ := strings.Cut(strings.TrimPrefix(string(said), stepDone), "\n")
	return startError(s.Args[0], fault.New(fault.ParseKind(kind), "%s", text))
}

// standardFiles returns the descriptors of a process, and what of them is to be closed here.
func standardFiles(files *supervisor.Files) (fds []uintptr, opened []*os.File, err error) {
	if files.TTY {
		console, terminal, err := openTerminal(files.Rows, files.Cols)
		if err != nil {
			return nil, nil, err
		}
		files.Console = console
		return []uintptr{terminal.Fd(), terminal.Fd(), terminal.Fd()}, []*os.File{terminal}, nil
	}
	in := files.Stdin
	if in == nil {
		if in, err = os.Open(os.DevNull); err != nil {
			return nil, nil, err
		}
		opened = append(opened, in)
	}
	return []uintptr{in.Fd(), files.Stdout.Fd(), files.Stderr.Fd()}, opened, nil
}

func openTerminal(rows, cols int) (console, terminal *os.File, err error) {
	console, err = os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("make a terminal: %w", err)
	}
	n, err := unix.IoctlGetInt(int(console.Fd()), unix.TIOCGPTN)
	if err == nil {
		err = unix.IoctlSetPointerInt(int(console.Fd()), unix.TIOCSPTLCK, 0)
	}
	if err == nil && rows > 0 && cols > 0 {
		err = unix.IoctlSetWinsize(int(console.Fd()), unix.TIOCSWINSZ, &unix.Winsize{Row: uint16(rows), Col: uint16(cols)})
	}
	if err == nil {
		terminal, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC, 0)
	}
	if err != nil {
		console.Close()
		return nil, nil, fmt.Errorf("make a terminal: %w", err)
	}
	return console, terminal, nil
}

// Kill implements supervisor.Body.
func (b *body) Kill() error {
	b.killing.Lock()
	defer b.killing.Unlock()
	return cgroup.KillAll(b.cgroup)
}

// Pause implements supervisor.Body.
func (b *body) Pause() error { return b.cgroup.Freeze(cgroups.Frozen) }

// Resume implements supervisor.Body.
func (b *body) Resume() error { return b.cgroup.Freeze(cgroups.Thawed) }

// Stats implements supervisor.Body.
func (b *body) Stats() (*driver.Stats, error) {
	st, err := b.cgroup.GetStats()
	if err != nil {
		return nil, fmt.Errorf("read usage: %w", err)
	}
	return supervisor.StatsOf(st), nil
}

// Update implements supervisor.Body.
func (b *body) Update(t *driver.Task) error {
	now, before := resources(t), resources(b.task)
	if before.Memory != 0 && now.Memory == 0 {
		now.Memory = -1
	}
	if before.CpuQuota != 0 && now.CpuQuota == 0 {
		now.CpuPeriod, now.CpuQuota = cpuPeriod, -1
	}
	if before.CpuShares != 0 && now.CpuShares == 0 {
		now.CpuShares = 1024
		now.CpuWeight = cgroups.ConvertCPUSharesToCgroupV2Value(now.CpuShares)
	}
	if before.PidsLimit != nil && now.PidsLimit == nil {
		none := int64(-1)
		now.PidsLimit = &none
	}
	if err := b.cgroup.Set(now); err != nil {
		if back := b.cgroup.Set(before); back != nil {
			err = errors.Join(err, back)
		}
		return fault.New(fault.Conflict, "bound the process: %w", err)
	}
	return nil
}

// Members implements supervisor.Body.
func (b *body) Members() ([]int, error) { return cgroup.Members(b.cgroup) }

// OutOfMemory implements supervisor.Body.
func (b *body) OutOfMemory() bool {
	n, err := b.cgroup.OOMKillCount()
	return err == nil && n > 0
}

// Destroy implements supervisor.Body.
func (b *body) Destroy() error { return b.cgroup.Destroy() }

// bury ends and frees what a task had whose supervisor was killed.
func bury(t *driver.Task) error {
	if t.CgroupParent == "" || t.ID == "" {
		return nil // its task.json was lost in a crash of the machine, and with it all that ran
	}
	m, err := cgroupOf(t)
	if err != nil {
		return err
	}
	if err := cgroup.KillAll(m); err != nil {
		return err
	}
	return m.Destroy()
}
