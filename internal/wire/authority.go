package wire

import (
	"cmp"
	"crypto/ecdsa"
	"crypto/ed25519"
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
	"net"
	"os"
	"path/filepath"
	"slices"
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

// RoleUser is in the certificates of people; no path between nodes is theirs.
const RoleUser Role = "user"

// CertificateLife is how long certificates of nodes are valid, unless something else is chosen.
const CertificateLife = 90 * 24 * time.Hour

// Backdated is how long before it was issued a certificate begins to be valid: clocks differ.
const Backdated = time.Hour

const authorityLife = 10 * 365 * 24 * time.Hour

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
	number := serial()
	template := &x509.Certificate{
		// Names differ, so that two authorities of a cluster are told apart.
		SerialNumber: number, Subject: pkix.Name{CommonName: "Tutti cluster authority " + number.Text(36)[:6]},
		NotBefore: now.Add(-Backdated), NotAfter: now.Add(authorityLife),
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

// Hash identifies the authority; join tokens carry it.
func (a *Authority) Hash() string { return authorityHash(a.cert.Raw) }

// CrossSign certifies another authority's key by this one: who believes only this one then
// believes what the other has signed.
func (a *Authority) CrossSign(other *Authority) ([]byte, error) {
	der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{
		SerialNumber: serial(), Subject: other.cert.Subject, SubjectKeyId: other.cert.SubjectKeyId,
		NotBefore: other.cert.NotBefore, NotAfter: a.cert.NotAfter,
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
	}, a.cert, &other.key.PublicKey, a.key)
	if err != nil {
		return nil, fmt.Errorf("certify the other authority: %w", err)
	}
	return encodeCert(der), nil
}

// Holder is whom a certificate names, and what else it says.
type Holder struct {
	Name string // a node's ID, a user's name
	Role Role
	ID   string   // a user's ID, so that a later user of the same name is another one
	DNS  []string // names besides the one that all nodes share
	IPs  []net.IP
	Life time.Duration // 0 is CertificateLife
}

// Sign issues a certificate for a node: its common name is the node's ID, its organizational unit
// the role. Nothing but the public key is taken from the request.
func (a *Authority) Sign(csrPEM []byte, nodeID string, role Role) ([]byte, error) {
	return a.Issue(csrPEM, Holder{Name: nodeID, Role: role})
}

// Issue issues a certificate for the holder; nothing but the public key is taken from the request.
func (a *Authority) Issue(csrPEM []byte, h Holder) ([]byte, error) {
	key, err := requestedKey(csrPEM)
	if err != nil {
		return nil, err
	}
	now := time.Now()
	end := now.Add(cmp.Or(h.Life, CertificateLife))
	if end.After(a.cert.NotAfter) {
		end = a.cert.NotAfter
	}
	template := &x509.Certificate{
		SerialNumber: serial(),
		Subject:      pkix.Name{CommonName: h.Name, OrganizationalUnit: []string{string(h.Role)}, SerialNumber: h.ID},
		NotBefore:    now.Add(-Backdated), NotAfter: end,
		KeyUsage:    x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}
	if h.Role != RoleUser {
		template.DNSNames, template.IPAddresses = append([]string{tlsName}, h.DNS...), h.IPs
		template.ExtKeyUsage = append(template.ExtKeyUsage, x509.ExtKeyUsageServerAuth)
	}
	der, err := x509.CreateCertificate(rand.Reader, template, a.cert, key, a.key)
	if err != nil {
		return nil, fmt.Errorf("sign certificate: %w", err)
	}
	return encodeCert(der), nil
}

// IssueHost issues a certificate with which a host name of a route is served. It names no node and no user, so
// that nobody is believed by it between nodes or at an API.
func (a *Authority) IssueHost(csrPEM []byte, host string, life time.Duration) ([]byte, error) {
	key, err := requestedKey(csrPEM)
	if err != nil {
		return nil, err
	}
	if host == tlsName {
		return nil, fault.New(fault.Invalid, "%s is the name that nodes have between themselves", host)
	}
	now := time.Now()
	end := now.Add(life)
	if end.After(a.cert.NotAfter) {
		end = a.cert.NotAfter
	}
	der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{
		SerialNumber: serial(), NotBefore: now.Add(-Backdated), NotAfter: end, DNSNames: []string{host},
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}, a.cert, key, a.key)
	if err != nil {
		return nil, fmt.Errorf("sign certificate: %w", err)
	}
	return encodeCert(der), nil
}

// requestedKey returns the public key of a certificate request, whose owner has proved to have the
// private one.
func requestedKey(csrPEM []byte) (any, error) {
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
	switch csr.PublicKey.(type) {
	case *ecdsa.PublicKey, ed25519.PublicKey:
		return csr.PublicKey, nil
	}
	return nil, fault.New(fault.Invalid, "the certificate request has a %s key; ECDSA and Ed25519 are accepted", csr.PublicKeyAlgorithm)
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
func (a *Authority) Token(secret string) string { return JoinToken(a.Hash(), secret) }

// JoinToken is Token for who knows the authority by its hash.
func JoinToken(hash, secret string) string {
	return strings.Join([]string{tokenPrefix, hash, secret}, "-")
}

// ParseToken splits a join token into the authority's hash and the secret.
func ParseToken(token string) (hash, secret string, err error) {
	parts := strings.Split(strings.TrimSpace(token), "-")
	if len(parts) != 3 || parts[0] != tokenPrefix || len(parts[1]) != 32 || parts[2] == "" {
		return "", "", fault.New(fault.Invalid, "this is not a join token; `tutti token` on a server prints one")
	}
	return parts[1], parts[2], nil
}

// Identity is what a node proves itself with, and whom it believes. All of it is PEM.
type Identity struct {
	NodeID          string
	Role            Role
	CertPEM, KeyPEM []byte
	// CAPEM are the authorities that the node believes, the one that signs first; CrossPEM leads
	// from that one to the one before, while there are two.
	CAPEM, CrossPEM []byte
}

// LoadIdentity reads an identity that Save wrote; fault.NotFound when there is none.
func LoadIdentity(dir string) (*Identity, error) {
	id := &Identity{}
	for name, to := range map[string]*[]byte{certFile: &id.CertPEM, keyFile: &id.KeyPEM, caFile: &id.CAPEM, crossFile: &id.CrossPEM} {
		data, err := os.ReadFile(filepath.Join(dir, name))
		if errors.Is(err, os.ErrNotExist) && (name == keyFile || name == crossFile) {
			continue
		}
		if errors.Is(err, os.ErrNotExist) {
			return nil, fault.New(fault.NotFound, "this host has no identity yet")
		}
		if err != nil {
			return nil, fmt.Errorf("read identity: %w", err)
		}
		*to = data
	}
	if len(id.KeyPEM) == 0 {
		id.CertPEM, id.KeyPEM = splitKey(id.CertPEM)
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

const (
	certFile = "node.crt" // the certificate and its key, so that both are replaced at once
	keyFile  = "node.key" // the key, as earlier versions kept it
	caFile   = "ca.crt"
	// crossFile is empty but for the time in which an authority takes over from another.
	crossFile = "cross.crt"
)

// splitKey takes the certificates and the key of a file apart.
func splitKey(data []byte) (certPEM, keyPEM []byte) {
	for {
		var block *pem.Block
		if block, data = pem.Decode(data); block == nil {
			return certPEM, keyPEM
		}
		if strings.HasSuffix(block.Type, "PRIVATE KEY") {
			keyPEM = append(keyPEM, pem.EncodeToMemory(block)...)
		} else {
			certPEM = append(certPEM, pem.EncodeToMemory(block)...)
		}
	}
}

// Save writes the identity, readable by its owner alone. A crash in the middle leaves one that works.
func (id *Identity) Save(dir string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("save identity: %w", err)
	}
	for _, f := range []struct {
		name string
		data []byte
	}{{caFile, id.CAPEM}, {crossFile, id.CrossPEM}, {certFile, slices.Concat(id.CertPEM, id.KeyPEM)}} {
		if err := atomicfile.WriteSynced(filepath.Join(dir, f.name), f.data); err != nil {
			return fmt.Errorf("save identity: %w", err)
		}
	}
	if err := os.Remove(filepath.Join(dir, keyFile)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("save identity: %w", err)
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
