// Program prog is what the driver's tests run in containers.
package main

import (
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"strconv"
	"strings"
	"syscall"
	"time"
	"unsafe"
)

func main() {
	switch os.Args[1] {
	case "lines":
		n, _ := strconv.Atoi(os.Args[2])
		for i := range n {
			fmt.Println(i)
		}
		code, _ := strconv.Atoi(os.Args[3])
		os.Exit(code)
	case "identity":
		name, _ := os.Hostname()
		status, _ := os.ReadFile("/proc/self/status")
		for line := range strings.Lines(string(status)) {
			if f := strings.Fields(line); f[0] == "Seccomp:" {
				fmt.Println("seccomp", f[1])
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
	case "trap":
		c := make(chan os.Signal, 1)
		signal.Notify(c, syscall.SIGTERM)
		fmt.Println("ready")
		<-c
		os.Exit(42)
	case "tree":
		for range 3 {
			if err := exec.Command("/prog", "sleep").Start(); err != nil {
				fmt.Println(err)
			}
		}
		fmt.Println("ready")
		time.Sleep(time.Hour)
	case "sleep":
		time.Sleep(time.Hour)
	case "cat":
		io.Copy(os.Stdout, os.Stdin)
		fmt.Fprint(os.Stderr, "bye")
		os.Exit(3)
	case "tty":
		var size struct{ rows, cols, x, y uint16 }
		syscall.Syscall(syscall.SYS_IOCTL, 1, syscall.TIOCGWINSZ, uintptr(unsafe.Pointer(&size)))
		fmt.Println(size.rows, size.cols)
	}
}
