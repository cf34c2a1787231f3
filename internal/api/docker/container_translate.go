package docker

import (
	"cmp"
	"net/netip"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/docker/go-units"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/mount"
	"github.com/moby/moby/api/types/network"

	"github.com/tutti-run/tutti/internal/fault"
	"github.com/tutti-run/tutti/internal/model"
	"github.com/tutti-run/tutti/internal/store"
)

func (t *translation) resources(task *model.TaskSpec) error {
	h := t.made.HostConfig
	if h.Memory != 0 && h.Memory < 6<<20 {
		return fault.New(fault.Invalid, "Minimum memory limit allowed is 6MB")
	}
	if h.NanoCPUs < 0 {
		return fault.New(fault.Invalid, "invalid NanoCPUs: %d", h.NanoCPUs)
	}
	if h.NanoCPUs > 0 && h.CPUQuota > 0 {
		return fault.New(fault.Invalid, "Conflicting options: Nano CPUs and CPU Quota cannot both be set")
	}
	task.Limit.MemoryBytes, task.Limit.NanoCPUs, task.Reserve.MemoryBytes = h.Memory, h.NanoCPUs, h.MemoryReservation
	if h.CPUQuota > 0 {
		task.Limit.NanoCPUs = h.CPUQuota * 1e9 / cmp.Or(h.CPUPeriod, 100_000)
	}
	task.Limit.Pids = 0 // the node's default
	if h.PidsLimit != nil {
		task.Limit.Pids = max(*h.PidsLimit, 0)
	}
	task.Ulimits = ulimits(h.Ulimits)
	return nil
}

func ulimits(list []*units.Ulimit) []model.Ulimit {
	var out []model.Ulimit
	for _, u := range list {
		if u != nil {
			out = append(out, model.Ulimit{Name: u.Name, Soft: u.Soft, Hard: u.Hard})
		}
	}
	return out
}

func (t *translation) devices(task *model.TaskSpec) error {
	for _, d := range t.made.HostConfig.Devices {
		if _, _, named := model.CDIName(d.PathOnHost); named {
			task.Devices = append(task.Devices, model.Device{Host: d.PathOnHost})
			continue
		}
		task.Devices = append(task.Devices, model.Device{
			Host: d.PathOnHost, Container: cmp.Or(d.PathInContainer, d.PathOnHost), Permissions: cmp.Or(d.CgroupPermissions, "rwm"),
		})
	}
	return nil
}

func (t *translation) health(task *model.TaskSpec) (err error) {
	task.Health, task.NoHealth, err = probe(t.made.Config.Healthcheck, t.settings.Health)
	return err
}

// probe reads a HEALTHCHECK; what it leaves open is the image's.
func probe(h *container.HealthConfig, image *model.Probe) (p *model.Probe, none bool, err error) {
	if h == nil {
		return nil, false, nil
	}
	for name, d := range map[string]time.Duration{"Interval": h.Interval, "Timeout": h.Timeout, "StartPeriod": h.StartPeriod, "StartInterval": h.StartInterval} {
		if d != 0 && d < container.MinimumDuration {
			return nil, false, fault.New(fault.Invalid, "%s in Healthcheck cannot be less than %s", name, container.MinimumDuration)
		}
	}
	if h.Retries < 0 {
		return nil, false, fault.New(fault.Invalid, "Retries in Healthcheck cannot be negative")
	}
	p = &model.Probe{}
	if image != nil {
		p = image.Clone()
	}
	switch {
	case len(h.Test) == 0:
		if image == nil {
			return nil, false, nil
		}
	case h.Test[0] == "NONE":
		return nil, true, nil
	case h.Test[0] == "CMD":
		p.Exec, p.Shell = h.Test[1:], ""
	case h.Test[0] == "CMD-SHELL":
		p.Exec, p.Shell = nil, strings.Join(h.Test[1:], " ")
	default:
		return nil, false, fault.New(fault.Invalid, "unknown type '%s' in HEALTHCHECK (try CMD)", h.Test[0])
	}
	p.Interval, p.Timeout = cmp.Or(h.Interval, p.Interval, 30*time.Second), cmp.Or(h.Timeout, p.Timeout, 30*time.Second)
	p.StartPeriod, p.StartInterval = cmp.Or(h.StartPeriod, p.StartPeriod), cmp.Or(h.StartInterval, p.StartInterval)
	p.Retries = cmp.Or(h.Retries, p.Retries, 3)
	return p, false, nil
}

func (t *translation) restart(*model.TaskSpec) error {
	policy, err := restartPolicy(t.made.HostConfig.RestartPolicy)
	t.workload.Template.Restart = policy
	return err
}

func restartPolicy(p container.RestartPolicy) (model.RestartPolicy, error) {
	if err := container.ValidateRestartPolicy(p); err != nil {
		return model.RestartPolicy{}, fault.New(fault.Invalid, "%w", err)
	}
	switch p.Name {
	case container.RestartPolicyAlways, container.RestartPolicyUnlessStopped:
		return model.RestartPolicy{Condition: model.RestartAlways}, nil
	case container.RestartPolicyOnFailure:
		return model.RestartPolicy{Condition: model.RestartOnFailure, MaxAttempts: p.MaximumRetryCount}, nil
	}
	return model.RestartPolicy{Condition: model.RestartNever}, nil
}

func (t *translation) mounts(task *model.TaskSpec) error {
	c, h := t.made.Config, t.made.HostConfig
	targets := map[string]bool{}
	add := func(m model.Mount) error {
		if !strings.HasPrefix(m.Target, "/") {
			return fault.New(fault.Invalid, "invalid mount config for type %q: invalid mount path: '%s' mount path must be absolute", m.Type, m.Target)
		}
		if targets[m.Target] {
			return fault.New(fault.Invalid, "Duplicate mount point: %s", m.Target)
		}
		targets[m.Target] = true
		if m.Type == model.MountVolume && m.Source != "" {
			id, err := t.api.ensureVolume(t.r, m.Source, nil, nil)
			if err != nil {
				return err
			}
			m.Source = id
		}
		task.Mounts = append(task.Mounts, m)
		return nil
	}
	for _, b := range h.Binds {
		m, err := bindMount(b)
		if err != nil {
			return err
		}
		if err := add(m); err != nil {
			return err
		}
	}
	for _, m := range h.Mounts {
		mm, err := typedMount(m)
		if err != nil {
			return err
		}
		if err := add(mm); err != nil {
			return err
		}
	}
	from, err := t.volumesFrom(targets)
	if err != nil {
		return err
	}
	task.Mounts = append(task.Mounts, from...)
	for target, options := range h.Tmpfs {
		m, err := tmpfs(target, options)
		if err != nil {
			return err
		}
		if err := add(m); err != nil {
			return err
		}
	}
	for target := range c.Volumes {
		if !targets[target] {
			if err := add(model.Mount{Type: model.MountVolume, Target: target}); err != nil {
				return err
			}
		}
	}
	slices.SortStableFunc(task.Mounts, func(a, b model.Mount) int { return strings.Compare(a.Target, b.Target) })
	return nil
}

// bindMount reads "source:target[:options]"; a source that is no path is a volume.
func bindMount(text string) (model.Mount, error) {
	parts := strings.Split(text, ":")
	m := model.Mount{Type: model.MountVolume}
	switch len(parts) {
	case 1:
		m.Target = parts[0]
		return m, nil
	case 2, 3:
		m.Source, m.Target = parts[0], parts[1]
	default:
		return m, fault.New(fault.Invalid, "invalid volume specification: '%s'", text)
	}
	if strings.HasPrefix(m.Source, "/") {
		m.Type, m.CreateHostPath = model.MountBind, true
	} else if model.CheckName(m.Source) != nil {
		return m, fault.New(fault.Invalid, "%q includes invalid characters for a local volume name, only \"[a-zA-Z0-9][a-zA-Z0-9_.-]\" are allowed. If you intended to pass a host directory, use absolute path", m.Source)
	}
	if len(parts) == 3 {
		for _, o := range strings.Split(parts[2], ",") {
			switch o {
			case "ro":
				m.ReadOnly = true
			case "rw", "z", "Z", "":
			case "nocopy":
				m.NoCopy = true
			case "private", "rprivate", "shared", "rshared", "slave", "rslave":
				m.Propagation = o
			default:
				return m, fault.New(fault.Invalid, "invalid mode: %s", parts[2])
			}
		}
	}
	return m, nil
}

func typedMount(m mount.Mount) (model.Mount, error) {
	out := model.Mount{Type: model.MountType(m.Type), Source: m.Source, Target: m.Target, ReadOnly: m.ReadOnly}
	switch m.Type {
	case mount.TypeBind:
		if m.VolumeOptions != nil || m.TmpfsOptions != nil {
			return out, fault.New(fault.Invalid, "invalid mount config for type \"bind\": field VolumeOptions or TmpfsOptions must not be specified")
		}
		if !strings.HasPrefix(m.Source, "/") {
			return out, fault.New(fault.Invalid, "invalid mount config for type \"bind\": invalid mount path: '%s' mount path must be absolute", m.Source)
		}
		if o := m.BindOptions; o != nil {
			switch {
			case o.NonRecursive:
				out.Recursion = model.BindAlone
			case o.ReadOnlyNonRecursive:
				out.Recursion = model.BindTreeWritable
			case o.ReadOnlyForceRecursive:
				out.Recursion = model.BindTreeReadOnly
			}
			out.Propagation, out.CreateHostPath = string(o.Propagation), o.CreateMountpoint
		}
	case mount.TypeVolume:
		if o := m.VolumeOptions; o != nil {
			if o.DriverConfig != nil && (o.DriverConfig.Name != "" && o.DriverConfig.Name != "local" || len(o.DriverConfig.Options) > 0) {
				return out, notHonoured("VolumeOptions.DriverConfig", o.DriverConfig.Name)
			}
			out.NoCopy, out.SubPath = o.NoCopy, o.Subpath
		}
	case mount.TypeTmpfs:
		if m.Source != "" {
			return out, fault.New(fault.Invalid, "invalid mount config for type \"tmpfs\": field Source must not be specified")
		}
		if o := m.TmpfsOptions; o != nil {
			for _, option := range o.Options {
				if err := out.AddTmpfsOption(strings.Join(option, "=")); err != nil {
					return out, err
				}
			}
			out.SizeBytes, out.Mode = o.SizeBytes, uint32(o.Mode.Perm())
		}
	default:
		return out, notHonoured("--mount type", m.Type)
	}
	if m.Consistency != "" && m.Consistency != mount.ConsistencyDefault {
		return out, notHonoured("--mount consistency", m.Consistency)
	}
	return out, nil
}

func tmpfs(target, options string) (model.Mount, error) {
	m := model.Mount{Type: model.MountTmpfs, Target: target}
	for _, o := range strings.Split(options, ",") {
		key, value, _ := strings.Cut(o, "=")
		switch key {
		case "size":
			n, err := units.RAMInBytes(value)
			if err != nil {
				return m, fault.New(fault.Invalid, "invalid tmpfs option %q", o)
			}
			m.SizeBytes = n
		case "mode":
			n, err := strconv.ParseUint(value, 8, 32)
			if err != nil {
				return m, fault.New(fault.Invalid, "invalid tmpfs option %q", o)
			}
			m.Mode = uint32(n)
		default:
			if err := m.AddTmpfsOption(o); err != nil {
				return m, err
			}
		}
	}
	return m, nil
}

func (t *translation) dns(*model.TaskSpec) error {
	h, tpl := t.made.HostConfig, &t.workload.Template
	for _, ip := range h.DNS {
		tpl.DNS.Servers = append(tpl.DNS.Servers, ip.String())
	}
	tpl.DNS.Search, tpl.DNS.Options = h.DNSSearch, h.DNSOptions
	for _, e := range h.ExtraHosts {
		name, address, ok := strings.Cut(e, ":")
		if !ok {
			return fault.New(fault.Invalid, "bad format for add-host: %q", e)
		}
		tpl.ExtraHosts = append(tpl.ExtraHosts, model.HostEntry{Name: name, Address: strings.Trim(address, "[]")})
	}
	return nil
}

func (t *translation) networks(*model.TaskSpec) error {
	h, tpl := t.made.HostConfig, &t.workload.Template
	endpoints := map[string]*network.EndpointSettings{}
	if t.made.Networking != nil {
		for name, e := range t.made.Networking.EndpointsConfig {
			endpoints[name] = e
		}
	}
	if h.NetworkMode.IsContainer() {
		if len(endpoints) > 0 {
			return fault.New(fault.Invalid, "conflicting options: cannot attach both user-defined and non-user-defined network-modes")
		}
		return nil
	}
	mode := string(h.NetworkMode)
	switch mode {
	case network.NetworkHost:
		tpl.HostNetwork = true
	case network.NetworkNone:
		tpl.NoNetwork = true
	default:
		if _, ok := endpoints[mode]; !ok {
			endpoints[mode] = nil
		}
	}
	if e := endpoints[network.NetworkDefault]; e != nil && endpoints[mode] == nil {
		endpoints[mode] = e
	}
	delete(endpoints, network.NetworkDefault)
	if tpl.HostNetwork || tpl.NoNetwork {
		delete(endpoints, mode)
		if len(endpoints) > 0 {
			return fault.New(fault.Invalid, "conflicting options: cannot attach both user-defined and non-user-defined network-modes")
		}
		return nil
	}
	names := make([]string, 0, len(endpoints))
	for name := range endpoints {
		names = append(names, name)
	}
	slices.SortFunc(names, func(a, b string) int { // the mode's network comes first: it is the default one
		return cmp.Or(cmp.Compare(btoi(b == mode), btoi(a == mode)), strings.Compare(a, b))
	})
	for _, name := range names {
		at, err := t.api.attachment(t.r, name, endpoints[name])
		if err != nil {
			return err
		}
		at.Aliases = append([]string{t.name}, at.Aliases...)
		if t.made.Config.Hostname != "" {
			at.Aliases = append(at.Aliases, t.made.Config.Hostname)
		}
		if slices.ContainsFunc(tpl.Networks, func(have model.Attachment) bool { return have.Network == at.Network }) {
			continue // by name and by ID
		}
		tpl.Networks = append(tpl.Networks, at)
		if e := endpoints[name]; e != nil {
			if err := t.link(e.Links, at.Network); err != nil {
				return err
			}
		}
	}
	if len(h.Links) > 0 && len(tpl.Networks) > 0 {
		return t.link(h.Links, tpl.Networks[0].Network)
	}
	return nil
}

func btoi(b bool) int {
	if b {
		return 1
	}
	return 0
}

// attachment joins a network, by name or ID, as an endpoint's settings say.
func (a *API) attachment(r *request, ref string, e *network.EndpointSettings) (model.Attachment, error) {
	n, err := a.networkForUse(r, ref)
	if fault.Is(err, fault.NotFound) { // clients take that status for an image that they have to pull
		return model.Attachment{}, fault.New(fault.Invalid, "%w", err)
	}
	if err != nil {
		return model.Attachment{}, err
	}
	at := model.Attachment{Network: n.ID}
	if e == nil {
		return at, nil
	}
	switch {
	case len(e.MacAddress) > 0:
		return at, notHonoured("--mac-address", e.MacAddress)
	case len(e.DriverOpts) > 0:
		return at, notHonoured("--network driver-opt", e.DriverOpts)
	case e.GwPriority != 0:
		return at, notHonoured("--network gw-priority", e.GwPriority)
	}
	if c := e.IPAMConfig; c != nil {
		if c.IPv6Address.IsValid() || len(c.LinkLocalIPs) > 0 {
			return at, notHonoured("--ip6, --link-local-ip", "IPAMConfig")
		}
		if c.IPv4Address.IsValid() {
			at.Address = c.IPv4Address.String()
		}
	}
	at.Aliases = slices.Clone(e.Aliases)
	return at, nil
}

// publish publishes ports on every host of the cluster; they lead to the container, wherever it is.
func (t *translation) publish(*model.TaskSpec) error {
	h, tpl := t.made.HostConfig, &t.workload.Template
	if tpl.HostNetwork || tpl.NoNetwork || h.NetworkMode.IsContainer() {
		if tpl.HostNetwork && len(h.PortBindings) > 0 {
			t.warnings = append(t.warnings, "Published ports are discarded when using host network mode")
		}
		return nil
	}
	want := network.PortMap{}
	for p, bindings := range h.PortBindings {
		want[p] = bindings
	}
	if h.PublishAllPorts {
		exposed := t.api.exposed(t.r.Context(), &box{made: t.made, template: &model.Template{Tasks: []model.TaskSpec{{Image: t.image.Name, Digest: t.image.Digest}}}})
		for _, p := range exposed {
			if len(want[p]) == 0 {
				want[p] = []network.PortBinding{{}}
			}
		}
	}
	free := newFreePorts(t.api.snapshot(), portGroup(t.made))
	for p, bindings := range want {
		for _, b := range bindings {
			sp := model.ServicePort{Protocol: string(p.Proto()), Target: int(p.Num())}
			if b.HostIP.IsValid() && !b.HostIP.IsUnspecified() {
				if b.HostIP.Is6() {
					return notHonoured("-p with an IPv6 address", b.HostIP)
				}
				sp.HostIP = b.HostIP.String()
			} else if b.HostIP.IsValid() && b.HostIP.Is4() {
				sp.HostIP = netip.IPv4Unspecified().String()
			}
			published, err := free.choose(b.HostPort, sp.Protocol, sp.HostIP)
			if err != nil {
				return err
			}
			sp.Published = published
			t.ports = append(t.ports, sp)
		}
	}
	slices.SortFunc(t.ports, func(a, b model.ServicePort) int {
		return cmp.Or(cmp.Compare(a.Target, b.Target), cmp.Compare(a.Published, b.Published))
	})
	return nil
}

// freePorts chooses host ports that no service publishes, but for those of the same group.
type freePorts struct {
	taken map[string][]publisher // by port and protocol
}

// publisher is who publishes a port, and on which address.
type publisher struct {
	name, hostIP string
	ours         bool // one of the group
}

func newFreePorts(snap *store.Snapshot, group string) freePorts {
	out := freePorts{taken: map[string][]publisher{}}
	for s := range store.List[*model.Service](snap) {
		for _, p := range s.Ports {
			key := strconv.Itoa(p.Published) + "/" + p.Protocol
			ours := group != "" && s.Application == application && s.PortGroup == group
			out.taken[key] = append(out.taken[key], publisher{s.FullName(), p.HostIP, ours})
		}
	}
	return out
}

// by is who publishes a port already, on all addresses or on that one.
func (f freePorts) by(key, hostIP string, group bool) string {
	for _, p := range f.taken[key] {
		if model.SameHostIP(p.hostIP, hostIP) && !(group && p.ours) {
			return p.name
		}
	}
	return ""
}

// choose takes "", "0", a port, or the first free one of a range.
func (f freePorts) choose(text, protocol, hostIP string) (int, error) {
	lo, hi := 32768, 60999
	fixed := text != "" && text != "0"
	if fixed {
		r, err := network.ParsePortRange(text)
		if err != nil {
			return 0, fault.New(fault.Invalid, "invalid port specification: %q", text)
		}
		lo, hi = int(r.Start()), int(r.End())
	}
	for n := lo; n <= hi; n++ {
		key := strconv.Itoa(n) + "/" + protocol
		if f.by(key, hostIP, lo == hi) == "" {
			f.taken[key] = append(f.taken[key], publisher{"this request", hostIP, false})
			return n, nil
		}
	}
	if fixed && lo == hi {
		return 0, fault.New(fault.Conflict, "Bind for %s:%d failed: port is already allocated (by %s)", cmp.Or(hostIP, "0.0.0.0"), lo, f.by(strconv.Itoa(lo)+"/"+protocol, hostIP, true))
	}
	return 0, fault.New(fault.Exhausted, "no free port of %d to %d is left", lo, hi)
}

// placement reads classic Swarm's expressions in the environment, "constraint:key==value", which
// the container does not see.
func (t *translation) placement(task *model.TaskSpec) error {
	var env []string
	for _, e := range task.Env {
		expr, isConstraint := strings.CutPrefix(e, "constraint:")
		switch {
		case isConstraint:
			c, err := classicConstraint(expr)
			if err != nil {
				return err
			}
			t.workload.Template.Placement.Constraints = append(t.workload.Template.Placement.Constraints, c)
		case strings.HasPrefix(e, "affinity:"):
			c, err := t.affinity(strings.TrimPrefix(e, "affinity:"))
			if err != nil {
				return err
			}
			t.workload.Template.Placement.Constraints = append(t.workload.Template.Placement.Constraints, c)
		default:
			env = append(env, e)
		}
	}
	task.Env = env
	return nil
}

// classicConstraint reads "node==name" and "label==value" with == or !=; values may have a * or be
// a /regular expression/.
func classicConstraint(expr string) (model.Constraint, error) {
	c := model.Constraint{Operator: model.Matches}
	key, value, ok := strings.Cut(expr, "==")
	if !ok {
		if key, value, ok = strings.Cut(expr, "!="); !ok {
			return c, fault.New(fault.Invalid, "constraint %q: key==value and key!=value are accepted", expr)
		}
		c.Operator = model.NotEqual
	}
	if strings.HasPrefix(value, "~") {
		return c, notHonoured("soft constraints", expr)
	}
	switch {
	case strings.HasPrefix(value, "/") && strings.HasSuffix(value, "/") && len(value) > 1:
		value = value[1 : len(value)-1]
	case strings.Contains(value, "*"):
		parts := strings.Split(value, "*")
		for i := range parts {
			parts[i] = regexp.QuoteMeta(parts[i])
		}
		value = strings.Join(parts, ".*")
	default:
		if c.Operator == model.Matches {
			c.Operator = model.Equal
		}
	}
	if c.Operator == model.NotEqual && strings.ContainsAny(value, "*\\") {
		return c, notHonoured("patterns with !=", expr)
	}
	switch key {
	case "node":
		c.Key = "node.name"
	default:
		c.Key = "node.labels." + key
	}
	c.Values = []string{value}
	return c, nil
}
