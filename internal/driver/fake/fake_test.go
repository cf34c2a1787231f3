package fake_test

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/tutti-run/tutti/internal/driver"
	"github.com/tutti-run/tutti/internal/driver/drivertest"
	"github.com/tutti-run/tutti/internal/driver/drivertest/script"
	"github.com/tutti-run/tutti/internal/driver/fake"
	"github.com/tutti-run/tutti/internal/fault"
)

func TestSuite(t *testing.T) {
	drivertest.Run(t, func(t *testing.T) *drivertest.Host {
		s := fake.NewState(map[string]fake.Program{script.Name: script.Run})
		t.Cleanup(s.End)
		return &drivertest.Host{
			Driver: fake.New(s),
			Reopen: func() driver.Driver { return fake.New(s) },
			Task:   func() driver.Task { return driver.Task{} },
		}
	})
}

// Time in a task is the time of the test, so that an hour costs nothing.
func TestTimePassesInABubble(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := fake.NewState(map[string]fake.Program{"nap": func(p *fake.Process) int {
			select {
			case <-time.After(time.Hour):
				return 1
			case <-p.Done:
				return 0
			}
		}})
		defer s.End()
		d := fake.New(s)
		if err := d.Start(t.Context(), driver.Task{ID: "i.a.1", Args: []string{"nap"}}); err != nil {
			t.Fatal(err)
		}
		st, err := d.Wait(t.Context(), "i.a.1")
		if err != nil || st.ExitCode != 1 || st.Finished.Sub(st.Started) != time.Hour {
			t.Fatalf("ended as %+v, %v; want exit code 1 after an hour", st, err)
		}
	})
}

func TestRefusedTasksAreRecorded(t *testing.T) {
	s := fake.NewState(map[string]fake.Program{script.Name: script.Run})
	s.Refuse = func(driver.Task) error { return fault.New(fault.Invalid, "not today") }
	d := fake.New(s)
	task := driver.Task{ID: "i.a.1", Args: []string{script.Name, "exit", "0"}}
	if err := d.Start(t.Context(), task); !fault.Is(err, fault.Invalid) {
		t.Fatalf("start gave %v, want the refusal", err)
	}
	if st, err := d.Wait(t.Context(), "i.a.1"); err != nil || st.ExitCode != 126 || st.Error != "not today" {
		t.Fatalf("ended as %+v, %v; want exit code 126 and the reason", st, err)
	}
	if got := s.Started(); len(got) != 1 || got[0].ID != task.ID {
		t.Fatalf("tasks asked for are %+v", got)
	}
}
