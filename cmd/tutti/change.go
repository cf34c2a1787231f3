package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/tutti-run/tutti/internal/api/native"
	"github.com/tutti-run/tutti/internal/fault"
)

// waiting are the flags of a command that waits for what it began.
type waiting struct {
	detach  bool
	timeout time.Duration
}

func (w *waiting) bind(f *pflag.FlagSet) {
	f.BoolVarP(&w.detach, "detach", "d", false, "do not wait until it has happened")
	f.DurationVar(&w.timeout, "timeout", defaultPatience, "how long to wait")
}

// workloadsOf returns the workloads that a reference covers, all of one application.
func workloadsOf(ctx context.Context, c *native.Client, ref string) ([]native.WorkloadView, error) {
	f, err := c.Find(ctx, ref)
	if err != nil {
		return nil, err
	}
	application := ""
	switch {
	case f.Application != nil:
		return c.Workloads(ctx, f.Application.Name)
	case f.Workload != nil:
		application = f.Workload.Application
	default:
		return nil, fault.New(fault.Invalid, "%s is neither an application nor a workload", ref)
	}
	all, err := c.Workloads(ctx, application)
	return slices.DeleteFunc(all, func(v native.WorkloadView) bool { return v.ID != f.Workload.ID }), err
}

// await waits until the workloads have come to what they should be now.
func (g *globals) await(cmd *cobra.Command, c *native.Client, w *waiting, what string, ids []string) error {
	if w.detach || len(ids) == 0 {
		return nil
	}
	ctx := cmd.Context()
	all, err := c.Workloads(ctx, "")
	if err != nil {
		return err
	}
	out := cmd.OutOrStdout()
	wait := &waiter{g: g, client: c, goals: goalsOf(all, ids...), board: boardFor(out)}
	_, err = wait.settle(ctx, w.timeout, what, cmd.ErrOrStderr())
	return err
}

// scaling is one argument of scale.
type scaling struct {
	ref   string
	count int
}

func parseScaling(arg string) (scaling, error) {
	ref, number, ok := strings.Cut(arg, "=")
	if !ok || ref == "" {
		return scaling{}, usagef("%q: give a workload and its count, such as shop/web=3", arg)
	}
	n, err := strconv.Atoi(number)
	if err != nil || n < 0 {
		return scaling{}, usagef("%q: %q is not a count", arg, number)
	}
	return scaling{ref: ref, count: n}, nil
}

func scaleCommand(g *globals) *cobra.Command {
	w := &waiting{}
	cmd := &cobra.Command{
		Use:     "scale WORKLOAD=COUNT…",
		Short:   "Set how many instances a workload has",
		Example: "  tutti scale shop/web=5\n  tutti scale shop/web=5 shop/worker=2 -d",
		Args:    arguments(1, -1, "a workload and its count, such as shop/web=3"), ValidArgsFunction: g.complete(-1, scalableNames),
		RunE: func(cmd *cobra.Command, args []string) error {
			var list []scaling
			for _, arg := range args {
				s, err := parseScaling(arg)
				if err != nil {
					return err
				}
				list = append(list, s)
			}
			return g.with(cmd.Context(), func(c *native.Client) error {
				var ids []string
				for _, s := range list {
					f, err := c.Find(cmd.Context(), s.ref)
					if err != nil {
						return err
					}
					if err := c.Scale(cmd.Context(), s.ref, s.count); err != nil {
						return err
					}
					ids = append(ids, f.Workload.ID)
				}
				return g.await(cmd, c, w, "scaling", ids)
			})
		},
	}
	w.bind(cmd.Flags())
	return cmd
}

func scalableNames(ctx context.Context, c *native.Client) ([]string, error) {
	names, err := workloadNames(ctx, c)
	for i := range names {
		names[i] += "="
	}
	return names, err
}

func restartCommand(g *globals) *cobra.Command {
	w := &waiting{}
	cmd := &cobra.Command{
		Use:   "restart REF…",
		Short: "Replace all instances, as the update policy says",
		Long: "Replace all instances of a workload, or of all workloads of an application but its jobs, by\n" +
			"new ones of the same definition, in the steps that the update policy asks for.",
		Example: "  tutti restart shop/web\n  tutti restart shop",
		Args:    arguments(1, -1, "an application or a workload"), ValidArgsFunction: g.complete(-1, applicationNames, workloadNames),
		RunE: func(cmd *cobra.Command, args []string) error {
			return g.with(cmd.Context(), func(c *native.Client) error {
				var ids []string
				for _, ref := range args {
					list, err := workloadsOf(cmd.Context(), c, ref)
					if err != nil {
						return err
					}
					for i := range list {
						v := &list[i]
						if v.Type.Ends() && len(list) > 1 {
							continue
						}
						if err := c.Restart(cmd.Context(), v.FullName()); err != nil {
							return err
						}
						ids = append(ids, v.ID)
					}
				}
				return g.await(cmd, c, w, "the restart", ids)
			})
		},
	}
	w.bind(cmd.Flags())
	return cmd
}

func rollbackCommand(g *globals) *cobra.Command {
	w := &waiting{}
	cmd := &cobra.Command{
		Use:     "rollback WORKLOAD…",
		Short:   "Return a workload to its previous revision",
		Example: "  tutti rollback shop/web",
		Args:    arguments(1, -1, "a workload"), ValidArgsFunction: g.complete(-1, workloadNames),
		RunE: func(cmd *cobra.Command, args []string) error {
			return g.with(cmd.Context(), func(c *native.Client) error {
				var ids []string
				for _, ref := range args {
					f, err := c.Find(cmd.Context(), ref)
					if err != nil {
						return err
					}
					if err := c.Rollback(cmd.Context(), ref); err != nil {
						return err
					}
					ids = append(ids, f.Workload.ID)
				}
				return g.await(cmd, c, w, "the rollback", ids)
			})
		},
	}
	w.bind(cmd.Flags())
	return cmd
}

func removeCommand(g *globals) *cobra.Command {
	w := &waiting{}
	var volumes bool
	cmd := &cobra.Command{
		Use:     "rm REF…",
		Aliases: []string{"remove"},
		Short:   "Remove applications or workloads",
		Long: "Remove applications or workloads and wait until their instances have ended. Volumes and what\n" +
			"they hold stay, and are found again by a later deployment of the same name, unless --volumes\n" +
			"is given.",
		Example: "  tutti rm shop\n  tutti rm --volumes shop",
		Args:    arguments(1, -1, "an application or a workload"), ValidArgsFunction: g.complete(-1, applicationNames, workloadNames),
		RunE: func(cmd *cobra.Command, args []string) error {
			if volumes && w.detach {
				return usagef("volumes can only be removed once their instances have ended: leave out -d")
			}
			return g.with(cmd.Context(), func(c *native.Client) error {
				for _, ref := range args {
					if err := removeOne(cmd, c, w, ref, volumes); err != nil {
						return err
					}
				}
				return nil
			})
		},
	}
	cmd.Flags().BoolVar(&volumes, "volumes", false, "also the volumes of applications, with all data in them")
	w.bind(cmd.Flags())
	return cmd
}

func removeOne(cmd *cobra.Command, c *native.Client, w *waiting, ref string, volumes bool) error {
	list, err := workloadsOf(cmd.Context(), c, ref)
	if err != nil {
		return err
	}
	g := &gone{client: c, ids: map[string]bool{}}
	for i := range list {
		g.ids[list[i].ID], g.application = true, list[i].Application
	}
	stop := busy(cmd.ErrOrStderr(), func() string { return g.text(cmd.Context(), ref) })
	defer stop()
	if err := w.remove(cmd.Context(), c, ref, volumes); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(cmd.Context(), w.timeout)
	defer cancel()
	for !w.detach {
		left, err := g.left(cmd.Context())
		if err != nil {
			return err
		}
		if left == 0 {
			break
		}
		select {
		case <-ctx.Done():
			return fault.New(fault.Unavailable, "%s is removed, but %s not ended yet", ref, pluralVerb(left, "instance"))
		case <-time.After(pollInterval):
		}
	}
	return hint(cmd.OutOrStdout(), ref+" is removed")
}

// remove waits no longer than it should where the server waits for the instances to end: with volumes.
func (w *waiting) remove(ctx context.Context, c *native.Client, ref string, volumes bool) error {
	if !volumes {
		return c.Remove(ctx, ref, false)
	}
	ctx, cancel := context.WithTimeout(ctx, w.timeout)
	defer cancel()
	err := c.Remove(ctx, ref, true)
	if errors.Is(err, context.DeadlineExceeded) {
		err = fault.New(fault.Unavailable, "%s is removed, but not all of its instances had ended within %s: volumes are kept", ref, w.timeout)
	}
	return err
}

func pluralVerb(n int, noun string) string {
	if n == 1 {
		return counted(n, noun) + " has"
	}
	return counted(n, noun) + " have"
}

// gone watches instances of removed workloads end.
type gone struct {
	client      *native.Client
	application string
	ids         map[string]bool // of workloads
}

func (g *gone) left(ctx context.Context) (int, error) {
	if len(g.ids) == 0 {
		return 0, nil
	}
	list, err := g.client.Instances(ctx, native.InstanceChoice{Application: g.application, Ended: true})
	n := 0
	for i := range list {
		if g.ids[list[i].WorkloadID] {
			n++
		}
	}
	return n, err
}

func (g *gone) text(ctx context.Context, ref string) string {
	left, err := g.left(ctx)
	if err != nil || left == 0 {
		return "removing " + ref
	}
	return fmt.Sprintf("removing %s: %s not ended yet", ref, pluralVerb(left, "instance"))
}
