package native

import (
	"context"
	"encoding/json"
	"sync"

	"github.com/tutti-run/tutti/internal/driver"
)

// Exec runs a process in an instance and returns its exit code. Whether input is sent is up to
// streams.Stdin. It ends the process when ctx is done. A read of streams.Stdin that is under way
// when the process ends is not interrupted; what it yields is lost.
func (c *Client) Exec(ctx context.Context, req ExecRequest, streams driver.Streams) (int, error) {
	req.Stdin = streams.Stdin != nil
	return c.converse(ctx, pathExec, req, streams)
}

// inputLines sends values one at a time, also from several goroutines.
type inputLines struct {
	mu  sync.Mutex
	enc *json.Encoder
}

func (l *inputLines) send(v any) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.enc.Encode(v)
}
