package store

import (
	"maps"
	"strings"

	"github.com/tutti-run/tutti/internal/model"
)

// words keeps one copy of strings, and of labels, that many objects hold. The zero value is ready.
type words struct {
	known  map[string]string
	labels map[string]map[string]string // by revision, whose template they come from
}

// manyWords bounds how many are known; then it begins anew.
const manyWords = 1 << 17

func (w *words) one(s *string) {
	if *s == "" {
		return
	}
	if k, ok := w.known[*s]; ok {
		*s = k
		return
	}
	if w.known == nil || len(w.known) >= manyWords {
		w.known = map[string]string{}
	}
	w.known[*s] = *s
}

// shareLabels makes an instance hold the labels that others of its revision hold, if they are the same.
func (w *words) shareLabels(i *model.Instance) {
	if len(i.Labels) == 0 {
		return
	}
	if l, ok := w.labels[i.RevisionID]; ok && maps.Equal(l, i.Labels) {
		i.Labels = l
		return
	}
	if w.labels == nil || len(w.labels) >= manyWords {
		w.labels = map[string]map[string]string{}
	}
	w.labels[i.RevisionID] = i.Labels
}

// share makes an object that was just decoded hold what others hold, too, once. Only instances are
// so many that it matters.
func (w *words) share(o model.Object) {
	i, ok := o.(*model.Instance)
	if !ok {
		return
	}
	for _, s := range []*string{
		&i.Namespace, &i.Application, &i.WorkloadID, &i.RevisionID, &i.NodeID, &i.Reason, &i.Cause,
		(*string)(&i.Desired), (*string)(&i.Status.State), (*string)(&i.Status.Health), &i.Status.Message,
	} {
		w.one(s)
	}
	w.shareLabels(i)
	for k := range i.Addresses {
		w.one(&i.Addresses[k].Network)
	}
	for k := range i.HostPorts {
		w.one(&i.HostPorts[k].Protocol)
		w.one(&i.HostPorts[k].HostIP)
	}
	for k := range i.Status.Tasks {
		t := &i.Status.Tasks[k]
		w.one(&t.Name)
		w.one(&t.State)
		w.one(&t.Image)
	}
}

// shareID makes an instance's ID part of that of a run, which begins with it, as a rule: one copy is enough.
func shareID(o model.Object) {
	i, ok := o.(*model.Instance)
	if !ok {
		return
	}
	for k := range i.Status.Tasks {
		if t := &i.Status.Tasks[k]; strings.HasPrefix(t.RunID, i.ID) {
			i.ID = t.RunID[:len(i.ID)]
		}
	}
}
