package oci

import (
	"cmp"
	"fmt"
	"maps"
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/moby/profiles/seccomp"
	"github.com/opencontainers/cgroups"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/tutti-run/tutti/internal/cgroup"
	"github.com/tutti-run/tutti/internal/driver"
	"github.com/tutti-run/tutti/internal/fault"
	"github.com/tutti-run/tutti/internal/model"
)

// namespaces are those that a container has for itself, or enters.
func namespaces(t *driver.Task) []specs.LinuxNamespace {
	out := []specs.LinuxNamespace{{Type: specs.MountNamespace}}
	if t.Users != nil {
		out = append(out, specs.LinuxNamespace{Type: specs.UserNamespace, Path: t.Users.Path})
	}
	add := func(kind specs.LinuxNamespaceType, shared bool, path string) {
		if !shared {
			out = append(out, specs.LinuxNamespace{Type: kind, Path: path})
		}
	}
	add(specs.PIDNamespace, t.HostPIDs, t.PIDNS)
	add(specs.UTSNamespace, t.HostNames, "")
	add(specs.IPCNamespace, t.HostIPC, t.IPCNS)
	add(specs.NetworkNamespace, t.NetNS == "", t.NetNS)
	_, err := os.Stat("/proc/self/ns/cgroup")
	add(specs.TimeNamespace, t.Tuning == nil || t.Tuning.Clocks == nil, "")
	add(specs.CgroupNamespace, err != nil || t.HostCgroups || t.Privileged && !t.OwnCgroups, "")
	return out
}

const (
	seccompOption  = "seccomp="
	appArmorOption = "apparmor="
)

// profileOf is what the task says of its seccomp profile: "" is the default one.
func profileOf(t *driver.Task) string {
	if t.Privileged {
		return "unconfined"
	}
	for _, o := range t.SecurityOpts {
		if profile, ok := strings.CutPrefix(strings.Replace(o, "seccomp:", seccompOption, 1), seccompOption); ok && profile != "default" {
			return profile
		}
	}
	return ""
}

// confined reports whether a task runs under a seccomp profile.
func confined(t *driver.Task) bool { return profileOf(t) != "unconfined" }

func secure(t *driver.Task, s *specs.Spec) error {
	for _, o := range t.SecurityOpts {
		name, profile, _ := strings.Cut(o, "=")
		switch {
		case name == "seccomp", o == "seccomp:unconfined", o == "no-new-privileges", o == "no-new-privileges:true", o == "no-new-privileges:false":
		case name == "apparmor" && profile == "unconfined":
		case name == "apparmor" && profile != "":
			if enabled, err := os.ReadFile("/sys/module/apparmor/parameters/enabled"); err != nil || !strings.HasPrefix(string(enabled), "Y") {
				return fault.New(fault.Unsupported, "security option %q: the kernel of this host has no AppArmor", o)
			}
			s.Process.ApparmorProfile = profile
		default:
			return fault.New(fault.Unsupported, "security option %q is not supported; no-new-privileges, seccomp= and apparmor= are", o)
		}
	}
	return nil
}

// restrict adds the task's seccomp profile to its specification, which is finished but for that.
func restrict(t *driver.Task, s *specs.Spec) (err error) {
	if !confined(t) {
		return nil
	}
	if profile := profileOf(t); profile == "" {
		s.Linux.Seccomp, err = seccomp.GetDefaultProfile(s)
	} else if s.Linux.Seccomp, err = seccomp.LoadProfile(profile, s); err != nil {
		return fault.New(fault.Invalid, "the task's seccomp profile: %w", err)
	}
	if err != nil {
		return fmt.Errorf("load the default seccomp profile: %w", err)
	}
	return nil
}

// profileKey is all that a task's profile is made of, but for what does not change while this host is up.
func profileKey(t *driver.Task, s *specs.Spec) []byte {
	return fmt.Appendf(nil, "%s\x00%s", s.Process.Capabilities.Bounding, profileOf(t))
}

const cpuPeriod = 100_000 // microseconds

func resources(t *driver.Task) (*specs.LinuxResources, error) {
	r := &specs.LinuxResources{Devices: []specs.LinuxDeviceCgroup{{Allow: t.Privileged, Access: "rwm"}}}
	cpu := &specs.LinuxCPU{}
	if t.Limit.NanoCPUs > 0 {
		period, quota := uint64(cpuPeriod), max(t.Limit.NanoCPUs*cpuPeriod/1e9, 1000)
		cpu.Period, cpu.Quota = &period, &quota
	}
	if t.Reserve.NanoCPUs > 0 {
		shares := uint64(max(t.Reserve.NanoCPUs*1024/1e9, 2))
		cpu.Shares = &shares
	}
	r.CPU = cpu
	if t.Limit.MemoryBytes > 0 {
		limit := t.Limit.MemoryBytes
		r.Memory = &specs.LinuxMemory{Limit: &limit}
	}
	if t.Limit.Pids > 0 {
		limit := t.Limit.Pids
		r.Pids = &specs.LinuxPids{Limit: &limit}
	}
	if t.Tuning != nil {
		return r, tune(t.Tuning, r)
	}
	return r, nil
}

// boundsOf are the resources of a task that is bounded anew: what it was bounded in and is no more is said to have no bounds.
func boundsOf(t *driver.Task, was *specs.Spec) (*specs.LinuxResources, error) {
	r, err := resources(t)
	if err != nil {
		return nil, err
	}
	before := was.Linux.Resources
	r.Devices = before.Devices
	none, usual := int64(-1), uint64(1024)
	// All that there is: not every runtime knows how to say that there is no bound.
	allTime, allPids := int64(runtime.NumCPU())*cpuPeriod, int64(4<<20)
	if before.CPU != nil {
		if before.CPU.Quota != nil && r.CPU.Quota == nil {
			r.CPU.Quota, r.CPU.Period = &allTime, before.CPU.Period
		}
		if before.CPU.Shares != nil && r.CPU.Shares == nil {
			r.CPU.Shares = &usual
		}
		if before.CPU.Cpus != "" && r.CPU.Cpus == "" || before.CPU.Mems != "" && r.CPU.Mems == "" {
			return nil, fault.New(fault.Unsupported, "a task that was bound to processors or nodes of memory cannot be let go while it runs; name them all")
		}
	}
	if m := before.Memory; m != nil {
		if r.Memory == nil {
			r.Memory = &specs.LinuxMemory{}
		}
		if m.Limit != nil && r.Memory.Limit == nil {
			r.Memory.Limit = &none
		}
		if m.Swap != nil && r.Memory.Swap == nil {
			r.Memory.Swap = &none
		}
	}
	if before.Pids != nil && r.Pids == nil {
		r.Pids = &specs.LinuxPids{Limit: &allPids}
	}
	if b := before.BlockIO; b != nil && b.Weight != nil && (r.BlockIO == nil || r.BlockIO.Weight == nil) {
		if r.BlockIO == nil {
			r.BlockIO = &specs.LinuxBlockIO{}
		}
		middle := uint16(500)
		r.BlockIO.Weight = &middle
	}
	return r, nil
}

// tune adds what few tasks ask for.
func tune(t *model.Tuning, r *specs.LinuxResources) error {
	if t.CPUShares > 0 {
		r.CPU.Shares = &t.CPUShares
	}
	r.CPU.Cpus, r.CPU.Mems = t.CPUs, t.MemoryNodes
	if cgroups.IsCgroup2UnifiedMode() {
		switch {
		case t.Swappiness != nil:
			return fault.New(fault.Unsupported, "swapping cannot be tuned for single tasks on this host: its cgroups are of version 2")
		case t.NoOOMKill:
			return fault.New(fault.Unsupported, "a task that needs too much memory is always ended on this host: its cgroups are of version 2")
		}
	}
	if t.SwapBytes != 0 || t.Swappiness != nil || t.NoOOMKill {
		if r.Memory == nil {
			r.Memory = &specs.LinuxMemory{}
		}
		r.Memory.Swappiness = t.Swappiness
		if t.SwapBytes != 0 {
			r.Memory.Swap = &t.SwapBytes
		}
		if t.NoOOMKill {
			r.Memory.DisableOOMKiller = &t.NoOOMKill
		}
	}
	for _, size := range slices.Sorted(maps.Keys(t.HugePages)) {
		if known := cgroups.HugePageSizes(); !slices.Contains(known, size) {
			return fault.New(fault.Unsupported, "this host has no huge pages of %s; it has those of %s", size, cmp.Or(strings.Join(known, ", "), "no size"))
		}
		if !cgroup.Has("hugetlb") {
			return fault.New(fault.Unsupported, "memory in huge pages cannot be bounded on this host: it has no cgroups of the controller hugetlb")
		}
		r.HugepageLimits = append(r.HugepageLimits, specs.LinuxHugepageLimit{Pagesize: size, Limit: t.HugePages[size]})
	}
	for _, text := range t.DeviceRules {
		rule, err := deviceRule(text)
		if err != nil {
			return err
		}
		r.Devices = append(r.Devices, rule)
	}
	if t.IOWeight == 0 && len(t.IO) == 0 {
		return nil
	}
	r.BlockIO = &specs.LinuxBlockIO{}
	if t.IOWeight > 0 {
		r.BlockIO.Weight = &t.IOWeight
	}
	for _, d := range t.IO {
		var st unix.Stat_t
		if err := unix.Stat(d.Device, &st); err != nil || st.Mode&unix.S_IFMT != unix.S_IFBLK {
			return fault.New(fault.Invalid, "%s is no block device of this host", d.Device)
		}
		major, minor := int64(unix.Major(st.Rdev)), int64(unix.Minor(st.Rdev))
		if d.Weight > 0 {
			w := specs.LinuxWeightDevice{Weight: &d.Weight}
			w.Major, w.Minor = major, minor
			r.BlockIO.WeightDevice = append(r.BlockIO.WeightDevice, w)
		}
		for _, bound := range []struct {
			rate uint64
			list *[]specs.LinuxThrottleDevice
		}{
			{d.ReadBytes, &r.BlockIO.ThrottleReadBpsDevice}, {d.WriteBytes, &r.BlockIO.ThrottleWriteBpsDevice},
			{d.ReadCounts, &r.BlockIO.ThrottleReadIOPSDevice}, {d.WriteCounts, &r.BlockIO.ThrottleWriteIOPSDevice},
		} {
			if bound.rate > 0 {
				th := specs.LinuxThrottleDevice{Rate: bound.rate}
				th.Major, th.Minor = major, minor
				*bound.list = append(*bound.list, th)
			}
		}
	}
	return nil
}

// deviceRule reads "c 13:* rwm".
func deviceRule(text string) (specs.LinuxDeviceCgroup, error) {
	if !model.DeviceRule().MatchString(text) {
		return specs.LinuxDeviceCgroup{}, fault.New(fault.Invalid, "device rule %q is not like \"c 13:* rwm\"", text)
	}
	f := strings.Fields(text)
	rule := specs.LinuxDeviceCgroup{Allow: true, Type: f[0], Access: f[2]}
	major, minor, _ := strings.Cut(f[1], ":")
	number := func(text string) *int64 {
		if n, err := strconv.ParseInt(text, 10, 64); err == nil {
			return &n
		}
		return nil // it is a *
	}
	rule.Major, rule.Minor = number(major), number(minor)
	return rule, nil
}

// clocks gives a task its own clocks.
func clocks(t *driver.Task, s *specs.Spec) error {
	if t.Tuning == nil || t.Tuning.Clocks == nil {
		return nil
	}
	if _, err := os.Stat("/proc/self/ns/time"); err != nil {
		return fault.New(fault.Unsupported, "a task cannot have clocks of its own here: the kernel of this host has no time namespaces")
	}
	s.Linux.TimeOffsets = map[string]specs.LinuxTimeOffset{}
	for clock, offset := range map[string]time.Duration{"monotonic": t.Tuning.Clocks.Monotonic, "boottime": t.Tuning.Clocks.Boot} {
		whole := offset.Truncate(time.Second)
		if offset < whole {
			whole -= time.Second // the rest is never negative
		}
		s.Linux.TimeOffsets[clock] = specs.LinuxTimeOffset{Secs: int64(whole / time.Second), Nanosecs: uint32(offset - whole)}
	}
	return nil
}

// devices adds host devices, and the right to use them.
func devices(t *driver.Task, s *specs.Spec) error {
	for _, d := range t.Devices {
		var st unix.Stat_t
		if err := unix.Stat(d.Host, &st); err != nil {
			return fault.New(fault.Invalid, "device %s: %w", d.Host, err)
		}
		kind := ""
		switch st.Mode & unix.S_IFMT {
		case unix.S_IFCHR:
			kind = "c"
		case unix.S_IFBLK:
			kind = "b"
		default:
			return fault.New(fault.Invalid, "%s is not a device", d.Host)
		}
		major, minor := int64(unix.Major(st.Rdev)), int64(unix.Minor(st.Rdev))
		mode := os.FileMode(st.Mode & 0o777)
		path, access := d.Container, d.Permissions
		if path == "" {
			path = d.Host
		}
		if access == "" {
			access = "rwm"
		}
		s.Linux.Devices = append(s.Linux.Devices, specs.LinuxDevice{Path: path, Type: kind, Major: major, Minor: minor, FileMode: &mode, UID: &st.Uid, GID: &st.Gid})
		s.Linux.Resources.Devices = append(s.Linux.Resources.Devices, specs.LinuxDeviceCgroup{Allow: true, Type: kind, Major: &major, Minor: &minor, Access: access})
	}
	return nil
}

// inject adds what devices with names ask for.
func inject(t *driver.Task, s *specs.Spec) {
	in := t.Injected
	if in == nil {
		return
	}
	if in.Process != nil {
		s.Process.Env = slices.Concat(s.Process.Env, in.Process.Env)
		s.Process.User.AdditionalGids = append(s.Process.User.AdditionalGids, in.Process.User.AdditionalGids...)
	}
	s.Mounts = append(s.Mounts, in.Mounts...)
	s.Hooks = in.Hooks
	if in.Linux != nil {
		s.Linux.Devices = append(s.Linux.Devices, in.Linux.Devices...)
		if in.Linux.Resources != nil {
			s.Linux.Resources.Devices = append(s.Linux.Resources.Devices, in.Linux.Resources.Devices...)
		}
	}
}
