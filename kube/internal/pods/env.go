package pods

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"

	"github.com/tutti-run/tutti/internal/model"
)

// What is known only once the Pod has a node; the agent fills it in.
const (
	nodeName    = "{node.name}"
	nodeAddress = "{node.address}"
	podAddress  = "{address}"
	nodeRoom    = "{node.room."
)

func placed(value string) bool {
	return strings.Contains(value, nodeName) || strings.Contains(value, nodeAddress) || strings.Contains(value, podAddress) || strings.Contains(value, nodeRoom)
}

// environment resolves a container's variables, and with them its command.
func (t *translation) environment(c *corev1.Container, task *model.TaskSpec) error {
	values := map[string]string{}
	var order []string
	set := func(name, value string) {
		if _, there := values[name]; !there {
			order = append(order, name)
		}
		values[name] = value
	}
	for _, s := range t.around.services {
		if t.pod.Spec.EnableServiceLinks == nil || *t.pod.Spec.EnableServiceLinks || s.Namespace == "default" && s.Name == "kubernetes" {
			serviceVariables(s, set)
		}
	}
	for i := range c.EnvFrom {
		if err := t.envFrom(&c.EnvFrom[i], set); err != nil {
			return err
		}
	}
	for i := range c.Env {
		e := &c.Env[i]
		value, ok := expand(e.Value, values), true
		if e.ValueFrom != nil {
			var err error
			if value, ok, err = t.valueFrom(c, e.ValueFrom); err != nil {
				return fmt.Errorf("variable %s: %w", e.Name, err)
			}
		}
		if ok {
			set(e.Name, value)
		}
	}
	for _, name := range order {
		if placed(values[name]) {
			task.PlacedEnv = append(task.PlacedEnv, name+"="+values[name])
		} else {
			task.Env = append(task.Env, name+"="+values[name])
		}
	}
	all := func(list []string) []string {
		var out []string
		for _, a := range list {
			out = append(out, expand(a, values))
			task.PlacedArgs = task.PlacedArgs || placed(out[len(out)-1]) && !placed(a)
		}
		return out
	}
	task.Entrypoint, task.Args = all(c.Command), all(c.Args)
	return nil
}

// serviceVariables are those by which a service is found in the environment.
func serviceVariables(s *corev1.Service, set func(name, value string)) {
	ip := s.Spec.ClusterIP
	if ip == "" || ip == corev1.ClusterIPNone || len(s.Spec.Ports) == 0 {
		return
	}
	name := strings.ToUpper(strings.ReplaceAll(s.Name, "-", "_"))
	set(name+"_SERVICE_HOST", ip)
	set(name+"_SERVICE_PORT", strconv.Itoa(int(s.Spec.Ports[0].Port)))
	for _, p := range s.Spec.Ports {
		port, protocol := strconv.Itoa(int(p.Port)), protocolOf(p.Protocol)
		if p.Name != "" {
			set(name+"_SERVICE_PORT_"+strings.ToUpper(strings.ReplaceAll(p.Name, "-", "_")), port)
		}
		one := name + "_PORT_" + port + "_" + strings.ToUpper(protocol)
		url := protocol + "://" + ip + ":" + port
		if p.Port == s.Spec.Ports[0].Port {
			set(name+"_PORT", url)
		}
		set(one, url)
		set(one+"_PROTO", protocol)
		set(one+"_PORT", port)
		set(one+"_ADDR", ip)
	}
}

func (t *translation) envFrom(f *corev1.EnvFromSource, set func(name, value string)) error {
	data := map[string]string{}
	switch {
	case f.ConfigMapRef != nil:
		m, err := t.around.configMap(f.ConfigMapRef.Name)
		if missing(err, f.ConfigMapRef.Optional) {
			return nil
		}
		if err != nil {
			return err
		}
		data = m.Data
	case f.SecretRef != nil:
		s, err := t.around.secret(f.SecretRef.Name)
		if missing(err, f.SecretRef.Optional) {
			return nil
		}
		if err != nil {
			return err
		}
		for k, v := range s.Data {
			data[k] = string(v)
		}
	}
	names := make([]string, 0, len(data))
	for name := range data {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		set(f.Prefix+name, data[name])
	}
	return nil
}

func missing(err error, optional *bool) bool {
	return apierrors.IsNotFound(err) && optional != nil && *optional
}

// valueFrom is a value that is kept elsewhere; ok is false for an optional one that is not there.
func (t *translation) valueFrom(c *corev1.Container, f *corev1.EnvVarSource) (value string, ok bool, err error) {
	switch {
	case f.ConfigMapKeyRef != nil:
		m, err := t.around.configMap(f.ConfigMapKeyRef.Name)
		if missing(err, f.ConfigMapKeyRef.Optional) {
			return "", false, nil
		}
		if err != nil {
			return "", false, err
		}
		value, ok = m.Data[f.ConfigMapKeyRef.Key]
		if !ok && (f.ConfigMapKeyRef.Optional == nil || !*f.ConfigMapKeyRef.Optional) {
			return "", false, fmt.Errorf("couldn't find key %s in ConfigMap %s/%s", f.ConfigMapKeyRef.Key, t.pod.Namespace, m.Name)
		}
		return value, ok, nil
	case f.SecretKeyRef != nil:
		s, err := t.around.secret(f.SecretKeyRef.Name)
		if missing(err, f.SecretKeyRef.Optional) {
			return "", false, nil
		}
		if err != nil {
			return "", false, err
		}
		data, ok := s.Data[f.SecretKeyRef.Key]
		if !ok && (f.SecretKeyRef.Optional == nil || !*f.SecretKeyRef.Optional) {
			return "", false, fmt.Errorf("couldn't find key %s in Secret %s/%s", f.SecretKeyRef.Key, t.pod.Namespace, s.Name)
		}
		return string(data), ok, nil
	case f.FieldRef != nil:
		value, err = t.field(f.FieldRef.FieldPath)
		return value, true, err
	case f.ResourceFieldRef != nil:
		value, err = t.resourceField(c, f.ResourceFieldRef)
		return value, true, err
	}
	return "", false, fmt.Errorf("the source of the value is not supported")
}

// field is a field of the Pod.
func (t *translation) field(path string) (string, error) {
	switch path {
	case "metadata.name":
		return t.pod.Name, nil
	case "metadata.namespace":
		return t.pod.Namespace, nil
	case "metadata.uid":
		return string(t.pod.UID), nil
	case "metadata.labels":
		return quoted(t.pod.Labels), nil
	case "metadata.annotations":
		return quoted(t.pod.Annotations), nil
	case "spec.nodeName":
		return cmp.Or(t.pod.Spec.NodeName, nodeName), nil
	case "spec.serviceAccountName":
		return t.pod.Spec.ServiceAccountName, nil
	case "status.hostIP", "status.hostIPs":
		return nodeAddress, nil
	case "status.podIP", "status.podIPs":
		return podAddress, nil
	}
	for prefix, from := range map[string]map[string]string{"metadata.labels['": t.pod.Labels, "metadata.annotations['": t.pod.Annotations} {
		if rest, ok := strings.CutPrefix(path, prefix); ok {
			return from[strings.TrimSuffix(rest, "']")], nil
		}
	}
	return "", fmt.Errorf("field %q of a Pod is not supported", path)
}

// quoted lists labels or annotations, one a line.
func quoted(m map[string]string) string {
	var lines []string
	for k, v := range m {
		lines = append(lines, k+"="+strconv.Quote(v))
	}
	slices.Sort(lines)
	return strings.Join(lines, "\n")
}

func (t *translation) resourceField(c *corev1.Container, f *corev1.ResourceFieldSelector) (string, error) {
	if f.ContainerName != "" && f.ContainerName != c.Name {
		found := false
		for _, list := range [][]corev1.Container{t.pod.Spec.InitContainers, t.pod.Spec.Containers} {
			for i := range list {
				if list[i].Name == f.ContainerName {
					c, found = &list[i], true
				}
			}
		}
		if !found {
			return "", fmt.Errorf("container %q does not exist", f.ContainerName)
		}
	}
	which, name, _ := strings.Cut(f.Resource, ".")
	list := c.Resources.Requests
	if which == "limits" {
		list = c.Resources.Limits
	}
	q, ok := list[corev1.ResourceName(name)]
	if !ok && which == "limits" { // what its node has
		unit := f.Divisor.Value()
		if name == string(corev1.ResourceCPU) {
			unit = cmp.Or(f.Divisor.MilliValue(), 1000)
		}
		of, known := map[string]string{"cpu": "cpu", "memory": "memory", "ephemeral-storage": "disk"}[name]
		if !known {
			return "", fmt.Errorf("%s of container %s is not set", f.Resource, c.Name)
		}
		return fmt.Sprintf("%s%s/%d}", nodeRoom, of, max(unit, 1)), nil
	}
	return divide(name, q, f.Divisor), nil
}

// divide rounds up, as the downward API does.
func divide(name string, q, divisor resource.Quantity) string {
	if name == string(corev1.ResourceCPU) {
		d := divisor.MilliValue()
		if d == 0 {
			d = 1000
		}
		return strconv.FormatInt((q.MilliValue()+d-1)/d, 10)
	}
	d := divisor.Value()
	if d == 0 {
		d = 1
	}
	return strconv.FormatInt((q.Value()+d-1)/d, 10)
}

// expand replaces $(NAME) by the value of a variable; $$(NAME) and names without a value stay.
func expand(s string, values map[string]string) string {
	var b strings.Builder
	for {
		i := strings.IndexByte(s, '$')
		if i < 0 || i+1 == len(s) {
			b.WriteString(s)
			return b.String()
		}
		b.WriteString(s[:i])
		switch rest := s[i+1:]; rest[0] {
		case '$':
			b.WriteByte('$')
			s = rest[1:]
		case '(':
			name, after, closed := strings.Cut(rest[1:], ")")
			value, known := values[name]
			switch {
			case !closed:
				b.WriteString("$(")
				s = rest[1:]
			case known:
				b.WriteString(value)
				s = after
			default:
				b.WriteString("$(" + name + ")")
				s = after
			}
		default:
			b.WriteByte('$')
			s = rest
		}
	}
}
