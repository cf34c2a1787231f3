package fake

import (
	"io"
	"slices"
	"sync"
	"syscall"

	"github.com/tutti-run/tutti/internal/driver"
)

// Program is what a task, or a process executed in one, does. It returns its exit code, and must
// return soon after p.Done is closed; then the code does not count.
type Program func(p *Process) int

// Process is a process as its program sees it.
type Process struct {
	Args   []string
	Env    []string // NAME=value
	Dir    string
	Stdin  io.Reader // never nil; without input it is at its end
	Stdout io.Writer
	Stderr io.Writer
	// Done is closed when the process is killed.
	Done <-chan struct{}
	// Notify has the signals delivered to the channel that it returns, in place of their default
	// action: to end an executed process, and nothing at all for a task, which is process 1.
	Notify func(signals ...int) <-chan int
	// OnSuspend has a function called when the task is suspended, as the node's lease ended, and when it goes on.
	OnSuspend func(func(suspended bool))
}

// process is the other side of a Process.
type process struct {
	first bool // process 1 of its task
	stdin *io.PipeReader

	done chan struct{} // closed by kill
	over chan struct{} // closed when the program has returned; code is set

	mu        sync.Mutex
	handled   []int
	signals   chan int
	killed    int // the signal, 0 for none
	code      int
	onSuspend func(bool)
	suspended bool
}

// signalQueue is how many signals wait for a program that does not take them.
const signalQueue = 16

// run starts the program. in may be nil.
func run(program Program, p *Process, in io.Reader, first bool) *process {
	r, w := io.Pipe()
	pr := &process{first: first, stdin: r, done: make(chan struct{}), over: make(chan struct{}), signals: make(chan int, signalQueue)}
	if in == nil {
		w.Close()
	} else {
		go func() {
			_, err := io.Copy(w, in)
			w.CloseWithError(err)
		}()
	}
	p.Stdin, p.Done = r, pr.done
	p.Notify = func(signals ...int) <-chan int {
		pr.mu.Lock()
		defer pr.mu.Unlock()
		pr.handled = append(pr.handled, signals...)
		return pr.signals
	}
	p.OnSuspend = func(call func(bool)) {
		pr.mu.Lock()
		suspended := pr.suspended
		pr.onSuspend = call
		pr.mu.Unlock()
		if suspended && call != nil {
			call(true)
		}
	}
	go func() {
		code := program(p)
		r.Close() // who still writes to it is told
		pr.mu.Lock()
		if pr.killed != 0 {
			code = 128 + pr.killed
		}
		pr.code = code
		pr.mu.Unlock()
		close(pr.over)
	}()
	return pr
}

func (p *process) signal(n int) {
	p.mu.Lock()
	handled := slices.Contains(p.handled, n)
	p.mu.Unlock()
	switch {
	case n == int(syscall.SIGKILL), !handled && !p.first:
		p.kill(n)
	case handled:
		select {
		case p.signals <- n:
		default: // as in a kernel: a pending signal is not counted
		}
	}
}

// suspend tells the program that it is suspended, or goes on, before anybody can know of it.
func (p *process) suspend(suspended bool) {
	p.mu.Lock()
	call := p.onSuspend
	p.suspended = suspended
	p.mu.Unlock()
	if call != nil {
		call(suspended)
	}
}

func (p *process) kill(signal int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	select {
	case <-p.over:
		return
	default:
	}
	if p.killed == 0 {
		p.killed = signal
		close(p.done)
		p.stdin.Close()
	}
}

// gate holds up the writers of a paused task.
type gate struct {
	mu   sync.Mutex
	open chan struct{} // nil while nothing is held up
}

func (g *gate) shut() {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.open == nil {
		g.open = make(chan struct{})
	}
}

func (g *gate) release() {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.open != nil {
		close(g.open)
		g.open = nil
	}
}

func (g *gate) pass(done <-chan struct{}) {
	g.mu.Lock()
	open := g.open
	g.mu.Unlock()
	if open == nil {
		return
	}
	select {
	case <-open:
	case <-done:
	}
}

// lockedWriter serves the two streams of a process that share a destination, as on a terminal.
type lockedWriter struct {
	mu *sync.Mutex
	w  io.Writer
}

func (l lockedWriter) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.w.Write(p)
}

func outputs(s driver.Streams, tty bool) (stdout, stderr io.Writer) {
	stdout, stderr = io.Discard, io.Discard
	mu := new(sync.Mutex)
	if s.Stdout != nil {
		stdout = lockedWriter{mu, s.Stdout}
	}
	if s.Stderr != nil {
		stderr = lockedWriter{mu, s.Stderr}
	}
	if tty {
		stderr = stdout
	}
	return stdout, stderr
}
