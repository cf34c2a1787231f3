package oci

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// strays is what libcontainer leaves behind when a process cannot be started in a container, as when
// that ends just then: helpers of its own, as children of this supervisor that nobody waits for. One of them
// may be in the container's process namespace, and as long as it is not waited for, the kernel does not
// let the container's first process end.
type strays struct {
	starting sync.RWMutex // held for reading while a process is being started
	mu       sync.Mutex
	waited   map[int]bool // processes that are waited for
}

const (
	straysEvery = 20 * time.Millisecond
	straysFor   = 10 * time.Second // how long after a failed start the last of it may end
)

// begin starts a process with start, and looks after what is left of it if that fails.
func (s *strays) begin(start func() (*process, error)) (*process, error) {
	var p *process
	_, ended, err := s.run(func() (pid int, err error) {
		if p, err = start(); err != nil {
			return 0, err
		}
		return p.pid, nil
	})
	if err != nil {
		go func() {
			for end := time.Now().Add(straysFor); time.Now().Before(end); time.Sleep(straysEvery) {
				s.reap()
			}
		}()
		return nil, err
	}
	p.ended = ended
	return p, nil
}

// run starts a process that leaves nothing if that fails, and has it left to who waits for it, until ended is called.
func (s *strays) run(start func() (pid int, err error)) (pid int, ended func(), err error) {
	s.starting.RLock()
	defer s.starting.RUnlock()
	if pid, err = start(); err != nil {
		return 0, nil, err
	}
	return pid, s.leave(pid), nil
}

// leave has a process left to who waits for it, until ended is called.
func (s *strays) leave(pid int) (ended func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.waited == nil {
		s.waited = map[int]bool{}
	}
	s.waited[pid] = true
	return func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		delete(s.waited, pid)
	}
}

// reap waits for children that have ended and that nobody waits for. While a process is being started it
// leaves all alone: some may be libcontainer's, which waits for them.
func (s *strays) reap() {
	if !s.starting.TryLock() {
		return
	}
	defer s.starting.Unlock()
	s.mu.Lock()
	defer s.mu.Unlock()
	files, err := filepath.Glob("/proc/[0-9]*/stat")
	if err != nil {
		return // the pattern is well formed
	}
	for _, file := range files {
		text, err := os.ReadFile(file)
		_, rest, ok := strings.Cut(string(text), ") ")
		if f := strings.Fields(rest); err != nil || !ok || len(f) < 2 || f[0] != "Z" || f[1] != strconv.Itoa(os.Getpid()) {
			continue
		}
		pid, err := strconv.Atoi(filepath.Base(filepath.Dir(file)))
		if err != nil || s.waited[pid] {
			continue
		}
		if _, err := unix.Wait4(pid, nil, unix.WNOHANG, nil); err != nil && !errors.Is(err, unix.ECHILD) {
			fmt.Fprintln(os.Stderr, "wait for what is left of a process:", err)
		}
	}
}
