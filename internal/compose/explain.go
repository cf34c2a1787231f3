package compose

import (
	"errors"
	"regexp"
	"strings"
	"sync"

	"github.com/compose-spec/compose-go/v2/template"

	"github.com/tutti-run/tutti/internal/fault"
)

// lazily returns a regular expression that is compiled when it is first needed: most runs of the program never do, and
// all of them together take 6 ms, a tenth of what a short command takes.
func lazily(expression string) func() *regexp.Regexp {
	return sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(expression) })
}

var (
	validating   = lazily(`^validating [^:]+: `)
	decoded      = lazily(`^'([^']+)' (.*)$`)
	indexed      = lazily(`\[([^\]]*)\]`)
	interpolated = lazily(`(?s)^(?:error while interpolating|invalid interpolation format for) ([^ ]+?)(?:: |\.\n)(.*)$`)
	leadingPath  = lazily(`^((?:services|networks|volumes|secrets|configs|include|name|jobs|models)(?:\.[^ :]+)*):? (.*)$`)
	ofService    = lazily(`service "([^"]+)"`)
	extender     = lazily(`(?m)^ +(?:extends )?(\S+) in `)
	notAllowed   = lazily(`^additional properties (.*) not allowed$`)
)

// explain turns an error of compose-go into sentences with file and line, as well as its words allow.
func (s *sources) explain(err error) []note {
	var several interface{ Unwrap() []error }
	if errors.As(err, &several) {
		var out []note
		for _, e := range several.Unwrap() {
			out = append(out, s.explain(e)...)
		}
		return out
	}
	text := validating().ReplaceAllString(err.Error(), "")
	if list, ok := strings.CutPrefix(text, "decoding failed due to the following error(s):"); ok {
		var out []note
		for _, line := range strings.Split(strings.TrimSpace(list), "\n") {
			out = append(out, s.explainText(line))
		}
		return out
	}
	n := s.explainText(text)
	var missing *template.MissingRequiredError
	if errors.As(err, &missing) {
		n.text = "variable " + missing.Variable + " must be set"
		if missing.Reason != "" {
			n.text += ": " + missing.Reason
		}
	}
	return []note{n}
}

func (s *sources) explainText(text string) note {
	path := ""
	if round, ok := circle(text); ok {
		path = "include"
		for _, m := range extender().FindAllStringSubmatch(text, -1) {
			if len(s.places["services."+m[1]+".extends"]) > 0 {
				path = "services." + m[1] + ".extends"
				break
			}
		}
		return note{place: s.where(path), path: path, kind: fault.Invalid, text: s.shorten(round)}
	}
	if m := decoded().FindStringSubmatch(text); m != nil {
		path, text = indexed().ReplaceAllString(m[1], ".$1"), m[2]
	} else if m := interpolated().FindStringSubmatch(text); m != nil {
		path, text = strings.ReplaceAll(m[1], ".[]", ""), m[2]
		if template, bad := strings.CutPrefix(text, "You may need to escape any $ with another $.\n"); bad {
			text = "the variable in " + template + " cannot be read; write ${NAME}, or $$ for a dollar sign"
		}
	} else if m := leadingPath().FindStringSubmatch(text); m != nil {
		path, text = strings.ReplaceAll(m[1], ".[]", ""), m[2]
	} else if m := ofService().FindStringSubmatch(text); m != nil {
		return note{place: s.where("services." + m[1]), kind: fault.Invalid, text: s.shorten(text)}
	}
	return note{place: s.where(path), path: path, kind: fault.Invalid, text: s.shorten(plain(text))}
}

// circle makes one line of how files include, or services extend, each other without an end.
func circle(text string) (string, bool) {
	list, extends := strings.CutPrefix(text, "Circular reference:")
	list, includes := strings.CutPrefix(list, "include cycle detected:")
	var steps []string
	for _, line := range strings.Split(list, "\n") {
		if line = strings.TrimSpace(line); line != "" {
			steps = append(steps, line)
		}
	}
	switch {
	case extends:
		return "services extend each other in a circle: " + strings.Join(steps, ", "), true
	case includes:
		return "files include each other in a circle: " + strings.Join(steps, ", "), true
	}
	return "", false
}

// plain says in a user's words what a parser said in its own.
func plain(text string) string {
	text = strings.TrimPrefix(text, "failed to cast to expected type: ")
	quoted := `"` + between(text, `"`, `"`) + `"`
	switch {
	case strings.HasPrefix(text, "strconv."):
		return between(text, "parsing ", ":") + " is not a number"
	case strings.HasPrefix(text, "invalid boolean: "):
		return strings.TrimPrefix(text, "invalid boolean: ") + " is neither true nor false"
	case strings.HasPrefix(text, "time: ") && strings.Contains(text, "duration"):
		return `"` + between(text, `duration "`, `"`) + `" is not a duration such as 90s or 1m30s`
	case strings.HasPrefix(text, "invalid suffix: "), strings.HasPrefix(text, "invalid size: "):
		return "this is not a size such as 512m or 2g (" + text + ")"
	case text == "invalid command line string":
		return "the quotes in this command do not match; a list says where each argument begins"
	case notAllowed().MatchString(text):
		return "the name " + strings.ReplaceAll(notAllowed().FindStringSubmatch(text)[1], "'", `"`) + " is not valid: use letters, digits, '.', '-' and '_'"
	case text == "false schema":
		return "there is no such key"
	case strings.Contains(text, "duration") && len(quoted) > 2:
		return quoted + " is not a duration such as 90s or 1m30s"
	}
	return strings.ReplaceAll(text, "must be a array", "must be a list")
}

func between(text, from, to string) string {
	_, text, _ = strings.Cut(text, from)
	text, _, _ = strings.Cut(text, to)
	return text
}

// shorten calls files as people do.
func (s *sources) shorten(text string) string {
	for _, f := range s.files {
		text = strings.ReplaceAll(text, f.path, f.name)
	}
	return strings.ReplaceAll(text, s.dir+"/", "")
}
