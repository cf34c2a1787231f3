package trust

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"github.com/tutti-run/tutti/internal/fault"
	"github.com/tutti-run/tutti/internal/model"
	"github.com/tutti-run/tutti/internal/secret"
	"github.com/tutti-run/tutti/internal/store"
	"github.com/tutti-run/tutti/internal/wire"
)

// Deps is what Trust works with.
type Deps struct {
	Store  *store.Store
	Keys   *secret.KeyFile
	NodeID string // of this server
	// Client reaches other servers; Addresses are those of all, this one included.
	Client    *wire.Client
	Addresses func() []wire.ServerAddress
	// CertificateLife is how long the certificates of nodes are valid; 0 is wire.CertificateLife.
	CertificateLife time.Duration
	// Changed is called when nodes came or went, when authorities did, and when this server was
	// unlocked. It may be nil.
	Changed func()
	Log     *slog.Logger
}

// Trust is a server's part in who believes whom. It is safe for concurrent use.
type Trust struct {
	Deps

	mu     sync.Mutex
	opened *material // of the state's revision below
	at     uint64
}

// New returns a Trust.
func New(d Deps) *Trust { return &Trust{Deps: d} }

// material is what Cluster.Sealed holds.
type material struct {
	ServerSecret string `json:"serverSecret"` // of the join token for servers
	AgentSecret  string `json:"agentSecret"`
	CAKey        []byte `json:"caKey"`               // PEM
	SecretKey    []byte `json:"secretKey"`           // encrypts secrets
	UnlockKey    string `json:"unlockKey,omitempty"` // set: autolock is on
}

// sealedAs binds sealed material to its place.
var sealedAs = []byte("tutti cluster keys")

func (t *Trust) seal(m *material) ([]byte, error) {
	data, err := json.Marshal(m)
	if err != nil {
		return nil, fmt.Errorf("seal the cluster's keys: %w", err)
	}
	return t.Keys.Seal(data, sealedAs)
}

// inClear is the material as earlier versions kept it.
func inClear(cl *model.Cluster) (*material, error) {
	m := &material{CAKey: cl.CAKey, SecretKey: cl.SecretKey}
	for token, to := range map[string]*string{cl.ServerToken: &m.ServerSecret, cl.AgentToken: &m.AgentSecret} {
		if token == "" {
			continue
		}
		var err error
		if _, *to, err = wire.ParseToken(token); err != nil {
			return nil, err
		}
	}
	return m, nil
}

var errFounding = fault.New(fault.Unavailable, "the cluster is still being set up")

// cluster returns the cluster and its keys as the present state has them.
func (t *Trust) cluster() (*model.Cluster, *material, error) {
	cl, ok := store.Get[*model.Cluster](t.Store.Snapshot(), model.ClusterID)
	if !ok {
		return nil, nil, errFounding
	}
	if len(cl.Sealed) == 0 {
		m, err := inClear(cl)
		return cl, m, err
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.opened != nil && t.at == cl.Revision {
		return cl, t.opened, nil
	}
	data, err := t.Keys.Open(cl.Sealed, sealedAs)
	if err != nil {
		return nil, nil, fmt.Errorf("open the cluster's keys: %w", err)
	}
	m := new(material)
	if err := json.Unmarshal(data, m); err != nil {
		return nil, nil, fmt.Errorf("open the cluster's keys: %w", err)
	}
	t.opened, t.at = m, cl.Revision
	return cl, m, nil
}

// attempts bounds how often a change starts over because somebody else made one meanwhile, each time
// after a pause of any length up to conflictPause times how many there were, so that rivals find their
// turns.
const (
	attempts      = 12
	conflictPause = 5 * time.Millisecond
)

// change changes the cluster and its keys; more may add to the change set.
func (t *Trust) change(ctx context.Context, decide func(cl *model.Cluster, m *material, cs *store.ChangeSet) error) error {
	for n := 1; ; n++ {
		old, m, err := t.cluster()
		if err != nil {
			return err
		}
		if len(old.Sealed) == 0 {
			return fault.New(fault.Unavailable, "the cluster's keys are not sealed yet: that happens once all servers run this version")
		}
		cl, next, cs := old.Clone(), *m, &store.ChangeSet{}
		if err := decide(cl, &next, cs); err != nil {
			return err
		}
		if cl.Sealed, err = t.seal(&next); err != nil {
			return err
		}
		cs.Expect(model.KindCluster, cl.ID, old.Revision)
		cs.Put(cl)
		if _, err = t.Store.Commit(ctx, cs); err == nil || n == attempts || !fault.Is(err, fault.Conflict) {
			return err
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(rand.N(time.Duration(n) * conflictPause)):
		}
	}
}

// Sealed reports whether the cluster's keys are sealed, which says also that every server is of a
// version that knows of it.
func (t *Trust) Sealed() bool {
	cl, ok := store.Get[*model.Cluster](t.Store.Snapshot(), model.ClusterID)
	return ok && len(cl.Sealed) > 0
}

// Found puts the keys of a new cluster, whose authority it is given, into its first object.
func (t *Trust) Found(cl *model.Cluster, a *wire.Authority) error {
	if t.Keys.ID() == "" {
		if err := t.Keys.Keep(secret.NewKey()); err != nil {
			return err
		}
	}
	cl.CACertificate = a.CertPEM
	var err error
	cl.Sealed, err = t.seal(&material{
		ServerSecret: model.NewID(), AgentSecret: model.NewID(), CAKey: a.KeyPEM, SecretKey: secret.NewKey(),
	})
	return err
}

// SecretKey returns the key that encrypts secrets.
func (t *Trust) SecretKey() ([]byte, error) {
	_, m, err := t.cluster()
	if err != nil {
		return nil, err
	}
	return m.SecretKey, nil
}

// OpenSecret decrypts a secret.
func (t *Trust) OpenSecret(s *model.Secret) ([]byte, error) {
	key, err := t.SecretKey()
	if err != nil {
		return nil, err
	}
	return secret.Open(key, s.Sealed, []byte(s.Digest))
}

// trustOf is whom the nodes of a cluster should believe.
func trustOf(cl *model.Cluster) wire.Trust {
	tr := wire.Trust{CA: cl.CACertificate}
	if r := cl.Retiring; r != nil {
		tr.CA, tr.Cross = slices.Concat(cl.CACertificate, r.Certificate), r.Cross
	}
	return tr
}

// Trust is whom the cluster's nodes should believe; zero while the cluster is being founded.
func (t *Trust) Trust() wire.Trust {
	cl, ok := store.Get[*model.Cluster](t.Store.Snapshot(), model.ClusterID)
	if !ok {
		return wire.Trust{}
	}
	return trustOf(cl)
}

func activeHash(cl *model.Cluster) (string, error) {
	all, err := wire.AuthorityHashes(cl.CACertificate)
	if err == nil && len(all) != 1 {
		err = errors.New("there is none")
	}
	if err != nil {
		return "", fmt.Errorf("read the cluster's authority: %w", err)
	}
	return all[0], nil
}

// MayPass is the gate of a server's port; caughtUp says whether the state is known to be whole.
func (t *Trust) MayPass(peer wire.Peer, replication, caughtUp bool) error {
	snap := t.Store.Snapshot()
	cl, ok := store.Get[*model.Cluster](snap, model.ClusterID)
	if !ok {
		return nil // this server has no state yet: its first comes from others
	}
	for _, r := range cl.Removed {
		if r.ID == peer.NodeID {
			return fault.New(fault.Forbidden, "node %s was removed from the cluster", peer.NodeID)
		}
	}
	if _, known := store.Get[*model.Node](snap, peer.NodeID); known {
		return nil
	}
	switch {
	case replication:
		return nil // a server that this one has not heard of yet; removed ones were looked for above
	case !caughtUp:
		return fault.New(fault.Unavailable, "this server does not know node %s yet", peer.NodeID)
	}
	return fault.New(fault.Forbidden, "node %s is not, or no more, of this cluster: empty its data directory and join again", peer.NodeID)
}
