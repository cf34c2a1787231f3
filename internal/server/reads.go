package server

import (
	"context"
	"net/http"
	"time"

	"github.com/tutti-run/tutti/internal/api/native"
	"github.com/tutti-run/tutti/internal/fault"
	"github.com/tutti-run/tutti/internal/model"
	"github.com/tutti-run/tutti/internal/store"
)

const (
	// readPatience is how long a linearizable read waits for a leader.
	readPatience = 10 * time.Second
	// startPatience is how long a read waits for a server that has just started to catch up.
	startPatience = time.Second
)

// Answer answers with h from this server's state. Reads choose by ?consistency: linearizable ones
// show all that was acknowledged anywhere before, or fail without a leader; stale ones are answered
// at once; the others too, as soon as a server that has just started has caught up. An answer that
// may lack what others acknowledged long ago is marked by native.HeaderStale. Changes need a server
// that has caught up: they are decided upon what it shows.
func (s *Server) Answer(h http.Handler) http.Handler {
	early := native.Refuse(fault.New(fault.Unavailable, "server %s is catching up with the cluster: ask again in a moment, or ask another server", s.cfg.Name))
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodGet && r.Method != http.MethodHead {
			if !s.hasCaughtUp() {
				early.ServeHTTP(w, r)
				return
			}
			h.ServeHTTP(w, r)
			return
		}
		switch c := r.URL.Query().Get("consistency"); c {
		case "linearizable":
			ctx, cancel := context.WithTimeout(r.Context(), readPatience)
			err := s.raft.Sync(ctx)
			cancel()
			if err != nil {
				native.Refuse(fault.New(fault.Unavailable, "no linearizable read from server %s: %w", s.cfg.Name, err)).ServeHTTP(w, r)
				return
			}
		case "stale":
		case "":
			s.awaitCaughtUp(r.Context())
		default:
			native.Refuse(fault.New(fault.Invalid, "consistency=%q: linearizable and stale are accepted", c)).ServeHTTP(w, r)
			return
		}
		if why := s.stale(); why != "" {
			if _, ok := store.Get[*model.Cluster](s.store.Snapshot(), model.ClusterID); !ok {
				early.ServeHTTP(w, r) // it knows nothing at all
				return
			}
			w.Header().Set(native.HeaderStale, why)
		}
		h.ServeHTTP(w, r)
	})
}

func (s *Server) hasCaughtUp() bool {
	select {
	case <-s.caughtUp:
		return true
	default:
		return false
	}
}

func (s *Server) awaitCaughtUp(ctx context.Context) {
	timer := time.NewTimer(startPatience)
	defer timer.Stop()
	select {
	case <-s.caughtUp:
	case <-timer.C:
	case <-ctx.Done():
	}
}

// stale says why this server's state may be old, "" when it is not: then it lacks only what is on
// its way.
func (s *Server) stale() string {
	leader, _ := s.raft.Leader()
	switch {
	case leader == "":
		return "no server leads; this is what server " + s.cfg.Name + " knew last, and may be out of date"
	case !s.hasCaughtUp():
		return "server " + s.cfg.Name + " has not caught up with the cluster since it started; this may be out of date"
	}
	return ""
}
