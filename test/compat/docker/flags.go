package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strings"
)

// section is a command of the docker command line whose flags are tried: what is run with each in place of FLAG, and
// the flags with what is known of them.
type section struct {
	command string // as `docker COMMAND --help` knows it
	before  string // is run once, before all
	run     string
	on      bool   // each run goes on from what the one before made
	after   string // is run once, after all
	like    string // a command whose flags are not tried again
	flags   []flagged
}

type flagged struct {
	text    string // the flag with its value
	verdict string // "", "refused", "differs", "newer", "either" or "client"
	words   string // of the refusal or the output, or the reason
}

// readSections reads a file of sections: "= COMMAND", "< SETUP", "$ RUN", "> CLEAN UP", "& COMMAND" whose flags are the same, and flags, one a line, each with
// what is known of it after " | "; and commands that are left out, with the reason.
func readSections(path string) (out []*section, without []string, err error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, nil, err
	}
	for s := bufio.NewScanner(bytes.NewReader(data)); s.Scan(); {
		text := strings.TrimSpace(s.Text())
		kind, rest, _ := strings.Cut(text, " ")
		if text == "" || strings.HasPrefix(text, "#") {
			continue
		}
		if kind == "~" {
			without = append(without, rest)
			continue
		}
		if kind == "=" {
			out = append(out, &section{command: rest})
			continue
		}
		if len(out) == 0 {
			return nil, nil, fmt.Errorf("%s: %q stands before any command", path, text)
		}
		now := out[len(out)-1]
		switch kind {
		case "<":
			now.before = rest
		case "$", "$+":
			now.run, now.on = rest, kind == "$+"
		case "&":
			now.like = rest
		case ">":
			now.after = rest
		default:
			flag, known, _ := strings.Cut(text, " | ")
			verdict, words, _ := strings.Cut(known, ": ")
			now.flags = append(now.flags, flagged{strings.TrimSpace(flag), verdict, words})
		}
	}
	return out, without, nil
}

var flagLine = regexp.MustCompile(`^\s+(?:-\w, |    )?--([a-z0-9-]+)`)

// help is what the newest command line says of a command.
func help(command ...string) (string, error) {
	c := exec.Command("docker", append(slices.Clone(command), "--help")...)
	c.Env = append(os.Environ(), "DOCKER_API_VERSION=", "DOCKER_HOST=unix:///nonexistent")
	text, err := c.Output()
	if err != nil {
		return "", fmt.Errorf("ask docker %s for help: %w", strings.Join(command, " "), err)
	}
	return string(text), nil
}

// flagsOf are those that a command's help shows, and the other names of the command.
func flagsOf(command string) (out, aliases []string, err error) {
	text, err := help(strings.Fields(command)...)
	if err != nil {
		return nil, nil, err
	}
	if _, list, ok := strings.Cut(text, "Aliases:\n"); ok {
		list, _, _ = strings.Cut(list, "\n")
		for name := range strings.SplitSeq(list, ",") {
			aliases = append(aliases, strings.TrimPrefix(strings.TrimSpace(name), "docker "))
		}
	}
	inside := false
	for line := range strings.Lines(text) {
		switch {
		case strings.HasPrefix(line, "Options:"):
			inside = true
		case !strings.HasPrefix(line, " ") && strings.TrimSpace(line) != "":
			inside = false
		case inside:
			if m := flagLine.FindStringSubmatch(line); m != nil && m[1] != "help" {
				out = append(out, m[1])
			}
		}
	}
	return out, aliases, nil
}

// commands are those that the docker command line has by itself, and those of its groups.
func commands(group ...string) ([]string, error) {
	text, err := help(group...)
	if err != nil {
		return nil, err
	}
	var out []string
	inside := false
	for line := range strings.Lines(text) {
		fields := strings.Fields(line)
		switch {
		case strings.Contains(line, "Commands:") && !strings.HasPrefix(line, " "):
			inside = true
		case !strings.HasPrefix(line, " ") && len(fields) > 0:
			inside = false
		case inside && strings.HasPrefix(line, "  ") && len(fields) > 0 && !strings.HasSuffix(fields[0], "*"):
			below, err := commands(append(slices.Clone(group), fields[0])...)
			if err != nil {
				return nil, err
			}
			out = append(out, below...)
		}
	}
	if len(out) == 0 {
		out = []string{strings.Join(group, " ")}
	}
	return out, nil
}

// leaves are the values of JSON documents, one a line, by their paths, where the order of what is in a list says nothing;
// of other text the lines themselves.
func leaves(text string) map[string]string {
	out := map[string]string{}
	documents := 0
	for line := range strings.Lines(text) {
		line = strings.TrimSpace(line)
		var v any
		if strings.HasPrefix(line, "{") && json.Unmarshal([]byte(line), &v) == nil {
			documents++
			flatten(fmt.Sprint(documents), v, out)
			continue
		}
		line = mask(line)
		for out[line] != "" {
			line += " again"
		}
		out[line] = line
	}
	return out
}

func flatten(path string, v any, out map[string]string) {
	switch o := v.(type) {
	case map[string]any:
		for key, inner := range o {
			flatten(path+"."+key, inner, out)
		}
	case []any:
		for n, inner := range o {
			switch inner.(type) {
			case map[string]any, []any:
				flatten(fmt.Sprintf("%s[%d]", path, n), inner, out)
			default:
				flatten(fmt.Sprintf("%s[%v]", path, inner), inner, out)
			}
		}
	case nil:
	default:
		text := fmt.Sprint(o)
		if text != "" && text != "0" && text != "false" { // what is left out is the same
			out[path] = mask(text)
		}
	}
}

// changes are what differs between two outputs.
func changes(before, after string) string {
	x, y := leaves(before), leaves(after)
	var out []string
	has := map[string]bool{} // of documents
	for path := range maps.Keys(y) {
		document, _, _ := strings.Cut(path, ".")
		has[document] = true
	}
	for path := range maps.Keys(x) {
		if document, _, ok := strings.Cut(path, "."); ok && !has[document] {
			path = document + " is not there"
		}
		if _, ok := y[path]; !ok && !slices.Contains(out, "- "+path) {
			out = append(out, "- "+path)
		}
	}
	for path, v := range y {
		if old, ok := x[path]; !ok || old != v {
			out = append(out, "+ "+path+" "+v)
		}
	}
	slices.Sort(out)
	return strings.Join(out, "\n")
}

// walk is the walk through the flags of a file's commands.
type walk struct {
	tutti, engine string
	counts        map[string]int
	tried         map[string]map[string]bool // flags, by command
}

func (w *walk) wrong(format string, args ...any) {
	w.counts["wrong"]++
	fmt.Printf(format+"\n", args...)
}

// walkFlags tries every flag of the commands that a file lists. What a flag changes in the output is compared with what
// it changes with the Engine; flags and commands that the file does not know fail.
func walkFlags(tutti, engine, path string, only *regexp.Regexp) error {
	sections, without, err := readSections(path)
	if err != nil {
		return err
	}
	all, err := commands()
	if err != nil {
		return err
	}
	w := &walk{tutti: tutti, engine: engine, counts: map[string]int{}, tried: map[string]map[string]bool{}}
	for _, s := range sections {
		shown, aliases, err := flagsOf(s.command)
		if err != nil {
			return err
		}
		all = slices.DeleteFunc(all, func(c string) bool { return c == s.command || slices.Contains(aliases, c) })
		if only.MatchString(s.command) {
			w.section(s, shown)
		}
	}
	for _, command := range all {
		shown, aliases, err := flagsOf(command)
		if err != nil {
			return err
		}
		left := slices.ContainsFunc(append(aliases, command), func(name string) bool {
			return slices.ContainsFunc(without, func(text string) bool {
				out, _, _ := strings.Cut(text, ":")
				return name == out || strings.HasPrefix(name, out+" ")
			})
		})
		switch {
		case left:
			w.counts["left"] += len(shown)
		case len(shown) > 0:
			w.wrong("the flags of docker %s are not tried", command)
		}
	}
	c := w.counts
	fmt.Printf("flags of %d commands: %d the same, %d of later versions work, %d refused by name, %d differ as listed, %d as the machine is, %d of the client alone, %d of commands that are refused or the client's, %d wrong\n",
		len(sections), c["same"], c["newer"], c["refused"], c["differs"], c["either"], c["client"], c["left"], c["wrong"])
	if c["wrong"] > 0 {
		return errors.New("flags differ from the Engine's")
	}
	return nil
}

func (w *walk) section(s *section, shown []string) {
	base := w.both(func(socket string) string {
		output(socket, comparedVersion, s.before)
		return tell(socket, comparedVersion, strings.ReplaceAll(s.run, "FLAG", ""))
	})
	tried := map[string]bool{}
	w.tried[s.command] = tried
	for _, f := range s.flags {
		name, _, _ := strings.Cut(strings.TrimPrefix(strings.Fields(f.text)[0], "--"), "=")
		tried[name] = true
		if !slices.Contains(shown, name) {
			w.wrong("docker %s has no flag --%s", s.command, name)
			continue
		}
		w.try(s, f, base)
	}
	for _, name := range shown {
		if !tried[name] && !w.tried[s.like][name] {
			w.wrong("docker %s --%s is not tried", s.command, name)
		}
	}
	w.both(func(socket string) string {
		output(socket, comparedVersion, s.after)
		return ""
	})
}

// both does something with Tutti and with the Engine, and returns what came out, by socket.
func (w *walk) both(do func(socket string) string) map[string]string {
	theirs := make(chan string)
	go func() { theirs <- do(w.engine) }()
	return map[string]string{w.tutti: do(w.tutti), w.engine: <-theirs}
}

// try tries one flag. base is what comes out without it, by socket.
func (w *walk) try(s *section, f flagged, base map[string]string) {
	step := strings.ReplaceAll(s.run, "FLAG", f.text)
	switch f.verdict {
	case "client", "either":
		w.counts[f.verdict]++
		return
	case "refused", "newer":
		if text := tell(w.tutti, newestVersion, step); f.words != "" && strings.Contains(text, f.words) {
			w.counts[f.verdict]++
		} else {
			w.wrong("docker %s %s (%s) does not say %q:\n%s", s.command, f.text, f.verdict, f.words, text)
		}
		return
	}
	now := w.both(func(socket string) string { return tell(socket, comparedVersion, step) })
	ours, theirs := changes(base[w.tutti], now[w.tutti]), changes(base[w.engine], now[w.engine])
	if s.on {
		maps.Copy(base, now)
	}
	switch {
	case ours == theirs && f.verdict == "":
		w.counts["same"]++
	case ours != theirs && f.verdict == "differs":
		w.counts["differs"]++
	case ours == theirs:
		w.wrong("docker %s %s is the same now, though it is listed: %s", s.command, f.text, f.words)
	default:
		w.wrong("docker %s %s differs; what it changes:\n--- Tutti\n%s\n--- Engine\n%s\n---", s.command, f.text, ours, theirs)
	}
}

// tell is what comes out of a step.
func tell(socket, version, step string) string {
	text, code := output(socket, version, step)
	return fmt.Sprintf("%s\nexit code %d", strings.TrimSpace(text), code)
}
