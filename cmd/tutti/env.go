package main

import (
	"fmt"
	"path/filepath"

	"github.com/spf13/cobra"

	"github.com/tutti-run/tutti/internal/node"
)

// envCommand prints what other programs need in their environment to talk to this cluster.
func envCommand(g *globals) *cobra.Command {
	return &cobra.Command{
		Use:     "env",
		Short:   "Print the environment for the docker command line and its like",
		Long:    "Print DOCKER_HOST for a shell, so that the docker command line, Compose and the like talk to this cluster.",
		Example: "  eval $(tutti env)\n  docker ps",
		Args:    noArguments(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := g.connect(cmd.Context())
			if err != nil {
				return err
			}
			defer c.Close()
			env := map[string]string{"DOCKER_HOST": "unix://" + node.DockerSocket(filepath.Dir(c.Socket()))}
			if g.structured() {
				return g.print(cmd.OutOrStdout(), env, nil)
			}
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "export DOCKER_HOST=%s\n", env["DOCKER_HOST"])
			return err
		},
	}
}
