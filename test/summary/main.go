// Command summary runs go test and counts. It prints what go test prints without -v (with -v in
// the arguments: everything), the tests that were skipped, and one closing line.
//
//	go run ./test/summary [-dir DIR]… [-tally FILE] -- ARGUMENTS OF GO TEST
//
// Every directory is tested with the same arguments; without one it is the present one. With
// -tally the counts are appended to a file as "passed failed skipped". Subtests count as tests, and
// a package that fails without a failing test counts as one.
// The exit code is 1 when a test or a run of go test failed.
package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"slices"
	"strings"
	"syscall"
	"time"
)

func main() {
	var dirs []string
	flag.Func("dir", "module to test; may be repeated", func(dir string) error { dirs = append(dirs, dir); return nil })
	tally := flag.String("tally", "", "file to append the counts to")
	flag.Parse()
	if len(dirs) == 0 {
		dirs = []string{"."}
	}
	// An interrupt ends go test, which ends this program.
	signal.Ignore(syscall.SIGINT)
	began := time.Now()
	c := &count{verbose: slices.Contains(flag.Args(), "-v"), out: os.Stdout}
	broken := false
	for _, dir := range dirs {
		if err := c.test(dir, flag.Args()); err != nil {
			broken = true
			if _, ended := errors.AsType[*exec.ExitError](err); !ended {
				fmt.Fprintln(os.Stderr, "summary:", err)
			}
		}
	}
	for _, s := range c.skipped {
		fmt.Println("skipped:", s)
	}
	fmt.Printf("%d passed, %d failed, %d skipped in %d packages (%s)\n",
		c.passed, c.failed, len(c.skipped), c.packages, time.Since(began).Round(100*time.Millisecond))
	if *tally != "" {
		if err := c.record(*tally); err != nil {
			fmt.Fprintln(os.Stderr, "summary:", err)
			broken = true
		}
	}
	if broken || c.failed > 0 {
		os.Exit(1)
	}
}

// event is a line of go test -json.
type event struct {
	Action, Package, Test, Output string
}

func (e *event) name() string { return e.Package + " " + e.Test }

// count follows the events of one or more runs of go test.
type count struct {
	verbose bool
	out     io.Writer

	passed, failed, packages int
	skipped                  []string
	said                     map[string][]string // what tests printed that are not over
	failedIn                 map[string]bool     // packages with a failing test
}

// test runs go test in a directory.
func (c *count) test(dir string, args []string) error {
	cmd := exec.Command("go", append([]string{"test", "-json"}, args...)...)
	cmd.Dir, cmd.Stderr = dir, os.Stderr
	events, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("run go test: %w", err)
	}
	return errors.Join(c.follow(events), cmd.Wait())
}

func (c *count) follow(events io.Reader) error {
	c.said, c.failedIn = map[string][]string{}, map[string]bool{}
	lines := bufio.NewReader(events)
	for {
		line, err := lines.ReadBytes('\n')
		if len(line) > 0 {
			var e event
			if json.Unmarshal(line, &e) == nil {
				c.take(&e)
			} else {
				c.out.Write(line) // not an event: what the tools themselves say
			}
		}
		if err != nil {
			if errors.Is(err, io.EOF) {
				return nil
			}
			return fmt.Errorf("read what go test says: %w", err)
		}
	}
}

func (c *count) take(e *event) {
	switch e.Action {
	case "build-output":
		fmt.Fprint(c.out, e.Output)
	case "output":
		switch {
		case c.verbose:
			fmt.Fprint(c.out, e.Output)
		case e.Test != "":
			c.said[e.name()] = append(c.said[e.name()], e.Output)
		case !strings.Contains(e.Output, "[no test files]") && e.Output != "PASS\n":
			fmt.Fprint(c.out, e.Output)
		}
	case "pass", "fail", "skip":
		if e.Test == "" {
			if e.Action != "skip" { // which is a package without tests
				c.packages++
			}
			if e.Action == "fail" && !c.failedIn[e.Package] { // it did not build, or ended before its tests
				c.failed++
			}
			c.flush(e.Package)
			return
		}
		said := c.said[e.name()]
		delete(c.said, e.name())
		switch e.Action {
		case "pass":
			c.passed++
		case "fail":
			c.failed++
			c.failedIn[e.Package] = true
			fmt.Fprint(c.out, strings.Join(said, ""))
		case "skip":
			c.skipped = append(c.skipped, e.name()+reason(said))
		}
	}
}

// flush prints what tests said that never came to an end, as after a panic.
func (c *count) flush(pkg string) {
	var open []string
	for name := range c.said {
		if strings.HasPrefix(name, pkg+" ") {
			open = append(open, name)
		}
	}
	slices.Sort(open)
	for _, name := range open {
		fmt.Fprint(c.out, strings.Join(c.said[name], ""))
		delete(c.said, name)
	}
}

// reason finds why a test was skipped in what it said.
func reason(said []string) string {
	for _, line := range said {
		if _, text, ok := strings.Cut(line, ".go:"); ok {
			if _, text, ok = strings.Cut(text, ": "); ok {
				return ": " + strings.TrimSpace(text)
			}
		}
	}
	return ""
}

func (c *count) record(path string) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
	if err != nil {
		return fmt.Errorf("record the counts: %w", err)
	}
	_, err = fmt.Fprintln(f, c.passed, c.failed, len(c.skipped))
	return errors.Join(err, f.Close())
}
