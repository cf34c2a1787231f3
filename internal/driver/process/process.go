package process

import (
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/opencontainers/cgroups/systemd"
	"golang.org/x/sys/unix"

	"github.com/tutti-run/tutti/internal/driver"
	"github.com/tutti-run/tutti/internal/driver/launch"
	"github.com/tutti-run/tutti/internal/driver/supervisor"
	"github.com/tutti-run/tutti/internal/fault"
	"github.com/tutti-run/tutti/internal/model"
)

// Config says where a driver keeps things.
type Config struct {
	StateDir string // one directory per run; survives everything
	RunDir   string // sockets
	Log      *slog.Logger
}

// New returns a driver over whatever an earlier one left in the directories.
func New(c Config) (*supervisor.Driver, error) {
	return supervisor.New(supervisor.Config{
		StateDir: c.StateDir, RunDir: c.RunDir, Log: c.Log, Role: superviseArg, Check: check,
		Bury: func(t *driver.Task, _ string) {
			if err := bury(t); err != nil {
				c.Log.Error("what a task left could not be removed", "task", t.ID, "error", err)
			}
		},
	})
}

// These are how a program knows what it was executed for.
const (
	superviseArg = "tutti-supervise-process"
	stepArg      = "tutti-step"
)

// Reexec handles the roles in which the program beside a task is started: the supervisor of a run,
// and the first step of each of its processes. It must be called first in main; when it returns
// true, the program is to end.
func Reexec(args []string) bool {
	if len(args) < 2 {
		return false
	}
	switch args[1] {
	case stepArg:
		os.Exit(beStep())
	case superviseArg:
		os.Exit(supervisor.Supervise(args[2:], newBody, launch.Begun{}))
	}
	return false
}

// check refuses what only containers have.
func check(t *driver.Task) error {
	for _, c := range []struct {
		asked bool
		what  string
	}{
		{t.Rootfs != "", "a root file system"},
		{len(t.CapAdd)+len(t.CapDrop) > 0, "added or dropped capabilities"},
		{t.Privileged, "privileged mode"},
		{t.ReadOnlyRoot, "a read-only root"},
		{len(t.Devices) > 0 || t.Injected != nil, "devices of its own"},
		{t.Runtime != "" && t.Runtime != model.UnitRuntime, "an OCI runtime"},
		{t.Tuning != nil, "settings of the kernel for it alone, other than limits"},
		{t.PIDNS != "" || t.IPCNS != "" || t.OwnCgroups || t.NoSharedMemory, "namespaces of its own"},
		{t.Init, "an init process"},
		{t.ShmBytes != 0, "a size of /dev/shm"},
		{len(t.Sysctls) > 0, "kernel parameters of its own"},
	} {
		if c.asked {
			return fault.New(fault.Unsupported, "task %s: a process of the host cannot have %s; run it as a container", t.ID, c.what)
		}
	}
	if t.Runtime == model.UnitRuntime && !systemd.IsRunningSystemd() {
		return fault.New(fault.Unsupported, "task %s: it is to be a unit of systemd's, which does not run on this host", t.ID)
	}
	for _, o := range t.SecurityOpts {
		if !slices.Contains([]string{"no-new-privileges", "no-new-privileges:true", "seccomp=unconfined"}, o) {
			return fault.New(fault.Unsupported, "task %s: security option %q is not supported for processes; no-new-privileges is", t.ID, o)
		}
	}
	for _, l := range t.Ulimits {
		if _, ok := limits[l.Name]; !ok {
			return fault.New(fault.Invalid, "task %s: there is no limit %q", t.ID, l.Name)
		}
	}
	for _, m := range t.Mounts {
		if m.Type != "bind" && m.Type != "tmpfs" {
			return fault.New(fault.Unsupported, "task %s: mount type %q of %s", t.ID, m.Type, m.Target)
		}
		if !filepath.IsAbs(m.Target) {
			return fault.New(fault.Invalid, "task %s: mount target %q is not an absolute path", t.ID, m.Target)
		}
	}
	return nil
}

var limits = map[string]int{
	"as": unix.RLIMIT_AS, "core": unix.RLIMIT_CORE, "cpu": unix.RLIMIT_CPU, "data": unix.RLIMIT_DATA, "fsize": unix.RLIMIT_FSIZE,
	"locks": unix.RLIMIT_LOCKS, "memlock": unix.RLIMIT_MEMLOCK, "msgqueue": unix.RLIMIT_MSGQUEUE, "nice": unix.RLIMIT_NICE,
	"nofile": unix.RLIMIT_NOFILE, "nproc": unix.RLIMIT_NPROC, "rss": unix.RLIMIT_RSS, "rtprio": unix.RLIMIT_RTPRIO,
	"rttime": unix.RLIMIT_RTTIME, "sigpending": unix.RLIMIT_SIGPENDING, "stack": unix.RLIMIT_STACK,
}

// workingDir is where a task's processes start: its own choice, or its sandbox, or the root.
func workingDir(t *driver.Task, chosen string) string {
	for _, dir := range []string{chosen, t.WorkingDir, t.Sandbox} {
		if dir == "" {
			continue
		}
		if !filepath.IsAbs(dir) {
			dir = filepath.Join("/", t.Sandbox, dir)
		}
		return dir
	}
	return "/"
}

// notFound is what a program that is not there is called.
func notFound(name string) error {
	return fault.New(fault.NotFound, "executable %q was not found on this host", name)
}

// lookPath finds a program as a shell would, in the environment and directory of the task.
func lookPath(name string, env []string) (string, error) {
	if strings.Contains(name, "/") {
		return name, executable(name, name)
	}
	path := ""
	for _, e := range env {
		if value, ok := strings.CutPrefix(e, "PATH="); ok {
			path = value
		}
	}
	found := notFound(name)
	for _, dir := range filepath.SplitList(path) {
		if dir == "" {
			dir = "."
		}
		file := filepath.Join(dir, name)
		err := executable(file, name)
		if err == nil {
			return file, nil
		}
		if fault.Is(err, fault.Invalid) {
			found = err
		}
	}
	return "", found
}

func executable(file, name string) error {
	st, err := os.Stat(file)
	switch {
	case err != nil && os.IsPermission(err):
		return fault.New(fault.Invalid, "%q may not be reached by the task's user", name)
	case err != nil:
		return notFound(name)
	case st.IsDir() || unix.Access(file, unix.X_OK) != nil:
		return fault.New(fault.Invalid, "%q may not be executed by the task's user", name)
	}
	return nil
}

// startError is one of the first step, in words.
func startError(name string, err error) error {
	return fmt.Errorf("start %s: %w", name, err)
}
