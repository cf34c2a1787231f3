package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/docker/go-units"
	"github.com/spf13/cobra"

	"github.com/tutti-run/tutti/internal/fault"
	"github.com/tutti-run/tutti/internal/node"
	"github.com/tutti-run/tutti/internal/server"
	"github.com/tutti-run/tutti/internal/wire"
)

// clusterCommands make and end nodes on this machine.
func clusterCommands(g *globals) []*cobra.Command {
	return []*cobra.Command{upCommand(g), downCommand(g), joinCommand(g), hostCommand(g), installCommand(g), uninstallCommand(g), serveCommand(g), hostPortsCommand(g), envCommand(g)}
}

// nodeFlags are those that say what node to be.
type nodeFlags struct {
	config     node.Config
	background bool
	// kubernetes has the cluster answer Kubernetes' API.
	kubernetes bool
}

func (f *nodeFlags) add(c *cobra.Command) {
	c.Flags().BoolVarP(&f.background, "detach", "d", false, "run in the background; return when the node is ready")
	c.Flags().StringVar(&f.config.Name, "name", "", "name of this node (default: the host's name)")
	c.Flags().StringVar(&f.config.Address, "address", "", "IPv4 address under which other hosts reach this one (default: that of the default route)")
	c.Flags().IntVar(&f.config.Port, "port", node.DefaultPort, "port for other nodes")
	c.Flags().DurationVar(&f.config.DeadServerAfter, "remove-dead-servers", server.DefaultDeadServerAfter, "remove servers that have been dead for so long and were replaced; negative: never")
	c.Flags().StringVar(&f.config.APIListen, "api-listen", "", "address:port where a server answers the API over the network, to users with a certificate or token (default: nowhere)")
	c.Flags().StringVar(&f.config.DockerListen, "docker-listen", "", "address:port where a server answers the Docker API over the network, by mutual TLS, to users with a certificate (default: nowhere)")
	c.Flags().StringVar(&f.config.MarathonListen, "marathon-listen", node.DefaultMarathonListen, "address:port where a server answers Marathon's API: on loopback to the host's administrator, elsewhere to users with a certificate or token; empty: nowhere")
	c.Flags().StringVar(&f.config.RegistryListen, "registry-listen", node.DefaultRegistryListen, "address:port where a server answers the cluster's image registry: on loopback to the host's administrator, elsewhere to users with a certificate or a token as password; empty: nowhere")
	c.Flags().StringVar(&f.config.KubernetesBinary, "kubernetes-binary", "", "the program that answers Kubernetes' API beside a server, where the cluster wants that (default: tutti-kube beside this program)")
	c.Flags().Var((*bytesFlag)(&f.config.ImageBytes), "image-limit", "how much images may take on the disk before those that nothing uses are removed, such as 20g (default: any amount)")
	c.Flags().StringToStringVar(&f.config.Runtimes, "oci-runtime", nil, "a further OCI runtime of this host, NAME=PATH; may be repeated (runc, crun, youki, runsc and kata-runtime are found by themselves)")
	c.Flags().StringSliceVar(&f.config.IngressProxies, "ingress-proxies", nil, "addresses or ranges of the load balancers in front of this host that begin each connection to ports 80 and 443 by the PROXY protocol")
	c.Flags().StringSliceVar(&f.config.CDIDirs, "cdi-spec-dir", nil, "where the files are that describe devices for CDI; may be repeated (default: /etc/cdi and /var/run/cdi)")
	c.Flags().DurationVar(&f.config.CertificateLife, "certificate-life", wire.CertificateLife, "how long certificates that this server signs for nodes are valid")
	c.Flags().StringVar(&f.config.LogLevel, "log-level", "info", "debug, info, warn or error")
}

func upCommand(g *globals) *cobra.Command {
	f := &nodeFlags{}
	hosts := &hostsFlags{}
	c := &cobra.Command{
		Use:   "up",
		Short: "Start a cluster on this host, or on virtual hosts of this machine",
		Long: `Start Tutti on this host: a server and an agent in one process. On a host that was up
before, it comes back with everything it had.

With --hosts N the cluster has N virtual hosts on this one machine, each with its own
address, processes and data, the first three of them servers: to try failures, and for
tests. ` + "`tutti host`" + ` cuts their power and their network. With --waiting they are of no
cluster yet. With --max-hosts M there are
more of them, up to M, while work finds no place on N.`,
		Example: "  tutti up -d\n  tutti up -d --hosts 3\n  tutti up -d --hosts 3 --max-hosts 6",
		Args:    cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			if err := g.refuseSecond(); err != nil {
				return err
			}
			for flag, says := range map[string]string{"servers": "how many of virtual hosts are servers", "max-hosts": "how many virtual hosts there may be", "give-back-after": "when a virtual host is taken away"} {
				if !c.Flags().Changed("hosts") && c.Flags().Changed(flag) {
					return fault.New(fault.Invalid, "--%s says %s: it goes with --hosts", flag, says)
				}
			}
			if c.Flags().Changed("give-back-after") && !c.Flags().Changed("max-hosts") {
				return fault.New(fault.Invalid, "--give-back-after says when a virtual host beyond --hosts is taken away: it goes with --max-hosts")
			}
			if c.Flags().Changed("max-hosts") && hosts.most < hosts.count {
				return fault.New(fault.Invalid, "--max-hosts %d is less than --hosts %d", hosts.most, hosts.count)
			}
			if c.Flags().Changed("hosts") {
				return upHosts(c.Context(), g, f, hosts)
			}
			return f.run(c.Context(), g)
		},
	}
	f.add(c)
	c.Flags().BoolVar(&f.config.Waiting, "waiting", false, "wait, as long as this host is of no cluster, for `docker swarm init` or `docker swarm join` at its Docker socket, and let `docker swarm leave` take it out again")
	c.Flags().BoolVar(&f.kubernetes, "kubernetes", false, "have all servers answer Kubernetes' API, as `tutti kubernetes enable` does")
	c.Flags().StringVar(&f.config.AddressPool, "address-pool", node.DefaultAddressPool, "addresses for networks of a new cluster")
	c.Flags().StringVar(&f.config.NodePool, "node-pool", node.DefaultNodePool, "addresses for nodes within the overlay of a new cluster")
	hosts.add(c)
	return c
}

func joinCommand(g *globals) *cobra.Command {
	f := &nodeFlags{}
	c := &cobra.Command{
		Use:     "join ADDRESS --token TOKEN",
		Short:   "Add this host to a cluster",
		Long:    "Add this host to the cluster of the server at ADDRESS (host or host:port). The token, printed\nby `tutti token` on a server, decides whether this host becomes a server too.",
		Example: "  tutti join 10.0.0.5 --token tutti1-…",
		Args:    cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			if err := g.refuseSecond(); err != nil {
				return err
			}
			f.config.JoinAddress = args[0]
			if _, _, err := net.SplitHostPort(args[0]); err != nil {
				f.config.JoinAddress = net.JoinHostPort(args[0], strconv.Itoa(node.DefaultPort))
			}
			return f.run(c.Context(), g)
		},
	}
	f.add(c)
	c.Flags().StringVar(&f.config.JoinToken, "token", "", "join token (required)")
	if err := c.MarkFlagRequired("token"); err != nil {
		panic(err) // the flag was added a line above
	}
	return c
}

// refuseSecond refuses to start what runs already.
func (g *globals) refuseSecond() error {
	if os.Geteuid() != 0 {
		return fault.New(fault.Forbidden, "containers and networks need root: run this with sudo")
	}
	if pid, ok := node.Running(g.DataDir); ok {
		return fault.New(fault.Conflict, "tutti runs already on this host (process %d, data in %s): `tutti status` tells how it is, `tutti down` stops it", pid, g.DataDir)
	}
	hosts, err := g.machine("").List()
	if err != nil {
		return err
	}
	for _, h := range hosts {
		if h.Running {
			return fault.New(fault.Conflict, "virtual hosts run already on this machine (%d of them): `tutti status` tells how they are, `tutti down` stops them", len(hosts))
		}
	}
	return nil
}

// run runs a node on this host, in the foreground or behind.
func (f *nodeFlags) run(ctx context.Context, g *globals) error {
	f.config.DataDir, f.config.RunDir = g.DataDir, g.RunDir
	if f.background {
		if err := startNode(g, f.config); err != nil || !f.kubernetes {
			return err
		}
		return g.enableKubernetes(ctx, os.Stdout)
	}
	fmt.Fprintf(os.Stderr, "tutti: starting; end it with Ctrl-C (containers go on running), or with `tutti down`\n")
	return runNode(ctx, f.config, func() {
		fmt.Fprintln(os.Stderr, "tutti: ready")
		if !f.kubernetes {
			return
		}
		go func() { // what calls this answers the API as well
			if err := g.enableKubernetes(ctx, os.Stderr); err != nil {
				fmt.Fprintln(os.Stderr, "tutti:", err)
			}
		}()
	})
}

func runNode(ctx context.Context, config node.Config, ready func()) error {
	log, err := newLog(config.LogLevel)
	if err != nil {
		return err
	}
	ctx, stop := signal.NotifyContext(ctx, syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	config.Log, config.Ready, config.Version = log, ready, versionText()
	return node.Run(ctx, config)
}

// newLog returns a log to standard error; an empty level is info.
func newLog(level string) (*slog.Logger, error) {
	var l slog.Level
	if err := l.UnmarshalText([]byte(cmp.Or(level, "info"))); err != nil {
		return nil, fault.New(fault.Invalid, "log level %q: debug, info, warn and error are accepted", level)
	}
	return slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: l})), nil
}

// readyPatience is how long a node in the background may take until it is a member.
const readyPatience = 60 * time.Second

// startNode runs a node behind and returns when it is ready, or with the reason why it ended.
func startNode(g *globals, config node.Config) error {
	began := time.Now()
	if err := os.MkdirAll(g.DataDir, 0o711); err != nil {
		return fmt.Errorf("make the data directory: %w", err)
	}
	path := filepath.Join(g.DataDir, "node.json")
	data, err := json.Marshal(config)
	if err != nil {
		return err
	}
	if err := os.WriteFile(path, data, 0o600); err != nil {
		return fmt.Errorf("write the node's configuration: %w", err)
	}
	exe, err := os.Executable()
	if err != nil {
		return fmt.Errorf("find this program: %w", err)
	}
	logPath := filepath.Join(g.DataDir, "tutti.log")
	out, err := os.OpenFile(logPath, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return fmt.Errorf("open the node's log: %w", err)
	}
	defer out.Close()
	answer, told, err := os.Pipe()
	if err != nil {
		return err
	}
	defer answer.Close()
	cmd := &exec.Cmd{
		Path: exe, Args: []string{"tutti", "serve", "--tell", "3", path}, Dir: "/", Env: os.Environ(),
		Stdout: out, Stderr: out, ExtraFiles: []*os.File{told}, SysProcAttr: &syscall.SysProcAttr{Setsid: true},
	}
	err = cmd.Start()
	told.Close()
	if err != nil {
		return fmt.Errorf("start the node: %w", err)
	}
	if err := answer.SetReadDeadline(time.Now().Add(readyPatience)); err != nil {
		return err
	}
	text, err := io.ReadAll(answer)
	switch {
	case errors.Is(err, os.ErrDeadlineExceeded):
		return fault.New(fault.Unavailable, "the node is not ready after %s; it goes on trying, and %s tells more", readyPatience, logPath)
	case string(text) != "ok":
		return fault.New(fault.Internal, "the node ended: %s (more in %s)", strings.TrimSpace(string(text)), logPath)
	}
	fmt.Printf("Tutti is ready after %s (process %d, log in %s).\n", time.Since(began).Round(10*time.Millisecond), cmd.Process.Pid, logPath)
	return nil
}

// serveCommand is what startNode and virtual hosts run.
func serveCommand(*globals) *cobra.Command {
	var tell int
	var detach bool
	c := &cobra.Command{
		Use: "serve FILE", Hidden: true, Args: cobra.ExactArgs(1),
		Short: "Run the node that a file describes",
		RunE: func(c *cobra.Command, args []string) error {
			data, err := os.ReadFile(args[0])
			if err != nil {
				return fmt.Errorf("read the node's configuration: %w", err)
			}
			var config node.Config
			if err := json.Unmarshal(data, &config); err != nil {
				return fmt.Errorf("read the node's configuration: %w", err)
			}
			if detach {
				return startNode(&globals{DataDir: config.DataDir, RunDir: config.RunDir}, config)
			}
			say := func(string) {}
			if tell > 0 {
				f := os.NewFile(uintptr(tell), "tell")
				say = func(text string) {
					io.WriteString(f, text) // nobody may be listening any more
					f.Close()
				}
			}
			err = runNode(c.Context(), config, func() {
				say("ok")
				notifyInit()
			})
			if err != nil {
				say(err.Error())
			}
			return err
		},
	}
	c.Flags().IntVar(&tell, "tell", 0, "file descriptor to say \"ok\" or an error to")
	c.Flags().BoolVar(&detach, "detach", false, "run it behind, and return when it is ready")
	return c
}

func downCommand(g *globals) *cobra.Command {
	var purge bool
	c := &cobra.Command{
		Use:   "down",
		Short: "Stop everything that Tutti runs on this machine, and leave nothing behind",
		Long: `Stop this host's node or all virtual hosts, with all containers, and remove the processes,
mounts, namespaces, links, packet filter tables and cgroups that Tutti made. Data (the
cluster's state, images, volumes) stays for the next ` + "`tutti up`" + `, unless --purge is given.

It works after a crash too, and may be called again.`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			if os.Geteuid() != 0 {
				return fault.New(fault.Forbidden, "this needs root: run it with sudo")
			}
			return down(c.Context(), g, purge)
		},
	}
	c.Flags().BoolVar(&purge, "purge", false, "remove the data too: cluster state, images and volumes")
	return c
}

func down(ctx context.Context, g *globals, purge bool) error {
	m := g.machine("")
	found := false
	if m.Exists() {
		found = true
		if err := m.Down(ctx, purge); err != nil {
			return fmt.Errorf("take the virtual hosts down: %w", err)
		}
		fmt.Println("Virtual hosts are down.")
	}
	_, err := os.Stat(filepath.Join(g.DataDir, "identity"))
	if err == nil {
		found = true
		if err := downNode(ctx, g); err != nil {
			return err
		}
		fmt.Println("This host's node is down.")
	}
	if !found {
		fmt.Println("Nothing of Tutti runs on this machine.")
		return nil
	}
	if purge {
		return os.RemoveAll(g.DataDir)
	}
	fmt.Printf("The data stays in %s; `tutti up` brings it back, `tutti down --purge` removes it.\n", g.DataDir)
	return nil
}

// downNode ends this host's node and removes what it made.
func downNode(ctx context.Context, g *globals) error {
	for attempt := 0; ; attempt++ {
		pid, ok := node.Running(g.DataDir)
		if !ok {
			break
		}
		sig := syscall.SIGTERM
		if attempt >= 500 {
			sig = syscall.SIGKILL
		}
		if attempt == 0 || sig == syscall.SIGKILL {
			if err := syscall.Kill(pid, sig); err != nil && !errors.Is(err, syscall.ESRCH) {
				return fmt.Errorf("stop the node's process %d: %w", pid, err)
			}
		}
		if attempt > 700 {
			return fault.New(fault.Internal, "the node's process %d does not end", pid)
		}
		time.Sleep(20 * time.Millisecond)
	}
	if err := node.Teardown(ctx, node.Config{DataDir: g.DataDir, RunDir: g.RunDir, Cgroup: node.CgroupOf(g.DataDir)}); err != nil {
		return fmt.Errorf("clean up: %w", err)
	}
	return nil
}

// bytesFlag is an amount of bytes as people write it: 500m, 20g.
type bytesFlag int64

func (b *bytesFlag) String() string {
	if *b == 0 {
		return ""
	}
	return bytesText(int64(*b))
}
func (b *bytesFlag) Type() string { return "bytes" }
func (b *bytesFlag) Set(s string) error {
	n, err := units.RAMInBytes(s)
	if err != nil || n < 0 {
		return fmt.Errorf("%q is no amount of bytes, such as 500m or 20g", s)
	}
	*b = bytesFlag(n)
	return nil
}
