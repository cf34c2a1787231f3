package main

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	"github.com/tutti-run/tutti/internal/api/native"
	"github.com/tutti-run/tutti/internal/backup"
	"github.com/tutti-run/tutti/internal/fault"
	"github.com/tutti-run/tutti/internal/node"
)

func backupCommand(g *globals) *cobra.Command {
	var stale bool
	c := &cobra.Command{
		Use:   "backup FILE",
		Short: "Write the cluster's state to a file",
		Long: "Write the cluster's state to a file, from which `tutti restore` begins a cluster. The file holds\n" +
			"the cluster's keys: whoever has it can read all secrets and join. Only its owner may read it.\n" +
			"Images and the content of volumes are not in it.",
		Example: "  tutti backup /root/cluster.backup",
		Args:    arguments(1, 1, "a file"),
		RunE: func(cmd *cobra.Command, args []string) error {
			return g.with(cmd.Context(), func(c *native.Client) error {
				h, size, err := takeBackup(args[0], func(to io.Writer) error { return c.Backup(cmd.Context(), to, stale) })
				if err != nil {
					return err
				}
				return hint(cmd.OutOrStdout(), fmt.Sprintf("%s holds revision %d of cluster %s (%s). It contains the cluster's keys: protect it like them.",
					args[0], h.Revision, h.Cluster, bytesText(size)))
			})
		},
	}
	c.Flags().BoolVar(&stale, "stale", false, "take what the server has, also without a majority of the servers")
	return c
}

// takeBackup writes a new file and makes sure that it is whole, and on the disk.
func takeBackup(path string, write func(io.Writer) error) (h backup.Header, size int64, err error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if errors.Is(err, os.ErrExist) {
		return h, 0, fault.New(fault.Conflict, "%s exists already; give another name", path)
	}
	if err != nil {
		return h, 0, fmt.Errorf("make the backup's file: %w", err)
	}
	defer func() {
		if err != nil {
			os.Remove(path)
		}
	}()
	if err := errors.Join(write(f), f.Sync(), f.Close()); err != nil {
		return h, 0, err
	}
	b, err := backup.Open(path)
	if err != nil {
		return h, 0, err
	}
	defer b.Close()
	return b.Header, b.State.Size(), nil
}

// offlineConfig is how the node was configured when it was started last, but for what flags say.
func (f *nodeFlags) offlineConfig(cmd *cobra.Command, g *globals) (node.Config, error) {
	if os.Geteuid() != 0 {
		return node.Config{}, fault.New(fault.Forbidden, "this needs root: run it with sudo")
	}
	config, err := node.Configured(g.DataDir)
	if err != nil {
		return config, err
	}
	given := func(flag string) bool { return cmd.Flags().Changed(flag) }
	if given("name") || config.Name == "" {
		config.Name = f.config.Name
	}
	if given("address") || config.Address == "" {
		config.Address = f.config.Address
	}
	if given("port") || config.Port == 0 {
		config.Port = f.config.Port
	}
	config.DataDir, config.Version, config.JoinToken, config.JoinAddress = g.DataDir, versionText(), "", ""
	if config.RunDir == "" {
		config.RunDir = g.RunDir
	}
	config.Log, err = newLog("warn")
	return config, err
}

func (f *nodeFlags) addOffline(c *cobra.Command) {
	c.Flags().StringVar(&f.config.Name, "name", "", "name of this node (default: as it was, or the host's name)")
	c.Flags().StringVar(&f.config.Address, "address", "", "IPv4 address under which other hosts reach this one (default: as it was, or that of the default route)")
	c.Flags().IntVar(&f.config.Port, "port", node.DefaultPort, "port for other nodes")
}

func restoreCommand(g *globals) *cobra.Command {
	f := &nodeFlags{}
	var force bool
	c := &cobra.Command{
		Use:   "restore FILE",
		Short: "Begin a cluster from a backup, on this host",
		Long: "Make this host, whose node must not run, the only server of a cluster that begins from a backup.\n" +
			"The file is checked before anything is changed. `tutti up` starts the cluster then; other servers\n" +
			"whose state was removed, and agents, find it where they found a server before, and what runs on\n" +
			"them goes on running.",
		Example: "  tutti restore /root/cluster.backup && tutti up -d",
		Args:    arguments(1, 1, "a file"),
		RunE: func(cmd *cobra.Command, args []string) error {
			config, err := f.offlineConfig(cmd, g)
			if err != nil {
				return err
			}
			r, err := node.Restore(cmd.Context(), config, args[0], force)
			if err != nil {
				return err
			}
			objects := 0
			for _, n := range r.Contents.Objects {
				objects += n
			}
			return hint(cmd.OutOrStdout(), fmt.Sprintf("This host begins with cluster %s as of %s: %s and %s, from revision %d on. Start it with `tutti up`.",
				r.Cluster, r.Time.Local().Format(time.DateTime), counted(objects, "object"), counted(r.Contents.Keys, "key"), r.Contents.Revision))
		},
	}
	f.addOffline(c)
	c.Flags().BoolVar(&force, "force", false, "throw away the state that this server has, and begin also while a server of the cluster answers")
	return c
}

func recoverCommand(g *globals) *cobra.Command {
	f := &nodeFlags{}
	var sure bool
	c := &cobra.Command{
		Use:   "recover",
		Short: "Go on with this server alone when most servers are lost for good",
		Long: "Make this server, whose node must not run, the only one of its cluster, from what it has itself.\n" +
			"What only the lost servers had is lost: that can be changes of the last moments that were\n" +
			"acknowledged. The lost servers must never come back with what they have: remove server/ from their\n" +
			"data directories first, or two clusters go on. It refuses while a majority answers.",
		Example: "  tutti recover --yes && tutti up -d",
		Args:    noArguments(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if !sure {
				return fault.New(fault.Invalid, "this gives up the other servers and what only they have; if they are lost for good, say so with --yes")
			}
			config, err := f.offlineConfig(cmd, g)
			if err != nil {
				return err
			}
			members, err := node.Recover(cmd.Context(), config)
			if err != nil {
				return err
			}
			out := cmd.OutOrStdout()
			for _, m := range members {
				if m.Address != net.JoinHostPort(config.Address, strconv.Itoa(config.Port)) {
					fmt.Fprintf(out, "server %s at %s was one of %d\n", m.ID, m.Address, len(members))
				}
			}
			return hint(out, "This server is the only one now. Start it with `tutti up`; let others join again only after their server/ was removed.")
		},
	}
	f.addOffline(c)
	c.Flags().BoolVar(&sure, "yes", false, "yes, the other servers are lost for good")
	return c
}
