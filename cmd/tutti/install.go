package main

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"text/template"

	"github.com/spf13/cobra"

	"github.com/tutti-run/tutti/internal/fault"
	"github.com/tutti-run/tutti/internal/node"
)

// initSystem is what starts the node with the host: files of its own, and links that have it started.
type initSystem struct {
	name string
	// signs are of a host that has it; runs, that it is what runs there.
	signs, runs []string
	file        string
	mode        os.FileMode
	text        string
	// links are from where the init system looks to what file they lead to.
	links map[string]string
	// reload, start and stop are commands; they are run only where the init system runs.
	reload, start, stop []string
}

var initSystems = []initSystem{
	{
		name: "systemd", signs: []string{"lib/systemd/systemd", "usr/lib/systemd/systemd"}, runs: []string{"run/systemd/system"},
		file: "etc/systemd/system/tutti.service", mode: 0o644, text: systemdUnit,
		links:  map[string]string{"etc/systemd/system/multi-user.target.wants/tutti.service": "../tutti.service"},
		reload: []string{"systemctl", "daemon-reload"}, start: []string{"systemctl", "restart", "tutti.service"}, stop: []string{"systemctl", "stop", "tutti.service"},
	},
	{
		name: "openrc", signs: []string{"sbin/openrc-run", "usr/sbin/openrc-run"}, runs: []string{"run/openrc/softlevel"},
		file: "etc/init.d/tutti", mode: 0o755, text: openrcScript,
		links: map[string]string{"etc/runlevels/default/tutti": "/etc/init.d/tutti"},
		start: []string{"rc-service", "tutti", "restart"}, stop: []string{"rc-service", "tutti", "stop"},
	},
	{
		name: "sysvinit", signs: []string{"etc/inittab", "etc/init.d"}, runs: []string{"etc/inittab"},
		file: "etc/init.d/tutti", mode: 0o755, text: sysvScript,
		links: map[string]string{
			"etc/rc2.d/S90tutti": "../init.d/tutti", "etc/rc3.d/S90tutti": "../init.d/tutti", "etc/rc4.d/S90tutti": "../init.d/tutti", "etc/rc5.d/S90tutti": "../init.d/tutti",
			"etc/rc0.d/K10tutti": "../init.d/tutti", "etc/rc1.d/K10tutti": "../init.d/tutti", "etc/rc6.d/K10tutti": "../init.d/tutti",
		},
		start: []string{"/etc/init.d/tutti", "restart"}, stop: []string{"/etc/init.d/tutti", "stop"},
	},
}

// The node ends alone: what runs under it, supervisors and all, goes on.
const systemdUnit = `[Unit]
Description=Tutti, a node of a cluster
Documentation=https://github.com/tutti-run/tutti
Wants=network-online.target
After=network-online.target local-fs.target time-sync.target

[Service]
Type=notify
NotifyAccess=main
ExecStart={{.Program}} serve {{.Config}}
Restart=always
RestartSec=1
TimeoutStartSec=120
TimeoutStopSec=30
KillMode=process
Delegate=yes
TasksMax=infinity
LimitNOFILE=1048576
LimitNPROC=infinity
LimitCORE=infinity
OOMScoreAdjust=-500

[Install]
WantedBy=multi-user.target
`

const openrcScript = `#!/sbin/openrc-run
# Tutti, a node of a cluster. The node ends alone: what runs under it goes on.
name="tutti"
description="Tutti, a node of a cluster"
supervisor="supervise-daemon"
command="{{.Program}}"
command_args="serve {{.Config}}"
pidfile="/run/tutti.pid"
output_log="{{.Log}}"
error_log="{{.Log}}"
respawn_delay=1
respawn_max=0
rc_ulimit="-n 1048576"

depend() {
	need net localmount
	after firewall ntp-client
}
`

const sysvScript = `#!/bin/sh
### BEGIN INIT INFO
# Provides:          tutti
# Required-Start:    $network $local_fs $remote_fs
# Required-Stop:     $network $local_fs $remote_fs
# Default-Start:     2 3 4 5
# Default-Stop:      0 1 6
# Short-Description: Tutti, a node of a cluster
### END INIT INFO
# The node ends alone: what runs under it goes on.

lock='{{.Lock}}'

# running sets pid to that of the node's process.
running() {
	pid=$(cat "$lock" 2>/dev/null) && [ -n "$pid" ] && grep -q serve "/proc/$pid/cmdline" 2>/dev/null
}

start() {
	if running; then
		echo "tutti runs already (process $pid)"
		return 0
	fi
	ulimit -n 1048576 2>/dev/null
	'{{.Program}}' serve --detach '{{.Config}}'
}

stop() {
	running || return 0
	kill "$pid"
	n=0
	while running; do
		n=$((n + 1))
		if [ "$n" -gt 300 ]; then
			echo "tutti (process $pid) does not end" >&2
			return 1
		fi
		sleep 0.1
	done
}

case "$1" in
start) start ;;
stop) stop ;;
restart | force-reload) stop && start ;;
status)
	if running; then
		echo "tutti runs (process $pid)"
	else
		echo "tutti does not run"
		exit 3
	fi
	;;
*)
	echo "Usage: $0 {start|stop|restart|force-reload|status}" >&2
	exit 2
	;;
esac
`

// installation is where Tutti is registered, and what for.
type installation struct {
	root, init, program string
	noStart             bool
}

func (i *installation) at(path string) string { return filepath.Join(i.root, path) }

func (i *installation) has(paths []string) bool {
	for _, p := range paths {
		if _, err := os.Stat(i.at(p)); err == nil {
			return true
		}
	}
	return false
}

// find says which init system is meant, or is there: what runs before what is only installed.
func (i *installation) find() (*initSystem, error) {
	var names []string
	for n := range initSystems {
		s := &initSystems[n]
		names = append(names, s.name)
		if i.init == s.name || i.init == "" && i.root == "/" && i.has(s.runs) {
			return s, nil
		}
	}
	if i.init != "" {
		return nil, usagef("--init %q: %s are accepted", i.init, strings.Join(names, ", "))
	}
	for n := range initSystems {
		if i.has(initSystems[n].signs) {
			return &initSystems[n], nil
		}
	}
	return nil, fault.New(fault.Unsupported, "neither systemd, OpenRC nor sysvinit was found below %s; --init chooses one", i.root)
}

// run runs a command of an init system that runs here.
func (i *installation) run(s *initSystem, out io.Writer, command []string) error {
	if i.root != "/" || i.noStart || len(command) == 0 || !i.has(s.runs) {
		return nil
	}
	cmd := exec.Command(command[0], command[1:]...)
	cmd.Stdout, cmd.Stderr = out, out
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("%s: %w", strings.Join(command, " "), err)
	}
	return nil
}

func (i *installation) flags(c *cobra.Command) {
	c.Flags().StringVar(&i.init, "init", "", "systemd, openrc or sysvinit (default: what runs, or is installed)")
	c.Flags().StringVar(&i.root, "root", "/", "file system to install in, such as that of an image; nothing is started in another than this host's")
	c.Flags().BoolVar(&i.noStart, "no-start", false, "do not start or stop anything now")
}

func installCommand(g *globals) *cobra.Command {
	f, i := &nodeFlags{}, &installation{}
	c := &cobra.Command{
		Use:   "install",
		Short: "Have this host's init system start Tutti",
		Long: `Register Tutti with the init system, systemd, OpenRC or sysvinit, and start it: with the flags of
` + "`tutti up`" + `, or with --join and --token those of ` + "`tutti join`" + `. Installed again, it has the new flags.

What runs on the node goes on when the node is stopped or restarted by the init system.`,
		Example: "  tutti install\n  tutti install --join 10.0.0.5 --token tutti1-… --name host-2\n  tutti install --root /mnt/image --init systemd",
		Args:    noArguments(),
		RunE: func(c *cobra.Command, _ []string) error {
			if f.background || f.kubernetes {
				return usagef("--detach and --kubernetes are of `tutti up`")
			}
			if (f.config.JoinAddress == "") != (f.config.JoinToken == "") {
				return usagef("--join and --token go together")
			}
			if f.config.JoinAddress != "" {
				if _, _, err := net.SplitHostPort(f.config.JoinAddress); err != nil {
					f.config.JoinAddress = net.JoinHostPort(f.config.JoinAddress, strconv.Itoa(node.DefaultPort))
				}
			}
			f.config.DataDir, f.config.RunDir = g.DataDir, g.RunDir
			return i.install(c.OutOrStdout(), f.config)
		},
	}
	f.add(c)
	i.flags(c)
	c.Flags().StringVar(&i.program, "program", "", "this program as the init system is to call it (default: where it is)")
	c.Flags().StringVar(&f.config.JoinAddress, "join", "", "server of the cluster to join, host or host:port")
	c.Flags().StringVar(&f.config.JoinToken, "token", "", "join token")
	return c
}

func (i *installation) install(out io.Writer, config node.Config) error {
	s, err := i.find()
	if err != nil {
		return err
	}
	if i.program == "" {
		if i.program, err = os.Executable(); err != nil {
			return fmt.Errorf("find this program: %w", err)
		}
	}
	for _, path := range []string{i.program, config.DataDir} {
		if strings.ContainsAny(path, " \t\n'\"\\$%") || !filepath.IsAbs(path) {
			return fault.New(fault.Invalid, "%q: an absolute path without blanks, quotes, $ and %% is accepted", path)
		}
	}
	if _, err := os.Stat(i.at(s.file)); errors.Is(err, fs.ErrNotExist) && i.root == "/" && !i.noStart {
		if pid, ok := node.Running(config.DataDir); ok {
			return fault.New(fault.Conflict, "tutti runs already on this host (process %d), by other means: end it first with `kill %d` (what runs on the node goes on)", pid, pid)
		}
	}
	configFile := filepath.Join(config.DataDir, "node.json")
	data, err := json.Marshal(config)
	if err != nil {
		return err
	}
	text, err := template.New(s.name).Parse(s.text)
	if err != nil {
		return err
	}
	var unit bytes.Buffer
	err = text.Execute(&unit, map[string]string{
		"Program": i.program, "Config": configFile, "Lock": filepath.Join(config.DataDir, "lock"), "Log": filepath.Join(config.DataDir, "tutti.log"),
	})
	if err != nil {
		return err
	}
	// The configuration has the token to join with.
	if err := errors.Join(put(i.at(configFile), data, 0o600), put(i.at(s.file), unit.Bytes(), s.mode)); err != nil {
		return err
	}
	for link, to := range s.links {
		if err := os.MkdirAll(filepath.Dir(i.at(link)), 0o755); err != nil {
			return err
		}
		if err := os.Symlink(to, i.at(link)); err != nil && !errors.Is(err, fs.ErrExist) {
			return fmt.Errorf("have %s start it: %w", s.name, err)
		}
	}
	if err := errors.Join(i.run(s, out, s.reload), i.run(s, out, s.start)); err != nil {
		return err
	}
	started := "; it starts with the host"
	if i.root == "/" && !i.noStart && i.has(s.runs) {
		started = ", and runs"
	}
	return hint(out, fmt.Sprintf("Tutti is registered with %s (%s)%s.", s.name, i.at(s.file), started))
}

func put(path string, data []byte, mode os.FileMode) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	if err := os.WriteFile(path, data, mode); err != nil {
		return err
	}
	return os.Chmod(path, mode)
}

func uninstallCommand(g *globals) *cobra.Command {
	i := &installation{}
	c := &cobra.Command{
		Use: "uninstall", Short: "Have this host's init system stop Tutti and start it no more",
		Long: "Take back what `tutti install` did. The node's process ends; what runs on the node goes on, and all data stays: `tutti down`,\nand `tutti down --purge`, end and remove those.",
		Args: noArguments(),
		RunE: func(c *cobra.Command, _ []string) error { return i.uninstall(c.OutOrStdout()) },
	}
	i.flags(c)
	return c
}

func (i *installation) uninstall(out io.Writer) error {
	for n := range initSystems {
		s := &initSystems[n]
		text, err := os.ReadFile(i.at(s.file))
		if cmp.Or(i.init, s.name) != s.name || err != nil || !bytes.Contains(text, []byte(marks[s.name])) {
			continue
		}
		if err := i.run(s, out, s.stop); err != nil {
			return err
		}
		for link := range s.links {
			if err := os.Remove(i.at(link)); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return err
			}
		}
		if err := os.Remove(i.at(s.file)); err != nil {
			return err
		}
		if err := i.run(s, out, s.reload); err != nil {
			return err
		}
		return hint(out, "Tutti is not registered with "+s.name+" any more. What runs on the node goes on; `tutti down` ends it.")
	}
	return fault.New(fault.NotFound, "Tutti is not registered with an init system below %s", i.root)
}

// marks tell the files of one init system from those of another at the same place.
var marks = map[string]string{"systemd": "[Service]", "openrc": "openrc-run", "sysvinit": "BEGIN INIT INFO"}

// notifyInit tells systemd that the node is ready, if that waits for it.
func notifyInit() {
	at := os.Getenv("NOTIFY_SOCKET")
	if at == "" {
		return
	}
	conn, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: at, Net: "unixgram"})
	if err != nil {
		return // it will say itself that it was not told
	}
	defer conn.Close()
	_, _ = conn.Write([]byte("READY=1"))
}
