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
	if err := l.changes(sheet, brief); err != nil {
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
				ID: fmt.Sprint("i", i), Name: fmt.Sprintf("s%d.%d", s, e+1), WorkloadID: service.ID, NodeID: "b", Serves: true,
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

// changes measures what it takes one node to take over that an endpoint came or went.
func (l *lan) changes(sheet *report.Sheet, brief bool) error {
	count := 100
	if brief {
		count = 30
	}
	fresh := balance.New(balance.Config{NodeID: "a", Log: slog.New(slog.DiscardHandler)})
	began := time.Now()
	if err := inside(l.a.ns, func() error { return fresh.Sync(context.Background(), l.state) }); err != nil {
		return err
	}
	if err := sheet.AddAlone("net/rules/whole", float64(time.Since(began))/float64(time.Millisecond), "ms",
		"10,000 services with 100,000 endpoints written to the kernel anew, in one transaction, as after a restart"); err != nil {
		return err
	}
	l.a.balance = fresh
	all := l.state.Services[5000].Endpoints
	var took []time.Duration
	before := used()
	err := inside(l.a.ns, func() error {
		for i := range count {
			l.state.Services[5000].Endpoints = all[:len(all)-(i+1)%2]
			began := time.Now()
			if err := l.a.balance.Sync(context.Background(), l.state); err != nil {
				return err
			}
			took = append(took, time.Since(began))
		}
		return nil
	})
	cpu := (used() - before) / time.Duration(count)
	l.state.Services[5000].Endpoints = all
	const counted = "one of 100,000 endpoints comes or goes; computed, and changed in the kernel in one transaction, before the next"
	return errors.Join(err,
		sheet.AddAlone("net/rules/change/p50", report.Percentile(took, 0.5), "ms", counted),
		sheet.AddAlone("net/rules/change/p99", report.Percentile(took, 0.99), "ms", counted),
		sheet.AddAlone("net/rules/change/cpu", float64(cpu)/float64(time.Millisecond), "ms", "processor time of each such change"))
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
