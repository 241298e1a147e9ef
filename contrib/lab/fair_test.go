package lab

import (
	"fmt"
	"strings"
	"testing"
	"time"
)

// TestFairSenders: a sender with a backlog does not hold up another one of the same mailbox. Their
// mail waits in queues of its own in Postfix, which are served in turn, and the look-ups in the
// order of their coming.
func TestFairSenders(t *testing.T) {
	const backlog, few = 90, 3
	s, ctx := startSite(t, SiteConfig{Minute: 6 * time.Second, Postfix: func(_ *Site, main map[string]string) []string {
		main["sender_dependent_default_transport_maps"] = "socketmap:unix:sendas/credentials:transport"
		return nil
	}})
	send := func(from string, i int) {
		t.Helper()
		m := Mail{XClient: sap, From: from, To: []string{"someone@fabrikam.com"},
			Data: message("From: "+from, fmt.Sprintf(storyID, fmt.Sprintf("%.4s-%d", from, i)), storyDate)}
		if res, err := Send(ctx, s.Postfix.SMTPAddr(), m); err != nil || !res.Accepted() {
			t.Fatalf("%v, %v", res.Verdict(), err)
		}
	}
	for i := range backlog {
		send("billing@contoso.com", i)
	}
	if err := s.WaitMessages(ctx, 12); err != nil {
		t.Fatal(err)
	}
	for i := range few {
		send("hr@contoso.com", i)
	}
	// From when qmgr(8) has them they are served in turn; a busy machine may need a while for that.
	inTurn := func() (bool, error) {
		log, err := s.Postfix.Log()
		return strings.Count(log, "from=<hr@contoso.com>, ") >= few, err
	}
	if err := poll(ctx, inTurn); err != nil {
		t.Fatal(err)
	}
	before := s.Accepted()
	if err := s.WaitMessages(ctx, backlog+few); err != nil {
		t.Fatal(err)
	}
	last, n := 0, 0
	for _, m := range s.Exosim.Messages() {
		if !m.Accepted() {
			continue
		}
		n++
		if m.Sender == "hr@contoso.com" {
			last = n
		}
	}
	// Served in the order of their coming, the last one would be the 93rd. In turn it is about the
	// seventh after it was sent; three look-ups of the other sender were in line already.
	if most := before + 20; last > most || last == 0 {
		t.Errorf("the other sender's last message left as the %d., want it before the %d.", last, most)
	}
}
