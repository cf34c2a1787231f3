// Package netting measures the network between instances: what a virtual IP, a published port and the
// ingress cost beside a direct connection, with few services and with many; how long changes of rules
// take; and what the ingress and the names responder do in a second.
package netting

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/tutti-run/tutti/bench/internal/report"
	"github.com/tutti-run/tutti/internal/balance"
	"github.com/tutti-run/tutti/internal/balance/ingress"
	"github.com/tutti-run/tutti/internal/balance/names"
	"github.com/tutti-run/tutti/internal/model"
	"github.com/tutti-run/tutti/internal/overlay"
	"github.com/tutti-run/tutti/internal/wire"
)

const role = "bench-net"

// Run measures in namespaces of its own for processes, mounts and networks: whatever happens, nothing of
// them is left.
func Run(ctx context.Context, sheet *report.Sheet, brief bool) error {
	if os.Geteuid() != 0 {
		return errors.New("networks need root")
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	dir, err := os.MkdirTemp("/var/tmp", "tutti-bench-")
	if err != nil {
		return fmt.Errorf("make a directory: %w", err)
	}
	cmd := exec.CommandContext(ctx, self, role, dir, strconv.FormatBool(brief))
	cmd.Stdout, cmd.Stderr = sheet.Streams()
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWPID | unix.CLONE_NEWNS | unix.CLONE_NEWNET, Pdeathsig: syscall.SIGKILL}
	runtime.LockOSThread() // the end of this thread would count as the parent's
	defer runtime.UnlockOSThread()
	if err := errors.Join(cmd.Run(), os.RemoveAll(dir)); err != nil {
		return fmt.Errorf("measure in namespaces of its own: %w", err)
	}
	return nil
}

// Reexec takes the part of the process in the namespaces, and those of the helpers; main calls it first.
func Reexec(args []string) bool {
	if names.Reexec(args) || ingress.Reexec(args) {
		return true
	}
	if len(args) != 4 || args[1] != role {
		return false
	}
	if err := measure(args[2], args[3] == "true", report.New(os.Stdout, os.Stderr)); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
	return true
}

// sizes are how many services there are, each with endpointsEach endpoints.
var sizes = []int{1, 100, 1000, 10000}

const endpointsEach = 10

func measure(dir string, brief bool, sheet *report.Sheet) error {
	if err := errors.Join(
		unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""), unix.Mount("proc", "/proc", "proc", 0, ""),
	); err != nil {
		return fmt.Errorf("mount: %w", err)
	}
	l, err := newLAN(dir)
	if err != nil {
		return fmt.Errorf("make two nodes: %w", err)
	}
	span := 2 * time.Second
	if brief {
		span = 500 * time.Millisecond
	}
	for _, n := range sizes {
		l.services(n)
		if err := l.sync(); err != nil {
			return err
		}
		sheet.Say("connections with %d services", n)
		if err := l.paths(sheet, n, span); err != nil {
			return err
		}
	}
	sheet.Say("changes at %d services with %d endpoints", sizes[len(sizes)-1], sizes[len(sizes)-1]*endpointsEach)
	if err := l.changes(sheet, dir, brief); err != nil {
		return err
	}
	sheet.Say("names")
	if err := l.names(sheet, dir, span); err != nil {
		return err
	}
	sheet.Say("ingress beside nginx")
	return l.ingress(sheet, dir, 2*span)
}

// services fills the state: the first one leads to the server, the others to instances that nobody asks.
func (l *lan) services(n int) {
	l.state.Services = []wire.NetworkService{{
		ID: "s", Name: "s", WorkloadID: "s", VirtualIPs: []model.Address{{Network: "n", IP: virtualIP}},
		Ports:     []model.ServicePort{{Protocol: "tcp", Target: echoPort, Published: meshPort}},
		Endpoints: []wire.Endpoint{{Instance: "server", NodeID: "b", Addresses: []model.Address{{Network: "n", IP: serverIP}}}},
	}}
	l.state.Instances = l.state.Instances[:2]
	for s := 1; s < n; s++ {
		service := wire.NetworkService{
			ID: fmt.Sprint("s", s), Name: fmt.Sprint("s", s), WorkloadID: fmt.Sprint("s", s),
			VirtualIPs: []model.Address{{Network: "m", IP: netip.AddrFrom4([4]byte{10, 98, byte(s >> 8), byte(s)}).String()}},
		}
		for e := range endpointsEach {
			i := s*endpointsEach + e
			in := wire.NetworkInstance{
				ID: fmt.Sprint("i", i), Name: fmt.Sprintf("s%d.%d", s, e+1), Workload: service.ID, WorkloadID: service.ID, NodeID: "b", Serves: true,
				Addresses: []model.Address{{Network: "m", IP: netip.AddrFrom4([4]byte{10, byte(100 + i>>16), byte(i >> 8), byte(i)}).String()}},
			}
			l.state.Instances = append(l.state.Instances, in)
			service.Endpoints = append(service.Endpoints, wire.Endpoint{Instance: in.ID, NodeID: "b", Addresses: in.Addresses})
		}
		l.state.Services = append(l.state.Services, service)
	}
}

// sync puts the rules in force on both nodes.
func (l *lan) sync() error {
	for _, h := range []*host{l.a, l.b} {
		if err := inside(h.ns, func() error { return h.balance.Sync(context.Background(), l.state) }); err != nil {
			return err
		}
	}
	return nil
}

// changes measures what it takes one node to take over that endpoints come and go: one after the other, and a
// hundred in every second.
func (l *lan) changes(sheet *report.Sheet, dir string, brief bool) error {
	count, span := 100, 5*time.Second
	if brief {
		count, span = 30, 2*time.Second
	}
	c := &changing{
		kept: wire.NewKeptNetwork(), balance: balance.New(balance.Config{NodeID: "a", Log: slog.New(slog.DiscardHandler)}),
		overlay: l.a.overlay, names: names.New(filepath.Join(dir, "names"), "169.254.1.1:53", slog.New(slog.DiscardHandler)),
	}
	began := time.Now()
	c.kept.Apply(l.state)
	if err := inside(l.a.ns, func() error { return c.balance.Sync(context.Background(), c.kept.Next()) }); err != nil {
		return err
	}
	if err := sheet.AddAlone("net/rules/whole", float64(time.Since(began))/float64(time.Millisecond), "ms",
		"10,000 services with 100,000 endpoints written to the kernel anew, in one transaction, as after a restart"); err != nil {
		return err
	}
	l.a.balance = c.balance
	endpoints := l.state.Instances[2:]
	return inside(l.a.ns, func() error {
		c.kept.Forget()
		if err := c.sync(); err != nil { // routes and names as well
			return err
		}
		defer c.names.Remove(context.Background())
		runtime.GC()
		var took []time.Duration
		before := c.used()
		for i := range count {
			began := time.Now()
			c.change(&endpoints[len(endpoints)/count*i])
			if err := c.sync(); err != nil {
				return err
			}
			took = append(took, time.Since(began))
		}
		cpu := (c.used() - before) / time.Duration(count)
		const counted = "one of 100,000 endpoints comes or goes; computed, and in force in the kernel and in the names responder, before the next"
		if err := errors.Join(
			sheet.AddAlone("net/rules/change/p50", report.Percentile(took, 0.5), "ms", counted),
			sheet.AddAlone("net/rules/change/p99", report.Percentile(took, 0.99), "ms", counted),
			sheet.AddAlone("net/rules/change/cpu", float64(cpu)/float64(time.Millisecond), "ms", "processor time of each such change, the kernel's and the responder's with it"),
		); err != nil {
			return err
		}
		return c.steadily(sheet, endpoints, span)
	})
}

// changing is a node that follows changes.
type changing struct {
	kept    *wire.KeptNetwork
	overlay *overlay.Overlay
	balance *balance.Balance
	names   *names.Process
}

// change has an endpoint go, or come back.
func (c *changing) change(in *wire.NetworkInstance) {
	in.Serves = !in.Serves
	c.kept.Apply(&wire.Network{Since: 1, Instances: []wire.NetworkInstance{*in}})
}

func (c *changing) sync() error {
	n, ctx := c.kept.Next(), context.Background()
	return errors.Join(c.overlay.Sync(ctx, n), c.balance.Sync(ctx, n), c.names.Sync(ctx, n))
}

// used is the processor time of this process and of the responder.
func (c *changing) used() time.Duration {
	sum := used()
	pid, running := c.names.Running()
	if !running {
		return sum
	}
	responder, err := usedBy(pid)
	if err != nil {
		return sum
	}
	return sum + responder
}

// steadily has a hundred endpoints come or go in every second; what came meanwhile is put in force together, as
// agents do.
func (c *changing) steadily(sheet *report.Sheet, endpoints []wire.NetworkInstance, span time.Duration) error {
	const rate = 100
	told := make(chan time.Time, int(span/time.Second)*rate)
	var took []time.Duration
	before, began := c.used(), time.Now()
	for n := 0; time.Since(began) < span; {
		for due := int(time.Since(began) * rate / time.Second); n < due; n++ {
			c.change(&endpoints[n*7919%len(endpoints)])
			told <- began.Add(time.Duration(n+1) * time.Second / rate)
		}
		if len(told) == 0 {
			time.Sleep(time.Millisecond)
			continue
		}
		if err := c.sync(); err != nil {
			return err
		}
		for now := time.Now(); len(told) > 0; {
			took = append(took, now.Sub(<-told))
		}
	}
	wall := time.Since(began)
	const counted = "endpoints of 100,000 come and go, 100 in every second, until that is in force in the kernel and in the names responder; what comes meanwhile is put in force together"
	return errors.Join(
		sheet.AddAlone("net/rules/100-a-second/p50", report.Percentile(took, 0.5), "ms", counted),
		sheet.AddAlone("net/rules/100-a-second/p99", report.Percentile(took, 0.99), "ms", counted),
		sheet.AddAlone("net/rules/100-a-second/cpu", 100*float64(c.used()-before)/float64(wall), "% of a core", "processor time meanwhile, the kernel's and the responder's with it"))
}

// used is the processor time of this process so far.
func used() time.Duration {
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// names asks the responder for a virtual IP, with all services of the largest size.
func (l *lan) names(sheet *report.Sheet, dir string, span time.Duration) error {
	quiet := slog.New(slog.DiscardHandler)
	p := names.New(filepath.Join(dir, "names"), "169.254.1.1:53", quiet)
	return inside(l.a.ns, func() error {
		if err := p.Sync(context.Background(), l.state); err != nil {
			return err
		}
		rate, took, err := askNames(l.client, "169.254.1.1:53", "s", span)
		const counted = "questions for the virtual IP of one of 10,000 services, over UDP from an instance on the node, 8 at a time"
		return errors.Join(err, p.Remove(context.Background()),
			sheet.AddAlone("net/names/rate", rate, "questions/s", counted),
			sheet.AddAlone("net/names/p99", report.Percentile(took, 0.99), "ms", counted))
	})
}
