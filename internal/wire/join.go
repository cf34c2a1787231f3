package wire

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"slices"

	"github.com/tutti-run/tutti/internal/fault"
)

// Paths of what concerns certificates.
const (
	PathJoin  = "/join"       // open to anybody: JoinRequest → JoinResponse
	PathRenew = "/node/renew" // call: RenewRequest → RenewResponse
)

// Newcomer is a host that wants to be a node.
type Newcomer struct {
	NodeID  string `json:"nodeID"`            // chosen by itself
	Name    string `json:"name,omitempty"`    // of the node
	Address string `json:"address,omitempty"` // IP address under which others reach it
	Port    int    `json:"port,omitempty"`
}

// JoinRequest asks to be admitted.
type JoinRequest struct {
	Newcomer
	Secret string `json:"secret"` // of the token; it decides about the role
	CSR    []byte `json:"csr"`    // PEM
}

// JoinResponse admits.
type JoinResponse struct {
	Role    Role            `json:"role"`
	Cert    []byte          `json:"cert"` // PEM
	Servers []ServerAddress `json:"servers"`
	Trust   Trust           `json:"trust"` // empty: the authority that the server showed
	// Key, for a server, seals the cluster's own keys; see secret.KeyFile.
	Key []byte `json:"key,omitempty"`
}

// RenewRequest asks for a new certificate for the node that asks.
type RenewRequest struct {
	CSR []byte `json:"csr"` // PEM
}

// RenewResponse carries it, and whom to believe from now on.
type RenewResponse struct {
	Cert  []byte `json:"cert"` // PEM
	Trust Trust  `json:"trust"`
}

// Joined is what a newcomer has once it is admitted.
type Joined struct {
	*Identity
	Servers []ServerAddress
	Key     []byte // see JoinResponse
}

// Join asks the server at the address for a certificate. The token's hash decides whether the
// server is believed: nothing secret is sent before that is checked.
func Join(ctx context.Context, address, token string, who Newcomer) (*Joined, error) {
	hash, secret, err := ParseToken(token)
	if err != nil {
		return nil, err
	}
	var caPEM []byte
	config := &tls.Config{
		MinVersion: tls.VersionTLS13, NextProtos: []string{protoHTTP},
		// The chain is verified below, against the one authority that the token names.
		InsecureSkipVerify: true,
		VerifyConnection: func(cs tls.ConnectionState) error {
			root, err := VerifyPinned(cs.PeerCertificates, hash)
			if err == nil {
				caPEM = encodeCert(root.Raw)
			}
			return err
		},
	}
	c := newClient(TCP{}, func(bool) *tls.Config { return config })
	defer c.close()
	csr, key, err := NewRequest()
	if err != nil {
		return nil, err
	}
	resp, err := Call[JoinRequest, JoinResponse](ctx, c, address, PathJoin, JoinRequest{Newcomer: who, Secret: secret, CSR: csr})
	if err != nil {
		return nil, err
	}
	if caPEM == nil {
		return nil, errors.New("the server showed no certificate")
	}
	if len(resp.Trust.CA) > 0 {
		caPEM = resp.Trust.CA
	}
	if cert, err := decodeCert(resp.Cert); err != nil {
		return nil, fault.New(fault.Internal, "the server sent a certificate that cannot be read: %w", err)
	} else if peer, err := peerOf(cert); err != nil || peer != (Peer{NodeID: who.NodeID, Role: resp.Role}) {
		return nil, fault.New(fault.Internal, "the server sent a certificate for another node")
	}
	return &Joined{
		Identity: &Identity{NodeID: who.NodeID, Role: resp.Role, CertPEM: resp.Cert, KeyPEM: key, CAPEM: caPEM, CrossPEM: resp.Trust.Cross},
		Servers:  resp.Servers, Key: resp.Key,
	}, nil
}

// VerifyPinned returns the authority of that hash when it is among the certificates that a server
// showed, and the server is one of its cluster. Any node could answer in a server's place; what is
// to be told is for servers only.
func VerifyPinned(shown []*x509.Certificate, hash string) (*x509.Certificate, error) {
	i := slices.IndexFunc(shown, func(c *x509.Certificate) bool { return authorityHash(c.Raw) == hash })
	if i < 1 {
		return nil, fault.New(fault.Forbidden, "the server belongs to another cluster than the token, or its authority was replaced since: `tutti token` on a server prints the present one")
	}
	roots, between := x509.NewCertPool(), x509.NewCertPool()
	roots.AddCert(shown[i])
	for _, c := range shown[1:] {
		between.AddCert(c)
	}
	if _, err := shown[0].Verify(x509.VerifyOptions{Roots: roots, Intermediates: between, DNSName: tlsName}); err != nil {
		return nil, fault.New(fault.Forbidden, "the server's certificate is not of its cluster: %w", err)
	}
	return shown[i], mustBeServer(shown[0])
}

// Renewed returns the identity with a new certificate for the key, after a look at whether it is one
// that works.
func (id *Identity) Renewed(r RenewResponse, keyPEM []byte) (*Identity, error) {
	next := &Identity{NodeID: id.NodeID, Role: id.Role, CertPEM: r.Cert, KeyPEM: keyPEM, CAPEM: r.Trust.CA, CrossPEM: r.Trust.Cross}
	c, err := newCredentials(next)
	if err != nil {
		return nil, err
	}
	if peer, err := peerOf(c.cert.Leaf); err != nil || peer != (Peer{NodeID: id.NodeID, Role: id.Role}) {
		return nil, fault.New(fault.Internal, "the server sent a certificate for another node")
	}
	if err := c.verify([]*x509.Certificate{c.cert.Leaf}); err != nil {
		return nil, fault.New(fault.Internal, "the server sent a certificate that its authority has not signed: %w", err)
	}
	return next, nil
}

// Trusting returns the identity with other authorities, or itself when they are the same.
func (id *Identity) Trusting(t Trust) *Identity {
	if len(t.CA) == 0 || bytes.Equal(t.CA, id.CAPEM) && bytes.Equal(t.Cross, id.CrossPEM) {
		return id
	}
	next := *id
	next.CAPEM, next.CrossPEM = t.CA, t.Cross
	return &next
}
