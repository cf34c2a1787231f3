package ingress

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"testing"
)

// heads are such as a session answers itself, and such as it must not.
var heads = []struct {
	head string
	ours bool
}{
	{"GET / HTTP/1.1\r\nHost: a\r\n\r\n", true},
	{"POST /a/b?c=d HTTP/1.1\r\nHost: a.b:80\r\nContent-Length: 12\r\nConnection: close\r\n\r\n", true},
	{"GET /%41 HTTP/1.1\r\nHOST:a\r\nX-Empty:\r\nX: \t a b \t\r\nConnection: Keep-Alive\r\n\r\n", true},
	{"DELETE //x HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\nX-Forwarded-For: 1.2.3.4\r\n\r\n", true},
	{"GET /a%2fb?c=% HTTP/1.1\r\nHost: a\r\n\r\n", true},
	{"GET /% HTTP/1.1\r\nHost: a\r\n\r\n", false},
	{"GET /%4g HTTP/1.1\r\nHost: a\r\n\r\n", false},
	{"GET / HTTP/1.0\r\nHost: a\r\n\r\n", false},
	{"GET / HTTP/1.1\r\n\r\n", false},
	{"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", false},
	{"GET / HTTP/1.1\r\nHost: a/b\r\n\r\n", false},
	{"GET / HTTP/1.1\r\nHost: [::1]\r\n\r\n", false},
	{"GET / HTTP/1.1\nHost: a\n\n", false},
	{"GET / HTTP/1.1\r\nHost: a\n\r\n", false},
	{"GET  / HTTP/1.1\r\nHost: a\r\n\r\n", false},
	{"GET / x HTTP/1.1\r\nHost: a\r\n\r\n", false},
	{"get / HTTP/1.1\r\nHost: a\r\n\r\n", false},
	{"GET http://b/ HTTP/1.1\r\nHost: a\r\n\r\n", false},
	{"GET /#x HTTP/1.1\r\nHost: a\r\n\r\n", false},
	{"OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n", false},
	{"CONNECT /x HTTP/1.1\r\nHost: a\r\n\r\n", false},
	{"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\n", false},
	{"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: +1\r\n\r\n", false},
	{"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1, 1\r\n\r\n", false},
	{"POST / HTTP/1.1\r\nHost: a\r\nContent-Length:\r\n\r\n", false},
	{"POST / HTTP/1.1\r\nHost: a\r\nContent-Length : 1\r\n\r\n", false},
	{"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n", false},
	{"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n", false},
	{"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding\t: chunked\r\n\r\n", false},
	{"POST / HTTP/1.1\r\nHost: a\r\nX: y\r\n Transfer-Encoding: chunked\r\n\r\n", false},
	{"POST / HTTP/1.1\r\nHost: a\r\nX: y\rTransfer-Encoding: chunked\r\n\r\n", false},
	{"GET / HTTP/1.1\r\nHost: a\r\nX: \x00\r\n\r\n", false},
	{"GET / HTTP/1.1\r\nHost: a\r\nX y: z\r\n\r\n", false},
	{"GET / HTTP/1.1\r\nHost: a\r\n: z\r\n\r\n", false},
	{"GET / HTTP/1.1\r\nHost: a\r\nConnection: X-Secret\r\nX-Secret: 1\r\n\r\n", false},
	{"GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n", false},
	{"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nExpect: 100-continue\r\n\r\n", false},
	{"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", false},
	{"GET / HTTP/1.1\r\nHost: a\r\n" + strings.Repeat("A: b\r\n", mostLines) + "\r\n", false},
}

func TestHeads(t *testing.T) {
	for _, c := range heads {
		var h head
		size, ok := h.parse([]byte(c.head))
		if ok != c.ours || ok && size != len(c.head) {
			t.Errorf("%q: %d, %v", c.head, size, ok)
		}
	}
}

// sameAsNetHTTP fails when a session would answer what net/http reads differently, or not at all.
func sameAsNetHTTP(t *testing.T, text []byte) {
	t.Helper()
	if len(text) == 0 {
		return
	}
	whole, odd := wholeHead(text)
	if odd || !whole {
		return
	}
	var h head
	size, ok := h.parse(text)
	if !ok {
		return
	}
	from := bufio.NewReader(bytes.NewReader(text))
	r, err := http.ReadRequest(from)
	if err != nil {
		t.Fatalf("%q is answered, and net/http says %v", text, err)
	}
	rest, err := io.ReadAll(from)
	if err != nil || !bytes.Equal(rest, text[size:]) {
		t.Fatalf("%q: the head ends at %d, for net/http %d before the end", text, size, len(rest))
	}
	if r.Method != string(h.method) || r.RequestURI != string(h.target) || r.Host != string(h.host) || r.ContentLength != h.length || r.Close != h.close || len(r.TransferEncoding) > 0 || len(r.Trailer) > 0 {
		t.Fatalf("%q is %+v, for net/http %+v", text, h, r)
	}
	ours, theirs := []string{}, []string{}
	for i := range h.list {
		if name := http.CanonicalHeaderKey(string(h.name(i))); name != "Host" {
			ours = append(ours, name+": "+string(h.value(i)))
		}
	}
	for name, values := range r.Header {
		for _, v := range values {
			theirs = append(theirs, name+": "+v)
		}
	}
	if h.close && len(theirs) < len(ours) { // which net/http takes out
		theirs = append(theirs, "Connection: "+h.Get("Connection"))
	}
	slices.Sort(ours)
	slices.Sort(theirs)
	if !slices.Equal(ours, theirs) {
		t.Fatalf("%q has %q, for net/http %q", text, ours, theirs)
	}
	// What an instance gets is read in the same way, and has one length.
	x := exchange{session: &session{l: &lean{}, client: "192.0.2.1", head: h}, route: &route{Route: &Route{}}}
	passed, err := http.ReadRequest(bufio.NewReader(bytes.NewReader(x.request(nil))))
	if err != nil || passed.Host != r.Host || passed.RequestURI != r.RequestURI || passed.ContentLength != r.ContentLength || len(passed.TransferEncoding) > 0 || fmt.Sprint(passed.Header["X-Forwarded-For"]) != "[192.0.2.1]" {
		t.Fatalf("%q is passed on as %q, %v", text, x.request(nil), err)
	}
}

func TestHeadsAsNetHTTP(t *testing.T) {
	for _, c := range heads {
		sameAsNetHTTP(t, []byte(c.head+"and what follows"))
	}
}

func FuzzHead(f *testing.F) {
	for _, c := range heads {
		f.Add([]byte(c.head + "X"))
	}
	f.Fuzz(sameAsNetHTTP)
}

// FuzzAnswer holds the heads and the chunks of answers against net/http, however they are cut in pieces.
func FuzzAnswer(f *testing.F) {
	for _, s := range []string{
		"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
		"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: A\r\n\r\n5;x=y\r\nhello\r\n10\r\n0123456789abcdef\r\n0\r\nA: b\r\n\r\n",
		"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nA:\r\n5; b\r\n\r\n", // a trailer without a colon
		"HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n", "HTTP/1.0 200 OK\n\nhello", "HTTP/1.1 204 No Content\r\n\r\n", "HTTP/1.1 200\r\nConnection: close, x-a\r\nX-A: b\r\n\r\nhello",
	} {
		f.Add([]byte(s), uint8(7))
	}
	f.Fuzz(func(t *testing.T, text []byte, step uint8) {
		var a answer
		size, err := a.parse(text, false)
		if err != nil || size == 0 || a.status < 200 {
			return
		}
		resp, err := http.ReadResponse(bufio.NewReader(bytes.NewReader(text)), &http.Request{Method: "GET"})
		if err != nil {
			return // it is the instance's, and some are careless
		}
		if resp.StatusCode != a.status {
			t.Fatalf("%q has status %d, for net/http %d", text, a.status, resp.StatusCode)
		}
		if a.framing == byLength && a.status != 204 && a.status != 304 && resp.ContentLength != a.length || a.framing == byChunks && (len(resp.TransferEncoding) == 0 || resp.ContentLength >= 0) || a.framing == byClose && resp.ContentLength >= 0 {
			t.Fatalf("%q is framed %d with %d, for net/http %d %v", text, a.framing, a.length, resp.ContentLength, resp.TransferEncoding)
		}
		if a.framing != byChunks {
			return
		}
		var c chunks
		at, done := size, false
		for at < len(text) && !done {
			piece := text[at:min(len(text), at+1+int(step))]
			n, end, err := c.scan(piece)
			if err != nil {
				return
			}
			at, done = at+n, end
			if !end && n != len(piece) {
				t.Fatalf("%q: %d of %d bytes taken before the end", text, n, len(piece))
			}
		}
		from := bufio.NewReader(bytes.NewReader(text[:at]))
		whole, _ := http.ReadResponse(from, &http.Request{Method: "GET"})
		if _, err := io.ReadAll(whole.Body); done && err != nil && !strings.Contains(err.Error(), "header") && !strings.Contains(err.Error(), "trailer") && !strings.Contains(err.Error(), "MIME") {
			t.Fatalf("%q ends at %d, and net/http says %v", text, at, err)
		}
		if rest, _ := io.ReadAll(from); done && len(rest) > 0 {
			t.Fatalf("%q ends at %d, for net/http %d before that", text, at, len(rest))
		}
	})
}

func TestResolved(t *testing.T) {
	for in, want := range map[string]string{
		"/": "/", "/a/b": "/a/b", "/a/../b": "/b", "/a/./b/": "/a/b/", "//a": "/a", "/../..": "/", "/a/..": "/", "/a/b/..": "/a/", "/.well-known/x": "/.well-known/x", "": "",
	} {
		if got := resolved(in); got != want {
			t.Errorf("%q comes to %q, want %q", in, got, want)
		}
	}
}
