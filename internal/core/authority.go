package core

import (
	"context"
	"crypto/hkdf"
	"crypto/sha256"
	"time"

	"github.com/tutti-run/tutti/internal/fault"
	"github.com/tutti-run/tutti/internal/model"
	"github.com/tutti-run/tutti/internal/trust"
)

func tokenText(server, agent bool) string {
	switch {
	case server && agent:
		return "both"
	case server:
		return "server"
	}
	return "agent"
}

// RotateTokens replaces the join tokens chosen.
func (c *Core) RotateTokens(ctx context.Context, who Caller, server, agent bool) (err error) {
	a, err := c.begin(who, "token rotate", tokenText(server, agent))
	if err != nil {
		return err
	}
	defer a.end(&err)
	return c.Trust.RotateTokens(ctx, server, agent)
}

// Authority tells how the cluster's authority and keys are.
func (c *Core) Authority(ctx context.Context, who Caller) (trust.View, error) {
	if _, err := c.begin(who, "ca show", ""); err != nil {
		return trust.View{}, err
	}
	return c.Trust.View()
}

// RotateAuthority makes another authority take over; see trust.Trust. Nodes that are away longer than
// the window must join anew; 0 is trust.DefaultWindow.
func (c *Core) RotateAuthority(ctx context.Context, who Caller, window time.Duration) (err error) {
	a, err := c.begin(who, "ca rotate", "")
	if err != nil {
		return err
	}
	defer a.end(&err)
	if window == 0 {
		window = trust.DefaultWindow
	}
	if window < 0 {
		return fault.New(fault.Invalid, "a window of %s is negative", window)
	}
	return c.Trust.RotateAuthority(ctx, window)
}

// DropAuthority stops believing the authority that was replaced, at once.
func (c *Core) DropAuthority(ctx context.Context, who Caller) (err error) {
	a, err := c.begin(who, "ca drop", "")
	if err != nil {
		return err
	}
	defer a.end(&err)
	return c.Trust.DropAuthority(ctx)
}

// SetAutolock makes servers need an unlock key after each start, which it returns, or need none.
func (c *Core) SetAutolock(ctx context.Context, who Caller, on bool) (unlockKey string, err error) {
	what := "off"
	if on {
		what = "on"
	}
	a, err := c.begin(who, "autolock", what)
	if err != nil {
		return "", err
	}
	defer a.end(&err)
	return c.Trust.SetAutolock(ctx, on)
}

// UnlockKey returns the unlock key, a new one when it is to be replaced.
func (c *Core) UnlockKey(ctx context.Context, who Caller, rotate bool) (key string, err error) {
	what := "shown"
	if rotate {
		what = "replaced"
	}
	a, err := c.begin(who, "unlock key", what)
	if err != nil {
		return "", err
	}
	defer a.end(&err)
	if key, err = c.Trust.UnlockKey(ctx, rotate); err == nil && key == "" {
		err = fault.New(fault.Invalid, "autolock is off: there is no unlock key; `tutti autolock on` makes one")
	}
	return key, err
}

// Unlock opens the keys of the server that is asked.
func (c *Core) Unlock(ctx context.Context, who Caller, unlockKey string) (err error) {
	a, err := c.begin(who, "unlock", "")
	if err != nil {
		return err
	}
	defer a.end(&err)
	return c.Trust.Unlock(ctx, unlockKey)
}

// ComponentKey returns a key of 32 bytes, the same on every server, with which a component seals what it
// keeps in the key space. It follows from the cluster's own.
func (c *Core) ComponentKey(who Caller, name string) ([]byte, error) {
	if _, err := c.begin(who, "component key", name); err != nil {
		return nil, err
	}
	if err := model.CheckName(name); err != nil {
		return nil, fault.New(fault.Invalid, "component name %w", err)
	}
	key, err := c.Trust.SecretKey()
	if err != nil {
		return nil, err
	}
	return hkdf.Key(sha256.New, key, nil, "tutti component "+name, 32)
}
