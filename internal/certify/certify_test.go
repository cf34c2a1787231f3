package certify

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/tutti-run/tutti/internal/model"
	"github.com/tutti-run/tutti/internal/secret"
	"github.com/tutti-run/tutti/internal/store"
	"github.com/tutti-run/tutti/internal/wire"
)

// house is a store with an authority, and a certifier on it.
type house struct {
	*testing.T
	store *store.Store
	key   []byte

	mu        sync.Mutex
	authority *wire.Authority
	life      time.Duration
}

// alone applies what is proposed at once.
type alone struct{ *store.Store }

func (a alone) Propose(_ context.Context, data []byte) (store.Result, error) {
	return a.Apply(data), nil
}

func newHouse(t *testing.T) *house {
	t.Helper()
	h := &house{T: t, store: store.New(slog.New(slog.DiscardHandler)), key: secret.NewKey()}
	h.store.SetProposer(alone{h.store})
	h.turn()
	return h
}

// turn replaces the authority.
func (h *house) turn() {
	a, err := wire.NewAuthority()
	if err != nil {
		h.Fatal(err)
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.authority = a
}

func (h *house) open(s *model.Secret) ([]byte, error) {
	return secret.Open(h.key, s.Sealed, []byte(s.Digest))
}

func (h *house) commit(change func(cs *store.ChangeSet)) {
	h.Helper()
	cs := &store.ChangeSet{}
	change(cs)
	if _, err := h.store.Commit(h.Context(), cs); err != nil {
		h.Fatal(err)
	}
}

// start runs a certifier until the test ends.
func (h *house) start() {
	c := New(Deps{
		Store: h.store, Live: func(string) bool { return true }, Applied: func(string) uint64 { return 1 << 60 }, RetryFirst: time.Second,
		Key: func() ([]byte, error) { return h.key, nil }, Open: h.open, Log: slog.New(slog.DiscardHandler),
		Issue: func(csr []byte, host string, life time.Duration) ([]byte, error) {
			h.mu.Lock()
			defer h.mu.Unlock()
			if h.life != 0 {
				life = h.life
			}
			return h.authority.IssueHost(csr, host, life)
		},
		Authority: func() ([]byte, error) {
			h.mu.Lock()
			defer h.mu.Unlock()
			return h.authority.CertPEM, nil
		},
	})
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { c.Run(ctx); close(done) }()
	h.Cleanup(func() { cancel(); <-done })
}

// await looks at a secret until it is as wanted; nil is one that is not there.
func (h *house) await(what, id string, fits func(data []byte) bool) []byte {
	h.Helper()
	for deadline := time.Now().Add(60 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		var data []byte
		if s, ok := store.Get[*model.Secret](h.store.Snapshot(), id); ok {
			var err error
			if data, err = h.open(s); err != nil {
				h.Fatal(err)
			}
		}
		if fits(data) {
			return data
		}
		if time.Now().After(deadline) {
			for e := range store.List[*model.Event](h.store.Snapshot()) {
				h.Log(e.Type, e.Message)
			}
			h.Fatalf("%s: in vain; it holds %.80q", what, data)
		}
	}
}

func service(routes ...model.Route) *model.Service {
	return &model.Service{Meta: model.Meta{ID: "s", Namespace: "default", Application: "shop", Name: "web"}, Routes: routes}
}

// TestTheClusterCertifies has a route's certificate issued, renewed, issued again by the next authority, and
// removed with the route.
func TestTheClusterCertifies(t *testing.T) {
	h := newHouse(t)
	r := model.Route{Host: "shop.example", Issuer: model.IssuerCluster}
	h.life = 3 * time.Second // of which an hour has passed, as it is dated back: it is renewed at once, and ever again
	h.commit(func(cs *store.ChangeSet) { cs.Put(service(r)) })
	h.start()
	id := r.CertificateSecret("default")
	believed := func(data []byte) bool {
		c, err := tls.X509KeyPair(data, data)
		if err != nil {
			return false
		}
		h.mu.Lock()
		defer h.mu.Unlock()
		roots := x509.NewCertPool()
		roots.AppendCertsFromPEM(h.authority.CertPEM)
		_, err = c.Leaf.Verify(x509.VerifyOptions{Roots: roots, DNSName: "shop.example", CurrentTime: c.Leaf.NotAfter})
		return err == nil
	}
	one := h.await("a certificate", id, believed)
	h.await("a fresh one", id, func(data []byte) bool { return believed(data) && string(data) != string(one) })
	h.mu.Lock()
	h.life = 0
	h.mu.Unlock()
	h.await("one that lasts", id, func(data []byte) bool { return believed(data) && time.Until(renewalOf(data, "")) > time.Hour })
	h.turn()
	h.commit(func(cs *store.ChangeSet) { cs.Put(&model.Cluster{Meta: model.Meta{ID: model.ClusterID}}) }) // something changed
	h.await("one of the next authority", id, believed)
	h.commit(func(cs *store.ChangeSet) { cs.Put(service()) })
	h.await("nothing of a route that is gone", id, func(data []byte) bool { return data == nil })
	issued := 0
	for e := range store.List[*model.Event](h.store.Snapshot()) {
		if e.Type == "certificate issued" && strings.Contains(e.Message, "shop.example") {
			issued++
		}
	}
	if issued < 4 {
		t.Errorf("%d events tell of it", issued)
	}
}

// TestHostsNeverPassForNodes: who has a route's certificate is nobody between nodes.
func TestHostsNeverPassForNodes(t *testing.T) {
	h := newHouse(t)
	csr, _, err := wire.NewRequest()
	if err != nil {
		t.Fatal(err)
	}
	data, err := h.authority.IssueHost(csr, "n1", time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	block, _ := pem.Decode(data)
	c, err := x509.ParseCertificate(block.Bytes)
	if err != nil || c.Subject.CommonName != "" || len(c.Subject.OrganizationalUnit) > 0 || len(c.ExtKeyUsage) != 1 || c.ExtKeyUsage[0] != x509.ExtKeyUsageServerAuth || c.IsCA {
		t.Errorf("it is %+v, %v", c.Subject, err)
	}
}
