package provision

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/tutti-run/tutti/internal/atomicfile"
	"github.com/tutti-run/tutti/internal/autoscale"
	"github.com/tutti-run/tutti/internal/cgroup"
	"github.com/tutti-run/tutti/internal/fault"
)

// MaxHosts is how many virtual hosts one machine may have.
const MaxHosts = 20

const (
	bridgeName = "tutti-br"
	cgroupName = "/tutti-hosts"
	// DefaultSubnet is where virtual hosts and the bridge have their addresses.
	DefaultSubnet = "10.209.0.0/24"
)

// Config says where virtual hosts are kept.
type Config struct {
	DataDir string // hosts are below <data dir>/hosts
	RunDir  string // and below <run dir>/hosts
	Subnet  netip.Prefix
	// NodeArgs is the command that runs a node in a host, to which the path of its NodeConfig is
	// appended. The program is this one.
	NodeArgs []string
}

// Machine is this machine with its virtual hosts.
type Machine struct{ Config }

// New returns the machine; nothing is made until Up.
func New(c Config) *Machine { return &Machine{Config: c} }

// Host is a virtual host.
type Host struct {
	Name    string `json:"name"`
	Index   int    `json:"index"` // from 1
	Address string `json:"address"`
	Server  bool   `json:"server"`
	DataDir string `json:"dataDir"`
	RunDir  string `json:"runDir"`
	// Leaving is whether it is being given back.
	Leaving bool `json:"leaving,omitempty"`
}

// state is what the machine remembers of its hosts, in the data directory.
type state struct {
	Subnet string `json:"subnet"`
	Hosts  []Host `json:"hosts"`
	// Policy says how many hosts there may be; its Max is 0 where they stay as many as they are.
	Policy autoscale.HostPolicy `json:"policy,omitzero"`
}

func (m *Machine) dataRoot() string  { return filepath.Join(m.DataDir, "hosts") }
func (m *Machine) runRoot() string   { return filepath.Join(m.RunDir, "hosts") }
func (m *Machine) stateFile() string { return filepath.Join(m.dataRoot(), "hosts.json") }

func (m *Machine) load() (*state, error) {
	data, err := os.ReadFile(m.stateFile())
	if errors.Is(err, os.ErrNotExist) {
		return &state{}, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read the list of virtual hosts: %w", err)
	}
	s := &state{}
	if err := json.Unmarshal(data, s); err != nil {
		return nil, fmt.Errorf("read the list of virtual hosts in %s: %w", m.stateFile(), err)
	}
	// Hosts keep their addresses: the subnet that they were made with counts.
	if m.Subnet, err = netip.ParsePrefix(s.Subnet); err != nil {
		return nil, fmt.Errorf("read the list of virtual hosts in %s: %w", m.stateFile(), err)
	}
	return s, nil
}

func (m *Machine) save(s *state) error { return writeJSON(m.stateFile(), s) }

func writeJSON(path string, v any) error {
	data, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o711); err != nil {
		return err
	}
	return atomicfile.Write(path, data)
}

// locked runs a command alone: two commands at once would tread on each other.
func (m *Machine) locked(fn func() error) error {
	if err := os.MkdirAll(m.dataRoot(), 0o711); err != nil {
		return fmt.Errorf("make the directory of virtual hosts: %w", err)
	}
	f, err := os.OpenFile(filepath.Join(m.dataRoot(), "lock"), os.O_CREATE|os.O_RDWR|syscall.O_CLOEXEC, 0o600)
	if err != nil {
		return fmt.Errorf("lock the virtual hosts: %w", err)
	}
	defer f.Close()
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX); err != nil {
		return fmt.Errorf("lock the virtual hosts: %w", err)
	}
	return fn()
}

// Kept reports whether virtual hosts are kept here, running or not.
func (m *Machine) Kept() bool {
	_, err := os.Stat(m.stateFile())
	return err == nil
}

// Exists reports whether virtual hosts are kept here, running or not, or something is left of some
// whose data is gone.
func (m *Machine) Exists() bool {
	if m.Kept() {
		return true
	}
	return leftOver() && m.checkOwner() == nil
}

// checkOwner refuses to touch hosts whose data is kept elsewhere: links and cgroups have fixed
// names, so that a machine has room for one set of virtual hosts.
func (m *Machine) checkOwner() error {
	for _, dir := range runningDirs() {
		switch dir {
		case m.dataRoot():
			continue
		case unseen:
			return fault.New(fault.Conflict, "virtual hosts run on this machine whose processes cannot be seen from this PID namespace: where they were started, `tutti down` stops them")
		}
		if _, err := os.Stat(filepath.Join(dir, "hosts.json")); err == nil {
			return fault.New(fault.Conflict, "virtual hosts with other data run on this machine: `tutti --data-dir %s down` stops them", filepath.Dir(dir))
		}
	}
	return nil
}

// Status is a host and how it is.
type Status struct {
	Host
	Running bool `json:"running"`
	Cut     bool `json:"cut"`
	PID     int  `json:"pid,omitempty"` // of its first process
}

// List returns all hosts and how they are.
func (m *Machine) List() ([]Status, error) {
	s, err := m.load()
	if err != nil {
		return nil, err
	}
	out := make([]Status, 0, len(s.Hosts))
	for _, h := range s.Hosts {
		st := Status{Host: h}
		if pid, ok := m.running(&h); ok {
			st.Running, st.PID, st.Cut = true, pid, isCut(&h)
		}
		out = append(out, st)
	}
	return out, nil
}

// find takes a host's name or number.
func (m *Machine) find(ref string) (*Host, error) {
	s, err := m.load()
	if err != nil {
		return nil, err
	}
	number, numErr := strconv.Atoi(ref)
	for i := range s.Hosts {
		if s.Hosts[i].Name == ref || (numErr == nil && s.Hosts[i].Index == number) {
			return &s.Hosts[i], nil
		}
	}
	if len(s.Hosts) == 0 {
		return nil, fault.New(fault.NotFound, "this machine has no virtual hosts: `tutti up --hosts 3` makes three")
	}
	return nil, fault.New(fault.NotFound, "there is no virtual host %q: %s to %s are there", ref, s.Hosts[0].Name, s.Hosts[len(s.Hosts)-1].Name)
}

// servers is how many of n hosts are servers unless it is said.
func servers(n int) int {
	if n < 3 {
		return 1
	}
	return 3
}

// Plan decides on n hosts, or as many as have data from before if those are up to most, and refuses what
// cannot be. Of new ones those up to the given number are servers; 0 leaves it to Plan how many.
func (m *Machine) Plan(n, voters, most int) ([]Host, error) {
	if voters == 0 {
		voters = servers(n)
	}
	if voters < 1 || voters > n {
		return nil, fault.New(fault.Invalid, "--servers %d: of %d hosts, 1 to %d can be servers", voters, n, n)
	}
	if n < 1 || n > MaxHosts {
		return nil, fault.New(fault.Invalid, "--hosts %d: 1 to %d virtual hosts are possible on one machine", n, MaxHosts)
	}
	if most < n || most > MaxHosts {
		return nil, fault.New(fault.Invalid, "--max-hosts %d: %d (as many as --hosts) to %d are accepted", most, n, MaxHosts)
	}
	if err := m.checkOwner(); err != nil {
		return nil, err
	}
	old, err := m.load()
	if err != nil {
		return nil, err
	}
	for i := range old.Hosts {
		if _, ok := m.running(&old.Hosts[i]); ok {
			return nil, fault.New(fault.Conflict, "virtual hosts run already (%d of them); `tutti status` tells how they are, `tutti down` stops them", len(old.Hosts))
		}
	}
	if len(old.Hosts) > most {
		return nil, fault.New(fault.Conflict, "%d virtual hosts were left here by an earlier `up`: give --hosts %d (or --max-hosts, to let those go that turn out empty) to bring them back, or remove them and their data with `tutti down --purge`", len(old.Hosts), len(old.Hosts))
	}
	if !m.Subnet.Addr().Is4() || m.Subnet.Bits() > 26 {
		return nil, fault.New(fault.Invalid, "subnet %s: an IPv4 range of /26 or larger is accepted", m.Subnet)
	}
	hosts := old.Hosts
	for len(hosts) < n {
		h := m.newHost(hosts)
		h.Server = h.Index <= voters
		hosts = append(hosts, h)
	}
	return hosts, nil
}

// newHost is one with the lowest number that is free.
func (m *Machine) newHost(beside []Host) Host {
	i := 1
	for slices.ContainsFunc(beside, func(h Host) bool { return h.Index == i }) {
		i++
	}
	name := "host-" + strconv.Itoa(i)
	return Host{
		Name: name, Index: i, Address: m.address(i + 10).String(),
		DataDir: filepath.Join(m.dataRoot(), name), RunDir: filepath.Join(m.runRoot(), name),
	}
}

// address is the n-th of the subnet.
func (m *Machine) address(n int) netip.Addr {
	a := m.Subnet.Masked().Addr()
	for range n {
		a = a.Next()
	}
	return a
}

func (m *Machine) gateway() netip.Addr { return m.address(1) }

// Prepare makes what all hosts share and remembers the hosts, and how many there may be.
func (m *Machine) Prepare(hosts []Host, policy autoscale.HostPolicy) error {
	return m.locked(func() error {
		if err := m.makeNetwork(); err != nil {
			return err
		}
		return m.save(&state{Subnet: m.Subnet.String(), Hosts: hosts, Policy: policy})
	})
}

// Start boots a host with what its node is to be told; node is written as JSON. A host that runs
// is left alone.
func (m *Machine) Start(h *Host, node any) error {
	if _, ok := m.running(h); ok {
		return nil
	}
	if node != nil {
		if err := writeJSON(m.nodeFile(h), node); err != nil {
			return fmt.Errorf("write the configuration of %s: %w", h.Name, err)
		}
	}
	if _, err := os.Stat(m.nodeFile(h)); err != nil {
		return fault.New(fault.NotFound, "%s was never set up: %w", h.Name, err)
	}
	return m.locked(func() error { return m.boot(h) })
}

// Restart boots a host that was killed or stopped, by name or number.
func (m *Machine) Restart(ref string) (*Host, error) {
	h, err := m.find(ref)
	if err != nil {
		return nil, err
	}
	if _, ok := m.running(h); ok {
		return nil, fault.New(fault.Conflict, "%s runs already", h.Name)
	}
	if err := m.locked(m.makeNetwork); err != nil { // as it was, unless somebody took it away
		return nil, err
	}
	return h, m.Start(h, nil)
}

// Kill is a power cut: every process of the host ends at once, containers included. It returns
// when none is left.
func (m *Machine) Kill(ref string) (*Host, error) {
	h, err := m.find(ref)
	if err != nil {
		return nil, err
	}
	pid, ok := m.running(h)
	if !ok {
		return nil, fault.New(fault.Conflict, "%s does not run", h.Name)
	}
	// The link goes first: a host without power says goodbye to nobody.
	if err := setUp(h, false); err != nil {
		return nil, err
	}
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		return nil, fmt.Errorf("kill %s: %w", h.Name, err)
	}
	return h, errors.Join(cgroup.Kill(h.Cgroup(), false), m.awaitEnd(context.Background(), h, 10*time.Second))
}

// Cut takes a host off the network, Heal brings it back.
func (m *Machine) Cut(ref string) (*Host, error)  { return m.setLink(ref, false) }
func (m *Machine) Heal(ref string) (*Host, error) { return m.setLink(ref, true) }

func (m *Machine) setLink(ref string, up bool) (*Host, error) {
	h, err := m.find(ref)
	if err != nil {
		return nil, err
	}
	if _, ok := m.running(h); !ok {
		return nil, fault.New(fault.Conflict, "%s does not run", h.Name)
	}
	return h, setUp(h, up)
}

// Down stops all hosts, gently first, and removes everything that was made for them; with purge
// their data too. It is safe to call again, also after a crash.
func (m *Machine) Down(ctx context.Context, purge bool) error {
	if err := m.checkOwner(); err != nil {
		return err
	}
	return m.locked(func() error {
		s, err := m.load()
		if err != nil {
			return err
		}
		var errs []error
		errs = append(errs, m.stopPorts())
		var g errgroup.Group
		for i := range s.Hosts {
			h := &s.Hosts[i]
			g.Go(func() error { return m.stop(ctx, h) })
		}
		errs = append(errs, g.Wait(), m.removeNetwork(), cgroup.Remove(cgroupName))
		errs = append(errs, os.RemoveAll(m.runRoot()))
		if purge {
			errs = append(errs, os.RemoveAll(m.dataRoot()))
		}
		return errors.Join(errs...)
	})
}

// stop asks a host's first process to shut down, and cuts its power when that takes too long.
func (m *Machine) stop(ctx context.Context, h *Host) error {
	pid, ok := m.running(h)
	if !ok {
		return nil
	}
	if err := syscall.Kill(pid, syscall.SIGTERM); err == nil {
		if m.awaitEnd(ctx, h, shutdownPatience+5*time.Second) == nil {
			return nil
		}
	}
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil && !errors.Is(err, syscall.ESRCH) {
		return fmt.Errorf("kill %s: %w", h.Name, err)
	}
	return errors.Join(cgroup.Kill(h.Cgroup(), false), m.awaitEnd(context.WithoutCancel(ctx), h, 10*time.Second))
}

func (m *Machine) awaitEnd(ctx context.Context, h *Host, patience time.Duration) error {
	deadline := time.Now().Add(patience)
	for {
		if _, ok := m.running(h); !ok {
			return nil
		}
		if time.Now().After(deadline) {
			return fault.New(fault.Unavailable, "%s has not ended within %s", h.Name, patience)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(10 * time.Millisecond):
		}
	}
}
