package agent

import (
	"archive/tar"
	"bytes"
	"io"
	"maps"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"

	"github.com/tutti-run/tutti/internal/fault"
	"github.com/tutti-run/tutti/internal/model"
)

// placedEnv fills in what is known of an instance once it has a node: {instance.id}, {instance.name}, {workload.id},
// {slot}, {run}, {node.id}, {node.name}, {node.address}, {node.machine}, {address} of the instance, {sandbox} of a process, and {port.N}, the
// number of the N-th port that it asked for, from 0; for a separate task {node.room.cpu/N}, {node.room.memory/N} and {node.room.disk/N},
// what the node has for instances, in units of N thousandths of a processor or N bytes, rounded up. What else stands
// in braces stays.
func (w *worker) placedEnv(i *model.Instance, t *model.TaskSpec, id string) []string {
	return w.fillIn(i, t, id, t.PlacedEnv)
}

func (w *worker) fillIn(i *model.Instance, t *model.TaskSpec, id string, list []string) []string {
	if len(list) == 0 {
		return nil
	}
	_, _, run := splitRunID(id)
	known := append(w.known(i), "{run}", strconv.Itoa(run))
	if driverName(t) == "process" {
		known = append(known, "{sandbox}", w.sandbox(t))
	}
	r := strings.NewReplacer(known...)
	out := make([]string, len(list))
	for n, e := range list {
		out[n] = w.fillInRoom(r.Replace(e))
	}
	return out
}

var roomAsked = regexp.MustCompile(`\{node\.room\.(cpu|memory|disk)/([1-9][0-9]{0,17})\}`)

// fillInRoom fills in what the node has for instances.
func (w *worker) fillInRoom(text string) string {
	as, _, _ := w.desired()
	if as.Room == nil || !strings.Contains(text, "{node.room.") {
		return text
	}
	return roomAsked.ReplaceAllStringFunc(text, func(asked string) string {
		part := roomAsked.FindStringSubmatch(asked)
		unit, err := strconv.ParseInt(part[2], 10, 64)
		if err != nil {
			return asked
		}
		has := map[string]int64{"cpu": as.Room.NanoCPUs / 1e6, "memory": as.Room.MemoryBytes, "disk": as.Room.DiskBytes}[part[1]]
		return strconv.FormatInt((has+unit-1)/unit, 10)
	})
}

// placedRecord is a record of those files in a tar archive in which what is known of the instance is filled in, as in
// its environment; awaitedRecord one of those without which nothing of the instance starts, and whose content is to come.
const (
	placedRecord  = "TUTTI.placed"
	awaitedRecord = "TUTTI.awaited"
)

// fillInFolders fills in what is known of the instance in the files of an archive that are marked so.
func (w *worker) fillInFolders(i *model.Instance, archive []byte) ([]byte, error) {
	if !bytes.Contains(archive, []byte(placedRecord)) && !bytes.Contains(archive, []byte(awaitedRecord)) {
		return archive, nil
	}
	var b bytes.Buffer
	in, out := tar.NewReader(bytes.NewReader(archive)), tar.NewWriter(&b)
	for {
		h, err := in.Next()
		if err == io.EOF {
			err = out.Close()
			return b.Bytes(), err
		}
		if err != nil {
			return nil, err
		}
		data, err := io.ReadAll(in)
		if err != nil {
			return nil, err
		}
		if h.PAXRecords[awaitedRecord] != "" {
			return nil, fault.New(fault.Unavailable, "the content of file %s %s", h.Name, model.Awaited)
		}
		if h.PAXRecords[placedRecord] != "" {
			data = []byte(w.fillInRoom(w.place(i, string(data))))
			h.Size, h.PAXRecords = int64(len(data)), nil
		}
		if err := out.WriteHeader(h); err != nil {
			return nil, err
		}
		if _, err := out.Write(data); err != nil {
			return nil, err
		}
	}
}

// deviceEnv tells a task which devices it holds, or of what is only counted how many, as Docker does.
func deviceEnv(i *model.Instance, template *model.Template, t *model.TaskSpec) []string {
	var out []string
	for _, kind := range slices.Sorted(maps.Keys(t.Reserve.Custom)) {
		value := strings.Join(i.DevicesOf(template, t.Name, kind), ",")
		if len(i.Devices[kind]) == 0 {
			value = strconv.FormatInt(t.Reserve.Custom[kind], 10)
		}
		out = append(out, "DOCKER_RESOURCE_"+strings.ToUpper(kind)+"="+value)
	}
	return out
}

// place fills in what is known of an instance, whatever the task.
func (w *worker) place(i *model.Instance, text string) string {
	return strings.NewReplacer(w.known(i)...).Replace(text)
}

func (w *worker) known(i *model.Instance) []string {
	address := w.agent.Address
	if len(i.Addresses) > 0 {
		address = i.Addresses[0].IP
	}
	known := []string{
		"{instance.id}", i.ID, "{instance.name}", i.Name, "{workload.id}", i.WorkloadID, "{slot}", strconv.Itoa(i.Slot),
		"{node.id}", w.agent.NodeID, "{node.name}", w.agent.NodeName, "{node.address}", w.agent.Address, "{node.machine}", machine(), "{address}", address,
	}
	for n, p := range i.HostPorts {
		known = append(known, "{port."+strconv.Itoa(n)+"}", strconv.Itoa(p.Published))
	}
	return known
}

// machine is the processor's architecture as the kernel calls it.
func machine() string {
	switch runtime.GOARCH {
	case "amd64":
		return "x86_64"
	case "arm64":
		return "aarch64"
	}
	return runtime.GOARCH
}

// portOf is where the port request of a number, from 1, leads inside the instance; otherwise the
// number that is given.
func (p *prepared) portOf(request, number int) int {
	if request > 0 && request <= len(p.ports) {
		return p.ports[request-1].Target
	}
	return number
}
