package dispatch

import (
	"context"
	"io"
	"time"

	"github.com/tutti-run/tutti/internal/driver"
	"github.com/tutti-run/tutti/internal/fault"
	"github.com/tutti-run/tutti/internal/model"
	"github.com/tutti-run/tutti/internal/store"
	"github.com/tutti-run/tutti/internal/wire"
)

// Remote reaches into nodes on behalf of the use cases.
type Remote struct {
	Store  *store.Store
	Client *wire.Client
}

func (r *Remote) address(nodeID string) (string, error) {
	n, ok := store.Get[*model.Node](r.Store.Snapshot(), nodeID)
	if !ok {
		return "", fault.New(fault.NotFound, "node %s does not exist", nodeID)
	}
	if n.Status.State == model.NodeDown {
		return "", fault.New(fault.Unavailable, "node %s is down", n.Name)
	}
	return n.WireAddress, nil
}

// Logs yields the log of a task on a node; see driver.Driver.
func (r *Remote) Logs(ctx context.Context, nodeID string, ref wire.TaskRef, o driver.LogOptions, yield func(driver.LogEntry) error) error {
	return r.readLog(ctx, nodeID, wire.PathLogs, wire.LogsRequest{TaskRef: ref, Options: o}, yield)
}

// AccessLog yields what the ingress of a node wrote down.
func (r *Remote) AccessLog(ctx context.Context, nodeID string, req wire.AccessRequest, yield func(driver.LogEntry) error) error {
	return r.readLog(ctx, nodeID, wire.PathAccess, req, yield)
}

func (r *Remote) readLog(ctx context.Context, nodeID, path string, req any, yield func(driver.LogEntry) error) error {
	address, err := r.address(nodeID)
	if err != nil {
		return err
	}
	s, err := r.Client.Stream(ctx, address, path)
	if err != nil {
		return err
	}
	defer s.Close()
	if err := s.Send(req); err != nil {
		return err
	}
	for {
		var m wire.LogsReply
		if err := s.Receive(&m); err != nil {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			return fault.New(fault.Unavailable, "the log ended early: %w", err)
		}
		for _, e := range m.Entries {
			if err := yield(e); err != nil {
				return err
			}
		}
		if m.End != nil {
			return m.End.Err()
		}
	}
}

// Exec runs a process in a task on a node and returns its exit code.
func (r *Remote) Exec(ctx context.Context, nodeID string, ref wire.TaskRef, spec driver.ExecSpec, st driver.Streams) (int, error) {
	address, err := r.address(nodeID)
	if err != nil {
		return 0, err
	}
	return r.converse(ctx, address, wire.PathExec, wire.ExecStart{TaskRef: ref, Spec: spec}, st)
}

// Attach connects to the streams of a task on a node; see driver.Driver.
func (r *Remote) Attach(ctx context.Context, nodeID string, ref wire.TaskRef, st driver.Streams) error {
	address, err := r.address(nodeID)
	if err != nil {
		return err
	}
	_, err = r.converse(ctx, address, wire.PathAttach, wire.ExecStart{TaskRef: ref, FromStart: st.FromStart}, st)
	return err
}

// Dial connects to a TCP port of an instance on a node.
func (r *Remote) Dial(ctx context.Context, nodeID, instance string, port int, st driver.Streams) error {
	address, err := r.address(nodeID)
	if err != nil {
		return err
	}
	_, err = r.converse(ctx, address, wire.PathDial, wire.ExecStart{TaskRef: wire.TaskRef{Instance: instance}, Port: port}, st)
	return err
}

// Try looks up a name, or makes a connection, from within an instance's network on a node.
func (r *Remote) Try(ctx context.Context, nodeID string, req wire.TryRequest) (reply wire.TryReply, err error) {
	err = r.call(ctx, nodeID, wire.PathTry, req, &reply)
	return reply, err
}

// Signal sends a signal to the first process of a task on a node.
func (r *Remote) Signal(ctx context.Context, nodeID string, ref wire.TaskRef, signal int) error {
	return r.call(ctx, nodeID, wire.PathSignal, wire.SignalRequest{TaskRef: ref, Signal: signal}, &wire.Empty{})
}

// Pause stops a task on a node where it is, or lets it go on; no task is all of the instance's.
func (r *Remote) Pause(ctx context.Context, nodeID string, ref wire.TaskRef, pause bool) error {
	return r.call(ctx, nodeID, wire.PathPause, wire.PauseRequest{TaskRef: ref, Pause: pause}, &wire.Empty{})
}

// Bound bounds a task that runs on a node anew.
func (r *Remote) Bound(ctx context.Context, nodeID string, ref wire.TaskRef, b model.Bounds) error {
	return r.call(ctx, nodeID, wire.PathBound, wire.BoundRequest{TaskRef: ref, Bounds: b}, &wire.Empty{})
}

// Flows tells of the connections that clients of a node have within a span.
func (r *Remote) Flows(ctx context.Context, nodeID string, span time.Duration) ([]wire.Flow, error) {
	var reply wire.FlowsReply
	err := r.call(ctx, nodeID, wire.PathFlows, wire.FlowsRequest{Span: span}, &reply)
	return reply.Flows, err
}

// Counts tells what came to services by a node so far.
func (r *Remote) Counts(ctx context.Context, nodeID string) (reply wire.CountsReply, err error) {
	err = r.call(ctx, nodeID, wire.PathCounts, wire.Empty{}, &reply)
	return reply, err
}

// Linked waits until an instance has these addresses on its node, no fewer and no others.
func (r *Remote) Linked(ctx context.Context, nodeID, instance string, addresses []model.Address) error {
	return r.call(ctx, nodeID, wire.PathLinked, wire.LinkedRequest{Instance: instance, Addresses: addresses}, &wire.Empty{})
}

// Stats reads the usage of a task on a node.
func (r *Remote) Stats(ctx context.Context, nodeID string, ref wire.TaskRef) (st driver.Stats, err error) {
	err = r.call(ctx, nodeID, wire.PathStats, ref, &st)
	return st, err
}

// Usage reads what all instances of a node use, and how many requests its ingress has had.
func (r *Remote) Usage(ctx context.Context, nodeID string) (used wire.NodeUsage, err error) {
	err = r.call(ctx, nodeID, wire.PathUsage, wire.Empty{}, &used)
	return used, err
}

// Sizes tells how much files of tasks and volumes on a node hold.
func (r *Remote) Sizes(ctx context.Context, nodeID string, req wire.SizesRequest) (reply wire.SizesReply, err error) {
	err = r.call(ctx, nodeID, wire.PathSizes, req, &reply)
	return reply, err
}

// Debug has a node say how it is.
func (r *Remote) Debug(ctx context.Context, nodeID string) (d wire.NodeDebug, err error) {
	err = r.call(ctx, nodeID, wire.PathNodeDebug, wire.Empty{}, &d)
	return d, err
}

// Processes lists the processes of a task on a node.
func (r *Remote) Processes(ctx context.Context, nodeID string, ref wire.TaskRef) (list []driver.Process, err error) {
	err = r.call(ctx, nodeID, wire.PathProcesses, ref, &list)
	return list, err
}

// FileStat tells of a file of a task on a node.
func (r *Remote) FileStat(ctx context.Context, nodeID string, req wire.FilesRequest) (st wire.FileStat, err error) {
	err = r.call(ctx, nodeID, wire.PathFileStat, req, &st)
	return st, err
}

// FileChanges lists what a task on a node changed since its image.
func (r *Remote) FileChanges(ctx context.Context, nodeID string, ref wire.TaskRef) (list []wire.FileChange, err error) {
	err = r.call(ctx, nodeID, wire.PathFileChanges, ref, &list)
	return list, err
}

// ReadFiles writes files of a task on a node to w, as an archive, no faster than w takes them.
func (r *Remote) ReadFiles(ctx context.Context, nodeID string, req wire.FilesRequest, w io.Writer) error {
	s, err := r.openFiles(ctx, nodeID, wire.PathReadFiles, req)
	if err != nil {
		return err
	}
	defer s.Close()
	return wire.ReceivePieces(ctx, s, w)
}

// WriteFiles unpacks an archive into a directory of a task on a node.
func (r *Remote) WriteFiles(ctx context.Context, nodeID string, req wire.FilesRequest, archive io.Reader) error {
	s, err := r.openFiles(ctx, nodeID, wire.PathWriteFiles, req)
	if err != nil {
		return err
	}
	defer s.Close()
	return deliver(ctx, s, archive)
}

// deliver sends an archive, and waits for what becomes of it.
func deliver(ctx context.Context, s *wire.Stream, archive io.Reader) error {
	sent := make(chan error, 1)
	go func() { sent <- wire.SendPieces(s, archive) }() // ends with s, at the latest
	var answer wire.Piece
	if err := s.Receive(&answer); err != nil {
		select {
		case serr := <-sent:
			if serr != nil {
				return serr
			}
		default:
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		return fault.New(fault.Unavailable, "the connection to the node broke: %w", err)
	}
	if answer.End == nil {
		return fault.New(fault.Internal, "the node answered without an end")
	}
	return answer.End.Err()
}

func (r *Remote) openFiles(ctx context.Context, nodeID, path string, req any) (*wire.Stream, error) {
	address, err := r.address(nodeID)
	if err != nil {
		return nil, err
	}
	s, err := r.Client.Stream(ctx, address, path)
	if err != nil {
		return nil, err
	}
	if err := s.Send(req); err != nil {
		s.Close()
		return nil, fault.New(fault.Unavailable, "ask for files: %w", err)
	}
	return s, nil
}

// converse passes the streams of a process on a node both ways until it ends.
func (r *Remote) converse(ctx context.Context, address, path string, start wire.ExecStart, st driver.Streams) (int, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	s, err := r.Client.Stream(ctx, address, path)
	if err != nil {
		return 0, err
	}
	defer s.Close()
	start.Stdin, start.Stdout, start.Stderr = st.Stdin != nil, st.Stdout != nil, st.Stderr != nil
	if err := s.Send(start); err != nil {
		return 0, err
	}
	send := func(in wire.ExecInput) error { return s.Send(in) }
	receive := func(out *wire.ExecOutput) error { return s.Receive(out) }
	return wire.DriveExec(ctx, st, send, receive)
}

// EnsureImage makes a node hold an image.
func (r *Remote) EnsureImage(ctx context.Context, nodeID, name, digest string) error {
	return r.call(ctx, nodeID, wire.PathEnsureImage, wire.ImageRef{Name: name, Digest: digest}, &wire.ImageRef{})
}

// RemoveImage makes a node forget an image.
func (r *Remote) RemoveImage(ctx context.Context, nodeID, name string) error {
	return r.call(ctx, nodeID, wire.PathRemoveImage, wire.ImageRef{Name: name}, &wire.Empty{})
}

// RemoveVolume deletes a local volume's content on its node.
func (r *Remote) RemoveVolume(ctx context.Context, nodeID, id string) error {
	return r.call(ctx, nodeID, wire.PathRemoveVolume, wire.VolumeRef{ID: id}, &wire.Empty{})
}

// ReadVolume writes what a volume holds, as a node has it, to w, as an archive.
func (r *Remote) ReadVolume(ctx context.Context, nodeID string, v *model.Volume, w io.Writer) error {
	s, err := r.openFiles(ctx, nodeID, wire.PathReadVolume, wire.VolumeFiles{Volume: v})
	if err != nil {
		return err
	}
	defer s.Close()
	return wire.ReceivePieces(ctx, s, w)
}

// WriteVolume puts an archive in place of what a volume holds on a node.
func (r *Remote) WriteVolume(ctx context.Context, nodeID string, v *model.Volume, archive io.Reader) error {
	s, err := r.openFiles(ctx, nodeID, wire.PathWriteVolume, wire.VolumeFiles{Volume: v})
	if err != nil {
		return err
	}
	defer s.Close()
	return deliver(ctx, s, archive)
}

func (r *Remote) call(ctx context.Context, nodeID, path string, req, resp any) error {
	address, err := r.address(nodeID)
	if err != nil {
		return err
	}
	return wire.CallAny(ctx, r.Client, address, path, req, resp)
}
