package docker

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/moby/moby/api/types/container"
	"golang.org/x/sys/unix"

	"github.com/tutti-run/tutti/internal/fault"
	"github.com/tutti-run/tutti/internal/model"
	"github.com/tutti-run/tutti/internal/store"
)

func (a *API) containerStart(w http.ResponseWriter, r *request) error {
	if c := r.query.Get("checkpoint"); c != "" {
		return notHonoured("--checkpoint", c)
	}
	b, err := a.box(r)
	if err != nil {
		return err
	}
	if b.running() {
		return done(w, http.StatusNotModified)
	}
	if b.made == nil {
		return fault.New(fault.Unsupported, "container %s belongs to the service %s, which starts it anew: scale or update that", b.name, dockerName(&b.workload.Meta))
	}
	if err := a.start(r, b); err != nil {
		return err
	}
	return done(w, http.StatusNoContent)
}

// unplacedFor is how long a container may wait for a node before its start is given up.
const unplacedFor = 5 * time.Second

// start starts a container and waits until it runs, or has run, or cannot.
func (a *API) start(r *request, b *box) error {
	if err := a.joined(b); err != nil {
		return err
	}
	before := b.runKey()
	if err := a.Core.Start(r.Context(), r.who, b.workload.ID); err != nil {
		return err
	}
	var after *box
	var reason string
	for {
		ctx, cancel := context.WithTimeout(r.Context(), unplacedFor)
		err := a.await(ctx, b.id, func(now *box) bool {
			after = now
			if now == nil || now.instance == nil {
				return now == nil
			}
			reason = ""
			if now.instance.NodeID == "" {
				reason = now.instance.Reason
			}
			fresh := now.runKey() != before
			return fresh && now.settled() || !fresh && now.instance.Status.State.Final() && now.instance.Starts >= now.workload.Starts
		})
		cancel()
		switch {
		case err == nil:
			return startError(after)
		case r.Context().Err() != nil || !errors.Is(err, context.DeadlineExceeded):
			return err
		case reason != "":
			now := time.Duration(0)
			if err := a.Core.Stop(context.WithoutCancel(r.Context()), r.who, b.workload.ID, &now); err != nil {
				return err
			}
			return fault.New(fault.Conflict, "no node can run container %s: %s", b.name, reason)
		}
	}
}

// startError says why a container did not start; nil when it did. The words that clients look for
// to tell why are the Engine's.
func startError(b *box) error {
	if b == nil {
		return nil // it has run, and was to be removed then
	}
	code, message := b.exit()
	if message == "" || !b.ended() {
		return nil
	}
	path := ""
	if spec := b.spec(); len(spec.Entrypoint) > 0 {
		path = spec.Entrypoint[0]
	} else if len(spec.Args) > 0 {
		path = spec.Args[0]
	}
	switch code {
	case 127:
		return fault.New(fault.Invalid, "failed to create task for container: exec: %q: executable file not found in $PATH: %s", path, message)
	case 126:
		return fault.New(fault.Invalid, "failed to create task for container: exec: %q: permission denied: %s", path, message)
	}
	return fault.New(fault.Internal, "failed to create task for container: %s", message)
}

// within reads how many seconds a container has to end: nil leaves that to the container, a
// negative number is without end.
func within(r *request) (*time.Duration, error) {
	text := r.query.Get("t")
	if text == "" {
		return nil, nil
	}
	n, err := strconv.Atoi(text)
	if err != nil {
		return nil, fault.New(fault.Invalid, "t=%s is no number of seconds", text)
	}
	d := time.Duration(n) * time.Second
	if n < 0 {
		d = 365 * 24 * time.Hour
	}
	return &d, nil
}

func (a *API) containerStop(w http.ResponseWriter, r *request) error {
	b, err := a.box(r)
	if err != nil {
		return err
	}
	grace, err := within(r)
	if err != nil {
		return err
	}
	if !b.running() {
		return done(w, http.StatusNotModified)
	}
	if grace, err = a.byItsSignal(r, b, grace); err != nil {
		return err
	}
	if err := a.stop(r, b, grace); err != nil {
		return err
	}
	return done(w, http.StatusNoContent)
}

// byItsSignal has a container end by the signal that a request names, if it does, in place of its own, and returns how
// long it has for what is left of that: no time, once it was sent.
func (a *API) byItsSignal(r *request, b *box, grace *time.Duration) (*time.Duration, error) {
	text := r.query.Get("signal")
	if text == "" || !b.running() {
		return grace, nil
	}
	n, err := signalNumber(text)
	if err != nil {
		return nil, err
	}
	if err := a.Core.Signal(r.Context(), r.who, b.instance.ID, b.spec().Name, n); err != nil {
		return nil, err
	}
	if grace == nil {
		grace = &b.template.StopGrace
	}
	ctx, cancel := context.WithTimeout(r.Context(), *grace)
	defer cancel()
	key := b.runKey()
	_ = a.await(ctx, b.id, func(now *box) bool { return now == nil || now.runKey() != key || !now.running() })
	return new(time.Duration), nil
}

// stop ends a container and waits for its end. One of a service is replaced by the service.
func (a *API) stop(r *request, b *box, grace *time.Duration) error {
	if b.made != nil {
		if err := a.Core.Stop(r.Context(), r.who, b.workload.ID, grace); err != nil {
			return err
		}
		return a.await(r.Context(), b.id, func(now *box) bool { return now == nil || now.ended() })
	}
	key := b.runKey()
	over := func(now *box) bool { return now == nil || now.runKey() != key || !now.running() }
	if over(a.boxByID(a.snapshot(), b.id)) {
		return nil
	}
	if err := a.Core.Signal(r.Context(), r.who, b.instance.ID, b.spec().Name, int(unix.SIGTERM)); err != nil {
		return err
	}
	if grace == nil {
		grace = &b.template.StopGrace
	}
	ctx, cancel := context.WithTimeout(r.Context(), *grace)
	defer cancel()
	if a.await(ctx, b.id, over) == nil {
		return nil
	}
	if err := a.Core.Signal(r.Context(), r.who, b.instance.ID, b.spec().Name, int(unix.SIGKILL)); err != nil {
		return err
	}
	return a.await(r.Context(), b.id, over)
}

func signalNumber(text string) (int, error) {
	if n, err := strconv.Atoi(text); err == nil && n > 0 && n < 65 {
		return n, nil
	}
	upper := strings.ToUpper(text)
	if !strings.HasPrefix(upper, "SIG") {
		upper = "SIG" + upper
	}
	if n := unix.SignalNum(upper); n != 0 {
		return int(n), nil
	}
	return 0, fault.New(fault.Invalid, "invalid signal: %s", text)
}

func (a *API) containerKill(w http.ResponseWriter, r *request) error {
	b, err := a.box(r)
	if err != nil {
		return err
	}
	signal := int(unix.SIGKILL)
	if s := r.query.Get("signal"); s != "" {
		if signal, err = signalNumber(s); err != nil {
			return err
		}
	}
	if !b.running() {
		return fault.New(fault.Conflict, "cannot kill container: %s: container %s is not running", r.vars["name"], b.id)
	}
	if signal == int(unix.SIGKILL) && b.made != nil {
		now := time.Duration(0) // and it stays ended, whatever its restart policy says
		err = a.stop(r, b, &now)
	} else {
		err = a.Core.Signal(r.Context(), r.who, b.instance.ID, b.spec().Name, signal)
	}
	if err != nil {
		return err
	}
	return done(w, http.StatusNoContent)
}

func (a *API) containerRestart(w http.ResponseWriter, r *request) error {
	b, err := a.box(r)
	if err != nil {
		return err
	}
	grace, err := within(r)
	if err != nil {
		return err
	}
	if grace, err = a.byItsSignal(r, b, grace); err != nil {
		return err
	}
	if b.made == nil {
		if err := a.stop(r, b, grace); err != nil {
			return err
		}
		return done(w, http.StatusNoContent)
	}
	if grace != nil && b.running() && !b.workload.RemoveWhenEnded {
		if err := a.stop(r, b, grace); err != nil {
			return err
		}
	}
	if b = a.boxByID(a.snapshot(), b.id); b == nil {
		return fault.New(fault.NotFound, "No such container: %s", r.vars["name"])
	}
	if err := a.start(r, b); err != nil {
		return err
	}
	return done(w, http.StatusNoContent)
}

func (a *API) containerRename(w http.ResponseWriter, r *request) error {
	b, err := a.box(r)
	if err != nil {
		return err
	}
	name := strings.TrimPrefix(r.query.Get("name"), "/")
	switch {
	case name == "":
		return fault.New(fault.Invalid, "Neither old nor new names may be empty")
	case !containerName.MatchString(name):
		return fault.New(fault.Invalid, "Invalid container name (%s), only [a-zA-Z0-9][a-zA-Z0-9_.-] are allowed", name)
	case name == b.name:
		return fault.New(fault.Invalid, "Renaming a container with the same name as its current name")
	case b.made == nil:
		return fault.New(fault.Unsupported, "container %s belongs to the service %s, whose name it has", b.name, dockerName(&b.workload.Meta))
	}
	full := b.workload.Application + "/" + b.workload.Name
	for w := range store.List[*model.Workload](a.snapshot()) {
		if slices.Contains(w.Template.Shared().Joins(), full) {
			return fault.New(fault.Unsupported, "container %s shares what %s has, and knows it by its name: it cannot be renamed meanwhile", dockerName(&w.Meta), b.name)
		}
	}
	if err := a.Core.Rename(r.Context(), r.who, b.workload.ID, name); err != nil {
		if fault.Is(err, fault.Conflict) {
			return fault.New(fault.Conflict, `Error when allocating new name: Conflict. The container name "/%s" is already in use. You have to remove (or rename) that container to be able to reuse that name.`, name)
		}
		return err
	}
	return done(w, http.StatusNoContent)
}

func (a *API) containerWait(w http.ResponseWriter, r *request) error {
	b, err := a.box(r)
	if err != nil {
		return err
	}
	condition := container.WaitCondition(r.query.Get("condition"))
	switch condition {
	case "", container.WaitConditionNotRunning, container.WaitConditionNextExit, container.WaitConditionRemoved:
	default:
		return fault.New(fault.Invalid, "invalid condition: %q", condition)
	}
	began := b.runKey()
	if b.running() {
		began = "" // the run that is under way is the one to wait for
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(http.StatusOK)
	_ = http.NewResponseController(w).Flush() // the client starts the container only then
	last := b
	err = a.await(r.Context(), b.id, func(now *box) bool {
		if now == nil {
			return true
		}
		last = now
		over := now.ended() || now.state() == container.StateRestarting
		switch condition {
		case container.WaitConditionRemoved:
			return false
		case container.WaitConditionNextExit:
			return over && now.runKey() != began
		}
		return !now.running() && (now.state() != container.StateCreated || now.workload.Suspended)
	})
	if err != nil {
		return nil // the client is gone
	}
	code, message := last.exit()
	resp := container.WaitResponse{StatusCode: int64(code)}
	if message != "" {
		resp.Error = &container.WaitExitError{Message: message}
	}
	_ = json.NewEncoder(w).Encode(resp)
	return nil
}

// goneWithin is how long the removal of a container is waited for.
const goneWithin = 20 * time.Second

func (a *API) containerRemove(w http.ResponseWriter, r *request) error {
	if r.flag("link") {
		return notHonoured("rm --link", true)
	}
	b, err := a.box(r)
	if err != nil {
		return err
	}
	if b.running() && !r.flag("force") {
		return fault.New(fault.Conflict, `cannot remove container "/%s": container is %s: stop the container before removing or force remove`, b.name, b.state())
	}
	if b.made == nil {
		if !b.running() {
			return done(w, http.StatusNoContent) // its service forgets it in time
		}
		now := time.Duration(0)
		if err := a.stop(r, b, &now); err != nil {
			return err
		}
		return done(w, http.StatusNoContent)
	}
	if err := a.removeBox(r, b); err != nil {
		return err
	}
	return done(w, http.StatusNoContent)
}

func (a *API) removeBox(r *request, b *box) error {
	now := time.Duration(0)
	if err := a.Core.RemoveWorkload(r.Context(), r.who, b.workload.ID, &now); err != nil {
		if fault.Is(err, fault.NotFound) {
			return fault.New(fault.NotFound, "No such container: %s", r.vars["name"])
		}
		return err
	}
	ctx, cancel := context.WithTimeout(r.Context(), goneWithin)
	defer cancel()
	_ = a.Core.AwaitGone(ctx, r.who, b.workload.ID) // a node that is away forgets it later
	return nil
}

func (a *API) containerPrune(w http.ResponseWriter, r *request) error {
	f, err := readFilters(r, "until", "label", "label!")
	if err != nil {
		return err
	}
	until, err := f.until()
	if err != nil {
		return err
	}
	report := container.PruneReport{ContainersDeleted: []string{}}
	list := slices.DeleteFunc(a.boxes(a.snapshot()), func(b *box) bool {
		return b.made == nil || b.running() || b.state() == container.StateCreated && !b.workload.Suspended ||
			!f.labels("label", b.labels()) || !f.notLabels("label!", b.labels()) || !until.IsZero() && !b.created().Before(until)
	})
	sizes, err := a.sizes(r, list, nil)
	if err != nil {
		return err
	}
	for _, b := range list {
		if err := a.removeBox(r, b); err != nil {
			return err
		}
		report.SpaceReclaimed += uint64((summary{}).with(sizes, b).SizeRw)
		report.ContainersDeleted = append(report.ContainersDeleted, b.id)
	}
	slices.Sort(report.ContainersDeleted)
	return answer(w, http.StatusOK, report)
}
