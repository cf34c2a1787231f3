// Package acme has certificates issued by Pebble, the ACME server that Let's Encrypt tests clients with: by
// the leader's work as it is, over the ingress as it is, with a state in memory between them.
package acme

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"io"
	"log"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/letsencrypt/challtestsrv"
	"github.com/letsencrypt/pebble/v2/ca"
	"github.com/letsencrypt/pebble/v2/db"
	"github.com/letsencrypt/pebble/v2/va"
	"github.com/letsencrypt/pebble/v2/wfe"

	"github.com/tutti-run/tutti/internal/balance/ingress"
	"github.com/tutti-run/tutti/internal/certify"
	"github.com/tutti-run/tutti/internal/model"
	"github.com/tutti-run/tutti/internal/secret"
	"github.com/tutti-run/tutti/internal/store"
	"github.com/tutti-run/tutti/internal/wire"
)

func TestMain(m *testing.M) {
	if ingress.Reexec(os.Args) {
		return
	}
	// Nonces are refused now and then, and validations take a while, as Pebble has it by itself.
	os.Setenv("PEBBLE_VA_SLEEPTIME", "1")
	os.Exit(m.Run())
}

// freePort is one where nothing listens.
func freePort(t *testing.T) int {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port
}

// pebble runs a server that validates at a port of this machine. Directory is its URL; who believes authority
// believes the server, and what it issues is by roots.
func pebble(t *testing.T, port int) (directory, authority string, roots *x509.CertPool) {
	t.Helper()
	dns := fmt.Sprint("127.0.0.1:", freePort(t))
	names, err := challtestsrv.New(challtestsrv.Config{DNSAddrs: []string{dns}, Log: log.New(io.Discard, "", 0)})
	if err != nil {
		t.Fatal(err)
	}
	names.SetDefaultDNSIPv4("127.0.0.1")
	names.SetDefaultDNSIPv6("")
	go names.Run()
	t.Cleanup(names.Shutdown)
	quiet := log.New(io.Discard, "", 0)
	memory := db.NewMemoryStore()
	issuer := ca.New(quiet, memory, "", "ecdsa", 0, 1, map[string]ca.Profile{"default": {Description: "all", ValidityPeriod: 0}})
	validator := va.New(quiet, port, freePort(t), false, dns, memory)
	front := wfe.New(quiet, memory, validator, issuer, []string{"pebble.test"}, false, false, 1, 1)

	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	l, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}})
	if err != nil {
		t.Fatal(err)
	}
	s := &http.Server{Handler: front.Handler(), ErrorLog: quiet}
	go s.Serve(l)
	t.Cleanup(func() { s.Close() })
	roots = x509.NewCertPool()
	roots.AppendCertsFromPEM(issuer.GetRootCert(0).PEM())
	return "https://" + l.Addr().String() + wfe.DirectoryPath, string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})), roots
}

// alone applies what is proposed at once.
type alone struct{ *store.Store }

func (a alone) Propose(_ context.Context, data []byte) (store.Result, error) {
	return a.Apply(data), nil
}

func TestPebble(t *testing.T) {
	plain, secure := freePort(t), freePort(t)
	directory, authority, roots := pebble(t, plain)
	key, quiet := secret.NewKey(), slog.New(slog.DiscardHandler)
	open := func(s *model.Secret) ([]byte, error) { return secret.Open(key, s.Sealed, []byte(s.Digest)) }
	state := store.New(quiet)
	state.SetProposer(alone{state})

	acme := &model.ACME{Server: directory, Email: "ops@shop.example", Authority: authority}
	s := &model.Service{Meta: model.Meta{ID: "s", Namespace: "default", Name: "web"}}
	for _, host := range []string{"shop.example", "www.shop.example"} {
		s.Routes = append(s.Routes, model.Route{Host: host, Issuer: model.IssuerACME, ACME: acme, Redirect: "https://elsewhere.example{path}"})
	}
	for i := range s.Routes {
		if err := s.Routes[i].Check(); err != nil {
			t.Fatal(err)
		}
	}
	cs := &store.ChangeSet{}
	cs.Put(s)
	cs.Put(&model.Node{Meta: model.Meta{ID: "n", Name: "n"}})
	if _, err := state.Commit(t.Context(), cs); err != nil {
		t.Fatal(err)
	}

	// A host: what routes need is in force there when it says so.
	host := ingress.New(filepath.Join(t.TempDir(), "ingress"), "n", fmt.Sprint("127.0.0.1:", plain), fmt.Sprint("127.0.0.1:", secure), quiet)
	var applied atomic.Uint64
	sync1 := func(ctx context.Context, routes bool) error {
		snap, n := state.Snapshot(), &wire.Network{}
		if routes {
			of := wire.NetworkService{ID: s.ID, Name: s.Name, Namespace: s.Namespace, Routes: s.Routes, Secrets: map[string][]byte{}}
			for _, r := range s.Routes {
				for _, id := range r.Secrets(s.Namespace) {
					if kept, ok := store.Get[*model.Secret](snap, id); ok {
						data, err := open(kept)
						if err != nil {
							return err
						}
						of.Secrets[id] = data
					}
				}
			}
			n.Services = []wire.NetworkService{of}
		}
		if err := host.Sync(ctx, n); err != nil {
			return err
		}
		applied.Store(snap.Revision())
		return nil
	}
	ctx, stop := context.WithCancel(context.Background())
	ended := make(chan error, 2)
	go func() {
		for ctx.Err() == nil {
			if err := sync1(context.Background(), true); err != nil {
				ended <- err
				return
			}
			time.Sleep(20 * time.Millisecond)
		}
		ended <- nil
	}()
	c := certify.New(certify.Deps{
		Store: state, Live: func(string) bool { return true }, Applied: func(string) uint64 { return applied.Load() }, RetryFirst: time.Second,
		Key: func() ([]byte, error) { return key, nil }, Open: open, Log: quiet, Authority: func() ([]byte, error) { return nil, nil },
	})
	go func() { ended <- c.Run(ctx) }()
	t.Cleanup(func() {
		stop()
		for range 2 {
			if err := <-ended; err != nil {
				t.Error(err)
			}
		}
		if err := sync1(context.Background(), false); err != nil {
			t.Error(err)
		}
	})

	for _, name := range []string{"shop.example", "www.shop.example"} {
		last := error(nil)
		for deadline := time.Now().Add(120 * time.Second); ; time.Sleep(50 * time.Millisecond) {
			var c *tls.Conn
			if c, last = tls.Dial("tcp", fmt.Sprint("127.0.0.1:", secure), &tls.Config{ServerName: name, RootCAs: roots}); last == nil {
				c.Close()
				break
			}
			if time.Now().After(deadline) {
				for e := range store.List[*model.Event](state.Snapshot()) {
					t.Log(e.Type, e.Message)
				}
				t.Fatalf("%s is not served with a certificate of Pebble's: %v", name, last)
			}
		}
	}
	accounts, challenges := 0, -1
	for deadline := time.Now().Add(20 * time.Second); challenges != 0 && time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
		accounts, challenges = 0, 0
		for kept := range store.List[*model.Secret](state.Snapshot()) {
			if strings.HasPrefix(kept.ID, "acmeaccount-") {
				accounts++
			}
			for _, r := range s.Routes {
				if kept.ID == r.ChallengeSecret(s.Namespace) {
					challenges++
				}
			}
		}
	}
	if accounts != 1 || challenges != 0 {
		t.Errorf("%d accounts and %d challenges are kept", accounts, challenges)
	}
}
