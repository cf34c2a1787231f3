package pods

import (
	"net/http"
	"sync"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/sets"
	"k8s.io/apiserver/pkg/endpoints/request"
)

// hasteFor is how long a haste lasts, and hasteRests for how long after one there is no other: what waits has its turn, however often hosts
// are lost.
const (
	hasteFor   = 3 * time.Second
	hasteRests = 10 * time.Second
)

// Haste is the time after a host was lost, which may have been the server that led: what Pods need to run elsewhere goes first, and all else waits.
type Haste struct {
	// Begun is told of each that begins. Nil is told of none.
	Begun func()

	mu   sync.Mutex
	ends time.Time
}

// Begin begins one, unless there is one, or was a moment ago.
func (h *Haste) Begin() {
	now := time.Now()
	h.mu.Lock()
	begins := now.After(h.ends.Add(hasteRests))
	if begins {
		h.ends = now.Add(hasteFor)
	}
	h.mu.Unlock()
	if begins && h.Begun != nil {
		h.Begun()
	}
}

// TakeOver begins one where a server has waited since begun for its turn: one that began a moment ago takes over from nobody.
func (h *Haste) TakeOver(begun time.Time) {
	if time.Since(begun) > hasteFor {
		h.Begin()
	}
}

// Left is how much is left of it; 0 when there is none.
func (h *Haste) Left() time.Duration {
	h.mu.Lock()
	defer h.mu.Unlock()
	return max(0, time.Until(h.ends))
}

// Wrap has requests wait in haste by which controllers write what no Pod needs: statuses of Deployments, whose Pods ReplicaSets make, and
// Endpoints, as EndpointSlices are what is led by.
func (h *Haste) Wrap(next http.RoundTripper) http.RoundTripper { return patient{next, h} }

type patient struct {
	http.RoundTripper
	haste *Haste
}

// RoundTrip implements http.RoundTripper.
func (p patient) RoundTrip(r *http.Request) (*http.Response, error) {
	if left := p.haste.Left(); left > 0 && canWait(r) {
		select {
		case <-time.After(left):
		case <-r.Context().Done():
			return nil, r.Context().Err()
		}
	}
	return p.RoundTripper.RoundTrip(r)
}

var requests = request.RequestInfoFactory{APIPrefixes: sets.NewString("api", "apis"), GrouplessAPIPrefixes: sets.NewString("api")}

func canWait(r *http.Request) bool {
	info, err := requests.NewRequestInfo(r)
	switch {
	case err != nil || info.Verb != "create" && info.Verb != "update":
		return false
	case info.APIGroup == appsv1.GroupName:
		return info.Resource == "deployments" && info.Subresource == "status"
	default:
		return info.APIGroup == corev1.GroupName && info.Resource == "endpoints"
	}
}
