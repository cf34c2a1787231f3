package agent

import (
	"context"
	"io"

	"github.com/tutti-run/tutti/internal/fault"
	"github.com/tutti-run/tutti/internal/files"
	"github.com/tutti-run/tutti/internal/wire"
)

// serveReadVolume sends what a volume holds.
func (a *Agent) serveReadVolume(ctx context.Context, s *wire.Stream) error {
	var req wire.VolumeFiles
	if err := s.Receive(&req); err != nil {
		return err
	}
	r, w := io.Pipe()
	defer r.Close()
	go func() { w.CloseWithError(a.packVolume(ctx, &req, w)) }() // ends with r, at the latest
	return wire.SendPieces(s, r)
}

func (a *Agent) packVolume(ctx context.Context, req *wire.VolumeFiles, w io.Writer) error {
	if req.Volume == nil {
		return fault.New(fault.Invalid, "no volume was named")
	}
	at, err := a.Volumes.Ensure(ctx, req.Volume)
	if err != nil {
		return err
	}
	root, err := files.Open(at)
	if err != nil {
		return err
	}
	defer root.Close()
	return root.Pack(ctx, w, ".")
}

// serveWriteVolume puts what comes in place of what a volume holds.
func (a *Agent) serveWriteVolume(ctx context.Context, s *wire.Stream) error {
	var req wire.VolumeFiles
	if err := s.Receive(&req); err != nil {
		return err
	}
	err := error(fault.New(fault.Invalid, "no volume was named"))
	if req.Volume != nil {
		err = a.Volumes.Replace(ctx, req.Volume, func(dir string) error {
			root, err := files.Open(dir)
			if err != nil {
				return err
			}
			defer root.Close()
			return root.Unpack(ctx, wire.Pieces(s), ".", files.UnpackOptions{})
		})
	}
	return s.Send(wire.Piece{End: wire.EndOf(err)})
}
