package ingress

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httputil"
	"net/netip"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// proxy passes requests on. What it knows is replaced as a whole, while requests go on with what they
// began with.
type proxy struct {
	table      atomic.Pointer[table]
	changed    atomic.Pointer[chan struct{}] // closed when the table is replaced
	waiting    atomic.Int64                  // requests that wait for an instance
	plain      *http.Transport               // instances that speak HTTP/1
	h2c        *http.Transport               // instances that speak HTTP/2 without TLS
	saying     *http.Transport               // instances that hear who asks: each connection has one request
	forward    *httputil.ReverseProxy
	counts     *counts
	unrouted   *count
	challenges atomic.Pointer[map[string]string]
	access     atomic.Pointer[accessLog] // nil: no route has had one yet
	trusted    atomic.Pointer[[]netip.Prefix]

	mu     sync.Mutex // of what changes keep
	pools  map[string]*pool
	limits map[string]*limits
	users  map[string]*users
}

func newProxy() *proxy {
	transport := func() *http.Transport {
		return &http.Transport{
			DialContext: dialer.DialContext, MaxIdleConnsPerHost: keptMost, IdleConnTimeout: keptFor,
			DisableCompression: true, ExpectContinueTimeout: time.Second,
		}
	}
	p := &proxy{plain: transport(), h2c: transport(), counts: newCounts()}
	p.unrouted = p.counts.named("")
	p.saying = transport()
	p.saying.DialContext, p.saying.DisableKeepAlives = dialSaying, true
	p.h2c.Protocols = new(http.Protocols)
	p.h2c.Protocols.SetUnencryptedHTTP2(true)
	first := make(chan struct{})
	p.changed.Store(&first)
	p.table.Store(newTable(nil))
	p.challenges.Store(new(map[string]string))
	p.forward = &httputil.ReverseProxy{
		Rewrite: rewrite, Transport: p, BufferPool: newBuffers(), ErrorHandler: failed, ErrorLog: log.New(io.Discard, "", 0),
	}
	return p
}

// visit is a request on its way: it is led by one of the routes.
type visit struct {
	route  *route
	asked  *asked
	cookie string // of a sticky client
	status int
	sent   int64 // bytes of the answer's body
}

type visitKey struct{}

func visitOf(r *http.Request) *visit {
	v, _ := r.Context().Value(visitKey{}).(*visit)
	return v
}

// handler answers requests of one port that a session does not answer by itself.
func (p *proxy) handler(secure bool) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		began := time.Now()
		a := &asked{method: r.Method, host: nameOf(r.Host), path: resolved(r.URL.Path), target: r.URL.RequestURI(), secure: secure, length: r.ContentLength, headers: r.Header}
		a.from, _ = netip.ParseAddrPort(r.RemoteAddr)
		if to, ok := r.Context().Value(http.LocalAddrContextKey).(net.Addr); ok {
			a.to = addressOf(to)
		}
		a.client, _, _ = net.SplitHostPort(r.RemoteAddr)
		rt := p.lead(a)
		no := p.challenge(a)
		if no == nil {
			no = p.admit(rt, a)
		}
		if no != nil {
			if no.header != "" {
				w.Header().Set(no.header, no.value)
			}
			http.Error(w, strings.TrimSuffix(no.text, "\n"), no.status)
			p.done(rt, a, no.status, int64(len(no.text)), began)
			return
		}
		defer rt.leave()
		if len(rt.backends) == 0 && rt.Wait > 0 {
			rt = p.await(r.Context(), a, rt)
		}
		v := &visit{route: rt, asked: a}
		if rt.Sticky {
			v.cookie = rt.cookieIn(r.Header)
		}
		if rt.MaxBody > 0 {
			r.Body = http.MaxBytesReader(w, r.Body, rt.MaxBody)
		}
		defer func() { p.done(rt, a, v.status, v.sent, began) }() // also when the answer breaks off
		// A request that its client takes back is not an error of the service's.
		p.forward.ServeHTTP(w, r.WithContext(context.WithValue(r.Context(), visitKey{}, v)))
	})
}

// waitAtOnce bounds the requests that wait for instances; more are answered as if they did not wait.
const waitAtOnce = 4096

// await returns a route to a service that has no instance once it has one, or as it is when that takes too
// long: so a service that was scaled to zero answers the request that wakes it.
func (p *proxy) await(ctx context.Context, a *asked, route *route) *route {
	if p.waiting.Add(1) > waitAtOnce {
		p.waiting.Add(-1)
		return route
	}
	defer p.waiting.Add(-1)
	timer := time.NewTimer(route.Wait)
	defer timer.Stop()
	for {
		changed := *p.changed.Load() // before the look: what comes after it is not missed
		for _, now := range p.table.Load().find(a) {
			if now.ServiceID == route.ServiceID && len(now.backends) > 0 {
				return now
			}
		}
		select {
		case <-changed:
		case <-timer.C:
			return route
		case <-ctx.Done():
			return route
		}
	}
}

// put replaces what requests are led by.
func (p *proxy) put(list []Route, challenges map[string]string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	pools, limited, known := map[string]*pool{}, map[string]*limits{}, map[string]*users{}
	routes := make([]*route, len(list))
	for i := range list {
		r := &route{Route: &list[i], count: p.counts.named(list[i].Service), asked: p.counts.of(list[i].ServiceID)}
		r.cookie = "tutti-" + digest(r.Service+r.Host+r.Path)
		key := fmt.Sprint(r.ServiceID, r.Host, r.Path, r.Exact, r.Headers, r.Rate, r.Burst, r.MaxRequests)
		r.limits = cmp.Or(limited[key], p.limits[key])
		if r.limits == nil {
			r.limits = newLimits(r.Route)
		}
		limited[key] = r.limits
		if r.Protected {
			if r.users = cmp.Or(known[r.Users], p.users[r.Users]); r.users == nil {
				r.users = newUsers(r.Users)
			}
			known[r.Users] = r.users
		}
		for _, b := range r.Backends {
			to := cmp.Or(pools[b.Address], p.pools[b.Address])
			if to == nil {
				to = &pool{address: b.Address}
			}
			pools[b.Address] = to
			r.backends = append(r.backends, &backend{Backend: b, digest: digest(b.Instance), pool: to})
		}
		routes[i] = r
	}
	before := p.pools
	p.pools, p.limits, p.users = pools, limited, known
	p.challenges.Store(&challenges)
	p.table.Store(newTable(routes))
	next := make(chan struct{})
	close(*p.changed.Swap(&next))
	for address, old := range before {
		if pools[address] == nil {
			old.close()
		}
	}
}

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
	v := visitOf(pr.In)
	pr.Out.Header.Del("X-Forwarded-Prefix")
	pr.Out.Header.Set("X-Forwarded-Proto", schemeOf(v.asked.secure))
	if v.route.StripPath {
		base := strings.TrimRight(v.route.Path, "/")
		pr.Out.URL.Path = "/" + strings.TrimLeft(strings.TrimPrefix(v.asked.path, base), "/")
		pr.Out.URL.RawPath = ""
		pr.Out.Header.Set("X-Forwarded-Prefix", base)
	}
	if _, given := pr.Out.Header["User-Agent"]; !given {
		pr.Out.Header.Set("User-Agent", "") // so that none is made up
	}
}

var errNobody = errors.New("no instance is ready")

// statusOf is what a client is told when no instance answered.
func statusOf(err error) int {
	var large *http.MaxBytesError
	switch {
	case errors.Is(err, errNobody):
		return http.StatusServiceUnavailable
	case errors.Is(err, errTooLong):
		return http.StatusGatewayTimeout
	case errors.Is(err, context.Canceled), errors.Is(err, errGone):
		return 499 // the client is gone
	case errors.As(err, &large):
		return http.StatusRequestEntityTooLarge
	}
	return http.StatusBadGateway
}

// failed answers for an instance that did not.
func failed(w http.ResponseWriter, r *http.Request, err error) {
	v := visitOf(r)
	if v.status = statusOf(err); v.status != 499 {
		text := fmt.Sprintf("%s: %v", v.route.Service, err)
		v.sent = int64(len(text)) + 1
		http.Error(w, text, v.status)
	}
}

// RoundTrip sends a request to one of the route's instances, and to another when that surely did no harm.
func (p *proxy) RoundTrip(r *http.Request) (*http.Response, error) {
	v := visitOf(r)
	body := &held{ReadCloser: r.Body}
	if r.Body != nil && r.Body != http.NoBody {
		r.Body = body
	}
	var tried []*backend
	last := errNobody
	for {
		b := choose(v.route, v.cookie, tried)
		if b == nil {
			return nil, last
		}
		v.asked.instance = b.Instance
		resp, err := p.try(r, v.route, b)
		if err == nil {
			v.status = resp.StatusCode
			if v.route.Sticky && v.cookie != b.digest {
				resp.Header.Add("Set-Cookie", v.route.setCookie(b))
			}
			return resp, nil
		}
		tried, last = append(tried, b), err
		var dial *net.OpError
		notSent := errors.As(err, &dial) && dial.Op == "dial"
		if notSent {
			b.pool.shunned.Store(time.Now().Add(shunFor).UnixNano())
		}
		again := notSent && !body.begun.Load() || harmless(r) && !errors.Is(err, errTooLong)
		if !again || len(tried) > v.route.Retries || r.Context().Err() != nil {
			return nil, err
		}
	}
}

// harmless reports whether a request may be sent again though an instance may have seen it.
func harmless(r *http.Request) bool {
	return harmlessMethod(r.Method) && (r.Body == nil || r.Body == http.NoBody) && r.Header.Get("Upgrade") == ""
}

func harmlessMethod(method string) bool {
	switch method {
	case http.MethodGet, http.MethodHead, http.MethodOptions, http.MethodTrace:
		return true
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
func (p *proxy) try(r *http.Request, route *route, b *backend) (*http.Response, error) {
	ctx, cancel := context.WithCancelCause(r.Context())
	out, to := r.WithContext(ctx), *r.URL
	to.Host = b.Address
	out.URL = &to
	timer := time.AfterFunc(route.Timeout, func() { cancel(errTooLong) })
	transport := p.plain
	if route.Protocol == "h2c" {
		transport = p.h2c
	} else if route.ProxyProtocol != 0 {
		transport = p.saying
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
		resp.Body = &ended{resp.Body, &visitOf(r).sent, func() { cancel(nil) }}
	}
	return resp, nil
}

// ended is the body of an answer that is counted, and lets go of its context at its end.
type ended struct {
	io.ReadCloser
	sent *int64
	end  func()
}

func (e *ended) Read(b []byte) (int, error) {
	n, err := e.ReadCloser.Read(b)
	*e.sent += int64(n)
	return n, err
}

func (e *ended) Close() error { defer e.end(); return e.ReadCloser.Close() }

// buffers are what bodies are copied with.
type buffers struct{ sync.Pool }

func newBuffers() *buffers {
	return &buffers{sync.Pool{New: func() any { b := make([]byte, 32<<10); return &b }}}
}

func (b *buffers) Get() []byte  { return *b.Pool.Get().(*[]byte) }
func (b *buffers) Put(x []byte) { b.Pool.Put(&x) }
