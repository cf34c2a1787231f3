package artifact

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"net/url"
	"os"
	"path"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/tutti-run/tutti/internal/fault"
	"github.com/tutti-run/tutti/internal/model"
)

const (
	// maxBytes bounds one artifact, and what is unpacked from it.
	maxBytes = 16 << 30
	// keptFor is how long the cache keeps what nobody asks for.
	keptFor = 7 * 24 * time.Hour
)

// Store fetches artifacts and keeps them.
type Store struct {
	dir    string
	client *http.Client

	mu       sync.Mutex
	fetching map[string]chan struct{} // by digest; closed when the fetch is over
}

// Open uses dir as the cache.
func Open(dir string) (*Store, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("make the cache of artifacts: %w", err)
	}
	return &Store{dir: dir, client: &http.Client{}, fetching: map[string]chan struct{}{}}, nil
}

// Place fetches artifacts and puts them into a sandbox, owned by a user and group. It may be called
// again after it failed half-way.
func (s *Store) Place(ctx context.Context, sandbox string, uid, gid int, list []model.Artifact) error {
	for i := range list {
		a := &list[i]
		file, err := s.fetch(ctx, a)
		if err != nil {
			return fmt.Errorf("artifact %s: %w", a.Source, err)
		}
		err = place(ctx, file, sandbox, uid, gid, a)
		if a.Digest == "" && !a.Cached {
			err = errors.Join(err, os.Remove(file))
		}
		if err != nil {
			return fmt.Errorf("artifact %s: %w", a.Source, err)
		}
	}
	return nil
}

// fetch returns the file that holds an artifact, verified.
func (s *Store) fetch(ctx context.Context, a *model.Artifact) (string, error) {
	if a.Digest == "" {
		return s.fetchUnverified(ctx, a)
	}
	sum, ok := strings.CutPrefix(a.Digest, "sha256:")
	if raw, err := hex.DecodeString(sum); !ok || err != nil || len(raw) != sha256.Size {
		return "", fault.New(fault.Invalid, "digest %q is not sha256: and 64 hexadecimal digits", a.Digest)
	}
	sum = strings.ToLower(sum)
	for {
		s.mu.Lock()
		other := s.fetching[sum]
		if other == nil {
			s.fetching[sum] = make(chan struct{})
		}
		s.mu.Unlock()
		if other == nil {
			break
		}
		select {
		case <-other:
		case <-ctx.Done():
			return "", ctx.Err()
		}
	}
	defer func() {
		s.mu.Lock()
		close(s.fetching[sum])
		delete(s.fetching, sum)
		s.mu.Unlock()
	}()
	file := filepath.Join(s.dir, sum)
	now := time.Now()
	if err := os.Chtimes(file, now, now); err == nil {
		return file, nil
	}
	s.prune(now)
	body, err := s.open(ctx, a.Source)
	if err != nil {
		return "", err
	}
	defer body.Close()
	return file, keep(body, file, sum)
}

// fetchUnverified takes what the source gives as it is: each time anew, unless what was fetched once
// will do.
func (s *Store) fetchUnverified(ctx context.Context, a *model.Artifact) (string, error) {
	name := fmt.Sprintf("url-%x", sha256.Sum256([]byte(a.Source)))
	file := filepath.Join(s.dir, name)
	now := time.Now()
	if a.Cached && os.Chtimes(file, now, now) == nil {
		return file, nil
	}
	s.prune(now)
	body, err := s.open(ctx, a.Source)
	if err != nil {
		return "", err
	}
	defer body.Close()
	f, err := os.CreateTemp(s.dir, ".new-")
	if err != nil {
		return "", err
	}
	n, err := io.Copy(f, io.LimitReader(body, maxBytes+1))
	err = errors.Join(err, f.Close())
	switch {
	case err != nil:
		err = fault.New(fault.Unavailable, "fetch it: %w", err)
	case n > maxBytes:
		err = fault.New(fault.Invalid, "it is larger than %d bytes", int64(maxBytes))
	case a.Cached:
		err = os.Rename(f.Name(), file)
	default:
		return f.Name(), nil // each fetch has a file of its own, which goes once it is placed
	}
	if err != nil {
		os.Remove(f.Name())
	}
	return file, err
}

// keep writes what is read to a file once it is known to be what was asked for.
func keep(body io.Reader, file, sum string) error {
	f, err := os.CreateTemp(filepath.Dir(file), ".new-")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	defer f.Close()
	hash := sha256.New()
	n, err := io.Copy(io.MultiWriter(f, hash), io.LimitReader(body, maxBytes+1))
	if err != nil {
		return fault.New(fault.Unavailable, "fetch it: %w", err)
	}
	if n > maxBytes {
		return fault.New(fault.Invalid, "it is larger than %d bytes", int64(maxBytes))
	}
	if got := hex.EncodeToString(hash.Sum(nil)); got != sum {
		return fault.New(fault.Invalid, "what came has the digest sha256:%s, not the one that was asked for", got)
	}
	if err := f.Close(); err != nil {
		return err
	}
	return os.Rename(f.Name(), file)
}

func (s *Store) open(ctx context.Context, source string) (io.ReadCloser, error) {
	u, err := url.Parse(source)
	if err != nil {
		return nil, fault.New(fault.Invalid, "it is not a URL: %w", err)
	}
	switch u.Scheme {
	case "file":
		f, err := os.Open(u.Path)
		if errors.Is(err, fs.ErrNotExist) {
			return nil, fault.New(fault.NotFound, "there is no such file on this host")
		}
		return f, err
	case "http", "https":
	default:
		return nil, fault.New(fault.Unsupported, "sources are URLs that begin with https:, http: or file:")
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, source, nil)
	if err != nil {
		return nil, fault.New(fault.Invalid, "it is not a URL: %w", err)
	}
	resp, err := s.client.Do(req)
	if err != nil {
		return nil, fault.New(fault.Unavailable, "%w", err)
	}
	if resp.StatusCode != http.StatusOK {
		resp.Body.Close()
		kind := fault.Unavailable
		if resp.StatusCode == http.StatusNotFound || resp.StatusCode == http.StatusGone {
			kind = fault.NotFound
		}
		return nil, fault.New(kind, "it was answered with %s", resp.Status)
	}
	return resp.Body, nil
}

// prune forgets what nobody asked for in a long time, and what a crash cut short.
func (s *Store) prune(now time.Time) {
	entries, err := os.ReadDir(s.dir)
	if err != nil {
		return // the fetch that follows says what is wrong
	}
	for _, e := range entries {
		if info, err := e.Info(); err == nil && now.Sub(info.ModTime()) > keptFor {
			os.Remove(filepath.Join(s.dir, e.Name()))
		}
	}
}

// place puts a fetched file into the sandbox.
func place(ctx context.Context, file, sandbox string, uid, gid int, a *model.Artifact) error {
	root, err := os.OpenRoot(sandbox)
	if err != nil {
		return err
	}
	defer root.Close()
	p := &placing{root: root, uid: uid, gid: gid, left: maxBytes}
	target := path.Clean(strings.TrimPrefix(filepath.ToSlash(a.Target), "/"))
	if a.Target == "" {
		target = "."
	}
	if !filepath.IsLocal(target) {
		return fault.New(fault.Invalid, "target %q is not below the sandbox", a.Target)
	}
	f, err := os.Open(file)
	if err != nil {
		return err
	}
	defer f.Close()
	format := a.Format()
	if format != model.ArtifactFile {
		if err := p.dir(target, 0o755); err != nil {
			return err
		}
		return p.unpack(ctx, f, format, target)
	}
	if a.Target == "" || strings.HasSuffix(a.Target, "/") {
		target = path.Join(target, baseName(a.Source))
	}
	mode := fs.FileMode(a.Mode)
	if mode == 0 {
		mode = 0o755
	}
	return p.file(target, f, mode)
}

func baseName(source string) string {
	if u, err := url.Parse(source); err == nil && path.Base(u.Path) != "/" && path.Base(u.Path) != "." {
		return path.Base(u.Path)
	}
	return "artifact"
}
