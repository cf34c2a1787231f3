package main

import (
	"errors"
	"fmt"
	"strings"

	"github.com/spf13/cobra"
)

// usageError is a command line that cannot be understood; the program ends with code 2.
type usageError struct{ error }

func (e usageError) Unwrap() error { return e.error }

func usagef(format string, args ...any) error { return usageError{fmt.Errorf(format, args...)} }

// exitCode ends the program with a code and without a word: all was said already.
type exitCode int

func (c exitCode) Error() string { return fmt.Sprintf("exit code %d", int(c)) }

// arguments accepts between least and most arguments; most < 0 is any number. what names them in
// the refusal.
func arguments(least, most int, what string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		switch {
		case len(args) < least:
			return usagef("%s needs %s", cmd.CommandPath(), what)
		case most >= 0 && len(args) > most && most == 0:
			return usagef("%s takes no arguments, %q was given", cmd.CommandPath(), args[0])
		case most >= 0 && len(args) > most:
			return usagef("%s takes %s and nothing more, %q was given", cmd.CommandPath(), what, args[most])
		}
		return nil
	}
}

func noArguments() cobra.PositionalArgs { return arguments(0, 0, "") }

// strict makes all commands below cmd answer what they cannot understand with a usageError, and
// those that only hold others name what was perhaps meant.
func strict(cmd *cobra.Command) {
	for _, c := range cmd.Commands() {
		strict(c)
	}
	if cmd.HasSubCommands() && !cmd.Runnable() {
		cmd.Args = noSuchCommand
		cmd.SuggestionsMinimumDistance = 2
		cmd.RunE = func(cmd *cobra.Command, _ []string) error { return cmd.Help() }
		return
	}
	check := cmd.Args
	cmd.Args = func(cmd *cobra.Command, args []string) error {
		if check == nil {
			return nil
		}
		if err := check(cmd, args); err != nil {
			return asUsage(err)
		}
		return nil
	}
}

func asUsage(err error) error {
	var known usageError
	if errors.As(err, &known) {
		return err
	}
	return usageError{err}
}

func noSuchCommand(cmd *cobra.Command, args []string) error {
	if len(args) == 0 {
		return nil
	}
	hint := ""
	if near := cmd.SuggestionsFor(args[0]); len(near) > 0 {
		hint = "; perhaps " + strings.Join(near, " or ") + " was meant"
	}
	return usagef("%s has no command %q%s", cmd.CommandPath(), args[0], hint)
}
