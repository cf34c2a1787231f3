package ingress

import (
	"bufio"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"io"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/tutti-run/tutti/internal/model"
	"github.com/tutti-run/tutti/internal/wire"
)

func TestMain(m *testing.M) {
	if Reexec(os.Args) {
		return
	}
	os.Exit(m.Run())
}

// instance answers with a name, and with what it was asked.
func instance(t *testing.T, name string) Backend {
	t.Helper()
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		fmt.Fprintf(w, "%s %s %s %s", name, r.Host, r.URL.RequestURI(), body)
	}))
	s.Config.Protocols = new(http.Protocols)
	s.Config.Protocols.SetHTTP1(true)
	s.Config.Protocols.SetUnencryptedHTTP2(true)
	s.Start()
	t.Cleanup(s.Close)
	return Backend{Instance: name, Address: s.Listener.Addr().String()}
}

// nobody is an address where nothing listens.
func nobody(t *testing.T) Backend {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return Backend{Instance: "nobody", Address: l.Addr().String()}
}

func leading(host, path, service string, b ...Backend) Route {
	return Route{Host: host, Path: path, Service: service, Weight: 1, Timeout: 5 * time.Second, Retries: 2, Backends: b}
}

// front is an ingress at two addresses, until the test ends.
func front(t *testing.T, c *Config) (in *ingress, plain, secure string) {
	t.Helper()
	in = &ingress{proxy: newProxy(), loops: 2}
	in.put(c)
	plain, secure = nobody(t).Address, nobody(t).Address
	servers, err := in.listen(plain, secure, make(chan error, 2))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		for _, s := range servers {
			ctx, cancel := context.WithCancel(context.Background())
			cancel()
			s.shutdown(ctx)
		}
		in.proxy.put(nil, nil)
		in.plain.CloseIdleConnections()
		in.h2c.CloseIdleConnections()
	})
	return in, plain, secure
}

// request asks an ingress for a host, and returns the status and what was said.
func request(t *testing.T, client *http.Client, method, base, host, path, body string, headers ...string) (int, string, *http.Response) {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), method, base+path, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	r.Host = host
	for i := 0; i < len(headers); i += 2 {
		r.Header.Set(headers[i], headers[i+1])
	}
	resp, err := client.Do(r)
	if err != nil {
		t.Fatalf("%s %s%s: %v", method, host, path, err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatalf("%s %s%s: %v", method, host, path, err)
	}
	return resp.StatusCode, string(text), resp
}

func TestRoutes(t *testing.T) {
	all := map[string]Backend{}
	for _, name := range []string{"any", "shop", "api", "v2", "exact", "beta", "wild", "strip"} {
		all[name] = instance(t, name)
	}
	exact, beta, strip := leading("shop.example", "/api/exact", "exact", all["exact"]), leading("shop.example", "/", "beta", all["beta"]), leading("shop.example", "/files/", "strip", all["strip"])
	exact.Exact, beta.Headers, strip.StripPath = true, map[string]string{"X-Beta": "yes"}, true
	_, plain, _ := front(t, &Config{Routes: []Route{
		leading("", "", "any", all["any"]), leading("shop.example", "", "shop", all["shop"]), leading("shop.example", "/api", "api", all["api"]),
		leading("shop.example", "/api/v2/", "v2", all["v2"]), exact, beta, strip, leading("*.example", "", "wild", all["wild"]), leading("empty.example", "", "empty"),
	}})
	for _, c := range []struct {
		host, path string
		headers    []string
		want       string
	}{
		{"nothing.test", "/x?y=z", nil, "any nothing.test /x?y=z "},
		{"shop.example", "/", nil, "shop shop.example / "},
		{"SHOP.example:80", "/", nil, "shop SHOP.example:80 / "},
		{"shop.example", "/api", nil, "api shop.example /api "},
		{"shop.example", "/api/v1/things", nil, "api shop.example /api/v1/things "},
		{"shop.example", "/apify", nil, "shop shop.example /apify "},
		{"shop.example", "/api/v2", nil, "v2 shop.example /api/v2 "},
		{"shop.example", "/api/v2/x", nil, "v2 shop.example /api/v2/x "},
		{"shop.example", "/api/exact", nil, "exact shop.example /api/exact "},
		{"shop.example", "/api/exact/not", nil, "api shop.example /api/exact/not "},
		{"shop.example", "/", []string{"X-Beta", "yes"}, "beta shop.example / "},
		{"shop.example", "/", []string{"X-Beta", "no"}, "shop shop.example / "},
		{"shop.example", "/api", []string{"X-Beta", "yes"}, "api shop.example /api "}, // the path comes first
		{"shop.example", "/files/a/b?c=d", nil, "strip shop.example /a/b?c=d "},
		{"other.example", "/", nil, "wild other.example / "},
		{"deep.other.example", "/", nil, "any deep.other.example / "},
	} {
		if _, got, _ := request(t, http.DefaultClient, "GET", "http://"+plain, c.host, c.path, "", c.headers...); got != c.want {
			t.Errorf("%s%s %v answers %q, want %q", c.host, c.path, c.headers, got, c.want)
		}
	}
	if status, _, _ := request(t, http.DefaultClient, "GET", "http://"+plain, "empty.example", "/", ""); status != http.StatusServiceUnavailable {
		t.Errorf("a service without instances gives %d", status)
	}
}

func TestRetries(t *testing.T) {
	var hung atomic.Int32
	hang := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		hung.Add(1)
		<-r.Context().Done()
	}))
	t.Cleanup(hang.Close)
	slow := leading("slow", "", "slow", Backend{"hang", hang.Listener.Addr().String()})
	slow.Timeout = 50 * time.Millisecond
	never := leading("never", "", "never", nobody(t))
	never.Retries = 0
	in, plain, _ := front(t, &Config{Routes: []Route{
		leading("half", "", "half", nobody(t), nobody(t), instance(t, "alive")), slow, never,
	}})
	for range 10 {
		// Also what must not be sent twice goes to another when it surely was not sent.
		if status, got, _ := request(t, http.DefaultClient, "POST", "http://"+plain, "half", "/", "body"); status != 200 || got != "alive half / body" {
			t.Fatalf("with two of three away: %d %q", status, got)
		}
	}
	if status, _, _ := request(t, http.DefaultClient, "GET", "http://"+plain, "slow", "/", ""); status != http.StatusGatewayTimeout || hung.Load() != 1 {
		t.Errorf("one that does not answer gives %d after %d requests", status, hung.Load())
	}
	if status, _, _ := request(t, http.DefaultClient, "GET", "http://"+plain, "never", "/", ""); status != http.StatusBadGateway {
		t.Errorf("one that is away gives %d", status)
	}
	text := in.counts.text()
	for _, want := range []string{`tutti_ingress_requests_total{service="half",status="2xx"} 10`, `{service="slow",status="5xx"} 1`, `tutti_ingress_request_seconds_count{service="half"} 10`} {
		if !strings.Contains(text, want) {
			t.Errorf("the metrics lack %s:\n%s", want, text)
		}
	}
}

func TestStickyAndWeights(t *testing.T) {
	sticky := leading("sticky", "", "sticky", instance(t, "a"), instance(t, "b"), instance(t, "c"))
	sticky.Sticky = true
	most, few := leading("canary", "", "most", instance(t, "most")), leading("canary", "", "few", instance(t, "few"))
	most.Weight = 9
	_, plain, _ := front(t, &Config{Routes: []Route{sticky, most, few}})
	_, first, resp := request(t, http.DefaultClient, "GET", "http://"+plain, "sticky", "/", "")
	if len(resp.Cookies()) != 1 {
		t.Fatalf("the cookies are %v", resp.Cookies())
	}
	for range 20 {
		_, got, resp := request(t, http.DefaultClient, "GET", "http://"+plain, "sticky", "/", "", "Cookie", resp.Cookies()[0].String())
		if got != first || len(resp.Cookies()) > 0 {
			t.Fatalf("a client that was led to %q is led to %q", first, got)
		}
	}
	seen := map[string]int{}
	for range 400 {
		_, got, _ := request(t, http.DefaultClient, "GET", "http://"+plain, "canary", "/", "")
		seen[strings.Fields(got)[0]]++
	}
	if seen["few"] < 10 || seen["few"] > 90 || seen["few"]+seen["most"] != 400 {
		t.Errorf("of nine to one it became %v", seen)
	}
}

// certificate makes one for a host, with its key, in PEM.
func certificate(t *testing.T, host string) string {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), DNSNames: []string{host}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})) + string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER}))
}

func unverified(name string) *tls.Config {
	return &tls.Config{ServerName: name, InsecureSkipVerify: true}
}

func TestTLS(t *testing.T) {
	one, two := leading("one.example", "", "one", instance(t, "one")), leading("two.example", "", "two", instance(t, "two"))
	one.Secure, two.Secure, two.Insecure = true, true, true
	_, plain, secure := front(t, &Config{Routes: []Route{one, two}, Certificates: []string{certificate(t, "one.example"), certificate(t, "two.example")}})
	for host, version := range map[string]int{"one.example": 2, "two.example": 1} {
		transport := &http.Transport{TLSClientConfig: unverified(host), ForceAttemptHTTP2: version == 2}
		status, got, resp := request(t, &http.Client{Transport: transport}, "GET", "https://"+secure, host, "/", "")
		if status != 200 || !strings.HasPrefix(got, host[:3]) || resp.TLS.PeerCertificates[0].DNSNames[0] != host || resp.ProtoMajor != version {
			t.Errorf("%s answers %d %q over HTTP/%d with the certificate of %v", host, status, got, resp.ProtoMajor, resp.TLS.PeerCertificates[0].DNSNames)
		}
		transport.CloseIdleConnections()
	}
	if _, err := tls.Dial("tcp", secure, unverified("three.example")); err == nil {
		t.Error("a host without a certificate was answered")
	}
	noFollow := &http.Client{CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	if status, _, resp := request(t, noFollow, "GET", "http://"+plain, "one.example", "/x?y=z", ""); status != http.StatusPermanentRedirect || resp.Header.Get("Location") != "https://one.example/x?y=z" {
		t.Errorf("without TLS it answers %d, and leads to %q", status, resp.Header.Get("Location"))
	}
	if status, got, _ := request(t, noFollow, "GET", "http://"+plain, "two.example", "/", ""); status != 200 {
		t.Errorf("where it may, without TLS it answers %d %q", status, got)
	}
}

// Both directions of a request go on at the same time, as gRPC has it, and a connection that changes its
// protocol, as for WebSockets, is handed through.
func TestBothDirections(t *testing.T) {
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Upgrade") == "echo" {
			c, rw, err := http.NewResponseController(w).Hijack()
			if err != nil {
				return
			}
			defer c.Close()
			io.WriteString(c, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n")
			io.Copy(c, rw)
			return
		}
		w.Header().Set("Trailer", "Grpc-Status")
		w.WriteHeader(200)
		rc := http.NewResponseController(w)
		rc.Flush()
		lines := bufio.NewScanner(r.Body)
		for lines.Scan() {
			fmt.Fprintln(w, "echo", lines.Text())
			rc.Flush()
		}
		w.Header().Set("Grpc-Status", "0")
	}))
	s.Config.Protocols = new(http.Protocols)
	s.Config.Protocols.SetHTTP1(true)
	s.Config.Protocols.SetUnencryptedHTTP2(true)
	s.Start()
	t.Cleanup(s.Close)
	b := Backend{"echo", s.Listener.Addr().String()}
	grpc := leading("grpc", "", "grpc", b)
	grpc.Protocol = "h2c"
	_, plain, _ := front(t, &Config{Routes: []Route{grpc, leading("socket", "", "socket", b)}})

	h2 := &http.Transport{Protocols: new(http.Protocols)}
	h2.Protocols.SetUnencryptedHTTP2(true)
	t.Cleanup(h2.CloseIdleConnections)
	out, in := io.Pipe()
	r, err := http.NewRequestWithContext(t.Context(), "POST", "http://"+plain+"/", out)
	if err != nil {
		t.Fatal(err)
	}
	r.Host = "grpc"
	resp, err := h2.RoundTrip(r)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	answers := bufio.NewScanner(resp.Body)
	for i := range 5 { // each is answered before the next is sent
		fmt.Fprintln(in, i)
		if !answers.Scan() || answers.Text() != fmt.Sprint("echo ", i) {
			t.Fatalf("answer %d is %q, %v", i, answers.Text(), answers.Err())
		}
	}
	in.Close()
	if answers.Scan() || resp.Trailer.Get("Grpc-Status") != "0" {
		t.Errorf("the trailer is %v", resp.Trailer)
	}

	c, err := net.Dial("tcp", plain)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(5 * time.Second))
	fmt.Fprint(c, "GET / HTTP/1.1\r\nHost: socket\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n")
	from := bufio.NewReader(c)
	upgraded, err := http.ReadResponse(from, nil)
	if err != nil || upgraded.StatusCode != http.StatusSwitchingProtocols {
		t.Fatalf("the answer is %v, %v", upgraded, err)
	}
	for range 3 {
		fmt.Fprintln(c, "hello")
		if line, err := from.ReadString('\n'); line != "hello\n" {
			t.Fatalf("the echo is %q, %v", line, err)
		}
	}
}

// The process takes over other routes while requests go on, and none fails; it outlives its agent, is
// started again when it ends, and goes when there are no routes.
func TestProcess(t *testing.T) {
	a, b := instance(t, "a"), instance(t, "b")
	network := func(to ...Backend) *wire.Network {
		s := wire.NetworkService{ID: "s", Name: "web", Application: "shop", Routes: []model.Route{{Host: "shop.example"}}}
		for _, x := range to {
			host, port, _ := net.SplitHostPort(x.Address)
			fmt.Sscan(port, &s.Routes[0].Target)
			s.Endpoints = append(s.Endpoints, wire.Endpoint{Instance: x.Instance, Addresses: []model.Address{{Network: "n", IP: host}}})
		}
		return &wire.Network{Services: []wire.NetworkService{s}}
	}
	plain, ctx := nobody(t).Address, context.Background()
	dir := t.TempDir() + "/ingress"
	p := New(dir, "node", plain, nobody(t).Address, slog.New(slog.DiscardHandler))
	sync1 := func(n *wire.Network) {
		t.Helper()
		if err := p.Sync(ctx, n); err != nil {
			t.Fatal(err)
		}
	}
	sync1(&wire.Network{})
	if _, running := p.Running(); running {
		t.Error("it runs without routes")
	}
	sync1(network(a))
	t.Cleanup(func() { sync1(&wire.Network{}) })

	stop, failures, asked := make(chan struct{}), atomic.Int32{}, atomic.Int32{}
	var clients sync.WaitGroup
	for range 4 {
		clients.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				asked.Add(1)
				r, _ := http.NewRequest("GET", "http://"+plain+"/", nil)
				r.Host = "shop.example"
				resp, err := http.DefaultClient.Do(r)
				if err != nil {
					failures.Add(1)
					continue
				}
				if resp.StatusCode != 200 {
					failures.Add(1)
				}
				io.Copy(io.Discard, resp.Body)
				resp.Body.Close()
			}
		})
	}
	for i := range 30 {
		to := []Backend{a, b}[i%2]
		sync1(network(to))
		// From when Sync is done, nothing is led to where it was led before.
		if _, got, _ := request(t, http.DefaultClient, "GET", "http://"+plain, "shop.example", "/", ""); !strings.HasPrefix(got, to.Instance) {
			t.Fatalf("after the change %s answers %q", to.Instance, got)
		}
	}
	close(stop)
	clients.Wait()
	t.Logf("%d requests during 30 changes, %d failed", asked.Load(), failures.Load())
	if failures.Load() > 0 {
		t.Errorf("%d of %d requests failed", failures.Load(), asked.Load())
	}

	pid, _ := p.Running()
	again := New(dir, "node", plain, p.Args[1], p.Log) // as an agent that was restarted
	if err := again.Sync(ctx, network(a)); err != nil {
		t.Fatal(err)
	}
	if now, _ := again.Running(); now != pid {
		t.Errorf("process %d took the place of %d", now, pid)
	}
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	for running := true; running; _, running = again.Running() {
		time.Sleep(time.Millisecond)
	}
	if err := again.Keep(ctx); err != nil {
		t.Fatal(err)
	}
	if _, got, _ := request(t, http.DefaultClient, "GET", "http://"+plain, "shop.example", "/", ""); !strings.HasPrefix(got, "a") {
		t.Errorf("started again it answers %q", got)
	}
}

// TestARequestWaitsForAnInstance sends a request to a service without instances, which is answered once it
// has one; it is counted when it comes.
func TestARequestWaitsForAnInstance(t *testing.T) {
	r := leading("", "/", "shop/web")
	r.ServiceID, r.Wait = "s1", 30*time.Second
	in, plain, _ := front(t, &Config{Routes: []Route{r}})
	answer := make(chan string, 1)
	go func() {
		resp, err := http.Get("http://" + plain + "/x")
		if err != nil {
			answer <- err.Error()
			return
		}
		defer resp.Body.Close()
		body, _ := io.ReadAll(resp.Body)
		answer <- fmt.Sprint(resp.StatusCode, " ", string(body))
	}()
	for deadline := time.Now().Add(20 * time.Second); in.counts.requests()["s1"] == 0 && time.Now().Before(deadline); {
		time.Sleep(time.Millisecond)
	}
	if got := in.requests(); got != `{"s1":1}` {
		t.Errorf("counted %s", got)
	}
	r.Backends = []Backend{instance(t, "a")}
	in.put(&Config{Routes: []Route{r}})
	if got := <-answer; !strings.HasPrefix(got, "200 a ") {
		t.Errorf("answered %q", got)
	}
	r.Backends, r.Wait = nil, time.Millisecond
	in.put(&Config{Routes: []Route{r}})
	resp, err := http.Get("http://" + plain + "/x")
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusServiceUnavailable {
		t.Errorf("without an instance in time: %s", resp.Status)
	}
}
