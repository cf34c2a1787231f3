package agent

import (
	"slices"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/tutti-run/tutti/internal/driver"
	"github.com/tutti-run/tutti/internal/fault"
	"github.com/tutti-run/tutti/internal/image"
	"github.com/tutti-run/tutti/internal/model"
)

// resolve turns a task of the template into what its driver runs.
func (w *worker) resolve(p *prepared, t *model.TaskSpec, id string) (driver.Task, error) {
	as, _, _ := w.desired()
	bounds := w.follow(as, t)
	if _, ok := w.agent.Drivers[driverName(t)].(driver.Leaser); as.Instance.Leased && !ok {
		return driver.Task{}, fault.New(fault.Unsupported, "task %s: driver %q does not end tasks with the node's lease, as those of a stateful workload must; oci does", t.Name, driverName(t))
	}
	task := driver.Task{
		Leased: as.Instance.Leased,
		ID:     id, Rootfs: p.rootfs[t.Name], User: t.User, Groups: t.Groups, WorkingDir: t.WorkingDir,
		Hostname: p.hostname, Domainname: as.Template.Domainname, NetNS: p.netNS, Users: p.users,
		CgroupParent: w.cgroup(), Mounts: p.mounts[t.Name], Limit: bounds.Limit, Reserve: bounds.Reserve,
		CapAdd: t.CapAdd, CapDrop: t.CapDrop, Privileged: t.Privileged, ReadOnlyRoot: t.ReadOnlyRoot,
		SecurityOpts: t.SecurityOpts, Ulimits: t.Ulimits, Init: t.Init, Runtime: t.Runtime, Tuning: bounds.Tuning,
		TTY: t.TTY, Stdin: t.Stdin, ShmBytes: t.ShmBytes, OOMScoreAdjust: t.OOMScoreAdjust, Log: t.Log,
	}
	process := driverName(t) == "process"
	if process {
		task.Sandbox, task.Umask = w.sandbox(t), t.Umask
	}
	if len(as.Template.Sysctls) > 0 {
		task.Sysctls = map[string]string{}
		for k, v := range as.Template.Sysctls {
			// Those of a network of its own were set when that was made; a container sets them again.
			if !strings.HasPrefix(k, "net.") || p.netNS != "" && !process {
				task.Sysctls[k] = v
			}
		}
	}
	entrypoint, args, env := t.Entrypoint, t.Args, []string(nil)
	if info := p.images[t.Name]; info != nil {
		c := info.Config
		if entrypoint == nil {
			entrypoint = c.Entrypoint
			if args == nil {
				args = c.Cmd
			}
		}
		env = c.Env
		if task.User == "" {
			task.User = c.User
		}
		if task.WorkingDir == "" {
			task.WorkingDir = c.WorkingDir
		}
	}
	if user, _, _ := strings.Cut(task.User, ":"); t.NonRoot && (user == "" || user == "0" || user == "root") {
		return task, fault.New(fault.Invalid, "task %s: it must not run as root, and would: neither the workload nor image %s names another user", t.Name, t.Image)
	}
	task.HostPIDs, task.HostIPC = as.Template.HostPIDs, as.Template.HostIPC
	shared := as.Template.Shared()
	task.HostNames, task.HostCgroups, task.OwnCgroups = shared.HostNames, shared.HostCgroups, shared.OwnCgroups
	task.NoSharedMemory = shared.NoSharedMemory
	task.Args = slices.Concat(entrypoint, args)
	if t.PlacedArgs {
		task.Args = w.fillIn(as.Instance, t, id, task.Args)
	}
	if len(task.Args) == 0 {
		if process {
			return task, fault.New(fault.Invalid, "task %s: the workload does not say what to run", t.Name)
		}
		return task, fault.New(fault.Invalid, "task %s: neither the workload nor image %s says what to run", t.Name, t.Image)
	}
	defaults := []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOSTNAME=" + p.hostname}
	if t.TTY {
		defaults = append(defaults, "TERM=xterm")
	}
	if as.Template.Indexed {
		defaults = append(defaults, "JOB_COMPLETION_INDEX="+strconv.Itoa(as.Instance.Slot-1))
	}
	defaults = append(defaults, deviceEnv(as.Instance, as.Template, t)...)
	task.Env = mergeEnv(defaults, env, w.placedEnv(as.Instance, t, id), t.Env)
	return task, nil
}

// mergeEnv joins NAME=value lists; of one name the last value counts, at its first place.
func mergeEnv(lists ...[]string) []string {
	var out []string
	at := map[string]int{}
	for _, list := range lists {
		for _, e := range list {
			name, _, _ := strings.Cut(e, "=")
			if i, ok := at[name]; ok {
				out[i] = e
				continue
			}
			at[name] = len(out)
			out = append(out, e)
		}
	}
	return out
}

func (w *worker) cgroup() string { return w.agent.CgroupParent + "/" + w.id }

// stopSignal is the task's, its image's, or SIGTERM.
func stopSignal(t *model.TaskSpec, info *image.Info) int {
	for _, name := range []string{t.StopSignal, imageStopSignal(info)} {
		if name == "" {
			continue
		}
		if n, err := strconv.Atoi(name); err == nil && n > 0 && n < 65 {
			return n
		}
		upper := strings.ToUpper(name)
		if !strings.HasPrefix(upper, "SIG") {
			upper = "SIG" + upper
		}
		if n := unix.SignalNum(upper); n != 0 {
			return int(n)
		}
		if n, ok := realtimeSignal(upper); ok {
			return n
		}
	}
	return int(syscall.SIGTERM)
}

// realtimeSignal reads SIGRTMIN+n and SIGRTMAX-n, as systemd's images use them.
func realtimeSignal(name string) (int, bool) {
	const first, last = 34, 64 // as the C library counts them
	n, base := 0, 0
	switch {
	case strings.HasPrefix(name, "SIGRTMIN"):
		base, name = first, strings.TrimPrefix(name, "SIGRTMIN")
	case strings.HasPrefix(name, "SIGRTMAX"):
		base, name = last, strings.TrimPrefix(name, "SIGRTMAX")
	default:
		return 0, false
	}
	if name != "" {
		var err error
		if n, err = strconv.Atoi(name); err != nil {
			return 0, false
		}
	}
	return base + n, base+n >= first && base+n <= last
}

func imageStopSignal(info *image.Info) string {
	if info == nil {
		return ""
	}
	return info.Config.StopSignal
}
