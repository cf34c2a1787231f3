// Package simraft carries what servers say to each other in the replication over a simulated
// network, message by message: each can be late, lost, repeated and overtaken for itself.
package simraft

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/raft"

	"github.com/tutti-run/tutti/test/sim/internal/simnet"
)

// answerWithin is how long a server waits for an answer, as the real transport does.
const answerWithin = 2 * time.Second

// Exchange finds the servers that are up by their addresses.
type Exchange struct {
	Net *simnet.Net
	// Sent counts requests by their kind.
	mu   sync.Mutex
	open map[raft.ServerAddress]*Transport
	sent map[string]int
}

// NewExchange returns an exchange without servers.
func NewExchange(n *simnet.Net) *Exchange {
	return &Exchange{Net: n, open: map[raft.ServerAddress]*Transport{}, sent: map[string]int{}}
}

// Sent returns how many requests of each kind were sent.
func (x *Exchange) Sent() map[string]int {
	x.mu.Lock()
	defer x.mu.Unlock()
	out := map[string]int{}
	for k, n := range x.sent {
		out[k] = n
	}
	return out
}

// Transport implements raft.Transport for one life of a server.
type Transport struct {
	x        *Exchange
	address  raft.ServerAddress
	host     string
	consumer chan raft.RPC
	closed   chan struct{}
	once     sync.Once

	mu        sync.Mutex
	heartbeat func(raft.RPC)
}

// Open returns the transport of a server that was started just now.
func (x *Exchange) Open(address string) *Transport {
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		panic(err) // the caller's own
	}
	t := &Transport{x: x, address: raft.ServerAddress(address), host: host, consumer: make(chan raft.RPC), closed: make(chan struct{})}
	x.mu.Lock()
	defer x.mu.Unlock()
	x.open[t.address] = t
	return t
}

func (x *Exchange) find(address raft.ServerAddress) *Transport {
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.open[address]
}

// Close implements raft.WithClose.
func (t *Transport) Close() error {
	t.once.Do(func() {
		close(t.closed)
		t.x.mu.Lock()
		defer t.x.mu.Unlock()
		if t.x.open[t.address] == t {
			delete(t.x.open, t.address)
		}
	})
	return nil
}

// Consumer implements raft.Transport.
func (t *Transport) Consumer() <-chan raft.RPC { return t.consumer }

// LocalAddr implements raft.Transport.
func (t *Transport) LocalAddr() raft.ServerAddress { return t.address }

// EncodePeer implements raft.Transport.
func (t *Transport) EncodePeer(_ raft.ServerID, a raft.ServerAddress) []byte { return []byte(a) }

// DecodePeer implements raft.Transport.
func (t *Transport) DecodePeer(b []byte) raft.ServerAddress { return raft.ServerAddress(b) }

// SetHeartbeatHandler implements raft.Transport.
func (t *Transport) SetHeartbeatHandler(h func(raft.RPC)) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.heartbeat = h
}

// take hands a request to the server and returns its answer; ok is false when it gives none.
func (t *Transport) take(command any, content []byte) (r raft.RPCResponse, ok bool) {
	answer := make(chan raft.RPCResponse, 1)
	rpc := raft.RPC{Command: command, RespChan: answer}
	if content != nil {
		rpc.Reader = bytes.NewReader(content)
	}
	t.mu.Lock()
	fast := t.heartbeat
	t.mu.Unlock()
	if a, is := command.(*raft.AppendEntriesRequest); is && fast != nil && isHeartbeat(a) {
		select {
		case <-t.closed:
			return r, false
		default:
		}
		fast(rpc)
	} else {
		select {
		case t.consumer <- rpc:
		case <-t.closed:
			return r, false
		}
	}
	select {
	case r = <-answer:
		return r, true
	case <-t.closed:
		return r, false
	}
}

// isHeartbeat is the real transport's judgement.
func isHeartbeat(a *raft.AppendEntriesRequest) bool {
	return a.Term != 0 && a.RPCHeader.Addr != nil && a.PrevLogEntry == 0 && a.PrevLogTerm == 0 &&
		len(a.Entries) == 0 && a.LeaderCommitIndex == 0
}

var errNoAnswer = errors.New("no answer came in time")

// ask sends a request, which is to be a copy, and returns where its answer arrives.
func (t *Transport) ask(kind string, target raft.ServerAddress, command func() any, content []byte) <-chan raft.RPCResponse {
	t.x.mu.Lock()
	t.x.sent[kind]++
	t.x.mu.Unlock()
	answer := make(chan raft.RPCResponse, 1)
	var answered atomic.Bool
	host, _, err := net.SplitHostPort(string(target))
	if err != nil {
		answer <- raft.RPCResponse{Error: fmt.Errorf("address of a server: %w", err)}
		return answer
	}
	select {
	case <-t.closed: // what is left of a process that is no more
		answer <- raft.RPCResponse{Error: raft.ErrTransportShutdown}
		return answer
	default:
	}
	send := func() {
		t.x.Net.Send(t.host, host, func() {
			to := t.x.find(target)
			if to == nil {
				return
			}
			r, ok := to.take(command(), content)
			if !ok {
				return
			}
			t.x.Net.Send(host, t.host, func() {
				if !answered.Swap(true) { // asked twice, answered twice
					answer <- r
				}
			})
		})
	}
	send()
	t.again(send, &answered, firstRetry, answerWithin)
	return answer
}

// firstRetry is when a message is sent again that was not answered, as TCP sends it again; each time
// that takes twice as long.
const firstRetry = 200 * time.Millisecond

func (t *Transport) again(send func(), answered *atomic.Bool, after, left time.Duration) {
	if after > left {
		return
	}
	time.AfterFunc(after, func() {
		select {
		case <-t.closed:
			return
		default:
		}
		if !answered.Load() {
			send()
			t.again(send, answered, 2*after, left-after)
		}
	})
}

func (t *Transport) await(answer <-chan raft.RPCResponse, within time.Duration) (any, error) {
	timeout := time.NewTimer(within)
	defer timeout.Stop()
	select {
	case r := <-answer:
		return r.Response, r.Error
	case <-timeout.C:
		return nil, errNoAnswer
	case <-t.closed:
		return nil, raft.ErrTransportShutdown
	}
}

// copied returns entries that nobody else writes to.
func copied(a *raft.AppendEntriesRequest) *raft.AppendEntriesRequest {
	c := *a
	c.Entries = make([]*raft.Log, len(a.Entries))
	for i, e := range a.Entries {
		l := *e
		c.Entries[i] = &l
	}
	return &c
}

// AppendEntries implements raft.Transport.
func (t *Transport) AppendEntries(_ raft.ServerID, target raft.ServerAddress, a *raft.AppendEntriesRequest, out *raft.AppendEntriesResponse) error {
	kind := "append"
	if isHeartbeat(a) {
		kind = "heartbeat"
	}
	c := copied(a)
	r, err := t.await(t.ask(kind, target, func() any { return copied(c) }, nil), answerWithin)
	if err == nil {
		*out = *r.(*raft.AppendEntriesResponse)
	}
	return err
}

// RequestVote implements raft.Transport.
func (t *Transport) RequestVote(_ raft.ServerID, target raft.ServerAddress, a *raft.RequestVoteRequest, out *raft.RequestVoteResponse) error {
	c := *a
	r, err := t.await(t.ask("vote", target, func() any { d := c; return &d }, nil), answerWithin)
	if err == nil {
		*out = *r.(*raft.RequestVoteResponse)
	}
	return err
}

// RequestPreVote implements raft.WithPreVote.
func (t *Transport) RequestPreVote(_ raft.ServerID, target raft.ServerAddress, a *raft.RequestPreVoteRequest, out *raft.RequestPreVoteResponse) error {
	c := *a
	r, err := t.await(t.ask("pre-vote", target, func() any { d := c; return &d }, nil), answerWithin)
	if err == nil {
		*out = *r.(*raft.RequestPreVoteResponse)
	}
	return err
}

// TimeoutNow implements raft.Transport.
func (t *Transport) TimeoutNow(_ raft.ServerID, target raft.ServerAddress, a *raft.TimeoutNowRequest, out *raft.TimeoutNowResponse) error {
	c := *a
	r, err := t.await(t.ask("timeout-now", target, func() any { d := c; return &d }, nil), answerWithin)
	if err == nil {
		*out = *r.(*raft.TimeoutNowResponse)
	}
	return err
}

// InstallSnapshot implements raft.Transport.
func (t *Transport) InstallSnapshot(_ raft.ServerID, target raft.ServerAddress, a *raft.InstallSnapshotRequest, out *raft.InstallSnapshotResponse, data io.Reader) error {
	content, err := io.ReadAll(data)
	if err != nil {
		return err
	}
	c := *a
	r, err := t.await(t.ask("snapshot", target, func() any { d := c; return &d }, append([]byte{}, content...)), 2*answerWithin)
	if err == nil {
		*out = *r.(*raft.InstallSnapshotResponse)
	}
	return err
}

// pipeline keeps several requests under way; their answers come out in order.
type pipeline struct {
	t      *Transport
	target raft.ServerAddress
	queue  chan *future
	done   chan raft.AppendFuture
	closed chan struct{}
	once   sync.Once
}

// inFlight is how many requests of a pipeline wait for their answers, as package consensus sets it.
const inFlight = 64

// AppendEntriesPipeline implements raft.Transport.
func (t *Transport) AppendEntriesPipeline(_ raft.ServerID, target raft.ServerAddress) (raft.AppendPipeline, error) {
	p := &pipeline{t: t, target: target, queue: make(chan *future, inFlight), done: make(chan raft.AppendFuture, inFlight), closed: make(chan struct{})}
	go p.run()
	return p, nil
}

func (p *pipeline) run() {
	for {
		select {
		case f := <-p.queue:
			r, err := p.t.await(f.answer, time.Until(f.start.Add(answerWithin)))
			if err == nil {
				*f.resp = *r.(*raft.AppendEntriesResponse)
			}
			f.err <- err
			select {
			case p.done <- f:
			case <-p.closed:
				return
			}
		case <-p.closed:
			return
		}
	}
}

// AppendEntries implements raft.AppendPipeline.
func (p *pipeline) AppendEntries(a *raft.AppendEntriesRequest, out *raft.AppendEntriesResponse) (raft.AppendFuture, error) {
	c := copied(a)
	f := &future{start: time.Now(), req: a, resp: out, err: make(chan error, 1)}
	f.answer = p.t.ask("append", p.target, func() any { return copied(c) }, nil)
	select {
	case p.queue <- f:
		return f, nil
	case <-p.closed:
		return nil, raft.ErrPipelineShutdown
	case <-p.t.closed:
		return nil, raft.ErrTransportShutdown
	}
}

// Consumer implements raft.AppendPipeline.
func (p *pipeline) Consumer() <-chan raft.AppendFuture { return p.done }

// Close implements raft.AppendPipeline.
func (p *pipeline) Close() error {
	p.once.Do(func() { close(p.closed) })
	return nil
}

// future implements raft.AppendFuture.
type future struct {
	start  time.Time
	req    *raft.AppendEntriesRequest
	resp   *raft.AppendEntriesResponse
	answer <-chan raft.RPCResponse
	err    chan error
}

// Error returns what the request came to; it may be asked once.
func (f *future) Error() error                          { return <-f.err }
func (f *future) Start() time.Time                      { return f.start }
func (f *future) Request() *raft.AppendEntriesRequest   { return f.req }
func (f *future) Response() *raft.AppendEntriesResponse { return f.resp }

var (
	_ raft.Transport   = (*Transport)(nil)
	_ raft.WithPreVote = (*Transport)(nil)
	_ raft.WithClose   = (*Transport)(nil)
)
