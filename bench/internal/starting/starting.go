// Package starting measures how long it takes until containers run: one after the other, many at
// once, and as replicas of a service. The peer is Docker Engine.
//
// Both sides run in namespaces of their own on the same machine, so that neither Docker's bridge
// and packet filter nor anything else is left on it or gets in the way of others.
package starting

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/tutti-run/tutti/bench/internal/report"
)

// runner runs containers of the image, each with a network namespace and an address of its own.
type runner interface {
	// start returns once the container was started; from is when it was asked for.
	start(ctx context.Context, name string) error
	// told returns what the container's program, which has ended, told the time to be.
	told(ctx context.Context, name string) (time.Time, error)
	remove(ctx context.Context, name string) error
}

// plan says how many containers to start.
type plan struct {
	inTurn int
	atOnce int
	many   int // at once, too
	rounds int // of those at once; the middle one counts
}

func planOf(brief bool) plan {
	if brief {
		return plan{inTurn: 10, atOnce: 20, many: 40, rounds: 1}
	}
	return plan{inTurn: 200, atOnce: 50, many: 200, rounds: 3}
}

// ofPeer is the plan for the peer, which takes more than half a second for each container, also for many at once: fewer of
// those in turn, and one round of the others, so that the whole stays within minutes.
func (p plan) ofPeer() plan {
	p.inTurn, p.rounds = min(p.inTurn, 60), 1
	return p
}

// Run measures single containers.
func Run(ctx context.Context, sheet *report.Sheet, brief bool) error {
	return measure(ctx, sheet, job{Group: "start", Brief: brief})
}

// Replicas measures a service of many replicas.
func Replicas(ctx context.Context, sheet *report.Sheet, brief bool) error {
	return measure(ctx, sheet, job{Group: "replicas", Brief: brief})
}

// Standing measures what a node and the containers that run on it cost while nothing happens.
func Standing(ctx context.Context, sheet *report.Sheet, brief bool) error {
	return measure(ctx, sheet, job{Group: "standing", Brief: brief})
}

func measure(ctx context.Context, sheet *report.Sheet, j job) error {
	if err := needDocker(); err != nil {
		return err
	}
	tutti := os.Getenv("TUTTI")
	if tutti == "" {
		tutti = "../bin/tutti"
	}
	path, err := filepath.Abs(tutti)
	if err == nil {
		_, err = os.Stat(path)
	}
	if err != nil {
		return fmt.Errorf("find the program to be measured (`make build` makes it; $TUTTI may name another): %w", err)
	}
	j.Tutti = path
	return apart(ctx, sheet, j)
}

func needDocker() error {
	for _, program := range []string{"dockerd", "containerd", "runc"} {
		if _, err := exec.LookPath(program); err != nil {
			return fmt.Errorf("%s, of the peer, is not installed: bench/needs.sh start installs it", program)
		}
	}
	return nil
}

// work does a job within the namespaces.
func work(ctx context.Context, sheet *report.Sheet, j job) (err error) {
	var own standing
	if j.Group == "standing" { // alone on the machine
		if own, err = tuttiStanding(ctx, sheet, j); err != nil {
			return fmt.Errorf("what stands by Tutti: %w", err)
		}
	}
	sheet.Say("starting Docker Engine")
	e, err := startEngine(ctx, j.Dir)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, e.stop()) }()
	if err := e.importRoot(ctx, rootDir(j.Dir)); err != nil {
		return fmt.Errorf("give Docker Engine its image: %w", err)
	}
	if j.Group == "replicas" {
		return compareReplicas(ctx, sheet, j, e)
	}
	if j.Group == "standing" {
		return compareStanding(ctx, sheet, j, own, e)
	}
	if j.Group == "docker" {
		return compareAPIs(ctx, sheet, j, e)
	}
	t, err := newTutti(ctx, j)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, t.close()) }()
	return compareStarts(ctx, sheet, planOf(j.Brief), t, e)
}

func compareStarts(ctx context.Context, sheet *report.Sheet, p plan, t *tutti, e *engine) error {
	var own, peer outcome
	var err error
	theirs := p.ofPeer()
	sheet.Say("%d containers in turn, and %d and %d at once, by Tutti", p.inTurn, p.atOnce, p.many)
	if own, err = p.measure(ctx, t); err != nil {
		return fmt.Errorf("run containers by Tutti: %w", err)
	}
	sheet.Say("the same by Docker Engine, %d in turn and one round of those at once", theirs.inTurn)
	if peer, err = theirs.measure(ctx, e); err != nil {
		return fmt.Errorf("run containers by Docker Engine: %w", err)
	}
	counted := fmt.Sprintf("%d in turn and the middle one of %d rounds at once (peer: %d, 1); ", p.inTurn, p.rounds, theirs.inTurn) + "from the request until the program in the container tells the time; own network namespace with an address, overlayfs root, default seccomp profile and capabilities; " +
		"Tutti: overlay, image store and driver as its agent uses them, without the cluster's decision; Docker Engine: create and start through its API, default bridge"
	add := func(name, unit string, own, peer float64) error {
		return sheet.Add(report.Row{Name: name, Value: own, Unit: unit, Peer: e.name, PeerValue: peer, Counted: counted})
	}
	return errors.Join(
		add("start/in-turn/p50", "ms", report.Percentile(own.inTurn, 0.5), report.Percentile(peer.inTurn, 0.5)),
		add("start/in-turn/p99", "ms", report.Percentile(own.inTurn, 0.99), report.Percentile(peer.inTurn, 0.99)),
		add(fmt.Sprintf("start/%d-at-once/last", p.atOnce), "ms", report.Percentile(own.atOnce, 0.5), report.Percentile(peer.atOnce, 0.5)),
		add(fmt.Sprintf("start/%d-at-once/last", p.many), "ms", report.Percentile(own.many, 0.5), report.Percentile(peer.many, 0.5)),
	)
}

// outcome is how long containers took: each of those in turn, the last of each lot at once.
type outcome struct{ inTurn, atOnce, many []time.Duration }

func (p plan) measure(ctx context.Context, r runner) (o outcome, err error) {
	for i := range p.inTurn + 1 {
		took, err := lot(ctx, r, "single-"+strconv.Itoa(i), 1)
		if err != nil {
			return o, err
		}
		if i > 0 { // the first one finds nothing warm
			o.inTurn = append(o.inTurn, took)
		}
	}
	for i := range p.rounds {
		took, err := lot(ctx, r, "lot-"+strconv.Itoa(i), p.atOnce)
		if err != nil {
			return o, err
		}
		o.atOnce = append(o.atOnce, took)
	}
	if p.many == 0 {
		return o, nil
	}
	for i := range p.rounds {
		took, err := lot(ctx, r, "many-"+strconv.Itoa(i), p.many)
		if err != nil {
			return o, err
		}
		o.many = append(o.many, took)
	}
	return o, nil
}

// lot starts containers at once, tells after how long the last of them ran, and removes them.
func lot(ctx context.Context, r runner, prefix string, size int) (last time.Duration, err error) {
	ctx, cancel := context.WithTimeout(ctx, time.Minute+time.Duration(size)*2*time.Second)
	defer cancel()
	name := func(i int) string { return prefix + "-" + strconv.Itoa(i) }
	began := time.Now()
	g, gctx := errgroup.WithContext(ctx)
	for i := range size {
		g.Go(func() error { return r.start(gctx, name(i)) })
	}
	if err := g.Wait(); err != nil {
		return 0, err
	}
	for i := range size {
		at, err := r.told(ctx, name(i))
		if err != nil {
			return 0, err
		}
		last = max(last, at.Sub(began))
	}
	for i := range size {
		if err := r.remove(ctx, name(i)); err != nil {
			return 0, err
		}
	}
	return last, nil
}

// parseTime reads what the containers' program prints.
func parseTime(text string) (time.Time, error) {
	n, err := strconv.ParseInt(text, 10, 64)
	if err != nil {
		return time.Time{}, fmt.Errorf("the container printed %q instead of the time", text)
	}
	return time.Unix(0, n), nil
}
