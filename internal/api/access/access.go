// Package access is how adapters that listen on the network find out who makes a request, and answers
// those requests only whose caller is known. What the caller may do, package core decides.
package access

import (
	"context"
	"crypto/x509"
	"net/http"
	"strings"
	"time"

	"github.com/tutti-run/tutti/internal/core"
	"github.com/tutti-run/tutti/internal/fault"
	"github.com/tutti-run/tutti/internal/wire"
)

// Authenticator finds out who makes a request. known is false when the request has nothing in it that
// the authenticator understands, so that the next one can be asked.
type Authenticator interface {
	Authenticate(r *http.Request) (who core.Caller, known bool, err error)
}

// Tokens knows the cluster's users by the tokens in the header Authorization.
type Tokens struct{ Directory core.Directory }

// Authenticate implements Authenticator.
func (t Tokens) Authenticate(r *http.Request) (core.Caller, bool, error) {
	token, ok := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
	if !ok {
		return core.Caller{}, false, nil
	}
	who, err := t.Directory.ByToken(strings.TrimSpace(token))
	return who, true, err
}

// Certificates knows the cluster's users by certificates that its authority has signed. Those of nodes
// let nobody in here.
type Certificates struct{ Directory core.Directory }

// Authenticate implements Authenticator.
func (c Certificates) Authenticate(r *http.Request) (core.Caller, bool, error) {
	if r.TLS == nil || len(r.TLS.VerifiedChains) == 0 {
		return core.Caller{}, false, nil
	}
	who, err := c.of(r.TLS.VerifiedChains[0][0])
	return who, true, err
}

func (c Certificates) of(cert *x509.Certificate) (core.Caller, error) {
	units := cert.Subject.OrganizationalUnit
	if len(units) != 1 || units[0] != string(wire.RoleUser) {
		return core.Caller{}, fault.New(fault.Forbidden, "this is no certificate of a user")
	}
	if time.Now().After(cert.NotAfter) { // the connection may be older
		return core.Caller{}, fault.New(fault.Forbidden, "the certificate has ended on %s", cert.NotAfter.Format(time.DateTime))
	}
	return c.Directory.ByCertificate(cert.Subject.SerialNumber, cert.Subject.CommonName, cert.NotBefore.Add(wire.Backdated))
}

type callerKey struct{}

// Require lets requests through to h whose caller one of the authenticators knows; it asks them in order.
// refuse answers the others.
func Require(via string, all []Authenticator, refuse func(error) http.Handler, h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		for _, a := range all {
			who, known, err := a.Authenticate(r)
			if err != nil {
				refuse(err).ServeHTTP(w, r)
				return
			}
			if known {
				who.Via, who.From = via, r.RemoteAddr
				h.ServeHTTP(w, r.WithContext(context.WithValue(r.Context(), callerKey{}, who)))
				return
			}
		}
		w.Header().Set("WWW-Authenticate", "Bearer")
		refuse(fault.New(fault.Forbidden, "a user's certificate or token is needed")).ServeHTTP(w, r)
	})
}

// CallerOf returns who Require let through; ok is false for requests that did not pass it.
func CallerOf(ctx context.Context) (who core.Caller, ok bool) {
	who, ok = ctx.Value(callerKey{}).(core.Caller)
	return who, ok
}
