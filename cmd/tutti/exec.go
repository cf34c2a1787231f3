package main

import (
	"context"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/tutti-run/tutti/internal/api/native"
	"github.com/tutti-run/tutti/internal/driver"
)

func execCommand(g *globals) *cobra.Command {
	var req native.ExecRequest
	var stdin bool
	cmd := &cobra.Command{
		Use:   "exec REF COMMAND [ARGUMENT…]",
		Short: "Run a command inside an instance",
		Long: "Run a command inside an instance, wherever that is; a workload stands for its first running\n" +
			"instance. The exit code is that of the command.",
		Example: "  tutti exec -it shop/web sh\n  tutti exec shop/db.1 pg_dump shop > shop.sql\n  tutti exec -i shop/db psql -U postgres < fix.sql",
		Args:    arguments(2, -1, "an instance and a command"), ValidArgsFunction: g.complete(1, workloadNames, instanceNames),
		RunE: func(cmd *cobra.Command, args []string) error {
			req.Ref, req.Args = args[0], args[1:]
			return g.with(context.Background(), func(c *native.Client) error { return runExec(c, req, stdin) })
		},
	}
	f := cmd.Flags()
	f.SetInterspersed(false)
	f.BoolVarP(&stdin, "interactive", "i", false, "pass on the standard input")
	f.BoolVarP(&req.TTY, "tty", "t", false, "give the command a terminal")
	f.StringVarP(&req.User, "user", "u", "", "user[:group] to run as")
	f.StringVarP(&req.WorkingDir, "workdir", "w", "", "directory to run in")
	f.StringArrayVarP(&req.Env, "env", "e", nil, "NAME=value, or NAME to pass on ours; may be repeated")
	f.StringVar(&req.Task, "task", "", "task of the instance (the first)")
	f.BoolVar(&req.Privileged, "privileged", false, "with all rights of the host's root")
	return cmd
}

// runExec joins this terminal with the process. Interrupts go to the process; the second one of
// a process that does not end by the first gives up waiting for it.
func runExec(c *native.Client, req native.ExecRequest, stdin bool) error {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	req.Env = resolveEnv(req.Env, os.LookupEnv)
	streams := driver.Streams{Stdout: os.Stdout, Stderr: os.Stderr}
	if stdin {
		streams.Stdin = os.Stdin
	}
	if req.TTY {
		restore, err := takeTerminal(ctx, &req, &streams)
		if err != nil {
			return err
		}
		defer restore()
	}
	streams.Signals = forwardSignals(ctx, cancel)
	code, err := c.Exec(ctx, req, streams)
	if err != nil {
		return err
	}
	if code != 0 {
		return exitCode(code)
	}
	return nil
}

// resolveEnv gives the names without a value ours. Those that we do not have are left out.
func resolveEnv(env []string, lookup func(string) (string, bool)) []string {
	var out []string
	for _, e := range env {
		if !strings.Contains(e, "=") {
			v, ok := lookup(e)
			if !ok {
				continue
			}
			e += "=" + v
		}
		out = append(out, e)
	}
	return out
}

// takeTerminal hands this terminal over to the process: keys are not interpreted here, and the
// size follows. restore takes it back.
func takeTerminal(ctx context.Context, req *native.ExecRequest, streams *driver.Streams) (restore func(), err error) {
	restore = func() {}
	if streams.Stdin != nil {
		if !isTerminal(os.Stdin) {
			return nil, usagef("the standard input is not a terminal: leave out -t")
		}
		state, err := term.MakeRaw(int(os.Stdin.Fd()))
		if err != nil {
			return nil, err
		}
		restore = func() { _ = term.Restore(int(os.Stdin.Fd()), state) } // nothing more could be done
	}
	if name := os.Getenv("TERM"); name != "" && !hasEnv(req.Env, "TERM") {
		req.Env = append(req.Env, "TERM="+name)
	}
	if !isTerminal(os.Stdout) {
		return restore, nil
	}
	size := terminalSize(os.Stdout)
	req.Rows, req.Cols = size.Rows, size.Cols
	streams.Resize = followSize(ctx)
	return restore, nil
}

func hasEnv(env []string, name string) bool {
	for _, e := range env {
		if strings.HasPrefix(e, name+"=") {
			return true
		}
	}
	return false
}

func terminalSize(f *os.File) driver.Size {
	cols, rows, err := term.GetSize(int(f.Fd()))
	if err != nil {
		return driver.Size{}
	}
	return driver.Size{Rows: rows, Cols: cols}
}

func followSize(ctx context.Context) <-chan driver.Size {
	changed := make(chan os.Signal, 1)
	signal.Notify(changed, syscall.SIGWINCH)
	sizes := make(chan driver.Size, 1)
	go func() {
		defer signal.Stop(changed)
		for {
			select {
			case <-ctx.Done():
				return
			case <-changed:
			}
			select {
			case sizes <- terminalSize(os.Stdout):
			case <-ctx.Done():
				return
			}
		}
	}()
	return sizes
}

func forwardSignals(ctx context.Context, cancel context.CancelFunc) <-chan os.Signal {
	caught := make(chan os.Signal, 4)
	signal.Notify(caught, syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGQUIT, syscall.SIGUSR1, syscall.SIGUSR2)
	out := make(chan os.Signal, 4)
	go func() {
		defer signal.Stop(caught)
		interrupts := 0
		for {
			select {
			case <-ctx.Done():
				return
			case sig := <-caught:
				if sig == syscall.SIGINT || sig == syscall.SIGTERM {
					interrupts++
				}
				if interrupts > 1 {
					cancel()
					return
				}
				select {
				case out <- sig:
				default: // the process does not even take signals any more
				}
			}
		}
	}()
	return out
}
