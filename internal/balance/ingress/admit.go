package ingress

import (
	"cmp"
	"fmt"
	"math/rand/v2"
	"net/http"
	"net/netip"
	"net/url"
	"path"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"time"
)

// asked is a request, as far as who leads it needs to know it.
type asked struct {
	method, target string
	host           string         // without a port
	path           string         // as it is meant
	client         string         // the address
	user           string         // who it is, where that was asked
	instance       string         // that was asked last
	from, to       netip.AddrPort // of the client's connection
	secure         bool
	length         int64 // of the body; -1: nobody knows yet
	headers        interface{ Get(string) string }
}

// resolved is what a decoded path comes to: who asks for /a/../b gets to no other route than for /b.
func resolved(p string) string {
	if !strings.Contains(p, "/.") && !strings.Contains(p, "//") {
		return p
	}
	clean := path.Clean(p)
	if clean != "/" && (strings.HasSuffix(p, "/") || strings.HasSuffix(p, "/.") || strings.HasSuffix(p, "/..")) {
		clean += "/"
	}
	return clean
}

// refusal is what the ingress answers by itself.
type refusal struct {
	status        int
	text          string
	header, value string
}

// route is one in force, with what belongs to it while it is.
type route struct {
	*Route
	backends []*backend
	count    *count         // of answers
	asked    *atomic.Uint64 // requests that came
	cookie   string         // the name of the one that remembers an instance
	limits   *limits
	users    *users
}

// backend is an instance that a route leads to.
type backend struct {
	Backend
	digest string // stands for the instance in cookies
	pool   *pool
}

// lead finds the route of a request; nil: there is none.
func (p *proxy) lead(a *asked) *route {
	routes := p.table.Load().find(a)
	switch len(routes) {
	case 0:
		return nil
	case 1:
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

// elsewhere reports whether a request is not for a session to pass on. raw is the path as it was sent.
func (r *route) elsewhere(raw string) bool {
	if r.Redirect != "" {
		return false
	}
	return r.Protocol == "h2c" || len(r.backends) == 0 && r.Wait > 0 || r.StripPath && raw != resolved(raw) || r.StripPath && strings.Contains(raw, "%")
}

// challengePath is where servers of ACME ask.
const challengePath = "/.well-known/acme-challenge/"

// challenge answers a server of ACME; nil: it is none, or one that somebody behind a route waits for.
func (p *proxy) challenge(a *asked) *refusal {
	if token, ok := strings.CutPrefix(a.path, challengePath); ok && !a.secure {
		if said, ok := (*p.challenges.Load())[token]; ok {
			return &refusal{status: http.StatusOK, text: said}
		}
	}
	return nil
}

// admit lets a request through, until leave, or says what is answered instead.
func (p *proxy) admit(r *route, a *asked) *refusal {
	if r == nil {
		return &refusal{status: http.StatusNotFound, text: "no route leads to " + a.host + "\n"}
	}
	if !a.secure && r.Secure && !r.Insecure {
		return moved(http.StatusPermanentRedirect, "https://"+a.host+a.target)
	}
	r.asked.Add(1)
	if !r.limits.enter(a.client) {
		return &refusal{status: http.StatusTooManyRequests, text: r.Service + ": too many requests\n", header: "Retry-After", value: strconv.Itoa(r.limits.again())}
	}
	no := p.check(r, a)
	if no != nil {
		r.leave()
	}
	return no
}

func (p *proxy) check(r *route, a *asked) *refusal {
	if r.users != nil {
		var ok bool
		if a.user, ok = r.users.check(a.headers.Get("Authorization")); !ok {
			return &refusal{status: http.StatusUnauthorized, text: r.Service + ": who asks has to say so\n", header: "Www-Authenticate", value: `Basic realm="` + strings.Map(plainRealm, cmp.Or(r.Host, r.Service)) + `", charset="UTF-8"`}
		}
	}
	if r.MaxBody > 0 && a.length > r.MaxBody {
		return &refusal{status: http.StatusRequestEntityTooLarge, text: fmt.Sprintf("%s: a body may have %d bytes\n", r.Service, r.MaxBody)}
	}
	if r.Redirect != "" {
		return moved(cmp.Or(r.RedirectStatus, http.StatusPermanentRedirect), r.destination(a))
	}
	return nil
}

func plainRealm(c rune) rune {
	if c < ' ' || c > '~' || c == '"' || c == '\\' {
		return -1
	}
	return c
}

func moved(status int, to string) *refusal {
	return &refusal{status: status, text: "see " + to + "\n", header: "Location", value: to}
}

// destination is where a redirect leads.
func (r *route) destination(a *asked) string {
	_, query, _ := strings.Cut(a.target, "?")
	if query != "" {
		query = "?" + query
	}
	base := strings.TrimRight(r.Path, "/")
	escaped := func(p string) string { return (&url.URL{Path: p}).EscapedPath() }
	return strings.NewReplacer(
		"{path}", escaped("/"+strings.TrimLeft(a.path, "/"))+query, "{host}", a.host,
		"{rest}", escaped("/"+strings.TrimLeft(strings.TrimPrefix(a.path, base), "/"))+query,
	).Replace(r.Redirect)
}

// leave ends what admit let through.
func (r *route) leave() { r.limits.leave() }

// done counts an answer, whoever gave it, and has it written down where the route has a log.
func (p *proxy) done(r *route, a *asked, status int, sent int64, began time.Time) {
	took := time.Since(began)
	if r == nil {
		p.unrouted.add(status, took)
		return
	}
	r.count.add(status, took)
	if r.AccessLog {
		p.record(r, a, status, sent, began, took)
	}
}

// cookieIn is what a sticky client says of where it was led.
func (r *route) cookieIn(h interface{ Get(string) string }) string {
	for one := range strings.SplitSeq(h.Get("Cookie"), ";") {
		if name, value, _ := strings.Cut(strings.TrimSpace(one), "="); name == r.cookie {
			return value
		}
	}
	return ""
}

func (r *route) setCookie(b *backend) string {
	c := http.Cookie{Name: r.cookie, Value: b.digest, Path: "/", HttpOnly: true, SameSite: http.SameSiteLaxMode, Secure: r.Secure}
	return c.String()
}

// choose picks an instance that was not tried: a sticky client's own, or any that takes connections, as far
// as is known; of those that do not, any.
func choose(r *route, cookie string, tried []*backend) *backend {
	list := r.backends
	if len(list) == 0 {
		return nil
	}
	if cookie != "" {
		for _, b := range list {
			if b.digest == cookie && !slices.Contains(tried, b) {
				return b
			}
		}
	}
	start := 0
	if len(list) > 1 {
		start = rand.IntN(len(list))
	}
	var second *backend
	for i := range list {
		b := list[(start+i)%len(list)]
		if slices.Contains(tried, b) {
			continue
		}
		if !b.pool.isShunned() {
			return b
		}
		if second == nil {
			second = b
		}
	}
	return second
}
