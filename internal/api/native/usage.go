package native

import (
	"context"
	"net/http"
	"net/url"

	"github.com/tutti-run/tutti/internal/core"
	"github.com/tutti-run/tutti/internal/driver"
	"github.com/tutti-run/tutti/internal/wire"
)

// Paths of what looks at, and holds, what runs.
const (
	pathUsage     = "/v1/usage"           // GET ?ref → []core.Usage
	pathProcesses = "/v1/processes"       // GET ?ref ?task → []driver.Process
	pathNodeDebug = "/v1/nodes/debug"     // GET ?ref → wire.NodeDebug
	pathHold      = "/v1/instances/pause" // POST Hold
)

// Hold stops instances where they are, or lets them go on.
type Hold struct {
	Ref   string `json:"ref"`
	Pause bool   `json:"pause"`
}

func (s *server) usageRoutes(mux *http.ServeMux) {
	c := s.Core
	mux.HandleFunc("GET "+pathUsage, func(w http.ResponseWriter, r *http.Request) {
		list, err := c.Usage(r.Context(), callerOf(r), r.URL.Query().Get("ref"))
		s.answer(w, r, list, err)
	})
	mux.HandleFunc("GET "+pathProcesses, func(w http.ResponseWriter, r *http.Request) {
		q := r.URL.Query()
		list, err := c.Processes(r.Context(), callerOf(r), q.Get("ref"), q.Get("task"))
		s.answer(w, r, list, err)
	})
	mux.HandleFunc("GET "+pathNodeDebug, func(w http.ResponseWriter, r *http.Request) {
		d, err := c.NodeDebug(r.Context(), callerOf(r), r.URL.Query().Get("ref"))
		s.answer(w, r, d, err)
	})
	mux.HandleFunc("POST "+pathHold, change(s, func(ctx context.Context, who core.Caller, r Hold) (done, error) {
		return done{}, c.Pause(ctx, who, r.Ref, r.Pause)
	}))
}

// NodeDebug has a node say how it is.
func (c *Client) NodeDebug(ctx context.Context, ref string) (wire.NodeDebug, error) {
	return get[wire.NodeDebug](ctx, c, pathNodeDebug, url.Values{"ref": {ref}})
}

// Usage reads what tasks use: all, or those that a reference covers.
func (c *Client) Usage(ctx context.Context, ref string) ([]core.Usage, error) {
	return get[[]core.Usage](ctx, c, pathUsage, url.Values{"ref": {ref}})
}

// Processes lists the processes of a task; none is the first.
func (c *Client) Processes(ctx context.Context, ref, task string) ([]driver.Process, error) {
	return get[[]driver.Process](ctx, c, pathProcesses, url.Values{"ref": {ref}, "task": {task}})
}

// Pause stops instances where they are, or lets them go on.
func (c *Client) Pause(ctx context.Context, ref string, pause bool) error {
	return postDone(ctx, c, pathHold, Hold{ref, pause})
}
