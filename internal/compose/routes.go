package compose

import (
	"encoding/json"
	"strconv"
	"strings"

	"github.com/compose-spec/compose-go/v2/types"

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

// certificatesOf are the secrets that a service's routes name, as far as they can be read.
func certificatesOf(s *types.ServiceConfig) (out []string) {
	raw, err := json.Marshal(s.Extensions[tuttiKey])
	var x struct {
		Routes []routeEntry `json:"routes"`
	}
	if err != nil || json.Unmarshal(raw, &x) != nil {
		return nil // which readExtras says
	}
	for _, r := range x.Routes {
		if r.Certificate != "" {
			out = append(out, r.Certificate)
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
		if e.Certificate != "" {
			ref, ok := o.ref("secrets", e.Certificate, o.src.item(o.sub(key), e.Certificate), o.sub(key)+".certificate")
			if !ok {
				continue
			}
			r.Certificate = ref
		}
		if r.Target == 0 {
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
