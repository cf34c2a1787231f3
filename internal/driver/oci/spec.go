package oci

import (
	"debug/elf"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/moby/sys/capability"
	"github.com/opencontainers/cgroups"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/tutti-run/tutti/internal/driver"
	"github.com/tutti-run/tutti/internal/driver/users"
	"github.com/tutti-run/tutti/internal/fault"
	"github.com/tutti-run/tutti/internal/model"
)

// defaultCapabilities are those that Docker gives containers.
var defaultCapabilities = []string{
	"CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FSETID", "CAP_FOWNER", "CAP_MKNOD", "CAP_NET_RAW", "CAP_SETGID",
	"CAP_SETUID", "CAP_SETFCAP", "CAP_SETPCAP", "CAP_NET_BIND_SERVICE", "CAP_SYS_CHROOT", "CAP_KILL", "CAP_AUDIT_WRITE",
}

var maskedPaths = []string{
	"/proc/acpi", "/proc/asound", "/proc/interrupts", "/proc/kcore", "/proc/keys", "/proc/latency_stats",
	"/proc/sched_debug", "/proc/scsi", "/proc/timer_list", "/proc/timer_stats",
	"/sys/devices/virtual/powercap", "/sys/firmware",
}

var readonlyPaths = []string{"/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"}

const defaultShmBytes = 64 << 20

// reaperPath is where the reaping init process is found inside a container.
const reaperPath = "/.tutti-init"

// spec states a task in the terms of the OCI runtime specification.
func spec(t *driver.Task, reaper string) (*specs.Spec, error) {
	u, err := users.Lookup(t.Rootfs, t.User, t.Groups)
	if err != nil {
		return nil, err
	}
	args := t.Args
	if t.Init {
		if len(args) == 1 && args[0] == driver.Hold {
			args = nil
		}
		args = append([]string{reaperPath, reapArg, "--"}, args...)
	}
	cwd := t.WorkingDir
	if cwd == "" {
		cwd = "/"
	}
	caps, err := capabilities(t)
	if err != nil {
		return nil, err
	}
	s := &specs.Spec{
		Version: specs.Version, Hostname: t.Hostname, Domainname: t.Domainname,
		Root: &specs.Root{Path: t.Rootfs, Readonly: t.ReadOnlyRoot},
		Process: &specs.Process{
			Args: args, Env: t.Env, Cwd: cwd, Terminal: t.TTY, User: *u, Capabilities: caps,
			NoNewPrivileges: slices.Contains(t.SecurityOpts, "no-new-privileges") || slices.Contains(t.SecurityOpts, "no-new-privileges:true"),
		},
		Linux: &specs.Linux{
			CgroupsPath: filepath.Join(t.CgroupParent, t.ID),
			Sysctl:      t.Sysctls,
		},
	}
	s.Linux.Namespaces = namespaces(t)
	if err := clocks(t, s); err != nil {
		return nil, err
	}
	if t.HostNames { // they are not ours to set
		s.Hostname, s.Domainname = "", ""
	}
	// Always, as the supervisor's own is not what a container should have.
	s.Process.OOMScoreAdj = &t.OOMScoreAdjust
	if !t.Privileged {
		s.Linux.MaskedPaths, s.Linux.ReadonlyPaths = maskedPaths, readonlyPaths
	}
	if t.Tuning != nil && t.Tuning.Paths != nil {
		s.Linux.MaskedPaths, s.Linux.ReadonlyPaths = t.Tuning.Paths.Hidden, t.Tuning.Paths.ReadOnly
	}
	if !t.Privileged && !cgroups.IsCgroup2UnifiedMode() {
		// libcontainer makes each hierarchy of version 1 read-only, but not what they are mounted on.
		s.Linux.ReadonlyPaths = slices.Concat(s.Linux.ReadonlyPaths, []string{"/sys/fs/cgroup"})
	}
	s.Mounts, err = mounts(t, reaper)
	if err != nil {
		return nil, err
	}
	for _, m := range t.Mounts {
		switch m.Propagation {
		case "shared", "rshared":
			s.Linux.RootfsPropagation = "rshared"
		case "slave", "rslave":
			if s.Linux.RootfsPropagation == "" {
				s.Linux.RootfsPropagation = "rslave"
			}
		}
	}
	if s.Linux.Resources, err = resources(t); err != nil {
		return nil, err
	}
	if err := devices(t, s); err != nil {
		return nil, err
	}
	inject(t, s)
	if err := secure(t, s); err != nil {
		return nil, err
	}
	return s, nil
}

// interpreter returns the dynamic linker that a program needs, "" for one that is linked
// statically.
func interpreter(program string) (string, error) {
	f, err := elf.Open(program)
	if err != nil {
		return "", fmt.Errorf("look at this program: %w", err)
	}
	defer f.Close()
	for _, p := range f.Progs {
		if p.Type == elf.PT_INTERP {
			data, err := io.ReadAll(p.Open())
			return strings.TrimRight(string(data), "\x00"), err
		}
	}
	return "", nil
}

// checkInit refuses an init process that could not even be loaded in the image.
func checkInit(rootfs, exe string) error {
	linker, err := interpreter(exe)
	if err != nil || linker == "" {
		return err
	}
	root, err := os.Open(rootfs)
	if err != nil {
		return fmt.Errorf("open root file system: %w", err)
	}
	defer root.Close()
	fd, err := unix.Openat2(int(root.Fd()), linker, &unix.OpenHow{Flags: unix.O_PATH | unix.O_CLOEXEC, Resolve: unix.RESOLVE_IN_ROOT})
	if err != nil {
		return fault.New(fault.Unsupported, "an init process was asked for, which is this program, and this program is linked dynamically: "+
			"it needs %s, which the image lacks; link it statically", linker)
	}
	unix.Close(fd)
	return nil
}

func capabilities(t *driver.Task) (*specs.LinuxCapabilities, error) {
	known := map[string]bool{}
	var all []string
	supported, err := capability.ListSupported()
	if err != nil {
		return nil, fmt.Errorf("list capabilities: %w", err)
	}
	own, err := capability.NewPid2(0)
	if err == nil {
		err = own.Load()
	}
	if err != nil {
		return nil, fmt.Errorf("find out this process's capabilities: %w", err)
	}
	for _, c := range supported {
		name := "CAP_" + strings.ToUpper(c.String())
		known[name] = true
		if own.Get(capability.BOUNDING, c) { // what is not held cannot be passed on
			all = append(all, name)
		}
	}
	normal := func(names []string) ([]string, bool, error) {
		var out []string
		for _, n := range names {
			n = strings.ToUpper(n)
			if n == "ALL" {
				return nil, true, nil
			}
			if !strings.HasPrefix(n, "CAP_") {
				n = "CAP_" + n
			}
			if !known[n] {
				return nil, false, fault.New(fault.Invalid, "capability %s is not known to this host's kernel", n)
			}
			out = append(out, n)
		}
		return out, false, nil
	}
	add, addAll, err := normal(t.CapAdd)
	if err != nil {
		return nil, err
	}
	drop, dropAll, err := normal(t.CapDrop)
	if err != nil {
		return nil, err
	}
	set := slices.Clone(defaultCapabilities)
	if addAll || t.Privileged {
		set = all
	}
	if dropAll {
		set = nil
	}
	set = slices.DeleteFunc(set, func(c string) bool { return slices.Contains(drop, c) })
	for _, c := range add {
		if !slices.Contains(set, c) {
			set = append(set, c)
		}
	}
	return &specs.LinuxCapabilities{Bounding: set, Effective: set, Permitted: set}, nil
}

func mounts(t *driver.Task, reaper string) ([]specs.Mount, error) {
	shm := t.ShmBytes
	if shm == 0 {
		shm = defaultShmBytes
	}
	ro := "ro"
	if t.Privileged {
		ro = "rw"
	}
	out := []specs.Mount{
		{Destination: "/proc", Type: "proc", Source: "proc", Options: []string{"nosuid", "noexec", "nodev"}},
		{Destination: "/dev", Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid", "strictatime", "mode=755", "size=65536k"}},
		{Destination: "/dev/pts", Type: "devpts", Source: "devpts", Options: []string{"nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"}},
		{Destination: "/dev/mqueue", Type: "mqueue", Source: "mqueue", Options: []string{"nosuid", "noexec", "nodev"}},
		{Destination: "/sys", Type: "sysfs", Source: "sysfs", Options: []string{"nosuid", "noexec", "nodev", ro}},
		{Destination: "/sys/fs/cgroup", Type: "cgroup", Source: "cgroup", Options: []string{"nosuid", "noexec", "nodev", "relatime", ro}},
		{Destination: "/dev/shm", Type: "tmpfs", Source: "shm", Options: []string{"nosuid", "noexec", "nodev", "mode=1777", fmt.Sprintf("size=%d", shm)}},
	}
	if t.NoSharedMemory {
		out = slices.DeleteFunc(out, func(m specs.Mount) bool { return m.Destination == "/dev/shm" })
	}
	if t.HostIPC {
		for i := range out {
			if out[i].Destination == "/dev/shm" {
				out[i] = specs.Mount{Destination: "/dev/shm", Type: "bind", Source: "/dev/shm", Options: []string{"rbind", "nosuid", "noexec", "nodev"}}
			}
		}
	}
	if t.Init {
		if err := checkInit(t.Rootfs, reaper); err != nil {
			return nil, err
		}
		out = append(out, specs.Mount{Destination: reaperPath, Type: "bind", Source: reaper, Options: []string{"bind", "ro", "nosuid", "nodev"}})
	}
	for _, m := range t.Mounts {
		sm := specs.Mount{Destination: m.Target, Source: m.Source}
		access := "rw"
		if m.ReadOnly {
			access = "ro"
		}
		switch m.Type {
		case "bind":
			propagation := m.Propagation
			if propagation == "" {
				propagation = "rprivate"
			}
			sm.Type, sm.Options = "bind", []string{"rbind", propagation, access}
			switch {
			case m.Recursion == model.BindAlone:
				sm.Options[0] = "bind"
			case m.Recursion == model.BindTreeReadOnly && m.ReadOnly:
				sm.Options[2] = "rro"
			}
			if t.Users != nil {
				if err := t.Users.Translates(m.Source, m.Recursion != model.BindAlone); err != nil {
					return nil, fmt.Errorf("mount %s: %w", m.Target, err)
				}
				sm.Options = append(sm.Options, strings.Replace(sm.Options[0], "bind", "idmap", 1))
			}
		case "tmpfs":
			sm.Type, sm.Source = "tmpfs", "tmpfs"
			sm.Options = []string{"nosuid", "nodev", "noexec", access}
			if m.SizeBytes > 0 {
				sm.Options = append(sm.Options, fmt.Sprintf("size=%d", m.SizeBytes))
			}
			mode := m.Mode
			if mode == 0 {
				mode = 0o1777
			}
			sm.Options = append(sm.Options, fmt.Sprintf("mode=%o", mode))
			for _, o := range strings.Split(m.Options, ",") {
				// What is said takes the place of the defaults before it.
				sm.Options = slices.DeleteFunc(sm.Options, func(have string) bool { return have == "no"+o || o == "no"+have })
				if o != "" {
					sm.Options = append(sm.Options, o)
				}
			}
		default:
			return nil, fault.New(fault.Unsupported, "mount type %q of %s", m.Type, m.Target)
		}
		// A mount of ours at the place of a default one replaces it.
		out = slices.DeleteFunc(out, func(have specs.Mount) bool { return filepath.Clean(have.Destination) == filepath.Clean(m.Target) })
		out = append(out, sm)
	}
	// Outer mounts first, or they would hide the inner ones.
	slices.SortStableFunc(out, func(a, b specs.Mount) int {
		return strings.Count(filepath.Clean(a.Destination), "/") - strings.Count(filepath.Clean(b.Destination), "/")
	})
	return out, nil
}
