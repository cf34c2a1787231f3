package native

import (
	"context"
	"net/http"

	"github.com/tutti-run/tutti/internal/core"
	"github.com/tutti-run/tutti/internal/model"
)

// Paths of what only reads.
const (
	pathPing         = "/v1/ping"         // → Ping
	pathStatus       = "/v1/status"       // → core.ClusterStatus
	pathApplications = "/v1/applications" // → []ApplicationView
	pathWorkloads    = "/v1/workloads"    // ?application → []WorkloadView
	pathInstances    = "/v1/instances"    // ?ref ?application ?ended → []InstanceView
	pathNodes        = "/v1/nodes"        // → []NodeView
	pathServices     = "/v1/services"     // → []model.Service
	pathNetworks     = "/v1/networks"     // → []model.Network
	pathVolumes      = "/v1/volumes"      // → []model.Volume
	pathImages       = "/v1/images"       // → []ImageView; POST imports
	pathFind         = "/v1/find"         // ?ref → core.Found
	pathExplain      = "/v1/explain"      // ?ref → core.Explanation
	pathServers      = "/v1/servers"      // → []core.ServerView
	pathBackup       = "/v1/backup"       // → a backup file; holds the cluster's keys
	pathToken        = "/v1/token"        // ?server → Token
)

// HeaderStale is set in answers to reads that may lack what was changed since, and says why. The
// parameter ?consistency of every read is linearizable, for one that shows all that was acknowledged
// anywhere before or fails, stale, for one that is answered at once whatever this server knows, or
// absent: from this server's state, which lacks at most what is on its way while a server leads.
const HeaderStale = "Tutti-Stale"

// Token admits a host to the cluster.
type Token struct {
	Token string `json:"token"`
}

func (s *server) readRoutes(mux *http.ServeMux) {
	c := s.Core
	get := func(path string, h http.HandlerFunc) { mux.HandleFunc("GET "+path, h) }
	get(pathPing, read(s, func(context.Context, query) (Ping, error) { return s.ping(), nil }))
	get(pathStatus, read(s, func(ctx context.Context, _ query) (core.ClusterStatus, error) { return c.Status(ctx) }))
	get(pathApplications, read(s, func(context.Context, query) ([]ApplicationView, error) { return applications(c.Snapshot()), nil }))
	get(pathWorkloads, read(s, s.listWorkloads))
	get(pathInstances, read(s, s.listInstances))
	get(pathNodes, read(s, func(context.Context, query) ([]NodeView, error) { return s.nodes(c.Snapshot()), nil }))
	get(pathServices, read(s, func(context.Context, query) ([]model.Service, error) { return plain[model.Service](c.Snapshot()), nil }))
	get(pathNetworks, read(s, func(context.Context, query) ([]model.Network, error) { return plain[model.Network](c.Snapshot()), nil }))
	get(pathVolumes, read(s, func(context.Context, query) ([]model.Volume, error) { return plain[model.Volume](c.Snapshot()), nil }))
	get(pathImages, read(s, func(context.Context, query) ([]ImageView, error) { return images(c.Snapshot()), nil }))
	get(pathFind, read(s, func(_ context.Context, q query) (core.Found, error) { return c.Find(q.Get("ref")) }))
	get(pathExplain, read(s, func(ctx context.Context, q query) (core.Explanation, error) { return c.Explain(ctx, q.Get("ref")) }))
	get(pathServers, read(s, func(context.Context, query) ([]core.ServerView, error) { return c.ListServers(), nil }))
	get(pathBackup, s.backup)
	mux.HandleFunc("GET "+pathToken, s.token)
}

func (s *server) listWorkloads(_ context.Context, q query) ([]WorkloadView, error) {
	snap, application := s.Core.Snapshot(), q.Get("application")
	if application != "" {
		if err := known(snap, application); err != nil {
			return nil, err
		}
	}
	return workloads(snap, application), nil
}

func (s *server) listInstances(_ context.Context, q query) ([]InstanceView, error) {
	ended, err := q.flag("ended")
	if err != nil {
		return nil, err
	}
	return s.instances(s.Core.Snapshot(), InstanceChoice{Ref: q.Get("ref"), Application: q.Get("application"), Ended: ended})
}

// backup streams a backup. What goes wrong on the way breaks the connection, and what came is
// without its end then.
func (s *server) backup(w http.ResponseWriter, r *http.Request) {
	out := &begun{ResponseWriter: w}
	err := s.Core.Backup(r.Context(), callerOf(r.Context()), out)
	switch {
	case err == nil:
	case !out.begun:
		s.fail(w, r, err)
	default:
		s.Log.Error("a backup was not finished", "error", err)
		panic(http.ErrAbortHandler)
	}
}

// begun knows whether anything was answered.
type begun struct {
	http.ResponseWriter
	begun bool
}

func (b *begun) Write(p []byte) (int, error) {
	if !b.begun {
		b.Header().Set("Content-Type", "application/octet-stream")
		b.begun = true
	}
	return b.ResponseWriter.Write(p)
}

func (s *server) token(w http.ResponseWriter, r *http.Request) {
	asServer, err := query{r.URL.Query()}.flag("server")
	if err != nil {
		s.fail(w, r, err)
		return
	}
	token, err := s.Core.JoinToken(r.Context(), callerOf(r.Context()), asServer)
	s.answer(w, r, Token{Token: token}, err)
}
