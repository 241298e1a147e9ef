package smtp

import (
	"crypto/tls"
	"fmt"
	"io"
	"slices"
	"testing"
	"time"

	"github.com/sendas/sendas/contrib/exosim/directory"
	"github.com/sendas/sendas/contrib/exosim/internal/visitor"
)

const (
	plainMX = "250-*.mail.protection.outlook.com Hello [127.0.0.1]|250-SIZE 157286400|250-PIPELINING|250-DSN|250-ENHANCEDSTATUSCODES|250-STARTTLS|250-8BITMIME|250-BINARYMIME|250-CHUNKING|250 SMTPUTF8"
	tlsMX   = "250-*.mail.protection.outlook.com Hello [127.0.0.1]|250-SIZE 157286400|250-PIPELINING|250-DSN|250-ENHANCEDSTATUSCODES|250-8BITMIME|250-BINARYMIME|250-CHUNKING|250 SMTPUTF8"

	atMX         = " [*.prod.protection.outlook.com ????-??-??T??:??:??.???Z 08DE????????????]"
	relayDenied  = "550 5.7.64 TenantAttribution; Relay Access Denied SMTP" + atMX
	noDirectSend = "550 5.7.68 TenantInboundAttribution; Direct Send not allowed for this organization from unauthorized sources" + atMX
	noSuchRcpt   = "550 5.4.1 Recipient address rejected: Access denied" + atMX
	unregistered = "550 5.7.750 Service unavailable. Client blocked from sending from unregistered domains" + atMX
	badFromMX    = "550 5.7.512 Access denied, message must be RFC 5322 section 3.6.2 compliant and include a valid From address" + atMX
	manyFromMX   = "550 5.1.20 Multiple From addresses are not allowed without Sender address" + atMX
	busyMX       = "451 4.7.500 Server busy. Please try again later from [127.0.0.1]. (S77719)" + atMX
)

// Where clients of the MX endpoint come from: anywhere, and connector "site".
const (
	stranger = "127.0.0.1"
	atSite   = "127.0.0.5"
)

// startMX starts a simulator with an MX endpoint and three connectors.
func startMX(t testing.TB, change func(*siteConfig)) *site {
	t.Helper()
	return startTest(t, func(c *siteConfig) {
		c.MX, c.Domains = "127.0.0.1:0", []string{"contoso.com", "Contoso.de"}
		c.Connectors = []Connector{
			{Name: "site", SenderIPs: []string{"127.0.0.5", "127.0.1.0/24"}},
			{Name: "relay", CertificateName: "Relay.contoso.com"},
			{Name: "branches", CertificateName: "*.branch.contoso.com"},
		}
		if change != nil {
			change(c)
		}
	})
}

func TestMXDialogue(t *testing.T) {
	s := startMX(t, nil)
	k := dialMX(t, s, stranger)
	if got := k.Read(); !visitor.Like(got, "220 *.mail.protection.outlook.com Microsoft ESMTP MAIL Service ready at * +0000 [08DE????????????]") {
		t.Errorf("banner: %s", got)
	}
	k.Dialogue([]visitor.Step{
		{"AUTH LOGIN", "503 5.5.2 Send hello first"},
		{"EHLO relay.example.com", plainMX},
		{"AUTH LOGIN", "504 5.7.4 Unrecognized authentication type"},
		{"MAIL FROM:<root@fabrikam.com> SIZE=157286401", "552 5.3.4 Message size exceeds fixed maximum message size"},
		{"MAIL FROM:<root@fabrikam.com>", "250 2.1.0 Sender OK"},
		{"RCPT TO:<someone@example.net>", relayDenied},
		{"DATA", "503 5.5.2 Need rcpt command"},
		{"RCPT TO:<erp@contoso.com>", visitor.RcptOK},
		{"RCPT TO:<erp@sub.contoso.com>", relayDenied},
		{"RSET", "250 2.0.0 Resetting"},
		{"MAIL FROM:<>", "250 2.1.0 Sender OK"},
		{"xyz", "500 5.3.3 Unrecognized command 'xyz'" + atMX},
		{"HELO relay.example.com", "250 *.mail.protection.outlook.com Hello [127.0.0.1]"},
		{"STARTTLS", "220 2.0.0 SMTP server ready"},
	})
	k.Handshake()
	k.Dialogue([]visitor.Step{
		{"MAIL FROM:<>", "503 5.5.2 Send hello first"},
		{"EHLO relay.example.com", tlsMX},
		{visitor.XOAUTH2("erp@contoso.com", s.Issue(app1, directory.Exchange, time.Hour)), "504 5.7.4 Unrecognized authentication type"},
		{"STARTTLS", "503 5.5.2 *"},
		{"MAIL FROM:<>", "250 2.1.0 Sender OK"},
		{"QUIT", "221 2.0.0 Service closing transmission channel"},
	})
}

func TestMXVerdicts(t *testing.T) {
	const own = "From: Scanner <scan3@contoso.com>"
	for _, tc := range []struct {
		name, source   string
		faults         Faults
		sender, header string
		want           string
	}{
		{"direct send", stranger, Faults{}, "scan3@contoso.com", own + visitor.MessageID, visitor.Queued},
		{"anybody's mail", stranger, Faults{}, "a@fabrikam.com", "From: b@example.net" + visitor.MessageID, visitor.Queued},
		{"direct send of a bounce", stranger, Faults{}, "", "From: MAILER-DAEMON@relay.local" + visitor.MessageID, visitor.Queued},
		{"connector", atSite, Faults{}, "scan3@contoso.com", own + visitor.MessageID, visitor.Queued},
		{"connector, other cases", atSite, Faults{}, "scan3@CONTOSO.com", "From: x@contoso.DE" + visitor.MessageID, visitor.Queued},
		{"connector, bounce", atSite, Faults{}, "", own + visitor.MessageID, visitor.Queued},
		{"connector, two of its own", atSite, Faults{}, "a@contoso.com", "From: a@contoso.com, b@contoso.de\nSender: a@contoso.com" + visitor.MessageID, visitor.Queued},
		{"connector, Sender of another", atSite, Faults{}, "a@contoso.com", "From: a@contoso.com\nSender: root@fabrikam.com" + visitor.MessageID, visitor.Queued},
		{"Message-ID of the service", stranger, Faults{}, "", own, "250 2.6.0 <*@*.prod.outlook.com> [InternalId=*, Hostname=*] *"},

		{"connector, envelope of another domain", atSite, Faults{}, "root@fabrikam.com", own + visitor.MessageID, unregistered},
		{"connector, envelope of a subdomain", atSite, Faults{}, "root@mfp.contoso.com", own + visitor.MessageID, unregistered},
		{"connector, envelope that only ends alike", atSite, Faults{}, "root@xcontoso.com", own + visitor.MessageID, unregistered},
		{"connector, From of another domain", atSite, Faults{}, "scan3@contoso.com", "From: root@fabrikam.com" + visitor.MessageID, unregistered},
		{"connector, second From of another domain", atSite, Faults{}, "a@contoso.com", "From: a@contoso.com, b@fabrikam.com\nSender: a@contoso.com" + visitor.MessageID, unregistered},
		{"connector, bounce of another domain", atSite, Faults{}, "", "From: MAILER-DAEMON@relay.local" + visitor.MessageID, unregistered},

		{"no From", stranger, Faults{}, "scan3@contoso.com", "Subject: x" + visitor.MessageID, badFromMX},
		{"no From by connector", atSite, Faults{}, "scan3@contoso.com", "Subject: x" + visitor.MessageID, badFromMX},
		{"From without domain", stranger, Faults{}, "scan3@contoso.com", "From: root" + visitor.MessageID, badFromMX},
		{"two without Sender", stranger, Faults{}, "scan3@contoso.com", "From: a@contoso.com, b@contoso.com" + visitor.MessageID, manyFromMX},
		{"two From fields", atSite, Faults{}, "scan3@contoso.com", own + "\n" + own + visitor.MessageID, manyFromMX},

		{"busy", stranger, Faults{Busy: 1}, "scan3@contoso.com", own + visitor.MessageID, busyMX},
		{"busy before all else", stranger, Faults{Busy: 1}, "scan3@contoso.com", "Subject: x" + visitor.MessageID, busyMX},
		{"drop in DATA", stranger, Faults{DropInData: 1}, "scan3@contoso.com", own + visitor.MessageID, "EOF"},
		{"drop before it is accepted", stranger, Faults{DropBeforeAccept: 1}, "scan3@contoso.com", own + visitor.MessageID, "EOF"},
		{"drop after it was accepted", stranger, Faults{DropAfterData: 1}, "scan3@contoso.com", own + visitor.MessageID, "EOF"},
		{"mailbox troubles", stranger, Faults{Concurrent: 1, ConcurrentShare: 1, MailboxFull: true, NoLogon: true, QuotaAfter: 1}, "erp@contoso.com", "From: erp@contoso.com" + visitor.MessageID, visitor.Queued},
	} {
		s := startMX(t, nil)
		setFaults(t, s, tc.faults)
		k := dialMX(t, s, tc.source)
		k.Read()
		k.Say("EHLO relay.example.com")
		if got := k.Deliver(tc.sender, "erp@contoso.com", tc.header); !visitor.Like(got, tc.want) {
			t.Errorf("%s: got %s, want %s", tc.name, got, tc.want)
		}
		if u := s.Usage("erp@contoso.com"); u.Accepted+u.Recipients+len(u.Refused) > 0 {
			t.Errorf("%s: counted for a mailbox: %+v", tc.name, u)
		}
		checkMXCapture(t, s, tc.name, tc.faults, tc.want)
	}
}

// checkMXCapture looks at what is known of the only message of a test.
func checkMXCapture(t *testing.T, s *site, name string, f Faults, want string) {
	t.Helper()
	all := s.Messages()
	if f.DropInData > 0 {
		if len(all) != 0 {
			t.Errorf("%s: captured %+v", name, all[0])
		}
		return
	}
	if len(all) != 1 {
		t.Fatalf("%s: captured %d messages", name, len(all))
	}
	m := all[0]
	dropped := f.DropBeforeAccept+f.DropAfterData > 0
	taken := f.DropAfterData > 0 || want[0] == '2'
	if m.ID != 1 || m.Accepted() != taken || m.Dropped != dropped || m.Verdict.Before(m.Dot) || !slices.Equal(m.Recipients, []string{"erp@contoso.com"}) || m.TLS != "" {
		t.Errorf("%s: captured %+v", name, m)
	}
	if f.DropBeforeAccept > 0 && m.Reply != "" {
		t.Errorf("%s: reply %q", name, m.Reply)
	}
}

// TestQueuedReply: each figure of the reply is right.
func TestQueuedReply(t *testing.T) {
	s := startMX(t, nil)
	seen := map[int64]bool{}
	for range 3 {
		k := dialMX(t, s, stranger)
		k.Read()
		k.Say("EHLO relay.example.com")
		got := k.Deliver("a@contoso.com", "erp@contoso.com", "From: a@contoso.com"+visitor.MessageID)
		var (
			number      int64
			host        string
			size        int
			took, speed float64
		)
		_, err := fmt.Sscanf(got, "250 2.6.0 <1@device> [InternalId=%d, Hostname=%s %d bytes in %f, %f KB/sec Queued mail for delivery", &number, &host, &size, &took, &speed)
		if err != nil {
			t.Fatalf("%v in %s", err, got)
		}
		const sent = len("From: a@contoso.com\r\nMessage-ID: <1@device>\r\n\r\nbody\r\n")
		if seen[number] || number <= 0 || size != sent || took < 0.1 || took >= 0.2 || speed < float64(sent)/1024/0.2-0.001 || speed > float64(sent)/1024/0.1+0.001 {
			t.Errorf("got %s", got)
		}
		seen[number] = true
	}
}

// TestRejectDirectSend: only envelope senders of the organisation that come by no
// connector are refused, and only at the organisation's recipients.
func TestRejectDirectSend(t *testing.T) {
	s := startMX(t, func(c *siteConfig) { c.RejectDirectSend, c.KnownRecipients = true, []string{"info@contoso.com"} })
	for _, tc := range []struct {
		name, source, sender, rcpt string
		want                       string
	}{
		{"own sender", stranger, "scan@contoso.com", "erp@contoso.com", noDirectSend},
		{"own sender in capitals", stranger, "scan@CONTOSO.DE", "erp@contoso.com", noDirectSend},
		{"own sender, unknown recipient", stranger, "scan@contoso.com", "nobody@contoso.com", noDirectSend},
		{"own sender, foreign recipient", stranger, "scan@contoso.com", "a@example.net", relayDenied},
		{"subdomain", stranger, "scan@mfp.contoso.com", "erp@contoso.com", visitor.RcptOK},
		{"foreign sender", stranger, "a@fabrikam.com", "erp@contoso.com", visitor.RcptOK},
		{"null sender", stranger, "", "erp@contoso.com", visitor.RcptOK},
		{"connector", atSite, "scan@contoso.com", "erp@contoso.com", visitor.RcptOK},
	} {
		k := dialMX(t, s, tc.source)
		k.Read()
		k.Say("EHLO relay.example.com")
		if got := k.Envelope(tc.sender, tc.rcpt); !visitor.Like(got, tc.want) {
			t.Errorf("%s: got %s, want %s", tc.name, got, tc.want)
		}
	}
	k := dialMX(t, s, stranger)
	k.Read()
	k.Say("EHLO relay.example.com")
	for _, tc := range []struct {
		on   bool
		want string
	}{{false, visitor.RcptOK}, {true, noDirectSend}} {
		s.SetRejectDirectSend(tc.on)
		k.Say("RSET")
		if got := k.Envelope("scan@contoso.com", "erp@contoso.com"); !visitor.Like(got, tc.want) {
			t.Errorf("switched to %v: %s, want %s", tc.on, got, tc.want)
		}
	}
}

func TestKnownRecipients(t *testing.T) {
	s := startMX(t, func(c *siteConfig) { c.KnownRecipients = []string{"info@contoso.com"} })
	s.SetMailbox("hr@contoso.com", func(m *directory.Mailbox) { m.Aliases = []string{"jobs@contoso.com"} })
	for _, tc := range []struct{ source, rcpt, want string }{
		{stranger, "INFO@contoso.com", visitor.RcptOK},
		{stranger, "ERP@contoso.com", visitor.RcptOK},
		{stranger, "sap@contoso.com", visitor.RcptOK},  // an alias
		{stranger, "jobs@contoso.com", visitor.RcptOK}, // a new one
		{stranger, "nobody@contoso.com", noSuchRcpt},
		{stranger, "info@contoso.de", noSuchRcpt},
		{stranger, "nobody@example.net", relayDenied},
		{atSite, "nobody@contoso.com", visitor.RcptOK},
	} {
		k := dialMX(t, s, tc.source)
		k.Read()
		k.Say("EHLO relay.example.com")
		if got := k.Envelope("a@contoso.com", tc.rcpt); !visitor.Like(got, tc.want) {
			t.Errorf("%s from %s: got %s, want %s", tc.rcpt, tc.source, got, tc.want)
		}
	}
}

// TestMXKnowsNoLimits: what a mailbox may not at the submission service, it may
// at the MX endpoint; and its counters there stay what they were.
func TestMXKnowsNoLimits(t *testing.T) {
	s := startMX(t, func(c *siteConfig) { c.Messages, c.Recipients, c.Connections, c.EnforceRate = 1, 1, 1, RateReject })
	var k [3]*visitor.Client
	for i := range k {
		k[i] = dialMX(t, s, atSite)
		k[i].Read()
		k[i].Say("EHLO relay.example.com")
		k[i].Begin("erp@contoso.com", 2)
	}
	for i := range k {
		k[i].Want("From: erp@contoso.com\r\nMessage-ID: <1@device>\r\n\r\n.", visitor.Queued)
	}
	if err := s.WaitAccepted(t.Context(), len(k)); err != nil {
		t.Error(err)
	}
	if got := login(t, s, "erp@contoso.com").Send("erp@contoso.com", "From: erp@contoso.com"+visitor.MessageID, 1); got != accepted {
		t.Errorf("submission after that: %s", got)
	}
	if u := s.Usage("erp@contoso.com"); u.Accepted != 1 || u.MaxInData != 1 || u.MaxSessions != 1 {
		t.Errorf("usage %+v", u)
	}
}

// TestMXCloseInterrupts: Close does not wait for the delay of a verdict, and the
// message then has none.
func TestMXCloseInterrupts(t *testing.T) {
	s := startMX(t, func(c *siteConfig) { c.VerdictMin = time.Hour })
	setFaults(t, s, Faults{Busy: 1})
	k := dialMX(t, s, stranger)
	k.Read()
	k.Say("EHLO relay.example.com")
	k.Envelope("a@contoso.com", "erp@contoso.com")
	k.Say("DATA")
	io.WriteString(k.Conn, "From: a@contoso.com\r\n\r\n.\r\n")
	for s.Faults().Busy > 0 { // until the verdict is due
		time.Sleep(time.Millisecond)
	}
	s.Close()
	if got := k.Read(); got != "EOF" {
		t.Errorf("got %s", got)
	}
	if all := s.Messages(); len(all) != 1 || !all[0].Dropped || all[0].Reply != "" {
		t.Errorf("captured %+v", all)
	}
}

func TestMXRefusesConnect(t *testing.T) {
	s := startMX(t, nil)
	setFaults(t, s, Faults{RefuseConnect: true})
	k := dialMX(t, s, stranger)
	if got := k.Read() + "|" + k.Read(); got != "421 4.3.2 Service not available|EOF" {
		t.Errorf("got %s", got)
	}
}

// TestSubmissionAsksForNoCertificate: it would be of no use there, and the
// message says at which endpoint it came.
func TestSubmissionAsksForNoCertificate(t *testing.T) {
	s := startMX(t, nil)
	k := login(t, s, "erp@contoso.com")
	k.Send("erp@contoso.com", "From: erp@contoso.com"+visitor.MessageID, 1)
	if m := s.Messages()[0]; m.Endpoint != "submission" || m.Connector != "" || m.Certificate != "" {
		t.Errorf("captured %+v", m)
	}
	if s.tls.ClientAuth != tls.NoClientCert {
		t.Error("the submission service asks for a certificate")
	}
}
