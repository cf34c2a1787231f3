package userns

import (
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

func asRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("mounts need root")
	}
}

func TestWorks(t *testing.T) {
	asRoot(t)
	if err := Works(t.TempDir()); err != nil {
		t.Fatal(err)
	}
}

func TestPool(t *testing.T) {
	asRoot(t)
	dir := t.TempDir()
	p := NewPool(filepath.Join(dir, "users"))
	net := filepath.Join(dir, "net")
	if _, err := p.Get("a"); err == nil {
		t.Error("what was never made is there")
	}
	seen := map[uint32]bool{}
	for _, name := range []string{"a", "b"} {
		if err := p.Make(name, net); err != nil {
			t.Fatal(err)
		}
		defer func() {
			if err := p.Release(name); err != nil {
				t.Error(err)
			}
		}()
		if err := unix.Unmount(net, unix.MNT_DETACH); err != nil {
			t.Fatal("the network namespace was not bound:", err)
		}
		u, err := p.Get(name)
		if err != nil || seen[u.First] {
			t.Fatalf("instance %s has the users %+v, which another one has: %v", name, u, err)
		}
		seen[u.First] = true
	}
	u, err := NewPool(filepath.Join(dir, "users")).Get("a") // as after a restart of the agent
	if err != nil || !seen[u.First] {
		t.Fatalf("after a restart: %+v, %v", u, err)
	}

	source, target := filepath.Join(dir, "source"), filepath.Join(dir, "target")
	for _, d := range []string{source, target} {
		if err := os.Mkdir(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := u.Bind(source, target, true); err != nil {
		t.Fatal(err)
	}
	defer unix.Unmount(target, unix.MNT_DETACH)
	var st unix.Stat_t
	if err := unix.Stat(target, &st); err != nil || st.Uid != u.First {
		t.Errorf("what is of user 0 is shown as of user %d, not %d: %v", st.Uid, u.First, err)
	}
	if err := u.Translates("/proc", false); err == nil {
		t.Error("the kernel's own file system is said to be translated")
	}
}
