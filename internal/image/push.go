package image

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"strings"

	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/remotes"
	"github.com/containerd/containerd/v2/core/remotes/docker"
	"github.com/containerd/platforms"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/tutti-run/tutti/internal/fault"
)

// Credentials are what a registry is told of who asks.
type Credentials struct {
	User, Password string
	IdentityToken  string
}

func (c Credentials) authorizer() docker.Authorizer {
	return docker.NewDockerAuthorizer(docker.WithAuthCreds(func(string) (string, string, error) {
		if c.IdentityToken != "" {
			return "", c.IdentityToken, nil
		}
		return c.User, c.Password, nil
	}))
}

// Push sends an image to the registry that its name names: of several platforms, what this node has. It
// returns what the registry has then.
func (s *Store) Push(ctx context.Context, name, imageDigest string, c Credentials, progress func(Progress)) (ocispec.Descriptor, error) {
	if _, err := s.Ensure(ctx, name, imageDigest, progress); err != nil {
		return ocispec.Descriptor{}, err
	}
	defer s.take(ctx)()
	ctx = scoped(ctx)
	target, err := s.describe(ctx, digest.Digest(imageDigest))
	if err != nil {
		return target, err
	}
	if images.IsIndexType(target.MediaType) {
		children, err := images.FilterPlatforms(images.ChildrenHandler(s.content), platforms.Default())(ctx, target)
		if err != nil {
			return target, err
		}
		if len(children) == 0 {
			return target, fault.New(fault.NotFound, "image %s has nothing for this platform", name)
		}
		target = children[0]
	}
	pusher, err := docker.NewResolver(docker.ResolverOptions{Hosts: docker.ConfigureDefaultRegistries(docker.WithAuthorizer(c.authorizer()), docker.WithPlainHTTP(docker.MatchLocalhost))}).Pusher(ctx, name)
	if err != nil {
		return target, fault.New(fault.Invalid, "push image %s: %w", name, err)
	}
	told := func(h images.Handler) images.Handler {
		return images.HandlerFunc(func(ctx context.Context, d ocispec.Descriptor) ([]ocispec.Descriptor, error) {
			children, err := h.Handle(ctx, d)
			if err == nil {
				progress(Progress{Blob: d.Digest.String(), Bytes: d.Size})
			}
			return children, err
		})
	}
	if err := remotes.PushContent(ctx, pusher, target, s.content, nil, platforms.Default(), told); err != nil {
		return target, fault.New(fault.Unavailable, "push image %s: %w", name, err)
	}
	return target, nil
}

// Login asks a registry whether it takes somebody's word.
func Login(ctx context.Context, server string, c Credentials) error {
	host := strings.TrimPrefix(strings.TrimPrefix(server, "https://"), "http://")
	host, _, _ = strings.Cut(host, "/")
	if host == "index.docker.io" {
		host = "registry-1.docker.io"
	}
	scheme := "https"
	if name, _, err := net.SplitHostPort(host); err == nil || host == "localhost" {
		if ip := net.ParseIP(name); name == "localhost" || host == "localhost" || ip.IsLoopback() {
			scheme = "http"
		}
	}
	authorizer := c.authorizer()
	for attempt := 0; ; attempt++ {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, scheme+"://"+host+"/v2/", nil)
		if err != nil {
			return fault.New(fault.Invalid, "registry %q: %w", server, err)
		}
		if attempt > 0 {
			if err := authorizer.Authorize(ctx, req); err != nil {
				return fault.New(fault.Forbidden, "log in at %s: %w", server, err)
			}
		}
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			return fault.New(fault.Unavailable, "log in at %s: %w", server, err)
		}
		resp.Body.Close()
		switch {
		case resp.StatusCode == http.StatusOK:
			return nil
		case resp.StatusCode != http.StatusUnauthorized || attempt > 0:
			return fault.New(fault.Forbidden, "log in at %s: unauthorized: it answers %s", server, resp.Status)
		}
		if err := authorizer.AddResponses(ctx, []*http.Response{resp}); err != nil {
			return fmt.Errorf("log in at %s: %w", server, err)
		}
	}
}
