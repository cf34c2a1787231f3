// Command tutti is the whole of Tutti: server, agent, container runtime and command line.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/tutti-run/tutti/internal/balance/ingress"
	"github.com/tutti-run/tutti/internal/balance/names"
	"github.com/tutti-run/tutti/internal/driver/oci"
	"github.com/tutti-run/tutti/internal/driver/process"
	"github.com/tutti-run/tutti/internal/overlay/wireguard"
	"github.com/tutti-run/tutti/internal/provision"
)

func main() {
	if oci.Reexec(os.Args) || process.Reexec(os.Args) || names.Reexec(os.Args) || ingress.Reexec(os.Args) || wireguard.Reexec(os.Args) || provision.Reexec(os.Args) {
		return
	}
	os.Exit(run(os.Args[1:]))
}

// run executes the command line and returns the exit code: 0 for success, 1 for failure, 2 for a
// command line that cannot be understood. Exec passes on its process's code.
func run(args []string) int {
	ctx, stop := interruptible()
	defer stop()
	root := rootCommand(&globals{})
	root.SetArgs(args)
	cmd, err := root.ExecuteContextC(ctx)
	var code exitCode
	var usage usageError
	switch {
	case err == nil:
		return 0
	case errors.As(err, &code):
		return int(code)
	case errors.As(err, &usage), missesFlag(err):
		fmt.Fprintf(os.Stderr, "tutti: %v; see `%s --help`\n", err, cmd.CommandPath())
		return 2
	case ctx.Err() != nil:
		return 130 // interrupted: whoever did that knows
	default:
		fmt.Fprintf(os.Stderr, "tutti: %v\n", err)
		return 1
	}
}

// missesFlag recognises the one complaint about the command line that cobra makes by itself.
func missesFlag(err error) bool { return strings.HasPrefix(err.Error(), "required flag(s) ") }

// interruptible returns a context that the first interrupt ends; a second one ends the program.
func interruptible() (context.Context, context.CancelFunc) {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop)
	return ctx, stop
}

func rootCommand(g *globals) *cobra.Command {
	root := &cobra.Command{
		Use:   "tutti",
		Short: "Run composed applications on one host or many",
		Long: "Tutti turns Linux hosts into one machine that runs composed applications.\n\n" +
			"Begin with `tutti up` on one host; further hosts join with `tutti join`.",
		SilenceErrors: true,
		SilenceUsage:  true,
	}
	g.bind(root.PersistentFlags())
	root.AddGroup(
		&cobra.Group{ID: groupRun, Title: "Applications:"},
		&cobra.Group{ID: groupLook, Title: "Looking inside:"},
		&cobra.Group{ID: groupCluster, Title: "The cluster:"},
	)
	add := func(group string, cmds ...*cobra.Command) {
		for _, c := range cmds {
			c.GroupID = group
			root.AddCommand(c)
		}
	}
	add(groupRun, deployCommand(g), listCommand(g), psCommand(g), scaleCommand(g), restartCommand(g), rollbackCommand(g), rolloutCommand(g),
		removeCommand(g), execCommand(g), copyCommand(g), pauseCommand(g, true), pauseCommand(g, false), imageCommand(g), registryCommand(g), volumeCommand(g))
	add(groupRun, suspendCommands(g)...)
	add(groupLook, statusCommand(g), explainCommand(g), inspectCommand(g), logsCommand(g), eventsCommand(g), statsCommand(g), topCommand(g),
		servicesCommand(g), networksCommand(g), volumesCommand(g), netCommand(g), policiesCommand(g))
	add(groupCluster, clusterCommands(g)...)
	add(groupCluster, nodesCommand(g), nodeCommand(g), serverCommand(g), backupCommand(g), restoreCommand(g), recoverCommand(g), namespaceCommand(g),
		kubernetesCommand(g), keysCommand(g), tokenCommand(g), caCommand(g), userCommand(g), auditCommand(g), autolockCommand(g), unlockKeyCommand(g), unlockCommand(g))
	root.AddCommand(versionCommand(g))
	strict(root)
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return usageError{err} })
	_ = root.RegisterFlagCompletionFunc("output", cobra.FixedCompletions(outputs, cobra.ShellCompDirectiveNoFileComp)) // the flag exists
	return root
}

const (
	groupRun     = "run"
	groupLook    = "look"
	groupCluster = "cluster"
)
