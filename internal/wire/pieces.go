package wire

import (
	"context"
	"errors"
	"io"

	"github.com/tutti-run/tutti/internal/fault"
)

// pieceSize is how much of an archive travels at once, in bytes.
const pieceSize = 128 << 10

// SendPieces sends what r has, and its end. An error of r is told to the other end; only an error of the
// stream is returned.
func SendPieces(s *Stream, r io.Reader) error {
	buf := make([]byte, pieceSize)
	for {
		n, err := io.ReadFull(r, buf)
		if n > 0 {
			if serr := s.Send(Piece{Data: buf[:n]}); serr != nil {
				return serr
			}
		}
		switch {
		case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
			return s.Send(Piece{End: &End{}})
		case err != nil:
			return s.Send(Piece{End: EndOf(err)})
		}
	}
}

// ReceivePieces writes what is sent to w until the end.
func ReceivePieces(ctx context.Context, s *Stream, w io.Writer) error {
	for {
		var p Piece
		if err := s.Receive(&p); err != nil {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			return fault.New(fault.Unavailable, "the archive ended early: %w", err)
		}
		if len(p.Data) > 0 {
			if _, err := w.Write(p.Data); err != nil {
				return err
			}
		}
		if p.End != nil {
			return p.End.Err()
		}
	}
}

// Pieces reads what is sent as a stream of bytes.
func Pieces(s *Stream) io.Reader { return &pieces{s: s} }

type pieces struct {
	s    *Stream
	rest []byte
	err  error
}

func (p *pieces) Read(b []byte) (int, error) {
	for len(p.rest) == 0 {
		if p.err != nil {
			return 0, p.err
		}
		var m Piece
		if err := p.s.Receive(&m); err != nil {
			p.err = fault.New(fault.Unavailable, "the archive ended early: %w", err)
			continue
		}
		p.rest = m.Data
		if m.End != nil {
			if p.err = m.End.Err(); p.err == nil {
				p.err = io.EOF
			}
		}
	}
	n := copy(b, p.rest)
	p.rest = p.rest[n:]
	return n, nil
}
