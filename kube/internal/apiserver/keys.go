package apiserver

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"time"

	"github.com/tutti-run/tutti/internal/core"
	"github.com/tutti-run/tutti/internal/fault"
	"github.com/tutti-run/tutti/internal/secret"
)

// keysKey is where the shared keys are in the key space, and what they are sealed as.
const keysKey = "kubernetes-keys"

const (
	authorityLife   = 10 * 365 * 24 * time.Hour
	certificateLife = 365 * 24 * time.Hour // made anew at each start
	backdated       = time.Hour
)

// pair is a certificate and its key, in PEM.
type pair struct {
	Cert []byte `json:"cert"`
	Key  []byte `json:"key"`
}

// sharedKeys are those that all API servers of a cluster have.
type sharedKeys struct {
	// CA signs certificates of clients, of kubelets and of the API servers; FrontProxy those with which
	// an API server speaks with aggregated ones.
	CA         pair `json:"ca"`
	FrontProxy pair `json:"frontProxy"`
	// ServiceAccounts signs tokens of service accounts; PEM.
	ServiceAccounts []byte `json:"serviceAccounts"`
}

// keySpace is what the keys are kept in.
type keySpace interface {
	Keys(ctx context.Context, q core.KeyQuery) (core.KeyList, error)
	ChangeKeys(ctx context.Context, k core.KeyChanges) (revision uint64, err error)
}

// loadKeys returns the cluster's keys; the first server makes them.
func loadKeys(ctx context.Context, keys keySpace, sealing []byte) (*sharedKeys, error) {
	for {
		list, err := keys.Keys(ctx, core.KeyQuery{From: keysKey, To: keysKey + "\x00"})
		if err != nil {
			return nil, err
		}
		if len(list.Keys) == 1 {
			data, err := secret.Open(sealing, list.Keys[0].Value, []byte(keysKey))
			if err != nil {
				return nil, fmt.Errorf("open key %s: %w", keysKey, err)
			}
			s := &sharedKeys{}
			return s, json.Unmarshal(data, s)
		}
		made, err := makeKeys()
		if err != nil {
			return nil, err
		}
		data, err := json.Marshal(made)
		if err != nil {
			return nil, err
		}
		sealed, err := secret.Seal(sealing, data, []byte(keysKey))
		if err != nil {
			return nil, err
		}
		_, err = keys.ChangeKeys(ctx, core.KeyChanges{Expect: map[string]uint64{keysKey: 0}, Put: []core.KeyPut{{Key: keysKey, Value: sealed}}})
		if err == nil {
			return made, nil
		}
		if !fault.Is(err, fault.Conflict) { // another server was first: take its keys
			return nil, err
		}
	}
}

func makeKeys() (*sharedKeys, error) {
	s := &sharedKeys{}
	var err error
	if s.CA, err = selfSigned("Kubernetes"); err != nil {
		return nil, err
	}
	if s.FrontProxy, err = selfSigned("Kubernetes front proxy"); err != nil {
		return nil, err
	}
	_, s.ServiceAccounts, err = newKey()
	return s, err
}

func newKey() (*ecdsa.PrivateKey, []byte, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, fmt.Errorf("make a key: %w", err)
	}
	der, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		return nil, nil, fmt.Errorf("encode a key: %w", err)
	}
	return key, pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: der}), nil
}

func selfSigned(name string) (pair, error) {
	key, keyPEM, err := newKey()
	if err != nil {
		return pair{}, err
	}
	template := template(pkix.Name{CommonName: name}, authorityLife)
	template.IsCA, template.BasicConstraintsValid = true, true
	template.KeyUsage = x509.KeyUsageCertSign | x509.KeyUsageCRLSign | x509.KeyUsageDigitalSignature
	return certify(template, template, key.Public(), key, keyPEM)
}

// issue makes a certificate for a subject that an authority signs. With names or addresses it is a
// server's, otherwise a client's.
func (authority pair) issue(subject pkix.Name, names []string, addresses []net.IP) (pair, error) {
	certBlock, _ := pem.Decode(authority.Cert)
	keyBlock, _ := pem.Decode(authority.Key)
	if certBlock == nil || keyBlock == nil {
		return pair{}, errors.New("an authority is not PEM")
	}
	parent, err := x509.ParseCertificate(certBlock.Bytes)
	if err != nil {
		return pair{}, fmt.Errorf("read an authority: %w", err)
	}
	signer, err := x509.ParseECPrivateKey(keyBlock.Bytes)
	if err != nil {
		return pair{}, fmt.Errorf("read an authority's key: %w", err)
	}
	key, keyPEM, err := newKey()
	if err != nil {
		return pair{}, err
	}
	template := template(subject, certificateLife)
	template.KeyUsage = x509.KeyUsageDigitalSignature
	template.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}
	if len(names)+len(addresses) > 0 {
		template.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}
	}
	template.DNSNames, template.IPAddresses = names, addresses
	return certify(template, parent, key.Public(), signer, keyPEM)
}

func template(subject pkix.Name, life time.Duration) *x509.Certificate {
	var serial [16]byte
	rand.Read(serial[:])
	now := time.Now()
	return &x509.Certificate{SerialNumber: new(big.Int).SetBytes(serial[:]), Subject: subject, NotBefore: now.Add(-backdated), NotAfter: now.Add(life)}
}

func certify(template, parent *x509.Certificate, public crypto.PublicKey, signer crypto.Signer, keyPEM []byte) (pair, error) {
	der, err := x509.CreateCertificate(rand.Reader, template, parent, public, signer)
	if err != nil {
		return pair{}, fmt.Errorf("sign a certificate: %w", err)
	}
	return pair{Cert: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), Key: keyPEM}, nil
}
