package main

import (
	"context"

	"github.com/spf13/cobra"

	"github.com/tutti-run/tutti/internal/api/native"
	"github.com/tutti-run/tutti/internal/core"
	"github.com/tutti-run/tutti/internal/fault"
	"github.com/tutti-run/tutti/internal/model"
)

func inspectCommand(g *globals) *cobra.Command {
	return &cobra.Command{
		Use:   "inspect REF…",
		Short: "Print all that is recorded of something",
		Long: "Print all that is recorded of an application, workload, instance or node or, failing these,\n" +
			"of a service, network, volume or image. The form is JSON, or YAML with -o yaml.",
		Example: "  tutti inspect shop/web\n  tutti inspect node-2 -o yaml",
		Args:    arguments(1, -1, "something to look at"), ValidArgsFunction: g.complete(-1, applicationNames, workloadNames, instanceNames, nodeNames),
		RunE: func(cmd *cobra.Command, args []string) error {
			return g.with(cmd.Context(), func(c *native.Client) error {
				for _, ref := range args {
					v, err := inspect(cmd.Context(), c, ref)
					if err != nil {
						return err
					}
					write := printJSON
					if g.Output == "yaml" {
						write = printYAML
					}
					if err := write(cmd.OutOrStdout(), v); err != nil {
						return err
					}
				}
				return nil
			})
		},
	}
}

// inspect returns the object that a reference means.
func inspect(ctx context.Context, c *native.Client, ref string) (any, error) {
	f, err := c.Find(ctx, ref)
	if err == nil {
		return whatIs(&f), nil
	}
	if !fault.Is(err, fault.NotFound) {
		return nil, err
	}
	for _, look := range []func(context.Context, *native.Client, string) (any, error){
		lookIn((*native.Client).Services, func(s *model.Service) *model.Meta { return &s.Meta }),
		lookIn((*native.Client).Networks, func(n *model.Network) *model.Meta { return &n.Meta }),
		lookIn((*native.Client).Volumes, func(v *model.Volume) *model.Meta { return &v.Meta }),
		lookIn((*native.Client).Images, func(i *native.ImageView) *model.Meta { return &i.Meta }),
	} {
		if v, err := look(ctx, c, ref); err != nil || v != nil {
			return v, err
		}
	}
	return nil, fault.New(fault.NotFound, "nothing is called %q", ref)
}

func whatIs(f *core.Found) any {
	switch {
	case f.Application != nil:
		return f.Application
	case f.Workload != nil:
		return f.Workload
	case f.Instance != nil:
		return f.Instance
	default:
		return f.Node
	}
}

// lookIn finds an object of a list by its name or ID; nil when it is not there.
func lookIn[T any](list func(*native.Client, context.Context) ([]T, error), meta func(*T) *model.Meta) func(context.Context, *native.Client, string) (any, error) {
	return func(ctx context.Context, c *native.Client, ref string) (any, error) {
		all, err := list(c, ctx)
		if err != nil {
			return nil, err
		}
		for i := range all {
			m := meta(&all[i])
			if m.FullName() == ref || m.ID == ref || model.ShortID(m.ID) == ref || shortImage(m.Name) == ref {
				return &all[i], nil
			}
		}
		return nil, nil
	}
}
