// Package script is the program that the suite in driver/drivertest runs in tasks: as a function
// for the fake driver, and as the main function of a real program (Main) for the others.
package script

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/tutti-run/tutti/internal/driver/fake"
)

// Name is the program's path in a task's root file system.
const Name = "/prog"

// Main runs the script as a real process and returns its exit code.
func Main() int {
	wd, _ := os.Getwd() // "" where there is none
	return Run(&fake.Process{
		Args: os.Args, Env: os.Environ(), Dir: wd, Stdin: os.Stdin, Stdout: os.Stdout, Stderr: os.Stderr,
		Done: make(chan struct{}),
		Notify: func(signals ...int) <-chan int {
			in, out := make(chan os.Signal, 16), make(chan int)
			for _, n := range signals {
				signal.Notify(in, syscall.Signal(n))
			}
			go func() {
				for s := range in {
					out <- int(s.(syscall.Signal))
				}
			}()
			return out
		},
	})
}

// Run does what the arguments say:
//
//	exit CODE            ends
//	lines N CODE         writes the numbers below N, one a line, and ends
//	long N               writes one line of N bytes and its newline, and then another line
//	streams              writes a line to each stream
//	sleep                writes "ready" and waits to be killed
//	echo                 writes "ready", then "got N" for every SIGUSR1 (10) or SIGUSR2 (12); ends
//	                     on SIGTERM (15) with code 42, after a last line
//	cat                  copies its input to its output, writes "bye" to the other, ends with code 3
//	env NAME             writes the last value of a variable, and the working directory
func Run(p *fake.Process) int {
	number := func(i int) int {
		n, err := strconv.Atoi(p.Args[i])
		if err != nil {
			panic(err)
		}
		return n
	}
	switch p.Args[1] {
	case "exit":
		return number(2)
	case "lines":
		for i := range number(2) {
			fmt.Fprintln(p.Stdout, i)
		}
		return number(3)
	case "long":
		fmt.Fprintln(p.Stdout, string(bytes.Repeat([]byte{'x'}, number(2))))
		fmt.Fprintln(p.Stdout, "after")
	case "streams":
		fmt.Fprintln(p.Stdout, "out")
		fmt.Fprintln(p.Stderr, "err")
	case "sleep":
		fmt.Fprintln(p.Stdout, "ready")
		select {
		case <-p.Done:
		case <-time.After(time.Hour):
		}
	case "echo":
		signals := p.Notify(10, 12, 15)
		fmt.Fprintln(p.Stdout, "ready")
		for {
			select {
			case <-p.Done:
				return 0
			case n := <-signals:
				if n == 15 {
					fmt.Fprintln(p.Stdout, "last")
					return 42
				}
				fmt.Fprintln(p.Stdout, "got", n)
			}
		}
	case "cat":
		if _, err := io.Copy(p.Stdout, p.Stdin); err != nil {
			return 1
		}
		fmt.Fprint(p.Stderr, "bye")
		return 3
	case "env":
		value := ""
		for _, e := range p.Env {
			if name, v, _ := strings.Cut(e, "="); name == p.Args[2] {
				value = v
			}
		}
		fmt.Fprintln(p.Stdout, value, p.Dir)
	default:
		fmt.Fprintln(p.Stderr, "unknown:", p.Args[1])
		return 64
	}
	return 0
}
