package wire

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/tutti-run/tutti/internal/atomicfile"
	"github.com/tutti-run/tutti/internal/fault"
)

// Role is what a certificate entitles to.
type Role string

// The roles of nodes.
const (
	RoleServer Role = "server"
	RoleAgent  Role = "agent"
)

const (
	authorityLife   = 10 * 365 * 24 * time.Hour
	certificateLife = 365 * 24 * time.Hour
)

// Authority is the cluster's own certificate authority.
type Authority struct {
	CertPEM, KeyPEM []byte

	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

// NewAuthority makes an authority with a fresh P-256 key, valid for ten years.
func NewAuthority() (*Authority, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("make a key: %w", err)
	}
	now := time.Now()
	template := &x509.Certificate{
		SerialNumber: serial(), Subject: pkix.Name{CommonName: "Tutti cluster authority"},
		NotBefore: now.Add(-time.Hour), NotAfter: now.Add(authorityLife),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		return nil, fmt.Errorf("make the authority's certificate: %w", err)
	}
	keyPEM, err := encodeKey(key)
	if err != nil {
		return nil, err
	}
	return LoadAuthority(encodeCert(der), keyPEM)
}

// LoadAuthority reads an authority from its PEM forms.
func LoadAuthority(certPEM, keyPEM []byte) (*Authority, error) {
	cert, err := decodeCert(certPEM)
	if err != nil {
		return nil, fmt.Errorf("read the authority's certificate: %w", err)
	}
	block, _ := pem.Decode(keyPEM)
	if block == nil {
		return nil, errors.New("the authority's key is not PEM")
	}
	key, err := x509.ParseECPrivateKey(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("read the authority's key: %w", err)
	}
	return &Authority{CertPEM: certPEM, KeyPEM: keyPEM, cert: cert, key: key}, nil
}

func serial() *big.Int {
	var b [16]byte
	rand.Read(b[:])
	return new(big.Int).SetBytes(b[:])
}

func encodeCert(der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
}

func encodeKey(key *ecdsa.PrivateKey) ([]byte, error) {
	der, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		return nil, fmt.Errorf("encode key: %w", err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: der}), nil
}

func decodeCert(certPEM []byte) (*x509.Certificate, error) {
	block, _ := pem.Decode(certPEM)
	if block == nil {
		return nil, errors.New("not PEM")
	}
	return x509.ParseCertificate(block.Bytes)
}

// Sign issues a certificate for a node: its common name is the node's ID, its organizational unit
// the role. Nothing but the public key is taken from the request.
func (a *Authority) Sign(csrPEM []byte, nodeID string, role Role) ([]byte, error) {
	block, _ := pem.Decode(csrPEM)
	if block == nil {
		return nil, fault.New(fault.Invalid, "the certificate request is not PEM")
	}
	csr, err := x509.ParseCertificateRequest(block.Bytes)
	if err == nil {
		err = csr.CheckSignature()
	}
	if err != nil {
		return nil, fault.New(fault.Invalid, "the certificate request cannot be read: %w", err)
	}
	now := time.Now()
	der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{
		SerialNumber: serial(),
		Subject:      pkix.Name{CommonName: nodeID, OrganizationalUnit: []string{string(role)}},
		DNSNames:     []string{tlsName},
		NotBefore:    now.Add(-time.Hour), NotAfter: now.Add(certificateLife),
		KeyUsage:    x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth},
	}, a.cert, csr.PublicKey, a.key)
	if err != nil {
		return nil, fmt.Errorf("sign certificate: %w", err)
	}
	return encodeCert(der), nil
}

// NewRequest makes a key and a certificate request for it.
func NewRequest() (csrPEM, keyPEM []byte, err error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, fmt.Errorf("make a key: %w", err)
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
	if err != nil {
		return nil, nil, fmt.Errorf("make a certificate request: %w", err)
	}
	keyPEM, err = encodeKey(key)
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der}), keyPEM, err
}

// authorityHash identifies an authority's certificate in join tokens.
func authorityHash(der []byte) string {
	sum := sha256.Sum256(der)
	return hex.EncodeToString(sum[:16])
}

// tokenPrefix begins a join token and carries the version of its form.
const tokenPrefix = "tutti1"

// Token makes a join token: it admits whoever knows the secret, and names the authority that the
// newcomer is to trust.
func (a *Authority) Token(secret string) string {
	return strings.Join([]string{tokenPrefix, authorityHash(a.cert.Raw), secret}, "-")
}

// ParseToken splits a join token into the authority's hash and the secret.
func ParseToken(token string) (hash, secret string, err error) {
	parts := strings.Split(strings.TrimSpace(token), "-")
	if len(parts) != 3 || parts[0] != tokenPrefix || len(parts[1]) != 32 || parts[2] == "" {
		return "", "", fault.New(fault.Invalid, "this is not a join token; `tutti token` on a server prints one")
	}
	return parts[1], parts[2], nil
}

// Identity is what a node proves itself with.
type Identity struct {
	NodeID                 string
	Role                   Role
	CertPEM, KeyPEM, CAPEM []byte
}

// LoadIdentity reads an identity that Save wrote; fault.NotFound when there is none.
func LoadIdentity(dir string) (*Identity, error) {
	id := &Identity{}
	for name, to := range map[string]*[]byte{"node.crt": &id.CertPEM, "node.key": &id.KeyPEM, "ca.crt": &id.CAPEM} {
		data, err := os.ReadFile(filepath.Join(dir, name))
		if errors.Is(err, os.ErrNotExist) {
			return nil, fault.New(fault.NotFound, "this host has no identity yet")
		}
		if err != nil {
			return nil, fmt.Errorf("read identity: %w", err)
		}
		*to = data
	}
	cert, err := decodeCert(id.CertPEM)
	if err != nil {
		return nil, fmt.Errorf("read identity: %w", err)
	}
	peer, err := peerOf(cert)
	if err != nil {
		return nil, fmt.Errorf("read identity: %w", err)
	}
	id.NodeID, id.Role = peer.NodeID, peer.Role
	return id, nil
}

// Save writes the identity, readable by its owner alone.
func (id *Identity) Save(dir string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("save identity: %w", err)
	}
	for _, f := range []struct {
		name string
		data []byte
	}{{"ca.crt", id.CAPEM}, {"node.key", id.KeyPEM}, {"node.crt", id.CertPEM}} {
		if err := atomicfile.Write(filepath.Join(dir, f.name), f.data); err != nil {
			return fmt.Errorf("save identity: %w", err)
		}
	}
	return nil
}

// Peer is who is at the other end, by its certificate.
type Peer struct {
	NodeID string
	Role   Role
}

func peerOf(cert *x509.Certificate) (Peer, error) {
	if cert.Subject.CommonName == "" || len(cert.Subject.OrganizationalUnit) != 1 {
		return Peer{}, fault.New(fault.Forbidden, "the certificate names no node")
	}
	return Peer{NodeID: cert.Subject.CommonName, Role: Role(cert.Subject.OrganizationalUnit[0])}, nil
}
