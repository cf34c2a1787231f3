package wire

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/fxamacker/cbor/v2"
	"golang.org/x/net/http2"

	"github.com/tutti-run/tutti/internal/fault"
)

// Limits on what one message or call may hold, in bytes.
const (
	maxMessage = 64 << 20
	maxCall    = 64 << 20
)

// encoder keeps nanoseconds: of times between nodes, none may be lost on the way.
var encoder = func() cbor.EncMode {
	m, err := cbor.EncOptions{Time: cbor.TimeRFC3339NanoUTC}.EncMode()
	if err != nil {
		panic(err) // the options are ours
	}
	return m
}()

// decoder has no limit on counts but that of maxMessage: a cluster may be large.
var decoder = func() cbor.DecMode {
	const many = 1<<31 - 1
	m, err := cbor.DecOptions{MaxArrayElements: many, MaxMapPairs: many}.DecMode()
	if err != nil {
		panic(err)
	}
	return m
}()

// Marshal encodes as messages and calls are encoded.
func Marshal(v any) ([]byte, error) { return encoder.Marshal(v) }

// Unmarshal decodes what Marshal made.
func Unmarshal(data []byte, v any) error { return decoder.Unmarshal(data, v) }

const (
	// MediaCBOR is the media type of what Marshal makes.
	MediaCBOR  = "application/cbor"
	headerKind = "Tutti-Fault"
)

// Client connects to other nodes. It is safe for concurrent use. What is for servers, paths below
// /server/ and /node/, is told to servers only.
type Client struct {
	network Underlay
	config  func(ofServers bool) *tls.Config
	now     atomic.Pointer[transports]
	http    *http.Client
}

// transports are the connections made with one certificate.
type transports struct{ servers, nodes *http2.Transport }

func newClient(network Underlay, config func(ofServers bool) *tls.Config) *Client {
	c := &Client{network: network, config: config}
	c.http = &http.Client{Transport: c}
	c.renew()
	return c
}

// renew makes new calls use new connections. Those that are under way end on the old ones.
func (c *Client) renew() {
	old := c.now.Swap(&transports{servers: c.transport(true), nodes: c.transport(false)})
	if old != nil {
		old.close()
		time.AfterFunc(longCall, old.close)
	}
}

// longCall is how long a call may be under way before its connection is closed once it is idle.
const longCall = 15 * time.Second

func (t *transports) close() {
	t.servers.CloseIdleConnections()
	t.nodes.CloseIdleConnections()
}

func (c *Client) transport(ofServers bool) *http2.Transport {
	return &http2.Transport{
		TLSClientConfig: &tls.Config{}, // not used: see below
		DialTLSContext: func(ctx context.Context, _, address string, _ *tls.Config) (net.Conn, error) {
			ctx, cancel := context.WithTimeout(ctx, handshakeTimeout)
			defer cancel()
			return dialTLS(ctx, c.network, address, c.config(ofServers))
		},
		// Without an answer to a ping within these, a silent connection is given up. One with a node
		// session is not silent for as long, whatever the pace.
		ReadIdleTimeout: 1500 * time.Millisecond, PingTimeout: deadPeer, WriteByteTimeout: 5 * time.Second,
		IdleConnTimeout:    5 * time.Minute,
		DisableCompression: true,
	}
}

// RoundTrip implements http.RoundTripper.
func (c *Client) RoundTrip(r *http.Request) (*http.Response, error) {
	t := c.now.Load()
	if forServers(r.URL.Path) {
		return t.servers.RoundTrip(r)
	}
	return t.nodes.RoundTrip(r)
}

func forServers(path string) bool {
	return strings.HasPrefix(path, "/server/") || strings.HasPrefix(path, "/node/")
}

func (c *Client) close() { c.now.Load().close() }

// Transport returns the round tripper, for reverse proxies. URLs are https://host:port/….
func (c *Client) Transport() http.RoundTripper { return c }

// WriteError answers a request with an error and its kind.
func WriteError(w http.ResponseWriter, err error) {
	w.Header().Set(headerKind, fault.KindOf(err).String())
	w.WriteHeader(http.StatusUnprocessableEntity)
	io.WriteString(w, err.Error()) // the peer is gone if this fails, and notices so itself
}

func responseError(resp *http.Response) error {
	text, err := io.ReadAll(io.LimitReader(resp.Body, 64<<10))
	if err != nil {
		return fault.New(fault.Unavailable, "read the answer: %w", err)
	}
	if kind := resp.Header.Get(headerKind); kind != "" {
		return fault.New(fault.ParseKind(kind), "%s", text)
	}
	if resp.StatusCode == http.StatusNotFound {
		return fault.New(fault.Unsupported, "node %s does not know %s; it may be of another version", resp.Request.URL.Host, resp.Request.URL.Path)
	}
	return fault.New(fault.Internal, "%s answered %s", resp.Request.URL.Path, resp.Status)
}

// unreachable says that a node did not answer. What was found out on the way, such as that it is
// of another cluster, keeps its kind.
func unreachable(address string, err error) error {
	kind := fault.KindOf(err)
	if kind == fault.Internal {
		kind = fault.Unavailable
	}
	return fault.New(kind, "reach %s: %w", address, unwrapURL(err))
}

// Call asks a node: req travels there and resp comes back as CBOR, errors with their kind. When
// the node cannot be reached the error carries fault.Unavailable.
func Call[Req, Resp any](ctx context.Context, c *Client, address, path string, req Req) (Resp, error) {
	var resp Resp
	return resp, CallAny(ctx, c, address, path, req, &resp)
}

// CallAny is Call for types that are not known at compile time; resp is a pointer.
func CallAny(ctx context.Context, c *Client, address, path string, req, resp any) error {
	body, err := Marshal(req)
	if err != nil {
		return fmt.Errorf("encode call %s: %w", path, err)
	}
	if len(body) > maxCall {
		return fault.New(fault.Invalid, "a call of %d bytes to %s is over the limit of %d", len(body), path, maxCall)
	}
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, "https://"+address+path, bytes.NewReader(body))
	if err != nil {
		return fmt.Errorf("call %s: %w", path, err)
	}
	ownSpan.tell(r.Header)
	r.Header.Set("Content-Type", MediaCBOR)
	res, err := c.http.Do(r)
	if err != nil {
		return unreachable(address, err)
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusOK {
		return responseError(res)
	}
	data, err := io.ReadAll(io.LimitReader(res.Body, maxCall+1))
	if err != nil {
		return fault.New(fault.Unavailable, "read the answer of %s: %w", address, err)
	}
	if len(data) > maxCall {
		return fault.New(fault.Invalid, "the answer of %s%s is over the limit of %d bytes", address, path, maxCall)
	}
	if err := Unmarshal(data, resp); err != nil {
		return fmt.Errorf("decode the answer of %s%s: %w", address, path, err)
	}
	return nil
}

// unwrapURL drops the URL that net/http puts before errors; the address is said already.
func unwrapURL(err error) error {
	if inner := errors.Unwrap(err); inner != nil && strings.Contains(err.Error(), "https://") {
		return inner
	}
	return err
}

// HandleCall serves calls of one path.
func HandleCall[Req, Resp any](fn func(ctx context.Context, req Req) (Resp, error)) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var req Req
		data, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxCall))
		if err == nil {
			err = Unmarshal(data, &req)
		}
		if err != nil {
			WriteError(w, fault.New(fault.Invalid, "decode call %s: %w", r.URL.Path, err))
			return
		}
		resp, err := fn(r.Context(), req)
		if err != nil {
			WriteError(w, err)
			return
		}
		out, err := Marshal(resp)
		if err != nil {
			WriteError(w, fmt.Errorf("encode answer of %s: %w", r.URL.Path, err))
			return
		}
		w.Header().Set("Content-Type", MediaCBOR)
		w.Write(out) // the peer is gone if this fails, and notices so itself
	})
}

// Get reads a blob; fault.NotFound when the node does not have it. Size is -1 when unknown.
func (c *Client) Get(ctx context.Context, address, path string) (io.ReadCloser, int64, error) {
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, "https://"+address+path, nil)
	if err != nil {
		return nil, 0, fmt.Errorf("get %s: %w", path, err)
	}
	ownSpan.tell(r.Header)
	res, err := c.http.Do(r)
	if err != nil {
		return nil, 0, unreachable(address, err)
	}
	if res.StatusCode != http.StatusOK {
		defer res.Body.Close()
		return nil, 0, responseError(res)
	}
	return res.Body, res.ContentLength, nil
}

// ServeBlob answers a Get.
func ServeBlob(w http.ResponseWriter, body io.Reader, size int64) {
	w.Header().Set("Content-Length", strconv.FormatInt(size, 10))
	io.Copy(w, body) // a short answer shows at the other end by its length
}

// Stream is a two-way sequence of messages. One goroutine may send while another receives.
type Stream struct {
	in      io.ReadCloser
	out     io.Writer
	flush   func() error
	closeFn func()
	once    sync.Once
	sendMu  sync.Mutex
}

// Send writes one message. It blocks while the other end does not keep up.
func (s *Stream) Send(v any) error {
	body, err := Marshal(v)
	if err != nil {
		return fmt.Errorf("encode message: %w", err)
	}
	if len(body) > maxMessage {
		return fault.New(fault.Invalid, "a message of %d bytes is over the limit of %d", len(body), maxMessage)
	}
	frame := binary.BigEndian.AppendUint32(make([]byte, 0, 4+len(body)), uint32(len(body)))
	s.sendMu.Lock()
	defer s.sendMu.Unlock()
	if _, err := s.out.Write(append(frame, body...)); err != nil {
		return err
	}
	return s.flush()
}

// Receive reads the next message into v; io.EOF when the other end has finished.
func (s *Stream) Receive(v any) error {
	var head [4]byte
	if _, err := io.ReadFull(s.in, head[:]); err != nil {
		return err
	}
	n := binary.BigEndian.Uint32(head[:])
	if n > maxMessage {
		return fault.New(fault.Invalid, "a message of %d bytes is over the limit of %d", n, maxMessage)
	}
	body := make([]byte, n)
	if _, err := io.ReadFull(s.in, body); err != nil {
		return err
	}
	return Unmarshal(body, v)
}

// Close ends both directions; safe to call more than once.
func (s *Stream) Close() error {
	s.once.Do(s.closeFn)
	return nil
}

// Stream opens a two-way stream with a node. It ends with ctx, or by Close.
func (c *Client) Stream(ctx context.Context, address, path string) (*Stream, error) {
	ctx, cancel := context.WithCancel(ctx)
	pr, pw := io.Pipe()
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, "https://"+address+path, pr)
	if err != nil {
		cancel()
		return nil, fmt.Errorf("open stream %s: %w", path, err)
	}
	ownSpan.tell(r.Header)
	res, err := c.RoundTrip(r)
	if err != nil {
		cancel()
		return nil, unreachable(address, err)
	}
	if res.StatusCode != http.StatusOK {
		defer cancel()
		defer res.Body.Close()
		return nil, responseError(res)
	}
	// The transport does not look at the context while it waits for more to send.
	stop := context.AfterFunc(ctx, func() {
		pw.CloseWithError(ctx.Err())
		res.Body.Close()
	})
	return &Stream{
		in: res.Body, out: pw, flush: func() error { return nil },
		closeFn: func() { stop(); pw.Close(); cancel(); res.Body.Close() },
	}, nil
}

// HandleStream serves streams of one path; the stream ends when fn returns.
func HandleStream(fn func(ctx context.Context, s *Stream) error) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		ctx, cancel := context.WithCancel(r.Context())
		defer cancel()
		rc := http.NewResponseController(w)
		w.WriteHeader(http.StatusOK)
		if rc.Flush() != nil {
			return // the peer is gone
		}
		s := &Stream{in: r.Body, out: w, flush: rc.Flush, closeFn: func() { cancel(); r.Body.Close() }}
		defer s.Close()
		// The other end sees the stream end; what went wrong fn has sent or logged.
		_ = fn(ctx, s)
	})
}
