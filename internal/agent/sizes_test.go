package agent

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/tutti-run/tutti/internal/wire"
)

// TestSizes holds that sizes are those of what was written, and that what is not here is said to be unknown.
func TestSizes(t *testing.T) {
	inWorld(t, func(w *world) {
		w.images.written, w.volumes.root = filepath.Join(w.dir, "written"), filepath.Join(w.dir, "volumes")
		write := func(path string, bytes int) {
			w.Helper()
			if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
				w.Fatal(err)
			}
			if err := os.WriteFile(path, []byte(strings.Repeat("x", bytes)), 0o600); err != nil {
				w.Fatal(err)
			}
		}
		const many = 200
		asked, want := wire.SizesRequest{}, []wire.TaskSize{}
		for n := range many {
			id := fmt.Sprint("i", n)
			w.assign(w.assignment(id, task("serve")))
			write(filepath.Join(w.images.written, id+".app", "tmp/file"), n)
			asked.Tasks = append(asked.Tasks, wire.TaskRef{Instance: id, Task: "app"})
			want = append(want, wire.TaskSize{Written: int64(n), Total: 1000 + int64(n)})
		}
		write(filepath.Join(w.volumes.root, "v1", "file"), 7)
		asked.Tasks = append(asked.Tasks, wire.TaskRef{Instance: "nosuch", Task: "app"}, wire.TaskRef{Instance: "i1", Task: "nosuch"}, wire.TaskRef{Instance: "i2"})
		asked.Volumes = []string{"v1", "nosuch"}
		unknown := wire.TaskSize{Written: wire.UnknownSize, Total: wire.UnknownSize}
		want = append(want, unknown, unknown, want[2])
		check := func() {
			w.Helper()
			got, err := w.agent.Sizes(w.Context(), asked)
			if err != nil || fmt.Sprint(got.Tasks) != fmt.Sprint(want) || fmt.Sprint(got.Volumes) != fmt.Sprint([]int64{7, wire.UnknownSize}) {
				w.Errorf("sizes: %.2000s, %v", fmt.Sprint(got), err)
			}
		}
		check()
		write(filepath.Join(w.images.written, "i5.app", "more"), 100)
		want[5].Written, want[5].Total = 105, 1105
		check() // what took no time to find out is found out anew
	})
}
