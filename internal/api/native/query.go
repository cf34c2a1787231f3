package native

import (
	"net/url"
	"strconv"
	"time"

	"github.com/tutti-run/tutti/internal/fault"
)

// query reads the parameters of a request. Absent ones are zero.
type query struct{ url.Values }

func (q query) flag(name string) (bool, error) {
	v := q.Get(name)
	if v == "" {
		return false, nil
	}
	b, err := strconv.ParseBool(v)
	if err != nil {
		return false, fault.New(fault.Invalid, "%s=%q: true and false are accepted", name, v)
	}
	return b, nil
}

func (q query) number(name string, absent int) (int, error) {
	v := q.Get(name)
	if v == "" {
		return absent, nil
	}
	n, err := strconv.Atoi(v)
	if err != nil {
		return 0, fault.New(fault.Invalid, "%s=%q is not a number", name, v)
	}
	return n, nil
}

func (q query) time(name string) (time.Time, error) {
	v := q.Get(name)
	if v == "" {
		return time.Time{}, nil
	}
	t, err := time.Parse(time.RFC3339Nano, v)
	if err != nil {
		return time.Time{}, fault.New(fault.Invalid, "%s=%q is not a time such as 2006-01-02T15:04:05Z", name, v)
	}
	return t, nil
}
