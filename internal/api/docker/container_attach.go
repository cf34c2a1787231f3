package docker

import (
	"context"
	"io"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/moby/moby/api/types/container"
	"golang.org/x/net/websocket"

	"github.com/tutti-run/tutti/internal/driver"
	"github.com/tutti-run/tutti/internal/fault"
)

// attachWait is how long an attached client may wait for the container to be started.
const attachWait = time.Hour

func (a *API) containerAttach(w http.ResponseWriter, r *request) error {
	at, keys, err := a.attaching(r)
	if err != nil {
		return err
	}
	tty := at.b.spec().TTY
	conn, err := hijack(w, r, mediaOf(r, tty))
	if err != nil {
		return err
	}
	defer conn.end()
	ctx, cancel := context.WithCancel(r.lifetime)
	defer cancel()
	go WatchCut(ctx, conn.Conn, cancel)
	at.out = &frames{w: conn, raw: tty}
	at.attach(ctx, conn, keys, cancel)
	return nil
}

// containerAttachSocket is the same over a WebSocket: both outputs as they come, without frames.
func (a *API) containerAttachSocket(w http.ResponseWriter, r *request) error {
	at, keys, err := a.attaching(r)
	if err != nil {
		return err
	}
	if !strings.EqualFold(r.Header.Get("Upgrade"), "websocket") {
		return fault.New(fault.Invalid, "attaching by WebSocket begins with the header Upgrade: websocket")
	}
	websocket.Server{Handler: func(conn *websocket.Conn) {
		conn.PayloadType = websocket.BinaryFrame
		ctx, cancel := context.WithCancel(r.lifetime)
		defer cancel()
		defer conn.Close()
		at.out = &frames{w: conn, raw: true}
		in := &cutReader{r: conn, cut: cancel}
		if !r.flag("stdin") {
			go func() { _, _ = io.Copy(io.Discard, in) }() // it ends with the connection
		}
		at.attach(ctx, in, keys, cancel)
	}}.ServeHTTP(w, r.Request)
	return nil
}

// cutReader says when there is no more to read.
type cutReader struct {
	r   io.Reader
	cut func()
}

func (c *cutReader) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	if err != nil {
		c.cut()
	}
	return n, err
}

// attaching reads who wants to be attached to what, and by which keys they leave again.
func (a *API) attaching(r *request) (*attached, []byte, error) {
	b, err := a.box(r)
	if err != nil {
		return nil, nil, err
	}
	keys, err := detachKeys(r.query.Get("detachKeys"))
	if err != nil {
		return nil, nil, err
	}
	if b.state() == container.StatePaused {
		return nil, nil, fault.New(fault.Conflict, "container %s is paused, unpause the container before attach", b.id)
	}
	return &attached{api: a, r: r, b: b, stdout: r.flag("stdout"), stderr: r.flag("stderr")}, keys, nil
}

// attach passes on what is asked for, until the container, the client or the context ends.
func (at *attached) attach(ctx context.Context, conn io.Reader, keys []byte, detached func()) {
	if at.r.flag("logs") && at.b.instance != nil {
		_ = at.log(ctx, at.b, false) // what cannot be read is not there
	}
	if !at.r.flag("stream") {
		return
	}
	if at.r.flag("stdin") && at.b.spec().Stdin {
		at.stdin = conn
		tty := at.b.spec().TTY
		if tty {
			at.stdin = &detachReader{r: conn, keys: keys, detached: detached}
		}
		if tty || at.b.made == nil || !at.b.made.Config.StdinOnce { // its input goes on when this client's ends
			at.stdin = &leavingReader{at.stdin, detached}
		}
	}
	if err := at.follow(ctx); err != nil && ctx.Err() == nil {
		at.api.Log.Debug("attached client", "container", at.b.id, "error", err)
	}
}

// attached is a client attached to a container.
type attached struct {
	api            *API
	r              *request
	b              *box
	stdin          io.Reader
	stdout, stderr bool
	out            *frames
	wrote          bool
}

// follow passes the streams of the present run on, or of the next one if nothing runs.
func (at *attached) follow(ctx context.Context) error {
	b, fromStart := at.b, false
	size, closeTerminal := at.api.terminals.open(b.id)
	defer closeTerminal()
	if !b.running() {
		before := b.runKey()
		fromStart = true
		wait, cancel := context.WithTimeout(ctx, attachWait)
		err := at.api.await(wait, b.id, func(now *box) bool {
			if now != nil && now.runKey() != before && now.settled() {
				b = now
				return true
			}
			return now == nil
		})
		cancel()
		if err != nil {
			return err
		}
		if b == at.b {
			return nil // removed before it was started
		}
	}
	s := driver.Streams{Stdin: at.stdin, Resize: size, FromStart: fromStart}
	if at.stdout {
		s.Stdout = at.noting(at.out.stream(stdout))
	}
	if at.stderr && !b.spec().TTY {
		s.Stderr = at.noting(at.out.stream(stderr))
	}
	err := at.api.Core.Attach(ctx, at.r.who, b.instance.ID, b.spec().Name, s)
	if err != nil && !at.wrote && fromStart && ctx.Err() == nil {
		return at.log(ctx, b, true) // it had ended before we came
	}
	return err
}

func (at *attached) noting(w io.Writer) io.Writer {
	return writerFunc(func(p []byte) (int, error) { at.wrote = true; return w.Write(p) })
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(p []byte) (int, error) { return f(p) }

// log writes what is kept of the container's output; of the latest run only, if so asked.
func (at *attached) log(ctx context.Context, b *box, latest bool) error {
	o := driver.LogOptions{Tail: -1}
	if started, _ := b.times(); latest {
		o.Since = started
	}
	return at.api.Core.TaskLogs(ctx, at.r.who, b.instance.ID, b.spec().Name, o, func(e driver.LogEntry) error {
		n, want := byte(stdout), at.stdout
		if e.Stream == "stderr" {
			n, want = stderr, at.stderr
		}
		if !want {
			return nil
		}
		_, err := at.out.stream(n).Write(e.Line)
		return err
	})
}

func (a *API) containerResize(w http.ResponseWriter, r *request) error {
	b, err := a.box(r)
	if err != nil {
		return err
	}
	size, err := sizeOf(r)
	if err != nil {
		return err
	}
	if !b.running() {
		return fault.New(fault.Conflict, "container %s is not running", b.id)
	}
	if !a.terminals.resize(b.id, size) { // nobody is attached through this host
		sizes := make(chan driver.Size, 1)
		sizes <- size
		ctx, cancel := context.WithTimeout(r.Context(), 300*time.Millisecond)
		defer cancel()
		_ = a.Core.Attach(ctx, r.who, b.instance.ID, b.spec().Name, driver.Streams{Resize: sizes})
	}
	return done(w, http.StatusOK)
}

func sizeOf(r *request) (driver.Size, error) {
	rows, err1 := strconv.ParseUint(r.query.Get("h"), 10, 16)
	cols, err2 := strconv.ParseUint(r.query.Get("w"), 10, 16)
	if err1 != nil || err2 != nil {
		return driver.Size{}, fault.New(fault.Invalid, "invalid resize height or width: %q, %q", r.query.Get("h"), r.query.Get("w"))
	}
	return driver.Size{Rows: int(rows), Cols: int(cols)}, nil
}

func (a *API) containerLogs(w http.ResponseWriter, r *request) error {
	b, err := a.box(r)
	if err != nil {
		return err
	}
	o, err := logOptions(r)
	if err != nil {
		return err
	}
	if l := b.spec().Log; l != nil && l.None {
		return fault.New(fault.Unsupported, "configured logging driver does not support reading")
	}
	tty := b.spec().TTY
	w.Header().Set("Content-Type", mediaOf(r, tty))
	w.WriteHeader(http.StatusOK)
	out := &logWriter{frames: frames{w: w, raw: tty}, logRequest: o, flush: http.NewResponseController(w).Flush}
	_ = out.flush()
	if b.instance == nil || b.instance.NodeID == "" {
		return nil
	}
	if err := a.Core.TaskLogs(r.Context(), r.who, b.instance.ID, b.spec().Name, o.LogOptions, out.entry); err != nil && r.Context().Err() == nil && !fault.Is(err, fault.Unavailable) {
		a.Log.Debug("log of a container ended", "container", b.id, "error", err)
	}
	return nil
}

// logRequest is which lines of a log are wanted, and how.
type logRequest struct {
	driver.LogOptions
	stdout, stderr, timestamps, details bool
}

func logOptions(r *request) (logRequest, error) {
	o := logRequest{stdout: r.flag("stdout"), stderr: r.flag("stderr"), timestamps: r.flag("timestamps"), details: r.flag("details")}
	if !o.stdout && !o.stderr {
		return o, fault.New(fault.Invalid, "Bad parameters: you must choose at least one stream")
	}
	var err error
	if o.Since, err = readTime(r.query.Get("since"), time.Now()); err != nil {
		return o, err
	}
	if o.Until, err = readTime(r.query.Get("until"), time.Now()); err != nil {
		return o, err
	}
	o.Follow, o.Tail = r.flag("follow"), -1
	if n, err := strconv.Atoi(r.query.Get("tail")); err == nil && n >= 0 {
		o.Tail = n
	}
	return o, nil
}

// logWriter writes log entries as frames.
type logWriter struct {
	frames
	logRequest
	flush func() error
}

// stamp is how the Engine writes the time of a line.
const stamp = "2006-01-02T15:04:05.000000000Z07:00"

func (l *logWriter) entry(e driver.LogEntry) error { return l.line(e, "") }

func (l *logWriter) line(e driver.LogEntry, details string) error {
	n := byte(stdout)
	if e.Stream == "stderr" {
		n = stderr
	}
	if n == stdout && !l.stdout || n == stderr && !l.stderr {
		return nil
	}
	line := e.Line
	if l.details {
		line = append([]byte(details+" "), line...)
	}
	if l.timestamps {
		line = append([]byte(e.Time.UTC().Format(stamp)+" "), line...)
	}
	if _, err := l.stream(n).Write(line); err != nil {
		return err
	}
	return l.flush()
}
