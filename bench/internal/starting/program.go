package starting

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"

	"github.com/tutti-run/tutti/internal/image"
)

const (
	imageName   = "bench:v1"
	programPath = "/stamp"
)

// build makes the program that runs in containers and, below dir, a root file system with it,
// which both sides take their image from.
func build(ctx context.Context, dir string) error {
	root := rootDir(dir)
	for _, d := range []string{"proc", "sys", "dev", "etc", "tmp"} {
		if err := os.MkdirAll(filepath.Join(root, d), 0o755); err != nil {
			return err
		}
	}
	cmd := exec.CommandContext(ctx, "go", "build", "-trimpath", "-ldflags", "-s -w", "-o", filepath.Join(root, programPath),
		"github.com/tutti-run/tutti/bench/internal/starting/stamp")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("build the containers' program: %w\n%s", err, out)
	}
	return nil
}

func rootDir(dir string) string { return filepath.Join(dir, "image") }

// archive packs the root file system as an image for Tutti.
func archive(dir string) (path string, err error) {
	path = filepath.Join(dir, "image.tar")
	f, err := os.Create(path)
	if err != nil {
		return "", err
	}
	err = image.Pack(f, image.PackOptions{Name: imageName, Dir: rootDir(dir), Settings: image.Settings{Entrypoint: []string{programPath}}})
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	return path, err
}
