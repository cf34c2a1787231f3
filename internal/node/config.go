package node

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/tutti-run/tutti/internal/cdi"
	"github.com/tutti-run/tutti/internal/fault"
	"github.com/tutti-run/tutti/internal/model"
	"github.com/tutti-run/tutti/internal/overlay/wireguard"
	"github.com/tutti-run/tutti/internal/server"
	"github.com/tutti-run/tutti/internal/userns"
)

// DefaultPort is where nodes listen for each other.
const DefaultPort = 7400

// Config says what node to be. It is plain data, so that it can be handed to a process as a file.
type Config struct {
	Name    string `json:"name"`    // of the node; unique in the cluster
	DataDir string `json:"dataDir"` // outlives everything
	RunDir  string `json:"runDir"`  // what a reboot may wipe
	Address string `json:"address"` // IP address under which other hosts reach this one
	Port    int    `json:"port"`    // for other nodes; 0 is DefaultPort
	// JoinAddress and JoinToken lead into an existing cluster; without them a host that has no
	// identity yet founds one.
	JoinAddress string `json:"joinAddress,omitempty"` // host:port of a server
	JoinToken   string `json:"joinToken,omitempty"`
	// Waiting has a host that is of no cluster, and has no token for one, wait until somebody asks at its
	// Docker socket for it to join one, or to found one; and lets it leave its cluster in the same way.
	Waiting bool `json:"waiting,omitempty"`
	// Cgroup is the parent of all cgroups that the node makes, e.g. "/tutti"; "" is as CgroupOf says.
	Cgroup string `json:"cgroup"`
	// Capacity is what instances may use up; zero fields are read from the host.
	Capacity model.Resources `json:"capacity,omitzero"`
	// AddressPool and NodePool are those of a cluster that this node founds, in CIDR form.
	AddressPool string `json:"addressPool,omitempty"`
	NodePool    string `json:"nodePool,omitempty"`
	// DeadServerAfter is for how long a server is dead before the others remove it, in nanoseconds;
	// negative is never, 0 ten minutes.
	DeadServerAfter time.Duration `json:"deadServerAfter,omitempty"`
	// APIListen is host:port where servers answer people's clients over the network; empty is nowhere.
	APIListen string `json:"apiListen,omitempty"`
	// DockerListen is the same for the Docker Engine's API, for users with a certificate.
	DockerListen string `json:"dockerListen,omitempty"`
	// MarathonListen is host:port where servers answer Marathon's API: on a loopback address to the
	// host's administrator, elsewhere to users with a certificate or token; empty is nowhere. At
	// the default a port that is taken is left.
	MarathonListen string `json:"marathonListen,omitempty"`
	// RegistryListen is host:port where servers answer the cluster's registry: on a loopback address to
	// the host's administrator, elsewhere to users with a token or certificate; empty is nowhere. At
	// the default a port that is taken is left.
	RegistryListen string `json:"registryListen,omitempty"`
	// KubernetesBinary is the program that answers Kubernetes' API beside a server, while the cluster wants
	// that; empty is tutti-kube beside this program.
	KubernetesBinary string `json:"kubernetesBinary,omitempty"`
	// Runtimes are OCI runtimes of this host besides those that are found by name, name → path.
	Runtimes map[string]string `json:"runtimes,omitempty"`
	// IngressProxies are ranges of addresses from which load balancers connect to ports 80 and 443, with the PROXY protocol.
	IngressProxies []string `json:"ingressProxies,omitempty"`
	// CDIDirs are where the files are that describe devices; nil is where they usually are.
	CDIDirs []string `json:"cdiDirs,omitempty"`
	// ImageBytes is how much images may take on the disk before those that nothing uses are removed; 0 is any amount.
	ImageBytes int64 `json:"imageBytes,omitempty"`
	// CertificateLife is how long certificates that this node signs as a server are valid; 0 is 90
	// days. It is for trying renewal.
	CertificateLife time.Duration `json:"certificateLife,omitempty"`
	// LogLevel is debug, info, warn or error; it is for whoever makes Log.
	LogLevel string `json:"logLevel,omitempty"`
	Version  string `json:"-"`

	features *features

	Log *slog.Logger `json:"-"`
	// Ready is called once, when the node is a member and its network is in force.
	Ready func() `json:"-"`
}

// The address pools of a new cluster, unless others are chosen: 256 networks of 256 addresses,
// and 65,534 nodes.
const (
	DefaultAddressPool = "10.210.0.0/16"
	DefaultNodePool    = "10.211.0.0/16"
)

// DockerSocket returns the path of the socket at which a node with that run directory answers the
// Docker Engine's API.
func DockerSocket(runDir string) string { return filepath.Join(runDir, "docker.sock") }

// DefaultMarathonListen is where servers answer Marathon's API unless told otherwise.
const DefaultMarathonListen = "127.0.0.1:8088"

// DefaultRegistryListen is where servers answer the cluster's registry unless told otherwise; its port is
// the one in the names of images.
const DefaultRegistryListen = "127.0.0.1:7405"

// MarathonSocket returns the path of the socket at which a node with that run directory answers
// Marathon's API, too.
func MarathonSocket(runDir string) string { return filepath.Join(runDir, "marathon.sock") }

// MarathonURLFile returns the path of the file in which a node with that run directory says where it
// answers Marathon's API.
func MarathonURLFile(runDir string) string { return filepath.Join(runDir, "marathon.url") }

// Socket returns the path of the API socket of a node with that run directory.
func Socket(runDir string) string { return filepath.Join(runDir, "tutti.sock") }

func (c *Config) wireAddress() string {
	return net.JoinHostPort(c.Address, strconv.Itoa(c.Port))
}

// complete fills in what was left open and refuses what cannot work.
func (c *Config) complete() error {
	if c.Port == 0 {
		c.Port = DefaultPort
	}
	if c.Name == "" {
		name, err := os.Hostname()
		if err != nil {
			return fmt.Errorf("find out this host's name: %w", err)
		}
		c.Name = name
	}
	if err := model.CheckName(c.Name); err != nil {
		return fault.New(fault.Invalid, "node name %w", err)
	}
	if c.Address == "" {
		a, err := ownAddress()
		if err != nil {
			return err
		}
		c.Address = a
	}
	if a, err := netip.ParseAddr(c.Address); err != nil || !a.Is4() {
		return fault.New(fault.Invalid, "address %q: an IPv4 address of this host is accepted", c.Address)
	}
	if c.Cgroup == "" {
		c.Cgroup = CgroupOf(c.DataDir)
	}
	for _, p := range []struct {
		name  string
		value *string
		other string
	}{{"address pool", &c.AddressPool, DefaultAddressPool}, {"node pool", &c.NodePool, DefaultNodePool}} {
		if *p.value == "" {
			*p.value = p.other
		}
		if pool, err := netip.ParsePrefix(*p.value); err != nil || !pool.Addr().Is4() || pool.Bits() > 22 {
			return fault.New(fault.Invalid, "%s %q: an IPv4 range of /22 or larger is accepted", p.name, *p.value)
		}
	}
	for name, path := range c.Runtimes {
		if model.CheckName(name) != nil || !filepath.IsAbs(path) || name == model.BuiltInRuntime || name == model.UnitRuntime {
			return fault.New(fault.Invalid, "OCI runtime %s=%s: a name other than %s and %s and the absolute path of a program are accepted", name, path, model.BuiltInRuntime, model.UnitRuntime)
		}
	}
	for i, text := range c.IngressProxies {
		if a, err := netip.ParseAddr(text); err == nil {
			c.IngressProxies[i] = netip.PrefixFrom(a, a.BitLen()).String()
		} else if _, err := netip.ParsePrefix(text); err != nil {
			return fault.New(fault.Invalid, "load balancers at %q: an address or a range such as 192.0.2.0/28 is accepted", text)
		}
	}
	if c.CDIDirs == nil {
		c.CDIDirs = cdi.Dirs
	}
	c.features = &features{runtimes: c.Runtimes, devices: cdi.Open(c.CDIDirs), users: sync.OnceValue(c.tryUsers)}
	if c.DeadServerAfter == 0 {
		c.DeadServerAfter = server.DefaultDeadServerAfter
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	if err := c.measure(); err != nil {
		return err
	}
	return c.openTunnel()
}

// openTunnel finds out whether this host can be on encrypted networks, and gives it a key.
func (c *Config) openTunnel() error {
	way, err := wireguard.Way()
	if err != nil {
		c.Log.Debug("this host cannot be on encrypted networks", "error", err)
		return nil
	}
	private, public, err := wireguard.Key(filepath.Join(c.DataDir, "wireguard.key"))
	if err != nil {
		return err
	}
	c.features.sealed, c.features.tunnelKey = wireguard.New(c.tunnelDir(), way, private, c.Log), public
	return nil
}

func (c *Config) tunnelDir() string { return filepath.Join(c.RunDir, "wireguard") }

// ownAddress is the one that leads to the rest of the world, or loopback on a host without one.
func ownAddress() (string, error) {
	conn, err := net.Dial("udp4", "192.0.2.1:9") // sends nothing: it only asks for the route
	if err != nil {
		return "127.0.0.1", nil
	}
	defer conn.Close()
	host, _, err := net.SplitHostPort(conn.LocalAddr().String())
	return host, err
}

// TotalMemory returns the memory of this machine in bytes.
func TotalMemory() (int64, error) {
	var info unix.Sysinfo_t
	if err := unix.Sysinfo(&info); err != nil {
		return 0, fmt.Errorf("read the machine's memory: %w", err)
	}
	return int64(info.Totalram) * int64(info.Unit), nil
}

// measure reads what the host has.
func (c *Config) measure() error {
	if c.Capacity.NanoCPUs == 0 {
		c.Capacity.NanoCPUs = int64(runtime.NumCPU()) * 1e9
	}
	if c.Capacity.MemoryBytes == 0 {
		total, err := TotalMemory()
		if err != nil {
			return err
		}
		c.Capacity.MemoryBytes = total
	}
	if c.Capacity.DiskBytes == 0 {
		if err := os.MkdirAll(c.DataDir, 0o700); err != nil {
			return fmt.Errorf("make the data directory: %w", err)
		}
		var st syscall.Statfs_t
		if err := syscall.Statfs(c.DataDir, &st); err != nil {
			return fmt.Errorf("read the size of %s: %w", c.DataDir, err)
		}
		c.Capacity.DiskBytes = int64(st.Blocks) * st.Bsize
	}
	return nil
}

// node describes this host to the cluster.
func (c *Config) node(id string, server bool) *model.Node {
	var u unix.Utsname
	kernel := ""
	if unix.Uname(&u) == nil {
		kernel = unix.ByteSliceToString(u.Release[:])
	}
	hostname, err := os.Hostname()
	if err != nil {
		hostname = c.Name
	}
	n := &model.Node{
		Meta: model.Meta{ID: id, Name: c.Name}, Server: server, Availability: model.Active,
		WireAddress: c.wireAddress(), HostAddress: c.Address, Capacity: c.Capacity,
		Attributes: map[string]string{
			"os": runtime.GOOS, "arch": runtime.GOARCH, "kernel": kernel,
			"hostname": strings.ToLower(hostname), "version": c.Version,
		},
	}
	c.features.describe(n)
	return n
}

// tryUsers tries, where images are kept, whether instances can have users of their own.
func (c *Config) tryUsers() error {
	dir := c.imagesDir()
	if err := os.MkdirAll(dir, 0o711); err != nil {
		return err
	}
	return userns.Works(dir)
}

func (c *Config) imagesDir() string { return filepath.Join(c.DataDir, "images") }

// DefaultDataDir is where a host's node keeps what it knows.
const DefaultDataDir = "/var/lib/tutti"

// CgroupOf is the parent of the cgroups of a node by where it keeps what it knows: of two nodes on a host, each has its own.
func CgroupOf(dataDir string) string {
	if dir, err := filepath.Abs(dataDir); err == nil && dir != DefaultDataDir {
		sum := sha256.Sum256([]byte(dir))
		return "/tutti-" + hex.EncodeToString(sum[:4])
	}
	return "/tutti"
}
