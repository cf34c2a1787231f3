package docker

import (
	"slices"
	"strings"

	"github.com/moby/moby/api/types/blkiodev"
	"github.com/moby/moby/api/types/container"

	"github.com/tutti-run/tutti/internal/fault"
	"github.com/tutti-run/tutti/internal/model"
)

// confine reads how a container is made, what it shares with its node or with other containers, and what it
// asks of the kernel.
func (t *translation) confine(task *model.TaskSpec) error {
	h := t.made.HostConfig
	if h.Runtime != model.BuiltInRuntime {
		task.Runtime = h.Runtime
	}
	if err := t.sharing(); err != nil {
		return err
	}
	tuning, err := tuningOf(h)
	if err != nil {
		return err
	}
	task.Tuning = tuning
	return t.deviceRequests(task)
}

// A user namespace of its own is a container's with the mode that podman has for it, or, as Docker's command line knows
// no other mode than host, with a security option of ours.
const (
	ownUsers       = "private"
	ownUsersOption = "userns=private"
)

func (t *translation) sharing() error {
	c, h, tpl := t.made.Config, t.made.HostConfig, &t.workload.Template
	s := &model.Sharing{}
	var err error
	switch {
	case h.PidMode == "":
	case h.PidMode.IsHost():
		tpl.HostPIDs = true
	case h.PidMode.IsContainer():
		if s.PIDsOf, err = t.other(h.PidMode.Container()); err != nil {
			return err
		}
	default:
		return fault.New(fault.Invalid, "invalid PID mode: %v", h.PidMode)
	}
	if h.NetworkMode.IsContainer() {
		if err := conflictsOfShared(c, h); err != nil {
			return err
		}
		b, err := t.otherBox(h.NetworkMode.ConnectedContainer())
		if err != nil {
			return err
		}
		s.NetworkOf, h.NetworkMode = b.workload.Application+"/"+b.workload.Name, container.NetworkMode("container:"+b.id)
	}
	switch {
	case h.IpcMode == "", h.IpcMode.IsPrivate():
	case h.IpcMode.IsHost():
		tpl.HostIPC = true
	case h.IpcMode.IsShareable():
		s.OfferIPC = true
	case h.IpcMode.IsNone():
		s.NoSharedMemory = true
	case h.IpcMode.IsContainer():
		if s.IPCOf, err = t.other(h.IpcMode.Container()); err != nil {
			return err
		}
	default:
		return fault.New(fault.Invalid, "invalid IPC mode: %v", h.IpcMode)
	}
	switch {
	case !h.UTSMode.Valid():
		return fault.New(fault.Invalid, "invalid UTS mode: %v", h.UTSMode)
	case h.UTSMode.IsHost() && c.Hostname != "":
		return fault.New(fault.Invalid, "conflicting options: hostname and the UTS mode")
	}
	s.HostNames = h.UTSMode.IsHost()
	switch h.CgroupnsMode {
	case container.CgroupnsModeEmpty:
	case container.CgroupnsModeHost:
		s.HostCgroups = !h.Privileged // which shows them anyway
	case container.CgroupnsModePrivate:
		s.OwnCgroups = h.Privileged
	default:
		return fault.New(fault.Invalid, "invalid cgroup namespace mode: %v", h.CgroupnsMode)
	}
	if s.OwnUsers = h.UsernsMode == ownUsers || slices.Contains(h.SecurityOpt, ownUsersOption); !s.OwnUsers && !h.UsernsMode.Valid() {
		return fault.New(fault.Invalid, "invalid USER mode: %v", h.UsernsMode)
	}
	if *s != (model.Sharing{}) {
		tpl.Sharing = s
	}
	return nil
}

// conflictsOfShared names what a container cannot have that shares the network of another one, in the Engine's words.
func conflictsOfShared(c *container.Config, h *container.HostConfig) error {
	for _, x := range []struct {
		said bool
		what string
	}{
		{h.NetworkMode.ConnectedContainer() == "", "invalid container format container:<name|id>"},
		{c.Hostname != "", "conflicting options: hostname and the network mode"},
		{len(h.Links) > 0, "conflicting options: container type network can't be used with links. This would result in undefined behavior"},
		{len(h.DNS) > 0, "conflicting options: dns and the network mode"},
		{len(h.ExtraHosts) > 0, "conflicting options: custom host-to-IP mapping and the network mode"},
		{len(h.PortBindings) > 0 || h.PublishAllPorts, "conflicting options: port publishing and the container type network mode"},
		{len(c.ExposedPorts) > 0, "conflicting options: port exposing and the container type network mode"},
	} {
		if x.said {
			return fault.New(fault.Invalid, "%s", x.what)
		}
	}
	return nil
}

// joined refuses to start a container that shares what another one has that does not run.
func (a *API) joined(b *box) error {
	if b.made == nil {
		return nil
	}
	h, snap := b.made.HostConfig, a.snapshot()
	for _, j := range []struct {
		ref  string
		what string
	}{
		{map[bool]string{true: h.NetworkMode.ConnectedContainer()}[h.NetworkMode.IsContainer()], "cannot join network of a non running container: %s"},
		{map[bool]string{true: h.PidMode.Container()}[h.PidMode.IsContainer()], "cannot join PID of a non running container: %s"},
		{map[bool]string{true: h.IpcMode.Container()}[h.IpcMode.IsContainer()], "cannot join IPC of a non running container: %s"},
	} {
		if j.ref == "" {
			continue
		}
		other, err := a.findBox(snap, j.ref)
		if err != nil {
			return err
		}
		if !other.running() {
			return fault.New(fault.Conflict, j.what, other.id)
		}
	}
	return nil
}

// other is the workload behind a container whose namespaces another one enters.
func (t *translation) other(ref string) (string, error) {
	b, err := t.otherBox(ref)
	if err != nil {
		return "", err
	}
	return b.workload.Application + "/" + b.workload.Name, nil
}

func (t *translation) otherBox(ref string) (*box, error) {
	b, err := t.api.findBox(t.api.snapshot(), ref)
	if fault.Is(err, fault.NotFound) { // clients take that status for an image that they have to pull
		err = fault.New(fault.Invalid, "%w", err)
	}
	if err != nil {
		return nil, err
	}
	if b.workload.Count > 1 || b.workload.Type.PerNode() || b.nth > 0 {
		return nil, notHonoured("joining one of several containers of "+b.workload.FullName(), ref)
	}
	return b, nil
}

func tuningOf(h *container.HostConfig) (*model.Tuning, error) {
	u := model.Tuning{
		CPUs: h.CpusetCpus, MemoryNodes: h.CpusetMems, NoOOMKill: h.OomKillDisable != nil && *h.OomKillDisable, IOWeight: h.BlkioWeight,
		DeviceRules: h.DeviceCgroupRules,
	}
	switch {
	case h.CPUShares < 0:
		return nil, fault.New(fault.Invalid, "invalid CPU shares (%d): value must be a positive integer", h.CPUShares)
	case h.MemorySwap > 0 && h.Memory == 0:
		return nil, fault.New(fault.Invalid, "You should always set the Memory limit when using Memoryswap limit, see usage")
	case h.MemorySwap > 0 && h.MemorySwap < h.Memory:
		return nil, fault.New(fault.Invalid, "Minimum memoryswap limit should be larger than memory limit, see usage")
	case h.MemorySwap < -1:
		return nil, fault.New(fault.Invalid, "invalid memory and swap limit: %d", h.MemorySwap)
	}
	u.CPUShares, u.SwapBytes = uint64(h.CPUShares), h.MemorySwap
	if n := h.MemorySwappiness; n != nil && *n != -1 {
		if *n < 0 || *n > 100 {
			return nil, fault.New(fault.Invalid, "Invalid value: %v, valid memory swappiness range is 0-100", *n)
		}
		swappiness := uint64(*n)
		u.Swappiness = &swappiness
	}
	for _, d := range h.BlkioWeightDevice {
		deviceIO(&u, d.Path).Weight = d.Weight
	}
	for _, bound := range []struct {
		list []*blkiodev.ThrottleDevice
		set  func(*model.IO, uint64)
	}{
		{h.BlkioDeviceReadBps, func(d *model.IO, n uint64) { d.ReadBytes = n }},
		{h.BlkioDeviceWriteBps, func(d *model.IO, n uint64) { d.WriteBytes = n }},
		{h.BlkioDeviceReadIOps, func(d *model.IO, n uint64) { d.ReadCounts = n }},
		{h.BlkioDeviceWriteIOps, func(d *model.IO, n uint64) { d.WriteCounts = n }},
	} {
		for _, d := range bound.list {
			bound.set(deviceIO(&u, d.Path), d.Rate)
		}
	}
	if h.MaskedPaths != nil || h.ReadonlyPaths != nil {
		u.Paths = &model.SystemPaths{Hidden: h.MaskedPaths, ReadOnly: h.ReadonlyPaths}
	}
	if why := u.Problem(); why != "" {
		return nil, fault.New(fault.Invalid, "%s", why)
	}
	if u.Nothing() {
		return nil, nil
	}
	return &u, nil
}

// deviceIO is what is said of a device's traffic.
func deviceIO(t *model.Tuning, path string) *model.IO {
	i := slices.IndexFunc(t.IO, func(d model.IO) bool { return d.Device == path })
	if i < 0 {
		i = len(t.IO)
		t.IO = append(t.IO, model.IO{Device: path})
	}
	return &t.IO[i]
}

// deviceRequests reads `--gpus`, and devices with names as CDI has them.
func (t *translation) deviceRequests(task *model.TaskSpec) error {
	for _, r := range t.made.HostConfig.DeviceRequests {
		if len(r.Options) > 0 {
			return notHonoured("options of device requests", r.Options)
		}
		if r.Driver == "cdi" {
			for _, name := range r.DeviceIDs {
				if _, _, ok := model.CDIName(name); !ok {
					return fault.New(fault.Invalid, "invalid CDI device name %q", name)
				}
				task.Devices = append(task.Devices, model.Device{Host: name})
			}
			continue
		}
		gpu := slices.ContainsFunc(r.Capabilities, func(all []string) bool { return slices.Contains(all, "gpu") })
		if !gpu && r.Driver == "" {
			return fault.New(fault.Invalid, "could not select device driver %q with capabilities: %v", r.Driver, r.Capabilities)
		}
		if err := model.WantGPUs(task, r.Driver, r.Count, r.DeviceIDs); err != nil {
			return err
		}
	}
	return nil
}

// security reads --security-opt; what asks for what happens anyway is left out.
func (t *translation) security(task *model.TaskSpec) error {
	for _, o := range t.made.HostConfig.SecurityOpt {
		key, value, ok := strings.Cut(o, "=")
		if !ok {
			key, value, _ = strings.Cut(o, ":")
		}
		switch {
		case key == "no-new-privileges" && (value == "" || value == "true"):
			task.SecurityOpts = append(task.SecurityOpts, "no-new-privileges")
		case o == ownUsersOption:
		case key == "no-new-privileges" && value == "false", key == "label" && value == "disable", key == "seccomp" && (value == "builtin" || value == "default"):
		case key == "apparmor" && value != "", key == "seccomp" && value != "":
			task.SecurityOpts = append(task.SecurityOpts, key+"="+value)
		default:
			return notHonoured("--security-opt", o)
		}
	}
	return nil
}
