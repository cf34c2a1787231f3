package sim_test

import (
	"context"
	"time"

	"github.com/tutti-run/tutti/internal/driver"
	"github.com/tutti-run/tutti/internal/driver/fake"
	"github.com/tutti-run/tutti/test/sim/internal/simnet"
)

// mishap is something that goes wrong, or that an operator does. It returns false when it is not
// possible at the moment.
type mishap struct {
	name   string
	weight int
	do     func(c *course) bool
}

// mishaps are drawn by their weights.
var mishaps = []mishap{
	{"process killed", 6, func(c *course) bool { return c.crash(c.anyHost(), false) }},
	{"power cut", 4, func(c *course) bool { return c.crash(c.anyHost(), true) }},
	{"leader killed", 2, func(c *course) bool {
		l := c.leader()
		return l != nil && c.crash(l.h, c.rnd.IntN(2) == 0)
	}},
	{"crash in a write", 6, (*course).crashInWrite},
	{"graceful restart", 3, func(c *course) bool { return c.restart(c.anyHost()) }},
	{"upgrade", 1, (*course).upgrade},
	{"host cut off", 4, func(c *course) bool { return c.isolate(true, true) }},
	{"host hears nothing", 2, func(c *course) bool { return c.isolate(true, false) }},
	{"host is not heard", 2, func(c *course) bool { return c.isolate(false, true) }},
	{"pair cut", 3, (*course).cutPair},
	{"one way cut", 3, (*course).cutOneWay},
	{"split", 3, (*course).split},
	{"slow network", 2, func(c *course) bool {
		return c.storm(simnet.Weather{Latency: c.between(time.Millisecond, 40*time.Millisecond), Jitter: c.between(time.Millisecond, 60*time.Millisecond)})
	}},
	{"lossy network", 3, func(c *course) bool {
		w := simnet.Fair
		w.Loss = 0.02 + 0.2*c.rnd.Float64()
		return c.storm(w)
	}},
	{"messages repeated and overtaken", 4, func(c *course) bool {
		w := simnet.Fair
		w.Repeat, w.Late, w.LateBy = 0.3*c.rnd.Float64(), 0.4*c.rnd.Float64(), c.between(time.Millisecond, 300*time.Millisecond)
		return c.storm(w)
	}},
	{"connections reset", 4, (*course).reset},
	{"slow disk", 4, (*course).slowDisk},
	{"full disk", 3, (*course).fullDisk},
	{"clock jumps", 3, (*course).jumpClock},
	{"leadership handed over", 4, (*course).handOver},
	{"server leaves and returns", 2, (*course).changeMembers},
	{"task killed", 6, (*course).killTask},
}

// chaos lets the cluster work while people change their minds and everything fails that may, in
// bursts with quiet times between them.
func (c *course) chaos() {
	c.tell("%d servers, %d nodes", c.servers, len(c.hosts))
	c.clients()
	c.people()
	total := 0
	for _, f := range mishaps {
		total += f.weight
	}
	for end := time.Now().Add(c.between(6*time.Second, 10*time.Second)); time.Now().Before(end); {
		burst := time.Now().Add(c.between(500*time.Millisecond, 3*time.Second))
		for time.Now().Before(burst) {
			c.step(c.between(time.Millisecond, 150*time.Millisecond))
			n := c.rnd.IntN(total)
			for _, f := range mishaps {
				if n -= f.weight; n < 0 {
					if c.rnd.IntN(3) > 0 && f.do(c) {
						c.count("fault: " + f.name)
					}
					break
				}
			}
		}
		if c.rnd.IntN(2) == 0 {
			for quiet := time.Now().Add(c.between(time.Millisecond, 2*time.Second)); time.Now().Before(quiet); {
				c.step(50 * time.Millisecond)
			}
		}
	}
}

// shake notes that something happens from now on, for a while.
func (c *course) shake(format string, args ...any) {
	c.mu.Lock()
	c.upset = time.Now()
	c.mu.Unlock()
	c.tell(format, args...)
}

// quietFor reports whether nothing has happened to the cluster for so long.
func (c *course) quietFor(d time.Duration) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.shaking == 0 && time.Since(c.upset) > d
}

// while does something for a time, and undoes it.
func (c *course) while(d time.Duration, undo func()) {
	c.mu.Lock()
	c.shaking++
	c.mu.Unlock()
	c.later(d, func() {
		undo()
		c.mu.Lock()
		c.shaking--
		c.upset = time.Now()
		c.mu.Unlock()
	})
}

// calm returns the network state that is in force on a host, and whether the leader must know.
func (c *course) calm(h *host) (applied uint64, calm bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	const patience = 3 * time.Second // for servers to find each other again, and agents to find them
	return h.applied, c.shaking == 0 && time.Since(c.upset) > patience && h.proc != nil && time.Since(h.disturbed) > patience
}

func (c *course) anyHost() *host   { return c.hosts[c.rnd.IntN(len(c.hosts))] }
func (c *course) anyServer() *host { return c.hosts[c.rnd.IntN(c.servers)] }

// downtime is for how long a host that crashed is away.
func (c *course) downtime() time.Duration {
	if c.rnd.IntN(3) == 0 {
		return c.between(time.Millisecond, 50*time.Millisecond)
	}
	return c.between(50*time.Millisecond, 3*time.Second)
}

func (c *course) crash(h *host, power bool) bool {
	p := h.process()
	if p == nil {
		return false
	}
	p.kill(power)
	away := c.downtime()
	c.shake("%s is killed (power cut: %v) for %s", h.id, power, away)
	c.while(away, func() { c.launch(h) })
	return true
}

// crashInWrite crashes a server in the middle of one of its next writes.
func (c *course) crashInWrite() bool {
	h := c.anyServer()
	p := h.process()
	if p == nil {
		return false
	}
	n, power, away := 1+c.rnd.IntN(40), c.rnd.IntN(4) > 0, c.downtime()
	c.tell("%s will crash in its write number %d (power cut: %v)", h.id, n, power)
	h.disk.Arm(n, func() {
		p.kill(power)
		c.shake("%s crashes in a write", h.id)
		c.count("crashes in a write")
	})
	c.while(5*time.Second, func() {})
	for at := away; at < 5*time.Second; at += away { // whenever it happened, it is not away for long
		c.later(at, func() { c.launch(h) })
	}
	return true
}

func (c *course) restart(h *host) bool {
	p := h.process()
	if p == nil {
		return false
	}
	c.shake("%s restarts", h.id)
	c.ghosts.Go(func() {
		if err := p.stop(); err != nil {
			c.broken("%s does not stop as it should: %v", h.id, err)
		}
	})
	c.while(c.between(time.Millisecond, 100*time.Millisecond), func() { c.relaunch(h, p) })
	return true
}

// relaunch starts a host as soon as it has stopped.
func (c *course) relaunch(h *host, p *process) {
	if h.process() == p {
		c.while(20*time.Millisecond, func() { c.relaunch(h, p) })
		return
	}
	c.launch(h)
}

// upgrade restarts one host after another, the servers first. What is new in the next version is
// the pace of its snapshots and the size of its log's files: it goes on with the log, the snapshots
// and the agent's files of the version before, and speaks with hosts that are not upgraded yet.
func (c *course) upgrade() bool {
	if c.version > 0 {
		return false
	}
	c.version++
	at := time.Duration(0)
	for _, h := range c.hosts {
		at += c.between(100*time.Millisecond, 800*time.Millisecond)
		c.later(at, func() {
			h.version = c.version
			c.restart(h)
		})
	}
	c.shake("the hosts are upgraded one after another")
	return true
}

// isolate cuts a host off from all others for a while.
func (c *course) isolate(in, out bool) bool {
	h := c.anyHost()
	for _, other := range c.hosts {
		if other == h {
			continue
		}
		if in {
			c.net.Cut(other.id, h.id)
		}
		if out {
			c.net.Cut(h.id, other.id)
		}
	}
	c.shake("%s is cut off (hears nothing: %v, is not heard: %v)", h.id, in, out)
	c.while(c.between(100*time.Millisecond, 4*time.Second), func() {
		c.net.Heal(h.id)
		c.tell("%s is connected", h.id)
	})
	return true
}

func (c *course) cutPair() bool   { return c.cut(true) }
func (c *course) cutOneWay() bool { return c.cut(false) }

func (c *course) cut(both bool) bool {
	a, b := c.anyHost(), c.anyServer()
	if a == b {
		return false
	}
	if c.rnd.IntN(2) == 0 {
		a, b = b, a
	}
	c.net.Cut(a.id, b.id)
	if both {
		c.net.Cut(b.id, a.id)
	}
	c.shake("%s does not reach %s (nor the other way: %v)", a.id, b.id, both)
	c.while(c.between(100*time.Millisecond, 4*time.Second), func() {
		c.net.Heal(a.id)
		c.tell("%s is connected", a.id)
	})
	return true
}

// split makes two parts of the cluster.
func (c *course) split() bool {
	part := map[*host]bool{}
	for _, h := range c.hosts {
		part[h] = c.rnd.IntN(2) == 0
	}
	for _, a := range c.hosts {
		for _, b := range c.hosts {
			if part[a] != part[b] {
				c.net.Cut(a.id, b.id)
			}
		}
	}
	c.shake("the network is split")
	c.while(c.between(100*time.Millisecond, 4*time.Second), func() {
		c.net.HealAll()
		c.tell("the network is whole")
	})
	return true
}

func (c *course) storm(w simnet.Weather) bool {
	c.net.SetWeather(w)
	c.shake("the network is %+v", w)
	c.while(c.between(200*time.Millisecond, 3*time.Second), func() {
		c.net.SetWeather(simnet.Fair)
		c.tell("the network is fair")
	})
	return true
}

func (c *course) reset() bool {
	any := false
	for range 1 + c.rnd.IntN(4) {
		if between, ok := c.net.Reset(); ok {
			c.shake("the connection of %s with %s is reset", between[0], between[1])
			any = true
		}
	}
	return any
}

func (c *course) slowDisk() bool {
	h, most := c.anyServer(), c.between(2*time.Millisecond, 300*time.Millisecond)
	h.disk.SetSlow(most)
	c.shake("the disk of %s takes up to %s", h.id, most)
	c.while(c.between(200*time.Millisecond, 3*time.Second), func() { h.disk.SetSlow(0) })
	return true
}

func (c *course) fullDisk() bool {
	h := c.anyServer()
	h.disk.SetFull(true)
	c.shake("the disk of %s is full", h.id)
	c.while(c.between(200*time.Millisecond, 3*time.Second), func() {
		h.disk.SetFull(false)
		c.tell("the disk of %s has room", h.id)
	})
	return true
}

// jumpClock sets the clock of a host's agent, as far as others see it. Within a process time is
// measured by clocks that do not jump, and between processes nothing but what agents report carries
// times; so that is where they are wrong.
func (c *course) jumpClock() bool {
	h := c.anyHost()
	by := c.between(time.Second, 2*time.Hour)
	if c.rnd.IntN(2) == 0 {
		by = -by
	}
	c.mu.Lock()
	h.skew = by
	c.mu.Unlock()
	c.shake("the clock of %s is wrong by %s", h.id, by)
	return true
}

func (c *course) handOver() bool {
	l := c.leader()
	if l == nil || c.servers == 1 {
		return false
	}
	c.shake("%s hands over leadership", l.h.id)
	c.ghosts.Go(func() {
		if err := l.srv.Replication().HandOver(); err == nil {
			c.count("leaderships handed over")
		}
	})
	return true
}

// changeMembers takes a server out of the quorum; as it lives, it asks to be taken in again. It is
// done only while all servers run: with others down it could cost the quorum.
func (c *course) changeMembers() bool {
	l := c.leader()
	if l == nil || c.servers == 1 || len(c.live()) < c.servers {
		return false
	}
	h := c.anyServer()
	if h == l.h {
		return false
	}
	c.shake("%s is taken out of the quorum", h.id)
	c.ghosts.Go(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
		defer cancel()
		if err := l.srv.Remove(ctx, h.id); err == nil {
			c.count("servers removed")
		}
	})
	return true
}

func (c *course) killTask() bool {
	h := c.anyHost()
	h.world.mu.Lock()
	d := fake.New(h.world.tasks)
	h.world.mu.Unlock()
	list, err := d.List(context.Background())
	if err != nil || len(list) == 0 {
		return false
	}
	t := list[c.rnd.IntN(len(list))]
	if t.State != driver.Running {
		return false
	}
	c.tell("task %s on %s dies", t.ID, h.id)
	return d.Kill(context.Background(), t.ID) == nil
}

// endFaults leaves nothing broken, and starts what is down.
func (c *course) endFaults() {
	c.shake("the faults end")
	c.plans = nil
	c.mu.Lock()
	c.shaking = 0
	c.mu.Unlock()
	c.net.HealAll()
	c.net.SetWeather(simnet.Fair)
	for _, h := range c.hosts {
		h.disk.SetSlow(0)
		h.disk.SetFull(false)
		h.disk.Arm(0, nil)
		c.mu.Lock()
		h.skew = 0
		c.mu.Unlock()
	}
	c.keepUp = true
}
