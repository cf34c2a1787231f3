package agent

import (
	"context"
	"io"
	"net/http"
	"strings"
	"sync"
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

// Relay is a node that knows which others have an image: a server.
type Relay interface {
	BlobOf(ctx context.Context, image, digest string) (io.ReadCloser, int64, error)
}

// Handle registers what servers and other nodes may ask of this node.
func (a *Agent) Handle(p *wire.Port, blobs Blobs) {
	p.Handle(wire.PathLogs, wire.HandleStream(a.serveLogs), wire.RoleServer)
	p.Handle(wire.PathAccess, wire.HandleStream(a.serveAccess), wire.RoleServer)
	p.Handle(wire.PathExec, wire.HandleStream(a.serveExec), wire.RoleServer)
	p.Handle(wire.PathAttach, wire.HandleStream(a.serveAttach), wire.RoleServer)
	p.Handle(wire.PathDial, wire.HandleStream(a.serveDial), wire.RoleServer)
	p.Handle(wire.PathFlows, wire.HandleCall(func(ctx context.Context, r wire.FlowsRequest) (wire.FlowsReply, error) {
		flows, err := a.Flows(ctx, min(r.Span, wire.MostFlowsSpan))
		return wire.FlowsReply{Flows: flows}, err
	}), wire.RoleServer)
	p.Handle(wire.PathCounts, wire.HandleCall(a.serveCounts), wire.RoleServer)
	p.Handle(wire.PathTry, wire.HandleCall(a.Try), wire.RoleServer)
	p.Handle(wire.PathSignal, wire.HandleCall(func(ctx context.Context, r wire.SignalRequest) (wire.Empty, error) {
		d, id, err := a.find(r.Instance, r.Task)
		if err != nil {
			return wire.Empty{}, err
		}
		return wire.Empty{}, d.Signal(ctx, id, r.Signal)
	}), wire.RoleServer)
	p.Handle(wire.PathStats, wire.HandleCall(func(ctx context.Context, r wire.TaskRef) (driver.Stats, error) {
		return a.Stats(ctx, r.Instance, r.Task)
	}), wire.RoleServer)
	p.Handle(wire.PathUsage, wire.HandleCall(func(ctx context.Context, _ wire.Empty) (wire.NodeUsage, error) {
		return a.Usage(ctx)
	}), wire.RoleServer)
	p.Handle(wire.PathSizes, wire.HandleCall(a.Sizes), wire.RoleServer)
	if a.Debug != nil {
		p.Handle(wire.PathNodeDebug, wire.HandleCall(func(context.Context, wire.Empty) (wire.NodeDebug, error) { return a.Debug(), nil }), wire.RoleServer)
	}
	p.Handle(wire.PathProcesses, wire.HandleCall(func(ctx context.Context, r wire.TaskRef) ([]driver.Process, error) {
		return a.Processes(ctx, r.Instance, r.Task)
	}), wire.RoleServer)
	p.Handle(wire.PathPause, wire.HandleCall(func(ctx context.Context, r wire.PauseRequest) (wire.Empty, error) {
		return wire.Empty{}, a.Pause(ctx, r.Instance, r.Task, r.Pause)
	}), wire.RoleServer)
	p.Handle(wire.PathBound, wire.HandleCall(func(ctx context.Context, r wire.BoundRequest) (wire.Empty, error) {
		return wire.Empty{}, a.Bound(ctx, r.Instance, r.Task, r.Bounds)
	}), wire.RoleServer)
	p.Handle(wire.PathLinked, wire.HandleCall(func(ctx context.Context, r wire.LinkedRequest) (wire.Empty, error) {
		return wire.Empty{}, a.Linked(ctx, r.Instance, r.Addresses)
	}), wire.RoleServer)
	p.Handle(wire.PathFileStat, wire.HandleCall(a.fileStat), wire.RoleServer)
	p.Handle(wire.PathFileChanges, wire.HandleCall(func(ctx context.Context, r wire.TaskRef) ([]wire.FileChange, error) {
		return a.fileChanges(ctx, r)
	}), wire.RoleServer)
	p.Handle(wire.PathReadFiles, wire.HandleStream(a.serveReadFiles), wire.RoleServer)
	p.Handle(wire.PathWriteFiles, wire.HandleStream(a.serveWriteFiles), wire.RoleServer)
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
	p.Handle(wire.PathReadVolume, wire.HandleStream(a.serveReadVolume), wire.RoleServer)
	p.Handle(wire.PathWriteVolume, wire.HandleStream(a.serveWriteVolume), wire.RoleServer)
	p.Handle(wire.PathBlob, http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		digest := strings.TrimPrefix(r.URL.Path, wire.PathBlob)
		body, size, err := blobs.Blob(r.Context(), digest)
		if relay, ok := blobs.(Relay); ok && fault.Is(err, fault.NotFound) {
			body, size, err = relay.BlobOf(r.Context(), r.URL.Query().Get(wire.BlobOf), digest)
		}
		if err != nil {
			wire.WriteError(rw, err)
			return
		}
		defer body.Close()
		wire.ServeBlob(rw, body, size)
	}), wire.RoleServer, wire.RoleAgent)
}

func (a *Agent) serveLogs(ctx context.Context, s *wire.Stream) error {
	var req wire.LogsRequest
	if err := s.Receive(&req); err != nil {
		return err
	}
	return sendLog(ctx, s, func(yield func(driver.LogEntry) error) error {
		return a.Logs(ctx, req.Instance, req.Task, req.Options, yield)
	})
}

func (a *Agent) serveAccess(ctx context.Context, s *wire.Stream) error {
	var req wire.AccessRequest
	if err := s.Receive(&req); err != nil {
		return err
	}
	return sendLog(ctx, s, func(yield func(driver.LogEntry) error) error {
		if a.Access == nil {
			return fault.New(fault.Unavailable, "this node has no ingress")
		}
		return a.Access(ctx, req, yield)
	})
}

// sendLog sends the entries that read yields, and the end.
func sendLog(ctx context.Context, s *wire.Stream, read func(yield func(driver.LogEntry) error) error) error {
	batch := &logBatch{stream: s}
	stop := wire.Every(ctx, 20*time.Millisecond, batch.flush)
	err := read(batch.add)
	stop()
	if err == nil {
		err = batch.flush()
	}
	return s.Send(wire.LogsReply{End: wire.EndOf(err)})
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

func (a *Agent) serveExec(ctx context.Context, s *wire.Stream) error {
	var start wire.ExecStart
	if err := s.Receive(&start); err != nil {
		return err
	}
	receive := func(in *wire.ExecInput) error { return s.Receive(in) }
	send := func(o wire.ExecOutput) error { return s.Send(o) }
	return wire.ServeExec(ctx, start, receive, send, func(ctx context.Context, streams driver.Streams) (int, error) {
		return a.Exec(ctx, start.Instance, start.Task, start.Spec, streams)
	})
}

func (a *Agent) serveAttach(ctx context.Context, s *wire.Stream) error {
	var start wire.ExecStart
	if err := s.Receive(&start); err != nil {
		return err
	}
	receive := func(in *wire.ExecInput) error { return s.Receive(in) }
	send := func(o wire.ExecOutput) error { return s.Send(o) }
	return wire.ServeExec(ctx, start, receive, send, func(ctx context.Context, streams driver.Streams) (int, error) {
		d, id, err := a.find(start.Instance, start.Task)
		if err != nil {
			return 0, err
		}
		return 0, d.Attach(ctx, id, streams)
	})
}

// serveCounts tells what came to services by this node so far.
func (a *Agent) serveCounts(ctx context.Context, _ wire.Empty) (reply wire.CountsReply, err error) {
	if a.Counts != nil {
		if reply.Counts, err = a.Counts(ctx); err != nil {
			return reply, err
		}
	}
	if a.Requests != nil {
		reply.Requests, err = a.Requests(ctx)
	}
	return reply, err
}
