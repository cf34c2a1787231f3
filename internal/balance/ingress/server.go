// Package ingress leads requests of HTTP from every node's ports 80 and 443 to instances, by host, path
// and headers, with retries, weights and certificates.
//
// It is a process of its own, like the names responder: it goes on while the agent is away, and takes
// over what the agent writes while it works, so that no request is lost by that. There is none while
// no service has a route.
package ingress

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/tutti-run/tutti/internal/atomicfile"
	"github.com/tutti-run/tutti/internal/balance/beside"
	"github.com/tutti-run/tutti/internal/wire"
)

const (
	role      = "tutti-ingress"
	stateFile = "ingress.json"
	// drainFor is how long requests that are under way may take when the process is told to end.
	drainFor = 5 * time.Second
)

// Reexec runs the process when this program was started for that; main calls it first.
func Reexec(args []string) bool {
	dir, rest, ok := beside.Reexec(args, role)
	if !ok || len(rest) != 2 {
		return false
	}
	if err := serve(dir, rest[0], rest[1]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	return true
}

// ingress is the process.
type ingress struct {
	*proxy
	loops        int // how many answer a port
	certificates atomic.Pointer[[]*tls.Certificate]
}

// serve answers requests until it is told to end.
func serve(dir, plain, secure string) error {
	in := &ingress{proxy: newProxy(), loops: runtime.GOMAXPROCS(0)}
	runtime.GOMAXPROCS(2 * in.loops) // a loop keeps its processor for a moment though it waits: others have theirs
	load := func() error { return in.load(filepath.Join(dir, stateFile)) }
	if err := load(); err != nil {
		return err
	}
	failed, ready := make(chan error, 2), make(chan struct{})
	servers, err := in.listen(plain, secure, failed)
	if err != nil {
		return err
	}
	close(ready)
	err = beside.Serve(dir, ready, failed, func(word string) string {
		switch word {
		case "metrics":
			return in.counts.text()
		case "access":
			return in.accessState()
		case "requests":
			return in.requests()
		}
		if err := load(); err != nil {
			return err.Error()
		}
		return "ok"
	})
	ctx, cancel := context.WithTimeout(context.Background(), drainFor)
	defer cancel()
	var all sync.WaitGroup
	errs := make([]error, len(servers))
	for i, s := range servers {
		all.Go(func() { errs[i] = s.shutdown(ctx) })
	}
	all.Wait()
	if l := in.access.Load(); l != nil {
		l.close()
	}
	return errors.Join(err, errors.Join(errs...))
}

// load takes over what the agent wrote.
func (in *ingress) load(path string) error {
	data, err := os.ReadFile(path)
	if err != nil {
		return fmt.Errorf("read routes: %w", err)
	}
	var c Config
	if err := json.Unmarshal(data, &c); err != nil {
		return fmt.Errorf("read routes: %w", err)
	}
	in.put(&c)
	return nil
}

func (in *ingress) put(c *Config) {
	var certificates []*tls.Certificate
	for _, pem := range c.Certificates {
		if cert, err := tls.X509KeyPair([]byte(pem), []byte(pem)); err != nil { // which core refuses
			fmt.Fprintln(os.Stderr, "a certificate cannot be read:", err)
		} else {
			certificates = append(certificates, &cert)
		}
	}
	in.certificates.Store(&certificates)
	if c.Logs != "" && in.access.Load() == nil {
		in.access.Store(openAccessLog(c.Logs))
	}
	in.trusted.Store(&c.Proxies)
	in.proxy.put(c.Routes, c.Challenges)
}

// requests is what was counted, for the agent.
func (in *ingress) requests() string {
	text, err := json.Marshal(in.counts.requests())
	if err != nil { // which numbers do not cause
		return err.Error()
	}
	return string(text)
}

// certificate chooses the one that a client's request fits.
func (in *ingress) certificate(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
	for _, c := range *in.certificates.Load() {
		if hello.SupportsCertificate(c) == nil {
			return c, nil
		}
	}
	return nil, fmt.Errorf("no certificate for %q", hello.ServerName)
}

// stallFor is how long a client may not acknowledge, or not take, what is sent to it.
const stallFor = time.Minute

// listen opens both ports. A process that takes over from another may do so while that one ends.
func (in *ingress) listen(plain, secure string, failed chan<- error) (servers []*lean, err error) {
	shared := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) (err error) {
		return errors.Join(c.Control(func(fd uintptr) {
			err = errors.Join(unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEPORT, 1),
				unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, int(stallFor.Milliseconds()))) // what is accepted has it, too
		}), err)
	}}
	for i, address := range []string{plain, secure} {
		l := &lean{p: in.proxy, secure: i == 1, sessions: map[*session]struct{}{}}
		l.std = &http.Server{
			Handler: in.handler(i == 1), ReadHeaderTimeout: headPatience, IdleTimeout: idlePatience,
			MaxHeaderBytes: 64 << 10, ErrorLog: log.New(io.Discard, "", 0), Protocols: new(http.Protocols),
		}
		l.std.Protocols.SetHTTP1(true)
		l.std.Protocols.SetHTTP2(true)
		l.std.Protocols.SetUnencryptedHTTP2(true)
		if l.listener, err = shared.Listen(context.Background(), "tcp", address); err != nil {
			return servers, fmt.Errorf("answer requests: %w", err)
		}
		l.others = &handover{address: l.listener.Addr(), next: make(chan net.Conn), done: make(chan struct{})}
		if i == 1 {
			l.tls = &tls.Config{GetCertificate: in.certificate, MinVersion: tls.VersionTLS12, NextProtos: []string{"h2", "http/1.1"}}
			l.std.TLSConfig = l.tls
		}
		servers = append(servers, l)
		if !l.secure {
			if err := l.openLoops(in.loops); err != nil {
				return servers, fmt.Errorf("answer requests: %w", err)
			}
		}
		go func() {
			if err := l.serve(); !errors.Is(err, http.ErrServerClosed) {
				failed <- fmt.Errorf("answer requests on %s: %w", address, err)
			}
		}()
	}
	return servers, nil
}

// Process keeps one ingress running on this node, as long as there are routes.
type Process struct {
	*beside.Process
	// Logs is the directory of the access log, of which there is something only once a route has one.
	Logs string
	// Proxies are where load balancers are that say by the PROXY protocol for whom they connect.
	Proxies []netip.Prefix
	nodeID  string
	written []byte
	routed  map[string]bool // IDs of services with routes, of which what was wanted last is in force; nil: it is not
}

// New returns the ingress of a node, which answers at two addresses, without TLS and with it.
func New(dir, nodeID, plain, secure string, log *slog.Logger) *Process {
	return &Process{Process: &beside.Process{Dir: dir, Role: role, Args: []string{plain, secure}, Env: []string{"GOMEMLIMIT=512MiB", "GOGC=400"}, Log: log}, nodeID: nodeID}
}

// Sync puts the routes in force: when it returns, requests are led by them.
func (p *Process) Sync(ctx context.Context, n *wire.Network) error {
	if !p.concerned(n) {
		if len(p.routed) == 0 {
			return nil
		}
		if _, running := p.Running(); running {
			return nil
		}
	}
	p.routed = nil
	return p.sync(ctx, n)
}

// concerned reports whether what changed may have to do with routes.
func (p *Process) concerned(n *wire.Network) bool {
	c := n.Changes
	if c == nil || p.routed == nil {
		return true
	}
	for _, list := range []map[string]bool{c.Services, c.Led} {
		for id := range list {
			if s := n.Service(id); p.routed[id] || s != nil && len(s.Routes) > 0 {
				return true
			}
		}
	}
	return false
}

func (p *Process) sync(ctx context.Context, n *wire.Network) error {
	c := Compute(n, p.nodeID)
	routed := map[string]bool{}
	for i := range c.Routes {
		routed[c.Routes[i].ServiceID] = true
	}
	_, running := p.Running()
	if len(c.Routes) == 0 {
		p.written = nil
		err := errors.Join(p.Remove(ctx), os.RemoveAll(p.Dir))
		if err == nil {
			p.routed = routed
		}
		return err
	}
	if slices.ContainsFunc(c.Routes, func(r Route) bool { return r.AccessLog }) {
		c.Logs = p.Logs
	}
	c.Proxies = p.Proxies
	data, err := json.Marshal(c)
	if err != nil {
		return fmt.Errorf("write routes: %w", err)
	}
	if running && slices.Equal(data, p.written) {
		p.routed = routed
		return nil
	}
	if err := os.MkdirAll(p.Dir, 0o700); err != nil {
		return fmt.Errorf("write routes: %w", err)
	}
	if err := atomicfile.Write(filepath.Join(p.Dir, stateFile), data); err != nil {
		return fmt.Errorf("write routes: %w", err)
	}
	if err := p.Tell(ctx); err != nil {
		if strings.Contains(err.Error(), "address already in use") {
			// A service or another program has the port: that is for people to settle, and no reason to stop
			// everything else of the network.
			p.Log.Error("the ingress cannot answer", "error", err)
			return nil
		}
		return err
	}
	p.written, p.routed = data, routed
	return nil
}

// Requests counts those that came for each service, by its ID, since the process began.
func (p *Process) Requests(ctx context.Context) (map[string]uint64, error) {
	if _, running := p.Running(); !running {
		return nil, nil
	}
	said, err := beside.Ask(ctx, p.Dir, "requests")
	if err != nil {
		return nil, fmt.Errorf("ask the ingress for its counts: %w", err)
	}
	var out map[string]uint64
	if err := json.Unmarshal([]byte(said), &out); err != nil {
		return nil, fmt.Errorf("read the counts of the ingress: %w", err)
	}
	return out, nil
}
