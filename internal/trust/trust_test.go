package trust

import (
	"bytes"
	"context"
	"encoding/json"
	"log/slog"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/tutti-run/tutti/internal/fault"
	"github.com/tutti-run/tutti/internal/model"
	"github.com/tutti-run/tutti/internal/secret"
	"github.com/tutti-run/tutti/internal/store"
	"github.com/tutti-run/tutti/internal/wire"
)

var quiet = slog.New(slog.DiscardHandler)

// alone applies what is proposed at once, as a cluster of one server would.
type alone struct{ *store.Store }

func (a alone) Propose(_ context.Context, data []byte) (store.Result, error) {
	return a.Apply(data), nil
}

// house is a cluster's state with the trust of one of its servers.
type house struct {
	*testing.T
	*Trust
	authority *wire.Authority
	others    []wire.ServerAddress
}

// newHouse has a cluster that nobody has put keys into.
func newHouse(t *testing.T) *house {
	h := &house{T: t}
	var err error
	if h.authority, err = wire.NewAuthority(); err != nil {
		t.Fatal(err)
	}
	st := store.New(quiet)
	st.SetProposer(alone{st})
	h.Trust = New(Deps{
		Store: st, Keys: keyFile(t), NodeID: "server-1", Log: quiet,
		Addresses: func() []wire.ServerAddress {
			return append([]wire.ServerAddress{{ID: "server-1", Address: "127.0.0.1:1"}}, h.others...)
		},
	})
	return h
}

func keyFile(t *testing.T) *secret.KeyFile {
	t.Helper()
	k, err := secret.LoadKeyFile(filepath.Join(t.TempDir(), "cluster.key"))
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func founded(t *testing.T) *house {
	h := newHouse(t)
	cl := &model.Cluster{Meta: model.Meta{ID: model.ClusterID, Name: model.ClusterID}}
	if err := h.Found(cl, h.authority); err != nil {
		t.Fatal(err)
	}
	h.put(cl)
	return h
}

func (h *house) put(objects ...model.Object) {
	h.Helper()
	cs := &store.ChangeSet{}
	for _, o := range objects {
		cs.Put(o)
	}
	if _, err := h.Store.Commit(h.Context(), cs); err != nil {
		h.Fatal(err)
	}
}

func (h *house) state() *model.Cluster {
	cl, _ := store.Get[*model.Cluster](h.Store.Snapshot(), model.ClusterID)
	return cl
}

func (h *house) token(server bool) string {
	h.Helper()
	token, err := h.JoinToken(server)
	if err != nil {
		h.Fatal(err)
	}
	return token
}

// join asks for admission with a token, as a host does.
func (h *house) join(token string, n wire.Newcomer) (wire.JoinResponse, error) {
	h.Helper()
	_, secret, err := wire.ParseToken(token)
	if err != nil {
		h.Fatal(err)
	}
	csr, _, err := wire.NewRequest()
	if err != nil {
		h.Fatal(err)
	}
	return h.Admit(h.Context(), wire.JoinRequest{Newcomer: n, Secret: secret, CSR: csr})
}

// TestKeysAreNeverInClear looks for each of a new cluster's keys in all that is replicated.
func TestKeysAreNeverInClear(t *testing.T) {
	h := founded(t)
	_, m, err := h.cluster()
	if err != nil {
		t.Fatal(err)
	}
	key, err := h.Keys.Key()
	if err != nil {
		t.Fatal(err)
	}
	var replicated bytes.Buffer
	if err := h.Store.Snapshot().Write(&replicated); err != nil {
		t.Fatal(err)
	}
	for what, k := range map[string][]byte{
		"the secret of the servers' token": []byte(m.ServerSecret), "that of the agents'": []byte(m.AgentSecret),
		"the authority's key": m.CAKey, "the key of secrets": m.SecretKey, "the key that seals": key,
	} {
		if len(k) < 16 || bytes.Contains(replicated.Bytes(), k) {
			t.Errorf("%s is in the state, or too short: %d bytes", what, len(k))
		}
	}
	if hash, _, err := wire.ParseToken(h.token(true)); err != nil || hash != h.authority.Hash() {
		t.Errorf("the token names the authority %s, %v; it is %s", hash, err, h.authority.Hash())
	}
	other := New(Deps{Store: h.Store, Keys: keyFile(t), Log: quiet})
	if _, err := other.JoinToken(true); err == nil {
		t.Error("a server without the key reads the tokens")
	}
}

func TestTokensAdmitToTheirRole(t *testing.T) {
	h := founded(t)
	host := func(name string) wire.Newcomer {
		return wire.Newcomer{NodeID: "id-" + name, Name: name, Address: "192.0.2.1", Port: 7400}
	}
	agents, servers := h.token(false), h.token(true)
	a, err := h.join(agents, host("a"))
	if err != nil || a.Role != wire.RoleAgent || len(a.Key) != 0 {
		t.Fatalf("an agent is admitted as %v, with a key of %d bytes: %v", a.Role, len(a.Key), err)
	}
	s, err := h.join(servers, host("s"))
	if key, _ := h.Keys.Key(); err != nil || s.Role != wire.RoleServer || !bytes.Equal(s.Key, key) {
		t.Fatalf("a server is admitted as %v, with a key of %d bytes: %v", s.Role, len(s.Key), err)
	}
	for _, name := range []string{"a", "s"} {
		n, ok := store.Get[*model.Node](h.Store.Snapshot(), "id-"+name)
		if !ok || n.Server != (name == "s") || n.WireAddress != "192.0.2.1:7400" || !HasMoved(n, h.authority.Hash()) {
			t.Errorf("node %s is %+v", name, n)
		}
	}
	if err := h.RotateTokens(t.Context(), false, true); err != nil {
		t.Fatal(err)
	}
	if h.token(true) != servers || h.token(false) == agents {
		t.Error("other tokens were replaced than those asked for")
	}
	for what, try := range map[string]struct {
		token string
		host  wire.Newcomer
		kind  fault.Kind
	}{
		"an old token":           {agents, host("b"), fault.Forbidden},
		"a made-up token":        {wire.JoinToken(h.authority.Hash(), "guessed"), host("b"), fault.Forbidden},
		"a name that is taken":   {servers, wire.Newcomer{NodeID: "id-b", Name: "a"}, fault.Conflict},
		"another role, same ID":  {servers, host("a"), fault.Conflict},
		"an odd name":            {servers, host("a/b"), fault.Invalid},
		"an odd address":         {servers, wire.Newcomer{NodeID: "id-b", Name: "b", Address: "somewhere"}, fault.Invalid},
		"a port that is none":    {servers, wire.Newcomer{NodeID: "id-b", Name: "b", Port: 70000}, fault.Invalid},
		"no name, as earlier on": {h.token(false), wire.Newcomer{NodeID: "id-old"}, 0},
	} {
		if _, err := h.join(try.token, try.host); (err != nil) != (try.kind != 0) || err != nil && !fault.Is(err, try.kind) {
			t.Errorf("%s: %v", what, err)
		}
	}
	if _, err := h.join(h.token(false), host("a")); err != nil {
		t.Errorf("a host whose joining was interrupted may not try again: %v", err)
	}
}

// TestAHostComesAnew under its name and address once what it was before is down, and not in another's place.
func TestAHostComesAnew(t *testing.T) {
	h := founded(t)
	host := func(id, address string) wire.Newcomer {
		return wire.Newcomer{NodeID: id, Name: "a", Address: address, Port: 7400}
	}
	is := func(id string, server bool, state model.NodeState) {
		n := &model.Node{Meta: model.Meta{ID: id, Name: "a"}, Server: server, HostAddress: "192.0.2.1", Status: model.NodeStatus{State: state, Session: "first"}}
		if old, ok := store.Get[*model.Node](h.Store.Snapshot(), id); ok {
			n.Meta = old.Meta
		}
		h.put(n)
		cs := &store.ChangeSet{}
		cs.PutStatus(n)
		if _, err := h.Store.Commit(t.Context(), cs); err != nil {
			t.Fatal(err)
		}
	}
	is("was", false, model.NodeDown)
	if _, err := h.join(h.token(false), host("other", "192.0.2.2")); !fault.Is(err, fault.Conflict) {
		t.Errorf("another host of the name: %v", err)
	}
	is("was", false, model.NodeReady)
	joined := make(chan error, 1)
	go func() {
		_, err := h.join(h.token(false), host("is", "192.0.2.1"))
		joined <- err
	}()
	time.Sleep(20 * time.Millisecond) // whether it waits by then or not, the outcome is the same
	is("was", false, model.NodeDown)
	if err := <-joined; err != nil {
		t.Errorf("the host itself: %v", err)
	}
	if _, ok := store.Get[*model.Node](h.Store.Snapshot(), "was"); ok {
		t.Error("what the host was before is a node still")
	}
	h2 := founded(t)
	h = h2
	is("server", true, model.NodeDown)
	if _, err := h.join(h.token(true), host("is", "192.0.2.1")); !fault.Is(err, fault.Conflict) {
		t.Errorf("a server in place of one that is of the replication: %v", err)
	}
}

// earlier is a cluster as an earlier version left it: with its keys in clear.
func (h *house) earlier() (before *material) {
	h.Helper()
	m := &material{ServerSecret: model.NewID(), AgentSecret: model.NewID(), CAKey: h.authority.KeyPEM, SecretKey: secret.NewKey()}
	h.put(&model.Cluster{
		Meta: model.Meta{ID: model.ClusterID, Name: model.ClusterID}, CACertificate: h.authority.CertPEM, CAKey: m.CAKey, SecretKey: m.SecretKey,
		ServerToken: h.authority.Token(m.ServerSecret), AgentToken: h.authority.Token(m.AgentSecret),
	})
	return m
}

// server is another server's port, with a key file of its own.
func (h *house) server(id string, share func(context.Context, KeyRequest) (KeyResponse, error)) {
	h.Helper()
	p := h.port(id)
	p.Handle(PathKey, wire.HandleCall(share), wire.RoleServer)
	h.others = append(h.others, wire.ServerAddress{ID: id, Address: p.Addr().String()})
}

func (h *house) port(id string) *wire.Port {
	h.Helper()
	csr, key, err := wire.NewRequest()
	if err != nil {
		h.Fatal(err)
	}
	cert, err := h.authority.Sign(csr, id, wire.RoleServer)
	if err != nil {
		h.Fatal(err)
	}
	p, err := wire.Listen("127.0.0.1:0", &wire.Identity{NodeID: id, Role: wire.RoleServer, CertPEM: cert, KeyPEM: key, CAPEM: h.authority.CertPEM}, quiet)
	if err != nil {
		h.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- p.Serve(ctx) }()
	h.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			h.Error(err)
		}
	})
	return p
}

// TestKeysInClearAreSealed once every server has taken the key that opens them, and not before: one
// without it could neither admit nor hand out secrets.
func TestKeysInClearAreSealed(t *testing.T) {
	h := newHouse(t)
	before := h.earlier()
	tokens := []string{h.token(true), h.token(false)}
	if err := h.RotateTokens(t.Context(), true, true); !fault.Is(err, fault.Unavailable) {
		t.Errorf("keys in clear were changed: %v", err)
	}
	h.Client = h.port("server-1").Client()
	theirs := keyFile(t)
	upgraded := false
	h.server("server-2", func(ctx context.Context, r KeyRequest) (KeyResponse, error) {
		if !upgraded {
			return KeyResponse{}, fault.New(fault.Unsupported, "this version knows no such path")
		}
		return New(Deps{Store: h.Store, Keys: theirs, Log: quiet}).ShareKey(ctx, r)
	})
	if err := h.migrate(t.Context(), h.state()); err == nil || !strings.Contains(err.Error(), h.others[0].Address) {
		t.Errorf("with a server of an earlier version: %v", err)
	}
	if h.Sealed() || len(h.state().CAKey) == 0 {
		t.Fatal("the keys were sealed though a server could not open them")
	}
	upgraded = true
	if err := h.migrate(t.Context(), h.state()); err != nil {
		t.Fatal(err)
	}
	cl := h.state()
	if !h.Sealed() || cl.ServerToken != "" || cl.AgentToken != "" || len(cl.CAKey) != 0 || len(cl.SecretKey) != 0 {
		t.Errorf("what is left in clear: %+v", cl)
	}
	for who, keys := range map[string]*secret.KeyFile{"this server": h.Keys, "the other": theirs} {
		_, m, err := New(Deps{Store: h.Store, Keys: keys, Log: quiet}).cluster()
		if err != nil {
			t.Errorf("%s cannot open what was sealed: %v", who, err)
			continue
		}
		was, _ := json.Marshal(before)
		is, _ := json.Marshal(m)
		if !bytes.Equal(was, is) {
			t.Errorf("%s finds other keys than there were", who)
		}
	}
	if now := []string{h.token(true), h.token(false)}; !slices.Equal(now, tokens) {
		t.Error("the join tokens are others than before")
	}
	if err := h.RotateTokens(t.Context(), true, true); err != nil || h.token(true) == tokens[0] || h.token(false) == tokens[1] {
		t.Errorf("after that they cannot be replaced: %v", err)
	}
}

// TestTheLeaderSealsByItself: somebody who upgrades has nothing to do.
func TestTheLeaderSealsByItself(t *testing.T) {
	h := newHouse(t)
	h.earlier()
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- h.Lead(ctx) }()
		synctest.Wait()
		if !h.Sealed() {
			t.Error("the leader leaves the keys in clear")
		}
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

// TestALostKeyIsFetched from another server, unless autolock is on.
func TestALostKeyIsFetched(t *testing.T) {
	h := founded(t)
	lost := New(Deps{Store: h.Store, Keys: keyFile(t), NodeID: "server-2", Client: h.port("server-2").Client(), Log: quiet, Addresses: func() []wire.ServerAddress { return h.others }})
	if err := lost.settle(t.Context()); err == nil {
		t.Error("a key came from nowhere")
	}
	h.server("server-1", h.ShareKey)
	unlock, err := h.SetAutolock(t.Context(), true)
	if err != nil || unlock == "" {
		t.Fatalf("%q, %v", unlock, err)
	}
	if err := lost.settle(t.Context()); !fault.Is(err, fault.Forbidden) && err == nil {
		t.Errorf("with autolock a certificate is enough for the key: %v", err)
	}
	if _, err := h.SetAutolock(t.Context(), false); err != nil {
		t.Fatal(err)
	}
	if err := lost.settle(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := lost.JoinToken(true); err != nil {
		t.Errorf("with the fetched key: %v", err)
	}
}

// TestAutolock restarts a server: until it is unlocked it refuses what needs the keys, by name.
func TestAutolock(t *testing.T) {
	h := founded(t)
	path := filepath.Join(t.TempDir(), "cluster.key")
	key, err := h.Keys.Key()
	if err != nil {
		t.Fatal(err)
	}
	load := func() *Trust {
		k, err := secret.LoadKeyFile(path)
		if err != nil {
			t.Fatal(err)
		}
		return New(Deps{Store: h.Store, Keys: k, NodeID: "server-1", Log: quiet, Addresses: func() []wire.ServerAddress { return nil }})
	}
	s := load()
	if err := s.Keys.Keep(key); err != nil {
		t.Fatal(err)
	}
	first, err := s.SetAutolock(t.Context(), true)
	if err != nil {
		t.Fatal(err)
	}
	h.Trust = load()
	if !h.Locked() {
		t.Fatal("it is not locked after it was started again")
	}
	if _, err := h.join(wire.JoinToken(h.authority.Hash(), "x"), wire.Newcomer{NodeID: "n"}); err == nil || !strings.Contains(err.Error(), "unlock") {
		t.Errorf("a locked server says on joining: %v", err)
	}
	if _, err := h.SecretKey(); err == nil || !strings.Contains(err.Error(), "unlock") {
		t.Errorf("a locked server opens secrets: %v", err)
	}
	if v, err := h.View(); err != nil || !v.Locked || !v.Autolock {
		t.Errorf("it says of itself %+v, %v", v, err)
	}
	if err := h.Unlock(t.Context(), secret.NewUnlockKey()); err == nil || !h.Locked() {
		t.Errorf("another key unlocked it: %v", err)
	}
	if err := h.Unlock(t.Context(), first); err != nil || h.Locked() {
		t.Fatalf("its key did not: %v", err)
	}
	if _, err := h.SecretKey(); err != nil {
		t.Error(err)
	}
	second, err := h.UnlockKey(t.Context(), true)
	if err != nil || second == first {
		t.Fatalf("%q after %q, %v", second, first, err)
	}
	h.Trust = load()
	if err := h.Unlock(t.Context(), first); err == nil {
		t.Error("the unlock key of before still opens the key file")
	}
	if err := h.Unlock(t.Context(), second); err != nil {
		t.Error(err)
	}
	if _, err := h.SetAutolock(t.Context(), false); err != nil {
		t.Fatal(err)
	}
	if h.Trust = load(); h.Locked() {
		t.Error("it is locked though autolock was turned off")
	}
	if _, err := h.UnlockKey(t.Context(), true); !fault.Is(err, fault.Invalid) {
		t.Errorf("replacing what is not there: %v", err)
	}
}

// TestTheAuthorityIsReplaced watches the leader drop the old one: when every node has moved and had
// some time since, or when the window has passed.
func TestTheAuthorityIsReplaced(t *testing.T) {
	for _, moves := range []bool{true, false} {
		h := founded(t)
		synctest.Test(t, func(t *testing.T) {
			old := h.authority.Hash()
			h.put(&model.Node{Meta: model.Meta{ID: "n1", Name: "n1"}, Certificate: model.NodeCertificate{Authority: old, Trusts: []string{old}}})
			ctx, cancel := context.WithCancel(context.Background())
			done := make(chan error, 1)
			go func() { done <- h.Lead(ctx) }()
			const window = time.Hour
			if err := h.RotateAuthority(ctx, window); err != nil {
				t.Fatal(err)
			}
			if err := h.RotateAuthority(ctx, window); !fault.Is(err, fault.Conflict) {
				t.Errorf("a second one at the same time: %v", err)
			}
			v, err := h.View()
			if err != nil || v.Authority == old || v.Retiring != old || !slices.Equal(v.Waiting, []string{"n1"}) {
				t.Errorf("under way it is %+v, %v", v, err)
			}
			if all, err := wire.AuthorityHashes(h.Trust.Trust().CA); err != nil || !slices.Equal(all, []string{v.Authority, old}) || len(h.Trust.Trust().Cross) == 0 {
				t.Errorf("believed are %v, %v", all, err)
			}
			time.Sleep(10 * time.Minute)
			if h.state().Retiring == nil {
				t.Fatal("it was dropped while a node has not moved")
			}
			began := time.Now()
			if moves {
				n, _ := store.Get[*model.Node](h.Store.Snapshot(), "n1")
				n = n.Clone()
				n.Certificate = model.NodeCertificate{Authority: v.Authority, Trusts: []string{v.Authority, old}}
				h.put(n)
			}
			for h.state().Retiring != nil {
				time.Sleep(time.Second)
			}
			took := time.Since(began)
			if moves && (took < settling || took > settling+10*time.Second) || !moves && took < window-15*time.Minute {
				t.Errorf("dropped after %v; the node moved: %v", took, moves)
			}
			if err := h.DropAuthority(ctx); !fault.Is(err, fault.Invalid) {
				t.Errorf("dropping what is not there: %v", err)
			}
			cancel()
			if err := <-done; err != nil {
				t.Error(err)
			}
		})
	}
}

// TestRenewal is for members, in the role that they have.
func TestRenewal(t *testing.T) {
	h := founded(t)
	csr, _, err := wire.NewRequest()
	if err != nil {
		t.Fatal(err)
	}
	renew := func(peer wire.Peer) (wire.RenewResponse, error) {
		return h.Renew(t.Context(), peer, wire.RenewRequest{CSR: csr})
	}
	if _, err := renew(wire.Peer{NodeID: "gone", Role: wire.RoleAgent}); !fault.Is(err, fault.Forbidden) {
		t.Errorf("who is no node gets a certificate: %v", err)
	}
	h.put(&model.Node{Meta: model.Meta{ID: "n1", Name: "n1"}})
	resp, err := renew(wire.Peer{NodeID: "n1", Role: wire.RoleAgent})
	if err != nil || len(resp.Cert) == 0 || !bytes.Equal(resp.Trust.CA, h.authority.CertPEM) {
		t.Errorf("%+v, %v", resp, err)
	}
}

// TestWhoMayPass is the gate of a server's port.
func TestWhoMayPass(t *testing.T) {
	h := newHouse(t)
	agent, gone := wire.Peer{NodeID: "n1", Role: wire.RoleAgent}, wire.Peer{NodeID: "gone", Role: wire.RoleServer}
	if err := h.MayPass(agent, false, false); err != nil {
		t.Errorf("before there is a state: %v", err)
	}
	h.put(&model.Cluster{Meta: model.Meta{ID: model.ClusterID, Name: model.ClusterID}, Removed: []model.RemovedServer{{ID: "gone"}}}, &model.Node{Meta: model.Meta{ID: "n1", Name: "n1"}})
	stranger := wire.Peer{NodeID: "n2", Role: wire.RoleServer}
	for _, c := range []struct {
		what                  string
		peer                  wire.Peer
		replication, caughtUp bool
		want                  error
	}{
		{"a member", agent, false, true, nil},
		{"a removed server", gone, false, true, errForbidden},
		{"a removed server's replication", gone, true, false, errForbidden},
		{"a server not heard of yet", stranger, true, true, nil},
		{"a stranger, while catching up", stranger, false, false, errUnavailable},
		{"a stranger", stranger, false, true, errForbidden},
	} {
		err := h.MayPass(c.peer, c.replication, c.caughtUp)
		if (err == nil) != (c.want == nil) || c.want != nil && fault.KindOf(err) != fault.KindOf(c.want) {
			t.Errorf("%s: %v", c.what, err)
		}
	}
	if err := h.MayPass(agent, true, true); err != nil {
		t.Error(err)
	}
}

var errForbidden, errUnavailable = fault.New(fault.Forbidden, "forbidden"), fault.New(fault.Unavailable, "unavailable")
