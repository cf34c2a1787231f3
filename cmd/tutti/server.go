package main

import (
	"context"

	"github.com/spf13/cobra"

	"github.com/tutti-run/tutti/internal/api/native"
	"github.com/tutti-run/tutti/internal/core"
	"github.com/tutti-run/tutti/internal/model"
)

func serverCommand(g *globals) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "server",
		Short: "List, promote, demote and remove servers",
		Long: "Servers keep the cluster's state; a majority of those with a vote has to be there for\n" +
			"changes. A host becomes a server by joining with the token of `tutti token --server`, and\n" +
			"gets a vote once it has caught up.",
		Example: "  tutti server ls\n  tutti server demote host-3\n  tutti server promote host-3\n  tutti server rm host-4",
	}
	cmd.AddCommand(listServersCommand(g),
		changeServer(g, "promote", "Give servers a vote", "gets a vote once it has caught up", (*native.Client).PromoteServer),
		changeServer(g, "demote", "Take servers' vote: they follow without one", "follows without a vote", (*native.Client).DemoteServer),
		changeServer(g, "rm", "Remove servers that are down; they join again if they come back", "is no server any more", (*native.Client).RemoveServer))
	return cmd
}

func listServersCommand(g *globals) *cobra.Command {
	cmd := &cobra.Command{
		Use: "ls", Aliases: []string{"list"}, Short: "List servers", Example: "  tutti server ls\n  tutti server ls -o json",
	}
	return lister(g, cmd, func(ctx context.Context, c *native.Client, _ []string) ([]core.ServerView, error) {
		return c.Servers(ctx)
	}, serverTable)
}

func serverTable(paint painter, list []core.ServerView) *table {
	t := newTable("NAME", "STATE", "ROLE", "ADDRESS", "VERSION")
	for i := range list {
		s := &list[i]
		role := "no vote yet"
		switch {
		case s.Leader:
			role = "leader"
		case s.Voter:
			role = "votes"
		case s.Standby:
			role = "demoted"
		}
		state := paint.good(string(s.State))
		if s.State != model.NodeReady {
			state = paint.bad(string(s.State))
		}
		t.add(s.Name, state, role, s.Address, orDash(s.Version))
	}
	return t
}

func changeServer(g *globals, use, short, told string, change func(*native.Client, context.Context, string) error) *cobra.Command {
	return &cobra.Command{
		Use: use + " NODE…", Short: short, Example: "  tutti server " + use + " host-3",
		Args: arguments(1, -1, "a server"), ValidArgsFunction: g.complete(-1, nodeNames),
		RunE: func(cmd *cobra.Command, args []string) error {
			return g.with(cmd.Context(), func(c *native.Client) error {
				for _, ref := range args {
					if err := change(c, cmd.Context(), ref); err != nil {
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
