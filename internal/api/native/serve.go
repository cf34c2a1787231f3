package native

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"github.com/tutti-run/tutti/internal/api/access"
	"github.com/tutti-run/tutti/internal/core"
)

// Listen makes a Unix socket at path that only its owner may open. It replaces a socket that an
// earlier process left there, and closing it removes it. There is no moment at which somebody
// else could open it.
func Listen(path string) (net.Listener, error) {
	dir := filepath.Dir(path)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, fmt.Errorf("make the directory of socket %s: %w", path, err)
	}
	private, err := os.MkdirTemp(dir, ".") // mode 0700
	if err != nil {
		return nil, fmt.Errorf("make socket %s: %w", path, err)
	}
	defer os.RemoveAll(private)
	hidden := filepath.Join(private, "s")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: hidden, Net: "unix"})
	if err != nil {
		return nil, fmt.Errorf("make socket %s: %w", path, err)
	}
	l.SetUnlinkOnClose(false)
	if err := errors.Join(os.Chmod(hidden, 0o600), os.Rename(hidden, path)); err != nil {
		l.Close()
		return nil, fmt.Errorf("make socket %s: %w", path, err)
	}
	return &listener{UnixListener: l, path: path}, nil
}

type listener struct {
	*net.UnixListener
	path string
}

func (l *listener) Close() error {
	err := l.UnixListener.Close()
	if err == nil {
		os.Remove(l.path) // a stale socket does no harm either
	}
	return err
}

// closingTime is how long requests may take to end once the server is told to.
const closingTime = 2 * time.Second

// Serve answers requests that come in at the listener until ctx is done and its requests have
// ended. Streams that do not end by themselves are cut.
func Serve(ctx context.Context, l net.Listener, h http.Handler) error {
	protocols := new(http.Protocols)
	protocols.SetHTTP1(true)
	protocols.SetHTTP2(true)
	protocols.SetUnencryptedHTTP2(true)
	requests, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	s := &http.Server{
		Handler: h, Protocols: protocols, ReadHeaderTimeout: 10 * time.Second,
		HTTP2:       &http.HTTP2Config{MaxReceiveBufferPerConnection: 16 << 20, MaxReceiveBufferPerStream: 4 << 20},
		BaseContext: func(net.Listener) context.Context { return requests },
		ConnContext: withPeer,
	}
	ended := make(chan error, 1)
	go func() { ended <- s.Serve(l) }()
	select {
	case err := <-ended:
		return fmt.Errorf("serve the API at %s: %w", l.Addr(), err)
	case <-ctx.Done():
	}
	closing, stop := context.WithTimeout(context.WithoutCancel(ctx), closingTime)
	defer stop()
	defer time.AfterFunc(closingTime/4, cancel).Stop() // ends what would go on: logs and the like
	if s.Shutdown(closing) != nil {
		s.Close()
	}
	<-ended
	return nil
}

type (
	peerKey     struct{}
	lifetimeKey struct{}
)

// withPeer notes who is at the other end of a connection.
func withPeer(ctx context.Context, c net.Conn) context.Context {
	return context.WithValue(context.WithValue(ctx, lifetimeKey{}, ctx), peerKey{}, localPeer(c))
}

// localPeer is the user of the process that opened a Unix connection, as the kernel knows it. The
// administrator of the host, and whom this program runs as, have the cluster; others, and who comes
// over any other connection, may do nothing.
func localPeer(c net.Conn) core.Caller {
	if k, ok := c.(interface{ Caller() core.Caller }); ok {
		return k.Caller() // who accepted it knows
	}
	nobody := core.Caller{Name: "somebody", Via: viaSocket, From: c.RemoteAddr().String()}
	u, ok := c.(*net.UnixConn)
	if !ok {
		return nobody
	}
	raw, err := u.SyscallConn()
	if err != nil {
		return nobody
	}
	var cred *unix.Ucred
	var credErr error
	err = raw.Control(func(fd uintptr) { cred, credErr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) })
	if err != nil || credErr != nil {
		return nobody
	}
	uid := strconv.FormatUint(uint64(cred.Uid), 10)
	name := "uid " + uid
	if who, err := user.LookupId(uid); err == nil {
		name = who.Username
	}
	if cred.Uid != 0 && int(cred.Uid) != os.Geteuid() {
		return core.Caller{Name: name, Via: viaSocket, From: "local, uid " + uid}
	}
	who := core.Local(name, viaSocket)
	who.From = fmt.Sprintf("local, uid %s, process %d", uid, cred.Pid)
	return who
}

// Lifetime is, for a request that Serve answers, the context that ends with the server: what holds
// for a connection that was taken over, of which the client may close its half at any time.
func Lifetime(ctx context.Context) context.Context {
	if l, ok := ctx.Value(lifetimeKey{}).(context.Context); ok {
		return l
	}
	return ctx
}

// How callers came.
const (
	viaSocket = "cli"
	// ViaNetwork is for who comes over the network listener.
	ViaNetwork = "api"
)

// headerNamespace names the namespace in which references of a request are meant.
const headerNamespace = "Tutti-Namespace"

func callerOf(r *http.Request) core.Caller {
	who, ok := access.CallerOf(r.Context())
	if !ok {
		who = Peer(r.Context())
	}
	who.Namespace = r.Header.Get(headerNamespace)
	return who
}

// Peer is who is at the other end of the connection of a request that Serve answers.
func Peer(ctx context.Context) core.Caller {
	who, _ := ctx.Value(peerKey{}).(core.Caller)
	return who
}
