package docker

import (
	"encoding/json"
	"net/http"
	"regexp"
	"strings"
	"time"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/network"

	"github.com/tutti-run/tutti/internal/core"
	"github.com/tutti-run/tutti/internal/fault"
	"github.com/tutti-run/tutti/internal/image"
	"github.com/tutti-run/tutti/internal/model"
	"github.com/tutti-run/tutti/internal/store"
)

var containerName = regexp.MustCompile(`^/?[a-zA-Z0-9][a-zA-Z0-9_.-]+$`)

func (a *API) containerCreate(w http.ResponseWriter, r *request) error {
	name := strings.TrimPrefix(r.query.Get("name"), "/")
	if name != "" && !containerName.MatchString(name) {
		return fault.New(fault.Invalid, "Invalid container name (%s), only [a-zA-Z0-9][a-zA-Z0-9_.-] are allowed", name)
	}
	on := r.query.Get("platform")
	if on != "" {
		var err error
		if on, err = platform(on); err != nil {
			return err
		}
	}
	var req container.CreateRequest
	if err := decode(r, &req, false); err != nil {
		return err
	}
	if req.Config == nil {
		return fault.New(fault.Invalid, "config cannot be empty in order to create a container")
	}
	if req.HostConfig == nil {
		req.HostConfig = &container.HostConfig{}
	}
	snap := a.snapshot()
	if name == "" {
		name = freeName(snap)
	} else if other, ok := store.ByName[*model.Workload](snap, model.DefaultNamespace, application, name); ok {
		return fault.New(fault.Conflict, `Conflict. The container name "/%s" is already in use by container "%s". You have to remove (or rename) that container to be able to reuse that name.`,
			name, containerID(other.ID, 0))
	}
	made := &created{Config: req.Config, HostConfig: req.HostConfig, Networking: req.NetworkingConfig}
	id, warnings, err := a.createContainer(r, name, on, made)
	if err != nil {
		return err
	}
	return answer(w, http.StatusCreated, container.CreateResponse{ID: id, Warnings: warnings})
}

// createContainer makes the workload of a container, suspended until it is started, on a node of a platform unless that is "".
func (a *API) createContainer(r *request, name, on string, made *created) (string, []string, error) {
	img, err := findImage(a.snapshot(), made.Config.Image)
	if err != nil {
		return "", nil, err
	}
	if on != "" {
		d, err := a.Core.Images.Describe(r.Context(), img.Name, img.Digest)
		is := d.Config.OS + "/" + d.Config.Architecture
		if err == nil && d.Config.Architecture != "" && is != on && !isIndex(d.Target.MediaType) {
			return "", nil, fault.New(fault.NotFound, "image with reference %s was found but its platform (%s) does not match the specified platform (%s)", made.Config.Image, is, on)
		}
	}
	defaults(made)
	t := &translation{api: a, r: r, name: name, made: made, image: img, settings: noSettings}
	t.settings = a.settings(r.Context(), &model.TaskSpec{Image: img.Name, Digest: img.Digest})
	if err := t.container(); err != nil {
		return "", nil, err
	}
	if on != "" {
		t.workload.Template.Placement.Platforms = []string{on}
	}
	data, err := json.Marshal(made)
	if err != nil {
		return "", nil, fault.New(fault.Invalid, "keep the request: %w", err)
	}
	t.workload.Extensions = map[string][]byte{extension: data}
	d := core.Deployment{
		Application: application, Source: "docker", KeepOthers: true, Members: true,
		Workloads: []*model.Workload{&t.workload},
	}
	if len(t.ports) > 0 {
		d.Services = []*model.Service{{Meta: model.Meta{Name: name}, WorkloadID: name, Ports: t.ports, PortGroup: portGroup(made)}}
	}
	if _, err := a.Core.Deploy(r.Context(), r.who, d); err != nil {
		return "", nil, err
	}
	if err := a.linkAll(r, t.links); err != nil {
		return "", nil, err
	}
	wl, ok := store.ByName[*model.Workload](a.snapshot(), model.DefaultNamespace, application, name)
	if !ok {
		return "", nil, fault.New(fault.Conflict, "container %s was removed meanwhile", name)
	}
	id := containerID(wl.ID, 0)
	return id, append([]string{}, t.warnings...), nil
}

// portGroup is what containers have in common that may publish the same ports: a service of Compose. A port of
// the cluster leads to all copies of it, wherever they are; in a Docker Engine it would be taken by the first.
func portGroup(made *created) string {
	project, service := made.Config.Labels["com.docker.compose.project"], made.Config.Labels["com.docker.compose.service"]
	if project == "" || service == "" || made.Config.Labels["com.docker.compose.oneoff"] == "True" {
		return ""
	}
	return project + "/" + service
}

// defaults fills in what the Engine fills in, so that an inspection shows it.
func defaults(made *created) {
	h := made.HostConfig
	if h.NetworkMode == "" || h.NetworkMode == network.NetworkDefault {
		h.NetworkMode = network.NetworkBridge
	}
	if h.RestartPolicy.Name == "" {
		h.RestartPolicy.Name = container.RestartPolicyDisabled
	}
	if h.ShmSize == 0 {
		h.ShmSize = 64 << 20
	}
	if h.LogConfig.Type == "" {
		h.LogConfig.Type = "json-file"
	}
	if h.LogConfig.Config == nil {
		h.LogConfig.Config = map[string]string{}
	}
	if h.IpcMode == "" {
		h.IpcMode = container.IPCModePrivate
	}
	if h.CgroupnsMode == "" {
		h.CgroupnsMode = container.CgroupnsModePrivate
		if h.Privileged {
			h.CgroupnsMode = container.CgroupnsModeHost
		}
	}
	if h.Runtime == "" {
		h.Runtime = model.BuiltInRuntime
	}
	if h.PortBindings == nil {
		h.PortBindings = network.PortMap{}
	}
}

// freeName makes up a name like the Engine's: two words that no other container has.
func freeName(snap *store.Snapshot) string {
	for {
		id := model.NewID()
		left, right := adjectives[int(id[0])*7%len(adjectives)], composers[(int(id[1])*31+int(id[2]))%len(composers)]
		name := left + "_" + right
		if _, taken := store.ByName[*model.Workload](snap, model.DefaultNamespace, application, name); !taken {
			return name
		}
		name += "_" + id[3:7]
		if _, taken := store.ByName[*model.Workload](snap, model.DefaultNamespace, application, name); !taken {
			return name
		}
	}
}

var (
	adjectives = []string{"agitato", "allegro", "amabile", "animato", "brillante", "calmo", "cantabile", "dolce", "energico",
		"festivo", "giocoso", "grazioso", "leggiero", "maestoso", "nobile", "presto", "risoluto", "scherzando", "semplice", "sereno",
		"solenne", "sonoro", "tranquillo", "vivace"}
	composers = []string{"bach", "bartok", "beethoven", "bernstein", "boulanger", "brahms", "britten", "chopin", "clara", "copland",
		"debussy", "dvorak", "elgar", "faure", "gershwin", "grieg", "handel", "haydn", "hensel", "hildegard", "holst", "ives",
		"janacek", "liszt", "mahler", "monteverdi", "mozart", "nielsen", "purcell", "ravel", "rossini", "satie", "schubert", "sibelius",
		"smetana", "smyth", "strozzi", "tallis", "verdi", "vivaldi", "weill"}
)

// translation turns a container's request into a workload.
type translation struct {
	api      *API
	r        *request
	name     string
	made     *created
	image    *model.Image
	settings image.Settings
	workload model.Workload
	ports    []model.ServicePort
	links    []link
	warnings []string
}

func (t *translation) container() error {
	c, h := t.made.Config, t.made.HostConfig
	if err := refuseContainer(c, h); err != nil {
		return err
	}
	if len(c.Entrypoint) == 0 && len(c.Cmd) == 0 && len(t.settings.Entrypoint) == 0 && len(t.settings.Cmd) == 0 {
		return fault.New(fault.Invalid, "no command specified")
	}
	grace := 10 * time.Second
	if c.StopTimeout != nil {
		grace = time.Duration(*c.StopTimeout) * time.Second
	}
	task := model.TaskSpec{
		Name: "main", Image: t.image.Name, Entrypoint: c.Entrypoint, Args: c.Cmd, Env: c.Env, User: c.User, Groups: h.GroupAdd,
		WorkingDir: c.WorkingDir, CapAdd: h.CapAdd, CapDrop: h.CapDrop, Privileged: h.Privileged, ReadOnlyRoot: h.ReadonlyRootfs,
		Init: h.Init != nil && *h.Init, TTY: c.Tty, Stdin: c.OpenStdin, ShmBytes: h.ShmSize, StopSignal: c.StopSignal,
		OOMScoreAdjust: h.OomScoreAdj, Labels: c.Labels,
	}
	if len(c.Entrypoint) == 0 { // an empty one is none
		task.Entrypoint = nil
		if len(c.Cmd) == 0 {
			task.Args = nil
		}
	} else if len(c.Entrypoint) == 1 && c.Entrypoint[0] == "" { // `--entrypoint ""` clears the image's
		task.Entrypoint = []string{}
	}
	tpl := &t.workload.Template
	*tpl = model.Template{
		Hostname: c.Hostname, Domainname: c.Domainname, Sysctls: h.Sysctls, StopGrace: grace, Labels: c.Labels, KeepEnded: true,
	}
	for _, step := range []func(*model.TaskSpec) error{t.resources, t.security, t.devices, t.confine, t.health, t.restart, t.mounts, t.dns, t.networks, t.publish, t.placement, t.log} {
		if err := step(&task); err != nil {
			return err
		}
	}
	tpl.Tasks = []model.TaskSpec{task}
	if tpl.Hostname == "" && !tpl.HostNetwork && !tpl.Shared().HostNames && tpl.Shared().NetworkOf == "" {
		tpl.Hostname = t.hostname()
	}
	w := &t.workload
	w.Meta = model.Meta{Name: t.name, Labels: c.Labels}
	w.Type, w.Count, w.Suspended, w.RemoveWhenEnded = model.ServiceWorkload, 1, true, h.AutoRemove
	return nil
}

// refuseContainer names what of a request is not honoured.
func refuseContainer(c *container.Config, h *container.HostConfig) error {
	type check struct {
		field string
		value any
		said  bool
	}
	for _, x := range []check{
		{"--cgroup-parent", h.CgroupParent, h.CgroupParent != ""},
		{"HostConfig.Cgroup", h.Cgroup, h.Cgroup != ""},
		{"--volume-driver", h.VolumeDriver, h.VolumeDriver != "" && h.VolumeDriver != "local"},
		{"--storage-opt", h.StorageOpt, len(h.StorageOpt) > 0},
		{"--annotation", h.Annotations, len(h.Annotations) > 0},
		{"HostConfig.Umask", "", h.Umask != nil},
		{"--isolation", h.Isolation, !h.Isolation.IsDefault()},
		{"--cpu-rt-period", h.CPURealtimePeriod, h.CPURealtimePeriod != 0},
		{"--cpu-rt-runtime", h.CPURealtimeRuntime, h.CPURealtimeRuntime != 0},
		{"HostConfig.CpuCount", h.CPUCount, h.CPUCount != 0},
		{"HostConfig.CpuPercent", h.CPUPercent, h.CPUPercent != 0},
		{"HostConfig.IOMaximumIOps", h.IOMaximumIOps, h.IOMaximumIOps != 0},
		{"HostConfig.IOMaximumBandwidth", h.IOMaximumBandwidth, h.IOMaximumBandwidth != 0},
		{"Config.NetworkDisabled", "", c.NetworkDisabled},
		{"Config.OnBuild", "", len(c.OnBuild) > 0},
		{"Config.Shell", "", len(c.Shell) > 0},
	} {
		if x.said {
			return notHonoured(x.field, x.value)
		}
	}
	if h.AutoRemove && !h.RestartPolicy.IsNone() {
		return fault.New(fault.Invalid, "can't create 'AutoRemove' container with restart policy")
	}
	return nil
}

// hostname is the name that a container of no other has: what the Engine takes, too, looks like it.
func (t *translation) hostname() string { return shortID(digestOf(t.name, model.NewID())) }
