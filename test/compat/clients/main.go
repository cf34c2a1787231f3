// Program clients walks every call of Go's own client of the Docker API against DOCKER_HOST, and says which
// work. A call that is to be refused is named with what the refusal says. It fails when a call does otherwise
// than it should, or when the client has one that is not walked.
package main

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"reflect"
	"runtime/debug"
	"slices"
	"strings"
	"time"

	"github.com/moby/moby/client"
)

func main() {
	if len(os.Args) != 2 {
		fmt.Fprintln(os.Stderr, "usage: clients IMAGE")
		os.Exit(2)
	}
	c, err := client.New(client.FromEnv)
	if err != nil {
		fmt.Fprintln(os.Stderr, "clients:", err)
		os.Exit(1)
	}
	w := &walk{client: c, image: os.Args[1]}
	if !w.run() {
		os.Exit(1)
	}
}

// notYet is what every refusal of what is not built says.
const notYet = "not supported by Tutti"

// step is one call. Its arguments are texts: as they are where the client takes a text or a reader, in JSON
// where it takes a struct; what is left out is zero. IMAGE stands for the image.
type step struct {
	method  string
	args    []any
	refuses string // what the refusal has to say; "" when it is to work
	says    string // what the answer has to say, as text or in JSON
}

type walk struct {
	client          *client.Client
	image           string
	worked, refused []string
	wrong           []string
	walked          map[string]bool
	last            string // what the last answer said
}

// local are methods that make no request.
var local = []string{"ClientVersion", "DaemonHost", "Dialer", "Close"}

func (w *walk) run() bool {
	w.walked = map[string]bool{}
	all := reflect.TypeOf((*client.APIClient)(nil)).Elem()
	w.all()
	calls := 0
	for i := range all.NumMethod() {
		name := all.Method(i).Name
		if slices.Contains(local, name) {
			continue
		}
		if calls++; !w.walked[name] {
			w.wrong = append(w.wrong, name+" is not walked")
		}
	}
	fmt.Printf("github.com/moby/moby/client %s: %d calls, %d made: %d work, %d are refused by name (%s), %d otherwise\n", version(), calls,
		len(w.worked)+len(w.refused)+len(w.wrong), len(w.worked), len(w.refused), strings.Join(w.refused, ", "), len(w.wrong))
	for _, line := range w.wrong {
		fmt.Println("  " + line)
	}
	return len(w.wrong) == 0
}

func version() string {
	info, _ := debug.ReadBuildInfo()
	for _, d := range info.Deps {
		if d.Path == "github.com/moby/moby/client" {
			return d.Version
		}
	}
	return ""
}

func (w *walk) call(s step) {
	w.walked[s.method] = true
	said, err := w.invoke(s)
	w.last = said
	switch {
	case err != nil && s.refuses != "" && strings.Contains(err.Error(), s.refuses):
		w.refused = append(w.refused, s.method)
	case err != nil:
		w.wrong = append(w.wrong, fmt.Sprintf("%s: %.300s", s.method, err))
	case s.refuses != "":
		w.wrong = append(w.wrong, fmt.Sprintf("%s: it was to be refused with %q, and answered %.300s", s.method, s.refuses, said))
	case !strings.Contains(said, strings.ReplaceAll(s.says, "IMAGE", w.image)):
		w.wrong = append(w.wrong, fmt.Sprintf("%s: it does not say %q: %.300s", s.method, s.says, said))
	default:
		w.worked = append(w.worked, s.method)
	}
}

// patience is how long a call may take.
const patience = time.Minute

func (w *walk) invoke(s step) (said string, err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("the client panics: %v", p)
		}
	}()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	m := reflect.ValueOf(w.client).MethodByName(s.method)
	if !m.IsValid() {
		return "", errors.New("there is no such call")
	}
	given := s.args
	var in []reflect.Value
	for i := range m.Type().NumIn() {
		t := m.Type().In(i)
		if t == reflect.TypeFor[context.Context]() {
			in = append(in, reflect.ValueOf(ctx))
			continue
		}
		if m.Type().IsVariadic() && i == m.Type().NumIn()-1 {
			break
		}
		var arg any
		if len(given) > 0 {
			arg, given = given[0], given[1:]
		}
		v, err := w.value(t, arg)
		if err != nil {
			return "", fmt.Errorf("%v: %w", arg, err)
		}
		in = append(in, v)
	}
	out := m.Call(in)
	if err, _ := out[len(out)-1].Interface().(error); err != nil {
		return "", err
	}
	for _, out := range out {
		text, err := w.read(ctx, out)
		if said += text; err != nil {
			return said, err
		}
	}
	return said, nil
}

// value makes an argument of a text.
func (w *walk) value(t reflect.Type, arg any) (reflect.Value, error) {
	switch a := arg.(type) {
	case nil:
		return reflect.Zero(t), nil
	case string:
		a = strings.ReplaceAll(a, "IMAGE", w.image)
		if t.Kind() == reflect.String {
			return reflect.ValueOf(a), nil
		}
		v := reflect.New(t)
		err := json.Unmarshal([]byte(a), v.Interface())
		return v.Elem(), err
	}
	return reflect.ValueOf(arg), nil
}

// read is what a result says: its content, or itself in JSON.
func (w *walk) read(ctx context.Context, v reflect.Value) (string, error) {
	switch x := v.Interface().(type) {
	case nil:
		return "", nil
	case error:
		return "", x
	case client.ContainerWaitResult:
		select {
		case r := <-x.Result:
			return fmt.Sprintf("exit code %d", r.StatusCode), nil
		case err := <-x.Error:
			return "", err
		}
	case client.EventsResult:
		var all []string
		for {
			select {
			case m := <-x.Messages:
				all = append(all, string(m.Type)+" "+string(m.Action))
			case err := <-x.Err:
				if errors.Is(err, io.EOF) {
					err = nil
				}
				return strings.Join(all, ", "), err
			case <-ctx.Done():
				return "", ctx.Err()
			}
		}
	case interface{ Wait(context.Context) error }: // of a pull or a push
		return "", x.Wait(ctx)
	case client.ExecAttachResult:
		return hijacked(x.HijackedResponse)
	case client.ContainerAttachResult:
		return hijacked(x.HijackedResponse)
	case io.ReadCloser:
		return content(x)
	}
	for _, name := range []string{"Body", "Content"} {
		if v.Kind() != reflect.Struct {
			break
		}
		if f := v.FieldByName(name); f.IsValid() {
			if r, ok := f.Interface().(io.ReadCloser); ok && r != nil {
				return content(r)
			}
		}
	}
	if v.Kind() == reflect.Interface || v.Kind() == reflect.Func || v.Kind() == reflect.Chan {
		return "", nil
	}
	data, err := json.Marshal(v.Interface())
	return string(data), err
}

func content(r io.ReadCloser) (string, error) {
	defer r.Close()
	data, err := io.ReadAll(io.LimitReader(r, 64<<20))
	return string(data), err
}

func hijacked(h client.HijackedResponse) (string, error) {
	defer h.Close()
	_ = h.CloseWrite() // a connection that cannot be half closed ends with the process
	data, err := io.ReadAll(h.Reader)
	return string(data), err
}

func archive(name, text string) io.Reader {
	var b bytes.Buffer
	t := tar.NewWriter(&b)
	_ = t.WriteHeader(&tar.Header{Name: name, Mode: 0o644, Size: int64(len(text))}) // into memory
	_, _ = t.Write([]byte(text))
	_ = t.Close()
	return &b
}
