package wire

import (
	"context"
	"errors"
	"net"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Underlay is how ports listen and connect. Below TLS it is TCP; a simulation puts its own here.
type Underlay interface {
	Listen(ctx context.Context, address string) (net.Listener, error)
	// Dial connects within a second, or fails.
	Dial(ctx context.Context, address string) (net.Conn, error)
}

// TCP is the kernel's network.
type TCP struct{}

const (
	dialTimeout = time.Second
	// handshakeTimeout is how long connecting may take with the handshake: a host that is there may
	// have many to shake hands with.
	handshakeTimeout = 2500 * time.Millisecond
	// deadPeer is how long sent data may stay unacknowledged until a connection is given up.
	deadPeer = 2 * time.Second
)

var keepAlive = net.KeepAliveConfig{Enable: true, Idle: time.Second, Interval: time.Second, Count: 3}

// Listen implements Underlay.
func (TCP) Listen(ctx context.Context, address string) (net.Listener, error) {
	lc := net.ListenConfig{Control: noticeDeadPeers, KeepAliveConfig: keepAlive}
	return lc.Listen(ctx, "tcp", address)
}

// Dial implements Underlay.
func (TCP) Dial(ctx context.Context, address string) (net.Conn, error) {
	d := net.Dialer{Timeout: dialTimeout, Control: noticeDeadPeers, KeepAliveConfig: keepAlive}
	return d.DialContext(ctx, "tcp", address)
}

// noticeDeadPeers makes the kernel end a connection whose other end no longer acknowledges, as
// after a power cut.
func noticeDeadPeers(_, _ string, c syscall.RawConn) error {
	var serr error
	err := c.Control(func(fd uintptr) {
		serr = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, int(deadPeer/time.Millisecond))
	})
	return errors.Join(err, serr)
}
