//go:build e2e

package e2e

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

// abused are containers that use up what they can; each stands alone on the node that it abuses.
const abused = `
services:
  neighbour: {image: "abuse:v1", command: [sleep], deploy: {mode: global}}
  jail: {image: "abuse:v1", command: [sleep]}
  swap: {image: "abuse:v1", command: [swap, /data/way, %[1]q]}
  files: {image: "abuse:v1", command: [files]}
  bomb: {image: "abuse:v1", command: [bomb], deploy: {mode: replicated-job, restart_policy: {condition: none}, resources: {limits: {pids: 64}}}}
  hog: {image: "abuse:v1", command: [hog], deploy: {mode: replicated-job, restart_policy: {condition: none}, resources: {limits: {memory: 64M}}}}
  parent: {image: "abuse:v1", command: [parent], deploy: {mode: replicated-job, restart_policy: {condition: none}, resources: {limits: {memory: 64M}}}}
  flood: {image: "abuse:v1", command: [flood, "200"], deploy: {mode: replicated-job, restart_policy: {condition: none}}}
`

// unbounded is a container that takes all the memory that it gets.
const unbounded = `
services:
  hog: {image: "abuse:v1", command: [hog], deploy: {mode: replicated-job, restart_policy: {condition: none}}}
`

func abuseImage(t *testing.T) {
	t.Helper()
	root := filepath.Join(dataDir, "abuse", "root")
	for _, d := range []string{"tmp", "data", "etc"} {
		if err := os.MkdirAll(filepath.Join(root, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	build := exec.Command("go", "build", "-o", filepath.Join(root, "abuse"), "./testdata/abuse")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	// A script that has the program run which is just entering the container.
	if err := os.WriteFile(filepath.Join(root, "loop"), []byte("#!/proc/self/exe\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	image := filepath.Join(dataDir, "abuse", "image.tar")
	tutti(t, "image", "pack", "--name", "abuse:v1", "--dir", root, "--entrypoint", "/abuse", "-o", image)
	tutti(t, "image", "import", image)
}

// attempts tells what was tried, as a table, and which of it did harm.
type attempts struct{ rows []string }

func (a *attempts) tell(t *testing.T, what string, contained bool, happened string) {
	t.Helper()
	a.rows = append(a.rows, fmt.Sprintf("| %s | %s |", what, strings.TrimSpace(happened)))
	if !contained {
		t.Errorf("%s: %s", what, happened)
	}
}

// TestAbuse has containers try to get out, and to use up what the node has. Each is held, it is said what became of it,
// and the nodes and what else runs there stay as they are.
func TestAbuse(t *testing.T) {
	abuseImage(t)
	outside := filepath.Join(dataDir, "outside") // of the host, which no container may read or change
	if err := os.MkdirAll(outside, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(outside, "secret"), []byte("of the host"), 0o644); err != nil {
		t.Fatal(err)
	}
	programBefore := digestOf(t, program)
	nodes := map[string]int{}
	for _, h := range query[[]hostState](t, "host", "ls") {
		nodes[h.Name] = nodeProcess(t, h.PID)
	}
	file := filepath.Join(dataDir, "abuse.yaml")
	if err := os.WriteFile(file, fmt.Appendf(nil, abused, outside), 0o644); err != nil {
		t.Fatal(err)
	}
	removeIfFailed(t, "abuse")
	tutti(t, "deploy", "-d", "-f", file, "abuse")
	var did attempts
	wait := func(app, workload string) (i instance, message string) {
		eventually(t, 2*time.Minute, workload+" has ended", func() error {
			for _, i = range query[[]instance](t, "ps", "--all", app) {
				if i.Workload == app+"/"+workload && (i.Status.State == "failed" || i.Status.State == "completed") {
					message = i.Status.Message
					return nil
				}
			}
			return errors.New("not yet")
		})
		return i, message
	}
	running := func(workload string) {
		eventually(t, time.Minute, workload+" runs", func() error {
			for _, i := range instances(t) {
				if i.Workload == "abuse/"+workload && i.Status.Ready {
					return nil
				}
			}
			return errors.New("not yet")
		})
	}

	// From within: by the first process's kind, and by one that is run in the container later.
	running("jail")
	for _, line := range strings.Split(strings.TrimSpace(tutti(t, "exec", "abuse/jail", "/abuse", "probe")), "\n") {
		f := strings.SplitN(line, "\t", 3)
		if len(f) != 3 {
			t.Errorf("the probe says %q", line)
			continue
		}
		did.tell(t, f[0], f[1] == "contained", f[2])
	}
	out, err := run("exec", "abuse/jail", "/loop")
	did.tell(t, "run the entering program by #!/proc/self/exe", err != nil && digestOf(t, program) == programBefore, firstLine(out))
	said := tutti(t, "exec", "abuse/jail", "/abuse", "limits")
	did.tell(t, "the node's own OOM score, and processes without end", strings.Contains(said, "oom 0 ") && regexp.MustCompile(`pids \d+`).MatchString(said), strings.ReplaceAll(said, "\n", "; "))

	// Using up.
	_, message := wait("abuse", "bomb")
	said = saidBy(t, "bomb")
	did.tell(t, "fork bomb, limit of 64 processes", bombHeld(said), message+"; it said: "+said)
	i, message := wait("abuse", "hog")
	did.tell(t, "memory hog, limit of 64 MB", i.Status.State == "failed" && strings.Contains(message, "want of memory"), message)
	i, message = wait("abuse", "parent")
	did.tell(t, "memory hog that is a child of the container's first process", i.Status.State == "failed" && strings.Contains(message, "exited with code 3 after a process of it was killed for want of memory"), message)
	running("files")
	eventually(t, time.Minute, "no more files are opened", func() error {
		if said = saidBy(t, "files"); !strings.Contains(said, "too many open files") {
			return errors.New(said)
		}
		return nil
	})
	did.tell(t, "as many open files as there can be", true, said)
	i, message = wait("abuse", "flood")
	did.flooded(t, &i, message)

	// Archives and links.
	running("swap")
	did.copies(t, outside)
	did.imports(t, outside)

	// The node is well all the while, and its neighbours too.
	list := instances(t)
	for _, i := range list {
		if i.Workload == "abuse/neighbour" && (!i.Status.Ready || i.Status.Restarts > 0) {
			t.Errorf("a neighbour is %+v", i)
		}
	}
	tutti(t, "rm", "abuse")

	// Without a limit, all that the instances of a host may have is taken.
	if err := os.WriteFile(file, []byte(unbounded), 0o644); err != nil {
		t.Fatal(err)
	}
	bound(t, 512<<20)
	tutti(t, "deploy", "-d", "-f", file, "abuse")
	i, message = wait("abuse", "hog")
	did.tell(t, "memory hog without a limit", i.Status.State == "failed" && strings.Contains(message, "want of memory"), message)
	tutti(t, "rm", "abuse")
	for name, pid := range nodes {
		if now, err := findNodeProcess(pidOf(t, name)); err != nil || now != pid {
			t.Errorf("the node's process of %s was %d, and is %d: %v", name, pid, now, err)
		}
	}
	allWell(t, 30*time.Second)
	t.Logf("what was tried, and what became of it:\n%s", strings.Join(did.rows, "\n"))
}

func firstLine(s string) string { line, _, _ := strings.Cut(strings.TrimSpace(s), "\n"); return line }

func digestOf(t *testing.T, file string) [32]byte {
	t.Helper()
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return sha256.Sum256(data)
}

// bound has hosts with no more memory left than that, until the test ends: they are too large to be filled up quickly.
func bound(t *testing.T, left int64) {
	t.Helper()
	for _, files := range [][2]string{{"memory.limit_in_bytes", "memory.usage_in_bytes"}, {"memory.max", "memory.current"}} {
		list, err := filepath.Glob("/sys/fs/cgroup/*/tutti-hosts/host-*/" + files[0])
		if err != nil {
			t.Fatal(err)
		}
		unified, _ := filepath.Glob("/sys/fs/cgroup/tutti-hosts/host-*/" + files[0])
		for _, file := range append(list, unified...) {
			before, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			used, err := os.ReadFile(filepath.Join(filepath.Dir(file), files[1]))
			if err != nil {
				t.Fatal(err)
			}
			n, err := strconv.ParseInt(strings.TrimSpace(string(used)), 10, 64)
			if err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(file, strconv.AppendInt(nil, n+left, 10), 0o644); err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() {
				if err := os.WriteFile(file, before, 0o644); err != nil && !errors.Is(err, os.ErrNotExist) {
					t.Error(err)
				}
			})
		}
	}
}

// saidBy returns what a workload printed.
func saidBy(t *testing.T, workload string) string {
	t.Helper()
	return strings.ReplaceAll(strings.TrimSpace(tutti(t, "logs", "abuse/"+workload)), "abuse/"+workload+".1 | ", "")
}

// bombHeld reads how many processes there were: threads of each count against the limit, too.
func bombHeld(said string) bool {
	count, _, ok := strings.Cut(said, " processes, then: ")
	n, err := strconv.Atoi(strings.TrimSpace(count))
	return ok && err == nil && n < 64
}

// flooded looks at the files of a task that printed 200 MiB, and at the memory of its node's process.
func (a *attempts) flooded(t *testing.T, i *instance, message string) {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(hostData(i.Node), "*", "tasks", i.ID+".*", "log*"))
	if err != nil {
		t.Fatal(err)
	}
	if len(files) == 0 {
		files, _ = filepath.Glob(filepath.Join(hostData(i.Node), "tasks", i.ID+".*", "log*"))
	}
	total := int64(0)
	for _, f := range files {
		if st, err := os.Stat(f); err == nil {
			total += st.Size()
		}
	}
	last := tutti(t, "logs", "--tail", "1", "abuse/flood")
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", nodeProcess(t, pidOf(t, i.Node))))
	if err != nil {
		t.Fatal(err)
	}
	resident := regexp.MustCompile(`VmRSS:\s+(\d+) kB`).FindSubmatch(status)
	kib, _ := strconv.Atoi(string(resident[1]))
	want := fmt.Sprintf("%07d", 200<<20/128-1)
	a.tell(t, "log flood of 200 MiB", len(files) == 3 && total <= 30<<20 && strings.Contains(last, want) && kib < 400<<10,
		fmt.Sprintf("%s; %d files of %d MiB together, the last line among them; the node's process has %d MiB", message, len(files), total>>20, kib>>10))
}

// copies copies into and out of a container in which the directory that is meant becomes a link to the host's own
// directory, and back, all the time.
func (a *attempts) copies(t *testing.T, outside string) {
	t.Helper()
	tutti(t, "exec", "abuse/swap", "/abuse", "limits") // it runs
	local, leaked, in, out := filepath.Join(dataDir, "abuse", "copied"), 0, 0, 0
	mine := filepath.Join(dataDir, "abuse", "mine")
	if err := os.WriteFile(mine, []byte("from outside"), 0o644); err != nil {
		t.Fatal(err)
	}
	for range 40 {
		os.RemoveAll(local)
		if _, err := run("cp", "abuse/swap:/data/way/secret", local); err == nil {
			out++
		}
		if text, err := os.ReadFile(local); err == nil && bytes.Contains(text, []byte("of the host")) {
			leaked++
		}
		if _, err := run("cp", mine, "abuse/swap:/data/way/"); err == nil {
			in++
		}
	}
	a.tell(t, "a directory swapped with a link to the host's during `cp`", leaked == 0 && untouched(t, outside),
		fmt.Sprintf("40 copies each way, of which %d out and %d in found something within the container; nothing of the host was read or written", out, in))

	// Archives made for the purpose.
	hostile := hostileArchive(t, outside)
	cmd := exec.Command(program, "cp", "-", "abuse/jail:/data")
	cmd.Env, cmd.Stdin = environment(), bytes.NewReader(hostile)
	said, err := cmd.CombinedOutput()
	what := "unpacked below /data"
	if err != nil {
		what = firstLine(string(said))
	}
	a.tell(t, "an archive with .., absolute names and links, by `cp -`", untouched(t, outside), what+"; nothing of the host was written")
}

// hostileArchive has entries that lead out of where they are unpacked.
func hostileArchive(t *testing.T, outside string) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	add := func(h tar.Header, text string) {
		h.Size, h.Mode = int64(len(text)), 0o644
		if err := w.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(w, text); err != nil {
			t.Fatal(err)
		}
	}
	up := strings.Repeat("../", 20)
	add(tar.Header{Name: up + outside[1:] + "/by-dots", Typeflag: tar.TypeReg}, "escaped")
	add(tar.Header{Name: outside + "/by-absolute-name", Typeflag: tar.TypeReg}, "escaped")
	add(tar.Header{Name: "link", Typeflag: tar.TypeSymlink, Linkname: outside}, "")
	add(tar.Header{Name: "link/by-link", Typeflag: tar.TypeReg}, "escaped")
	add(tar.Header{Name: "up", Typeflag: tar.TypeSymlink, Linkname: up + outside[1:]}, "")
	add(tar.Header{Name: "up/by-relative-link", Typeflag: tar.TypeReg}, "escaped")
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// imports imports an image whose layer tries to lead out, and runs it if it is taken.
func (a *attempts) imports(t *testing.T, outside string) {
	t.Helper()
	file := filepath.Join(dataDir, "abuse", "hostile.tar")
	if err := os.WriteFile(file, hostileArchive(t, outside), 0o644); err != nil {
		t.Fatal(err)
	}
	out, err := run("image", "import", file)
	a.tell(t, "an archive that is no image, for `image import`", err != nil && untouched(t, outside), firstLine(out))
}

// untouched reports whether the directory of the host is as it was.
func untouched(t *testing.T, outside string) bool {
	t.Helper()
	list, err := os.ReadDir(outside)
	if err != nil {
		t.Fatal(err)
	}
	names := make([]string, 0, len(list))
	for _, e := range list {
		names = append(names, e.Name())
	}
	text, err := os.ReadFile(filepath.Join(outside, "secret"))
	return err == nil && slices.Equal(names, []string{"secret"}) && string(text) == "of the host"
}
