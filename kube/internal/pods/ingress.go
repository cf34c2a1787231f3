package pods

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"encoding/hex"
	"fmt"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/tutti-run/tutti/internal/api/native"
	"github.com/tutti-run/tutti/internal/core"
	"github.com/tutti-run/tutti/internal/fault"
	"github.com/tutti-run/tutti/internal/model"
)

// Names of what says that Ingresses are for Tutti.
const (
	ingressClass      = "tutti"
	ingressController = "tutti.run/ingress"
	// legacyClass is the annotation that named a class before there were classes.
	legacyClass = "kubernetes.io/ingress.class"
)

// certificateStays is how long one is kept whose Secret is gone: the routes that had it go first.
const certificateStays = 10 * time.Second

// makeIngressClass makes the IngressClass of Ingresses that name none, where there is none of its name.
func (b *bridge) makeIngressClass(ctx context.Context) error {
	if _, err := b.ingressClasses.Get(ingressClass); err == nil {
		return nil
	}
	_, err := b.client.NetworkingV1().IngressClasses().Create(ctx, &networkingv1.IngressClass{
		ObjectMeta: metav1.ObjectMeta{Name: ingressClass, Annotations: map[string]string{networkingv1.AnnotationIsDefaultIngressClass: "true"}},
		Spec:       networkingv1.IngressClassSpec{Controller: ingressController},
	}, metav1.CreateOptions{})
	if err != nil && !apierrors.IsAlreadyExists(err) {
		return fmt.Errorf("make the ingress class %s: %w", ingressClass, err)
	}
	return nil
}

// leads reports whether an Ingress is Tutti's to lead.
func (b *bridge) leads(i *networkingv1.Ingress) bool {
	name := i.Annotations[legacyClass]
	if i.Spec.IngressClassName != nil {
		name = *i.Spec.IngressClassName
	}
	if name == "" || i.DeletionTimestamp != nil {
		return i.DeletionTimestamp == nil
	}
	class, err := b.ingressClasses.Get(name)
	return err == nil && class.Spec.Controller == ingressController
}

// syncIngress tells where an Ingress is answered, and what of it is not led. The services that it names have its routes.
func (b *bridge) syncIngress(ctx context.Context, namespace, name string) error {
	all, err := b.services.Services(namespace).List(everything)
	if err != nil {
		return err
	}
	for _, s := range all {
		b.queue.Add("service/" + namespace + "/" + s.Name)
	}
	i, err := b.ingresses.Ingresses(namespace).Get(name)
	if apierrors.IsNotFound(err) {
		return nil
	}
	if err != nil || !b.leads(i) {
		return err
	}
	for _, odd := range unled(i) {
		b.events.Event(i, corev1.EventTypeWarning, "NotSupported", odd)
	}
	st := networkingv1.IngressStatus{LoadBalancer: networkingv1.IngressLoadBalancerStatus{Ingress: []networkingv1.IngressLoadBalancerIngress{}}}
	for _, n := range b.seen.allNodes() {
		if n.Status.State == model.NodeReady && n.HostAddress != "" {
			st.LoadBalancer.Ingress = append(st.LoadBalancer.Ingress, networkingv1.IngressLoadBalancerIngress{IP: n.HostAddress})
		}
	}
	slices.SortFunc(st.LoadBalancer.Ingress, func(a, b networkingv1.IngressLoadBalancerIngress) int { return strings.Compare(a.IP, b.IP) })
	if equality.Semantic.DeepEqual(st, i.Status) {
		return nil
	}
	c := i.DeepCopy()
	c.Status = st
	_, err = b.client.NetworkingV1().Ingresses(namespace).UpdateStatus(ctx, c, metav1.UpdateOptions{})
	if apierrors.IsNotFound(err) || apierrors.IsConflict(err) {
		return nil // the watch brings it as it is now
	}
	return err
}

// unled is what of an Ingress leads nowhere.
func unled(i *networkingv1.Ingress) (out []string) {
	if d := i.Spec.DefaultBackend; d != nil && d.Resource != nil {
		out = append(out, "the default backend is a resource: only services are led to")
	}
	for _, r := range i.Spec.Rules {
		if r.HTTP == nil {
			continue
		}
		for _, p := range r.HTTP.Paths {
			if p.Backend.Resource != nil {
				out = append(out, fmt.Sprintf("path %s%s leads to a resource: only services are led to", r.Host, p.Path))
			}
		}
	}
	for _, t := range i.Spec.TLS {
		if len(t.Hosts) == 0 {
			out = append(out, "a certificate for no host in particular is not used: name its hosts")
		}
	}
	return out
}

// routed is a service's routes, and the Secrets whose certificates they have.
type routed struct {
	routes  []model.Route
	secrets []string
}

// routesTo are the routes that Ingresses have to a service; target finds the port of its endpoints.
func routesTo(s *corev1.Service, list []*networkingv1.Ingress, target func(networkingv1.ServiceBackendPort) int) (out routed) {
	add := func(i *networkingv1.Ingress, host, path string, exact bool, b *networkingv1.IngressBackend) {
		if b == nil || b.Service == nil || b.Service.Name != s.Name {
			return
		}
		port := target(b.Service.Port)
		if port == 0 {
			return
		}
		r := model.Route{Host: strings.ToLower(host), Path: path, Exact: exact, Target: port}
		if secret := certificateFor(i, r.Host); secret != "" && r.Host != "" {
			r.Certificate = secret
			if !slices.Contains(out.secrets, secret) {
				out.secrets = append(out.secrets, secret)
			}
		}
		out.routes = append(out.routes, r)
	}
	for _, i := range list {
		add(i, "", "", false, i.Spec.DefaultBackend)
		for _, rule := range i.Spec.Rules {
			if rule.HTTP == nil {
				add(i, rule.Host, "", false, i.Spec.DefaultBackend)
				continue
			}
			for k := range rule.HTTP.Paths {
				p := &rule.HTTP.Paths[k]
				exact := p.PathType != nil && *p.PathType == networkingv1.PathTypeExact
				path := p.Path
				if !exact && path == "/" {
					path = ""
				}
				add(i, rule.Host, path, exact, &p.Backend)
			}
		}
	}
	slices.Sort(out.secrets)
	return out
}

// certificateFor is the Secret with the certificate that an Ingress has for a host; "" for none.
func certificateFor(i *networkingv1.Ingress, host string) string {
	_, below, _ := strings.Cut(host, ".")
	for _, t := range i.Spec.TLS {
		if slices.Contains(t.Hosts, host) || slices.Contains(t.Hosts, "*."+below) {
			return t.SecretName
		}
	}
	return ""
}

// certificateOf is a Secret as the core wants a certificate: with its key, in PEM. It must be one of a host.
func certificateOf(s *corev1.Secret, host string) ([]byte, error) {
	pem := slices.Concat(s.Data[corev1.TLSCertKey], []byte("\n"), s.Data[corev1.TLSPrivateKeyKey])
	c, err := tls.X509KeyPair(pem, pem)
	if err != nil {
		return nil, fmt.Errorf("secret %s has no certificate with its key: %w", s.Name, err)
	}
	if below, ok := strings.CutPrefix(host, "*."); ok {
		host = "any." + below
	}
	return pem, c.Leaf.VerifyHostname(host)
}

// certificateID is that of what a Secret's certificate becomes.
func certificateID(namespace, name string) string {
	sum := sha256.Sum256([]byte(namespace + "/" + name))
	return "kubernetes-tls-" + hex.EncodeToString(sum[:8])
}

// route gives a service the routes that Ingresses have to it, and returns the secrets that go with them.
func (b *bridge) route(s *corev1.Service, out *model.Service) (certificates []core.SecretData, list []*networkingv1.Ingress, err error) {
	all, err := b.ingresses.Ingresses(s.Namespace).List(everything)
	if err != nil {
		return nil, nil, err
	}
	slices.SortFunc(all, func(a, b *networkingv1.Ingress) int { return strings.Compare(a.Name, b.Name) })
	var ours []*networkingv1.Ingress
	for _, i := range all {
		if b.leads(i) {
			ours = append(ours, i)
		}
	}
	found := routesTo(s, ours, func(p networkingv1.ServiceBackendPort) int {
		for k := range out.Ports {
			if have := &out.Ports[k]; have.Protocol == "tcp" && (p.Name != "" && have.Name == p.Name || p.Name == "" && have.Virtual == int(p.Number)) {
				return have.Target
			}
		}
		return 0
	})
	out.Routes = found.routes
	given := map[string]bool{}
	for k := range out.Routes {
		r := &out.Routes[k]
		if r.Certificate == "" {
			continue
		}
		secret, err := b.secrets.Secrets(s.Namespace).Get(r.Certificate)
		var pem []byte
		if err == nil {
			pem, err = certificateOf(secret, r.Host)
		}
		if err != nil { // answered without TLS until there is one
			r.Certificate = ""
			for _, i := range ours {
				if certificateFor(i, r.Host) != "" {
					b.events.Eventf(i, corev1.EventTypeWarning, "NoCertificate", "host %s is answered without TLS: %v", r.Host, err)
				}
			}
			continue
		}
		name := nameOf("tls." + secret.Name)
		if r.Certificate = name; !given[name] {
			given[name] = true
			certificates = append(certificates, core.SecretData{Meta: model.Meta{ID: certificateID(secret.Namespace, secret.Name), Name: name}, Data: pem})
		}
	}
	return certificates, ours, nil
}

// ingressesChanged looks at all Ingresses again.
func (b *bridge) ingressesChanged() {
	list, err := b.ingresses.List(everything)
	if err != nil {
		return
	}
	for _, i := range list {
		b.queue.Add("ingress/" + i.Namespace + "/" + i.Name)
	}
}

// nodeSeen looks at all Ingresses again where a node began, or ceased, to answer them.
func (b *bridge) nodeSeen(s *core.Seen) {
	answers := s.Node != nil && s.Node.Status.State == model.NodeReady
	b.mu.Lock()
	changed := b.answering[s.ID] != answers
	if b.answering[s.ID] = answers; s.Node == nil {
		delete(b.answering, s.ID)
	}
	b.mu.Unlock()
	if !changed {
		return
	}
	if !answers {
		b.Haste.Begin()
	}
	b.ingressesChanged()
}

// secretChanged looks at what has a Secret's certificate.
func (b *bridge) secretChanged(o metav1.Object) {
	s, ok := o.(*corev1.Secret)
	if !ok || s.Type != corev1.SecretTypeTLS {
		return
	}
	list, err := b.ingresses.Ingresses(s.Namespace).List(everything)
	if err != nil {
		return
	}
	for _, i := range list {
		if slices.ContainsFunc(i.Spec.TLS, func(t networkingv1.IngressTLS) bool { return t.SecretName == s.Name }) {
			b.queue.Add("ingress/" + i.Namespace + "/" + i.Name)
		}
	}
	if _, err := b.secrets.Secrets(s.Namespace).Get(s.Name); apierrors.IsNotFound(err) {
		b.queue.AddAfter("certificate/"+s.Namespace+"/"+s.Name, certificateStays)
	}
}

// dropCertificate removes a certificate whose Secret is gone.
func (b *bridge) dropCertificate(ctx context.Context, namespace, name string) error {
	if _, err := b.secrets.Secrets(namespace).Get(name); !apierrors.IsNotFound(err) {
		return err
	}
	id := certificateID(namespace, name)
	err := b.Tutti.RemoveWorkload(ctx, native.RemoveWorkload{ID: id, Secrets: []string{id}})
	if err != nil && !fault.Is(err, fault.NotFound) {
		return fmt.Errorf("remove a certificate: %w", err)
	}
	return nil
}
