package audit

import (
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/tutti-run/tutti/internal/core"
)

func TestTheLogIsKeptAndBounded(t *testing.T) {
	dir := t.TempDir()
	open := func() *Log {
		t.Helper()
		l, err := Open(dir, "alpha", slog.New(slog.DiscardHandler))
		if err != nil {
			t.Fatal(err)
		}
		l.maxBytes = 2000
		return l
	}
	l := open()
	begin := time.Now().UTC()
	const many = 400
	for i := range many {
		if i == many/2 { // another process goes on
			if err := l.Close(); err != nil {
				t.Fatal(err)
			}
			l = open()
			f, err := os.OpenFile(l.path(0), os.O_WRONLY|os.O_APPEND, 0)
			if err != nil {
				t.Fatal(err)
			}
			f.WriteString("{\"time\": \n") // a line that a crash cut short
			f.Close()
		}
		user := "anna"
		if i%2 == 1 {
			user = "bert"
		}
		l.Record(core.AuditEntry{Time: begin.Add(time.Duration(i) * time.Second), User: user, UseCase: "scale", What: fmt.Sprint(i), Result: "done"})
	}
	defer l.Close()
	all, err := l.Read(core.AuditQuery{})
	if err != nil || len(all) == 0 || len(all) == many || all[len(all)-1].What != fmt.Sprint(many-1) || all[0].Server != "alpha" {
		t.Fatalf("%d entries are kept, %v; want the latest of %d", len(all), err, many)
	}
	for i := 1; i < len(all); i++ {
		if all[i].Time.Sub(all[i-1].Time) != time.Second {
			t.Fatalf("after %s comes %s", all[i-1].What, all[i].What)
		}
	}
	files, err := filepath.Glob(dir + "/*")
	if err != nil || len(files) > keptFiles {
		t.Errorf("%d files are kept, %v", len(files), err)
	}
	for _, f := range files {
		if st, err := os.Stat(f); err != nil || st.Size() > 2000 || st.Mode().Perm() != 0o600 {
			t.Errorf("%s has %d bytes and mode %v, %v", f, st.Size(), st.Mode(), err)
		}
	}
	some, err := l.Read(core.AuditQuery{User: "bert", Since: begin.Add((many - 10) * time.Second), Limit: 3})
	var got []string
	for _, e := range some {
		got = append(got, e.What)
	}
	if err != nil || strings.Join(got, " ") != "395 397 399" {
		t.Errorf("bert's latest are %v, %v", got, err)
	}
}
