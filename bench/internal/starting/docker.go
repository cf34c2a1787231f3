package starting

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// engine is a Docker Engine of our own, with everything that it keeps below one directory.
type engine struct {
	name string // with its version
	cmd  *exec.Cmd
	log  string
	http *http.Client

	socket string
}

// startEngine returns once the Engine answers.
func startEngine(ctx context.Context, dir string) (*engine, error) {
	dir = filepath.Join(dir, "docker")
	if err := os.MkdirAll(dir, 0o711); err != nil {
		return nil, err
	}
	socket := "/run/bench-docker.sock"
	e := &engine{socket: socket, log: filepath.Join(dir, "log"), http: &http.Client{Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", socket)
		},
		MaxIdleConnsPerHost: 100,
	}}}
	log, err := os.Create(e.log)
	if err != nil {
		return nil, err
	}
	defer log.Close()
	config := filepath.Join(dir, "daemon.json")
	if err := os.WriteFile(config, []byte("{}\n"), 0o600); err != nil {
		return nil, err
	}
	e.cmd = exec.Command("dockerd", "--config-file", config, "--data-root", filepath.Join(dir, "data"), "--exec-root", "/run/bench-docker",
		"--pidfile", "/run/bench-docker.pid", "--host", "unix://"+socket, "--group", "root", "--bip", "172.31.240.1/20",
		"--exec-opt", "native.cgroupdriver=cgroupfs", "--cgroup-parent", cgroupParent+"/docker", "--log-level", "warn")
	e.cmd.Stdout, e.cmd.Stderr = log, log
	if err := e.cmd.Start(); err != nil {
		return nil, fmt.Errorf("start Docker Engine: %w", err)
	}
	if err := e.ready(ctx); err != nil {
		return nil, errors.Join(err, e.stop())
	}
	return e, nil
}

func (e *engine) ready(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 60*time.Second)
	defer cancel()
	for {
		var version struct{ Version string }
		err := e.call(ctx, http.MethodGet, "/version", nil, &version)
		if err == nil {
			e.name = "Docker Engine " + strings.SplitN(version.Version, "+", 2)[0]
			return nil
		}
		select {
		case <-ctx.Done():
			said, _ := os.ReadFile(e.log) // what is missing is said by the error
			return fmt.Errorf("no answer from Docker Engine: %w\n%s", err, said[max(0, len(said)-2000):])
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// stop ends the Engine; its containers have ended, or will with the namespace.
func (e *engine) stop() error {
	if err := e.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		return fmt.Errorf("stop Docker Engine: %w", err)
	}
	kill := time.AfterFunc(20*time.Second, func() { e.cmd.Process.Kill() })
	defer kill.Stop()
	e.cmd.Wait() // how it ends is of no interest
	return nil
}

// call makes a request with a JSON body and decodes a JSON answer, where there are such.
func (e *engine) call(ctx context.Context, method, path string, body, answer any) error {
	var text []byte
	if body != nil {
		var err error
		if text, err = json.Marshal(body); err != nil {
			return err
		}
	}
	data, err := e.do(ctx, method, path, bytes.NewReader(text), "application/json")
	if err != nil || answer == nil {
		return err
	}
	return json.Unmarshal(data, answer)
}

func (e *engine) do(ctx context.Context, method, path string, body io.Reader, media string) ([]byte, error) {
	r, err := http.NewRequestWithContext(ctx, method, "http://docker"+path, body)
	if err != nil {
		return nil, err
	}
	r.Header.Set("Content-Type", media)
	resp, err := e.http.Do(r)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode >= 300 {
		err = fmt.Errorf("%s %s: answered with %s: %s", method, path, resp.Status, bytes.TrimSpace(data))
	}
	return data, err
}

// importRoot makes an image of a root file system.
func (e *engine) importRoot(ctx context.Context, root string) error {
	pr, pw := io.Pipe()
	go func() {
		tw := tar.NewWriter(pw)
		pw.CloseWithError(errors.Join(tw.AddFS(os.DirFS(root)), tw.Close()))
	}()
	repository, tag, _ := strings.Cut(imageName, ":")
	q := url.Values{"fromSrc": {"-"}, "repo": {repository}, "tag": {tag}, "changes": {`ENTRYPOINT ["` + programPath + `"]`}}
	data, err := e.do(ctx, http.MethodPost, "/images/create?"+q.Encode(), pr, "application/x-tar")
	if err == nil && bytes.Contains(data, []byte(`"error"`)) {
		err = fmt.Errorf("it said %s", data)
	}
	return err
}

func (e *engine) start(ctx context.Context, name string) error {
	type create struct{ Image string }
	if err := e.call(ctx, http.MethodPost, "/containers/create?name="+name, create{imageName}, nil); err != nil {
		return err
	}
	return e.call(ctx, http.MethodPost, "/containers/"+name+"/start", nil, nil)
}

func (e *engine) told(ctx context.Context, name string) (time.Time, error) {
	if err := e.call(ctx, http.MethodPost, "/containers/"+name+"/wait", nil, nil); err != nil {
		return time.Time{}, err
	}
	data, err := e.do(ctx, http.MethodGet, "/containers/"+name+"/logs?stdout=1", nil, "")
	if err != nil {
		return time.Time{}, err
	}
	const header = 8 // of a frame: stream and length
	if len(data) < header {
		return time.Time{}, fmt.Errorf("container %s printed nothing", name)
	}
	return parseTime(string(bytes.TrimSpace(data[header:])))
}

func (e *engine) remove(ctx context.Context, name string) error {
	return e.call(ctx, http.MethodDelete, "/containers/"+name+"?force=1", nil, nil)
}
