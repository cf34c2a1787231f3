package compose

import (
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/tutti-run/tutti/internal/fault"
)

var expectation = regexp.MustCompile(`# (want|warn)(-above)?: ([^#]*)`)

// expected reads the comments of a file: "# want: TEXT" says that a problem on that line begins with
// TEXT after its place, "# warn: TEXT" the same of a warning.
func expected(t *testing.T, path, kind string) map[string]int {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]int{}
	for i, line := range strings.Split(string(data), "\n") {
		for _, m := range expectation.FindAllStringSubmatch(line, -1) {
			if m[1] != kind {
				continue
			}
			n := i + 1
			if m[2] != "" {
				n--
			}
			out[filepath.Base(path)+":"+strconv.Itoa(n)+": "+strings.TrimSpace(m[3])]++
		}
	}
	return out
}

// compare holds sentences against expectations, both ways.
func compare(t *testing.T, what string, want map[string]int, got []string) {
	t.Helper()
	for _, sentence := range got {
		found := ""
		for w := range want {
			if strings.HasPrefix(sentence, w) && len(w) > len(found) {
				found = w
			}
		}
		if found == "" {
			t.Errorf("unexpected %s: %s", what, sentence)
			continue
		}
		if want[found]--; want[found] == 0 {
			delete(want, found)
		}
	}
	for w := range want {
		t.Errorf("no %s: %s", what, w)
	}
}

// sentences takes an error apart.
func sentences(err error) []string {
	text := err.Error()
	if head, rest, ok := strings.Cut(text, " problems:\n"); ok {
		if _, err := strconv.Atoi(head); err == nil {
			text = rest
		}
	}
	return strings.Split(text, "\n")
}

func TestProblemsNameFileAndLine(t *testing.T) {
	files, err := filepath.Glob("testdata/problems/*.yaml")
	if err != nil || len(files) == 0 {
		t.Fatal("no test data", err)
	}
	for _, path := range files {
		t.Run(filepath.Base(path), func(t *testing.T) {
			t.Chdir(filepath.Dir(path))
			name := filepath.Base(path)
			want, warn := expected(t, name, "want"), expected(t, name, "warn")
			s, err := settle(Options{Files: []string{name}})
			if err != nil {
				t.Fatal(err)
			}
			notes := load(t.Context(), s).notes
			err = failure(notes)
			if err == nil {
				t.Fatal("nothing was refused")
			}
			if kind := fault.KindOf(err); kind != fault.Invalid && (kind != fault.Unsupported || name != "refused.yaml") {
				t.Errorf("kind is %v", kind)
			}
			compare(t, "problem", want, sentences(err))
			compare(t, "warning", warn, warnings(notes))
			if _, again := Load(t.Context(), Options{Files: []string{name}}); again == nil || again.Error() != err.Error() {
				t.Errorf("a second time the error is %v", again)
			}
		})
	}
}
