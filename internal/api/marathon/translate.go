package marathon

import (
	"cmp"
	"fmt"
	"maps"
	"math"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/tutti-run/tutti/internal/model"
	"github.com/tutti-run/tutti/internal/store"
)

// taskName is what the one task of an app is called.
const taskName = "main"

// killGrace is how long a task has to end by itself when nothing is said.
const killGrace = 3 * time.Second

// part is what an app, or a pod, becomes.
type part struct {
	workload *model.Workload
	service  *model.Service
	networks []string // outside any application, by name
	volumes  []*model.Volume
	pull     []string // images that are to be fetched anew
}

// workloadOf turns an app into a workload and its service. config is the version of its configuration,
// which its tasks are told.
func workloadOf(snap *store.Snapshot, a *app, name, config string) *part {
	w := &model.Workload{
		Meta: model.Meta{Name: name, Labels: a.Labels}, Type: model.ServiceWorkload, Count: *a.Instances,
		Unreachable: unreachableOf(a.UnreachableStrategy), EndFirst: endFirst(a.KillSelection),
	}
	out := &part{workload: w}
	task := model.TaskSpec{Name: taskName, TTY: a.TTY != nil && *a.TTY, Umask: nil}
	if a.User != nil {
		task.User = *a.User
	}
	t := &w.Template
	t.StopGrace = killGrace
	if s := a.TaskKillGracePeriodSeconds; s != nil {
		t.StopGrace = time.Duration(*s) * time.Second
	}
	t.Restart = restartOf(*a.BackoffSeconds, *a.BackoffFactor, *a.MaxLaunchDelaySeconds)
	if image := a.image(); image != "" {
		task.Image = image
		if a.Container.Docker.ForcePullImage {
			out.pull = append(out.pull, image)
		}
		task.Privileged = a.Container.Docker.Privileged
		if a.Cmd != nil {
			task.Entrypoint, task.Args = []string{"/bin/sh", "-c", *a.Cmd}, []string{}
		} else if len(a.Args) > 0 {
			task.Args = a.Args
		}
		for _, p := range a.Container.Docker.Parameters {
			apply(&task, t, p)
		}
	} else {
		task.Driver = "process"
		task.Entrypoint, task.Args = commandOf(a.Cmd, a.Args)
		task.Artifacts = artifactsOf(a.Fetch)
	}
	task.Reserve, task.Limit = resourcesOf(a)
	requests := portsOf(a, t)
	env, placed := environment(a, config, requests, task.Driver == "process")
	task.Env, task.PlacedEnv = append(env, task.Env...), placed
	health(a, &task, requests)
	out.mounts(a, &task, name)
	out.network(a, name)
	t.Placement = placement(snap, a.Constraints, a.AcceptedResourceRoles)
	t.Tasks = []model.TaskSpec{task}
	if a.resident() {
		w.Type, w.Start, w.EndFirst = model.StatefulWorkload, model.Parallel, ""
	}
	w.Update = updateOf(*a.Instances, *a.UpgradeStrategy.MinimumHealthCapacity, *a.UpgradeStrategy.MaximumOverCapacity, a.resident(), a.Labels)
	w.Rollback = w.Update
	return out
}

func commandOf(cmd *string, args []string) (entrypoint, rest []string) {
	if cmd != nil {
		return []string{"/bin/sh", "-c", *cmd}, nil
	}
	return args, nil
}

func endFirst(selection string) model.EndOrder {
	if selection == "OLDEST_FIRST" {
		return model.OldestFirst
	}
	return model.YoungestFirst
}

func unreachableOf(u *unreachable) model.UnreachablePolicy {
	if u == nil {
		return model.UnreachablePolicy{}
	}
	return model.UnreachablePolicy{Never: u.Disabled, ReplaceAfter: time.Duration(u.InactiveAfterSeconds) * time.Second}
}

func restartOf(seconds int, factor float64, most int) model.RestartPolicy {
	return model.RestartPolicy{
		Condition: model.RestartAlways, Delay: max(time.Duration(seconds)*time.Second, 100*time.Millisecond), Factor: factor,
		MaxDelay: max(time.Duration(most)*time.Second, time.Second), Window: time.Minute,
	}
}

// rollbackLabel lets a deployment that fails return to what was before by itself.
const rollbackLabel = "TUTTI_ROLLBACK_ON_FAILURE"

// updateOf says how instances are replaced, some of count at a time.
func updateOf(count int, health, over float64, resident bool, labels map[string]string) model.UpdatePolicy {
	u := model.UpdatePolicy{OnFailure: model.WaitOnFailure, Monitor: time.Second}
	if labels[rollbackLabel] == "true" {
		u.OnFailure, u.Monitor = model.RollBackOnFailure, 5*time.Second
	}
	missing := count - int(math.Ceil(float64(count)*health))
	if resident {
		u.Parallelism = max(1, missing)
		return u
	}
	u.MaxSurge, u.MaxUnavailable = int(math.Floor(float64(count)*over)), missing
	if u.MaxSurge == 0 && u.MaxUnavailable == 0 {
		u.MaxSurge = 1
	}
	return u
}

const mebibyte = 1 << 20

func resourcesOf(a *app) (reserve, limit model.Resources) {
	cpus, mem, disk := *a.Cpus, *a.Mem, *a.Disk
	limit.MemoryBytes = int64(mem * mebibyte)
	if e := a.ExecutorResources; e != nil {
		cpus, mem, disk = cpus+e.Cpus, mem+e.Mem, disk+e.Disk
	}
	reserve = model.Resources{NanoCPUs: int64(cpus * 1e9), MemoryBytes: int64(mem * mebibyte), DiskBytes: int64(disk * mebibyte)}
	if *a.Gpus > 0 {
		reserve.Custom = map[string]int64{"gpus": int64(*a.Gpus)}
	}
	if l := a.ResourceLimits; l != nil {
		limits(l, &limit)
	}
	return reserve, limit
}

func limits(l *resourceLimits, limit *model.Resources) {
	if n, ok := l.Cpus.(float64); ok {
		limit.NanoCPUs = int64(n * 1e9)
	}
	switch n := l.Mem.(type) {
	case float64:
		limit.MemoryBytes = int64(n * mebibyte)
	case string:
		limit.MemoryBytes = 0
	}
}

// appPort is a port of an app: which of the template's port requests it is, from 1, or 0 for one that
// holds no port of the node.
type appPort struct {
	of       int
	number   int // inside; 0: the one that is chosen
	name     string
	service  int
	protocol string
}

// portsOf adds the app's ports to the template.
func portsOf(a *app, t *model.Template) []appPort {
	var out []appPort
	if a.onHost() {
		for _, d := range a.definitions() {
			r := model.PortRequest{Protocol: d.Protocol}
			if *a.RequirePorts {
				r.Host = d.Port
			}
			t.Ports = append(t.Ports, r)
			out = append(out, appPort{of: len(t.Ports), number: r.Host, name: d.Name, service: d.Port, protocol: d.Protocol})
		}
		return out
	}
	for _, m := range a.mappings() {
		r := appPort{number: m.ContainerPort, name: m.Name, service: m.ServicePort, protocol: m.Protocol}
		if m.HostPort != nil {
			t.Ports = append(t.Ports, model.PortRequest{Protocol: m.Protocol, Host: *m.HostPort, Target: m.ContainerPort})
			r.of = len(t.Ports)
		}
		out = append(out, r)
	}
	return out
}

var notInNames = regexp.MustCompile(`[^A-Z0-9_]`)

func envName(text string) string { return notInNames.ReplaceAllString(strings.ToUpper(text), "_") }

// environment is what the tasks of an app are told: what is known now, and what is known once an
// instance has a node.
func environment(a *app, config string, ports []appPort, process bool) (env, placed []string) {
	add := func(name, value string) { env = append(env, name+"="+value) }
	add("MARATHON_APP_ID", a.ID)
	add("MARATHON_APP_VERSION", config)
	if image := a.image(); image != "" {
		add("MARATHON_APP_DOCKER_IMAGE", image)
	}
	add("MARATHON_APP_RESOURCE_CPUS", number(*a.Cpus))
	add("MARATHON_APP_RESOURCE_MEM", number(*a.Mem))
	add("MARATHON_APP_RESOURCE_DISK", number(*a.Disk))
	add("MARATHON_APP_RESOURCE_GPUS", strconv.Itoa(*a.Gpus))
	var labels []string
	for _, name := range slices.Sorted(maps.Keys(a.Labels)) {
		if value := a.Labels[name]; len(value) <= 512 {
			labels = append(labels, envName(name))
			add("MARATHON_APP_LABEL_"+envName(name), value)
		}
	}
	add("MARATHON_APP_LABELS", strings.Join(labels, " "))
	sandbox := "/mnt/mesos/sandbox"
	if process {
		sandbox = "{sandbox}"
	}
	placed = append(placed, "HOST={node.address}", "MESOS_TASK_ID="+taskID(a.ID, "{instance.id}", "{run}"), "MESOS_SANDBOX="+sandbox)
	placed = append(placed, portVariables(ports)...)
	for _, name := range slices.Sorted(maps.Keys(a.Env)) {
		add(name, a.Env[name].Value)
	}
	return env, placed
}

func portVariables(ports []appPort) []string {
	var out, all []string
	for n, r := range ports {
		value := strconv.Itoa(r.number)
		if r.of > 0 {
			value = fmt.Sprintf("{port.%d}", r.of-1)
		}
		all = append(all, value)
		out = append(out, fmt.Sprintf("PORT%d=%s", n, value))
		if key := cmp.Or(r.number, r.service); key > 0 {
			out = append(out, fmt.Sprintf("PORT_%d=%s", key, value))
		}
		if r.name != "" {
			out = append(out, "PORT_"+envName(r.name)+"="+value)
		}
	}
	if len(all) > 0 {
		out = append(out, "PORT="+all[0], "PORTS="+strings.Join(all, ","))
	}
	return out
}

func number(f float64) string { return strconv.FormatFloat(f, 'f', -1, 64) }

// taskID names the run of an instance as clients know it.
func taskID(path, instance, run string) string {
	return instanceID(path, instance) + "._app." + run
}

func instanceID(path, instance string) string { return safeID(path) + ".instance-" + instance }

func health(a *app, task *model.TaskSpec, ports []appPort) {
	var list []model.Probe
	for i := range a.HealthChecks {
		h := &a.HealthChecks[i]
		p := model.Probe{
			Interval: max(time.Duration(h.IntervalSeconds)*time.Second, 100*time.Millisecond), Timeout: time.Duration(h.TimeoutSeconds) * time.Second,
			StartPeriod: time.Duration(h.GracePeriodSeconds) * time.Second, Retries: cmp.Or(h.MaxConsecutiveFailures, math.MaxInt32),
		}
		of, number := 0, 0
		if h.Port != nil {
			number = *h.Port
		} else if h.PortIndex != nil && *h.PortIndex < len(ports) {
			of, number = ports[*h.PortIndex].of, ports[*h.PortIndex].number
		}
		switch h.Protocol {
		case "COMMAND":
			p.Shell = h.Command.Value
		case "TCP", "MESOS_TCP":
			p.TCPPort, p.TCPPortOf = number, of
		default:
			path := "/"
			if h.Path != nil {
				path = *h.Path
			}
			p.HTTP = &model.HTTPProbe{Scheme: schemeOf(h.Protocol), Port: number, PortOf: of, Path: path}
		}
		list = append(list, p)
	}
	for i := range a.ReadinessChecks {
		r := &a.ReadinessChecks[i]
		port := appPort{}
		if n := a.portNamed(r.PortName); n >= 0 && n < len(ports) {
			port = ports[n]
		}
		list = append(list, model.Probe{
			Interval: time.Duration(r.IntervalSeconds) * time.Second, Timeout: time.Duration(r.TimeoutSeconds) * time.Second, Retries: 1, Once: true,
			HTTP: &model.HTTPProbe{Scheme: schemeOf(r.Protocol), Port: port.number, PortOf: port.of, Path: r.Path, Codes: r.HTTPStatusCodesForReady},
		})
	}
	if len(list) > 0 {
		task.Health, task.Probes = &list[0], list[1:]
	} else {
		task.NoHealth = true // an image's own check is none of the app's
	}
}

func schemeOf(protocol string) string {
	if strings.HasSuffix(protocol, "HTTPS") {
		return "https"
	}
	return "http"
}

// mounts adds the app's volumes; a path that is not absolute is below the sandbox.
func (out *part) mounts(a *app, task *model.TaskSpec, name string) {
	if a.Container == nil {
		return
	}
	for i, v := range a.Container.Volumes {
		m := model.Mount{Target: v.ContainerPath, ReadOnly: v.Mode == "RO"}
		if !strings.HasPrefix(m.Target, "/") && task.Driver != "process" {
			m.Target = "/mnt/mesos/sandbox/" + m.Target
		}
		switch {
		case a.persistent(v.HostPath) >= 0:
			m.Type, m.Source = model.MountVolume, volumeName(name, a.persistent(v.HostPath))
		case v.HostPath != "":
			m.Type, m.Source = model.MountBind, v.HostPath
		case v.Persistent != nil:
			vol := &model.Volume{Meta: model.Meta{Name: volumeName(name, i)}, Driver: "local"}
			out.volumes = append(out.volumes, vol)
			m.Type, m.Source = model.MountVolume, vol.Name
		case v.Secret != "":
			m.Type, m.Source = model.MountSecret, "/"+strings.TrimPrefix(a.Secrets[v.Secret].Source, "/")
		}
		task.Mounts = append(task.Mounts, m)
	}
}

// volumeName is what an app's persistent volume is called.
func volumeName(name string, i int) string { return fmt.Sprintf("%s-%d", fit(name), i) }

// persistent is the index of the persistent volume at a path below the sandbox, -1 when there is none.
func (a *app) persistent(path string) int {
	return slices.IndexFunc(a.volumes(), func(v volume) bool { return v.Persistent != nil && v.ContainerPath == path })
}

// bridgeName is the network that every host's bridge network is here.
const bridgeName = "bridge"

// network attaches the app to its networks, and gives it names there.
func (out *part) network(a *app, name string) {
	t := &out.workload.Template
	if a.onHost() {
		t.HostNetwork = true
		return
	}
	s := &model.Service{Meta: model.Meta{Name: name, Labels: a.Labels}, WorkloadID: name, Aliases: map[string][]string{}}
	names := namesOf(a.ID)
	for _, m := range a.mappings() {
		for _, label := range slices.Sorted(maps.Keys(m.Labels)) {
			if strings.HasPrefix(label, "VIP_") {
				name, port := vip(m.Labels[label], m.ContainerPort, m.Protocol)
				names, s.Ports = append(names, name), append(s.Ports, port...)
			}
		}
	}
	for _, n := range a.Networks {
		network := cmp.Or(n.Name, bridgeName)
		out.networks = append(out.networks, network)
		t.Networks = append(t.Networks, model.Attachment{Network: "/" + network})
		s.Networks = append(s.Networks, "/"+network)
		s.Aliases["/"+network] = names
	}
	for i, m := range a.mappings() {
		if balanced(a.Labels, i) && m.ServicePort > 0 && m.ContainerPort > 0 {
			s.Ports = append(s.Ports, model.ServicePort{Name: m.Name, Protocol: m.Protocol, Target: m.ContainerPort, Published: m.ServicePort})
		}
	}
	out.service = s
}

// vip reads "/shop/web:8080": the name that it stands for, and the port of the virtual IP where that is
// not the container's own.
func vip(text string, containerPort int, protocol string) (name string, ports []model.ServicePort) {
	name, port, _ := strings.Cut(text, ":")
	if n, err := strconv.Atoi(port); err == nil && n != containerPort {
		ports = append(ports, model.ServicePort{Protocol: protocol, Target: containerPort, Virtual: n})
	}
	return strings.ReplaceAll(strings.Trim(name, "/"), "/", "") + ".marathon.l4lb.thisdcos.directory", ports
}

// namesOf are the names under which an app is known to others on its networks.
func namesOf(path string) []string {
	label := hostLabel(path)
	return []string{label + ".marathon.mesos", label + ".marathon.containerip.dcos.thisdcos.directory", label + ".marathon.autoip.dcos.thisdcos.directory"}
}

// balanced reports whether a service port is to be published, as the load balancer of DC/OS would.
func balanced(labels map[string]string, index int) bool {
	return labels["HAPROXY_GROUP"] != "" || labels[fmt.Sprintf("HAPROXY_%d_GROUP", index)] != ""
}

func artifactsOf(list []artifact) []model.Artifact {
	var out []model.Artifact
	for _, f := range list {
		source, digest, _ := strings.Cut(f.URI, "#sha256=")
		if strings.HasPrefix(source, "/") {
			source = "file://" + source
		}
		m := model.Artifact{Source: source, Target: f.DestPath, Cached: f.Cache, Mode: 0o644}
		if digest != "" {
			m.Digest = "sha256:" + strings.ToLower(digest)
		}
		if f.Executable {
			m.Mode = 0o755
		}
		switch format := m.Format(); {
		case !f.Extract || f.Executable || format == model.ArtifactFile:
			m.As = model.ArtifactFile
		default:
			m.As, m.Target, m.Mode = format, "", 0
			if i := strings.LastIndexByte(f.DestPath, '/'); i > 0 {
				m.Target = f.DestPath[:i+1]
			}
		}
		out = append(out, m)
	}
	return out
}
