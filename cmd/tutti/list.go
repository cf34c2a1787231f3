package main

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"runtime/debug"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/tutti-run/tutti/internal/api/native"
	"github.com/tutti-run/tutti/internal/driver"
	"github.com/tutti-run/tutti/internal/model"
)

// lister is a command that lists things of one sort.
func lister[T any](g *globals, cmd *cobra.Command, list func(ctx context.Context, c *native.Client, args []string) ([]T, error), rows func(paint painter, v []T) *table) *cobra.Command {
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		debug.SetGCPercent(400) // a list is decoded, printed, and over
		return g.with(cmd.Context(), func(c *native.Client) error {
			v, err := list(cmd.Context(), c, args)
			if err != nil {
				return err
			}
			return g.print(cmd.OutOrStdout(), v, func() *table { return rows(paintFor(cmd.OutOrStdout()), v) })
		})
	}
	if cmd.Args == nil {
		cmd.Args = noArguments()
	}
	return cmd
}

func listCommand(g *globals) *cobra.Command {
	return &cobra.Command{
		Use:     "ls [APPLICATION]",
		Aliases: []string{"list"},
		Short:   "List applications, or the workloads of one",
		Example: "  tutti ls\n  tutti ls shop\n  tutti ls -o json",
		Args:    arguments(0, 1, "one application"), ValidArgsFunction: g.complete(1, applicationNames),
		RunE: func(cmd *cobra.Command, args []string) error {
			ctx, out := cmd.Context(), cmd.OutOrStdout()
			return g.with(ctx, func(c *native.Client) error {
				if len(args) == 1 {
					list, err := c.Workloads(ctx, args[0])
					if err != nil {
						return err
					}
					return g.print(out, list, func() *table { return workloadTable(paintFor(out), list) })
				}
				list, err := c.Applications(ctx)
				if err != nil {
					return err
				}
				if len(list) == 0 && !g.structured() {
					return hint(out, "no applications are deployed; `tutti deploy -f compose.yaml NAME` makes one")
				}
				return g.print(out, list, func() *table { return applicationTable(paintFor(out), list) })
			})
		},
	}
}

// hint says something in place of an empty table.
func hint(w io.Writer, text string) error {
	_, err := fmt.Fprintln(w, text)
	return err
}

func applicationTable(paint painter, list []native.ApplicationView) *table {
	t := newTable("NAME", "STATE", "READY", "WORKLOADS", "VERSION", "SOURCE", "AGE")
	for i := range list {
		a := &list[i]
		t.add(a.Name, standingText(paint, a.Standing), fmt.Sprintf("%d/%d", a.Ready, a.Wanted), fmt.Sprint(a.Workloads),
			fmt.Sprint(a.Version), orDash(a.Source), ageOf(a.Created))
	}
	return t
}

func workloadTable(paint painter, list []native.WorkloadView) *table {
	t := newTable("NAME", "KIND", "STATE", "READY", "IMAGE", "AGE", "DETAIL")
	for i := range list {
		w := &list[i]
		t.add(w.FullName(), string(w.Type), standingText(paint, w.Standing), readyText(&w.Progress, w.Type), imagesOf(&w.Template), ageOf(w.Created), w.Detail)
	}
	return t
}

func imagesOf(t *model.Template) string {
	var out []string
	for _, task := range t.Tasks {
		out = append(out, orDash(shortImage(task.Image)))
	}
	return strings.Join(out, ",")
}

func standingText(paint painter, s native.Standing) string {
	switch {
	case s.Good():
		return paint.good(string(s))
	case s == native.StandingFailed:
		return paint.bad(string(s))
	default:
		return paint.busy(string(s))
	}
}

// readyText is how many of how many are as they should be.
func readyText(p *native.Progress, kind model.WorkloadKind) string {
	if kind.Job() {
		return fmt.Sprintf("%d/%d", p.Completed, p.Wanted)
	}
	return fmt.Sprintf("%d/%d", p.Ready+p.Completed, p.Wanted)
}

func psCommand(g *globals) *cobra.Command {
	var all bool
	cmd := &cobra.Command{
		Use:   "ps [REF]",
		Short: "List instances: all, or those of an application, a workload or a node",
		Long: "List instances: all, or those of an application, a workload or a node. Those that have ended\n" +
			"and that nobody wants any more are left out, unless --all is given.",
		Example: "  tutti ps\n  tutti ps shop\n  tutti ps shop/web\n  tutti ps node-2 --all",
		Args:    arguments(0, 1, "one application, workload or node"), ValidArgsFunction: g.complete(1, applicationNames, workloadNames, nodeNames),
	}
	cmd.Flags().BoolVarP(&all, "all", "a", false, "also those that have ended")
	return lister(g, cmd, func(ctx context.Context, c *native.Client, args []string) ([]native.InstanceView, error) {
		choice := native.InstanceChoice{Ended: all}
		if len(args) == 1 {
			choice.Ref = args[0]
		}
		return c.Instances(ctx, choice)
	}, instanceTable)
}

func instanceTable(paint painter, list []native.InstanceView) *table {
	t := newTable("INSTANCE", "ID", "STATE", "NODE", "ADDRESS", "PORTS", "RESTARTS", "AGE", "MESSAGE")
	for n := range list {
		i := &list[n]
		t.add(i.FullName(), model.ShortID(i.ID), instanceState(paint, &i.Instance), orDash(i.Node), addressesOf(&i.Instance), portsOf(i),
			fmt.Sprint(i.Status.Restarts), ageOf(i.Created), messageOf(&i.Instance))
	}
	return t
}

// instanceState is the state in one or two words, coloured by what to think of it.
func instanceState(paint painter, i *model.Instance) string {
	st := &i.Status
	text := string(st.State)
	if st.Health != model.HealthNone && st.State == model.InstanceRunning {
		text = string(st.Health)
		if st.Health == model.HealthStarting {
			text = "running, not healthy yet"
		}
	}
	if slices.ContainsFunc(st.Tasks, func(t model.TaskStatus) bool { return t.State == string(driver.Paused) }) {
		text = "paused"
	}
	if i.Desired == model.DesiredDrain && !st.State.Final() {
		text += ", draining"
	}
	switch {
	case st.Ready, st.State == model.InstanceCompleted:
		return paint.good(text)
	case st.State == model.InstanceFailed, st.State == model.InstanceLost, st.Health == model.HealthUnhealthy:
		return paint.bad(text)
	default:
		return paint.busy(text)
	}
}

func addressesOf(i *model.Instance) string {
	var out []string
	for _, a := range i.Addresses {
		out = append(out, a.IP)
	}
	return orDash(strings.Join(out, ","))
}

func portsOf(i *native.InstanceView) string {
	var out []string
	for _, p := range i.Ports {
		out = append(out, portText(p))
	}
	for _, p := range i.HostPorts {
		out = append(out, fmt.Sprintf("%s:%d->%d/%s", cmp.Or(i.Node, "node"), p.Published, p.Target, p.Protocol))
	}
	return orDash(strings.Join(out, ","))
}

// messageOf is what there is to know of an instance besides its state.
func messageOf(i *model.Instance) string {
	switch {
	case i.Status.Message != "":
		return i.Status.Message
	case i.NodeID == "":
		return i.Reason
	case i.Desired != model.DesiredRun:
		return i.Cause
	}
	return ""
}

func servicesCommand(g *globals) *cobra.Command {
	cmd := &cobra.Command{Use: "services", Short: "List services: names, virtual addresses and published ports"}
	return lister(g, cmd, func(ctx context.Context, c *native.Client, _ []string) ([]model.Service, error) {
		return c.Services(ctx)
	},
		func(_ painter, list []model.Service) *table {
			t := newTable("NAME", "ADDRESS", "PORTS", "AGE", "MESSAGE")
			for i := range list {
				s := &list[i]
				var addresses, ports []string
				for _, a := range s.Status.VirtualIPs {
					addresses = append(addresses, a.IP)
				}
				for _, p := range s.Ports {
					if p.Published != 0 {
						ports = append(ports, portText(p))
					}
				}
				t.add(s.FullName(), orDash(strings.Join(addresses, ",")), orDash(strings.Join(ports, ",")), ageOf(s.Created), s.Status.Message)
			}
			return t
		})
}

func networksCommand(g *globals) *cobra.Command {
	cmd := &cobra.Command{Use: "networks", Short: "List networks"}
	return lister(g, cmd, func(ctx context.Context, c *native.Client, _ []string) ([]model.Network, error) {
		return c.Networks(ctx)
	},
		func(_ painter, list []model.Network) *table {
			t := newTable("NAME", "ID", "SUBNET", "INTERNAL", "AGE", "MESSAGE")
			for i := range list {
				n := &list[i]
				internal := "no"
				if n.Internal {
					internal = "yes"
				}
				t.add(n.FullName(), model.ShortID(n.ID), orDash(cmp.Or(n.Status.Subnet, n.Subnet)), internal, ageOf(n.Created), n.Status.Message)
			}
			return t
		})
}

func volumesCommand(g *globals) *cobra.Command {
	cmd := &cobra.Command{Use: "volumes", Short: "List volumes and the nodes that hold them"}
	var nodes map[string]string
	return lister(g, cmd, func(ctx context.Context, c *native.Client, _ []string) ([]model.Volume, error) {
		list, err := c.Nodes(ctx)
		if err != nil {
			return nil, err
		}
		nodes = map[string]string{}
		for i := range list {
			nodes[list[i].ID] = list[i].Name
		}
		return c.Volumes(ctx)
	}, func(_ painter, list []model.Volume) *table {
		t := newTable("NAME", "ID", "DRIVER", "NODE", "AGE")
		for i := range list {
			v := &list[i]
			t.add(v.FullName(), model.ShortID(v.ID), orDash(v.Driver), orDash(cmp.Or(nodes[v.NodeID], model.ShortID(v.NodeID))), ageOf(v.Created))
		}
		return t
	})
}

func nodesCommand(g *globals) *cobra.Command {
	cmd := &cobra.Command{
		Use: "nodes", Short: "List nodes, what they have and what of it is taken",
		Example: "  tutti nodes\n  tutti nodes -o yaml",
	}
	return lister(g, cmd, func(ctx context.Context, c *native.Client, _ []string) ([]native.NodeView, error) {
		return c.Nodes(ctx)
	}, nodeTable)
}

func nodeTable(paint painter, list []native.NodeView) *table {
	t := newTable("NAME", "STATE", "ROLE", "ADDRESS", "INSTANCES", "CPUS", "MEMORY", "LABELS", "AGE", "MESSAGE")
	for i := range list {
		n := &list[i]
		t.add(n.Name, nodeState(paint, &n.Node), nodeRole(n), n.HostAddress, fmt.Sprint(n.Instances),
			cpusText(n.Taken.NanoCPUs)+"/"+cpusText(n.Capacity.NanoCPUs),
			bytesText(n.Taken.MemoryBytes)+" / "+bytesText(n.Capacity.MemoryBytes), labelsText(n.Labels), ageOf(n.Created), nodeMessage(&n.Node))
	}
	return t
}

// nodeMessage is what the cluster says of a node, or what that is short of.
func nodeMessage(n *model.Node) string {
	if n.Status.Message == "" && len(n.Pressure) > 0 {
		return "takes no new work: it is short of " + strings.Join(n.Pressure, " and ")
	}
	return n.Status.Message
}

func nodeState(paint painter, n *model.Node) string {
	text := string(n.Status.State)
	busy := false
	if n.Availability != model.Active && n.Availability != "" {
		text += ", " + string(n.Availability)
		busy = true
	}
	switch {
	case n.Status.State != model.NodeReady:
		return paint.bad(text)
	case busy:
		return paint.busy(text)
	}
	return paint.good(text)
}

func nodeRole(n *native.NodeView) string {
	switch {
	case n.Leader:
		return "leader"
	case n.Server:
		return "server"
	}
	return "agent"
}

func labelsText(labels map[string]string) string {
	var out []string
	for k, v := range labels {
		out = append(out, k+"="+v)
	}
	slices.Sort(out)
	return orDash(strings.Join(out, ","))
}
