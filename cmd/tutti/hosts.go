package main

import (
	"cmp"
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/tutti-run/tutti/internal/api/native"
	"github.com/tutti-run/tutti/internal/autoscale"
	"github.com/tutti-run/tutti/internal/fault"
	"github.com/tutti-run/tutti/internal/node"
	"github.com/tutti-run/tutti/internal/provision"
)

type hostsFlags struct {
	count   int
	servers int
	most    int
	empty   time.Duration
	subnet  string
}

func (f *hostsFlags) add(c *cobra.Command) {
	c.Flags().IntVar(&f.count, "hosts", 0, fmt.Sprintf("bring up this many virtual hosts on this machine (1 to %d)", provision.MaxHosts))
	c.Flags().IntVar(&f.servers, "servers", 0, "how many of the virtual hosts are servers, the first ones (default: three, or one if there are fewer than three hosts)")
	c.Flags().IntVar(&f.most, "max-hosts", 0, "bring up more virtual hosts, up to so many in all, when work finds no place, and take them away when they are empty (default: as many as --hosts)")
	c.Flags().DurationVar(&f.empty, "give-back-after", 2*time.Minute, "how long a virtual host beyond --hosts is empty before it is taken away")
	c.Flags().StringVar(&f.subnet, "subnet", provision.DefaultSubnet, "addresses for virtual hosts")
}

// machine returns this machine's virtual hosts; an empty subnet is the default one.
func (g *globals) machine(subnet string) *provision.Machine {
	prefix, err := netip.ParsePrefix(subnet)
	if err != nil {
		prefix = netip.MustParsePrefix(provision.DefaultSubnet)
	}
	return provision.New(provision.Config{DataDir: g.DataDir, RunDir: g.RunDir, Subnet: prefix, NodeArgs: []string{"serve"}})
}

// upHosts brings up a cluster of virtual hosts and, in the foreground, takes it down when it is
// interrupted.
func upHosts(ctx context.Context, g *globals, f *nodeFlags, h *hostsFlags) error {
	if _, err := netip.ParsePrefix(h.subnet); err != nil {
		return fault.New(fault.Invalid, "subnet %q: an IPv4 range such as %s is accepted", h.subnet, provision.DefaultSubnet)
	}
	if _, err := newLog(f.config.LogLevel); err != nil { // said here rather than in each host's log
		return err
	}
	m := g.machine(h.subnet)
	policy := autoscale.HostPolicy{Min: h.count, Max: cmp.Or(h.most, h.count), AskAfter: askAfter, GiveBackAfter: h.empty}
	hosts, err := m.Plan(h.count, h.servers, policy.Max)
	if err != nil {
		return err
	}
	if why := autoscale.CheckHosts(policy); why != "" {
		return fault.New(fault.Invalid, "%s", why)
	}
	ctx, stop := signal.NotifyContext(ctx, syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	began := time.Now()
	up := &hostsUp{globals: g, machine: m, hosts: hosts, policy: policy, config: f.config}
	if err := up.run(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "tutti: taking down what was started")
		if derr := m.Down(context.WithoutCancel(ctx), false); derr != nil {
			fmt.Fprintln(os.Stderr, "tutti:", derr)
		}
		return err
	}
	fmt.Printf("%d hosts are ready after %s: %s.\n", len(hosts), time.Since(began).Round(10*time.Millisecond), addresses(hosts))
	fmt.Println("Published ports answer on each of these addresses and on 127.0.0.1. Next: `tutti status`, `tutti deploy`, `tutti host`.")
	if f.kubernetes {
		if err := g.enableKubernetes(ctx, os.Stdout); err != nil {
			return err
		}
	}
	if f.background {
		return nil
	}
	fmt.Fprintln(os.Stderr, "tutti: Ctrl-C takes the hosts down")
	<-ctx.Done()
	return m.Down(context.Background(), false)
}

func addresses(hosts []provision.Host) string {
	var list []string
	for _, h := range hosts {
		list = append(list, h.Name+" "+h.Address)
	}
	return strings.Join(list, ", ")
}

// hostsUp is one bringing up.
type hostsUp struct {
	*globals
	machine *provision.Machine
	hosts   []provision.Host
	policy  autoscale.HostPolicy
	config  node.Config
}

func (u *hostsUp) run(ctx context.Context) error {
	if err := u.machine.Prepare(u.hosts, u.policy); err != nil {
		return err
	}
	// Hosts that were members before come first, all of them: they may need each other for a
	// quorum. Of entirely new hosts the first founds the cluster.
	var members, fresh []*provision.Host
	for i := range u.hosts {
		h := &u.hosts[i]
		_, err := os.Stat(filepath.Join(h.DataDir, "identity", "node.crt"))
		if err == nil || i == 0 {
			members = append(members, h)
		} else {
			fresh = append(fresh, h)
		}
	}
	if u.config.Waiting {
		return u.waiting(ctx)
	}
	if err := u.start(members, "", nil); err != nil {
		return err
	}
	client := native.Dial(node.Socket(u.hosts[0].RunDir))
	defer client.Close()
	if err := u.await(ctx, "a leader", func() (bool, error) {
		p, err := client.Ping(ctx)
		return err == nil && p.Leader != "", err
	}); err != nil {
		return err
	}
	if len(fresh) > 0 {
		tokens := map[bool]string{}
		for _, server := range []bool{true, false} {
			if err := u.await(ctx, "a join token", func() (bool, error) {
				token, err := client.Token(ctx, server)
				tokens[server] = token
				return err == nil, err
			}); err != nil {
				return err
			}
		}
		at := net.JoinHostPort(u.hosts[0].Address, strconv.Itoa(u.config.Port))
		if err := u.start(fresh, at, tokens); err != nil {
			return err
		}
	}
	staying := 0 // the cluster may have forgotten one that was being given back
	for i := range u.hosts {
		if !u.hosts[i].Leaving {
			staying++
		}
	}
	if err := u.await(ctx, "all hosts to be ready", func() (bool, error) {
		s, err := client.Status(ctx)
		return err == nil && s.NodesReady >= staying, err
	}); err != nil {
		return err
	}
	for i := range u.hosts { // whoever has one of them has them all
		if h := &u.hosts[i]; !h.Server && !h.Leaving {
			if err := client.TrustNode(ctx, h.Name, true); err != nil {
				return err
			}
		}
	}
	return u.machine.StartPorts([]string{"host-ports", "--data-dir", u.DataDir, "--run-dir", u.RunDir})
}

// waiting boots hosts that join clusters when they are told to. It returns when their Docker sockets answer.
func (u *hostsUp) waiting(ctx context.Context) error {
	var all []*provision.Host
	for i := range u.hosts {
		all = append(all, &u.hosts[i])
	}
	if err := u.start(all, "", nil); err != nil {
		return err
	}
	for _, h := range all {
		if err := u.await(ctx, h.Name+" to answer", func() (bool, error) {
			c, err := net.Dial("unix", node.DockerSocket(h.RunDir))
			if err != nil {
				return false, err
			}
			return true, c.Close()
		}); err != nil {
			return err
		}
		fmt.Fprintf(os.Stderr, "tutti: docker -H unix://%s reaches %s\n", node.DockerSocket(h.RunDir), h.Name)
	}
	return nil
}

// start boots hosts; with tokens they are to join the cluster at an address.
func (u *hostsUp) start(hosts []*provision.Host, joinAt string, tokens map[bool]string) error {
	share, err := memoryShare(u.policy.Max)
	if err != nil {
		return err
	}
	for _, h := range hosts {
		c := u.config
		asAgent(&c, h)
		if h.Server || c.Waiting {
			c.APIListen, c.DockerListen, c.MarathonListen, c.RegistryListen = u.config.APIListen, u.config.DockerListen, u.config.MarathonListen, u.config.RegistryListen
		}
		c.Capacity, c.JoinAddress, c.JoinToken = share, joinAt, tokens[h.Server]
		if err := u.machine.Start(h, c); err != nil {
			return err
		}
		fmt.Fprintf(os.Stderr, "tutti: %s has been started (log in %s)\n", h.Name, h.LogFile())
	}
	return nil
}

// await asks until it is so.
func (u *hostsUp) await(ctx context.Context, what string, check func() (bool, error)) error {
	deadline := time.Now().Add(readyPatience)
	told := time.Now()
	for {
		ok, err := check()
		if ok {
			return nil
		}
		if time.Now().After(deadline) {
			if err == nil {
				err = fault.New(fault.Unavailable, "it did not come to be")
			}
			return fmt.Errorf("waited %s for %s: %w; %s tells more", readyPatience, what, err, u.hosts[0].LogFile())
		}
		if time.Since(told) > time.Second {
			fmt.Fprintf(os.Stderr, "tutti: waiting for %s\n", what)
			told = time.Now().Add(4 * time.Second)
		}
		select {
		case <-ctx.Done():
			return fault.New(fault.Unavailable, "interrupted while waiting for %s", what)
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// hostPortsCommand is the process beside the hosts, which answers published ports on the machine's
// loopback address and asks for hosts and gives them back.
func hostPortsCommand(g *globals) *cobra.Command {
	return &cobra.Command{
		Use: "host-ports", Hidden: true, Args: cobra.NoArgs,
		Short: "Answer the cluster's published ports on this machine's loopback address, and look after the number of hosts",
		RunE: func(c *cobra.Command, _ []string) error {
			log, err := newLog("info")
			if err != nil {
				return err
			}
			ctx, stop := signal.NotifyContext(c.Context(), syscall.SIGINT, syscall.SIGTERM)
			defer stop()
			go g.passMarathon(ctx, log)
			go g.growHosts(ctx, log)
			return g.machine("").ServePorts(ctx, g.publishedPorts, log)
		},
	}
}

func (g *globals) publishedPorts(ctx context.Context) ([]provision.Port, error) {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	client, err := g.connect(ctx)
	if err != nil {
		return nil, err
	}
	defer client.Close()
	services, err := client.Services(ctx)
	if err != nil {
		return nil, err
	}
	var out []provision.Port
	for _, s := range services {
		for _, p := range s.Ports {
			if p.Published > 0 && (p.Protocol == "tcp" || p.Protocol == "udp") {
				out = append(out, provision.Port{Protocol: p.Protocol, Number: p.Published})
			}
		}
	}
	if kv, err := client.Key(ctx, node.KubernetesKey, 0); err == nil && string(kv.Key.Value) == node.KubernetesOn {
		out = append(out, provision.Port{Protocol: "tcp", Number: node.KubernetesPort})
	}
	return out, nil
}

func hostCommand(g *globals) *cobra.Command {
	c := &cobra.Command{
		Use:   "host",
		Short: "List virtual hosts, cut their power or their network, and bring them back",
	}
	ls := &cobra.Command{
		Use: "ls", Short: "List this machine's virtual hosts", Args: cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			list, err := g.machine("").List()
			if err != nil {
				return err
			}
			return g.print(os.Stdout, list, func() *table { return hostTable(list) })
		},
	}
	c.AddCommand(ls)
	for _, a := range []struct {
		use, short, done string
		do               func(*provision.Machine, string) (*provision.Host, error)
	}{
		{"kill", "Cut a host's power: all its processes, containers included, end at once", "has lost its power", (*provision.Machine).Kill},
		{"start", "Boot a host that was killed", "boots", (*provision.Machine).Restart},
		{"cut", "Take a host off the network", "is cut off", (*provision.Machine).Cut},
		{"heal", "Bring a host back to the network", "is connected again", (*provision.Machine).Heal},
	} {
		c.AddCommand(&cobra.Command{
			Use: a.use + " HOST…", Short: a.short, Args: cobra.MinimumNArgs(1), ValidArgsFunction: g.completeHosts,
			Long: a.short + ". A host is given by its name or its number.",
			RunE: func(_ *cobra.Command, args []string) error {
				for _, ref := range args {
					h, err := a.do(g.machine(""), ref)
					if err != nil {
						return err
					}
					fmt.Printf("%s %s.\n", h.Name, a.done)
				}
				return nil
			},
		})
	}
	return c
}

func (g *globals) completeHosts(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
	list, err := g.machine("").List()
	if err != nil {
		return nil, cobra.ShellCompDirectiveError
	}
	var names []string
	for _, h := range list {
		names = append(names, h.Name)
	}
	return names, cobra.ShellCompDirectiveNoFileComp
}

func hostTable(list []provision.Status) *table {
	t := newTable("NAME", "ADDRESS", "ROLE", "STATE", "PID")
	for _, h := range list {
		role, state, pid := "agent", "off", ""
		if h.Server {
			role = "server"
		}
		if h.Running {
			state, pid = "on", strconv.Itoa(h.PID)
		}
		if h.Cut {
			state = "cut off"
		}
		if h.Leaving {
			state = "leaves"
		}
		t.add(h.Name, h.Address, role, state, pid)
	}
	return t
}
