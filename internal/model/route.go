package model

import (
	"cmp"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"fmt"
	"maps"
	"net/netip"
	"net/url"
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
	// Issuer has a certificate made and kept fresh, in place of one that is given: the cluster's own authority,
	// or one that is asked by ACME.
	Issuer Issuer `json:"issuer,omitempty"`
	ACME   *ACME  `json:"acme,omitempty"`
	// BasicAuth is the secret with those who may ask, as lines of name:hash, with hashes of bcrypt.
	BasicAuth string `json:"basicAuth,omitempty"`
	// Redirect is where clients are sent in place of an instance: a URL in which {host}, {path} and {rest}, what
	// follows Path, stand for the request's; the last two with its query. RedirectStatus is 0 for 308.
	Redirect       string     `json:"redirect,omitempty"`
	RedirectStatus int        `json:"redirectStatus,omitempty"`
	Rate           *RateLimit `json:"rate,omitempty"`
	// ProxyProtocol, 1 or 2, begins each connection to an instance with the client's address.
	ProxyProtocol int `json:"proxyProtocol,omitempty"`
	// AccessLog has hosts write a line of each request that they answered.
	AccessLog   bool  `json:"accessLog,omitempty"`
	MaxBody     int64 `json:"maxBody,omitempty"`     // bytes of a request's body; 0: any
	MaxRequests int64 `json:"maxRequests,omitempty"` // at a time on each host; 0: any
}

// Issuer makes certificates.
type Issuer string

// Those that there are.
const (
	IssuerCluster Issuer = "cluster"
	IssuerACME    Issuer = "acme"
)

// ACME says whom to ask for certificates.
type ACME struct {
	// Server is the URL of its directory; "": Let's Encrypt's.
	Server string `json:"server,omitempty"`
	Email  string `json:"email,omitempty"`
	// Authority is what to believe the server by, in PEM; "": what the system believes.
	Authority string `json:"authority,omitempty"`
}

// ACMEServer is asked where nothing else is said.
const ACMEServer = "https://acme-v02.api.letsencrypt.org/directory"

// RateLimit bounds the requests of one client, on each host.
type RateLimit struct {
	Requests int           `json:"requests"`
	Per      time.Duration `json:"per"`
	Burst    int           `json:"burst"` // how many may come at once
}

// Secure reports whether the route has, or will have, a certificate.
func (r *Route) Secure() bool { return r.Certificate != "" || r.Issuer != "" }

// The secrets that are made for a route's certificate have IDs that follow from whose it is.
func (r *Route) issued(what, namespace string) string {
	h := sha256.New()
	for _, part := range []string{namespace, r.Host, string(r.Issuer), r.server()} {
		fmt.Fprintf(h, "%d %s", len(part), part)
	}
	return what + "-" + hex.EncodeToString(h.Sum(nil)[:12])
}

func (r *Route) server() string {
	if r.ACME == nil {
		return ""
	}
	return r.ACME.Server
}

// CertificateSecret is the ID of the secret with the route's certificate; "": it has none.
func (r *Route) CertificateSecret(namespace string) string {
	if r.Issuer != "" {
		return r.issued("routetls", namespace)
	}
	return r.Certificate
}

// ChallengeSecret is the ID of the secret with what an ACME server wants to hear; "": nobody asks one.
func (r *Route) ChallengeSecret(namespace string) string {
	if r.Issuer != IssuerACME {
		return ""
	}
	return r.issued("routeacme", namespace)
}

// Secrets are the IDs of all that hosts need for the route.
func (r *Route) Secrets(namespace string) []string {
	all := []string{r.CertificateSecret(namespace), r.ChallengeSecret(namespace), r.BasicAuth}
	return slices.DeleteFunc(all, func(id string) bool { return id == "" })
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
	case (r.Target < 1 || r.Target > 65535) && (r.Redirect == "" || r.Target != 0):
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
	case r.ProxyProtocol < 0 || r.ProxyProtocol > 2:
		return fault.New(fault.Invalid, "proxy_protocol is 1 or 2")
	case r.ProxyProtocol != 0 && r.Protocol == "h2c":
		return fault.New(fault.Invalid, "by HTTP/2 a connection has the requests of many clients, which the PROXY protocol cannot say")
	case r.MaxBody < 0 || r.MaxRequests < 0:
		return fault.New(fault.Invalid, "a limit is a number above 0")
	}
	return cmp.Or(r.checkIssuer(), r.checkRedirect(), r.Rate.check())
}

func (r *Route) checkIssuer() error {
	switch {
	case r.Issuer != "" && r.Issuer != IssuerCluster && r.Issuer != IssuerACME:
		return fault.New(fault.Invalid, "tls %q is neither cluster nor acme; a certificate of your own is named by certificate", r.Issuer)
	case r.Issuer != "" && r.Certificate != "":
		return fault.New(fault.Invalid, "a route has a certificate that is given or one that is issued, not both")
	case r.Issuer != "" && r.Host == "":
		return fault.New(fault.Invalid, "a certificate needs a host")
	case r.ACME != nil && r.Issuer != IssuerACME:
		return fault.New(fault.Invalid, "acme has a meaning with tls: acme only")
	case r.Issuer == IssuerACME && strings.HasPrefix(r.Host, "*."):
		return fault.New(fault.Invalid, "%s: ACME certifies such names by DNS only, which is not built: name each host, or give a certificate", r.Host)
	case r.ACME == nil:
		return nil
	}
	if u, err := url.Parse(r.ACME.Server); r.ACME.Server != "" && (err != nil || u.Scheme != "https" || u.Host == "") {
		return fault.New(fault.Invalid, "acme server %q is not the https URL of a directory", r.ACME.Server)
	}
	if e := r.ACME.Email; e != "" && (!strings.Contains(e, "@") || strings.ContainsAny(e, " \t\r\n,;?")) {
		return fault.New(fault.Invalid, "acme email %q is not one address", e)
	}
	if a := r.ACME.Authority; a != "" && !x509.NewCertPool().AppendCertsFromPEM([]byte(a)) {
		return fault.New(fault.Invalid, "acme authority has no certificate in PEM")
	}
	return nil
}

func (r *Route) checkRedirect() error {
	if r.Redirect == "" {
		if r.RedirectStatus != 0 {
			return fault.New(fault.Invalid, "a status of redirects has a meaning with redirect only")
		}
		return nil
	}
	plain := strings.NewReplacer("{host}", "host", "{path}", "/path", "{rest}", "/rest").Replace(r.Redirect)
	u, err := url.Parse(plain)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" || strings.ContainsAny(plain, "{} \r\n") {
		return fault.New(fault.Invalid, "redirect %q is not a URL such as https://www.example.com{path}, with {host}, {path} and {rest}", r.Redirect)
	}
	switch r.RedirectStatus {
	case 0, 301, 302, 303, 307, 308:
		return nil
	}
	return fault.New(fault.Invalid, "status %d of a redirect is none of 301, 302, 303, 307 and 308", r.RedirectStatus)
}

func (l *RateLimit) check() error {
	if l != nil && (l.Requests < 1 || l.Per <= 0 || l.Burst < 1) {
		return fault.New(fault.Invalid, "a rate limit of %d requests per %s, %d at once, lets nothing through", l.Requests, l.Per, l.Burst)
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
	r.Retries, r.ACME, r.Rate = clonePointer(r.Retries), clonePointer(r.ACME), clonePointer(r.Rate)
	return r
}

func cloneRoutes(list []Route) []Route {
	out := slices.Clone(list)
	for i := range out {
		out[i] = out[i].clone()
	}
	return out
}
