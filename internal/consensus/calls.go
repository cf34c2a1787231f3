package consensus

import (
	"context"
	"errors"
	"net"

	"github.com/tutti-run/tutti/internal/wire"
)

// Calls is how this server asks the one that leads.
type Calls interface {
	// Propose has the leader replicate change sets by ProposeHere. Its error is NotSent when
	// certainly none of them was taken up.
	Propose(ctx context.Context, leader Server, sets [][]byte) ([]Outcome, error)
	// ReadIndex asks the leader for ReadIndexHere.
	ReadIndex(ctx context.Context, leader Server) (uint64, error)
}

// Paths between servers.
const (
	pathPropose   = "/server/propose"    // call: proposals → outcomes
	pathReadIndex = "/server/read-index" // call: Empty → readIndex
)

type proposals struct {
	Sets [][]byte `json:"sets"`
}

type outcomes struct {
	Outcomes []Outcome `json:"outcomes"`
}

type readIndex struct {
	Index uint64 `json:"index"`
}

// OverWire returns the calls over the port between nodes; the leader has to Handle them.
func OverWire(c *wire.Client) Calls { return overWire{c} }

type overWire struct{ client *wire.Client }

func (o overWire) Propose(ctx context.Context, leader Server, sets [][]byte) ([]Outcome, error) {
	r, err := wire.Call[proposals, outcomes](ctx, o.client, leader.Address, pathPropose, proposals{sets})
	if op, ok := errors.AsType[*net.OpError](err); ok && op.Op == "dial" {
		return nil, errNotSent
	}
	return r.Outcomes, err
}

func (o overWire) ReadIndex(ctx context.Context, leader Server) (uint64, error) {
	r, err := wire.Call[wire.Empty, readIndex](ctx, o.client, leader.Address, pathReadIndex, wire.Empty{})
	return r.Index, err
}

// Handle answers the calls of other servers.
func (r *Raft) Handle(p *wire.Port) {
	p.Handle(pathPropose, wire.HandleCall(func(ctx context.Context, q proposals) (outcomes, error) {
		return outcomes{r.ProposeHere(ctx, q.Sets)}, nil
	}), wire.RoleServer)
	p.Handle(pathReadIndex, wire.HandleCall(func(ctx context.Context, _ wire.Empty) (readIndex, error) {
		index, err := r.ReadIndexHere(ctx)
		return readIndex{index}, err
	}), wire.RoleServer)
}
