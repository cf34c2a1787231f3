package main

import (
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/tutti-run/tutti/internal/api/native"
	"github.com/tutti-run/tutti/internal/core"
	"github.com/tutti-run/tutti/internal/driver"
	"github.com/tutti-run/tutti/internal/model"
)

func logsCommand(g *globals) *cobra.Command {
	var o driver.LogOptions
	var since string
	p := &logPrinter{}
	cmd := &cobra.Command{
		Use:   "logs REF",
		Short: "Print what an application, a workload or an instance says",
		Example: "  tutti logs shop\n  tutti logs -f --tail 20 shop/web\n" +
			"  tutti logs --since 10m -t shop/web.2",
		Args: arguments(1, 1, "an application, workload or instance"), ValidArgsFunction: g.complete(1, applicationNames, workloadNames, instanceNames),
		RunE: func(cmd *cobra.Command, args []string) error {
			var err error
			if o.Since, err = parseWhen(since, time.Now()); err != nil {
				return err
			}
			p.out, p.err = cmd.OutOrStdout(), cmd.ErrOrStderr()
			p.paint = paintFor(p.out)
			p.asJSON = g.structured()
			return g.with(cmd.Context(), func(c *native.Client) error {
				return c.Logs(cmd.Context(), args[0], o, p.line)
			})
		},
	}
	f := cmd.Flags()
	f.BoolVarP(&o.Follow, "follow", "f", false, "go on with what is said from now on")
	f.IntVarP(&o.Tail, "tail", "n", -1, "only the last lines of each instance (-1: all)")
	f.StringVar(&since, "since", "", "only what was said since: 10m, 3d, or a time")
	f.BoolVarP(&p.times, "timestamps", "t", false, "print when each line was said")
	f.BoolVar(&p.bare, "no-prefix", false, "do not print which instance says it")
	return cmd
}

// logPrinter prints log lines with what tells their sources apart. What a task writes to its
// standard error goes to ours.
type logPrinter struct {
	out, err io.Writer
	paint    painter
	times    bool
	bare     bool
	asJSON   bool

	colours map[string]int
	widest  int
}

func (p *logPrinter) line(l core.LogLine) error {
	if p.asJSON {
		return printLine(p.out, &l)
	}
	w := p.out
	if l.Stream == "stderr" {
		w = p.err
	}
	var b strings.Builder
	if p.times {
		b.WriteString(p.paint.faint(l.Time.Local().Format("2006-01-02T15:04:05.000Z07:00")) + " ")
	}
	if !p.bare {
		b.WriteString(p.prefix(&l))
	}
	b.Write(l.Line)
	if !strings.HasSuffix(b.String(), "\n") {
		b.WriteByte('\n')
	}
	_, err := io.WriteString(w, b.String())
	return err
}

// prefix names the source, in a colour of its own and as wide as the widest so far.
func (p *logPrinter) prefix(l *core.LogLine) string {
	if p.colours == nil {
		p.colours = map[string]int{}
	}
	n, ok := p.colours[l.Name]
	if !ok {
		n = len(p.colours)
		p.colours[l.Name] = n
	}
	p.widest = max(p.widest, len(l.Name))
	return p.paint.nth(n, fmt.Sprintf("%-*s |", p.widest, l.Name)) + " "
}

func eventsCommand(g *globals) *cobra.Command {
	var follow bool
	var since string
	cmd := &cobra.Command{
		Use:     "events",
		Short:   "Print what happened in the cluster",
		Example: "  tutti events --since 10m\n  tutti events -f",
		Args:    noArguments(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			from, err := parseWhen(since, time.Now())
			if err != nil {
				return err
			}
			out := cmd.OutOrStdout()
			paint := paintFor(out)
			return g.with(cmd.Context(), func(c *native.Client) error {
				return c.Events(cmd.Context(), from, follow, func(e model.Event) error {
					if g.structured() {
						return printLine(out, &e)
					}
					_, err := io.WriteString(out, eventText(paint, &e))
					return err
				})
			})
		},
	}
	cmd.Flags().BoolVarP(&follow, "follow", "f", false, "go on with what happens from now on")
	cmd.Flags().StringVar(&since, "since", "", "only since: 10m, 3d, or a time")
	return cmd
}

func eventText(paint painter, e *model.Event) string {
	what := strings.TrimPrefix(e.Type, string(e.Subject.Kind)+" ")
	text := fmt.Sprintf("%s  %s %s %s", paint.faint(e.Time.Local().Format("2006-01-02 15:04:05.000")), e.Subject.Kind, paint.bold(e.Subject.Name), what)
	if e.Message != "" {
		text += ": " + e.Message
	}
	return text + "\n"
}
