package marathon

import (
	"cmp"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/tutti-run/tutti/internal/model"
	"github.com/tutti-run/tutti/internal/store"
)

// pod is a pod in the form that clients get.
type pod struct {
	ID                string               `json:"id"`
	Labels            map[string]string    `json:"labels,omitempty"`
	Version           string               `json:"version,omitempty"`
	User              string               `json:"user,omitempty"`
	Environment       map[string]envValue  `json:"environment,omitempty"`
	Containers        []podContainer       `json:"containers"`
	Secrets           map[string]secretRef `json:"secrets,omitempty"`
	Volumes           []podVolume          `json:"volumes,omitempty"`
	Networks          []network            `json:"networks,omitempty"`
	Scaling           *podScaling          `json:"scaling,omitempty"`
	Scheduling        *podScheduling       `json:"scheduling,omitempty"`
	ExecutorResources *resources           `json:"executorResources,omitempty"`
	Role              string               `json:"role,omitempty"`
	LinuxInfo         json.RawMessage      `json:"linuxInfo,omitempty"`

	LegacySharedCgroups *bool `json:"legacySharedCgroups,omitempty"`
}

type podScaling struct {
	Kind      string `json:"kind"`
	Instances int    `json:"instances"`
}

func (s *podScaling) UnmarshalJSON(data []byte) error {
	type plain podScaling
	v := plain{Kind: "fixed", Instances: 1}
	err := json.Unmarshal(data, &v)
	*s = podScaling(v)
	return err
}

type podScheduling struct {
	Backoff             *podBackoff      `json:"backoff,omitempty"`
	Upgrade             *upgradeStrategy `json:"upgrade,omitempty"`
	Placement           *podPlacement    `json:"placement,omitempty"`
	KillSelection       string           `json:"killSelection,omitempty"`
	UnreachableStrategy *unreachable     `json:"unreachableStrategy,omitempty"`
}

type podBackoff struct {
	Backoff        *float64 `json:"backoff"`
	BackoffFactor  *float64 `json:"backoffFactor"`
	MaxLaunchDelay *float64 `json:"maxLaunchDelay"`
}

type podPlacement struct {
	Constraints           []podConstraint `json:"constraints,omitempty"`
	AcceptedResourceRoles []string        `json:"acceptedResourceRoles,omitempty"`
}

type podConstraint struct {
	FieldName string `json:"fieldName"`
	Operator  string `json:"operator"`
	Value     string `json:"value,omitempty"`
}

type podVolume struct {
	Name       string            `json:"name"`
	Host       *string           `json:"host,omitempty"`
	Persistent *persistentVolume `json:"persistent,omitempty"`
	Secret     string            `json:"secret,omitempty"`
}

type podContainer struct {
	Name           string              `json:"name"`
	Exec           *podExec            `json:"exec,omitempty"`
	Resources      resources           `json:"resources"`
	ResourceLimits *resourceLimits     `json:"resourceLimits,omitempty"`
	Endpoints      []endpoint          `json:"endpoints,omitempty"`
	Image          *podImage           `json:"image,omitempty"`
	Environment    map[string]envValue `json:"environment,omitempty"`
	User           string              `json:"user,omitempty"`
	HealthCheck    *podHealth          `json:"healthCheck,omitempty"`
	Check          json.RawMessage     `json:"check,omitempty"`
	VolumeMounts   []volumeMount       `json:"volumeMounts,omitempty"`
	Artifacts      []artifact          `json:"artifacts,omitempty"`
	Labels         map[string]string   `json:"labels,omitempty"`
	Lifecycle      *struct {
		KillGracePeriodSeconds float64 `json:"killGracePeriodSeconds"`
	} `json:"lifecycle,omitempty"`
	LinuxInfo json.RawMessage `json:"linuxInfo,omitempty"`
	TTY       *bool           `json:"tty,omitempty"`
}

type podExec struct {
	Command            podCommand `json:"command"`
	OverrideEntrypoint *bool      `json:"overrideEntrypoint,omitempty"`
}

type podCommand struct {
	Shell *string  `json:"shell,omitempty"`
	Argv  []string `json:"argv,omitempty"`
}

type endpoint struct {
	Name          string            `json:"name"`
	ContainerPort *int              `json:"containerPort,omitempty"`
	HostPort      *int              `json:"hostPort,omitempty"`
	Protocol      []string          `json:"protocol,omitempty"`
	Labels        map[string]string `json:"labels,omitempty"`
	NetworkNames  []string          `json:"networkNames,omitempty"`
}

type podImage struct {
	Kind       string            `json:"kind"`
	ID         string            `json:"id"`
	ForcePull  bool              `json:"forcePull,omitempty"`
	Labels     map[string]string `json:"labels,omitempty"`
	PullConfig json.RawMessage   `json:"pullConfig,omitempty"`
}

type podHealth struct {
	HTTP                   *podHTTP `json:"http,omitempty"`
	TCP                    *podTCP  `json:"tcp,omitempty"`
	Exec                   *podTest `json:"exec,omitempty"`
	GracePeriodSeconds     int      `json:"gracePeriodSeconds"`
	IntervalSeconds        int      `json:"intervalSeconds"`
	MaxConsecutiveFailures int      `json:"maxConsecutiveFailures"`
	TimeoutSeconds         int      `json:"timeoutSeconds"`
	DelaySeconds           int      `json:"delaySeconds"`
}

func (h *podHealth) UnmarshalJSON(data []byte) error {
	type plain podHealth
	v := plain{GracePeriodSeconds: 300, IntervalSeconds: 60, MaxConsecutiveFailures: 3, TimeoutSeconds: 20, DelaySeconds: 15}
	err := json.Unmarshal(data, &v)
	*h = podHealth(v)
	return err
}

type podHTTP struct {
	Endpoint string `json:"endpoint"`
	Path     string `json:"path,omitempty"`
	Scheme   string `json:"scheme,omitempty"`
}

type podTCP struct {
	Endpoint string `json:"endpoint"`
}

type podTest struct {
	Command podCommand `json:"command"`
}

type volumeMount struct {
	Name      string `json:"name"`
	MountPath string `json:"mountPath"`
	ReadOnly  bool   `json:"readOnly,omitempty"`
}

// readPod reads a pod from a request and fills in what is missing.
func readPod(o object, path string, p *problems) *pod {
	o = o.without("id", "version", "status")
	o.set("id", path)
	for name := range o {
		if o.isNull(name) {
			delete(o, name)
		}
	}
	d := &pod{}
	o.into(d, "/", p)
	if len(p.details) > 0 {
		return d
	}
	d.fillIn()
	d.check(p)
	return d
}

func (d *pod) fillIn() {
	if d.Scaling == nil {
		d.Scaling = &podScaling{Kind: "fixed", Instances: 1}
	}
	if len(d.Networks) == 0 {
		d.Networks = []network{{Mode: "host"}}
	}
	if d.Scheduling == nil {
		d.Scheduling = &podScheduling{}
	}
	s := d.Scheduling
	if s.Backoff == nil {
		s.Backoff = &podBackoff{}
	}
	or(&s.Backoff.Backoff, 1)
	or(&s.Backoff.BackoffFactor, 1.15)
	or(&s.Backoff.MaxLaunchDelay, 300)
	if s.Upgrade == nil {
		s.Upgrade = &upgradeStrategy{}
	}
	health, over := 1.0, 1.0
	if d.resident() {
		health, over = 0.5, 0
	}
	or(&s.Upgrade.MinimumHealthCapacity, health)
	or(&s.Upgrade.MaximumOverCapacity, over)
	s.KillSelection = cmp.Or(s.KillSelection, "YOUNGEST_FIRST")
	if s.UnreachableStrategy == nil {
		s.UnreachableStrategy = &unreachable{Disabled: d.resident()}
	}
	if d.ExecutorResources == nil {
		d.ExecutorResources = &resources{Cpus: 0.1, Mem: 32, Disk: 10}
	}
	for i := range d.Containers {
		c := &d.Containers[i]
		for k := range c.Endpoints {
			if len(c.Endpoints[k].Protocol) == 0 {
				c.Endpoints[k].Protocol = []string{"tcp"}
			}
		}
	}
}

func (d *pod) resident() bool {
	return slices.ContainsFunc(d.Volumes, func(v podVolume) bool { return v.Persistent != nil })
}

func (d *pod) onHost() bool { return d.Networks[0].Mode == "host" }

func (d *pod) check(p *problems) {
	if len(d.Containers) == 0 {
		p.add("/containers", "must have at least one container")
	}
	oneOf(p, "/scaling/kind", d.Scaling.Kind, "fixed")
	atLeast(p, "/scaling/instances", float64(d.Scaling.Instances), 0)
	between(p, "/scheduling/upgrade/minimumHealthCapacity", *d.Scheduling.Upgrade.MinimumHealthCapacity)
	between(p, "/scheduling/upgrade/maximumOverCapacity", *d.Scheduling.Upgrade.MaximumOverCapacity)
	oneOf(p, "/scheduling/killSelection", d.Scheduling.KillSelection, "YOUNGEST_FIRST", "OLDEST_FIRST")
	if u := d.Scheduling.UnreachableStrategy; !u.Disabled && u.InactiveAfterSeconds > u.ExpungeAfterSeconds {
		p.add("/scheduling/unreachableStrategy", "inactiveAfterSeconds must be less than or equal to expungeAfterSeconds")
	}
	checkConstraints(p, "/scheduling/placement/constraints", d.constraints())
	checkNetworks(p, d.Networks)
	if d.Role != "" && d.Role != "*" {
		p.refuse("/role", "a role other than *")
	}
	if len(d.LinuxInfo) > 0 {
		p.refuse("/linuxInfo", "linuxInfo")
	}
	volumes := map[string]bool{}
	for i, v := range d.Volumes {
		at := fmt.Sprintf("/volumes(%d)", i)
		if v.Name == "" || volumes[v.Name] {
			p.add(at+"/name", "must be given, and unique")
		}
		volumes[v.Name] = true
		if v.Host != nil && !strings.HasPrefix(*v.Host, "/") {
			p.refuse(at+"/host", "a host path that is relative to the sandbox")
		}
		if v.Secret != "" && d.Secrets[v.Secret].Source == "" {
			p.add(at+"/secret", "volume.secret must refer to an existing secret")
		}
		if v.Persistent != nil && v.Persistent.Size <= 0 {
			p.add(at+"/persistent/size", "must be greater than 0")
		}
	}
	env(p, "/environment", d.Environment)
	names, ports := map[string]bool{}, map[string]bool{}
	for i := range d.Containers {
		d.checkContainer(p, fmt.Sprintf("/containers(%d)", i), &d.Containers[i], names, ports, volumes)
	}
}

func env(p *problems, at string, list map[string]envValue) {
	for name, v := range list {
		if v.Secret != "" {
			p.refuse(at+"/"+name, "a secret in the environment (mount it: a volume with \"secret\")")
		}
	}
}

func (d *pod) checkContainer(p *problems, at string, c *podContainer, names, ports, volumes map[string]bool) {
	if !segment.MatchString(c.Name) || len(c.Name) > 63 || names[c.Name] {
		p.add(at+"/name", "must be given, unique, and of lower-case letters, digits and dashes")
	}
	names[c.Name] = true
	atLeast(p, at+"/resources/cpus", c.Resources.Cpus, 0.001)
	atLeast(p, at+"/resources/mem", c.Resources.Mem, 0)
	env(p, at+"/environment", c.Environment)
	if len(c.Check) > 0 {
		p.refuse(at+"/check", "a check that only tells (give a health check)")
	}
	if len(c.LinuxInfo) > 0 {
		p.refuse(at+"/linuxInfo", "linuxInfo")
	}
	if c.Image != nil {
		oneOf(p, at+"/image/kind", strings.ToUpper(c.Image.Kind), "DOCKER")
		if c.Image.ID == "" {
			p.add(at+"/image/id", "must not be empty")
		}
		if len(c.Image.PullConfig) > 0 {
			p.refuse(at+"/image/pullConfig", "a pullConfig (import the image, or log in on the servers)")
		}
	} else if c.Exec == nil {
		p.add(at+"/exec", "is required without an image")
	}
	if c.Exec != nil {
		if (c.Exec.Command.Shell == nil) == (len(c.Exec.Command.Argv) == 0) {
			p.add(at+"/exec/command", "must have one of shell and argv")
		}
		if c.Exec.OverrideEntrypoint != nil && !*c.Exec.OverrideEntrypoint && c.Exec.Command.Shell != nil {
			p.add(at+"/exec/overrideEntrypoint", "must not be false with command.shell")
		}
	}
	checkFetch(p, at+"/artifacts", c.Artifacts, c.Image != nil)
	for k, e := range c.Endpoints {
		where := fmt.Sprintf("%s/endpoints(%d)", at, k)
		if !segment.MatchString(e.Name) || ports[e.Name] {
			p.add(where+"/name", "must be given, and unique within the pod")
		}
		ports[e.Name] = true
		switch {
		case d.onHost() && e.ContainerPort != nil:
			p.add(where+"/containerPort", "is not allowed when using host-mode networking")
		case !d.onHost() && e.ContainerPort == nil:
			p.add(where+"/containerPort", "is required when using container-mode networking")
		}
		if len(e.Protocol) > 1 {
			p.refuse(where+"/protocol", "one port for several protocols (give two endpoints)")
		} else {
			oneOf(p, where+"/protocol", e.Protocol[0], "tcp", "udp", "http", "https")
		}
		for name, text := range e.Labels {
			if strings.HasPrefix(name, "VIP_") {
				if d.onHost() {
					p.refuse(where+"/labels/"+name, "a virtual IP of a pod on the host's network")
				} else if e.ContainerPort != nil {
					checkVIP(p, where+"/labels/"+name, text, *e.ContainerPort)
				}
			}
		}
	}
	for k, m := range c.VolumeMounts {
		if !volumes[m.Name] {
			p.add(fmt.Sprintf("%s/volumeMounts(%d)/name", at, k), "Referenced Volume in VolumeMount should exist")
		}
	}
	if h := c.HealthCheck; h != nil {
		kinds := 0
		named := ""
		for _, given := range []bool{h.HTTP != nil, h.TCP != nil, h.Exec != nil} {
			if given {
				kinds++
			}
		}
		if h.HTTP != nil {
			named = h.HTTP.Endpoint
		} else if h.TCP != nil {
			named = h.TCP.Endpoint
		}
		if kinds != 1 {
			p.add(at+"/healthCheck", "Only one of http, tcp, or command may be specified")
		} else if h.Exec == nil && !slices.ContainsFunc(c.Endpoints, func(e endpoint) bool { return e.Name == named }) {
			p.add(at+"/healthCheck", fmt.Sprintf("endpoint %q is not contained in the container endpoints", named))
		}
	}
}

func (d *pod) constraints() (out [][]string) {
	if d.Scheduling.Placement == nil {
		return nil
	}
	for _, c := range d.Scheduling.Placement.Constraints {
		list := []string{c.FieldName, c.Operator}
		if c.Value != "" {
			list = append(list, c.Value)
		}
		out = append(out, list)
	}
	return out
}

// podWorkload turns a pod into a workload of several tasks, and its service.
func podWorkload(snap *store.Snapshot, d *pod, name, config string) *part {
	s := d.Scheduling
	w := &model.Workload{
		Meta: model.Meta{Name: name, Labels: d.Labels}, Type: model.ServiceWorkload, Count: d.Scaling.Instances,
		Unreachable: unreachableOf(s.UnreachableStrategy), EndFirst: endFirst(s.KillSelection),
	}
	out := &part{workload: w}
	t := &w.Template
	t.StopGrace = killGrace
	t.Restart = model.RestartPolicy{
		Condition: model.RestartAlways, Delay: max(seconds(*s.Backoff.Backoff), 100*time.Millisecond), Factor: max(*s.Backoff.BackoffFactor, 1),
		MaxDelay: max(seconds(*s.Backoff.MaxLaunchDelay), time.Second), Window: time.Minute,
	}
	var roles []string
	if s.Placement != nil {
		roles = s.Placement.AcceptedResourceRoles
	}
	t.Placement = placement(snap, d.constraints(), roles)
	byName := map[string]model.Mount{}
	for _, v := range d.Volumes {
		m := model.Mount{Type: model.MountVolume, Share: v.Name}
		switch {
		case v.Host != nil:
			m = model.Mount{Type: model.MountBind, Source: *v.Host}
		case v.Secret != "":
			m = model.Mount{Type: model.MountSecret, Source: "/" + strings.TrimPrefix(d.Secrets[v.Secret].Source, "/")}
		case v.Persistent != nil:
			vol := &model.Volume{Meta: model.Meta{Name: fit(name + "-" + v.Name)}, Driver: "local"}
			out.volumes = append(out.volumes, vol)
			m = model.Mount{Type: model.MountVolume, Source: vol.Name}
		}
		byName[v.Name] = m
	}
	host := d.onHost()
	var names []string
	svc := &model.Service{Meta: model.Meta{Name: name, Labels: d.Labels}, WorkloadID: name, Aliases: map[string][]string{}}
	for i := range d.Containers {
		c := &d.Containers[i]
		if c.Lifecycle != nil {
			t.StopGrace = max(t.StopGrace, seconds(c.Lifecycle.KillGracePeriodSeconds))
		}
		var ports []appPort
		for _, e := range c.Endpoints {
			r := appPort{name: e.Name, protocol: "tcp"}
			if e.Protocol[0] == "udp" {
				r.protocol = "udp"
			}
			if e.ContainerPort != nil {
				r.number = *e.ContainerPort
			}
			if e.HostPort != nil || host {
				request := model.PortRequest{Protocol: r.protocol, Target: r.number}
				if e.HostPort != nil {
					request.Host = *e.HostPort
				}
				t.Ports = append(t.Ports, request)
				r.of = len(t.Ports)
			}
			ports = append(ports, r)
			for _, label := range slices.Sorted(maps.Keys(e.Labels)) {
				if strings.HasPrefix(label, "VIP_") {
					name, port := vip(e.Labels[label], r.number, r.protocol)
					names, svc.Ports = append(names, name), append(svc.Ports, port...)
				}
			}
		}
		t.Tasks = append(t.Tasks, podTask(d, c, config, ports, byName, out))
	}
	if host {
		t.HostNetwork = true
	} else {
		names = append(names, namesOf(d.ID)...)
		for _, n := range d.Networks {
			network := cmp.Or(n.Name, bridgeName)
			out.networks = append(out.networks, network)
			t.Networks = append(t.Networks, model.Attachment{Network: "/" + network})
			svc.Networks = append(svc.Networks, "/"+network)
			svc.Aliases["/"+network] = names
		}
		out.service = svc
	}
	if d.resident() {
		w.Type, w.Start, w.EndFirst = model.StatefulWorkload, model.Parallel, ""
	}
	w.Update = updateOf(w.Count, *s.Upgrade.MinimumHealthCapacity, *s.Upgrade.MaximumOverCapacity, d.resident(), d.Labels)
	w.Rollback = w.Update
	return out
}

func seconds(f float64) time.Duration { return time.Duration(f * float64(time.Second)) }

// podTask is one container of a pod.
func podTask(d *pod, c *podContainer, config string, ports []appPort, volumes map[string]model.Mount, out *part) model.TaskSpec {
	task := model.TaskSpec{Name: c.Name, User: cmp.Or(c.User, d.User), TTY: c.TTY != nil && *c.TTY, Labels: c.Labels, NoHealth: true}
	process := c.Image == nil
	if process {
		task.Driver, task.Artifacts = "process", artifactsOf(c.Artifacts)
	} else {
		task.Image = c.Image.ID
		if c.Image.ForcePull {
			out.pull = append(out.pull, c.Image.ID)
		}
	}
	if c.Exec != nil {
		command := c.Exec.Command
		switch override := c.Exec.OverrideEntrypoint; {
		case command.Shell != nil:
			task.Entrypoint, task.Args = []string{"/bin/sh", "-c", *command.Shell}, []string{}
		case process || override != nil && *override:
			task.Entrypoint, task.Args = command.Argv, []string{}
		default:
			task.Args = command.Argv
		}
	}
	task.Limit.MemoryBytes = int64(c.Resources.Mem * mebibyte)
	task.Reserve = model.Resources{NanoCPUs: int64(c.Resources.Cpus * 1e9), MemoryBytes: task.Limit.MemoryBytes, DiskBytes: int64(c.Resources.Disk * mebibyte)}
	if c.Resources.Gpus > 0 {
		task.Reserve.Custom = map[string]int64{"gpus": int64(c.Resources.Gpus)}
	}
	if c.ResourceLimits != nil {
		limits(c.ResourceLimits, &task.Limit)
	}
	add := func(name, value string) { task.Env = append(task.Env, name+"="+value) }
	add("MARATHON_APP_ID", d.ID)
	add("MARATHON_APP_VERSION", config)
	add("MARATHON_CONTAINER_ID", c.Name)
	for _, list := range []map[string]envValue{d.Environment, c.Environment} {
		for _, name := range slices.Sorted(maps.Keys(list)) {
			add(name, list[name].Value)
		}
	}
	sandbox := "/mnt/mesos/sandbox"
	if process {
		sandbox = "{sandbox}"
	}
	task.PlacedEnv = []string{"HOST={node.address}", "MESOS_TASK_ID=" + instanceID(d.ID, "{instance.id}") + "." + c.Name, "MESOS_SANDBOX=" + sandbox}
	for _, r := range ports {
		value := fmt.Sprint(r.number)
		if r.of > 0 {
			value = fmt.Sprintf("{port.%d}", r.of-1)
		}
		name := envName(r.name)
		task.PlacedEnv = append(task.PlacedEnv, "ENDPOINT_"+name+"="+value, "PORT_"+name+"="+value, "EP_HOST_"+name+"="+value)
		if r.number > 0 {
			task.PlacedEnv = append(task.PlacedEnv, fmt.Sprintf("EP_CONTAINER_%s=%d", name, r.number))
		}
	}
	for _, m := range c.VolumeMounts {
		mount := volumes[m.Name]
		mount.Target, mount.ReadOnly = m.MountPath, m.ReadOnly
		if !strings.HasPrefix(mount.Target, "/") && !process {
			mount.Target = sandbox + "/" + mount.Target
		}
		task.Mounts = append(task.Mounts, mount)
	}
	if h := c.HealthCheck; h != nil {
		task.Health, task.NoHealth = podProbe(h, ports), false
	}
	return task
}

func podProbe(h *podHealth, ports []appPort) *model.Probe {
	p := &model.Probe{
		Interval: max(time.Duration(h.IntervalSeconds)*time.Second, 100*time.Millisecond), Timeout: time.Duration(h.TimeoutSeconds) * time.Second,
		StartPeriod: time.Duration(h.GracePeriodSeconds) * time.Second, Retries: cmp.Or(h.MaxConsecutiveFailures, 1<<30),
	}
	port := func(name string) appPort {
		if n := slices.IndexFunc(ports, func(r appPort) bool { return r.name == name }); n >= 0 {
			return ports[n]
		}
		return appPort{}
	}
	switch {
	case h.HTTP != nil:
		at := port(h.HTTP.Endpoint)
		p.HTTP = &model.HTTPProbe{Scheme: schemeOf(h.HTTP.Scheme), Port: at.number, PortOf: at.of, Path: cmp.Or(h.HTTP.Path, "/")}
	case h.TCP != nil:
		at := port(h.TCP.Endpoint)
		p.TCPPort, p.TCPPortOf = at.number, at.of
	case h.Exec.Command.Shell != nil:
		p.Shell = *h.Exec.Command.Shell
	default:
		p.Exec = h.Exec.Command.Argv
	}
	return p
}

// pod plans one pod.
func (p *planned) pod(path string, d *pod, e *entry) error {
	d.ID = path
	k := &kept{ID: path, Pod: d, Version: p.rec.Version, Config: p.rec.Version, Scaled: p.rec.Version}
	t := target{Path: path, Pod: true, Action: "Start"}
	at := p.have[path]
	if e != nil {
		if !e.isPod() {
			return &invalid{message: fmt.Sprintf("An app with id [%s] already exists.", path), status: 409}
		}
		t.Action, t.WorkloadID, t.Before, t.Count = "Restart", e.workload.ID, e.kept, e.workload.Count
		x, y := *e.kept.Pod, *d
		x.Scaling, y.Scaling, x.Version, y.Version = nil, nil, "", ""
		m, _ := json.Marshal(x)
		n, _ := json.Marshal(y)
		if string(m) == string(n) {
			k.Config, t.Action = e.kept.Config, "Scale"
			if d.Scaling.Instances == e.workload.Count {
				t.Action, k.Version, k.Scaled = "", e.kept.Version, e.kept.Scaled
			}
		}
	}
	d.Version = ""
	out := podWorkload(p.snap, d, at[1], k.Config)
	out.workload.DependsOn = p.dependsOn(path, nil)
	p.add(at[0], out, k)
	p.rec.Affected = append(p.rec.Affected, t)
	return nil
}
