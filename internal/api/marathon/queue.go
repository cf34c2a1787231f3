package marathon

import (
	"math"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/tutti-run/tutti/internal/model"
	"github.com/tutti-run/tutti/internal/store"
)

type queueItem struct {
	Count                  int           `json:"count"`
	Delay                  queueDelay    `json:"delay"`
	Since                  string        `json:"since"`
	ProcessedOffersSummary offersSummary `json:"processedOffersSummary"`
	LastUnusedOffers       []unusedOffer `json:"lastUnusedOffers,omitempty"`
	App                    *app          `json:"app,omitempty"`
	Pod                    *pod          `json:"pod,omitempty"`
}

type queueDelay struct {
	TimeLeftSeconds int  `json:"timeLeftSeconds"`
	Overdue         bool `json:"overdue"`
}

type offersSummary struct {
	ProcessedOffersCount       int            `json:"processedOffersCount"`
	UnusedOffersCount          int            `json:"unusedOffersCount"`
	LastUnusedOfferAt          string         `json:"lastUnusedOfferAt,omitempty"`
	RejectSummaryLastOffers    []declinedStep `json:"rejectSummaryLastOffers"`
	RejectSummaryLaunchAttempt []declinedStep `json:"rejectSummaryLaunchAttempt"`
}

type declinedStep struct {
	Reason    string `json:"reason"`
	Declined  int    `json:"declined"`
	Processed int    `json:"processed"`
}

type unusedOffer struct {
	Offer     offer    `json:"offer"`
	Reason    []string `json:"reason"`
	Timestamp string   `json:"timestamp"`
}

type offer struct {
	ID         string          `json:"id"`
	Hostname   string          `json:"hostname"`
	AgentID    string          `json:"agentId"`
	Resources  []offerResource `json:"resources"`
	Attributes []offerText     `json:"attributes"`
}

type offerResource struct {
	Name   string  `json:"name"`
	Role   string  `json:"role"`
	Scalar float64 `json:"scalar"`
}

type offerText struct {
	Name string `json:"name"`
	Text string `json:"text"`
}

// reasons are the steps in which offers are refused, and by what words our reasons tell them.
var reasons = []struct {
	name  string
	words []string
}{
	{"UnfulfilledRole", []string{"node.labels.role"}},
	{"UnfulfilledConstraint", []string{"do not satisfy", "kept apart", "close to", "uneven", "as many as", "distributed by", "taint", "within their"}},
	{"NoCorrespondingReservationFound", []string{"do not hold"}},
	{"AgentMaintenance", []string{"are down", "not ready", "no new work"}},
	{"InsufficientCpus", []string{"too little cores"}},
	{"InsufficientMemory", []string{"too little memory"}},
	{"InsufficientDisk", []string{"too little disk"}},
	{"InsufficientGpus", []string{"too little gpus"}},
	{"InsufficientPorts", []string{"taken", "no free port"}},
	{"DeclinedScarceResources", nil},
}

func reasonOf(text string) string {
	for _, r := range reasons {
		for _, w := range r.words {
			if strings.Contains(text, w) {
				return r.name
			}
		}
	}
	return "UnfulfilledConstraint"
}

// queue lists what waits to be started, and why.
func (a *API) queue(w http.ResponseWriter, r *request) error {
	out := []queueItem{}
	with := embedsOf(r)["lastUnusedOffers"]
	now := time.Now()
	for _, e := range a.entries(r.snap, r.ns) {
		if item, waits, err := a.queued(r, e, now, with); err != nil {
			return err
		} else if waits {
			out = append(out, item)
		}
	}
	answer(w, http.StatusOK, map[string]any{"queue": out})
	return nil
}

func (a *API) queued(r *request, e *entry, now time.Time, with bool) (item queueItem, waits bool, err error) {
	unplaced, since := 0, time.Time{}
	var until time.Time
	for i := range store.InstancesOf(r.snap, e.workload) {
		if i.Desired != model.DesiredRun {
			continue
		}
		switch {
		case i.NodeID == "":
			unplaced++
			if since.IsZero() || i.Created.Before(since) {
				since = i.Created
			}
		case i.Status.State == model.InstanceWaiting:
			item.Count++
			if at := i.Status.Finished; since.IsZero() || at.Before(since) {
				since = at
			}
			if end := i.Status.Finished.Add(delayOf(&e.workload.Template.Restart, i.Status.Restarts)); end.After(until) {
				until = end
			}
		}
	}
	held := e.workload.Status.Waiting != "" && e.workload.Status.Released != e.workload.RevisionID
	if item.Count += unplaced; item.Count == 0 && !held {
		return item, false, nil
	}
	if item.Count == 0 {
		item.Count, since = e.workload.Count, e.workload.Created
	}
	item.Since = timeText(since)
	item.Delay = queueDelay{TimeLeftSeconds: max(0, int(math.Ceil(until.Sub(now).Seconds()))), Overdue: !until.After(now)}
	if e.isPod() {
		item.Pod = podSpec(e)
	} else {
		item.App = a.spec(r.snap, e)
	}
	item.ProcessedOffersSummary.RejectSummaryLastOffers, item.ProcessedOffersSummary.RejectSummaryLaunchAttempt = []declinedStep{}, []declinedStep{}
	if unplaced == 0 {
		return item, true, nil
	}
	refusals, err := a.Core.Refusals(r.who, e.workload.ID)
	if err != nil {
		return item, true, err
	}
	sum := &item.ProcessedOffersSummary
	counts := map[string]int{}
	for _, f := range refusals {
		sum.ProcessedOffersCount++
		if f.Reason == "" {
			continue
		}
		sum.UnusedOffersCount++
		counts[reasonOf(f.Reason)]++
		if with {
			item.LastUnusedOffers = append(item.LastUnusedOffers, unusedOffer{offerOf(f.Node), []string{reasonOf(f.Reason), "node " + f.Node.Name + ": " + f.Reason}, stamp(now)})
		}
	}
	if sum.UnusedOffersCount > 0 {
		sum.LastUnusedOfferAt = stamp(now)
	}
	processed := sum.ProcessedOffersCount
	for _, step := range reasons {
		sum.RejectSummaryLastOffers = append(sum.RejectSummaryLastOffers, declinedStep{step.name, counts[step.name], processed})
		processed -= counts[step.name]
	}
	sum.RejectSummaryLaunchAttempt = slices.Clone(sum.RejectSummaryLastOffers)
	return item, true, nil
}

// delayOf is the pause before a restart, of which there were so many.
func delayOf(p *model.RestartPolicy, restarts int) time.Duration {
	factor := p.Factor
	if factor == 0 {
		factor = 2
	}
	most := p.MaxDelay
	if most == 0 {
		most = time.Minute
	}
	return time.Duration(min(float64(p.Delay)*math.Pow(factor, float64(min(restarts, 1000))), float64(max(most, p.Delay))))
}

func offerOf(n *model.Node) offer {
	o := offer{ID: n.ID + "-O", Hostname: n.HostAddress, AgentID: n.ID, Attributes: []offerText{}, Resources: []offerResource{
		{"cpus", "*", float64(n.Capacity.NanoCPUs) / 1e9}, {"mem", "*", float64(n.Capacity.MemoryBytes) / mebibyte}, {"disk", "*", float64(n.Capacity.DiskBytes) / mebibyte},
	}}
	for k, v := range n.Labels {
		o.Attributes = append(o.Attributes, offerText{k, v})
	}
	slices.SortFunc(o.Attributes, func(x, y offerText) int { return strings.Compare(x.Name, y.Name) })
	return o
}

// queueReset lets what waits to be restarted start at once: it is replaced.
func (a *API) queueReset(w http.ResponseWriter, r *request) error {
	path, err := pathOf(r)
	if err != nil {
		return err
	}
	e := a.find(r.snap, r.ns, path)
	if e == nil {
		return a.notFound("Application", path+" in tasks queue")
	}
	var ids []string
	for i := range store.InstancesOf(r.snap, e.workload) {
		if i.Desired == model.DesiredRun && i.Status.State == model.InstanceWaiting {
			ids = append(ids, i.ID)
		}
	}
	if len(ids) > 0 {
		if err := a.Core.EndInstances(r.Context(), r.who, ids, false); err != nil {
			return err
		}
	}
	w.WriteHeader(http.StatusNoContent)
	return nil
}
