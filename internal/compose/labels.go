package compose

import (
	"encoding/json"
	"errors"
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/compose-spec/compose-go/v2/types"
	"go.yaml.in/yaml/v4"

	"github.com/tutti-run/tutti/internal/fault"
	"github.com/tutti-run/tutti/internal/model"
)

// LabelPrefix begins the labels of a service that ask for what their API has no word for.
const LabelPrefix = "tutti."

// labelRules are the keys that labels know: those of x-tutti, but for what makes a plain process, and three of a
// service that the commands which make services have no words for.
var labelRules = func() keys {
	k := maps.Clone(tuttiRules)
	for _, key := range []string{"process", "artifacts", "umask"} {
		delete(k, key)
	}
	for _, key := range slices.Concat([]string{"depends_on", "privileged", "devices"}, confineLabels) {
		k[key] = well
	}
	return k
}()

// ApplyLabels changes a service as its labels ask, and its workload. "tutti.KEY" has as its value, in YAML, what x-tutti.KEY has in
// a Compose file; tutti.depends_on, tutti.privileged and tutti.devices are the keys of these names. Other
// labels say nothing. The error names every problem.
func ApplyLabels(labels map[string]string, w *model.Workload, svc *model.Service) error {
	values := map[string]any{}
	o := &one{
		translation:   &translation{project: &types.Project{Name: w.Application}, src: &sources{}, refs: map[string]string{}, ends: map[string]string{}},
		ServiceConfig: &types.ServiceConfig{Name: w.Name}, deploy: &types.DeployConfig{}, path: "labels", w: w, svc: svc,
	}
	for _, label := range slices.Sorted(maps.Keys(labels)) {
		key, ours := strings.CutPrefix(label, LabelPrefix)
		if !ours {
			continue
		}
		r := labelRules[key]
		var value any
		switch err := yaml.Unmarshal([]byte(labels[label]), &value); {
		case r == nil:
			o.invalid(tuttiKey+"."+key, "there is no such label%s", strings.ReplaceAll(suggestion(key, labelRules), "mean ", "mean "+LabelPrefix))
		case err != nil:
			o.invalid(tuttiKey+"."+key, "%q is no YAML: %v", labels[label], err)
		default:
			o.unknown(key, value, r)
			values[key] = value
		}
	}
	if len(values) == 0 {
		return labelFailure(o.notes)
	}
	o.readDependencies(values["depends_on"])
	o.readPrivileges(values["privileged"], values["devices"])
	o.readConfinement(values)
	for _, key := range slices.Concat([]string{"depends_on", "privileged", "devices"}, confineLabels) {
		delete(values, key)
	}
	o.Extensions = types.Extensions{tuttiKey: values}
	for _, c := range routeSecretsOf(o.ServiceConfig) {
		o.refs["secrets."+c] = c
	}
	x := o.readExtras()
	o.extraKind(&x)
	if x.Kind != "" {
		o.stateful(&x)
	}
	job := w.Job
	if o.extraJob(&x); x.Parallelism == 0 {
		w.Job.Parallelism = job.Parallelism
	}
	placement := w.Template.Placement
	o.extraPlacement(&x)
	w.Template.Placement.Spread = append(placement.Spread, w.Template.Placement.Spread[len(placement.Spread):]...)
	o.extraBalance(&x)
	o.extraRoutes(&x)
	o.extraRollout(&x)
	o.extraRebalance(&x)
	o.extraAutoscale(&x)
	o.extraTuning(&x, &w.Template.Tasks[0])
	o.dependsOn()
	return labelFailure(o.notes)
}

// labelFailure names labels where files would be named by their keys.
func labelFailure(notes []note) error {
	for n := range notes {
		notes[n].path = strings.ReplaceAll(notes[n].path, "labels."+tuttiKey+".", "label "+LabelPrefix)
	}
	return failure(notes)
}

// unknown notes the keys of a value that the table does not have.
func (o *one) unknown(path string, value any, r *rule) {
	switch v := value.(type) {
	case []any:
		for _, e := range v {
			o.unknown(path, e, r)
		}
	case map[string]any:
		if !r.opens() {
			return
		}
		for _, key := range slices.Sorted(maps.Keys(v)) {
			sub := r.below(key)
			if sub == nil {
				o.invalid(tuttiKey+"."+path, "there is no key %s in it%s", key, suggestion(key, r.keys))
				continue
			}
			o.unknown(path+"."+key, v[key], sub)
		}
	}
}

// readDependencies reads a list of names, or a mapping of names to conditions.
func (o *one) readDependencies(value any) {
	switch v := value.(type) {
	case nil:
	case []any:
		o.DependsOn = types.DependsOnConfig{}
		for _, e := range v {
			name, ok := e.(string)
			if !ok {
				o.invalid(tuttiKey+".depends_on", "%v is not the name of a service", e)
				continue
			}
			o.DependsOn[name] = types.ServiceDependency{Required: true}
		}
	case map[string]any:
		o.DependsOn = types.DependsOnConfig{}
		for name, e := range v {
			d := struct {
				Condition string `json:"condition"`
				Required  *bool  `json:"required"`
			}{}
			data, err := json.Marshal(e)
			if err == nil {
				err = json.Unmarshal(data, &d)
			}
			conditions := []string{"", types.ServiceConditionStarted, types.ServiceConditionHealthy, types.ServiceConditionCompletedSuccessfully}
			if err != nil || !slices.Contains(conditions, d.Condition) {
				o.invalid(tuttiKey+".depends_on", "%s: a condition is one of %s", name, listed(conditions[1:]))
				continue
			}
			o.DependsOn[name] = types.ServiceDependency{Condition: d.Condition, Required: d.Required == nil || *d.Required}
		}
	default:
		o.invalid(tuttiKey+".depends_on", "%v is neither a list of services nor a mapping of services to conditions", value)
	}
}

// confineLabels are keys of a service that say how its containers are made, as texts.
var confineLabels = []string{"runtime", "pid", "ipc", "uts", "cgroup", "cpuset"}

func (o *one) readConfinement(values map[string]any) {
	for _, key := range confineLabels {
		value, given := values[key]
		if !given {
			continue
		}
		text, ok := value.(string)
		if n, number := value.(int); number && key == "cpuset" { // of one processor
			text, ok = strconv.Itoa(n), true
		}
		if !ok {
			o.invalid(tuttiKey+"."+key, "%v is no text", value)
			continue
		}
		*map[string]*string{"runtime": &o.Runtime, "pid": &o.Pid, "ipc": &o.Ipc, "uts": &o.Uts, "cgroup": &o.Cgroup, "cpuset": &o.CPUSet}[key] = text
	}
	o.Privileged = o.w.Template.Tasks[0].Privileged
	o.confine(&o.w.Template.Tasks[0])
}

func (o *one) readPrivileges(privileged, devices any) {
	task := &o.w.Template.Tasks[0]
	if on, ok := privileged.(bool); ok {
		task.Privileged = on
	} else if privileged != nil {
		o.invalid(tuttiKey+".privileged", "%v is neither true nor false", privileged)
	}
	list, ok := devices.([]any)
	if !ok && devices != nil {
		o.invalid(tuttiKey+".devices", "%v is not a list such as [/dev/fuse, \"/dev/sda:/dev/xvda:r\"]", devices)
	}
	for _, e := range list {
		text, _ := e.(string)
		d, err := deviceOf(text)
		if err != nil {
			o.invalid(tuttiKey+".devices", "%v", err)
			continue
		}
		o.Devices = append(o.Devices, d)
	}
	task.Devices = append(task.Devices, o.devices()...)
}

// deviceOf reads HOST[:CONTAINER[:PERMISSIONS]].
func deviceOf(text string) (types.DeviceMapping, error) {
	parts := strings.Split(text, ":")
	d := types.DeviceMapping{Source: parts[0], Target: parts[0], Permissions: "rwm"}
	switch len(parts) {
	case 3:
		d.Permissions = parts[2]
		fallthrough
	case 2:
		d.Target = parts[1]
	case 1:
	default:
		return d, fault.New(fault.Invalid, "%q is not HOST:CONTAINER:PERMISSIONS", text)
	}
	if text == "" {
		return d, errors.New("a device is named by its path")
	}
	return d, nil
}
