package marathon

import (
	"context"
	"log/slog"
	"net/http"
	"net/url"
	"regexp"
	"strings"
	"sync"

	"github.com/tutti-run/tutti/internal/core"
	"github.com/tutti-run/tutti/internal/fault"
	"github.com/tutti-run/tutti/internal/model"
	"github.com/tutti-run/tutti/internal/store"
)

// Deps is what the API works with.
type Deps struct {
	Core     *core.Core
	NodeName string // of this server
	NodeID   string
	Address  string // under which other hosts reach this server
	Version  string // of the program
	// Caller says who makes a request.
	Caller func(context.Context) core.Caller
	Log    *slog.Logger
}

// API is Marathon's API, and Metronome's, as an HTTP handler. Run must be running for deployments to
// be told as done.
type API struct {
	Deps
	routes []route
	// turn is held from the look at the state that a change is decided on until it is committed.
	turn    sync.Mutex
	parsed  parsedCache
	index   index
	streams streams
	counts  counters
}

// New returns a handler.
func New(d Deps) *API {
	a := &API{Deps: d}
	a.routes = compile(a.table())
	return a
}

// request is a request on its way through a handler.
type request struct {
	*http.Request
	vars  map[string]string
	query url.Values
	who   core.Caller
	ns    string
	snap  *store.Snapshot
}

// flag reads a boolean, which is false unless it says true.
func (r *request) flag(name string) bool { return strings.EqualFold(r.query.Get(name), "true") }

type handler func(w http.ResponseWriter, r *request) error

type route struct {
	method  string
	pattern string // {id} is a path with slashes
	handle  handler
	match   *regexp.Regexp
	names   []string
}

var variable = regexp.MustCompile(`\\\{(\w+)\\\}`)

func compile(table []route) []route {
	for i := range table {
		r := &table[i]
		expr := regexp.QuoteMeta(r.pattern)
		for _, m := range variable.FindAllStringSubmatch(expr, -1) {
			r.names = append(r.names, m[1])
		}
		expr = strings.ReplaceAll(expr, `\{id\}`, "(.+?)")
		r.match = regexp.MustCompile("^" + variable.ReplaceAllString(expr, "([^/]+)") + "/?$")
	}
	return table
}

// ServeHTTP implements http.Handler.
func (a *API) ServeHTTP(w http.ResponseWriter, hr *http.Request) {
	w.Header().Set("X-Marathon-Leader", "http://"+a.Address)
	r := &request{Request: hr, query: hr.URL.Query()}
	if a.Caller != nil {
		r.who = a.Caller(hr.Context())
	}
	known := false
	for i := range a.routes {
		rt := &a.routes[i]
		m := rt.match.FindStringSubmatch(hr.URL.Path)
		if m == nil {
			continue
		}
		known = true
		if rt.method != hr.Method {
			continue
		}
		r.vars = map[string]string{}
		for n, name := range rt.names {
			r.vars[name] = m[n+1]
		}
		a.counts.requests.Add(1)
		if err := a.begin(r); err != nil {
			writeError(w, err)
			return
		}
		if err := rt.handle(w, r); err != nil {
			a.Log.Debug("request of the marathon API refused", "method", hr.Method, "path", hr.URL.Path, "error", err)
			writeError(w, err)
		}
		return
	}
	if known {
		writeError(w, &invalid{message: "HTTP 405 Method Not Allowed", status: http.StatusMethodNotAllowed})
		return
	}
	writeError(w, &invalid{message: "HTTP 404 Not Found", status: http.StatusNotFound})
}

// begin takes the view of the state that the request is answered from.
func (a *API) begin(r *request) (err error) {
	if r.who.Namespace == "" {
		r.who.Namespace = model.DefaultNamespace
	}
	r.ns = r.who.Namespace
	if !r.who.May(model.RoleViewer, r.ns) {
		return fault.New(fault.Forbidden, "%s may not look at namespace %s", r.who.Name, r.ns)
	}
	r.snap, err = a.Core.Snapshot(r.who)
	return err
}

// refusedRoute refuses a route by name. Clients take answers from 500 on as the end of this server.
func refusedRoute(what string) handler {
	return func(http.ResponseWriter, *request) error {
		return &invalid{message: what + " is not supported by Tutti yet; see docs/compatibility.md", status: http.StatusBadRequest}
	}
}
