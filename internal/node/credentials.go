package node

import (
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/tutti-run/tutti/internal/fault"
	"github.com/tutti-run/tutti/internal/model"
	"github.com/tutti-run/tutti/internal/wire"
)

// credentials keeps this node's certificate in force: it is replaced with a third of its life left,
// and when another authority takes over, without a restart and without breaking what is under way.
type credentials struct {
	dir     string
	port    *wire.Port
	servers func() []wire.ServerAddress
	// changed is called when the cluster should hear of how the certificate is now.
	changed func()
	log     *slog.Logger

	mu   sync.Mutex // one change at a time
	wake chan struct{}
}

func newCredentials(cfg *Config, port *wire.Port) *credentials {
	return &credentials{dir: cfg.identityDir(), port: port, log: cfg.Log, wake: make(chan struct{}, 1)}
}

// standing is what the cluster is told of the certificate.
func (c *credentials) standing() model.NodeCertificate {
	s := c.port.Standing()
	return model.NodeCertificate{Authority: s.Authority, Trusts: s.Trusts, Ends: s.Ends.UTC()}
}

// believe takes in whom the cluster believes.
func (c *credentials) believe(t wire.Trust) {
	c.mu.Lock()
	defer c.mu.Unlock()
	now := c.port.Identity()
	next := now.Trusting(t)
	if next == now {
		return
	}
	if err := c.take(next); err != nil {
		c.log.Error("other authorities could not be put in force", "error", err)
		return
	}
	c.log.Info("this node believes other authorities from now on", "authorities", c.port.Standing().Trusts)
	select {
	case c.wake <- struct{}{}:
	default:
	}
	c.changed()
}

// take keeps an identity and puts it in force; mu is held.
func (c *credentials) take(id *wire.Identity) error {
	if err := id.Save(c.dir); err != nil {
		return err
	}
	return c.port.SetIdentity(id)
}

// due is how long the present certificate may stay.
func (c *credentials) due() time.Duration {
	s := c.port.Standing()
	if len(s.Trusts) > 0 && s.Authority != s.Trusts[0] {
		return 0 // another authority signs by now
	}
	return time.Until(s.Renew)
}

// run renews the certificate whenever that is due, until ctx is done.
func (c *credentials) run(ctx context.Context) error {
	var said string
	patience := time.Second
	for {
		if c.due() <= 0 {
			// Not all nodes at the same moment.
			err := sleep(ctx, rand.N(500*time.Millisecond))
			if err == nil {
				err = c.renew(ctx)
			}
			switch {
			case ctx.Err() != nil:
				return nil
			case err != nil && err.Error() != said:
				said = err.Error()
				c.log.Warn("this node's certificate could not be renewed yet", "ends", c.port.Standing().Ends, "error", err)
			case err == nil:
				said, patience = "", time.Second
			}
			if err != nil {
				if sleep(ctx, patience) != nil {
					return nil
				}
				patience = min(2*patience, time.Minute)
				continue
			}
		}
		timer := time.NewTimer(min(max(c.due(), time.Second), time.Hour)) // clocks are set, too
		select {
		case <-ctx.Done():
		case <-c.wake:
		case <-timer.C:
		}
		timer.Stop()
		if ctx.Err() != nil {
			return nil
		}
	}
}

func sleep(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(d):
		return nil
	}
}

// renew gets a new certificate from any server.
func (c *credentials) renew(ctx context.Context) error {
	csr, key, err := wire.NewRequest()
	if err != nil {
		return err
	}
	err = fault.New(fault.Unavailable, "no server is known")
	for _, s := range c.servers() {
		ask, cancel := context.WithTimeout(ctx, 5*time.Second)
		var resp wire.RenewResponse
		resp, err = wire.Call[wire.RenewRequest, wire.RenewResponse](ask, c.port.Client(), s.Address, wire.PathRenew, wire.RenewRequest{CSR: csr})
		cancel()
		if err != nil {
			continue
		}
		return c.renewed(resp, key)
	}
	return err
}

func (c *credentials) renewed(resp wire.RenewResponse, key []byte) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	next, err := c.port.Identity().Renewed(resp, key)
	if err == nil {
		err = c.take(next)
	}
	if err != nil {
		return fmt.Errorf("put the new certificate in force: %w", err)
	}
	s := c.port.Standing()
	c.log.Info("this node's certificate is renewed", "authority", s.Authority, "ends", s.Ends)
	c.changed()
	return nil
}
