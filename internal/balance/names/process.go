package names

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"

	"github.com/tutti-run/tutti/internal/balance/beside"
	"github.com/tutti-run/tutti/internal/wire"
)

// Process keeps one responder running on this node.
type Process struct {
	*beside.Process
	state *journal
}

// New returns the responder that listens on host:port, and has its files in a directory.
func New(dir, listen string, log *slog.Logger) *Process {
	return &Process{
		Process: &beside.Process{Dir: dir, Role: role, Args: []string{listen}, Env: []string{"GOMEMLIMIT=512MiB"}, Log: log},
		state:   &journal{path: filepath.Join(dir, stateFile)},
	}
}

// Sync writes what should be answered, and makes sure that somebody does: when it returns, the responder
// has read it.
func (p *Process) Sync(ctx context.Context, n *wire.Network) error {
	if err := os.MkdirAll(p.Dir, 0o700); err != nil {
		return fmt.Errorf("write names: %w", err)
	}
	if err := p.state.write(n); err != nil {
		return fmt.Errorf("write names: %w", err)
	}
	return p.Tell(ctx)
}
