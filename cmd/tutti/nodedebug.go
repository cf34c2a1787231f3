package main

import (
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/tutti-run/tutti/internal/api/native"
	"github.com/tutti-run/tutti/internal/wire"
)

func debugCommand(g *globals) *cobra.Command {
	return &cobra.Command{
		Use: "debug NODE", Short: "Have a node say how it is: what is left, what its kernel can do, its clock, its process",
		Long: "Have a node say how it is: what is left of its memory, disk and process numbers, what of its kernel works\n" +
			"and what is missing without the rest, how far its clock is from the server's, and how Tutti's process is there.",
		Example: "  tutti node debug node-2\n  tutti node debug node-2 -o json",
		Args:    arguments(1, 1, "a node"), ValidArgsFunction: g.complete(1, nodeNames),
		RunE: func(cmd *cobra.Command, args []string) error {
			return g.with(cmd.Context(), func(c *native.Client) error {
				d, err := c.NodeDebug(cmd.Context(), args[0])
				if err != nil {
					return err
				}
				return g.print(cmd.OutOrStdout(), d, func() *table { return debugTable(paintFor(cmd.OutOrStdout()), &d) })
			})
		},
	}
}

// mostAhead is how far clocks may be apart before it is said: certificates and logs go by them.
const mostAhead = time.Second

func debugTable(paint painter, d *wire.NodeDebug) *table {
	t := newTable("WHAT", "STATE", "SAYS")
	add := func(what string, good bool, says string) {
		state := paint.good("good")
		if !good {
			state = paint.bad("look")
		}
		t.add(what, state, says)
	}
	add("version", true, d.Version+", Linux "+d.Kernel)
	short := map[string]bool{}
	for _, what := range d.Pressure {
		short[what] = true
	}
	for _, l := range d.Left {
		text := bytesText
		if l.What == "pids" || l.What == "inodes" {
			text = func(n int64) string { return strconv.FormatInt(n, 10) }
		}
		add(l.What, !short[l.What], fmt.Sprintf("%s of %s left", text(l.Left), text(l.Of)))
	}
	apart := d.Clock.Ahead.Abs() - d.Clock.Within
	add("clock", d.Clock.InStep && apart < mostAhead, fmt.Sprintf("%s ahead of the server's, give or take %s; %s",
		d.Clock.Ahead.Round(time.Millisecond), d.Clock.Within.Round(time.Millisecond), d.Clock.Says))
	for _, f := range d.Features {
		add(f.Name, f.Works, f.Says)
	}
	p := &d.Process
	add("process", true, fmt.Sprintf("%d, for %s; %s resident, %s of them in use, %d goroutines, %d open files, score when memory is short %d",
		p.PID, ageText(p.Running), bytesText(p.MemoryBytes), bytesText(int64(p.HeapBytes)), p.Goroutines, p.Files, p.OOMScore))
	add("instances", true, fmt.Sprintf("%d held; the network state of revision %d is in force", d.Instances, d.Network))
	add("servers", len(d.Servers) > 0, strings.Join(d.Servers, ", "))
	return t
}
