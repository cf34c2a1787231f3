// Package certify has the certificates made that routes ask for, and keeps them fresh: by the cluster's own
// authority, or by a server of ACME (RFC 8555), whose challenge any host's ingress answers. It is the
// leader's work. Certificates, accounts and challenges are secrets of the cluster, sealed as others are, so
// that every host serves the same, and the next leader goes on.
package certify

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/tutti-run/tutti/internal/fault"
	"github.com/tutti-run/tutti/internal/model"
	"github.com/tutti-run/tutti/internal/secret"
	"github.com/tutti-run/tutti/internal/store"
)

// Application is what the secrets belong to that are made here: no deployment is of that name.
const Application = "tutti.certificates"

const (
	lookEach   = 2 * time.Second // whether something changed
	clusterFor = 30 * 24 * time.Hour
	retryFirst = 10 * time.Second
	retryLast  = time.Hour
	orderFor   = 5 * time.Minute // that an order may take
	ordersMost = 4               // at a time
)

// Deps is what a Certifier works with.
type Deps struct {
	Store *store.Store
	// Live reports whether a node is there, Applied as of which revision its network is in force.
	Live    func(nodeID string) bool
	Applied func(nodeID string) uint64
	// Key seals secrets, and Open opens one.
	Key  func() ([]byte, error)
	Open func(*model.Secret) ([]byte, error)
	// Issue signs a certificate for a host by the cluster's authority, which Authority returns.
	Issue     func(csrPEM []byte, host string, life time.Duration) (certPEM []byte, err error)
	Authority func() (certPEM []byte, err error)
	Log       *slog.Logger
	// RetryFirst is how long to wait after the first failure; 0: ten seconds.
	RetryFirst time.Duration
}

// Certifier has certificates made. Run it on the leader only.
type Certifier struct {
	Deps
	seen    uint64 // the revision of the last pass
	next    time.Time
	known   map[string]standing
	tries   map[string]try
	orders  map[string]bool // that are under way
	results chan result
	opening sync.Mutex // of accounts: orders share them
}

// standing is what is known of a certificate that was made.
type standing struct {
	revision uint64
	issuer   string // of which authority it is
	renew    time.Time
}

// try is what came of the last one that failed.
type try struct {
	failed int
	next   time.Time
}

type result struct {
	id  string
	err error
}

// want is a certificate that a route asks for.
type want struct {
	id        string
	namespace string
	route     model.Route
	service   *model.Service
}

// New returns a Certifier.
func New(d Deps) *Certifier {
	if d.RetryFirst == 0 {
		d.RetryFirst = retryFirst
	}
	return &Certifier{Deps: d, known: map[string]standing{}, tries: map[string]try{}, orders: map[string]bool{}, results: make(chan result, ordersMost)}
}

// Run works until ctx, the leadership, is done, and orders that are under way have ended.
func (c *Certifier) Run(ctx context.Context) error {
	tick := time.NewTicker(lookEach)
	defer tick.Stop()
	for {
		c.pass(ctx, time.Now())
		select {
		case <-ctx.Done():
			for len(c.orders) > 0 {
				delete(c.orders, (<-c.results).id)
			}
			return nil
		case r := <-c.results:
			c.ended(r, time.Now())
		case <-tick.C:
		}
	}
}

// pass makes what is missing or soon too old, and removes what nobody asks for.
func (c *Certifier) pass(ctx context.Context, now time.Time) {
	snap := c.Store.Snapshot()
	if snap.Revision() == c.seen && now.Before(c.next) {
		return
	}
	c.seen, c.next = snap.Revision(), now.Add(time.Hour)
	wanted, kept := c.wants(snap)
	c.clean(ctx, snap, kept)
	if len(wanted) == 0 {
		return
	}
	authority, err := c.Authority()
	if err != nil { // a server that is locked, say, which tells so itself
		c.later(now.Add(c.RetryFirst))
		return
	}
	for _, w := range wanted {
		if c.orders[w.id] {
			continue
		}
		if at := c.renewal(snap, w, authority); now.Before(at) {
			c.later(at)
			continue
		}
		if at := c.tries[w.id].next; now.Before(at) {
			c.later(at)
			continue
		}
		if len(c.orders) == ordersMost {
			c.later(now.Add(lookEach))
			continue
		}
		c.orders[w.id] = true
		go func() {
			ctx, cancel := context.WithTimeout(ctx, orderFor)
			defer cancel()
			c.results <- result{w.id, c.make(ctx, w)}
		}()
	}
}

func (c *Certifier) later(at time.Time) {
	if at.Before(c.next) {
		c.next = at
	}
}

// ended notes what came of an order.
func (c *Certifier) ended(r result, now time.Time) {
	delete(c.orders, r.id)
	c.seen = 0
	if r.err == nil { // also one that is too old already is not asked for again at once
		c.tries[r.id] = try{next: now.Add(c.RetryFirst)}
		return
	}
	t := c.tries[r.id]
	wait := min(c.RetryFirst<<min(t.failed, 20), retryLast)
	c.tries[r.id] = try{t.failed + 1, now.Add(wait)}
}

// wants are the certificates that routes ask for, by the ID of their secret, and the IDs of all secrets that
// are needed for that.
func (c *Certifier) wants(snap *store.Snapshot) (list []want, kept map[string]bool) {
	kept = map[string]bool{}
	for s := range store.List[*model.Service](snap) {
		for _, r := range s.Routes {
			if r.Issuer == "" {
				continue
			}
			id := r.CertificateSecret(s.Namespace)
			if kept[id] {
				continue
			}
			kept[id] = true
			list = append(list, want{id, s.Namespace, r, s})
			if r.Issuer == model.IssuerACME {
				kept[accountID(s.Namespace, &r)] = true
				kept[r.ChallengeSecret(s.Namespace)] = c.orders[id]
			}
		}
	}
	return list, kept
}

// clean removes secrets that were made here and that nobody needs.
func (c *Certifier) clean(ctx context.Context, snap *store.Snapshot, kept map[string]bool) {
	cs := &store.ChangeSet{}
	some := false
	for s := range store.List[*model.Secret](snap) {
		if s.Application == Application && !kept[s.ID] {
			cs.Delete(model.KindSecret, s.ID)
			some = true
		}
	}
	if some {
		if _, err := c.Store.Commit(ctx, cs); err != nil && ctx.Err() == nil {
			c.Log.Warn("secrets of former routes could not be removed yet", "error", err)
			c.later(time.Now().Add(c.RetryFirst))
		}
	}
}

// renewal is when a certificate is to be made: zero for now.
func (c *Certifier) renewal(snap *store.Snapshot, w want, authority []byte) time.Time {
	s, ok := store.Get[*model.Secret](snap, w.id)
	if !ok {
		return time.Time{}
	}
	issuer := ""
	if w.route.Issuer == model.IssuerCluster {
		issuer = string(authority)
	}
	if k, ok := c.known[w.id]; ok && k.revision == s.Revision && k.issuer == issuer {
		return k.renew
	}
	k := standing{revision: s.Revision, issuer: issuer}
	if data, err := c.Open(s); err == nil {
		k.renew = renewalOf(data, issuer)
	}
	c.known[w.id] = k
	return k.renew
}

// renewalOf is when two thirds of a certificate's life have passed; zero for one that cannot be read, or is not
// of the authority that is given.
func renewalOf(data []byte, authority string) time.Time {
	cert := first(data)
	if cert == nil {
		return time.Time{}
	}
	if authority != "" {
		if a := first([]byte(authority)); a == nil || cert.CheckSignatureFrom(a) != nil {
			return time.Time{}
		}
	}
	return cert.NotBefore.Add(cert.NotAfter.Sub(cert.NotBefore) * 2 / 3)
}

// first is the first certificate of some PEM.
func first(data []byte) *x509.Certificate {
	for {
		block, rest := pem.Decode(data)
		if block == nil {
			return nil
		}
		if block.Type == "CERTIFICATE" {
			cert, err := x509.ParseCertificate(block.Bytes)
			if err != nil {
				return nil
			}
			return cert
		}
		data = rest
	}
}

// make has a certificate made, and keeps it.
func (c *Certifier) make(ctx context.Context, w want) error {
	data, err := c.order(ctx, w)
	if err == nil {
		err = c.keep(ctx, w.id, w.namespace, string(w.route.Issuer)+"."+w.route.Host, data)
	}
	if ctx.Err() != nil && errors.Is(err, context.Canceled) {
		return err // the next leader begins anew
	}
	cs, kind, message := &store.ChangeSet{}, "certificate issued", fmt.Sprintf("for %s, by %s", w.route.Host, w.route.Issuer)
	if err != nil {
		kind, message = "certificate refused", fmt.Sprintf("for %s, by %s: %v", w.route.Host, w.route.Issuer, err)
		c.Log.Warn("a certificate could not be had yet", "host", w.route.Host, "error", err)
	}
	cs.Put(model.NewEvent(time.Now(), kind, w.service, message))
	if _, failed := c.Store.Commit(ctx, cs); failed != nil {
		c.Log.Warn("an event could not be kept", "event", kind, "host", w.route.Host, "error", failed)
	}
	return err
}

// order returns a certificate with its key, in PEM.
func (c *Certifier) order(ctx context.Context, w want) ([]byte, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("make a key: %w", err)
	}
	csr, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{DNSNames: []string{w.route.Host}}, key)
	if err != nil {
		return nil, fmt.Errorf("make a certificate request: %w", err)
	}
	var chain []byte
	if w.route.Issuer == model.IssuerACME {
		chain, err = c.ask(ctx, w, csr)
	} else {
		chain, err = c.Issue(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: csr}), w.route.Host, clusterFor)
	}
	if err != nil {
		return nil, err
	}
	keyPEM, err := encodeKey(key)
	return append(chain, keyPEM...), err
}

func encodeKey(key crypto.Signer) ([]byte, error) {
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, fmt.Errorf("encode a key: %w", err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), nil
}

// keep writes a secret.
func (c *Certifier) keep(ctx context.Context, id, namespace, name string, data []byte) error {
	key, err := c.Key()
	if err != nil {
		return err
	}
	s := &model.Secret{Meta: model.Meta{ID: id, Namespace: namespace, Application: Application, Name: name + "." + id, Created: time.Now()}, Digest: secret.Digest(key, data)}
	if s.Sealed, err = secret.Seal(key, data, []byte(s.Digest)); err != nil {
		return fmt.Errorf("seal secret %s: %w", name, err)
	}
	cs := &store.ChangeSet{}
	cs.Put(s)
	if _, err := c.Store.Commit(ctx, cs); err != nil {
		return fmt.Errorf("keep secret %s: %w", name, err)
	}
	return nil
}

// account returns the key of the account with a server of ACME, which is made at the first time.
func (c *Certifier) account(ctx context.Context, w want) (crypto.Signer, error) {
	c.opening.Lock()
	defer c.opening.Unlock()
	id := accountID(w.namespace, &w.route)
	if s, ok := store.Get[*model.Secret](c.Store.Snapshot(), id); ok {
		data, err := c.Open(s)
		if err != nil {
			return nil, fmt.Errorf("open the account's key: %w", err)
		}
		block, _ := pem.Decode(data)
		if block == nil {
			return nil, fault.New(fault.Internal, "the account's key is not PEM")
		}
		key, err := x509.ParsePKCS8PrivateKey(block.Bytes)
		if signer, ok := key.(crypto.Signer); ok {
			return signer, nil
		}
		return nil, fmt.Errorf("read the account's key: %w", err)
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("make a key: %w", err)
	}
	data, err := encodeKey(key)
	if err != nil {
		return nil, err
	}
	return key, c.keep(ctx, id, w.namespace, "account", data)
}

// accountID is the ID of the secret with an account's key.
func accountID(namespace string, r *model.Route) string {
	server, email := model.ACMEServer, ""
	if r.ACME != nil {
		if email = r.ACME.Email; r.ACME.Server != "" {
			server = r.ACME.Server
		}
	}
	sum := sha256.Sum256(bytes.Join([][]byte{[]byte(namespace), []byte(server), []byte(email)}, []byte{0}))
	return "acmeaccount-" + hex.EncodeToString(sum[:12])
}
