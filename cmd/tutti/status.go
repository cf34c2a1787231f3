package main

import (
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"github.com/tutti-run/tutti/internal/api/native"
	"github.com/tutti-run/tutti/internal/core"
)

func statusCommand(g *globals) *cobra.Command {
	return &cobra.Command{
		Use:     "status",
		Short:   "Say whether all is well and, if not, what to do",
		Long:    "Say on one screen whether all is well and, if not, what is wrong and what to do about it.\nThe exit code is 1 unless all is well.",
		Example: "  tutti status\n  tutti status -o json",
		Args:    noArguments(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return g.with(cmd.Context(), func(c *native.Client) error {
				s, err := c.Status(cmd.Context())
				if err != nil {
					return err
				}
				out := cmd.OutOrStdout()
				if g.structured() {
					err = g.print(out, s, nil)
				} else {
					_, err = io.WriteString(out, statusText(paintFor(out), &s))
				}
				if err == nil && !s.Healthy {
					err = exitCode(1)
				}
				return err
			})
		},
	}
}

func statusText(paint painter, s *core.ClusterStatus) string {
	var b strings.Builder
	if s.Healthy {
		fmt.Fprintf(&b, "%s %s\n\n", paint.good("●"), paint.bold("All is well."))
	} else {
		fmt.Fprintf(&b, "%s %s\n\n", paint.bad("●"), paint.bold(counted(len(s.Problems), "thing")+" to look at."))
	}
	row := func(name, format string, args ...any) {
		fmt.Fprintf(&b, "  %s %s\n", paint.faint(fmt.Sprintf("%-13s", name)), fmt.Sprintf(format, args...))
	}
	share := func(n, of int) string {
		text := fmt.Sprintf("%d of %d", n, of)
		if n < of {
			return paint.bad(text)
		}
		return text
	}
	leader := s.Leader
	if leader == "" {
		leader = paint.bad("none")
	}
	row("leader", "%s", leader)
	row("servers", "%s ready", share(s.ServersReady, s.Servers))
	row("nodes", "%s ready", share(s.NodesReady, s.Nodes))
	row("applications", "%d, with %s", s.Applications, counted(s.Workloads, "workload"))
	instances := share(s.Ready, s.Instances) + " ready"
	if s.Pending > 0 {
		instances += ", " + paint.bad(fmt.Sprintf("%d without a node", s.Pending))
	}
	row("instances", "%s", instances)
	if len(s.Problems) > 0 {
		b.WriteByte('\n')
	}
	for _, p := range s.Problems {
		fmt.Fprintf(&b, "  %s %s\n    %s %s\n", paint.bad("✗"), p.What, paint.faint("→"), p.Advice)
	}
	return b.String()
}

func explainCommand(g *globals) *cobra.Command {
	cmd := &cobra.Command{
		Use:     "explain REF",
		Short:   "Say why an application, workload, instance or node is as it is",
		Example: "  tutti explain shop\n  tutti explain shop/web\n  tutti explain shop/web.2\n  tutti explain pod/web-5d4f\n  tutti explain node-3",
		Args:    arguments(1, 1, "an application, workload, instance or node"), ValidArgsFunction: g.complete(1, applicationNames, workloadNames, instanceNames, nodeNames),
		RunE: func(cmd *cobra.Command, args []string) error {
			return g.with(cmd.Context(), func(c *native.Client) error {
				e, err := c.Explain(cmd.Context(), podReference(args[0]))
				if err != nil {
					return err
				}
				out := cmd.OutOrStdout()
				if g.structured() {
					return g.print(out, e, nil)
				}
				_, err = io.WriteString(out, explanationText(paintFor(out), &e))
				return err
			})
		},
	}
	cmd.AddCommand(reachCommand(g, &cobra.Command{
		Use: "net FROM TO [PORT[/PROTOCOL]]", Short: "Say whether one end reaches another, and by which rule or against which",
		Long: "Say whether an instance, a workload or an address reaches another, as far as the cluster knows, and\n" +
			"by which rule or against which; `tutti net trace` tries it as well. The port is that inside the\n" +
			"instance. The exit code is 1 if it does not reach.",
		Example: "  tutti explain net shop/web shop/db 5432\n  tutti explain net 192.0.2.7 shop/web",
	}, false))
	return cmd
}

func explanationText(paint painter, e *core.Explanation) string {
	var b strings.Builder
	b.WriteString(paint.bold(e.Subject))
	if e.State != "" {
		b.WriteString(": " + e.State)
	}
	b.WriteByte('\n')
	for _, l := range e.Lines {
		b.WriteString("  " + l + "\n")
	}
	for _, a := range e.Advice {
		fmt.Fprintf(&b, "%s %s\n", paint.faint("→"), a)
	}
	return b.String()
}
