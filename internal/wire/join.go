package wire

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"encoding/hex"
	"encoding/pem"
	"errors"

	"github.com/tutti-run/tutti/internal/fault"
)

// PathJoin is where servers admit newcomers.
const PathJoin = "/join"

// JoinRequest asks to be admitted.
type JoinRequest struct {
	NodeID string `json:"nodeID"` // chosen by the newcomer
	Secret string `json:"secret"` // of the token; it decides about the role
	CSR    []byte `json:"csr"`    // PEM
}

// JoinResponse admits.
type JoinResponse struct {
	Role    Role            `json:"role"`
	Cert    []byte          `json:"cert"` // PEM
	Servers []ServerAddress `json:"servers"`
}

// Join asks the server at the address for a certificate. The token's hash decides whether the
// server is believed: nothing secret is sent before that is checked.
func Join(ctx context.Context, address, token, nodeID string) (*Identity, []ServerAddress, error) {
	hash, secret, err := ParseToken(token)
	if err != nil {
		return nil, nil, err
	}
	var caPEM []byte
	c := newClient(TCP{}, &tls.Config{
		MinVersion: tls.VersionTLS13,
		// The chain is verified below, against the one authority that the token names.
		InsecureSkipVerify: true,
		VerifyConnection: func(cs tls.ConnectionState) error {
			last := cs.PeerCertificates[len(cs.PeerCertificates)-1]
			if sum := sha256.Sum256(last.Raw); hex.EncodeToString(sum[:16]) != hash {
				return fault.New(fault.Forbidden, "the server belongs to another cluster than the token")
			}
			if err := cs.PeerCertificates[0].CheckSignatureFrom(last); err != nil {
				return fault.New(fault.Forbidden, "the server's certificate is not of its cluster: %w", err)
			}
			// Any node could answer here; the secret is for servers only.
			if peer, err := peerOf(cs.PeerCertificates[0]); err != nil || peer.Role != RoleServer {
				return fault.New(fault.Forbidden, "the node that answers is no server of its cluster")
			}
			caPEM = pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: last.Raw})
			return nil
		},
	})
	defer c.close()
	csr, key, err := NewRequest()
	if err != nil {
		return nil, nil, err
	}
	resp, err := Call[JoinRequest, JoinResponse](ctx, c, address, PathJoin, JoinRequest{NodeID: nodeID, Secret: secret, CSR: csr})
	if err != nil {
		return nil, nil, err
	}
	if caPEM == nil {
		return nil, nil, errors.New("the server showed no certificate")
	}
	if cert, err := decodeCert(resp.Cert); err != nil {
		return nil, nil, fault.New(fault.Internal, "the server sent a certificate that cannot be read: %w", err)
	} else if peer, err := peerOf(cert); err != nil || peer != (Peer{NodeID: nodeID, Role: resp.Role}) {
		return nil, nil, fault.New(fault.Internal, "the server sent a certificate for another node")
	}
	return &Identity{NodeID: nodeID, Role: resp.Role, CertPEM: resp.Cert, KeyPEM: key, CAPEM: caPEM}, resp.Servers, nil
}
