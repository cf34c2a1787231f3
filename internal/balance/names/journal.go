package names

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"syscall"

	"github.com/tutti-run/tutti/internal/atomicfile"
	"github.com/tutti-run/tutti/internal/wire"
)

const stateFile = "names.state"

// journal is the file through which the agent tells the responder, and each of the two has one of these:
// a complete network state and what changed since, each after its length. It is written anew when
// the changes are more than the state was.
type journal struct {
	path  string
	inode uint64
	base  int64 // bytes of the complete state
	end   int64 // of what was written or read
}

// message is what a state, or a difference, looks like in the file.
func message(n *wire.Network) ([]byte, error) {
	data, err := wire.Marshal(n)
	if err != nil {
		return nil, err
	}
	return append(binary.BigEndian.AppendUint32(nil, uint32(len(data))), data...), nil
}

// write adds what changed, or writes everything where that is not known or takes less.
func (j *journal) write(n *wire.Network) error {
	if c := n.Changes; c != nil && j.base > 0 && j.end < 2*j.base+1<<16 {
		difference := &wire.Network{Since: 1}
		for id := range c.Instances {
			if in := n.Instance(id); in != nil {
				difference.Instances = append(difference.Instances, *in)
			} else {
				difference.Gone = append(difference.Gone, id)
			}
		}
		for id := range c.Services {
			if s := n.Service(id); s != nil {
				difference.Services = append(difference.Services, bare(*s))
			} else {
				difference.Gone = append(difference.Gone, id)
			}
		}
		if len(difference.Instances)+len(difference.Services)+len(difference.Gone) == 0 {
			return nil
		}
		return j.add(difference)
	}
	whole := &wire.Network{Instances: n.Instances}
	for _, s := range n.Services {
		whole.Services = append(whole.Services, bare(s))
	}
	data, err := message(whole)
	if err != nil {
		return err
	}
	j.base = 0 // until it is surely there
	if err := atomicfile.Write(j.path, data); err != nil {
		return err
	}
	j.base, j.end = int64(len(data)), int64(len(data))
	return nil
}

// bare is a service without what its instances say, and without what has nothing to do with names.
func bare(s wire.NetworkService) wire.NetworkService {
	s.Endpoints, s.Routes, s.Secrets = nil, nil, nil
	return s
}

func (j *journal) add(difference *wire.Network) error {
	data, err := message(difference)
	if err != nil {
		return err
	}
	f, err := os.OpenFile(j.path, os.O_WRONLY, 0)
	if err != nil {
		j.base = 0
		return err
	}
	_, err = f.WriteAt(data, j.end)
	if err = errors.Join(err, f.Close()); err != nil {
		j.base = 0
		return err
	}
	j.end += int64(len(data))
	return nil
}

// read hands over what is new in the file, from its beginning when it was written anew. What was not
// written to its end is left for the next time.
func (j *journal) read(apply func(*wire.Network)) error {
	f, err := os.Open(j.path)
	if err != nil {
		return fmt.Errorf("read names: %w", err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return fmt.Errorf("read names: %w", err)
	}
	if st, ok := info.Sys().(*syscall.Stat_t); ok && st.Ino != j.inode || info.Size() < j.end {
		j.inode, j.end = st.Ino, 0
	}
	data, err := io.ReadAll(io.NewSectionReader(f, j.end, info.Size()-j.end))
	if err != nil {
		return fmt.Errorf("read names: %w", err)
	}
	for len(data) >= 4 {
		size := int(binary.BigEndian.Uint32(data))
		if len(data)-4 < size {
			break
		}
		n := new(wire.Network)
		if err := wire.Unmarshal(data[4:4+size], n); err != nil {
			return fmt.Errorf("read names: %w", err)
		}
		apply(n)
		data, j.end = data[4+size:], j.end+4+int64(size)
	}
	return nil
}
