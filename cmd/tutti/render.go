package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"unicode/utf8"

	"go.yaml.in/yaml/v4"
)

// print writes v as the output flag says: as JSON, as YAML, or as the table that rows makes.
func (g *globals) print(w io.Writer, v any, rows func() *table) error {
	switch g.Output {
	case "json":
		return printJSON(w, v)
	case "yaml":
		return printYAML(w, v)
	default:
		_, err := io.WriteString(w, rows().String())
		return err
	}
}

// structured reports whether a program reads the output.
func (g *globals) structured() bool { return g.Output == "json" || g.Output == "yaml" }

func printJSON(w io.Writer, v any) error {
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	e.SetEscapeHTML(false)
	return e.Encode(v)
}

// printYAML writes what printJSON would, with the same keys in the same order.
func printYAML(w io.Writer, v any) error {
	var buf bytes.Buffer
	if err := printJSON(&buf, v); err != nil {
		return err
	}
	var doc yaml.Node
	if err := yaml.Unmarshal(buf.Bytes(), &doc); err != nil {
		return fmt.Errorf("turn JSON into YAML: %w", err)
	}
	plain(&doc)
	e := yaml.NewEncoder(w)
	e.SetIndent(2)
	if err := e.Encode(&doc); err != nil {
		return fmt.Errorf("write YAML: %w", err)
	}
	return e.Close()
}

// plain drops the braces and quotes that a YAML document has from being JSON.
func plain(n *yaml.Node) {
	n.Style = 0
	for _, c := range n.Content {
		plain(c)
	}
}

// table is rows of cells in aligned columns, the first row being their titles. Cells may be
// coloured. The last column is not padded.
type table struct {
	rows [][]string
}

func newTable(titles ...string) *table { return &table{rows: [][]string{titles}} }

func (t *table) add(cells ...string) { t.rows = append(t.rows, cells) }

const columnGap = 3

func (t *table) String() string {
	var widths []int
	for _, row := range t.rows {
		for i, cell := range row {
			if i == len(widths) {
				widths = append(widths, 0)
			}
			widths[i] = max(widths[i], width(cell))
		}
	}
	var b strings.Builder
	for _, row := range t.rows {
		var line strings.Builder
		for i, cell := range row {
			line.WriteString(cell)
			if i < len(row)-1 {
				line.WriteString(strings.Repeat(" ", widths[i]-width(cell)+columnGap))
			}
		}
		b.WriteString(strings.TrimRight(line.String(), " "))
		b.WriteByte('\n')
	}
	return b.String()
}

// width is how many characters a terminal shows of s, colours not counted.
func width(s string) int {
	n := 0
	for len(s) > 0 {
		if rest, ok := strings.CutPrefix(s, "\x1b["); ok {
			_, s, _ = strings.Cut(rest, "m")
			continue
		}
		_, size := utf8.DecodeRuneInString(s)
		s = s[size:]
		n++
	}
	return n
}

// cut shortens s to at most n characters as width counts them; colours end where it is cut.
func cut(s string, n int) string {
	if width(s) <= n || n < 1 {
		return s
	}
	var b strings.Builder
	for shown := 0; shown < n-1; {
		if strings.HasPrefix(s, "\x1b[") {
			end := strings.IndexByte(s, 'm') + 1
			if end == 0 {
				break
			}
			b.WriteString(s[:end])
			s = s[end:]
			continue
		}
		_, size := utf8.DecodeRuneInString(s)
		b.WriteString(s[:size])
		s = s[size:]
		shown++
	}
	b.WriteString("…")
	if strings.Contains(b.String(), "\x1b[") {
		b.WriteString("\x1b[0m")
	}
	return b.String()
}

// printLine writes v as JSON on one line, for output that goes on for a while.
func printLine(w io.Writer, v any) error { return json.NewEncoder(w).Encode(v) }
