package docker

import (
	"cmp"
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/moby/moby/api/types/container"

	"github.com/tutti-run/tutti/internal/driver"
	"github.com/tutti-run/tutti/internal/fault"
)

func (a *API) containerPause(w http.ResponseWriter, r *request) error   { return a.pause(w, r, true) }
func (a *API) containerUnpause(w http.ResponseWriter, r *request) error { return a.pause(w, r, false) }

func (a *API) pause(w http.ResponseWriter, r *request, pause bool) error {
	b, err := a.box(r)
	if err != nil {
		return err
	}
	switch state := b.state(); {
	case state == container.StateRestarting:
		return fault.New(fault.Conflict, "Container %s is restarting, wait until the container is running", b.id)
	case pause && state == container.StatePaused:
		return fault.New(fault.Conflict, "Container %s is already paused", b.id)
	case pause && state != container.StateRunning:
		return fault.New(fault.Conflict, "Container %s is not running", b.id)
	case !pause && state != container.StatePaused:
		return fault.New(fault.Conflict, "Container %s is not paused", b.id)
	}
	if err := a.Core.Pause(r.Context(), r.who, b.instance.ID, pause); err != nil {
		return err
	}
	// The node has done it; what it tells of it is on its way.
	err = a.await(r.Context(), b.id, func(now *box) bool {
		return now == nil || (now.state() == container.StatePaused) == pause || !now.running()
	})
	if err != nil {
		return err
	}
	return done(w, http.StatusNoContent)
}

// The columns of ps that are known here, as ps -ef and ps with -o or aux call them.
var psColumns = map[string]func(p *driver.Process, now time.Time) string{
	"UID":  func(p *driver.Process, _ time.Time) string { return userName(p.UID) },
	"USER": func(p *driver.Process, _ time.Time) string { return userName(p.UID) },
	"PID":  func(p *driver.Process, _ time.Time) string { return strconv.Itoa(p.PID) },
	"PPID": func(p *driver.Process, _ time.Time) string { return strconv.Itoa(p.Parent) },
	"C":    func(p *driver.Process, now time.Time) string { return strconv.Itoa(int(share(p, now))) },
	"%CPU": func(p *driver.Process, now time.Time) string { return fmt.Sprintf("%.1f", share(p, now)) },
	"STIME": func(p *driver.Process, now time.Time) string {
		if now.Sub(p.Started) < 24*time.Hour {
			return p.Started.Format("15:04")
		}
		return p.Started.Format("Jan02")
	},
	"TTY":  func(*driver.Process, time.Time) string { return "?" },
	"STAT": func(p *driver.Process, _ time.Time) string { return p.State },
	"TIME": func(p *driver.Process, _ time.Time) string {
		d := time.Duration(p.CPUNanoseconds)
		return fmt.Sprintf("%02d:%02d:%02d", int(d.Hours()), int(d.Minutes())%60, int(d.Seconds())%60)
	},
	"RSS":     func(p *driver.Process, _ time.Time) string { return strconv.FormatUint(p.MemoryBytes>>10, 10) },
	"CMD":     func(p *driver.Process, _ time.Time) string { return strings.Join(p.Command, " ") },
	"COMMAND": func(p *driver.Process, _ time.Time) string { return strings.Join(p.Command, " ") },
	"COMM": func(p *driver.Process, _ time.Time) string {
		if len(p.Command) == 0 {
			return ""
		}
		return p.Command[0][strings.LastIndexByte(p.Command[0], '/')+1:]
	},
	"ARGS": func(p *driver.Process, _ time.Time) string { return strings.Join(p.Command, " ") },
}

func userName(uid uint32) string {
	if uid == 0 {
		return "root"
	}
	return strconv.FormatUint(uint64(uid), 10)
}

// share is how much of a processor a process has used over its life, in percent.
func share(p *driver.Process, now time.Time) float64 {
	if life := now.Sub(p.Started); life > 0 {
		return 100 * float64(p.CPUNanoseconds) / float64(life)
	}
	return 0
}

// psTitles reads the arguments of ps that choose columns: -ef, aux, and -o with names.
func psTitles(args string) ([]string, error) {
	switch strings.TrimSpace(args) {
	case "", "-ef", "ef", "-e -f":
		return []string{"UID", "PID", "PPID", "C", "STIME", "TTY", "TIME", "CMD"}, nil
	case "aux", "-aux":
		return []string{"USER", "PID", "%CPU", "RSS", "TTY", "STAT", "TIME", "COMMAND"}, nil
	}
	fields := strings.Fields(args)
	var out []string
	for i := 0; i < len(fields); i++ {
		switch f := fields[i]; {
		case f == "-e", f == "-A", f == "-a":
			continue
		case f == "-o" || f == "-eo" || f == "o":
			if i++; i == len(fields) {
				return nil, fault.New(fault.Invalid, "ps arguments %q: -o needs the names of columns", args)
			}
			f = fields[i]
			fallthrough
		case strings.HasPrefix(f, "-o"):
			for _, name := range strings.Split(strings.TrimPrefix(f, "-o"), ",") {
				name = strings.ToUpper(name)
				if name == "PCPU" {
					name = "%CPU"
				}
				if psColumns[name] == nil {
					return nil, fault.New(fault.Unsupported, "ps column %s is not known here", name)
				}
				out = append(out, name)
			}
		default:
			return nil, fault.New(fault.Unsupported, "ps arguments %q are not supported by Tutti: -ef, aux and -o are", args)
		}
	}
	if len(out) == 0 {
		return psTitles("")
	}
	return out, nil
}

func (a *API) containerTop(w http.ResponseWriter, r *request) error {
	b, err := a.box(r)
	if err != nil {
		return err
	}
	titles, err := psTitles(r.query.Get("ps_args"))
	if err != nil {
		return err
	}
	if !slices.Contains(titles, "PID") {
		return fault.New(fault.Internal, "Couldn't find PID field in ps output") // the Engine's words
	}
	switch b.state() {
	case container.StateRunning, container.StatePaused:
	case container.StateRestarting:
		return fault.New(fault.Conflict, "Container %s is restarting, wait until the container is running", b.id)
	default:
		return fault.New(fault.Conflict, "container %s is not running", b.id)
	}
	list, err := a.Core.Processes(r.Context(), r.who, b.instance.ID, b.spec().Name)
	if err != nil {
		return err
	}
	out := container.TopResponse{Processes: [][]string{}}
	for _, t := range titles {
		if t == "COMM" || t == "ARGS" { // ps heads both alike
			t = "COMMAND"
		}
		out.Titles = append(out.Titles, t)
	}
	now := time.Now()
	for i := range list {
		row := make([]string, len(titles))
		for n, t := range titles {
			row[n] = psColumns[t](&list[i], now)
		}
		out.Processes = append(out.Processes, row)
	}
	return answer(w, http.StatusOK, out)
}

// statsEvery is how often statistics are told to who follows them.
const statsEvery = time.Second

func (a *API) containerStats(w http.ResponseWriter, r *request) error {
	b, err := a.box(r)
	if err != nil {
		return err
	}
	stream := r.query.Get("stream") == "" || r.flag("stream")
	oneShot := r.flag("one-shot")
	if stream && oneShot {
		return fault.New(fault.Invalid, "cannot have stream=true and one-shot=true")
	}
	w.Header().Set("Content-Type", "application/json")
	enc := json.NewEncoder(w)
	before, _ := a.reading(r, b)
	if !stream && !oneShot && b.running() {
		if !pauseFor(r, statsEvery) {
			return nil
		}
	}
	for first := true; ; first = false {
		now := a.boxByID(a.snapshot(), b.id)
		if now == nil {
			return nil
		}
		read, err := a.reading(r, now)
		if err != nil {
			if first && !stream {
				return err
			}
			read = &container.StatsResponse{}
		}
		read.ID, read.Name = now.id, "/"+now.name
		if before != nil && !before.Read.IsZero() && !oneShot {
			read.PreCPUStats, read.PreRead = before.CPUStats, before.Read
		}
		if enc.Encode(read) != nil || !stream {
			return nil
		}
		_ = http.NewResponseController(w).Flush()
		before = read
		if !pauseFor(r, statsEvery) {
			return nil
		}
	}
}

// pauseFor waits; false: the client has gone.
func pauseFor(r *request, d time.Duration) bool {
	select {
	case <-r.Context().Done():
		return false
	case <-time.After(d):
		return true
	}
}

// reading is what a container uses now, in the Engine's form. One that does not run uses nothing.
func (a *API) reading(r *request, b *box) (*container.StatsResponse, error) {
	out := &container.StatsResponse{}
	if !b.running() || b.state() == container.StateRestarting {
		return out, nil
	}
	st, err := a.Core.Stats(r.Context(), r.who, b.instance.ID, b.spec().Name)
	if err != nil {
		return nil, err
	}
	out.Read = st.Time
	out.PidsStats.Current = st.Pids
	out.CPUStats.CPUUsage.TotalUsage = st.CPUNanoseconds
	out.CPUStats.SystemUsage, out.CPUStats.OnlineCPUs = st.HostNanoseconds, uint32(st.Processors)
	out.MemoryStats = container.MemoryStats{Usage: st.MemoryBytes, Limit: cmp.Or(memoryLimit(st), st.HostMemoryBytes), Stats: map[string]uint64{}}
	out.BlkioStats.IoServiceBytesRecursive = []container.BlkioStatEntry{{Op: "read", Value: st.ReadBytes}, {Op: "write", Value: st.WriteBytes}}
	for _, n := range st.Links {
		if out.Networks == nil {
			out.Networks = map[string]container.NetworkStats{}
		}
		out.Networks[n.Name] = container.NetworkStats{
			RxBytes: n.ReceivedBytes, RxPackets: n.ReceivedPackets, RxErrors: n.ReceiveErrors, RxDropped: n.ReceiveDropped,
			TxBytes: n.SentBytes, TxPackets: n.SentPackets, TxErrors: n.SendErrors, TxDropped: n.SendDropped,
		}
	}
	return out, nil
}

// memoryLimit is the task's limit, 0 when it has none: the kernel writes that as more than any host has.
func memoryLimit(st driver.Stats) uint64 {
	if st.MemoryLimitBytes > st.HostMemoryBytes && st.HostMemoryBytes > 0 {
		return 0
	}
	return st.MemoryLimitBytes
}
