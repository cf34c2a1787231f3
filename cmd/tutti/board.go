package main

import (
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"time"
)

// row is one line of progress.
type row struct {
	mark   mark
	name   string
	state  string // one word
	count  string // "2/3"
	detail string
}

// mark says at a glance how a row is.
type mark int

const (
	markBusy mark = iota
	markGood
	markBad
	markWaiting
)

// board shows rows of progress as they change.
type board interface {
	show(rows []row)
}

// boardFor redraws in place where people look, and prints a line per change elsewhere.
func boardFor(w io.Writer) board {
	if isTerminal(w) && os.Getenv("TERM") != "dumb" {
		return &liveBoard{w: w, paint: paintFor(w), size: func() (int, int) { return sizeOf(w) }}
	}
	return &plainBoard{w: w, told: map[string]string{}}
}

// plainBoard prints each row when it changes.
type plainBoard struct {
	w    io.Writer
	told map[string]string
}

func (b *plainBoard) show(rows []row) {
	for _, r := range rows {
		text := r.name + ": " + r.state
		if r.count != "" {
			text += " (" + r.count + ")"
		}
		if r.detail != "" {
			text += ": " + r.detail
		}
		if b.told[r.name] != text {
			b.told[r.name] = text
			fmt.Fprintln(b.w, text)
		}
	}
}

// liveBoard draws all rows again over what it drew before.
type liveBoard struct {
	w     io.Writer
	paint painter
	size  func() (rows, cols int)
	drawn int
	turn  int
}

var spinner = []string{"⠋", "⠙", "⠹", "⠸", "⠼", "⠴", "⠦", "⠧", "⠇", "⠏"}

func (b *liveBoard) show(rows []row) {
	height, cols := b.size()
	b.turn++
	lines := b.lines(rows)
	if height > 2 && len(lines) > height-1 {
		lines = b.fold(rows, lines, height-1)
	}
	var out strings.Builder
	if b.drawn > 0 {
		fmt.Fprintf(&out, "\x1b[%dA", b.drawn)
	}
	for _, l := range lines {
		out.WriteString("\r\x1b[2K" + cut(l, cols-1) + "\n")
	}
	for extra := len(lines); extra < b.drawn; extra++ {
		out.WriteString("\r\x1b[2K\n")
	}
	if extra := b.drawn - len(lines); extra > 0 {
		fmt.Fprintf(&out, "\x1b[%dA", extra)
	}
	b.drawn = len(lines)
	io.WriteString(b.w, out.String()) // a terminal that is gone needs no progress
}

// stateWidth is that of the longest state, so that columns stay where they are.
const stateWidth = len("rolling back")

func (b *liveBoard) lines(rows []row) []string {
	t := &table{}
	for _, r := range rows {
		t.add(b.sign(r.mark)+" "+r.name, fmt.Sprintf("%-*s", stateWidth, r.state), r.count, b.paint.faint(r.detail))
	}
	if len(rows) == 0 {
		return nil
	}
	return strings.Split(strings.TrimSuffix(t.String(), "\n"), "\n")
}

// fold leaves out rows that are well, as many as there is no room for.
func (b *liveBoard) fold(rows []row, lines []string, room int) []string {
	var out []string
	hidden := 0
	spare := len(lines) - (room - 1)
	for i, r := range rows {
		if spare > 0 && r.mark == markGood {
			hidden++
			spare--
			continue
		}
		out = append(out, lines[i])
	}
	if len(out) > room-1 {
		hidden += len(out) - (room - 1)
		out = out[:room-1]
	}
	return append(out, b.paint.faint(fmt.Sprintf("  and %d more", hidden)))
}

func (b *liveBoard) sign(m mark) string {
	switch m {
	case markGood:
		return b.paint.good("✓")
	case markBad:
		return b.paint.bad("✗")
	case markWaiting:
		return b.paint.faint("·")
	default:
		return b.paint.busy(spinner[b.turn%len(spinner)])
	}
}

// patience is how long something may take before it has to say that it goes on.
const patience = time.Second

// busy says what is going on, and for how long, once it has taken longer than patience, until
// stop is called: on terminals on one line that goes away again, elsewhere now and then.
func busy(w io.Writer, text func() string) (stop func()) {
	done := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		began := time.Now()
		interval := 10 * time.Second
		live := isTerminal(w)
		if live {
			interval = 100 * time.Millisecond
		}
		next := time.NewTimer(patience)
		defer next.Stop()
		paint := paintFor(w)
		for turn := 0; ; turn++ {
			select {
			case <-done:
				if live && turn > 0 {
					fmt.Fprint(w, "\r\x1b[2K")
				}
				return
			case <-next.C:
				next.Reset(interval)
			}
			line := fmt.Sprintf("%s (%s)", text(), tookText(time.Since(began)))
			if live {
				_, cols := sizeOf(w)
				fmt.Fprint(w, "\r\x1b[2K", cut(paint.busy(spinner[turn%len(spinner)])+" "+line, cols-1))
			} else {
				fmt.Fprintln(w, line)
			}
		}
	})
	return func() { close(done); wg.Wait() }
}

func sizeOf(w io.Writer) (rows, cols int) {
	if f, ok := w.(*os.File); ok {
		if s := terminalSize(f); s.Cols > 0 {
			return s.Rows, s.Cols
		}
	}
	return 24, 80
}
