package main

import (
	"strings"
	"testing"
)

func TestCounting(t *testing.T) {
	events := `{"Action":"start","Package":"p"}
{"Action":"run","Package":"p","Test":"TestGood"}
{"Action":"output","Package":"p","Test":"TestGood","Output":"    a_test.go:1: quiet\n"}
{"Action":"pass","Package":"p","Test":"TestGood"}
{"Action":"output","Package":"p","Test":"TestBad","Output":"    a_test.go:2: loud\n"}
{"Action":"fail","Package":"p","Test":"TestBad"}
{"Action":"output","Package":"p","Test":"TestLeftOut","Output":"    a_test.go:3: needs root\n"}
{"Action":"skip","Package":"p","Test":"TestLeftOut"}
{"Action":"output","Package":"p","Test":"TestPanics","Output":"panic: oh\n"}
{"Action":"output","Package":"p","Output":"FAIL\tp\t0.1s\n"}
{"Action":"fail","Package":"p"}
{"Action":"output","Package":"q","Output":"?   \tq\t[no test files]\n"}
{"Action":"skip","Package":"q"}
# something else
{"Action":"fail","Package":"r"}
{"ImportPath":"r","Action":"build-output","Output":"r.go:1: syntax error\n"}
`
	var out strings.Builder
	c := &count{out: &out}
	if err := c.follow(strings.NewReader(events)); err != nil {
		t.Fatal(err)
	}
	if c.passed != 1 || c.failed != 2 || len(c.skipped) != 1 || c.packages != 2 {
		t.Errorf("counted %d passed, %d failed, %d skipped in %d packages; want 1, 2 (a test, a package), 1, 2", c.passed, c.failed, len(c.skipped), c.packages)
	}
	if want := "p TestLeftOut: needs root"; c.skipped[0] != want {
		t.Errorf("skipped is %q, want %q", c.skipped[0], want)
	}
	for text, wanted := range map[string]bool{
		"quiet": false, "no test files": false,
		"loud": true, "panic: oh": true, "FAIL\tp": true, "# something else": true, "syntax error": true,
	} {
		if strings.Contains(out.String(), text) != wanted {
			t.Errorf("printed %q: %v, want %v; all of it:\n%s", text, !wanted, wanted, &out)
		}
	}
}
