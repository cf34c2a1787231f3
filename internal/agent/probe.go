package agent

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/tutti-run/tutti/internal/driver"
	"github.com/tutti-run/tutti/internal/model"
)

// verdict is what the probes of an instance say together.
type verdict struct {
	health model.Health
	output string // of the probe that said so, for people
}

// probeState is the pure part of probing one task: results in, health out.
type probeState struct {
	probe    model.Probe
	started  time.Time
	health   model.Health
	failures int
	counted  time.Time // when a failure was last counted
}

func newProbeState(p model.Probe, started time.Time, health model.Health) *probeState {
	if p.Interval <= 0 {
		p.Interval = 30 * time.Second
	}
	if p.Timeout <= 0 {
		p.Timeout = 30 * time.Second
	}
	if p.Retries <= 0 {
		p.Retries = 3
	}
	if health == model.HealthNone {
		health = model.HealthStarting
	}
	return &probeState{probe: p, started: started, health: health, counted: started}
}

// The time between probes until the first success.
const (
	shortestWait = 50 * time.Millisecond
	longestWait  = 1600 * time.Millisecond
)

// next says how long to wait until the next probe. Until the first success probes come quickly, so that an instance serves as soon as
// it can, later by a third of what it took at most; see result for why that cannot make it unhealthy sooner.
func (s *probeState) next(now time.Time) time.Duration {
	if s.health != model.HealthStarting {
		return s.probe.Interval
	}
	limit := s.probe.Interval
	if s.probe.StartInterval > 0 {
		limit = min(limit, s.probe.StartInterval)
	}
	return min(limit, max(shortestWait, now.Sub(s.started)/3), longestWait)
}

// result takes a probe's outcome. Failures count one per interval at most, and not within the
// start period, however often the task was asked.
func (s *probeState) result(now time.Time, ok bool) model.Health {
	if ok {
		s.failures, s.health = 0, model.HealthHealthy
		return s.health
	}
	if s.health == model.HealthStarting && now.Sub(s.started) < s.probe.StartPeriod {
		s.counted = now
		return s.health
	}
	// Three quarters: the interval runs from the end of one probe to the begin of the next.
	if now.Sub(s.counted) >= s.probe.Interval*3/4 {
		s.failures++
		s.counted = now
	}
	if s.failures >= s.probe.Retries && !s.probe.Once {
		s.health = model.HealthUnhealthy
	}
	return s.health
}

// startProbes runs the probes of all tasks until ctx is done and returns where their common
// verdicts arrive, or nil when nothing is probed.
func (w *worker) startProbes(ctx context.Context, wg *sync.WaitGroup, p *prepared, ids []string) <-chan verdict {
	type probed struct {
		task  *model.TaskSpec
		id    string
		probe *model.Probe
	}
	var list []probed
	for i := range p.template.Tasks {
		t := &p.template.Tasks[i]
		probe := t.Health
		if probe == nil && p.images[t.Name] != nil {
			probe = p.images[t.Name].Config.Health
		}
		if probe != nil && !t.NoHealth {
			list = append(list, probed{task: t, id: ids[i], probe: probe})
		}
		for n := range t.Probes {
			list = append(list, probed{task: t, id: ids[i], probe: &t.Probes[n]})
		}
	}
	if len(list) == 0 {
		return nil
	}
	before := model.HealthNone
	if st, ok := w.reported(); ok && w.adopted {
		before = st.Health
	}
	out := make(chan verdict)
	var mu sync.Mutex
	states := make([]verdict, len(list))
	for i := range states {
		states[i].health = model.HealthStarting
		if before == model.HealthHealthy {
			states[i].health = before
		}
	}
	for i, l := range list {
		wg.Go(func() {
			s := newProbeState(*l.probe, time.Now(), before)
			for !l.probe.Once || s.health != model.HealthHealthy {
				select {
				case <-ctx.Done():
					return
				case <-time.After(s.next(time.Now())):
				}
				if w.isPaused(l.id) {
					continue
				}
				output, err := w.probe(ctx, p, l.task, l.id, l.probe, s.probe.Timeout)
				if ctx.Err() != nil {
					return
				}
				if err != nil {
					output = err.Error()
				}
				mu.Lock()
				states[i] = verdict{health: s.result(time.Now(), err == nil), output: output}
				v := worst(states)
				mu.Unlock()
				select {
				case out <- v:
				case <-ctx.Done():
					return
				}
			}
		})
	}
	return out
}

func worst(states []verdict) verdict {
	rank := map[model.Health]int{model.HealthHealthy: 0, model.HealthStarting: 1, model.HealthUnhealthy: 2}
	out := states[0]
	for _, s := range states[1:] {
		if rank[s.health] > rank[out.health] {
			out = s
		}
	}
	return out
}

// probe asks a task once. A nil error is a pass.
func (w *worker) probe(ctx context.Context, p *prepared, t *model.TaskSpec, id string, probe *model.Probe, timeout time.Duration) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	var output string
	var err error
	switch {
	case len(probe.Exec) == 0 && probe.Shell == "" && p.template.NoNetwork:
		return "", errors.New("the instance has no network through which it could be asked")
	case len(probe.Exec) > 0:
		output, err = w.probeExec(ctx, t, id, probe.Exec)
	case probe.Shell != "":
		output, err = w.probeExec(ctx, t, id, []string{"/bin/sh", "-c", probe.Shell})
	case probe.HTTP != nil:
		output, err = w.probeHTTP(ctx, p, probe.HTTP)
	case probe.GRPC != nil:
		output, err = w.probeGRPC(ctx, p, probe.GRPC)
	case probe.TCPPort > 0 || probe.TCPPortOf > 0:
		var c net.Conn
		c, err = new(net.Dialer).DialContext(ctx, "tcp", w.addressOf(p, probe.Host, p.portOf(probe.TCPPortOf, probe.TCPPort)))
		if err == nil {
			c.Close()
		}
	default:
		return "", errors.New("the probe says nothing to do")
	}
	if err != nil && errors.Is(ctx.Err(), context.DeadlineExceeded) {
		err = fmt.Errorf("probe took longer than %s", timeout)
	}
	return output, err
}

// probeOutputLimit is how much of a probe's output is kept, in bytes.
const probeOutputLimit = 1024

func (w *worker) probeExec(ctx context.Context, t *model.TaskSpec, id string, argv []string) (string, error) {
	var buf limitedBuffer
	code, err := w.agent.Drivers[driverName(t)].Exec(ctx, id, driver.ExecSpec{Args: argv}, driver.Streams{Stdout: &buf, Stderr: &buf})
	output := strings.TrimSpace(buf.String())
	if err != nil {
		return output, err
	}
	if code != 0 {
		if output == "" {
			output = strings.Join(argv, " ")
		}
		return output, fmt.Errorf("%s (exit code %d)", output, code)
	}
	return output, nil
}

func (w *worker) probeAddress(p *prepared, port int) string { return w.addressOf(p, "", port) }

// addressOf is a port of the instance, unless another host is named.
func (w *worker) addressOf(p *prepared, host string, port int) string {
	switch {
	case host != "":
	case p.address.IsValid():
		host = p.address.String()
	default:
		host = "127.0.0.1"
	}
	return net.JoinHostPort(host, strconv.Itoa(port))
}

func (w *worker) probeHTTP(ctx context.Context, p *prepared, h *model.HTTPProbe) (string, error) {
	scheme := strings.ToLower(h.Scheme)
	if scheme == "" {
		scheme = "http"
	}
	url := scheme + "://" + w.addressOf(p, h.Host, p.portOf(h.PortOf, h.Port)) + "/" + strings.TrimPrefix(h.Path, "/")
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return "", err
	}
	req.Close = true
	for _, line := range h.Headers {
		name, value, _ := strings.Cut(line, ": ")
		if strings.EqualFold(name, "Host") {
			req.Host = value
		}
		req.Header.Add(name, value)
	}
	// A probe asks whether the task answers, not who it is.
	transport := &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, DisableKeepAlives: true}
	resp, err := transport.RoundTrip(req)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	passes := resp.StatusCode >= 200 && resp.StatusCode < 400
	if len(h.Codes) > 0 {
		passes = slices.Contains(h.Codes, resp.StatusCode)
	}
	if !passes {
		return "", fmt.Errorf("GET %s answered %s", url, resp.Status)
	}
	return resp.Status, nil
}

// limitedBuffer keeps the first bytes written to it and accepts the rest.
type limitedBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (b *limitedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if room := probeOutputLimit - b.buf.Len(); room > 0 {
		b.buf.Write(p[:min(room, len(p))])
	}
	return len(p), nil
}

func (b *limitedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}
