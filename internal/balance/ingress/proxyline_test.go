package ingress

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"testing"
)

func TestProxyLines(t *testing.T) {
	at := netip.MustParseAddrPort
	for _, c := range []struct {
		version  int
		from, to netip.AddrPort
		want     string
	}{
		{1, at("192.0.2.1:5000"), at("198.51.100.2:80"), "PROXY TCP4 192.0.2.1 198.51.100.2 5000 80\r\n"},
		{1, at("[::ffff:192.0.2.1]:5000"), at("198.51.100.2:80"), "PROXY TCP4 192.0.2.1 198.51.100.2 5000 80\r\n"},
		{1, at("[2001:db8::1]:5000"), at("[2001:db8::2]:443"), "PROXY TCP6 2001:db8::1 2001:db8::2 5000 443\r\n"},
		{1, netip.AddrPort{}, at("198.51.100.2:80"), "PROXY UNKNOWN\r\n"},
		{2, at("192.0.2.1:258"), at("198.51.100.2:80"), "\r\n\r\n\x00\r\nQUIT\n\x21\x11\x00\x0c\xc0\x00\x02\x01\xc6\x33\x64\x02\x01\x02\x00\x50"},
		{2, at("[2001:db8::1]:258"), at("[2001:db8::2]:80"), "\r\n\r\n\x00\r\nQUIT\n\x21\x21\x00\x24\x20\x01\x0d\xb8" + strings.Repeat("\x00", 11) + "\x01\x20\x01\x0d\xb8" + strings.Repeat("\x00", 11) + "\x02\x01\x02\x00\x50"},
		{2, netip.AddrPort{}, netip.AddrPort{}, "\r\n\r\n\x00\r\nQUIT\n\x21\x00\x00\x00"},
	} {
		if got := string(proxyLine(c.version, c.from, c.to)); got != c.want {
			t.Errorf("version %d from %s to %s is %q, want %q", c.version, c.from, c.to, got, c.want)
		}
	}
}

// An instance that asks for it hears on each connection, which has one request, which client asks.
func TestInstancesHearWhoAsks(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				from := bufio.NewReader(c)
				for {
					line, err := from.ReadString('\n')
					if err != nil {
						return
					}
					if _, err := http.ReadRequest(from); err != nil {
						return
					}
					fmt.Fprintf(c, "HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s", len(line), line)
				}
			}()
		}
	}()
	r := leading("", "", "a", Backend{"a", l.Addr().String()})
	r.ProxyProtocol = 1
	_, plain, _ := front(t, &Config{Routes: []Route{r}})
	for name, two := range both(t) {
		for range 3 {
			status, got, _ := request(t, two, "GET", "http://"+plain, "h", "/", "")
			if fields := strings.Fields(got); status != 200 || len(fields) != 6 || fields[0] != "PROXY" || fields[2] != "127.0.0.1" || net.JoinHostPort(fields[3], fields[5]) != plain {
				t.Errorf("%s: an instance heard %d %q", name, status, got)
			}
		}
	}
	c := dial(t, plain)
	for range 3 { // on one connection of the client's
		io.WriteString(c, "GET / HTTP/1.1\r\nHost: h\r\n\r\n")
		if status, got := c.hears(t, "GET"); status != 200 || !strings.Contains(got, fmt.Sprint(" ", addressOf(c.LocalAddr()).Port(), " ")) {
			t.Errorf("an instance heard %d %q", status, got)
		}
	}
}

func TestParseProxy(t *testing.T) {
	two := func(command, family byte, rest string) string {
		return fmt.Sprintf("%s%c%c%c%c%s", proxySignature, 0, 0, 0, 0, rest)[:12] + string([]byte{command, family, byte(len(rest) >> 8), byte(len(rest))}) + rest
	}
	four := "\xc0\x00\x02\x01\xc6\x33\x64\x02\x01\x02\x00\x50"
	for _, c := range []struct{ text, from string }{ // "": none is said; "!": refused; "…": there is more to come
		{"PROXY TCP4 192.0.2.1 198.51.100.2 5000 80\r\n", "192.0.2.1:5000"},
		{"PROXY TCP6 2001:db8::1 2001:db8::2 5000 443\r\n", "[2001:db8::1]:5000"},
		{"PROXY TCP6 ::ffff:192.0.2.1 ::ffff:192.0.2.2 5000 443\r\n", "192.0.2.1:5000"},
		{"PROXY UNKNOWN\r\n", ""}, {"PROXY UNKNOWN whatever it is\r\n", ""},
		{"PROXY TCP4 192.0.2.1 198.51.100.2 5000 80", "…"}, {"PRO", "…"}, {"", "…"}, {"\r\n\r\n", "…"}, {proxySignature + "\x21\x11\x00\x0c1234", "…"},
		{"GET / HTTP/1.1\r\n", "!"}, {"PROXY TCP4 192.0.2.1 198.51.100.2 5000 80\n", "!"}, {"PROXY TCP4 192.0.2.1 198.51.100.2 5000\r\n", "!"},
		{"PROXY TCP4 2001:db8::1 198.51.100.2 5000 80\r\n", "!"}, {"PROXY TCP4 192.0.2.1 198.51.100.2 05000 80\r\n", "!"}, {"PROXY TCP4 192.0.2.1 198.51.100.2 65536 80\r\n", "!"},
		{"PROXY TCP4  192.0.2.1 198.51.100.2 5000 80\r\n", "!"}, {"PROXY \n", "!"}, {"PROXY TCP6 fe80::1%eth0 fe80::2 1 2\r\n", "!"}, {"PROXY UNKNOWN " + strings.Repeat("x", 100), "!"},
		{two(0x21, 0x11, four), "192.0.2.1:258"}, {two(0x21, 0x11, four+"\x04\x00\x01\x00"), "192.0.2.1:258"},
		{two(0x21, 0x21, strings.Repeat("\x20\x01", 16)+"\x01\x02\x00\x50"), "[2001:2001:2001:2001:2001:2001:2001:2001]:258"},
		{two(0x20, 0x00, ""), ""}, {two(0x20, 0x11, four), ""}, {two(0x21, 0x31, strings.Repeat("x", 216)), ""}, {two(0x21, 0x12, four), ""},
		{two(0x21, 0x11, four[:11]), "!"}, {two(0x31, 0x11, four), "!"}, {two(0x22, 0x11, four), "!"}, {two(0x21, 0x11, strings.Repeat("x", proxyMost)), "!"},
	} {
		for _, after := range []string{"", "GET / HTTP/1.1\r\n\r\n"} {
			if after != "" && c.from == "…" {
				continue
			}
			from, size, err := parseProxy([]byte(c.text + after))
			got := ""
			switch {
			case err != nil:
				got = "!"
			case size == 0:
				got = "…"
			case size != len(c.text):
				t.Errorf("%q has %d bytes, for us %d", c.text, len(c.text), size)
			case from.IsValid():
				got = from.String()
			}
			if got != c.from && !(c.text == "" && after != "") {
				t.Errorf("%q comes from %q, want %q", c.text+after, got, c.from)
			}
		}
	}
}

// FuzzProxy holds that what is read does not depend on how it is cut in pieces or on what follows, and that what the
// ingress itself says is understood.
func FuzzProxy(f *testing.F) {
	f.Add([]byte("PROXY TCP4 192.0.2.1 198.51.100.2 5000 80\r\nGET"), uint16(1))
	f.Add([]byte("PROXY TCP6 2001:db8::1 2001:db8::2 5000 443\r\n"), uint16(80))
	f.Add(append(proxyLine(2, netip.MustParseAddrPort("192.0.2.1:258"), netip.MustParseAddrPort("192.0.2.2:80")), "GET"...), uint16(0))
	f.Add(append(proxyLine(2, netip.MustParseAddrPort("[2001:db8::1]:258"), netip.MustParseAddrPort("[2001:db8::2]:80")), "GET"...), uint16(7))
	f.Fuzz(func(t *testing.T, text []byte, port uint16) {
		from, size, err := parseProxy(text)
		if size < 0 || size > len(text) || size > proxyMost || err != nil && (size > 0 || from.IsValid()) || size == 0 && from.IsValid() {
			t.Fatalf("%q: %v, %d, %v", text, from, size, err)
		}
		if size == 0 {
			return
		}
		for cut := range size {
			if _, n, err := parseProxy(text[:cut]); n != 0 || err != nil {
				t.Fatalf("%q is read as %d bytes, and its first %d as %d, %v", text, size, cut, n, err)
			}
		}
		if again, n, err := parseProxy(append(bytes.Clone(text[:size]), "\r\nX"...)); again != from || n != size || err != nil {
			t.Fatalf("%q is read as %v, and with something else after it as %v, %v", text, from, again, err)
		}
		if !from.IsValid() {
			return
		}
		for version := 1; version <= 2; version++ {
			to := netip.AddrPortFrom(from.Addr(), port)
			said := proxyLine(version, from, to)
			if got, n, err := parseProxy(said); got != from || n != len(said) || err != nil {
				t.Fatalf("%q comes from %v, %v; want %v", said, got, err, from)
			}
		}
	})
}

// Load balancers that are trusted say for whom they connect, on both ports and in front of every kind of request; others
// are not asked, and what they say is none of HTTP.
func TestLoadBalancersSayWhoAsks(t *testing.T) {
	b, _ := plainly(t, func(c net.Conn, r *http.Request, n int) {
		text := r.Header.Get("X-Forwarded-For")
		fmt.Fprintf(c, "HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s", len(text), text)
	})
	key := certificate(t, "h")
	r := leading("", "", "a", b)
	r.Secure, r.Insecure = true, true
	in, plain, secure := front(t, &Config{Routes: []Route{r}, Certificates: []string{key}, Proxies: []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}})
	client := netip.MustParseAddrPort("203.0.113.9:4242")
	for version := 1; version <= 2; version++ {
		head := proxyLine(version, client, netip.MustParseAddrPort("192.0.2.1:80"))
		c := dial(t, plain)
		for _, piece := range slices.Collect(slices.Chunk(head, 5)) {
			c.Write(piece)
		}
		for _, request := range []string{"GET / HTTP/1.1\r\nHost: h\r\n\r\n", "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"} { // the second is net/http's
			io.WriteString(c, request)
			if status, got := c.hears(t, "GET"); status != 200 || got != "203.0.113.9" {
				t.Errorf("version %d: an instance heard %d %q", version, status, got)
			}
		}
		at := dial(t, secure)
		at.Write(head)
		over := tls.Client(at.TCPConn, &tls.Config{ServerName: "h", InsecureSkipVerify: true})
		io.WriteString(over, "GET / HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n")
		resp, err := http.ReadResponse(bufio.NewReader(over), nil)
		if err != nil {
			t.Fatalf("version %d over TLS: %v", version, err)
		}
		got, _ := io.ReadAll(resp.Body)
		if string(got) != "203.0.113.9" {
			t.Errorf("version %d: over TLS an instance heard %q", version, got)
		}
	}
	wants := func(what, said, status string) {
		t.Helper()
		c := dial(t, plain)
		io.WriteString(c, said)
		c.CloseWrite()
		got, _ := io.ReadAll(c)
		if line, _, _ := strings.Cut(string(got), "\r\n"); line != status {
			t.Errorf("%s is answered %q, want %q", what, line, status)
		}
	}
	const asks = "GET / HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n"
	wants("who is trusted and does not say it", asks, "")
	wants("who speaks for itself", string(proxyLine(2, netip.AddrPort{}, netip.AddrPort{}))+asks, "HTTP/1.1 200 OK")
	in.put(&Config{Routes: []Route{r}, Certificates: []string{key}, Proxies: []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24")}})
	wants("who is not trusted, and does not say it", asks, "HTTP/1.1 200 OK")
	wants("who is not trusted, and says it", string(proxyLine(1, client, client))+asks, "HTTP/1.1 400 Bad Request")
}
