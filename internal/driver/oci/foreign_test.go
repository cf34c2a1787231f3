package oci

import (
	"testing"
)

// The programs are Debian's packages; `make test` installs them.
func TestSuiteOfRunc(t *testing.T) { suite(t, "runc") }

func TestSuiteOfCrun(t *testing.T) { suite(t, "crun") }
