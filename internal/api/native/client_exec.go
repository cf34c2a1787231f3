package native

import (
	"context"
	"encoding/json"
	"io"
	"net/http"
	"sync"

	"github.com/tutti-run/tutti/internal/driver"
	"github.com/tutti-run/tutti/internal/wire"
)

// Exec runs a process in an instance and returns its exit code. Whether input is sent is up to
// streams.Stdin. It ends the process when ctx is done. A read of streams.Stdin that is under way
// when the process ends is not interrupted; what it yields is lost.
func (c *Client) Exec(ctx context.Context, req ExecRequest, streams driver.Streams) (int, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	req.Stdin = streams.Stdin != nil
	body, pw := io.Pipe()
	defer pw.Close()
	// Once an answer has begun, the transport notices the end of ctx only when it has something to
	// send: this is what ends a read of the body that waits for that.
	defer context.AfterFunc(ctx, func() { pw.CloseWithError(context.Canceled) })()
	in := &inputLines{enc: json.NewEncoder(pw)}
	go func() { _ = in.send(req) }() // a failure shows in the answer
	resp, err := c.do(ctx, http.MethodPost, pathExec, nil, body, mediaLines)
	if err != nil {
		return 0, err
	}
	defer resp.Body.Close()
	out := json.NewDecoder(resp.Body)
	return wire.DriveExec(ctx, streams,
		func(m wire.ExecInput) error { return in.send(m) },
		func(m *wire.ExecOutput) error { return out.Decode(m) })
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
