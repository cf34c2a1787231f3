package compose

import (
	"maps"
	"math"
	"net/netip"
	"path"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/compose-spec/compose-go/v2/types"
	"github.com/docker/go-units"
	"golang.org/x/sys/unix"

	"github.com/tutti-run/tutti/internal/fault"
	"github.com/tutti-run/tutti/internal/model"
)

// Health checks run as often as Docker's when the file does not say how often.
const (
	defaultProbeInterval = 30 * time.Second
	defaultProbeTimeout  = 30 * time.Second
	defaultProbeRetries  = 3
)

const (
	secretsDir  = "/run/secrets"
	defaultMode = 0o444 // of secrets and configs
)

// template says what one instance consists of: a single task.
func (o *one) template() {
	task := model.TaskSpec{
		Name: o.Name, Image: o.Image, Entrypoint: o.Entrypoint, Args: o.Command, Env: o.environment(),
		User: o.User, Groups: o.GroupAdd, WorkingDir: o.WorkingDir, Labels: o.Labels,
		CapAdd: o.CapAdd, CapDrop: o.CapDrop, Privileged: o.Privileged, ReadOnlyRoot: o.ReadOnly, SecurityOpts: o.securityOpts(),
		Ulimits: o.ulimits(), Devices: o.devices(), TTY: o.Tty, Stdin: o.StdinOpen, ShmBytes: int64(o.ShmSize),
		StopSignal: o.stopSignal(), OOMScoreAdjust: int(o.OomScoreAdj),
	}
	if o.Init != nil {
		task.Init = *o.Init
	}
	o.health(&task)
	o.resources(&task)
	task.Mounts = o.mounts()
	o.w.Template = model.Template{
		Tasks: []model.TaskSpec{task}, Hostname: o.Hostname, Domainname: o.DomainName, Sysctls: o.Sysctls, Labels: maps.Clone(o.Labels),
		StopGrace: durationOf(o.StopGracePeriod, defaultStopGrace), ExtraHosts: o.extraHosts(),
		DNS: model.DNSConfig{Servers: o.DNS, Search: o.DNSSearch, Options: o.DNSOpts},
	}
	o.confine(&o.w.Template.Tasks[0])
	for _, server := range o.DNS {
		if _, err := netip.ParseAddr(server); err != nil {
			o.at(fault.Invalid, "dns", []string{server}, "%q is not an IP address", server)
		}
	}
}

// environment is in the order of names, so that equal files give equal templates.
func (o *one) environment() []string {
	var out []string
	for _, name := range slices.Sorted(maps.Keys(o.Environment)) {
		value := o.Environment[name]
		if value == nil {
			o.warn("environment", "variable %s has no value here and is left out", name)
			continue
		}
		out = append(out, name+"="+*value)
	}
	return out
}

func (o *one) health(task *model.TaskSpec) {
	h := o.HealthCheck
	if h == nil {
		return
	}
	if h.Disable || len(h.Test) > 0 && h.Test[0] == "NONE" {
		task.NoHealth = true
		return
	}
	p := &model.Probe{
		Interval: durationOf(h.Interval, 0), Timeout: durationOf(h.Timeout, 0),
		StartPeriod: durationOf(h.StartPeriod, 0), StartInterval: durationOf(h.StartInterval, 0),
	}
	if p.Interval <= 0 {
		p.Interval = defaultProbeInterval
	}
	if p.Timeout <= 0 {
		p.Timeout = defaultProbeTimeout
	}
	if p.Retries = defaultProbeRetries; h.Retries != nil && *h.Retries > 0 {
		p.Retries = int(min(*h.Retries, math.MaxInt32))
	}
	switch {
	case len(h.Test) == 0:
		o.unsupported("healthcheck", "changing how often an image's own check runs is not supported; give the test too")
	case len(h.Test) == 1:
		o.invalid("healthcheck.test", "%s needs a command after it", h.Test[0])
	case h.Test[0] == "CMD":
		p.Exec = h.Test[1:]
	case h.Test[0] == "CMD-SHELL" && len(h.Test) == 2:
		p.Shell = h.Test[1]
	case h.Test[0] == "CMD-SHELL":
		p.Exec = append([]string{"/bin/sh", "-c"}, h.Test[1:]...)
	default:
		o.invalid("healthcheck.test", "a list begins with CMD, CMD-SHELL or NONE, not with %q", h.Test[0])
	}
	task.Health = p
}

// resources come from deploy.resources and from the older keys beside it.
func (o *one) resources(task *model.TaskSpec) {
	limits, kept := o.deploy.Resources.Limits, o.deploy.Resources.Reservations
	if limits == nil {
		limits = &types.Resource{}
	}
	if kept == nil {
		kept = &types.Resource{}
	}
	task.Limit = model.Resources{
		NanoCPUs:    o.either("cpus", nanoCPUs(o.CPUS), "limits.cpus", nanoCPUs(limits.NanoCPUs.Value())),
		MemoryBytes: o.either("mem_limit", int64(o.MemLimit), "limits.memory", int64(limits.MemoryBytes)),
		Pids:        o.either("pids_limit", o.PidsLimit, "limits.pids", limits.Pids),
	}
	task.Reserve = model.Resources{
		NanoCPUs:    nanoCPUs(kept.NanoCPUs.Value()),
		MemoryBytes: o.either("mem_reservation", int64(o.MemReservation), "reservations.memory", int64(kept.MemoryBytes)),
	}
	for _, g := range kept.GenericResources {
		if d := g.DiscreteResourceSpec; d != nil {
			if task.Reserve.Custom == nil {
				task.Reserve.Custom = map[string]int64{}
			}
			task.Reserve.Custom[d.Kind] += d.Value
		}
	}
	for what, pair := range map[string][2]int64{
		"cpus": {task.Reserve.NanoCPUs, task.Limit.NanoCPUs}, "memory": {task.Reserve.MemoryBytes, task.Limit.MemoryBytes},
	} {
		if pair[1] > 0 && pair[0] > pair[1] {
			o.invalid("deploy.resources.reservations."+what, "it is more than the limit")
		}
	}
}

// either joins two keys that say the same. Zero and less say nothing.
func (o *one) either(key string, a int64, deployKey string, b int64) int64 {
	a, b = max(a, 0), max(b, 0)
	if a != 0 && b != 0 && a != b {
		o.invalid(key, "deploy.resources.%s says something else; keep one of them", deployKey)
	}
	return max(a, b)
}

// nanoCPUs reads the number as it was written: 0.1 is not quite itself in 32 bits.
func nanoCPUs(cores float32) int64 {
	exact, err := strconv.ParseFloat(strconv.FormatFloat(float64(cores), 'g', -1, 32), 64)
	if err != nil {
		return 0
	}
	return int64(math.Round(exact * 1e9))
}

var ulimitNames = []string{
	"as", "core", "cpu", "data", "fsize", "locks", "memlock", "msgqueue", "nice", "nofile", "nproc", "rss", "rtprio", "rttime", "sigpending", "stack",
}

func (o *one) ulimits() []model.Ulimit {
	var out []model.Ulimit
	for _, name := range slices.Sorted(maps.Keys(o.Ulimits)) {
		u := o.Ulimits[name]
		if u == nil {
			continue
		}
		l := model.Ulimit{Name: name, Soft: int64(u.Soft), Hard: int64(u.Hard)}
		if u.Single != 0 {
			l.Soft, l.Hard = int64(u.Single), int64(u.Single)
		}
		switch {
		case !slices.Contains(ulimitNames, name):
			o.invalid("ulimits."+name, "there is no such limit; there are %s", strings.Join(ulimitNames, ", "))
		case l.Hard >= 0 && (l.Soft > l.Hard || l.Soft < 0):
			o.invalid("ulimits."+name, "the soft limit is above the hard one")
		}
		out = append(out, l)
	}
	return out
}

func (o *one) devices() []model.Device {
	var out []model.Device
	for _, d := range o.Devices {
		if _, _, named := model.CDIName(d.Source); named {
			out = append(out, model.Device{Host: d.Source})
			continue
		}
		if !path.IsAbs(d.Source) {
			o.at(fault.Unsupported, "devices", []string{d.Source}, "%q is not a path, nor a name like VENDOR/CLASS=NAME", d.Source)
			continue
		}
		if strings.Trim(d.Permissions, "rwm") != "" {
			o.at(fault.Invalid, "devices", []string{d.Source}, "permissions %q are not made of r, w and m", d.Permissions)
		}
		out = append(out, model.Device{Host: d.Source, Container: d.Target, Permissions: d.Permissions})
	}
	return out
}

func (o *one) stopSignal() string {
	name := strings.ToUpper(o.StopSignal)
	if name == "" {
		return ""
	}
	if n, err := strconv.Atoi(name); err == nil && n > 0 && n < 65 {
		return o.StopSignal
	}
	if unix.SignalNum("SIG"+strings.TrimPrefix(name, "SIG")) == 0 {
		o.invalid("stop_signal", "there is no signal %q; real-time signals are given by number", o.StopSignal)
	}
	return o.StopSignal
}

func (o *one) extraHosts() []model.HostEntry {
	var out []model.HostEntry
	for _, name := range slices.Sorted(maps.Keys(o.ExtraHosts)) {
		for _, address := range o.ExtraHosts[name] {
			if _, err := netip.ParseAddr(address); err != nil && address != "host-gateway" {
				o.at(fault.Invalid, "extra_hosts", []string{name}, "%q, the address of %s, is neither an IP address nor host-gateway", address, name)
			}
			out = append(out, model.HostEntry{Name: name, Address: address})
		}
	}
	return out
}

func isNetworkSysctl(name string) bool { return strings.HasPrefix(name, "net.") }

// mounts joins volumes, tmpfs, secrets and configs.
func (o *one) mounts() []model.Mount {
	var out []model.Mount
	for i := range o.Volumes {
		if m, ok := o.mount(&o.Volumes[i]); ok {
			out = append(out, m)
		}
	}
	for _, text := range o.Tmpfs {
		out = append(out, o.tmpfs(text))
	}
	for i := range o.Secrets {
		if m, ok := o.grant("secrets", model.MountSecret, types.FileReferenceConfig(o.Secrets[i])); ok {
			out = append(out, m)
		}
	}
	for i := range o.Configs {
		if m, ok := o.grant("configs", model.MountConfig, types.FileReferenceConfig(o.Configs[i])); ok {
			out = append(out, m)
		}
	}
	seen := map[string]bool{}
	for i := range out {
		m := &out[i]
		key := map[model.MountType]string{model.MountSecret: "secrets", model.MountConfig: "configs"}[m.Type]
		if key == "" {
			key = "volumes"
		}
		switch {
		case driveLetter(m.Target):
			o.at(fault.Invalid, key, []string{m.Target[3:]}, "%q looks like a Windows path; give the volume a longer name, or write source and target", m.Target)
		case !path.IsAbs(m.Target):
			o.at(fault.Invalid, key, []string{m.Target}, "target %q is not an absolute path", m.Target)
		}
		m.Target = path.Clean(m.Target)
		if seen[m.Target] {
			o.at(fault.Invalid, key, []string{m.Target}, "something else is mounted at %s already", m.Target)
		}
		seen[m.Target] = true
	}
	return out
}

// driveLetter reports what compose-go makes of "v:/data".
func driveLetter(target string) bool {
	return len(target) > 3 && target[1] == ':' && target[2] == '/'
}

func (o *one) mount(v *types.ServiceVolumeConfig) (m model.Mount, ok bool) {
	words := []string{v.Target}
	m = model.Mount{Target: v.Target, ReadOnly: v.ReadOnly}
	switch v.Type {
	case types.VolumeTypeVolume:
		m.Type = model.MountVolume
		if v.Volume != nil {
			m.NoCopy, m.SubPath = v.Volume.NoCopy, v.Volume.Subpath
		}
		if v.Source == "" {
			return m, true
		}
		m.Source, ok = o.ref("volumes", v.Source, o.src.item(o.sub("volumes"), v.Source, v.Target), o.sub("volumes"))
		return m, ok
	case types.VolumeTypeBind:
		return o.bind(m, v)
	case types.VolumeTypeTmpfs:
		m.Type = model.MountTmpfs
		if v.Tmpfs != nil {
			m.SizeBytes, m.Mode = int64(v.Tmpfs.Size), v.Tmpfs.Mode
		}
		if v.Source != "" {
			o.at(fault.Invalid, "volumes", words, "a tmpfs has no source")
		}
		return m, true
	}
	o.at(fault.Unsupported, "volumes", words, "mounts of type %q are not supported; volume, bind and tmpfs are", v.Type)
	return m, false
}

func (o *one) bind(m model.Mount, v *types.ServiceVolumeConfig) (model.Mount, bool) {
	m.Type, m.Source, m.CreateHostPath = model.MountBind, v.Source, true
	at := o.src.item(o.sub("volumes"), v.Target)
	if b := v.Bind; b != nil {
		switch b.Recursive {
		case "", "enabled":
		case "disabled":
			m.Recursion = model.BindAlone
		case "writable":
			m.Recursion = model.BindTreeWritable
		case "readonly":
			m.Recursion = model.BindTreeReadOnly
		default:
			o.note(at, o.sub("volumes"), fault.Invalid, false, "recursive %q is none of enabled, disabled, writable and readonly", b.Recursive)
		}
		m.Propagation, m.CreateHostPath = b.Propagation, bool(b.CreateHostPath)
	}
	if !path.IsAbs(v.Source) {
		o.note(at, o.sub("volumes"), fault.Invalid, false, "source %q is not a path", v.Source)
		return m, false
	}
	if v.Volume != nil && v.Volume.NoCopy {
		o.note(at, o.sub("volumes"), fault.Invalid, false, "nocopy is for volumes: a folder of the node is never filled from the image")
	}
	if at.node != nil && !hasWord(at.file.text(at.node), v.Source) {
		o.note(at, o.sub("volumes"), fault.Invalid, true,
			"it means %s on whichever node runs the instance; use a config, a secret or a volume for what every node should have", v.Source)
	}
	return m, true
}

// tmpfs reads "path:size=64m,mode=1777".
func (o *one) tmpfs(text string) model.Mount {
	target, options, _ := strings.Cut(text, ":")
	m := model.Mount{Type: model.MountTmpfs, Target: target}
	bad := func(kind fault.Kind, format string, args ...any) {
		o.at(kind, "tmpfs", []string{target}, format, args...)
	}
	for _, option := range words(options, ",") {
		key, value, _ := strings.Cut(option, "=")
		switch key {
		case "size":
			n, err := units.RAMInBytes(value)
			if err != nil || n < 0 {
				bad(fault.Invalid, "size %q is not a size such as 64m", value)
			}
			m.SizeBytes = n
		case "mode":
			n, err := strconv.ParseUint(value, 8, 12)
			if err != nil {
				bad(fault.Invalid, "mode %q is not an octal number such as 1777", value)
			}
			m.Mode = uint32(n)
		default:
			if err := m.AddTmpfsOption(option); err != nil {
				bad(fault.Unsupported, "%v", err)
			}
		}
	}
	return m
}

// grant mounts a secret or a config as a file.
func (o *one) grant(section string, kind model.MountType, f types.FileReferenceConfig) (m model.Mount, ok bool) {
	at := o.src.item(o.sub(section), f.Source)
	m = model.Mount{Type: kind, Target: f.Target, UID: f.UID, GID: f.GID, Mode: defaultMode, ReadOnly: true}
	if m.Source, ok = o.ref(section, f.Source, at, o.sub(section)); !ok {
		return m, false
	}
	dir := "/"
	if kind == model.MountSecret {
		dir = secretsDir
	}
	if m.Target == "" {
		m.Target = f.Source
	}
	if !path.IsAbs(m.Target) {
		m.Target = path.Join(dir, m.Target)
	}
	if f.Mode != nil {
		if m.Mode = uint32(*f.Mode); *f.Mode <= 0 || *f.Mode > 0o777 {
			o.note(at, o.sub(section), fault.Invalid, false, "mode %#o is not one of a file, such as 0440", int64(*f.Mode))
		}
	}
	for name, id := range map[string]string{"uid": f.UID, "gid": f.GID} {
		if n, err := strconv.Atoi(id); id != "" && (err != nil || n < 0) {
			o.note(at, o.sub(section), fault.Unsupported, false, "%s %q is not a number; names are not supported", name, id)
		}
	}
	return m, true
}
