package native

import (
	"bufio"
	"context"
	"encoding/json"
	"net/http"
	"sync"
	"time"

	"github.com/tutti-run/tutti/internal/core"
	"github.com/tutti-run/tutti/internal/driver"
	"github.com/tutti-run/tutti/internal/model"
	"github.com/tutti-run/tutti/internal/wire"
)

// Paths of streams.
const (
	pathLogs   = "/v1/logs"    // ?ref ?follow ?tail ?since ?until → core.LogLine a line
	pathNetLog = "/v1/net/log" // ?ref ?follow ?tail ?since ?until → core.AccessLine a line
	pathEvents = "/v1/events"  // ?follow ?since → model.Event a line
	pathExec   = "/v1/exec"    // both ways: see exec.go
)

// delivery is when lines are sent.
type delivery int

const (
	atEnd    delivery = iota // or when there are many
	together                 // flushInterval after they were added, at most
	atOnce                   // as soon as they are added, and together only what is added while something is being sent
)

// flushInterval is how long a line may wait for others to travel with it.
const flushInterval = 20 * time.Millisecond

// followed is how logs and the like are sent.
func followed(follow bool) delivery {
	if follow {
		return together
	}
	return atEnd
}

func (s *server) streamRoutes(mux *http.ServeMux) {
	mux.HandleFunc("GET "+pathLogs, s.logs)
	mux.HandleFunc("GET "+pathNetLog, s.netLog)
	mux.HandleFunc("GET "+pathEvents, s.events)
	mux.HandleFunc("POST "+pathExec, s.exec)
}

func (s *server) logs(w http.ResponseWriter, r *http.Request) {
	q := query{r.URL.Query()}
	o, err := logOptions(q)
	if err != nil {
		s.fail(w, r, err)
		return
	}
	s.stream(w, r, followed(o.Follow), func(ctx context.Context, line func(any) error) error {
		return s.Core.Logs(ctx, callerOf(r), q.Get("ref"), o, func(l core.LogLine) error { return line(l) })
	})
}

func (s *server) netLog(w http.ResponseWriter, r *http.Request) {
	q := query{r.URL.Query()}
	o, err := logOptions(q)
	if err != nil {
		s.fail(w, r, err)
		return
	}
	s.stream(w, r, followed(o.Follow), func(ctx context.Context, line func(any) error) error {
		return s.Core.AccessLog(ctx, callerOf(r), q.Get("ref"), o, func(l core.AccessLine) error { return line(l) })
	})
}

func logOptions(q query) (o driver.LogOptions, err error) {
	if o.Follow, err = q.flag("follow"); err != nil {
		return o, err
	}
	if o.Tail, err = q.number("tail", -1); err != nil {
		return o, err
	}
	if o.Since, err = q.time("since"); err != nil {
		return o, err
	}
	o.Until, err = q.time("until")
	return o, err
}

func (s *server) events(w http.ResponseWriter, r *http.Request) {
	q := query{r.URL.Query()}
	follow, err := q.flag("follow")
	if err != nil {
		s.fail(w, r, err)
		return
	}
	since, err := q.time("since")
	if err != nil {
		s.fail(w, r, err)
		return
	}
	s.stream(w, r, followed(follow), func(ctx context.Context, line func(any) error) error {
		return s.Core.Events(ctx, callerOf(r), since, follow, func(e *model.Event) error { return line(e) })
	})
}

// stream answers with what produce calls line with, one JSON value a line. An error before the
// first line is an answer of its own; a later one is the last line.
func (s *server) stream(w http.ResponseWriter, r *http.Request, when delivery, produce func(ctx context.Context, line func(any) error) error) {
	ctx, cancel := context.WithCancel(r.Context())
	defer cancel()
	out := newLines(w)
	switch when {
	case together:
		defer wire.Every(ctx, flushInterval, out.flushPending)()
	case atOnce:
		defer out.sendAll(ctx)()
	}
	err := produce(ctx, out.add)
	if err != nil && r.Context().Err() != nil {
		return // the client is gone
	}
	switch {
	case err != nil && !out.started():
		s.fail(w, r, err)
	case err != nil:
		_ = out.add(bodyOf(err)) // a failure to write shows at the other end
		fallthrough
	default:
		_ = out.flush()
	}
}

// lines writes JSON values, one a line, and sends many at a time.
type lines struct {
	mu    sync.Mutex
	w     http.ResponseWriter
	buf   *bufio.Writer
	enc   *json.Encoder
	began bool
	added chan struct{} // has a value when something was added
}

func newLines(w http.ResponseWriter) *lines {
	buf := bufio.NewWriterSize(w, 64<<10)
	return &lines{w: w, buf: buf, enc: json.NewEncoder(buf), added: make(chan struct{}, 1)}
}

func (l *lines) begin() {
	if !l.began {
		l.began = true
		l.w.Header().Set("Content-Type", mediaLines)
		l.w.WriteHeader(http.StatusOK)
	}
}

// add appends a value. It blocks while the client does not keep up.
func (l *lines) add(v any) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.begin()
	select {
	case l.added <- struct{}{}:
	default:
	}
	return l.enc.Encode(v)
}

// sendAll sends whatever is added at once until stop is called, ctx is done or it cannot be sent. Stop returns when nothing is being sent
// any more.
func (l *lines) sendAll(ctx context.Context) (stop func()) {
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			select {
			case <-ctx.Done():
				return
			case <-l.added:
				if l.flushPending() != nil {
					return
				}
			}
		}
	})
	return func() { cancel(); wg.Wait() }
}

func (l *lines) started() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.began
}

// flush sends what was added, and the head of the answer in any case.
func (l *lines) flush() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.begin()
	if err := l.buf.Flush(); err != nil {
		return err
	}
	return http.NewResponseController(l.w).Flush()
}

// flushPending sends what was added, if anything was.
func (l *lines) flushPending() error {
	if !l.pending() {
		return nil
	}
	return l.flush()
}

func (l *lines) pending() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.Buffered() > 0
}
