package pods

import (
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
)

// How long an image that could not be had is not asked for: longer each time.
const (
	pullAgainFirst = 5 * time.Second
	pullAgainLast  = 40 * time.Second
	// pullQuick is within what time an image is had that need not be asked of a registry.
	pullQuick = time.Second
)

// pulls is what became of images that were asked for. A registry that does not answer takes as long as it is waited for: Pods
// whose images were not had at once before are therefore made by workers of their own, and one image is asked for by one Pod at a time.
type pulls struct {
	mu sync.Mutex
	of map[string]*pull // by what is asked for, and who asks
}

type pull struct {
	quick   bool // it was had at once
	asking  bool
	waiting map[string]bool // keys of the Pods that wait for who asks
	failed  error
	again   time.Time // when it may be asked for after that
	wait    time.Duration
}

// imagesOf are the images of a Pod, with all that decides whether they can be had.
func imagesOf(pod *corev1.Pod) (out []string) {
	var who []string
	for _, s := range pod.Spec.ImagePullSecrets {
		who = append(who, pod.Namespace+"/"+s.Name)
	}
	add := func(image string, when corev1.PullPolicy) {
		out = append(out, strings.Join(append([]string{image, string(when)}, who...), " "))
	}
	for _, c := range slices.Concat(pod.Spec.InitContainers, pod.Spec.Containers) {
		add(c.Image, c.ImagePullPolicy)
	}
	for _, v := range pod.Spec.Volumes {
		if v.Image != nil {
			add(v.Image.Reference, v.Image.PullPolicy)
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// quick reports whether all of these images were had at once before.
func (p *pulls) quick(images []string) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return !slices.ContainsFunc(images, func(i string) bool { return p.of[i] == nil || !p.of[i].quick })
}

// begin says whether these images may be asked for now, for a Pod by its key; if not, for how long to wait at most, and why if that is
// known.
func (p *pulls) begin(images []string, key string, now time.Time) (wait time.Duration, because error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, i := range images {
		if one := p.of[i]; one != nil && one.failed != nil && now.Before(one.again) {
			return one.again.Sub(now), one.failed
		}
	}
	for _, i := range images {
		if one := p.of[i]; one != nil && one.asking && !one.quick {
			if one.waiting == nil {
				one.waiting = map[string]bool{}
			}
			one.waiting[key] = true
			return pullQuick, nil
		}
	}
	for _, i := range images {
		if p.of[i] == nil {
			p.of[i] = &pull{}
		}
		p.of[i].asking = true
	}
	return 0, nil
}

// end notes what became of it: failed is why they could not be had, if that was the reason; other errors say nothing of images. It
// returns the Pods that have waited.
func (p *pulls) end(images []string, failed, other error, took time.Duration, now time.Time) (waited []string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, i := range images {
		one := p.of[i]
		if one == nil { // forgotten with all others meanwhile
			continue
		}
		waited = slices.AppendSeq(waited, maps.Keys(one.waiting))
		one.asking, one.waiting = false, nil
		switch {
		case failed != nil && (len(images) == 1 || strings.Contains(failed.Error(), strings.Fields(i)[0])):
			one.quick, one.failed = false, failed
			one.wait = min(max(2*one.wait, pullAgainFirst), pullAgainLast)
			one.again = now.Add(one.wait)
		case failed == nil && other == nil:
			*one = pull{quick: took < pullQuick}
		}
	}
	if len(p.of) > 10_000 {
		clear(p.of)
	}
	return waited
}
