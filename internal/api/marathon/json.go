package marathon

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"reflect"
	"slices"
	"strings"

	"github.com/tutti-run/tutti/internal/fault"
)

// maxBody bounds a request's body.
const maxBody = 8 << 20

// object is a JSON object whose fields are read one by one.
type object map[string]json.RawMessage

func readBody(r *http.Request) ([]byte, error) {
	body, err := io.ReadAll(io.LimitReader(r.Body, maxBody+1))
	if err != nil {
		return nil, fault.New(fault.Invalid, "read the request: %w", err)
	}
	if len(body) > maxBody {
		return nil, badJSON("/", fmt.Sprintf("the request is larger than %d MB", maxBody>>20))
	}
	return body, nil
}

// bodyObject reads a request's body as a JSON object.
func bodyObject(r *http.Request) (object, error) {
	body, err := readBody(r)
	if err != nil {
		return nil, err
	}
	return readObject(body)
}

func readObject(body []byte) (object, error) {
	var o object
	if err := json.Unmarshal(body, &o); err != nil {
		return nil, badJSON("/", "expected a JSON object: "+err.Error())
	}
	if o == nil {
		return nil, badJSON("/", "expected a JSON object")
	}
	return o, nil
}

// into reads the object into v, which is a pointer to a struct. What v does not know is added to the
// problems, with its path.
func (o object) into(v any, path string, p *problems) {
	data, err := json.Marshal(o)
	if err != nil {
		p.add(path, err.Error())
		return
	}
	readInto(data, v, path, p)
}

func readInto(data []byte, v any, path string, p *problems) {
	var any any
	if err := json.Unmarshal(data, &any); err != nil {
		p.add(path, err.Error())
		return
	}
	strangers(any, reflect.TypeOf(v).Elem(), path, p)
	if err := json.Unmarshal(data, v); err != nil {
		var mistyped *json.UnmarshalTypeError
		if errors.As(err, &mistyped) {
			where := strings.TrimSuffix(path, "/")
			if mistyped.Field != "" {
				where += "/" + strings.ReplaceAll(mistyped.Field, ".", "/")
			}
			p.add(where, fmt.Sprintf("expected %s, not a %s", kindText(mistyped.Type), mistyped.Value))
			return
		}
		p.add(path, err.Error())
	}
}

func kindText(t reflect.Type) string {
	switch t.Kind() {
	case reflect.String:
		return "a string"
	case reflect.Bool:
		return "true or false"
	case reflect.Slice, reflect.Array:
		return "an array"
	case reflect.Struct, reflect.Map:
		return "an object"
	case reflect.Pointer:
		return kindText(t.Elem())
	}
	return "a number"
}

// own is implemented by types that read themselves and are not looked into.
type own interface{ readsItself() }

func (envValue) readsItself()    {}
func (unreachable) readsItself() {}

// strangers notes the fields of JSON objects that the types to read them have none for.
func strangers(v any, t reflect.Type, path string, p *problems) {
	for t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	if reflect.Zero(t).Type().Implements(reflect.TypeFor[own]()) {
		return
	}
	switch v := v.(type) {
	case map[string]any:
		switch t.Kind() {
		case reflect.Struct:
			known := fieldsOf(t)
			for name, value := range v {
				f, ok := known[name]
				switch {
				case ok:
					strangers(value, f, join(path, name), p)
				case !saysNothing(value):
					p.add(join(path, name), "there is no such field"+didYouMean(name, known))
				}
			}
		case reflect.Map:
			for name, value := range v {
				strangers(value, t.Elem(), join(path, name), p)
			}
		}
	case []any:
		if t.Kind() == reflect.Slice {
			for i, value := range v {
				strangers(value, t.Elem(), fmt.Sprintf("%s(%d)", path, i), p)
			}
		}
	}
}

func join(path, name string) string { return strings.TrimSuffix(path, "/") + "/" + name }

// saysNothing reports whether a value asks for nothing.
func saysNothing(v any) bool {
	switch x := v.(type) {
	case nil:
		return true
	case []any:
		return len(x) == 0
	case map[string]any:
		return len(x) == 0
	}
	return false
}

func fieldsOf(t reflect.Type) map[string]reflect.Type {
	out := map[string]reflect.Type{}
	for i := range t.NumField() {
		f := t.Field(i)
		name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
		if f.Anonymous && name == "" {
			for k, v := range fieldsOf(f.Type) {
				out[k] = v
			}
			continue
		}
		if name != "" && name != "-" {
			out[name] = f.Type
		}
	}
	return out
}

func didYouMean(name string, known map[string]reflect.Type) string {
	for k := range known {
		if strings.EqualFold(k, name) {
			return "; did you mean " + k + "?"
		}
	}
	return ""
}

func (e *envValue) UnmarshalJSON(data []byte) error {
	var s string
	if json.Unmarshal(data, &s) == nil {
		e.Value = s
		return nil
	}
	var ref struct {
		Secret *string `json:"secret"`
	}
	if err := json.Unmarshal(data, &ref); err != nil || ref.Secret == nil {
		return fmt.Errorf("the value of an environment variable is a string, or {\"secret\": NAME}; it is %s", clip(data))
	}
	e.Secret = *ref.Secret
	return nil
}

func (u *unreachable) UnmarshalJSON(data []byte) error {
	var word string
	if json.Unmarshal(data, &word) == nil {
		if word != "disabled" {
			return fmt.Errorf("unreachableStrategy is an object or \"disabled\", not %q", word)
		}
		u.Disabled = true
		return nil
	}
	var s struct {
		unreachableSeconds
		UnreachableInactive *int64 `json:"unreachableInactiveAfterSeconds"` // as early clients call them
		UnreachableExpunge  *int64 `json:"unreachableExpungeAfterSeconds"`
	}
	if err := json.Unmarshal(data, &s); err != nil {
		return err
	}
	u.InactiveAfterSeconds, u.ExpungeAfterSeconds = s.InactiveAfterSeconds, s.ExpungeAfterSeconds
	if s.UnreachableInactive != nil {
		u.InactiveAfterSeconds = *s.UnreachableInactive
	}
	if s.UnreachableExpunge != nil {
		u.ExpungeAfterSeconds = *s.UnreachableExpunge
	}
	return nil
}

func clip(data []byte) string {
	data = bytes.TrimSpace(data)
	if len(data) > 60 {
		return string(data[:60]) + "…"
	}
	return string(data)
}

// The defaults of parts of an app are what they are read over.

func (a *artifact) UnmarshalJSON(data []byte) error {
	type plain artifact
	v := plain{Extract: true}
	err := json.Unmarshal(data, &v)
	*a = artifact(v)
	return err
}

func (h *healthCheck) UnmarshalJSON(data []byte) error {
	type plain healthCheck
	v := plain{Protocol: "HTTP", GracePeriodSeconds: 300, IntervalSeconds: 60, TimeoutSeconds: 20, MaxConsecutiveFailures: 3, DelaySeconds: 15, IPProtocol: "IPv4"}
	err := json.Unmarshal(data, &v)
	*h = healthCheck(v)
	return err
}

func (c *readinessCheck) UnmarshalJSON(data []byte) error {
	type plain readinessCheck
	v := plain{Name: "readinessCheck", Protocol: "HTTP", Path: "/", PortName: "http-api", IntervalSeconds: 30, TimeoutSeconds: 10}
	err := json.Unmarshal(data, &v)
	if len(v.HTTPStatusCodesForReady) == 0 {
		v.HTTPStatusCodesForReady = []int{200}
	}
	*c = readinessCheck(v)
	return err
}

func (m *portMapping) UnmarshalJSON(data []byte) error {
	type plain portMapping
	v := plain{Protocol: "tcp", Labels: map[string]string{}}
	err := json.Unmarshal(data, &v)
	*m = portMapping(v)
	return err
}

func (d *portDefinition) UnmarshalJSON(data []byte) error {
	type plain portDefinition
	v := plain{Protocol: "tcp", Labels: map[string]string{}}
	err := json.Unmarshal(data, &v)
	*d = portDefinition(v)
	return err
}

func (n *network) UnmarshalJSON(data []byte) error {
	type plain network
	v := plain{Mode: "container"}
	err := json.Unmarshal(data, &v)
	*n = network(v)
	return err
}

func (c *container) UnmarshalJSON(data []byte) error {
	type plain container
	v := plain{Type: "DOCKER", Volumes: []volume{}}
	err := json.Unmarshal(data, &v)
	if v.Volumes == nil {
		v.Volumes = []volume{}
	}
	*c = container(v)
	return err
}

func (d *dockerImage) UnmarshalJSON(data []byte) error {
	type plain dockerImage
	v := plain{Parameters: []dockerParameter{}}
	err := json.Unmarshal(data, &v)
	if v.Parameters == nil {
		v.Parameters = []dockerParameter{}
	}
	*d = dockerImage(v)
	return err
}

func (r *residency) UnmarshalJSON(data []byte) error {
	type plain residency
	v := plain{RelaunchEscalationTimeoutSeconds: 3600, TaskLostBehavior: "WAIT_FOREVER"}
	err := json.Unmarshal(data, &v)
	*r = residency(v)
	return err
}

// without is the object without some of its fields.
func (o object) without(names ...string) object {
	out := object{}
	for k, v := range o {
		if !slices.Contains(names, k) {
			out[k] = v
		}
	}
	return out
}

func (o object) set(name string, v any) {
	data, err := json.Marshal(v)
	if err == nil {
		o[name] = data
	}
}

// isNull reports whether a field is there and null.
func (o object) isNull(name string) bool {
	v, ok := o[name]
	return ok && string(bytes.TrimSpace(v)) == "null"
}

// text reads a field that is a string; "" when it is none.
func (o object) text(name string) string {
	var s string
	_ = json.Unmarshal(o[name], &s) // what it is not, is told when it is read for good
	return s
}
