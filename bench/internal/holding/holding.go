// Package holding measures what it costs servers to hold the sessions of many nodes at rest, and how
// soon a node that falls silent is noticed. The servers are Tutti's own server halves, three
// processes on this machine; the nodes are played by this process, each with a certificate, a
// connection and a session of its own, and do what an agent without work does.
package holding

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/tutti-run/tutti/bench/internal/report"
	"github.com/tutti-run/tutti/internal/dispatch"
)

const servers = 3

// plan says how many nodes, and for how long.
type plan struct {
	sizes  []int
	rest   time.Duration
	silent int // nodes that fall silent, one after the other
}

func planOf(brief bool) plan {
	if brief {
		return plan{sizes: []int{100, 1_000}, rest: 8 * time.Second, silent: 2}
	}
	return plan{sizes: []int{100, 2_000}, rest: 30 * time.Second, silent: 5}
}

// Run measures each size with servers of its own.
func Run(ctx context.Context, sheet *report.Sheet, brief bool) error {
	p := planOf(brief)
	if err := allowFiles(p.sizes[len(p.sizes)-1]); err != nil {
		return err
	}
	for _, size := range p.sizes {
		if err := p.run(ctx, sheet, size); err != nil {
			return fmt.Errorf("%d sessions: %w", size, err)
		}
	}
	return nil
}

// allowFiles makes room for as many connections.
func allowFiles(n int) error {
	var have unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &have); err != nil {
		return fmt.Errorf("read the limit of open files: %w", err)
	}
	want := uint64(n + 1000)
	if have.Cur >= want {
		return nil
	}
	have.Cur, have.Max = want, max(have.Max, want)
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &have); err != nil {
		return fmt.Errorf("allow %d open files, as so many sessions need: %w", want, err)
	}
	return nil
}

func (p plan) run(ctx context.Context, sheet *report.Sheet, size int) (err error) {
	dir, err := os.MkdirTemp("/var/tmp", "tutti-bench-")
	if err != nil {
		return fmt.Errorf("make a directory for the servers: %w", err)
	}
	defer os.RemoveAll(dir)
	sheet.Say("starting %d servers, each a process", servers)
	c, err := startCluster(ctx, dir)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, c.stop()) }()
	before, err := c.usage()
	if err != nil {
		return err
	}
	sheet.Say("opening %d sessions", size)
	began, own := time.Now(), processorTime()
	f, err := c.openFleet(ctx, size-servers) // servers are nodes, too
	if err != nil {
		return err
	}
	defer f.close()
	took := time.Since(began).Seconds()
	after, err := c.usage()
	if err != nil {
		return err
	}
	counted := fmt.Sprintf("%d hosts join by token, %d at a time, and open sessions, until all hold a lease", len(f.nodes), abreast)
	name := fmt.Sprintf("sessions/%d/join", size)
	if err := errors.Join(
		sheet.AddAlone(name, float64(len(f.nodes))/took, "nodes/s", counted),
		sheet.AddAlone(name+"/cpu", 1000*(after.cpu-before.cpu)/float64(len(f.nodes)), "ms", counted+"; user and system time of all three servers, a node"),
		sheet.AddAlone(name+"/cpu-of-nodes", 1000*(processorTime()-own).Seconds()/float64(len(f.nodes)), "ms", counted+"; user and system time of the process that plays the nodes, a node"),
	); err != nil {
		return err
	}
	if err := p.atRest(ctx, sheet, c, f, before); err != nil {
		return err
	}
	return p.notice(ctx, sheet, f)
}

// atRest reads what the servers use while nothing happens but heartbeats.
func (p plan) atRest(ctx context.Context, sheet *report.Sheet, c *cluster, f *fleet, before usage) error {
	size := len(f.nodes) + servers
	if err := pause(ctx, 2*time.Duration(f.every.Load())+3*time.Second); err != nil { // the pace of so many nodes has reached all
		return err
	}
	one, err := c.usage()
	if err != nil {
		return err
	}
	beats, lost := f.beats.Load(), f.lost.Load()
	began := time.Now()
	if err := pause(ctx, p.rest); err != nil {
		return err
	}
	two, err := c.usage()
	if err != nil {
		return err
	}
	took := time.Since(began).Seconds()
	rate := float64(f.beats.Load()-beats) / took
	if lost = f.lost.Load() - lost; lost > 0 {
		sheet.Say("%d sessions ended meanwhile, and were opened again: the machine is too busy", lost)
	}
	counted := fmt.Sprintf("a cluster of %d nodes, of which %d are servers and the others idle sessions with mutual TLS, on one machine, over %.0f s, the nodes played by another process there; a beat every %s", size, servers, took, time.Duration(f.every.Load()))
	name := fmt.Sprintf("sessions/%d", size)
	return errors.Join(
		sheet.AddAlone(name+"/beats", rate, "beats/s", counted+"; confirmed by the leader"),
		sheet.AddAlone(name+"/cpu", (two.cpu-one.cpu)/took, "cores", counted+"; user and system time of all three servers"),
		sheet.AddAlone(name+"/memory", float64(two.rss)/servers/(1<<20), "MiB", counted+fmt.Sprintf("; resident, mean of the servers, each %.0f MiB before the first session", float64(before.rss)/servers/(1<<20))),
		sheet.AddAlone(name+"/memory-of-one", float64(two.rss-before.rss)/float64(len(f.nodes))/1024, "KiB", counted+"; what the servers' resident memory has grown by, a session"),
	)
}

// notice lets nodes fall silent, their connections open, and waits until the others are told.
func (p plan) notice(ctx context.Context, sheet *report.Sheet, f *fleet) error {
	var took []time.Duration
	for k := range p.silent {
		d, err := f.silence(ctx, k)
		if err != nil {
			return err
		}
		took = append(took, d)
	}
	size := len(f.nodes) + servers
	goal := 1500.0
	if size > 100 {
		goal = 5000
	}
	return sheet.Add(report.Row{
		Name: fmt.Sprintf("sessions/%d/notice", size), Value: report.Percentile(took, 1), Unit: "ms",
		Peer: "goal", PeerValue: goal,
		Counted: fmt.Sprintf("from the last heartbeat of a node among %d, whose host answers nothing, until another node is told that it is down; the longest of %d; silence for %s counts",
			size, len(took), dispatch.PaceFor(size).Dead),
	})
}

// processorTime is what this process, which plays the nodes, has used.
func processorTime() time.Duration {
	var u unix.Rusage
	if unix.Getrusage(unix.RUSAGE_SELF, &u) != nil {
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

func pause(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(d):
		return nil
	}
}
