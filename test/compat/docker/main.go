// Program docker holds a scripted session of the docker command line against Tutti and against a
// Docker Engine, and compares what came out, with IDs, times and sizes masked. Steps that are known
// to differ are listed with the reason; one that differs and is not listed, or no longer differs,
// fails.
package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"time"
)

func main() {
	tutti := flag.String("tutti", "", "socket at which Tutti answers the Engine's API")
	engine := flag.String("engine", "", "socket of the Docker Engine to compare with")
	dir := flag.String("dir", "test/compat/docker", "where session.txt, differences.txt and flags.txt are")
	hosts := flag.Bool("hosts", false, "Tutti has several hosts: what differs for that is in differences-hosts.txt")
	flags := flag.String("flags", "", "try the flags of the commands that match an expression, in place of the session")
	flag.Parse()
	do := func() error { return run(*tutti, *engine, *dir, *hosts) }
	if *flags != "" {
		do = func() error {
			only, err := regexp.Compile(*flags)
			if err != nil {
				return err
			}
			return walkFlags(*tutti, *engine, *dir+"/flags.txt", only)
		}
	}
	if err := do(); err != nil {
		fmt.Fprintln(os.Stderr, "compat:", err)
		os.Exit(1)
	}
}

func run(tutti, engine, dir string, hosts bool) error {
	steps, err := lines(dir + "/session.txt")
	if err != nil {
		return err
	}
	listed, err := differences(dir + "/differences.txt")
	if err != nil {
		return err
	}
	if hosts {
		more, err := differences(dir + "/differences-hosts.txt")
		if err != nil {
			return err
		}
		maps.Copy(listed, more)
	}
	same, known, wrong := 0, 0, 0
	for n, step := range steps {
		ours, theirs := perform(tutti, step), perform(engine, step)
		reason, isListed := listed[step]
		delete(listed, step)
		switch {
		case ours == theirs && !isListed:
			same++
		case ours == theirs:
			wrong++
			fmt.Printf("step %d is the same now, though a difference is listed: %s\n", n+1, step)
		case isListed:
			known++
			fmt.Printf("step %d differs, as listed (%s): %s\n", n+1, reason, step)
		default:
			wrong++
			fmt.Printf("step %d differs: %s\n--- Tutti\n%s\n--- Engine\n%s\n---\n", n+1, step, ours, theirs)
		}
	}
	for step := range listed {
		wrong++
		fmt.Printf("a difference is listed for a step that is not there: %s\n", step)
	}
	fmt.Printf("%d steps: %d the same, %d differ as listed, %d wrong\n", len(steps), same, known, wrong)
	if wrong > 0 {
		return errors.New("the session differs from the Engine's")
	}
	return nil
}

// lines reads a file without its comments and empty lines.
func lines(path string) ([]string, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	var out []string
	for s := bufio.NewScanner(bytes.NewReader(data)); s.Scan(); {
		if text := strings.TrimSpace(s.Text()); text != "" && !strings.HasPrefix(text, "#") {
			out = append(out, text)
		}
	}
	return out, nil
}

// differences reads steps and, indented below each, why they differ.
func differences(path string) (map[string]string, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	out := map[string]string{}
	step := ""
	for s := bufio.NewScanner(bytes.NewReader(data)); s.Scan(); {
		text := s.Text()
		switch {
		case strings.TrimSpace(text) == "" || strings.HasPrefix(text, "#"):
		case strings.HasPrefix(text, "\t"):
			out[step] = strings.TrimSpace(text)
		default:
			step = strings.TrimSpace(text)
		}
	}
	return out, nil
}

// The versions of the API by which the command line speaks: of the Engine compared with, and of the newest clients.
const (
	comparedVersion = "1.41"
	newestVersion   = "1.50"
)

// perform runs a step and returns its output and exit code, masked.
func perform(socket, step string) string {
	text, code := output(socket, comparedVersion, step)
	return mask(text) + fmt.Sprintf("\nexit code %d", code)
}

// output runs a step and returns its output and exit code.
func output(socket, version, step string) (string, int) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	c := exec.CommandContext(ctx, "sh", "-c", step)
	c.Env = append(os.Environ(), "DOCKER_HOST=unix://"+socket, "DOCKER_API_VERSION="+version)
	c.WaitDelay = time.Second
	var out bytes.Buffer
	c.Stdout, c.Stderr = &out, &out
	err := c.Run()
	code := 0
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		code = exit.ExitCode()
	} else if err != nil {
		code = -1
	}
	return out.String(), code
}

// masks hide what is different each time.
var masks = []struct {
	what *regexp.Regexp
	by   string
}{
	{regexp.MustCompile(`\b\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]\d\d:\d\d)`), "TIME"},
	{regexp.MustCompile(`(Less than a second|About an? \w+|\d+ (second|minute|hour|day|week|month|year)s?)( ago)?`), "AGE"},
	{regexp.MustCompile(`sha256:[0-9a-f]{64}`), "DIGEST"},
	{regexp.MustCompile(`\b([0-9a-f]{64}|[0-9a-z]{24,25}|[0-9a-f]{12})\b`), "ID"},
	{regexp.MustCompile(`\b[\d.]+[kMG]?B\b`), "SIZE"},
	{regexp.MustCompile(` {2,}`), "  "},
	{regexp.MustCompile(`[ \t]+\n`), "\n"},
}

func mask(text string) string {
	for _, m := range masks {
		text = m.what.ReplaceAllString(text, m.by)
	}
	text = short.ReplaceAllStringFunc(text, func(word string) string {
		if strings.ContainsAny(word, "0123456789") {
			return "ID"
		}
		return word
	})
	return strings.TrimSpace(text)
}

// short are words that may be the beginning of an ID of ours, which are not hexadecimal.
var short = regexp.MustCompile(`\b[0-9a-z]{12}\b`)
