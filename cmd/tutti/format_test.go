package main

import (
	"bytes"
	"errors"
	"io"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/tutti-run/tutti/internal/image"
	"github.com/tutti-run/tutti/internal/model"
)

func TestTexts(t *testing.T) {
	for _, tt := range []struct{ got, want string }{
		{bytesText(0), "0 B"},
		{bytesText(1023), "1023 B"},
		{bytesText(1024), "1.0 KiB"},
		{bytesText(1<<20 - 1), "1.0 MiB"},
		{bytesText(3 << 29), "1.5 GiB"},
		{cpusText(2e9), "2"},
		{cpusText(500e6), "0.5"},
		{cpusText(0), "0"},
		{ageText(-time.Second), "0s"},
		{ageText(45 * time.Second), "45s"},
		{ageText(119 * time.Second), "119s"},
		{ageText(12 * time.Minute), "12m"},
		{ageText(47 * time.Hour), "47h"},
		{ageText(9 * 24 * time.Hour), "9d"},
		{ageOf(time.Time{}), "-"},
		{tookText(1234 * time.Millisecond), "1.2 s"},
		{tookText(72 * time.Second), "72 s"},
		{counted(1, "instance"), "1 instance"},
		{counted(0, "instance"), "0 instances"},
		{pluralVerb(1, "instance"), "1 instance has"},
		{pluralVerb(2, "instance"), "2 instances have"},
		{portText(model.ServicePort{Published: 8080, Target: 80, Protocol: "tcp"}), "8080->80/tcp"},
		{portText(model.ServicePort{Published: 53, Target: 53, Protocol: "udp", HostIP: "10.0.0.1"}), "10.0.0.1:53->53/udp"},
		{shortImage("docker.io/library/redis:7"), "redis:7"},
		{shortImage("docker.io/shop/web:v1"), "shop/web:v1"},
		{shortImage("ghcr.io/a/b:1"), "ghcr.io/a/b:1"},
		{shortDigest("sha256:0123456789abcdef"), "0123456789ab"},
		{labelsText(map[string]string{"zone": "b", "disk": "ssd"}), "disk=ssd,zone=b"},
		{importText("a/web.tar", 1<<20, 4<<20), "importing web.tar: 1.0 MiB of 4.0 MiB sent (25 %)"},
		{importText("-", 1<<20, 0), "importing -: 1.0 MiB sent"},
	} {
		if tt.got != tt.want {
			t.Errorf("%q, want %q", tt.got, tt.want)
		}
	}
}

func TestParseWhen(t *testing.T) {
	now := time.Date(2026, 5, 6, 12, 0, 0, 0, time.UTC)
	for text, want := range map[string]time.Time{
		"":                     {},
		"10m":                  now.Add(-10 * time.Minute),
		"1h30m":                now.Add(-90 * time.Minute),
		"3d":                   now.Add(-72 * time.Hour),
		"0.5d":                 now.Add(-12 * time.Hour),
		"2026-01-31":           time.Date(2026, 1, 31, 0, 0, 0, 0, time.UTC),
		"2026-01-31 08:15":     time.Date(2026, 1, 31, 8, 15, 0, 0, time.UTC),
		"2026-01-31T08:15:00Z": time.Date(2026, 1, 31, 8, 15, 0, 0, time.UTC),
		"1700000000":           time.Unix(1700000000, 0),
		"1700000000.5":         time.UnixMilli(1700000000500),
	} {
		got, err := parseWhen(text, now)
		if err != nil || !got.Equal(want) {
			t.Errorf("%q is %v (%v), want %v", text, got, err, want)
		}
	}
	for _, text := range []string{"yesterday", "d", "10", "-5", "2026-13-01"} {
		if text == "10" {
			continue // ten seconds after 1970 began
		}
		if got, err := parseWhen(text, now); !isUsage(err) {
			t.Errorf("%q is %v, %v", text, got, err)
		}
	}
}

func isUsage(err error) bool {
	var u usageError
	return errors.As(err, &u)
}

func TestParseScaling(t *testing.T) {
	if s, err := parseScaling("shop/web=3"); err != nil || s != (scaling{"shop/web", 3}) {
		t.Errorf("%+v, %v", s, err)
	}
	for _, arg := range []string{"", "shop/web", "=3", "shop/web=", "shop/web=x", "shop/web=-1", "shop/web=1.5"} {
		if s, err := parseScaling(arg); !isUsage(err) {
			t.Errorf("%q is %+v, %v", arg, s, err)
		}
	}
}

func TestParseLabels(t *testing.T) {
	set, remove, err := parseLabels([]string{"disk=ssd", "zone-", "x=", "a-b=c-"})
	if err != nil || len(set) != 3 || set["disk"] != "ssd" || set["a-b"] != "c-" || !slices.Equal(remove, []string{"zone"}) {
		t.Errorf("%v %v %v", set, remove, err)
	}
	for _, arg := range []string{"disk", "=x", "-", ""} {
		if _, _, err := parseLabels([]string{arg}); !isUsage(err) {
			t.Errorf("%q: %v", arg, err)
		}
	}
}

func TestPackFlags(t *testing.T) {
	p := &packFlags{output: "x.tar", entrypoint: []string{`["/bin/sh", "-c"]`}, cmd: []string{"a", "[b]"}, labels: []string{"k=v=w", "bare"}, add: []string{"./a:/b:0755"}}
	p.Name, p.Dir = "shop/web:v1", "."
	p.health.shell, p.health.probe.Retries = `["/check", "it"]`, 3
	if err := p.resolve(); err != nil {
		t.Fatal(err)
	}
	s := p.Settings
	if !slices.Equal(s.Entrypoint, []string{"/bin/sh", "-c"}) || !slices.Equal(s.Cmd, []string{"a", "[b]"}) || s.Labels["k"] != "v=w" || len(s.Labels) != 2 {
		t.Errorf("the settings are %+v", s)
	}
	if len(p.Add) != 1 || p.Add[0] != (image.AddedFile{Host: "./a", Path: "/b", Mode: 0o755}) {
		t.Errorf("added is %+v", p.Add)
	}
	if h := s.Health; h == nil || h.Retries != 3 || h.Shell != "" || !slices.Equal(h.Exec, []string{"/check", "it"}) {
		t.Errorf("health is %+v", h)
	}
	for name, edit := range map[string]func(p *packFlags){
		"no name":                  func(p *packFlags) { p.Name = "" },
		"no output":                func(p *packFlags) { p.output = "" },
		"no content":               func(p *packFlags) { p.Dir = "" },
		"a list that is none":      func(p *packFlags) { p.cmd = []string{"[x"} },
		"a variable without value": func(p *packFlags) { p.Settings.Env = []string{"X"} },
		"an odd mode":              func(p *packFlags) { p.add = []string{"a:b:9"} },
		"no path":                  func(p *packFlags) { p.add = []string{"a"} },
		"retries of nothing":       func(p *packFlags) { p.health.probe.Retries = 1 },
	} {
		p := &packFlags{output: "x.tar"}
		p.Name, p.Dir = "x", "."
		edit(p)
		if err := p.resolve(); !isUsage(err) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestWriteWholeLeavesNothingHalf(t *testing.T) {
	dir := t.TempDir()
	path := dir + "/out.tar"
	write := func(text string, err error) error {
		return writeWhole(path, func(w io.Writer) error {
			w.Write([]byte(text))
			return err
		})
	}
	if err := write("whole", nil); err != nil {
		t.Fatal(err)
	}
	if err := write("ha", errors.New("no more")); err == nil {
		t.Error("the error was swallowed")
	}
	text, err := os.ReadFile(path)
	if err != nil || string(text) != "whole" {
		t.Errorf("the file holds %q, %v", text, err)
	}
	if entries, err := os.ReadDir(dir); err != nil || len(entries) != 1 {
		t.Errorf("beside it there is %v, %v", entries, err)
	}
}

func TestResolveEnv(t *testing.T) {
	lookup := func(name string) (string, bool) { return "ours", name == "HAVE" }
	if got := resolveEnv([]string{"A=b", "HAVE", "LACK", "E="}, lookup); !slices.Equal(got, []string{"A=b", "HAVE=ours", "E="}) {
		t.Errorf("%q", got)
	}
}

func TestTable(t *testing.T) {
	paint := painter{on: true}
	tab := newTable("NAME", "STATE", "AGE")
	tab.add("ä", paint.good("ready"), "1s")
	tab.add("longer", paint.bad("x"), "")
	want := "NAME     STATE   AGE\n" +
		"ä        \x1b[32mready\x1b[0m   1s\n" +
		"longer   \x1b[31mx\x1b[0m\n"
	if got := tab.String(); got != want {
		t.Errorf("%q, want %q", got, want)
	}
}

func TestCut(t *testing.T) {
	for _, tt := range []struct {
		text string
		n    int
		want string
	}{
		{"short", 5, "short"},
		{"longer", 5, "long…"},
		{"äöüß", 3, "äö…"},
		{"\x1b[31mred text\x1b[0m", 8, "\x1b[31mred text\x1b[0m"},
		{"\x1b[31mred text\x1b[0m", 5, "\x1b[31mred …\x1b[0m"},
	} {
		got := cut(tt.text, tt.n)
		if got != tt.want {
			t.Errorf("%q, want %q", got, tt.want)
		}
		if width(got) > tt.n {
			t.Errorf("%q is %d wide", got, width(got))
		}
	}
}

func TestYAMLSaysWhatJSONSays(t *testing.T) {
	var b bytes.Buffer
	v := struct {
		Zed   string            `json:"zed"`
		Alpha any               `json:"alpha"`
		Text  string            `json:"text"`
		List  []map[string]bool `json:"list"`
		None  []string          `json:"none"`
		Empty []string          `json:"empty"`
		Big   int64             `json:"big"`
	}{Zed: "true", Alpha: "12", Text: "two\nlines\n", List: []map[string]bool{{"a": true}}, Empty: []string{}, Big: 123456789012}
	if err := printYAML(&b, v); err != nil {
		t.Fatal(err)
	}
	want := `zed: "true"
alpha: "12"
text: |
  two
  lines
list:
  - a: true
none: null
empty: []
big: 123456789012
`
	if b.String() != want {
		t.Errorf("printed\n%s\nwant\n%s", b.String(), want)
	}
}

func TestOutputFlag(t *testing.T) {
	g := &globals{}
	if err := (*outputFlag)(&g.Output).Set("yaml"); err != nil || !g.structured() {
		t.Errorf("%v, %+v", err, g)
	}
	if err := (*outputFlag)(&g.Output).Set("xml"); err == nil {
		t.Error("xml is accepted")
	}
}

func TestPlainBoardTellsChanges(t *testing.T) {
	var b strings.Builder
	board := boardFor(&b)
	board.show([]row{{name: "a", state: "progressing", count: "0/1"}, {name: "b", state: "ready"}})
	board.show([]row{{name: "a", state: "progressing", count: "0/1"}, {name: "b", state: "ready"}})
	board.show([]row{{name: "a", state: "ready", count: "1/1", detail: "at last"}, {name: "b", state: "ready"}})
	if want := "a: progressing (0/1)\nb: ready\na: ready (1/1): at last\n"; b.String() != want {
		t.Errorf("told %q", b.String())
	}
}

func TestLiveBoardDrawsOver(t *testing.T) {
	var b strings.Builder
	board := &liveBoard{w: &b, size: func() (int, int) { return 4, 20 }}
	board.show([]row{{name: "a", state: "ready", mark: markGood}, {name: "b", state: "failed", mark: markBad, detail: "a long story of how it failed"}})
	if want := "\r\x1b[2K✓ a   ready\n\r\x1b[2K✗ b   failed      …\n"; b.String() != want {
		t.Errorf("drew %q", b.String())
	}
	b.Reset()
	board.show([]row{{name: "a", state: "ready", mark: markGood}})
	if want := "\x1b[2A\r\x1b[2K✓ a   ready\n\r\x1b[2K\n\x1b[1A"; b.String() != want {
		t.Errorf("drew %q", b.String())
	}
	b.Reset()
	var rows []row
	for _, name := range []string{"a", "b", "c", "d", "e"} {
		rows = append(rows, row{name: name, state: "x", mark: markGood})
	}
	rows[3].mark = markBad
	board.show(rows)
	lines := strings.Split(strings.TrimSuffix(b.String(), "\n"), "\n")
	if len(lines) != 3 || !strings.Contains(lines[0]+lines[1], "✗ d") || !strings.Contains(lines[2], "and 3 more") {
		t.Errorf("of a small terminal's lines it drew %q", lines)
	}
}

func TestBusyKeepsQuietAboutWhatIsQuick(t *testing.T) {
	var b strings.Builder
	busy(&b, func() string { return "working" })()
	if b.Len() != 0 {
		t.Errorf("it said %q", b.String())
	}
}
