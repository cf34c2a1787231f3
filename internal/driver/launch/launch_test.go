package launch

import (
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// said runs a program whose standard output is the pipe's, and returns what it prints.
func said(t *testing.T, p *Program, w, r *os.File) string {
	t.Helper()
	child, err := p.Run(0)
	w.Close()
	if err != nil {
		t.Fatal(err)
	}
	out, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := unix.Wait4(child, nil, 0, nil); err != nil {
		t.Fatal(err)
	}
	return string(out)
}

func pipe(t *testing.T, p *Program) (r, w *os.File) {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close(); w.Close() })
	p.Call("take the pipe", unix.SYS_DUP3, w.Fd(), 1, 0)
	return r, w
}

func TestStepsAreTakenAndTheProgramExecuted(t *testing.T) {
	var p Program
	r, w := pipe(t, &p)
	dir := t.TempDir()
	root := p.Call("open the directory", unix.SYS_OPENAT, unix.AT_FDCWD, dir, unix.O_PATH|unix.O_CLOEXEC, 0).Result()
	p.OpenTarget(root, "/a/b/../c", 0o755, Directory)
	p.OpenTarget(root, "/a/f", 0o644, File)
	absent := p.Call("go nowhere", unix.SYS_CHDIR, dir+"/nowhere").Allow(unix.ENOENT).Skip(1, 0).Result()
	p.Call("not taken", unix.SYS_CHDIR, "/nonesuch")
	p.Failed(absent).Allow(unix.ENOENT).Skip(0, 1)
	p.Call("go on", unix.SYS_CHDIR, dir+"/a")
	p.CheckDirectory()
	p.ResetSignals()
	p.Execute([]string{"/nonesuch/sh", dir + "/a/f", "/bin/sh"}, []string{"sh", "-c", "pwd; echo $0 $V; grep -E 'Sig(Blk|Ign)' /proc/self/status", "zero"}, []string{"V=1"})
	got := strings.Fields(said(t, &p, w, r))
	want := []string{filepath.Join(dir, "a"), "zero", "1", "SigBlk:", "0000000000000000", "SigIgn:", "0000000000000000"}
	if strings.Join(got, " ") != strings.Join(want, " ") {
		t.Errorf("it says %q, want %q", got, want)
	}
	if st, err := os.Stat(filepath.Join(dir, "a/c")); err != nil || !st.IsDir() {
		t.Errorf("%v, %v: want a directory", st, err)
	}
}

func TestAStepThatFailsIsNamed(t *testing.T) {
	dir := t.TempDir()
	if err := os.Symlink("/proc", filepath.Join(dir, "away")); err != nil {
		t.Fatal(err)
	}
	fail := func(fill func(p *Program, root Result)) *Error {
		t.Helper()
		var p Program
		fill(&p, p.Call("open the directory", unix.SYS_OPENAT, unix.AT_FDCWD, dir, unix.O_PATH|unix.O_CLOEXEC, 0).Result())
		child, err := p.Run(0)
		failed, ok := errors.AsType[*Error](err)
		if !ok {
			t.Fatalf("%v, %v: want an error that names a step", child, err)
		}
		return failed
	}
	for _, x := range []struct {
		step  string
		errno unix.Errno
		fill  func(p *Program, root Result)
	}{
		{"go nowhere", unix.ENOENT, func(p *Program, _ Result) { p.Call("go nowhere", unix.SYS_CHDIR, dir+"/nowhere") }},
		{"open /away", unix.ELOOP, func(p *Program, root Result) { p.OpenTarget(root, "/away", 0o755, Plain) }},
		{"open /proc/self", unix.EPERM, func(p *Program, _ Result) {
			p.OpenTarget(p.Call("open the root", unix.SYS_OPENAT, unix.AT_FDCWD, "/", unix.O_PATH, 0).Result(), "/proc/self", 0o755, Directory)
		}},
		{"look whether /dev/null is that", unix.ENODEV, func(p *Program, root Result) { p.CheckNull(root) }},
		{"end", unix.ENOEXEC, func(p *Program, _ Result) {}},
	} {
		if e := fail(x.fill); e.Step != x.step || e.Errno != x.errno || e.Exec {
			t.Errorf("it fails as %+v, want %s at %q", e, x.errno, x.step)
		}
	}
	// A link that leads out of the root leads into it.
	if err := os.Mkdir(filepath.Join(dir, "proc"), 0o755); err != nil {
		t.Fatal(err)
	}
	e := fail(func(p *Program, root Result) {
		p.OpenTarget(root, "/away/new", 0o755, Directory)
		p.Execute([]string{dir}, []string{"x"}, nil)
	})
	if e.Errno != unix.EACCES || !e.Exec {
		t.Errorf("it fails as %+v, want that a directory cannot be executed", e)
	}
	if _, err := os.Stat(filepath.Join(dir, "proc/new")); err != nil {
		t.Error(err)
	}
}
