package native

import (
	"bytes"
	"context"
	"encoding/json"
	"net/http"
	"time"

	"github.com/tutti-run/tutti/internal/core"
	"github.com/tutti-run/tutti/internal/fault"
	"github.com/tutti-run/tutti/internal/image"
	"github.com/tutti-run/tutti/internal/model"
)

// Paths of images and the registries they come from.
const (
	pathRegistries     = "/v1/registries"        // → core.RegistriesView; POST RegistryChange
	pathRegistryLogin  = "/v1/registries/login"  // POST RegistryLogin
	pathRegistryLogout = "/v1/registries/logout" // POST Ref
	pathRegistryName   = "/v1/registries/name"   // POST RegistryName
	pathImagePolicy    = "/v1/images/policy"     // POST ImagePolicy
	pathImagePull      = "/v1/images/pull"       // POST ImagePull → ImageStep a line
	pathImagePush      = "/v1/images/push"       // POST ImagePush → ImageStep a line
	pathImagePrune     = "/v1/images/prune"      // POST ImagePrune → []model.Image
)

// RegistryChange says how a registry is reached.
type RegistryChange struct {
	Host string `json:"host"`
	model.Registry
}

// RegistryLogin is who asks for the images below a prefix.
type RegistryLogin struct {
	Prefix string `json:"prefix"`
	image.Credentials
}

// RegistryName is a host under which clients reach the cluster's own registry.
type RegistryName struct {
	Name   string `json:"name"`
	Remove bool   `json:"remove,omitempty"`
}

// ImagePolicy says whose signature images need.
type ImagePolicy struct {
	model.SignaturePolicy
	Refuse bool `json:"refuse,omitempty"` // none of them is run
}

// ImagePull gets an image from its registry. Without a login those of the cluster count.
type ImagePull struct {
	Ref   string            `json:"ref"`
	Login image.Credentials `json:"login,omitzero"`
}

// ImagePush sends an image of the cluster to a registry, under another name if there is one.
type ImagePush struct {
	Ref   string            `json:"ref"`
	As    string            `json:"as,omitempty"`
	Login image.Credentials `json:"login,omitzero"`
}

// ImageStep is how far a pull or push has come, and in the end what there is then.
type ImageStep struct {
	Progress *image.Progress `json:"progress,omitempty"`
	Name     string          `json:"name,omitempty"`
	Digest   string          `json:"digest,omitempty"`
}

// ImagePrune removes images that nothing uses.
type ImagePrune struct {
	OlderThan time.Duration `json:"olderThan,omitempty"`
	DryRun    bool          `json:"dryRun,omitempty"`
}

func (s *server) registryRoutes(mux *http.ServeMux) {
	c := s.Core
	mux.HandleFunc("GET "+pathRegistries, read(s, func(ctx context.Context, who core.Caller, _ query) (core.RegistriesView, error) {
		return c.Registries(ctx, who)
	}))
	post := func(path string, h http.HandlerFunc) { mux.HandleFunc("POST "+path, h) }
	post(pathRegistries, change(s, func(ctx context.Context, who core.Caller, r RegistryChange) (done, error) {
		return done{}, c.SetRegistry(ctx, who, r.Host, r.Registry)
	}))
	post(pathRegistryLogin, change(s, func(ctx context.Context, who core.Caller, r RegistryLogin) (done, error) {
		return done{}, c.LoginRegistry(ctx, who, r.Prefix, r.Credentials)
	}))
	post(pathRegistryLogout, byRef(s, c.LogoutRegistry))
	post(pathRegistryName, change(s, func(ctx context.Context, who core.Caller, r RegistryName) (done, error) {
		return done{}, c.NameRegistry(ctx, who, r.Name, r.Remove)
	}))
	post(pathImagePolicy, change(s, func(ctx context.Context, who core.Caller, r ImagePolicy) (done, error) {
		return done{}, c.SetSignaturePolicy(ctx, who, r.SignaturePolicy, r.Refuse)
	}))
	post(pathImagePrune, change(s, func(ctx context.Context, who core.Caller, r ImagePrune) ([]*model.Image, error) {
		return c.PruneImages(ctx, who, r.OlderThan, r.DryRun)
	}))
	post(pathImagePull, steps(s, func(ctx context.Context, who core.Caller, r ImagePull, tell func(image.Progress)) (ImageStep, error) {
		info, err := c.PullImage(ctx, who, r.Ref, r.Login, tell)
		return ImageStep{Name: info.Name, Digest: info.Digest}, err
	}))
	post(pathImagePush, steps(s, func(ctx context.Context, who core.Caller, r ImagePush, tell func(image.Progress)) (ImageStep, error) {
		name, digest, err := c.PushNamedImage(ctx, who, r.Ref, r.As, r.Login, tell)
		return ImageStep{Name: name, Digest: digest}, err
	}))
}

// steps serves what takes its time: a line for each piece of progress, the last one with the result.
func steps[Req any](s *server, fn func(ctx context.Context, who core.Caller, req Req, tell func(image.Progress)) (ImageStep, error)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		var req Req
		if err := decode(http.MaxBytesReader(w, r.Body, maxRequest), &req); err != nil {
			s.fail(w, r, err)
			return
		}
		s.stream(w, r, together, func(ctx context.Context, line func(any) error) error {
			last, err := fn(ctx, callerOf(r), req, func(p image.Progress) { _ = line(ImageStep{Progress: &p}) })
			if err != nil {
				return err
			}
			return line(last)
		})
	}
}

// Registries lists the registries that something was said of.
func (c *Client) Registries(ctx context.Context) (core.RegistriesView, error) {
	return get[core.RegistriesView](ctx, c, pathRegistries, nil)
}

// SetRegistry says how a registry is reached.
func (c *Client) SetRegistry(ctx context.Context, r RegistryChange) error {
	return postDone(ctx, c, pathRegistries, r)
}

// LoginRegistry keeps who asks for images, after the registry has taken it.
func (c *Client) LoginRegistry(ctx context.Context, r RegistryLogin) error {
	return postDone(ctx, c, pathRegistryLogin, r)
}

// LogoutRegistry forgets a login.
func (c *Client) LogoutRegistry(ctx context.Context, prefix string) error {
	return postDone(ctx, c, pathRegistryLogout, Ref{prefix})
}

// NameRegistry adds or takes away a name of the cluster's own registry.
func (c *Client) NameRegistry(ctx context.Context, r RegistryName) error {
	return postDone(ctx, c, pathRegistryName, r)
}

// SetImagePolicy says whose signature images need.
func (c *Client) SetImagePolicy(ctx context.Context, p ImagePolicy) error {
	return postDone(ctx, c, pathImagePolicy, p)
}

// PruneImages removes images that nothing uses.
func (c *Client) PruneImages(ctx context.Context, r ImagePrune) ([]model.Image, error) {
	return post[[]model.Image](ctx, c, pathImagePrune, r)
}

// PullImage gets an image from its registry into the cluster.
func (c *Client) PullImage(ctx context.Context, r ImagePull, tell func(image.Progress)) (ImageStep, error) {
	return follow(ctx, c, pathImagePull, r, tell)
}

// PushImage sends an image of the cluster to a registry.
func (c *Client) PushImage(ctx context.Context, r ImagePush, tell func(image.Progress)) (ImageStep, error) {
	return follow(ctx, c, pathImagePush, r, tell)
}

func follow(ctx context.Context, c *Client, path string, req any, tell func(image.Progress)) (last ImageStep, err error) {
	body, err := json.Marshal(req)
	if err != nil {
		return last, fault.New(fault.Invalid, "encode the request of %s: %w", path, err)
	}
	err = readLinesOf(ctx, c, http.MethodPost, path, nil, bytes.NewReader(body), func(s ImageStep) error {
		if s.Progress != nil {
			tell(*s.Progress)
		} else {
			last = s
		}
		return nil
	})
	if err == nil && last.Name == "" {
		err = fault.New(fault.Unavailable, "the connection to the server broke")
	}
	return last, err
}
