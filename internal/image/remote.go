package image

import (
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/containerd/containerd/v2/core/remotes"
	"github.com/containerd/containerd/v2/core/remotes/docker"
	"github.com/distribution/reference"

	"github.com/tutti-run/tutti/internal/fault"
)

// Endpoint is a place from which images of a registry come: one of its mirrors, or the registry itself.
type Endpoint struct {
	URL string `json:"url"` // such as https://mirror.example.com/prefix
	Credentials
	CA     []byte `json:"ca,omitempty"`     // PEM; believed besides the host's authorities
	Mirror bool   `json:"mirror,omitempty"` // has content and tags, and nothing is pushed to it
}

// Wanted is what a registry is asked for.
type Wanted struct {
	Name   string `json:"name"`             // normalized
	Digest string `json:"digest,omitempty"` // of the image, where it is known
}

// Reach says where an image comes from: mirrors first, the registry last; nil is the registry alone, without
// a login.
type Reach func(ctx context.Context, w Wanted) ([]Endpoint, error)

// Host is the registry's host in a normalized name.
func Host(name string) string {
	host, _, _ := strings.Cut(name, "/")
	return host
}

// DefaultEndpoint is the registry of a host as it is reached unless something else was said: over HTTPS, and
// on the host itself without TLS.
func DefaultEndpoint(host string, plain bool) Endpoint {
	if host == "docker.io" || host == "index.docker.io" {
		host = "registry-1.docker.io"
	}
	scheme := "https"
	if plain || onThisHost(host) {
		scheme = "http"
	}
	return Endpoint{URL: scheme + "://" + host}
}

func onThisHost(host string) bool {
	if name, _, err := net.SplitHostPort(host); err == nil {
		host = name
	}
	return host == "localhost" || net.ParseIP(host).IsLoopback()
}

// endpoints are where an image comes from; as, unless it is empty, says who asks the registry itself.
func (s *Store) endpoints(ctx context.Context, w Wanted, as Credentials) ([]Endpoint, error) {
	var out []Endpoint
	if s.Reach != nil {
		var err error
		if out, err = s.Reach(ctx, w); err != nil {
			return nil, err
		}
	}
	if len(out) == 0 {
		out = []Endpoint{DefaultEndpoint(Host(w.Name), false)}
	}
	if as != (Credentials{}) {
		out = slices.Clone(out)
		for i := range out {
			if !out[i].Mirror {
				out[i].Credentials = as
			}
		}
	}
	return out, nil
}

func clientOf(e Endpoint) (*http.Client, error) {
	t := &http.Transport{
		Proxy: http.ProxyFromEnvironment, DialContext: (&net.Dialer{Timeout: 10 * time.Second, KeepAlive: 30 * time.Second}).DialContext,
		TLSHandshakeTimeout: 10 * time.Second, ResponseHeaderTimeout: time.Minute, IdleConnTimeout: 30 * time.Second, MaxIdleConnsPerHost: 8,
	}
	if len(e.CA) > 0 {
		pool, err := x509.SystemCertPool()
		if err != nil {
			pool = x509.NewCertPool()
		}
		if !pool.AppendCertsFromPEM(e.CA) {
			return nil, fault.New(fault.Invalid, "the authority of registry %s is no certificate in PEM", e.URL)
		}
		t.TLSClientConfig = &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS12}
	}
	return &http.Client{Transport: t}, nil
}

// CheckCA refuses what are no certificates in PEM.
func CheckCA(text []byte) error {
	if !x509.NewCertPool().AppendCertsFromPEM(text) {
		return fault.New(fault.Invalid, "the authority is no certificate in PEM (-----BEGIN CERTIFICATE-----)")
	}
	return nil
}

// registryHosts are endpoints in the words of the library.
func registryHosts(endpoints []Endpoint) ([]docker.RegistryHost, func(), error) {
	var out []docker.RegistryHost
	var clients []*http.Client
	for _, e := range endpoints {
		u, err := url.Parse(e.URL)
		if err != nil || u.Host == "" || u.Scheme != "https" && u.Scheme != "http" {
			return nil, nil, fault.New(fault.Invalid, "registry %q is no address of one: https://HOST", e.URL)
		}
		client, err := clientOf(e)
		if err != nil {
			return nil, nil, err
		}
		clients = append(clients, client)
		can := docker.HostCapabilityPull | docker.HostCapabilityResolve
		if !e.Mirror {
			can |= docker.HostCapabilityPush
		}
		out = append(out, docker.RegistryHost{
			Client: client, Authorizer: e.authorizer(client), Host: u.Host, Scheme: u.Scheme,
			Path: strings.TrimSuffix(u.Path, "/") + "/v2", Capabilities: can,
		})
	}
	return out, func() {
		for _, c := range clients {
			c.CloseIdleConnections()
		}
	}, nil
}

// resolver speaks with an image's registry. The end lets go of its connections.
func (s *Store) resolver(ctx context.Context, w Wanted, as Credentials) (r remotes.Resolver, end func(), err error) {
	endpoints, err := s.endpoints(ctx, w, as)
	if err != nil {
		return nil, nil, err
	}
	hosts, end, err := registryHosts(endpoints)
	if err != nil {
		return nil, nil, err
	}
	return docker.NewResolver(docker.ResolverOptions{Hosts: func(string) ([]docker.RegistryHost, error) { return hosts, nil }}), end, nil
}

// Credentials are what a registry is told of who asks.
type Credentials struct {
	User          string `json:"user,omitempty"`
	Password      string `json:"password,omitempty"`
	IdentityToken string `json:"identityToken,omitempty"`
}

func (c Credentials) authorizer(client *http.Client) docker.Authorizer {
	return docker.NewDockerAuthorizer(docker.WithAuthClient(client), docker.WithAuthCreds(func(string) (string, string, error) {
		if c.IdentityToken != "" {
			return "", c.IdentityToken, nil
		}
		return c.User, c.Password, nil
	}))
}

// Login asks a registry whether it takes somebody's word.
func Login(ctx context.Context, e Endpoint) error {
	client, err := clientOf(e)
	if err != nil {
		return err
	}
	defer client.CloseIdleConnections()
	authorizer := e.authorizer(client)
	for attempt := 0; ; attempt++ {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, strings.TrimSuffix(e.URL, "/")+"/v2/", nil)
		if err != nil {
			return fault.New(fault.Invalid, "registry %q: %w", e.URL, err)
		}
		if attempt > 0 {
			if err := authorizer.Authorize(ctx, req); err != nil {
				return fault.New(fault.Forbidden, "log in at %s: unauthorized: %w", e.URL, rootCause(err))
			}
		}
		resp, err := client.Do(req)
		if err != nil {
			return fault.New(fault.Unavailable, "log in at %s: %w", e.URL, err)
		}
		resp.Body.Close()
		switch {
		case resp.StatusCode == http.StatusOK:
			return nil
		case resp.StatusCode != http.StatusUnauthorized || attempt > 0:
			return fault.New(fault.Forbidden, "log in at %s: unauthorized: it answers %s", e.URL, resp.Status)
		}
		if err := authorizer.AddResponses(ctx, []*http.Response{resp}); err != nil {
			return fault.New(fault.Forbidden, "log in at %s: %w", e.URL, err)
		}
	}
}

// ServerHost is the host of a registry as people and their tools name it, which may be with a scheme and a path.
func ServerHost(server string) string {
	server = strings.TrimPrefix(strings.TrimPrefix(server, "https://"), "http://")
	host, _, _ := strings.Cut(server, "/")
	if host == "index.docker.io" || host == "registry-1.docker.io" {
		host = "docker.io"
	}
	return cmp.Or(host, "docker.io")
}

// repositoryOf is a normalized name without its tag and digest.
func repositoryOf(name string) (reference.Named, error) {
	n, err := reference.ParseNormalizedNamed(name)
	if err != nil {
		return nil, fault.New(fault.Invalid, "image reference %q: %w", name, err)
	}
	return reference.TrimNamed(n), nil
}
