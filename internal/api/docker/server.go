package docker

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/http"
	"net/url"
	"regexp"
	"strconv"
	"strings"

	"github.com/tutti-run/tutti/internal/core"
	"github.com/tutti-run/tutti/internal/fault"
	"github.com/tutti-run/tutti/internal/image"
	"github.com/tutti-run/tutti/internal/store"
)

// The API versions that are spoken.
const (
	maxVersion = "1.50"
	minVersion = "1.24"
)

// Deps is what the API works with.
type Deps struct {
	Core     *core.Core
	NodeName string // of this server
	NodeID   string
	Version  string // of the program
	// Lifetime is the context of a connection that was taken over from HTTP: the request's own ends as
	// soon as the client has no more to send.
	Lifetime func(context.Context) context.Context
	// Caller says who makes a request.
	Caller func(context.Context) core.Caller
	// At says at which node's socket a request was made, where that is not this one's: "" otherwise.
	At func(context.Context) string
	// Leave takes this host out of its cluster; nil refuses.
	Leave func(ctx context.Context, force bool) error
	Log   *slog.Logger
}

// API is the Docker Engine's API as an HTTP handler. Execs and attached terminals belong to the
// host at whose socket they were made.
type API struct {
	Deps
	routes    []route
	execs     execs
	terminals terminals
	images    imageConfigs
	facts     imageFacts
	requests  requests
	happened  happened
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
	vars    map[string]string
	version string // of the API, as asked for; maxVersion when the path names none
	query   url.Values
	who     core.Caller
	at      string // the ID of the node at whose socket the request was made
	// lifetime is the context of a connection that is taken over.
	lifetime context.Context
}

// before reports whether the client speaks an API version older than v.
func (r *request) before(v string) bool { return compareVersions(r.version, v) < 0 }

// flag reads a boolean as the Engine does: everything but "", "0", "no", "false" and "none" is true.
func (r *request) flag(name string) bool {
	switch strings.ToLower(strings.TrimSpace(r.query.Get(name))) {
	case "", "0", "no", "false", "none":
		return false
	}
	return true
}

type handler func(w http.ResponseWriter, r *request) error

type route struct {
	method  string
	pattern string // as in the API's documentation, e.g. "/containers/{id}/json"
	handle  handler
	since   string // the API version that brought it; "" is all
	match   *regexp.Regexp
	names   []string
}

var variable = regexp.MustCompile(`\{(\w+)\}`)

// compile turns patterns into expressions. Variables match slashes too: names of images have them.
func compile(table []route) []route {
	for i := range table {
		r := &table[i]
		expr := regexp.QuoteMeta(r.pattern)
		expr = strings.NewReplacer(`\{`, "{", `\}`, "}").Replace(expr)
		for _, m := range variable.FindAllStringSubmatch(expr, -1) {
			r.names = append(r.names, m[1])
		}
		r.match = regexp.MustCompile("^" + variable.ReplaceAllString(expr, "(.+)") + "$")
	}
	return table
}

var versioned = regexp.MustCompile(`^/v([0-9.]+)(/.*)$`)

// ServeHTTP implements http.Handler.
func (a *API) ServeHTTP(w http.ResponseWriter, hr *http.Request) {
	h := w.Header()
	h.Set("Api-Version", maxVersion)
	h.Set("Docker-Experimental", "false")
	h.Set("Ostype", "linux")
	h.Set("Server", "Tutti/"+a.Version+" (linux)")
	r := &request{Request: hr, version: maxVersion, query: hr.URL.Query()}
	r.lifetime, r.at = hr.Context(), a.NodeID
	if a.At != nil {
		r.at = cmp.Or(a.At(hr.Context()), a.NodeID)
	}
	if a.Lifetime != nil {
		r.lifetime = a.Lifetime(hr.Context())
	}
	if a.Caller != nil {
		r.who = a.Caller(hr.Context())
	}
	if !r.who.WholeCluster() { // what is read here is not told apart by who reads it
		writeError(w, fault.New(fault.Forbidden, "the Docker API is for the host's administrator; others use the API of tutti"))
		return
	}
	path := hr.URL.Path
	if m := versioned.FindStringSubmatch(path); m != nil {
		r.version, path = m[1], m[2]
		if err := checkVersion(r.version); err != nil {
			writeError(w, err)
			return
		}
	}
	if hr.Method != http.MethodGet && hr.Method != http.MethodHead {
		if err := hr.ParseForm(); err != nil && !strings.HasPrefix(err.Error(), "mime:") {
			writeError(w, fault.New(fault.Invalid, "%w", err))
			return
		}
	}
	for i := range a.routes {
		rt := &a.routes[i]
		if rt.method != hr.Method {
			continue
		}
		m := rt.match.FindStringSubmatch(path)
		if m == nil {
			continue
		}
		if rt.since != "" && compareVersions(r.version, rt.since) < 0 {
			continue
		}
		r.vars = map[string]string{}
		for n, name := range rt.names {
			r.vars[name] = m[n+1]
		}
		if err := rt.handle(w, r); err != nil {
			a.Log.Debug("request of the docker API refused", "method", hr.Method, "path", path, "error", err)
			writeError(w, err)
		}
		return
	}
	writeError(w, fault.New(fault.NotFound, "page not found"))
}

func checkVersion(v string) error {
	switch {
	case compareVersions(v, maxVersion) > 0:
		return fault.New(fault.Invalid, "client version %s is too new. Maximum supported API version is %s", v, maxVersion)
	case compareVersions(v, minVersion) < 0:
		return fault.New(fault.Invalid, "client version %s is too old. Minimum supported API version is %s, please upgrade your client to a newer version", v, minVersion)
	}
	return nil
}

// compareVersions compares dotted numbers; what is no number counts as 0.
func compareVersions(a, b string) int {
	x, y := strings.Split(a, "."), strings.Split(b, ".")
	for i := range max(len(x), len(y)) {
		var m, n int
		if i < len(x) {
			m, _ = strconv.Atoi(x[i])
		}
		if i < len(y) {
			n, _ = strconv.Atoi(y[i])
		}
		if m != n {
			if m < n {
				return -1
			}
			return 1
		}
	}
	return 0
}

func (a *API) snapshot() *store.Snapshot { return a.Core.Store.Snapshot() }

// answer writes v as JSON.
func answer(w http.ResponseWriter, status int, v any) error {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	enc := json.NewEncoder(w)
	enc.SetEscapeHTML(false)
	_ = enc.Encode(v) // the peer is gone if this fails
	return nil
}

func done(w http.ResponseWriter, status int) error {
	w.WriteHeader(status)
	return nil
}

// statusOf is the one place where kinds become status codes, those of the Engine.
func statusOf(err error) int {
	switch fault.KindOf(err) {
	case fault.Invalid:
		return http.StatusBadRequest
	case fault.NotFound:
		return http.StatusNotFound
	case fault.Conflict:
		return http.StatusConflict
	case fault.Forbidden:
		return http.StatusForbidden
	case fault.Unsupported:
		return http.StatusNotImplemented
	case fault.Exhausted, fault.Unavailable:
		return http.StatusServiceUnavailable
	default:
		return http.StatusInternalServerError
	}
}

// writeError answers as the Engine does. Once a stream has begun or was taken over, it has no effect.
func writeError(w http.ResponseWriter, err error) {
	if statusOf(err) == http.StatusNotModified {
		w.WriteHeader(http.StatusNotModified)
		return
	}
	_ = answer(w, statusOf(err), map[string]string{"message": err.Error()})
}

// Refuse answers every request with the error: what a host serves that cannot answer itself.
func Refuse(err error) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { writeError(w, err) })
}

// unsupported refuses a route by name.
func unsupported(what string) handler {
	return func(http.ResponseWriter, *request) error {
		return fault.New(fault.Unsupported, "%s is not supported by Tutti yet; see docs/compatibility.md", what)
	}
}

// notBuilt refuses to build images, and says what leads to them.
func notBuilt(http.ResponseWriter, *request) error {
	return fault.New(fault.Unsupported, "building images is not supported by Tutti yet: build with another tool, and bring the image here by docker load, docker import, "+
		"docker pull, or a push to the cluster's registry at %s; tutti image pack makes one of a directory", image.RegistryHost)
}

func notHonoured(field string, value any) error {
	return fault.New(fault.Unsupported, "%s (%s) is not supported by Tutti yet", field, strings.TrimSpace(fmt.Sprint(value)))
}
