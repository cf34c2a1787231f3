package marathon

import (
	"regexp"
	"strconv"
	"strings"

	"github.com/tutti-run/tutti/internal/model"
)

// meets reports whether a value is, or matches, that of a constraint.
func meets(have string, c *model.Constraint) bool {
	if c.Operator == model.Equal {
		return have == c.Values[0]
	}
	re, err := regexp.Compile("^(?:" + c.Values[0] + ")$")
	return err == nil && re.MatchString(have)
}

// parameters are the options of `docker run` that are honoured in container.docker.parameters.
var parameters = map[string]func(task *model.TaskSpec, t *model.Template, value string){
	"add-host": func(_ *model.TaskSpec, t *model.Template, v string) {
		name, address, _ := strings.Cut(v, ":")
		t.ExtraHosts = append(t.ExtraHosts, model.HostEntry{Name: name, Address: address})
	},
	"cap-add":  func(task *model.TaskSpec, _ *model.Template, v string) { task.CapAdd = append(task.CapAdd, v) },
	"cap-drop": func(task *model.TaskSpec, _ *model.Template, v string) { task.CapDrop = append(task.CapDrop, v) },
	"dns":      func(_ *model.TaskSpec, t *model.Template, v string) { t.DNS.Servers = append(t.DNS.Servers, v) },
	"dns-search": func(_ *model.TaskSpec, t *model.Template, v string) {
		t.DNS.Search = append(t.DNS.Search, v)
	},
	"entrypoint": func(task *model.TaskSpec, _ *model.Template, v string) {
		task.Entrypoint = []string{v}
		if task.Args == nil {
			task.Args = []string{}
		}
	},
	"env":      func(task *model.TaskSpec, _ *model.Template, v string) { task.Env = append(task.Env, v) },
	"hostname": func(_ *model.TaskSpec, t *model.Template, v string) { t.Hostname = v },
	"label": func(task *model.TaskSpec, _ *model.Template, v string) {
		name, value, _ := strings.Cut(v, "=")
		if task.Labels == nil {
			task.Labels = map[string]string{}
		}
		task.Labels[name] = value
	},
	"read-only": func(task *model.TaskSpec, _ *model.Template, v string) { task.ReadOnlyRoot = v == "true" },
	"user":      func(task *model.TaskSpec, _ *model.Template, v string) { task.User = v },
	"ulimit": func(task *model.TaskSpec, _ *model.Template, v string) {
		name, numbers, _ := strings.Cut(v, "=")
		soft, hard, both := strings.Cut(numbers, ":")
		if !both {
			hard = soft
		}
		s, err := strconv.ParseInt(soft, 10, 64)
		h, err2 := strconv.ParseInt(hard, 10, 64)
		if err == nil && err2 == nil {
			task.Ulimits = append(task.Ulimits, model.Ulimit{Name: name, Soft: s, Hard: h})
		}
	},
	"workdir": func(task *model.TaskSpec, _ *model.Template, v string) { task.WorkingDir = v },
}

func knownParameter(key string) bool { return parameters[key] != nil }

func apply(task *model.TaskSpec, t *model.Template, p dockerParameter) {
	if f := parameters[p.Key]; f != nil {
		f(task, t, p.Value)
	}
}
