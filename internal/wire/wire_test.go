package wire

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hashicorp/raft"

	"github.com/tutti-run/tutti/internal/fault"
)

func authority(t *testing.T) *Authority {
	t.Helper()
	a, err := NewAuthority()
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func identity(t *testing.T, a *Authority, id string, role Role) *Identity {
	t.Helper()
	csr, key, err := NewRequest()
	if err != nil {
		t.Fatal(err)
	}
	cert, err := a.Sign(csr, id, role)
	if err != nil {
		t.Fatal(err)
	}
	return &Identity{NodeID: id, Role: role, CertPEM: cert, KeyPEM: key, CAPEM: a.CertPEM}
}

// listen opens a port on the loopback; the test registers what it serves before it calls serve.
func listen(t *testing.T, id *Identity) *Port {
	t.Helper()
	p, err := Listen("127.0.0.1:0", id, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func serve(t *testing.T, p *Port) (address string) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- p.Serve(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("serve: %v", err)
		}
	})
	return p.Addr().String()
}

// pair returns the address of a server's port and the client of an agent.
func pair(t *testing.T, register func(*Port)) (address string, c *Client) {
	t.Helper()
	a := authority(t)
	p := listen(t, identity(t, a, "server-1", RoleServer))
	register(p)
	other := listen(t, identity(t, a, "agent-1", RoleAgent))
	serve(t, other)
	return serve(t, p), other.Client()
}

func TestIdentitiesAreKept(t *testing.T) {
	dir := t.TempDir()
	if _, err := LoadIdentity(dir); !fault.Is(err, fault.NotFound) {
		t.Fatalf("load of nothing gave %v", err)
	}
	id := identity(t, authority(t), "node-1", RoleAgent)
	if err := id.Save(dir + "/deeper"); err != nil {
		t.Fatal(err)
	}
	got, err := LoadIdentity(dir + "/deeper")
	if err != nil || got.NodeID != "node-1" || got.Role != RoleAgent || !bytes.Equal(got.KeyPEM, id.KeyPEM) {
		t.Fatalf("loaded %+v, %v; want what was saved", got, err)
	}
}

func TestTokens(t *testing.T) {
	a := authority(t)
	hash, secret, err := ParseToken("  " + a.Token("s3cret") + "\n")
	if err != nil || secret != "s3cret" || hash != authorityHash(a.cert.Raw) {
		t.Fatalf("token parsed as %q, %q, %v", hash, secret, err)
	}
	for _, bad := range []string{"", "tutti1", "tutti1-abc-s", "tutti2-" + hash + "-s", "tutti1-" + hash + "-"} {
		if _, _, err := ParseToken(bad); !fault.Is(err, fault.Invalid) {
			t.Errorf("token %q gave %v, want that it is invalid", bad, err)
		}
	}
}

// admit is what servers do: the right secret gives a certificate.
func admit(a *Authority, asked *atomic.Int32) http.Handler {
	return HandleCall(func(ctx context.Context, r JoinRequest) (JoinResponse, error) {
		asked.Add(1)
		if r.Secret != "right" {
			return JoinResponse{}, fault.New(fault.Forbidden, "the join token is not valid")
		}
		cert, err := a.Sign(r.CSR, r.NodeID, RoleAgent)
		return JoinResponse{Role: RoleAgent, Cert: cert, Servers: []ServerAddress{{ID: "server-1", Address: "there:1"}}}, err
	})
}

func TestJoin(t *testing.T) {
	a := authority(t)
	var asked atomic.Int32
	p := listen(t, identity(t, a, "server-1", RoleServer))
	p.HandleOpen(PathJoin, admit(a, &asked))
	p.Handle("/who", HandleCall(func(ctx context.Context, _ Empty) (Peer, error) { return PeerOf(ctx), nil }), RoleAgent)
	address := serve(t, p)

	id, err := Join(t.Context(), address, a.Token("right"), Newcomer{NodeID: "node-7"})
	if err != nil {
		t.Fatal(err)
	}
	if id.NodeID != "node-7" || id.Role != RoleAgent || len(id.Servers) != 1 || id.Servers[0].Address != "there:1" {
		t.Errorf("joined as %+v with servers %v", id.Identity, id.Servers)
	}
	mine := listen(t, id.Identity)
	serve(t, mine)
	if peer, err := Call[Empty, Peer](t.Context(), mine.Client(), address, "/who", Empty{}); err != nil || peer != (Peer{"node-7", RoleAgent}) {
		t.Errorf("the server knows the newcomer as %+v, %v", peer, err)
	}

	_, err = Join(t.Context(), address, a.Token("wrong"), Newcomer{NodeID: "node-8"})
	if !fault.Is(err, fault.Forbidden) || !strings.Contains(err.Error(), "not valid") {
		t.Errorf("a wrong secret gave %v, want the server's refusal", err)
	}
	before := asked.Load()
	_, err = Join(t.Context(), address, authority(t).Token("right"), Newcomer{NodeID: "node-9"})
	if !fault.Is(err, fault.Forbidden) || !strings.Contains(err.Error(), "another cluster") {
		t.Errorf("a token of another cluster gave %v", err)
	}
	if asked.Load() != before {
		t.Error("the secret was sent to a server that the token does not name")
	}
	_, err = Join(t.Context(), "127.0.0.1:1", a.Token("right"), Newcomer{NodeID: "node-9"})
	if !fault.Is(err, fault.Unavailable) {
		t.Errorf("nobody there gave %v, want that it is unavailable", err)
	}
}

// An agent has a certificate of the cluster, too. It must not get the secrets of newcomers.
func TestJoinSendsNothingToAnAgent(t *testing.T) {
	a := authority(t)
	var asked atomic.Int32
	p := listen(t, identity(t, a, "agent-1", RoleAgent))
	p.HandleOpen(PathJoin, admit(a, &asked))
	address := serve(t, p)
	_, err := Join(t.Context(), address, a.Token("right"), Newcomer{NodeID: "node-7"})
	if !fault.Is(err, fault.Forbidden) || asked.Load() != 0 {
		t.Fatalf("joining at an agent gave %v, and it was asked %d times", err, asked.Load())
	}
}

func TestRoles(t *testing.T) {
	a := authority(t)
	p := listen(t, identity(t, a, "server-1", RoleServer))
	answer := HandleCall(func(context.Context, Empty) (string, error) { return "yes", nil })
	p.Handle("/servers", answer, RoleServer)
	p.Handle("/both", answer, RoleServer, RoleAgent)
	p.HandleOpen("/open", answer)
	address := serve(t, p)

	clients := map[string]*Client{}
	for _, role := range []Role{RoleServer, RoleAgent} {
		other := listen(t, identity(t, a, "other", role))
		serve(t, other)
		clients[string(role)] = other.Client()
	}
	foreign := listen(t, identity(t, authority(t), "other", RoleServer))
	serve(t, foreign)
	clients["foreign"] = foreign.Client()
	without := p.credentials.Load().client(protoHTTP, false)
	without.Certificates = nil
	clients["stranger"] = newClient(TCP{}, func(bool) *tls.Config { return without })
	t.Cleanup(clients["stranger"].close)

	for who, want := range map[string]map[string]fault.Kind{
		"server":   {},
		"agent":    {"/servers": fault.Forbidden},
		"stranger": {"/servers": fault.Forbidden, "/both": fault.Forbidden},
		// Does not believe the server, and would not be believed by it.
		"foreign": {"/servers": fault.Unavailable, "/both": fault.Unavailable, "/open": fault.Unavailable},
	} {
		for _, path := range []string{"/servers", "/both", "/open"} {
			got, err := Call[Empty, string](t.Context(), clients[who], address, path, Empty{})
			kind, refused := want[path]
			if refused && !fault.Is(err, kind) || !refused && (err != nil || got != "yes") {
				t.Errorf("%s at %s got %q, %v; want refusal %v of kind %v", who, path, got, err, refused, kind)
			}
			if refused && kind == fault.Forbidden {
				if _, err := clients[who].Stream(t.Context(), address, path); !fault.Is(err, fault.Forbidden) {
					t.Errorf("a stream of %s at %s gave %v", who, path, err)
				}
				if _, _, err := clients[who].Get(t.Context(), address, path); !fault.Is(err, fault.Forbidden) {
					t.Errorf("a blob for %s at %s gave %v", who, path, err)
				}
			}
		}
	}
}

func TestCallsCarryKindsAndTimes(t *testing.T) {
	type ask struct {
		Kind string    `json:"kind"`
		At   time.Time `json:"at"`
	}
	address, c := pair(t, func(p *Port) {
		p.Handle("/fail", HandleCall(func(_ context.Context, a ask) (ask, error) {
			if a.Kind == "" {
				return a, nil
			}
			return a, fmt.Errorf("do it: %w", fault.New(fault.ParseKind(a.Kind), "the reason"))
		}), RoleAgent)
	})
	for k := fault.Internal; k <= fault.Unavailable; k++ {
		_, err := Call[ask, ask](t.Context(), c, address, "/fail", ask{Kind: k.String()})
		if fault.KindOf(err) != k || err == nil || err.Error() != "do it: the reason" {
			t.Errorf("%v came back as %v: %v", k, fault.KindOf(err), err)
		}
	}
	now := time.Now()
	if got, err := Call[ask, ask](t.Context(), c, address, "/fail", ask{At: now}); err != nil || !got.At.Equal(now) {
		t.Errorf("%s came back as %s, %v", now, got.At, err)
	}
	if _, err := Call[ask, ask](t.Context(), c, address, "/unknown", ask{}); !fault.Is(err, fault.Unsupported) {
		t.Errorf("a path that is not served gave %v", err)
	}
	if _, err := Call[string, ask](t.Context(), c, address, "/fail", "text"); !fault.Is(err, fault.Invalid) {
		t.Errorf("a call of another form gave %v", err)
	}
	if _, err := Call[ask, ask](t.Context(), c, "127.0.0.1:1", "/fail", ask{}); !fault.Is(err, fault.Unavailable) {
		t.Errorf("a node that is not there gave %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := Call[ask, ask](ctx, c, address, "/fail", ask{}); !errors.Is(err, context.Canceled) {
		t.Errorf("a call that was given up gave %v", err)
	}
}

func TestBigCallsAndMessages(t *testing.T) {
	address, c := pair(t, func(p *Port) {
		p.Handle("/length", HandleCall(func(_ context.Context, b []byte) (int, error) { return len(b), nil }), RoleAgent)
		p.Handle("/make", HandleCall(func(_ context.Context, n int) ([]byte, error) { return make([]byte, n), nil }), RoleAgent)
		p.Handle("/many", HandleCall(func(_ context.Context, list []int) (int, error) { return len(list), nil }), RoleAgent)
		p.Handle("/stream", HandleStream(func(_ context.Context, s *Stream) error {
			for {
				var b []byte
				if err := s.Receive(&b); err != nil {
					return err
				}
				if err := s.Send(len(b)); err != nil {
					return err
				}
			}
		}), RoleAgent)
	})
	const large = 8 << 20
	if n, err := Call[[]byte, int](t.Context(), c, address, "/length", make([]byte, large)); err != nil || n != large {
		t.Errorf("a call of %d bytes gave %d, %v", large, n, err)
	}
	if _, err := Call[[]byte, int](t.Context(), c, address, "/length", make([]byte, maxCall)); !fault.Is(err, fault.Invalid) {
		t.Errorf("a call over the limit gave %v", err)
	}
	_, err := Call[int, []byte](t.Context(), c, address, "/make", maxCall)
	for fault.Is(err, fault.Unavailable) { // a busy machine takes longer to make it than a silent peer is waited for
		_, err = Call[int, []byte](t.Context(), c, address, "/make", maxCall)
	}
	if !fault.Is(err, fault.Invalid) {
		t.Errorf("an answer over the limit gave %v", err)
	}
	const many = 200_000
	if n, err := Call[[]int, int](t.Context(), c, address, "/many", make([]int, many)); err != nil || n != many {
		t.Errorf("a list of %d gave %d, %v", many, n, err)
	}
	s, err := c.Stream(t.Context(), address, "/stream")
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if err := s.Send(make([]byte, maxMessage)); !fault.Is(err, fault.Invalid) {
		t.Errorf("a message over the limit gave %v", err)
	}
	var n int
	if err := s.Send(make([]byte, large)); err != nil {
		t.Fatal(err)
	}
	if err := s.Receive(&n); err != nil || n != large {
		t.Errorf("a message of %d bytes, after one that was refused, gave %d, %v", large, n, err)
	}
	// Nor is the limit on what is announced only the sender's.
	forged := &Stream{in: io.NopCloser(strings.NewReader("\xff\xff\xff\xff"))}
	if err := forged.Receive(&n); !fault.Is(err, fault.Invalid) {
		t.Errorf("a message announced as over the limit gave %v", err)
	}
}

func TestStreamsGoBothWaysAtOnce(t *testing.T) {
	const messages = 500
	address, c := pair(t, func(p *Port) {
		p.Handle("/stream", HandleStream(func(_ context.Context, s *Stream) error {
			var wg sync.WaitGroup
			wg.Go(func() {
				for i := range messages {
					if s.Send(i) != nil {
						return
					}
				}
			})
			for i := range messages {
				var n int
				if err := s.Receive(&n); err != nil || n != i {
					return fmt.Errorf("message %d came as %d, %w", i, n, err)
				}
			}
			wg.Wait()
			return s.Send("all came")
		}), RoleAgent)
	})
	s, err := c.Stream(t.Context(), address, "/stream")
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	go func() {
		for i := range messages {
			if s.Send(i) != nil {
				return
			}
		}
	}()
	for i := range messages {
		var n int
		if err := s.Receive(&n); err != nil || n != i {
			t.Fatalf("message %d came as %d, %v", i, n, err)
		}
	}
	var last string
	if err := s.Receive(&last); err != nil || last != "all came" {
		t.Fatalf("the other end says %q, %v", last, err)
	}
	if err := s.Receive(&last); !errors.Is(err, io.EOF) {
		t.Errorf("after the end came %v", err)
	}
	for s.Send(0) == nil { // the other end has gone: it must not take for ever to notice
	}
}

// stuck waits until a counter stands still below a limit.
func stuck(t *testing.T, count *atomic.Int64, limit int64) {
	t.Helper()
	for last, same := int64(-1), 0; same < 20; {
		now := count.Load()
		if now == limit {
			t.Fatalf("all %d messages were taken from the sender while nobody read them", now)
		}
		if same++; now != last {
			last, same = now, 0
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// A reader that does not keep up slows down its writer, and nobody else.
func TestBackPressure(t *testing.T) {
	const messages, size = 400, 64 << 10
	release := make(chan struct{})
	var byServer, byClient atomic.Int64
	write := func(s *Stream, count *atomic.Int64) error {
		for range messages {
			if err := s.Send(make([]byte, size)); err != nil {
				return err
			}
			count.Add(1)
		}
		return nil
	}
	read := func(s *Stream) error {
		for i := range messages {
			var b []byte
			if err := s.Receive(&b); err != nil || len(b) != size {
				return fmt.Errorf("message %d has %d bytes, %w", i, len(b), err)
			}
		}
		return nil
	}
	address, c := pair(t, func(p *Port) {
		p.Handle("/up", HandleStream(func(ctx context.Context, s *Stream) error {
			<-release
			end := End{}
			if err := read(s); err != nil {
				end.Error = err.Error()
			}
			return s.Send(end)
		}), RoleAgent)
		p.Handle("/down", HandleStream(func(ctx context.Context, s *Stream) error { return write(s, &byServer) }), RoleAgent)
		p.Handle("/call", HandleCall(func(_ context.Context, b []byte) ([]byte, error) { return b, nil }), RoleAgent)
	})
	up, err := c.Stream(t.Context(), address, "/up")
	if err != nil {
		t.Fatal(err)
	}
	defer up.Close()
	down, err := c.Stream(t.Context(), address, "/down")
	if err != nil {
		t.Fatal(err)
	}
	defer down.Close()
	sent := make(chan error, 1)
	go func() { sent <- write(up, &byClient) }()
	stuck(t, &byClient, messages)
	stuck(t, &byServer, messages)
	for range 5 {
		if b, err := Call[[]byte, []byte](t.Context(), c, address, "/call", make([]byte, size)); err != nil || len(b) != size {
			t.Fatalf("a call beside streams that are held up gave %d bytes, %v", len(b), err)
		}
	}
	close(release)
	if err := <-sent; err != nil {
		t.Fatal(err)
	}
	var end End
	if err := up.Receive(&end); err != nil || end.Error != "" {
		t.Fatalf("what was sent up: %q, %v", end.Error, err)
	}
	if err := read(down); err != nil {
		t.Fatalf("what was sent down: %v", err)
	}
}

func TestAStreamEndsWithEitherEnd(t *testing.T) {
	ended := make(chan error, 1)
	address, c := pair(t, func(p *Port) {
		p.Handle("/wait", HandleStream(func(ctx context.Context, s *Stream) error {
			var m int
			err := s.Receive(&m)
			<-ctx.Done()
			ended <- err
			return nil
		}), RoleAgent)
	})
	s, err := c.Stream(t.Context(), address, "/wait")
	if err != nil {
		t.Fatal(err)
	}
	s.Close()
	s.Close()
	if err := <-ended; err == nil {
		t.Error("the server got a message that nobody sent")
	}
	ctx, cancel := context.WithCancel(t.Context())
	s, err = c.Stream(ctx, address, "/wait")
	if err != nil {
		t.Fatal(err)
	}
	cancel()
	var m int
	if err := s.Receive(&m); err == nil {
		t.Error("a stream whose context ended went on")
	}
	<-ended
}

func TestPortsEndWithTheirContext(t *testing.T) {
	a := authority(t)
	p := listen(t, identity(t, a, "server-1", RoleServer))
	p.Handle("/wait", HandleStream(func(ctx context.Context, s *Stream) error { <-ctx.Done(); return nil }), RoleServer)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- p.Serve(ctx) }()
	other := listen(t, identity(t, a, "server-2", RoleServer))
	serve(t, other)
	s, err := other.Client().Stream(t.Context(), p.Addr().String(), "/wait")
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	cancel()
	if err := <-done; err != nil {
		t.Errorf("serve ended with %v", err)
	}
	var m int
	if err := s.Receive(&m); err == nil {
		t.Error("a stream outlived its port")
	}
	if _, err := p.RaftLayer().Accept(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("accept of replication connections gave %v", err)
	}
}

func TestBlobs(t *testing.T) {
	content := bytes.Repeat([]byte("content"), 100_000)
	address, c := pair(t, func(p *Port) {
		p.Handle(PathBlob, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			switch strings.TrimPrefix(r.URL.Path, PathBlob) {
			case "whole":
				ServeBlob(w, bytes.NewReader(content), int64(len(content)))
			case "cut":
				ServeBlob(w, bytes.NewReader(content[:1000]), int64(len(content)))
			default:
				WriteError(w, fault.New(fault.NotFound, "no such blob"))
			}
		}), RoleAgent)
	})
	body, size, err := c.Get(t.Context(), address, PathBlob+"whole")
	if err != nil || size != int64(len(content)) {
		t.Fatalf("a blob has %d bytes, %v", size, err)
	}
	got, err := io.ReadAll(body)
	body.Close()
	if err != nil || !bytes.Equal(got, content) {
		t.Errorf("a blob came as %d bytes, %v", len(got), err)
	}
	body, _, err = c.Get(t.Context(), address, PathBlob+"cut")
	if err != nil {
		t.Fatal(err)
	}
	if got, err := io.ReadAll(body); err == nil {
		t.Errorf("a blob that was cut short came as %d bytes without an error", len(got))
	}
	body.Close()
	if _, _, err := c.Get(t.Context(), address, PathBlob+"none"); !fault.Is(err, fault.NotFound) {
		t.Errorf("a blob that is not there gave %v", err)
	}
}

func TestReplicationIsForServers(t *testing.T) {
	a := authority(t)
	p := listen(t, identity(t, a, "server-1", RoleServer))
	address := raft.ServerAddress(serve(t, p))
	server := listen(t, identity(t, a, "server-2", RoleServer))
	serve(t, server)
	agent := listen(t, identity(t, a, "agent-1", RoleAgent))
	serve(t, agent)

	c, err := server.RaftLayer().Dial(address, time.Second)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	in, err := p.RaftLayer().Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	if _, err := io.WriteString(c, "hello"); err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 5)
	if _, err := io.ReadFull(in, b); err != nil || string(b) != "hello" {
		t.Fatalf("%q came, %v", b, err)
	}
	refused, err := agent.RaftLayer().Dial(address, time.Second)
	if err == nil {
		defer refused.Close()
		if _, err := refused.Read(b); err == nil {
			t.Error("an agent was let in to the replication")
		}
	}
	select {
	case <-p.RaftLayer().conns:
		t.Error("an agent's connection was handed to the replication")
	default:
	}
}
