package node

import (
	"context"
	"fmt"
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/tutti-run/tutti/internal/host"
	"github.com/tutti-run/tutti/internal/model"
	"github.com/tutti-run/tutti/internal/wire"
)

const (
	// careEvery is how often is looked at what is left of the host, evictEvery the least time between two instances that
	// are ended for want of it: what the first one gives back has to be seen.
	careEvery  = 2 * time.Second
	evictEvery = 15 * time.Second
)

// care looks after the host: the cluster is told what it is short of, and instances are ended, one at a time, for others.
type care struct {
	cfg      *Config
	began    time.Time
	features []model.HostFeature
	changed  func()                                        // tells the cluster what node says
	evict    func(ctx context.Context, what string) string // ends an instance and names it
	fill     func(*wire.NodeDebug)                         // what the agent knows

	mu       sync.Mutex
	pressure []string
	problem  string // why the host cannot be read
}

func newCare(cfg *Config) *care {
	c := &care{cfg: cfg, began: time.Now(), features: host.Features(cfg.features.users())}
	for _, f := range c.features {
		if !f.Works {
			cfg.Log.Info("something of the kernel is not there", "what", f.Name, "says", f.Says)
		}
	}
	if inStep, says := host.Clock(); !inStep {
		cfg.Log.Info("this host's clock may be off", "says", says)
	}
	return c
}

// describe adds to what the cluster is told of this node.
func (c *care) describe(n *model.Node) {
	c.mu.Lock()
	defer c.mu.Unlock()
	n.Pressure, n.Lacks = slices.Clone(c.pressure), host.Lacks(c.features)
	if len(n.Lacks) == 0 {
		n.Lacks = nil
	}
}

// run looks until ctx is done.
func (c *care) run(ctx context.Context) error {
	var gauge host.Gauge
	var evicted time.Time
	tick := time.NewTicker(careEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		r, err := host.Look(c.cfg.DataDir, c.cfg.Cgroup)
		now := gauge.Update(&r, time.Now())
		c.mu.Lock()
		before, problem := c.pressure, c.problem
		c.pressure, c.problem = now, ""
		if err != nil {
			c.problem = err.Error()
		}
		fresh := c.problem != "" && c.problem != problem
		c.mu.Unlock()
		if fresh {
			c.cfg.Log.Warn("what is left of this host cannot all be read", "error", err)
		}
		if !slices.Equal(before, now) {
			c.cfg.Log.Warn("what this host is short of has changed", "short", now, "before", before,
				"memoryLeft", r.MemoryLeftBytes, "diskLeft", r.DiskLeftBytes, "pidsLeft", r.PidsLeft)
			c.changed()
		}
		for _, what := range now {
			if what == host.Disk || !gauge.Acute(what) || time.Since(evicted) < evictEvery {
				continue // nobody can tell quickly whose files they are
			}
			if name := c.evict(ctx, what); name != "" {
				evicted = time.Now()
				c.cfg.Log.Warn("an instance is ended for others", "instance", name, "short", what)
			}
		}
	}
}

// debug says how this node is.
func (c *care) debug() wire.NodeDebug {
	r, err := host.Look(c.cfg.DataDir, c.cfg.Cgroup)
	n := c.cfg.node("", false)
	inStep, says := host.Clock()
	c.mu.Lock()
	d := wire.NodeDebug{
		Version: c.cfg.Version, Kernel: n.Attributes["kernel"], Pressure: slices.Clone(c.pressure), Features: c.features,
		Left: []wire.Left{
			{What: "memory", Left: r.MemoryLeftBytes, Of: r.MemoryBytes}, {What: "disk", Left: r.DiskLeftBytes, Of: r.DiskBytes},
			{What: "inodes", Left: r.InodesLeft, Of: r.Inodes}, {What: "pids", Left: r.PidsLeft, Of: r.Pids},
		},
		Clock: wire.Clock{InStep: inStep, Says: says},
	}
	c.mu.Unlock()
	if err != nil {
		d.Problems = append(d.Problems, err.Error())
	}
	for _, what := range d.Pressure {
		d.Problems = append(d.Problems, fmt.Sprintf("the host is short of %s: it takes no new work", what))
	}
	for name, says := range host.Lacks(c.features) {
		d.Problems = append(d.Problems, name+": "+says)
	}
	slices.Sort(d.Problems)
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	d.Process = wire.NodeProcess{PID: os.Getpid(), Running: time.Since(c.began), HeapBytes: m.HeapAlloc, Goroutines: runtime.NumGoroutine()}
	if files, err := os.ReadDir("/proc/self/fd"); err == nil {
		d.Process.Files = len(files)
	}
	if text, err := os.ReadFile("/proc/self/statm"); err == nil {
		if f := strings.Fields(string(text)); len(f) > 1 {
			pages, _ := strconv.ParseInt(f[1], 10, 64) // the kernel's own
			d.Process.MemoryBytes = pages * int64(os.Getpagesize())
		}
	}
	if text, err := os.ReadFile("/proc/self/oom_score_adj"); err == nil {
		d.Process.OOMScore, _ = strconv.ParseInt(strings.TrimSpace(string(text)), 10, 64)
	}
	c.fill(&d)
	d.Time = time.Now()
	return d
}
