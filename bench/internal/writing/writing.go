// Package writing measures durable writes: Tutti's store, replicated by raft over the ports that
// servers really use, against etcd. Both keep their logs on the same disk and wait for fsync; both
// run on loopback, Tutti's servers in this process, etcd's members as processes of their own.
package writing

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"slices"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc/grpclog"

	"github.com/tutti-run/tutti/bench/internal/report"
)

// valueBytes is the size of what every write writes, to a key of its own.
const valueBytes = 128

// write makes one durable write and returns once it is acknowledged. The number is unique.
type write func(ctx context.Context, number int) error

// plan says what to measure and for how long.
type plan struct {
	servers  []int
	writers  []int
	duration time.Duration
	watchers int // 0: no fan-out
	changes  int // per fan-out
	nodes    int // of the cluster on which instances are placed durably
}

func planOf(brief bool) plan {
	if brief {
		return plan{servers: []int{3}, writers: []int{1, 256}, duration: 2 * time.Second, nodes: 1_000}
	}
	return plan{servers: []int{1, 3}, writers: []int{1, 16, 256}, duration: 4 * time.Second, watchers: 1_000, changes: 200, nodes: 5_000}
}

// Run measures writes, watches and placements on as many servers as the plan says.
func Run(ctx context.Context, sheet *report.Sheet, brief bool) error {
	dir, err := directory()
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	p := planOf(brief)
	grpclog.SetLoggerV2(grpclog.NewLoggerV2(io.Discard, io.Discard, io.Discard)) // etcd's client is talkative
	for _, servers := range p.servers {
		if err := p.run(ctx, sheet, dir, servers); err != nil {
			return fmt.Errorf("%d servers: %w", servers, err)
		}
	}
	return nil
}

// directory makes a directory on a real disk: without one, fsync costs nothing.
func directory() (string, error) {
	dir, err := os.MkdirTemp("/var/tmp", "tutti-bench-")
	if err != nil {
		return "", fmt.Errorf("make a directory for logs: %w", err)
	}
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return "", errors.Join(fmt.Errorf("look at the disk of %s: %w", dir, err), os.RemoveAll(dir))
	}
	if st.Type == unix.TMPFS_MAGIC || st.Type == unix.RAMFS_MAGIC {
		return "", errors.Join(fmt.Errorf("%s is in memory: durable writes need a disk there", dir), os.RemoveAll(dir))
	}
	return dir, nil
}

func (p plan) run(ctx context.Context, sheet *report.Sheet, dir string, servers int) (err error) {
	sheet.Say("starting %d etcd members", servers)
	e, err := startEtcd(ctx, dir, servers)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, e.stop()) }()
	sheet.Say("starting %d Tutti servers", servers)
	c, err := startCluster(ctx, dir, servers)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, c.stop()) }()
	for _, writers := range p.writers {
		if err := p.writes(ctx, sheet, c, e, writers); err != nil {
			return fmt.Errorf("%d writers: %w", writers, err)
		}
	}
	if p.watchers > 0 {
		if err := p.fanOut(ctx, sheet, c, e); err != nil {
			return fmt.Errorf("%d watchers: %w", p.watchers, err)
		}
	}
	return p.placements(ctx, sheet, c, e)
}

// writes measures one number of writers in three ways.
func (p plan) writes(ctx context.Context, sheet *report.Sheet, c *cluster, e *etcd, writers int) error {
	remote, err := e.writer(ctx, writers)
	if err != nil {
		return err
	}
	sheet.Say("%d writers to %d etcd members", writers, e.size())
	peer, err := p.measure(ctx, writers, remote)
	if err != nil {
		return fmt.Errorf("etcd: %w", err)
	}
	durable := fmt.Sprintf("committed: on disk (fsync) at a majority of %d servers on one machine and applied where it was asked for, keys with %d B values; ", c.size(), valueBytes)
	type way struct {
		name    string
		write   write
		counted string
	}
	ways := []way{
		{"inside", c.write, durable + "Tutti: as its controllers write, in the leader's process; etcd: by gRPC without TLS"},
		{"remote", c.writeRemotely, durable + "Tutti: through the leader's port with mutual TLS, a call for each write; etcd: by gRPC without TLS"},
	}
	if c.size() > 1 {
		ways = append(ways, way{"follower", c.writeAtFollower, durable + "Tutti: in a follower's process, which hands on to the leader through its port with mutual TLS what waits; etcd: at its leader, by gRPC without TLS"})
	}
	for _, way := range ways {
		sheet.Say("%d writers to %d Tutti servers, %s", writers, c.size(), way.name)
		own, err := p.measure(ctx, writers, way.write)
		if err != nil {
			return fmt.Errorf("measure Tutti, %s: %w", way.name, err)
		}
		name := fmt.Sprintf("store/%d-servers/%d-writers/%s", c.size(), writers, way.name)
		if err := addWrites(sheet, name, way.counted, own, peer); err != nil {
			return err
		}
	}
	return nil
}

func addWrites(sheet *report.Sheet, name, counted string, own, peer outcome) error {
	return errors.Join(
		sheet.Add(report.Row{Name: name, Value: own.rate, Unit: "writes/s", Peer: etcdName, PeerValue: peer.rate, Counted: counted}),
		sheet.Add(report.Row{Name: name + "/p50", Value: report.Percentile(own.latencies, 0.5), Unit: "ms", Peer: etcdName, PeerValue: report.Percentile(peer.latencies, 0.5), Counted: counted}),
		sheet.Add(report.Row{Name: name + "/p99", Value: report.Percentile(own.latencies, 0.99), Unit: "ms", Peer: etcdName, PeerValue: report.Percentile(peer.latencies, 0.99), Counted: counted}),
	)
}

// outcome is what a number of writers achieved.
type outcome struct {
	rate      float64 // writes a second, all together
	latencies []time.Duration
}

// numbers makes every write's number unique within this program.
var numbers atomic.Int64

// measure lets writers write one after the other for a while, after a moment to warm up.
func (p plan) measure(ctx context.Context, writers int, w write) (outcome, error) {
	ctx, cancel := context.WithTimeout(ctx, p.duration+30*time.Second)
	defer cancel()
	runtime.GC() // what earlier measurements left behind
	from := time.Now().Add(p.duration / 8)
	until := from.Add(p.duration)
	latencies := make([][]time.Duration, writers)
	g, ctx := errgroup.WithContext(ctx)
	for i := range writers {
		g.Go(func() (err error) {
			latencies[i], err = writeUntil(ctx, w, from, until)
			return err
		})
	}
	if err := g.Wait(); err != nil {
		return outcome{}, err
	}
	all := slices.Concat(latencies...)
	return outcome{rate: float64(len(all)) / p.duration.Seconds(), latencies: all}, nil
}

// writeUntil returns how long each write took that was begun after from and done before until.
func writeUntil(ctx context.Context, w write, from, until time.Time) ([]time.Duration, error) {
	var out []time.Duration
	for {
		began := time.Now()
		if began.After(until) {
			return out, nil
		}
		if err := w(ctx, int(numbers.Add(1))); err != nil {
			return out, err
		}
		if took := time.Since(began); began.After(from) && began.Add(took).Before(until) {
			out = append(out, took)
		}
	}
}
