package lab

import (
	"fmt"
	"strings"
)

// Story is one message that a real site would see, with what must become of it.
type Story struct {
	Name string // who sends what
	Mail Mail

	// Refused is the beginning of the reply that the sender gets instead of an
	// acceptance; "" when the message is accepted.
	Refused string
	// From is the From field that reaches Exchange Online, unfolded; Sender the
	// envelope sender.
	From, Sender string
	// Mailbox is who authenticates.
	Mailbox string
	// Has are header lines that must have come through or been added.
	Has []string
	// HasNot are header names that must not be there.
	HasNot []string
}

// Asked returns the From field as the device wrote it, or the envelope sender.
func (s Story) Asked() string {
	for line := range strings.SplitSeq(string(s.Mail.Data), "\n") {
		if v, ok := strings.CutPrefix(line, "From: "); ok {
			return strings.TrimRight(v, "\r")
		}
		if strings.TrimRight(line, "\r") == "" {
			break
		}
	}
	return "<" + s.Mail.From + ">"
}

// Clients of the story's site.
var (
	printer    = XClient{Addr: "10.2.0.9", Name: "mfp3.local"}
	sap        = XClient{Addr: "10.1.0.5", Name: "sap01.local"}
	monitoring = XClient{Addr: "192.0.2.20", Name: "nagios.local", Login: "nagios"}
	stranger   = XClient{Addr: "198.51.100.66", Name: "[UNAVAILABLE]"}
)

// message makes the text of a message. The body has what a careless filter would change: a line of
// a single dot, trailing blanks, 8-bit bytes, a From at the beginning of a line.
func message(header ...string) []byte {
	return []byte(strings.Join(header, "\r\n") + "\r\nSubject: Story\r\nX-Untouched:  two  blanks\tand a tab \r\n\r\n" + Body)
}

// Body is the body of all the story's messages.
const Body = "Line\r\n.\r\n..two dots\r\nFrom the beginning\r\ntrailing blanks   \r\n8-bit: \xe4\xf6\xfc, UTF-8: äöü\r\n\r\nend\r\n"

const (
	storyID   = "Message-ID: <%s@device.example>"
	storyDate = "Date: Sat, 21 Nov 2026 08:00:00 +0000"
)

// Stories returns the messages of a day at contoso.com: see [SiteConfig] for its rules.
func Stories() []Story {
	id := func(s string) string { return fmt.Sprintf(storyID, s) }
	to := []string{"someone@fabrikam.com"}
	return []Story{
		{Name: "scanner, malformed From", Mail: Mail{XClient: printer, From: "scanner3@floor", To: to,
			Data: message("From: scanner3@floor 3 <bad", "To: someone@fabrikam.com")},
			From: `"scanner3@floor 3 <bad" <scan@contoso.com>`, Sender: "scan@contoso.com", Mailbox: "scan@contoso.com",
			Has: []string{"Message-ID: <", "Date: ", "X-Original-From: scanner3@floor 3 <bad"}, HasNot: []string{"Reply-To"}},
		{Name: "SAP, an address it may send as", Mail: Mail{XClient: sap, From: "hr@contoso.com", To: to,
			Data: message("From: Human Resources <hr@contoso.com>", id("sap"), storyDate)},
			From: "Human Resources <hr@contoso.com>", Sender: "hr@contoso.com", Mailbox: "erp@contoso.com",
			Has: []string{id("sap"), storyDate}, HasNot: []string{"X-Original-From", "Reply-To"}},
		{Name: "SAP, envelope of its own host", Mail: Mail{XClient: sap, From: "sapadm@sap01.local", To: to,
			Data: message("From: billing@contoso.com", "Sender: sapadm@sap01.local", id("env"), storyDate)},
			From: "billing@contoso.com", Sender: "billing@contoso.com", Mailbox: "erp@contoso.com", HasNot: []string{"Sender"}},
		{Name: "monitoring, verified domain, nobody may", Mail: Mail{XClient: monitoring, From: "alerts@contoso.com", To: to,
			Data: message("From: alerts@contoso.com", id("mon"), storyDate)},
			Refused: "550 5.7.1 <alerts@contoso.com>: no mailbox of this relay may send as this address"},
		{Name: "monitoring, its own mailbox", Mail: Mail{XClient: monitoring, From: "monitor@contoso.com", To: to,
			Data: message("From: Nagios <monitor@contoso.com>", id("own"), storyDate)},
			From: "Nagios <monitor@contoso.com>", Sender: "monitor@contoso.com", Mailbox: "monitor@contoso.com"},
		{Name: "unknown client", Mail: Mail{XClient: stranger, From: "hr@contoso.com", To: to,
			Data: message("From: hr@contoso.com", id("unknown"), storyDate)},
			Refused: "550 5.7.1 198.51.100.66 is not a known client of this relay"},
		{Name: "printer forges the CEO", Mail: Mail{XClient: printer, From: "ceo@contoso.com", To: to,
			Data: message(`From: "The CEO" <ceo@contoso.com>`, id("ceo"), storyDate)},
			From: "The CEO <scan@contoso.com>", Sender: "scan@contoso.com", Mailbox: "scan@contoso.com",
			Has: []string{`X-Original-From: "The CEO" <ceo@contoso.com>`, "Reply-To: The CEO <ceo@contoso.com>"}},
		{Name: "bounce with the null sender", Mail: Mail{XClient: printer, From: "", To: to,
			Data: message("From: MAILER-DAEMON@mfp3.local (Mail Delivery System)", id("bounce"), storyDate)},
			From: "Mail Delivery System <scan@contoso.com>", Sender: "scan@CONTOSO.COM", Mailbox: "scan@contoso.com",
			Has: []string{"Auto-Submitted: auto-replied", "X-Auto-Response-Suppress: All"}, HasNot: []string{"Reply-To"}},
		{Name: "UTF-8 display name", Mail: Mail{XClient: printer, From: "scan@contoso.com", To: to,
			Data: message("From: Büro Zürich <scan@contoso.com>", id("utf8"), storyDate)},
			From: "=?utf-8?b?QsO8cm8gWsO8cmljaA==?= <scan@contoso.com>", Sender: "scan@contoso.com", Mailbox: "scan@contoso.com"},
		{Name: "no From at all", Mail: Mail{XClient: printer, From: "root@mfp3.local", To: to,
			Data: message("To: someone@fabrikam.com", id("nofrom"), storyDate)},
			From: "scan@contoso.com", Sender: "scan@contoso.com", Mailbox: "scan@contoso.com",
			Has: []string{"X-Original-From: root@mfp3.local"}},
	}
}
