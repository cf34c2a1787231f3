package compose

import (
	"cmp"
	"encoding/json"
	"strconv"
	"strings"
	"time"

	"github.com/compose-spec/compose-go/v2/types"
	"github.com/docker/go-units"

	"github.com/tutti-run/tutti/internal/model"
)

// routeEntry is an entry of x-tutti.routes; its short form is HOST or HOST/PATH.
type routeEntry struct {
	Host        string            `json:"host"`
	Path        string            `json:"path"`
	Exact       bool              `json:"exact"`
	Headers     map[string]string `json:"headers"`
	Target      int               `json:"target"`
	Protocol    string            `json:"protocol"`
	Weight      int               `json:"weight"`
	Certificate string            `json:"certificate"`
	Insecure    bool              `json:"insecure"`
	StripPath   bool              `json:"strip_path"`
	Sticky      bool              `json:"sticky"`
	Timeout     string            `json:"timeout"`
	Wait        string            `json:"wait"`
	Retries     *int              `json:"retries"`

	TLS  string `json:"tls"`
	ACME *struct {
		Server    string `json:"server"`
		Email     string `json:"email"`
		Authority string `json:"authority"`
	} `json:"acme"`
	BasicAuth      string `json:"basic_auth"`
	Redirect       string `json:"redirect"`
	RedirectStatus int    `json:"redirect_status"`
	RateLimit      *struct {
		Requests int    `json:"requests"`
		Per      string `json:"per"`
		Burst    int    `json:"burst"`
	} `json:"rate_limit"`
	ProxyProtocol int    `json:"proxy_protocol"`
	AccessLog     bool   `json:"access_log"`
	MaxBody       string `json:"max_body"`
	MaxRequests   int64  `json:"max_requests"`
}

func (e *routeEntry) UnmarshalJSON(data []byte) error {
	type plain routeEntry
	var one string
	if !short(data, &one) {
		return json.Unmarshal(data, (*plain)(e))
	}
	var path string
	if e.Host, path, _ = strings.Cut(one, "/"); path != "" {
		e.Path = "/" + path
	}
	return nil
}

// routeSecretsOf are the secrets that a service's routes name, as far as they can be read.
func routeSecretsOf(s *types.ServiceConfig) (out []string) {
	raw, err := json.Marshal(s.Extensions[tuttiKey])
	var x struct {
		Routes []routeEntry `json:"routes"`
	}
	if err != nil || json.Unmarshal(raw, &x) != nil {
		return nil // which readExtras says
	}
	for _, r := range x.Routes {
		for _, secret := range []string{r.Certificate, r.BasicAuth} {
			if secret != "" {
				out = append(out, secret)
			}
		}
	}
	return out
}

// extraRoutes reads which requests of HTTP reach the service; ports has read its ports.
func (o *one) extraRoutes(x *extras) {
	const key = tuttiKey + ".routes"
	for _, e := range x.Routes {
		if !o.isService() {
			o.invalid(key, "requests need a network on which the service can be reached")
			return
		}
		r := model.Route{
			Host: strings.ToLower(e.Host), Path: e.Path, Exact: e.Exact, Headers: e.Headers, Target: o.routeTarget(e.Target), Protocol: e.Protocol,
			Weight: e.Weight, Insecure: e.Insecure, StripPath: e.StripPath, Sticky: e.Sticky, Timeout: o.duration("routes.timeout", e.Timeout), Wait: o.duration("routes.wait", e.Wait), Retries: e.Retries,
		}
		if !o.routeSecret(e.Certificate, "certificate", &r.Certificate) || !o.routeSecret(e.BasicAuth, "basic_auth", &r.BasicAuth) {
			continue
		}
		o.routeLimits(&e, &r)
		if e.Redirect != "" && e.Target == 0 {
			r.Target = 0
		} else if r.Target == 0 {
			o.invalid(key, "route %s%s: target is the port inside the service's containers; it can be left out where ports or expose has a single one", e.Host, e.Path)
			continue
		}
		if err := r.Check(); err != nil {
			o.invalid(key, "route %s%s: %v", e.Host, e.Path, err)
			continue
		}
		o.svc.Routes = append(o.svc.Routes, r)
	}
}

// routeSecret finds one that a route names; ok is false when there is none of that name.
func (o *one) routeSecret(name, key string, ref *string) (ok bool) {
	if name == "" {
		return true
	}
	where := o.sub(tuttiKey + ".routes")
	*ref, ok = o.ref("secrets", name, o.src.item(where, name), where+"."+key)
	return ok
}

// routeLimits reads what a route says of certificates, redirects and limits.
func (o *one) routeLimits(e *routeEntry, r *model.Route) {
	r.Issuer, r.Redirect, r.RedirectStatus, r.MaxRequests = model.Issuer(e.TLS), e.Redirect, e.RedirectStatus, e.MaxRequests
	r.ProxyProtocol, r.AccessLog = e.ProxyProtocol, e.AccessLog
	if e.ACME != nil {
		r.ACME = &model.ACME{Server: e.ACME.Server, Email: e.ACME.Email, Authority: e.ACME.Authority}
	}
	if l := e.RateLimit; l != nil {
		r.Rate = &model.RateLimit{Requests: l.Requests, Per: cmp.Or(o.duration("routes.rate_limit.per", l.Per), time.Second), Burst: cmp.Or(l.Burst, l.Requests)}
	}
	if e.MaxBody != "" {
		n, err := units.RAMInBytes(e.MaxBody)
		if err != nil || n < 1 {
			o.invalid(tuttiKey+".routes.max_body", "%q is not a size such as 10m", e.MaxBody)
		}
		r.MaxBody = n
	}
}

// routeTarget is the port that a route leads to: what it says, or the only one that the service has.
func (o *one) routeTarget(said int) int {
	if said != 0 {
		return said
	}
	targets := map[int]bool{}
	for _, p := range o.svc.Ports {
		if p.Protocol == "tcp" {
			targets[p.Target] = true
		}
	}
	for _, e := range o.Expose {
		if n, err := strconv.Atoi(strings.TrimSuffix(e, "/tcp")); err == nil {
			targets[n] = true
		}
	}
	if len(targets) == 1 {
		for n := range targets {
			return n
		}
	}
	return 0
}
