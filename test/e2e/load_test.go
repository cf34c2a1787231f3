//go:build e2e

package e2e

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// load is a client that asks for pages at a steady rate, each on a connection of its own.
type load struct {
	mu      sync.Mutex
	answers []answer
	cancel  context.CancelFunc
	done    sync.WaitGroup
}

type answer struct {
	asked, at time.Time
	status    int
	version   string
	instance  string
	err       error
}

const loadTimeout = 5 * time.Second

// startLoad asks url fifty times a second until stop.
func startLoad(t *testing.T, url string) *load {
	t.Helper()
	return startLoadOf(t, url, "")
}

// startLoadOf asks for a page of a host, as the ingress knows it; "" is that of the URL.
func startLoadOf(t *testing.T, url, host string) *load {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	l := &load{cancel: cancel}
	client := &http.Client{Timeout: loadTimeout, Transport: &http.Transport{DisableKeepAlives: true}}
	l.done.Go(func() {
		tick := time.NewTicker(20 * time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
				l.done.Go(func() { l.ask(client, url, host) })
			}
		}
	})
	t.Cleanup(func() { cancel(); l.done.Wait() })
	return l
}

func (l *load) ask(client *http.Client, url, host string) {
	a := answer{asked: time.Now()}
	r, err := http.NewRequest("GET", url, nil)
	var resp *http.Response
	if err == nil {
		r.Host = host
		resp, err = client.Do(r)
	}
	if err == nil {
		a.status, a.version, a.instance = resp.StatusCode, resp.Header.Get("X-Shop-Version"), resp.Header.Get("X-Shop-Instance")
		_, err = io.Copy(io.Discard, resp.Body)
		resp.Body.Close()
	}
	a.err, a.at = err, time.Now()
	l.mu.Lock()
	l.answers = append(l.answers, a)
	l.mu.Unlock()
}

func (a *answer) good() bool { return a.err == nil && a.status == http.StatusOK }

// outcome is what became of the requests.
type outcome struct {
	asked, failed int
	longestGap    time.Duration // between good answers
	failures      map[string]int
	versions      map[string]int
}

func (o outcome) String() string {
	s := fmt.Sprintf("%d requests, %d failed, longest gap between good answers %s", o.asked, o.failed, o.longestGap.Round(time.Millisecond))
	for what, n := range o.failures {
		s += fmt.Sprintf("\n    %d × %s", n, what)
	}
	return s
}

// stop ends the load and sums it up.
func (l *load) stop() outcome {
	l.cancel()
	l.done.Wait()
	return sumUp(l.answers)
}

func sumUp(answers []answer) outcome {
	o := outcome{failures: map[string]int{}, versions: map[string]int{}}
	slices.SortFunc(answers, func(a, b answer) int { return a.at.Compare(b.at) })
	var last time.Time
	for i := range answers {
		a := &answers[i]
		o.asked++
		if !a.good() {
			o.failed++
			o.failures[reasonOf(a)]++
			continue
		}
		o.versions[a.version]++
		if !last.IsZero() {
			o.longestGap = max(o.longestGap, a.at.Sub(last))
		}
		last = a.at
	}
	return o
}

// reasonOf leaves out what differs from one request to the next.
func reasonOf(a *answer) string {
	if a.err == nil {
		return fmt.Sprintf("status %d", a.status)
	}
	text := a.err.Error()
	if i := strings.LastIndex(text, ": "); i >= 0 {
		text = text[i+2:]
	}
	return fmt.Sprintf("%s after %s", text, a.at.Sub(a.asked).Round(500*time.Millisecond))
}

// noneFailed fails the test when requests failed, with what the front end says of it.
func (o outcome) noneFailed(t *testing.T, during string) {
	t.Helper()
	if o.failed == 0 {
		return
	}
	t.Errorf("%d requests failed during %s", o.failed, during)
	out, err := run("logs", "shop/web", "-t")
	if err != nil {
		t.Logf("logs of the front end: %v", err)
	}
	for line := range strings.Lines(out) {
		if strings.Contains(line, "level=WARN") || strings.Contains(line, "level=ERROR") {
			t.Log(strings.TrimSpace(line))
		}
	}
}
