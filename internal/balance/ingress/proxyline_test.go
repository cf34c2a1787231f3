package ingress

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
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
