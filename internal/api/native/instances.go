package native

import (
	"context"
	"encoding/json"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"github.com/tutti-run/tutti/internal/core"
	"github.com/tutti-run/tutti/internal/driver"
	"github.com/tutti-run/tutti/internal/fault"
	"github.com/tutti-run/tutti/internal/model"
	"github.com/tutti-run/tutti/internal/wire"
)

// Paths for programs that follow and reach single instances.
const (
	pathWatch    = "/v1/watch"     // → core.Seen a line
	pathTaskLogs = "/v1/logs/task" // ?instance ?task ?run ?follow ?tail ?since ?until → driver.LogEntry a line
	pathAttach   = "/v1/attach"    // both ways: StreamRequest, then as exec
	pathDial     = "/v1/dial"      // both ways: StreamRequest, then as exec
	pathEnd      = "/v1/workloads/remove"
	pathUnlead   = "/v1/services/remove"
	pathUnpolicy = "/v1/policies/remove"
	pathLabel    = "/v1/workloads/label"
	pathBound    = "/v1/workloads/bound"
)

// StreamRequest is the first line that a client sends who attaches to a task, or dials a port.
type StreamRequest struct {
	Instance string `json:"instance"` // ID
	Task     string `json:"task,omitempty"`
	Port     int    `json:"port,omitempty"`
	Stdin    bool   `json:"stdin,omitempty"`
	// FromStart is for attaching; see driver.Streams.
	FromStart bool `json:"fromStart,omitempty"`
}

// RemoveWorkload names a workload by its ID, and how long its tasks have to end by themselves.
type RemoveWorkload struct {
	ID                string `json:"id"`
	GraceMilliseconds *int64 `json:"graceMilliseconds,omitempty"`
	// Secrets, by ID, go with it.
	Secrets []string `json:"secrets,omitempty"`
}

func (s *server) instanceRoutes(mux *http.ServeMux) {
	mux.HandleFunc("GET "+pathWatch, func(w http.ResponseWriter, r *http.Request) {
		s.stream(w, r, atOnce, func(ctx context.Context, line func(any) error) error {
			return s.Core.Watch(ctx, callerOf(r), func(e core.Seen) error { return line(e) })
		})
	})
	mux.HandleFunc("GET "+pathTaskLogs, s.taskLogs)
	mux.HandleFunc("POST "+pathAttach, s.converse(func(ctx context.Context, who core.Caller, req StreamRequest, streams driver.Streams) error {
		streams.FromStart = req.FromStart
		return s.Core.Attach(ctx, who, req.Instance, req.Task, streams)
	}))
	mux.HandleFunc("POST "+pathDial, s.converse(func(ctx context.Context, who core.Caller, req StreamRequest, streams driver.Streams) error {
		return s.Core.Dial(ctx, who, req.Instance, req.Port, streams)
	}))
	mux.HandleFunc("POST "+pathUnlead, change(s, func(ctx context.Context, who core.Caller, req Ref) (done, error) {
		return done{}, s.Core.RemoveService(ctx, who, req.Ref)
	}))
	mux.HandleFunc("POST "+pathUnpolicy, change(s, func(ctx context.Context, who core.Caller, req Ref) (done, error) {
		return done{}, s.Core.RemovePolicy(ctx, who, req.Ref)
	}))
	mux.HandleFunc("POST "+pathLabel, change(s, func(ctx context.Context, who core.Caller, req LabelWorkload) (done, error) {
		return done{}, s.Core.LabelWorkload(ctx, who, req.ID, req.Labels)
	}))
	mux.HandleFunc("POST "+pathBound, change(s, func(ctx context.Context, who core.Caller, req BoundWorkload) (done, error) {
		return done{}, s.Core.BoundWorkload(ctx, who, req.ID, req.Tasks)
	}))
	mux.HandleFunc("POST "+pathEnd, change(s, func(ctx context.Context, who core.Caller, req RemoveWorkload) (done, error) {
		var within *time.Duration
		if req.GraceMilliseconds != nil {
			d := time.Duration(*req.GraceMilliseconds) * time.Millisecond
			within = &d
		}
		if err := s.Core.RemoveWorkload(ctx, who, req.ID, within); err != nil && !(fault.Is(err, fault.NotFound) && len(req.Secrets) > 0) {
			return done{}, err
		}
		for _, id := range req.Secrets {
			if err := s.Core.RemoveFile(ctx, who, model.KindSecret, id); err != nil {
				return done{}, err
			}
		}
		return done{}, nil
	}))
}

func (s *server) taskLogs(w http.ResponseWriter, r *http.Request) {
	q := query{r.URL.Query()}
	o, err := logOptions(q)
	if err == nil && q.Get("run") != "" {
		o.Run, err = strconv.Atoi(q.Get("run"))
		if err != nil {
			err = fault.New(fault.Invalid, "run=%q: the number of a run, -1 for the latest, or -2 for the one before, is accepted", q.Get("run"))
		}
	}
	if err != nil {
		s.fail(w, r, err)
		return
	}
	s.stream(w, r, followed(o.Follow), func(ctx context.Context, line func(any) error) error {
		return s.Core.TaskLogs(ctx, callerOf(r), q.Get("instance"), q.Get("task"), o, func(e driver.LogEntry) error { return line(e) })
	})
}

// converse serves what joins a client with something that runs.
func (s *server) converse(run func(ctx context.Context, who core.Caller, req StreamRequest, streams driver.Streams) error) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		in := json.NewDecoder(r.Body)
		in.DisallowUnknownFields()
		var req StreamRequest
		if err := in.Decode(&req); err != nil {
			s.fail(w, r, fault.New(fault.Invalid, "the request cannot be read: %w", err))
			return
		}
		s.both(w, r, in, req.Stdin, func(ctx context.Context, streams driver.Streams) (int, error) {
			return 0, run(ctx, callerOf(r), req, streams)
		})
	}
}

// both answers a request whose body goes on while the answer comes.
func (s *server) both(w http.ResponseWriter, r *http.Request, in *json.Decoder, stdin bool, run func(ctx context.Context, streams driver.Streams) (int, error)) {
	rc := http.NewResponseController(w)
	if err := rc.EnableFullDuplex(); err != nil {
		s.fail(w, r, fault.New(fault.Unsupported, "this needs HTTP/2: %w", err))
		return
	}
	out := newLines(w)
	if out.flush() != nil {
		return
	}
	start := wire.ExecStart{Stdin: stdin, Stdout: true, Stderr: true}
	receive := func(m *wire.ExecInput) error { return in.Decode(m) }
	send := func(o wire.ExecOutput) error { return out.send(o) }
	// The server closes the request's body when this returns, which ends the reading of it. A
	// failure to write shows at the other end.
	_ = wire.ServeExec(r.Context(), start, receive, send, run)
}

// Watch yields nodes, networks, services and instances, and their changes; see core.Core.Watch.
func (c *Client) Watch(ctx context.Context, yield func(core.Seen) error) error {
	return readLines(ctx, c, pathWatch, nil, yield)
}

// TaskLogs yields the log of a task of an instance; it ends as Logs does.
func (c *Client) TaskLogs(ctx context.Context, instance, task string, o driver.LogOptions, yield func(driver.LogEntry) error) error {
	q := url.Values{
		"instance": {instance}, "task": {task}, "run": {strconv.Itoa(o.Run)},
		"follow": {strconv.FormatBool(o.Follow)}, "tail": {strconv.Itoa(o.Tail)},
	}
	setTime(q, "since", o.Since)
	setTime(q, "until", o.Until)
	return readLines(ctx, c, pathTaskLogs, q, yield)
}

// Attach connects to the streams of a task; see driver.Driver.
func (c *Client) Attach(ctx context.Context, instance, task string, s driver.Streams) error {
	req := StreamRequest{Instance: instance, Task: task, Stdin: s.Stdin != nil, FromStart: s.FromStart}
	_, err := c.converse(ctx, pathAttach, req, s)
	return err
}

// Dial connects to a TCP port of an instance, as the instance would itself.
func (c *Client) Dial(ctx context.Context, instance string, port int, s driver.Streams) error {
	_, err := c.converse(ctx, pathDial, StreamRequest{Instance: instance, Port: port, Stdin: s.Stdin != nil}, s)
	return err
}

// RemoveService removes a service by its ID.
func (c *Client) RemoveService(ctx context.Context, id string) error {
	return postDone(ctx, c, pathUnlead, Ref{id})
}

// RemovePolicy removes a policy by its ID.
func (c *Client) RemovePolicy(ctx context.Context, id string) error {
	return postDone(ctx, c, pathUnpolicy, Ref{id})
}

// LabelWorkload gives a workload, by its ID, other labels.
type LabelWorkload struct {
	ID     string            `json:"id"`
	Labels map[string]string `json:"labels,omitempty"`
}

// LabelWorkload gives a workload other labels in place of those that it has.
func (c *Client) LabelWorkload(ctx context.Context, req LabelWorkload) error {
	return postDone(ctx, c, pathLabel, req)
}

// BoundWorkload bounds tasks of a workload, by its ID, anew.
type BoundWorkload struct {
	ID    string                  `json:"id"`
	Tasks map[string]model.Bounds `json:"tasks"` // by name
}

// BoundWorkload bounds tasks of a workload of one instance anew, while they run; see core.Core.BoundWorkload.
func (c *Client) BoundWorkload(ctx context.Context, req BoundWorkload) error {
	return postDone(ctx, c, pathBound, req)
}

// RemoveWorkload removes a workload; see core.Core.RemoveWorkload.
func (c *Client) RemoveWorkload(ctx context.Context, req RemoveWorkload) error {
	return postDone(ctx, c, pathEnd, req)
}

// converse sends a request, of which the body then goes on with input, and passes on what comes back.
func (c *Client) converse(ctx context.Context, path string, req any, streams driver.Streams) (int, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	body, pw := io.Pipe()
	defer pw.Close()
	// Once an answer has begun, the transport notices the end of ctx only when it has something to
	// send: this is what ends a read of the body that waits for that.
	defer context.AfterFunc(ctx, func() { pw.CloseWithError(context.Canceled) })()
	in := &inputLines{enc: json.NewEncoder(pw)}
	go func() { _ = in.send(req) }() // a failure shows in the answer
	resp, err := c.do(ctx, http.MethodPost, path, nil, body, mediaLines)
	if err != nil {
		return 0, err
	}
	defer resp.Body.Close()
	out := json.NewDecoder(resp.Body)
	return wire.DriveExec(ctx, streams,
		func(m wire.ExecInput) error { return in.send(m) },
		func(m *wire.ExecOutput) error { return out.Decode(m) })
}
