package wire

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"strings"

	"github.com/tutti-run/tutti/internal/fault"
)

// ForPeopleOf is the configuration of a person's client. Servers are known by the authorities in caPEM or,
// without any, by the one that the token names; certPEM and keyPEM, if there are, say who asks.
func ForPeopleOf(caPEM, certPEM, keyPEM []byte, token string) (*tls.Config, error) {
	config := &tls.Config{MinVersion: tls.VersionTLS13, ServerName: tlsName}
	if len(certPEM) > 0 {
		cert, err := tls.X509KeyPair(certPEM, keyPEM)
		if err != nil {
			return nil, fault.New(fault.Invalid, "use the certificate: %w", err)
		}
		config.Certificates = []tls.Certificate{cert}
	}
	if len(caPEM) > 0 {
		config.RootCAs = x509.NewCertPool()
		if !config.RootCAs.AppendCertsFromPEM(caPEM) {
			return nil, fault.New(fault.Invalid, "the authority's certificate cannot be read")
		}
		config.VerifyConnection = func(cs tls.ConnectionState) error { return mustBeServer(cs.PeerCertificates[0]) }
		return config, nil
	}
	parts := strings.Split(token, "-")
	if len(parts) != 4 || len(parts[1]) != 32 {
		return nil, fault.New(fault.Invalid, "there is nothing to know the servers by: neither a certificate of the authority nor a token that names it")
	}
	config.InsecureSkipVerify = true // what is verified instead is stricter: the one authority that the token names
	config.VerifyConnection = func(cs tls.ConnectionState) error {
		if _, err := VerifyPinned(cs.PeerCertificates, parts[1]); err != nil {
			return fmt.Errorf("this is not the cluster of the token, or its authority was replaced since; give the new one: %w", err)
		}
		return nil
	}
	return config, nil
}
