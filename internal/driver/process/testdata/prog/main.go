// Program prog is what the driver's tests run as processes: the suite's script, and what only
// processes of the host have.
package main

import (
	"fmt"
	"os"
	"os/exec"
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
		status, _ := os.ReadFile("/proc/self/status")
		for line := range strings.Lines(string(status)) {
			switch name, value, _ := strings.Cut(line, ":"); name {
			case "Uid", "Gid", "Groups", "NoNewPrivs", "SigIgn", "Seccomp":
				fmt.Println(name, strings.Join(strings.Fields(value), " "))
			}
		}
		var nofile syscall.Rlimit
		syscall.Getrlimit(syscall.RLIMIT_CORE, &nofile)
		fmt.Println("core", nofile.Cur, nofile.Max)
		umask := syscall.Umask(0)
		fmt.Printf("umask %03o\n", umask)
		dir, _ := os.Getwd()
		fmt.Println("dir", dir)
		network, _ := os.Readlink("/proc/self/ns/net")
		fmt.Println("network", network)
		score, _ := os.ReadFile("/proc/self/oom_score_adj")
		fmt.Println("oom", strings.TrimSpace(string(score)))
	case "descriptors":
		var open []string // without those of the Go runtime
		for fd := range 256 {
			what, err := os.Readlink("/proc/self/fd/" + strconv.Itoa(fd))
			if err == nil && !strings.HasPrefix(what, "anon_inode:") && !strings.HasPrefix(what, "/sys/fs/cgroup/") {
				open = append(open, strconv.Itoa(fd))
			}
		}
		fmt.Println(strings.Join(open, " "))
	case "read":
		for _, name := range os.Args[2:] {
			data, err := os.ReadFile(name)
			fmt.Println(strings.TrimSpace(string(data)), err)
		}
	case "write":
		fmt.Println(os.WriteFile(os.Args[2], []byte("x"), 0o644))
	case "hog":
		var keep [][]byte
		for len(keep) < 4096 {
			b := make([]byte, 1<<20)
			for i := range b {
				b[i] = 1
			}
			keep = append(keep, b)
		}
	case "tree":
		// One child in a session of its own, whose parent ends: nobody's but the supervisor's.
		if len(os.Args) > 2 {
			cmd := exec.Command(os.Args[0], "sleep")
			cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
			if err := cmd.Start(); err != nil {
				fmt.Println(err)
			}
			return
		}
		if err := exec.Command(os.Args[0], "tree", "away").Run(); err != nil {
			fmt.Println(err)
		}
		fmt.Println("ready")
		time.Sleep(time.Hour)
	case "bomb":
		for {
			exec.Command(os.Args[0], "bomb").Start()
		}
	case "tty":
		var size struct{ rows, cols, x, y uint16 }
		syscall.Syscall(syscall.SYS_IOCTL, 1, syscall.TIOCGWINSZ, uintptr(unsafe.Pointer(&size)))
		fmt.Println(size.rows, size.cols)
	default:
		os.Exit(script.Main())
	}
}
