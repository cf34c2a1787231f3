package agent

import (
	"cmp"
	"math"
	"time"

	"github.com/tutti-run/tutti/internal/model"
)

// restartCount decides about restarts in place: exponential delay, bounded attempts, and a run
// that was long enough forgives what was before.
type restartCount struct {
	policy   model.RestartPolicy
	attempts int
}

func (r *restartCount) next(o outcome) (again bool, delay time.Duration) {
	switch r.policy.Condition {
	case model.RestartNever:
		return false, 0
	case model.RestartOnFailure:
		if o.clean {
			return false, 0
		}
	}
	if o.never {
		return false, 0
	}
	forgive := r.policy.Window
	if forgive == 0 {
		forgive = 10 * time.Second
	}
	if o.ran >= forgive {
		r.attempts = 0
	}
	if r.policy.MaxAttempts > 0 && r.attempts >= r.policy.MaxAttempts {
		return false, 0
	}
	delay = r.policy.Delay
	if delay == 0 {
		delay = 100 * time.Millisecond
	}
	factor, most := cmp.Or(r.policy.Factor, 2), cmp.Or(r.policy.MaxDelay, time.Minute)
	delay = time.Duration(min(float64(delay)*math.Pow(factor, float64(min(r.attempts, 1000))), float64(max(delay, most))))
	if r.policy.AtOnce && r.attempts == 0 {
		delay = 0
	} else if r.policy.AtOnce {
		delay = time.Duration(float64(delay) / factor)
	}
	r.attempts++
	return true, delay
}
