package docker

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"net/http"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/mount"
	"github.com/moby/moby/api/types/network"

	"github.com/tutti-run/tutti/internal/model"
	"github.com/tutti-run/tutti/internal/store"
)

// inspected is an inspected container: with the node that it is on, as classic Swarm told it, and
// the network settings of API versions up to 1.51.
type inspected struct {
	container.InspectResponse
	NetworkSettings *networkSettings
	Node            *nodeOf `json:",omitempty"`
}

type nodeOf struct {
	ID, Name, Addr, IP string
}

type networkSettings struct {
	Bridge                 string
	SandboxID, SandboxKey  string
	Ports                  network.PortMap
	HairpinMode            bool
	LinkLocalIPv6Address   string
	LinkLocalIPv6PrefixLen int
	SecondaryIPAddresses   []string
	SecondaryIPv6Addresses []string
	EndpointID             string
	Gateway                string
	GlobalIPv6Address      string
	GlobalIPv6PrefixLen    int
	IPAddress              string
	IPPrefixLen            int
	IPv6Gateway            string
	MacAddress             string
	Networks               map[string]*network.EndpointSettings
}

func digestOf(parts ...string) string {
	h := sha256.New()
	for _, p := range parts {
		h.Write([]byte(p))
		h.Write([]byte{0})
	}
	return hex.EncodeToString(h.Sum(nil))
}

func fillEndpoint(e *network.EndpointSettings, b *box, n *model.Network, ip string) {
	address, err := netip.ParseAddr(ip)
	if err != nil {
		return
	}
	e.IPAddress, e.EndpointID = address, digestOf(b.id, n.ID)
	e.Gateway = netip.AddrFrom4([4]byte{169, 254, 1, 1})
	if n.Underlay != nil {
		e.Gateway = n.WayOut()
	}
	if p, err := netip.ParsePrefix(n.Status.Subnet); err == nil {
		e.IPPrefixLen = p.Bits()
	}
}

func (a *API) containerInspect(w http.ResponseWriter, r *request) error {
	snap := a.snapshot()
	b, err := a.findBox(snap, r.vars["name"])
	if err != nil {
		return err
	}
	out := a.inspect(r.Context(), snap, b)
	if r.flag("size") {
		sizes, err := a.sizes(r, []*box{b}, nil)
		if err != nil {
			return err
		}
		s := (summary{}).with(sizes, b)
		out.SizeRw, out.SizeRootFs = &s.SizeRw, &s.SizeRootFs
	}
	return answer(w, http.StatusOK, out)
}

func (a *API) inspect(ctx context.Context, snap *store.Snapshot, b *box) inspected {
	path, args := a.command(ctx, b.spec())
	config, host := a.configs(ctx, b)
	out := inspected{InspectResponse: container.InspectResponse{
		ID: b.id, Created: b.created().UTC().Format(time.RFC3339Nano), Path: path, Args: args, State: b.inspectState(),
		Image: b.spec().Digest, Name: "/" + b.name, Driver: "overlay2", Platform: "linux", Config: config, HostConfig: host,
		Mounts: a.mountPoints(snap, b), ExecIDs: a.execs.of(b.id),
	}}
	if out.State.Health == nil && b.instance != nil && a.probed(ctx, b) {
		// Nothing is known of its health before its first probe, and when it has ended.
		out.State.Health = &container.Health{Status: container.Starting, Log: []*container.HealthcheckResult{}}
		if b.ended() {
			out.State.Health.Status = container.Unhealthy
		}
	}
	if b.instance != nil {
		out.RestartCount = b.instance.Status.Restarts
		if n, ok := store.Get[*model.Node](snap, b.instance.NodeID); ok {
			out.Node = &nodeOf{ID: n.ID, Name: n.Name, Addr: n.WireAddress, IP: n.HostAddress}
		}
	}
	out.NetworkSettings = a.networkSettings(ctx, snap, b)
	return out
}

// probed reports whether a container has a health check, its own or its image's.
func (a *API) probed(ctx context.Context, b *box) bool {
	t := b.spec()
	return !t.NoHealth && (t.Health != nil || a.settings(ctx, t).Health != nil)
}

func (a *API) networkSettings(ctx context.Context, snap *store.Snapshot, b *box) *networkSettings {
	ns := &networkSettings{Ports: network.PortMap{}, Networks: a.endpoints(snap, b)}
	if b.instance != nil && b.running() {
		ns.SandboxID = digestOf(b.instance.ID)
		ns.SandboxKey = "/var/run/docker/netns/" + shortID(ns.SandboxID)
		for _, p := range a.publications(ctx, b) {
			port, ok := network.PortFrom(p.PrivatePort, network.IPProtocol(p.Type))
			if !ok {
				continue
			}
			list := ns.Ports[port]
			if p.PublicPort != 0 {
				list = append(list, network.PortBinding{HostIP: p.IP, HostPort: strconv.Itoa(int(p.PublicPort))})
			}
			ns.Ports[port] = list
		}
	}
	if e := ns.Networks[network.NetworkBridge]; e != nil && e.IPAddress.IsValid() {
		ns.IPAddress, ns.IPPrefixLen, ns.EndpointID, ns.Gateway = e.IPAddress.String(), e.IPPrefixLen, e.EndpointID, e.Gateway.String()
	}
	return ns
}

const never = "0001-01-01T00:00:00Z"

func timeText(t time.Time) string {
	if t.IsZero() {
		return never
	}
	return t.UTC().Format(time.RFC3339Nano)
}

func (b *box) inspectState() *container.State {
	state := b.state()
	started, finished := b.times()
	code, message := b.exit()
	s := &container.State{
		Status: state, Running: b.running(), Paused: state == container.StatePaused, Restarting: state == container.StateRestarting,
		Dead: state == container.StateDead, ExitCode: code, Error: message, StartedAt: timeText(started), FinishedAt: timeText(finished),
	}
	if t := b.run(); t != nil {
		s.OOMKilled = t.OOM
		if s.Running {
			s.Pid = t.PID
		}
	}
	if h := b.health(); h != container.NoHealthcheck {
		s.Health = &container.Health{Status: h, Log: []*container.HealthcheckResult{}}
	}
	return s
}

// configs are the request of a container that was made here, or what one would have been.
func (a *API) configs(ctx context.Context, b *box) (*container.Config, *container.HostConfig) {
	t := b.spec()
	s := a.settings(ctx, t)
	if b.made != nil {
		config, host := *b.made.Config, *b.made.HostConfig
		host.Links = linksOf(b)
		if host.NetworkMode.IsContainer() {
			if other := a.boxByID(a.snapshot(), host.NetworkMode.ConnectedContainer()); other != nil && other.id != b.id {
				theirs, _ := a.configs(ctx, other)
				config.Hostname = theirs.Hostname
			}
		}
		if config.Hostname == "" {
			config.Hostname = shortID(b.id)
		}
		config.Env = mergeEnv(s.Env, config.Env)
		if config.Entrypoint == nil {
			config.Entrypoint = s.Entrypoint
			if config.Cmd == nil {
				config.Cmd = s.Cmd
			}
		}
		config.User, config.WorkingDir = cmp.Or(config.User, s.User), cmp.Or(config.WorkingDir, s.WorkingDir)
		labels := map[string]string{}
		for _, m := range []map[string]string{s.Labels, config.Labels} {
			for k, v := range m {
				labels[k] = v
			}
		}
		config.Labels = labels
		return &config, &host
	}
	config := &container.Config{
		Hostname: b.template.Hostname, Domainname: b.template.Domainname, User: cmp.Or(t.User, s.User), Tty: t.TTY, OpenStdin: t.Stdin,
		Env: mergeEnv(s.Env, t.Env), Cmd: t.Args, Entrypoint: t.Entrypoint, Image: t.Image, WorkingDir: cmp.Or(t.WorkingDir, s.WorkingDir),
		Labels: b.labels(), StopSignal: cmp.Or(t.StopSignal, s.StopSignal),
	}
	if t.Entrypoint == nil {
		config.Entrypoint = s.Entrypoint
		if t.Args == nil {
			config.Cmd = s.Cmd
		}
	}
	host := &container.HostConfig{
		NetworkMode: "default", CapAdd: t.CapAdd, CapDrop: t.CapDrop, Privileged: t.Privileged, ReadonlyRootfs: t.ReadOnlyRoot,
		Sysctls: b.template.Sysctls, ShmSize: cmp.Or(t.ShmBytes, 64<<20), SecurityOpt: t.SecurityOpts,
	}
	host.NanoCPUs, host.Memory, host.MemoryReservation = t.Limit.NanoCPUs, t.Limit.MemoryBytes, t.Reserve.MemoryBytes
	host.LogConfig.Type = "json-file"
	return config, host
}

// linksOf are a container's links in the form in which the Engine tells of them.
func linksOf(b *box) (out []string) {
	for _, link := range b.made.HostConfig.Links {
		to, alias, ok := strings.Cut(link, ":")
		if !ok {
			alias = to
		}
		out = append(out, "/"+to+":/"+b.name+"/"+alias)
	}
	return out
}

// mergeEnv joins NAME=value lists; the last value of a name counts.
func mergeEnv(lists ...[]string) []string {
	out := []string{}
	at := map[string]int{}
	for _, e := range slices.Concat(lists...) {
		name := e
		for i := range e {
			if e[i] == '=' {
				name = e[:i]
				break
			}
		}
		if i, ok := at[name]; ok {
			out[i] = e
			continue
		}
		at[name] = len(out)
		out = append(out, e)
	}
	return out
}

// mountPoints are the container's mounts as they came to be.
func (a *API) mountPoints(snap *store.Snapshot, b *box) []container.MountPoint {
	out := []container.MountPoint{}
	for n, m := range b.spec().Mounts {
		p := container.MountPoint{Type: mount.Type(m.Type), Source: m.Source, Destination: m.Target, RW: !m.ReadOnly}
		switch m.Type {
		case model.MountVolume:
			p.Driver, p.Mode = "local", "z"
			if m.Source == "" {
				p.Name = digestOf(b.id, fmt.Sprint(n))
			} else if v, ok := store.Get[*model.Volume](snap, m.Source); ok {
				p.Name = dockerName(&v.Meta)
			}
			p.Source = volumePath(p.Name)
		case model.MountBind:
			p.Propagation = mount.Propagation(cmp.Or(m.Propagation, "rprivate"))
		case model.MountTmpfs:
		case model.MountSecret, model.MountConfig:
			continue
		}
		out = append(out, p)
	}
	return out
}

func volumePath(name string) string { return "/var/lib/docker/volumes/" + name + "/_data" }
