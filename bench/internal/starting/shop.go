package starting

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

// shop is what it takes to bring up examples/shop by Docker Compose.
type shop struct {
	Compose string   `json:"compose"` // the program
	File    string   `json:"file"`
	Images  []string `json:"images"` // archives
}

// makeShop makes what is not there yet; that takes minutes once.
func makeShop(ctx context.Context) (*shop, error) {
	lines := func(script string) ([]string, error) {
		cmd := exec.CommandContext(ctx, "../scripts/"+script)
		cmd.Stderr = os.Stderr
		out, err := cmd.Output()
		if err != nil {
			return nil, fmt.Errorf("scripts/%s: %w", script, err)
		}
		return strings.Fields(string(out)), nil
	}
	compose, err := lines("compose.sh")
	if err != nil {
		return nil, err
	}
	images, err := lines("images.sh")
	if err != nil {
		return nil, err
	}
	file, err := filepath.Abs("../examples/shop/compose.yaml")
	return &shop{Compose: strings.Join(compose, " "), File: file, Images: images}, err
}

const shopPort = "8080"

// bringUp brings the shop up, tells after how long its front page is answered, and takes it down.
func (e *engine) bringUp(ctx context.Context, s *shop) (took time.Duration, err error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	for _, path := range s.Images {
		if err := e.load(ctx, path); err != nil {
			return 0, fmt.Errorf("load %s: %w", filepath.Base(path), err)
		}
	}
	compose := func(ctx context.Context, args ...string) error {
		cmd := exec.CommandContext(ctx, s.Compose, append([]string{"-f", s.File}, args...)...)
		cmd.Env = append(os.Environ(), "DOCKER_HOST=unix://"+e.socket, "SHOP_PORT="+shopPort)
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("compose %s: %w\n%s", args[0], err, out[max(0, len(out)-2000):])
		}
		return nil
	}
	defer func() { err = errors.Join(err, compose(context.WithoutCancel(ctx), "down", "-v", "-t", "1")) }()
	began := time.Now()
	for attempt := 1; ; attempt++ { // on a busy machine a health check may fail for too long: another one goes on from there
		if err = compose(ctx, "up", "-d", "--scale", "web=1"); err == nil {
			break
		}
		if attempt == 3 || ctx.Err() != nil {
			return 0, err
		}
	}
	for {
		resp, err := http.Get("http://127.0.0.1:" + shopPort + "/")
		if err == nil {
			_, err = io.Copy(io.Discard, resp.Body)
			resp.Body.Close()
		}
		if err == nil && resp.StatusCode == http.StatusOK {
			return time.Since(began), nil
		}
		select {
		case <-ctx.Done():
			return 0, errors.Join(fmt.Errorf("the shop's front page is not answered: %w", ctx.Err()), err)
		case <-time.After(20 * time.Millisecond):
		}
	}
}

func (e *engine) load(ctx context.Context, path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	said, err := e.do(ctx, http.MethodPost, "/images/load?quiet=1", f, "application/x-tar")
	if err == nil && bytes.Contains(said, []byte(`"error"`)) {
		err = fmt.Errorf("it said %s", said)
	}
	return err
}
