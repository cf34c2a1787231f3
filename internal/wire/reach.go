package wire

import "context"

// Reach reports whether anything listens at an address. A kernel accepts connections also for a
// process that is stopped, or too busy to take them: the host is there, then.
func (p *Port) Reach(ctx context.Context, address string) bool {
	c, err := p.network.Dial(ctx, address)
	if err != nil {
		return false
	}
	c.Close()
	return true
}
