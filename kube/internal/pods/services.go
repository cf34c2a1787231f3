package pods

import (
	"context"
	"fmt"
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
	targets := map[string]int32{}
	for _, slice := range list {
		if slice.AddressType != discoveryv1.AddressTypeIPv4 {
			continue
		}
		differs := false
		for _, p := range slice.Ports {
			if p.Port == nil {
				continue
			}
			name := ""
			if p.Name != nil {
				name = *p.Name
			}
			if have, there := targets[name]; there && have != *p.Port {
				differs = true
				odd = fmt.Sprintf("port %q leads to %d on some endpoints and to %d on others: those with the first are led to", name, have, *p.Port)
				continue
			}
			targets[name] = *p.Port
		}
		if differs {
			continue
		}
		for _, e := range slice.Endpoints {
			// One that ends serves on only where no other does; new connections are not for it here.
			ready := e.Conditions.Ready == nil || *e.Conditions.Ready
			if !ready && !(s.Spec.PublishNotReadyAddresses) {
				continue
			}
			for _, a := range e.Addresses {
				if _, err := netip.ParseAddr(a); err == nil {
					backend := model.Backend{Address: a}
					if e.Hostname != nil {
						backend.Name = *e.Hostname
					}
					out.Backends = append(out.Backends, backend)
				}
			}
		}
	}
	slices.SortFunc(out.Backends, func(a, b model.Backend) int { return strings.Compare(a.Address, b.Address) })
	out.Backends = slices.Compact(out.Backends)
	for _, p := range s.Spec.Ports {
		port := model.ServicePort{Name: p.Name, Protocol: protocolOf(p.Protocol), Target: int(targets[p.Name]), Virtual: int(p.Port), Published: int(p.NodePort)}
		if port.Target == 0 {
			port.Target = p.TargetPort.IntValue() // nothing is there to be led to
			if port.Target == 0 {
				port.Target = int(p.Port)
			}
		}
		out.Ports = append(out.Ports, port)
	}
	return out, odd
}
