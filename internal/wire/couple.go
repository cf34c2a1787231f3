package wire

import (
	"context"
	"errors"
	"io"
	"net"
	"os"

	"golang.org/x/sys/unix"

	"github.com/tutti-run/tutti/internal/fault"
)

// Couple carries bytes between a connection and a stream, as they come, until both directions have ended or
// one end is gone. That one direction has ended is told to the other end, which may go on. It closes both.
func Couple(ctx context.Context, s *Stream, c *net.UnixConn) error {
	defer c.Close()
	sent := make(chan error, 1)
	go func() {
		err := sendAsItComes(s, c)
		if err != nil {
			c.Close() // whoever writes there would do so for nobody
		}
		sent <- err
	}()
	err := ReceivePieces(ctx, s, c)
	if err == nil {
		err = c.CloseWrite()
	}
	if err != nil {
		s.Close()
		c.Close()
	}
	err = errors.Join(err, <-sent)
	s.Close()
	return err
}

// sendAsItComes is SendPieces for what is to be there at once.
func sendAsItComes(s *Stream, r io.Reader) error {
	buf := make([]byte, pieceSize)
	for {
		n, err := r.Read(buf)
		if n > 0 {
			if serr := s.Send(Piece{Data: buf[:n]}); serr != nil {
				return serr
			}
		}
		switch {
		case errors.Is(err, io.EOF):
			return s.Send(Piece{End: &End{}})
		case err != nil:
			return errors.Join(err, s.Send(Piece{End: EndOf(fault.New(fault.Unavailable, "the connection broke: %w", err))}))
		}
	}
}

// Pair returns the two ends of a connection within this process.
func Pair() (a, b *net.UnixConn, err error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, os.NewSyscallError("socketpair", err)
	}
	conns := [2]*net.UnixConn{}
	for i, fd := range fds {
		f := os.NewFile(uintptr(fd), "pair")
		c, cerr := net.FileConn(f) // a duplicate
		f.Close()
		if cerr != nil {
			err = errors.Join(err, cerr)
			continue
		}
		conns[i] = c.(*net.UnixConn)
	}
	if err != nil {
		for _, c := range conns {
			if c != nil {
				c.Close()
			}
		}
		return nil, nil, err
	}
	return conns[0], conns[1], nil
}
