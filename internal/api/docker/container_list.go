package docker

import (
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/network"

	"github.com/tutti-run/tutti/internal/core"
	"github.com/tutti-run/tutti/internal/fault"
	"github.com/tutti-run/tutti/internal/model"
	"github.com/tutti-run/tutti/internal/store"
)

// summary is a container in a list. Ports of the older form leave out an address that is not there.
type summary struct {
	container.Summary
	Ports []portSummary
}

type portSummary struct {
	IP          string `json:",omitempty"`
	PrivatePort uint16
	PublicPort  uint16 `json:",omitempty"`
	Type        string
}

func (a *API) containerList(w http.ResponseWriter, r *request) error {
	f, err := readFilters(r, "ancestor", "before", "exited", "expose", "health", "id", "is-task", "isolation", "label", "name",
		"network", "node", "publish", "since", "status", "volume")
	if err != nil {
		return err
	}
	snap := a.snapshot()
	choose, err := a.chooser(r, snap, f)
	if err != nil {
		return err
	}
	all := r.flag("all") || len(f["status"]) > 0
	limit, _ := strconv.Atoi(r.query.Get("limit"))
	if limit > 0 {
		all = true
	}
	var chosen []*box
	for _, b := range a.boxes(snap) {
		if !all && !b.running() || !choose(b) {
			continue
		}
		chosen = append(chosen, b)
		if limit > 0 && len(chosen) == limit {
			break
		}
	}
	var sizes core.Sizes
	if r.flag("size") {
		if sizes, err = a.sizes(r, chosen, nil); err != nil {
			return err
		}
	}
	out := make([]summary, len(chosen))
	for n, b := range chosen {
		out[n] = a.summary(r, snap, b).with(sizes, b)
	}
	return answer(w, http.StatusOK, out)
}

// with adds how much is in the container's files, as far as that is known.
func (s summary) with(sizes core.Sizes, b *box) summary {
	if b.instance != nil {
		size := sizes.Tasks[b.task()]
		s.SizeRw, s.SizeRootFs = size.Written, size.Total
	}
	return s
}

func (a *API) summary(r *request, snap *store.Snapshot, b *box) summary {
	path, args := a.command(r.Context(), b.spec())
	s := summary{Summary: container.Summary{
		ID: b.id, Names: []string{"/" + b.name}, Image: b.spec().Image, ImageID: b.spec().Digest,
		Command: strings.TrimSpace(path + " " + quoteAll(args)), Created: b.created().Unix(), Labels: b.labels(),
		State: b.state(), Status: b.status(time.Now()),
		NetworkSettings: &container.NetworkSettingsSummary{Networks: a.endpoints(snap, b)},
		Mounts:          a.mountPoints(snap, b),
	}, Ports: []portSummary{}}
	if b.made != nil {
		s.Image = b.made.Config.Image
		s.HostConfig.NetworkMode = string(b.made.HostConfig.NetworkMode)
	} else {
		s.HostConfig.NetworkMode = "default"
	}
	for _, p := range a.publications(r.Context(), b) {
		ps := portSummary{PrivatePort: p.PrivatePort, PublicPort: p.PublicPort, Type: p.Type}
		if p.IP.IsValid() {
			ps.IP = p.IP.String()
		}
		s.Ports = append(s.Ports, ps)
	}
	return s
}

// quoteAll writes arguments as the Engine does: those with spaces in single quotes.
func quoteAll(args []string) string {
	out := make([]string, len(args))
	for i, a := range args {
		if strings.Contains(a, " ") {
			a = "'" + a + "'"
		}
		out[i] = a
	}
	return strings.Join(out, " ")
}

// chooser turns the filters of a container list into a test.
func (a *API) chooser(r *request, snap *store.Snapshot, f filters) (func(*box) bool, error) {
	for _, s := range f["status"] {
		if err := container.ValidateContainerState(container.ContainerState(s)); err != nil {
			return nil, fault.New(fault.Invalid, "invalid filter 'status=%s': %w", s, err)
		}
	}
	for _, s := range f["health"] {
		if err := container.ValidateHealthStatus(container.HealthStatus(s)); err != nil {
			return nil, fault.New(fault.Invalid, "invalid filter 'health=%s': %w", s, err)
		}
	}
	published, err := f.ports("publish")
	if err != nil {
		return nil, err
	}
	exposed, err := f.ports("expose")
	if err != nil {
		return nil, err
	}
	var codes []int
	for _, v := range f["exited"] {
		n, err := strconv.Atoi(v)
		if err != nil {
			return nil, fault.New(fault.Invalid, "invalid filter 'exited=%s'", v)
		}
		codes = append(codes, n)
	}
	var before, since time.Time
	for key, at := range map[string]*time.Time{"before": &before, "since": &since} {
		for _, ref := range f[key] {
			b, err := a.findBox(snap, ref)
			if err != nil {
				return nil, err
			}
			*at = b.created()
		}
	}
	isTask, taskAsked, err := f.boolean("is-task")
	if err != nil {
		return nil, err
	}
	ancestors := map[string]bool{}
	for _, ref := range f["ancestor"] {
		if img, err := findImage(snap, ref); err == nil {
			ancestors[img.Digest] = true
		}
	}
	return func(b *box) bool {
		code, _ := b.exit()
		var networks, ids, volumes []string
		for name, e := range a.endpoints(snap, b) {
			networks, ids = append(networks, name), append(ids, e.NetworkID)
		}
		for _, m := range a.mountPoints(snap, b) {
			volumes = append(volumes, m.Name, m.Source, m.Destination)
		}
		switch {
		case !f.matches("id", b.id), !f.matches("name", b.name, "/"+b.name),
			!f.labels("label", b.labels()), !f.exact("status", string(b.state())),
			!f.exact("health", string(b.health())), !f.exact("network", networks...) && !f.prefix("network", ids...), !f.exact("volume", volumes...),
			!f.exact("node", b.node):
			return false
		case len(published)+len(exposed) > 0 && !onPorts(a.publications(r.Context(), b), published, exposed):
			return false
		case len(codes) > 0 && (b.state() != container.StateExited || !slices.Contains(codes, code)):
			return false
		case !before.IsZero() && !b.created().Before(before), !since.IsZero() && !b.created().After(since):
			return false
		case taskAsked && isTask != (b.made == nil):
			return false
		case len(f["ancestor"]) > 0 && !ancestors[b.spec().Digest]:
			return false
		}
		return true
	}, nil
}

// onPorts reports whether one of the ports is published, or is there, as it is asked for.
func onPorts(list []container.PortSummary, published, exposed map[network.Port]bool) bool {
	return slices.ContainsFunc(list, func(p container.PortSummary) bool {
		public, ok := network.PortFrom(p.PublicPort, network.IPProtocol(p.Type))
		private, there := network.PortFrom(p.PrivatePort, network.IPProtocol(p.Type))
		return ok && p.PublicPort != 0 && published[public] || there && exposed[private]
	})
}

// endpoints are the networks that a container is on, by name.
func (a *API) endpoints(snap *store.Snapshot, b *box) map[string]*network.EndpointSettings {
	out := map[string]*network.EndpointSettings{}
	switch {
	case b.template.HostNetwork:
		out[network.NetworkHost] = &network.EndpointSettings{NetworkID: hostNetworkID, DriverOpts: nil}
	case b.template.NoNetwork:
		out[network.NetworkNone] = &network.EndpointSettings{NetworkID: noneNetworkID}
	}
	for _, at := range b.template.Networks {
		n, ok := store.Get[*model.Network](snap, at.Network)
		if !ok {
			continue
		}
		e := &network.EndpointSettings{NetworkID: n.ID, Aliases: nil}
		if b.made != nil && b.made.Networking != nil {
			for ref, asked := range b.made.Networking.EndpointsConfig {
				if asked != nil && (ref == dockerName(&n.Meta) || ref == n.ID) {
					e.Aliases, e.IPAMConfig, e.Links = asked.Aliases, asked.IPAMConfig, asked.Links
				}
			}
		}
		if dockerName(&n.Meta) != network.NetworkBridge {
			for _, name := range append([]string{b.name, shortID(b.id)}, at.Aliases...) {
				if !slices.Contains(e.DNSNames, name) {
					e.DNSNames = append(e.DNSNames, name)
				}
			}
		}
		if b.instance != nil && b.running() {
			for _, address := range b.instance.Addresses {
				if address.Network == n.ID {
					fillEndpoint(e, b, n, address.IP)
				}
			}
		}
		out[dockerName(&n.Meta)] = e
	}
	return out
}
