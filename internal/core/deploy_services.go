package core

import (
	"crypto/tls"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"golang.org/x/crypto/bcrypt"

	"github.com/tutti-run/tutti/internal/fault"
	"github.com/tutti-run/tutti/internal/model"
	"github.com/tutti-run/tutti/internal/store"
)

func (p *planner) services() error {
	for _, s := range p.d.Services {
		s = s.Clone()
		where := "service " + s.Name
		var err error
		switch {
		case !s.Direct:
			if s.WorkloadID, err = resolve[*model.Workload](p, model.KindWorkload, s.WorkloadID, where); err != nil {
				return err
			}
		default:
			if err := checkDirect(s); err != nil {
				return err
			}
		}
		for i := range s.Networks {
			if s.Networks[i], err = resolve[*model.Network](p, model.KindNetwork, s.Networks[i], where); err != nil {
				return err
			}
		}
		aliases := map[string][]string{}
		for ref, names := range s.Aliases {
			id, err := resolve[*model.Network](p, model.KindNetwork, ref, where)
			if err != nil {
				return err
			}
			aliases[id] = names
		}
		s.Aliases = aliases
		if err := p.ledTo(s); err != nil {
			return err
		}
		if err := p.portsFree(s); err != nil {
			return err
		}
		if err := p.routes(s); err != nil {
			return err
		}
		if err := settle(p, s, func(*model.Service) {}); err != nil {
			return err
		}
	}
	return nil
}

// ledTo refuses what leads to a service's instances through nodes, where they are on networks of hosts alone.
func (p *planner) ledTo(s *model.Service) error {
	var where string
	for _, id := range s.Networks {
		n := p.networkOf(id)
		if n == nil || n.Underlay == nil {
			return nil
		}
		where = fmt.Sprintf("network %s, of the driver %s", n.Name, n.Driver)
	}
	switch {
	case where == "":
		return nil
	case len(s.Routes) > 0:
		return fault.New(fault.Unsupported, "service %s: routes do not lead to instances that are on %s, alone; attach it to another network as well", s.Name, where)
	case s.Direct:
		return fault.New(fault.Unsupported, "service %s: a direct service needs another network than %s", s.Name, where)
	}
	for _, port := range s.Ports {
		if port.Published != 0 {
			return fault.New(fault.Unsupported, "service %s: port %d is not published from instances that are on %s, alone: they are reached there at their own addresses; leave it out, or attach the service to another network as well", s.Name, port.Published, where)
		}
	}
	return nil
}

// checkDirect refuses a direct service that cannot be led.
func checkDirect(s *model.Service) error {
	if s.WorkloadID != "" {
		return fault.New(fault.Invalid, "service %s: a direct service leads to addresses, not to workload %s", s.Name, s.WorkloadID)
	}
	for _, b := range s.Backends {
		if _, err := netip.ParseAddr(b.Address); err != nil {
			return fault.New(fault.Invalid, "service %s: backend %q is not an IP address", s.Name, b.Address)
		}
	}
	if strings.ContainsAny(s.ExternalName, " \t\r\n/:") {
		return fault.New(fault.Invalid, "service %s: external name %q is not a name such as db.example.com", s.Name, s.ExternalName)
	}
	for _, text := range s.OutsideIPs {
		if _, err := netip.ParseAddr(text); err != nil {
			return fault.New(fault.Invalid, "service %s: outside address %q is not an IP address", s.Name, text)
		}
	}
	if ip, err := netip.ParseAddr(s.VirtualIP); s.VirtualIP != "" && (err != nil || !ip.Is4()) {
		return fault.New(fault.Invalid, "service %s: virtual IP %q is not an IPv4 address", s.Name, s.VirtualIP)
	}
	return nil
}

// routes checks those of a service, and finds their certificates. A host belongs to one namespace.
func (p *planner) routes(s *model.Service) error {
	for i := range s.Routes {
		r := &s.Routes[i]
		if err := r.Check(); err != nil {
			return fmt.Errorf("service %s: route %s%s: %w", s.Name, r.Host, r.Path, err)
		}
		if len(s.Networks) == 0 {
			return fault.New(fault.Invalid, "service %s: a route needs a network that leads to the instances", s.Name)
		}
		for other := range store.List[*model.Service](p.snap) {
			if other.Namespace != p.d.Namespace && slices.ContainsFunc(other.Routes, func(o model.Route) bool { return o.Host == r.Host }) {
				return fault.New(fault.Conflict, "service %s: host %q has routes in namespace %s already", s.Name, r.Host, other.Namespace)
			}
		}
		if err := p.routeSecret(s, &r.Certificate, func(pem []byte) error { return checkCertificate(pem, r.Host) }); err != nil {
			return err
		}
		if err := p.routeSecret(s, &r.BasicAuth, checkUsers); err != nil {
			return err
		}
	}
	return nil
}

// routeSecret finds the secret that a route refers to, and checks it if it comes with this deployment.
func (p *planner) routeSecret(s *model.Service, ref *string, check func(data []byte) error) error {
	if *ref == "" {
		return nil
	}
	for _, given := range p.d.Secrets {
		if given.Meta.Name == *ref {
			if err := check(given.Data); err != nil {
				return fault.New(fault.Invalid, "service %s: secret %s: %w", s.Name, *ref, err)
			}
		}
	}
	id, err := resolve[*model.Secret](p, model.KindSecret, *ref, "service "+s.Name)
	if err == nil {
		*ref = id
	}
	return err
}

// checkUsers wants lines of name:hash, with hashes of bcrypt.
func checkUsers(data []byte) error {
	number := 0
	for line := range strings.Lines(string(data)) {
		line = strings.TrimSpace(line)
		if number++; line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		name, hash, ok := strings.Cut(line, ":")
		if _, err := bcrypt.Cost([]byte(hash)); !ok || name == "" || err != nil {
			return fmt.Errorf("line %d is not name:hash with a hash of bcrypt, as htpasswd -B writes it", number)
		}
	}
	return nil
}

// checkCertificate wants a certificate for a host with its key, both in PEM.
func checkCertificate(pem []byte, host string) error {
	c, err := tls.X509KeyPair(pem, pem)
	if err != nil {
		return fmt.Errorf("it is not a certificate with its key in PEM: %w", err)
	}
	if below, ok := strings.CutPrefix(host, "*."); ok {
		host = "any." + below
	}
	return c.Leaf.VerifyHostname(host)
}

func (p *planner) portsFree(s *model.Service) error {
	for other := range store.List[*model.Service](p.snap) {
		if other.Namespace == p.d.Namespace && other.Application == p.d.Application &&
			(!p.d.KeepOthers || slices.ContainsFunc(p.d.Services, func(s *model.Service) bool { return s.Name == other.Name })) {
			continue // replaced or removed by this very deployment
		}
		for _, a := range s.Ports {
			for _, b := range other.Ports {
				if s.PortGroup != "" && s.PortGroup == other.PortGroup && p.d.Application == other.Application && p.d.Namespace == other.Namespace && a == b {
					continue // they publish it together
				}
				if a.Published != 0 && a.Published == b.Published && a.Protocol == b.Protocol && model.SameHostIP(a.HostIP, b.HostIP) && !(a.HostMode && b.HostMode) {
					return fault.New(fault.Conflict, "service %s: port %d/%s is already published by %s",
						s.Name, a.Published, a.Protocol, other.FullName())
				}
			}
		}
	}
	return nil
}
