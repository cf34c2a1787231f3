package main

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/tutti-run/tutti/internal/api/native"
	"github.com/tutti-run/tutti/internal/core"
	"github.com/tutti-run/tutti/internal/driver"
)

func pauseCommand(g *globals, pause bool) *cobra.Command {
	use, short, long, told := "pause", "Stop instances where they are", "Stop all processes of an instance, or of all running instances of a workload, where they are. They keep\n"+
		"their memory, and get no connections until `tutti unpause`; health checks wait.", "is paused"
	if !pause {
		use, short, long, told = "unpause", "Let paused instances go on", "Let an instance, or all instances of a workload, go on where `tutti pause` stopped them.", "goes on"
	}
	return &cobra.Command{
		Use: use + " REF…", Short: short, Long: long, Example: "  tutti " + use + " shop/web.1\n  tutti " + use + " shop/worker",
		Args: arguments(1, -1, "a workload or an instance"), ValidArgsFunction: g.complete(-1, workloadNames, instanceNames),
		RunE: func(cmd *cobra.Command, args []string) error {
			return g.with(cmd.Context(), func(c *native.Client) error {
				for _, ref := range args {
					if err := c.Pause(cmd.Context(), ref, pause); err != nil {
						return err
					}
					if err := hint(cmd.OutOrStdout(), ref+" "+told); err != nil {
						return err
					}
				}
				return nil
			})
		},
	}
}

func statsCommand(g *globals) *cobra.Command {
	cmd := &cobra.Command{
		Use: "stats [REF]", Short: "Tell what running instances use",
		Long:    "Tell what the tasks of running instances use: all, or those of an application, a workload or a node;\nprocessors over half a second.",
		Example: "  tutti stats\n  tutti stats shop/web\n  tutti stats -o json",
		Args:    arguments(0, 1, "one application, workload, instance or node"), ValidArgsFunction: g.complete(1, applicationNames, workloadNames, instanceNames, nodeNames),
	}
	return lister(g, cmd, func(ctx context.Context, c *native.Client, args []string) ([]core.Usage, error) {
		return c.Usage(ctx, strings.Join(args, ""))
	}, usageTable)
}

func usageTable(paint painter, list []core.Usage) *table {
	t := newTable("INSTANCE", "TASK", "NODE", "CPUS", "MEMORY", "LIMIT", "PIDS", "READ", "WRITTEN")
	for n := range list {
		u := &list[n]
		if u.Error != "" {
			t.add(u.Instance, u.Task, u.Node, paint.bad(u.Error))
			continue
		}
		limit := "-"
		if u.Stats.MemoryLimitBytes > 0 && u.Stats.MemoryLimitBytes < 1<<60 { // more is the kernel's way to say none
			limit = bytesText(int64(u.Stats.MemoryLimitBytes))
		}
		t.add(u.Instance, u.Task, u.Node, fmt.Sprintf("%.2f", float64(u.NanoCPUs)/1e9), bytesText(int64(u.Stats.MemoryBytes)), limit,
			fmt.Sprint(u.Stats.Pids), bytesText(int64(u.Stats.ReadBytes)), bytesText(int64(u.Stats.WriteBytes)))
	}
	return t
}

func topCommand(g *globals) *cobra.Command {
	var task string
	cmd := &cobra.Command{
		Use: "top REF", Short: "List the processes of an instance",
		Long:    "List the processes of an instance, numbered as on its node; a workload stands for its first running instance.",
		Example: "  tutti top shop/web.1\n  tutti top shop/db --task main",
		Args:    arguments(1, 1, "one instance or workload"), ValidArgsFunction: g.complete(1, workloadNames, instanceNames),
	}
	cmd.Flags().StringVar(&task, "task", "", "task of the instance (the first)")
	return lister(g, cmd, func(ctx context.Context, c *native.Client, args []string) ([]driver.Process, error) {
		return c.Processes(ctx, args[0], task)
	}, processTable)
}

func processTable(paint painter, list []driver.Process) *table {
	t := newTable("PID", "PPID", "UID", "STATE", "AGE", "CPU", "MEMORY", "COMMAND")
	for n := range list {
		p := &list[n]
		t.add(fmt.Sprint(p.PID), fmt.Sprint(p.Parent), fmt.Sprint(p.UID), p.State, ageOf(p.Started),
			time.Duration(p.CPUNanoseconds).Round(10*time.Millisecond).String(), bytesText(int64(p.MemoryBytes)), strings.Join(p.Command, " "))
	}
	return t
}
