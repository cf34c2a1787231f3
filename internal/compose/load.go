package compose

import (
	"context"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/compose-spec/compose-go/v2/cli"
	"github.com/compose-spec/compose-go/v2/consts"
	"github.com/compose-spec/compose-go/v2/dotenv"
	"github.com/compose-spec/compose-go/v2/loader"
	"github.com/compose-spec/compose-go/v2/types"
	"github.com/compose-spec/compose-go/v2/utils"

	"github.com/tutti-run/tutti/internal/core"
	"github.com/tutti-run/tutti/internal/fault"
)

// Options say what to read.
type Options struct {
	// Files are merged in order, later ones over earlier ones; the first decides the project
	// directory. Without any, COMPOSE_FILE names them, or else compose.yaml (or one of its other
	// usual names) is looked for in the working directory and above, with its override beside it.
	Files []string
	// Name is the application's. Without it COMPOSE_PROJECT_NAME counts, then the files' name, then
	// the project directory's.
	Name string
	// Profiles are those to enable; without any, COMPOSE_PROFILES names them.
	Profiles []string
	// EnvFiles hold variables; without any, COMPOSE_ENV_FILES names them, or else .env of the
	// project directory is read if it is there.
	EnvFiles []string
	// Environment is what variables stand for, as os.Environ gives it; it counts before EnvFiles.
	Environment []string
	// WorkingDir is the project directory, where relative paths begin; empty: the first file's.
	WorkingDir string
}

// Project is what the files mean.
type Project struct {
	Deployment core.Deployment
	// Warnings are sentences about what was read but makes no difference, with file and line.
	Warnings []string
}

// Load reads Compose files. When something in them cannot be honoured, the error names all of it,
// each with its file and line: as fault.Unsupported when everything is known to Compose and only
// not built here, otherwise as fault.Invalid.
func Load(ctx context.Context, o Options) (*Project, error) {
	s, err := settle(o)
	if err != nil {
		return nil, err
	}
	r := load(ctx, s)
	if err := failure(r.notes); err != nil {
		return nil, err
	}
	return &Project{Deployment: r.out, Warnings: warnings(r.notes)}, nil
}

// result is what became of files: a deployment, unless there are problems among the notes.
type result struct {
	out   core.Deployment
	notes []note
}

func load(ctx context.Context, s *settings) result {
	src := readSources(s)
	if slices.ContainsFunc(src.notes, func(n note) bool { return n.spoils }) {
		return result{notes: src.relevant(nil)}
	}
	project, err := src.load(ctx, s)
	if err != nil {
		return result{notes: append(src.relevant(nil), src.explain(err)...)}
	}
	t := translate(project, src)
	return result{out: t.out, notes: append(src.relevant(project), t.notes...)}
}

// settings are options with everything decided that can be before the files are read.
type settings struct {
	files    []string
	dir      string // absolute
	env      types.Mapping
	name     string // "" leaves it to the files
	profiles []string
	notes    []note
}

func settle(o Options) (*settings, error) {
	s := &settings{files: o.Files, env: types.Mapping{}, name: o.Name, profiles: o.Profiles}
	maps.Copy(s.env, utils.GetAsEqualsMap(o.Environment))
	s.dir = projectDir(o.WorkingDir, s.files)
	read, err := s.readEnv(o.EnvFiles)
	if err != nil {
		return nil, err
	}
	if len(s.files) == 0 {
		s.files = s.findFiles()
		if len(s.files) == 0 {
			return nil, fault.New(fault.NotFound, "there is no %s in %s or above; name the file", cli.DefaultFileNames[0], s.dir)
		}
		if dir := projectDir(o.WorkingDir, s.files); dir != s.dir {
			s.dir = dir
			if !read {
				if _, err := s.readEnv(o.EnvFiles); err != nil {
					return nil, err
				}
			}
		}
	}
	if s.name == "" {
		s.name = s.env[consts.ComposeProjectName]
	}
	if s.name != loader.NormalizeProjectName(s.name) {
		return nil, fault.New(fault.Invalid, "project name %q is not valid: use small letters, digits, '-' and '_', with a letter or digit in front", s.name)
	}
	if len(s.profiles) == 0 {
		s.profiles = words(s.env[consts.ComposeProfiles], ",")
	}
	return s, nil
}

func projectDir(working string, files []string) string {
	if working == "" && len(files) > 0 {
		working = filepath.Dir(files[0])
	}
	return absolute(working)
}

func words(list, separator string) []string {
	var out []string
	for _, w := range strings.Split(list, separator) {
		if w = strings.TrimSpace(w); w != "" {
			out = append(out, w)
		}
	}
	return out
}

// readEnv adds to the environment what files say, and reports whether there were any.
func (s *settings) readEnv(files []string) (bool, error) {
	if len(files) == 0 {
		files = words(s.env["COMPOSE_ENV_FILES"], ",")
	}
	if len(files) == 0 {
		own := filepath.Join(s.dir, ".env")
		if off, err := strconv.ParseBool(s.env[consts.ComposeDisableDefaultEnvFile]); err == nil && off || !isFile(own) {
			return false, nil
		}
		files = []string{own}
	}
	var more map[string]string
	var err error
	src := &sources{}
	src.hearVariables(filepath.Base(files[0]), func() { more, err = dotenv.GetEnvFromFile(s.env, files) })
	s.notes = append(s.notes, src.notes...)
	if err != nil {
		return false, fault.New(fault.Invalid, "read variables: %w", err)
	}
	s.env.Merge(more)
	return true, nil
}

// findFiles looks where people keep their Compose files.
func (s *settings) findFiles() []string {
	separator := s.env[consts.ComposePathSeparator]
	if separator == "" {
		separator = string(os.PathListSeparator)
	}
	if named := words(s.env[consts.ComposeFilePath], separator); len(named) > 0 {
		return named
	}
	for dir := s.dir; ; dir = filepath.Dir(dir) {
		if main := firstFile(dir, cli.DefaultFileNames); main != "" {
			if override := firstFile(dir, cli.DefaultOverrideFileNames); override != "" {
				return []string{main, override}
			}
			return []string{main}
		}
		if dir == filepath.Dir(dir) {
			return nil
		}
	}
}

func firstFile(dir string, names []string) string {
	for _, name := range names {
		if path := filepath.Join(dir, name); isFile(path) {
			return path
		}
	}
	return ""
}

// relevant drops notes about what later files take back, about services that no enabled profile
// has, and about members that no service uses. Without a project, nothing is known of those.
func (s *sources) relevant(p *types.Project) []note {
	var out []note
	for _, n := range s.notes {
		taken := slices.ContainsFunc(s.resets, func(r reset) bool { return r.covers(&n) })
		if n.always || !taken && (p == nil || n.member == "" || has(p, n.section, n.member)) {
			out = append(out, n)
		}
	}
	return out
}

// has reports whether a project needs a member of a section.
func has(p *types.Project, section, member string) (needed bool) {
	switch section {
	case "services":
		_, needed = p.Services[member]
		return needed
	case "networks", "volumes", "secrets", "configs":
		return usedBy(p.Services, section, member)
	}
	return true
}

// usedBy reports whether one of the services refers to a member of a section.
func usedBy(services types.Services, section, member string) bool {
	for _, s := range services {
		switch section {
		case "networks":
			if _, ok := s.Networks[member]; ok {
				return true
			}
		case "volumes":
			if slices.ContainsFunc(s.Volumes, func(v types.ServiceVolumeConfig) bool {
				return v.Type == types.VolumeTypeVolume && v.Source == member
			}) {
				return true
			}
		case "secrets":
			if slices.ContainsFunc(s.Secrets, func(v types.ServiceSecretConfig) bool { return v.Source == member }) || slices.Contains(routeSecretsOf(&s), member) {
				return true
			}
		case "configs":
			if slices.ContainsFunc(s.Configs, func(v types.ServiceConfigObjConfig) bool { return v.Source == member }) {
				return true
			}
		}
	}
	return false
}
