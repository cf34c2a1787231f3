package model

import (
	"maps"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/tutti-run/tutti/internal/fault"
)

// Route leads requests of HTTP that come to any node's ports 80 and 443 to a port of a service's ready
// instances. Of several that match a request the most particular one counts: by host, then by path,
// then by the number of headers; of those that match alike, each as often as its weight says.
type Route struct {
	// Host is a name, "*.example.com" for those one level below, or "" for any.
	Host string `json:"host,omitempty"`
	// Path is the beginning of the path, by whole parts; or, with Exact, all of it.
	Path  string `json:"path,omitempty"`
	Exact bool   `json:"exact,omitempty"`
	// Headers must have these values.
	Headers map[string]string `json:"headers,omitempty"`
	Target  int               `json:"target"` // port inside the instance
	// Protocol is what instances speak: "http", or "h2c", which is HTTP/2 without TLS, as gRPC has it.
	Protocol string `json:"protocol,omitempty"`
	Weight   int    `json:"weight,omitempty"` // 0 counts as 1
	// Certificate is the secret with the certificate of the host and its key, in PEM; "" for none: then
	// the host is spoken with on port 80 alone.
	Certificate string `json:"certificate,omitempty"`
	// Insecure answers on port 80 too, where there is a certificate; otherwise requests there are sent
	// on to port 443.
	Insecure bool `json:"insecure,omitempty"`
	// StripPath takes Path away before a request is passed on.
	StripPath bool `json:"stripPath,omitempty"`
	// Sticky leads a client to the same instance as before, by a cookie.
	Sticky bool `json:"sticky,omitempty"`
	// Timeout is how long an instance may take to begin its answer; 0: a minute.
	Timeout time.Duration `json:"timeout,omitempty"`
	// Wait is how long a request waits while no instance is ready; 0: not at all.
	Wait time.Duration `json:"wait,omitempty"`
	// Retries is how often a request that surely had no effect is tried with another instance; nil: twice.
	Retries *int `json:"retries,omitempty"`
}

// Check says what is wrong with a route.
func (r *Route) Check() error {
	host := strings.TrimPrefix(r.Host, "*.")
	if r.Host != "" && !isHostName(host) {
		return fault.New(fault.Invalid, "host %q is not a name such as www.example.com or *.example.com", r.Host)
	}
	switch {
	case r.Path != "" && (!strings.HasPrefix(r.Path, "/") || strings.ContainsAny(r.Path, "?#")):
		return fault.New(fault.Invalid, "path %q does not begin with a slash, or has more than a path", r.Path)
	case r.Target < 1 || r.Target > 65535:
		return fault.New(fault.Invalid, "target %d is not a port between 1 and 65535", r.Target)
	case r.Protocol != "" && r.Protocol != "http" && r.Protocol != "h2c":
		return fault.New(fault.Invalid, "protocol %q is neither http nor h2c", r.Protocol)
	case r.Weight < 0 || r.Weight > 1000:
		return fault.New(fault.Invalid, "weight %d is not between 1 and 1000", r.Weight)
	case r.Certificate != "" && r.Host == "":
		return fault.New(fault.Invalid, "a certificate needs a host")
	case r.StripPath && r.Exact:
		return fault.New(fault.Invalid, "of an exact path nothing would be left to pass on")
	case r.Timeout < 0:
		return fault.New(fault.Invalid, "timeout %s is negative", r.Timeout)
	case r.Wait < 0 || r.Wait > time.Hour:
		return fault.New(fault.Invalid, "wait %s is not between 0 and an hour", r.Wait)
	case r.Retries != nil && (*r.Retries < 0 || *r.Retries > 10):
		return fault.New(fault.Invalid, "retries %d is not between 0 and 10", *r.Retries)
	}
	return nil
}

func isHostName(s string) bool {
	if _, err := netip.ParseAddr(s); err == nil || len(s) > 253 {
		return false
	}
	for _, label := range strings.Split(s, ".") {
		if label == "" || len(label) > 63 || strings.Trim(label, "abcdefghijklmnopqrstuvwxyz0123456789-") != "" {
			return false
		}
	}
	return true
}

func (r Route) clone() Route {
	r.Headers = maps.Clone(r.Headers)
	r.Retries = clonePointer(r.Retries)
	return r
}

func cloneRoutes(list []Route) []Route {
	out := slices.Clone(list)
	for i := range out {
		out[i] = out[i].clone()
	}
	return out
}
