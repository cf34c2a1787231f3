package wire

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"syscall"
	"time"

	"github.com/tutti-run/tutti/internal/driver"
	"github.com/tutti-run/tutti/internal/fault"
)

// EndOf says how something ended: with nothing, or with an error and its kind.
func EndOf(err error) *End {
	if err == nil {
		return &End{}
	}
	return &End{Error: err.Error(), Kind: fault.KindOf(err).String()}
}

// Err is the inverse of EndOf.
func (e *End) Err() error {
	if e.Error == "" {
		return nil
	}
	return fault.New(fault.ParseKind(e.Kind), "%s", e.Error)
}

// ServeExec is the end of an exec at which the process is: it joins the messages that receive
// yields, and those that send takes, with the streams of run, and sends the end last. run's context
// ends when the other end goes away. send is called by several goroutines at once. The goroutine
// that receives ends when receive fails, at the latest when the stream is closed.
func ServeExec(ctx context.Context, start ExecStart, receive func(*ExecInput) error, send func(ExecOutput) error,
	run func(ctx context.Context, s driver.Streams) (exitCode int, err error)) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stdin, input := io.Pipe()
	resize := make(chan driver.Size, 4)
	signals := make(chan os.Signal, 4)
	streams := driver.Streams{Resize: resize, Signals: signals, FromStart: start.FromStart}
	if start.Stdin {
		streams.Stdin = stdin
	}
	if start.Stdout {
		streams.Stdout = writerFunc(func(p []byte) error { return send(ExecOutput{Stdout: p}) })
	}
	if start.Stderr {
		streams.Stderr = writerFunc(func(p []byte) error { return send(ExecOutput{Stderr: p}) })
	}
	go func() {
		defer input.Close()
		for {
			var in ExecInput
			if err := receive(&in); err != nil {
				if !errors.Is(err, io.EOF) {
					cancel() // the client is gone: so should be its process
					input.CloseWithError(context.Canceled)
				}
				return
			}
			switch {
			case in.Closed:
				input.Close()
			case in.Resize != nil:
				select {
				case resize <- *in.Resize:
				default: // a newer size will follow
				}
			case in.Signal != 0:
				select {
				case signals <- syscall.Signal(in.Signal):
				case <-ctx.Done():
				}
			default:
				_, _ = input.Write(in.Data) // a process that closed its input may still want signals
			}
		}
	}()
	code, err := run(ctx, streams)
	stdin.Close()
	end := EndOf(err)
	end.ExitCode = code
	return send(ExecOutput{End: end})
}

// DriveExec is the other end: it sends what s has for the process, passes on what comes back, and
// returns the exit code. send is called by several goroutines at once; a failure of it shows in
// receive. A read of s.Stdin that is under way when the process ends is not interrupted; what it
// yields is lost.
func DriveExec(ctx context.Context, s driver.Streams, send func(ExecInput) error, receive func(*ExecOutput) error) (exitCode int, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	if s.Stdin != nil {
		go sendInput(s.Stdin, send)
	}
	go sendControl(ctx, s, send)
	for {
		var m ExecOutput
		if err := receive(&m); err != nil {
			if ctx.Err() != nil {
				return 0, ctx.Err()
			}
			return 0, fault.New(fault.Unavailable, "the connection to the process broke: %w", err)
		}
		if err := errors.Join(passOn(s.Stdout, m.Stdout), passOn(s.Stderr, m.Stderr)); err != nil {
			return 0, err
		}
		if m.End != nil {
			return m.End.ExitCode, m.End.Err()
		}
	}
}

// sendControl sends terminal sizes and signals until ctx is done.
func sendControl(ctx context.Context, s driver.Streams, send func(ExecInput) error) {
	resize, signals := s.Resize, s.Signals
	for {
		var m ExecInput
		select {
		case <-ctx.Done():
			return
		case size, ok := <-resize:
			if !ok {
				resize = nil // closed: no more will come
				continue
			}
			m.Resize = &size
		case sig, ok := <-signals:
			if !ok {
				signals = nil
				continue
			}
			n, ok := sig.(syscall.Signal)
			if !ok {
				continue
			}
			m.Signal = int(n)
		}
		if send(m) != nil {
			return
		}
	}
}

func sendInput(r io.Reader, send func(ExecInput) error) {
	buf := make([]byte, 32<<10)
	for {
		n, err := r.Read(buf)
		if n > 0 && send(ExecInput{Data: buf[:n]}) != nil {
			return
		}
		if errors.Is(err, io.EOF) {
			_ = send(ExecInput{Closed: true})
		}
		if err != nil { // any other end is that of whoever wrote, not of what there is to read
			return
		}
	}
}

func passOn(w io.Writer, p []byte) error {
	if w == nil || len(p) == 0 {
		return nil
	}
	if _, err := w.Write(p); err != nil {
		return fmt.Errorf("pass output on: %w", err)
	}
	return nil
}

type writerFunc func([]byte) error

func (f writerFunc) Write(p []byte) (int, error) {
	if err := f(p); err != nil {
		return 0, err
	}
	return len(p), nil
}

// Every calls fn at intervals until stop is called, ctx is done or fn fails. stop returns when no
// call is under way any more.
func Every(ctx context.Context, d time.Duration, fn func() error) (stop func()) {
	ended := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		t := time.NewTicker(d)
		defer t.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-ended:
				return
			case <-t.C:
				if fn() != nil {
					return
				}
			}
		}
	})
	return func() { close(ended); wg.Wait() }
}
