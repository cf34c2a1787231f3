package dispatch

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"syscall"

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

// asError turns the end of a stream back into the error that the node had.
func asError(e *wire.End) error {
	if e.Error == "" {
		return nil
	}
	return fault.New(fault.ParseKind(e.Kind), "%s", e.Error)
}

// Logs yields the log of a task on a node; see driver.Driver.
func (r *Remote) Logs(ctx context.Context, nodeID string, ref wire.TaskRef, o driver.LogOptions, yield func(driver.LogEntry) error) error {
	address, err := r.address(nodeID)
	if err != nil {
		return err
	}
	s, err := r.Client.Stream(ctx, address, wire.PathLogs)
	if err != nil {
		return err
	}
	defer s.Close()
	if err := s.Send(wire.LogsRequest{TaskRef: ref, Options: o}); err != nil {
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
			return asError(m.End)
		}
	}
}

// Exec runs a process in a task on a node and returns its exit code.
func (r *Remote) Exec(ctx context.Context, nodeID string, ref wire.TaskRef, spec driver.ExecSpec, st driver.Streams) (int, error) {
	address, err := r.address(nodeID)
	if err != nil {
		return 0, err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	s, err := r.Client.Stream(ctx, address, wire.PathExec)
	if err != nil {
		return 0, err
	}
	defer s.Close()
	err = s.Send(wire.ExecStart{TaskRef: ref, Spec: spec, Stdin: st.Stdin != nil, Stdout: st.Stdout != nil, Stderr: st.Stderr != nil})
	if err != nil {
		return 0, err
	}
	var sending sync.Mutex
	send := func(in wire.ExecInput) error {
		sending.Lock()
		defer sending.Unlock()
		return s.Send(in)
	}
	if st.Stdin != nil {
		go sendInput(st.Stdin, send)
	}
	go func() {
		resize, signals := st.Resize, st.Signals
		for {
			select {
			case <-ctx.Done():
				return
			case size, ok := <-resize:
				if !ok {
					resize = nil // closed: no more will come
					continue
				}
				_ = send(wire.ExecInput{Resize: &size}) // a broken stream shows in Receive
			case sig, ok := <-signals:
				if !ok {
					signals = nil
					continue
				}
				if n, ok := sig.(syscall.Signal); ok {
					_ = send(wire.ExecInput{Signal: int(n)})
				}
			}
		}
	}()
	for {
		var m wire.ExecOutput
		if err := s.Receive(&m); err != nil {
			if ctx.Err() != nil {
				return 0, ctx.Err()
			}
			return 0, fault.New(fault.Unavailable, "the connection to the process broke: %w", err)
		}
		if len(m.Stdout) > 0 && st.Stdout != nil {
			if _, err := st.Stdout.Write(m.Stdout); err != nil {
				return 0, fmt.Errorf("pass output on: %w", err)
			}
		}
		if len(m.Stderr) > 0 && st.Stderr != nil {
			if _, err := st.Stderr.Write(m.Stderr); err != nil {
				return 0, fmt.Errorf("pass output on: %w", err)
			}
		}
		if m.End != nil {
			return m.End.ExitCode, asError(m.End)
		}
	}
}

func sendInput(r io.Reader, send func(wire.ExecInput) error) {
	buf := make([]byte, 32<<10)
	for {
		n, err := r.Read(buf)
		if n > 0 {
			if send(wire.ExecInput{Data: buf[:n]}) != nil {
				return
			}
		}
		if err != nil {
			if errors.Is(err, io.EOF) {
				_ = send(wire.ExecInput{Closed: true})
			}
			return
		}
	}
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

func (r *Remote) call(ctx context.Context, nodeID, path string, req, resp any) error {
	address, err := r.address(nodeID)
	if err != nil {
		return err
	}
	return wire.CallAny(ctx, r.Client, address, path, req, resp)
}
