package main

import (
	"encoding/json"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/tutti-run/tutti/internal/fault"
	"github.com/tutti-run/tutti/internal/node"
)

// TestInstallIntoARoot makes what each init system needs, and takes all of it back.
func TestInstallIntoARoot(t *testing.T) {
	for n := range initSystems {
		s := &initSystems[n]
		t.Run(s.name, func(t *testing.T) {
			root := t.TempDir()
			sign := filepath.Join(root, s.signs[0])
			if err := put(sign, nil, 0o755); err != nil {
				t.Fatal(err)
			}
			i := &installation{root: root, program: "/usr/local/bin/tutti"}
			config := node.Config{Name: "host-2", DataDir: "/var/lib/tutti", RunDir: "/run/tutti", JoinAddress: "10.0.0.5:7400", JoinToken: "hidden"}
			for range 2 { // again, with other flags
				config.Port++
				if err := i.install(io.Discard, config); err != nil {
					t.Fatal(err)
				}
			}
			text, err := os.ReadFile(filepath.Join(root, s.file))
			if err != nil || !strings.Contains(string(text), "/usr/local/bin/tutti") || !strings.Contains(string(text), "/var/lib/tutti/node.json") || strings.Contains(string(text), "hidden") {
				t.Errorf("%s has %q, %v", s.file, text, err)
			}
			var got node.Config
			data, err := os.ReadFile(filepath.Join(root, "var/lib/tutti/node.json"))
			if err != nil || json.Unmarshal(data, &got) != nil || got.Port != 2 || got.JoinToken != "hidden" {
				t.Errorf("the configuration is %s, %v", data, err)
			}
			if st, err := os.Stat(filepath.Join(root, "var/lib/tutti/node.json")); err != nil || st.Mode().Perm() != 0o600 {
				t.Errorf("everybody may read the token: %v, %v", st.Mode(), err)
			}
			for link := range s.links {
				to, err := os.Readlink(filepath.Join(root, link))
				if err != nil {
					t.Error(err)
					continue
				}
				if !filepath.IsAbs(to) {
					to = filepath.Join(filepath.Dir(link), to)
				}
				if filepath.Clean("/"+to) != "/"+s.file {
					t.Errorf("%s leads to %s", link, to)
				}
			}
			if s.mode == 0o755 {
				if out, err := exec.Command("sh", "-n", filepath.Join(root, s.file)).CombinedOutput(); err != nil {
					t.Errorf("the script is none: %v: %s", err, out)
				}
			}
			if err := i.uninstall(io.Discard); err != nil {
				t.Fatal(err)
			}
			for link := range s.links {
				if _, err := os.Lstat(filepath.Join(root, link)); err == nil {
					t.Errorf("%s is left", link)
				}
			}
			if err := i.uninstall(io.Discard); !fault.Is(err, fault.NotFound) {
				t.Errorf("uninstalled again: %v", err)
			}
		})
	}
	if err := (&installation{root: t.TempDir()}).install(io.Discard, node.Config{}); !fault.Is(err, fault.Unsupported) {
		t.Errorf("without any init system: %v", err)
	}
	if err := (&installation{root: t.TempDir(), init: "upstart"}).install(io.Discard, node.Config{}); err == nil || !strings.Contains(err.Error(), "systemd, openrc, sysvinit are accepted") {
		t.Errorf("an init system that is not known: %v", err)
	}
}

// TestScriptOfSysvinit runs the script with a program that is played by another script.
func TestScriptOfSysvinit(t *testing.T) {
	root, data := t.TempDir(), t.TempDir()
	program := filepath.Join(root, "tutti")
	played := "#!/bin/sh\nif [ \"$2\" = --detach ]; then\n setsid \"$0\" serve behind </dev/null >/dev/null 2>&1 &\n while ! [ -s " + data + "/lock ]; do sleep 0.02; done\n exit 0\nfi\n" +
		"trap 'rm -f " + data + "/lock; exit 0' TERM\necho $$ > " + data + "/lock\nwhile :; do sleep 0.05; done\n"
	if err := put(program, []byte(played), 0o755); err != nil {
		t.Fatal(err)
	}
	i := &installation{root: root, init: "sysvinit", program: program}
	if err := i.install(io.Discard, node.Config{DataDir: data, RunDir: "/run/tutti"}); err != nil {
		t.Fatal(err)
	}
	script := filepath.Join(root, "etc/init.d/tutti")
	do := func(word string, code int, says string) {
		t.Helper()
		out, err := exec.Command(script, word).CombinedOutput()
		got := 0
		if err != nil {
			got = err.(*exec.ExitError).ExitCode()
		}
		if got != code || !strings.Contains(string(out), says) {
			t.Errorf("%s gave %d and %q, want %d and %q", word, got, out, code, says)
		}
	}
	pid := func() int {
		text, _ := os.ReadFile(filepath.Join(data, "lock"))
		n, _ := strconv.Atoi(strings.TrimSpace(string(text)))
		return n
	}
	do("status", 3, "does not run")
	do("start", 0, "")
	first := pid()
	do("status", 0, "tutti runs (process "+strconv.Itoa(first)+")")
	do("start", 0, "runs already")
	do("restart", 0, "")
	if second := pid(); second == first || second == 0 {
		t.Errorf("restarted from process %d to %d", first, second)
	}
	do("stop", 0, "")
	do("status", 3, "does not run")
	do("stop", 0, "")
	do("frobnicate", 2, "Usage")
}

// TestSystemdIsTold that the node is ready.
func TestSystemdIsTold(t *testing.T) {
	at := filepath.Join(t.TempDir(), "notify")
	l, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: at, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	t.Setenv("NOTIFY_SOCKET", at)
	notifyInit()
	if err := l.SetReadDeadline(time.Now().Add(30 * time.Second)); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 64)
	if n, err := l.Read(buf); err != nil || string(buf[:n]) != "READY=1" {
		t.Errorf("it is told %q, %v", buf[:n], err)
	}
}
