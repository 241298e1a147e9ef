package lab

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/emersion/go-sasl"

	"github.com/sendas/sendas/contrib/exosim"
	"github.com/sendas/sendas/contrib/exosim/directory"
	"github.com/sendas/sendas/internal/xoauth2"
)

func TestStuff(t *testing.T) {
	tests := []struct{ in, want string }{
		{"", ".\r\n"},
		{"a\r\n", "a\r\n.\r\n"},
		{"a", "a\r\n.\r\n"},
		{".a\r\n..\r\n", "..a\r\n...\r\n.\r\n"},
		{"a.\r\n.\r\nb\r\n", "a.\r\n..\r\nb\r\n.\r\n"},
		{"a\n.b\r\n", "a\n..b\r\n.\r\n"}, // Postfix takes LF for a line's end
		{"a\n", "a\n\r\n.\r\n"},
		{"From: \xe4 <x\r\n\r\n\x00\xff\r\n", "From: \xe4 <x\r\n\r\n\x00\xff\r\n.\r\n"},
	}
	for _, tc := range tests {
		if got := string(stuff([]byte(tc.in))); got != tc.want {
			t.Errorf("stuff(%q) = %q, want %q", tc.in, got, tc.want)
		}
	}
}

func TestXClientCommand(t *testing.T) {
	tests := []struct {
		in   XClient
		want string
	}{
		{XClient{Addr: "10.2.0.9", Name: "mfp3.local", Login: "nagios"}, "XCLIENT ADDR=10.2.0.9 NAME=mfp3.local LOGIN=nagios"},
		{XClient{Addr: "fd00:2::9", Name: "[UNAVAILABLE]"}, "XCLIENT ADDR=IPV6:fd00:2::9 NAME=[UNAVAILABLE]"},
		{XClient{Login: "a b+c=d\xc3"}, "XCLIENT LOGIN=a+20b+2Bc+3Dd+C3"},
		{XClient{Helo: "mfp"}, "XCLIENT HELO=mfp"},
	}
	for _, tc := range tests {
		if got := tc.in.command(); got != tc.want {
			t.Errorf("%+v: got %q, want %q", tc.in, got, tc.want)
		}
	}
}

func TestReadReply(t *testing.T) {
	tests := []struct{ in, want string }{
		{"250 2.1.0 Sender OK\r\n", "MAIL: 250 2.1.0 Sender OK"},
		{"250 ok\r\n", "MAIL: 250 ok"},
		{"250\r\n", "MAIL: 250"},
		{"250 2.0.0\r\n", "MAIL: 250 2.0.0"},
		{"250-a\r\n250-b\r\n250 c\r\n", "MAIL: 250 a / b / c"},
		{"550-5.7.1 a\r\n550 5.7.1 b\r\n", "MAIL: 550 5.7.1 a / b"},
		{"220 1.2.3.4 is here\r\n", "MAIL: 220 1.2.3.4 is here"}, // not an enhanced code
		{"HTTP/1.1 400 Bad Request\r\n", `"HTTP/1.1 400 Bad Request\r\n" is no SMTP reply`},
		{"250 " + strings.Repeat("x", maxReplyLine) + "\r\n", "bufio: buffer full"},
		{strings.Repeat("250-x\r\n", maxReplyLines+1), "the reply has more than 200 lines"},
		{"250-a\r\n", "EOF"},
	}
	for _, tc := range tests {
		s := session{r: bufio.NewReaderSize(strings.NewReader(tc.in), maxReplyLine)}
		r, err := s.readReply()
		r.Stage = StageMail
		got := r.String()
		if err != nil {
			got = err.Error()
		}
		if got != tc.want {
			t.Errorf("readReply(%.40q) = %q, want %q", tc.in, got, tc.want)
		}
	}
}

// script is a server's side of one session: it says the first line, then one
// for each line that it gets. After a 354 it reads up to the final dot first.
func script(t *testing.T, says ...string) (addr string, heard func() []string) {
	t.Helper()
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	var lines []string
	done := make(chan struct{})
	go func() {
		defer close(done)
		conn, err := l.Accept()
		if err != nil {
			return
		}
		defer conn.Close()
		r := bufio.NewReader(conn)
		for i, say := range says {
			io.WriteString(conn, say+"\r\n")
			for {
				line, err := r.ReadString('\n')
				if err != nil {
					return
				}
				lines = append(lines, line)
				if !strings.HasPrefix(says[i], "354") || line == ".\r\n" {
					break
				}
			}
		}
	}()
	return l.Addr().String(), func() []string { <-done; return lines }
}

func TestSend(t *testing.T) {
	addr, heard := script(t, "220 hi", "250 hello", "220 hi again", "250 hello", "250 2.1.0 ok",
		"250 2.1.5 ok", "550 5.7.1 no", "354 go", "250 2.0.0 Ok: queued as 4C1F2A")
	r, err := Send(t.Context(), addr, Mail{
		XClient: XClient{Addr: "10.2.0.9"},
		Helo:    "mfp3",
		To:      []string{"a@x.example", "b@x.example"},
		Data:    []byte("Subject: \xe4\r\n\r\n.dot\r\n"),
	})
	if err != nil {
		t.Fatal(err)
	}
	if !r.Accepted() || r.QueueID() != "4C1F2A" {
		t.Errorf("got %v, queue id %q; want it accepted as 4C1F2A", r.Verdict(), r.QueueID())
	}
	if got := r.Refused(); len(got) != 1 || got[0].String() != "RCPT: 550 5.7.1 no" {
		t.Errorf("refused: got %v, want the one recipient", got)
	}
	want := []string{"EHLO mfp3\r\n", "XCLIENT ADDR=10.2.0.9\r\n", "EHLO mfp3\r\n", "MAIL FROM:<>\r\n",
		"RCPT TO:<a@x.example>\r\n", "RCPT TO:<b@x.example>\r\n", "DATA\r\n",
		"Subject: \xe4\r\n", "\r\n", "..dot\r\n", ".\r\n", "QUIT\r\n"}
	if got := heard(); !slices.Equal(got, want) {
		t.Errorf("the server heard %q, want %q", got, want)
	}
}

func TestSendRefused(t *testing.T) {
	tests := []struct {
		says []string
		want string
	}{
		{[]string{"554 5.7.1 go away"}, "CONNECT: 554 5.7.1 go away"},
		{[]string{"220 hi", "501 what"}, "EHLO: 501 what"},
		{[]string{"220 hi", "250 hello", "550 5.7.0 no"}, "XCLIENT: 550 5.7.0 no"},
		{[]string{"220 hi", "250 hello", "220 hi", "250 hello", "451 4.3.0 later"}, "MAIL: 451 4.3.0 later"},
		{[]string{"220 hi", "250 hello", "220 hi", "250 hello", "250 ok", "550 5.7.1 no"}, "RCPT: 550 5.7.1 no"},
		{[]string{"220 hi", "250 hello", "220 hi", "250 hello", "250 ok", "250 ok", "554 no"}, "DATA: 554 no"},
		{[]string{"220 hi", "250 hello", "220 hi", "250 hello", "250 ok", "250 ok", "354 go", "554 no"}, "END: 554 no"},
	}
	for _, tc := range tests {
		addr, heard := script(t, tc.says...)
		r, err := Send(t.Context(), addr, Mail{XClient: XClient{Login: "x"}, To: []string{"a@x.example"}})
		if err != nil || r.Accepted() || r.QueueID() != "" || r.Verdict().String() != tc.want {
			t.Errorf("got %v, %v, accepted %v; want %s", r.Verdict(), err, r.Accepted(), tc.want)
		}
		if lines := heard(); lines[len(lines)-1] != "QUIT\r\n" {
			t.Errorf("%s: the last line is %q, want QUIT", tc.want, lines[len(lines)-1])
		}
	}
}

func TestSendBreaks(t *testing.T) {
	addr, _ := script(t) // closes at once
	if r, err := Send(t.Context(), addr, Mail{}); err == nil {
		t.Errorf("a closed connection: got %v, want an error", r)
	}

	// A server that says nothing.
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if _, err := Send(ctx, l.Addr().String(), Mail{}); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a silent server: got %v, want %v", err, context.DeadlineExceeded)
	}
}

// TestSendSubmits: a message of a mailbox, as a program that knows OAuth sends it to Exchange
// Online.
func TestSendSubmits(t *testing.T) {
	app := directory.App{ClientID: clientID, ObjectID: objectID, Secret: "x", Mailboxes: []string{"erp@contoso.com"}}
	s, err := exosim.Start(exosim.Config{DirectoryConfig: exosim.DirectoryConfig{Apps: []directory.App{app}, Mailboxes: []directory.Mailbox{{Address: "erp@contoso.com"}}},
		SMTPConfig: exosim.SMTPConfig{Challenge: true}})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(s.CA())
	good := s.Issue(clientID, directory.Exchange, time.Hour)
	for _, tc := range []struct {
		name string
		auth sasl.Client
		want string // the beginning of the verdict
	}{
		{"token", xoauth2.NewClient("erp@contoso.com", good), "END: 250 2.0.0 OK"},
		{"token of another mailbox", xoauth2.NewClient("hr@contoso.com", good), "AUTH: 535 5.7.3 Authentication unsuccessful"}, // after a challenge
		{"password", sasl.NewLoginClient("erp@contoso.com", "secret"), "AUTH: 535 5.7.139 Authentication unsuccessful, basic authentication is disabled."},
		{"unknown mechanism", sasl.NewPlainClient("", "erp@contoso.com", "secret"), "AUTH: 504 5.7.4 Unrecognized authentication type"},
		{"nothing", nil, "MAIL: 530 5.7.57 Client not authenticated to send mail."},
	} {
		m := Mail{TLS: &tls.Config{RootCAs: roots, ServerName: "smtp.office365.com"}, Auth: tc.auth, From: "erp@contoso.com", To: []string{"a@fabrikam.com"},
			Data: []byte("From: erp@contoso.com\r\n\r\nbody\r\n")}
		r, err := Send(t.Context(), s.SubmissionAddr(), m)
		if got := r.Verdict().String(); err != nil || !strings.HasPrefix(got, tc.want) {
			t.Errorf("%s: %v, %s, want %s", tc.name, err, got, tc.want)
		}
	}
	if all := s.Messages(); len(all) != 1 || all[0].Mailbox != "erp@contoso.com" {
		t.Errorf("captured %+v", all)
	}
}
