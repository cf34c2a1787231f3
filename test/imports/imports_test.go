// Package imports keeps the arrows of the house: which package may know which. It reads the import
// clauses of all sources, whatever their build tags.
package imports

import (
	"cmp"
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

const module = "github.com/tutti-run/tutti"

// ground may be known by everybody above it: model and, below that, fault; and how files are written.
var ground = []string{"internal/fault", "internal/model", "internal/atomicfile"}

// house says what each package may know besides the ground. A name ending in /... stands for a
// package and all below it, other than those that have a line of their own. A package without a
// place here fails the test.
var house = map[string][]string{
	// The program knows everything; it alone builds a node.
	"cmd/tutti": {"internal/..."},
	// The small program beside every task knows drivers alone: it is to stay small.
	"cmd/tutti-task": {"internal/driver/..."},

	// node builds the whole: every part, and none of the command line's.
	"internal/node": {
		"internal/agent", "internal/api/...", "internal/artifact", "internal/backup", "internal/balance/...", "internal/cgroup", "internal/consensus",
		"internal/cdi", "internal/control", "internal/core", "internal/dispatch", "internal/driver/...", "internal/image",
		"internal/host", "internal/overlay", "internal/overlay/wireguard", "internal/userns", "internal/secret", "internal/server", "internal/store", "internal/trust", "internal/volume", "internal/wire",
	},
	// Its server half, which the simulation runs without the rest.
	"internal/server": {
		"internal/agent", "internal/api/native", "internal/audit", "internal/backup", "internal/certify", "internal/consensus", "internal/control", "internal/core",
		"internal/dispatch", "internal/image", "internal/secret", "internal/store", "internal/trust", "internal/wire",
	},

	// Adapters translate into use cases.
	"internal/api/...":    {"internal/core"},
	"internal/api/native": {"internal/api/access", "internal/core"},
	// Who changed what.
	"internal/audit":   {"internal/core"},
	"internal/compose": {"internal/autoscale", "internal/core", "internal/cron"},

	// Backups are written by servers and read by nodes that begin from them.
	"internal/backup": {},

	// Use cases.
	"internal/core": {"internal/autoscale", "internal/store", "internal/secret", "internal/cron", "internal/trust"},

	// Decisions.
	"internal/control":   {"internal/autoscale", "internal/schedule", "internal/rollout", "internal/cron", "internal/store"},
	"internal/schedule":  {},
	"internal/rollout":   {},
	"internal/cron":      {},
	"internal/autoscale": {"internal/cron"},

	// Who believes whom.
	"internal/certify":         {"internal/secret", "internal/store"},
	"internal/trust":           {"internal/secret", "internal/store", "internal/wire"},
	"internal/trust/trusttest": {"internal/secret", "internal/store", "internal/trust", "internal/wire"},

	// Node sessions and replication.
	"internal/dispatch":   {"internal/store", "internal/wire"},
	"internal/consensus":  {"internal/wire"},
	"internal/store":      {"internal/store/tree"},
	"internal/store/tree": {},
	"internal/wire":       {},

	// Node work.
	"internal/agent":      {"internal/files", "internal/driver", "internal/driver/users", "internal/image", "internal/overlay", "internal/balance", "internal/userns", "internal/volume", "internal/secret", "internal/wire"},
	"internal/cdi":        {},
	"internal/driver":     {"internal/userns"},
	"internal/driver/...": {"internal/driver/...", "internal/cgroup", "internal/userns"},
	"internal/artifact":   {},
	"internal/image":      {"internal/userns"},
	"internal/overlay":    {"internal/overlay/wireguard"},
	// The tunnel of encrypted networks, of which the packets may pass a process beside the agent.
	"internal/overlay/wireguard": {"internal/balance/beside"},
	"internal/balance/...":       {"internal/balance/beside"},
	"internal/volume":            {},
	"internal/secret":            {},
	"internal/cgroup":            {},
	"internal/host":              {},
	"internal/files":             {"internal/userns"},
	"internal/userns":            {},
	"internal/provision":         {"internal/autoscale", "internal/cgroup"},

	// Ground.
	"internal/model":      {},
	"internal/fault":      {},
	"internal/atomicfile": {},

	// Tests of the whole take it apart as they need to.
	"test/...": {"internal/...", "test/..."},
}

// departures are edges that the house did not plan and that were found better than what it would
// take to avoid them. One that is no longer used must be removed here.
var departures = map[string]string{
	"internal/balance/ingress -> internal/driver":         "the access log is kept and read as logs of tasks are",
	"internal/balance/ingress -> internal/driver/tasklog": "the same",

	"internal/consensus -> internal/store": "the result of a proposal and what a snapshot is made of are the store's own types; hiding them behind bytes would say them twice",
	"internal/wire -> internal/driver":     "logs, exec and their options cross the wire as the driver defines them",
	"internal/dispatch -> internal/driver": "reaches into nodes for logs and exec in the driver's terms",
	"internal/core -> internal/driver":     "the use cases logs and exec speak in the driver's terms",
	"internal/core -> internal/image":      "image names are completed, and images described, in one place",
	"internal/core -> internal/schedule":   "a deployment that no node could ever hold is refused in the scheduler's words",
	"internal/core -> internal/wire":       "a task on some node, and a server's address, are named as the wire names them",
	"internal/overlay -> internal/wire":    "follows the network state in the form in which it arrives",
	"internal/balance -> internal/wire":    "the same",

	"internal/balance/names -> internal/wire":      "the same",
	"internal/balance/ingress -> internal/wire":    "the same",
	"internal/compose -> internal/image":           "image names are completed in one place",
	"internal/api/docker -> internal/store":        "the same as for native",
	"internal/api/marathon -> internal/store":      "the same",
	"internal/api/marathon -> internal/store/tree": "apps by path are kept as the store keeps its indexes",
	"internal/api/marathon -> internal/cron":       "a schedule is checked before it is kept",
	"internal/api/docker -> internal/compose":      "labels ask for what Swarm has no word for, in those of Compose files, read in one place",
	"internal/api/docker -> internal/driver":       "logs, exec and attached streams, as core has them",
	"internal/api/docker -> internal/image":        "images, as core has them",
	"internal/api/native -> internal/autoscale":    "what further hosts are good for, as core has it",
	"internal/api/registry -> internal/store":      "the same as for native",
	"internal/api/registry -> internal/image":      "what is pushed goes into the node's own content as it comes",
	"internal/api/native -> internal/trust":        "how the authority is, as core has it",
	"internal/api/access -> internal/wire":         "users' certificates are told from nodes' by what wire puts into them",
	"internal/api/native -> internal/store":        "reading is reading a snapshot: core hands out the store's",
	"internal/api/native -> internal/driver":       "logs and exec, as core has them",
	"internal/api/native -> internal/image":        "images, as core has them",
	"internal/api/native -> internal/wire":         "a process run by exec is spoken with in the messages that the nodes use among themselves",
}

// pure packages decide from their arguments alone: they know the ground and the parts of the
// standard library that neither look at the world nor change it.
var pure = []string{"internal/schedule", "internal/rollout", "internal/cron"}

// worldly is what pure packages, and the store when it applies a change, keep away from.
var worldly = []string{
	"bufio", "context", "crypto/rand", "database/...", "io", "io/...", "log", "log/...", "math/rand", "math/rand/...", "net", "net/...",
	"os", "os/...", "runtime", "runtime/...", "sync", "sync/...", "syscall", "unsafe",
}

// clocks are the functions of package time that ask for the time or wait for it.
var clocks = []string{"Now", "Since", "Until", "Sleep", "After", "AfterFunc", "Tick", "NewTimer", "NewTicker"}

// file is a source file and what it imports, in full.
type file struct {
	path    string // from the root of the module
	imports []string
	syntax  *ast.File // with the bodies of functions only where asked for
}

func (f *file) pkg() string  { return filepath.ToSlash(filepath.Dir(f.path)) }
func (f *file) isTest() bool { return strings.HasSuffix(f.path, "_test.go") }

func (f *file) ours() []string {
	var out []string
	for _, i := range f.imports {
		if rest, ok := strings.CutPrefix(i, module+"/"); ok {
			out = append(out, rest)
		}
	}
	return out
}

// read parses all sources of the module; other modules in the tree are not looked at.
func read(t *testing.T, root string) []file {
	t.Helper()
	var out []file
	err := filepath.WalkDir(root, func(path string, e fs.DirEntry, err error) error {
		switch {
		case errors.Is(err, fs.ErrNotExist):
			return nil // what others remove meanwhile
		case err != nil:
			return err
		case e.IsDir():
			_, otherModule := os.Stat(filepath.Join(path, "go.mod"))
			hidden := strings.HasPrefix(e.Name(), ".") || strings.HasPrefix(e.Name(), "_")
			if path != root && (hidden || e.Name() == "testdata" || otherModule == nil) {
				return fs.SkipDir
			}
			return nil
		case !strings.HasSuffix(path, ".go"):
			return nil
		}
		rel, err := filepath.Rel(root, path)
		if err != nil {
			return err
		}
		f := file{path: rel}
		mode := parser.ImportsOnly | parser.SkipObjectResolution
		if slices.Contains(pure, f.pkg()) {
			mode = parser.SkipObjectResolution
		}
		syntax, err := parser.ParseFile(token.NewFileSet(), path, nil, mode)
		if err != nil {
			return err
		}
		f.syntax = syntax
		for _, i := range syntax.Imports {
			name, err := strconv.Unquote(i.Path.Value)
			if err != nil {
				return fmt.Errorf("%s: %w", rel, err)
			}
			f.imports = append(f.imports, name)
		}
		out = append(out, f)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(out) < 50 {
		t.Fatalf("found %d files below %s: this is not the whole module", len(out), root)
	}
	return out
}

// covers reports whether a pattern of the tables means a package.
func covers(pattern, pkg string) bool {
	if tree, ok := strings.CutSuffix(pattern, "/..."); ok {
		return pkg == tree || strings.HasPrefix(pkg, tree+"/")
	}
	return pkg == pattern
}

func coveredBy(patterns []string, pkg string) bool {
	return slices.ContainsFunc(patterns, func(p string) bool { return covers(p, pkg) })
}

// room finds a package in the house: by its own name or by the longest pattern that covers it.
func room(pkg string) (pattern string, may []string, ok bool) {
	if list, ok := house[pkg]; ok {
		return pkg, list, true
	}
	for p, list := range house {
		if covers(p, pkg) && len(p) > len(pattern) {
			pattern, may, ok = p, list, true
		}
	}
	return pattern, may, ok
}

// permitted reports whether one package may know another.
func permitted(from, to string) bool {
	if from == "internal/fault" || from == "internal/model" && to != "internal/fault" {
		return false
	}
	_, may, _ := room(from)
	return slices.Contains(ground, to) || coveredBy(may, to)
}

func TestArrows(t *testing.T) {
	used := map[string]bool{}
	for _, f := range read(t, "../..") {
		from := f.pkg()
		if _, _, ok := room(from); !ok {
			t.Errorf("package %s has no place in the house yet: say in test/imports what it may know, and in docs/architecture.md what it is for", from)
			continue
		}
		for _, to := range f.ours() {
			edge := from + " -> " + to
			switch {
			case to == from, f.isTest() && to != "internal/node" && !strings.HasPrefix(to, "cmd/"):
				// tests may use what they need to build their subject
			case strings.HasPrefix(to, "cmd/"):
				t.Errorf("%s imports %s: nothing knows the command line", f.path, to)
			case to == "internal/node" && !strings.HasPrefix(from, "cmd/"):
				t.Errorf("%s imports %s: only the program builds a node", f.path, to)
			case departures[edge] != "":
				used[edge] = true
			case !permitted(from, to):
				t.Errorf("%s imports %s, but no arrow leads from %s to %s: move what is needed to where both may reach it, or let %[3]s ask for it by an interface of its own", f.path, to, from, to)
			}
		}
	}
	for edge := range departures {
		if from, to, _ := strings.Cut(edge, " -> "); !used[edge] {
			t.Errorf("%s no longer imports %s: remove the departure from test/imports", from, to)
		} else if permitted(from, to) {
			t.Errorf("the departure %s is permitted anyway: remove it from test/imports", edge)
		}
	}
}

func TestModelAndFaultUseOnlyTheStandardLibrary(t *testing.T) {
	for _, f := range read(t, "../..") {
		if !slices.Contains(ground, f.pkg()) || f.isTest() {
			continue
		}
		for _, i := range f.imports {
			if first, _, _ := strings.Cut(i, "/"); strings.Contains(first, ".") && !strings.HasPrefix(i, module+"/") {
				t.Errorf("%s imports %s: the ground stands on the standard library alone", f.path, i)
			}
		}
	}
}

func TestPureDecisions(t *testing.T) {
	for _, f := range read(t, "../..") {
		if !slices.Contains(pure, f.pkg()) || f.isTest() {
			continue
		}
		for _, i := range f.imports {
			first, _, _ := strings.Cut(i, "/")
			switch {
			case strings.HasPrefix(i, module+"/"): // TestArrows sees to these
			case strings.Contains(first, "."):
				t.Errorf("%s imports %s: package %s decides with the standard library alone", f.path, i, f.pkg())
			case coveredBy(worldly, i):
				t.Errorf("%s imports %s: package %s is pure; time, chance and the world arrive as arguments", f.path, i, f.pkg())
			}
		}
		ast.Inspect(f.syntax, func(n ast.Node) bool {
			sel, ok := n.(*ast.SelectorExpr)
			if !ok {
				return true
			}
			if x, ok := sel.X.(*ast.Ident); ok && x.Name == "time" && slices.Contains(clocks, sel.Sel.Name) {
				t.Errorf("%s uses time.%s: package %s is pure; the time arrives as an argument", f.path, sel.Sel.Name, f.pkg())
			}
			return true
		})
	}
}

func TestNoCircles(t *testing.T) {
	// The compiler refuses circles between packages; these are circles between rooms of the house.
	next := map[string][]string{}
	for _, f := range read(t, "../..") {
		from, _, ok := room(f.pkg())
		if !ok || f.isTest() {
			continue
		}
		for _, i := range f.ours() {
			to, _, ok := room(i)
			if ok && to != from && !slices.Contains(next[from], to) {
				next[from] = append(next[from], to)
			}
		}
	}
	const visiting, done = 1, 2
	state := map[string]int{}
	var visit func(at string, way []string)
	visit = func(at string, way []string) {
		way = append(way, at)
		state[at] = visiting
		slices.SortFunc(next[at], cmp.Compare[string])
		for _, to := range next[at] {
			switch state[to] {
			case visiting:
				t.Errorf("a circle: %s -> %s", strings.Join(way[slices.Index(way, to):], " -> "), to)
			case 0:
				visit(to, way)
			}
		}
		state[at] = done
	}
	for at := range next {
		if state[at] == 0 {
			visit(at, nil)
		}
	}
}
