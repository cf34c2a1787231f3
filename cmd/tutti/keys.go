package main

import (
	"fmt"
	"io"
	"strconv"
	"time"
	"unicode/utf8"

	"github.com/spf13/cobra"

	"github.com/tutti-run/tutti/internal/api/native"
	"github.com/tutti-run/tutti/internal/core"
)

func keysCommand(g *globals) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "keys",
		Short: "Read, write and watch the general key space",
		Long: "Read, write and watch the key space that components keep their own objects in. Keys are\n" +
			"paths by convention. Every change has a revision, on which later ones can be conditional.",
		Example: "  tutti keys put /app/leader node-1 --ttl 10s --expect 0\n  tutti keys ls /app/\n  tutti keys watch /app/",
	}
	cmd.AddCommand(keysGetCommand(g), keysPutCommand(g), keysListCommand(g), keysRemoveCommand(g), keysWatchCommand(g))
	return cmd
}

func keysGetCommand(g *globals) *cobra.Command {
	var revision uint64
	var consistency *string
	cmd := &cobra.Command{
		Use:   "get KEY",
		Short: "Print the value of a key",
		Long:  "Print the value of a key as it is, or as it was at a revision. With -o json or yaml all that\nis known of the key is printed, the value in base64.",
		Args:  arguments(1, 1, "a key"), ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, args []string) error {
			return g.with(cmd.Context(), func(c *native.Client) error {
				c, err := consistent(c, *consistency)
				if err != nil {
					return err
				}
				a, err := c.Key(cmd.Context(), args[0], revision)
				if err != nil {
					return err
				}
				if g.structured() {
					return g.print(cmd.OutOrStdout(), a.Key, nil)
				}
				_, err = cmd.OutOrStdout().Write(a.Key.Value)
				return err
			})
		},
	}
	cmd.Flags().Uint64Var(&revision, "revision", 0, "as it was at this revision")
	consistency = bindConsistency(cmd)
	return cmd
}

func keysPutCommand(g *globals) *cobra.Command {
	var ttl time.Duration
	var expect string
	cmd := &cobra.Command{
		Use:   "put KEY [VALUE]",
		Short: "Write a key",
		Long:  "Write a key; without VALUE, what comes from standard input. The revision is printed.",
		Args:  arguments(1, 2, "a key and a value"), ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, args []string) error {
			var value []byte
			if len(args) == 2 {
				value = []byte(args[1])
			} else {
				var err error
				if value, err = io.ReadAll(cmd.InOrStdin()); err != nil {
					return fmt.Errorf("read the value: %w", err)
				}
			}
			k := core.KeyChanges{Put: []core.KeyPut{{Key: args[0], Value: value, TTLMilliseconds: ttl.Milliseconds()}}}
			return g.changeKeys(cmd, k, args[0], expect)
		},
	}
	cmd.Flags().DurationVar(&ttl, "ttl", 0, "delete the key when it is not written again for that long")
	bindExpect(cmd, &expect)
	return cmd
}

func bindExpect(cmd *cobra.Command, expect *string) {
	cmd.Flags().StringVar(expect, "expect", "", "only if the key was last written at this revision; 0: only if it does not exist")
}

// bindConsistency adds the flag that chooses what a read must show.
func bindConsistency(cmd *cobra.Command) *string {
	return cmd.Flags().String("consistency", "", "linearizable: show all that was acknowledged anywhere, or fail; stale: what the server has")
}

func consistent(c *native.Client, how string) (*native.Client, error) {
	switch how {
	case "":
		return c, nil
	case "linearizable":
		return c.Linearizable(), nil
	case "stale":
		return c.Hasty(), nil
	}
	return nil, usageError{fmt.Errorf("--consistency=%q: linearizable and stale are accepted", how)}
}

// changeKeys makes changes on condition of what is expected of a key, and prints the revision.
func (g *globals) changeKeys(cmd *cobra.Command, k core.KeyChanges, key, expect string) error {
	if expect != "" {
		revision, err := strconv.ParseUint(expect, 10, 64)
		if err != nil {
			return usageError{fmt.Errorf("--expect=%q is not a revision", expect)}
		}
		k.Expect = map[string]uint64{key: revision}
	}
	return g.with(cmd.Context(), func(c *native.Client) error {
		revision, err := c.ChangeKeys(cmd.Context(), k)
		if err != nil {
			return err
		}
		done := core.KeysCommitted{Revision: revision}
		if g.structured() {
			return g.print(cmd.OutOrStdout(), done, nil)
		}
		_, err = fmt.Fprintln(cmd.OutOrStdout(), revision)
		return err
	})
}

func keysListCommand(g *globals) *cobra.Command {
	q := core.KeyQuery{}
	var consistency *string
	cmd := &cobra.Command{
		Use:     "ls [PREFIX]",
		Aliases: []string{"list"},
		Short:   "List keys, all or those that begin with something",
		Args:    arguments(0, 1, "a prefix"), ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) == 1 {
				q.Prefix = args[0]
			}
			return g.with(cmd.Context(), func(c *native.Client) error {
				c, err := consistent(c, *consistency)
				if err != nil {
					return err
				}
				list, err := c.Keys(cmd.Context(), q)
				if err != nil {
					return err
				}
				out := cmd.OutOrStdout()
				if err := g.print(out, list, func() *table { return keyTable(&list) }); err != nil {
					return err
				}
				if list.Continue != "" && !g.structured() {
					_, err = fmt.Fprintf(cmd.ErrOrStderr(), "%d more; go on with --continue %s\n", list.Remaining, list.Continue)
				}
				return err
			})
		},
	}
	cmd.Flags().IntVar(&q.Limit, "limit", 0, "list so many at most")
	cmd.Flags().StringVar(&q.Continue, "continue", "", "go on where another list ended, at its revision")
	cmd.Flags().Uint64Var(&q.Revision, "revision", 0, "as it was at this revision")
	consistency = bindConsistency(cmd)
	return cmd
}

func keyTable(list *core.KeyList) *table {
	t := newTable("KEY", "VALUE", "MODIFIED", "VERSION", "TTL")
	for i := range list.Keys {
		k := &list.Keys[i]
		ttl := "-"
		if k.TTLMilliseconds > 0 {
			ttl = (time.Duration(k.TTLMilliseconds) * time.Millisecond).String()
		}
		t.add(k.Key, valueText(k.Value), strconv.FormatUint(k.Modified, 10), strconv.FormatUint(k.Version, 10), ttl)
	}
	return t
}

// valueText shows a short text as it is, and anything else by its size.
func valueText(v []byte) string {
	printable := utf8.Valid(v) && len(v) <= 40
	for _, r := range string(v) {
		printable = printable && strconv.IsPrint(r)
	}
	if printable {
		return orDash(string(v))
	}
	return fmt.Sprintf("(%d bytes)", len(v))
}

func keysRemoveCommand(g *globals) *cobra.Command {
	var prefix bool
	var expect string
	cmd := &cobra.Command{
		Use:     "rm KEY",
		Aliases: []string{"remove"},
		Short:   "Delete a key, or all that begin with something",
		Args:    arguments(1, 1, "a key"), ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, args []string) error {
			if prefix {
				if expect != "" {
					return usageError{fmt.Errorf("--expect is about one key and cannot go with --prefix")}
				}
				return g.changeKeys(cmd, core.KeyChanges{DeletePrefixes: args}, "", "")
			}
			return g.changeKeys(cmd, core.KeyChanges{Delete: args}, args[0], expect)
		},
	}
	cmd.Flags().BoolVar(&prefix, "prefix", false, "delete all keys that begin with KEY")
	bindExpect(cmd, &expect)
	return cmd
}

func keysWatchCommand(g *globals) *cobra.Command {
	q := core.KeyWatch{}
	cmd := &cobra.Command{
		Use:   "watch [PREFIX]",
		Short: "Print changes of keys as they happen",
		Args:  arguments(0, 1, "a prefix"), ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) == 1 {
				q.Prefix = args[0]
			}
			out := cmd.OutOrStdout()
			return g.with(cmd.Context(), func(c *native.Client) error {
				return c.WatchKeys(cmd.Context(), q, func(e core.KeyEvent) error {
					if g.structured() {
						return printLine(out, &e)
					}
					_, err := fmt.Fprintln(out, keyEventText(&e))
					return err
				})
			})
		},
	}
	cmd.Flags().Uint64Var(&q.After, "after", 0, "begin with the changes after this revision; default: those from now on")
	return cmd
}

func keyEventText(e *core.KeyEvent) string {
	switch {
	case e.New == nil:
		return fmt.Sprintf("%d  deleted %s", e.Revision, e.Old.Key)
	case e.Old == nil:
		return fmt.Sprintf("%d  created %s %s", e.Revision, e.New.Key, valueText(e.New.Value))
	}
	return fmt.Sprintf("%d  changed %s %s", e.Revision, e.New.Key, valueText(e.New.Value))
}
