package agent

import (
	"context"
	"errors"
	"io"
	"net/http"
	"os"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/tutti-run/tutti/internal/driver"
	"github.com/tutti-run/tutti/internal/fault"
	"github.com/tutti-run/tutti/internal/image"
	"github.com/tutti-run/tutti/internal/wire"
)

// Blobs serves the content of images to other nodes.
type Blobs interface {
	Blob(ctx context.Context, digest string) (io.ReadCloser, int64, error)
	Remove(ctx context.Context, name string) error
}

// Handle registers what servers and other nodes may ask of this node.
func (a *Agent) Handle(p *wire.Port, blobs Blobs) {
	p.Handle(wire.PathLogs, wire.HandleStream(a.serveLogs), wire.RoleServer)
	p.Handle(wire.PathExec, wire.HandleStream(a.serveExec), wire.RoleServer)
	p.Handle(wire.PathStats, wire.HandleCall(func(ctx context.Context, r wire.TaskRef) (driver.Stats, error) {
		return a.Stats(ctx, r.Instance, r.Task)
	}), wire.RoleServer)
	p.Handle(wire.PathEnsureImage, wire.HandleCall(func(ctx context.Context, r wire.ImageRef) (wire.ImageRef, error) {
		info, err := a.Images.Ensure(ctx, r.Name, r.Digest, func(image.Progress) {})
		return wire.ImageRef{Name: info.Name, Digest: info.Digest}, err
	}), wire.RoleServer)
	p.Handle(wire.PathRemoveImage, wire.HandleCall(func(ctx context.Context, r wire.ImageRef) (wire.Empty, error) {
		err := blobs.Remove(ctx, r.Name)
		if fault.Is(err, fault.NotFound) {
			err = nil
		}
		return wire.Empty{}, err
	}), wire.RoleServer)
	p.Handle(wire.PathRemoveVolume, wire.HandleCall(func(ctx context.Context, r wire.VolumeRef) (wire.Empty, error) {
		return wire.Empty{}, a.Volumes.Remove(ctx, r.ID)
	}), wire.RoleServer)
	p.Handle(wire.PathBlob, http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		body, size, err := blobs.Blob(r.Context(), strings.TrimPrefix(r.URL.Path, wire.PathBlob))
		if err != nil {
			wire.WriteError(rw, err)
			return
		}
		defer body.Close()
		wire.ServeBlob(rw, body, size)
	}), wire.RoleServer, wire.RoleAgent)
}

func endOf(err error) *wire.End {
	if err == nil {
		return &wire.End{}
	}
	return &wire.End{Error: err.Error(), Kind: fault.KindOf(err).String()}
}

func (a *Agent) serveLogs(ctx context.Context, s *wire.Stream) error {
	var req wire.LogsRequest
	if err := s.Receive(&req); err != nil {
		return err
	}
	batch := &logBatch{stream: s}
	stop := batch.flushEvery(ctx, 20*time.Millisecond)
	err := a.Logs(ctx, req.Instance, req.Task, req.Options, batch.add)
	stop()
	if err == nil {
		err = batch.flush()
	}
	return s.Send(wire.LogsReply{End: endOf(err)})
}

// logBatch sends log entries many at a time, but none later than the flush interval.
type logBatch struct {
	stream *wire.Stream

	mu      sync.Mutex
	entries []driver.LogEntry
	bytes   int
	err     error
}

func (b *logBatch) add(e driver.LogEntry) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.entries = append(b.entries, e)
	b.bytes += len(e.Line)
	if b.bytes > 64<<10 || len(b.entries) >= 512 {
		return b.flushLocked()
	}
	return b.err
}

func (b *logBatch) flush() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.flushLocked()
}

// flushLocked sends under the lock: the lock belongs to one log stream alone, and holding it is
// what slows the reader of the log down to the speed of the client.
func (b *logBatch) flushLocked() error {
	if b.err == nil && len(b.entries) > 0 {
		b.err = b.stream.Send(wire.LogsReply{Entries: b.entries})
		b.entries, b.bytes = nil, 0
	}
	return b.err
}

func (b *logBatch) flushEvery(ctx context.Context, d time.Duration) (stop func()) {
	done := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		t := time.NewTicker(d)
		defer t.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-done:
				return
			case <-t.C:
				if b.flush() != nil {
					return
				}
			}
		}
	})
	return func() { close(done); wg.Wait() }
}

func (a *Agent) serveExec(ctx context.Context, s *wire.Stream) error {
	var start wire.ExecStart
	if err := s.Receive(&start); err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var sending sync.Mutex
	send := func(o wire.ExecOutput) error {
		sending.Lock()
		defer sending.Unlock()
		return s.Send(o)
	}
	streams := driver.Streams{}
	if start.Stdout {
		streams.Stdout = writerFunc(func(p []byte) error { return send(wire.ExecOutput{Stdout: p}) })
	}
	if start.Stderr {
		streams.Stderr = writerFunc(func(p []byte) error { return send(wire.ExecOutput{Stderr: p}) })
	}
	stdin, input := io.Pipe()
	if start.Stdin {
		streams.Stdin = stdin
	}
	resize := make(chan driver.Size, 4)
	signals := make(chan os.Signal, 4)
	streams.Resize, streams.Signals = resize, signals
	go func() {
		defer input.Close()
		for {
			var in wire.ExecInput
			if err := s.Receive(&in); err != nil {
				if !errors.Is(err, io.EOF) {
					cancel() // the client is gone: so should be its process
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
				if _, err := input.Write(in.Data); err != nil {
					continue // the process closed its input, and may still want signals
				}
			}
		}
	}()
	code, err := a.Exec(ctx, start.Instance, start.Task, start.Spec, streams)
	stdin.Close()
	end := endOf(err)
	end.ExitCode = code
	return send(wire.ExecOutput{End: end})
}

type writerFunc func([]byte) error

func (f writerFunc) Write(p []byte) (int, error) {
	if err := f(p); err != nil {
		return 0, err
	}
	return len(p), nil
}
