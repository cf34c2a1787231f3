package core

import (
	"context"
	"time"

	"github.com/tutti-run/tutti/internal/wire"
)

// NodeDebug has a node say how it is: what is left of its host, what its kernel can do, how far its clock is from this
// server's, and how Tutti's process there is.
func (c *Core) NodeDebug(ctx context.Context, who Caller, ref string) (d wire.NodeDebug, err error) {
	a, err := c.begin(who, "node debug", ref)
	if err != nil {
		return d, err
	}
	defer a.end(&err)
	n, err := findNode(c.look(who), ref)
	if err != nil {
		return d, err
	}
	began := time.Now()
	if d, err = c.Remote.Debug(ctx, n.ID); err != nil {
		return d, err
	}
	// The node read its clock at some moment between the question and the answer.
	took := time.Since(began)
	d.Clock.Ahead, d.Clock.Within = d.Time.Sub(began.Add(took/2)), took/2
	return d, nil
}
