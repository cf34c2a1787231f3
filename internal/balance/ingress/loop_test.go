package ingress

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"
)

// clients are how many connections the loops of a port have.
func clients(l *lean) (sum int32) {
	for _, p := range l.loops {
		sum += p.used.Load()
	}
	return sum
}

// soon waits until something is so.
func soon(t *testing.T, what string, so func() bool) {
	t.Helper()
	for end := time.Now().Add(30 * time.Second); !so(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%s: not so after 30 s", what)
		}
	}
}

// loopsOf is the port of an ingress that is answered by loops.
func loopsOf(t *testing.T, c *Config) (*lean, string) {
	t.Helper()
	in, _, _ := front(t, c)
	address := nobody(t).Address
	servers, err := in.listen(address, nobody(t).Address, make(chan error, 2))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		for _, s := range servers {
			s.shutdown(t.Context()) // which has ended
		}
	})
	return servers[0], address
}

// A client whose answer is large, or whose instance fails, is a session's meanwhile, and a loop's again.
func TestClientsComeBack(t *testing.T) {
	large := bytes.Repeat([]byte("0123456789abcdef"), 1<<16)
	b, _ := plainly(t, func(c net.Conn, r *http.Request, n int) {
		switch r.URL.Path {
		case "/large":
			fmt.Fprintf(c, "HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n", len(large))
			c.Write(large)
		case "/fails":
			if n > 0 { // the connection was kept
				c.Close()
				return
			}
			fallthrough
		default:
			io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
		}
	})
	l, address := loopsOf(t, &Config{Routes: []Route{leading("", "", "a", b)}})
	c := dial(t, address)
	for _, path := range []string{"/", "/large", "/", "/fails", "/", "/large", "/"} {
		fmt.Fprintf(c, "GET %s HTTP/1.1\r\nHost: h\r\n\r\n", path)
		want := "ok"
		if path == "/large" {
			want = string(large)
		}
		if status, got := c.hears(t, "GET"); status != 200 || got != want {
			t.Fatalf("%s: %d with %d bytes", path, status, len(got))
		}
		soon(t, path+": the client is a loop's", func() bool { return clients(l) == 1 })
	}
	c.Close()
	soon(t, "the client is gone", func() bool { return clients(l) == 0 })
}

// An answer comes no faster than its client takes it, and others are answered meanwhile.
func TestSlowReaders(t *testing.T) {
	piece := strings.Repeat("x", 8<<10)
	const pieces = 4000
	b, _ := plainly(t, func(c net.Conn, r *http.Request, n int) {
		if r.URL.Path != "/long" {
			io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
			return
		}
		io.WriteString(c, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
		for range pieces {
			if _, err := fmt.Fprintf(c, "%x\r\n%s\r\n", len(piece), piece); err != nil {
				return
			}
		}
		io.WriteString(c, "0\r\n\r\n")
	})
	l, address := loopsOf(t, &Config{Routes: []Route{leading("", "", "a", b)}})
	slow, gone := dial(t, address), dial(t, address)
	for _, c := range []*dialed{slow, gone} {
		io.WriteString(c, "GET /long HTTP/1.1\r\nHost: h\r\n\r\n")
		if _, err := c.from.Peek(1); err != nil {
			t.Fatal(err)
		}
	}
	other := dial(t, address)
	for range 100 {
		io.WriteString(other, "GET / HTTP/1.1\r\nHost: h\r\n\r\n")
		if status, got := other.hears(t, "GET"); status != 200 || got != "ok" {
			t.Fatalf("another client hears %d %q", status, got)
		}
	}
	gone.SetLinger(0)
	gone.Close()
	if status, got := slow.hears(t, "GET"); status != 200 || len(got) != pieces*len(piece) {
		t.Fatalf("a slow client hears %d with %d bytes", status, len(got))
	}
	soon(t, "who went is gone", func() bool { return clients(l) == 2 })
	slow.Close()
	other.Close()
	soon(t, "nobody is there", func() bool { return clients(l) == 0 })
}

// Requests that came at once are answered in order, whoever answers them.
func TestPipelinedMixture(t *testing.T) {
	l, address := loopsOf(t, &Config{Routes: []Route{leading("h", "", "a", instance(t, "a"))}})
	c := dial(t, address)
	var sent, want strings.Builder
	for i := range 60 {
		host := []string{"h", "nowhere", "h"}[i%3]
		fmt.Fprintf(&sent, "GET /%d HTTP/1.1\r\nHost: %s\r\n\r\n", i, host)
		if host == "h" {
			fmt.Fprintf(&want, "200 a h /%d \n", i)
		} else {
			fmt.Fprintf(&want, "404 no route leads to nowhere\n\n")
		}
	}
	io.WriteString(c, sent.String())
	var got strings.Builder
	for range 60 {
		status, text := c.hears(t, "GET")
		fmt.Fprintf(&got, "%d %s\n", status, text)
	}
	if got.String() != want.String() {
		t.Errorf("answered\n%s\nwant\n%s", &got, &want)
	}
	if n := clients(l); n != 1 {
		t.Errorf("the loops have %d clients", n)
	}
}
