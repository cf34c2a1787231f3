package trust

import (
	"bytes"
	"context"
	"errors"
	"slices"
	"time"

	"github.com/tutti-run/tutti/internal/fault"
	"github.com/tutti-run/tutti/internal/model"
	"github.com/tutti-run/tutti/internal/secret"
	"github.com/tutti-run/tutti/internal/store"
	"github.com/tutti-run/tutti/internal/wire"
)

// DefaultWindow is how long nodes that are away have to come back after the authority was replaced.
const DefaultWindow = 7 * 24 * time.Hour

// JoinToken returns the token with which a host joins, as a server or as an agent only.
func (t *Trust) JoinToken(server bool) (string, error) {
	cl, m, err := t.cluster()
	if err != nil {
		return "", err
	}
	hash, err := activeHash(cl)
	if err != nil {
		return "", err
	}
	if server {
		return wire.JoinToken(hash, m.ServerSecret), nil
	}
	return wire.JoinToken(hash, m.AgentSecret), nil
}

// RotateTokens replaces the join tokens chosen; who has an old one can join with it no more.
func (t *Trust) RotateTokens(ctx context.Context, server, agent bool) error {
	return t.change(ctx, func(_ *model.Cluster, m *material, _ *store.ChangeSet) error {
		if server {
			m.ServerSecret = model.NewID()
		}
		if agent {
			m.AgentSecret = model.NewID()
		}
		return nil
	})
}

// RotateAuthority makes a new authority, which signs from now on. The old one is believed until all
// nodes have certificates of the new one, or the window has passed.
func (t *Trust) RotateAuthority(ctx context.Context, window time.Duration) error {
	return t.change(ctx, func(cl *model.Cluster, m *material, _ *store.ChangeSet) error {
		if cl.Retiring != nil {
			return fault.New(fault.Conflict, "the authority is being replaced already, until %s at the latest; `tutti ca` tells how far that is", cl.Retiring.Until.Format(time.DateTime))
		}
		old, err := wire.LoadAuthority(cl.CACertificate, m.CAKey)
		if err != nil {
			return err
		}
		next, err := wire.NewAuthority()
		if err != nil {
			return err
		}
		cross, err := old.CrossSign(next)
		if err != nil {
			return err
		}
		now := time.Now()
		cl.Retiring = &model.RetiringAuthority{Certificate: cl.CACertificate, Cross: cross, Since: now, Until: now.Add(window)}
		cl.CACertificate, m.CAKey = next.CertPEM, next.KeyPEM
		return nil
	})
}

// DropAuthority stops believing the authority that was replaced, without waiting any longer: nodes
// that have no certificate of the new one must join anew.
func (t *Trust) DropAuthority(ctx context.Context) error {
	return t.change(ctx, func(cl *model.Cluster, _ *material, _ *store.ChangeSet) error {
		if cl.Retiring == nil {
			return fault.New(fault.Invalid, "no authority is being replaced")
		}
		cl.Retiring = nil
		return nil
	})
}

// HasMoved reports whether a node needs nothing of the authorities before the present one.
func HasMoved(n *model.Node, present string) bool {
	return n.Certificate.Authority == present && slices.Contains(n.Certificate.Trusts, present)
}

// settling is how long everybody has had the new certificate before the old authority is dropped:
// connections that were made before should have ended by then.
const settling = 20 * time.Second

// Lead is the leader's work: it seals what an earlier version left in clear, and drops an authority
// that nobody needs any more. It blocks until ctx is done.
func (t *Trust) Lead(ctx context.Context) error {
	var moved time.Time // since when every node has moved to the present authority
	var said string
	say := func(err error) {
		if err != nil && ctx.Err() == nil && err.Error() != said {
			said = err.Error()
			t.Log.Warn("the cluster's keys are not as they should be yet", "error", err)
		}
	}
	for {
		snap := t.Store.Snapshot()
		cl, ok := store.Get[*model.Cluster](snap, model.ClusterID)
		switch {
		case !ok:
		case len(cl.Sealed) == 0:
			say(t.migrate(ctx, cl))
		case cl.Retiring == nil:
			moved = time.Time{}
		default:
			now := time.Now()
			if allMoved(snap, cl) && moved.IsZero() {
				moved = now
			}
			if !allMoved(snap, cl) {
				moved = time.Time{}
			}
			if !moved.IsZero() && now.Sub(moved) >= settling || now.After(cl.Retiring.Until) {
				if err := t.DropAuthority(ctx); err != nil {
					say(err)
				} else {
					t.Log.Info("the authority that was replaced is not believed any more")
				}
			}
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(time.Second):
		}
	}
}

func allMoved(snap *store.Snapshot, cl *model.Cluster) bool {
	present, err := activeHash(cl)
	if err != nil {
		return false
	}
	for n := range store.List[*model.Node](snap) {
		if !HasMoved(n, present) {
			return false
		}
	}
	return true
}

// KeyRequest gives a server the key that seals, or asks it for that when Key is empty.
type KeyRequest struct {
	Key []byte `json:"key,omitempty"`
}

// KeyResponse answers the question.
type KeyResponse struct {
	Key []byte `json:"key,omitempty"`
}

// PathKey is where servers give each other the key that seals: call: KeyRequest → KeyResponse.
const PathKey = "/server/key"

// ShareKey takes the key that another server gives, or gives it to one that has lost it. With
// autolock, a server's certificate is not enough to get the key: it must join anew, by token.
func (t *Trust) ShareKey(_ context.Context, req KeyRequest) (KeyResponse, error) {
	if len(req.Key) > 0 {
		return KeyResponse{}, t.Keys.Keep(req.Key)
	}
	_, m, err := t.cluster()
	if err != nil {
		return KeyResponse{}, err
	}
	if m.UnlockKey != "" {
		return KeyResponse{}, fault.New(fault.Forbidden, "with autolock, a server gets its key by joining only")
	}
	key, err := t.Keys.Key()
	return KeyResponse{Key: key}, err
}

// migrate seals the keys that an earlier version left in clear, once every server has the key that
// opens them again.
func (t *Trust) migrate(ctx context.Context, old *model.Cluster) error {
	m, err := inClear(old)
	if err != nil {
		return err
	}
	if t.Keys.ID() == "" {
		if err := t.Keys.Keep(secret.NewKey()); err != nil {
			return err
		}
	}
	key, err := t.Keys.Key()
	if err != nil {
		return err
	}
	for _, s := range t.Addresses() {
		if s.ID == t.NodeID {
			continue
		}
		if _, err := wire.Call[KeyRequest, KeyResponse](ctx, t.Client, s.Address, PathKey, KeyRequest{Key: key}); err != nil {
			return fault.New(fault.KindOf(err), "they are in clear until every server has taken the key that seals them; server %s: %w", s.Address, err)
		}
	}
	cl := old.Clone()
	if cl.Sealed, err = t.seal(m); err != nil {
		return err
	}
	cl.ServerToken, cl.AgentToken, cl.CAKey, cl.SecretKey = "", "", nil, nil
	cs := &store.ChangeSet{}
	cs.Expect(model.KindCluster, cl.ID, old.Revision)
	cs.Put(cl)
	if _, err := t.Store.Commit(ctx, cs); err != nil {
		return err
	}
	t.Log.Info("the cluster's keys, in clear so far, are sealed from now on")
	return nil
}

// Run keeps this server's key file as the cluster's setting of autolock wants it, gets the key from
// another server if it has none, and tells of changes. It blocks until ctx is done.
func (t *Trust) Run(ctx context.Context) error {
	var said string
	for {
		w := t.Store.Watch(t.Store.Snapshot().Revision(), model.KindCluster, model.KindNode)
		if err := t.settle(ctx); err != nil && ctx.Err() == nil && err.Error() != said {
			said = err.Error()
			t.Log.Warn("this server's key file is not as it should be", "error", err)
		}
		if t.Changed != nil {
			t.Changed()
		}
		if err := t.awaitChange(ctx, w); err != nil || ctx.Err() != nil {
			return err
		}
	}
}

// awaitChange returns when the cluster has changed or a node was removed, and every minute:
// certificates end without a change, too.
func (t *Trust) awaitChange(ctx context.Context, w *store.Watcher) error {
	wait, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	for {
		b, err := w.Next(wait)
		if wait.Err() != nil || errors.Is(err, store.ErrTooOld) {
			return nil
		}
		if err != nil {
			return err
		}
		for _, c := range b.Changes {
			if c.Kind == model.KindCluster || c.New == nil {
				return nil
			}
		}
	}
}

func (t *Trust) settle(ctx context.Context) error {
	cl, ok := store.Get[*model.Cluster](t.Store.Snapshot(), model.ClusterID)
	if !ok || len(cl.Sealed) == 0 {
		return nil
	}
	if t.Keys.ID() == "" {
		if err := t.fetchKey(ctx); err != nil {
			return err
		}
	}
	if t.Keys.Locked() {
		return nil // `tutti status` says so
	}
	_, m, err := t.cluster()
	if err != nil {
		return err
	}
	return t.Keys.Wrap(m.UnlockKey)
}

func (t *Trust) fetchKey(ctx context.Context) error {
	_, err := t.Keys.Key()
	for _, s := range t.Addresses() {
		if s.ID == t.NodeID {
			continue
		}
		resp, cerr := wire.Call[KeyRequest, KeyResponse](ctx, t.Client, s.Address, PathKey, KeyRequest{})
		if cerr == nil {
			return t.Keys.Keep(resp.Key)
		}
		err = errors.Join(err, cerr)
	}
	return err
}

// SetAutolock makes servers need an unlock key after each start, and returns it; or need none.
func (t *Trust) SetAutolock(ctx context.Context, on bool) (unlockKey string, err error) {
	err = t.change(ctx, func(_ *model.Cluster, m *material, _ *store.ChangeSet) error {
		switch {
		case !on:
			m.UnlockKey = ""
		case m.UnlockKey == "":
			m.UnlockKey = secret.NewUnlockKey()
		}
		unlockKey = m.UnlockKey
		return nil
	})
	if err == nil {
		err = t.settle(ctx)
	}
	return unlockKey, err
}

// UnlockKey returns the unlock key, after replacing it if asked to; empty when autolock is off.
func (t *Trust) UnlockKey(ctx context.Context, rotate bool) (string, error) {
	_, m, err := t.cluster()
	if err != nil || !rotate {
		if m == nil {
			return "", err
		}
		return m.UnlockKey, err
	}
	key := ""
	err = t.change(ctx, func(_ *model.Cluster, m *material, _ *store.ChangeSet) error {
		if m.UnlockKey == "" {
			return fault.New(fault.Invalid, "autolock is off; `tutti autolock on` turns it on")
		}
		m.UnlockKey = secret.NewUnlockKey()
		key = m.UnlockKey
		return nil
	})
	if err == nil {
		err = t.settle(ctx)
	}
	return key, err
}

// Unlock opens this server's key file.
func (t *Trust) Unlock(ctx context.Context, unlockKey string) error {
	if err := t.Keys.Unlock(unlockKey); err != nil {
		return err
	}
	t.Log.Info("this server is unlocked")
	err := t.settle(ctx) // the unlock key may have been replaced meanwhile
	if t.Changed != nil {
		t.Changed()
	}
	return err
}

// Locked reports whether this server's key file needs an unlock key.
func (t *Trust) Locked() bool { return t.Keys.Locked() }

// View is how the cluster's authority and keys are.
type View struct {
	Authority string    `json:"authority"` // hash, as join tokens have it
	Bundle    []byte    `json:"bundle"`    // all that are believed, in PEM
	Retiring  string    `json:"retiring,omitempty"`
	Since     time.Time `json:"since,omitzero"`
	Until     time.Time `json:"until,omitzero"`
	Nodes     int       `json:"nodes"`
	Moved     int       `json:"moved"`             // nodes that need nothing of the one that retires
	Waiting   []string  `json:"waiting,omitempty"` // names of the others
	Sealed    bool      `json:"sealed"`
	Autolock  bool      `json:"autolock"` // as far as this server knows: it may be locked
	Locked    bool      `json:"locked"`   // this server
}

// View tells how the cluster's authority and keys are.
func (t *Trust) View() (View, error) {
	snap := t.Store.Snapshot()
	cl, ok := store.Get[*model.Cluster](snap, model.ClusterID)
	if !ok {
		return View{}, errFounding
	}
	present, err := activeHash(cl)
	if err != nil {
		return View{}, err
	}
	v := View{Authority: present, Bundle: trustOf(cl).CA, Sealed: len(cl.Sealed) > 0, Locked: t.Keys.Locked()}
	if _, m, err := t.cluster(); err == nil {
		v.Autolock = m.UnlockKey != ""
	} else if v.Locked {
		v.Autolock = true
	}
	if r := cl.Retiring; r != nil {
		hashes, err := wire.AuthorityHashes(bytes.TrimSpace(r.Certificate))
		if err != nil || len(hashes) == 0 {
			return View{}, errors.Join(errors.New("read the authority that retires"), err)
		}
		v.Retiring, v.Since, v.Until = hashes[0], r.Since, r.Until
	}
	for n := range store.List[*model.Node](snap) {
		v.Nodes++
		if HasMoved(n, present) {
			v.Moved++
		} else {
			v.Waiting = append(v.Waiting, n.Name)
		}
	}
	slices.Sort(v.Waiting)
	return v, nil
}
