package wire

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/tutti-run/tutti/internal/fault"
)

// Trust is whom the nodes of a cluster believe, in PEM.
type Trust struct {
	CA    []byte `json:"ca"`              // the authority that signs, then those that are believed still
	Cross []byte `json:"cross,omitempty"` // the first one's key, certified by the one before
}

// AuthorityHashes identifies the authorities in a PEM bundle, in its order.
func AuthorityHashes(caPEM []byte) ([]string, error) {
	certs, err := decodeCerts(caPEM)
	var out []string
	for _, c := range certs {
		out = append(out, authorityHash(c.Raw))
	}
	return out, err
}

func decodeCerts(data []byte) ([]*x509.Certificate, error) {
	var out []*x509.Certificate
	for {
		var block *pem.Block
		if block, data = pem.Decode(data); block == nil {
			return out, nil
		}
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("read certificate: %w", err)
		}
		out = append(out, c)
	}
}

// credentials is what a port proves itself with and whom it believes, at one time.
type credentials struct {
	cert   tls.Certificate // with all that leads to any authority that somebody may believe
	roots  *x509.CertPool
	server *tls.Config
	issuer string // hash of the authority that signed
	trusts []string
	ends   time.Time
	life   time.Duration
}

func newCredentials(id *Identity) (*credentials, error) {
	cert, err := tls.X509KeyPair(id.CertPEM, id.KeyPEM)
	if err != nil {
		return nil, fmt.Errorf("use this node's certificate: %w", err)
	}
	authorities, err := decodeCerts(id.CAPEM)
	if err == nil && len(authorities) == 0 {
		err = errors.New("there is none")
	}
	if err != nil {
		return nil, fmt.Errorf("use the cluster's authority: %w", err)
	}
	cross, err := decodeCerts(id.CrossPEM)
	if err != nil {
		return nil, fmt.Errorf("use the authority's other certificate: %w", err)
	}
	c := &credentials{roots: x509.NewCertPool(), ends: cert.Leaf.NotAfter, life: cert.Leaf.NotAfter.Sub(cert.Leaf.NotBefore)}
	cert.Certificate = cert.Certificate[:1]
	for _, x := range cross {
		cert.Certificate = append(cert.Certificate, x.Raw)
	}
	for _, a := range slices.Backward(authorities) {
		c.roots.AddCert(a)
		cert.Certificate = append(cert.Certificate, a.Raw) // newcomers look for the one that their token names
	}
	for _, a := range authorities {
		c.trusts = append(c.trusts, authorityHash(a.Raw))
		if c.issuer == "" && cert.Leaf.CheckSignatureFrom(a) == nil {
			c.issuer = authorityHash(a.Raw)
		}
	}
	c.cert = cert
	c.server = &tls.Config{
		MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{cert},
		ClientCAs: c.roots, ClientAuth: tls.VerifyClientCertIfGiven,
		NextProtos: []string{protoHTTP, protoRaft}, SessionTicketsDisabled: true, // believed once is not believed for ever
	}
	return c, nil
}

// client is the configuration for connecting; with ofServers only servers are believed.
func (c *credentials) client(proto string, ofServers bool) *tls.Config {
	t := &tls.Config{
		MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{c.cert},
		RootCAs: c.roots, ServerName: tlsName, NextProtos: []string{proto},
	}
	if ofServers {
		t.VerifyConnection = func(cs tls.ConnectionState) error { return mustBeServer(cs.PeerCertificates[0]) }
	}
	return t
}

// mustBeServer keeps an agent, whose certificate is of the cluster, too, from passing for a server.
func mustBeServer(cert *x509.Certificate) error {
	if peer, err := peerOf(cert); err != nil || peer.Role != RoleServer {
		return fault.New(fault.Forbidden, "the node that answers is no server of its cluster")
	}
	return nil
}

// verify says whether a peer that was believed once would be believed now.
func (c *credentials) verify(chain []*x509.Certificate) error {
	between := x509.NewCertPool()
	for _, cert := range chain[1:] {
		between.AddCert(cert)
	}
	_, err := chain[0].Verify(x509.VerifyOptions{
		Roots: c.roots, Intermediates: between, CurrentTime: time.Now(),
		KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	})
	return err
}

// ForPeople is the configuration of a listener for people's APIs, with this node's certificate and the
// authorities that are believed, as they are at each handshake.
func (p *Port) ForPeople() *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS12,
		GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) {
			c := p.credentials.Load().server.Clone()
			c.MinVersion, c.NextProtos = tls.VersionTLS12, []string{protoHTTP, "http/1.1"}
			return c, nil
		},
	}
}

// Standing is how a node's certificate is.
type Standing struct {
	Authority string    // hash of the authority that signed it
	Trusts    []string  // hashes of the authorities that the node believes
	Ends      time.Time // of its validity
	// Renew is when it should be replaced: with a third of its life left.
	Renew time.Time
}

// Standing tells how this node's certificate is.
func (p *Port) Standing() Standing {
	c := p.credentials.Load()
	return Standing{Authority: c.issuer, Trusts: c.trusts, Ends: c.ends, Renew: c.ends.Add(-c.life / 3)}
}

// Identity returns what this node proves itself with at present.
func (p *Port) Identity() *Identity { return p.identity.Load() }

// SetIdentity replaces certificate and authorities. Calls that are under way, and streams, go on over
// the connections that they have; new ones use the new certificate. Connections of peers that would
// not be believed any more are closed.
func (p *Port) SetIdentity(id *Identity) error {
	c, err := newCredentials(id)
	if err != nil {
		return err
	}
	p.identity.Store(id)
	p.credentials.Store(c)
	p.client.renew()
	p.Enforce()
	return nil
}

// Enforce closes the connections of peers that would not be let in any more: their certificate has
// ended, its authority is not believed, or the gate says so.
func (p *Port) Enforce() {
	now := p.credentials.Load()
	for _, o := range p.open.list() {
		if len(o.chain) == 0 {
			continue // a newcomer
		}
		peer, err := peerOf(o.chain[0])
		switch {
		case err != nil:
		case o.believedBy.Load() != now:
			if err = now.verify(o.chain); err == nil {
				o.believedBy.Store(now)
			}
		case time.Now().After(o.chain[0].NotAfter):
			err = fault.New(fault.Forbidden, "its certificate has ended")
		}
		if err == nil {
			err = p.mayPass(peer, o.replication)
		}
		if err != nil {
			p.log.Info("connection of a peer is closed", "node", peer.NodeID, "from", o.conn.RemoteAddr(), "reason", err)
			o.conn.Close()
		}
	}
}
