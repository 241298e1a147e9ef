package token

import (
	"errors"
	"path/filepath"
)

// maxReason is how many bytes of a reason Postfix logs (dict_sockmap.c, "%.200s").
const maxReason = 200

// brief words why there is no token, so short that what to do is still in Postfix's log.
func brief(mailbox string, err error) string {
	text := err.Error()
	if e, ok := errors.AsType[*FileError](err); ok {
		text = filepath.Base(e.Path) + " " + e.sentence()
	} else if e, ok := errors.AsType[*RefusedError](err); ok {
		text = e.Code() + ": " + e.Hint()
	} else if e, ok := errors.AsType[*UnreachableError](err); ok {
		text = e.Host + " " + e.Problem
	} else {
		return oneLine(text, maxReason)
	}
	return oneLine("no token for mailbox "+mailbox+": "+text, maxReason)
}
