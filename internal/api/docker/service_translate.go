package docker

import (
	"cmp"
	"encoding/json"
	"path"
	"strings"
	"time"

	"github.com/moby/moby/api/types/swarm"

	"github.com/tutti-run/tutti/internal/compose"
	"github.com/tutti-run/tutti/internal/core"
	"github.com/tutti-run/tutti/internal/fault"
	"github.com/tutti-run/tutti/internal/image"
	"github.com/tutti-run/tutti/internal/model"
	"github.com/tutti-run/tutti/internal/store"
)

// specified is what the extension of a service's workload keeps: its specification and the one before.
type specified struct {
	Spec     *swarm.ServiceSpec `json:"spec"`
	Previous *swarm.ServiceSpec `json:"previous,omitempty"`
	// RolledBack says that the specification was returned to.
	RolledBack bool `json:"rolledBack,omitempty"`
}

// serviceTranslation turns a service's specification into a workload and a service of ours.
type serviceTranslation struct {
	api      *API
	r        *request
	spec     *swarm.ServiceSpec
	app      string
	workload model.Workload
	service  model.Service
	rollback bool // to what it was before
}

// deploy decides about a service and makes it so, or so again when it is rolled back.
func (a *API) deploy(r *request, spec, previous *swarm.ServiceSpec, rollback bool) error {
	if spec.Name == "" {
		return fault.New(fault.Invalid, "service name must be provided")
	}
	t := &serviceTranslation{api: a, r: r, spec: spec, rollback: rollback}
	var name string
	t.app, name = placeOf(spec.Name, spec.Labels)
	if model.CheckName(name) != nil {
		return fault.New(fault.Invalid, "name must be valid as a DNS name component: %q", spec.Name)
	}
	t.workload.Meta = model.Meta{Name: name, Labels: spec.Labels}
	t.service = model.Service{Meta: model.Meta{Name: name, Labels: spec.Labels}, WorkloadID: name}
	for _, step := range []func() error{t.mode, t.container, t.resources, t.restart, t.placement, t.networks, t.ports, t.updates} {
		if err := step(); err != nil {
			return err
		}
	}
	if err := compose.ApplyLabels(spec.Labels, &t.workload, &t.service); err != nil {
		return err
	}
	if c := spec.TaskTemplate.ContainerSpec; c.Isolation.IsDefault() {
		c.Isolation = "" // as the Engine tells it
	}
	data, err := json.Marshal(specified{Spec: spec, Previous: previous, RolledBack: rollback})
	if err != nil {
		return err
	}
	t.workload.Extensions = map[string][]byte{extension: data}
	d := core.Deployment{
		Application: t.app, Source: "docker", Members: true, KeepOthers: true,
		Workloads: []*model.Workload{&t.workload}, Services: []*model.Service{&t.service}, NodesMayCome: true,
	}
	// The Engine asks the registry at every change, and the nodes with the login that came along.
	as, err := credentials(r)
	if err != nil {
		return err
	}
	if as != (image.Credentials{}) {
		d.Logins = map[string]image.Credentials{name: as}
	}
	if !rollback {
		d.Pulls = map[string]core.PullPolicy{t.workload.Template.Tasks[0].Image: core.PullNewest}
	}
	_, err = a.Core.Deploy(r.Context(), r.who, d)
	return err
}

func (t *serviceTranslation) mode() error {
	w, m := &t.workload, &t.spec.Mode
	modes := 0
	for _, set := range []bool{m.Replicated != nil, m.Global != nil, m.ReplicatedJob != nil, m.GlobalJob != nil} {
		modes += btoi(set)
	}
	if modes > 1 {
		return fault.New(fault.Invalid, "must specify only one service mode")
	}
	w.Type, w.Count = model.ServiceWorkload, 1
	switch {
	case m.Global != nil:
		w.Type, w.Count = model.GlobalWorkload, 0
	case m.GlobalJob != nil:
		w.Type, w.Count = model.GlobalJobWorkload, 0
	case m.ReplicatedJob != nil:
		w.Type = model.JobWorkload
		if n := m.ReplicatedJob.MaxConcurrent; n != nil {
			w.Job.Parallelism, w.Count = int(*n), int(*n)
		}
		if n := m.ReplicatedJob.TotalCompletions; n != nil {
			w.Count = int(*n)
		}
	case m.Replicated != nil && m.Replicated.Replicas != nil:
		w.Count = int(min(*m.Replicated.Replicas, 1_000_000))
	}
	return nil
}

func (t *serviceTranslation) container() error {
	tt := &t.spec.TaskTemplate
	c := tt.ContainerSpec
	if c == nil || tt.PluginSpec != nil || tt.NetworkAttachmentSpec != nil || tt.Runtime != "" && tt.Runtime != swarm.RuntimeContainer {
		return notHonoured("a service that runs no containers", tt.Runtime)
	}
	img, err := t.api.imageForService(t.r, c.Image)
	if err != nil {
		return err
	}
	task := model.TaskSpec{
		Name: "main", Image: img, Entrypoint: c.Command, Args: c.Args, Env: c.Env, User: c.User, Groups: c.Groups, WorkingDir: c.Dir,
		CapAdd: c.CapabilityAdd, CapDrop: c.CapabilityDrop, ReadOnlyRoot: c.ReadOnly, Init: c.Init != nil && *c.Init, TTY: c.TTY, Stdin: c.OpenStdin,
		StopSignal: c.StopSignal, OOMScoreAdjust: int(c.OomScoreAdj), Labels: c.Labels, Ulimits: ulimits(c.Ulimits),
	}
	if len(c.Command) == 0 {
		task.Entrypoint = nil
	}
	if len(c.Args) == 0 && len(c.Command) == 0 {
		task.Args = nil
	}
	tpl := &t.workload.Template
	*tpl = model.Template{
		Hostname: c.Hostname, Sysctls: c.Sysctls, StopGrace: 10 * time.Second, Labels: c.Labels, ForceUpdate: tt.ForceUpdate,
	}
	if c.StopGracePeriod != nil {
		tpl.StopGrace = *c.StopGracePeriod
	}
	if err := t.templates(&task); err != nil {
		return err
	}
	if !c.Isolation.IsDefault() {
		return notHonoured("--isolation", c.Isolation)
	}
	if d := tt.LogDriver; d != nil {
		policy, unused, err := compose.LogPolicy(d.Name, d.Options)
		if err == nil && len(unused) > 0 {
			err = notHonoured("--log-opt", strings.Join(unused, ", "))
		}
		if err != nil {
			return err
		}
		task.Log = policy
	}
	if err := t.privileges(&task); err != nil {
		return err
	}
	settings := t.api.settings(t.r.Context(), t.api.pinned(img))
	if task.Health, task.NoHealth, err = probe(c.Healthcheck, settings.Health); err != nil {
		return err
	}
	for _, m := range c.Mounts {
		mm, err := typedMount(m)
		if err != nil {
			return err
		}
		if err := t.mountTemplates(&mm); err != nil {
			return err
		}
		if mm.Type == model.MountVolume && mm.Source != "" {
			labels := map[string]string(nil)
			if m.VolumeOptions != nil {
				labels = m.VolumeOptions.Labels
			}
			if mm.Source, err = t.api.ensureVolume(t.r, mm.Source, labels, nil); err != nil {
				return err
			}
		}
		task.Mounts = append(task.Mounts, mm)
	}
	if err := t.files(&task); err != nil {
		return err
	}
	for _, h := range c.Hosts { // "address name…", as in /etc/hosts
		fields := strings.Fields(h)
		if len(fields) < 2 {
			return fault.New(fault.Invalid, "bad format for a host entry: %q", h)
		}
		for _, name := range fields[1:] {
			tpl.ExtraHosts = append(tpl.ExtraHosts, model.HostEntry{Name: name, Address: fields[0]})
		}
	}
	if d := c.DNSConfig; d != nil {
		for _, ip := range d.Nameservers {
			tpl.DNS.Servers = append(tpl.DNS.Servers, ip.String())
		}
		tpl.DNS.Search, tpl.DNS.Options = d.Search, d.Options
	}
	tpl.Tasks = []model.TaskSpec{task}
	return nil
}

// imageForService is the name under which the cluster knows an image, without the digest that the
// client may have added.
func (a *API) imageForService(r *request, ref string) (string, error) {
	if ref == "" {
		return "", fault.New(fault.Invalid, "ContainerSpec: image reference must be provided")
	}
	if img, err := findImage(a.snapshot(), ref); err == nil {
		return img.Name, nil
	}
	return ref, nil // the core asks the registry
}

func (a *API) pinned(name string) *model.TaskSpec {
	if img, ok := store.ByName[*model.Image](a.snapshot(), "", "", name); ok {
		return &model.TaskSpec{Image: img.Name, Digest: img.Digest}
	}
	return &model.TaskSpec{}
}

func (t *serviceTranslation) privileges(task *model.TaskSpec) error {
	p := t.spec.TaskTemplate.ContainerSpec.Privileges
	if p == nil {
		return nil
	}
	switch {
	case p.CredentialSpec != nil:
		return notHonoured("--credential-spec", "")
	case p.SELinuxContext != nil && !p.SELinuxContext.Disable:
		return notHonoured("SELinuxContext", "")
	case p.AppArmor != nil && p.AppArmor.Mode != "" && p.AppArmor.Mode != swarm.AppArmorModeDisabled && p.AppArmor.Mode != swarm.AppArmorModeDefault:
		return notHonoured("AppArmor", p.AppArmor.Mode)
	}
	if p.NoNewPrivileges {
		task.SecurityOpts = append(task.SecurityOpts, "no-new-privileges")
	}
	if p.Seccomp != nil && p.Seccomp.Mode == swarm.SeccompModeUnconfined {
		task.SecurityOpts = append(task.SecurityOpts, "seccomp=unconfined")
	}
	if p.Seccomp != nil && p.Seccomp.Mode == swarm.SeccompModeCustom {
		task.SecurityOpts = append(task.SecurityOpts, "seccomp="+string(p.Seccomp.Profile))
	}
	return nil
}

// files mounts secrets and configs.
func (t *serviceTranslation) files(task *model.TaskSpec) error {
	c := t.spec.TaskTemplate.ContainerSpec
	snap := t.api.snapshot()
	for _, ref := range c.Secrets {
		if ref == nil || ref.File == nil {
			return notHonoured("a secret without a file", "")
		}
		s, err := findSecret(snap, cmp.Or(ref.SecretID, ref.SecretName))
		if err != nil {
			return fault.New(fault.Invalid, "%w", err)
		}
		task.Mounts = append(task.Mounts, model.Mount{
			Type: model.MountSecret, Source: s.ID, Target: under("/run/secrets", ref.File.Name), UID: ref.File.UID, GID: ref.File.GID, Mode: uint32(ref.File.Mode.Perm()),
		})
	}
	for _, ref := range c.Configs {
		if ref == nil || ref.File == nil {
			return notHonoured("a config without a file", "")
		}
		f, err := findConfig(snap, cmp.Or(ref.ConfigID, ref.ConfigName))
		if err != nil {
			return fault.New(fault.Invalid, "%w", err)
		}
		task.Mounts = append(task.Mounts, model.Mount{
			Type: model.MountConfig, Source: f.ID, Target: under("/", ref.File.Name), UID: ref.File.UID, GID: ref.File.GID, Mode: uint32(ref.File.Mode.Perm()),
		})
	}
	return nil
}

func under(dir, name string) string {
	if path.IsAbs(name) {
		return name
	}
	return path.Join(dir, name)
}

func (t *serviceTranslation) resources() error {
	r := t.spec.TaskTemplate.Resources
	if r == nil {
		return nil
	}
	task := &t.workload.Template.Tasks[0]
	if r.SwapBytes != nil || r.MemorySwappiness != nil {
		return notHonoured("--memory-swap, --memory-swappiness", "")
	}
	if l := r.Limits; l != nil {
		task.Limit.NanoCPUs, task.Limit.MemoryBytes, task.Limit.Pids = l.NanoCPUs, l.MemoryBytes, l.Pids
	}
	if v := r.Reservations; v != nil {
		task.Reserve.NanoCPUs, task.Reserve.MemoryBytes = v.NanoCPUs, v.MemoryBytes
		for _, g := range v.GenericResources {
			if g.DiscreteResourceSpec == nil {
				return notHonoured("named generic resources", "")
			}
			if task.Reserve.Custom == nil {
				task.Reserve.Custom = map[string]int64{}
			}
			task.Reserve.Custom[g.DiscreteResourceSpec.Kind] += g.DiscreteResourceSpec.Value
		}
	}
	return nil
}

func (t *serviceTranslation) restart() error {
	out := model.RestartPolicy{Condition: model.RestartAlways, Delay: 5 * time.Second}
	if t.workload.Type.Job() {
		out.Condition = model.RestartOnFailure
	}
	if p := t.spec.TaskTemplate.RestartPolicy; p != nil {
		switch p.Condition {
		case "", swarm.RestartPolicyConditionAny:
		case swarm.RestartPolicyConditionOnFailure:
			out.Condition = model.RestartOnFailure
		case swarm.RestartPolicyConditionNone:
			out.Condition = model.RestartNever
		default:
			return fault.New(fault.Invalid, "invalid restart condition %q", p.Condition)
		}
		if p.Delay != nil {
			out.Delay = *p.Delay
		}
		if p.MaxAttempts != nil {
			out.MaxAttempts = int(min(*p.MaxAttempts, 1<<31))
		}
		if p.Window != nil {
			out.Window = *p.Window
		}
	}
	t.workload.Template.Restart = out
	return nil
}

func (t *serviceTranslation) placement() error {
	p := t.spec.TaskTemplate.Placement
	if p == nil {
		return nil
	}
	out := &t.workload.Template.Placement
	for _, text := range p.Constraints {
		c, err := swarmConstraint(text)
		if err != nil {
			return err
		}
		out.Constraints = append(out.Constraints, c)
	}
	for _, pref := range p.Preferences {
		if pref.Spread == nil {
			return notHonoured("a placement preference other than spread", "")
		}
		if !strings.HasPrefix(pref.Spread.SpreadDescriptor, "node.labels.") {
			return notHonoured("spread over", pref.Spread.SpreadDescriptor)
		}
		out.Spread = append(out.Spread, pref.Spread.SpreadDescriptor)
	}
	out.MaxPerNode = int(min(p.MaxReplicas, 1<<31))
	return nil // platforms are the image's, which every node checks
}

// swarmConstraint reads "key==value" and "key!=value".
func swarmConstraint(text string) (model.Constraint, error) {
	c := model.Constraint{Operator: model.Equal}
	key, value, ok := strings.Cut(text, "==")
	if !ok {
		if key, value, ok = strings.Cut(text, "!="); !ok {
			return c, fault.New(fault.Invalid, "constraint expected one operator from ==, !=: %q", text)
		}
		c.Operator = model.NotEqual
	}
	c.Key, value = strings.TrimSpace(key), strings.TrimSpace(value)
	switch {
	case c.Key == "node.role":
		roles := map[string]string{"manager": "server", "worker": "agent"}
		if roles[value] == "" {
			return c, fault.New(fault.Invalid, "node.role is manager or worker, not %q", value)
		}
		value = roles[value]
	case c.Key == "node.id", c.Key == "node.hostname", c.Key == "node.ip", c.Key == "node.platform.os", c.Key == "node.platform.arch",
		strings.HasPrefix(c.Key, "node.labels."):
	default:
		return c, notHonoured("constraint", text)
	}
	c.Values = []string{value}
	return c, nil
}

// networks attaches the service to what it names, or else to the default network: without one it
// could neither be reached nor reach out.
func (t *serviceTranslation) networks() error {
	list := t.spec.TaskTemplate.Networks
	if len(list) == 0 {
		list = []swarm.NetworkAttachmentConfig{{Target: "bridge"}}
	}
	t.service.Aliases = map[string][]string{}
	for _, at := range list {
		if len(at.DriverOpts) > 0 {
			return notHonoured("--network driver-opt", at.DriverOpts)
		}
		if at.Target == "host" || at.Target == hostNetworkID {
			if len(list) > 1 {
				return fault.New(fault.Invalid, "the host network cannot be combined with others")
			}
			t.workload.Template.HostNetwork = true
			return nil
		}
		n, err := t.api.networkForUse(t.r, at.Target)
		if err != nil {
			return err
		}
		t.workload.Template.Networks = append(t.workload.Template.Networks, model.Attachment{Network: n.ID})
		t.service.Networks = append(t.service.Networks, n.ID)
		aliases := append([]string{}, at.Aliases...)
		if t.spec.Name != t.service.Name {
			aliases = append(aliases, t.spec.Name) // "shop_web" beside "web"
		}
		if len(aliases) > 0 {
			t.service.Aliases[n.ID] = aliases
		}
	}
	return nil
}

func (t *serviceTranslation) ports() error {
	e := t.spec.EndpointSpec
	if e == nil {
		return nil
	}
	t.service.DNSRoundRobin = e.Mode == swarm.ResolutionModeDNSRR
	kept := map[string]int{} // what the service published already, where it leaves that to us
	if old, ok := store.ByName[*model.Service](t.api.snapshot(), model.DefaultNamespace, t.app, t.service.Name); ok {
		for _, p := range old.Ports {
			kept[p.Protocol+" "+string(rune(p.Target))] = p.Published
		}
	}
	free := newFreePorts(t.api.snapshot(), "")
	for _, p := range e.Ports {
		sp := model.ServicePort{
			Name: p.Name, Protocol: cmp.Or(string(p.Protocol), "tcp"), Target: int(p.TargetPort), Published: int(p.PublishedPort),
			HostMode: p.PublishMode == swarm.PortConfigPublishModeHost,
		}
		if t.service.DNSRoundRobin && !sp.HostMode {
			return fault.New(fault.Invalid, "EndpointSpec: port published with ingress mode can't be used with dnsrr mode")
		}
		if sp.Published == 0 {
			if sp.Published = kept[sp.Protocol+" "+string(rune(sp.Target))]; sp.Published == 0 {
				n, err := free.choose("30000-32767", sp.Protocol, "")
				if err != nil {
					return err
				}
				sp.Published = n
			}
		}
		t.service.Ports = append(t.service.Ports, sp)
	}
	return nil
}

func (t *serviceTranslation) updates() (err error) {
	if t.workload.Update, err = updatePolicy(t.spec.UpdateConfig); err != nil {
		return err
	}
	if t.workload.Rollback, err = updatePolicy(t.spec.RollbackConfig); err == nil && t.rollback {
		t.workload.Update = t.workload.Rollback
	}
	return err
}

func updatePolicy(u *swarm.UpdateConfig) (model.UpdatePolicy, error) {
	if u == nil {
		return model.UpdatePolicy{Parallelism: 1}, nil
	}
	p := model.UpdatePolicy{
		Parallelism: int(min(u.Parallelism, 1<<31)), Delay: u.Delay, Monitor: u.Monitor, MaxFailureRatio: float64(u.MaxFailureRatio),
	}
	switch u.Order {
	case "", swarm.UpdateOrderStopFirst:
	case swarm.UpdateOrderStartFirst:
		p.Order = model.StartFirst
	default:
		return p, fault.New(fault.Invalid, "invalid update order %q", u.Order)
	}
	switch u.FailureAction {
	case "", swarm.UpdateFailureActionPause:
	case swarm.UpdateFailureActionContinue:
		p.OnFailure = model.ContinueOnFailure
	case swarm.UpdateFailureActionRollback:
		p.OnFailure = model.RollBackOnFailure
	default:
		return p, fault.New(fault.Invalid, "invalid update failure action %q", u.FailureAction)
	}
	return p, nil
}
