// Package simnet is a network of hosts that exists in memory and in simulated time. It carries
// messages, which may be late, lost, repeated and in another order, and connections, which behave
// like TCP: bytes arrive in order or not at all, so that loss shows as delay, and as the end of
// the connection when it lasts.
//
// Partitions are directed: what goes one way may arrive while nothing comes back. Everything is to
// be used inside one bubble of package synctest. Nothing here blocks while it holds a lock, and
// writing never blocks, so that waiting is always waiting for simulated time.
package simnet

import (
	"math/rand/v2"
	"sync"
	"time"
)

// Weather is how a network treats what it carries.
type Weather struct {
	Latency time.Duration // at least
	Jitter  time.Duration // up to so much more
	// Loss and Repeat are the shares of messages that are lost, and that arrive twice. What
	// connections carry is sent again after Retransmit when it was lost.
	Loss, Repeat float64
	// Late is the share of messages that take up to LateBy more, and so are overtaken by others.
	Late   float64
	LateBy time.Duration
}

// Fair is the weather on a good day.
var Fair = Weather{Latency: 200 * time.Microsecond, Jitter: 300 * time.Microsecond}

const (
	retransmit   = 200 * time.Millisecond // TCP's smallest on Linux
	userTimeout  = 2 * time.Second        // as package wire sets it
	keepAliveEnd = 4 * time.Second        // the same: idle for one, then three probes
)

// Counts says what happened to what was sent.
type Counts struct {
	Sent, Lost, Repeated, Late, Cut int
	Resets, TimedOut                int // connections
}

// Net is a network. Its hosts are known by their names, which are addresses without a port.
type Net struct {
	mu      sync.Mutex
	rnd     *rand.Rand
	weather Weather
	hosts   map[string]*host
	cut     map[[2]string]bool      // from, to
	last    map[[2]string]time.Time // when the last message arrives that was not overtaken
	conns   map[*pair]struct{}
	order   []*pair // the open ones in the order in which they were made, for fair dice
	counts  Counts
}

type host struct {
	life      int // counts starts; 0 is down
	starts    int
	listeners map[string]*listener
}

// New returns a network without hosts.
func New(seed uint64) *Net {
	return &Net{
		rnd: rand.New(rand.NewPCG(seed, 0x6e6574)), weather: Fair, hosts: map[string]*host{},
		cut: map[[2]string]bool{}, last: map[[2]string]time.Time{}, conns: map[*pair]struct{}{},
	}
}

// SetWeather changes how everything is treated from now on.
func (n *Net) SetWeather(w Weather) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.weather = w
}

// Counts returns what happened so far.
func (n *Net) Counts() Counts {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.counts
}

// Up lets a host be reached, and returns the network as its process of the moment sees it: once the
// host is down, that process reaches nobody any more, even if the next one does.
func (n *Net) Up(name string) Underlay {
	n.mu.Lock()
	defer n.mu.Unlock()
	h := n.hosts[name]
	if h == nil {
		h = &host{}
		n.hosts[name] = h
	}
	h.starts++
	h.life, h.listeners = h.starts, map[string]*listener{}
	return Underlay{net: n, host: name, life: h.life}
}

// Down ends all of a host's connections. When it was the process that ended, its kernel tells the
// others; when the power went, they find out by themselves.
func (n *Net) Down(name string, power bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	h := n.hosts[name]
	if h == nil || h.life == 0 {
		return
	}
	h.life = 0
	for _, l := range h.listeners {
		l.closeLocked()
	}
	for _, p := range n.pairs() {
		for side, e := range p.ends {
			if e.host != name {
				continue
			}
			e.failLocked(errHostDown)
			other := p.ends[1-side]
			switch {
			case power || n.cut[[2]string{name, other.host}]:
				n.expire(other)
			default:
				n.resetLocked(other)
			}
		}
	}
}

// alive reports whether the host has been up ever since a life of it.
func (n *Net) alive(name string, life int) bool {
	h := n.hosts[name]
	return h != nil && h.life == life && life != 0
}

func (n *Net) life(name string) int {
	if h := n.hosts[name]; h != nil {
		return h.life
	}
	return 0
}

// Cut keeps everything that goes from one host to another from arriving.
func (n *Net) Cut(from, to string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.cut[[2]string{from, to}] {
		return
	}
	n.cut[[2]string{from, to}] = true
	for _, p := range n.pairs() {
		for side, e := range p.ends {
			if e.host == from && p.ends[1-side].host == to {
				n.expire(e)
				n.expire(p.ends[1-side])
			}
		}
	}
}

// HealAll ends all cuts: what waited on connections arrives soon.
func (n *Net) HealAll() {
	n.mu.Lock()
	defer n.mu.Unlock()
	clear(n.cut)
	for _, p := range n.pairs() {
		p.flushLocked()
	}
}

// Heal ends the cuts from and to a host.
func (n *Net) Heal(name string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for c := range n.cut {
		if c[0] == name || c[1] == name {
			delete(n.cut, c)
		}
	}
	for _, p := range n.pairs() {
		p.flushLocked()
	}
}

// Reset breaks one of the open connections, if there is one, and says between whom.
func (n *Net) Reset() (between [2]string, ok bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	all := n.pairs()
	if len(all) == 0 {
		return between, false
	}
	p := all[n.rnd.IntN(len(all))]
	n.counts.Resets++
	p.ends[0].failLocked(errReset)
	p.ends[1].failLocked(errReset)
	return [2]string{p.ends[0].host, p.ends[1].host}, true
}

// pairs returns the open connections, the oldest first.
func (n *Net) pairs() []*pair {
	var out []*pair
	for _, p := range n.order {
		if _, ok := n.conns[p]; ok {
			out = append(out, p)
		}
	}
	n.order = out
	return append([]*pair(nil), out...)
}

// Open returns how many connections are open, whichever of their ends still is.
func (n *Net) Open() int {
	n.mu.Lock()
	defer n.mu.Unlock()
	return len(n.conns)
}

func (n *Net) within(d time.Duration) time.Duration {
	if d <= 0 {
		return 0
	}
	return time.Duration(n.rnd.Int64N(int64(d)))
}

func (n *Net) delay() time.Duration { return n.weather.Latency + n.within(n.weather.Jitter) }

// Send carries a message: arrive is called, in a goroutine of its own, when it arrives: not at
// all, once, or twice.
func (n *Net) Send(from, to string, arrive func()) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.counts.Sent++
	fromLife, toLife := n.life(from), n.life(to)
	if fromLife == 0 {
		return
	}
	times := 1
	switch {
	case n.rnd.Float64() < n.weather.Loss:
		n.counts.Lost++
		return
	case n.rnd.Float64() < n.weather.Repeat:
		n.counts.Repeated++
		times = 2
	}
	for range times {
		d := n.delay()
		if n.rnd.Float64() < n.weather.Late {
			n.counts.Late++
			d += n.within(n.weather.LateBy)
		} else {
			way := [2]string{from, to}
			at := time.Now().Add(d)
			if !at.After(n.last[way]) {
				at = n.last[way].Add(time.Microsecond)
			}
			n.last[way], d = at, time.Until(at)
		}
		time.AfterFunc(d, func() {
			n.mu.Lock()
			ok := n.alive(to, toLife)
			if n.cut[[2]string{from, to}] {
				n.counts.Cut++
				ok = false
			}
			n.mu.Unlock()
			if ok {
				arrive()
			}
		})
	}
}

// Reaches reports whether a host is up and messages go there and back at the moment.
func (n *Net) Reaches(from, to string) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.life(from) != 0 && n.life(to) != 0 && !n.cut[[2]string{from, to}] && !n.cut[[2]string{to, from}]
}
