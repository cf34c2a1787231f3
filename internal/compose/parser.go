package compose

import (
	"context"
	"io"
	"path/filepath"
	"strings"
	"sync"

	"github.com/compose-spec/compose-go/v2/loader"
	"github.com/compose-spec/compose-go/v2/types"
	"github.com/sirupsen/logrus"
)

// load lets compose-go make one project of the files.
func (s *sources) load(ctx context.Context, set *settings) (project *types.Project, err error) {
	details := types.ConfigDetails{WorkingDir: set.dir, Environment: set.env.Clone()}
	for _, f := range s.files {
		if f.extra {
			continue
		}
		content, err := f.forCompose(s.pruned)
		if err != nil {
			return nil, err
		}
		details.ConfigFiles = append(details.ConfigFiles, types.ConfigFile{Filename: f.path, Content: content})
	}
	said := hear(func() {
		project, err = loader.LoadWithContext(ctx, details, func(o *loader.Options) {
			o.Profiles = set.profiles
			o.SetProjectName(set.name, set.name != "")
			if set.name == "" {
				o.SetProjectName(loader.NormalizeProjectName(filepath.Base(set.dir)), false)
			}
			// These stop at the first problem; the translation finds them all.
			o.SkipConsistencyCheck, o.SkipResolveEnvironment, o.SkipResolveLabels = true, true, true
		})
	})
	for _, text := range said {
		if strings.Contains(text, "the attribute `version` is obsolete") || unsetVariable().MatchString(text) {
			continue // said better already, with the line
		}
		n := s.explainText(text)
		n.mild = true
		s.note(n)
	}
	return project, err
}

var unsetVariable = lazily(`^The "([^"]+)" variable is not set\. Defaulting`)

// hearVariables runs what reads files of variables, and notes those that the files use without a
// value.
func (s *sources) hearVariables(what string, do func()) {
	for _, text := range hear(do) {
		if m := unsetVariable().FindStringSubmatch(text); m != nil {
			text = what + " uses the variable " + m[1] + ", which is not set; it is taken as empty"
		}
		s.note(note{text: text, mild: true})
	}
}

// listener keeps what compose-go says.
type listener struct{ said []string }

func (l *listener) Levels() []logrus.Level { return []logrus.Level{logrus.WarnLevel} }

func (l *listener) Fire(e *logrus.Entry) error {
	l.said = append(l.said, e.Message)
	return nil
}

// listening is held by whoever has replaced the output of logrus, of which there is one per process.
var listening sync.Mutex

// hear returns the warnings that compose-go would otherwise write to the terminal.
func hear(do func()) []string {
	listening.Lock()
	defer listening.Unlock()
	log, l := logrus.StandardLogger(), &listener{}
	out, hooks := log.Out, log.ReplaceHooks(logrus.LevelHooks{logrus.WarnLevel: {l}})
	log.SetOutput(io.Discard)
	defer func() {
		log.SetOutput(out)
		log.ReplaceHooks(hooks)
	}()
	do()
	return l.said
}
