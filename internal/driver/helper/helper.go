package helper

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Program can be executed, and mounted into containers.
type Program struct {
	path string
	dir  string
}

// lowest keeps the program's descriptor clear of those that os/exec passes on to a child: it moves
// them about before it executes the path.
const lowest = 100

// Open makes the program ready to be executed: it is kept in memory, sealed, so that nothing that
// runs in a container could change what others are started with. Its file, where one is needed, is
// made below dir.
func Open(dir string) (*Program, error) {
	if program == "" {
		self, err := os.Executable()
		if err != nil {
			return nil, fmt.Errorf("find this program: %w", err)
		}
		return &Program{path: self}, nil
	}
	fd, err := unix.MemfdCreate("tutti-task", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING|unix.MFD_EXEC)
	if errors.Is(err, unix.EINVAL) { // before Linux 6.3 each was executable
		fd, err = unix.MemfdCreate("tutti-task", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	}
	if err != nil {
		return nil, fmt.Errorf("keep the program that runs beside tasks in memory: %w", err)
	}
	f := os.NewFile(uintptr(fd), "tutti-task")
	defer f.Close()
	if _, err := f.WriteString(program); err != nil {
		return nil, fmt.Errorf("keep the program that runs beside tasks in memory: %w", err)
	}
	forget(program)
	if _, err := unix.FcntlInt(f.Fd(), unix.F_ADD_SEALS, unix.F_SEAL_SEAL|unix.F_SEAL_SHRINK|unix.F_SEAL_GROW|unix.F_SEAL_WRITE); err != nil {
		return nil, fmt.Errorf("seal the program that runs beside tasks: %w", err)
	}
	kept, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, lowest)
	if err != nil {
		return nil, fmt.Errorf("keep the program that runs beside tasks open: %w", err)
	}
	return &Program{path: "/proc/self/fd/" + strconv.Itoa(kept), dir: dir}, nil
}

// forget lets go of the memory that a constant took when it was read: it is in the program's file, and
// is read from there if it is ever needed again.
func forget(text string) {
	page := uintptr(os.Getpagesize())
	start := uintptr(unsafe.Pointer(unsafe.StringData(text)))
	skip := -start & (page - 1)
	if length := (uintptr(len(text)) - skip) &^ (page - 1); uintptr(len(text)) > skip+page {
		_ = unix.Madvise(unsafe.Slice(unsafe.StringData(text), len(text))[skip:skip+length], unix.MADV_DONTNEED) // it only saves memory
	}
}

// Path is where this process, and only it, executes the program from.
func (p *Program) Path() string { return p.path }

// File returns a file with the program, for what cannot do with Path: binding it into a container.
func (p *Program) File() (string, error) {
	if p.dir == "" {
		return p.path, nil
	}
	sum := sha256.Sum256([]byte(program))
	path := filepath.Join(p.dir, "tutti-task-"+hex.EncodeToString(sum[:8]))
	if st, err := os.Stat(path); err == nil && st.Size() == int64(len(program)) {
		return path, nil
	}
	f, err := os.CreateTemp(p.dir, ".new-")
	if err != nil {
		return "", fmt.Errorf("write the program that runs beside tasks: %w", err)
	}
	_, err = f.WriteString(program)
	err = errors.Join(err, f.Chmod(0o555), f.Close())
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		os.Remove(f.Name())
		return "", fmt.Errorf("write the program that runs beside tasks: %w", err)
	}
	return path, nil
}
