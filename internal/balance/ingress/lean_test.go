package ingress

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// plainly is an instance of a few lines, which says what it is told to for each request.
func plainly(t *testing.T, each func(c net.Conn, r *http.Request, n int)) (b Backend, connections *atomic.Int32) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	connections = new(atomic.Int32)
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			connections.Add(1)
			go func() {
				defer c.Close()
				from := bufio.NewReader(c)
				for n := 0; ; n++ {
					r, err := http.ReadRequest(from)
					if err != nil {
						return
					}
					if each(c, r, n); r.Close {
						return
					}
					io.Copy(io.Discard, r.Body)
				}
			}()
		}
	}()
	return Backend{"plainly", l.Addr().String()}, connections
}

// dialed is a client that writes as it likes.
type dialed struct {
	*net.TCPConn
	from *bufio.Reader
}

func dial(t *testing.T, address string) *dialed {
	t.Helper()
	c, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(30 * time.Second))
	return &dialed{c.(*net.TCPConn), bufio.NewReader(c)}
}

// hears reads an answer, and returns its status and body.
func (d *dialed) hears(t *testing.T, method string) (int, string) {
	t.Helper()
	resp, err := http.ReadResponse(d.from, &http.Request{Method: method})
	if err != nil {
		t.Fatalf("the answer: %v", err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatalf("the answer's body after %q: %v", body, err)
	}
	return resp.StatusCode, string(body)
}

// Requests that are sent one after the other without waiting are answered in order, those of which net/http
// has to take care included.
func TestPipelining(t *testing.T) {
	_, plain, _ := front(t, &Config{Routes: []Route{leading("", "", "a", instance(t, "a"))}})
	c := dial(t, plain)
	var all strings.Builder
	for i := range 20 {
		fmt.Fprintf(&all, "POST /%d HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\n\r\nabc", i)
	}
	all.WriteString("POST /chunks HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nxyz\r\n0\r\n\r\nGET /last HTTP/1.1\r\nHost: h\r\n\r\n")
	go func() { // in pieces that end anywhere
		for text := all.String(); text != ""; {
			n := min(len(text), 1+rand.IntN(60))
			io.WriteString(c, text[:n])
			text = text[n:]
		}
	}()
	for i := range 20 {
		if status, got := c.hears(t, "POST"); status != 200 || got != fmt.Sprintf("a h /%d abc", i) {
			t.Fatalf("request %d is answered %d %q", i, status, got)
		}
	}
	for _, want := range []string{"a h /chunks xyz", "a h /last "} {
		if status, got := c.hears(t, "POST"); status != 200 || got != want {
			t.Errorf("want %q, it is answered %d %q", want, status, got)
		}
	}
}

// What two readers could understand differently is refused, or said to the instance in one way only.
func TestSmuggling(t *testing.T) {
	var asked atomic.Int32
	b, _ := plainly(t, func(c net.Conn, r *http.Request, _ int) {
		asked.Add(1)
		body, _ := io.ReadAll(r.Body)
		text := r.URL.Path + " " + string(body)
		fmt.Fprintf(c, "HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s", len(text), text)
	})
	_, plain, _ := front(t, &Config{Routes: []Route{leading("", "", "a", b)}})
	const smuggled = "GET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n"
	for _, headers := range []string{
		"Content-Length: 3\r\nContent-Length: 4\r\n", "Content-Length: 3\r\nTransfer-Encoding: chunked\r\n", "Transfer-Encoding: chunked\r\nContent-Length: 3\r\n",
		"Transfer-Encoding: chunked, identity\r\n", "Transfer-Encoding : chunked\r\n", "Transfer-Encoding: xchunked\r\n", "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n",
		"Content-Length: 0x3\r\n", "Content-Length: -1\r\n", "Content-Length: 3\r\n Content-Length: 4\r\n", "X: y\r\r\nContent-Length: 3\r\n", "Content-Length: 99999999999999999999\r\n",
	} {
		before := asked.Load()
		c := dial(t, plain)
		fmt.Fprintf(c, "POST /first HTTP/1.1\r\nHost: a\r\nConnection: close\r\n%s\r\n0\r\n\r\n%s", headers, smuggled)
		answers, err := io.ReadAll(c)
		if strings.Contains(string(answers), "smuggled") {
			t.Errorf("%q lets another request through: %q, %v", headers, answers, err)
		}
		if n := asked.Load() - before; n > 1 {
			t.Errorf("%q became %d requests", headers, n)
		}
	}
}

func TestSlowAndHalfClosedClients(t *testing.T) {
	_, plain, _ := front(t, &Config{Routes: []Route{leading("", "", "a", instance(t, "a"))}})
	c := dial(t, plain)
	for _, b := range []byte("POST /slow HTTP/1.1\r\nHost: h\r\nContent-Length: 4\r\n\r\nabcd") {
		c.Write([]byte{b})
		time.Sleep(time.Millisecond)
	}
	if status, got := c.hears(t, "POST"); status != 200 || got != "a h /slow abcd" {
		t.Errorf("one that comes byte by byte is answered %d %q", status, got)
	}
	c = dial(t, plain) // nothing more will come, and the answer is wanted
	io.WriteString(c, "GET /half HTTP/1.1\r\nHost: h\r\n\r\n")
	c.CloseWrite()
	if status, got := c.hears(t, "GET"); status != 200 || got != "a h /half " {
		t.Errorf("one that closes its end is answered %d %q", status, got)
	}
	for _, broken := range []string{"GET /x HTT", "POST /x HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\n\r\nab", ""} {
		c = dial(t, plain)
		io.WriteString(c, broken)
		c.CloseWrite()
		if answer, _ := io.ReadAll(c.from); strings.Contains(string(answer), "200 OK") {
			t.Errorf("%q is answered %q", broken, answer)
		}
	}
}

// A client that goes away takes its request back from the instance.
func TestClientsThatGo(t *testing.T) {
	came, ended := make(chan struct{}, 1), make(chan struct{})
	b, _ := plainly(t, func(c net.Conn, _ *http.Request, _ int) {
		came <- struct{}{}
		c.Read(make([]byte, 1))
		close(ended)
	})
	in, plain, _ := front(t, &Config{Routes: []Route{leading("", "", "a", b)}})
	c := dial(t, plain)
	io.WriteString(c, "GET / HTTP/1.1\r\nHost: h\r\n\r\n")
	<-came
	c.Close()
	select {
	case <-ended:
	case <-time.After(30 * time.Second):
		t.Fatal("the instance goes on for a client that has gone")
	}
	for deadline := time.Now().Add(20 * time.Second); !strings.Contains(in.counts.text(), `service="a",status="4xx"} 1`); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("it was counted as\n%s", in.counts.text())
		}
	}
}

func TestHugeHeads(t *testing.T) {
	big := strings.Repeat("x", 100<<10)
	b, _ := plainly(t, func(c net.Conn, r *http.Request, _ int) {
		fmt.Fprintf(c, "HTTP/1.1 200 OK\r\nX-Big: %s\r\nContent-Length: %d\r\n\r\n%s", big, len(r.Header.Get("X-Big")), r.Header.Get("X-Big"))
	})
	_, plain, _ := front(t, &Config{Routes: []Route{leading("", "", "a", b)}})
	for _, size := range []int{4 << 10, 9 << 10, 40 << 10} {
		status, got, resp := request(t, http.DefaultClient, "GET", "http://"+plain, "h", "/", "", "X-Big", big[:size])
		if status != 200 || len(got) != size || resp.Header.Get("X-Big") != big {
			t.Errorf("with a head of %d it answers %d, %d bytes, and a header of %d", size, status, len(got), len(resp.Header.Get("X-Big")))
		}
	}
	c := dial(t, plain)
	go fmt.Fprintf(c, "GET / HTTP/1.1\r\nHost: h\r\nX-Big: %s\r\n\r\n", big) // which is refused before it is there
	if resp, err := http.ReadResponse(c.from, nil); err == nil && resp.StatusCode != http.StatusRequestHeaderFieldsTooLarge {
		t.Errorf("a head of 100 KB is answered %d", resp.StatusCode)
	}
}

// Bodies of all sizes arrive as they were sent, both ways, by length and in chunks, with TLS and without.
func TestBodies(t *testing.T) {
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			return
		}
		if r.Header.Get("X-Chunks") == "" {
			w.Header().Set("Content-Length", fmt.Sprint(len(body)))
		} else {
			w.(http.Flusher).Flush()
		}
		for len(body) > 0 {
			n := min(len(body), 1+rand.IntN(100000))
			w.Write(body[:n])
			body = body[n:]
		}
	}))
	t.Cleanup(s.Close)
	r := leading("h", "", "a", Backend{"a", s.Listener.Addr().String()})
	r.Timeout, r.Secure, r.Insecure = time.Minute, true, true
	_, plain, secure := front(t, &Config{Routes: []Route{r}, Certificates: []string{certificate(t, "h")}})
	client := &http.Client{Transport: &http.Transport{TLSClientConfig: unverified("h")}}
	t.Cleanup(client.CloseIdleConnections)
	for _, base := range []string{"http://" + plain, "https://" + secure} {
		for _, size := range []int{0, 1, 5000, 8 << 10, 20 << 10, 300 << 10, 5 << 20} {
			sent := make([]byte, size)
			for i := range sent {
				sent[i] = byte(rand.Uint32())
			}
			for _, headers := range [][]string{nil, {"X-Chunks", "y"}} {
				status, got, _ := request(t, client, "POST", base, "h", "/", string(sent), headers...)
				if status != 200 || sha256.Sum256([]byte(got)) != sha256.Sum256(sent) {
					t.Errorf("%s: of %d bytes, %v, came %d with %d", base, size, headers, len(got), status)
				}
			}
		}
	}
}

// An instance may answer before it has read all, and both go on with what comes next.
func TestEarlyAnswers(t *testing.T) {
	b, _ := plainly(t, func(c net.Conn, r *http.Request, _ int) {
		if r.ContentLength > 100 {
			io.WriteString(c, "HTTP/1.1 413 Too Large\r\nContent-Length: 3\r\nConnection: close\r\n\r\nbig")
			r.Close = true
			return
		}
		io.WriteString(c, "HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
	})
	_, plain, _ := front(t, &Config{Routes: []Route{leading("", "", "a", b)}})
	c := dial(t, plain)
	fmt.Fprintf(c, "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: %d\r\n\r\nfirst", 1<<30)
	if status, got := c.hears(t, "POST"); status != 413 || got != "big" {
		t.Errorf("it is answered %d %q", status, got)
	}
	c = dial(t, plain)
	io.WriteString(c, "GET / HTTP/1.1\r\nHost: h\r\n\r\n")
	if status, got := c.hears(t, "GET"); status != 103 || got != "" {
		t.Errorf("the hint is %d %q", status, got)
	}
	if status, got := c.hears(t, "GET"); status != 200 || got != "ok" {
		t.Errorf("after the hint comes %d %q", status, got)
	}
}

// Answers of many kinds leave the client's connection, and the instance's, as they should be.
func TestAnswers(t *testing.T) {
	for name, c := range map[string]struct {
		method, says string
		status       int
		body         string
		kept, again  bool // the client's connection; the instance's
	}{
		"length":            {"GET", "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok", 200, "ok", true, true},
		"chunks":            {"GET", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\nA: b\r\n\r\n", 200, "ok", true, true},
		"none":              {"GET", "HTTP/1.1 204 No Content\r\n\r\n", 204, "", true, true},
		"not modified":      {"GET", "HTTP/1.1 304 Not Modified\r\nContent-Length: 99\r\n\r\n", 304, "", true, true},
		"head":              {"HEAD", "HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n", 200, "", true, true},
		"close":             {"GET", "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok", 200, "ok", true, false},
		"1.0":               {"GET", "HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nok", 200, "ok", true, false},
		"until the end":     {"GET", "HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nok", 200, "ok", false, false},
		"bare lines":        {"GET", "HTTP/1.1 200 OK\nContent-Length: 2\n\nok", 200, "ok", true, true},
		"too much":          {"GET", "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nokHTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil", 200, "ok", true, false},
		"head with a body":  {"HEAD", "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok", 200, "", true, false},
		"lengths that vary": {"GET", "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nok", 502, "a: the instance's answer is not one of HTTP/1\n", true, false},
		"another protocol":  {"GET", "SSH-2.0-x\r\n\r\n", 502, "a: the instance's answer is not one of HTTP/1\n", true, false},
	} {
		t.Run(name, func(t *testing.T) {
			b, connections := plainly(t, func(conn net.Conn, r *http.Request, _ int) {
				io.WriteString(conn, c.says)
				r.Close = strings.Contains(c.says, "Connection: close") || strings.Contains(c.says, "SSH")
			})
			one := leading("", "", "a", b)
			one.Retries = 0
			_, plain, _ := front(t, &Config{Routes: []Route{one}})
			client := dial(t, plain)
			for i := range 2 {
				fmt.Fprintf(client, "%s / HTTP/1.1\r\nHost: h\r\n\r\n", c.method)
				if status, got := client.hears(t, c.method); status != c.status || got != c.body {
					t.Fatalf("answer %d is %d %q", i, status, got)
				}
				if !c.kept {
					if _, err := client.from.ReadByte(); err != io.EOF {
						t.Fatalf("the connection goes on: %v", err)
					}
					return
				}
			}
			if again := connections.Load() == 1; again != c.again {
				t.Errorf("the instance was given %d connections", connections.Load())
			}
		})
	}
}

// A connection that was kept may end at any time: what may be sent again is, without a client noticing.
func TestKeptConnectionsThatEnd(t *testing.T) {
	b, connections := plainly(t, func(c net.Conn, r *http.Request, n int) {
		if n == 1 { // each connection answers one request, and breaks off at the second
			c.Close()
			return
		}
		io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
	})
	never := leading("", "", "a", b)
	never.Retries = 0
	_, plain, _ := front(t, &Config{Routes: []Route{never}})
	for i := range 20 {
		if status, got, _ := request(t, http.DefaultClient, "GET", "http://"+plain, "h", "/", ""); status != 200 || got != "ok" {
			t.Fatalf("request %d is answered %d %q", i, status, got)
		}
	}
	if n := connections.Load(); n < 10 {
		t.Errorf("there were %d connections", n)
	}
}

// An answer that breaks off reaches the client as one that does.
func TestAnswersThatBreakOff(t *testing.T) {
	b, _ := plainly(t, func(c net.Conn, r *http.Request, _ int) {
		io.WriteString(c, map[string]string{
			"/length": "HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nok", "/chunks": "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nok",
			"/bad": "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", "/splice": "HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\nok",
		}[r.URL.Path])
		r.Close = true
	})
	_, plain, _ := front(t, &Config{Routes: []Route{leading("", "", "a", b)}})
	for _, path := range []string{"/length", "/chunks", "/bad", "/splice"} {
		resp, err := http.Get("http://" + plain + path)
		if err != nil {
			continue // the head did not arrive either
		}
		if body, err := io.ReadAll(resp.Body); err == nil {
			t.Errorf("%s seems to end after %q", path, body)
		}
		resp.Body.Close()
	}
}

// Whoever ends an ingress lets requests end, and takes no others.
func TestShutdown(t *testing.T) {
	came, go1 := make(chan struct{}, 8), make(chan struct{})
	b, _ := plainly(t, func(c net.Conn, r *http.Request, _ int) {
		if r.URL.Path == "/wait" {
			came <- struct{}{}
			<-go1
		}
		io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
	})
	in := &ingress{proxy: newProxy(), loops: 2}
	in.put(&Config{Routes: []Route{leading("", "", "a", b)}})
	plain := nobody(t).Address
	servers, err := in.listen(plain, nobody(t).Address, make(chan error, 2))
	if err != nil {
		t.Fatal(err)
	}
	idle, waits := dial(t, plain), dial(t, plain)
	io.WriteString(idle, "GET / HTTP/1.1\r\nHost: h\r\n\r\n")
	idle.hears(t, "GET")
	io.WriteString(waits, "GET /wait HTTP/1.1\r\nHost: h\r\n\r\n")
	<-came
	var all sync.WaitGroup
	for _, s := range servers {
		all.Go(func() {
			ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
			defer cancel()
			if err := s.shutdown(ctx); err != nil {
				t.Error(err)
			}
		})
	}
	if _, err := idle.from.ReadByte(); err == nil {
		t.Error("a connection without a request goes on")
	}
	close(go1)
	if status, got := waits.hears(t, "GET"); status != 200 || got != "ok" {
		t.Errorf("the request under way is answered %d %q", status, got)
	}
	all.Wait()
	if c, err := net.Dial("tcp", plain); err == nil {
		c.Close()
		t.Error("it still listens")
	}
}

// Many clients at once, each kind of request, against many instances: every answer is that of its request.
func TestManyAtOnce(t *testing.T) {
	var list []Backend
	for i := range 3 {
		list = append(list, instance(t, fmt.Sprint("i", i)))
	}
	in, plain, _ := front(t, &Config{Routes: []Route{leading("", "", "a", list...)}})
	var clients sync.WaitGroup
	for n := range 16 {
		clients.Go(func() {
			client := &http.Client{Transport: &http.Transport{}}
			defer client.CloseIdleConnections()
			for i := range 60 {
				path, body := fmt.Sprintf("/%d/%d", n, i), bytes.Repeat([]byte{byte('a' + n)}, i*i*10)
				resp, err := client.Post("http://"+plain+path, "text/plain", bytes.NewReader(body))
				if err != nil {
					t.Error(err)
					return
				}
				got, err := io.ReadAll(resp.Body)
				resp.Body.Close()
				if err != nil || !strings.HasSuffix(string(got), path+" "+string(body)) {
					t.Errorf("%s with %d bytes is answered %.60q, %v", path, len(body), got, err)
					return
				}
				if i%20 == 0 {
					in.put(&Config{Routes: []Route{leading("", "", "a", list[n%3], list[(n+1)%3])}})
				}
			}
		})
	}
	clients.Wait()
}

// waiting is an instance that answers when it is let.
func waiting(t *testing.T, came chan<- struct{}, let <-chan struct{}) Backend {
	b, _ := plainly(t, func(c net.Conn, _ *http.Request, _ int) {
		select {
		case came <- struct{}{}:
		default:
		}
		<-let
		io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
	})
	return b
}
