package docker

import (
	"cmp"
	"context"
	"encoding/json"
	"maps"
	"net/http"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/moby/moby/api/types/network"

	"github.com/tutti-run/tutti/internal/core"
	"github.com/tutti-run/tutti/internal/fault"
	"github.com/tutti-run/tutti/internal/model"
	"github.com/tutti-run/tutti/internal/store"
)

// The networks that are no objects of ours: a node's own, and none.
var (
	hostNetworkID = digestOf("network", network.NetworkHost)
	noneNetworkID = digestOf("network", network.NetworkNone)
	bridgeID      = digestOf("network", network.NetworkBridge) // until the first container makes it
	ingressID     = digestOf("network", "ingress")[:25]
)

// ingressName is what Swarm calls the network through which published ports are reached.
const ingressName = "ingress"

// predefined are the networks that every Docker host has.
func predefined(snap *store.Snapshot) []network.Network {
	base := func(name, id, driver string) network.Network {
		return network.Network{
			Name: name, ID: id, Scope: "local", Driver: driver, EnableIPv4: true, IPAM: network.IPAM{Driver: "default", Config: []network.IPAMConfig{}},
			Options: map[string]string{}, Labels: map[string]string{},
		}
	}
	out := []network.Network{base(network.NetworkHost, hostNetworkID, "host"), base(network.NetworkNone, noneNetworkID, "null")}
	if _, ok := store.ByName[*model.Network](snap, model.DefaultNamespace, "", network.NetworkBridge); !ok {
		out = append(out, base(network.NetworkBridge, bridgeID, "bridge"))
	}
	ingress := base(ingressName, ingressID, "overlay")
	ingress.Scope, ingress.Ingress = "swarm", true
	return append(out, ingress)
}

// networkView tells of a network as it was asked for, with the subnet that it got.
func networkView(n *model.Network) network.Network {
	v := network.Network{
		Name: dockerName(&n.Meta), ID: n.ID, Created: n.Created.UTC(), Scope: "swarm", Driver: cmp.Or(n.Driver, model.DriverOverlay), EnableIPv4: true, Internal: n.Internal,
		Attachable: n.Attachable, Options: map[string]string{}, Labels: map[string]string{},
		IPAM: network.IPAM{Driver: "default", Config: []network.IPAMConfig{}},
	}
	for k, l := range n.Labels {
		v.Labels[k] = l
	}
	var req network.CreateRequest
	if json.Unmarshal(n.Extensions[extension], &req) == nil && req.Name != "" {
		v.Driver, v.Scope = cmp.Or(req.Driver, "bridge"), "local"
		if v.Driver != "bridge" {
			v.Scope = "swarm"
		}
		if req.Options != nil {
			v.Options = req.Options
		}
		if req.IPAM != nil {
			v.IPAM = *req.IPAM
			v.IPAM.Driver = cmp.Or(v.IPAM.Driver, "default")
		}
	}
	if n.Name == network.NetworkBridge && n.Application == "" {
		v.Driver, v.Scope = "bridge", "local"
	}
	if subnet, err := netip.ParsePrefix(cmp.Or(n.Status.Subnet, n.Subnet)); err == nil && len(v.IPAM.Config) == 0 {
		v.IPAM.Config = []network.IPAMConfig{{Subnet: subnet, Gateway: subnet.Masked().Addr().Next()}}
		if n.Underlay != nil {
			v.IPAM.Config[0].Gateway = n.WayOut()
		}
	}
	if u := n.Underlay; u != nil && v.Options["parent"] == "" {
		v.Options["parent"] = u.Parent
	}
	if _, said := v.Options["encrypted"]; n.Encrypted && !said {
		v.Options["encrypted"] = ""
	}
	return v
}

func networks(snap *store.Snapshot) []network.Network {
	out := predefined(snap)
	for n := range store.List[*model.Network](snap) {
		out = append(out, networkView(n))
	}
	slices.SortStableFunc(out, func(a, b network.Network) int { return strings.Compare(a.Name, b.Name) })
	return out
}

// findNetwork says which network a reference means: an ID, a name, or the beginning of an ID.
func findNetwork(snap *store.Snapshot, ref string) (network.Network, error) {
	var prefixed []network.Network
	all := networks(snap)
	for _, n := range all {
		if n.ID == ref {
			return n, nil
		}
	}
	for _, n := range all {
		if n.Name == ref {
			return n, nil
		}
		if ref != "" && strings.HasPrefix(n.ID, ref) {
			prefixed = append(prefixed, n)
		}
	}
	switch len(prefixed) {
	case 1:
		return prefixed[0], nil
	case 0:
		return network.Network{}, fault.New(fault.NotFound, "network %s not found", ref)
	}
	return network.Network{}, fault.New(fault.Invalid, "network %s is ambiguous (%d matches found based on ID prefix)", ref, len(prefixed))
}

// networkForUse is the network of ours that a reference means; the default one is made when it is
// first used.
func (a *API) networkForUse(r *request, ref string) (*model.Network, error) {
	if ref == network.NetworkDefault || ref == bridgeID {
		ref = network.NetworkBridge
	}
	v, err := findNetwork(a.snapshot(), ref)
	if err != nil {
		return nil, err
	}
	if v.ID == bridgeID {
		d := core.Deployment{KeepOthers: true, Source: "docker", Networks: []*model.Network{{Meta: model.Meta{Name: network.NetworkBridge}, Attachable: true}}}
		if _, err := a.Core.Deploy(r.Context(), r.who, d); err != nil && !fault.Is(err, fault.Conflict) {
			return nil, err
		}
		if v, err = findNetwork(a.snapshot(), network.NetworkBridge); err != nil {
			return nil, err
		}
	}
	n, ok := store.Get[*model.Network](a.snapshot(), v.ID)
	if !ok {
		return nil, fault.New(fault.Forbidden, "network-scoped alias or attachment is not supported for the network %s", v.Name)
	}
	return n, nil
}

func (a *API) networkList(w http.ResponseWriter, r *request) error {
	f, err := readFilters(r, "dangling", "driver", "id", "label", "name", "scope", "type")
	if err != nil {
		return err
	}
	dangling, asked := false, len(f["dangling"]) > 0
	if len(f["dangling"]) > 1 {
		return fault.New(fault.Invalid, "got more than one value for filter key \"dangling\"")
	}
	if asked {
		if dangling, _, err = f.boolean("dangling"); err != nil {
			return fault.New(fault.Invalid, "invalid value for filter 'dangling', must be \"true\" (or \"1\"), or \"false\" (or \"0\")")
		}
	}
	for _, t := range f["type"] {
		if t != "custom" && t != "builtin" {
			return fault.New(fault.Invalid, "invalid filter: 'type'='%s'", t)
		}
	}
	snap := a.snapshot()
	used := usedNetworks(snap)
	out := []network.Inspect{}
	for _, n := range networks(snap) {
		kind := "custom"
		if isPredefined(n.Name) {
			kind = "builtin"
		}
		if !f.exact("driver", n.Driver) || !f.matches("id", n.ID) || !f.labels("label", n.Labels) || !f.matches("name", n.Name) ||
			!f.exact("scope", n.Scope) || !f.exact("type", kind) || asked && dangling != (!used[n.ID] && kind == "custom") {
			continue
		}
		out = append(out, network.Inspect{Network: n, Containers: map[string]network.EndpointResource{}})
	}
	return answer(w, http.StatusOK, out)
}

// scopeOf is the scope of the networks of a driver.
func scopeOf(driver string) string {
	if driver == model.DriverOverlay {
		return "swarm"
	}
	return "local"
}

func isPredefined(name string) bool {
	return slices.Contains([]string{network.NetworkBridge, network.NetworkHost, network.NetworkNone, ingressName}, name)
}

func usedNetworks(snap *store.Snapshot) map[string]bool {
	used := map[string]bool{}
	for w := range store.List[*model.Workload](snap) {
		for _, at := range w.Template.Networks {
			used[at.Network] = true
		}
	}
	return used
}

func (a *API) networkInspect(w http.ResponseWriter, r *request) error {
	snap := a.snapshot()
	n, err := findNetwork(snap, r.vars["id"])
	if err != nil {
		return err
	}
	scope := r.query.Get("scope")
	if scope == "swarm" && (n.Driver == network.NetworkHost || n.Name == network.NetworkBridge) {
		n.Scope = scope // services can use those of their nodes: Swarm knows them by the same names
	}
	if scope != "" && scope != n.Scope {
		return fault.New(fault.NotFound, "network %s not found", r.vars["id"])
	}
	out := network.Inspect{Network: n, Containers: map[string]network.EndpointResource{}}
	for _, b := range a.boxes(snap) {
		if !b.running() {
			continue
		}
		for _, e := range a.endpoints(snap, b) {
			if e.NetworkID == n.ID && e.IPAddress.IsValid() {
				out.Containers[b.id] = network.EndpointResource{
					Name: b.name, EndpointID: e.EndpointID, IPv4Address: netip.PrefixFrom(e.IPAddress, e.IPPrefixLen),
				}
			}
		}
	}
	return answer(w, http.StatusOK, out)
}

func (a *API) networkCreate(w http.ResponseWriter, r *request) error {
	var req network.CreateRequest
	if err := decode(r, &req, false); err != nil {
		return err
	}
	n, err := translateNetwork(&req)
	if err != nil {
		return err
	}
	if _, err := findNetwork(a.snapshot(), req.Name); err == nil {
		return fault.New(fault.Conflict, "network with name %s already exists", req.Name)
	}
	app := n.Application
	n.Application = ""
	if _, err := a.Core.Deploy(r.Context(), r.who, core.Deployment{Application: app, Members: true, KeepOthers: true, Source: "docker", Networks: []*model.Network{n}}); err != nil {
		return err
	}
	made, ok := store.ByName[*model.Network](a.snapshot(), model.DefaultNamespace, app, n.Name)
	if !ok {
		return fault.New(fault.Conflict, "network %s was removed meanwhile", req.Name)
	}
	return answer(w, http.StatusCreated, network.CreateResponse{ID: made.ID})
}

// translateNetwork turns a request into a network. Every driver that Docker comes with means the
// overlay: a bridge that reaches only one host would be of no use in a cluster.
func translateNetwork(req *network.CreateRequest) (*model.Network, error) {
	switch {
	case req.Name == "":
		return nil, fault.New(fault.Invalid, "network name cannot be empty")
	case isPredefined(req.Name):
		return nil, fault.New(fault.Forbidden, "operation is not permitted on predefined %s network", req.Name)
	case req.Driver != "" && !slices.Contains([]string{"overlay", "bridge", model.DriverMacvlan}, req.Driver):
		return nil, notHonoured("network driver", req.Driver)
	case req.EnableIPv6 != nil && *req.EnableIPv6:
		return nil, notHonoured("--ipv6", true)
	case req.EnableIPv4 != nil && !*req.EnableIPv4:
		return nil, notHonoured("--ipv4=false", false)
	case req.Ingress:
		return nil, notHonoured("--ingress", true)
	case req.ConfigOnly || req.ConfigFrom != nil && req.ConfigFrom.Network != "":
		return nil, notHonoured("--config-only, --config-from", req.Name)
	case req.Scope != "" && req.Scope != scopeOf(req.Driver):
		return nil, notHonoured("--scope of a network of driver "+cmp.Or(req.Driver, "bridge"), req.Scope)
	}
	app, name := placeOf(req.Name, req.Labels)
	n := &model.Network{
		Meta:     model.Meta{Application: app, Name: name, Labels: req.Labels},
		Internal: req.Internal, Attachable: req.Attachable, Driver: model.DriverOverlay,
	}
	if req.Driver == model.DriverMacvlan {
		n.Driver, n.Underlay = req.Driver, &model.Underlay{Parent: req.Options["parent"], Mode: req.Options["macvlan_mode"]}
	}
	for key, value := range req.Options {
		if key == "encrypted" {
			said, err := strconv.ParseBool(cmp.Or(value, "true"))
			if err != nil {
				return nil, fault.New(fault.Invalid, "network option encrypted: %q is neither true nor false, nor empty, which is true", value)
			}
			n.Encrypted = said
			continue
		}
		if n.Underlay == nil || key != "parent" && key != "macvlan_mode" {
			return nil, notHonoured("network option", key)
		}
	}
	if ipam := req.IPAM; ipam != nil {
		if ipam.Driver != "" && ipam.Driver != "default" || len(ipam.Options) > 0 {
			return nil, notHonoured("--ipam-driver", ipam.Driver)
		}
		if len(ipam.Config) > 1 {
			return nil, notHonoured("more than one subnet", len(ipam.Config))
		}
		for _, c := range ipam.Config {
			if u := n.Underlay; u != nil {
				if c.IPRange.IsValid() {
					u.Range = c.IPRange.String()
				}
				for _, name := range slices.Sorted(maps.Keys(c.AuxAddress)) {
					u.Reserved = append(u.Reserved, c.AuxAddress[name].String())
				}
			} else if c.IPRange.IsValid() || len(c.AuxAddress) > 0 {
				return nil, notHonoured("--ip-range, --aux-address", req.Name)
			}
			if c.Subnet.IsValid() {
				n.Subnet = c.Subnet.String()
			}
			if c.Gateway.IsValid() {
				n.Gateway = c.Gateway.String()
			}
		}
	}
	if err := n.CheckUnderlay(); err != nil {
		return nil, err
	}
	data, err := json.Marshal(req)
	n.Extensions = map[string][]byte{extension: data}
	return n, err
}

func (a *API) networkRemove(w http.ResponseWriter, r *request) error {
	n, err := findNetwork(a.snapshot(), r.vars["id"])
	if err != nil {
		return err
	}
	if isPredefined(n.Name) {
		return fault.New(fault.Forbidden, "%s is a pre-defined network and cannot be removed", n.Name)
	}
	if err := a.Core.RemoveNetwork(r.Context(), r.who, n.ID); err != nil {
		if fault.Is(err, fault.Conflict) {
			return fault.New(fault.Forbidden, "error while removing network: network %s id %s has active endpoints: %w", n.Name, n.ID, err)
		}
		return err
	}
	return done(w, http.StatusNoContent)
}

func (a *API) networkPrune(w http.ResponseWriter, r *request) error {
	f, err := readFilters(r, "until", "label", "label!")
	if err != nil {
		return err
	}
	until, err := f.until()
	if err != nil {
		return err
	}
	snap := a.snapshot()
	used := usedNetworks(snap)
	report := network.PruneReport{NetworksDeleted: []string{}}
	for _, n := range networks(snap) {
		if isPredefined(n.Name) || used[n.ID] || !f.labels("label", n.Labels) || !f.notLabels("label!", n.Labels) || !until.IsZero() && !n.Created.Before(until) {
			continue
		}
		if err := a.Core.RemoveNetwork(r.Context(), r.who, n.ID); err != nil {
			if fault.Is(err, fault.Conflict) {
				continue // somebody began to use it
			}
			return err
		}
		report.NetworksDeleted = append(report.NetworksDeleted, n.Name)
	}
	return answer(w, http.StatusOK, report)
}

// rewirable finds the container that is to join or leave a network, and refuses what none can.
func (a *API) rewirable(ref string) (*box, error) {
	b, err := a.findBox(a.snapshot(), ref)
	if err != nil {
		return nil, err
	}
	switch {
	case b.made == nil:
		return nil, fault.New(fault.Unsupported, "container %s belongs to the service %s, which says on which networks it is: docker service update --network-add and --network-rm", b.name, dockerName(&b.workload.Meta))
	case b.made.HostConfig.NetworkMode.IsHost(), b.made.HostConfig.NetworkMode.IsContainer():
		return nil, fault.New(fault.Invalid, "container sharing network namespace with another container or host cannot be connected to any other network")
	case b.made.HostConfig.NetworkMode.IsNone():
		return nil, fault.New(fault.Invalid, "container cannot be connected to multiple networks with one of the networks in private (none) mode")
	}
	return b, nil
}

func (a *API) networkConnect(w http.ResponseWriter, r *request) error {
	var req network.ConnectRequest
	if err := decode(r, &req, false); err != nil {
		return err
	}
	n, err := findNetwork(a.snapshot(), r.vars["id"])
	if err != nil {
		return err
	}
	b, err := a.rewirable(req.Container)
	if err != nil {
		return err
	}
	at, err := a.attachment(r, r.vars["id"], req.EndpointConfig)
	if err != nil {
		return err
	}
	if at.Address != "" {
		if err := a.freeAddress(at); err != nil {
			return err
		}
	}
	at.Aliases = append([]string{b.name}, at.Aliases...)
	return a.rewire(w, r, b, func(wl *model.Workload, made *created) error {
		for _, have := range wl.Template.Networks {
			if have.Network == at.Network {
				return fault.New(fault.Forbidden, "endpoint with name %s already exists in network %s", b.name, n.Name)
			}
		}
		wl.Template.Networks, wl.Template.NoNetwork = append(wl.Template.Networks, at), false
		if made.Networking == nil {
			made.Networking = &network.NetworkingConfig{}
		}
		if made.Networking.EndpointsConfig == nil {
			made.Networking.EndpointsConfig = map[string]*network.EndpointSettings{}
		}
		if req.EndpointConfig == nil {
			req.EndpointConfig = &network.EndpointSettings{}
		}
		made.Networking.EndpointsConfig[n.Name] = req.EndpointConfig
		return nil
	})
}

// freeAddress refuses a fixed address that is not of the network, or that somebody has: the placement of one that has
// not been started would find out later.
func (a *API) freeAddress(at model.Attachment) error {
	snap := a.snapshot()
	n, ok := store.Get[*model.Network](snap, at.Network)
	if !ok {
		return fault.New(fault.NotFound, "network %s not found", at.Network)
	}
	ip, err := netip.ParseAddr(at.Address)
	if err != nil {
		return fault.New(fault.Invalid, "invalid address %q", at.Address)
	}
	if subnet, err := netip.ParsePrefix(n.Status.Subnet); err == nil && !subnet.Contains(ip) {
		return fault.New(fault.Invalid, "invalid endpoint settings:\nno configured subnet contains the IP address %s: %s is %s", at.Address, dockerName(&n.Meta), subnet)
	}
	for i := range store.List[*model.Instance](snap) {
		for _, have := range i.Addresses {
			if have.Network == at.Network && have.IP == at.Address && !i.Status.State.Final() {
				return fault.New(fault.Forbidden, "Address already in use")
			}
		}
	}
	return nil
}

func (a *API) networkDisconnect(w http.ResponseWriter, r *request) error {
	var req network.DisconnectRequest
	if err := decode(r, &req, false); err != nil {
		return err
	}
	n, err := findNetwork(a.snapshot(), r.vars["id"])
	if err != nil {
		return err
	}
	b, err := a.rewirable(req.Container)
	if err != nil {
		return err
	}
	return a.rewire(w, r, b, func(wl *model.Workload, made *created) error {
		before := len(wl.Template.Networks)
		wl.Template.Networks = slices.DeleteFunc(wl.Template.Networks, func(at model.Attachment) bool { return at.Network == n.ID })
		if len(wl.Template.Networks) == before {
			return fault.New(fault.Forbidden, "container %s is not connected to network %s", b.id, n.Name)
		}
		wl.Template.NoNetwork = len(wl.Template.Networks) == 0
		if made.Networking != nil {
			delete(made.Networking.EndpointsConfig, n.Name)
			delete(made.Networking.EndpointsConfig, n.ID)
		}
		return nil
	})
}

// rewiredWithin is how long a node has to put a container on other networks.
const rewiredWithin = 20 * time.Second

// rewire changes the networks of a container, and answers once it is on them where it runs.
func (a *API) rewire(w http.ResponseWriter, r *request, b *box, change func(*model.Workload, *created) error) error {
	if err := a.changeContainer(r, b, change); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(r.Context(), rewiredWithin)
	defer cancel()
	var now *box
	err := a.await(ctx, b.id, func(seen *box) bool {
		now = seen
		return seen == nil || seen.instance == nil || !seen.running() || seen.instance.RevisionID == seen.workload.RevisionID
	})
	if err == nil && now != nil && now.instance != nil && now.running() {
		err = a.Core.AwaitLinked(ctx, r.who, now.instance.ID)
	}
	if err != nil {
		return fault.New(fault.Unavailable, "the networks of container %s are decided, but not in force yet: %w", b.name, err)
	}
	return done(w, http.StatusOK)
}

// changeContainer changes a container, and what is kept of its request. One that has an instance follows changes
// of its networks alone: another one would replace it.
func (a *API) changeContainer(r *request, b *box, change func(*model.Workload, *created) error) error {
	wl, made := b.workload.Clone(), decodeRequest(b.workload)
	if err := change(wl, made); err != nil {
		return err
	}
	data, err := json.Marshal(made)
	if err != nil {
		return err
	}
	wl.Extensions[extension] = data
	d := core.Deployment{Application: application, Source: "docker", KeepOthers: true, Members: true, Workloads: []*model.Workload{wl}}
	_, err = a.Core.Deploy(r.Context(), r.who, d)
	return err
}
