package main

import (
	"embed"
	"fmt"
	"hash/fnv"
	"html/template"
	"io"
	"io/fs"
	"net/url"
	"path"
	"strings"
	"time"

	"github.com/tutti-run/tutti/examples/shop/internal/trade"
)

//go:embed pages/*.html pages/style.css pictures/*.svg
var files embed.FS

var pageNames = []string{"home", "cart", "orders", "order", "trouble"}

// pages renders the shop's pages by name.
type pages map[string]*template.Template

func parsePages() (pages, error) {
	style, err := files.ReadFile("pages/style.css")
	if err != nil {
		return nil, fmt.Errorf("read style: %w", err)
	}
	pictures, err := readPictures()
	if err != nil {
		return nil, err
	}
	functions := template.FuncMap{
		"money":   trade.Money,
		"times":   func(a, b int) int { return a * b },
		"add":     func(a, b int) int { return a + b },
		"hue":     hue,
		"ms":      func(d time.Duration) string { return fmt.Sprintf("%.1f ms", float64(d.Microseconds())/1000) },
		"clock":   func(t time.Time) string { return t.UTC().Format("2 Jan 2006, 15:04:05 UTC") },
		"style":   func() template.CSS { return template.CSS(style) }, // ours, from the binary
		"picture": func(name string) template.HTML { return pictures[name] },
		"reached": reached,
		"short":   func(id string) string { return id[:min(len(id), 12)] },
	}
	all := pages{}
	for _, name := range pageNames {
		page, err := template.New("frame.html").Funcs(functions).ParseFS(files, "pages/frame.html", "pages/"+name+".html")
		if err != nil {
			return nil, fmt.Errorf("parse page %s: %w", name, err)
		}
		all[name] = page
	}
	return all, nil
}

func (p pages) render(w io.Writer, name string, v *view) error { return p[name].Execute(w, v) }

// readPictures takes the drawings from the binary: they are ours and safe to put into a page.
func readPictures() (map[string]template.HTML, error) {
	names, err := fs.Glob(files, "pictures/*.svg")
	if err != nil {
		return nil, fmt.Errorf("list pictures: %w", err)
	}
	pictures := map[string]template.HTML{}
	for _, name := range names {
		text, err := files.ReadFile(name)
		if err != nil {
			return nil, fmt.Errorf("read picture: %w", err)
		}
		pictures[strings.TrimSuffix(path.Base(name), ".svg")] = template.HTML(text)
	}
	return pictures, nil
}

// hue gives a name a colour of its own, so that one sees at a glance who answered.
func hue(name string) int {
	sum := fnv.New32a()
	_, _ = sum.Write([]byte(name)) // never fails
	return int(sum.Sum32() % 360)
}

// reached says whether an order in state has come as far as step.
func reached(state, step string) bool {
	far := map[string]int{trade.Placed: 1, trade.Packed: 2, trade.Shipped: 3}
	return far[state] >= far[step]
}

func escape(segment string) string { return url.PathEscape(segment) }
