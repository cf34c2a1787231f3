package native

import (
	"context"
	"net/http"
	"net/url"

	"github.com/tutti-run/tutti/internal/core"
)

// Paths of what steers updates.
const (
	pathRollout  = "/v1/rollout"         // GET ?ref= → core.RolloutInfo
	pathPause    = "/v1/rollout/pause"   // POST Ref
	pathResume   = "/v1/rollout/resume"  // POST Ref
	pathNextStep = "/v1/rollout/promote" // POST NextStep
	pathUndo     = "/v1/rollout/undo"    // POST Undo
	pathSuspend  = "/v1/suspend"         // POST Suspend
)

// NextStep lets an update take its next step, or all of them.
type NextStep struct {
	Ref string `json:"ref"`
	All bool   `json:"all,omitempty"`
}

// Undo returns a workload to a revision by its number; 0 is the one before the present.
type Undo struct {
	Ref    string `json:"ref"`
	Number int    `json:"number,omitempty"`
}

// Suspend scales a workload to zero, or brings it back.
type Suspend struct {
	Ref       string `json:"ref"`
	Suspended bool   `json:"suspended"`
}

func (s *server) rolloutRoutes(mux *http.ServeMux) {
	c := s.Core
	mux.HandleFunc("GET "+pathRollout, func(w http.ResponseWriter, r *http.Request) {
		info, err := c.Rollout(r.Context(), callerOf(r), r.URL.Query().Get("ref"))
		s.answer(w, r, info, err)
	})
	post := func(path string, h http.HandlerFunc) { mux.HandleFunc("POST "+path, h) }
	post(pathPause, byRef(s, c.PauseRollout))
	post(pathResume, byRef(s, c.ResumeRollout))
	post(pathNextStep, change(s, func(ctx context.Context, who core.Caller, r NextStep) (done, error) {
		return done{}, c.Promote(ctx, who, r.Ref, r.All)
	}))
	post(pathUndo, change(s, func(ctx context.Context, who core.Caller, r Undo) (done, error) {
		return done{}, c.Undo(ctx, who, r.Ref, r.Number)
	}))
	post(pathSuspend, change(s, func(ctx context.Context, who core.Caller, r Suspend) (done, error) {
		return done{}, c.Suspend(ctx, who, r.Ref, r.Suspended)
	}))
}

// Rollout tells how the latest update of a workload stands, and which revisions are kept.
func (c *Client) Rollout(ctx context.Context, ref string) (core.RolloutInfo, error) {
	return get[core.RolloutInfo](ctx, c, pathRollout, url.Values{"ref": {ref}})
}

// PauseRollout freezes a workload; what runs is kept up.
func (c *Client) PauseRollout(ctx context.Context, ref string) error {
	return postDone(ctx, c, pathPause, Ref{ref})
}

// ResumeRollout lets a workload go on that was paused, by people or because its update failed.
func (c *Client) ResumeRollout(ctx context.Context, ref string) error {
	return postDone(ctx, c, pathResume, Ref{ref})
}

// Promote lets an update take its next step, or all of them.
func (c *Client) Promote(ctx context.Context, ref string, all bool) error {
	return postDone(ctx, c, pathNextStep, NextStep{ref, all})
}

// Undo returns a workload to a revision by its number; 0 is the one before the present.
func (c *Client) Undo(ctx context.Context, ref string, number int) error {
	return postDone(ctx, c, pathUndo, Undo{ref, number})
}

// Suspend scales a workload to zero and remembers its count, or brings it back.
func (c *Client) Suspend(ctx context.Context, ref string, suspended bool) error {
	return postDone(ctx, c, pathSuspend, Suspend{ref, suspended})
}
