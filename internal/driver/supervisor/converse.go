package supervisor

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"syscall"

	"github.com/fxamacker/cbor/v2"

	"github.com/tutti-run/tutti/internal/driver"
	"github.com/tutti-run/tutti/internal/fault"
)

// Exec implements driver.Driver.
func (d *Driver) Exec(ctx context.Context, id string, spec driver.ExecSpec, s driver.Streams) (int, error) {
	if len(spec.Args) == 0 {
		return 0, fault.New(fault.Invalid, "nothing was said to run")
	}
	o, err := d.converse(ctx, id, request{Op: "exec", Exec: &spec, Stdin: s.Stdin != nil}, s)
	return o.Exit, err
}

// Attach implements driver.Driver.
func (d *Driver) Attach(ctx context.Context, id string, s driver.Streams) error {
	_, err := d.converse(ctx, id, request{Op: "attach", Stdin: s.Stdin != nil, FromStart: s.FromStart}, s)
	return err
}

// converse makes a request and passes streams both ways until the last answer.
func (d *Driver) converse(ctx context.Context, id string, r request, s driver.Streams) (output, error) {
	c, err := d.connect(ctx, id)
	if err != nil {
		return output{}, err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stop := context.AfterFunc(ctx, func() { c.Close() })
	defer stop()
	defer c.Close()
	enc := cbor.NewEncoder(c)
	if err := enc.Encode(r); err != nil {
		return output{}, fault.New(fault.Unavailable, "reach the supervisor: %w", err)
	}
	var sending sync.Mutex
	send := func(m input) error {
		sending.Lock()
		defer sending.Unlock()
		return enc.Encode(m)
	}
	if s.Stdin != nil {
		go func() {
			if errors.Is(copyOut(s.Stdin, func(b []byte) error { return send(input{Data: b}) }), io.EOF) {
				send(input{Closed: true}) // if it cannot be sent, the process has ended
			}
		}()
	}
	go func() {
		resize, signals := s.Resize, s.Signals
		for {
			select {
			case <-ctx.Done():
				return
			case size, ok := <-resize:
				if !ok {
					resize = nil // closed: no more will come
					continue
				}
				send(input{Resize: &size})
			case sig, ok := <-signals:
				if !ok {
					signals = nil
					continue
				}
				if n, ok := sig.(syscall.Signal); ok {
					send(input{Signal: int(n)})
				}
			}
		}
	}()
	dec := cbor.NewDecoder(c)
	for {
		var o output
		if err := dec.Decode(&o); err != nil {
			if ctx.Err() != nil {
				return o, ctx.Err()
			}
			return o, fault.New(fault.Unavailable, "the task ended meanwhile")
		}
		if o.Done {
			return o, answerError(o)
		}
		if len(o.Stdout) > 0 && s.Stdout != nil {
			if _, err := s.Stdout.Write(o.Stdout); err != nil {
				return o, fmt.Errorf("pass output on: %w", err)
			}
		}
		if len(o.Stderr) > 0 && s.Stderr != nil {
			if _, err := s.Stderr.Write(o.Stderr); err != nil {
				return o, fmt.Errorf("pass output on: %w", err)
			}
		}
	}
}
