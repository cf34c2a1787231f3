package compose

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/compose-spec/compose-go/v2/types"
	"github.com/docker/go-units"

	"github.com/tutti-run/tutti/internal/fault"
	"github.com/tutti-run/tutti/internal/model"
)

// confine reads how a container is made, what it shares with its node or with other services, and what it asks
// of the kernel.
func (o *one) confine(task *model.TaskSpec) {
	if o.Runtime != model.BuiltInRuntime {
		task.Runtime = o.Runtime
	}
	o.sharing()
	o.tuning(task)
	if o.CPUQuota > 0 { // in millionths of a second, of a period of a tenth of one unless that is said
		period := o.CPUPeriod
		if period == 0 {
			period = 100_000
		}
		task.Limit.NanoCPUs = o.either("cpu_quota", o.CPUQuota*1e9/period, "limits.cpus", task.Limit.NanoCPUs)
	} else if o.CPUPeriod != 0 {
		o.invalid("cpu_period", "it says nothing without cpu_quota")
	}
	kept := o.deploy.Resources.Reservations
	for _, r := range o.Gpus {
		o.request("gpus", task, r)
	}
	if kept != nil {
		for _, r := range kept.Devices {
			o.request("deploy.resources.reservations.devices", task, r)
		}
	}
}

func (o *one) request(key string, task *model.TaskSpec, r types.DeviceRequest) {
	switch {
	case len(r.Options) > 0:
		o.unsupported(key+".options", "options of devices are not supported")
	case r.Driver == "cdi":
		for _, name := range r.IDs {
			if _, _, ok := model.CDIName(name); !ok {
				o.invalid(key+".device_ids", "%q is not a name like VENDOR/CLASS=NAME", name)
			}
			task.Devices = append(task.Devices, model.Device{Host: name})
		}
	case r.Driver == "" && !slices.Contains(r.Capabilities, "gpu") && len(r.Capabilities) > 0:
		o.unsupported(key, "devices with %s are not known; those with gpu are", listed(r.Capabilities))
	default:
		count := int(r.Count)
		if count == 0 && len(r.IDs) == 0 {
			count = -1 // as Compose has it: all of them
		}
		if err := model.WantGPUs(task, r.Driver, count, r.IDs); err != nil {
			o.note(o.src.item(o.sub(key)), o.sub(key), fault.KindOf(err), false, "%v", err)
		}
	}
}

// sharing reads with whom namespaces are shared.
func (o *one) sharing() {
	t, s := &o.w.Template, &model.Sharing{}
	switch mode, other, _ := strings.Cut(o.Pid, ":"); {
	case o.Pid == "":
	case o.Pid == "host":
		t.HostPIDs = true
	case mode == "service" && other != "":
		s.PIDsOf = o.joined("pid", other)
	default:
		o.unsupported("pid", "%q is not supported; host and service:NAME are", o.Pid)
	}
	switch mode, other, _ := strings.Cut(o.Ipc, ":"); {
	case o.Ipc == "", o.Ipc == "private":
	case o.Ipc == "host":
		t.HostIPC = true
	case o.Ipc == "shareable":
		s.OfferIPC = true
	case o.Ipc == "none":
		s.NoSharedMemory = true
	case mode == "service" && other != "":
		s.IPCOf = o.joined("ipc", other)
	default:
		o.unsupported("ipc", "%q is not supported; private, host, shareable, none and service:NAME are", o.Ipc)
	}
	switch o.Uts {
	case "":
	case "host":
		s.HostNames = true
		if o.Hostname != "" {
			o.invalid("uts", "the node's host name is not the service's to set; remove hostname, or uts")
		}
	default:
		o.invalid("uts", "%q is not host", o.Uts)
	}
	switch o.Cgroup {
	case "", "private":
		s.OwnCgroups = o.Cgroup == "private" && o.Privileged
	case "host":
		s.HostCgroups = !o.Privileged // which shows them anyway
	default:
		o.invalid("cgroup", "%q is neither host nor private", o.Cgroup)
	}
	switch o.UserNSMode {
	case "", "host":
	case "private":
		s.OwnUsers = true
	default:
		o.invalid("userns_mode", "%q is neither host nor private", o.UserNSMode)
	}
	if *s != (model.Sharing{}) {
		t.Sharing = s
	}
}

// joined checks the service whose namespaces this one enters.
func (o *one) joined(key, name string) string {
	if name == o.Name {
		o.invalid(key, "a service cannot enter its own namespaces")
	}
	other, ok := o.project.Services[name]
	if !ok && o.project.Services != nil {
		o.invalid(key, "there is no service %q", name)
	}
	if d := other.Deploy; d != nil && d.Replicas != nil && *d.Replicas > 1 || other.Scale != nil && *other.Scale > 1 {
		o.warn(key, "of several instances of %s it is one on the same node whose namespaces are entered", name)
	}
	return name
}

func (o *one) tuning(task *model.TaskSpec) {
	u := model.Tuning{
		CPUs: o.CPUSet, NoOOMKill: o.OomKillDisable, SwapBytes: int64(o.MemSwapLimit), DeviceRules: o.DeviceCgroupRules,
		CPUShares: uint64(max(o.CPUShares, 0)),
	}
	if u.SwapBytes > 0 && u.SwapBytes < task.Limit.MemoryBytes {
		o.invalid("memswap_limit", "it is of memory and swap together, and less than the limit of memory")
	}
	if n := uint64(max(o.MemSwappiness, 0)); n > 0 {
		u.Swappiness = &n
	}
	if b := o.BlkioConfig; b != nil {
		u.IOWeight = b.Weight
		at := func(path string) *model.IO {
			i := slices.IndexFunc(u.IO, func(d model.IO) bool { return d.Device == path })
			if i < 0 {
				i = len(u.IO)
				u.IO = append(u.IO, model.IO{Device: path})
			}
			return &u.IO[i]
		}
		for _, d := range b.WeightDevice {
			at(d.Path).Weight = d.Weight
		}
		for _, bound := range []struct {
			list []types.ThrottleDevice
			set  func(*model.IO, uint64)
		}{
			{b.DeviceReadBps, func(d *model.IO, n uint64) { d.ReadBytes = n }}, {b.DeviceWriteBps, func(d *model.IO, n uint64) { d.WriteBytes = n }},
			{b.DeviceReadIOps, func(d *model.IO, n uint64) { d.ReadCounts = n }}, {b.DeviceWriteIOps, func(d *model.IO, n uint64) { d.WriteCounts = n }},
		} {
			for _, d := range bound.list {
				bound.set(at(d.Path), uint64(max(d.Rate, 0)))
			}
		}
	}
	if slices.Contains(o.SecurityOpt, "systempaths=unconfined") || slices.Contains(o.SecurityOpt, "systempaths:unconfined") {
		u.Paths = &model.SystemPaths{}
	}
	if why := u.Problem(); why != "" {
		o.invalid("", "%s", why)
	}
	if !u.Nothing() {
		task.Tuning = &u
	}
}

// extraTuning is what Compose has no word for.
func (o *one) extraTuning(x *extras, task *model.TaskSpec) {
	if len(x.HugePages) == 0 && x.Clocks == nil {
		return
	}
	u := task.Tuning.Clone()
	if u == nil {
		u = &model.Tuning{}
	}
	for size, value := range x.HugePages {
		n, err := units.RAMInBytes(fmt.Sprint(value))
		if err != nil || n < 0 {
			o.invalid(tuttiKey+".hugepages", "%v is no amount of memory such as 64m", value)
			continue
		}
		if u.HugePages == nil {
			u.HugePages = map[string]uint64{}
		}
		u.HugePages[size] = uint64(n)
	}
	if c := x.Clocks; c != nil {
		u.Clocks = &model.Clocks{Monotonic: o.offset("monotonic", c.Monotonic), Boot: o.offset("boottime", c.Boottime)}
		if task.Runtime != "" {
			o.invalid(tuttiKey+".clocks", "they are for the built-in OCI runtime; leave runtime out")
		}
	}
	if why := u.Problem(); why != "" {
		o.invalid(tuttiKey, "%s", why)
	}
	task.Tuning = u
}

func (o *one) offset(clock, text string) time.Duration {
	if text == "" {
		return 0
	}
	d, err := time.ParseDuration(text)
	if err != nil {
		o.invalid(tuttiKey+".clocks."+clock, "%q is not like 72h or -90s", text)
	}
	return d
}

// securityOpts leaves out what asks for what happens anyway. A seccomp profile is read where the command runs.
func (o *one) securityOpts() []string {
	var out []string
	for _, opt := range o.SecurityOpt {
		key, value, ok := strings.Cut(opt, "=")
		if !ok {
			key, value, _ = strings.Cut(opt, ":")
		}
		switch {
		case key == "no-new-privileges" && (value == "" || value == "true"):
			out = append(out, "no-new-privileges")
		case key == "no-new-privileges" && value == "false", key == "label" && value == "disable", key == "seccomp" && (value == "builtin" || value == "default"):
		case key == "systempaths" && value == "unconfined": // see tuning
		case key == "seccomp" && value == "unconfined", key == "apparmor" && value != "" && value != "unconfined":
			out = append(out, key+"="+value)
		case key == "apparmor" && value == "unconfined":
		case key == "seccomp" && value != "":
			path := value
			if !filepath.IsAbs(path) {
				path = filepath.Join(o.src.dir, path)
			}
			profile, err := os.ReadFile(path)
			if err != nil {
				o.at(fault.Invalid, "security_opt", []string{opt}, "the seccomp profile cannot be read: %v", err)
				continue
			}
			out = append(out, "seccomp="+string(profile))
		default:
			o.at(fault.Unsupported, "security_opt", []string{opt}, "%q is not supported; no-new-privileges, seccomp, apparmor and systempaths=unconfined are", opt)
		}
	}
	return out
}
