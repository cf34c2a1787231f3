package ingress

import (
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"math"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/crypto/bcrypt"
)

// limits holds a route's requests back. It outlives changes of other routes.
type limits struct {
	rate, burst float64 // requests a second of one client; 0: any
	most        int64   // requests at a time; 0: any
	running     atomic.Int64

	mu      sync.Mutex
	clients map[string]bucket
}

// bucket is what a client has left.
type bucket struct {
	left float64
	at   time.Time
}

// clientsMost bounds of how many clients is known what they have left.
const clientsMost = 1 << 16

func newLimits(r *Route) *limits {
	return &limits{rate: r.Rate, burst: max(1, r.Burst), most: r.MaxRequests, clients: map[string]bucket{}}
}

// enter lets a request through, until leave.
func (l *limits) enter(client string) bool {
	if l.rate > 0 && !l.take(client, time.Now()) {
		return false
	}
	if l.running.Add(1); l.most > 0 && l.running.Load() > l.most {
		l.running.Add(-1)
		return false
	}
	return true
}

func (l *limits) leave() { l.running.Add(-1) }

func (l *limits) take(client string, now time.Time) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	b, known := l.clients[client]
	if !known {
		if len(l.clients) >= clientsMost {
			l.forget(now)
		}
		b = bucket{l.burst, now}
	}
	b.left, b.at = min(l.burst, b.left+l.rate*now.Sub(b.at).Seconds()), now
	ok := b.left >= 1
	if ok {
		b.left--
	}
	l.clients[client] = b
	return ok
}

// forget drops who has everything left again; when that is nobody, some.
func (l *limits) forget(now time.Time) {
	for c, b := range l.clients {
		if b.left+l.rate*now.Sub(b.at).Seconds() >= l.burst {
			delete(l.clients, c)
		}
	}
	for c := range l.clients {
		if len(l.clients) < clientsMost*3/4 {
			break
		}
		delete(l.clients, c)
	}
}

// again is in how many seconds another request may come.
func (l *limits) again() int {
	if l.rate <= 0 {
		return 1
	}
	return int(math.Ceil(1 / l.rate))
}

// users are who may ask, by name, with what their passwords hash to. A hash takes long on purpose; what was
// right once is known for a while.
type users struct {
	text   string
	hashes map[string][]byte
	busy   chan struct{} // few are computed at a time

	mu    sync.Mutex
	known map[[sha256.Size]byte]string
}

// newUsers reads lines of name:hash, as htpasswd -B writes them.
func newUsers(text string) *users {
	u := &users{text: text, hashes: map[string][]byte{}, busy: make(chan struct{}, 2), known: map[[sha256.Size]byte]string{}}
	for line := range strings.Lines(text) {
		if name, hash, ok := strings.Cut(strings.TrimSpace(line), ":"); ok && !strings.HasPrefix(name, "#") {
			u.hashes[name] = []byte(hash)
		}
	}
	return u
}

// check says who an Authorization header is of.
func (u *users) check(header string) (name string, ok bool) {
	kind, value, _ := strings.Cut(header, " ")
	if !strings.EqualFold(kind, "Basic") {
		return "", false
	}
	said, err := base64.StdEncoding.DecodeString(value)
	if err != nil {
		return "", false
	}
	first, password, ok := bytes.Cut(said, []byte(":"))
	hash, there := u.hashes[string(first)]
	if !ok || !there {
		return "", false
	}
	sum := sha256.Sum256(said)
	u.mu.Lock()
	name, ok = u.known[sum]
	u.mu.Unlock()
	if ok {
		return name, true
	}
	u.busy <- struct{}{}
	err = bcrypt.CompareHashAndPassword(hash, password)
	<-u.busy
	if err != nil {
		return "", false
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	if len(u.known) >= 4096 {
		clear(u.known)
	}
	u.known[sum] = string(first)
	return string(first), true
}
