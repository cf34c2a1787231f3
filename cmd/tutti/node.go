package main

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/tutti-run/tutti/internal/api/native"
	"github.com/tutti-run/tutti/internal/fault"
	"github.com/tutti-run/tutti/internal/model"
)

func nodeCommand(g *globals) *cobra.Command {
	cmd := &cobra.Command{
		Use:     "node",
		Short:   "Empty, label, taint, debug and remove nodes",
		Example: "  tutti node drain node-2\n  tutti node activate node-2\n  tutti node label node-2 disk=ssd zone-",
	}
	cmd.AddCommand(
		availabilityCommand(g, "cordon", "Let nodes take no new work", model.Cordoned, "takes no new work"),
		drainCommand(g),
		availabilityCommand(g, "activate", "Let nodes take work", model.Active, "takes work"),
		labelCommand(g), taintCommand(g), overcommitCommand(g), trustCommand(g), reserveCommand(g), resourcesCommand(g), debugCommand(g), removeNodeCommand(g))
	return cmd
}

func availabilityCommand(g *globals, use, short string, a model.Availability, told string) *cobra.Command {
	return &cobra.Command{
		Use: use + " NODE…", Short: short, Example: "  tutti node " + use + " node-2",
		Args: arguments(1, -1, "a node"), ValidArgsFunction: g.complete(-1, nodeNames),
		RunE: func(cmd *cobra.Command, args []string) error {
			return g.with(cmd.Context(), func(c *native.Client) error {
				for _, ref := range args {
					if err := c.SetAvailability(cmd.Context(), ref, a); err != nil {
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

func drainCommand(g *globals) *cobra.Command {
	w := &waiting{}
	cmd := &cobra.Command{
		Use:   "drain NODE…",
		Short: "Move all work off nodes",
		Long: "Move all work off nodes and let them take no more: replacements start elsewhere before\n" +
			"instances end. Jobs are left to finish. It waits until the nodes are empty.",
		Example: "  tutti node drain node-2",
		Args:    arguments(1, -1, "a node"), ValidArgsFunction: g.complete(-1, nodeNames),
		RunE: func(cmd *cobra.Command, args []string) error {
			return g.with(cmd.Context(), func(c *native.Client) error {
				for _, ref := range args { // all of them first: work is not to move from one to the next
					if err := c.SetAvailability(cmd.Context(), ref, model.Draining); err != nil {
						return err
					}
				}
				for _, ref := range args {
					if err := awaitEmpty(cmd, c, w, ref); err != nil {
						return err
					}
				}
				return nil
			})
		},
	}
	w.bind(cmd.Flags())
	return cmd
}

func awaitEmpty(cmd *cobra.Command, c *native.Client, w *waiting, ref string) error {
	if w.detach {
		return hint(cmd.OutOrStdout(), ref+" gives up its work")
	}
	ctx, cancel := context.WithTimeout(cmd.Context(), w.timeout)
	defer cancel()
	defer busy(cmd.ErrOrStderr(), func() string {
		left, err := instancesOn(ctx, c, ref)
		if err != nil {
			return ref + " gives up its work"
		}
		return fmt.Sprintf("%s still has %s", ref, counted(len(left), "instance"))
	})()
	var left []string
	for {
		now, err := instancesOn(ctx, c, ref)
		switch {
		case err == nil && len(now) == 0:
			return hint(cmd.OutOrStdout(), ref+" is empty and takes no new work")
		case err == nil:
			left = now
		case ctx.Err() == nil && !fault.Is(err, fault.Unavailable):
			return err
		}
		select {
		case <-ctx.Done():
			return fault.New(fault.Unavailable, "%s still has %s; `tutti explain` on each says why", ref, strings.Join(left, ", "))
		case <-time.After(pollInterval):
		}
	}
}

// instancesOn names the instances on a node that have not ended.
func instancesOn(ctx context.Context, c *native.Client, node string) ([]string, error) {
	list, err := c.Instances(ctx, native.InstanceChoice{Ref: node})
	var out []string
	for i := range list {
		if !list[i].Status.State.Final() {
			out = append(out, list[i].FullName())
		}
	}
	return out, err
}

// parseLabels reads KEY=VALUE, which sets a label, and KEY-, which removes it.
func parseLabels(args []string) (set map[string]string, remove []string, err error) {
	set = map[string]string{}
	for _, arg := range args {
		if k, v, ok := strings.Cut(arg, "="); ok && k != "" {
			set[k] = v
		} else if k, ok := strings.CutSuffix(arg, "-"); ok && k != "" {
			remove = append(remove, k)
		} else {
			return nil, nil, usagef("%q: give KEY=VALUE to set a label, or KEY- to remove it", arg)
		}
	}
	return set, remove, nil
}

func labelCommand(g *globals) *cobra.Command {
	return &cobra.Command{
		Use: "label NODE KEY=VALUE… KEY-…", Short: "Set and remove labels of a node",
		Example: "  tutti node label node-2 disk=ssd zone=b\n  tutti node label node-2 zone-",
		Args:    arguments(2, -1, "a node and labels"), ValidArgsFunction: g.complete(1, nodeNames),
		RunE: func(cmd *cobra.Command, args []string) error {
			set, remove, err := parseLabels(args[1:])
			if err != nil {
				return err
			}
			return g.with(cmd.Context(), func(c *native.Client) error {
				return c.LabelNode(cmd.Context(), args[0], set, remove)
			})
		},
	}
}

func removeNodeCommand(g *globals) *cobra.Command {
	return &cobra.Command{
		Use: "rm NODE…", Aliases: []string{"remove"}, Short: "Forget nodes that are down",
		Example: "  tutti node rm node-3",
		Args:    arguments(1, -1, "a node"), ValidArgsFunction: g.complete(-1, nodeNames),
		RunE: func(cmd *cobra.Command, args []string) error {
			return g.with(cmd.Context(), func(c *native.Client) error {
				for _, ref := range args {
					if err := c.RemoveNode(cmd.Context(), ref); err != nil {
						return err
					}
					if err := hint(cmd.OutOrStdout(), ref+" is forgotten"); err != nil {
						return err
					}
				}
				return nil
			})
		},
	}
}
