// Program prog is what the driver's tests run in containers: the suite's script, and what only
// containers have.
package main

import (
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"os/signal"
	"strconv"
	"strings"
	"syscall"
	"time"
	"unsafe"

	"github.com/tutti-run/tutti/internal/driver/drivertest/script"
)

func main() {
	switch os.Args[1] {
	case "identity":
		name, _ := os.Hostname()
		status, _ := os.ReadFile("/proc/self/status")
		for line := range strings.Lines(string(status)) {
			switch f := strings.Fields(line); f[0] {
			case "Seccomp:":
				fmt.Println("seccomp", f[1])
			case "SigIgn:":
				fmt.Println("ignores", f[1])
			}
		}
		fmt.Println("pid", os.Getpid())
		fmt.Println("uid", os.Getuid())
		fmt.Println("hostname", name)
	case "hog":
		var keep [][]byte
		for {
			b := make([]byte, 1<<20)
			for i := range b {
				b[i] = 1
			}
			keep = append(keep, b)
			if len(keep) > 4096 {
				return
			}
		}
	case "odd": // lines of all kinds, in pieces that do not care where lines end
		r := rand.New(rand.NewPCG(uint64(len(os.Args[2])), 7))
		const part = 16 << 10
		var out []byte
		for _, n := range []int{0, 1, part - 1, part, part + 1, 2 * part, 2*part + 1, 3*part - 1, 100_000, 0, 5} {
			for range n {
				b := byte(r.UintN(256))
				if b == '\n' {
					b = 0
				}
				out = append(out, b)
			}
			out = append(out, "\r\n"[r.UintN(2):]...)
		}
		out = append(out, "\n\n\r\n"...)
		out = append(out, "no end"...)
		for len(out) > 0 {
			n, _ := os.Stdout.Write(out[:min(len(out), 1+r.IntN(20_000))])
			out = out[n:]
		}
	case "tick": // so many times, or for ever
		times := -1
		if len(os.Args) > 2 {
			times, _ = strconv.Atoi(os.Args[2])
		}
		for n := 0; n != times; n++ {
			fmt.Println("tick")
			time.Sleep(10 * time.Millisecond)
		}
	case "tree":
		for range 3 {
			if err := exec.Command("/prog", "sleep").Start(); err != nil {
				fmt.Println(err)
			}
		}
		fmt.Println("ready")
		time.Sleep(time.Hour)
	case "processes":
		n := 0
		entries, _ := os.ReadDir("/proc")
		for _, e := range entries {
			if _, err := strconv.Atoi(e.Name()); err == nil {
				n++
			}
		}
		fmt.Println(n)
	case "descriptors":
		var open []string // without those of the Go runtime
		for fd := range 256 {
			what, err := os.Readlink("/proc/self/fd/" + strconv.Itoa(fd))
			runtimes := strings.HasPrefix(what, "anon_inode:") || strings.HasPrefix(what, "/sys/fs/cgroup/")
			if err == nil && !runtimes {
				open = append(open, strconv.Itoa(fd))
			}
		}
		fmt.Println(strings.Join(open, " "))
	case "parts": // of a line, one before SIGUSR1 and one after, until SIGTERM
		signals := make(chan os.Signal, 1)
		signal.Notify(signals, syscall.SIGUSR1, syscall.SIGTERM)
		fmt.Print("one\nbeg")
		for s := range signals {
			if s == syscall.SIGTERM {
				os.Exit(7)
			}
			fmt.Print("un\n")
		}
	case "orphan":
		// The child outlives this process and is left to process 1.
		if err := exec.Command("/prog", "exit", "0").Start(); err != nil {
			fmt.Println(err)
		}
	case "describe":
		describe(os.Args[2:])
	case "abuse":
		abuse(os.Args[2:])
	case "clocks":
		fmt.Println(clock(1), clock(7)) // monotonic, since boot
	case "tty":
		var size struct{ rows, cols, x, y uint16 }
		syscall.Syscall(syscall.SYS_IOCTL, 1, syscall.TIOCGWINSZ, uintptr(unsafe.Pointer(&size)))
		fmt.Println(size.rows, size.cols)
	default:
		os.Exit(script.Main())
	}
}

// abuse writes files as one of its users, and tries what root of the host could.
func abuse(files []string) {
	for _, f := range files {
		err := os.WriteFile(f, []byte("mine"), 0o644)
		if err == nil {
			err = os.Chown(f, 5, 5)
		}
		var st syscall.Stat_t
		if err == nil {
			err = syscall.Stat(f, &st)
		}
		fmt.Println("file", f, st.Uid, err)
	}
	forward, err := os.ReadFile("/proc/sys/net/ipv4/ip_forward")
	fmt.Println("forward", strings.TrimSpace(string(forward)), err)
	fmt.Println("host name", syscall.Sethostname([]byte("mine")))
	fmt.Println("beyond", os.Chown(files[0], 70000, 0))
	fmt.Println("node", syscall.Mknod("/disk", syscall.S_IFBLK|0o600, 0x100))
	fmt.Println("clock", syscall.Settimeofday(&syscall.Timeval{Sec: 1}))
	fmt.Println("priority", syscall.Setpriority(syscall.PRIO_PROCESS, 0, -10))
	fmt.Println("core", os.WriteFile("/proc/sys/kernel/core_pattern", []byte("|/mine"), 0o644))
}

// clock reads one of the kernel's clocks, in nanoseconds.
func clock(id uintptr) int64 {
	var t syscall.Timespec
	syscall.Syscall(syscall.SYS_CLOCK_GETTIME, id, uintptr(unsafe.Pointer(&t)), 0)
	return t.Nano()
}
