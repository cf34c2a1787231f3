package compose

import (
	"slices"
	"strconv"

	"github.com/docker/go-units"

	"github.com/tutti-run/tutti/internal/fault"
	"github.com/tutti-run/tutti/internal/model"
)

// LogPolicy is what a logging driver of Docker and its options ask for, nil where that is the usual. unused names the
// options that have no effect: what they add to lines is not kept.
func LogPolicy(name string, options map[string]string) (p *model.LogPolicy, unused []string, err error) {
	switch name {
	case "none":
		if len(options) > 0 {
			return nil, nil, fault.New(fault.Invalid, "the logging driver none has no options")
		}
		return &model.LogPolicy{None: true}, nil, nil
	case "", "json-file", "local":
	default:
		return nil, nil, fault.New(fault.Unsupported, "the logging driver %q (--log-driver) is not supported by Tutti yet: json-file, local and none are", name)
	}
	out := model.LogPolicy{}
	for key, value := range options {
		switch key {
		case "max-size":
			if out.FileBytes, err = units.FromHumanSize(value); err != nil || out.FileBytes < 1 {
				return nil, nil, fault.New(fault.Invalid, "logging option max-size=%q: a size such as 10m is accepted", value)
			}
		case "max-file":
			if out.Files, err = strconv.Atoi(value); err != nil || out.Files < 1 || out.Files > model.MaxLogFiles {
				return nil, nil, fault.New(fault.Invalid, "logging option max-file=%q: 1 to %d is accepted", value, model.MaxLogFiles)
			}
		case "compress", "labels", "labels-regex", "env", "env-regex", "tag", "mode", "max-buffer-size":
			unused = append(unused, key)
		default:
			return nil, nil, fault.New(fault.Invalid, "unknown log opt '%s' for %s log driver", key, orText(name, "json-file"))
		}
	}
	slices.Sort(unused)
	if out == (model.LogPolicy{}) {
		return nil, unused, nil
	}
	return &out, unused, nil
}

func orText(text, otherwise string) string {
	if text == "" {
		return otherwise
	}
	return text
}
