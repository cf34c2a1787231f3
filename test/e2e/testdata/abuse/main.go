// Program abuse runs in a container and tries what must not succeed there. `abuse probe` prints a line for each attempt:
// its name, a tab, "contained" or "ESCAPED", a tab, what happened. The other words each use something up.
package main

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

func main() {
	word := "sleep"
	if len(os.Args) > 1 {
		word = os.Args[1]
	}
	switch word {
	case "probe":
		probe()
	case "sleep":
		time.Sleep(time.Hour)
	case "bomb":
		bomb()
	case "hog":
		hog()
	case "parent": // of one that is killed for want of memory
		err := exec.Command("/abuse", "hog").Run()
		fmt.Println("the hog:", err)
		os.Exit(3)
	case "flood":
		n, _ := strconv.Atoi(os.Args[2])
		flood(n)
	case "files":
		files()
	case "talk":
		n, _ := strconv.Atoi(os.Args[2])
		talk(n)
	case "swap":
		swap(os.Args[2], os.Args[3])
	case "limits":
		for _, file := range []string{"/sys/fs/cgroup/pids/pids.max", "/sys/fs/cgroup/pids.max"} {
			if text, err := os.ReadFile(file); err == nil {
				fmt.Println("pids", strings.TrimSpace(string(text)))
			}
		}
		score, err := os.ReadFile("/proc/self/oom_score_adj")
		fmt.Println("oom", strings.TrimSpace(string(score)), err)
	default:
		fmt.Fprintln(os.Stderr, "what to do is unknown:", word)
		os.Exit(2)
	}
}

// bomb starts copies of itself until that is refused, and says how many there were.
func bomb() {
	if len(os.Args) > 2 {
		time.Sleep(time.Hour)
	}
	n := 0
	for {
		cmd := exec.Command("/abuse", "bomb", "child")
		if err := cmd.Start(); err != nil {
			fmt.Printf("%d processes, then: %v\n", n, err)
			time.Sleep(time.Second)
			os.Exit(7)
		}
		n++
	}
}

// hog takes memory until it is ended.
func hog() {
	for n := 0; ; n++ {
		b, err := unix.Mmap(-1, 0, 16<<20, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
		if err != nil {
			fmt.Println("no more memory:", err)
			time.Sleep(time.Hour)
		}
		for i := 0; i < len(b); i += 4096 {
			b[i] = byte(n)
		}
	}
}

func flood(mebibytes int) {
	w := bufio.NewWriterSize(os.Stdout, 64<<10)
	line := strings.Repeat("x", 120)
	for n := 0; n < mebibytes<<20/128; n++ {
		fmt.Fprintf(w, "%07d%s\n", n, line)
	}
	w.Flush()
}

func files() {
	n := 0
	for {
		if _, err := unix.Open("/abuse", unix.O_RDONLY, 0); err != nil {
			fmt.Printf("%d files, then: %v\n", n, err)
			unix.Pause() // the runtime's own sleep would want a file
		}
		n++
	}
}

// talk prints lines, of which and of the code that it exits with its number says how many and which: see kills_test.go.
// How many lines it has printed so far is in a file.
func talk(k int) {
	told, err := os.Create("/told/" + os.Args[3])
	if err != nil {
		fmt.Println(err)
		os.Exit(255)
	}
	lines := 40 + k*37%200
	for n := 1; n <= lines; n++ {
		if _, err := fmt.Printf("%d of %d of talk %d\n", n, lines, k); err != nil {
			os.Exit(254)
		}
		told.WriteAt(fmt.Appendf(nil, "%06d", n), 0)
		time.Sleep(time.Duration((k+n)%9) * 3 * time.Millisecond)
	}
	os.Exit(k * 13 % 97)
}

// swap exchanges a directory and a link to elsewhere under one name, as fast as it can.
func swap(name, to string) {
	other := name + ".other"
	for {
		if unix.Renameat2(unix.AT_FDCWD, name, unix.AT_FDCWD, other, unix.RENAME_EXCHANGE) == nil {
			continue
		}
		// At first, and when something that was copied took the place of one.
		os.RemoveAll(name)
		os.RemoveAll(other)
		if err := errors.Join(os.MkdirAll(name, 0o755), os.WriteFile(name+"/secret", []byte("of the container"), 0o644), os.Symlink(to, other)); err != nil {
			fmt.Println(err)
		}
	}
}

func say(name string, contained bool, format string, args ...any) {
	verdict := "contained"
	if !contained {
		verdict = "ESCAPED"
	}
	fmt.Printf("%s\t%s\t%s\n", name, verdict, strings.ReplaceAll(fmt.Sprintf(format, args...), "\n", " "))
}

// refused says that an attempt has to fail, and how it did.
func refused(name string, err error) {
	if err == nil {
		say(name, false, "it succeeded")
		return
	}
	say(name, true, "%v", err)
}

func call(number uintptr, args ...uintptr) error {
	var a [6]uintptr
	copy(a[:], args)
	_, _, err := unix.Syscall6(number, a[0], a[1], a[2], a[3], a[4], a[5])
	if err != 0 {
		return err
	}
	return nil
}

func text(s string) uintptr { // kept alive by the constant that it is made of
	b, err := unix.BytePtrFromString(s)
	if err != nil {
		panic(err)
	}
	kept = append(kept, b)
	return uintptr(unsafe.Pointer(b))
}

var kept []*byte

func probe() {
	runtime.LockOSThread()
	writes()
	reads()
	devices()
	mounts()
	processes()
	calls()
	namespaces()
}

func write(path, value string) error {
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteString(value)
	return errors.Join(err, f.Close())
}

func writes() {
	for _, file := range []string{"/proc/sysrq-trigger", "/proc/sys/kernel/core_pattern", "/proc/sys/vm/panic_on_oom", "/proc/sys/kernel/modprobe", "/proc/irq/default_smp_affinity", "/sys/kernel/uevent_helper", "/sys/power/state"} {
		value, err := os.ReadFile(file) // what is there already: nothing happens if it succeeds
		if err != nil || len(value) == 0 {
			value = []byte("x")
		}
		if file == "/proc/sysrq-trigger" {
			value = []byte("h") // help
		}
		refused("write "+file, write(file, string(value)))
	}
	refused("lower its own OOM score", write("/proc/self/oom_score_adj", "-1000"))
	found := 0
	for _, pattern := range []string{"memory.max", "memory/memory.limit_in_bytes", "pids.max", "pids/pids.max", "cgroup.procs", "memory/cgroup.procs", "*/release_agent", "release_agent", "*/notify_on_release", "devices/devices.allow", "cpu/cpu.shares"} {
		list, _ := filepath.Glob("/sys/fs/cgroup/" + pattern)
		for _, file := range list {
			found++
			refused("write "+file, write(file, "1"))
		}
	}
	if found == 0 {
		say("write to its cgroup", true, "no cgroup file is there")
	}
	dirs, _ := filepath.Glob("/sys/fs/cgroup/*")
	for _, dir := range append(dirs, "/sys/fs/cgroup") {
		if info, err := os.Stat(dir); err == nil && info.IsDir() {
			refused("make a cgroup in "+dir, os.Mkdir(filepath.Join(dir, "mine"), 0o755))
		}
	}
}

// reads looks at what is masked: it has to be empty, or not there.
func reads() {
	for _, file := range []string{"/proc/kcore", "/proc/keys", "/proc/timer_list", "/proc/sched_debug", "/proc/latency_stats", "/proc/interrupts"} {
		f, err := os.Open(file)
		if err != nil {
			say("read "+file, true, "%v", err)
			continue
		}
		n, _ := f.Read(make([]byte, 64))
		f.Close()
		say("read "+file, n == 0, "%d bytes", n)
	}
	for _, dir := range []string{"/proc/acpi", "/proc/scsi", "/sys/firmware", "/sys/devices/virtual/powercap"} {
		list, err := os.ReadDir(dir)
		say("list "+dir, len(list) == 0, "%d entries, %v", len(list), err)
	}
}

func devices() {
	list, _ := os.ReadDir("/dev")
	usual := map[string]bool{"core": true, "fd": true, "full": true, "mqueue": true, "null": true, "ptmx": true, "pts": true, "random": true, "shm": true, "stderr": true, "stdin": true, "stdout": true, "tty": true, "urandom": true, "zero": true, "console": true}
	var more []string
	for _, e := range list {
		if !usual[e.Name()] {
			more = append(more, e.Name())
		}
	}
	say("devices of the host in /dev", len(more) == 0, "%v", more)
	for name, dev := range map[string][3]uint32{"the first disk": {unix.S_IFBLK, 254, 0}, "a SCSI disk": {unix.S_IFBLK, 8, 0}, "memory": {unix.S_IFCHR, 1, 1}, "ports": {unix.S_IFCHR, 1, 4}, "the kernel's log": {unix.S_IFCHR, 1, 11}, "virtual machines": {unix.S_IFCHR, 10, 232}} {
		path := fmt.Sprintf("/tmp/device-%d-%d", dev[1], dev[2])
		if err := unix.Mknod(path, dev[0]|0o600, int(unix.Mkdev(dev[1], dev[2]))); err != nil {
			say("make and open "+name, true, "mknod: %v", err)
			continue
		}
		fd, err := unix.Open(path, unix.O_RDWR, 0)
		if err == nil {
			unix.Close(fd)
		}
		if errors.Is(err, unix.ENXIO) || errors.Is(err, unix.ENODEV) { // it was looked for
			say("make and open "+name, false, "%v", err)
		} else {
			refused("make and open "+name, err)
		}
		os.Remove(path)
	}
}

func mounts() {
	os.MkdirAll("/tmp/at", 0o755)
	refused("mount proc", unix.Mount("proc", "/tmp/at", "proc", 0, ""))
	refused("mount tmpfs", unix.Mount("tmpfs", "/tmp/at", "tmpfs", 0, ""))
	refused("mount cgroup", unix.Mount("cgroup", "/tmp/at", "cgroup", 0, "memory"))
	refused("bind /proc/sys", unix.Mount("/proc/sys", "/tmp/at", "", unix.MS_BIND, ""))
	refused("make /proc/sys writable", unix.Mount("", "/proc/sys", "", unix.MS_REMOUNT|unix.MS_BIND, ""))
	refused("make /sys writable", unix.Mount("", "/sys", "", unix.MS_REMOUNT|unix.MS_BIND, ""))
	refused("unmask /proc/kcore", unix.Unmount("/proc/kcore", unix.MNT_DETACH))
	refused("pivot_root", unix.PivotRoot("/tmp", "/tmp/at"))
	refused("fsopen", call(unix.SYS_FSOPEN, text("proc"), 0))
	refused("open_tree", call(unix.SYS_OPEN_TREE, ^uintptr(99), text("/"), 1)) // OPEN_TREE_CLONE
}

func processes() {
	self, _ := os.Readlink("/proc/self/ns/pid")
	foreign := 0
	dirs, _ := filepath.Glob("/proc/[0-9]*")
	for _, dir := range dirs {
		if ns, err := os.Readlink(dir + "/ns/pid"); err == nil && ns != self {
			foreign++
		}
	}
	say("see foreign processes", foreign == 0, "%d of %d in /proc", foreign, len(dirs))
	last := 0
	for pid := 2; pid < 65536; pid++ { // those that exist here are this container's
		if _, err := os.Stat(fmt.Sprint("/proc/", pid)); err == nil {
			continue
		}
		if err := unix.PtraceAttach(pid); !errors.Is(err, unix.ESRCH) {
			last = pid
			break
		}
	}
	say("trace foreign processes", last == 0, "ptrace of every number up to 65536: no such process")
	err := unix.Kill(1<<20, 0)
	say("signal a foreign process", errors.Is(err, unix.ESRCH), "%v", err)
	_, err = os.Stat("/proc/1/root/abuse")
	say("another root at /proc/1/root", err == nil, "it is this container's own: %v", err)
	var out []string
	fds, _ := os.ReadDir("/proc/self/fd")
	for _, fd := range fds {
		to, err := os.Readlink("/proc/self/fd/" + fd.Name())
		if strings.HasPrefix(filepath.Base(to), "cpu.") {
			continue // this program's own runtime looks at how many processors it may use
		}
		if n, _ := strconv.Atoi(fd.Name()); err == nil && n > 2 && !strings.HasPrefix(to, "/proc/") && !strings.HasPrefix(to, "anon_inode:") && !strings.HasPrefix(to, "socket:") && !strings.HasPrefix(to, "pipe:") {
			out = append(out, fd.Name()+" → "+to)
		}
	}
	say("descriptors that were left open", len(out) == 0, "%v", out)
}

func calls() {
	refused("keyctl", call(unix.SYS_KEYCTL, 0, ^uintptr(2), 0))
	refused("add_key", call(unix.SYS_ADD_KEY, text("user"), text("x"), text("y"), 1, ^uintptr(2)))
	refused("bpf", call(unix.SYS_BPF, 0, 0, 0))
	refused("perf_event_open", call(unix.SYS_PERF_EVENT_OPEN, 0, 0, 0, 0, 0))
	refused("init_module", call(unix.SYS_INIT_MODULE, 0, 0, text("")))
	refused("kexec_load", call(unix.SYS_KEXEC_LOAD, 0, 0, 0, 0))
	refused("userfaultfd", call(unix.SYS_USERFAULTFD, 0))
	refused("swapon", call(unix.SYS_SWAPON, text("/abuse"), 0))
	refused("acct", call(unix.SYS_ACCT, text("/tmp/acct")))
	refused("iopl", call(unix.SYS_IOPL, 3))
	refused("settimeofday", unix.Settimeofday(&unix.Timeval{Sec: time.Now().Unix()}))
	refused("sethostname", unix.Sethostname([]byte("mine")))
	_, err := unix.Klogctl(3, make([]byte, 64)) // read all
	refused("read the kernel's log", err)
	handle := unix.NewFileHandle(1, []byte{2, 0, 0, 0, 0, 0, 0, 0})
	fd, err := unix.OpenByHandleAt(unix.AT_FDCWD, handle, unix.O_RDONLY)
	if err == nil {
		unix.Close(fd)
	}
	refused("open_by_handle_at", err)
	refused("raise the limit of open files", unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: 1 << 30, Max: 1 << 30}))
	refused("take all of a processor (nice -20)", unix.Setpriority(unix.PRIO_PROCESS, 0, -20))
	refused("vhangup, for the next terminal", call(unix.SYS_VHANGUP))
}

func namespaces() {
	for name, flag := range map[string]int{"user": unix.CLONE_NEWUSER, "mount": unix.CLONE_NEWNS, "network": unix.CLONE_NEWNET, "process": unix.CLONE_NEWPID} {
		refused("unshare the "+name+" namespace", unix.Unshare(flag))
	}
	cmd := exec.Command("/abuse", "limits")
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWUSER}
	refused("clone into a user namespace", cmd.Run())
	fd, err := unix.Open("/proc/1/ns/net", unix.O_RDONLY, 0)
	if err == nil {
		err = unix.Setns(fd, unix.CLONE_NEWNET)
		unix.Close(fd)
	}
	refused("setns", err)
	// The old way out of a chroot: one below, then up from a directory that is not.
	top, err := os.Open("/")
	if err == nil {
		os.MkdirAll("/tmp/below", 0o755)
		err = unix.Chroot("/tmp/below")
	}
	if err != nil {
		say("leave by a second chroot", true, "%v", err)
		return
	}
	unix.Fchdir(int(top.Fd()))
	for range 64 {
		unix.Chdir("..")
	}
	unix.Chroot(".")
	_, err = os.Stat("/abuse")
	say("leave by a second chroot", err == nil, "the root is still this container's: %v", err)
}
