package doctor

import (
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/sendas/sendas/cmd/internal/finding"
	"github.com/sendas/sendas/cmd/internal/finding/findingtest"
	"github.com/sendas/sendas/token/entra"
)

// ofMany makes patients m1@contoso.com and so on.
func ofMany(n int) (list []patient) {
	for i := range n {
		name := fmt.Sprintf("m%d@contoso.com", i+1)
		list = append(list, patient{user: name, label: name, credential: "relay-app", identities: []string{name}})
	}
	return list
}

// manyDoctor is a doctor who goes to a server with all of them; dial may be replaced.
func manyDoctor(t *testing.T, s *scriptedServer, wrap func(net.Conn) net.Conn) *Walk {
	t.Helper()
	ca := newTestCA(t)
	s.tls = &tls.Config{Certificates: []tls.Certificate{ca.server(t, "smtp.office365.com", time.Now().Add(time.Hour))}}
	w := emptyWorld()
	w.dial = func(ctx context.Context, network, addr string) (net.Conn, error) {
		c, err := s.dial(ctx, network, addr)
		if wrap != nil && err == nil {
			c = wrap(c)
		}
		return c, err
	}
	d, _ := smtpDoctor(t, ca.file(t), w, Options{})
	return d
}

// counted is a connection that is counted while it is open.
type counted struct {
	net.Conn
	open *atomic.Int32
}

func (c *counted) Close() error { c.open.Add(-1); return c.Conn.Close() }

// TestManyMailboxes: 100 mailboxes take one session each, never more than three at a time and the
// first alone, and are reported in their order.
func TestManyMailboxes(t *testing.T) {
	const n = 100
	s := &scriptedServer{}
	var open, most, all atomic.Int32
	d := manyDoctor(t, s, func(c net.Conn) net.Conn {
		now := open.Add(1)
		for old := most.Load(); now > old && !most.CompareAndSwap(old, now); old = most.Load() {
		}
		all.Add(1)
		return &counted{c, &open}
	})
	d.checkMailboxes(t.Context(), ofMany(n))
	findingtest.WantGood(t, &d.Report)
	if all.Load() != n || most.Load() > atOnce || open.Load() != 0 {
		t.Errorf("%d sessions, %d at a time, %d still open; want %d, %d at most, none", all.Load(), most.Load(), open.Load(), n, atOnce)
	}
	var order []string
	for _, c := range d.Checks {
		if name, ok := strings.CutSuffix(strings.TrimPrefix(c.ID, "mailbox."), ".auth"); ok {
			order = append(order, name)
		}
	}
	for i, name := range order {
		if want := fmt.Sprintf("m%d@contoso.com", i+1); name != want || len(order) != n {
			t.Fatalf("report %d of %d is of %s, want %s", i, len(order), name, want)
		}
	}
	// What a session says does not grow with the mailboxes: EHLO, STARTTLS, EHLO, AUTH, its answer, MAIL, RCPT, RSET, QUIT.
	if got := len(s.said()); got != 9*n {
		t.Errorf("%d lines were said for %d mailboxes, want %d each", got, n, 9)
	}
}

// TestToldOnce: what is refused to all of them is told once, and asked of a few.
func TestToldOnce(t *testing.T) {
	const off = "535 5.7.139 Authentication unsuccessful, SmtpClientAuthentication is disabled for the Tenant. Visit https://aka.ms/smtp_auth_disabled [AM0PR06CA%04d.eurprd06.prod.outlook.com %v]"
	for _, n := range []int{2, 3, 12, 100} {
		s := &scriptedServer{}
		var sessions atomic.Int32
		d := manyDoctor(t, s, func(c net.Conn) net.Conn {
			s.mu.Lock()
			s.replies = map[string]string{"RESPONSE": fmt.Sprintf(off, sessions.Add(1), time.Now().UnixNano())} // each reply has another host and time
			s.mu.Unlock()
			return c
		})
		d.checkMailboxes(t.Context(), ofMany(n))
		failed := 0
		for _, c := range d.Checks {
			if c.Status == finding.Fail {
				failed++
			}
		}
		if failed != 1 {
			t.Errorf("%d mailboxes: %d failures, want one", n, failed)
		}
		d.wantCheck(t, "mailbox.m1@contoso.com.auth", finding.Fail, "5.7.139", "whole tenant", fmt.Sprintf("; the same for %d more: ", min(n, enough+atOnce-1)-1))
		d.wantCheck(t, fmt.Sprintf("mailbox.m%d@contoso.com.auth", n), finding.Skip)
		if got := int(sessions.Load()); got > enough+atOnce-1 {
			t.Errorf("%d sessions for %d mailboxes that are all refused, want %d at most", got, n, enough+atOnce-1)
		}
	}
}

// TestToldApart: what is wrong with one mailbox alone is told of that one, and the others are asked.
func TestToldApart(t *testing.T) {
	s := &scriptedServer{replies: map[string]string{"MAIL": "250 2.1.0 Sender OK"}}
	d := manyDoctor(t, s, nil)
	list := ofMany(9)
	list[4].credential = "other"
	d.tokens["other"] = &entra.Token{Access: entra.Secret(theToken), Expires: time.Now().Add(-time.Hour)}
	list[6].identities = []string{"m7@contoso.com", "no\"body@contoso.com"}
	d.checkMailboxes(t.Context(), list)
	for i := range list {
		d.wantCheck(t, fmt.Sprintf("mailbox.m%d@contoso.com.auth", i+1), finding.OK)
	}
	delete(d.tokens, "other")
	d.Checks = nil
	d.checkMailboxes(t.Context(), list)
	d.wantCheck(t, "mailbox.m5@contoso.com.auth", finding.Skip, "no token of credential other")
	d.wantCheck(t, "mailbox.m6@contoso.com.auth", finding.OK)
}

// TestRefusalExplained: a refused AUTH is explained by what the token says, with the real ids; and
// where the token itself is wrong, that was said already.
func TestRefusalExplained(t *testing.T) {
	const (
		app  = `"aud":"https://outlook.office365.com","appid":"5f2c0d3e-0000-4000-8000-000000000001","oid":"0b1ec700-0000-4000-8000-000000000002","idtyp":"app"`
		user = `"aud":"https://outlook.office.com","appid":"5f2c0d3e-0000-4000-8000-000000000001","oid":"9c1d0b7e-0000-4000-8000-0000000000bb","scp":"SMTP.Send"`
		text = "535 5.7.3 Authentication unsuccessful [AM0PR06CA0126.eurprd06.prod.outlook.com 2024-02-14T14:50:26.590Z 08DC2D372B4C3DED]"
	)
	for _, tc := range []struct {
		name, claims, reply string
		delegated           string // the credential's user
		status              finding.Status
		words               []string
	}{
		{"classic", app + `,"roles":["SMTP.SendAsApp"]`, text, "", finding.Fail, []string{"New-ServicePrincipal -AppId 5f2c0d3e-0000-4000-8000-000000000001 -ObjectId 0b1ec700-0000-4000-8000-000000000002",
			"Add-MailboxPermission m1@contoso.com -User 0b1ec700-0000-4000-8000-000000000002 -AccessRights FullAccess", "two hours", "Get-Recipient m1@contoso.com"}},
		{"App RBAC", app, text, "", finding.Fail, []string{"Test-ServicePrincipalAuthorization -Identity 5f2c0d3e-0000-4000-8000-000000000001 -Resource m1@contoso.com", "App RBAC", "scope"}},
		{"the user itself", user + `,"upn":"M1@contoso.com"`, text, "m1@contoso.com", finding.Fail, []string{"Set-CASMailbox m1@contoso.com -SmtpClientAuthenticationDisabled $false", "sign-in is blocked"}},
		{"another user", user + `,"upn":"relay@contoso.com"`, text, "relay@contoso.com", finding.Fail, []string{"Add-MailboxPermission m1@contoso.com -User relay@contoso.com -AccessRights FullAccess"}},
		{"another audience", strings.Replace(app, "outlook.office365", "graph.microsoft", 1), text, "", finding.Skip, []string{"comes of the token's audience, as said above"}},
		{"another app", strings.Replace(app, `"appid":"5`, `"appid":"6`, 1), text, "", finding.Skip, []string{"comes of the token's app"}},
		{"a user's without permission", strings.Replace(user, "SMTP.Send", "User.Read", 1) + `,"upn":"m1@contoso.com"`, text, "m1@contoso.com", finding.Skip, []string{"comes of the token's permission"}},
		{"switched off", app, "535 5.7.139 Authentication unsuccessful, SmtpClientAuthentication is disabled for the Mailbox. [host]", "", finding.Fail, []string{"Set-CASMailbox m1@contoso.com"}},
	} {
		s := &scriptedServer{replies: map[string]string{"RESPONSE": tc.reply}}
		d := manyDoctor(t, s, nil)
		if tc.delegated != "" {
			cc := d.config.Credentials["relay-app"]
			cc.Flow, cc.User = "device_code", tc.delegated
			d.config.Credentials["relay-app"] = cc
		}
		d.tokens["relay-app"] = &entra.Token{Access: entra.Secret(tokenOf("{" + tc.claims + "}")), Expires: time.Now().Add(time.Hour)}
		d.checkMailboxes(t.Context(), ofMany(1))
		findingtest.WantWhole(t, &d.Report)
		t.Run(tc.name, func(t *testing.T) { d.wantCheck(t, "mailbox.m1@contoso.com.auth", tc.status, tc.words...) })
	}
}
