package native

import (
	"context"
	"net/http"

	"github.com/tutti-run/tutti/internal/core"
	"github.com/tutti-run/tutti/internal/fault"
	"github.com/tutti-run/tutti/internal/image"
	"github.com/tutti-run/tutti/internal/model"
)

// Paths of what changes something. All are POST with a JSON body, but for the import of images,
// whose body is the archive.
const (
	pathDeploy       = "/v1/deploy"               // core.Deployment → core.DeployResult
	pathManifests    = "/v1/manifests/{language}" // core.Manifests → []core.DeployResult
	pathScale        = "/v1/scale"                // Scale
	pathRestart      = "/v1/restart"              // Ref
	pathRollback     = "/v1/rollback"             // Ref
	pathRemove       = "/v1/remove"               // Remove
	pathAvailability = "/v1/nodes/availability"   // Availability
	pathLabels       = "/v1/nodes/labels"         // Labels
	pathRemoveNode   = "/v1/nodes/remove"         // Ref
	pathPromote      = "/v1/servers/promote"      // Ref
	pathDemote       = "/v1/servers/demote"       // Ref
	pathRemoveServer = "/v1/servers/remove"       // Ref
	pathRemoveImage  = "/v1/images/remove"        // Ref
)

// Ref names what a request is about; see core.Core.Find.
type Ref struct {
	Ref string `json:"ref"`
}

// Scale sets the count of a workload.
type Scale struct {
	Ref   string `json:"ref"`
	Count int    `json:"count"`
}

// Remove removes an application or a workload, with the application's volumes when asked for.
type Remove struct {
	Ref     string `json:"ref"`
	Volumes bool   `json:"volumes,omitempty"`
}

// Availability says what is wanted of a node.
type Availability struct {
	Ref          string             `json:"ref"`
	Availability model.Availability `json:"availability"`
}

// Labels sets and removes labels of a node.
type Labels struct {
	Ref    string            `json:"ref"`
	Set    map[string]string `json:"set,omitempty"`
	Remove []string          `json:"remove,omitempty"`
}

func (s *server) changeRoutes(mux *http.ServeMux) {
	c := s.Core
	post := func(path string, h http.HandlerFunc) { mux.HandleFunc("POST "+path, h) }
	post(pathDeploy, change(s, c.Deploy))
	mux.HandleFunc("POST "+pathManifests, s.manifests)
	post(pathScale, change(s, func(ctx context.Context, who core.Caller, r Scale) (done, error) {
		return done{}, c.Scale(ctx, who, r.Ref, r.Count)
	}))
	post(pathRestart, byRef(s, c.RestartWorkload))
	post(pathRollback, byRef(s, c.Rollback))
	post(pathRemove, change(s, func(ctx context.Context, who core.Caller, r Remove) (done, error) {
		return done{}, c.Remove(ctx, who, r.Ref, r.Volumes)
	}))
	post(pathAvailability, change(s, func(ctx context.Context, who core.Caller, r Availability) (done, error) {
		return done{}, c.SetAvailability(ctx, who, r.Ref, r.Availability)
	}))
	post(pathLabels, change(s, func(ctx context.Context, who core.Caller, r Labels) (done, error) {
		return done{}, c.LabelNode(ctx, who, r.Ref, r.Set, r.Remove)
	}))
	post(pathRemoveNode, byRef(s, c.RemoveNode))
	post(pathPromote, byRef(s, c.PromoteServer))
	post(pathDemote, byRef(s, c.DemoteServer))
	post(pathRemoveServer, byRef(s, c.RemoveServer))
	post(pathRemoveImage, byRef(s, c.RemoveImage))
	post(pathImages, s.importImage)
}

// manifests serves the languages of files that are read here.
func (s *server) manifests(w http.ResponseWriter, r *http.Request) {
	language := r.PathValue("language")
	read, ok := s.Manifests[language]
	if !ok {
		s.fail(w, r, fault.New(fault.Unsupported, "this server reads no files of %q", language))
		return
	}
	change(s, read)(w, r)
}

// byRef serves a use case that needs nothing but a reference.
func byRef(s *server, fn func(ctx context.Context, who core.Caller, ref string) error) http.HandlerFunc {
	return change(s, func(ctx context.Context, who core.Caller, r Ref) (done, error) {
		return done{}, fn(ctx, who, r.Ref)
	})
}

func (s *server) importImage(w http.ResponseWriter, r *http.Request) {
	infos, err := s.Core.ImportImage(r.Context(), callerOf(r), r.Body, r.URL.Query().Get("name"))
	if infos == nil {
		infos = []image.Info{}
	}
	s.answer(w, r, infos, err)
}
