package wireguard

import (
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.zx2c4.com/wireguard/conn"
	"golang.zx2c4.com/wireguard/device"
	"golang.zx2c4.com/wireguard/tun"

	"github.com/tutti-run/tutti/internal/balance/beside"
)

const (
	role      = "tutti-wireguard"
	stateFile = "wireguard.json" // has the private key
)

// Reexec runs the process when this program was started for that; main calls it first.
func Reexec(args []string) bool {
	dir, rest, ok := beside.Reexec(args, role)
	if !ok || len(rest) != 0 {
		return false
	}
	if err := serve(dir); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	return true
}

// served is the process.
type served struct {
	path   string
	device *device.Device
	last   Config
}

// serve moves packets until it is told to end, and the device goes with it.
func serve(dir string) error {
	s := &served{path: filepath.Join(dir, stateFile)}
	c, err := s.read()
	if err != nil {
		return err
	}
	link, err := tun.CreateTUN(Device, c.MTU)
	if err != nil {
		return fmt.Errorf("make a TUN device: %w", err)
	}
	s.device = device.NewDevice(link, conn.NewDefaultBind(), &device.Logger{
		Verbosef: device.DiscardLogf, Errorf: func(format string, args ...any) { fmt.Fprintf(os.Stderr, format+"\n", args...) },
	})
	defer s.device.Close()
	if err := s.load(); err != nil {
		return err
	}
	if err := s.device.Up(); err != nil {
		return fmt.Errorf("begin to hear other nodes: %w", err)
	}
	ready, failed := make(chan struct{}), make(chan error, 1)
	close(ready)
	go func() {
		<-s.device.Wait()
		failed <- errors.New("the TUN device is gone")
	}()
	return beside.Serve(dir, ready, failed, func(string) string {
		if err := s.load(); err != nil {
			return err.Error()
		}
		return "ok"
	})
}

func (s *served) read() (c Config, err error) {
	data, err := os.ReadFile(s.path)
	if err == nil {
		err = json.Unmarshal(data, &c)
	}
	if err != nil {
		return c, fmt.Errorf("read what the tunnel is to be: %w", err)
	}
	return c, nil
}

// load takes over what the agent wrote.
func (s *served) load() error {
	c, err := s.read()
	if err != nil {
		return err
	}
	text, err := settings(&s.last, &c)
	if err != nil {
		return err
	}
	if err := s.device.IpcSet(text); err != nil {
		return fmt.Errorf("set up the tunnel: %w", err)
	}
	s.last = c
	return nil
}

// settings are the words of WireGuard's programs for what makes one configuration of another.
func settings(from, to *Config) (string, error) {
	var b strings.Builder
	if from.Private != to.Private {
		private, err := decode(to.Private)
		if err != nil {
			return "", err
		}
		fmt.Fprintf(&b, "private_key=%s\nlisten_port=%d\n", hex.EncodeToString(private[:]), Port)
	}
	for _, ch := range changes(from.Peers, to.Peers) {
		public, err := decode(ch.Public)
		if err != nil {
			return "", err
		}
		fmt.Fprintf(&b, "public_key=%s\n", hex.EncodeToString(public[:]))
		if ch.gone {
			b.WriteString("remove=true\n")
			continue
		}
		fmt.Fprintf(&b, "endpoint=%s\nreplace_allowed_ips=true\n", ch.Endpoint)
		for _, a := range ch.Allowed {
			fmt.Fprintf(&b, "allowed_ip=%s\n", a)
		}
	}
	return b.String(), nil
}
