package agent

import (
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
	delay = min(delay<<min(r.attempts, 10), max(delay, time.Minute))
	r.attempts++
	return true, delay
}
