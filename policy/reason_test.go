package policy

import (
	"slices"
	"strings"
	"testing"
)

// TestReasonWords: each code has a sentence with its subject, and those that can be the last step
// have brief words.
func TestReasonWords(t *testing.T) {
	steps := []ReasonCode{ReasonClient, ReasonExternal, ReasonHVEOutside, ReasonHVESender, ReasonNotAsked, ReasonMayNotAsk, ReasonUnauthorized, ReasonNotVerified, ReasonSenderKept, ReasonMixed, ReasonAlias, ReasonDoubt} // another one follows
	seen := make(map[ReasonCode]bool)
	for _, r := range reasonTable {
		if seen[r.code] {
			t.Errorf("%s stands twice in the table", r.code)
		}
		seen[r.code] = true
		s := Reason{Code: r.code, Subject: "subject", Object: "object"}.String()
		if s == string(r.code) || strings.Contains(s, "%") || strings.Contains(r.sentence, "%") != strings.Contains(s, "subject") {
			t.Errorf("%s is no sentence: %s", r.code, s)
		}
		if brief := r.code.Brief(); (brief == "") != slices.Contains(steps, r.code) || strings.ContainsAny(brief, "%\n") {
			t.Errorf("%s in brief: %q", r.code, brief)
		}
	}
	if c := ReasonCode("new"); c.Brief() != "" || len(ReasonCodes()) != len(reasonTable) {
		t.Errorf("an unknown code in brief: %q; %d codes", c.Brief(), len(ReasonCodes()))
	}
}

func TestReasonSentences(t *testing.T) {
	for _, tc := range []struct {
		code            ReasonCode
		subject, object string
		want            string
	}{
		{ReasonClient, "printers", "10.2.0.9", `10.2.0.9 is client "printers"`},
		{ReasonMayNotAsk, "ceo@contoso.com", "sap", `client "sap" may not ask for <ceo@contoso.com>: its senders: do not include it`},
		{ReasonNotAsked, "", "", "neither the From field nor the envelope names a sender that can be read"},
		{ReasonFallback, "scan@contoso.com", "printers", `client "printers" has from: scan@contoso.com for such mail`},
		{ReasonTooMany, "900", "", "900 fields of one kind are more than any real message has"},
		{ReasonElsewhere, "info@shop.example", "local", "not ours: Postfix delivers it by local, to <info@shop.example>"},
		{ReasonAlias, "info@shop.example", "x@fabrikam.com", "an alias of this host leads from <info@shop.example> to <x@fabrikam.com>, which leaves by sendas, so it is ours"},
		{ReasonClientLimit, "printers", "", `client "printers" is over its limit`},
		{ReasonNotApplied, "", "", "the changes could not be handed to Postfix"},
	} {
		if got := (Reason{tc.code, tc.subject, tc.object}).String(); got != tc.want {
			t.Errorf("%s: %s, want %s", tc.code, got, tc.want)
		}
	}
}

func TestActions(t *testing.T) {
	var words []string
	for _, a := range Actions() {
		words = append(words, string(a)+" "+a.Done())
	}
	if got := strings.Join(words, ", "); got != "accept accepted, defer deferred, reject rejected, hold held, pass passed untouched" {
		t.Error(got)
	}
	if got := Action("new").Done(); got != "new" {
		t.Errorf("an unknown action is %q", got)
	}
}
