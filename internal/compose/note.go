package compose

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"github.com/tutti-run/tutti/internal/fault"
)

// note is a sentence about a place in a file: a problem or, when it is mild, a warning.
type note struct {
	place
	path string // as the file has it, e.g. "services.web.build"; may be empty
	text string
	kind fault.Kind // Invalid or Unsupported
	mild bool

	// What the merged project has there, for notes that may turn out not to matter.
	merged          string
	section, member string // e.g. "services", "web"
	depth           int    // how many services lie between, each extending the next
	// always is true for what is wrong also in a service that is not wanted.
	always bool
	// spoils is true when compose-go would only say the same again.
	spoils bool
}

// String is the sentence, with file and line in front where they are known.
func (n *note) String() string {
	var b strings.Builder
	if n.file != nil {
		b.WriteString(n.file.name)
		if n.line > 0 {
			fmt.Fprintf(&b, ":%d", n.line)
		}
		b.WriteString(": ")
	}
	if n.path != "" {
		b.WriteString(n.path + ": ")
	}
	b.WriteString(n.text)
	return b.String()
}

// inOrder sorts notes as a reader meets their places, and drops repetitions.
func inOrder(notes []note) []note {
	slices.SortStableFunc(notes, func(a, b note) int {
		return cmp.Or(cmp.Compare(a.rank(), b.rank()), cmp.Compare(a.fileName(), b.fileName()), cmp.Compare(a.line, b.line), cmp.Compare(a.path, b.path))
	})
	seen := map[string]bool{}
	return slices.DeleteFunc(notes, func(n note) bool {
		text := n.String()
		again := seen[text]
		seen[text] = true
		return again
	})
}

// failure joins all problems among the notes to one error, nil when there are none.
func failure(notes []note) error {
	kind, lines := fault.Unsupported, []string(nil)
	notes = inOrder(notes)
	for _, n := range notes {
		if n.mild {
			continue
		}
		line := n.String()
		for _, m := range notes { // what is strange in the same place may be the cause
			if m.mild && m.file == n.file && m.line == n.line && m.path == n.path {
				line += " (" + m.text + ")"
			}
		}
		lines = append(lines, line)
		if n.kind != fault.Unsupported {
			kind = n.kind
		}
	}
	switch len(lines) {
	case 0:
		return nil
	case 1:
		return fault.New(kind, "%s", lines[0])
	}
	return fault.New(kind, "%d problems:\n%s", len(lines), strings.Join(lines, "\n"))
}

// warnings are the mild ones among the notes, as sentences.
func warnings(notes []note) []string {
	var out []string
	for _, n := range inOrder(notes) {
		if n.mild {
			out = append(out, n.String())
		}
	}
	return out
}
