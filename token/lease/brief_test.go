package lease

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/sendas/sendas/token/entra"
)

// TestBrief: whatever is wrong, what to do about it stands within what Postfix logs.
func TestBrief(t *testing.T) {
	const long = "/var/lib/sendas-token/grants/with/a/very/long/name/that/nobody/would/choose/scan-user.json"
	for _, tc := range []struct {
		err  error
		want string
	}{
		{fmt.Errorf("loading the sign-in of %q: %w", "scan-user", &entra.FileError{Path: long, Problem: `does not exist: nobody has signed in for it yet, type "sendas login scan-user"`}),
			`no token for mailbox scan@contoso.com: scan-user.json does not exist: nobody has signed in for it yet, type "sendas login scan-user"`},
		{fmt.Errorf("x: %w", &entra.RefusedError{Credential: "scan-user", What: "refresh token", OAuth: "invalid_grant", Codes: []int{700082}, Description: strings.Repeat("The refresh token has expired. ", 9)}),
			`no token for mailbox scan@contoso.com: AADSTS700082: the refresh token lay unused too long; sign in again with "sendas login scan-user"`},
		{&entra.UnreachableError{Credential: "relay-app", Host: "login.microsoftonline.com", Problem: "gave no answer: connection refused"},
			"no token for mailbox scan@contoso.com: login.microsoftonline.com gave no answer: connection refused"},
		{errors.New("mailbox scan@contoso.com cannot send now: its 30/m messages are used up"), "mailbox scan@contoso.com cannot send now: its 30/m messages are used up"},
	} {
		if got := brief("scan@contoso.com", tc.err); got != tc.want || len(got) > maxReason {
			t.Errorf("got  %s\nwant %s", got, tc.want)
		}
	}
}
