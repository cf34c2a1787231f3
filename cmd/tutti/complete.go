package main

import (
	"context"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/tutti-run/tutti/internal/api/native"
)

// completer offers what an argument may be.
type completer = func(cmd *cobra.Command, args []string, begun string) ([]string, cobra.ShellCompDirective)

// source lists names for completion.
type source func(ctx context.Context, c *native.Client) ([]string, error)

// complete offers names from the cluster for the first most arguments; most < 0 is for all.
func (g *globals) complete(most int, sources ...source) completer {
	return func(cmd *cobra.Command, args []string, begun string) ([]string, cobra.ShellCompDirective) {
		if most >= 0 && len(args) >= most {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
		defer cancel()
		var out []string
		_ = g.with(ctx, func(c *native.Client) error { // without a cluster there is nothing to offer
			for _, list := range sources {
				names, err := list(ctx, c)
				if err != nil {
					return err
				}
				for _, name := range names {
					if strings.HasPrefix(name, begun) {
						out = append(out, name)
					}
				}
			}
			return nil
		})
		return out, cobra.ShellCompDirectiveNoFileComp
	}
}

func applicationNames(ctx context.Context, c *native.Client) ([]string, error) {
	list, err := c.Applications(ctx)
	return namesOf(list, func(v *native.ApplicationView) string { return v.Name }), err
}

func workloadNames(ctx context.Context, c *native.Client) ([]string, error) {
	list, err := c.Workloads(ctx, "")
	return namesOf(list, func(v *native.WorkloadView) string { return v.FullName() }), err
}

func instanceNames(ctx context.Context, c *native.Client) ([]string, error) {
	list, err := c.Instances(ctx, native.InstanceChoice{})
	return namesOf(list, func(v *native.InstanceView) string { return v.FullName() }), err
}

func nodeNames(ctx context.Context, c *native.Client) ([]string, error) {
	list, err := c.Nodes(ctx)
	return namesOf(list, func(v *native.NodeView) string { return v.Name }), err
}

func imageNames(ctx context.Context, c *native.Client) ([]string, error) {
	list, err := c.Images(ctx)
	return namesOf(list, func(v *native.ImageView) string { return shortImage(v.Name) }), err
}

func namesOf[T any](list []T, name func(*T) string) []string {
	var out []string
	for i := range list {
		out = append(out, name(&list[i]))
	}
	return out
}
