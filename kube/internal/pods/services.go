package pods

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/labels"

	"github.com/tutti-run/tutti/internal/core"
	"github.com/tutti-run/tutti/internal/fault"
	"github.com/tutti-run/tutti/internal/model"
)

// syncService leads a Service to its endpoints.
func (b *bridge) syncService(ctx context.Context, namespace, name string) error {
	if name == "" {
		return nil
	}
	s, err := b.services.Services(namespace).Get(name)
	if err != nil && !apierrors.IsNotFound(err) {
		return err
	}
	if err != nil {
		b.freeAddress(namespace, name)
		return b.unlead(ctx, namespace, name)
	}
	list, err := b.slices.EndpointSlices(namespace).List(labels.SelectorFromSet(labels.Set{discoveryv1.LabelServiceName: name}))
	if err != nil {
		return err
	}
	service, odd := serviceOf(s, list)
	if odd != "" {
		b.events.Event(s, corev1.EventTypeWarning, "NotSupported", odd)
	}
	address, err := b.addressOf(ctx, s)
	if err != nil {
		return err
	}
	if address != "" && !slices.Contains(service.OutsideIPs, address) {
		service.OutsideIPs = append(service.OutsideIPs, address)
	}
	certificates, ingresses, err := b.route(s, service)
	if err != nil {
		return err
	}
	d := core.Deployment{
		Namespace: namespace, Application: application, Source: "kubernetes", KeepOthers: true, Members: true,
		Services: []*model.Service{service}, Secrets: certificates,
	}
	_, err = b.Tutti.Deploy(ctx, d)
	if len(service.Routes) > 0 && (fault.Is(err, fault.Invalid) || fault.Is(err, fault.Conflict)) {
		// What is wrong with its routes must not keep the service from being led.
		why := err
		service.Routes, d.Secrets = nil, nil
		if _, err = b.Tutti.Deploy(ctx, d); err == nil {
			for _, i := range ingresses {
				b.events.Event(i, corev1.EventTypeWarning, "NotLed", why.Error())
			}
		}
	}
	if fault.Is(err, fault.Invalid) || fault.Is(err, fault.Conflict) {
		b.events.Event(s, corev1.EventTypeWarning, "NotLed", err.Error())
	}
	if err != nil {
		return fmt.Errorf("lead service %s/%s: %w", namespace, name, err)
	}
	return nil
}

// unlead removes what a Service was led by.
func (b *bridge) unlead(ctx context.Context, namespace, name string) error {
	id := b.seen.service(namespace, name)
	if id == "" {
		return nil
	}
	if err := b.Tutti.RemoveService(ctx, id); err != nil && !fault.Is(err, fault.NotFound) {
		return fmt.Errorf("remove service %s/%s: %w", namespace, name, err)
	}
	return nil
}

// serviceOf makes a service of a Service and its EndpointSlices. odd says what of it is not led.
func serviceOf(s *corev1.Service, list []*discoveryv1.EndpointSlice) (out *model.Service, odd string) {
	out = &model.Service{
		Meta: model.Meta{Name: nameOf(s.Name), Labels: map[string]string{"kubernetes.io/service": s.Name}}, Direct: true, Networks: []string{networkID},
	}
	if s.Spec.Type == corev1.ServiceTypeExternalName {
		out.ExternalName = strings.TrimSuffix(s.Spec.ExternalName, ".")
		return out, ""
	}
	out.OutsideIPs = slices.Clone(s.Spec.ExternalIPs)
	headless := s.Spec.ClusterIP == corev1.ClusterIPNone
	if headless {
		out.DNSRoundRobin = true
	} else {
		out.VirtualIP = s.Spec.ClusterIP
	}
	if a := s.Spec.SessionAffinity; a == corev1.ServiceAffinityClientIP {
		out.Balance.Sticky = 3 * time.Hour
		if c := s.Spec.SessionAffinityConfig; c != nil && c.ClientIP != nil && c.ClientIP.TimeoutSeconds != nil {
			out.Balance.Sticky = time.Duration(*c.ClientIP.TimeoutSeconds) * time.Second
		}
	}
	if p := s.Spec.InternalTrafficPolicy; p != nil && *p == corev1.ServiceInternalTrafficPolicyLocal {
		out.Balance.Local, out.Balance.Outside = model.LocalOnly, model.LocalWherever
	}
	if s.Spec.ExternalTrafficPolicy == corev1.ServiceExternalTrafficPolicyLocal {
		out.Balance.Outside = model.LocalOnly
	}
	out.Backends = backendsOf(s, list)
	for _, p := range s.Spec.Ports {
		port := model.ServicePort{Name: p.Name, Protocol: protocolOf(p.Protocol), Virtual: int(p.Port), Published: int(p.NodePort)}
		// Where most are led to; with nothing there to be led to, where it would be.
		count := map[int]int{}
		for _, backend := range out.Backends {
			to := backend.Targets[p.Name]
			if count[to]++; to != 0 && (port.Target == 0 || count[to] > count[port.Target]) {
				port.Target = to
			}
		}
		port.Target = cmp.Or(port.Target, p.TargetPort.IntValue(), int(p.Port))
		if delete(count, 0); len(count) > 1 && out.Balance.Sticky > 0 {
			odd = fmt.Sprintf("port %q has different numbers on its endpoints: with session affinity, those with %d are led to", p.Name, port.Target)
		}
		out.Ports = append(out.Ports, port)
	}
	for k := range out.Backends {
		differs := func(p model.ServicePort) bool { return out.Backends[k].Targets[p.Name] != p.Target }
		if !slices.ContainsFunc(out.Ports, differs) {
			out.Backends[k].Targets = nil
		}
	}
	return out, odd
}

// backendsOf are the endpoints in EndpointSlices, in the order of their addresses, with where each answers the ports of the
// service. One that is in several slices is one backend, unless they contradict each other.
func backendsOf(s *corev1.Service, list []*discoveryv1.EndpointSlice) (out []model.Backend) {
	for _, slice := range list {
		if slice.AddressType != discoveryv1.AddressTypeIPv4 {
			continue
		}
		targets := map[string]int{}
		for _, p := range slice.Ports {
			name := ""
			if p.Name != nil {
				name = *p.Name
			}
			known := slices.ContainsFunc(s.Spec.Ports, func(have corev1.ServicePort) bool { return have.Name == name })
			if p.Port != nil && known {
				targets[name] = int(*p.Port)
			}
		}
		for _, e := range slice.Endpoints {
			// One that ends serves on only where no other does; new connections are not for it here.
			ready := e.Conditions.Ready == nil || *e.Conditions.Ready
			if !ready && !(s.Spec.PublishNotReadyAddresses) {
				continue
			}
			for _, a := range e.Addresses {
				if _, err := netip.ParseAddr(a); err != nil {
					continue
				}
				backend := model.Backend{Address: a, Targets: maps.Clone(targets)}
				if e.Hostname != nil {
					backend.Name = *e.Hostname
				}
				out = append(out, backend)
			}
		}
	}
	slices.SortStableFunc(out, func(a, b model.Backend) int {
		return cmp.Or(strings.Compare(a.Address, b.Address), strings.Compare(a.Name, b.Name))
	})
	kept := out[:0]
	for _, b := range out {
		if n := len(kept) - 1; n >= 0 && kept[n].Address == b.Address && kept[n].Name == b.Name && agree(kept[n].Targets, b.Targets) {
			maps.Copy(kept[n].Targets, b.Targets)
		} else {
			kept = append(kept, b)
		}
	}
	return kept
}

// agree reports whether what both know is the same.
func agree(a, b map[string]int) bool {
	for name, to := range b {
		if have, there := a[name]; there && have != to {
			return false
		}
	}
	return true
}
