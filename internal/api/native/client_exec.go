package native

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"sync"
	"syscall"

	"github.com/tutti-run/tutti/internal/driver"
	"github.com/tutti-run/tutti/internal/fault"
	"github.com/tutti-run/tutti/internal/wire"
)

// Exec runs a process in an instance and returns its exit code. Whether input is sent is up to
// streams.Stdin. It ends the process when ctx is done. A read of streams.Stdin that is under way
// when the process ends is not interrupted; what it yields is lost.
func (c *Client) Exec(ctx context.Context, req ExecRequest, streams driver.Streams) (int, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	req.Stdin = streams.Stdin != nil
	body, pw := io.Pipe()
	defer pw.Close()
	// Once an answer has begun, the transport notices the end of ctx only when it has something to
	// send: this is what ends a read of the body that waits for that.
	defer context.AfterFunc(ctx, func() { pw.CloseWithError(context.Canceled) })()
	in := &inputLines{enc: json.NewEncoder(pw)}
	go func() {
		if in.send(req) == nil {
			in.pass(ctx, streams)
		}
	}()
	resp, err := c.do(ctx, http.MethodPost, pathExec, nil, body, mediaLines)
	if err != nil {
		return 0, err
	}
	defer resp.Body.Close()
	return receiveOutput(ctx, json.NewDecoder(resp.Body), streams)
}

// inputLines sends values one at a time, also from several goroutines.
type inputLines struct {
	mu  sync.Mutex
	enc *json.Encoder
}

func (l *inputLines) send(v any) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.enc.Encode(v)
}

// pass sends input, terminal sizes and signals until ctx is done.
func (l *inputLines) pass(ctx context.Context, streams driver.Streams) {
	if streams.Stdin != nil {
		go l.copy(streams.Stdin)
	}
	for {
		var m wire.ExecInput
		select {
		case <-ctx.Done():
			return
		case size := <-streams.Resize:
			m.Resize = &size
		case sig := <-streams.Signals:
			n, ok := sig.(syscall.Signal)
			if !ok {
				continue
			}
			m.Signal = int(n)
		}
		if l.send(m) != nil {
			return // the stream is over, which its other direction tells of
		}
	}
}

func (l *inputLines) copy(r io.Reader) {
	buf := make([]byte, 32<<10)
	for {
		n, err := r.Read(buf)
		if n > 0 && l.send(wire.ExecInput{Data: buf[:n]}) != nil {
			return
		}
		if err != nil {
			_ = l.send(wire.ExecInput{Closed: true}) // as in pass
			return
		}
	}
}

func receiveOutput(ctx context.Context, in *json.Decoder, streams driver.Streams) (int, error) {
	for {
		var m wire.ExecOutput
		if err := in.Decode(&m); err != nil {
			if ctx.Err() != nil {
				return 0, ctx.Err()
			}
			return 0, fault.New(fault.Unavailable, "the connection to the process broke: %w", err)
		}
		if err := errors.Join(pass(streams.Stdout, m.Stdout), pass(streams.Stderr, m.Stderr)); err != nil {
			return 0, err
		}
		if m.End == nil {
			continue
		}
		if m.End.Error != "" {
			return m.End.ExitCode, fault.New(fault.ParseKind(m.End.Kind), "%s", m.End.Error)
		}
		return m.End.ExitCode, nil
	}
}

func pass(w io.Writer, p []byte) error {
	if w == nil || len(p) == 0 {
		return nil
	}
	if _, err := w.Write(p); err != nil {
		return fmt.Errorf("pass output on: %w", err)
	}
	return nil
}
