//go:build !seccomp

package oci

import (
	"log/slog"
	"strings"
	"testing"

	"github.com/tutti-run/tutti/internal/driver"
	"github.com/tutti-run/tutti/internal/fault"
)

func TestWithoutTheBuildTagConfinedTasksAreRefused(t *testing.T) {
	d, err := New(Config{StateDir: t.TempDir(), RunDir: t.TempDir(), Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	err = d.Start(t.Context(), driver.Task{ID: "i.a.1", Rootfs: t.TempDir(), Args: []string{"/prog"}})
	if !fault.Is(err, fault.Unsupported) || !strings.Contains(err.Error(), "-tags seccomp") {
		t.Fatalf("start gave %v, want that it names the build tag", err)
	}
	if list, err := d.List(t.Context()); err != nil || len(list) != 0 {
		t.Fatalf("list is %v, %v; want that nothing was begun", list, err)
	}
}
