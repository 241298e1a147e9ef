// Package exit is how a command ends: the exit code that scripts and systemd read, an error that
// carries it from where something went wrong to where the process ends, and how that error is told
// to a person.
package exit

import (
	"errors"
	"fmt"
	"io"
)

// Exit codes of sysexits.h, as Postfix uses them.
const (
	OK       = 0
	Failed   = 1  // a check found something wrong
	Usage    = 64 // the command line is wrong
	Software = 70 // something went wrong that is not of the kinds below
	TempFail = 75 // try again later
	Config   = 78 // the configuration is wrong; a unit must not restart on it
)

// An Error carries an exit code, and what to type next.
type Error struct {
	Err  error // nil says nothing: see Quiet
	Code int
	Hint string // "" for none
}

// Quiet ends a command with a code, and says nothing: the command has said all.
func Quiet(code int) error { return &Error{Code: code} }

func (e *Error) Error() string {
	if e.Err == nil {
		return fmt.Sprintf("exit status %d", e.Code)
	}
	return e.Err.Error()
}
func (e *Error) Unwrap() error { return e.Err }

// Errorf makes an *Error of the text that [fmt.Errorf] makes; %w wraps.
func Errorf(code int, hint, format string, args ...any) error {
	return &Error{Err: fmt.Errorf(format, args...), Code: code, Hint: hint}
}

// Tell prints an error, with its hint where it has one, and returns the exit code. An error that is
// no [*Error] is that of a command line: cobra's own of an unknown command or flag.
func Tell(w io.Writer, err error) int {
	e, ok := errors.AsType[*Error](err)
	if ok && e.Err == nil {
		return e.Code
	}
	fmt.Fprintf(w, "sendas: error: %v\n", err)
	if !ok {
		return Usage
	}
	if e.Hint != "" {
		fmt.Fprintf(w, "sendas: hint: %s\n", e.Hint)
	}
	return e.Code
}
