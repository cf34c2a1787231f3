//go:build helper

package helper

import _ "embed" // for the program below

//go:embed tutti-task
var program string
