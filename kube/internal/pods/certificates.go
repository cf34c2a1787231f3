package pods

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"slices"
	"time"

	certificatesv1 "k8s.io/api/certificates/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

// errAwaited says that something for a Pod's volumes is not there yet, and will be told of.
var errAwaited = errors.New("it is awaited")

// projects reports whether a volume of the Pod projects what fits.
func projects(pod *corev1.Pod, fits func(*corev1.VolumeProjection) bool) bool {
	return slices.ContainsFunc(pod.Spec.Volumes, func(v corev1.Volume) bool {
		return v.Projected != nil && slices.ContainsFunc(v.Projected.Sources, func(s corev1.VolumeProjection) bool { return fits(&s) })
	})
}

// namesNode reports whether a Pod's volumes hold what names its node.
func namesNode(pod *corev1.Pod) bool {
	return projects(pod, func(s *corev1.VolumeProjection) bool { return s.ServiceAccountToken != nil || s.PodCertificate != nil })
}

// anchors are those of bundles of trust: of one by its name, or of all of a signer's that a selector means.
func (b *bridge) anchors(p *corev1.ClusterTrustBundleProjection) ([]byte, error) {
	var list []*certificatesv1.ClusterTrustBundle
	switch {
	case p.Name != nil:
		one, err := b.bundles.Get(*p.Name)
		if err != nil && !apierrors.IsNotFound(err) {
			return nil, err
		}
		if err == nil {
			list = append(list, one)
		} else if p.Optional == nil || !*p.Optional {
			return nil, err
		}
	case p.SignerName != nil:
		selector, err := metav1.LabelSelectorAsSelector(p.LabelSelector) // without one it means none
		if err != nil {
			return nil, err
		}
		if list, err = b.bundles.List(selector); err != nil {
			return nil, err
		}
		list = slices.DeleteFunc(list, func(c *certificatesv1.ClusterTrustBundle) bool { return c.Spec.SignerName != *p.SignerName })
		if len(list) == 0 && (p.Optional == nil || !*p.Optional) {
			return nil, apierrors.NewNotFound(certificatesv1.Resource("clustertrustbundles"), "of signer "+*p.SignerName+" with labels "+selector.String())
		}
	default:
		return nil, fmt.Errorf("a bundle of trust has neither a name nor a signer")
	}
	var anchors [][]byte
	for _, c := range list {
		for block, rest := pem.Decode([]byte(c.Spec.TrustBundle)); block != nil; block, rest = pem.Decode(rest) {
			anchors = append(anchors, block.Bytes)
		}
	}
	slices.SortFunc(anchors, bytes.Compare)
	out := []byte{}
	for _, a := range slices.CompactFunc(anchors, bytes.Equal) {
		out = append(out, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: a})...)
	}
	return out, nil
}

// bundlesChanged has the Pods looked at that project bundles of trust.
func (b *bridge) bundlesChanged() {
	for _, p := range b.allPods() {
		if projects(p, func(s *corev1.VolumeProjection) bool { return s.ClusterTrustBundle != nil }) {
			b.filesChanged(p.UID, "pod/"+p.Namespace+"/"+p.Name)
		}
	}
}

// filesChanged has what a Pod's volumes hold put together anew.
func (b *bridge) filesChanged(uid types.UID, key string) {
	b.mu.Lock()
	b.contents++
	if made := b.made[string(uid)]; made != nil && made.files {
		made.refresh = time.Time{}
	}
	b.mu.Unlock()
	b.queue.Add(key)
}

func (b *bridge) requestChanged(o metav1.Object) {
	if r, ok := o.(*certificatesv1.PodCertificateRequest); ok {
		b.filesChanged(r.Spec.PodUID, "pod/"+r.Namespace+"/"+r.Spec.PodName)
	}
}

// podCertificate is what a source of a Pod's volume holds, and what was asked for to be in its place.
type podCertificate struct {
	key, chain []byte
	renew      time.Time // when the next one is to be asked for

	request string // its name; "" when none is under way
	asked   time.Time
	nextKey []byte
	over    bool // it was denied, or failed: none is asked for again
}

// requestLost is for how long a request that is not seen is taken for one that will be.
const requestLost = 10 * time.Minute

// certificate returns the certificate for a source of a volume of a Pod; errAwaited until the first one was issued. It asks
// for one when there is none, or it is time for the next.
func (b *bridge) certificate(ctx context.Context, pod *corev1.Pod, volume string, source int, p *corev1.PodCertificateProjection) (podCertificate, error) {
	if pod.Spec.NodeName == "" {
		return podCertificate{}, errAwaited
	}
	at := fmt.Sprintf("%s/%d", volume, source)
	b.mu.Lock()
	var c podCertificate
	if have := b.certs[string(pod.UID)][at]; have != nil {
		c = *have
	}
	b.mu.Unlock()
	now := b.now()
	if c.request != "" {
		r, err := b.requests.PodCertificateRequests(pod.Namespace).Get(c.request)
		switch {
		case apierrors.IsNotFound(err) && now.Sub(c.asked) > requestLost:
			c.request = ""
		case err == nil:
			b.answered(pod, &c, r)
		case !apierrors.IsNotFound(err):
			return c, err
		}
	}
	if c.request == "" && !c.over && (c.chain == nil || !now.Before(c.renew)) {
		if err := b.ask(ctx, pod, p, &c); err != nil {
			return c, err
		}
	}
	b.mu.Lock()
	if b.certs[string(pod.UID)] == nil {
		b.certs[string(pod.UID)] = map[string]*podCertificate{}
	}
	b.certs[string(pod.UID)][at] = &c
	b.mu.Unlock()
	if c.chain == nil {
		return c, errAwaited
	}
	if !c.renew.After(now) {
		c.renew = now.Add(time.Minute) // the next one will be told of
	}
	return c, nil
}

// answered takes over what became of a request.
func (b *bridge) answered(pod *corev1.Pod, c *podCertificate, r *certificatesv1.PodCertificateRequest) {
	for _, is := range r.Status.Conditions {
		switch is.Type {
		case certificatesv1.PodCertificateRequestConditionTypeIssued:
			c.key, c.chain, c.request = c.nextKey, chainOf(r.Status.CertificateChain), ""
			c.renew = b.now().Add(24 * time.Hour)
			if r.Status.BeginRefreshAt != nil {
				c.renew = r.Status.BeginRefreshAt.Time
			}
			return
		case certificatesv1.PodCertificateRequestConditionTypeDenied, certificatesv1.PodCertificateRequestConditionTypeFailed:
			c.request, c.over = "", true
			b.events.Eventf(pod, corev1.EventTypeWarning, is.Type, "PodCertificateRequest %s/%s: %s: %s", r.Namespace, r.Name, is.Reason, is.Message)
			return
		}
	}
}

// chainOf is a chain of certificates without what else its text has.
func chainOf(text string) (out []byte) {
	for block, rest := pem.Decode([]byte(text)); block != nil; block, rest = pem.Decode(rest) {
		out = append(out, pem.EncodeToMemory(&pem.Block{Type: block.Type, Bytes: block.Bytes})...)
	}
	return out
}

// ask asks for a certificate, with a new key.
func (b *bridge) ask(ctx context.Context, pod *corev1.Pod, p *corev1.PodCertificateProjection, c *podCertificate) error {
	node, err := b.nodes.Get(pod.Spec.NodeName)
	if err != nil {
		return err
	}
	account, err := b.client.CoreV1().ServiceAccounts(pod.Namespace).Get(ctx, pod.Spec.ServiceAccountName, metav1.GetOptions{})
	if err != nil {
		return err
	}
	key, err := newKey(p.KeyType)
	if err != nil {
		return err
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return err
	}
	proof, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
	if err != nil {
		return err
	}
	r, err := b.client.CertificatesV1().PodCertificateRequests(pod.Namespace).Create(ctx, &certificatesv1.PodCertificateRequest{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: pod.Namespace, GenerateName: "pod-",
			OwnerReferences: []metav1.OwnerReference{{APIVersion: "v1", Kind: "Pod", Name: pod.Name, UID: pod.UID}},
		},
		Spec: certificatesv1.PodCertificateRequestSpec{
			SignerName: p.SignerName, PodName: pod.Name, PodUID: pod.UID, ServiceAccountName: account.Name, ServiceAccountUID: account.UID,
			NodeName: types.NodeName(node.Name), NodeUID: node.UID, MaxExpirationSeconds: p.MaxExpirationSeconds,
			StubPKCS10Request: proof, UnverifiedUserAnnotations: p.UserAnnotations,
		},
	}, metav1.CreateOptions{})
	if err != nil {
		return fmt.Errorf("ask for a certificate by %s: %w", p.SignerName, err)
	}
	c.request, c.asked = r.Name, b.now()
	c.nextKey = pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})
	return nil
}

// newKey makes a key of a kind that a Pod may ask for.
func newKey(kind string) (crypto.Signer, error) {
	switch kind {
	case "RSA3072":
		return rsa.GenerateKey(rand.Reader, 3072)
	case "RSA4096":
		return rsa.GenerateKey(rand.Reader, 4096)
	case "ECDSAP256":
		return ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	case "ECDSAP384":
		return ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	case "ECDSAP521":
		return ecdsa.GenerateKey(elliptic.P521(), rand.Reader)
	case "ED25519":
		_, key, err := ed25519.GenerateKey(rand.Reader)
		return key, err
	}
	return nil, fmt.Errorf("keys of type %q are not made (RSA3072, RSA4096, ECDSAP256, ECDSAP384, ECDSAP521 and ED25519 are)", kind)
}
