package docker

import (
	"io"
	"strings"
	"text/template"
	"text/template/parse"

	"github.com/tutti-run/tutti/internal/fault"
	"github.com/tutti-run/tutti/internal/model"
)

// placeholders is what Swarm's templates know of a task, with the words of ours for what is known only
// once it has a node.
type placeholders struct {
	Service struct {
		ID, Name string
		Labels   map[string]string
	}
	Node struct {
		ID, Hostname string
		Platform     struct{ Architecture, OS string }
	}
	Task struct{ ID, Name, Slot string }
}

func (t *serviceTranslation) placeholders() *placeholders {
	p := &placeholders{}
	p.Service.ID, p.Service.Name, p.Service.Labels = "{workload.id}", t.spec.Name, t.spec.Labels
	p.Node.ID, p.Node.Hostname = "{node.id}", "{node.name}"
	p.Node.Platform.Architecture, p.Node.Platform.OS = "{node.machine}", "linux"
	p.Task.ID, p.Task.Slot = "{instance.id}", "{slot}"
	p.Task.Name = t.spec.Name + ".{slot}.{instance.id}"
	if t.workload.Type.PerNode() {
		p.Task.Slot = "{node.id}" // as in the names of such tasks
		p.Task.Name = t.spec.Name + ".{node.id}.{instance.id}"
	}
	return p
}

// longest is the longest text that a template may become.
const longest = 64 << 10

// expand fills in a template. placed says that it has words of ours now.
func (t *serviceTranslation) expand(where, text string) (out string, placed bool, err error) {
	if !strings.Contains(text, "{{") {
		return text, false, nil
	}
	tpl, err := template.New(where).Option("missingkey=error").Parse(text)
	if err != nil {
		return "", false, fault.New(fault.Invalid, "rpc error: code = InvalidArgument desc = expanding %s failed: %w", where, err)
	}
	for _, n := range tpl.Root.Nodes { // what takes turns might take them for ever
		if n.Type() != parse.NodeText && n.Type() != parse.NodeAction {
			return "", false, notHonoured("a template with more than placeholders", text)
		}
	}
	var b strings.Builder
	if err := tpl.Execute(&bounded{&b, longest}, t.placeholders()); err != nil {
		return "", false, fault.New(fault.Invalid, "rpc error: code = InvalidArgument desc = expanding %s failed: %w", where, err)
	}
	return b.String(), true, nil
}

// bounded fails to write more than is left.
type bounded struct {
	w    io.Writer
	left int
}

func (b *bounded) Write(p []byte) (int, error) {
	if b.left -= len(p); b.left < 0 {
		return 0, fault.New(fault.Invalid, "it becomes too long")
	}
	return b.w.Write(p)
}

// templates fills in those that Swarm knows: in the environment, in the host's name, and in mounts.
func (t *serviceTranslation) templates(task *model.TaskSpec) error {
	tpl := &t.workload.Template
	var err error
	if tpl.Hostname, tpl.PlacedHostname, err = t.expand("the hostname", tpl.Hostname); err != nil {
		return err
	}
	var env []string
	for _, e := range task.Env {
		text, placed, err := t.expand("an environment variable", e)
		switch {
		case err != nil:
			return err
		case placed:
			task.PlacedEnv = append(task.PlacedEnv, text)
		default:
			env = append(env, e)
		}
	}
	task.Env = env
	return nil
}

// mountTemplates fills in those of a mount. Volumes are the cluster's, and one whose name is not known yet
// could not be placed.
func (t *serviceTranslation) mountTemplates(m *model.Mount) error {
	source, inSource, err := t.expand("a mount's source", m.Source)
	if err != nil {
		return err
	}
	target, inTarget, err := t.expand("a mount's target", m.Target)
	if err != nil {
		return err
	}
	if (inSource || inTarget) && m.Type != model.MountBind {
		return notHonoured("a template in a mount of type "+string(m.Type), m.Source+":"+m.Target)
	}
	m.Source, m.Target, m.Placed = source, target, inSource || inTarget
	return nil
}
