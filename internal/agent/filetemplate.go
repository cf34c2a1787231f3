package agent

import (
	"bytes"
	"path"
	"slices"
	"strconv"
	"strings"
	"text/template"

	"github.com/tutti-run/tutti/internal/fault"
	"github.com/tutti-run/tutti/internal/model"
	"github.com/tutti-run/tutti/internal/wire"
)

// maxFilledIn is how long a secret or config may become, in bytes.
const maxFilledIn = 4 << 20

// inTemplates is what the template of a secret or config may say, by the names that people know for it.
type inTemplates struct {
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

// fillInFile fills in the template of a secret or config for a task. Beside what is known of where it runs, a
// template has {{env "NAME"}} of the task, and {{secret "NAME"}} and {{config "NAME"}} of the files that the task
// has, by what they are called there, as they are.
func (w *worker) fillInFile(as *wire.Assignment, t *model.TaskSpec, m *model.Mount, text []byte) ([]byte, error) {
	i := as.Instance
	var v inTemplates
	v.Service.ID, v.Service.Name, v.Service.Labels = as.Workload.ID, as.Workload.Name, as.Labels
	if as.Workload.Application != "" {
		v.Service.Name = as.Workload.Application + "_" + as.Workload.Name
	}
	v.Node.ID, v.Node.Hostname = w.agent.NodeID, w.agent.NodeName
	v.Node.Platform.Architecture, v.Node.Platform.OS = machine(), "linux"
	v.Task.ID, v.Task.Slot = i.ID, strconv.Itoa(i.Slot)
	v.Task.Name = v.Service.Name + "." + v.Task.Slot + "." + i.ID
	refuse := func(err error) ([]byte, error) {
		return nil, fault.New(fault.Invalid, "fill in the template of %s %s: %w", m.Type, m.Target, err)
	}
	tpl, err := template.New(path.Base(m.Target)).Option("missingkey=error").Funcs(template.FuncMap{
		"env": func(name string) (string, error) {
			for _, e := range slices.Concat(t.Env, w.fillIn(i, t, "", t.PlacedEnv)) {
				if key, value, _ := strings.Cut(e, "="); key == name {
					return value, nil
				}
			}
			return "", nil
		},
		"secret": func(name string) (string, error) { return w.fileOf(as.Secrets, t, model.MountSecret, name) },
		"config": func(name string) (string, error) { return w.fileOf(as.Configs, t, model.MountConfig, name) },
	}).Parse(string(text))
	if err != nil {
		return refuse(err)
	}
	if len(tpl.Templates()) > 1 { // which could call each other without an end
		return refuse(fault.New(fault.Unsupported, "{{define}} and {{block}} are not supported"))
	}
	var out bytes.Buffer
	if err := tpl.Execute(&limited{&out, maxFilledIn}, &v); err != nil {
		return refuse(err)
	}
	return out.Bytes(), nil
}

// fileOf is the content of a file that a task has.
func (w *worker) fileOf(all map[string][]byte, t *model.TaskSpec, kind model.MountType, name string) (string, error) {
	for _, m := range t.Mounts {
		if m.Type == kind && m.Folder == "" && (path.Base(m.Target) == name || strings.TrimPrefix(m.Target, "/") == strings.TrimPrefix(name, "/")) {
			return string(all[m.Source]), nil
		}
	}
	return "", fault.New(fault.NotFound, "the task has no %s %q", kind, name)
}

// limited fails to write more than is left.
type limited struct {
	to   *bytes.Buffer
	left int
}

func (l *limited) Write(p []byte) (int, error) {
	if l.left -= len(p); l.left < 0 {
		return 0, fault.New(fault.Invalid, "it becomes longer than %d bytes", maxFilledIn)
	}
	return l.to.Write(p)
}
