package main

import (
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/tutti-run/tutti/internal/node"
)

// envCommand prints what other programs need in their environment to talk to this cluster.
func envCommand(g *globals) *cobra.Command {
	return &cobra.Command{
		Use:     "env",
		Short:   "Print the environment for the docker command line and its like",
		Long:    "Print DOCKER_HOST, MARATHON_URL and, where Kubernetes' API is answered, KUBECONFIG for a shell, so that the\ndocker command line, Compose, clients of Marathon and kubectl talk to this cluster.",
		Example: "  eval $(tutti env)\n  docker ps",
		Args:    noArguments(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := g.connect(cmd.Context())
			if err != nil {
				return err
			}
			defer c.Close()
			dir := filepath.Dir(c.Socket())
			env := map[string]string{"DOCKER_HOST": "unix://" + node.DockerSocket(dir)}
			if url, err := os.ReadFile(node.MarathonURLFile(dir)); err == nil {
				env["MARATHON_URL"] = strings.TrimSpace(string(url))
			}
			switch path, err := g.kubeconfig(cmd.Context(), dir); {
			case err != nil:
				return err
			case path != "":
				env["KUBECONFIG"] = path
			}
			if g.structured() {
				return g.print(cmd.OutOrStdout(), env, nil)
			}
			for _, name := range slices.Sorted(maps.Keys(env)) {
				if _, err := fmt.Fprintf(cmd.OutOrStdout(), "export %s=%s\n", name, env[name]); err != nil {
					return err
				}
			}
			return nil
		},
	}
}
