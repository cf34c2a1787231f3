package sim_test

import (
	"context"
	"fmt"
	"hash/fnv"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/tutti-run/tutti/internal/model"
	"github.com/tutti-run/tutti/internal/secret"
	"github.com/tutti-run/tutti/internal/store"
	"github.com/tutti-run/tutti/internal/wire"
	"github.com/tutti-run/tutti/test/sim/internal/simdisk"
	"github.com/tutti-run/tutti/test/sim/internal/simnet"
	"github.com/tutti-run/tutti/test/sim/internal/simraft"
)

// course is one simulated cluster and what happens to it. One goroutine, the director's, makes
// the faults; people and clients have goroutines of their own, as everything real has.
type course struct {
	t        *testing.T
	seed     uint64
	rnd      *rand.Rand // the director's
	dir      string
	net      *simnet.Net
	exchange *simraft.Exchange
	hosts    []*host
	servers  int // the first of hosts
	ghosts   sync.WaitGroup
	tally    tally

	plans   []plan
	version int  // of the newest hosts
	keepUp  bool // whatever is down is started
	history *history
	watch   *watch

	diceMu sync.Mutex
	dices  *rand.Rand

	mu     sync.Mutex
	story  []string
	logs   []string // the newest of what processes logged, where that is not part of the story
	course uint64   // a hash over the story
	broke  string   // the first thing that must not be
	// upset is when something happened last; shaking counts what goes on.
	upset   time.Time
	shaking int
	writers map[string]*host // by slot
}

// plan is something that the director will do.
type plan struct {
	at time.Time
	do func()
}

// dawn is when time begins in a bubble.
var dawn = time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC)

const nodeMemory = 5 << 29

func newCourse(t *testing.T, seed uint64, keys *pki, dir string) *course {
	c := &course{
		t: t, seed: seed, rnd: rand.New(rand.NewPCG(seed, 1)), dices: rand.New(rand.NewPCG(seed, 2)),
		dir: dir, net: simnet.New(seed), tally: tally{}, writers: map[string]*host{},
	}
	c.exchange = simraft.NewExchange(c.net)
	c.history, c.watch = newHistory(), newWatch(c)
	c.servers = []int{1, 3, 3, 3, 5}[c.rnd.IntN(5)]
	nodes := max(3, c.servers) + c.rnd.IntN(3)
	for k := range nodes {
		h := &host{c: c, id: fmt.Sprint("n", k), isServer: k < c.servers, disk: simdisk.New(seed<<8 + uint64(k))}
		h.world = newWorld(h.tasks())
		h.identity = keys.agents[k]
		if h.isServer {
			h.identity = keys.servers[k]
		}
		if k == 0 {
			h.founding = keys.authority
		} else {
			h.known = []wire.ServerAddress{{ID: "n0", Address: c.hosts[0].address()}}
		}
		h.dir = fmt.Sprint(dir, "/", h.id)
		c.hosts = append(c.hosts, h)
	}
	return c
}

// simulate runs the course of a seed.
func simulate(t *testing.T, seed uint64, keys *pki) (out *course) {
	dir, err := os.MkdirTemp(scratch(), "tutti-sim-")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	synctest.Test(t, func(t *testing.T) {
		c := newCourse(t, seed, keys, dir)
		out = c
		defer c.end()
		c.found()
		c.chaos()
		c.converge()
		c.conclude()
		if *only >= 0 {
			c.t.Log("all of it:\n" + strings.Join(c.story, "\n"))
		}
	})
	return out
}

// scratch is where agents keep their files: in memory where there is such a place.
func scratch() string {
	if info, err := os.Stat("/dev/shm"); err == nil && info.IsDir() {
		return "/dev/shm"
	}
	return ""
}

// dice is chance for whoever needs some.
func (c *course) dice(n int64) int64 {
	c.diceMu.Lock()
	defer c.diceMu.Unlock()
	return c.dices.Int64N(max(n, 1))
}

func (c *course) tell(format string, args ...any) {
	line := fmt.Sprintf("%8.3f  ", time.Since(dawn).Seconds()) + fmt.Sprintf(format, args...)
	h := fnv.New64a()
	c.mu.Lock()
	defer c.mu.Unlock()
	c.story = append(c.story, line)
	fmt.Fprint(h, c.course, line)
	c.course = h.Sum64()
}

// broken says that something happened that must not. The director ends the course soon after.
func (c *course) broken(format string, args ...any) {
	text := fmt.Sprintf(format, args...)
	c.tell("BROKEN: %s", text)
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.broke == "" {
		c.broke = text
	}
}

// look ends the course if something is broken.
func (c *course) look() {
	c.watch.overTime()
	c.mu.Lock()
	broke := c.broke
	c.mu.Unlock()
	if broke != "" {
		c.fail("%s", broke)
	}
}

// fail ends the course. Only the director calls it.
func (c *course) fail(format string, args ...any) {
	c.t.Helper()
	c.mu.Lock()
	lines := slices.Clone(c.story)
	c.mu.Unlock()
	if *only < 0 {
		lines = append(lines[max(0, len(lines)-60):], c.logs[max(0, len(c.logs)-60):]...)
	}
	for _, h := range c.hosts {
		lines = append(lines, h.describe())
	}
	c.t.Fatalf("%s\n%s\nseed %d at commit %s; to see all of it again: %s", fmt.Sprintf(format, args...), strings.Join(lines, "\n"), c.seed, commit(), replay(c.seed))
}

// logger returns what a process logs to.
func (c *course) logger(p *process) *slog.Logger { return slog.New(&logHandler{c: c, p: p}) }

// logHandler tells what processes log, where all of a course is to be told.
type logHandler struct {
	c     *course
	p     *process
	attrs []slog.Attr
}

func (l *logHandler) Enabled(_ context.Context, level slog.Level) bool {
	return level >= logLevel()
}

func (l *logHandler) Handle(_ context.Context, r slog.Record) error {
	var b strings.Builder
	fmt.Fprintf(&b, "      %s: %s", l.p.h.id, r.Message)
	if l.p.dead.Load() {
		b.WriteString(" (dead)")
	}
	for _, a := range l.attrs {
		fmt.Fprintf(&b, " %s", a)
	}
	r.Attrs(func(a slog.Attr) bool { fmt.Fprintf(&b, " %s", a); return true })
	c := l.c
	c.mu.Lock()
	defer c.mu.Unlock()
	line := fmt.Sprintf("%8.3f  %s", time.Since(dawn).Seconds(), b.String())
	if *only >= 0 {
		c.story = append(c.story, line)
	} else if c.logs = append(c.logs, line); len(c.logs) > 400 {
		c.logs = slices.Clone(c.logs[200:])
	}
	return nil
}

func (l *logHandler) WithAttrs(attrs []slog.Attr) slog.Handler {
	return &logHandler{l.c, l.p, append(slices.Clone(l.attrs), attrs...)}
}
func (l *logHandler) WithGroup(string) slog.Handler { return l }

// process returns what runs on the host, nil when nothing does.
func (h *host) process() *process {
	h.c.mu.Lock()
	defer h.c.mu.Unlock()
	return h.proc
}

func (h *host) describe() string {
	p := h.process()
	if p == nil {
		return h.id + " is down"
	}
	kind := "agent"
	if p.srv != nil {
		kind = "server"
		if p.srv.Replication().IsLeader() {
			kind = "leader"
		}
		kind += fmt.Sprintf(", revision %d", p.srv.Core().Store.Snapshot().Revision())
	}
	h.c.mu.Lock()
	defer h.c.mu.Unlock()
	return fmt.Sprintf("%s (%s): network of revision %d in force", h.id, kind, h.applied)
}

// live returns the servers that run.
func (c *course) live() []*process {
	var out []*process
	for _, h := range c.hosts[:c.servers] {
		if p := h.process(); p != nil {
			out = append(out, p)
		}
	}
	return out
}

// leader returns the server that leads, if one does; of several, one.
func (c *course) leader() *process {
	for _, p := range c.live() {
		if p.srv.Replication().IsLeader() {
			return p
		}
	}
	return nil
}

// voters returns how many servers have a vote, as one of them knows.
func (c *course) voters(p *process) int {
	n := 0
	for _, s := range p.srv.Replication().Servers() {
		if s.Voter {
			n++
		}
	}
	return n
}

// launch starts a host's program, and tells the checkers.
func (c *course) launch(h *host) {
	if h.process() != nil {
		return
	}
	if err := h.start(); err != nil {
		c.tell("%s does not start: %v", h.id, err)
		if h.disk.Full() {
			c.later(200*time.Millisecond, func() { c.launch(h) })
			return
		}
		c.broken("%s does not start: %v", h.id, err)
		return
	}
	c.tell("%s starts", h.id)
	p := h.process()
	if p == nil {
		return // it was short-lived
	}
	c.ghosts.Go(func() {
		<-p.done
		if !p.dead.Load() && p.err != nil {
			c.broken("the process of %s ended: %v", h.id, p.err)
		}
	})
	if p.srv != nil {
		c.ghosts.Go(func() { c.watch.follow(p) })
	}
}

func (c *course) later(d time.Duration, do func()) {
	c.plans = append(c.plans, plan{time.Now().Add(d), do})
}

// step lets time pass, and does what is due.
func (c *course) step(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
	var due []plan
	c.plans = slices.DeleteFunc(c.plans, func(p plan) bool {
		if p.at.After(time.Now()) {
			return false
		}
		due = append(due, p)
		return true
	})
	for _, p := range due {
		p.do()
	}
	if c.keepUp {
		for _, h := range c.hosts {
			c.launch(h)
		}
	}
	c.look()
}

func (c *course) between(a, b time.Duration) time.Duration {
	return a + time.Duration(c.rnd.Int64N(int64(b-a)))
}

// found makes the cluster. Admission, which makes certificates, is left out: the other hosts are
// given what it would give them.
func (c *course) found() {
	founder := c.hosts[0]
	if err := os.MkdirAll(filepath.Dir(founder.keyFile()), 0o700); err != nil {
		c.fail("%v", err)
	}
	c.launch(founder)
	c.until("the cluster is founded", 10*time.Second, func() string {
		c.mu.Lock()
		defer c.mu.Unlock()
		if founder.founding != nil {
			return "it is not"
		}
		return ""
	})
	c.must("admit the hosts", func(ctx context.Context, p *process) error {
		cs := &store.ChangeSet{}
		for _, h := range c.hosts[1:] {
			n := h.node()
			n.Created, n.Status = time.Now(), model.NodeStatus{State: model.NodeUnknown, Since: time.Now()}
			cs.Put(n)
		}
		_, err := p.srv.Core().Store.Commit(ctx, cs)
		return err
	})
	keys, err := secret.LoadKeyFile(founder.keyFile())
	var key []byte
	if err == nil {
		key, err = keys.Key()
	}
	for _, h := range c.hosts[1:c.servers] {
		var own *secret.KeyFile
		if err == nil {
			own, err = secret.LoadKeyFile(h.keyFile())
		}
		if err == nil {
			err = own.Keep(key)
		}
	}
	if err != nil {
		c.fail("hand over the cluster's key: %v", err)
	}
	for _, h := range c.hosts[1:] {
		c.launch(h)
		c.step(c.between(time.Millisecond, 100*time.Millisecond))
	}
	for end := time.Now().Add(30 * time.Second); ; c.step(100 * time.Millisecond) {
		if l := c.leader(); l != nil && c.voters(l) == c.servers && c.watch.nodesReady() == len(c.hosts) {
			return
		}
		if time.Now().After(end) {
			c.fail("the cluster of %d servers and %d nodes is not complete after 30s", c.servers, len(c.hosts))
		}
	}
}

// end takes everything down, whatever state it is in.
func (c *course) end() {
	c.history.stop()
	for _, h := range c.hosts {
		if p := h.process(); p != nil {
			p.kill(true)
		}
	}
	c.ghosts.Wait()
	for _, h := range c.hosts {
		if old := h.world.boot(nil); old != nil {
			old.End()
		}
	}
	time.Sleep(10 * time.Second) // the last timers
	synctest.Wait()
	c.collect()
}
