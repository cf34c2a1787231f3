package main

import (
	"context"
	"fmt"
	"io"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/tutti-run/tutti/internal/api/native"
	"github.com/tutti-run/tutti/internal/core"
	"github.com/tutti-run/tutti/internal/model"
)

func netCommand(g *globals) *cobra.Command {
	cmd := &cobra.Command{
		Use: "net", Short: "Look into the network between instances",
		Example: "  tutti net trace shop/web shop/db 5432\n  tutti net trace shop/web.1 192.0.2.7 443",
	}
	cmd.AddCommand(reachCommand(g, &cobra.Command{
		Use: "trace FROM TO [PORT[/PROTOCOL]]", Short: "Say, step by step, whether and how one end reaches another, and try it",
		Long: "Say, step by step, whether and how one end reaches another, and which rule stops it. The name is\n" +
			"looked up, and connections are made, from the first end's own network. Ends are instances,\n" +
			"workloads or addresses; the port is that inside the instance. The exit code is 1 if it does not\n" +
			"reach.",
		Example: "  tutti net trace shop/web shop/db 5432\n  tutti net trace shop/web.1 192.0.2.7 443",
	}, true))
	cmd.AddCommand(netMapCommand(g), netCountsCommand(g), netLogCommand(g))
	return cmd
}

func netMapCommand(g *globals) *cobra.Command {
	q := core.NetMapQuestion{}
	cmd := &cobra.Command{
		Use: "map [REF]", Short: "Show who talks to whom, and how much",
		Long: "Show who talks to whom, and how much: all nodes tell which connections there are for a while, and what\n" +
			"goes over them. With a reference only connections of what it covers. Nothing is counted while\n" +
			"nobody asks. JSON has the sums of each service besides.",
		Example: "  tutti net map\n  tutti net map shop/web --for 10s --instances\n  tutti net map -o json",
		Args:    arguments(0, 1, "at most one application, workload or instance"), ValidArgsFunction: g.complete(1, workloadNames, instanceNames),
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) == 1 {
				q.Ref = args[0]
			}
			return g.with(cmd.Context(), func(c *native.Client) error {
				m, err := c.NetMap(cmd.Context(), q)
				if err != nil {
					return err
				}
				for _, s := range m.Silent {
					fmt.Fprintln(cmd.ErrOrStderr(), "tutti: not known:", s)
				}
				return g.print(cmd.OutOrStdout(), m, func() *table { return netMapTable(&m) })
			})
		},
	}
	cmd.Flags().DurationVar(&q.For, "for", 0, "how long to watch, up to a minute; two seconds when nothing is said")
	cmd.Flags().BoolVar(&q.Instances, "instances", false, "each instance by itself")
	return cmd
}

func netMapTable(m *core.NetMap) *table {
	t := newTable("FROM", "TO", "VIA", "PORT", "OPEN", "BEGUN", "SENT", "RECEIVED")
	for _, e := range m.Edges {
		t.add(e.From, e.To, orDash(e.Via), fmt.Sprintf("%d/%s", e.Port, e.Protocol), fmt.Sprint(e.Open), fmt.Sprint(e.Begun), bytesText(int64(e.Sent)), bytesText(int64(e.Received)))
	}
	return t
}

func netCountsCommand(g *globals) *cobra.Command {
	nodes := false
	cmd := &cobra.Command{
		Use: "counts [REF]", Short: "Show what came to services so far",
		Long: "Show what came to services so far: connections and bytes by each virtual IP and published port since that\n" +
			"is there, and requests by routes since the ingress began. Connections are counted by the kernel where they come in,\n" +
			"whether they were answered or not. The path /metrics of the API has the same for Prometheus.",
		Example: "  tutti net counts\n  tutti net counts shop/web --nodes\n  tutti net counts -o json",
		Args:    arguments(0, 1, "at most one application or workload"), ValidArgsFunction: g.complete(1, workloadNames),
		RunE: func(cmd *cobra.Command, args []string) error {
			ref := strings.Join(args, "")
			return g.with(cmd.Context(), func(c *native.Client) error {
				counts, err := c.NetCounts(cmd.Context(), ref)
				if err != nil {
					return err
				}
				for _, s := range counts.Silent {
					fmt.Fprintln(cmd.ErrOrStderr(), "tutti: not known:", s)
				}
				return g.print(cmd.OutOrStdout(), counts, func() *table { return netCountsTable(counts.Services, nodes) })
			})
		},
	}
	cmd.Flags().BoolVar(&nodes, "nodes", false, "each node by itself")
	return cmd
}

// netCountsTable is what was counted, of all nodes together or of each.
func netCountsTable(list []core.ServiceCount, nodes bool) *table {
	titles := []string{"SERVICE", "ENTRANCE", "CONNECTIONS", "REQUESTS", "SENT", "RECEIVED"}
	if nodes {
		titles = append(titles, "NODE")
	}
	t := newTable(titles...)
	var sums []core.ServiceCount
	for _, c := range list { // in the order of services and entrances
		if last := len(sums) - 1; !nodes && last >= 0 && sums[last].Namespace == c.Namespace && sums[last].Service == c.Service && sums[last].Entrance == c.Entrance {
			s := &sums[last]
			s.Connections, s.Requests, s.Sent, s.Received = s.Connections+c.Connections, s.Requests+c.Requests, s.Sent+c.Sent, s.Received+c.Received
			continue
		}
		sums = append(sums, c)
	}
	for _, c := range sums {
		row := []string{c.Service, c.Entrance, fmt.Sprint(c.Connections), "-", bytesText(int64(c.Sent)), bytesText(int64(c.Received))}
		if c.Entrance == core.EntranceIngress {
			row = []string{c.Service, c.Entrance, "-", fmt.Sprint(c.Requests), "-", "-"}
		}
		if nodes {
			row = append(row, c.Node)
		}
		t.add(row...)
	}
	return t
}

func reachCommand(g *globals, cmd *cobra.Command, try bool) *cobra.Command {
	cmd.Args, cmd.ValidArgsFunction = arguments(2, 3, "two ends, and a port if there are several"), g.complete(2, workloadNames, instanceNames)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		q := core.ReachQuestion{From: args[0], To: args[1], Try: try}
		if len(args) == 3 {
			number, protocol, _ := strings.Cut(args[2], "/")
			n, err := strconv.Atoi(number)
			if err != nil {
				return usagef("%q is no port: give one such as 5432 or 53/udp", args[2])
			}
			q.Port, q.Protocol = n, protocol
		}
		return g.with(cmd.Context(), func(c *native.Client) error {
			r, err := c.Reach(cmd.Context(), q)
			if err != nil {
				return err
			}
			out := cmd.OutOrStdout()
			if g.structured() {
				err = g.print(out, r, nil)
			} else {
				_, err = io.WriteString(out, reachText(paintFor(out), &r))
			}
			if err == nil && !r.Reaches {
				err = exitCode(1)
			}
			return err
		})
	}
	return cmd
}

func reachText(paint painter, r *core.ReachAnswer) string {
	var b strings.Builder
	state := paint.good("reaches it")
	if !r.Reaches {
		state = paint.bad("does not reach it")
	}
	fmt.Fprintf(&b, "%s: %s\n", paint.bold(r.Question), state)
	for _, s := range r.Steps {
		mark := paint.good("✓")
		if !s.OK {
			mark = paint.bad("✗")
		}
		fmt.Fprintf(&b, "  %s %s %s\n", mark, paint.faint(fmt.Sprintf("%-10s", s.What)), s.Says)
	}
	for _, a := range r.Advice {
		fmt.Fprintf(&b, "%s %s\n", paint.faint("→"), a)
	}
	return b.String()
}

func policiesCommand(g *globals) *cobra.Command {
	cmd := &cobra.Command{Use: "policies", Short: "List which connections may begin", Example: "  tutti policies"}
	return lister(g, cmd, func(ctx context.Context, c *native.Client, _ []string) ([]model.Policy, error) {
		return c.Policies(ctx)
	}, policyTable)
}

func policyTable(_ painter, list []model.Policy) *table {
	t := newTable("NAME", "ABOUT", "NOTHING ELSE", "RULES")
	for i := range list {
		p := &list[i]
		var only, rules []string
		if p.IsolateIn {
			only = append(only, "in")
		}
		if p.IsolateOut {
			only = append(only, "out")
		}
		for j := range p.Rules {
			rules = append(rules, p.Rules[j].String())
		}
		t.add(p.FullName(), p.Subject.String(), orDash(strings.Join(only, ", ")), orDash(strings.Join(rules, "; ")))
	}
	return t
}
