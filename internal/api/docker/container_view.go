package docker

import (
	"cmp"
	"context"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/docker/go-units"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/network"

	"github.com/tutti-run/tutti/internal/core"
	"github.com/tutti-run/tutti/internal/image"
	"github.com/tutti-run/tutti/internal/model"
	"github.com/tutti-run/tutti/internal/store"
)

// created is what the extension of a container's workload keeps: the request as it was made.
type created struct {
	Config     *container.Config         `json:"config"`
	HostConfig *container.HostConfig     `json:"hostConfig"`
	Networking *network.NetworkingConfig `json:"networking,omitempty"`
}

// box is a container: a task of an instance, or of a workload that has no instance yet.
type box struct {
	id, name string
	workload *model.Workload
	instance *model.Instance // nil while there is none
	template *model.Template // what it runs
	nth      int             // index into the template's tasks
	made     *created        // nil unless it was made through this API
	ports    []model.ServicePort
	node     string // name of its node; "" while it has none
}

func (b *box) spec() *model.TaskSpec { return &b.template.Tasks[b.nth] }

// task is what nodes know it as.
func (b *box) task() core.TaskRef { return core.TaskRef{Instance: b.instance.ID, Task: b.spec().Name} }

// run is the latest run of the task, nil when there was none.
func (b *box) run() *model.TaskStatus {
	if b.instance == nil {
		return nil
	}
	for i := range b.instance.Status.Tasks {
		if t := &b.instance.Status.Tasks[i]; t.Name == b.spec().Name {
			return t
		}
	}
	return nil
}

func (b *box) created() time.Time {
	if b.made == nil && b.instance != nil {
		return b.instance.Created
	}
	return b.workload.Created
}

// instanceName is what Swarm calls the container of a task: service, slot or node, and task.
func instanceName(w *model.Workload, i *model.Instance) string {
	slot := fmt.Sprint(i.Slot)
	if w.Type == model.GlobalWorkload || w.Type == model.GlobalJobWorkload {
		slot = i.NodeID
	}
	return dockerName(&w.Meta) + "." + slot + "." + i.ID
}

// newer prefers what is wanted, then what was made later.
func newer(a, b *model.Instance) bool {
	if x, y := a.Status.State.Final(), b.Status.State.Final(); x != y {
		return y
	}
	return a.Created.After(b.Created)
}

func (b *box) at(snap *store.Snapshot) *box {
	if b.instance != nil {
		if n, ok := store.Get[*model.Node](snap, b.instance.NodeID); ok {
			b.node = n.Name
		}
	}
	return b
}

// state is the container's state in Docker's words.
func (b *box) state() container.ContainerState {
	i := b.instance
	if i == nil {
		if b.workload.Starts > 0 && b.workload.Suspended {
			return container.StateExited
		}
		return container.StateCreated
	}
	switch i.Status.State {
	case model.InstanceRunning, model.InstanceStopping:
		t := b.run()
		switch {
		case t != nil && t.State == "paused":
			return container.StatePaused
		case t != nil && t.State == "exited":
			return container.StateExited
		}
		return container.StateRunning
	case model.InstanceWaiting:
		return container.StateRestarting
	case model.InstanceHeld:
		if i.Starts == 0 && b.run() == nil {
			return container.StateCreated
		}
		return container.StateExited
	case model.InstanceCompleted, model.InstanceFailed:
		return container.StateExited
	case model.InstanceLost:
		return container.StateDead
	}
	if i.Status.Restarts > 0 {
		return container.StateRestarting
	}
	return container.StateCreated
}

func (b *box) running() bool {
	switch b.state() {
	case container.StateRunning, container.StatePaused, container.StateRestarting:
		return true
	}
	return false
}

func (b *box) health() container.HealthStatus {
	if b.instance == nil || !b.running() {
		return container.NoHealthcheck
	}
	switch b.instance.Status.Health {
	case model.HealthStarting:
		return container.Starting
	case model.HealthHealthy:
		return container.Healthy
	case model.HealthUnhealthy:
		return container.Unhealthy
	}
	return container.NoHealthcheck
}

// exit is how the latest run ended.
func (b *box) exit() (code int, message string) {
	if t := b.run(); t != nil {
		return t.ExitCode, t.Error
	}
	if b.instance != nil && b.instance.Status.State == model.InstanceFailed {
		return 128, b.instance.Status.Message
	}
	return 0, ""
}

func (b *box) times() (started, finished time.Time) {
	if t := b.run(); t != nil {
		return t.Started, t.Finished
	}
	if b.instance != nil {
		return b.instance.Status.Started, b.instance.Status.Finished
	}
	return
}

// status is the state in a few words, as `docker ps` shows it.
func (b *box) status(now time.Time) string {
	started, finished := b.times()
	code, _ := b.exit()
	up := "Up " + units.HumanDuration(now.Sub(started))
	switch b.state() {
	case container.StateRunning:
		switch h := b.health(); h {
		case container.NoHealthcheck:
			return up
		case container.Starting:
			return up + " (health: starting)"
		default:
			return fmt.Sprintf("%s (%s)", up, h)
		}
	case container.StatePaused:
		return up + " (Paused)"
	case container.StateRestarting:
		return fmt.Sprintf("Restarting (%d) %s ago", code, units.HumanDuration(now.Sub(finished)))
	case container.StateCreated:
		return "Created"
	case container.StateDead:
		return "Dead"
	}
	if finished.IsZero() {
		return fmt.Sprintf("Exited (%d)", code)
	}
	return fmt.Sprintf("Exited (%d) %s ago", code, units.HumanDuration(now.Sub(finished)))
}

// labels are those that people gave the container, and Swarm's of what a service runs.
func (b *box) labels() map[string]string {
	out := map[string]string{}
	if b.made != nil {
		for k, v := range b.made.Config.Labels {
			out[k] = v
		}
		return out
	}
	for k, v := range b.spec().Labels {
		out[k] = v
	}
	w := b.workload
	out["com.docker.swarm.service.id"] = w.ID
	out["com.docker.swarm.service.name"] = dockerName(&w.Meta)
	if w.Application != "" {
		out[stackLabel] = w.Application
	}
	if i := b.instance; i != nil {
		out["com.docker.swarm.node.id"] = i.NodeID
		out["com.docker.swarm.task"] = ""
		out["com.docker.swarm.task.id"] = i.ID
		out["com.docker.swarm.task.name"] = instanceName(w, i)
	}
	return out
}

// imageConfigs remembers what images say about running them, by digest.
type imageConfigs struct {
	mu sync.Mutex
	of map[string]image.Settings
}

var noSettings image.Settings

const (
	maxImages     = 1000            // of how many something is remembered before all is forgotten
	imagePatience = 5 * time.Second // of who wants to know something of an image that is not here
)

// settings returns what the task's image says, as far as this host can find out.
func (a *API) settings(ctx context.Context, t *model.TaskSpec) image.Settings {
	if t.Digest == "" {
		return noSettings
	}
	a.images.mu.Lock()
	s, ok := a.images.of[t.Digest]
	a.images.mu.Unlock()
	if ok {
		return s
	}
	ctx, cancel := context.WithTimeout(ctx, imagePatience)
	defer cancel()
	info, err := a.Core.Images.Ensure(ctx, t.Image, t.Digest, func(image.Progress) {})
	if err != nil {
		return noSettings
	}
	a.images.mu.Lock()
	defer a.images.mu.Unlock()
	if a.images.of == nil || len(a.images.of) > maxImages {
		a.images.of = map[string]image.Settings{}
	}
	a.images.of[t.Digest] = info.Config
	return info.Config
}

// command is what the container runs, resolved against its image.
func (a *API) command(ctx context.Context, t *model.TaskSpec) (path string, args []string) {
	entrypoint, cmd := t.Entrypoint, t.Args
	if entrypoint == nil {
		s := a.settings(ctx, t)
		entrypoint = s.Entrypoint
		if cmd == nil {
			cmd = s.Cmd
		}
	}
	all := slices.Concat(entrypoint, cmd)
	if len(all) == 0 {
		return "", []string{}
	}
	return all[0], append([]string{}, all[1:]...)
}

// publications are the ports of a container and where they are published.
func (a *API) publications(ctx context.Context, b *box) []container.PortSummary {
	out := []container.PortSummary{}
	published := map[string]bool{}
	if b.running() {
		for _, p := range b.ports {
			if p.Published == 0 {
				continue
			}
			published[fmt.Sprintf("%d/%s", p.Target, p.Protocol)] = true
			s := container.PortSummary{PrivatePort: uint16(p.Target), PublicPort: uint16(p.Published), Type: p.Protocol, IP: netip.IPv4Unspecified()}
			if ip, err := netip.ParseAddr(p.HostIP); err == nil {
				s.IP = ip
			}
			out = append(out, s)
		}
	}
	for _, e := range a.exposed(ctx, b) {
		if !published[e.String()] {
			out = append(out, container.PortSummary{PrivatePort: e.Num(), Type: string(e.Proto())})
		}
	}
	slices.SortFunc(out, func(x, y container.PortSummary) int {
		return cmp.Or(cmp.Compare(x.PrivatePort, y.PrivatePort), cmp.Compare(x.PublicPort, y.PublicPort), cmp.Compare(x.Type, y.Type))
	})
	return out
}

// exposed are the ports that the container or its image declares.
func (a *API) exposed(ctx context.Context, b *box) []network.Port {
	var out []network.Port
	add := func(p network.Port) {
		if !slices.Contains(out, p) {
			out = append(out, p)
		}
	}
	if b.made != nil {
		for p := range b.made.Config.ExposedPorts {
			add(p)
		}
	}
	for _, text := range a.settings(ctx, b.spec()).ExposedPorts {
		if p, err := network.ParsePort(text); err == nil {
			add(p)
		}
	}
	slices.SortFunc(out, func(x, y network.Port) int { return cmp.Compare(x.String(), y.String()) })
	return out
}
