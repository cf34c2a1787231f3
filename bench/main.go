// Command bench measures Tutti beside a peer, in the same run on the same machine.
//
//	go run -tags seccomp . schedule|store|tables|million|sessions|net|start|replicas|standing|docker|marathon|kube|all [-brief]
//
// Every figure is printed on standard output as one JSON object a line, with the peer's and with
// what was counted; a ratio above 1 means that Tutti is better. Progress is on standard error.
// What a group needs (etcd, Docker Engine) needs.sh installs.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"

	"github.com/tutti-run/tutti/bench/internal/apps"
	"github.com/tutti-run/tutti/bench/internal/holding"
	"github.com/tutti-run/tutti/bench/internal/kube"
	"github.com/tutti-run/tutti/bench/internal/million"
	"github.com/tutti-run/tutti/bench/internal/netting"
	"github.com/tutti-run/tutti/bench/internal/placing"
	"github.com/tutti-run/tutti/bench/internal/report"
	"github.com/tutti-run/tutti/bench/internal/starting"
	"github.com/tutti-run/tutti/bench/internal/tables"
	"github.com/tutti-run/tutti/bench/internal/writing"
	"github.com/tutti-run/tutti/internal/driver/oci"
)

// group is a set of measurements that are run together.
type group struct {
	name string
	run  func(ctx context.Context, sheet *report.Sheet, brief bool) error
	part bool // of the group store, which runs it too
}

var groups = []group{
	{name: "schedule", run: placing.Run},
	{name: "store", run: store},
	{name: "tables", run: tables.Run},
	{name: "million", run: million.Run, part: true},
	{name: "sessions", run: holding.Run, part: true},
	{name: "net", run: netting.Run},
	{name: "start", run: starting.Run},
	{name: "replicas", run: starting.Replicas},
	{name: "standing", run: starting.Standing},
	{name: "docker", run: starting.API},
	{name: "marathon", run: apps.Run},
	{name: "kube", run: kube.Run},
}

// store measures the state engine: writes beside etcd, a large state, and the sessions of nodes.
func store(ctx context.Context, sheet *report.Sheet, brief bool) error {
	if err := writing.Run(ctx, sheet, brief); err != nil {
		return err
	}
	if err := million.Run(ctx, sheet, brief); err != nil {
		return err
	}
	return holding.Run(ctx, sheet, brief)
}

func main() {
	if oci.Reexec(os.Args) || placing.Reexec(os.Args) || starting.Reexec(os.Args) || holding.Reexec(os.Args) ||
		million.Reexec(os.Args) || tables.Reexec(os.Args) || netting.Reexec(os.Args) {
		return
	}
	wanted, brief, err := parse(os.Args[1:])
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(2)
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // a second interrupt ends the program at once
	sheet := report.New(os.Stdout, os.Stderr)
	for _, g := range wanted {
		if err := g.run(ctx, sheet, brief); err != nil {
			fmt.Fprintf(os.Stderr, "bench: %s: %v\n", g.name, err)
			os.Exit(1)
		}
	}
}

// parse takes groups and -brief in any order.
func parse(args []string) (wanted []group, brief bool, err error) {
	var names []string
	for _, g := range groups {
		names = append(names, g.name)
	}
	for _, a := range args {
		i := slices.Index(names, a)
		switch {
		case a == "-brief" || a == "--brief":
			brief = true
		case a == "all":
			for _, g := range groups {
				if g.name != "sessions" { // a part of store
					wanted = append(wanted, g)
				}
			}
		case i >= 0:
			wanted = append(wanted, groups[i])
		default:
			return nil, false, fmt.Errorf("%q is no group: %s and all are", a, strings.Join(names, ", "))
		}
	}
	if len(wanted) == 0 {
		return nil, false, fmt.Errorf("say what to measure: %s or all, and -brief for a quick look", strings.Join(names, ", "))
	}
	return wanted, brief, nil
}
