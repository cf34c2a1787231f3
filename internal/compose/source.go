package compose

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/compose-spec/compose-go/v2/dotenv"
	"github.com/compose-spec/compose-go/v2/template"
	"github.com/compose-spec/compose-go/v2/types"
	"go.yaml.in/yaml/v4"

	"github.com/tutti-run/tutti/internal/fault"
)

// file is one Compose file as a tree.
type file struct {
	name    string // for people
	path    string // absolute
	dir     string // what its relative paths begin at
	order   int    // files that count more have a higher one
	env     types.Mapping
	content []byte
	docs    []*yaml.Node
	extra   bool // named by another file, and so read by compose-go from the disk
}

// place is where something is said.
type place struct {
	file *file
	line int
	node *yaml.Node // the value; nil when only the line is known
}

func (p place) rank() int {
	if p.file == nil {
		return -1
	}
	return p.file.order
}

func (p place) fileName() string {
	if p.file == nil {
		return ""
	}
	return p.file.name
}

// sources are all files that a project is read from.
type sources struct {
	dir    string // the project's, absolute
	files  []*file
	places map[string][]place // path in the merged project → where it is said, the last one counts
	resets []reset
	notes  []note
	pruned bool // keys that do not exist were taken out of the trees
	// visits counts nodes, aliases followed, so that a small file cannot stand for an endless one.
	visits int
}

// reset is a !reset or !override: what earlier files say below path does not count.
type reset struct {
	order, depth int
	path         string
}

// covers reports whether what a note is about does not count.
func (r *reset) covers(n *note) bool {
	if n.merged != r.path && !strings.HasPrefix(n.merged, r.path+".") {
		return false
	}
	return r.order > n.rank() || r.order == n.rank() && r.depth < n.depth
}

const (
	mostVisits  = 200_000
	longestPath = 2_000 // bytes
)

// readSources reads the files, and all that they include or extend, and holds each key against
// the table. What is wrong is in the notes.
func readSources(s *settings) *sources {
	src := &sources{dir: s.dir, places: map[string][]place{}, notes: s.notes}
	for _, name := range s.files {
		path := absolute(name)
		f := src.read(&file{name: name, path: path, dir: s.dir, env: s.env}, place{})
		if f != nil {
			src.walkFile(f, []string{path})
		}
	}
	return src
}

func absolute(path string) string {
	if abs, err := filepath.Abs(path); err == nil {
		return abs
	}
	return path
}

// read parses a file. When that fails it notes why, at the place that named the file, and
// returns nil.
func (s *sources) read(f *file, named place) *file {
	content, err := os.ReadFile(f.path)
	if err != nil {
		if named.file == nil {
			named = place{file: f}
		}
		s.note(note{place: named, kind: fault.Invalid, text: "cannot read " + f.name + ": " + reason(err), spoils: true})
		return nil
	}
	f.content = content
	decoder := yaml.NewDecoder(bytes.NewReader(content))
	for {
		var doc yaml.Node
		err := decoder.Decode(&doc)
		if errors.Is(err, io.EOF) {
			return f
		}
		if err != nil {
			line, text := syntaxError(err)
			s.note(note{place: place{file: f, line: line}, kind: fault.Invalid, text: "this is not YAML: " + text, spoils: true})
			return nil
		}
		f.docs = append(f.docs, doc.Content...)
	}
}

// reason is why a file could not be read, without its name.
func reason(err error) string {
	var pathErr *os.PathError
	if errors.As(err, &pathErr) {
		return pathErr.Err.Error()
	}
	return err.Error()
}

var yamlLine = lazily(`(?s)^(?:(.*): )?(?:line (\d+)(?:, column \d+)?|<unknown position>): (.*)$`)

// syntaxError reads where a YAML error is. The library's parser counts lines from nought, its
// scanner from one.
func syntaxError(err error) (line int, text string) {
	text = strings.TrimPrefix(err.Error(), "yaml: ")
	m := yamlLine().FindStringSubmatch(text)
	if m == nil {
		return 0, text
	}
	line, _ = strconv.Atoi(m[2])
	if strings.HasPrefix(m[1], "while parsing") || strings.Contains(m[3], "did not find expected <") {
		line++
	}
	return line, m[3]
}

func (s *sources) note(n note) { s.notes = append(s.notes, n) }

// display is how a file that another file names is called: relative to the project where it is near.
func (s *sources) display(path string) string {
	if rel, err := filepath.Rel(s.dir, path); err == nil && !strings.HasPrefix(rel, "../../..") {
		return rel
	}
	return path
}

// walkFile notes what a file says, after what it includes. Chain are the files that led here.
func (s *sources) walkFile(f *file, chain []string) {
	for _, doc := range f.docs {
		if value, ok := lookup(doc, "include"); ok {
			s.include(f, value, chain)
		}
	}
	f.order = len(s.files)
	s.files = append(s.files, f)
	for _, doc := range f.docs {
		w := &walker{src: s, file: f}
		if doc.Kind != yaml.MappingNode {
			s.note(note{place: place{file: f, line: doc.Line}, kind: fault.Invalid, text: "a Compose file is a mapping, with services at its top", spoils: true})
			continue
		}
		w.mapping(doc, "", fileRules)
	}
}

// lookup finds a key of a mapping.
func lookup(node *yaml.Node, key string) (*yaml.Node, bool) {
	node = follow(node)
	if node == nil || node.Kind != yaml.MappingNode {
		return nil, false
	}
	for i := 0; i+1 < len(node.Content); i += 2 {
		if node.Content[i].Value == key {
			return follow(node.Content[i+1]), true
		}
	}
	for i := 0; i+1 < len(node.Content); i += 2 {
		if node.Content[i].Value == "<<" && node.Content[i+1].Kind == yaml.AliasNode {
			return lookup(node.Content[i+1], key)
		}
	}
	return nil, false
}

// follow returns what an alias stands for, and other nodes as they are.
func follow(node *yaml.Node) *yaml.Node {
	for n := 0; node != nil && node.Kind == yaml.AliasNode && n < 100; n++ {
		node = node.Alias
	}
	return node
}

// include reads what an include section names.
func (s *sources) include(f *file, section *yaml.Node, chain []string) {
	if section.Kind != yaml.SequenceNode {
		return // compose-go says what is wrong with it
	}
	for _, item := range section.Content {
		at := place{file: f, line: item.Line, node: item}
		item = follow(item)
		paths := f.texts(item)
		project, envFiles := "", []string(nil)
		if item.Kind == yaml.MappingNode {
			paths = nil
			if n, ok := lookup(item, "path"); ok {
				paths = f.texts(n)
			}
			if n, ok := lookup(item, "project_directory"); ok {
				project = f.text(n)
			}
			if n, ok := lookup(item, "env_file"); ok {
				envFiles = f.texts(n)
			}
		}
		s.includeOne(at, paths, project, envFiles, chain)
	}
}

func (s *sources) includeOne(at place, paths []string, project string, envFiles, chain []string) {
	from := at.file
	dir := ""
	for n, p := range paths {
		if !s.local(at, "include", p) {
			return
		}
		path := join(from.dir, p)
		if n == 0 {
			if slices.Contains(chain, path) {
				return // compose-go tells the whole circle
			}
			dir = filepath.Dir(path)
			if project != "" {
				dir = join(from.dir, project)
			}
		}
		f := &file{name: s.display(path), path: path, dir: dir, env: s.includedEnv(from, dir, envFiles), extra: true}
		if f = s.read(f, at); f != nil {
			s.walkFile(f, append(slices.Clone(chain), path))
		}
	}
}

// local refuses files that would have to be fetched.
func (s *sources) local(at place, path, name string) bool {
	if !strings.Contains(name, "://") && !strings.HasPrefix(name, "git@") {
		return true
	}
	s.note(note{place: at, path: path, kind: fault.Unsupported, text: name + " is not on this machine; only local files are read", spoils: true})
	return false
}

func join(dir, path string) string {
	if filepath.IsAbs(path) {
		return filepath.Clean(path)
	}
	return filepath.Join(dir, path)
}

// includedEnv is the environment of an included file: its own .env adds to the including one's. What
// is wrong with such a file compose-go says.
func (s *sources) includedEnv(from *file, dir string, envFiles []string) types.Mapping {
	if len(envFiles) == 0 {
		if own := filepath.Join(dir, ".env"); isFile(own) {
			envFiles = []string{own}
		}
	}
	for i, name := range envFiles {
		envFiles[i] = join(from.dir, name)
	}
	envFiles = slices.DeleteFunc(envFiles, func(name string) bool { return name == os.DevNull })
	var more types.Mapping
	var err error
	if len(envFiles) == 0 {
		return from.env
	}
	s.hearVariables(s.display(envFiles[0]), func() { more, err = dotenv.GetEnvFromFile(from.env, envFiles) })
	if err != nil {
		return from.env
	}
	return from.env.Clone().Merge(more)
}

func isFile(path string) bool {
	st, err := os.Stat(path)
	return err == nil && !st.IsDir()
}

// interpolate replaces variables, as compose-go will; what cannot be replaced stays.
func (f *file) interpolate(value string) string {
	out, err := template.SubstituteWithOptions(value, f.env.Resolve, template.WithoutLogging)
	if err != nil {
		return value
	}
	return out
}

// text is all that a node says, its variables replaced.
func (f *file) text(node *yaml.Node) string { return strings.Join(f.texts(node), " ") }

func (f *file) texts(node *yaml.Node) []string { return f.collect(nil, node, 0) }

func (f *file) collect(out []string, node *yaml.Node, depth int) []string {
	node = follow(node)
	if node == nil || depth > 20 { // an alias may lead back
		return out
	}
	if node.Kind == yaml.ScalarNode {
		return append(out, f.interpolate(node.Value))
	}
	for _, sub := range node.Content {
		out = f.collect(out, sub, depth+1)
	}
	return out
}

// where finds the place of a path of the merged project, or of what holds it.
func (s *sources) where(path string) place {
	for {
		if list := s.places[path]; len(list) > 0 {
			return list[len(list)-1]
		}
		i := strings.LastIndexByte(path, '.')
		if i < 0 {
			break
		}
		path = path[:i]
	}
	for _, f := range s.files {
		if !f.extra {
			return place{file: f}
		}
	}
	return place{}
}

// item finds the element of a list or mapping that says all of the words, in the latest file that
// has one, or else the list.
func (s *sources) item(path string, words ...string) place {
	for _, has := range []func(text, word string) bool{isWord, hasToken, hasWord} {
		for _, p := range slices.Backward(s.places[path]) {
			node := follow(p.node)
			if node == nil || node.Kind == yaml.ScalarNode {
				continue
			}
			step := 1
			if node.Kind == yaml.MappingNode {
				step = 2
			}
			for i := len(node.Content) - step; i >= 0; i -= step {
				text := p.file.text(&yaml.Node{Kind: yaml.SequenceNode, Content: node.Content[i : i+step]})
				if !slices.ContainsFunc(words, func(w string) bool { return !has(text, w) }) {
					return place{file: p.file, line: node.Content[i].Line, node: node.Content[i]}
				}
			}
		}
	}
	return s.where(path)
}

func isWord(text, word string) bool { return word == "" || text == word }

// hasToken reports whether a text has a word between the marks of short forms.
func hasToken(text, word string) bool {
	tokens := strings.FieldsFunc(text, func(r rune) bool { return strings.ContainsRune(" :,=", r) })
	return word == "" || slices.ContainsFunc(tokens, func(t string) bool { return t == word || strings.TrimRight(t, "/") == word })
}

// hasWord reports whether a text has a word that no letter, digit or underscore makes longer.
func hasWord(text, word string) bool {
	if word == "" {
		return true
	}
	part := func(i int) bool {
		return i >= 0 && i < len(text) && (text[i] == '_' || text[i] >= '0' && text[i] <= '9' || text[i]|0x20 >= 'a' && text[i]|0x20 <= 'z')
	}
	for from := 0; ; {
		i := strings.Index(text[from:], word)
		if i < 0 {
			return false
		}
		if i += from; !part(i-1) && !part(i+len(word)) {
			return true
		}
		from = i + 1
	}
}

// forCompose is the content of a file as compose-go gets it. Once keys were taken out of the trees,
// which is a problem anyway, it is written anew.
func (f *file) forCompose(pruned bool) ([]byte, error) {
	if !pruned {
		return f.content, nil
	}
	var out bytes.Buffer
	encoder := yaml.NewEncoder(&out)
	for _, doc := range f.docs {
		if err := encoder.Encode(doc); err != nil {
			return nil, fmt.Errorf("write %s anew: %w", f.name, err)
		}
	}
	return out.Bytes(), encoder.Close()
}
