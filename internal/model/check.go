package model

import (
	"fmt"
	"regexp"
	"sync"
)

// lazily compiles a pattern when it is first asked for: this package is in the program beside every task, which
// is executed twice for each container and needs none.
func lazily(pattern string) func() *regexp.Regexp {
	return sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(pattern) })
}

var namePattern = lazily(`^[A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?$`)

// CheckName says what is wrong with the name of an object, nil when nothing is. A name has 1 to
// 63 letters, digits, dots, dashes and underscores, and begins and ends with a letter or digit.
func CheckName(name string) error {
	if namePattern().MatchString(name) {
		return nil
	}
	return fmt.Errorf("%q is not valid: use 1 to 63 letters, digits, '.', '-' and '_', with a letter or digit at both ends", name)
}
