package access

import (
	"bufio"
	"bytes"
	"encoding/hex"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strconv"

	"github.com/tutti-run/tutti/internal/fault"
)

// Own lets connections over loopback through to a listener only where the process at the other end is
// one of the administrator of this host, or of whom this program runs as: whoever else may have the
// run of a host's loopback address has not the run of the cluster. Others are told so and closed.
func Own(l net.Listener) net.Listener { return &ownListener{l} }

type ownListener struct{ net.Listener }

const notYours = "this address is for the host's administrator; others use a listener of their own, with a token"

// Accept implements net.Listener.
func (l *ownListener) Accept() (net.Conn, error) {
	for {
		c, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		uid, err := ownerOf(c)
		if err == nil && (uid == 0 || int(uid) == os.Geteuid()) {
			return c, nil
		}
		body := fmt.Sprintf("{\"message\":%q}\n", notYours)
		fmt.Fprintf(c, "HTTP/1.1 403 Forbidden\r\nContent-Type: application/json\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%s", len(body), body)
		c.Close()
	}
}

// ownerOf is the user of the socket at the other end of a TCP connection within this host.
func ownerOf(c net.Conn) (uint32, error) {
	near, err := netip.ParseAddrPort(c.LocalAddr().String())
	if err != nil {
		return 0, err
	}
	far, err := netip.ParseAddrPort(c.RemoteAddr().String())
	if err != nil {
		return 0, err
	}
	if !near.Addr().Unmap().Is4() || !far.Addr().Unmap().Is4() {
		return 0, fault.New(fault.Unsupported, "only loopback of IPv4 is looked into")
	}
	// The other end sees the two the other way round. It may be a socket of either table.
	for _, file := range []string{"/proc/self/net/tcp", "/proc/self/net/tcp6"} {
		data, err := os.ReadFile(file)
		if err != nil {
			continue
		}
		s := bufio.NewScanner(bytes.NewReader(data))
		for s.Scan() {
			f := bytes.Fields(s.Bytes())
			if len(f) < 8 || readEnd(f[1]) != far || readEnd(f[2]) != near {
				continue
			}
			uid, err := strconv.ParseUint(string(f[7]), 10, 32)
			return uint32(uid), err
		}
	}
	return 0, fault.New(fault.NotFound, "the other end is no socket of this host")
}

// readEnd reads an end of a connection as the kernel writes it: the words of the address in the order
// of this machine, and the port.
func readEnd(text []byte) netip.AddrPort {
	i := bytes.IndexByte(text, ':')
	if i < 0 {
		return netip.AddrPort{}
	}
	raw, err := hex.DecodeString(string(text[:i]))
	port, err2 := strconv.ParseUint(string(text[i+1:]), 16, 16)
	if err != nil || err2 != nil || len(raw)%4 != 0 {
		return netip.AddrPort{}
	}
	for n := 0; n < len(raw); n += 4 {
		slices.Reverse(raw[n : n+4])
	}
	a, _ := netip.AddrFromSlice(raw)
	return netip.AddrPortFrom(a.Unmap(), uint16(port))
}
