package agent

import (
	"context"
	"net"
	"runtime"
	"time"

	"github.com/miekg/dns"

	"github.com/tutti-run/tutti/internal/fault"
	"github.com/tutti-run/tutti/internal/wire"
)

// tryPatience is how long a connection that is tried may take.
const tryPatience = 3 * time.Second

// Try looks up a name, or makes a connection and closes it, from within an instance's network.
func (a *Agent) Try(ctx context.Context, r wire.TryRequest) (wire.TryReply, error) {
	w, err := a.worker(r.Instance)
	if err != nil {
		return wire.TryReply{}, err
	}
	w.mu.Lock()
	p := w.prepared
	w.mu.Unlock()
	if p == nil {
		return wire.TryReply{}, fault.New(fault.Unavailable, "%s has no network yet", w.assignment.Instance.FullName())
	}
	ctx, cancel := context.WithTimeout(ctx, tryPatience)
	defer cancel()
	done := make(chan wire.TryReply, 1)
	go func() {
		if p.netNS != "" {
			runtime.LockOSThread() // for good: the thread ends with this goroutine
			if err := enterNetNS(p.netNS); err != nil {
				done <- wire.TryReply{Error: err.Error()}
				return
			}
		}
		began := time.Now()
		var reply wire.TryReply
		var err error
		if r.Name != "" {
			reply.Addresses, err = lookUp(ctx, r.Name)
		} else {
			var c net.Conn
			if c, err = new(net.Dialer).DialContext(ctx, "tcp", r.Address); err == nil {
				c.Close()
			}
		}
		if reply.Took = time.Since(began); err != nil {
			reply.Error = err.Error()
		}
		done <- reply
	}()
	return <-done, nil
}

// lookUp asks the node's responder for a name, as instances do.
func lookUp(ctx context.Context, name string) (out []string, err error) {
	c, err := new(net.Dialer).DialContext(ctx, "udp", "169.254.1.1:53")
	if err != nil {
		return nil, err
	}
	defer c.Close()
	if deadline, ok := ctx.Deadline(); ok {
		if err := c.SetDeadline(deadline); err != nil {
			return nil, err
		}
	}
	conn := &dns.Conn{Conn: c}
	for _, kind := range []uint16{dns.TypeA, dns.TypeAAAA} {
		if err := conn.WriteMsg(new(dns.Msg).SetQuestion(dns.Fqdn(name), kind)); err != nil {
			return out, err
		}
		answer, err := conn.ReadMsg()
		if err != nil {
			return out, err
		}
		for _, rr := range answer.Answer {
			switch rr := rr.(type) {
			case *dns.A:
				out = append(out, rr.A.String())
			case *dns.AAAA:
				out = append(out, rr.AAAA.String())
			}
		}
		if kind == dns.TypeA && answer.Rcode != dns.RcodeSuccess {
			return nil, fault.New(fault.NotFound, "the node's responder says %s", dns.RcodeToString[answer.Rcode])
		}
	}
	return out, nil
}
