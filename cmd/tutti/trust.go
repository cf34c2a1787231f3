package main

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/tutti-run/tutti/internal/api/native"
	"github.com/tutti-run/tutti/internal/core"
	"github.com/tutti-run/tutti/internal/trust"
)

// doing runs a command that needs nothing but to be done, and says that it is.
func (g *globals) doing(cmd *cobra.Command, said string, do func(ctx context.Context, c *native.Client) error) error {
	return g.with(cmd.Context(), func(c *native.Client) error {
		if err := do(cmd.Context(), c); err != nil {
			return err
		}
		return hint(cmd.OutOrStdout(), said)
	})
}

func tokenCommand(g *globals) *cobra.Command {
	var server bool
	cmd := &cobra.Command{
		Use:     "token",
		Short:   "Print the token with which a host joins, or replace it",
		Long:    "Print the token with which a host joins the cluster as an agent, or as a server with --server.\nWhoever has it can join: treat it as a password.",
		Example: "  tutti token\n  tutti token --server\n  tutti token rotate",
		Args:    noArguments(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return g.with(cmd.Context(), func(c *native.Client) error {
				token, err := c.Token(cmd.Context(), server)
				if err != nil {
					return err
				}
				if g.structured() {
					return g.print(cmd.OutOrStdout(), native.Token{Token: token}, nil)
				}
				return hint(cmd.OutOrStdout(), token)
			})
		},
	}
	cmd.Flags().BoolVar(&server, "server", false, "for a host that becomes a server, too")
	cmd.AddCommand(&cobra.Command{
		Use: "rotate [server|agent]", Short: "Replace the join tokens, or one: the old ones admit nobody any more",
		Example: "  tutti token rotate\n  tutti token rotate server",
		Args:    arguments(0, 1, "server or agent"), ValidArgs: []string{"server", "agent"},
		RunE: func(cmd *cobra.Command, args []string) error {
			r := native.RotateTokens{Server: true, Agent: true}
			if len(args) == 1 {
				r = native.RotateTokens{Server: args[0] == "server", Agent: args[0] == "agent"}
				if !r.Server && !r.Agent {
					return usagef("token %q: server and agent are accepted", args[0])
				}
			}
			return g.doing(cmd, "replaced; `tutti token` prints the new one", func(ctx context.Context, c *native.Client) error {
				return c.RotateTokens(ctx, r)
			})
		},
	})
	return cmd
}

func caCommand(g *globals) *cobra.Command {
	var pem bool
	cmd := &cobra.Command{
		Use: "ca", Short: "Tell how the cluster's authority is, or replace it",
		Long: "Tell which authority signs the cluster's certificates and, while another takes over from it, which\n" +
			"nodes still need the old one. With --pem, print the certificates of all that are believed.",
		Example: "  tutti ca\n  tutti ca --pem > ca.pem\n  tutti ca rotate",
		Args:    noArguments(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return g.with(cmd.Context(), func(c *native.Client) error {
				v, err := c.Authority(cmd.Context())
				if err != nil {
					return err
				}
				out := cmd.OutOrStdout()
				switch {
				case pem:
					_, err = out.Write(v.Bundle)
				case g.structured():
					err = g.print(out, v, nil)
				default:
					_, err = io.WriteString(out, authorityText(&v))
				}
				return err
			})
		},
	}
	cmd.Flags().BoolVar(&pem, "pem", false, "print the certificates of the authorities that are believed")
	var window time.Duration
	rotate := &cobra.Command{
		Use: "rotate", Short: "Let a new authority take over, without an interruption",
		Long: "Make a new authority, which signs from now on. All nodes get certificates of it by themselves; when all\n" +
			"have one, the old authority is believed no more. Nodes that are away have until the end of the window to\n" +
			"come back; after it they must join anew.",
		Args: noArguments(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return g.doing(cmd, "a new authority signs from now on; `tutti ca` tells how far the nodes are", func(ctx context.Context, c *native.Client) error {
				return c.RotateAuthority(ctx, window)
			})
		},
	}
	rotate.Flags().DurationVar(&window, "window", trust.DefaultWindow, "how long nodes that are away have to come back")
	cmd.AddCommand(rotate, &cobra.Command{
		Use: "drop", Short: "Believe the authority that was replaced no more, without waiting for nodes that need it",
		Args: noArguments(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return g.doing(cmd, "the old authority is believed no more", func(ctx context.Context, c *native.Client) error { return c.DropAuthority(ctx) })
		},
	})
	return cmd
}

func authorityText(v *trust.View) string {
	var b strings.Builder
	fmt.Fprintf(&b, "authority   %s\n", v.Authority)
	if v.Retiring != "" {
		fmt.Fprintf(&b, "retiring    %s, until all nodes have moved, or %s\nmoved       %d of %d nodes\n", v.Retiring, v.Until.Local().Format(time.DateTime), v.Moved, v.Nodes)
		if len(v.Waiting) > 0 {
			fmt.Fprintf(&b, "waiting for %s\n", strings.Join(v.Waiting, ", "))
		}
	}
	sealed, autolock := "yes", "off"
	if !v.Sealed {
		sealed = "no: not all servers run this version"
	}
	if v.Autolock {
		autolock = "on"
	}
	if v.Locked {
		autolock += "; this server is locked: `tutti unlock`"
	}
	fmt.Fprintf(&b, "keys sealed %s\nautolock    %s\n", sealed, autolock)
	return b.String()
}

func autolockCommand(g *globals) *cobra.Command {
	cmd := &cobra.Command{Use: "autolock", Short: "Let servers need an unlock key after each start, or not"}
	for _, on := range []bool{true, false} {
		use, short := "on", "Make servers need the unlock key, which is printed, after each start"
		if !on {
			use, short = "off", "Let servers start without an unlock key"
		}
		cmd.AddCommand(&cobra.Command{
			Use: use, Short: short, Args: noArguments(),
			RunE: func(cmd *cobra.Command, _ []string) error {
				return g.with(cmd.Context(), func(c *native.Client) error {
					key, err := c.SetAutolock(cmd.Context(), on)
					if err != nil {
						return err
					}
					if !on {
						return hint(cmd.OutOrStdout(), "servers start without an unlock key from now on")
					}
					return g.printKey(cmd.OutOrStdout(), key)
				})
			},
		})
	}
	return cmd
}

func (g *globals) printKey(w io.Writer, key string) error {
	if g.structured() {
		return g.print(w, native.UnlockKey{Key: key}, nil)
	}
	return hint(w, key)
}

func unlockKeyCommand(g *globals) *cobra.Command {
	var rotate bool
	cmd := &cobra.Command{
		Use: "unlock-key", Short: "Print the unlock key, or replace it",
		Long: "Print the key that servers need after each start while autolock is on. Keep it outside of the cluster:\nwithout it, and with all servers down, the cluster's keys are lost.",
		Args: noArguments(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return g.with(cmd.Context(), func(c *native.Client) error {
				key, err := c.UnlockKey(cmd.Context(), rotate)
				if err != nil {
					return err
				}
				return g.printKey(cmd.OutOrStdout(), key)
			})
		},
	}
	cmd.Flags().BoolVar(&rotate, "rotate", false, "replace it; servers that are down need the old one for their next start")
	return cmd
}

func unlockCommand(g *globals) *cobra.Command {
	return &cobra.Command{
		Use: "unlock", Short: "Unlock this host's server with the unlock key, which is read from standard input",
		Long:    "Unlock the server on this host, or at --host, with the unlock key. It is asked for, or read from standard\ninput. Of virtual hosts, --run-dir chooses one.",
		Example: "  tutti unlock\n  tutti unlock < key\n  tutti unlock --run-dir /run/tutti/hosts/host-2 < key",
		Args:    noArguments(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			key, err := readSecret(cmd.ErrOrStderr(), "unlock key: ")
			if err != nil {
				return err
			}
			return g.doing(cmd, "unlocked", func(ctx context.Context, c *native.Client) error { return c.Unlock(ctx, key) })
		},
	}
}

// readSecret reads a line from standard input, which a terminal does not show.
func readSecret(prompt io.Writer, text string) (string, error) {
	fd := int(os.Stdin.Fd())
	if term.IsTerminal(fd) {
		fmt.Fprint(prompt, text)
		data, err := term.ReadPassword(fd)
		fmt.Fprintln(prompt)
		return strings.TrimSpace(string(data)), err
	}
	line, err := bufio.NewReader(os.Stdin).ReadString('\n')
	if err == io.EOF {
		err = nil
	}
	return strings.TrimSpace(line), err
}

func auditCommand(g *globals) *cobra.Command {
	var since time.Duration
	var q core.AuditQuery
	cmd := &cobra.Command{
		Use: "audit", Short: "List who changed what, from where and through which API, refusals included",
		Example: "  tutti audit\n  tutti audit --since 1h --user anna -o json",
		Args:    noArguments(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if since > 0 {
				q.Since = time.Now().Add(-since)
			}
			return g.with(cmd.Context(), func(c *native.Client) error {
				r, err := c.Audit(cmd.Context(), q)
				if err != nil {
					return err
				}
				if len(r.Silent) > 0 {
					fmt.Fprintf(os.Stderr, "tutti: the part of %s is missing: no answer\n", strings.Join(r.Silent, ", "))
				}
				return g.print(cmd.OutOrStdout(), r, func() *table { return auditTable(r.Entries) })
			})
		},
	}
	cmd.Flags().DurationVar(&since, "since", 0, "only what is not older than this, e.g. 1h")
	cmd.Flags().StringVar(&q.User, "user", "", "only what this user did")
	cmd.Flags().IntVar(&q.Limit, "limit", 0, "the latest so many (default 1000)")
	return cmd
}

func auditTable(list []core.AuditEntry) *table {
	t := newTable("TIME", "USER", "FROM", "API", "SERVER", "WHAT", "RESULT")
	for _, e := range list {
		what, result := e.UseCase, e.Result
		if e.What != "" {
			what += " " + e.What
		}
		if e.Error != "" {
			result += ": " + e.Error
		}
		t.add(e.Time.Local().Format(time.DateTime), e.User, orDash(e.From), e.Via, e.Server, what, result)
	}
	return t
}
