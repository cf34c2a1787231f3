package node

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/tutti-run/tutti/internal/api/native"
	"github.com/tutti-run/tutti/internal/model"
	"github.com/tutti-run/tutti/internal/store"
	"github.com/tutti-run/tutti/internal/wire"
)

type alone struct{ store *store.Store }

func (a alone) Propose(_ context.Context, data []byte) (store.Result, error) {
	return a.store.Apply(data), nil
}

// TestAnAgentsDockerSocket holds that what is asked at an agent's socket is answered by a server as long as the
// cluster trusts the host, taken-over connections with their ends included, and by the agent otherwise; and
// that nothing is left of connections that were cut.
func TestAnAgentsDockerSocket(t *testing.T) {
	log := slog.New(slog.DiscardHandler)
	authority, err := wire.NewAuthority()
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	var ended []chan error
	run := func(fn func() error) {
		c := make(chan error, 1)
		ended = append(ended, c)
		go func() { c <- fn() }()
	}
	listen := func(id string, role wire.Role) *wire.Port {
		csr, key, err := wire.NewRequest()
		if err != nil {
			t.Fatal(err)
		}
		cert, err := authority.Sign(csr, id, role)
		if err != nil {
			t.Fatal(err)
		}
		p, err := wire.Listen("127.0.0.1:0", &wire.Identity{NodeID: id, Role: role, CertPEM: cert, KeyPEM: key, CAPEM: authority.CertPEM}, log)
		if err != nil {
			t.Fatal(err)
		}
		return p
	}
	state := store.New(log)
	state.SetProposer(alone{state})
	trust := func(trusted bool) {
		cs := &store.ChangeSet{}
		cs.Put(&model.Node{Meta: model.Meta{ID: "a1", Name: "agent"}, Trusted: trusted, Status: model.NodeStatus{State: model.NodeReady}})
		if _, err := state.Commit(t.Context(), cs); err != nil {
			t.Fatal(err)
		}
	}
	trust(false)

	// The server, with an API that says who asks, echoes what a connection that it took over brings, and waits.
	server, visitors := listen("s1", wire.RoleServer), newGuests(state)
	server.Handle(wire.PathDocker, visitors, wire.RoleAgent)
	gone := make(chan struct{}, 10)
	api := http.NewServeMux()
	api.HandleFunc("GET /who", func(w http.ResponseWriter, r *http.Request) {
		who := dockerCaller(r.Context())
		fmt.Fprint(w, who.Name, " ", who.WholeCluster(), " ", atNode(r.Context()))
	})
	api.HandleFunc("GET /wait", func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprint(w, "first\n")
		_ = http.NewResponseController(w).Flush()
		<-r.Context().Done()
		gone <- struct{}{}
	})
	api.HandleFunc("POST /containers/x/attach", func(w http.ResponseWriter, r *http.Request) {
		c, buf, err := http.NewResponseController(w).Hijack()
		if err != nil {
			t.Error(err)
			return
		}
		defer c.Close()
		fmt.Fprint(c, "HTTP/1.1 101 UPGRADED\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\r\n")
		all, _ := io.ReadAll(buf)
		fmt.Fprintf(c, "got %d", len(all)) // after the client's end
		gone <- struct{}{}
	})
	run(func() error { return server.Serve(ctx) })
	run(func() error { return native.Serve(ctx, visitors, visitors.welcome(api)) })

	agent := listen("a1", wire.RoleAgent)
	run(func() error { return agent.Serve(ctx) })
	own := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, "the agent itself") })
	m := messengerTo(ctx, agent.Client(), func() []wire.ServerAddress { return []wire.ServerAddress{{ID: "s1", Address: server.Addr().String()}} }, own, log)
	dir, err := os.MkdirTemp("", "d") // a short path, as sockets need
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	socket := filepath.Join(dir, "s")
	l, err := native.Listen(socket)
	if err != nil {
		t.Fatal(err)
	}
	run(func() error { return native.Serve(ctx, l, m) })
	defer func() {
		cancel()
		for _, c := range ended {
			if err := <-c; err != nil {
				t.Error(err)
			}
		}
	}()

	client := &http.Client{Transport: &http.Transport{DialContext: func(context.Context, string, string) (net.Conn, error) { return net.Dial("unix", socket) }}}
	get := func(path string) string {
		t.Helper()
		res, err := client.Get("http://docker" + path)
		if err != nil {
			t.Fatal(err)
		}
		defer res.Body.Close()
		text, err := io.ReadAll(res.Body)
		if err != nil {
			t.Fatal(err)
		}
		return string(text)
	}
	dial := func() *net.UnixConn {
		t.Helper()
		c, err := net.Dial("unix", socket)
		if err != nil {
			t.Fatal(err)
		}
		return c.(*net.UnixConn)
	}
	const attach = "POST /containers/x/attach HTTP/1.1\r\nHost: docker\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\r\n"

	if got := get("/who"); got != "the agent itself" {
		t.Errorf("without trust: %s", got)
	}
	trust(true)
	if got := get("/who"); got != "node:agent true a1" {
		t.Errorf("with trust: %s", got)
	}
	if got := get("/swarm/leave"); got != "the agent itself" {
		t.Errorf("to leave: %s", got)
	}

	c := dial()
	fmt.Fprint(c, attach, strings.Repeat("x", 300_000))
	if err := c.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	answers := bufio.NewReader(c)
	res, err := http.ReadResponse(answers, nil)
	if err != nil || res.StatusCode != http.StatusSwitchingProtocols {
		t.Fatalf("attach: %v %v", res, err)
	}
	text, err := io.ReadAll(answers)
	if err != nil || string(text) != "got 300000" {
		t.Errorf("attach got %q, %v", text, err)
	}
	c.Close()
	<-gone

	before := runtime.NumGoroutine()
	for range 10 { // cut
		c := dial()
		fmt.Fprint(c, attach)
		if _, err := bufio.NewReader(c).ReadString('\n'); err != nil {
			t.Fatal(err)
		}
		c.Close()
		wait := dial()
		fmt.Fprint(wait, "GET /wait HTTP/1.1\r\nHost: docker\r\n\r\n")
		if _, err := bufio.NewReader(wait).ReadString('\n'); err != nil {
			t.Fatal(err)
		}
		wait.Close()
		for range 2 {
			select {
			case <-gone:
			case <-time.After(30 * time.Second):
				t.Fatal("the server was not told that the client is gone")
			}
		}
	}
	for end := time.Now().Add(30 * time.Second); runtime.NumGoroutine() > before+10; time.Sleep(20 * time.Millisecond) {
		if time.Now().After(end) {
			buf := make([]byte, 1<<20)
			t.Fatalf("%d goroutines, before %d:\n%s", runtime.NumGoroutine(), before, buf[:runtime.Stack(buf, true)])
		}
	}

	trust(false)
	if got := get("/who"); !strings.Contains(got, "does not trust") && got != "the agent itself" {
		t.Errorf("after trust ended: %s", got)
	}
}
