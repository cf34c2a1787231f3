package ingress

import (
	"bytes"
	"errors"
	"strings"
)

// What a session reads by itself is a small, strict part of HTTP/1.1, about which no two readers can
// disagree. A head that is not of it is no error: its connection is handed to net/http, as it came.
const (
	headRoom  = 8 << 10 // of a request's head that a session reads itself
	mostLines = 100
)

// field is a line of a head, by where its parts are.
type field struct {
	start, nameEnd, value, valueEnd, end int
	kind                                 kind
}

// kind tells the headers that mean something to a proxy.
type kind uint8

const (
	other kind = iota
	hostField
	lengthField
	encodingField
	connectionField
	hopField     // about one connection only: not passed on
	exoticField  // changes what the connection is, or how the body comes
	forwardField // says who asked: only the ingress does
)

var kinds = map[string]kind{
	"host": hostField, "content-length": lengthField, "transfer-encoding": encodingField, "connection": connectionField,
	"keep-alive": hopField, "proxy-connection": hopField, "proxy-authorization": hopField, "proxy-authenticate": hopField,
	"upgrade": exoticField, "expect": exoticField, "te": exoticField, "trailer": exoticField, "http2-settings": exoticField,
	"forwarded": forwardField, "x-forwarded-for": forwardField, "x-forwarded-host": forwardField, "x-forwarded-proto": forwardField,
	"x-forwarded-prefix": forwardField,
}

// longestKind is the length of the longest of those names.
const longestKind = len("proxy-authenticate")

func kindOf(name []byte) kind {
	if len(name) > longestKind {
		return other
	}
	switch name[0] | 0x20 { // what most headers begin with is none of them
	case 'h', 'c', 't', 'k', 'p', 'u', 'e', 'f', 'x':
	default:
		return other
	}
	var b [longestKind]byte
	for i, c := range name {
		if 'A' <= c && c <= 'Z' {
			c |= 0x20
		}
		b[i] = c
	}
	return kinds[string(b[:len(name)])]
}

// Classes of characters.
const (
	inToken = 1 << iota
	inValue
	inTarget
	inHost
)

var classes = func() (t [256]uint8) {
	for c := range 256 {
		switch {
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9':
			t[c] = inToken | inHost
		case strings.IndexByte("!#$%&'*+-.^_`|~", byte(c)) >= 0:
			t[c] = inToken
		}
		if c == '\t' || c >= ' ' && c != 0x7f {
			t[c] |= inValue
		}
		if '!' <= c && c <= '~' && c != '#' {
			t[c] |= inTarget
		}
	}
	for _, c := range "-._" {
		t[c] |= inHost
	}
	return t
}()

func all(b []byte, class uint8) bool {
	for _, c := range b {
		if classes[c]&class == 0 {
			return false
		}
	}
	return true
}

// fields are the lines of a head.
type fields struct {
	raw  []byte
	list []field
}

// read takes the lines from a place on, up to the empty one, and returns where that ends; 0 when a line is not
// as it should be. Lines end with CR and LF, or, where bare is set, with LF alone.
func (f *fields) read(raw []byte, at, most int, bare bool) int {
	f.raw, f.list = raw, f.list[:0]
	for {
		size := bytes.IndexByte(raw[at:], '\n')
		if size < 0 {
			return 0
		}
		end, stop := at+size+1, at+size
		if size > 0 && raw[stop-1] == '\r' {
			stop--
		} else if !bare {
			return 0
		}
		if stop == at {
			return end
		}
		colon := bytes.IndexByte(raw[at:stop], ':')
		if colon <= 0 || !all(raw[at:at+colon], inToken) || len(f.list) == most {
			return 0
		}
		one := field{start: at, nameEnd: at + colon, value: at + colon + 1, valueEnd: stop, end: end}
		for one.value < stop && (raw[one.value] == ' ' || raw[one.value] == '\t') {
			one.value++
		}
		for one.valueEnd > one.value && (raw[one.valueEnd-1] == ' ' || raw[one.valueEnd-1] == '\t') {
			one.valueEnd--
		}
		if !all(raw[one.value:one.valueEnd], inValue) {
			return 0
		}
		one.kind = kindOf(raw[at:one.nameEnd])
		f.list = append(f.list, one)
		at = end
	}
}

func (f *fields) name(i int) []byte  { return f.raw[f.list[i].start:f.list[i].nameEnd] }
func (f *fields) value(i int) []byte { return f.raw[f.list[i].value:f.list[i].valueEnd] }

// Get returns the first value of a header, or "".
func (f *fields) Get(name string) string {
	for i := range f.list {
		if n := f.name(i); len(n) == len(name) && strings.EqualFold(string(n), name) {
			return string(f.value(i))
		}
	}
	return ""
}

// head is the head of a request.
type head struct {
	fields
	method, target, host []byte
	length               int64 // of the body
	close                bool  // the client wants no other request on this connection
}

// wholeHead reports whether the head is there as a whole; odd, that it will not be one of ours.
func wholeHead(b []byte) (whole, odd bool) {
	if bytes.Contains(b, []byte("\r\n\r\n")) {
		return true, false
	}
	if b[0] < 'A' || b[0] > 'Z' || len(b) >= headRoom {
		return false, true
	}
	for at := 0; ; {
		i := bytes.IndexByte(b[at:], '\n')
		if i < 0 {
			return false, false
		}
		if at += i; b[at-1] != '\r' {
			return false, true
		}
		at++
	}
}

// parse reads a whole head, and returns its length; ok is false for one that a session does not answer.
func (h *head) parse(b []byte) (size int, ok bool) {
	line := bytes.IndexByte(b, '\n')
	rest, found := bytes.CutSuffix(b[:max(line, 0)], []byte(" HTTP/1.1\r"))
	if !found {
		return 0, false
	}
	if h.method, h.target, found = bytes.Cut(rest, []byte(" ")); !found || len(h.method) > 20 || string(h.method) == "CONNECT" {
		return 0, false
	}
	for _, c := range h.method {
		if c < 'A' || c > 'Z' {
			return 0, false
		}
	}
	if len(h.method) == 0 || len(h.target) == 0 || h.target[0] != '/' || !all(h.target, inTarget) || !escaped(h.target) {
		return 0, false
	}
	if size = h.read(b, line+1, mostLines, false); size == 0 {
		return 0, false
	}
	h.host, h.length, h.close = nil, 0, false
	hosts, lengths, connections := 0, 0, 0
	for i := range h.list {
		switch v := h.value(i); h.list[i].kind {
		case hostField:
			hosts++
			h.host = v
		case lengthField:
			lengths++
			if h.length, ok = number(v); !ok {
				return 0, false
			}
		case connectionField:
			connections++
			if h.close = bytes.EqualFold(v, []byte("close")); !h.close && !bytes.EqualFold(v, []byte("keep-alive")) {
				return 0, false
			}
		case encodingField, exoticField:
			return 0, false
		}
	}
	return size, hosts == 1 && lengths <= 1 && connections <= 1 && isHost(h.host)
}

// escaped reports whether each % of a target's path begins an escape: readers differ about others.
func escaped(target []byte) bool {
	path, _, _ := bytes.Cut(target, []byte("?"))
	for {
		i := bytes.IndexByte(path, '%')
		if i < 0 {
			return true
		}
		if len(path) < i+3 || !isHex(path[i+1]) || !isHex(path[i+2]) {
			return false
		}
		path = path[i+3:]
	}
}

func isHex(c byte) bool {
	return '0' <= c && c <= '9' || 'a' <= c|0x20 && c|0x20 <= 'f'
}

func isHost(b []byte) bool {
	name, port, _ := bytes.Cut(b, []byte(":"))
	for _, c := range port {
		if c < '0' || c > '9' {
			return false
		}
	}
	return len(name) > 0 && len(port) <= 5 && all(name, inHost)
}

// number reads a length as a header has it: digits alone.
func number(b []byte) (n int64, ok bool) {
	for _, c := range b {
		if c < '0' || c > '9' {
			return 0, false
		}
		n = n*10 + int64(c-'0')
	}
	return n, len(b) > 0 && len(b) <= 18
}

// framing is how the end of an answer is known.
type framing uint8

const (
	byLength framing = iota
	byChunks
	byClose
)

// answer is the head of an answer.
type answer struct {
	fields
	status  int
	reason  []byte // with the status
	framing framing
	length  int64
	keep    bool // the instance takes another request on this connection
}

var (
	errAnswer = errors.New("the instance's answer is not one of HTTP/1")
	errHead   = errors.New("the head of the instance's answer is too large")
)

// parse reads a head as far as it is there; size is 0 when it is not yet as a whole.
func (a *answer) parse(b []byte, head bool) (size int, err error) {
	if !bytes.Contains(b, []byte("\n\r\n")) && !bytes.Contains(b, []byte("\n\n")) {
		if len(b) >= len("HTTP/1.") && !bytes.HasPrefix(b, []byte("HTTP/1.")) {
			return 0, errAnswer
		}
		return 0, nil
	}
	line := bytes.IndexByte(b, '\n')
	first := bytes.TrimSuffix(b[:line], []byte("\r"))
	if len(first) < len("HTTP/1.1 200") || !bytes.HasPrefix(first, []byte("HTTP/1.")) || first[8] != ' ' || first[7] != '0' && first[7] != '1' || len(first) > 12 && first[12] != ' ' {
		return 0, errAnswer
	}
	a.reason = first[9:]
	status, ok := number(first[9:12])
	if !ok || status < 100 || !all(a.reason, inValue) {
		return 0, errAnswer
	}
	if size = a.read(b, line+1, 1000, true); size == 0 {
		return 0, errAnswer
	}
	a.status, a.length, a.framing, a.keep = int(status), -1, byClose, first[7] == '1'
	chunked := false
	for i := range a.list {
		switch v := a.value(i); a.list[i].kind {
		case lengthField:
			n, ok := number(v)
			if !ok || a.length >= 0 && n != a.length {
				return 0, errAnswer
			}
			a.length = n
		case encodingField:
			if chunked || first[7] == '0' || !bytes.EqualFold(v, []byte("chunked")) { // in HTTP/1.0 readers disagree on it
				return 0, errAnswer
			}
			chunked = true
		case connectionField:
			if bytes.EqualFold(v, []byte("close")) {
				a.keep = false
			} else if bytes.EqualFold(v, []byte("keep-alive")) {
				a.keep = true
			} else {
				a.keep = a.keep && !a.listed("close")
				a.drop(v)
			}
		}
	}
	switch {
	case head || a.status < 200 || a.status == 204 || a.status == 304:
		a.framing, a.length = byLength, 0
	case chunked:
		a.keep = a.keep && a.length < 0 // who says both is not to be relied on
		a.framing = byChunks
	case a.length >= 0:
		a.framing = byLength
	default:
		a.keep = false
	}
	return size, nil
}

// listed reports whether a word is among those of the Connection headers.
func (a *answer) listed(word string) bool {
	for i := range a.list {
		if a.list[i].kind == connectionField {
			for v := range strings.SplitSeq(string(a.value(i)), ",") {
				if strings.EqualFold(strings.TrimSpace(v), word) {
					return true
				}
			}
		}
	}
	return false
}

// drop keeps the headers that a Connection header names from being passed on.
func (a *answer) drop(named []byte) {
	for v := range strings.SplitSeq(string(named), ",") {
		for i := range a.list {
			if a.list[i].kind == other && strings.EqualFold(strings.TrimSpace(v), string(a.name(i))) {
				a.list[i].kind = hopField
			}
		}
	}
}

// chunks follows a body that comes in chunks, to find its end. It is passed on as it came.
type chunks struct {
	state chunkState
	left  int64 // of the chunk
	taken int   // digits of a size, or characters of extensions and trailers
}

type chunkState uint8

const (
	atSize chunkState = iota
	inExtension
	afterSize // LF is to come
	inData
	afterData // CR
	dataEnd   // LF
	atLine    // of the trailers, or the end
	inName
	inLine
	lineEnd // LF
	lastEnd // LF
)

var errChunks = errors.New("the instance's answer breaks the rules of chunks")

// scan takes what came, and returns how much of it belongs to the body.
func (c *chunks) scan(b []byte) (n int, done bool, err error) {
	for n < len(b) {
		if c.state == inData {
			step := min(int64(len(b)-n), c.left)
			n, c.left = n+int(step), c.left-step
			if c.left == 0 {
				c.state = afterData
			}
			continue
		}
		x := b[n]
		n++
		ok := true
		switch c.state {
		case atSize:
			digit := strings.IndexByte("0123456789abcdef", x|0x20)
			switch {
			case digit >= 0 && x >= '0' && c.taken < 15:
				c.left, c.taken = c.left<<4|int64(digit), c.taken+1
			case c.taken > 0 && x == '\r':
				c.state = afterSize
			case c.taken > 0 && (x == ';' || x == ' ' || x == '\t'):
				c.state, c.taken = inExtension, 0
			default:
				ok = false
			}
		case inExtension, inLine:
			if c.taken++; x == '\r' {
				c.state++ // afterSize or lineEnd
			} else {
				ok = classes[x]&inValue != 0 && c.taken < headRoom
			}
		case afterSize:
			if ok = x == '\n'; c.left > 0 {
				c.state = inData
			} else {
				c.state, c.taken = atLine, 0
			}
		case afterData:
			ok, c.state = x == '\r', dataEnd
		case dataEnd:
			ok, c.state, c.taken = x == '\n', atSize, 0
		case atLine:
			if c.state = lastEnd; x != '\r' {
				ok, c.state = classes[x]&inToken != 0, inName
			}
		case inName:
			if c.taken++; x == ':' {
				c.state = inLine
			} else {
				ok = classes[x]&inToken != 0 && c.taken < headRoom
			}
		case lineEnd:
			ok, c.state = x == '\n', atLine
		case lastEnd:
			return n, x == '\n', map[bool]error{false: errChunks}[x == '\n']
		}
		if !ok {
			return n, false, errChunks
		}
	}
	return n, false, nil
}
