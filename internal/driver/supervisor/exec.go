package supervisor

import (
	"fmt"
	"io"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/fxamacker/cbor/v2"
	"golang.org/x/sys/unix"

	"github.com/tutti-run/tutti/internal/driver"
	"github.com/tutti-run/tutti/internal/fault"
)

// pipes are the files of a process and our ends of them.
type pipes struct {
	files   Files
	outputs map[string]*os.File // by stream
	stdin   *os.File            // nil when it has none
}

// openPipes makes the files of a process. lasting pipes are the process's own to read as well: they, and what
// is in them, outlive this supervisor, so that whoever finds that it was killed can read it.
func openPipes(tty, stdin, lasting bool) (p *pipes, err error) {
	p = &pipes{files: Files{TTY: tty}, outputs: map[string]*os.File{}}
	if tty {
		return p, nil
	}
	defer func() {
		if err != nil {
			p.started()
			p.close()
			err = fmt.Errorf("make a pipe: %w", err)
		}
	}()
	for stream, file := range map[string]**os.File{"stdout": &p.files.Stdout, "stderr": &p.files.Stderr} {
		if p.outputs[stream], *file, err = os.Pipe(); err != nil {
			return nil, err
		}
		if !lasting {
			continue
		}
		both, err := unix.Open(fmt.Sprintf("/proc/self/fd/%d", (*file).Fd()), unix.O_RDWR|unix.O_CLOEXEC, 0)
		if err != nil {
			return nil, err
		}
		(*file).Close()
		*file = os.NewFile(uintptr(both), stream)
	}
	if stdin {
		if p.files.Stdin, p.stdin, err = os.Pipe(); err != nil {
			return nil, err
		}
	}
	return p, nil
}

// started closes what only the process needs, and takes its terminal over.
func (p *pipes) started() {
	for _, f := range []*os.File{p.files.Stdin, p.files.Stdout, p.files.Stderr} {
		if f != nil {
			f.Close()
		}
	}
	if p.files.Console != nil {
		p.outputs["stdout"] = p.files.Console
	}
}

// close closes our ends.
func (p *pipes) close() {
	for _, f := range p.outputs {
		if f != nil {
			f.Close()
		}
	}
	if p.stdin != nil {
		p.stdin.Close()
	}
}

// enter starts a process in the task, unless that is paused.
func (s *supervisor) enter(e *driver.ExecSpec, files *Files) (Process, error) {
	s.freezing.RLock()
	defer s.freezing.RUnlock()
	if err := s.errSuspended(); err != nil {
		return nil, err
	}
	if state := s.state(); state != driver.Running {
		return nil, fault.New(fault.Conflict, "task %s is %s", s.task.ID, state)
	}
	return s.body.Exec(e, files)
}

// exec runs one more process in the task and passes its streams on. It dies with its client.
func (s *supervisor) exec(e *driver.ExecSpec, stdin bool, dec *cbor.Decoder, enc *sender) (int, error) {
	p, err := openPipes(e.TTY, stdin && !e.TTY, false)
	if err != nil {
		return 0, err
	}
	defer p.close()
	p.files.Rows, p.files.Cols = e.Rows, e.Cols
	process, err := s.enter(e, &p.files)
	p.started()
	if err != nil {
		return 0, err
	}
	in := p.stdin
	if p.files.Console != nil {
		in = p.files.Console
	}
	var ended atomic.Bool
	go func() {
		takeInput(dec, in, process.PID(), p.files.Console)
		if !ended.Load() {
			unix.Kill(process.PID(), unix.SIGKILL)
		}
	}()
	var copying sync.WaitGroup
	for stream, f := range p.outputs {
		copying.Go(func() {
			copyOut(f, func(b []byte) error {
				if stream == "stderr" {
					return enc.send(output{Stderr: b})
				}
				return enc.send(output{Stdout: b})
			})
		})
	}
	ws, err := process.Wait()
	ended.Store(true)
	waited := make(chan struct{})
	go func() { copying.Wait(); close(waited) }()
	select {
	case <-waited:
	case <-time.After(2 * time.Second): // a child of it holds the output open
	}
	if err != nil {
		return 0, fmt.Errorf("wait for the process: %w", err)
	}
	return exitCode(ws), nil
}

func copyOut(r io.Reader, send func([]byte) error) error {
	buf := make([]byte, 32<<10)
	for {
		n, err := r.Read(buf)
		if n > 0 {
			if err := send(buf[:n]); err != nil {
				return err
			}
		}
		if err != nil {
			return err
		}
	}
}

// takeInput passes a client's input on until the client goes away.
func takeInput(dec *cbor.Decoder, in *os.File, pid int, console *os.File) {
	for {
		var m input
		if dec.Decode(&m) != nil {
			return
		}
		switch {
		case m.Closed:
			if in != nil && console == nil {
				in.Close()
			} else if in != nil {
				in.Write([]byte{4}) // end of input, as typed at a terminal
			}
		case m.Resize != nil:
			if console != nil {
				unix.IoctlSetWinsize(int(console.Fd()), unix.TIOCSWINSZ, &unix.Winsize{Row: uint16(m.Resize.Rows), Col: uint16(m.Resize.Cols)})
			}
		case m.Signal != 0:
			unix.Kill(pid, unix.Signal(m.Signal))
		case in != nil:
			in.Write(m.Data) // a process that reads no more is no reason to end
		}
	}
}

func (s *supervisor) attach(fromStart bool, dec *cbor.Decoder, enc *sender) {
	in := s.stdin
	if s.console != nil {
		in = s.console
	}
	s.mu.Lock()
	pid := s.status.PID
	s.mu.Unlock()
	gone := make(chan struct{})
	go func() {
		defer close(gone)
		takeInput(dec, in, pid, s.console)
	}()
	sub := s.hub.subscribe(fromStart)
	defer s.hub.unsubscribe(sub)
	for {
		select {
		case <-gone:
			return
		case o, ok := <-sub:
			if !ok || enc.send(o) != nil {
				return
			}
		}
	}
}
