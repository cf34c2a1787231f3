// Package call asks another service of the shop, and does not wait for the dead.
//
// Every request opens a connection of its own, so that the virtual address of a service may
// lead each to another instance. A connection or an answer that takes long is tried again
// beside the first try, and whichever comes first wins. Therefore everything that is asked here
// must be safe to ask twice.
package call

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"time"

	"github.com/tutti-run/tutti/examples/shop/internal/service"
)

const (
	deadline   = 3 * time.Second        // for the whole question
	askAgain   = 400 * time.Millisecond // without an answer
	dialAgain  = 100 * time.Millisecond // without a connection
	maxDials   = 8
	maxAsks    = 4
	maxReplyKB = 1024
)

// Client asks one service.
type Client struct {
	base string
	http *http.Client
}

// New makes a client of the service at base, e.g. "http://catalogue:8080".
func New(base string) *Client {
	dialer := net.Dialer{Timeout: deadline}
	return &Client{base: base, http: &http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, network, address string) (net.Conn, error) {
			return first(ctx, maxDials, dialAgain, func(ctx context.Context) (net.Conn, error) {
				return dialer.DialContext(ctx, network, address)
			}, func(late net.Conn) { late.Close() })
		},
	}}}
}

// Refusal is a service's answer that the question was wrong: asking again will not help.
type Refusal struct {
	Status   int
	Sentence string
}

func (r *Refusal) Error() string { return r.Sentence }

// Source tells where an answer came from and how long it took.
type Source struct {
	Instance string
	Took     time.Duration
}

// Ask sends in (nil: nothing) as JSON and decodes the answer into out (nil: drops it). It takes
// three seconds at most. The error is a *Refusal when the service answered that it will not.
func (c *Client) Ask(ctx context.Context, method, path string, in, out any) (Source, error) {
	began := time.Now()
	ctx, cancel := context.WithTimeout(ctx, deadline)
	defer cancel()
	var body []byte
	if in != nil {
		var err error
		if body, err = json.Marshal(in); err != nil {
			return Source{}, fmt.Errorf("encode question %s %s: %w", method, path, err)
		}
	}
	reply, err := first(ctx, maxAsks, askAgain, func(ctx context.Context) (reply, error) {
		return c.once(ctx, method, path, body)
	}, nil)
	source := Source{Instance: reply.instance, Took: time.Since(began)}
	if err != nil {
		return source, fmt.Errorf("ask %s %s%s: %w", method, c.base, path, err)
	}
	if reply.status >= 400 {
		var said struct {
			Error string `json:"error"`
		}
		if json.Unmarshal(reply.body, &said) != nil || said.Error == "" {
			said.Error = http.StatusText(reply.status)
		}
		return source, &Refusal{Status: reply.status, Sentence: said.Error}
	}
	if out != nil {
		if err := json.Unmarshal(reply.body, out); err != nil {
			return source, fmt.Errorf("decode answer of %s%s: %w", c.base, path, err)
		}
	}
	return source, nil
}

type reply struct {
	status   int
	instance string
	body     []byte
}

func (c *Client) once(ctx context.Context, method, path string, body []byte) (reply, error) {
	request, err := http.NewRequestWithContext(ctx, method, c.base+path, bytes.NewReader(body))
	if err != nil {
		return reply{}, err
	}
	if body != nil {
		request.Header.Set("Content-Type", "application/json")
	}
	answer, err := c.http.Do(request)
	if err != nil {
		return reply{}, err
	}
	defer answer.Body.Close()
	text, err := io.ReadAll(io.LimitReader(answer.Body, maxReplyKB<<10))
	if err != nil {
		return reply{}, err
	}
	got := reply{status: answer.StatusCode, instance: answer.Header.Get(service.InstanceHeader), body: text}
	if got.status >= 500 {
		return got, fmt.Errorf("%s answered %s", got.instance, answer.Status)
	}
	return got, nil
}

// first starts try, and again whenever the last start failed or gave nothing within patience,
// up to max times, and returns the first success, or the last failure when all failed or ctx
// ended. Results that come too late are given to drop (nil: forgotten); their contexts have
// ended by then.
func first[T any](ctx context.Context, max int, patience time.Duration, try func(context.Context) (T, error), drop func(T)) (T, error) {
	type outcome struct {
		value T
		err   error
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	outcomes := make(chan outcome, max)
	started, failed := 0, 0
	start := func() {
		started++
		go func() {
			value, err := try(ctx)
			outcomes <- outcome{value, err}
		}()
	}
	leave := func() {
		if drop == nil {
			return
		}
		for range started - failed - 1 {
			go func() {
				if late := <-outcomes; late.err == nil {
					drop(late.value)
				}
			}()
		}
	}
	start()
	again := time.NewTicker(patience)
	defer again.Stop()
	var last error
	for {
		select {
		case got := <-outcomes:
			if got.err == nil {
				leave()
				return got.value, nil
			}
			failed, last = failed+1, got.err
			switch {
			case ctx.Err() != nil || (failed == started && started == max):
				failed-- // this one is accounted for below
				leave()
				var none T
				return none, last
			case started < max:
				start()
				again.Reset(patience)
			}
		case <-again.C:
			if started < max {
				start()
			}
		}
	}
}
