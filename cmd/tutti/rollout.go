package main

import (
	"context"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"github.com/tutti-run/tutti/internal/api/native"
	"github.com/tutti-run/tutti/internal/core"
	"github.com/tutti-run/tutti/internal/model"
)

func rolloutCommand(g *globals) *cobra.Command {
	cmd := &cobra.Command{
		Use: "rollout", Short: "Look at, pause, promote and undo updates",
		Example: "  tutti rollout status shop/web\n  tutti rollout promote shop/web\n  tutti rollout undo shop/web --to 3",
	}
	var all bool
	promote := each(g, "promote WORKLOAD…", "Let an update take its next step", "takes its next step",
		func(ctx context.Context, c *native.Client, ref string) error { return c.Promote(ctx, ref, all) })
	promote.Flags().BoolVar(&all, "all", false, "every further step, too")
	cmd.AddCommand(rolloutStatusCommand(g, "status", "Tell how the latest update of a workload stands", writeRollout),
		rolloutStatusCommand(g, "history", "List the revisions of a workload that are kept", writeHistory),
		each(g, "pause WORKLOAD…", "Freeze workloads: what runs is kept up, and nothing is updated", "is paused",
			func(ctx context.Context, c *native.Client, ref string) error { return c.PauseRollout(ctx, ref) }),
		each(g, "resume WORKLOAD…", "Let updates go on that were paused, by people or as they failed", "goes on",
			func(ctx context.Context, c *native.Client, ref string) error { return c.ResumeRollout(ctx, ref) }),
		promote, undoCommand(g))
	return cmd
}

// each is a command that does one thing to each workload that is named.
func each(g *globals, use, short, told string, do func(ctx context.Context, c *native.Client, ref string) error) *cobra.Command {
	return &cobra.Command{
		Use: use, Short: short, Args: arguments(1, -1, "a workload"), ValidArgsFunction: g.complete(-1, workloadNames),
		RunE: func(cmd *cobra.Command, args []string) error {
			return g.with(cmd.Context(), func(c *native.Client) error {
				for _, ref := range args {
					if err := do(cmd.Context(), c, ref); err != nil {
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

func rolloutStatusCommand(g *globals, use, short string, write func(w io.Writer, r *core.RolloutInfo) error) *cobra.Command {
	return &cobra.Command{
		Use: use + " WORKLOAD", Short: short, Example: "  tutti rollout " + use + " shop/web",
		Args: arguments(1, 1, "a workload"), ValidArgsFunction: g.complete(1, workloadNames),
		RunE: func(cmd *cobra.Command, args []string) error {
			return g.with(cmd.Context(), func(c *native.Client) error {
				r, err := c.Rollout(cmd.Context(), args[0])
				if err != nil {
					return err
				}
				if g.structured() {
					return g.print(cmd.OutOrStdout(), r, func() *table { return historyTable(&r) })
				}
				return write(cmd.OutOrStdout(), &r)
			})
		},
	}
}

func historyTable(r *core.RolloutInfo) *table {
	t := newTable("REVISION", "IMAGES", "INSTANCES", "AGE", "")
	for _, v := range r.Revisions {
		note := ""
		switch {
		case v.Present:
			note = "present"
		case v.Previous:
			note = "previous"
		}
		t.add(fmt.Sprint(v.Number), strings.Join(v.Images, ", "), fmt.Sprint(v.Instances), ageOf(v.Created), note)
	}
	return t
}

func writeHistory(w io.Writer, r *core.RolloutInfo) error {
	_, err := io.WriteString(w, historyTable(r).String())
	return err
}

func writeRollout(w io.Writer, r *core.RolloutInfo) error {
	state := map[model.RolloutState]string{
		model.RolloutNone: "nothing was updated yet", model.RolloutUpdating: "is being updated", model.RolloutPaused: "its update failed and stands still",
		model.RolloutCompleted: "is up to date", model.RolloutRolling: "is being rolled back", model.RolloutRolledBack: "was rolled back",
		model.RolloutFailed: "could not be rolled back",
	}[r.Status.State]
	if r.Paused {
		state += "; it is paused by people"
	}
	if r.Suspended {
		state += "; it is suspended"
	}
	lines := []string{r.Workload + ": " + state}
	if r.Status.Message != "" {
		lines = append(lines, "  "+r.Status.Message)
	}
	if n := len(r.Plan.Canary); n > 0 && r.Status.State == model.RolloutUpdating {
		lines = append(lines, fmt.Sprintf("  %d of %d steps are behind", min(r.Status.Step, n), n))
	}
	if r.Status.Domain != "" && r.Status.State == model.RolloutUpdating {
		lines = append(lines, fmt.Sprintf("  in upgrade domain %s=%s", r.Plan.Domains, r.Status.Domain))
	}
	for _, line := range lines {
		if err := hint(w, line); err != nil {
			return err
		}
	}
	return writeHistory(w, r)
}

func undoCommand(g *globals) *cobra.Command {
	w := &waiting{}
	to := 0
	cmd := &cobra.Command{
		Use: "undo WORKLOAD", Short: "Return a workload to an earlier revision",
		Example: "  tutti rollout undo shop/web\n  tutti rollout undo shop/web --to 3",
		Args:    arguments(1, 1, "a workload"), ValidArgsFunction: g.complete(1, workloadNames),
		RunE: func(cmd *cobra.Command, args []string) error {
			if to < 0 {
				return usagef("--to %d: give the number of a revision; `tutti rollout history` lists them", to)
			}
			return g.with(cmd.Context(), func(c *native.Client) error {
				f, err := c.Find(cmd.Context(), args[0])
				if err != nil {
					return err
				}
				if err := c.Undo(cmd.Context(), args[0], to); err != nil {
					return err
				}
				return g.await(cmd, c, w, "the rollback", []string{f.Workload.ID})
			})
		},
	}
	cmd.Flags().IntVar(&to, "to", 0, "`NUMBER` of the revision; without it, the one before the present")
	w.bind(cmd.Flags())
	return cmd
}

func suspendCommands(g *globals) []*cobra.Command {
	suspend := func(on bool) func(ctx context.Context, c *native.Client, ref string) error {
		return func(ctx context.Context, c *native.Client, ref string) error { return c.Suspend(ctx, ref, on) }
	}
	return []*cobra.Command{
		each(g, "suspend WORKLOAD…", "Scale workloads to zero and remember their counts; schedules start nothing", "is suspended", suspend(true)),
		each(g, "resume WORKLOAD…", "Bring suspended workloads back", "is wanted again", suspend(false)),
	}
}
