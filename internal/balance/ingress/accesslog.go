package ingress

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/tutti-run/tutti/internal/balance/beside"
	"github.com/tutti-run/tutti/internal/driver"
	"github.com/tutti-run/tutti/internal/driver/tasklog"
	"github.com/tutti-run/tutti/internal/fault"
	"github.com/tutti-run/tutti/internal/wire"
)

const (
	accessRoom  = 4096            // lines that may wait for the disk
	accessBatch = 256             // lines that are written together
	accessText  = 2048            // bytes that a line has of what a client said: entries stay below 64 KB
	accessEnd   = 2 * time.Second // to write what waits, when the process ends
)

// accessLog writes down which requests were answered. Requests do not wait for it.
type accessLog struct {
	lines       chan accessed
	write       func([]driver.LogEntry) error
	stop, ended chan struct{}

	mu      sync.Mutex
	failed  string                  // what is wrong, and was said
	dropped map[string]*wire.Access // what is to be said of lines that are not written, by service ID
}

// accessed is a request of a service.
type accessed struct {
	serviceID string
	wire.Access
}

// openAccessLog returns a log in a directory, which is made with the first line. The streams in it are
// the IDs of services.
func openAccessLog(dir string) *accessLog {
	var to *tasklog.Writer
	return newAccessLog(func(list []driver.LogEntry) error {
		if to == nil {
			if err := os.MkdirAll(dir, 0o700); err != nil {
				return err
			}
			w, err := tasklog.Create(dir, nil)
			if err != nil {
				return err
			}
			to = w
		}
		return to.Append(list)
	})
}

func newAccessLog(write func([]driver.LogEntry) error) *accessLog {
	l := &accessLog{lines: make(chan accessed, accessRoom), write: write, stop: make(chan struct{}), ended: make(chan struct{}), dropped: map[string]*wire.Access{}}
	go l.run()
	return l
}

// record writes down an answer.
func (p *proxy) record(r *route, a *asked, status int, sent int64, began time.Time, took time.Duration) {
	l := p.access.Load()
	if l == nil {
		return
	}
	one := accessed{r.ServiceID, wire.Access{
		Time: began.UTC(), Service: r.Service, Host: cut(a.host), Client: a.client, User: cut(a.user), Method: cut(a.method), Target: cut(a.target), Secure: a.secure,
		Status: status, Bytes: sent, Milliseconds: float64(took.Microseconds()) / 1000, Instance: a.instance,
		UserAgent: cut(a.headers.Get("User-Agent")), Referer: cut(a.headers.Get("Referer")),
	}}
	select {
	case l.lines <- one:
	default:
		l.drop(&one, 1)
	}
}

// cut bounds what a client said, and keeps no more of it in memory.
func cut(s string) string {
	if len(s) > accessText {
		s = strings.Clone(s[:accessText])
	}
	return s
}

func (l *accessLog) drop(one *accessed, n uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.dropped[one.serviceID] == nil {
		l.dropped[one.serviceID] = &wire.Access{Service: one.Service}
	}
	l.dropped[one.serviceID].Dropped += n
}

// run writes until close; lines that come when there is no room are told of after those that were there.
func (l *accessLog) run() {
	defer close(l.ended)
	batch := make([]accessed, 0, accessBatch)
	for stopped := false; ; {
		batch = batch[:0]
		if !stopped {
			select {
			case one := <-l.lines:
				batch = append(batch, one)
			case <-l.stop:
				stopped = true
			}
		}
		for more := true; more && len(batch) < accessBatch; {
			select {
			case one := <-l.lines:
				batch = append(batch, one)
			default:
				more = false
			}
		}
		l.flush(batch)
		if stopped && len(batch) == 0 {
			return
		}
	}
}

func (l *accessLog) flush(batch []accessed) {
	l.mu.Lock()
	for id, d := range l.dropped {
		d.Time = time.Now().UTC()
		batch = append(batch, accessed{id, *d})
		delete(l.dropped, id)
	}
	l.mu.Unlock()
	list := make([]driver.LogEntry, 0, len(batch))
	for i := range batch {
		if text, err := json.Marshal(&batch[i].Access); err == nil { // which texts and numbers are always
			list = append(list, driver.LogEntry{Stream: batch[i].serviceID, Line: text})
		}
	}
	if len(list) == 0 {
		return
	}
	err := l.write(list)
	if !l.note(err) {
		return
	}
	for i := range batch {
		l.drop(&batch[i], max(1, batch[i].Dropped))
	}
}

// note keeps what came of writing, says what is wrong once, and reports whether something is.
func (l *accessLog) note(err error) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if err == nil {
		l.failed = ""
		return false
	}
	if l.failed != err.Error() {
		l.failed = err.Error()
		fmt.Fprintln(os.Stderr, "the access log cannot be written:", err)
	}
	return true
}

// accessState says what is wrong with the log; "ok" is nothing.
func (p *proxy) accessState() string {
	l := p.access.Load()
	if l == nil {
		return "ok"
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	return cmp.Or(l.failed, "ok")
}

// close writes what waits, and ends, as far as the disk allows.
func (l *accessLog) close() {
	close(l.stop)
	select {
	case <-l.ended:
	case <-time.After(accessEnd):
	}
}

// Access reads what this node's ingress wrote down; following ends with ctx. Without following it is an error, after
// what there is, that what came meanwhile cannot be written.
func (p *Process) Access(ctx context.Context, r wire.AccessRequest, yield func(driver.LogEntry) error) error {
	pick := func(serviceID string) bool { return r.All || slices.Contains(r.Services, serviceID) }
	err := tasklog.ReadStreams(ctx, p.Logs, r.Options, pick, func() bool { return false }, yield)
	if err != nil || r.Options.Follow {
		return err
	}
	if _, running := p.Running(); !running {
		return nil
	}
	if said, err := beside.Ask(ctx, p.Dir, "access"); err == nil && said != "ok" && said != "" {
		return fault.New(fault.Unavailable, "the access log cannot be written: %s", said)
	}
	return nil
}
