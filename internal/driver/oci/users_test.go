package oci

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/tutti-run/tutti/internal/driver"
	"github.com/tutti-run/tutti/internal/driver/drivertest"
	"github.com/tutti-run/tutti/internal/fault"
	"github.com/tutti-run/tutti/internal/userns"
)

// withUsers has tasks of e run in a user namespace, over an overlay as images are, and returns the directory that
// what they write goes to.
func (e *env) withUsers() (users *userns.Users, netNS, upper string) {
	e.t.Helper()
	dir := e.t.TempDir()
	if err := os.Chmod(filepath.Dir(dir), 0o711); err != nil { // as those above the root file systems of a node are
		e.t.Fatal(err)
	}
	netNS = filepath.Join(dir, "net")
	pool := userns.NewPool(filepath.Join(dir, "users"))
	if err := pool.Make("i", netNS); err != nil {
		e.t.Fatal(err)
	}
	e.t.Cleanup(func() {
		if err := unix.Unmount(netNS, unix.MNT_DETACH); err != nil {
			e.t.Error(err)
		}
		if err := pool.Release("i"); err != nil {
			e.t.Error(err)
		}
	})
	users, err := pool.Get("i")
	if err != nil {
		e.t.Fatal(err)
	}
	layers, scratch, root := filepath.Join(dir, "layers"), filepath.Join(dir, "scratch"), filepath.Join(dir, "root")
	upper = filepath.Join(layers, "upper")
	for _, d := range []string{layers, upper, filepath.Join(layers, "work"), scratch, root} {
		if err := os.Mkdir(d, 0o755); err != nil {
			e.t.Fatal(err)
		}
	}
	if err := os.Rename(e.root, filepath.Join(layers, "lower")); err != nil {
		e.t.Fatal(err)
	}
	if err := users.Overlay(layers, scratch, "lowerdir=lower,upperdir=upper,workdir=work", root); err != nil {
		e.t.Fatal(err)
	}
	e.t.Cleanup(func() {
		if err := unix.Unmount(root, unix.MNT_DETACH); err != nil {
			e.t.Error(err)
		}
	})
	e.root = root
	return users, netNS, upper
}

func TestSuiteWithUsersOfTheirOwn(t *testing.T) {
	drivertest.Run(t, func(t *testing.T) *drivertest.Host {
		e := setUp(t)
		users, netNS, _ := e.withUsers()
		h := e.host("")
		plain := h.Task
		h.Task = func() driver.Task {
			task := plain()
			task.Users, task.NetNS = users, netNS
			return task
		}
		return h
	})
}

func TestRootInsideIsNobodyOutside(t *testing.T) {
	e := setUp(t)
	users, netNS, upper := e.withUsers()
	bound := e.t.TempDir()
	e.start("i.root.1", func(task *driver.Task) {
		task.Users, task.NetNS, task.Sysctls = users, netNS, map[string]string{"net.ipv4.ip_forward": "1"}
		task.Mounts = []driver.Mount{{Type: "bind", Source: bound, Target: "/bound"}, {Type: "tmpfs", Target: "/memory"}}
		task.CapAdd = []string{"NET_ADMIN", "SYS_ADMIN"}
	}, "abuse", "/bound/file", "/written", "/memory/file")
	e.start("i.map.1", func(task *driver.Task) { task.Users, task.NetNS = users, netNS }, "sleep")
	st, err := e.d.Status(e.ctx, "i.map.1")
	if err != nil {
		t.Fatal(err)
	}
	mapping, err := os.ReadFile(fmt.Sprintf("/proc/%d/uid_map", st.PID))
	if err != nil {
		t.Fatal(err)
	}
	if want := []string{"0", fmt.Sprint(users.First), fmt.Sprint(userns.Size)}; strings.Join(strings.Fields(string(mapping)), " ") != strings.Join(want, " ") {
		t.Errorf("its users are %q, want %q", mapping, want)
	}
	if st := e.wait("i.root.1"); st.ExitCode != 0 {
		t.Fatalf("ended as %+v", st)
	}
	said := e.logs("i.root.1", driver.LogOptions{Tail: -1})
	for _, line := range []string{
		"file /bound/file 5 <nil>", "file /written 5 <nil>", "file /memory/file 5 <nil>", "forward 1 <nil>", "host name <nil>",
		"beyond chown /bound/file: invalid argument", "node operation not permitted", "clock operation not permitted",
		"priority permission denied", "core open /proc/sys/kernel/core_pattern: read-only file system",
	} {
		if !strings.Contains(said, line+"\n") {
			t.Errorf("it did not find %q, but\n%s", line, said)
		}
	}
	for _, path := range []string{filepath.Join(bound, "file"), filepath.Join(upper, "written")} {
		var st unix.Stat_t
		if err := unix.Stat(path, &st); err != nil || st.Uid != 5 {
			t.Errorf("%s is of user %d on disk, want the 5 that it has inside: %v", path, st.Uid, err)
		}
	}
	var through unix.Stat_t
	if err := unix.Stat(filepath.Join(e.root, "written"), &through); err != nil || through.Uid != users.First+5 {
		t.Errorf("seen from the node the file is of user %d, not %d: %v", through.Uid, users.First+5, err)
	}
}

func TestWhatCannotBeShownWithOtherUsersIsRefused(t *testing.T) {
	e := setUp(t)
	users, netNS, _ := e.withUsers()
	task := e.task()
	task.ID, task.Args, task.Users, task.NetNS = "i.proc.1", []string{"/prog", "exit", "0"}, users, netNS
	task.Mounts = []driver.Mount{{Type: "bind", Source: "/proc", Target: "/host"}}
	if err := e.d.Start(e.ctx, task); err == nil || !strings.Contains(err.Error(), "/host") || !strings.Contains(err.Error(), "user namespace") {
		t.Errorf("error is %v, want the mount named", err)
	}
	task.ID, task.Mounts, task.HostPIDs = "i.pids.1", nil, true
	if err := e.d.Start(e.ctx, task); !fault.Is(err, fault.Invalid) {
		t.Errorf("with the processes of the host: error is %v, want it refused", err)
	}
	task.ID, task.HostPIDs, task.Runtime = "i.runc.1", false, "runc"
	if err := e.d.Start(e.ctx, task); !fault.Is(err, fault.Unsupported) || !strings.Contains(err.Error(), "runc") {
		t.Errorf("with runc: error is %v, want it refused", err)
	}
}

func TestDevicesOfOthersStayRoots(t *testing.T) {
	e := setUp(t)
	plain := e.root
	users, netNS, _ := e.withUsers()
	e.start("i.a.1", func(task *driver.Task) { task.Users, task.NetNS = users, netNS }, "exit", "0")
	e.wait("i.a.1")
	e.root = plain
	if err := os.CopyFS(e.root, os.DirFS(filepath.Join(filepath.Dir(netNS), "layers", "lower"))); err != nil {
		t.Fatal(err)
	}
	for _, id := range []string{"i.b.1", "i.c.1"} { // the second is begun before its supervisor
		e.start(id, nil, "sleep")
		st, err := e.d.Status(e.ctx, id)
		if err != nil {
			t.Fatal(err)
		}
		var null unix.Stat_t
		if err := unix.Stat(fmt.Sprintf("/proc/%d/root/dev/null", st.PID), &null); err != nil || null.Uid != 0 {
			t.Errorf("/dev/null of %s is %d's, %v, want root's", id, null.Uid, err)
		}
	}
}
