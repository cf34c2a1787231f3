package oci

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/opencontainers/cgroups"
	_ "github.com/opencontainers/cgroups/devices" // device rules work only with it linked in
	"github.com/opencontainers/cgroups/manager"
	"github.com/opencontainers/runc/libcontainer"
	"github.com/opencontainers/runc/libcontainer/configs"
	"github.com/opencontainers/runc/libcontainer/specconv"
	"github.com/opencontainers/runc/libcontainer/utils"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/tutti-run/tutti/internal/driver"
	"github.com/tutti-run/tutti/internal/driver/supervisor"
	"github.com/tutti-run/tutti/internal/driver/users"
	"github.com/tutti-run/tutti/internal/fault"
)

// container is a task's body.
type container struct {
	task    *driver.Task
	dir     string
	spec    *specs.Spec
	config  *configs.Config
	limits  []configs.Rlimit
	profile func() (*configs.Seccomp, error) // nil is one that leaves the task unconfined
	filter  *filter                          // the profile, compiled; nil: libcontainer does it
	c       *libcontainer.Container
	strays  strays
}

func newContainer(t *driver.Task, dir, reaper string) (supervisor.Body, error) {
	c := &container{task: t, dir: dir}
	err := c.configure(reaper, func(path string) (*filter, error) { return keepFilter(path, c.profile) })
	if err != nil {
		return nil, err
	}
	if c.filter == nil { // otherwise it is loaded by ourselves
		if c.config.Seccomp, err = c.profile(); err != nil {
			return nil, err
		}
	}
	if stepsKnow(t, c.config) {
		return newDirect(c)
	}
	if c.c, err = libcontainer.Create(dir, containerID, c.config); err != nil {
		return nil, fmt.Errorf("create the container: %w", err)
	}
	return c, nil
}

// configure finds out what the container is to be. The filter of a confined one is given by keep, which gets the path that
// it is kept under.
func (c *container) configure(reaper string, keep func(path string) (*filter, error)) (err error) {
	t := c.task
	if c.spec, err = spec(t, reaper); err != nil {
		return err
	}
	if c.limits, err = rlimits(t.Ulimits); err != nil {
		return err
	}
	c.config, err = specconv.CreateLibcontainerConfig(&specconv.CreateOpts{CgroupName: t.ID, NoNewKeyring: false, Spec: c.spec})
	if err != nil {
		return fault.New(fault.Invalid, "configure the container: %w", err)
	}
	c.profile = sync.OnceValues(func() (*configs.Seccomp, error) {
		if err := restrict(t, c.spec); err != nil {
			return nil, err
		}
		return specconv.SetupSeccomp(c.spec.Linux.Seccomp)
	})
	if confined(t) {
		c.filter, err = keep(filterPath(t.Filters, profileKey(t, c.spec)))
	}
	return err
}

// containerID is libcontainer's name for the only container in a directory.
const containerID = "c"

// Start implements supervisor.Body.
func (c *container) Start(files *supervisor.Files) (supervisor.Process, error) {
	p := c.process(c.spec.Process.Args, c.spec.Process.Env, c.spec.Process.Cwd, &c.spec.Process.User)
	p.Init, p.NoNewPrivileges = true, &c.spec.Process.NoNewPrivileges
	started, err := c.strays.begin(func() (*process, error) {
		if err := connect(p, files, func() error { return c.run(p) }); err != nil {
			return nil, startError(c.task.Args[0], err)
		}
		return newProcess(p)
	})
	if err != nil {
		return nil, err
	}
	c.config.Seccomp, err = c.profile() // for what is executed later
	return started, err
}

// Exec implements supervisor.Body.
func (c *container) Exec(e *driver.ExecSpec, files *supervisor.Files) (supervisor.Process, error) {
	pr, err := execProcess(c.task, c.spec, e)
	if err != nil {
		return nil, err
	}
	p := c.process(pr.Args, pr.Env, pr.Cwd, &pr.User)
	if e.Privileged {
		p.Capabilities = capabilitiesOf(pr.Capabilities)
	}
	p.ConsoleHeight, p.ConsoleWidth = uint16(files.Rows), uint16(files.Cols)
	started, err := c.strays.begin(func() (*process, error) {
		if err := connect(p, files, func() error { return c.c.Run(p) }); err != nil {
			return nil, startError(e.Args[0], err)
		}
		return newProcess(p)
	})
	if err != nil {
		return nil, err // and not a nil process in an interface that is none
	}
	return started, nil
}

// execProcess states one more process of a container in the terms of the OCI runtime specification.
func execProcess(t *driver.Task, s *specs.Spec, e *driver.ExecSpec) (*specs.Process, error) {
	name, groups := t.User, t.Groups
	if e.User != "" {
		name, groups = e.User, nil
	}
	u, err := users.Lookup(t.Rootfs, name, groups)
	if err != nil {
		return nil, err
	}
	p := *s.Process
	p.Args, p.Env, p.User, p.Terminal = e.Args, slices.Concat(t.Env, e.Env), *u, e.TTY
	if e.TTY {
		p.Env = append(p.Env, "TERM=xterm")
	}
	if e.WorkingDir != "" {
		p.Cwd = e.WorkingDir
	}
	if e.Privileged {
		if p.Capabilities, err = capabilities(&driver.Task{Privileged: true}); err != nil {
			return nil, err
		}
	}
	return &p, nil
}

func capabilitiesOf(c *specs.LinuxCapabilities) *configs.Capabilities {
	return &configs.Capabilities{Bounding: c.Bounding, Effective: c.Effective, Permitted: c.Permitted}
}

func (c *container) process(args, env []string, cwd string, u *specs.User) *libcontainer.Process {
	p := &libcontainer.Process{Args: args, Env: env, Cwd: cwd, LogLevel: "3", UID: int(u.UID), GID: int(u.GID), Rlimits: c.limits}
	for _, g := range u.AdditionalGids {
		p.AdditionalGroups = append(p.AdditionalGroups, int(g))
	}
	return p
}

// connect gives a process its files and starts it.
func connect(p *libcontainer.Process, files *supervisor.Files, start func() error) error {
	if !files.TTY {
		if files.Stdin != nil {
			p.Stdin = files.Stdin
		}
		p.Stdout, p.Stderr = files.Stdout, files.Stderr
		return start()
	}
	parent, child, err := utils.NewSockPair("console")
	if err != nil {
		return fmt.Errorf("make a terminal: %w", err)
	}
	defer parent.Close()
	p.ConsoleSocket = child
	err = start()
	child.Close()
	if err != nil {
		return err
	}
	files.Console, err = receiveConsole(parent)
	return err
}

// run starts the container's first process, with the filter in force.
func (c *container) run(p *libcontainer.Process) error {
	if c.filter == nil {
		return c.c.Run(p)
	}
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("make a socket for the seccomp filter: %w", err)
	}
	ours, theirs := os.NewFile(uintptr(fds[0]), "filter"), os.NewFile(uintptr(fds[1]), "filter")
	defer ours.Close()
	p.ExtraFiles = []*os.File{theirs}
	err = c.c.Start(p)
	theirs.Close()
	if err != nil {
		return err
	}
	if err := c.filter.send(ours); err != nil {
		c.c.Signal(unix.SIGKILL) // that it is gone is no error
		return err
	}
	return c.c.Exec()
}

// startError says in a sentence what kept the first instruction from running.
func startError(name string, err error) error {
	text := err.Error()
	if i := strings.LastIndex(text, "exec: "); i >= 0 {
		text = text[i:]
	}
	lower := strings.ToLower(text)
	switch {
	case strings.Contains(lower, "executable file") && strings.Contains(lower, "not found"), strings.Contains(lower, "no such file or directory") && strings.Contains(lower, "exec"):
		return fault.New(fault.NotFound, "executable %q was not found in the image", name)
	case strings.Contains(lower, "permission denied") && strings.Contains(lower, "exec"):
		return fault.New(fault.Invalid, "%q in the image may not be executed", name)
	}
	return fmt.Errorf("start the container: %w", err)
}

func receiveConsole(socket *os.File) (*os.File, error) {
	oob := make([]byte, unix.CmsgSpace(4))
	name := make([]byte, 4096)
	n, oobn, _, _, err := unix.Recvmsg(int(socket.Fd()), name, oob, unix.MSG_CMSG_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("receive the terminal: %w", err)
	}
	messages, err := unix.ParseSocketControlMessage(oob[:oobn])
	if err != nil || len(messages) != 1 {
		return nil, errors.New("receive the terminal: nothing came")
	}
	fds, err := unix.ParseUnixRights(&messages[0])
	if err != nil || len(fds) != 1 {
		return nil, errors.New("receive the terminal: no descriptor came")
	}
	if err := unix.SetNonblock(fds[0], true); err != nil {
		return nil, fmt.Errorf("receive the terminal: %w", err)
	}
	return os.NewFile(uintptr(fds[0]), string(name[:n])), nil
}

// process is one in a container.
type process struct {
	p     *libcontainer.Process
	pid   int
	ended func() // called once it was waited for
}

func newProcess(p *libcontainer.Process) (*process, error) {
	pid, err := p.Pid()
	if err != nil {
		return nil, fmt.Errorf("find the process: %w", err)
	}
	return &process{p: p, pid: pid}, nil
}

// PID implements supervisor.Process.
func (p *process) PID() int { return p.pid }

// Wait implements supervisor.Process.
func (p *process) Wait() (syscall.WaitStatus, error) {
	ps, err := p.p.Wait()
	p.ended()
	if _, exit := errors.AsType[*exec.ExitError](err); err != nil && !exit && ps == nil {
		return 0, err
	}
	return ps.Sys().(syscall.WaitStatus), nil
}

// Kill implements supervisor.Body.
func (c *container) Kill() error {
	err := c.c.Signal(unix.SIGKILL)
	c.c.Resume() // a frozen one cannot die; one that is not frozen is no error
	if errors.Is(err, libcontainer.ErrNotRunning) {
		return nil
	}
	return err
}

// Pause implements supervisor.Body.
func (c *container) Pause() error { return c.c.Pause() }

// Resume implements supervisor.Body.
func (c *container) Resume() error { return c.c.Resume() }

// OutOfMemory implements supervisor.Body.
func (c *container) OutOfMemory() bool {
	m, err := manager.New(c.config.Cgroups)
	if err != nil {
		return false
	}
	return usage{m}.OutOfMemory()
}

// Destroy implements supervisor.Body.
func (c *container) Destroy() error { return c.c.Destroy() }

// Stats implements supervisor.Body.
func (c *container) Stats() (*driver.Stats, error) {
	st, err := c.c.Stats()
	if err != nil {
		return nil, fmt.Errorf("read usage: %w", err)
	}
	return supervisor.StatsOf(st.CgroupStats), nil
}

// Update implements supervisor.Body.
func (c *container) Update(t *driver.Task) error {
	return c.update(t, func(r *cgroups.Resources) error {
		config := c.c.Config()
		kept := *config.Cgroups
		kept.Resources = r
		config.Cgroups = &kept
		return c.c.Set(config)
	})
}

func (c *container) update(t *driver.Task, set func(*cgroups.Resources) error) error {
	next := *c.spec
	linux := *c.spec.Linux
	next.Linux = &linux
	var err error
	if linux.Resources, err = boundsOf(t, c.spec); err != nil {
		return err
	}
	cg, err := specconv.CreateCgroupConfig(&specconv.CreateOpts{CgroupName: t.ID, Spec: &next}, nil)
	if err != nil {
		return fault.New(fault.Invalid, "bound the container: %w", err)
	}
	// They stay as they are; left out, libcontainer would execute nothing in the container any more.
	cg.Resources.Devices = c.config.Cgroups.Resources.Devices
	if err := set(cg.Resources); err != nil {
		return fault.New(fault.Conflict, "bound the container: %w", err)
	}
	c.spec.Linux.Resources = linux.Resources
	return nil
}

// Members implements supervisor.Body.
func (c *container) Members() ([]int, error) { return c.c.Processes() }

// bury frees what a container holds whose supervisor did not live to do so.
func bury(t *driver.Task, root string) {
	defer os.RemoveAll(root)
	if t.Runtime != "" {
		if err := buryForeign(t, root); err != nil {
			fmt.Fprintln(os.Stderr, "remove the container:", err)
		}
		return
	}
	c, err := libcontainer.Load(root, containerID)
	if err != nil { // libcontainer was never asked, or has removed it already
		if err := buryGroup(t); err != nil {
			fmt.Fprintln(os.Stderr, "remove the container:", err)
		}
		return
	}
	c.Signal(unix.SIGKILL) // its process 1, and with it all the others; that it is gone is no error
	for range 50 {         // they need a moment
		if err = c.Destroy(); err == nil {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	fmt.Fprintln(os.Stderr, "remove the container:", err)
}
