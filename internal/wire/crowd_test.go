package wire

import (
	"context"
	"net/http"
	"testing"
	"time"

	"github.com/hashicorp/raft"
)

// crowded returns two servers' ports, the first of which answers, with all places taken.
func crowded(t *testing.T) (address string, first, other *Port) {
	t.Helper()
	a := authority(t)
	first, other = listen(t, identity(t, a, "server-1", RoleServer)), listen(t, identity(t, a, "server-2", RoleServer))
	first.Handle("/answer", http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}), RoleServer)
	for range cap(first.crowd) {
		first.crowd <- struct{}{}
	}
	serve(t, other)
	return serve(t, first), first, other
}

func answer(t *testing.T, c *Client, address string) error {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	body, _, err := c.Get(ctx, address, "/answer")
	if err == nil {
		body.Close()
	}
	return err
}

// Who connects in a crowd waits for a turn, or is sent away after a while; the replication does neither.
func TestHandshakesTakeTurns(t *testing.T) {
	address, first, other := crowded(t)
	if err := answer(t, other.Client(), address); err == nil {
		t.Error("a handshake was made out of turn")
	}
	conn, err := other.RaftLayer().Dial(raft.ServerAddress(address), 10*time.Second)
	if err != nil {
		t.Fatalf("the replication had to wait: %v", err)
	}
	conn.Close()
	answered := make(chan error, 1)
	go func() { answered <- answer(t, other.Client(), address) }()
	<-first.crowd // one has come to its end
	if err := <-answered; err != nil {
		t.Errorf("after its turn had come: %v", err)
	}
	if err := answer(t, other.Client(), address); err != nil {
		t.Errorf("on a connection that is there: %v", err)
	}
}

// A client that begins a handshake and does not go on holds up nobody for long, and gives its place
// back once.
func TestStalledHandshakeLeaves(t *testing.T) {
	c := newCrowd()
	turns := make([]turn, cap(c))
	for k := range turns {
		turns[k].crowd = c
		c <- struct{}{}
		turns[k].timer = time.AfterFunc(time.Millisecond, turns[k].leave)
	}
	for range turns {
		c <- struct{}{} // blocks until one has left
	}
	for k := range turns {
		turns[k].end()
	}
	if len(c) != cap(c) {
		t.Errorf("%d of %d places are taken by those that came later, want all", len(c), cap(c))
	}
}
