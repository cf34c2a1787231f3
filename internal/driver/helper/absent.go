//go:build !helper

package helper

const program = ""
