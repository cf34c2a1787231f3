package oci

import (
	"fmt"
	"log/slog"
	"os"
	"strings"
	"sync"

	"github.com/opencontainers/cgroups"
	"github.com/opencontainers/cgroups/manager"
	"github.com/opencontainers/runc/libcontainer"
	_ "github.com/opencontainers/runc/libcontainer/nsenter" // the re-executed init enters namespaces before Go starts
	"github.com/opencontainers/runc/libcontainer/seccomp"

	"github.com/tutti-run/tutti/internal/driver"
	"github.com/tutti-run/tutti/internal/driver/launch"
	"github.com/tutti-run/tutti/internal/driver/supervisor"
	"github.com/tutti-run/tutti/internal/fault"
)

// Config says where a driver keeps things.
type Config struct {
	StateDir  string // one directory per run; survives everything
	FilterDir string // compiled seccomp profiles, which survive everything, too
	RunDir    string // sockets, and what ends with the host
	Log       *slog.Logger
	Runtimes  Runtimes // those that tasks may name
}

// New returns a driver over whatever an earlier one left in the directories.
func New(c Config) (*supervisor.Driver, error) {
	if err := os.MkdirAll(c.FilterDir, 0o700); err != nil {
		return nil, fmt.Errorf("make a directory for seccomp profiles: %w", err)
	}
	return supervisor.New(supervisor.Config{
		StateDir: c.StateDir, RunDir: c.RunDir, Log: c.Log, Role: superviseArg, Bury: bury, First: prepareFirst, Usage: usageOf,
		Check: func(t *driver.Task) (err error) {
			if t.Runtime != "" {
				t.RuntimePath, err = c.Runtimes.Find(t.Runtime)
			}
			if err == nil {
				err = check(t)
			}
			if err == nil {
				t.Cgroups, err = hostCgroups()
			}
			t.Filters = c.FilterDir
			return err
		},
	})
}

// newBody chooses who makes the container.
func newBody(t *driver.Task, dir, reaper string) (supervisor.Body, error) {
	if t.Runtime != "" {
		return newForeign(t, dir, reaper)
	}
	return newContainer(t, dir, reaper)
}

// hostCgroups looks where this host has its cgroups.
var hostCgroups = sync.OnceValues(func() (*driver.Cgroups, error) {
	if cgroups.IsCgroup2UnifiedMode() {
		return nil, nil
	}
	const some = "/tutti-somewhere"
	m, err := manager.New(&cgroups.Cgroup{Path: some, Resources: &cgroups.Resources{}})
	if err != nil {
		return nil, fmt.Errorf("find cgroups: %w", err)
	}
	c := &driver.Cgroups{Roots: map[string]string{}}
	for s, path := range m.GetPaths() {
		c.Roots[s] = strings.TrimSuffix(path, some)
	}
	mounts, err := cgroups.GetCgroupMounts(false)
	if err != nil {
		return nil, fmt.Errorf("find cgroups: %w", err)
	}
	for _, mount := range mounts {
		c.Hierarchies = append(c.Hierarchies, driver.CgroupHierarchy(mount))
	}
	return c, nil
})

func check(t *driver.Task) error {
	if t.Rootfs == "" {
		return fault.New(fault.Invalid, "task %s: a root file system is needed", t.ID)
	}
	if t.Users != nil && (t.NetNS == "" || t.HostPIDs || t.HostIPC || t.PIDNS != "" || t.IPCNS != "" || t.Privileged) {
		return fault.New(fault.Invalid, "task %s: with a user namespace of its own it can have neither namespaces of others nor all privileges", t.ID)
	}
	if t.Users != nil && t.Runtime != "" {
		return fault.New(fault.Unsupported, "task %s: user namespaces are the built-in runtime's: OCI runtime %s is not handed them", t.ID, t.Runtime)
	}
	if !seccomp.Enabled && t.Runtime == "" && confined(t) {
		return fault.New(fault.Unsupported, "task %s: containers are confined by a seccomp profile, and this program was built without "+
			"the build tag seccomp; build it with `-tags seccomp`, or run the task with the security option seccomp=unconfined", t.ID)
	}
	return nil
}

// These are how a program knows what it was executed for.
const (
	superviseArg = "tutti-supervise"
	reapArg      = "tutti-reap"
	compileArg   = "tutti-compile"
)

// Reexec handles the roles in which the program beside a task is started: the first steps inside a
// container, its reaping init process, the compiler of its seccomp profile, and the supervisor of a
// run. It must be called first in main; when it returns true, the program is to end.
func Reexec(args []string) bool {
	if len(args) < 2 {
		return false
	}
	switch args[1] {
	case "init":
		if len(args) == 2 {
			awaitFilter()
			libcontainer.Init() // does not return
		}
	case reapArg:
		os.Exit(reap(args[3:]))
	case compileArg:
		os.Exit(beCompiler())
	case superviseArg:
		os.Exit(supervisor.Supervise(args[2:], newBody, launch.TakeOver()))
	}
	return false
}
