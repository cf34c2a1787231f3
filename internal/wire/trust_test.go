package wire

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"io"
	"os"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hashicorp/raft"

	"github.com/tutti-run/tutti/internal/fault"
)

// rotation is a cluster on its way from one authority to another.
type rotation struct {
	old, next *Authority
	overlap   Trust // both are believed
	after     Trust // the new one alone
}

func rotate(t *testing.T) rotation {
	t.Helper()
	r := rotation{old: authority(t), next: authority(t)}
	cross, err := r.old.CrossSign(r.next)
	if err != nil {
		t.Fatal(err)
	}
	r.overlap = Trust{CA: slices.Concat(r.next.CertPEM, r.old.CertPEM), Cross: cross}
	r.after = Trust{CA: r.next.CertPEM}
	return r
}

// renewed is an identity with a certificate of the authority.
func renewed(t *testing.T, id *Identity, a *Authority, trust Trust) *Identity {
	t.Helper()
	csr, key, err := NewRequest()
	if err != nil {
		t.Fatal(err)
	}
	cert, err := a.Sign(csr, id.NodeID, id.Role)
	if err != nil {
		t.Fatal(err)
	}
	next, err := id.Renewed(RenewResponse{Cert: cert, Trust: trust}, key)
	if err != nil {
		t.Fatal(err)
	}
	return next
}

// TestNodesOfAllStagesOfARotationBelieveEachOther has nodes that heard of nothing yet, that believe
// both authorities, and that have a new certificate.
func TestNodesOfAllStagesOfARotationBelieveEachOther(t *testing.T) {
	r := rotate(t)
	stages := map[string]func(id string) *Identity{
		"away":     func(id string) *Identity { return identity(t, r.old, id, RoleServer) },
		"trusting": func(id string) *Identity { return identity(t, r.old, id, RoleServer).Trusting(r.overlap) },
		"renewed":  func(id string) *Identity { return renewed(t, identity(t, r.old, id, RoleServer), r.next, r.overlap) },
		"done":     func(id string) *Identity { return renewed(t, identity(t, r.old, id, RoleServer), r.next, r.after) },
	}
	addresses, clients, ports := map[string]string{}, map[string]*Client{}, map[string]*Port{}
	for stage, make := range stages {
		p := listen(t, make(stage))
		p.Handle("/server/who", HandleCall(func(ctx context.Context, _ Empty) (Peer, error) { return PeerOf(ctx), nil }), RoleServer)
		addresses[stage], clients[stage], ports[stage] = serve(t, p), p.Client(), p
	}
	for from := range stages {
		for to := range stages {
			// Once the old authority is dropped, who has nothing else is a stranger.
			strangers := from == "done" && (to == "away" || to == "trusting") || to == "done" && (from == "away" || from == "trusting") ||
				from == "away" && to == "done"
			peer, err := Call[Empty, Peer](t.Context(), clients[from], addresses[to], "/server/who", Empty{})
			if (err != nil) != strangers || err == nil && peer.NodeID != from {
				t.Errorf("%s asks %s: %+v, %v; strangers: %v", from, to, peer, err, strangers)
			}
			c, err := ports[from].RaftLayer().Dial(raft.ServerAddress(addresses[to]), time.Second)
			if err == nil {
				c.SetReadDeadline(time.Now().Add(20 * time.Millisecond))
				_, err = c.Read(make1())
				c.Close()
			}
			if refused := err != nil && !errors.Is(err, errTimeout(err)); refused != strangers {
				t.Errorf("replication of %s with %s: %v; strangers: %v", from, to, err, strangers)
			}
		}
	}
}

func make1() []byte { return make([]byte, 1) }

// errTimeout returns the error itself when it is one of time, and one that it is not otherwise.
func errTimeout(err error) error {
	if ne, ok := errors.AsType[interface {
		error
		Timeout() bool
	}](err); ok && ne.Timeout() {
		return err
	}
	return io.ErrNoProgress
}

// TestANewIdentityTakesOverWithoutAnInterruption renews and rotates under calls and with a stream open.
func TestANewIdentityTakesOverWithoutAnInterruption(t *testing.T) {
	r := rotate(t)
	server := listen(t, identity(t, r.old, "server-1", RoleServer))
	server.Handle("/node/echo", HandleStream(func(_ context.Context, s *Stream) error {
		for {
			var n int
			if err := s.Receive(&n); err != nil {
				return err
			}
			if err := s.Send(n); err != nil {
				return err
			}
		}
	}), RoleAgent)
	server.Handle("/server/call", HandleCall(func(_ context.Context, n int) (int, error) { return n, nil }), RoleAgent)
	address := serve(t, server)
	agent := listen(t, identity(t, r.old, "agent-1", RoleAgent))
	serve(t, agent)
	s, err := agent.Client().Stream(t.Context(), address, "/node/echo")
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	echo := func() error {
		var n int
		return errors.Join(s.Send(7), s.Receive(&n))
	}
	stop, failed := make(chan struct{}), make(chan error, 1)
	var calls atomic.Int64
	go func() {
		defer close(failed)
		for {
			select {
			case <-stop:
				return
			default:
			}
			if _, err := Call[int, int](t.Context(), agent.Client(), address, "/server/call", 1); err != nil {
				failed <- err
				return
			}
			calls.Add(1)
		}
	}()
	more := func(n int64) {
		t.Helper()
		for until := calls.Load() + n; calls.Load() < until; {
			select {
			case err := <-failed:
				t.Fatalf("a call failed: %v", err)
			case <-time.After(time.Millisecond):
			}
		}
	}
	set := func(p *Port, id *Identity) {
		t.Helper()
		if err := p.SetIdentity(id); err != nil {
			t.Fatal(err)
		}
		more(2) // the last of them began after that
		if err := echo(); err != nil {
			t.Fatalf("the stream broke: %v", err)
		}
	}
	set(server, server.Identity().Trusting(r.overlap))
	set(server, renewed(t, server.Identity(), r.next, r.overlap))
	set(agent, agent.Identity().Trusting(r.overlap))
	set(agent, renewed(t, agent.Identity(), r.next, r.overlap))
	// The stream was opened with what the old authority has signed: it ends with that one.
	if err := agent.SetIdentity(agent.Identity().Trusting(r.after)); err != nil {
		t.Fatal(err)
	}
	if err := server.SetIdentity(server.Identity().Trusting(r.after)); err != nil {
		t.Fatal(err)
	}
	if err := echo(); err == nil {
		t.Error("a stream of a peer that is not believed any more goes on")
	}
	more(10)
	close(stop)
	if err := <-failed; err != nil {
		t.Errorf("a call failed after %d others: %v", calls.Load(), err)
	}
	st := server.Standing()
	if want := []string{r.next.Hash()}; st.Authority != r.next.Hash() || !slices.Equal(st.Trusts, want) || st.Renew.After(st.Ends) {
		t.Errorf("the server stands as %+v", st)
	}
}

// An agent's certificate is of the cluster, too: it must not pass for a server's.
func TestServersAreToldFromAgents(t *testing.T) {
	a := authority(t)
	var asked atomic.Int32
	impostor := listen(t, identity(t, a, "agent-1", RoleAgent))
	for _, path := range []string{"/server/propose", "/node/session"} {
		impostor.Handle(path, HandleCall(func(context.Context, Empty) (Empty, error) { asked.Add(1); return Empty{}, nil }), RoleServer, RoleAgent)
	}
	address := serve(t, impostor)
	server := listen(t, identity(t, a, "server-1", RoleServer))
	serve(t, server)
	for _, path := range []string{"/server/propose", "/node/session"} {
		if _, err := Call[Empty, Empty](t.Context(), server.Client(), address, path, Empty{}); !fault.Is(err, fault.Forbidden) {
			t.Errorf("an agent was asked for %s: %v", path, err)
		}
	}
	if _, err := server.RaftLayer().Dial(raft.ServerAddress(address), time.Second); !fault.Is(err, fault.Forbidden) {
		t.Errorf("replication with an agent: %v", err)
	}
	if asked.Load() > 0 {
		t.Error("an agent got to see what is for servers")
	}
}

// A gate that closes ends what is open, at once.
func TestAGateClosesWhatIsOpen(t *testing.T) {
	a := authority(t)
	server := listen(t, identity(t, a, "server-1", RoleServer))
	var removed atomic.Bool
	server.SetGate(func(p Peer, _ bool) error {
		if p.NodeID == "server-2" && removed.Load() {
			return fault.New(fault.Forbidden, "node %s was removed", p.NodeID)
		}
		return nil
	})
	server.Handle("/node/wait", HandleStream(func(ctx context.Context, _ *Stream) error { <-ctx.Done(); return nil }), RoleServer)
	address := serve(t, server)
	open := func(id string) (*Stream, *Port) {
		t.Helper()
		p := listen(t, identity(t, a, id, RoleServer))
		serve(t, p)
		s, err := p.Client().Stream(t.Context(), address, "/node/wait")
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { s.Close() })
		return s, p
	}
	gone, port := open("server-2")
	stays, _ := open("server-3")
	replication, err := port.RaftLayer().Dial(raft.ServerAddress(address), time.Second)
	if err != nil {
		t.Fatal(err)
	}
	defer replication.Close()
	accepted, err := server.RaftLayer().Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer accepted.Close()
	removed.Store(true)
	server.Enforce()
	var m int
	if err := gone.Receive(&m); err == nil {
		t.Error("the stream of a removed node goes on")
	}
	if _, err := replication.Read(make1()); err == nil || errors.Is(err, errTimeout(err)) {
		t.Errorf("the replication with a removed server goes on: %v", err)
	}
	if _, err := port.Client().Stream(t.Context(), address, "/node/wait"); !fault.Is(err, fault.Forbidden) {
		t.Errorf("a removed node was let in: %v", err)
	}
	if c, err := port.RaftLayer().Dial(raft.ServerAddress(address), time.Second); err == nil {
		if _, err := c.Read(make1()); err == nil || errors.Is(err, errTimeout(err)) {
			t.Error("a removed server was let in to the replication")
		}
		c.Close()
	}
	if err := stays.Send(1); err != nil {
		t.Errorf("another node's stream broke: %v", err)
	}
}

func TestCertificatesSayNoMoreThanTheyShould(t *testing.T) {
	a := authority(t)
	weak, err := rsa.GenerateKey(rand.Reader, 1024)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, weak)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := a.Issue(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der}), Holder{Name: "x", Role: RoleAgent}); !fault.Is(err, fault.Invalid) {
		t.Errorf("a weak key was signed: %v", err)
	}
	csr, _, err := NewRequest()
	if err != nil {
		t.Fatal(err)
	}
	certPEM, err := a.Issue(csr, Holder{Name: "anna", Role: RoleUser, ID: "u1", Life: time.Hour})
	if err != nil {
		t.Fatal(err)
	}
	cert, err := decodeCert(certPEM)
	if err != nil {
		t.Fatal(err)
	}
	if len(cert.DNSNames) > 0 || slices.Contains(cert.ExtKeyUsage, x509.ExtKeyUsageServerAuth) || cert.IsCA || time.Until(cert.NotAfter) > time.Hour {
		t.Errorf("a user's certificate could be a node's: %+v", cert.Subject)
	}
}

// A person's certificate opens nothing between nodes.
func TestUsersAreNoNodes(t *testing.T) {
	a := authority(t)
	p := listen(t, identity(t, a, "server-1", RoleServer))
	p.Handle("/both", HandleCall(func(context.Context, Empty) (Empty, error) { return Empty{}, nil }), RoleServer, RoleAgent)
	address := serve(t, p)
	csr, key, err := NewRequest()
	if err != nil {
		t.Fatal(err)
	}
	cert, err := a.Issue(csr, Holder{Name: "server-1", Role: RoleUser, ID: "u1"})
	if err != nil {
		t.Fatal(err)
	}
	c, err := newCredentials(&Identity{CertPEM: cert, KeyPEM: key, CAPEM: a.CertPEM})
	if err != nil {
		t.Fatal(err)
	}
	client := newClient(TCP{}, func(of bool) *tls.Config { return c.client(protoHTTP, of) })
	defer client.close()
	if _, err := Call[Empty, Empty](t.Context(), client, address, "/both", Empty{}); !fault.Is(err, fault.Forbidden) {
		t.Errorf("a user's certificate gave %v", err)
	}
}

// Identities that an earlier version kept, with the key in a file of its own, are read.
func TestOlderIdentitiesAreRead(t *testing.T) {
	dir := t.TempDir()
	id := identity(t, authority(t), "node-1", RoleAgent)
	for name, data := range map[string][]byte{"ca.crt": id.CAPEM, "node.key": id.KeyPEM, "node.crt": id.CertPEM} {
		if err := os.WriteFile(dir+"/"+name, data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	got, err := LoadIdentity(dir)
	if err != nil || !bytes.Equal(got.KeyPEM, id.KeyPEM) || !bytes.Equal(got.CertPEM, id.CertPEM) {
		t.Fatalf("read %+v, %v", got, err)
	}
	if err := got.Save(dir); err != nil {
		t.Fatal(err)
	}
	if again, err := LoadIdentity(dir); err != nil || !bytes.Equal(again.KeyPEM, id.KeyPEM) {
		t.Errorf("read again: %v", err)
	}
}

func FuzzTokens(f *testing.F) {
	f.Add(JoinToken(strings.Repeat("a", 32), "secret"))
	f.Add("tutti1--")
	f.Fuzz(func(t *testing.T, token string) {
		hash, secret, err := ParseToken(token)
		if err == nil && JoinToken(hash, secret) != strings.TrimSpace(token) {
			t.Errorf("%q was read as %q and %q", token, hash, secret)
		}
	})
}

func FuzzCertificateRequests(f *testing.F) {
	csr, _, err := NewRequest()
	if err != nil {
		f.Fatal(err)
	}
	a, err := NewAuthority()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(csr)
	f.Add([]byte("-----BEGIN CERTIFICATE REQUEST-----\n-----END CERTIFICATE REQUEST-----\n"))
	f.Fuzz(func(t *testing.T, csr []byte) {
		certPEM, err := a.Sign(csr, "node-1", RoleAgent)
		if err != nil {
			if !fault.Is(err, fault.Invalid) {
				t.Errorf("%q gave %v", csr, err)
			}
			return
		}
		cert, err := decodeCert(certPEM)
		if err != nil || cert.IsCA || cert.Subject.CommonName != "node-1" {
			t.Errorf("%q gave a certificate for %v, %v", csr, cert.Subject, err)
		}
	})
}

func FuzzJoinRequests(f *testing.F) {
	data, err := Marshal(JoinRequest{Newcomer: Newcomer{NodeID: "n", Name: "host"}, Secret: "s", CSR: []byte("x")})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(data)
	f.Fuzz(func(t *testing.T, data []byte) {
		var req JoinRequest
		_ = Unmarshal(data, &req) // it must only not panic
	})
}
