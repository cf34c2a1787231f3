package agent

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"runtime"
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/tutti-run/tutti/internal/driver"
	"github.com/tutti-run/tutti/internal/fault"
	"github.com/tutti-run/tutti/internal/wire"
)

// dial connects to a TCP port of an instance, from within its network.
func (a *Agent) dial(ctx context.Context, instance string, port int) (net.Conn, error) {
	w, err := a.worker(instance)
	if err != nil {
		return nil, err
	}
	w.mu.Lock()
	p := w.prepared
	w.mu.Unlock()
	if p == nil {
		return nil, fault.New(fault.Unavailable, "%s has no network yet", w.assignment.Instance.FullName())
	}
	type dialed struct {
		conn net.Conn
		err  error
	}
	out := make(chan dialed, 1)
	go func() {
		if p.netNS != "" {
			runtime.LockOSThread() // for good: the thread ends with this goroutine
			if err := enterNetNS(p.netNS); err != nil {
				out <- dialed{err: err}
				return
			}
		}
		var errs []error
		for _, host := range []string{"127.0.0.1", "::1"} {
			c, err := new(net.Dialer).DialContext(ctx, "tcp", net.JoinHostPort(host, strconv.Itoa(port)))
			if err == nil {
				out <- dialed{conn: c}
				return
			}
			errs = append(errs, err)
		}
		out <- dialed{err: fault.New(fault.Unavailable, "connect to port %d of the instance: %w", port, errors.Join(errs...))}
	}()
	d := <-out
	return d.conn, d.err
}

func enterNetNS(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("open the instance's network: %w", err)
	}
	defer f.Close()
	if err := unix.Setns(int(f.Fd()), unix.CLONE_NEWNET); err != nil {
		return fmt.Errorf("enter the instance's network: %w", err)
	}
	return nil
}

// serveDial joins a stream with a connection to a port of an instance.
func (a *Agent) serveDial(ctx context.Context, s *wire.Stream) error {
	var start wire.ExecStart
	if err := s.Receive(&start); err != nil {
		return err
	}
	receive := func(in *wire.ExecInput) error { return s.Receive(in) }
	send := func(o wire.ExecOutput) error { return s.Send(o) }
	return wire.ServeExec(ctx, wire.ExecStart{Stdin: true, Stdout: true}, receive, send, func(ctx context.Context, streams driver.Streams) (int, error) {
		c, err := a.dial(ctx, start.Instance, start.Port)
		if err != nil {
			return 0, err
		}
		defer c.Close()
		defer context.AfterFunc(ctx, func() { c.Close() })()
		go func() {
			_, _ = io.Copy(c, streams.Stdin) // what fails shows when reading
			if half, ok := c.(interface{ CloseWrite() error }); ok {
				_ = half.CloseWrite()
			}
		}()
		_, err = io.Copy(streams.Stdout, c)
		if ctx.Err() != nil || errors.Is(err, net.ErrClosed) {
			err = nil
		}
		return 0, err
	})
}
