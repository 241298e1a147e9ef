package lease

import (
	"errors"
	"path/filepath"

	"github.com/sendas/sendas/token/entra"
)

// maxReason is how many bytes of a reason Postfix logs (dict_sockmap.c, "%.200s").
const maxReason = 200

// brief words why there is no token, so short that what to do is still in Postfix's log.
func brief(mailbox string, err error) string {
	text := err.Error()
	if e, ok := errors.AsType[*entra.FileError](err); ok {
		text = filepath.Base(e.Path) + " " + e.Sentence()
	} else if e, ok := errors.AsType[*entra.RefusedError](err); ok {
		text = e.Code() + ": " + e.Hint()
	} else if e, ok := errors.AsType[*entra.UnreachableError](err); ok {
		text = e.Host + " " + e.Problem
	} else {
		return entra.OneLine(text, maxReason)
	}
	return entra.OneLine("no token for mailbox "+mailbox+": "+text, maxReason)
}
