package main

import (
	"io"

	"github.com/spf13/cobra"

	"github.com/tutti-run/tutti/internal/api/native"
)

func volumeCommand(g *globals) *cobra.Command {
	cmd := &cobra.Command{
		Use: "volume", Short: "Back up, restore, list and remove volumes",
		Long: "Back up, restore, list and remove volumes. VOLUME is APPLICATION/NAME, or NAME of one outside of any application.",
		Example: "  tutti volume backup shop/data data.tar\n  tutti suspend shop/db\n  tutti volume restore shop/data data.tar\n" +
			"  tutti volume backup shop/data - | zstd > data.tar.zst",
	}
	ls := volumesCommand(g)
	ls.Use, ls.Aliases = "ls", []string{"list"}
	cmd.AddCommand(ls, volumeBackupCommand(g), volumeRestoreCommand(g), volumeRemoveCommand(g))
	return cmd
}

func volumeBackupCommand(g *globals) *cobra.Command {
	return &cobra.Command{
		Use: "backup VOLUME FILE", Short: "Write what a volume holds to a tar archive",
		Long: "Write what a volume holds to a tar archive, whichever node it lives on; - is the standard output. What a program writes\n" +
			"meanwhile may be in it by half: suspend or pause what uses the volume, or use the program's own means.",
		Args: arguments(2, 2, "a volume and a file"),
		RunE: func(cmd *cobra.Command, args []string) error {
			return g.with(cmd.Context(), func(c *native.Client) error {
				backup := func(w io.Writer) error { return c.BackupVolume(cmd.Context(), args[0], w) }
				if args[1] == "-" {
					return backup(cmd.OutOrStdout())
				}
				defer busy(cmd.ErrOrStderr(), func() string { return "backing up " + args[0] })()
				return writeWhole(args[1], backup)
			})
		},
	}
}

func volumeRestoreCommand(g *globals) *cobra.Command {
	node := ""
	cmd := &cobra.Command{
		Use: "restore VOLUME FILE", Short: "Put what a tar archive has in place of what a volume holds",
		Long: "Put what a tar archive has in place of what a volume holds: all of it or, with an error, nothing (of volumes with options\n" +
			"of mounting what came until then). No instance may use the volume meanwhile. One that does not exist is made, on --node or some\nother; - is the standard input.",
		Args: arguments(2, 2, "a volume and a file"),
		RunE: func(cmd *cobra.Command, args []string) error {
			in, total, err := openArchive(args[1])
			if err != nil {
				return err
			}
			defer in.Close()
			counted := &countedReader{r: in}
			return g.with(cmd.Context(), func(c *native.Client) error {
				defer busy(cmd.ErrOrStderr(), func() string {
					return "restoring " + args[0] + ": " + bytesText(counted.n.Load()) + " of " + bytesText(total)
				})()
				return c.RestoreVolume(cmd.Context(), args[0], node, counted)
			})
		},
	}
	cmd.Flags().StringVar(&node, "node", "", "where the volume will live, if it lives nowhere yet")
	return cmd
}

func volumeRemoveCommand(g *globals) *cobra.Command {
	return &cobra.Command{
		Use: "rm VOLUME…", Aliases: []string{"remove"}, Short: "Remove volumes that no workload uses, and what they hold", Args: arguments(1, -1, "a volume"),
		RunE: func(cmd *cobra.Command, args []string) error {
			return g.with(cmd.Context(), func(c *native.Client) error {
				for _, name := range args {
					if err := c.RemoveVolume(cmd.Context(), name); err != nil {
						return err
					}
				}
				return nil
			})
		},
	}
}
