package docker

import (
	"cmp"
	"context"
	"net"
	"net/http"
	"net/netip"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/moby/moby/api/types/swarm"
	"github.com/moby/moby/api/types/system"

	"github.com/tutti-run/tutti/internal/fault"
	"github.com/tutti-run/tutti/internal/model"
)

// Entry is how a host comes to be of a cluster: of that of a server, or of one that it founds.
type Entry struct {
	// Address and Port are those under which other hosts are to reach this one; empty and 0 are its own choice.
	Address string
	Port    int
	// Server and Token lead to a cluster; the server's port may be missing. Without a token the host founds one.
	Server, Token string
	// Of a cluster that is founded: addresses for its networks, whether its servers are locked, and whether this
	// host takes work.
	AddressPool  string
	Autolock     bool
	Availability model.Availability
}

// Host is a host whose socket answers for itself only: it is of no cluster, or an agent whose administrator
// does not have the cluster.
type Host struct {
	Node *model.Node // as the host describes itself; without an ID while it is of no cluster
	// Enter makes the host a node, and returns its ID once it is ready.
	Enter func(context.Context, Entry) (nodeID string, err error)
}

// OfHost answers for a host.
func OfHost(d Deps, h Host) *API {
	a := &API{Deps: d}
	s := &alone{API: a, host: h}
	own := map[string]handler{
		"GET /_ping": s.ping, "HEAD /_ping": s.ping, "GET /version": s.version, "GET /info": s.info,
		"POST /swarm/init": s.init, "POST /swarm/join": s.join, "POST /swarm/leave": s.leave,
	}
	table := a.table()
	for i := range table {
		r := &table[i]
		if r.handle = own[r.method+" "+r.pattern]; r.handle == nil {
			r.handle = s.refuse(r.pattern)
		}
	}
	a.routes = compile(table)
	return a
}

// alone answers for a host; what it has of API is its routing.
type alone struct {
	*API
	host Host
}

func (s *alone) waits() bool { return s.host.Node.ID == "" }

// What the Engine says of hosts that are no managers.
const (
	noSwarm    = `This node is not a swarm manager. Use "docker swarm init" or "docker swarm join" to connect this node to swarm and try again.`
	notManager = "This node is not a swarm manager. Worker nodes can't be used to view or modify cluster state. Please run this command on a manager node or promote the current node to a manager."
)

func (s *alone) refuse(pattern string) handler {
	ofSwarm := slices.ContainsFunc([]string{"/swarm", "/nodes", "/services", "/tasks", "/secrets", "/configs"}, func(p string) bool { return strings.HasPrefix(pattern, p) })
	return func(http.ResponseWriter, *request) error {
		switch {
		case s.waits() && ofSwarm:
			return fault.New(fault.Unavailable, "%s", noSwarm)
		case s.waits():
			return fault.New(fault.Unavailable, "host %s is of no cluster yet, and what runs is of a cluster: use \"docker swarm init\" or \"docker swarm join\" first", s.host.Node.Name)
		case ofSwarm:
			return fault.New(fault.Unavailable, "%s Or have `tutti node trust %s` said on a server, so that whoever administers this host has the cluster", notManager, s.host.Node.Name)
		}
		return fault.New(fault.Forbidden, "node %s is an agent of its cluster: its administrator does not have the cluster, unless `tutti node trust %s` is said on a server. Ask a server, at its socket or, with a user's certificate (`tutti user cert`), over the network: docker --tlsverify -H tcp://SERVER:PORT", s.host.Node.Name, s.host.Node.Name)
	}
}

func (s *alone) ping(w http.ResponseWriter, r *request) error {
	return pong(w, r, map[bool]string{true: "inactive", false: "active/worker"}[s.waits()])
}

func (s *alone) version(w http.ResponseWriter, _ *request) error {
	return answer(w, http.StatusOK, s.versionOn(s.host.Node))
}

func (s *alone) info(w http.ResponseWriter, _ *request) error {
	n := s.host.Node
	i := s.infoOn(n)
	foundOn(n, &i)
	i.NCPU, i.MemTotal = int(n.Capacity.NanoCPUs/1e9), n.Capacity.MemoryBytes
	i.Swarm = swarm.Info{LocalNodeState: swarm.LocalNodeStateInactive, RemoteManagers: []swarm.Peer{}}
	if !s.waits() {
		i.Swarm.NodeID, i.Swarm.NodeAddr, i.Swarm.LocalNodeState = n.ID, n.HostAddress, swarm.LocalNodeStateActive
	}
	return answer(w, http.StatusOK, i)
}

func (s *alone) init(w http.ResponseWriter, r *request) error {
	if !s.waits() {
		return swarmMember(w, r)
	}
	var req swarm.InitRequest
	if err := decode(r, &req, false); err != nil {
		return err
	}
	e := Entry{Autolock: req.AutoLockManagers || req.Spec.EncryptionConfig.AutoLockManagers}
	if err := e.at(req.ListenAddr, req.AdvertiseAddr, req.DataPathAddr); err != nil {
		return err
	}
	req.Spec.EncryptionConfig.AutoLockManagers = false
	req.Spec.Orchestration.TaskHistoryRetentionLimit = nil // as it is anyway
	switch said, value := firstDifference("", plain(req.Spec), plain(swarm.Spec{})); {
	case said != "":
		return notHonoured("docker swarm init with "+said, value)
	case req.ForceNewCluster:
		return notHonoured("docker swarm init with --force-new-cluster, on a host that is of no cluster", "`tutti up --restore` makes a cluster of a backup")
	case req.DataPathPort != 0 && req.DataPathPort != 4789:
		return notHonoured("docker swarm init with --data-path-port", req.DataPathPort)
	case req.SubnetSize != 0 && req.SubnetSize != 24:
		return notHonoured("docker swarm init with --default-addr-pool-mask-length", req.SubnetSize)
	case len(req.DefaultAddrPool) > 1:
		return notHonoured("docker swarm init with more than one --default-addr-pool", req.DefaultAddrPool)
	case len(req.DefaultAddrPool) == 1:
		e.AddressPool = req.DefaultAddrPool[0].String()
	}
	var err error
	if e.Availability, err = availabilityOf(req.Availability); err != nil {
		return err
	}
	id, err := s.host.Enter(r.Context(), e)
	if err != nil {
		return err
	}
	return answer(w, http.StatusOK, id)
}

func availabilityOf(said swarm.NodeAvailability) (model.Availability, error) {
	for ours, theirs := range availabilities {
		if theirs == cmp.Or(said, swarm.NodeAvailabilityActive) && ours != "" {
			return ours, nil
		}
	}
	return "", fault.New(fault.Invalid, "invalid availability %q", said)
}

func (s *alone) join(w http.ResponseWriter, r *request) error {
	if !s.waits() {
		return swarmMember(w, r)
	}
	var req swarm.JoinRequest
	if err := decode(r, &req, false); err != nil {
		return err
	}
	if len(req.RemoteAddrs) == 0 {
		return fault.New(fault.Invalid, "at least 1 RemoteAddr is required to join")
	}
	e := Entry{Server: req.RemoteAddrs[0], Token: req.JoinToken}
	if err := e.at(req.ListenAddr, req.AdvertiseAddr, req.DataPathAddr); err != nil {
		return err
	}
	switch availability, err := availabilityOf(req.Availability); {
	case err != nil:
		return err
	case availability != model.Active:
		return notHonoured("docker swarm join with --availability", string(req.Availability)+": docker node update --availability on a manager does it")
	case req.JoinToken == "":
		return fault.New(fault.Invalid, "a join token is needed: `docker swarm join-token worker` on a manager prints one")
	}
	if _, err := s.host.Enter(r.Context(), e); err != nil {
		return err
	}
	return done(w, http.StatusOK)
}

// defaultListen is what clients ask for who do not ask for anything.
const defaultListen = "0.0.0.0:2377"

// at reads where the host is to be reached. A host listens where it is reached.
func (e *Entry) at(listen, advertise, dataPath string) error {
	if listen != "" && listen != defaultListen {
		host, port, err := net.SplitHostPort(listen)
		if err != nil {
			host = listen
		} else if e.Port, err = strconv.Atoi(port); err != nil || e.Port < 0 || e.Port > 65535 {
			return fault.New(fault.Invalid, "invalid ListenAddr: %s", listen)
		}
		if a, err := netip.ParseAddr(host); err != nil || !a.IsUnspecified() {
			if e.Address, err = addressOf(host); err != nil {
				return err
			}
		}
	}
	if advertise != "" {
		host, port, err := net.SplitHostPort(advertise)
		if err != nil {
			host = advertise
		} else if e.Port, err = strconv.Atoi(port); err != nil || e.Port < 1 || e.Port > 65535 {
			return fault.New(fault.Invalid, "invalid AdvertiseAddr: %s", advertise)
		}
		if e.Address, err = addressOf(host); err != nil {
			return err
		}
	}
	if dataPath != "" {
		if a, err := addressOf(dataPath); err != nil || a != e.Address {
			return notHonoured("--data-path-addr other than --advertise-addr", dataPath)
		}
	}
	return nil
}

// addressOf takes an address of this host, or one of its interfaces.
func addressOf(text string) (string, error) {
	if a, err := netip.ParseAddr(text); err == nil {
		if !a.Is4() {
			return "", notHonoured("an address between hosts that is not of IPv4", text)
		}
		return a.String(), nil
	}
	link, err := net.InterfaceByName(text)
	if err != nil {
		return "", fault.New(fault.Invalid, "%s: an IPv4 address of this host or the name of one of its interfaces is accepted", text)
	}
	list, err := link.Addrs()
	if err != nil {
		return "", err
	}
	for _, l := range list {
		if p, err := netip.ParsePrefix(l.String()); err == nil && p.Addr().Is4() {
			return p.Addr().String(), nil
		}
	}
	return "", fault.New(fault.Invalid, "interface %s has no IPv4 address", text)
}

func (s *alone) leave(w http.ResponseWriter, r *request) error {
	if s.waits() {
		return fault.New(fault.Unavailable, "This node is not part of a swarm")
	}
	return s.swarmLeave(w, r)
}

// swarmLeave takes this host out of its cluster.
func (a *API) swarmLeave(w http.ResponseWriter, r *request) error {
	if a.Leave == nil || r.at != a.NodeID {
		return fault.New(fault.Unsupported, "docker swarm leave is not supported by Tutti but for hosts that were started with `tutti up --waiting`, at their own socket: on others `tutti down` ends the node, and `tutti down --purge` takes it out for good")
	}
	if err := a.Leave(r.Context(), r.flag("force")); err != nil {
		return err
	}
	return done(w, http.StatusOK)
}

// versionOn is what a host says of itself.
func (a *API) versionOn(n *model.Node) system.VersionResponse {
	v := system.VersionResponse{
		Platform: system.PlatformInfo{Name: "Tutti"}, Version: a.Version, APIVersion: maxVersion, MinAPIVersion: minVersion,
		Os: "linux", Arch: runtime.GOARCH, GoVersion: runtime.Version(), KernelVersion: n.Attributes["kernel"],
	}
	v.Components = []system.ComponentVersion{{Name: "Engine", Version: a.Version, Details: map[string]string{
		"ApiVersion": v.APIVersion, "MinAPIVersion": v.MinAPIVersion, "Os": v.Os, "Arch": v.Arch, "GoVersion": v.GoVersion,
		"KernelVersion": v.KernelVersion, "Experimental": "false", "GitCommit": "", "BuildTime": "",
	}}}
	return v
}

// infoOn is what a host says of itself, without what it runs.
func (a *API) infoOn(n *model.Node) system.Info {
	return system.Info{
		Driver: "overlay2", SystemTime: time.Now().Format(time.RFC3339Nano), LoggingDriver: "json-file", CgroupDriver: "cgroupfs",
		MemoryLimit: true, SwapLimit: true, CPUCfsPeriod: true, CPUCfsQuota: true, PidsLimit: true, IPv4Forwarding: true,
		KernelVersion: n.Attributes["kernel"], OperatingSystem: "Tutti", OSType: "linux", Architecture: cmp.Or(machine[runtime.GOARCH], runtime.GOARCH),
		IndexServerAddress: "https://index.docker.io/v1/", DockerRootDir: "/var/lib/tutti", Name: n.Name, ServerVersion: a.Version,
		Runtimes: map[string]system.RuntimeWithStatus{model.BuiltInRuntime: {}}, DefaultRuntime: model.BuiltInRuntime, SecurityOptions: []string{"name=seccomp,profile=builtin"},
		Plugins: system.PluginsInfo{Volume: []string{"local"}, Network: []string{"bridge", "host", "null", "overlay"}, Log: []string{"json-file"}},
		Labels:  []string{}, Warnings: []string{}, CDISpecDirs: []string{"/etc/cdi", "/var/run/cdi"}, CPUShares: true, CPUSet: true, LiveRestoreEnabled: true,
	}
}
