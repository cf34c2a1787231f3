package trust

import (
	"context"
	"crypto/subtle"
	"net"
	"net/netip"
	"strconv"
	"time"

	"github.com/tutti-run/tutti/internal/fault"
	"github.com/tutti-run/tutti/internal/model"
	"github.com/tutti-run/tutti/internal/store"
	"github.com/tutti-run/tutti/internal/wire"
)

// Admit signs the certificate of a newcomer that knows one of the join secrets, and makes it a node:
// from then on, until the node is removed, that certificate lets it in.
func (t *Trust) Admit(ctx context.Context, req wire.JoinRequest) (wire.JoinResponse, error) {
	cl, m, err := t.cluster()
	if err != nil {
		return wire.JoinResponse{}, err
	}
	role := m.roleOf(req.Secret)
	if role == "" {
		return wire.JoinResponse{}, fault.New(fault.Forbidden, "the join token is not valid (any more); `tutti token` on a server prints one")
	}
	if err := checkNewcomer(&req.Newcomer); err != nil {
		return wire.JoinResponse{}, err
	}
	node := newcomerNode(&req.Newcomer, role)
	a, err := wire.LoadAuthority(cl.CACertificate, m.CAKey)
	if err != nil {
		return wire.JoinResponse{}, err
	}
	cert, err := a.Issue(req.CSR, t.holder(node, role))
	if err != nil {
		return wire.JoinResponse{}, err
	}
	resp := wire.JoinResponse{Role: role, Cert: cert, Servers: t.Addresses(), Trust: trustOf(cl)}
	if role == wire.RoleServer && len(cl.Sealed) > 0 {
		if resp.Key, err = t.Keys.Key(); err != nil {
			return wire.JoinResponse{}, err
		}
	}
	hashes, err := wire.AuthorityHashes(resp.Trust.CA)
	if err != nil {
		return wire.JoinResponse{}, err
	}
	node.Certificate = model.NodeCertificate{Authority: a.Hash(), Trusts: hashes}
	t.awaitDown(ctx, node)
	cs := &store.ChangeSet{}
	if err := register(t.Store.Snapshot(), cs, node); err != nil {
		return wire.JoinResponse{}, err
	}
	if _, err := t.Store.Commit(ctx, cs); err != nil {
		return wire.JoinResponse{}, err
	}
	t.Log.Info("host admitted", "node", req.NodeID, "name", node.Name, "role", role)
	return resp, nil
}

// roleOf says what a join secret admits to, nothing when it admits to nothing.
func (m *material) roleOf(given string) wire.Role {
	role := wire.Role("")
	for _, s := range []struct {
		secret string
		role   wire.Role
	}{{m.ServerSecret, wire.RoleServer}, {m.AgentSecret, wire.RoleAgent}} {
		if s.secret != "" && subtle.ConstantTimeCompare([]byte(s.secret), []byte(given)) == 1 {
			role = s.role
		}
	}
	return role
}

func checkNewcomer(n *wire.Newcomer) error {
	if err := model.CheckName(n.NodeID); err != nil {
		return fault.New(fault.Invalid, "node ID %w", err)
	}
	if n.Name == "" {
		n.Name = n.NodeID // one of an earlier version: it says its name when it begins its session
	}
	if err := model.CheckName(n.Name); err != nil {
		return fault.New(fault.Invalid, "node name %w", err)
	}
	if _, err := netip.ParseAddr(n.Address); n.Address != "" && err != nil {
		return fault.New(fault.Invalid, "address %q: an IP address is accepted", n.Address)
	}
	if n.Port < 0 || n.Port > 65535 {
		return fault.New(fault.Invalid, "port %d does not exist", n.Port)
	}
	return nil
}

// newcomerNode is what is known of a node before its first session.
func newcomerNode(n *wire.Newcomer, role wire.Role) *model.Node {
	node := &model.Node{
		Meta:   model.Meta{ID: n.NodeID, Name: n.Name, Created: time.Now()},
		Server: role == wire.RoleServer, Availability: model.Active, HostAddress: n.Address,
		Status: model.NodeStatus{State: model.NodeUnknown, Since: time.Now()},
	}
	if n.Address != "" && n.Port != 0 {
		node.WireAddress = net.JoinHostPort(n.Address, strconv.Itoa(n.Port))
	}
	return node
}

// abandoned is how long a node that was admitted may take to come before its name is free again.
const abandoned = time.Minute

// leavingPatience is how long a host that comes anew waits for what it was before to be taken for down.
const leavingPatience = 15 * time.Second

// awaitDown waits while a host that has just left is still taken for the node that it was.
func (t *Trust) awaitDown(ctx context.Context, n *model.Node) {
	ctx, cancel := context.WithTimeout(ctx, leavingPatience)
	defer cancel()
	for {
		old, ok := store.ByName[*model.Node](t.Store.Snapshot(), "", "", n.Name)
		if !ok || old.ID == n.ID || !sameHost(old, n) || old.Status.Session == "" || old.Status.State == model.NodeDown {
			return
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// sameHost reports whether a newcomer is the host that another node was: by its name and address. Servers are
// members of the replication, which nobody but people takes them out of.
func sameHost(old, n *model.Node) bool {
	return old.Name == n.Name && old.HostAddress != "" && old.HostAddress == n.HostAddress && !old.Server
}

// register adds the node. A host whose joining was interrupted may try again, as the same node or as another one
// of the same name; and one that has left, or lost who it was, may come anew once what it was is down.
func register(snap *store.Snapshot, cs *store.ChangeSet, n *model.Node) error {
	var expect uint64
	if old, ok := store.Get[*model.Node](snap, n.ID); ok {
		if old.Status.Session != "" || old.Server != n.Server {
			return fault.New(fault.Conflict, "node %s exists already", n.ID)
		}
		expect = old.Revision
	}
	if old, ok := store.ByName[*model.Node](snap, "", "", n.Name); ok && old.ID != n.ID {
		came, again := old.Status.Session != "", sameHost(old, n) && old.Status.State == model.NodeDown
		if came && !again || !came && n.Created.Sub(old.Created) < abandoned {
			return fault.New(fault.Conflict, "a node is called %s already: choose another name with --name or, if it is gone for good, forget it with `tutti node rm %s`", n.Name, n.Name)
		}
		cs.Expect(model.KindNode, old.ID, old.Revision)
		cs.Delete(model.KindNode, old.ID)
	}
	cs.Expect(model.KindNode, n.ID, expect)
	cs.Put(n)
	return nil
}

// holder is what a node's certificate says. Servers answer people as well, who know them by address.
func (t *Trust) holder(n *model.Node, role wire.Role) wire.Holder {
	h := wire.Holder{Name: n.ID, Role: role, Life: t.CertificateLife}
	if role == wire.RoleServer {
		h.DNS = []string{n.Name}
		if ip := net.ParseIP(n.HostAddress); ip != nil {
			h.IPs = []net.IP{ip}
		}
	}
	return h
}

// Renew signs a new certificate for the peer that asks; its role stays what it was.
func (t *Trust) Renew(_ context.Context, peer wire.Peer, req wire.RenewRequest) (wire.RenewResponse, error) {
	cl, m, err := t.cluster()
	if err != nil {
		return wire.RenewResponse{}, err
	}
	n, ok := store.Get[*model.Node](t.Store.Snapshot(), peer.NodeID)
	if !ok {
		return wire.RenewResponse{}, fault.New(fault.Forbidden, "node %s is not of this cluster", peer.NodeID)
	}
	a, err := wire.LoadAuthority(cl.CACertificate, m.CAKey)
	if err != nil {
		return wire.RenewResponse{}, err
	}
	cert, err := a.Issue(req.CSR, t.holder(n, peer.Role))
	if err != nil {
		return wire.RenewResponse{}, err
	}
	t.Log.Info("certificate renewed", "node", n.Name, "authority", a.Hash())
	return wire.RenewResponse{Cert: cert, Trust: trustOf(cl)}, nil
}

// IssueHost signs a certificate for the host name of a route.
func (t *Trust) IssueHost(csrPEM []byte, host string, life time.Duration) ([]byte, error) {
	cl, m, err := t.cluster()
	if err != nil {
		return nil, err
	}
	a, err := wire.LoadAuthority(cl.CACertificate, m.CAKey)
	if err != nil {
		return nil, err
	}
	return a.IssueHost(csrPEM, host, life)
}

// Authority is the certificate of the cluster's present authority, in PEM.
func (t *Trust) Authority() ([]byte, error) {
	cl, _, err := t.cluster()
	if err != nil {
		return nil, err
	}
	return cl.CACertificate, nil
}

// IssueUser signs a user's certificate, valid for as long as life says.
func (t *Trust) IssueUser(u *model.User, csrPEM []byte, life time.Duration) (certPEM []byte, trust wire.Trust, err error) {
	cl, m, err := t.cluster()
	if err != nil {
		return nil, wire.Trust{}, err
	}
	a, err := wire.LoadAuthority(cl.CACertificate, m.CAKey)
	if err != nil {
		return nil, wire.Trust{}, err
	}
	certPEM, err = a.Issue(csrPEM, wire.Holder{Name: u.Name, Role: wire.RoleUser, ID: u.ID, Life: life})
	return certPEM, trustOf(cl), err
}
