package oci

import (
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"sync"

	"github.com/moby/sys/capability"
	"github.com/opencontainers/cgroups"
	devcfg "github.com/opencontainers/cgroups/devices/config"
	"github.com/opencontainers/runc/libcontainer/configs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/tutti-run/tutti/internal/driver"
	"github.com/tutti-run/tutti/internal/driver/launch"
	"github.com/tutti-run/tutti/internal/driver/supervisor"
	"github.com/tutti-run/tutti/internal/driver/users"
	"github.com/tutti-run/tutti/internal/fault"
)

// What a mount may ask for that steps know. Others are libcontainer's.
const (
	plainFlags = unix.MS_RDONLY | unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC
	timeFlags  = unix.MS_RELATIME | unix.MS_STRICTATIME
	bindFlags  = unix.MS_BIND | unix.MS_REC
)

// stepsKnow reports whether a container is made by steps: whether all that is asked for it is known to them.
func stepsKnow(t *driver.Task, c *configs.Config) bool {
	if !cgroups.IsCgroup2UnifiedMode() && t.Cgroups == nil {
		return false
	}
	if t.TTY || t.HostPIDs || t.PIDNS != "" || t.Users != nil || !newKernel() {
		return false
	}
	// What is not named here, such as what later versions have, is not known.
	rest := *c
	rest.Rootfs, rest.Readonlyfs, rest.RootPropagation = "", false, 0
	rest.Mounts, rest.Devices, rest.MaskPaths, rest.ReadonlyPaths = nil, nil, nil, nil
	rest.Hostname, rest.Domainname, rest.Sysctl = "", "", nil
	rest.Namespaces, rest.Cgroups = nil, nil
	rest.NoNewPrivileges, rest.Capabilities, rest.OomScoreAdj, rest.Version, rest.Labels = false, nil, nil, "", nil
	for _, h := range rest.Hooks {
		if len(h) > 0 {
			return false
		}
	}
	rest.Hooks = nil
	if !reflect.DeepEqual(rest, configs.Config{}) {
		return false
	}
	for _, ns := range c.Namespaces {
		switch ns.Type {
		case configs.NEWNS, configs.NEWPID, configs.NEWUTS, configs.NEWCGROUP:
			if ns.Path != "" {
				return false
			}
		case configs.NEWNET:
			if ns.Path == "" {
				return false
			}
		case configs.NEWIPC:
		default:
			return false
		}
	}
	if c.Capabilities == nil || len(c.Capabilities.Ambient)+len(c.Capabilities.Inheritable) > 0 {
		return false
	}
	proc := false
	for _, m := range c.Mounts {
		to := inside(c, m.Destination)
		known := m.IDMapping == nil && m.Extensions == 0
		switch {
		case to == "/", to == "/dev" && m.Device != "tmpfs", to == "/etc", to == "/etc/passwd":
			known = false // the last two are read beforehand
		case m.Device == "bind":
			known = known && m.IsBind() && m.Flags&^(bindFlags|plainFlags|timeFlags) == 0 && m.ClearedFlags&^(plainFlags|timeFlags) == 0
		case m.Device == "proc":
			proc = proc || to == "/proc"
			fallthrough
		case m.Device == "sysfs", m.Device == "mqueue", m.Device == "devpts", m.Device == "tmpfs" && strings.Contains(m.Data, "mode="), m.Device == "cgroup":
			known = known && m.RecAttr == nil && len(m.PropagationFlags) == 0
		default:
			known = false
		}
		if !known {
			return false
		}
	}
	return proc
}

// newKernel reports whether the kernel has all that steps call: mount_setattr(2) is the newest.
var newKernel = sync.OnceValue(func() bool {
	_, _, errno := unix.Syscall6(unix.SYS_MOUNT_SETATTR, ^uintptr(0), 0, 0, 0, 0, 0)
	return errno != unix.ENOSYS
})

// inside is a path as the container has it.
func inside(c *configs.Config, path string) string {
	if rest, ok := strings.CutPrefix(path, c.Rootfs+"/"); ok {
		path = rest
	}
	return filepath.Clean("/" + path)
}

// making is a list of steps that is being written.
type making struct {
	launch.Program
	c      *configs.Config
	groups map[string]string // directories of the container's cgroup, by subsystem

	hierarchies []driver.CgroupHierarchy // of version 1
	root        launch.Result
}

// steps writes what the first process of a container has to do, and says in which new namespaces.
// What it does is what libcontainer does (linuxStandardInit.Init, and what is before it), in the same order.
func steps(c *container, groups map[string]string, files standard) (*launch.Program, uintptr, error) {
	m := &making{c: c.config, groups: groups}
	if c.task.Cgroups != nil {
		m.hierarchies = c.task.Cgroups.Hierarchies
	}
	p := c.spec.Process
	m.begin()
	m.standardFiles(files)
	m.join()
	flags := m.namespaces()
	m.keyring(c.task.ID)
	if err := m.file(); err != nil {
		return nil, 0, err
	}
	m.enter(p.Cwd, files)
	m.finish()
	return &m.Program, flags, m.execute(c, p, true)
}

// stepsIn writes what a further process has to do in the container of a process that a pidfd is of: what libcontainer does
// (linuxSetnsInit.Init, and what is before it), in the same order.
func stepsIn(c *container, groups map[string]string, p *specs.Process, first int, files standard) (*launch.Program, error) {
	m := &making{c: c.config, groups: groups}
	m.begin()
	if slices.Min(files[:]) < 0 {
		null := m.Call("open /dev/null", unix.SYS_OPENAT, unix.AT_FDCWD, "/dev/null", unix.O_RDWR|unix.O_CLOEXEC, 0).Result()
		m.nothing(null, files)
	}
	m.standardFiles(files)
	m.join()
	kinds := 0
	for _, ns := range m.c.Namespaces {
		kinds |= ns.Syscall()
	}
	m.Call("enter the container", unix.SYS_SETNS, first, kinds&^unix.CLONE_NEWPID) // it was born among its processes
	m.keyring(c.task.ID)
	m.Call("set the file mode mask", unix.SYS_UMASK, 0o022)
	return &m.Program, m.execute(c, p, false)
}

// begin is what comes before all else.
func (m *making) begin() {
	// It shares the memory of its supervisor, which nobody in the container is to look into.
	m.Call("hide this process's memory", unix.SYS_PRCTL, unix.PR_SET_DUMPABLE, 0, 0, 0, 0)
	m.Call("begin a session", unix.SYS_SETSID)
}

// join has the process belong to the container's cgroups.
func (m *making) join() {
	m.write("join the container's cgroup", joined(m.groups), "0", 0)
	if adjust := m.c.OomScoreAdj; adjust != nil {
		m.write("set the OOM score", []string{"/proc/self/oom_score_adj"}, fmt.Sprint(*adjust), 0)
	}
}

// execute is the end of a process that is in the container by now: it gives up what it is not to have, and becomes what it is for.
func (m *making) execute(c *container, p *specs.Process, first bool) error {
	env, err := environment(c.task.Rootfs, p.Env, p.User.UID)
	if err != nil {
		return err
	}
	paths, err := lookUp(p.Args[0], env)
	if err != nil {
		return err
	}
	held, err := capabilitySets(p.Capabilities)
	if err != nil {
		return err
	}
	m.limits(c.limits)
	if p.NoNewPrivileges {
		m.Call("have no new privileges", unix.SYS_PRCTL, unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
	}
	m.become(p.User.UID, p.User.GID, p.User.AdditionalGids, p.Cwd, held)
	m.Call("close the supervisor's files", unix.SYS_CLOSE_RANGE, 3, uint64(^uint32(0)), 0)
	m.Call("drop ambient capabilities", unix.SYS_PRCTL, unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0).Allow(unix.EINVAL)
	if first { // changing the user clears it, and a filter may refuse it
		m.Call("be stopped when the supervisor is killed", unix.SYS_PRCTL, unix.PR_SET_PDEATHSIG, int(supervisor.OrphanSignal), 0, 0, 0)
	}
	m.ResetSignals()
	if c.filter != nil && !p.NoNewPrivileges { // it takes a capability
		m.LoadFilter(c.filter.flags, c.filter.program)
	}
	m.Call("drop capabilities", unix.SYS_CAPSET, capabilityHeader, held.sets)
	if c.filter != nil && p.NoNewPrivileges {
		m.LoadFilter(c.filter.flags, c.filter.program)
	}
	m.Execute(paths, p.Args, env)
	return nil
}

func (m *making) close(fd launch.Result) { m.Call("close a file", unix.SYS_CLOSE, fd) }

// write writes a text to files.
func (m *making) write(what string, paths []string, text string, flags int) {
	for _, path := range paths {
		fd := m.Call(what+": open "+path, unix.SYS_OPENAT, unix.AT_FDCWD, path, unix.O_WRONLY|unix.O_CLOEXEC|flags, 0).Result()
		m.Call(what+": write "+path, unix.SYS_WRITE, fd, []byte(text), len(text))
		m.close(fd)
	}
}

// joined lists the files by which a process joins cgroups.
func joined(groups map[string]string) (files []string) {
	for _, dir := range slices.Compact(slices.Sorted(maps.Values(groups))) {
		files = append(files, filepath.Join(dir, cgroups.CgroupProcesses))
	}
	return files
}

// standard are the descriptors that become a process's standard files; below zero: nothing.
type standard [3]int

func standardOf(files *supervisor.Files) (s standard) {
	for i, f := range []*os.File{files.Stdin, files.Stdout, files.Stderr} {
		s[i] = -1
		if f != nil {
			s[i] = int(f.Fd())
		}
	}
	return s
}

// standardFiles takes what is given for them; for others see enter.
func (m *making) standardFiles(files standard) {
	for i, fd := range files {
		if fd >= 0 {
			m.Call("take a standard file", unix.SYS_DUP3, fd, i, 0)
		}
	}
}

// nothing takes the open null device for those that are not given.
func (m *making) nothing(null launch.Result, files standard) {
	for i, fd := range files {
		if fd < 0 {
			m.Call("take /dev/null as a standard file", unix.SYS_DUP3, null, i, 0)
		}
	}
	m.close(null)
}

func (m *making) limits(limits []configs.Rlimit) {
	set := func(kind int, soft, hard uint64) {
		m.Call("limit the process", unix.SYS_PRLIMIT64, 0, kind, int64s(soft, hard), 0)
	}
	first := launch.FirstLimit()
	set(unix.RLIMIT_NOFILE, first.Cur, first.Max)
	for _, l := range limits {
		set(l.Type, l.Soft, l.Hard)
	}
}

// namespaces enters what there is, and returns flags for what is to be made.
func (m *making) namespaces() uintptr {
	flags := m.c.Namespaces.CloneFlags()
	for _, ns := range m.c.Namespaces {
		if ns.Path == "" {
			continue
		}
		fd := m.Call("open "+ns.Path, unix.SYS_OPENAT, unix.AT_FDCWD, ns.Path, unix.O_RDONLY|unix.O_CLOEXEC, 0).Result()
		m.Call("enter "+ns.Path, unix.SYS_SETNS, fd, ns.Syscall())
		m.close(fd)
	}
	// That of cgroups has to be made where the process is by now.
	if flags&unix.CLONE_NEWCGROUP != 0 {
		m.Call("make a cgroup namespace", unix.SYS_UNSHARE, unix.CLONE_NEWCGROUP)
	}
	return flags &^ unix.CLONE_NEWCGROUP
}

// keyring leaves the supervisor's session keyring for one that the container can search.
func (m *making) keyring(id string) {
	const rights = 0x3f1b0000 // those of a new one, and that its user searches it
	ring := m.Call("begin a session keyring", unix.SYS_KEYCTL, unix.KEYCTL_JOIN_SESSION_KEYRING, "_ses."+id).Allow(unix.ENOSYS).Skip(1, 0).Result()
	m.Call("let the session keyring be searched", unix.SYS_KEYCTL, unix.KEYCTL_SETPERM, ring, rights)
}

// file makes the container's tree of files.
func (m *making) file() error {
	propagation := unix.MS_SLAVE | unix.MS_REC
	if m.c.RootPropagation != 0 {
		propagation = m.c.RootPropagation
	}
	mount := func(what string, source, target string, flags int) launch.Step {
		return m.Call(what, unix.SYS_MOUNT, source, target, nil, flags, nil)
	}
	mount("have mounts of one's own", "", "/", propagation)
	// What the root lies in must not pass on what is mounted below it. Where that begins, one cannot see from here.
	parent := unix.MS_PRIVATE
	if m.c.RootPropagation&unix.MS_SLAVE != 0 {
		parent = unix.MS_SLAVE
	}
	var above []string
	for dir := m.c.Rootfs; dir != "/"; dir = filepath.Dir(dir) {
		above = append(above, dir)
	}
	for i, dir := range append(above, "/") {
		mount("keep mounts below "+dir, "", dir, parent).Allow(unix.EINVAL).Skip(0, len(above)-i)
	}
	mount("mount "+m.c.Rootfs, m.c.Rootfs, m.c.Rootfs, unix.MS_BIND|unix.MS_REC)
	m.root = m.Call("open "+m.c.Rootfs, unix.SYS_OPENAT, unix.AT_FDCWD, m.c.Rootfs, unix.O_DIRECTORY|unix.O_CLOEXEC|unix.O_PATH, 0).Result()
	m.Call("set the file mode mask", unix.SYS_UMASK, 0)
	for _, mt := range m.c.Mounts {
		if err := m.mount(mt); err != nil {
			return err
		}
	}
	return m.devices()
}

func (m *making) mount(mt *configs.Mount) error {
	to, flags := inside(m.c, mt.Destination), mt.Flags
	what := "mount " + to
	switch mt.Device {
	case "bind":
		return m.bind(mt, to)
	case "cgroup":
		return m.cgroup(mt, to)
	case "proc", "sysfs":
		fd := m.OpenTarget(m.root, to, 0o755, launch.Plain|launch.Proc).Result()
		m.MountOn(what, fd, mt.Source, mt.Device, flags, mt.Data)
		m.close(fd)
		return nil
	case "tmpfs":
		flags &^= unix.MS_RDONLY // until all is made in it
	}
	fd := m.OpenTarget(m.root, to, 0o755, launch.Directory).Result()
	m.MountOn(what, fd, mt.Source, mt.Device, flags, mt.Data)
	m.close(fd)
	return nil
}

// bind mounts what is elsewhere in the host's tree. It gets its attributes before it is anywhere to be seen.
func (m *making) bind(mt *configs.Mount, to string) error {
	st, err := os.Stat(mt.Source)
	if err != nil {
		return fault.New(fault.Invalid, "mount %s: %w", mt.Destination, err)
	}
	kind := launch.Directory
	mode := 0o755
	if !st.IsDir() {
		kind, mode = launch.File, 0o644
	}
	tree := m.clone(mt.Source, mt.Flags&unix.MS_REC != 0)
	for _, p := range mt.PropagationFlags {
		m.attributes(tree, p&unix.MS_REC != 0, unix.MountAttr{Propagation: uint64(p &^ unix.MS_REC)})
	}
	if mt.Flags&^bindFlags != 0 || mt.ClearedFlags != 0 {
		m.attributes(tree, false, attributesOf(mt.Flags))
	}
	if mt.RecAttr != nil {
		m.attributes(tree, true, *mt.RecAttr)
	}
	m.attach(tree, to, mode, kind)
	return nil
}

// clone takes a part of a tree, to be mounted again.
func (m *making) clone(source string, all bool) launch.Result {
	flags := unix.OPEN_TREE_CLONE | unix.OPEN_TREE_CLOEXEC
	if all {
		flags |= unix.AT_RECURSIVE
	}
	return m.Call("take "+source, unix.SYS_OPEN_TREE, unix.AT_FDCWD, source, flags).Result()
}

func (m *making) attributes(tree launch.Result, all bool, a unix.MountAttr) {
	flags := unix.AT_EMPTY_PATH
	if all {
		flags |= unix.AT_RECURSIVE
	}
	b := int64s(a.Attr_set, a.Attr_clr, a.Propagation, a.Userns_fd)
	m.Call("set attributes of a mount", unix.SYS_MOUNT_SETATTR, tree, "", flags, b, len(b))
}

func (m *making) attach(tree launch.Result, to string, mode int, kind launch.Target) {
	fd := m.OpenTarget(m.root, to, mode, kind).Result()
	m.Call("mount "+to, unix.SYS_MOVE_MOUNT, tree, "", fd, "", unix.MOVE_MOUNT_F_EMPTY_PATH|unix.MOVE_MOUNT_T_EMPTY_PATH)
	m.close(fd)
	m.close(tree)
}

// attributesOf are those of a mount whose flags are exactly these.
func attributesOf(flags int) unix.MountAttr {
	a := unix.MountAttr{Attr_clr: unix.MOUNT_ATTR_RDONLY | unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NODEV | unix.MOUNT_ATTR_NOEXEC}
	for flag, attr := range map[int]uint64{
		unix.MS_RDONLY: unix.MOUNT_ATTR_RDONLY, unix.MS_NOSUID: unix.MOUNT_ATTR_NOSUID,
		unix.MS_NODEV: unix.MOUNT_ATTR_NODEV, unix.MS_NOEXEC: unix.MOUNT_ATTR_NOEXEC,
	} {
		if flags&flag != 0 {
			a.Attr_set |= attr
		}
	}
	if flags&timeFlags != 0 { // otherwise as it is
		a.Attr_clr |= unix.MOUNT_ATTR__ATIME
		if flags&unix.MS_STRICTATIME != 0 {
			a.Attr_set |= unix.MOUNT_ATTR_STRICTATIME
		}
	}
	return a
}

// cgroup shows the container its cgroups.
func (m *making) cgroup(mt *configs.Mount, to string) error {
	if cgroups.IsCgroup2UnifiedMode() {
		fd := m.OpenTarget(m.root, to, 0o755, launch.Directory).Result()
		m.MountOn("mount "+to, fd, mt.Source, "cgroup2", mt.Flags, mt.Data)
		m.close(fd)
		return nil
	}
	fd := m.OpenTarget(m.root, to, 0o755, launch.Directory).Result()
	m.MountOn("mount "+to, fd, "tmpfs", "tmpfs", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "mode=755")
	m.close(fd)
	for _, h := range m.hierarchies {
		dir, err := m.groupIn(h)
		if err != nil {
			return fmt.Errorf("find cgroups: %w", err)
		}
		name := filepath.Base(h.Mountpoint)
		tree := m.clone(dir, false)
		m.attributes(tree, false, attributesOf(unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC|unix.MS_RELATIME|mt.Flags&unix.MS_RDONLY))
		m.attach(tree, filepath.Join(to, name), 0o755, launch.Directory)
		if !strings.Contains(name, ",") {
			continue
		}
		at := m.OpenTarget(m.root, to, 0o755, launch.Directory).Result()
		for single := range strings.SplitSeq(name, ",") {
			m.link(name, at, single)
		}
		m.close(at)
	}
	return nil
}

// groupIn is the container's directory in a hierarchy, or the supervisor's where it has none.
func (m *making) groupIn(h driver.CgroupHierarchy) (string, error) {
	for _, s := range h.Subsystems {
		if dir := cmp.Or(m.groups[s], m.groups[cgroups.CgroupNamePrefix+s]); dir != "" {
			return dir, nil
		}
	}
	own, err := cgroups.ParseCgroupFile("/proc/self/cgroup")
	if err != nil {
		return "", err
	}
	path, err := cgroups.Mount(h).GetOwnCgroup(own)
	if err != nil {
		return "", err
	}
	path, err = filepath.Rel(h.Root, path)
	return filepath.Join(h.Mountpoint, path), err
}

func (m *making) link(to string, dir launch.Result, name string) {
	m.Call("link "+name, unix.SYS_SYMLINKAT, to, dir, name).Allow(unix.EEXIST)
}

// devices fills /dev.
func (m *making) devices() error {
	for _, d := range m.c.Devices {
		path := filepath.Clean("/" + d.Path)
		if d.Path == "" || path == "/dev/ptmx" {
			continue
		}
		kind, ok := map[devcfg.Type]uint32{devcfg.BlockDevice: unix.S_IFBLK, devcfg.CharDevice: unix.S_IFCHR, devcfg.FifoDevice: unix.S_IFIFO}[d.Type]
		number, err := d.Mkdev()
		if !ok || err != nil {
			return fault.New(fault.Invalid, "device %s cannot be made: %w", d.Path, errors.Join(err))
		}
		dir, name := filepath.Split(path)
		at := m.OpenTarget(m.root, dir, 0o755, launch.Directory).Result()
		m.Call("make "+path, unix.SYS_MKNODAT, at, name, kind|uint32(d.FileMode), number).Allow(unix.EEXIST).Skip(1, 0)
		m.Call("give "+path+" to its owner", unix.SYS_FCHOWNAT, at, name, d.Uid, d.Gid, unix.AT_SYMLINK_NOFOLLOW)
		m.close(at)
	}
	dev := m.OpenTarget(m.root, "/dev", 0o755, launch.Directory).Result()
	m.Call("remove /dev/ptmx", unix.SYS_UNLINKAT, dev, "ptmx", 0).Allow(unix.ENOENT)
	m.link("pts/ptmx", dev, "ptmx")
	m.link("/proc/self/fd", dev, "fd")
	for i, name := range []string{"stdin", "stdout", "stderr"} {
		m.link(fmt.Sprintf("/proc/self/fd/%d", i), dev, name)
	}
	if _, err := os.Stat("/proc/kcore"); err == nil {
		m.link("/proc/kcore", dev, "core")
	}
	m.close(dev)
	return nil
}

// enter makes the container's tree the only one.
func (m *making) enter(cwd string, files standard) {
	old := m.Call("open the host's root", unix.SYS_OPENAT, unix.AT_FDCWD, "/", unix.O_DIRECTORY|unix.O_PATH|unix.O_CLOEXEC, 0).Result()
	m.Call("go to the container's root", unix.SYS_FCHDIR, m.root)
	m.Call("change the root", unix.SYS_PIVOT_ROOT, ".", ".")
	m.Call("go to the host's root", unix.SYS_FCHDIR, old)
	m.Call("cut mounts off the host's", unix.SYS_MOUNT, "", ".", nil, unix.MS_SLAVE|unix.MS_REC, nil)
	m.Call("leave the host's root", unix.SYS_UMOUNT2, ".", unix.MNT_DETACH)
	m.Call("go to the root", unix.SYS_CHDIR, "/")
	m.close(old)
	m.close(m.root)
	if p := m.c.RootPropagation; p != 0 && p&(unix.MS_PRIVATE|unix.MS_SLAVE) == 0 {
		m.Call("pass mounts on", unix.SYS_MOUNT, "", "/", nil, p, nil)
	}
	if slices.Min(files[:]) < 0 {
		null := m.Call("open /dev/null", unix.SYS_OPENAT, unix.AT_FDCWD, "/dev/null", unix.O_RDWR|unix.O_CLOEXEC, 0).Result()
		m.CheckNull(null)
		m.nothing(null, files)
	}
	root := m.Call("open the root", unix.SYS_OPENAT, unix.AT_FDCWD, "/", unix.O_DIRECTORY|unix.O_PATH|unix.O_CLOEXEC, 0).Result()
	m.close(m.OpenTarget(root, filepath.Clean("/"+cwd), 0o755, launch.Proc).Result())
	m.close(root)
}

// finish makes the tree what it is to stay.
func (m *making) finish() {
	for _, mt := range m.c.Mounts {
		if mt.Device == "tmpfs" && mt.Flags&unix.MS_RDONLY != 0 {
			m.Call("make "+mt.Destination+" read-only", unix.SYS_MOUNT, "", inside(m.c, mt.Destination), nil, mt.Flags|unix.MS_REMOUNT|unix.MS_BIND, nil)
		}
	}
	if m.c.Readonlyfs {
		m.Call("make the root read-only", unix.SYS_MOUNT, "", "/", nil, unix.MS_BIND|unix.MS_REMOUNT|unix.MS_RDONLY, nil)
	}
	m.Call("set the file mode mask", unix.SYS_UMASK, 0o022)
	if name := m.c.Hostname; name != "" {
		m.Call("set the host name", unix.SYS_SETHOSTNAME, name, len(name))
	}
	if name := m.c.Domainname; name != "" {
		m.Call("set the domain name", unix.SYS_SETDOMAINNAME, name, len(name))
	}
	for _, key := range slices.Sorted(maps.Keys(m.c.Sysctl)) {
		m.write("set "+key, []string{"/proc/sys/" + strings.ReplaceAll(key, ".", "/")}, m.c.Sysctl[key], unix.O_TRUNC|unix.O_NOFOLLOW)
	}
	for _, path := range m.c.ReadonlyPaths {
		m.MakeReadOnly(path)
	}
	if len(m.c.MaskPaths) == 0 {
		return
	}
	null := m.Call("open /dev/null", unix.SYS_OPENAT, unix.AT_FDCWD, "/dev/null", unix.O_PATH|unix.O_CLOEXEC, 0).Result()
	m.CheckNull(null)
	for _, path := range m.c.MaskPaths {
		m.Mask(path, null)
	}
	m.close(null)
}

// become takes the user's identity, and keeps capabilities for what is still to do.
func (m *making) become(uid, gid uint32, groups []uint32, cwd string, held *heldCapabilities) {
	// The user may be denied the directory, or the host's root be: one of both must get there.
	gone := m.Call("go to "+cwd, unix.SYS_CHDIR, cwd).Allow(unix.EACCES, unix.EPERM).Result()
	for _, c := range held.dropped {
		m.Call("drop capabilities", unix.SYS_PRCTL, unix.PR_CAPBSET_DROP, c, 0, 0, 0)
	}
	m.Call("keep capabilities", unix.SYS_PRCTL, unix.PR_SET_KEEPCAPS, 1, 0, 0, 0)
	m.OwnStdio(int(uid))
	m.Call("take the user's groups", unix.SYS_SETGROUPS, len(groups), int32s(groups...))
	m.Call("take the user's group", unix.SYS_SETGID, gid)
	m.Call("become the user", unix.SYS_SETUID, uid)
	m.Call("keep no more capabilities", unix.SYS_PRCTL, unix.PR_SET_KEEPCAPS, 0, 0, 0, 0)
	m.Failed(gone).Allow(unix.EACCES, unix.EPERM).Skip(0, 1)
	m.Call("go to "+cwd, unix.SYS_CHDIR, cwd)
	m.CheckDirectory()
	m.Call("use capabilities", unix.SYS_CAPSET, capabilityHeader, held.all)
}

var capabilityHeader = int32s(unix.LINUX_CAPABILITY_VERSION_3, 0)

// heldCapabilities are what a process keeps, and what it drops for good.
type heldCapabilities struct {
	sets    []byte // as capset(2) takes them
	all     []byte // the same while it still has to do with more
	dropped []int
}

func capabilitySets(c *specs.LinuxCapabilities) (*heldCapabilities, error) {
	known, err := capability.ListSupported()
	if err != nil {
		return nil, fmt.Errorf("list capabilities: %w", err)
	}
	mask := func(names []string) (bits uint64) {
		for _, k := range known {
			if slices.Contains(names, "CAP_"+strings.ToUpper(k.String())) {
				bits |= 1 << k
			}
		}
		return bits
	}
	sets := func(effective, permitted uint64) (b []byte) {
		for _, shift := range []int{0, 32} {
			b = append(b, int32s(uint32(effective>>shift), uint32(permitted>>shift), 0)...)
		}
		return b
	}
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var own [2]unix.CapUserData
	if err := unix.Capget(&header, &own[0]); err != nil {
		return nil, os.NewSyscallError("capget", err)
	}
	permitted := uint64(own[1].Permitted)<<32 | uint64(own[0].Permitted)
	// What nobody here has, as on hosts that are containers themselves, cannot be given.
	h := &heldCapabilities{sets: sets(mask(c.Effective)&permitted, mask(c.Permitted)&permitted), all: sets(permitted, permitted)}
	bounding := mask(c.Bounding)
	for _, k := range known {
		if bounding&(1<<k) == 0 {
			h.dropped = append(h.dropped, int(k))
		}
	}
	return h, nil
}

// environment is a process's, without doubles, and with a home directory.
func environment(rootfs string, env []string, uid uint32) ([]string, error) {
	var out []string
	seen := map[string]bool{}
	for _, e := range slices.Backward(env) {
		key, value, ok := strings.Cut(e, "=")
		switch {
		case !ok || key == "" || strings.Contains(e, "\x00"):
			return nil, fault.New(fault.Invalid, "environment variable %q is not NAME=VALUE", e)
		case seen[key]:
			continue
		}
		seen[key] = true
		if key == "HOME" && value == "" {
			seen[key] = false // as if it were not given
			continue
		}
		out = append(out, e)
	}
	slices.Reverse(out)
	if !seen["HOME"] {
		out = append(out, "HOME="+users.Home(rootfs, uid))
	}
	return out, nil
}

// lookUp lists the paths that a name may mean.
func lookUp(name string, env []string) ([]string, error) {
	if strings.Contains(name, "/") {
		return []string{name}, nil
	}
	var paths []string
	for _, e := range env {
		if list, ok := strings.CutPrefix(e, "PATH="); ok {
			for _, dir := range filepath.SplitList(list) {
				if dir != "" && dir != "." { // what lies about is not what is meant
					paths = append(paths, filepath.Join(dir, name))
				}
			}
		}
	}
	if len(paths) == 0 {
		return nil, startError(name, errors.New("exec: executable file not found in $PATH"))
	}
	return paths, nil
}

// int32s and int64s are structures of the kernel's.
func int32s(numbers ...uint32) (b []byte) {
	for _, n := range numbers {
		b = binary.NativeEndian.AppendUint32(b, n)
	}
	return b
}

func int64s(numbers ...uint64) (b []byte) {
	for _, n := range numbers {
		b = binary.NativeEndian.AppendUint64(b, n)
	}
	return b
}
