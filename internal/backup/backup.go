package backup

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"os"
	"time"

	"github.com/tutti-run/tutti/internal/fault"
)

const (
	// Format is the one that this version reads and writes.
	Format = 1

	word        = "TUTTI-BACKUP "
	trailer     = 8 + sha256.Size
	maxHeader   = 16 << 20
	writeBuffer = 1 << 20
)

// Header says what a backup is of.
type Header struct {
	Version  string    `json:"version"`  // of the program that wrote it
	Cluster  string    `json:"cluster"`  // identifies the cluster: the beginning of its first authority's hash
	Server   string    `json:"server"`   // name of the server that wrote it
	Revision uint64    `json:"revision"` // of the state
	Time     time.Time `json:"time"`
	// Index and Term are how far the replication had come: a cluster that begins from the backup
	// begins beyond them.
	Index uint64 `json:"index"`
	Term  uint64 `json:"term"`
	// KeyFile is the server's key file, without which the keys in the state cannot be opened; empty
	// when the server has none.
	KeyFile []byte `json:"keyFile,omitempty"`
}

// counting hashes and counts what is written.
type counting struct {
	to    io.Writer
	sum   hash.Hash
	count uint64
}

func (c *counting) Write(p []byte) (int, error) {
	n, err := c.to.Write(p)
	c.sum.Write(p[:n])
	c.count += uint64(n)
	return n, err
}

// Write writes a backup whose state is what the function writes.
func Write(to io.Writer, h Header, state func(io.Writer) error) error {
	text, err := json.Marshal(h)
	if err != nil {
		return fmt.Errorf("write the backup's header: %w", err)
	}
	buf := bufio.NewWriterSize(to, writeBuffer)
	c := &counting{to: buf, sum: sha256.New()}
	head := fmt.Appendf(nil, "%s%d\n", word, Format)
	head = binary.BigEndian.AppendUint32(head, uint32(len(text)))
	if _, err := c.Write(append(head, text...)); err != nil {
		return fmt.Errorf("write the backup: %w", err)
	}
	before := c.count
	if err := state(c); err != nil {
		return err
	}
	end := binary.BigEndian.AppendUint64(nil, c.count-before)
	if _, err := buf.Write(c.sum.Sum(end)); err != nil {
		return fmt.Errorf("write the backup: %w", err)
	}
	if err := buf.Flush(); err != nil {
		return fmt.Errorf("write the backup: %w", err)
	}
	return nil
}

// File is a backup that was found to be whole.
type File struct {
	Header
	State *io.SectionReader
	file  *os.File
}

// Close closes the file.
func (f *File) Close() error { return f.file.Close() }

// Open opens a backup and reads all of it once, to see that it is whole. What it cannot read, and
// what is damaged, it refuses and says why.
func Open(path string) (_ *File, err error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("open the backup: %w", err)
	}
	defer func() {
		if err != nil {
			f.Close()
		}
	}()
	first := make([]byte, 64)
	n, err := f.ReadAt(first, 0)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("read the backup: %w", err)
	}
	line, _, ok := bytes.Cut(first[:n], []byte("\n"))
	var format int
	if _, err := fmt.Sscanf(string(line), word+"%d", &format); !ok || err != nil {
		return nil, fault.New(fault.Invalid, "%s is no backup of Tutti's", path)
	}
	if format != Format {
		return nil, fault.New(fault.Unsupported, "%s is a backup of format %d; this version reads format %d: use the version that wrote it, or a newer one", path, format, Format)
	}
	damaged := func(how string) error {
		return fault.New(fault.Invalid, "the backup %s is damaged: %s", path, how)
	}
	info, err := f.Stat()
	if err != nil {
		return nil, fmt.Errorf("read the backup: %w", err)
	}
	from := int64(len(line)) + 1
	if info.Size() < from+4+trailer {
		return nil, damaged("it is cut short")
	}
	end := make([]byte, trailer)
	if _, err := f.ReadAt(end, info.Size()-trailer); err != nil {
		return nil, fmt.Errorf("read the backup: %w", err)
	}
	sum := sha256.New()
	if _, err := io.Copy(sum, io.NewSectionReader(f, 0, info.Size()-trailer)); err != nil {
		return nil, fmt.Errorf("read the backup: %w", err)
	}
	if !bytes.Equal(sum.Sum(nil), end[8:]) {
		return nil, damaged("it has another checksum than when it was written, or is cut short")
	}
	var length [4]byte
	if _, err := f.ReadAt(length[:], from); err != nil {
		return nil, fmt.Errorf("read the backup: %w", err)
	}
	from += 4
	headerBytes := int64(binary.BigEndian.Uint32(length[:]))
	stateBytes := int64(binary.BigEndian.Uint64(end))
	if headerBytes > maxHeader || from+headerBytes+stateBytes+trailer != info.Size() {
		return nil, damaged("its parts are not as long as it says")
	}
	text := make([]byte, headerBytes)
	if _, err := f.ReadAt(text, from); err != nil {
		return nil, fmt.Errorf("read the backup: %w", err)
	}
	out := &File{State: io.NewSectionReader(f, from+headerBytes, stateBytes), file: f}
	if err := json.Unmarshal(text, &out.Header); err != nil {
		return nil, damaged("its header cannot be read: " + err.Error())
	}
	return out, nil
}
