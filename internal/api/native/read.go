package native

import (
	"cmp"
	"context"
	"net/http"
	"time"

	"github.com/tutti-run/tutti/internal/core"
	"github.com/tutti-run/tutti/internal/fault"
	"github.com/tutti-run/tutti/internal/model"
	"github.com/tutti-run/tutti/internal/store"
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
	pathReach        = "/v1/reach"        // POST core.ReachQuestion → core.ReachAnswer
	pathNetMap       = "/v1/net/map"      // ?ref ?for ?instances → core.NetMap
	pathNetCounts    = "/v1/net/counts"   // ?ref → core.NetCounts
	pathMetrics      = "/metrics"         // what is counted, as Prometheus reads it
	pathPolicies     = "/v1/policies"     // → []model.Policy
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
	get(pathPing, read(s, func(context.Context, core.Caller, query) (Ping, error) { return s.ping(), nil }))
	get(pathStatus, read(s, func(ctx context.Context, who core.Caller, _ query) (core.ClusterStatus, error) {
		return c.Status(ctx, who)
	}))
	get(pathApplications, seen(s, applications))
	get(pathWorkloads, read(s, s.listWorkloads))
	get(pathInstances, read(s, s.listInstances))
	get(pathNodes, seen(s, s.nodes))
	get(pathServices, seen(s, plain[model.Service]))
	get(pathNetworks, seen(s, plain[model.Network]))
	get(pathPolicies, seen(s, plain[model.Policy]))
	mux.HandleFunc("POST "+pathReach, change(s, func(ctx context.Context, who core.Caller, q core.ReachQuestion) (core.ReachAnswer, error) {
		return c.Reach(ctx, who, q)
	}))
	get(pathNetMap, read(s, func(ctx context.Context, who core.Caller, q query) (core.NetMap, error) {
		question := core.NetMapQuestion{Ref: q.Get("ref")}
		var err error
		if text := q.Get("for"); text != "" {
			if question.For, err = time.ParseDuration(text); err != nil {
				return core.NetMap{}, fault.New(fault.Invalid, "for: %q is no duration such as 2s", text)
			}
		}
		if question.Instances, err = q.flag("instances"); err != nil {
			return core.NetMap{}, err
		}
		return c.NetMap(ctx, who, question)
	}))
	get(pathNetCounts, read(s, func(ctx context.Context, who core.Caller, q query) (core.NetCounts, error) {
		return c.NetCounts(ctx, who, q.Get("ref"))
	}))
	get(pathMetrics, s.metrics)
	get(pathVolumes, seen(s, plain[model.Volume]))
	get(pathImages, seen(s, images))
	get(pathFind, read(s, func(_ context.Context, who core.Caller, q query) (core.Found, error) {
		return c.Find(who, q.Get("ref"))
	}))
	get(pathExplain, read(s, func(ctx context.Context, who core.Caller, q query) (core.Explanation, error) {
		return c.Explain(ctx, who, q.Get("ref"))
	}))
	get(pathServers, read(s, func(_ context.Context, who core.Caller, _ query) ([]core.ServerView, error) {
		return c.ListServers(who)
	}))
	get(pathBackup, s.backup)
	mux.HandleFunc("GET "+pathToken, s.token)
}

// seen serves a list of what the caller may see.
func seen[T any](s *server, list func(snap *store.Snapshot) []T) http.HandlerFunc {
	return read(s, func(_ context.Context, who core.Caller, _ query) ([]T, error) {
		snap, err := s.Core.Snapshot(who)
		if err != nil {
			return nil, err
		}
		return list(snap), nil
	})
}

func (s *server) listWorkloads(_ context.Context, who core.Caller, q query) ([]WorkloadView, error) {
	snap, err := s.Core.Snapshot(who)
	if err != nil {
		return nil, err
	}
	application := q.Get("application")
	if application != "" {
		if err := known(snap, namespaceOf(who), application); err != nil {
			return nil, err
		}
	}
	return workloads(snap, namespaceOf(who), application), nil
}

func (s *server) listInstances(_ context.Context, who core.Caller, q query) ([]InstanceView, error) {
	ended, err := q.flag("ended")
	if err != nil {
		return nil, err
	}
	snap, err := s.Core.Snapshot(who)
	if err != nil {
		return nil, err
	}
	return s.instances(who, snap, InstanceChoice{Ref: q.Get("ref"), Application: q.Get("application"), Ended: ended})
}

// backup streams a backup. What goes wrong on the way breaks the connection, and what came is
// without its end then.
func (s *server) backup(w http.ResponseWriter, r *http.Request) {
	out := &begun{ResponseWriter: w}
	err := s.Core.Backup(r.Context(), callerOf(r), out)
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

// namespaceOf is where names that a caller gives are meant to be.
func namespaceOf(who core.Caller) string { return cmp.Or(who.Namespace, model.DefaultNamespace) }

func (s *server) token(w http.ResponseWriter, r *http.Request) {
	asServer, err := query{r.URL.Query()}.flag("server")
	if err != nil {
		s.fail(w, r, err)
		return
	}
	token, err := s.Core.JoinToken(r.Context(), callerOf(r), asServer)
	s.answer(w, r, Token{Token: token}, err)
}
