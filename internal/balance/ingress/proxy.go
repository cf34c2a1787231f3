package ingress

import (
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"io"
	"log"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httputil"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// dialPatience bounds how long a connection to an instance may take: one on a host that is gone
	// does not answer at all.
	dialPatience = time.Second
	// shunFor is how long an instance that did not take a connection is left out, where there are others.
	shunFor = 2 * time.Second
)

// proxy passes requests on. What it knows is replaced as a whole, while requests go on with what they
// began with.
type proxy struct {
	table   atomic.Pointer[table]
	changed atomic.Pointer[chan struct{}] // closed when the table is replaced
	waiting atomic.Int64                  // requests that wait for an instance
	plain   *http.Transport               // instances that speak HTTP/1
	h2c     *http.Transport               // instances that speak HTTP/2 without TLS
	forward *httputil.ReverseProxy
	counts  *counts

	mu      sync.Mutex
	shunned map[string]time.Time // by address, until when
}

func newProxy() *proxy {
	dialer := &net.Dialer{Timeout: dialPatience, KeepAlive: 15 * time.Second}
	transport := func() *http.Transport {
		return &http.Transport{
			DialContext: dialer.DialContext, MaxIdleConnsPerHost: 256, IdleConnTimeout: 60 * time.Second,
			DisableCompression: true, ExpectContinueTimeout: time.Second,
		}
	}
	p := &proxy{plain: transport(), h2c: transport(), counts: newCounts(), shunned: map[string]time.Time{}}
	p.h2c.Protocols = new(http.Protocols)
	p.h2c.Protocols.SetUnencryptedHTTP2(true)
	first := make(chan struct{})
	p.changed.Store(&first)
	p.table.Store(newTable(nil))
	p.forward = &httputil.ReverseProxy{
		Rewrite: rewrite, Transport: p, BufferPool: newBuffers(), ErrorHandler: failed, ErrorLog: log.New(io.Discard, "", 0),
	}
	return p
}

// visit is a request on its way: it is led by one of the routes.
type visit struct {
	route  *Route
	cookie string // of a sticky client
	status int
}

type visitKey struct{}

func visitOf(r *http.Request) *visit {
	v, _ := r.Context().Value(visitKey{}).(*visit)
	return v
}

// handler answers requests of one port.
func (p *proxy) handler(secure bool) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		began := time.Now()
		routes := p.table.Load().find(r)
		if len(routes) == 0 {
			http.Error(w, "no route leads to "+hostOf(r), http.StatusNotFound)
			p.counts.add("", http.StatusNotFound, time.Since(began))
			return
		}
		route := weighted(routes)
		if !secure && route.Secure && !route.Insecure {
			to := *r.URL
			to.Scheme, to.Host = "https", hostOf(r)
			http.Redirect(w, r, to.String(), http.StatusPermanentRedirect)
			p.counts.add(route.Service, http.StatusPermanentRedirect, time.Since(began))
			return
		}
		p.counts.came(route.ServiceID)
		if len(route.Backends) == 0 && route.Wait > 0 {
			route = p.await(r, route)
		}
		v := &visit{route: route}
		if route.Sticky {
			if c, err := r.Cookie(cookieOf(route)); err == nil {
				v.cookie = c.Value
			}
		}
		// A request that its client takes back is not an error of the service's.
		p.forward.ServeHTTP(w, r.WithContext(context.WithValue(r.Context(), visitKey{}, v)))
		p.counts.add(route.Service, v.status, time.Since(began))
	})
}

// waitAtOnce bounds the requests that wait for instances; more are answered as if they did not wait.
const waitAtOnce = 4096

// await returns a route to a service that has no instance once it has one, or as it is when that takes too
// long: so a service that was scaled to zero answers the request that wakes it.
func (p *proxy) await(r *http.Request, route *Route) *Route {
	if p.waiting.Add(1) > waitAtOnce {
		p.waiting.Add(-1)
		return route
	}
	defer p.waiting.Add(-1)
	timer := time.NewTimer(route.Wait)
	defer timer.Stop()
	for {
		changed := *p.changed.Load() // before the look: what comes after it is not missed
		for _, now := range p.table.Load().find(r) {
			if now.ServiceID == route.ServiceID && len(now.Backends) > 0 {
				return now
			}
		}
		select {
		case <-changed:
		case <-timer.C:
			return route
		case <-r.Context().Done():
			return route
		}
	}
}

// put replaces what requests are led by.
func (p *proxy) put(t *table) {
	p.table.Store(t)
	next := make(chan struct{})
	close(*p.changed.Swap(&next))
}

// weighted draws one of the routes, each as often as its weight says.
func weighted(routes []*Route) *Route {
	if len(routes) == 1 {
		return routes[0]
	}
	sum := 0
	for _, r := range routes {
		sum += r.Weight
	}
	at := rand.IntN(sum)
	for _, r := range routes {
		if at -= r.Weight; at < 0 {
			return r
		}
	}
	return routes[0]
}

// cookieOf is the name of the cookie that remembers an instance.
func cookieOf(r *Route) string { return "tutti-" + digest(r.Service+r.Host+r.Path) }

func digest(s string) string {
	h := fnv.New64a()
	io.WriteString(h, s) // a hash does not fail
	return strconv.FormatUint(h.Sum64(), 36)
}

// rewrite makes of a client's request the one that an instance gets. Who asked, and how, is said in
// headers; what the client itself said there is not believed.
func rewrite(pr *httputil.ProxyRequest) {
	pr.SetXForwarded()
	pr.Out.URL.Scheme, pr.Out.URL.Host, pr.Out.Host = "http", pr.In.Host, pr.In.Host
	if v := visitOf(pr.In); v.route.StripPath {
		base := strings.TrimRight(v.route.Path, "/")
		pr.Out.URL.Path = "/" + strings.TrimLeft(strings.TrimPrefix(pr.Out.URL.Path, base), "/")
		pr.Out.URL.RawPath = ""
		pr.Out.Header.Set("X-Forwarded-Prefix", base)
	}
	if _, given := pr.Out.Header["User-Agent"]; !given {
		pr.Out.Header.Set("User-Agent", "") // so that none is made up
	}
}

var errNobody = errors.New("no instance is ready")

// failed answers for an instance that did not.
func failed(w http.ResponseWriter, r *http.Request, err error) {
	v, status := visitOf(r), http.StatusBadGateway
	switch {
	case errors.Is(err, errNobody):
		status = http.StatusServiceUnavailable
	case errors.Is(err, errTooLong):
		status = http.StatusGatewayTimeout
	case errors.Is(err, context.Canceled):
		status = 499 // the client is gone
	}
	v.status = status
	if status != 499 {
		http.Error(w, fmt.Sprintf("%s: %v", v.route.Service, err), status)
	}
}

// RoundTrip sends a request to one of the route's instances, and to another when that surely did no harm.
func (p *proxy) RoundTrip(r *http.Request) (*http.Response, error) {
	v := visitOf(r)
	body := &held{ReadCloser: r.Body}
	if r.Body != nil && r.Body != http.NoBody {
		r.Body = body
	}
	var tried []string
	last := errNobody
	for {
		b, ok := p.choose(v, tried)
		if !ok {
			return nil, last
		}
		resp, err := p.try(r, v.route, b)
		if err == nil {
			v.status = resp.StatusCode
			if v.route.Sticky && v.cookie != digest(b.Instance) {
				c := http.Cookie{Name: cookieOf(v.route), Value: digest(b.Instance), Path: "/", HttpOnly: true, SameSite: http.SameSiteLaxMode, Secure: v.route.Secure}
				resp.Header.Add("Set-Cookie", c.String())
			}
			return resp, nil
		}
		tried, last = append(tried, b.Address), err
		var dial *net.OpError
		notSent := errors.As(err, &dial) && dial.Op == "dial"
		if notSent {
			p.shun(b.Address)
		}
		again := notSent && !body.begun.Load() || harmless(r) && !errors.Is(err, errTooLong)
		if !again || len(tried) > v.route.Retries || r.Context().Err() != nil {
			return nil, err
		}
	}
}

// harmless reports whether a request may be sent again though an instance may have seen it.
func harmless(r *http.Request) bool {
	switch r.Method {
	case http.MethodGet, http.MethodHead, http.MethodOptions, http.MethodTrace:
		return (r.Body == nil || r.Body == http.NoBody) && r.Header.Get("Upgrade") == ""
	}
	return false
}

// held is the body of a request that lives through several tries: the server closes it at the end.
type held struct {
	io.ReadCloser
	begun atomic.Bool
}

func (h *held) Read(b []byte) (int, error) { h.begun.Store(true); return h.ReadCloser.Read(b) }
func (h *held) Close() error               { return nil }

var errTooLong = errors.New("the instance took too long to answer")

// try asks one instance.
func (p *proxy) try(r *http.Request, route *Route, b Backend) (*http.Response, error) {
	ctx, cancel := context.WithCancelCause(r.Context())
	out, to := r.WithContext(ctx), *r.URL
	to.Host = b.Address
	out.URL = &to
	timer := time.AfterFunc(route.Timeout, func() { cancel(errTooLong) })
	transport := p.plain
	if route.Protocol == "h2c" {
		transport = p.h2c
	}
	resp, err := transport.RoundTrip(out)
	if err != nil {
		timer.Stop()
		if cause := context.Cause(ctx); errors.Is(cause, errTooLong) {
			err = errTooLong
		}
		cancel(nil)
		return nil, err
	}
	if !timer.Stop() { // just then
		resp.Body.Close()
		return nil, errTooLong
	}
	if resp.StatusCode != http.StatusSwitchingProtocols { // whose body is the connection, and is ended by both ends
		resp.Body = &ended{resp.Body, func() { cancel(nil) }}
	}
	return resp, nil
}

// ended is the body of an answer that lets go of its context at its end.
type ended struct {
	io.ReadCloser
	end func()
}

func (e *ended) Close() error { defer e.end(); return e.ReadCloser.Close() }

// choose picks an instance that was not tried: a sticky client's own, or any that takes connections, as far
// as is known; of those that do not, any.
func (p *proxy) choose(v *visit, tried []string) (Backend, bool) {
	list := v.route.Backends
	if v.cookie != "" {
		for _, b := range list {
			if digest(b.Instance) == v.cookie && !slices.Contains(tried, b.Address) {
				return b, true
			}
		}
	}
	if len(list) == 0 {
		return Backend{}, false
	}
	start := rand.IntN(len(list))
	var second *Backend
	for i := range list {
		b := &list[(start+i)%len(list)]
		if slices.Contains(tried, b.Address) {
			continue
		}
		if !p.isShunned(b.Address) {
			return *b, true
		}
		if second == nil {
			second = b
		}
	}
	if second == nil {
		return Backend{}, false
	}
	return *second, true
}

func (p *proxy) shun(address string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	now := time.Now()
	for a, until := range p.shunned {
		if now.After(until) {
			delete(p.shunned, a)
		}
	}
	p.shunned[address] = now.Add(shunFor)
}

func (p *proxy) isShunned(address string) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	until, ok := p.shunned[address]
	return ok && time.Now().Before(until)
}

// buffers are what bodies are copied with.
type buffers struct{ sync.Pool }

func newBuffers() *buffers {
	return &buffers{sync.Pool{New: func() any { b := make([]byte, 32<<10); return &b }}}
}

func (b *buffers) Get() []byte  { return *b.Pool.Get().(*[]byte) }
func (b *buffers) Put(x []byte) { b.Pool.Put(&x) }
