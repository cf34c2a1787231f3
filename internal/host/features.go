package host

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/tutti-run/tutti/internal/model"
)

// Features tells what of the kernel Tutti uses, whether it works here, and what does not work without it. users is why
// user namespaces cannot be used.
func Features(users error) []model.HostFeature {
	var out []model.HostFeature
	add := func(name string, err error, works, without string) {
		f := model.HostFeature{Name: name, Works: err == nil, Says: works}
		if err != nil {
			f.Says = fmt.Sprintf("%s: %v", without, err)
		}
		out = append(out, f)
	}
	version, controllers := cgroups()
	add("cgroups", needs(controllers, "cpu", "memory", "pids"), version+" with "+strings.Join(controllers, ", "), "instances cannot be bounded by all of these")
	add("devices", deviceRules(version, controllers), "what devices a container may use is bounded", "containers are kept from devices by capabilities alone")
	add("freezer", freezer(version, controllers), "instances can be paused", "instances cannot be paused")
	add("overlayfs", listed("/proc/filesystems", "overlay"), "containers share the layers of their images", "containers cannot be started")
	add("seccomp", exists("/proc/sys/kernel/seccomp/actions_avail"), "containers are confined by a profile", "containers need the security option seccomp=unconfined")
	add("apparmor", appArmor(), "tasks that name a profile run under it", "tasks that name a profile are refused")
	for _, ns := range []string{"mnt", "pid", "net", "ipc", "uts"} {
		add(ns+" namespace", exists("/proc/self/ns/"+ns), "containers have their own", "containers cannot be started")
	}
	add("cgroup namespace", exists("/proc/self/ns/cgroup"), "containers see their own cgroup alone", "containers see the host's cgroups, read-only")
	add("user namespace", users, "instances can have users of their own", "instances cannot have users of their own")
	add("time namespace", exists("/proc/self/ns/time"), "containers can have clocks of their own", "containers have the host's clocks since boot")
	add("openat2", openat2(), "files of containers are copied without leaving them", "files of containers cannot be copied")
	add("checkpoint of filters", filters(), "a seccomp profile is compiled once", "each container compiles its profile, which takes 30 ms more")
	add("pressure stall information", exists("/proc/pressure/memory"), "the kernel has it", "pressure is judged by what is left, as everywhere")
	add("out-of-memory scores", scores(), "the node's process and supervisors are ended last when memory is short", "any process may be ended when memory is short")
	return out
}

// Lacks are the features that do not work, with what that means.
func Lacks(features []model.HostFeature) map[string]string {
	out := map[string]string{}
	for _, f := range features {
		if !f.Works {
			out[f.Name] = f.Says
		}
	}
	return out
}

func exists(path string) error {
	if _, err := os.Stat(path); err != nil {
		return errors.New(path + " is not there")
	}
	return nil
}

// cgroups tells which version is in use, and which controllers it has.
func cgroups() (version string, controllers []string) {
	if text, err := os.ReadFile("/sys/fs/cgroup/cgroup.controllers"); err == nil {
		return "version 2", strings.Fields(string(text))
	}
	text, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return "none", nil
	}
	for line := range strings.Lines(string(text)) {
		if f := strings.SplitN(strings.TrimSpace(line), ":", 3); len(f) == 3 && f[1] != "" && !strings.HasPrefix(f[1], "name=") {
			controllers = append(controllers, strings.Split(f[1], ",")...)
		}
	}
	return "version 1", controllers
}

func needs(have []string, want ...string) error {
	var missing []string
	for _, w := range want {
		found := false
		for _, h := range have {
			found = found || h == w
		}
		if !found {
			missing = append(missing, w)
		}
	}
	if len(missing) > 0 {
		return errors.New("no controller " + strings.Join(missing, ", "))
	}
	return nil
}

func deviceRules(version string, controllers []string) error {
	if version == "version 2" {
		return nil // by a program of the kernel's
	}
	return needs(controllers, "devices")
}

func freezer(version string, controllers []string) error {
	if version == "version 2" {
		return nil
	}
	return needs(controllers, "freezer")
}

// listed looks for a word at the end of a line; a module that is not loaded yet counts where modules can be.
func listed(file, word string) error {
	text, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	for line := range strings.Lines(string(text)) {
		if f := strings.Fields(line); len(f) > 0 && f[len(f)-1] == word {
			return nil
		}
	}
	var u unix.Utsname
	if unix.Uname(&u) == nil {
		release := unix.ByteSliceToString(u.Release[:])
		if found, err := filepath.Glob("/lib/modules/" + release + "/kernel/fs/*/" + word + ".ko*"); err == nil && len(found) > 0 {
			return nil
		}
	}
	return fmt.Errorf("%s does not list %s", file, word)
}

func appArmor() error {
	text, err := os.ReadFile("/sys/module/apparmor/parameters/enabled")
	if err != nil || !strings.HasPrefix(string(text), "Y") {
		return errors.New("it is off")
	}
	return nil
}

func openat2() error {
	fd, err := unix.Openat2(unix.AT_FDCWD, "/", &unix.OpenHow{Flags: unix.O_PATH | unix.O_CLOEXEC, Resolve: unix.RESOLVE_IN_ROOT})
	if err != nil {
		return err
	}
	return unix.Close(fd)
}

// filters asks whether the kernel tells what filter a process has; without one it says that there is none (ENOENT), or
// that the caller may not know.
func filters() error {
	if _, _, err := unix.Syscall6(unix.SYS_PTRACE, 0x420c, uintptr(os.Getpid()), 0, 0, 0, 0); err == unix.EIO || err == unix.EINVAL {
		return errors.New("the kernel was built without CONFIG_CHECKPOINT_RESTORE")
	}
	return nil
}

func scores() error {
	if n, ok := readNumber("/proc/self/oom_score_adj"); !ok || n >= 0 {
		return errors.New("this process may not lower its own score")
	}
	return nil
}
