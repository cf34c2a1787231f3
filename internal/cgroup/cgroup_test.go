package cgroup

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"
)

// TestKillFrozen: what is frozen ends, and what runs beside it goes on unless all is meant.
func TestKillFrozen(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("cgroups need root")
	}
	top := "/tutti-test-kill-" + fmt.Sprint(os.Getpid())
	roots, err := Hierarchies()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := Remove(top); err != nil {
			t.Error(err)
		}
	})
	start := func(name string, freeze bool) (ended chan error) {
		t.Helper()
		c := exec.Command("sleep", "60")
		if err := c.Start(); err != nil {
			t.Fatal(err)
		}
		ended = make(chan error, 1)
		go func() { ended <- c.Wait() }()
		froze := false
		for _, root := range roots {
			for _, f := range freezers {
				dir := filepath.Join(root, top, name)
				if err := os.MkdirAll(dir, 0o755); err != nil {
					t.Fatal(err)
				}
				if _, err := os.Stat(filepath.Join(dir, f.file)); err != nil || froze {
					continue
				}
				froze = true
				if err := os.WriteFile(filepath.Join(dir, "cgroup.procs"), fmt.Append(nil, c.Process.Pid), 0); err != nil {
					t.Fatal(err)
				}
				if !freeze {
					continue
				}
				if err := os.WriteFile(filepath.Join(dir, f.file), []byte(f.frozen), 0); err != nil {
					t.Fatal(err)
				}
				for began := time.Now(); !isFrozen(dir); time.Sleep(time.Millisecond) {
					if time.Since(began) > 10*time.Second {
						t.Fatalf("%s is not frozen", dir)
					}
				}
			}
		}
		if !froze {
			t.Fatal("this machine has nothing that freezes")
		}
		return ended
	}
	frozen, runs := start("frozen", true), start("runs", false)
	if err := Kill(top, true); err != nil {
		t.Fatal(err)
	}
	wait := func(what string, ended chan error) {
		t.Helper()
		select {
		case <-ended:
		case <-time.After(10 * time.Second):
			t.Fatalf("%s has not ended", what)
		}
	}
	wait("what was frozen", frozen)
	select {
	case <-runs:
		t.Error("what was not frozen was killed")
	case <-time.After(50 * time.Millisecond):
	}
	if err := Kill(top, false); err != nil {
		t.Fatal(err)
	}
	wait("what ran", runs)
}
