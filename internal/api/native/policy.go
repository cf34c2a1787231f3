package native

import (
	"context"
	"net/http"

	"github.com/tutti-run/tutti/internal/core"
	"github.com/tutti-run/tutti/internal/model"
)

// Paths of what bounds and steers placement.
const (
	pathNamespaces = "/v1/namespaces"       // GET → []core.Namespace; POST NamespaceChange
	pathTaints     = "/v1/nodes/taints"     // POST Taints
	pathOvercommit = "/v1/nodes/overcommit" // POST Overcommit
	pathResources  = "/v1/nodes/resources"  // POST NodeResources
	pathTrust      = "/v1/nodes/trust"      // POST NodeTrust
	pathReserve    = "/v1/nodes/reserve"    // POST NodeReserve
)

// NamespaceChange gives a namespace a share of the cluster.
type NamespaceChange struct {
	Name string `json:"name"`
	model.NamespaceShare
}

// Taints sets and removes taints of a node.
type Taints struct {
	Ref    string        `json:"ref"`
	Set    []model.Taint `json:"set,omitempty"`
	Remove []string      `json:"remove,omitempty"`
}

// Overcommit stretches the cores of a node.
type Overcommit struct {
	Ref   string  `json:"ref"`
	Times float64 `json:"times"`
}

// NodeTrust says whether whoever administers an agent has the cluster.
type NodeTrust struct {
	Ref     string `json:"ref"`
	Trusted bool   `json:"trusted"`
}

// NodeResources says which devices or metrics a node has, and has no longer.
type NodeResources struct {
	Ref     string              `json:"ref"`
	Counts  map[string]int64    `json:"counts,omitempty"`
	Devices map[string][]string `json:"devices,omitempty"` // names by kind
	Remove  []string            `json:"remove,omitempty"`
}

// NodeReserve says what of a node is kept back from instances.
type NodeReserve struct {
	Ref  string          `json:"ref"`
	Keep model.Resources `json:"keep,omitzero"` // nanoCPUs, memoryBytes and diskBytes
}

func (s *server) policyRoutes(mux *http.ServeMux) {
	c := s.Core
	mux.HandleFunc("GET "+pathNamespaces, func(w http.ResponseWriter, r *http.Request) {
		list, err := c.Namespaces(r.Context(), callerOf(r))
		s.answer(w, r, list, err)
	})
	mux.HandleFunc("POST "+pathNamespaces, change(s, func(ctx context.Context, who core.Caller, r NamespaceChange) (done, error) {
		return done{}, c.SetNamespace(ctx, who, r.Name, r.NamespaceShare)
	}))
	mux.HandleFunc("POST "+pathTaints, change(s, func(ctx context.Context, who core.Caller, r Taints) (done, error) {
		return done{}, c.TaintNode(ctx, who, r.Ref, r.Set, r.Remove)
	}))
	mux.HandleFunc("POST "+pathOvercommit, change(s, func(ctx context.Context, who core.Caller, r Overcommit) (done, error) {
		return done{}, c.Overcommit(ctx, who, r.Ref, r.Times)
	}))
	mux.HandleFunc("POST "+pathTrust, change(s, func(ctx context.Context, who core.Caller, r NodeTrust) (done, error) {
		return done{}, c.TrustNode(ctx, who, r.Ref, r.Trusted)
	}))
	mux.HandleFunc("POST "+pathReserve, change(s, func(ctx context.Context, who core.Caller, r NodeReserve) (done, error) {
		return done{}, c.ReserveNode(ctx, who, r.Ref, r.Keep)
	}))
	mux.HandleFunc("POST "+pathResources, change(s, func(ctx context.Context, who core.Caller, r NodeResources) (done, error) {
		return done{}, c.SetNodeResources(ctx, who, r.Ref, r.Counts, r.Devices, r.Remove)
	}))
}

// Namespaces lists namespaces with what they may have and have.
func (c *Client) Namespaces(ctx context.Context) ([]core.Namespace, error) {
	return get[[]core.Namespace](ctx, c, pathNamespaces, nil)
}

// SetNamespace gives a namespace a weight and a quota; an empty share takes both away.
func (c *Client) SetNamespace(ctx context.Context, name string, share model.NamespaceShare) error {
	return postDone(ctx, c, pathNamespaces, NamespaceChange{name, share})
}

// TaintNode sets and removes taints of a node.
func (c *Client) TaintNode(ctx context.Context, node string, set []model.Taint, remove []string) error {
	return postDone(ctx, c, pathTaints, Taints{Ref: node, Set: set, Remove: remove})
}

// SetNodeResources says which devices or metrics a node has.
func (c *Client) SetNodeResources(ctx context.Context, r NodeResources) error {
	return postDone(ctx, c, pathResources, r)
}

// ReserveNode keeps something of a node back from instances.
func (c *Client) ReserveNode(ctx context.Context, node string, keep model.Resources) error {
	return postDone(ctx, c, pathReserve, NodeReserve{Ref: node, Keep: keep})
}

// TrustNode says whether whoever administers an agent has the cluster.
func (c *Client) TrustNode(ctx context.Context, node string, trusted bool) error {
	return postDone(ctx, c, pathTrust, NodeTrust{Ref: node, Trusted: trusted})
}

// Overcommit lets burstable instances set aside so many times the cores of a node.
func (c *Client) Overcommit(ctx context.Context, node string, times float64) error {
	return postDone(ctx, c, pathOvercommit, Overcommit{Ref: node, Times: times})
}
