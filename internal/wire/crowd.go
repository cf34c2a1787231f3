package wire

import (
	"context"
	"crypto/tls"
	"fmt"
	"runtime"
	"slices"
	"sync"
	"time"
)

// When many nodes connect at the same time, as after the end of another server, handshakes are what
// costs. All at once, each would take longer than its client waits, and none would come to an end. So
// few are made at a time; who had to wait for longer than clients do is not answered any more.
const (
	// crowdWait is less than what remains of handshakeTimeout then.
	crowdWait = 1500 * time.Millisecond
	// crowdHold bounds how long a handshake whose client does not go on holds up others: what costs
	// comes first.
	crowdHold = 300 * time.Millisecond
)

// crowd bounds how many handshakes are made at a time.
type crowd chan struct{}

func newCrowd() crowd { return make(crowd, 2*runtime.GOMAXPROCS(0)) }

// turn is the place of one handshake among others.
type turn struct {
	crowd crowd
	once  sync.Once
	timer *time.Timer
}

type turnKey struct{}

// await returns when the handshake may be made; end must be called after it. The replication's, which
// are few, never wait: without it nobody is served.
func (t *turn) await(hello *tls.ClientHelloInfo) error {
	if slices.Contains(hello.SupportedProtos, protoRaft) {
		return nil
	}
	ctx, cancel := context.WithTimeout(hello.Context(), crowdWait)
	defer cancel()
	select {
	case t.crowd <- struct{}{}:
		t.timer = time.AfterFunc(crowdHold, t.leave)
		return nil
	case <-ctx.Done():
		return fmt.Errorf("too many connect at the same time: %w", ctx.Err())
	}
}

func (t *turn) leave() { t.once.Do(func() { <-t.crowd }) }

func (t *turn) end() {
	if t.timer != nil {
		t.timer.Stop()
		t.leave()
	}
}

// withTurn makes a handshake under the context find its turn.
func withTurn(ctx context.Context, t *turn) context.Context {
	return context.WithValue(ctx, turnKey{}, t)
}

// awaitTurn is for the configuration of handshakes.
func awaitTurn(hello *tls.ClientHelloInfo) error {
	if t, ok := hello.Context().Value(turnKey{}).(*turn); ok {
		return t.await(hello)
	}
	return nil
}
