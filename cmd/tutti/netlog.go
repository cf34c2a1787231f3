package main

import (
	"cmp"
	"fmt"
	"io"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	"github.com/tutti-run/tutti/internal/api/native"
	"github.com/tutti-run/tutti/internal/core"
	"github.com/tutti-run/tutti/internal/driver"
)

func netLogCommand(g *globals) *cobra.Command {
	var o driver.LogOptions
	var since string
	cmd := &cobra.Command{
		Use: "log [REF]", Short: "Print which requests the ingress answered, on all nodes",
		Long: "Print which requests the ingress answered, on all nodes: of an application's or a workload's routes that\n" +
			"have access_log: true, or of all. A line has when a request came, the node, the client and user, the\n" +
			"request, the status, the bytes of the answer, how long that took, the instance, and what the client\n" +
			"said of itself and of where it came from. JSON is an object a line.",
		Example: "  tutti net log\n  tutti net log shop/web -f --tail 20\n  tutti net log --since 10m -o json",
		Args:    arguments(0, 1, "at most one application or workload"), ValidArgsFunction: g.complete(1, applicationNames, workloadNames),
		RunE: func(cmd *cobra.Command, args []string) error {
			var err error
			if o.Since, err = parseWhen(since, time.Now()); err != nil {
				return err
			}
			ref := ""
			if len(args) == 1 {
				ref = args[0]
			}
			out := cmd.OutOrStdout()
			return g.with(cmd.Context(), func(c *native.Client) error {
				return c.NetLog(cmd.Context(), ref, o, func(l core.AccessLine) error {
					if g.structured() {
						return printLine(out, &l)
					}
					_, err := io.WriteString(out, accessText(&l))
					return err
				})
			})
		},
	}
	f := cmd.Flags()
	f.BoolVarP(&o.Follow, "follow", "f", false, "go on with requests that are answered from now on")
	f.IntVarP(&o.Tail, "tail", "n", -1, "only the last lines (-1: all)")
	f.StringVar(&since, "since", "", "only what was answered since: 10m, 3d, or a time")
	return cmd
}

// accessText is a line for people. What clients said is quoted: it could hold anything.
func accessText(l *core.AccessLine) string {
	begin := fmt.Sprintf("%s %s %s", l.Time.Local().Format("2006-01-02T15:04:05.000Z07:00"), l.Node, l.Service)
	if l.Dropped > 0 {
		return fmt.Sprintf("%s: %d requests are not written down, for the disk was too slow\n", begin, l.Dropped)
	}
	scheme := "http://"
	if l.Secure {
		scheme = "https://"
	}
	user := "-"
	if l.User != "" {
		user = strconv.Quote(l.User)
	}
	return fmt.Sprintf("%s %s %s %s %d %d %.3fms %s %q %q\n", begin, l.Client, user, strconv.Quote(l.Method+" "+scheme+l.Host+l.Target),
		l.Status, l.Bytes, l.Milliseconds, cmp.Or(l.Instance, "-"), l.UserAgent, l.Referer)
}
