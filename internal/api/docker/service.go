package docker

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/moby/moby/api/types/network"
	"github.com/moby/moby/api/types/swarm"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/tutti-run/tutti/internal/core"
	"github.com/tutti-run/tutti/internal/driver"
	"github.com/tutti-run/tutti/internal/fault"
	"github.com/tutti-run/tutti/internal/model"
	"github.com/tutti-run/tutti/internal/store"
)

// servicesOf lists the workloads that Swarm knows as services: all but containers, and what others stand for.
func servicesOf(snap *store.Snapshot) []*model.Workload {
	var out []*model.Workload
	for w := range store.List[*model.Workload](snap) {
		if _, within := store.Within(snap, w); !within && !isContainer(w) {
			out = append(out, w)
		}
	}
	slices.SortFunc(out, func(a, b *model.Workload) int { return strings.Compare(dockerName(&a.Meta), dockerName(&b.Meta)) })
	return out
}

func findService(snap *store.Snapshot, ref string) (*model.Workload, error) {
	var prefixed []*model.Workload
	for _, w := range servicesOf(snap) {
		if w.ID == ref || dockerName(&w.Meta) == ref || w.FullName() == ref {
			return w, nil
		}
		if ref != "" && strings.HasPrefix(w.ID, ref) {
			prefixed = append(prefixed, w)
		}
	}
	switch len(prefixed) {
	case 1:
		return prefixed[0], nil
	case 0:
		return nil, fault.New(fault.NotFound, "service %s not found", ref)
	}
	return nil, fault.New(fault.Invalid, "service %s is ambiguous (%d matches found)", ref, len(prefixed))
}

func specifiedOf(w *model.Workload) specified {
	var s specified
	_ = json.Unmarshal(w.Extensions[extension], &s) // what another API made has none
	return s
}

// specOf is a service's specification as it was put, with the count that it has now; that of a
// workload which another API made is put together from what it is.
func specOf(snap *store.Snapshot, w *model.Workload) *swarm.ServiceSpec {
	spec := specifiedOf(w).Spec
	if spec == nil {
		spec = &swarm.ServiceSpec{TaskTemplate: taskSpecOf(&w.Template)}
		spec.Labels = map[string]string{}
		for k, v := range w.Labels {
			spec.Labels[k] = v
		}
		if w.Application != "" {
			spec.Labels[stackLabel] = w.Application
		}
		spec.EndpointSpec = &swarm.EndpointSpec{Mode: swarm.ResolutionModeVIP}
		for _, p := range portsOf(snap, w) {
			spec.EndpointSpec.Ports = append(spec.EndpointSpec.Ports, portConfig(p))
		}
	}
	spec.Name = dockerName(&w.Meta)
	count := uint64(w.Count)
	switch w.Type {
	case model.GlobalWorkload:
		spec.Mode = swarm.ServiceMode{Global: &swarm.GlobalService{}}
	case model.GlobalJobWorkload:
		spec.Mode = swarm.ServiceMode{GlobalJob: &swarm.GlobalJob{}}
	case model.JobWorkload:
		concurrent := uint64(cmp.Or(w.Job.Parallelism, w.Count))
		spec.Mode = swarm.ServiceMode{ReplicatedJob: &swarm.ReplicatedJob{MaxConcurrent: &concurrent, TotalCompletions: &count}}
	default:
		spec.Mode = swarm.ServiceMode{Replicated: &swarm.ReplicatedService{Replicas: &count}}
	}
	return spec
}

// taskSpecOf says in Swarm's words what a template runs; of several tasks, the first.
func taskSpecOf(t *model.Template) swarm.TaskSpec {
	out := swarm.TaskSpec{ContainerSpec: &swarm.ContainerSpec{}, ForceUpdate: t.ForceUpdate, Runtime: swarm.RuntimeContainer}
	if len(t.Tasks) == 0 {
		return out
	}
	task := &t.Tasks[0]
	c := out.ContainerSpec
	c.Image, c.Labels, c.Command, c.Args, c.Env, c.Dir, c.User, c.Groups = task.Image, task.Labels, task.Entrypoint, task.Args, task.Env, task.WorkingDir, task.User, task.Groups
	c.Hostname, c.TTY, c.OpenStdin, c.ReadOnly, c.StopSignal, c.StopGracePeriod = t.Hostname, task.TTY, task.Stdin, task.ReadOnlyRoot, task.StopSignal, &t.StopGrace
	if task.Limit.NanoCPUs+task.Limit.MemoryBytes+task.Reserve.NanoCPUs+task.Reserve.MemoryBytes > 0 {
		out.Resources = &swarm.ResourceRequirements{
			Limits:       &swarm.Limit{NanoCPUs: task.Limit.NanoCPUs, MemoryBytes: task.Limit.MemoryBytes, Pids: task.Limit.Pids},
			Reservations: &swarm.Resources{NanoCPUs: task.Reserve.NanoCPUs, MemoryBytes: task.Reserve.MemoryBytes},
		}
	}
	for _, at := range t.Networks {
		out.Networks = append(out.Networks, swarm.NetworkAttachmentConfig{Target: at.Network, Aliases: at.Aliases})
	}
	return out
}

func portConfig(p model.ServicePort) swarm.PortConfig {
	out := swarm.PortConfig{
		Name: p.Name, Protocol: network.IPProtocol(p.Protocol), TargetPort: uint32(p.Target), PublishedPort: uint32(p.Published), PublishMode: swarm.PortConfigPublishModeIngress,
	}
	if p.HostMode {
		out.PublishMode = swarm.PortConfigPublishModeHost
	}
	return out
}

func serviceView(snap *store.Snapshot, w *model.Workload, status bool) swarm.Service {
	s := swarm.Service{ID: w.ID, Spec: *specOf(snap, w), PreviousSpec: specifiedOf(w).Previous}
	s.Version.Index, s.CreatedAt, s.UpdatedAt = w.Generation, w.Created.UTC(), w.Created.UTC()
	if r, ok := store.Get[*model.Revision](snap, w.RevisionID); ok {
		s.UpdatedAt = r.Created.UTC()
	}
	if s.Spec.EndpointSpec != nil {
		s.Endpoint.Spec = *s.Spec.EndpointSpec
	} else {
		s.Endpoint.Spec.Mode = swarm.ResolutionModeVIP
	}
	for svc := range store.ByApplication[*model.Service](snap, w.Namespace, w.Application) {
		if svc.WorkloadID != w.ID {
			continue
		}
		for _, p := range svc.Ports {
			s.Endpoint.Ports = append(s.Endpoint.Ports, portConfig(p))
		}
		for _, v := range svc.Status.VirtualIPs {
			vip := swarm.EndpointVirtualIP{NetworkID: v.Network}
			if ip, err := netip.ParseAddr(v.IP); err == nil {
				vip.Addr = netip.PrefixFrom(ip, 24)
			}
			s.Endpoint.VirtualIPs = append(s.Endpoint.VirtualIPs, vip)
		}
	}
	if u := &w.Status.Rollout; updateState(w) != "" {
		s.UpdateStatus = &swarm.UpdateStatus{State: updateState(w), StartedAt: &u.Started, Message: cmp.Or(u.Message, updateMessages[updateState(w)])}
		if !u.Finished.IsZero() {
			s.UpdateStatus.CompletedAt = &u.Finished
		}
	}
	if w.Type.Job() {
		s.JobStatus = &swarm.JobStatus{JobIteration: jobIteration(w), LastExecution: s.UpdatedAt}
	}
	if status {
		s.ServiceStatus = &swarm.ServiceStatus{DesiredTasks: uint64(w.Count)}
		nodes := 0
		for i := range store.InstancesOf(snap, w) {
			switch {
			case i.Status.State == model.InstanceRunning && i.Desired == model.DesiredRun:
				s.ServiceStatus.RunningTasks++
				nodes++
			case i.Status.State == model.InstanceCompleted && w.Type.Job():
				s.ServiceStatus.CompletedTasks++
			case i.WantsToRun():
				nodes++
			}
		}
		if w.Type.PerNode() {
			s.ServiceStatus.DesiredTasks = uint64(nodes)
		}
	}
	return s
}

// jobIteration counts the runs of a job: each specification is one.
func jobIteration(w *model.Workload) swarm.Version { return swarm.Version{Index: w.Generation - 1} }

func (a *API) serviceList(w http.ResponseWriter, r *request) error {
	f, err := readFilters(r, "id", "label", "mode", "name", "runtime")
	if err != nil {
		return err
	}
	snap := a.snapshot()
	out := []swarm.Service{}
	for _, wl := range servicesOf(snap) {
		s := serviceView(snap, wl, r.flag("status"))
		if !f.prefix("id", s.ID) || !f.prefix("name", s.Spec.Name) || !f.labels("label", s.Spec.Labels) || !f.exact("mode", modeText(wl.Type)) || !f.exact("runtime", "container") {
			continue
		}
		out = append(out, s)
	}
	return answer(w, http.StatusOK, out)
}

func modeText(k model.WorkloadKind) string {
	switch k {
	case model.GlobalWorkload:
		return "global"
	case model.JobWorkload:
		return "replicated-job"
	case model.GlobalJobWorkload:
		return "global-job"
	}
	return "replicated"
}

func (a *API) serviceInspect(w http.ResponseWriter, r *request) error {
	snap := a.snapshot()
	wl, err := findService(snap, r.vars["id"])
	if err != nil {
		return err
	}
	return answer(w, http.StatusOK, serviceView(snap, wl, false))
}

func (a *API) serviceCreate(w http.ResponseWriter, r *request) error {
	var spec swarm.ServiceSpec
	if err := decode(r, &spec, false); err != nil {
		return err
	}
	for _, wl := range servicesOf(a.snapshot()) {
		if dockerName(&wl.Meta) == spec.Name {
			return fault.New(fault.Conflict, "rpc error: code = AlreadyExists desc = name conflicts with an existing object: service %s already exists", spec.Name)
		}
	}
	if err := a.deploy(r, &spec, nil, false); err != nil {
		return err
	}
	wl, err := findService(a.snapshot(), spec.Name)
	if err != nil {
		return err
	}
	return answer(w, http.StatusCreated, map[string]any{"ID": wl.ID})
}

func (a *API) serviceUpdate(w http.ResponseWriter, r *request) error {
	snap := a.snapshot()
	wl, err := findService(snap, r.vars["id"])
	if err != nil {
		return err
	}
	version, err := strconv.ParseUint(r.query.Get("version"), 10, 64)
	if err != nil {
		return fault.New(fault.Invalid, "invalid service version '%s': %w", r.query.Get("version"), err)
	}
	if version != wl.Generation {
		return fault.New(fault.Internal, "rpc error: code = Unknown desc = update out of sequence")
	}
	var spec swarm.ServiceSpec
	if err := decode(r, &spec, false); err != nil {
		return err
	}
	present := specOf(snap, wl)
	rollback := r.query.Get("rollback")
	switch rollback {
	case "":
	case "previous":
		previous := specifiedOf(wl).Previous
		if previous == nil {
			return fault.New(fault.Invalid, "rpc error: code = FailedPrecondition desc = service %s does not have a previous spec", wl.ID)
		}
		spec = *previous
	default:
		return fault.New(fault.Invalid, "unrecognized rollback option: %s", rollback)
	}
	if spec.Name != present.Name {
		return fault.New(fault.Unsupported, "rpc error: code = Unimplemented desc = renaming services is not supported")
	}
	if spec.TaskTemplate.ForceUpdate < wl.Template.ForceUpdate {
		spec.TaskTemplate.ForceUpdate = wl.Template.ForceUpdate
	}
	if specifiedOf(wl).Spec == nil && wl.Application != "" {
		return a.updateForeign(w, r, wl, present, &spec)
	}
	if err := a.deploy(r, &spec, present, rollback != ""); err != nil {
		return err
	}
	return answer(w, http.StatusOK, swarm.ServiceUpdateResponse{Warnings: []string{}})
}

// updateForeign changes a service that another API made: how many there are, and nothing that this
// API's words may not be able to say.
func (a *API) updateForeign(w http.ResponseWriter, r *request, wl *model.Workload, present, spec *swarm.ServiceSpec) error {
	replicas := spec.Mode.Replicated
	same := *spec
	same.Mode, same.TaskTemplate.ForceUpdate = present.Mode, present.TaskTemplate.ForceUpdate
	x, _ := json.Marshal(same)
	y, _ := json.Marshal(present)
	var u, v any
	_, _ = json.Unmarshal(x, &u), json.Unmarshal(y, &v)
	if fmt.Sprint(u) != fmt.Sprint(v) {
		if err := wl.Refusal(); err != nil {
			return err
		}
		return fault.New(fault.Unsupported, "service %s was made with another API of Tutti: here it can be scaled and restarted; change it where it was made", spec.Name)
	}
	if replicas != nil && replicas.Replicas != nil && int(*replicas.Replicas) != wl.Count {
		if err := a.Core.Scale(r.Context(), r.who, wl.ID, int(*replicas.Replicas)); err != nil {
			return err
		}
	}
	if spec.TaskTemplate.ForceUpdate > wl.Template.ForceUpdate {
		if err := a.Core.RestartWorkload(r.Context(), r.who, wl.ID); err != nil {
			return err
		}
	}
	return answer(w, http.StatusOK, swarm.ServiceUpdateResponse{Warnings: []string{}})
}

func (a *API) serviceRemove(w http.ResponseWriter, r *request) error {
	wl, err := findService(a.snapshot(), r.vars["id"])
	if err != nil {
		return err
	}
	if err := wl.Refusal(); err != nil {
		return err
	}
	if err := a.Core.RemoveWorkload(r.Context(), r.who, wl.ID, nil); err != nil {
		return err
	}
	return done(w, http.StatusOK)
}

func (a *API) serviceLogs(w http.ResponseWriter, r *request) error {
	wl, err := findService(a.snapshot(), r.vars["id"])
	if err != nil {
		return err
	}
	return a.swarmLogs(w, r, wl.ID, wl)
}

func (a *API) taskLogs(w http.ResponseWriter, r *request) error {
	i, wl, err := findTask(a.snapshot(), r.vars["id"])
	if err != nil {
		return err
	}
	return a.swarmLogs(w, r, i.ID, wl)
}

// swarmLogs writes the log of a service or task; the details of a line say whose it is.
func (a *API) swarmLogs(w http.ResponseWriter, r *request, ref string, wl *model.Workload) error {
	o, err := logOptions(r)
	if err != nil {
		return err
	}
	tty := len(wl.Template.Tasks) > 0 && wl.Template.Tasks[0].TTY
	w.Header().Set("Content-Type", mediaOf(r, tty))
	w.WriteHeader(http.StatusOK)
	out := &logWriter{frames: frames{w: w, raw: tty}, logRequest: o, flush: http.NewResponseController(w).Flush}
	_ = out.flush()
	nodes := map[string]string{}
	for n := range store.List[*model.Node](a.snapshot()) {
		nodes[n.Name] = n.ID
	}
	err = a.Core.Logs(r.Context(), r.who, ref, o.LogOptions, func(l core.LogLine) error {
		details := fmt.Sprintf("com.docker.swarm.node.id=%s,com.docker.swarm.service.id=%s,com.docker.swarm.task.id=%s", nodes[l.Node], wl.ID, l.Instance)
		return out.line(driver.LogEntry{Time: l.Time, Stream: l.Stream, Line: l.Line}, details)
	})
	if err != nil && r.Context().Err() == nil && !fault.Is(err, fault.Unavailable) {
		a.Log.Debug("log of a service ended", "service", wl.FullName(), "error", err)
	}
	return nil
}

// distribution tells clients what the registry has under a name, or the cluster when it comes from none, so that
// they can pin it.
func (a *API) distribution(w http.ResponseWriter, r *request) error {
	as, err := credentials(r)
	if err != nil {
		return err
	}
	type platform struct {
		Architecture string `json:"architecture"`
		OS           string `json:"os"`
		Variant      string `json:"variant,omitempty"`
	}
	answerWith := func(target ocispec.Descriptor, platforms []platform) error {
		return answer(w, http.StatusOK, map[string]any{"Descriptor": target, "Platforms": platforms})
	}
	img, err := findImage(a.snapshot(), r.vars["name"])
	if err != nil || img.Pulled {
		asked, askErr := a.Core.ResolveImage(r.Context(), r.who, r.vars["name"], as)
		if askErr == nil {
			platforms := []platform{}
			for _, p := range asked.Platforms {
				platforms = append(platforms, platform{p.Architecture, p.OS, p.Variant})
			}
			return answerWith(asked.Target, platforms)
		}
		if err != nil {
			return askErr
		}
	}
	ctx, cancel := context.WithTimeout(r.Context(), 10*time.Second)
	defer cancel()
	d, err := a.Core.Images.Describe(ctx, img.Name, img.Digest)
	if err != nil {
		return err
	}
	return answerWith(d.Target, []platform{{Architecture: d.Config.Architecture, OS: d.Config.OS}})
}
