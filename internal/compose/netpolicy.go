package compose

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"strconv"
	"strings"

	"github.com/tutti-run/tutti/internal/model"
)

// talkRules are the keys of an entry of allow and deny.
var talkRules = keys{"from": well, "to": well, "ports": well}

// talkEntry is an entry of x-tutti.allow or x-tutti.deny, of a service or of the whole file; its short form
// is whom connections come from.
type talkEntry struct {
	From  texts     `json:"from"`
	To    texts     `json:"to"`
	Ports portTexts `json:"ports"`
}

func (e *talkEntry) UnmarshalJSON(data []byte) error {
	type plain talkEntry
	var one string
	if short(data, &one) {
		e.From = texts{one}
		return nil
	}
	return json.Unmarshal(data, (*plain)(e))
}

// portTexts are one or a list, of numbers or texts.
type portTexts []string

func (p *portTexts) UnmarshalJSON(data []byte) error {
	var list []json.RawMessage
	if json.Unmarshal(data, &list) != nil {
		list = []json.RawMessage{data}
	}
	for _, raw := range list {
		var text string
		if !short(raw, &text) {
			var n int
			if err := json.Unmarshal(raw, &n); err != nil {
				return err
			}
			text = strconv.Itoa(n)
		}
		*p = append(*p, text)
	}
	return nil
}

// talk are both lists.
type talk struct {
	Allow []talkEntry `json:"allow"`
	Deny  []talkEntry `json:"deny"`
}

// applicationPolicy is the name of the policy of a whole file.
const applicationPolicy = "application.policy"

// filePolicy reads the lists of the file, which are about all of its services.
func (t *translation) filePolicy() {
	raw, ok := t.project.Extensions[tuttiKey]
	if !ok || raw == nil {
		return
	}
	var x talk
	data, err := json.Marshal(raw)
	if err == nil {
		err = json.NewDecoder(bytes.NewReader(data)).Decode(&x)
	}
	if err != nil {
		var wrong *json.UnmarshalTypeError
		if errors.As(err, &wrong) {
			t.invalid(tuttiKey, "%s: %s is not what belongs here; %s is", wrong.Field, wrong.Value, kindNames[wrong.Type.Kind()])
			return
		}
		t.invalid(tuttiKey, "%v", err)
		return
	}
	t.policy(applicationPolicy, "", tuttiKey, &x)
}

// extraPolicy reads whom a service may speak with; networks has attached it.
func (o *one) extraPolicy(x *extras) {
	if x.Allow == nil && x.Deny == nil {
		return
	}
	if len(o.w.Template.Networks) == 0 {
		o.invalid(tuttiKey+".allow", "nothing can be allowed or denied: it has no network of its own")
		return
	}
	o.policy(o.Name, o.Name, o.sub(tuttiKey), &x.talk)
}

// policy makes one of both lists. Whoever has a list of what is allowed in a direction has nothing else.
func (t *translation) policy(name, workload, path string, x *talk) {
	if x.Allow == nil && x.Deny == nil {
		return
	}
	p := &model.Policy{Meta: model.Meta{Name: name}, Subject: model.Selector{Application: t.project.Name, Workload: workload}}
	p.IsolateIn = x.Allow != nil && len(x.Allow) == 0
	for _, list := range []struct {
		key     string
		entries []talkEntry
		deny    bool
	}{{"allow", x.Allow, false}, {"deny", x.Deny, true}} {
		for _, e := range list.entries {
			at := path + "." + list.key
			words, direction := e.From, model.DirectionIn
			switch {
			case (len(e.From) == 0) == (len(e.To) == 0):
				t.invalid(at, "an entry says either from whom connections come, or to whom they go: give from or to")
				continue
			case len(e.To) > 0:
				words, direction = e.To, model.DirectionOut
			}
			if !list.deny && direction == model.DirectionIn {
				p.IsolateIn = true
			} else if !list.deny {
				p.IsolateOut = true
			}
			rule := model.PolicyRule{Direction: direction, Deny: list.deny}
			for _, text := range e.Ports {
				ports, err := parsePorts(text)
				if err != nil {
					t.invalid(at+".ports", "%v", err)
					continue
				}
				rule.Ports = append(rule.Ports, ports)
			}
			if peers, ok := t.peers(at, words); ok {
				rule.Peers = peers
				p.Rules = append(p.Rules, rule)
			}
		}
	}
	t.out.Policies = append(t.out.Policies, p)
}

// peers reads whom an entry means; none is anybody. ok is false for nobody.
func (t *translation) peers(at string, words texts) (out []model.Peer, ok bool) {
	for _, word := range words {
		switch word {
		case "anyone":
			return nil, true
		case "nobody":
			continue
		}
		p, err := t.peer(word)
		if err != nil {
			t.invalid(at, "%v", err)
			continue
		}
		out = append(out, p)
	}
	return out, len(out) > 0
}

func (t *translation) peer(word string) (model.Peer, error) {
	if _, err := netip.ParsePrefix(word); err == nil {
		return model.Peer{CIDR: word}, nil
	}
	if a, err := netip.ParseAddr(word); err == nil {
		return model.Peer{CIDR: netip.PrefixFrom(a, a.BitLen()).String()}, nil
	}
	if name, ok := strings.CutPrefix(word, "network:"); ok {
		ref, known := t.refs["networks."+name]
		if !known {
			return model.Peer{}, fmt.Errorf("there is no network %s in this file", name)
		}
		return model.Peer{Selector: &model.Selector{Namespace: model.AnyNamespace, Network: ref}}, nil
	}
	var s model.Selector
	name, inNamespace := strings.CutPrefix(word, "namespace:")
	if inNamespace {
		s.Namespace, name, _ = strings.Cut(name, "/")
	}
	application, service, full := strings.Cut(name, "/")
	switch {
	case full && application == "":
		application = model.NoApplication
	case inNamespace && !full:
		service = "*"
	case !full:
		application, service = t.project.Name, name
		if _, known := t.project.Services[service]; !known && service != "*" {
			return model.Peer{}, fmt.Errorf("there is no service %q: give one of this file, \"*\" for all of them, APPLICATION/SERVICE, APPLICATION/*, "+
				"namespace:NAME, network:NAME, an address, a range such as 10.20.0.0/16, anyone or nobody", word)
		}
	}
	if s.Application = application; service != "*" {
		s.Workload = service
	}
	return model.Peer{Selector: &s}, nil
}

// parsePorts reads a port or a range of them, with its protocol.
func parsePorts(text string) (p model.PortRange, err error) {
	numbers, protocol, given := strings.Cut(text, "/")
	if p.Protocol = protocol; !given {
		p.Protocol = "tcp"
	}
	from, to, isRange := strings.Cut(numbers, "-")
	p.From, err = strconv.Atoi(from)
	if err == nil && isRange {
		p.To, err = strconv.Atoi(to)
	}
	wrong := p.From < 1 || p.From > 65535 || p.To > 65535 || isRange && p.To < p.From
	if err != nil || wrong || p.Protocol != "tcp" && p.Protocol != "udp" && p.Protocol != "sctp" {
		return p, fmt.Errorf("%q is no port: give one such as 5432, 53/udp or 8000-8010", text)
	}
	return p, nil
}
