package compose

import (
	"fmt"
	"maps"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"github.com/compose-spec/compose-go/v2/template"
	"go.yaml.in/yaml/v4"

	"github.com/tutti-run/tutti/internal/fault"
	"github.com/tutti-run/tutti/internal/model"
)

// walker goes through a file's tree: it notes where everything is said, and what the table has
// against it.
type walker struct {
	src  *sources
	file *file
	// A service that extends another has what that one says: then merged is its own path, and
	// shown the other's.
	merged, shown   string
	section, member string
	bases           []string // services on the way here, by file and name: extending goes round in no circle
}

// shownPath is a path of the merged project as the file at hand has it.
func (w *walker) shownPath(path string) string {
	if w.merged != w.shown && (path == w.merged || strings.HasPrefix(path, w.merged+".")) {
		return w.shown + path[len(w.merged):]
	}
	return path
}

func (w *walker) noteAt(node *yaml.Node, path, text string) note {
	return note{
		place: place{file: w.file, line: node.Line, node: node}, path: w.shownPath(path), text: text, kind: fault.Invalid,
		merged: path, section: w.section, member: w.member, depth: len(w.bases),
	}
}

func (w *walker) say(node *yaml.Node, path string, v verdict, text string) {
	n := w.noteAt(node, path, text)
	switch v {
	case refused:
		n.kind = fault.Unsupported
	case ignored:
		n.mild, n.text = true, "ignored: "+text
	case foreign:
		n.always, n.spoils = true, w.file.extra // what is wrong in the others is taken out
		w.src.pruned = true
	}
	w.src.note(n)
}

// mapping walks the keys of a mapping, those that are merged into it by << first.
func (w *walker) mapping(node *yaml.Node, path string, r *rule) {
	for i := 0; i+1 < len(node.Content); i += 2 {
		if node.Content[i].Value == "<<" {
			w.mergeKey(node.Content[i+1], path, r)
		}
	}
	var unknown []int
	for i := 0; i+1 < len(node.Content); i += 2 {
		if key := node.Content[i]; key.Value != "<<" && !w.key(key, node.Content[i+1], path, r) {
			unknown = append(unknown, i)
		}
	}
	// compose-go would stop at a key that it does not know; without them it tells of the rest.
	for _, i := range slices.Backward(unknown) {
		node.Content = slices.Delete(node.Content, i, i+2)
	}
}

func (w *walker) mergeKey(value *yaml.Node, path string, r *rule) {
	value = follow(value)
	switch {
	case value.Kind == yaml.MappingNode && w.visit(value, path):
		w.mapping(value, path, r)
	case value.Kind == yaml.SequenceNode:
		for _, item := range value.Content {
			w.mergeKey(item, path, r)
		}
	}
}

// visit counts a node, and says whether to go on.
func (w *walker) visit(node *yaml.Node, path string) bool {
	s := w.src
	if s.visits >= mostVisits {
		return false
	}
	if s.visits++; s.visits < mostVisits && len(path) < longestPath {
		return true
	}
	s.visits = mostVisits
	s.note(note{place: place{file: w.file, line: node.Line}, kind: fault.Invalid, spoils: true,
		text: "the file stands for too much: its aliases lead back to where they are used, or multiply what they stand for"})
	return false
}

// key walks a key and its value; false says that there is no such key.
func (w *walker) key(key, value *yaml.Node, path string, r *rule) (known bool) {
	sub := key.Value
	if path != "" {
		sub = path + "." + key.Value
	}
	if path == "" {
		w.section, w.member = key.Value, ""
	} else if path == w.section {
		w.member = key.Value
	}
	if strings.HasPrefix(key.Value, "x-") && !named(path) && (r == nil || r.keys[key.Value] == nil) {
		if r == nil || r.each != nil {
			w.say(key, sub, foreign, "a name that begins with x- is taken for an extension here, and lost; where a list is possible, write it there")
			return false
		}
		return true
	}
	switch value.Tag {
	case "!reset":
		w.takeBack(sub)
		return true
	case "!override":
		w.takeBack(sub)
	}
	next := r
	if r.opens() {
		if next = r.below(key.Value); next == nil {
			w.say(key, sub, foreign, "there is no such key"+suggestion(key.Value, r.keys))
			return false
		}
	}
	if path == "services" && w.merged == "" {
		w.merged, w.shown = sub, sub
		w.extended(follow(value), sub)
		defer func() { w.merged, w.shown = "", "" }()
	}
	w.src.places[sub] = append(w.src.places[sub], place{file: w.file, line: key.Line, node: value})
	return w.known(key, follow(value), sub, next)
}

// takeBack notes that what earlier files say at a path does not count.
func (w *walker) takeBack(path string) {
	w.src.resets = append(w.src.resets, reset{order: w.file.order, depth: len(w.bases), path: path})
}

// known walks the value of a key with the table's rule of it.
func (w *walker) known(key, value *yaml.Node, path string, r *rule) (exists bool) {
	switch {
	case r == nil:
	case r.verdict != honoured:
		w.judge(key, value, path, r)
		return r.verdict != foreign
	case !r.opens() && r.scalar == nil:
		r = nil // anything may follow
	}
	w.value(value, path, r)
	return true
}

// named reports whether the keys at a path are names that people choose, with x- in front if they like.
func named(path string) bool {
	switch path {
	case "services", "networks", "volumes", "secrets", "configs":
		return true
	}
	parts := strings.Split(path, ".")
	return len(parts) > 2 && parts[0] == "services" && parts[len(parts)-1] == "depends_on"
}

// judge says what the table has against a key, unless its value asks for what happens anyway.
func (w *walker) judge(key, value *yaml.Node, path string, r *rule) {
	if value.Kind == yaml.ScalarNode && slices.Contains(r.harmless, w.file.interpolate(value.Value)) {
		w.takeBack(path)
		return
	}
	w.say(key, path, r.verdict, r.says)
}

func (w *walker) value(node *yaml.Node, path string, r *rule) {
	if !w.visit(node, path) {
		return
	}
	switch node.Kind {
	case yaml.MappingNode:
		w.mapping(node, path, r)
	case yaml.SequenceNode:
		w.sequence(node, path, r)
	case yaml.ScalarNode:
		w.scalar(node, path, r)
	}
}

func (w *walker) sequence(node *yaml.Node, path string, r *rule) {
	var wrong []int
	for i, item := range node.Content {
		sub := fmt.Sprintf("%s.%d", path, i)
		w.src.places[sub] = append(w.src.places[sub], place{file: w.file, line: item.Line, node: item})
		switch item = follow(item); {
		case item.Kind != yaml.ScalarNode:
			w.value(item, sub, r)
		case !w.visit(item, sub) || !w.scalar(item, sub, r):
			wrong = append(wrong, i)
		}
	}
	for _, i := range slices.Backward(wrong) {
		node.Content = slices.Delete(node.Content, i, i+1)
	}
}

// scalar returns false for a short form that means nothing.
func (w *walker) scalar(node *yaml.Node, path string, r *rule) (ok bool) {
	w.variables(node, path)
	ok = true
	if r != nil && r.scalar != nil && node.Value != "" {
		r.scalar(w.file.interpolate(node.Value), func(v verdict, text string) {
			ok = ok && v != foreign
			w.say(node, path, v, text)
		})
	}
	return ok
}

// variables warns of those that are not set and have no default.
func (w *walker) variables(node *yaml.Node, path string) {
	if !strings.Contains(node.Value, "$") {
		return
	}
	for name, v := range template.ExtractVariables(map[string]any{"": node.Value}, nil) {
		if _, set := w.file.env.Resolve(name); set || name == "" || v.Required || guarded(node.Value, name) {
			continue
		}
		n := w.noteAt(node, path, "variable "+name+" is not set; it is taken as empty")
		n.mild = true
		w.src.note(n)
	}
}

// guarded reports whether a text says what a variable stands for while it is not set.
func guarded(text, name string) bool {
	found, err := regexp.MatchString(`\$\{`+regexp.QuoteMeta(name)+`:?[-+?]`, text)
	return err == nil && found
}

// extended walks the service that a service extends, as if it were said in that one's place.
func (w *walker) extended(service *yaml.Node, merged string) {
	ext, ok := lookup(service, "extends")
	if !ok {
		return
	}
	name, from := w.file.text(ext), w.file
	if ext.Kind == yaml.MappingNode {
		service, _ := lookup(ext, "service")
		name = w.file.text(service)
		if other, ok := lookup(ext, "file"); ok {
			if from = w.base(ext, w.file.text(other), merged); from == nil {
				return
			}
		}
	}
	id := from.path + "\x00" + name
	if slices.Contains(w.bases, id) {
		return // compose-go tells the whole circle
	}
	for _, doc := range from.docs {
		services, _ := lookup(doc, "services")
		base, ok := lookup(services, name)
		if !ok || base.Kind != yaml.MappingNode {
			continue
		}
		b := &walker{
			src: w.src, file: from, merged: merged, shown: "services." + name, section: w.section, member: w.member,
			bases: append(slices.Clone(w.bases), id),
		}
		b.extended(base, merged)
		if b.visit(base, merged) {
			b.mapping(base, merged, within(serviceRules))
		}
	}
}

// base reads the file of a service that is extended.
func (w *walker) base(at *yaml.Node, name, merged string) *file {
	from := place{file: w.file, line: at.Line, node: at}
	if !w.src.local(from, w.shownPath(merged)+".extends", name) {
		return nil
	}
	path := join(w.file.dir, name)
	if path == w.file.path {
		return w.file
	}
	return w.src.read(&file{name: w.src.display(path), path: path, dir: filepath.Dir(path), order: w.file.order, env: w.file.env, extra: true}, from)
}

// suggestion names the key that somebody may have meant.
func suggestion(key string, among keys) string {
	best := model.Nearest(key, maps.Keys(among))
	if best == "" {
		return ""
	}
	return "; did you mean " + best + "?"
}
