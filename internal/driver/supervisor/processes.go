package supervisor

import (
	"bytes"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/tutti-run/tutti/internal/driver"
)

// processesOf looks at what runs in a task. What ends meanwhile is left out.
func processesOf(b Usage) ([]driver.Process, error) {
	pids, err := b.Members()
	if err != nil {
		return nil, fmt.Errorf("list the task's processes: %w", err)
	}
	var now unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &now); err != nil {
		return nil, fmt.Errorf("ask how long this host runs: %w", err)
	}
	boot := time.Now().Add(-time.Duration(now.Nano()))
	slices.Sort(pids)
	var out []driver.Process
	for _, pid := range slices.Compact(pids) {
		if p, ok := readProcess(pid, boot); ok {
			out = append(out, p)
		}
	}
	return out, nil
}

const clockTick = 10 * time.Millisecond // of /proc, on every platform that Go knows

// readProcess reads what /proc says of a process; false: it has gone.
func readProcess(pid int, boot time.Time) (p driver.Process, ok bool) {
	dir := "/proc/" + strconv.Itoa(pid)
	stat, err := os.ReadFile(dir + "/stat")
	if err != nil {
		return p, false
	}
	text := string(stat)
	end := strings.LastIndex(text, ") ") // of the name, which may hold anything
	if end < 0 {
		return p, false
	}
	f := strings.Fields(text[end+2:])
	if len(f) < 22 {
		return p, false
	}
	number := func(i int) uint64 { n, _ := strconv.ParseUint(f[i], 10, 64); return n } // the kernel's own
	p = driver.Process{
		PID: pid, Parent: int(number(1)), State: f[0], CPUNanoseconds: (number(11) + number(12)) * uint64(clockTick),
		Started: boot.Add(time.Duration(number(19)) * clockTick), MemoryBytes: number(21) * uint64(os.Getpagesize()),
	}
	var st syscall.Stat_t
	if syscall.Stat(dir, &st) == nil {
		p.UID = st.Uid
	}
	line, _ := os.ReadFile(dir + "/cmdline") // empty for what has ended, and for the kernel's own
	if line = bytes.TrimRight(line, "\x00"); len(line) > 0 {
		p.Command = strings.Split(string(line), "\x00")
	} else if _, name, ok := strings.Cut(text[:end], "("); ok {
		p.Command = []string{"[" + name + "]"}
	}
	return p, true
}
