package pods

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// The ConfigMap, in namespace kube-system, that says under addressesKey which addresses services of type
// LoadBalancer get: ranges such as 192.0.2.0/28, 192.0.2.10-192.0.2.20 or single addresses, with spaces or commas
// between them. They are led to hosts by whoever leads to them from outside.
const (
	addressesMap = "tutti-load-balancer"
	addressesKey = "addresses"
)

// addressRange is from one address to another.
type addressRange struct{ first, last netip.Addr }

// readAddresses reads ranges of IPv4 addresses.
func readAddresses(text string) (out []addressRange, err error) {
	for _, part := range strings.FieldsFunc(text, func(r rune) bool { return r == ',' || r == ' ' || r == '\n' || r == '\t' }) {
		var r addressRange
		if p, err := netip.ParsePrefix(part); err == nil {
			r.first, r.last = p.Masked().Addr(), p.Masked().Addr()
			for r.first.Is4() && p.Contains(r.last.Next()) {
				r.last = r.last.Next()
			}
		} else {
			from, to, two := strings.Cut(part, "-")
			if !two {
				to = from
			}
			if r.first, err = netip.ParseAddr(from); err == nil {
				r.last, err = netip.ParseAddr(to)
			}
			if err != nil {
				return nil, fmt.Errorf("%q is not a range of addresses such as 192.0.2.0/28 or 192.0.2.10-192.0.2.20", part)
			}
		}
		if !r.first.Is4() || !r.last.Is4() || r.last.Less(r.first) {
			return nil, fmt.Errorf("%q is not a range of IPv4 addresses, the lower one first", part)
		}
		out = append(out, r)
	}
	return out, nil
}

// choose returns an address that is not taken: the one that is wanted, if there is one.
func choose(pool []addressRange, taken map[string]bool, wanted string) (string, error) {
	if wanted != "" {
		ip, err := netip.ParseAddr(wanted)
		in := err == nil && slices.ContainsFunc(pool, func(r addressRange) bool { return !ip.Less(r.first) && !r.last.Less(ip) })
		switch {
		case !in:
			return "", fmt.Errorf("address %s is none of those in the ConfigMap kube-system/%s", wanted, addressesMap)
		case taken[wanted]:
			return "", fmt.Errorf("address %s has another service", wanted)
		}
		return wanted, nil
	}
	for _, r := range pool {
		for ip := r.first; !r.last.Less(ip); ip = ip.Next() {
			if !taken[ip.String()] {
				return ip.String(), nil
			}
		}
	}
	if len(pool) == 0 {
		return "", fmt.Errorf("there are no addresses for services of type LoadBalancer: the ConfigMap kube-system/%s names them, under %q", addressesMap, addressesKey)
	}
	return "", fmt.Errorf("all addresses in the ConfigMap kube-system/%s are taken", addressesMap)
}

// addressOf is the address that a service of type LoadBalancer has, which its status tells, too; "" for others.
func (b *bridge) addressOf(ctx context.Context, s *corev1.Service) (string, error) {
	if s.Spec.Type != corev1.ServiceTypeLoadBalancer || s.Spec.LoadBalancerClass != nil {
		b.freeAddress(s.Namespace, s.Name)
		if s.Spec.LoadBalancerClass == nil && len(s.Status.LoadBalancer.Ingress) > 0 {
			return "", b.tellAddress(ctx, s, nil)
		}
		return "", nil // another class is somebody else's
	}
	address, err := b.giveAddress(s)
	if err != nil {
		b.events.Event(s, corev1.EventTypeWarning, "NoAddress", err.Error())
		if len(s.Status.LoadBalancer.Ingress) > 0 {
			return "", b.tellAddress(ctx, s, nil)
		}
		return "", nil
	}
	if have := s.Status.LoadBalancer.Ingress; len(have) == 1 && have[0].IP == address {
		return address, nil
	}
	mode := corev1.LoadBalancerIPModeVIP
	return address, b.tellAddress(ctx, s, []corev1.LoadBalancerIngress{{IP: address, IPMode: &mode}})
}

func (b *bridge) tellAddress(ctx context.Context, s *corev1.Service, list []corev1.LoadBalancerIngress) error {
	c := s.DeepCopy()
	c.Status.LoadBalancer.Ingress = list
	_, err := b.client.CoreV1().Services(s.Namespace).UpdateStatus(ctx, c, metav1.UpdateOptions{})
	if apierrors.IsNotFound(err) || apierrors.IsConflict(err) {
		return nil // the watch brings it as it is now
	}
	return err
}

// giveAddress chooses an address for a service; one that it has it keeps as long as it is in the pool.
func (b *bridge) giveAddress(s *corev1.Service) (string, error) {
	text := ""
	if m, err := b.configs.ConfigMaps(metav1.NamespaceSystem).Get(addressesMap); err == nil {
		text = m.Data[addressesKey]
	}
	pool, err := readAddresses(text)
	if err != nil {
		return "", fmt.Errorf("the ConfigMap kube-system/%s: %w", addressesMap, err)
	}
	key := s.Namespace + "/" + s.Name
	b.mu.Lock()
	defer b.mu.Unlock()
	taken := map[string]bool{}
	all, err := b.services.List(everything)
	if err != nil {
		return "", err
	}
	for _, o := range all {
		if o.Namespace+"/"+o.Name == key || o.Spec.Type != corev1.ServiceTypeLoadBalancer {
			continue
		}
		for _, i := range o.Status.LoadBalancer.Ingress {
			taken[i.IP] = true
		}
	}
	for other, ip := range b.addresses {
		if other != key {
			taken[ip] = true
		}
	}
	wanted := s.Spec.LoadBalancerIP
	if wanted == "" {
		have := b.addresses[key]
		if st := s.Status.LoadBalancer.Ingress; have == "" && len(st) > 0 {
			have = st[0].IP
		}
		if ip, err := choose(pool, taken, have); err == nil && have != "" {
			b.addresses[key] = ip
			return ip, nil
		}
	}
	ip, err := choose(pool, taken, wanted)
	if err != nil {
		delete(b.addresses, key)
		return "", err
	}
	b.addresses[key] = ip
	return ip, nil
}

// freeAddress gives up what a service had.
func (b *bridge) freeAddress(namespace, name string) {
	b.mu.Lock()
	_, had := b.addresses[namespace+"/"+name]
	delete(b.addresses, namespace+"/"+name)
	b.mu.Unlock()
	if had {
		b.addressesChanged()
	}
}

// addressesChanged looks again at the services that have, or wait for, an address.
func (b *bridge) addressesChanged() {
	all, err := b.services.List(everything)
	if err != nil {
		return
	}
	for _, s := range all {
		if s.Spec.Type == corev1.ServiceTypeLoadBalancer {
			b.queue.Add("service/" + s.Namespace + "/" + s.Name)
		}
	}
}
