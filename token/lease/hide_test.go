package lease

import (
	"encoding/base64"
	"strings"
	"testing"

	"github.com/sendas/sendas/policy/limit"
	"github.com/sendas/sendas/token/entra"
)

// longToken is as long as Microsoft's are.
var longToken = entra.Secret("eyJ0eXAiOiJKV1QifQ." + strings.Repeat("c2VjcmV0-_", 150) + ".c2lnbmF0dXJl")

func TestHide(t *testing.T) {
	const user = "erp@contoso.com"
	answer := base64.StdEncoding.EncodeToString([]byte("user=" + user + "\x01auth=Bearer " + string(longToken) + "\x01\x01"))
	short := entra.Secret(theToken)
	shortAnswer := base64.StdEncoding.EncodeToString([]byte("user=" + user + "\x01auth=Bearer " + theToken + "\x01\x01"))
	id := "<" + strings.Repeat("a1-", 50) + "@erp.contoso.com>"
	for _, tc := range []struct {
		name   string
		reply  string
		access entra.Secret
		want   string
	}{
		{"the whole token", "500 5.3.3 Unrecognized command '" + string(longToken) + "'", longToken, "500 5.3.3 Unrecognized command 'REDACTED'"},
		{"the answer to AUTH", "501 5.5.4 'AUTH XOAUTH2 " + answer + "'", longToken, "501 5.5.4 'AUTH XOAUTH2 REDACTED'"},
		{"of a session that nobody knows", "501 5.5.4 'AUTH XOAUTH2 " + answer + "'", "", "501 5.5.4 'AUTH XOAUTH2 REDACTED'"},
		{"the beginning", "500 5.3.3 '" + answer[:150] + "…'", "", "500 5.3.3 'REDACTED…'"},
		{"a short token", "500 5.3.3 " + theToken, short, "500 5.3.3 REDACTED"},
		{"a short token in base64", "500 5.3.3 " + shortAnswer, short, "500 5.3.3 REDACTED"},
		{"a part of a short answer", "500 5.3.3 x=" + shortAnswer[10:50] + "...", short, "500 5.3.3 REDACTED"},
		{"a part from within", "454-4.7.0 token=" + string(longToken[700:760]), longToken, "454-4.7.0 REDACTED"},
		{"a reply that said yes", "235 2.7.0 " + answer, longToken, "235 2.7.0 REDACTED"},
		{"without space after the code", "554-" + string(longToken), longToken, "554-REDACTED"},
		{"twice in a line", "451 " + theToken + " and " + theToken + " again", short, "451 REDACTED and REDACTED again"},
		{"in a challenge", "334 " + answer, longToken, "334 REDACTED"},
		{"a challenge", "334 " + strings.Repeat("eyJzdGF0dXMiOiI0MDAi", 8), longToken, ""},
		{"a Message-ID", "250 2.0.0 OK " + id + " [Hostname=SYBP282MB2635.AUSP282.PROD.OUTLOOK.COM]", longToken, ""},
		{"a token that looks like a Message-ID", "250 2.0.0 OK <" + string(longToken) + "@x>", longToken, "250 2.0.0 OK <REDACTED@x>"},
		{"nothing of it", denied, longToken, ""},
		{"a banner", banner, longToken, ""},
		{"the user's name", "250 2.1.0 " + user + " Sender OK and more of it", short, ""},
		{"no code", string(longToken), longToken, "eyJ0REDACTED"},
		{"nothing", "", longToken, ""},
	} {
		want := tc.want
		if want == "" {
			want = tc.reply
		}
		if got := Hide(tc.reply, user, tc.access); got != want {
			t.Errorf("%s: %q, want %q", tc.name, got, want)
		}
	}
}

// TestRepeatedToken: a server that repeats what it was sent brings no token into our log, nor into
// the queue and the report that a sender gets: what the map "reply" gives is what Postfix shows
// there. What it does not show is not replaced, since it logs what it replaces.
func TestRepeatedToken(t *testing.T) {
	said := "'AUTH XOAUTH2 " + base64.StdEncoding.EncodeToString([]byte("user=erp@contoso.com\x01auth=Bearer "+theToken+"\x01\x01")) + "'"
	for _, tc := range []struct {
		name    string
		sender  string // who asked, "" for a process that never asked
		replies []string
		want    string // what Postfix gets for the last of them
	}{
		{"at AUTH", "erp@contoso.com", []string{"501 5.5.4 " + said}, "501 5.5.4 'AUTH XOAUTH2 REDACTED'"},
		{"AUTH succeeds", "erp@contoso.com", []string{"235 2.7.0 " + said}, ""},
		{"at MAIL", "erp@contoso.com", []string{authOK, "500 5.3.3 " + said}, "500 5.3.3 'AUTH XOAUTH2 REDACTED'"},
		{"at RCPT", "erp@contoso.com", []string{authOK, mailOK, "500 5.3.3 " + theToken}, "500 5.3.3 REDACTED"},
		{"at the end of DATA", "erp@contoso.com", []string{authOK, mailOK, rcptOK, dataOK, "554 5.3.3 " + said}, "554 5.3.3 'AUTH XOAUTH2 REDACTED'"},
		{"in a line of several", "erp@contoso.com", []string{authOK, mailOK, rcptOK, dataOK, "554-5.3.3 " + said}, "554-5.3.3 'AUTH XOAUTH2 REDACTED'"},
		{"where the code changes", "erp@contoso.com", []string{authOK, mailOK, rcptOK, dataOK, "554 5.2.2 mailbox full; " + said}, "454 4.2.2 mailbox full; 'AUTH XOAUTH2 REDACTED'"},
		{"in the next banner", "erp@contoso.com", []string{authOK, "220 x ESMTP " + said}, ""},
		{"after the verdict", "erp@contoso.com", []string{authOK, mailOK, rcptOK, dataOK, accepted, "221 2.0.0 " + strings.Repeat(theToken, 4)}, ""},
		{"with the verdict", "erp@contoso.com", []string{authOK, mailOK, rcptOK, dataOK, "250 2.0.0 OK " + said}, "250 2.0.0 OK 'AUTH XOAUTH2 REDACTED'"},
		{"without credential", "stranger@contoso.com", []string{"530 5.7.57 " + strings.Repeat(theToken, 4)}, "450 4.7.1 sendas: no mailbox may send as <stranger@contoso.com>: 530 5.7.57 REDACTED"},
		{"without session", "", []string{"500 5.3.3 " + strings.Repeat(theToken, 4)}, "500 5.3.3 REDACTED"},
	} {
		d := newDesk(limit.Microsoft().Messages)
		if tc.sender != "" {
			d.Lease(t.Context(), process(1), tc.sender)
		}
		if got := d.play(t, process(1), tc.replies...); got != found(tc.want) {
			t.Errorf("%s: Postfix gets %v %q, want %q", tc.name, got.Status, got.Value, tc.want)
		}
		d.end(t.Context(), process(1), "")
		if log := d.log.String(); strings.Contains(log, theToken) || strings.Contains(log, "dXNlcj1lcnBAY29udG9zby5jb20BYXV0") {
			t.Errorf("%s: the log has the token:\n%s", tc.name, log)
		}
	}
}
