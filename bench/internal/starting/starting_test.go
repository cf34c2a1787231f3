package starting

import (
	"context"
	"errors"
	"strconv"
	"testing"
	"time"
)

// clockwork is a runner whose containers take as long as they are told to.
type clockwork struct {
	takes   time.Duration
	started map[string]time.Time
	fails   bool
}

func (c *clockwork) start(_ context.Context, name string) error {
	if c.fails {
		return errors.New("no room")
	}
	c.started[name] = time.Now()
	return nil
}

func (c *clockwork) told(_ context.Context, name string) (time.Time, error) {
	return parseTime(strconv.FormatInt(c.started[name].Add(c.takes).UnixNano(), 10))
}

func (c *clockwork) remove(_ context.Context, name string) error {
	delete(c.started, name)
	return nil
}

func TestContainersAreMeasuredUntilTheyTellTheTime(t *testing.T) {
	c := &clockwork{takes: time.Hour, started: map[string]time.Time{}}
	o, err := plan{inTurn: 3, atOnce: 1, rounds: 2}.measure(t.Context(), c)
	if err != nil || len(o.inTurn) != 3 || len(o.atOnce) != 2 {
		t.Fatalf("%+v: %v", o, err)
	}
	if took := o.inTurn[0]; took < time.Hour || took > time.Hour+time.Minute {
		t.Errorf("took %s, want an hour", took)
	}
	if len(c.started) > 0 {
		t.Errorf("containers are left: %v", c.started)
	}
	c.fails = true
	if _, err := (plan{inTurn: 1}).measure(t.Context(), c); err == nil {
		t.Error("a container that could not be started was measured")
	}
	if _, err := parseTime("hello"); err == nil {
		t.Error("a greeting was taken for a time")
	}
}
