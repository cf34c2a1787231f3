package agent

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"time"

	"github.com/tutti-run/tutti/internal/driver"
	"github.com/tutti-run/tutti/internal/model"
)

// finding is what watching a run of a separate task found out: whether it is ready, or why it is to
// end.
type finding struct {
	ready     bool
	unhealthy string
	grace     *time.Duration
}

// watch asks a run by its probes until ctx is done, and tells what changes; the first that it tells is
// that the run is up.
func (l *taskLife) watch(ctx context.Context, id string, adopt bool, out chan<- finding) {
	tell := func(f finding) bool {
		select {
		case out <- f:
			return true
		case <-ctx.Done():
			return false
		}
	}
	began := time.Now()
	st, _ := l.s.w.reported()
	wasUp, wasReady := false, false
	for i := range st.Tasks {
		if adopt && st.Tasks[i].Name == l.t.Name {
			wasUp, wasReady = st.Tasks[i].Up, st.Tasks[i].Ready
		}
	}
	if p := l.t.Startup; p != nil && !wasUp {
		passed, output := false, ""
		l.ask(ctx, id, p, began, unknown, func(ok bool, said string) bool {
			passed, output = ok, said
			return false
		})
		if ctx.Err() != nil {
			return
		}
		if !passed {
			tell(finding{unhealthy: "it did not come up: " + output, grace: p.Grace})
			return
		}
	}
	if !tell(finding{ready: l.t.Readiness == nil || wasReady}) {
		return
	}
	ended := make(chan struct{})
	alive := 0
	if p := l.t.Liveness; p != nil {
		alive++
		go func() {
			defer func() { ended <- struct{}{} }()
			l.ask(ctx, id, p, began, healthy, func(ok bool, said string) bool {
				if !ok {
					tell(finding{unhealthy: "unhealthy: " + said, grace: p.Grace})
				}
				return ok
			})
		}()
	}
	if p := l.t.Readiness; p != nil {
		alive++
		go func() {
			defer func() { ended <- struct{}{} }()
			before := unhealthy
			if wasReady {
				before = healthy
			}
			l.ask(ctx, id, p, began, before, func(ok bool, _ string) bool { return tell(finding{ready: ok}) })
		}()
	}
	for range alive {
		<-ended
	}
}

// standing is what a probe has found out so far.
type standing int

const (
	unknown standing = iota
	healthy
	unhealthy
)

// ask asks by a probe until ctx is done or each returns false, which is called whenever enough answers
// in a row say something else than what held before.
func (l *taskLife) ask(ctx context.Context, id string, p *model.Probe, began time.Time, holds standing, each func(ok bool, output string) bool) {
	interval, timeout := max(p.Interval, 10*time.Millisecond), p.Timeout
	if timeout <= 0 {
		timeout = time.Second
	}
	needed := map[standing]int{healthy: max(p.Passes, 1), unhealthy: max(p.Retries, 1)}
	wait := max(p.Delay-time.Since(began), 0)
	// Until it passes for the first time it is asked often, so that it serves as soon as it can;
	// failures count one per interval all the same.
	quick := 50 * time.Millisecond
	soon := holds != healthy && needed[healthy] == 1
	var counted time.Time
	says, row := unknown, 0
	for {
		select {
		case <-ctx.Done():
			return
		case <-time.After(wait):
		}
		wait = interval
		if l.s.w.isPaused(id) {
			continue
		}
		output, err := l.s.w.probe(ctx, l.s.p, l.t, id, p, timeout)
		if ctx.Err() != nil {
			return
		}
		found := healthy
		if err != nil {
			found, output = unhealthy, err.Error()
		}
		if soon && found == unhealthy {
			wait, quick = min(quick, interval), 2*quick
			if time.Since(counted) < interval*3/4 {
				continue
			}
			counted = time.Now()
		}
		if found == holds {
			says, row = unknown, 0
			continue
		}
		if found != says {
			says, row = found, 0
		}
		if row++; row < needed[found] {
			continue
		}
		holds, says, row, soon = found, unknown, 0, false
		if !each(found == healthy, output) {
			return
		}
	}
}

// doHook does what is to be done at a moment of a task's life.
func (w *worker) doHook(ctx context.Context, p *prepared, t *model.TaskSpec, id string, h *model.Hook) error {
	switch {
	case len(h.Exec) > 0:
		_, err := w.probeExec(ctx, t, id, h.Exec)
		return err
	case h.HTTP != nil:
		_, err := w.probeHTTP(ctx, p, h.HTTP)
		return err
	case h.TCPPort > 0:
		c, err := new(net.Dialer).DialContext(ctx, "tcp", w.probeAddress(p, h.TCPPort))
		if err == nil {
			c.Close()
		}
		return err
	}
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(h.Sleep):
		return nil
	}
}

// probeGRPC asks a service of the gRPC health protocol: a message with the service's name in field 1,
// and back one whose field 1 is 1 when it serves.
func (w *worker) probeGRPC(ctx context.Context, p *prepared, g *model.GRPCProbe) (string, error) {
	transport := &http.Transport{Protocols: new(http.Protocols), DisableKeepAlives: true}
	transport.Protocols.SetUnencryptedHTTP2(true)
	defer transport.CloseIdleConnections()
	var message []byte
	if g.Service != "" {
		message = append([]byte{0x0a, byte(len(g.Service))}, g.Service...)
	}
	frame := append([]byte{0, 0, 0, 0, byte(len(message))}, message...)
	url := "http://" + w.probeAddress(p, g.Port) + "/grpc.health.v1.Health/Check"
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, url, bytes.NewReader(frame))
	if err != nil {
		return "", err
	}
	req.Header.Set("Content-Type", "application/grpc")
	req.Header.Set("TE", "trailers")
	resp, err := transport.RoundTrip(req)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, 4096))
	if err != nil {
		return "", err
	}
	code := resp.Trailer.Get("Grpc-Status")
	if code == "" {
		code = resp.Header.Get("Grpc-Status")
	}
	if code != "0" {
		return "", fmt.Errorf("the gRPC health check of port %d ended with status %q %s", g.Port, code, resp.Trailer.Get("Grpc-Message")+resp.Header.Get("Grpc-Message"))
	}
	if len(body) < 7 || body[5] != 0x08 || body[6] != 1 {
		return "", fmt.Errorf("the service %q at port %d does not serve", g.Service, g.Port)
	}
	return "serving", nil
}

// lastWordsLimit is how much of a task's last words is kept, in bytes.
const lastWordsLimit = 4096

func (w *worker) lastWordsFile(t *model.TaskSpec) string {
	return filepath.Join(w.filesDir(), t.Name+".last")
}

// emptyLastWords makes the file of a task's last words empty for its next run.
func (w *worker) emptyLastWords(t *model.TaskSpec, adopt bool) error {
	if t.LastWords.Path == "" || adopt {
		return nil
	}
	f, err := os.OpenFile(w.lastWordsFile(t), os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o666)
	if err != nil {
		return err
	}
	return errors.Join(f.Chmod(0o666), f.Close())
}

// lastWords is what a task said as it ended.
func (w *worker) lastWords(t *model.TaskSpec, st *driver.Status) string {
	if t.LastWords.Path == "" {
		return ""
	}
	if f, err := os.Open(w.lastWordsFile(t)); err == nil {
		data, err := io.ReadAll(io.LimitReader(f, lastWordsLimit))
		f.Close()
		if err == nil && len(data) > 0 {
			return string(data)
		}
	}
	if !t.LastWords.FromLog || st.ExitCode == 0 && st.Error == "" {
		return ""
	}
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	var out []byte
	err := w.agent.Drivers[driverName(t)].Logs(ctx, st.ID, driver.LogOptions{Tail: 80}, func(e driver.LogEntry) error {
		out = append(out, e.Line...)
		return nil
	})
	if err != nil {
		return "its log could not be read: " + err.Error()
	}
	const most = 2048
	return string(out[max(0, len(out)-most):])
}
