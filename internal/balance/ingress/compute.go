package ingress

import (
	"cmp"
	"encoding/json"
	"maps"
	"net/netip"
	"slices"
	"time"

	"github.com/tutti-run/tutti/internal/model"
	"github.com/tutti-run/tutti/internal/wire"
)

// Config is what an ingress does: its agent writes it, and the process reads it.
type Config struct {
	Routes []Route `json:"routes"`
	// Certificates are certificates with their keys, in PEM.
	Certificates []string `json:"certificates,omitempty"`
	// Challenges are what servers of ACME want to hear, by token.
	Challenges map[string]string `json:"challenges,omitempty"`
	// Proxies are where load balancers are that begin each connection by the PROXY protocol, as ranges of addresses.
	Proxies []netip.Prefix `json:"proxies,omitempty"`
	// Logs is the directory of the access log; "": no route has one.
	Logs string `json:"logs,omitempty"`
}

// Route leads requests to the instances of one service.
type Route struct {
	Host      string            `json:"host"`
	Path      string            `json:"path"`
	Exact     bool              `json:"exact,omitempty"`
	Headers   map[string]string `json:"headers,omitempty"`
	Service   string            `json:"service"` // full name, for metrics
	ServiceID string            `json:"serviceID"`
	Protocol  string            `json:"protocol,omitempty"`
	Weight    int               `json:"weight"`
	Secure    bool              `json:"secure,omitempty"`   // there is a certificate
	Insecure  bool              `json:"insecure,omitempty"` // port 80 answers, too
	StripPath bool              `json:"stripPath,omitempty"`
	Sticky    bool              `json:"sticky,omitempty"`
	Timeout   time.Duration     `json:"timeout"`
	Wait      time.Duration     `json:"wait,omitempty"` // for an instance, while there is none
	Retries   int               `json:"retries"`

	Redirect       string  `json:"redirect,omitempty"` // see model.Route
	RedirectStatus int     `json:"redirectStatus,omitempty"`
	Protected      bool    `json:"protected,omitempty"` // by Users, lines of name:hash; without any nobody gets in
	Users          string  `json:"users,omitempty"`
	Rate           float64 `json:"rate,omitempty"` // requests a second of one client
	Burst          float64 `json:"burst,omitempty"`
	ProxyProtocol  int     `json:"proxyProtocol,omitempty"` // its version
	AccessLog      bool    `json:"accessLog,omitempty"`
	MaxBody        int64   `json:"maxBody,omitempty"`     // bytes
	MaxRequests    int64   `json:"maxRequests,omitempty"` // at a time

	Backends []Backend `json:"backends"`
}

// Backend is where an instance answers.
type Backend struct {
	Instance string `json:"instance"`
	Address  string `json:"address"` // host:port
}

const (
	defaultTimeout = time.Minute
	defaultRetries = 2
)

// Compute says what a node's ingress does. It is pure, and its output is in a fixed order.
func Compute(n *wire.Network, nodeID string) *Config {
	c := &Config{}
	certificates := map[string]bool{}
	for i := range n.Services {
		s := &n.Services[i]
		for _, r := range s.Routes {
			route := Route{
				Host: r.Host, Path: r.Path, Exact: r.Exact, Headers: r.Headers, Service: s.Name, ServiceID: s.ID, Wait: r.Wait, Protocol: r.Protocol, Weight: max(1, r.Weight),
				Insecure: r.Insecure, StripPath: r.StripPath, Sticky: r.Sticky, Timeout: cmp.Or(r.Timeout, defaultTimeout), Retries: defaultRetries,
			}
			if s.Application != "" {
				route.Service = s.Application + "/" + s.Name
			}
			if r.Retries != nil {
				route.Retries = *r.Retries
			}
			if r.Secure() {
				// Until one that is to be issued is there, port 80 answers.
				pem := s.Secrets[r.CertificateSecret(s.Namespace)]
				if route.Secure = r.Certificate != "" || len(pem) > 0; len(pem) > 0 {
					certificates[string(pem)] = true
				}
			}
			if data := s.Secrets[r.ChallengeSecret(s.Namespace)]; len(data) > 0 {
				var said map[string]string
				if json.Unmarshal(data, &said) == nil { // which the leader wrote
					if c.Challenges == nil {
						c.Challenges = map[string]string{}
					}
					maps.Copy(c.Challenges, said)
				}
			}
			route.ProxyProtocol, route.AccessLog = r.ProxyProtocol, r.AccessLog
			route.Redirect, route.RedirectStatus, route.MaxBody, route.MaxRequests = r.Redirect, r.RedirectStatus, r.MaxBody, r.MaxRequests
			if route.Protected = r.BasicAuth != ""; route.Protected {
				route.Users = string(s.Secrets[r.BasicAuth])
			}
			if r.Rate != nil {
				route.Rate, route.Burst = float64(r.Rate.Requests)/r.Rate.Per.Seconds(), float64(r.Rate.Burst)
			}
			route.Backends = backends(s, nodeID, r.Target)
			c.Routes = append(c.Routes, route)
		}
	}
	c.Certificates = slices.Sorted(maps.Keys(certificates))
	return c
}

// backends are the endpoints of a service on their first network, at a target of it or where they have that; those of this
// node alone where the service prefers them, and there are any.
func backends(s *wire.NetworkService, nodeID string, port int) []Backend {
	var all, near []Backend
	named := slices.IndexFunc(s.Ports, func(p model.ServicePort) bool { return p.Target == port })
	for i := range s.Endpoints {
		e, port := &s.Endpoints[i], port
		if named >= 0 {
			port = s.Ports[named].TargetOf(e.Targets)
		}
		if port == 0 {
			continue
		}
		at := slices.IndexFunc(e.Addresses, func(a model.Address) bool { return !slices.Contains(s.OnHosts, a.Network) })
		if at < 0 {
			continue
		}
		ip, err := netip.ParseAddr(e.Addresses[at].IP)
		if err != nil {
			continue
		}
		b := Backend{Instance: e.Instance, Address: netip.AddrPortFrom(ip, uint16(port)).String()}
		all = append(all, b)
		if s.Balance.Local != "" && e.NodeID == nodeID {
			near = append(near, b)
		}
	}
	if len(near) > 0 || s.Balance.Local == model.LocalOnly {
		return near
	}
	return all
}
