package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/tutti-run/tutti/internal/api/native"
	"github.com/tutti-run/tutti/internal/fault"
	"github.com/tutti-run/tutti/internal/model"
)

const (
	pollInterval = 100 * time.Millisecond
	// proof is how long instances that no probe looks at must go on running before they count as
	// ready, and longProof the same after one had to be restarted.
	proof     = time.Second
	longProof = 5 * time.Second
	// defaultPatience is how long a change may take.
	defaultPatience = 5 * time.Minute
)

// goal is what a workload is to come to.
type goal struct {
	id, name, revision string
}

// outcome is how far a workload came.
type outcome struct {
	ID       string          `json:"id"`
	Name     string          `json:"name"`
	State    string          `json:"state"` // a native.Standing, rolledBack, removed or changed
	Ready    string          `json:"ready,omitempty"`
	Detail   string          `json:"detail,omitempty"`
	standing native.Standing // progressing and waiting: not ended
	unproven time.Duration   // how long it must stay so
}

// ended reports whether it will not change by itself.
func (o *outcome) ended() bool {
	return o.standing != native.StandingProgressing && o.standing != native.StandingWaiting
}

func (o *outcome) row() row {
	r := row{name: o.Name, state: spaced(o.State), count: o.Ready, detail: o.Detail}
	switch {
	case o.standing.Good():
		r.mark = markGood
	case o.standing == native.StandingFailed:
		r.mark = markBad
	case o.standing == native.StandingWaiting:
		r.mark = markWaiting
	}
	return r
}

// judge says how far a workload is from its goal; v is nil when it is gone.
func judge(want goal, v *native.WorkloadView) outcome {
	o := outcome{ID: want.id, Name: want.name, standing: native.StandingFailed}
	if v == nil {
		o.State, o.Detail = "removed", "somebody removed it meanwhile"
		return o
	}
	o.Ready = readyText(&v.Progress, v.Type)
	rollout := &v.Status.Rollout
	if v.RevisionID != want.revision {
		switch rollout.State {
		case model.RolloutRolledBack:
			o.State, o.Detail = "rolledBack", strings.TrimPrefix(rollout.Message, "rolled back: ")
		case model.RolloutRolling:
			o.State, o.Detail, o.standing = "rollingBack", v.Detail, native.StandingProgressing
		case model.RolloutFailed:
			o.State, o.Detail = string(native.StandingFailed), rollout.Message
		default:
			o.State, o.Detail = "changed", "somebody changed it again meanwhile"
		}
		return o
	}
	o.State, o.Detail, o.standing = string(v.Standing), v.Detail, v.Standing
	if v.Standing.Good() && v.Ready > 0 && !v.Probed && rollout.State == model.RolloutNone {
		o.unproven = proof
		if v.Restarts > 0 {
			o.unproven = longProof
		}
	}
	return o
}

// finished reports whether waiting longer is of no use: all have ended, or those that have not
// wait for something that failed.
func finished(list []outcome) bool {
	failed := slices.ContainsFunc(list, func(o outcome) bool { return o.standing == native.StandingFailed })
	for i := range list {
		if !list[i].ended() && (list[i].standing != native.StandingWaiting || !failed) {
			return false
		}
	}
	return true
}

// waiter waits for workloads to reach their goals. It outlives the server that it asks.
type waiter struct {
	g      *globals
	client *native.Client
	goals  []goal
	board  board
	// renewed is whether client is the waiter's own, in place of the one that it was given.
	renewed bool
	looks   int
}

// application is the one that all goals belong to, "" when there are several.
func (w *waiter) application() string {
	common := ""
	for i, g := range w.goals {
		app, _ := model.SplitFullName(g.name)
		if i > 0 && app != common {
			return ""
		}
		common = app
	}
	return common
}

// goalsOf notes what the workloads should come to: the revisions that they have now.
func goalsOf(list []native.WorkloadView, ids ...string) []goal {
	var out []goal
	for i := range list {
		w := &list[i]
		if len(ids) == 0 || slices.Contains(ids, w.ID) {
			out = append(out, goal{id: w.ID, name: w.FullName(), revision: w.RevisionID})
		}
	}
	return out
}

// run waits until finished, or until ctx is done, and returns how far the workloads came. The
// error is only about waiting; what became of the workloads is in the outcomes.
func (w *waiter) run(ctx context.Context) ([]outcome, error) {
	var last []outcome
	var since time.Time // when all was as it should be
	tick := time.NewTicker(pollInterval)
	defer tick.Stop()
	for {
		list, err := w.look(ctx)
		switch {
		case err == nil:
			last = list
			w.board.show(rowsOf(list))
		case ctx.Err() != nil:
			return last, ctx.Err()
		case !fault.Is(err, fault.Unavailable):
			return last, err
		}
		if err == nil && finished(list) {
			if since.IsZero() {
				since = time.Now()
			}
			if time.Since(since) >= proofOf(list) {
				return list, nil
			}
		} else {
			since = time.Time{}
		}
		select {
		case <-ctx.Done():
			return last, ctx.Err()
		case <-tick.C:
		}
	}
}

func rowsOf(list []outcome) []row {
	out := make([]row, len(list))
	for i := range list {
		out[i] = list[i].row()
	}
	return out
}

func proofOf(list []outcome) (longest time.Duration) {
	for i := range list {
		longest = max(longest, list[i].unproven)
	}
	return longest
}

// lookTimeout is how long a server may take to say how workloads are, and recheck after how many
// looks it must prove that it still knows what it is talking about.
const (
	lookTimeout = 3 * time.Second
	recheck     = 20
)

// look asks how the workloads are. When the server does not answer any more, or has lost the
// others, the next look is at another one.
func (w *waiter) look(ctx context.Context) ([]outcome, error) {
	limited, cancel := context.WithTimeout(ctx, lookTimeout)
	defer cancel()
	if w.looks++; w.looks%recheck == 0 {
		if p, err := w.client.Ping(limited); err == nil && p.Leader == "" {
			w.reconnect(limited)
		}
	}
	views, err := w.client.Workloads(limited, w.application())
	switch {
	case fault.Is(err, fault.NotFound):
		views, err = nil, nil // the application is gone, and its workloads with it
	case errors.Is(err, context.DeadlineExceeded) && ctx.Err() == nil:
		err = fault.New(fault.Unavailable, "%s does not answer within %s", w.client.Socket(), lookTimeout)
	}
	if err != nil {
		if fault.Is(err, fault.Unavailable) {
			w.reconnect(ctx)
		}
		return nil, err
	}
	var out []outcome
	for _, want := range w.goals {
		n := slices.IndexFunc(views, func(v native.WorkloadView) bool { return v.ID == want.id })
		if n < 0 {
			out = append(out, judge(want, nil))
		} else {
			out = append(out, judge(want, &views[n]))
		}
	}
	return out, nil
}

func (w *waiter) reconnect(ctx context.Context) {
	c, err := w.g.connect(ctx)
	if err != nil {
		return // the next look tries again
	}
	w.close()
	w.client, w.renewed = c, true
}

// close gives up the connection, if it is the waiter's own.
func (w *waiter) close() {
	if w.renewed {
		w.client.Close()
	}
}

// settle waits for a change, says why where it did not come to be, and returns an error then.
func (w *waiter) settle(ctx context.Context, patience time.Duration, what string, errOut io.Writer) ([]outcome, error) {
	defer w.close()
	limited, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	list, err := w.run(limited)
	switch {
	case ctx.Err() != nil:
		fmt.Fprintf(errOut, "tutti: no longer waiting; what was asked for goes on, and `tutti status` tells how it is\n")
		return list, ctx.Err()
	case errors.Is(err, context.DeadlineExceeded):
		err = fault.New(fault.Unavailable, "%s did not come to an end within %s; it goes on", what, patience)
	case err == nil:
		err = shortfall(list, what)
	}
	if err != nil {
		w.explain(ctx, list, errOut)
	}
	return list, err
}

// shortfall is the error that outcomes amount to, nil when all is well.
func shortfall(list []outcome, what string) error {
	var bad []string
	for i := range list {
		if o := &list[i]; !o.standing.Good() {
			bad = append(bad, fmt.Sprintf("%s is %s", o.Name, stateWords(o.State)))
		}
	}
	if len(bad) == 0 {
		return nil
	}
	return fault.New(fault.Internal, "%s did not succeed: %s", what, strings.Join(bad, ", "))
}

// stateWords says in a sentence how something is that is not as it should be.
func stateWords(state string) string {
	switch state {
	case "rollingBack":
		return "still being rolled back"
	case string(native.StandingProgressing):
		return "not ready"
	}
	return spaced(state)
}

// spaced writes a state as words.
func spaced(state string) string {
	switch state {
	case "rolledBack":
		return "rolled back"
	case "rollingBack":
		return "rolling back"
	}
	return state
}

// explain prints what the cluster says about each workload that is not well.
func (w *waiter) explain(ctx context.Context, list []outcome, errOut io.Writer) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), pingTimeout)
	defer cancel()
	paint := paintFor(errOut)
	for i := range list {
		o := &list[i]
		if o.standing.Good() || o.standing == native.StandingWaiting {
			continue
		}
		if o.Detail != "" {
			fmt.Fprintf(errOut, "%s %s: %s\n", paint.bad("✗"), o.Name, o.Detail)
		}
		e, err := w.client.Explain(ctx, o.ID)
		if err != nil {
			continue // it is gone, or the server is: the sentence at the end says so
		}
		io.WriteString(errOut, explanationText(paint, &e)) // nowhere to complain
	}
}
