package status

import (
	"context"
	"errors"
	"fmt"
	"html"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/sendas/sendas/cmd/internal/config"
	"github.com/sendas/sendas/milter"
	"github.com/sendas/sendas/milter/queue"
	"github.com/sendas/sendas/policy"
	"github.com/sendas/sendas/token/lease"
	"github.com/sendas/sendas/token/lease/replies"
)

// ask fetches from a handler as a client that calls it by that name.
func ask(t *testing.T, h http.Handler, host, path string) *httptest.ResponseRecorder {
	t.Helper()
	r := httptest.NewRequest(http.MethodGet, "http://"+host+path, nil)
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	return w
}

// muxOf serves pages as ServeHTTP does.
func muxOf(pages map[string]http.Handler) http.Handler {
	mux := http.NewServeMux()
	for pattern, h := range pages {
		mux.Handle(pattern, h)
	}
	return mux
}

// fictitiousPages serves the pages of a view, as the token service and as the milter.
func fictitiousPages(addr string, v *view) (tokenService, milterService http.Handler) {
	look := func(context.Context) *view { return v }
	return muxOf(pages(&Site{Addr: addr, Version: "devel"}, func(context.Context) any { return v.token }, look, func(v *view) (string, string) { return "the milter", v.milterAt })),
		muxOf(pages(&Site{Addr: addr, Version: "devel"}, func(context.Context) any { return v.milter }, look, func(v *view) (string, string) { return "the token service", v.tokenAt }))
}

var tags = regexp.MustCompile(`(?s)<(style|script|svg)[^>]*>.*?</(style|script|svg)>|<[^>]*>`)

// words returns what a reader without style sheets reads.
func words(page string) string {
	return strings.Join(strings.Fields(html.UnescapeString(tags.ReplaceAllString(page, " "))), " ")
}

// TestPage: what the page says without JavaScript, and under which rules.
func TestPage(t *testing.T) {
	incoming, out := fictitious(), fictitious()
	tokenService, _ := fictitiousPages("127.0.0.1:9726", out)
	_, milterService := fictitiousPages("127.0.0.1:9725", incoming)
	wants := []string{"relay.contoso.com sendas for contoso.onmicrosoft.com",
		"9 things need you: mail is held up.",
		"No mail leaves through scan@contoso.com: no connection to Microsoft; 10 messages wait, the oldest came in 40 min ago Open the way in the firewall, outbound: port 587",
		"Type: sendas doctor postqueue -f",
		"newsletter@contoso.com rests until", "(in 80 min): its recipients of the day are used up Nothing now:",
		"17 in Postfix's queue, the oldest came in 40 min ago 240 accepted in 15 minutes",
		"scan@contoso.com 15 31 40 min ago route site 1 1 3 s ago", "connect 10: no connection to Microsoft service 2",
		"5 in all · 4 leases out · 14 look-ups waiting",
		"erp@contoso.com by relay-app messages 30 of 30/m 0 left recipients 8,412 of 10,000/d 1,588 left 2 of 2 connections, for now not 3 14 waiting, next in 3 s accepted (250), 2 s ago",
		"*@contoso.de by front-desk messages each sender's own", "front-desk device_code token none: the last one ended 2 h 0 min ago; mail waits in the queue",
		`Credential front-desk has no token (AADSTS700082), and the mail of its mailboxes waits It lay unused too long; sign in again with "sendas login front-desk".`,
		"certificate ends on 2026-12-03, in 12 days",
		`The new configuration is wrong, so the one loaded 26 h 0 min ago stays in force Mend what the check names. Type: sendas check`,
		"3 in all · 1 over the limit", "printers over its limit: deferred last message 2 s ago 912 accepted 12 deferred 3 rejected messages 20 of 20/m 0 left recipients 30 of 500/d 470 left",
		"sap last message 2 s ago 18,231 accepted no limits of its own", "peers that are no client", "hr@contoso.com messages 17 of 20/m 3 left",
		`10.2.0.77 no client, as mfp9@floor3.local rejected: `, `9 × last 40 s ago To let it in, below clients: - {name: device-10-2-0-77, networks: ["10.2.0.77"], from: erp@contoso.com}`,
		"Mail of client sap is refused (10.1.0.4, 3 messages, the last 3 min ago): <ceo@contoso.com> may not be used by sap", "Type: sendas explain --client 10.1.0.4 --from ceo@contoso.com",
		"Why, in the last 15 minutes", "12 the client is over its limit"}
	for _, tc := range []struct {
		name  string
		h     http.Handler
		wants []string
	}{{"token service", tokenService, wants}, {"milter", milterService, wants}} {
		w := ask(t, tc.h, "127.0.0.1", "/")
		if got := words(w.Body.String()); w.Code != 200 {
			t.Errorf("%s: %d %s", tc.name, w.Code, got)
		} else {
			for _, want := range tc.wants {
				if !strings.Contains(got, want) {
					t.Errorf("%s: no %q in\n%s", tc.name, want, got)
				}
			}
		}
		for key, want := range map[string]string{"X-Content-Type-Options": "nosniff", "X-Frame-Options": "DENY", "Cache-Control": "no-store", "Referrer-Policy": "no-referrer",
			"Content-Type": "text/html; charset=utf-8", "Content-Security-Policy": pagePolicy} {
			if got := w.Header().Get(key); got != want {
				t.Errorf("%s: %s: %q, want %q", tc.name, key, got, want)
			}
		}
	}
	if strings.Contains(pagePolicy, "unsafe") || !strings.Contains(pagePolicy, "default-src 'none'") || !strings.Contains(pagePolicy, "frame-ancestors 'none'") {
		t.Errorf("the policy: %s", pagePolicy)
	}
}

// wellView is a view of a site on a normal day: a mailbox has nearly used its minute, a stranger was
// turned away, a client was over its limits.
func wellView() *view {
	v := fictitious()
	none := 0
	v.milter.Config.OK, v.milter.Refused = true, v.milter.Refused[:2]
	v.milter.Queue = &queue.Status{Readable: true, ReadAt: v.milter.Time, Messages: &none}
	t := v.token
	t.Groups, t.Credentials, t.Mailboxes = nil, t.Credentials[:1], t.Mailboxes[:3]
	t.Credentials[0].Proof, t.Mailboxes[2].Denied = nil, nil
	t.Mailboxes[0].Messages.Used, t.Mailboxes[0].Messages.Left = 28, 2
	t.Mailboxes[0].Recipients.Used, t.Mailboxes[0].Recipients.Left = 2212, 7788
	return v
}

// TestPageOfANormalDay: nothing has a colour where nothing needs anybody, and that is said; what is
// not known is said to be so.
func TestPageOfANormalDay(t *testing.T) {
	coloured := regexp.MustCompile(`class="[^"]*\b(warm|hot)\b`)
	for _, tc := range []struct {
		name, want string
		change     func(*view)
		coloured   bool
	}{
		{"well", "All mail leaves.", func(*view) {}, false},
		{"the other service is off", "It is not known whether all mail leaves: not known is what comes in and what waits (milter.http is off).", func(v *view) { v.milterAt, v.milter = "", nil }, true},
		{"the other service does not tell", "It is not known whether all mail leaves: not known is what comes in and what waits (the milter does not tell).", func(v *view) { v.milter = nil }, true},
		{"the queue was not read yet", "It is not known whether all mail leaves: not known is what waits in Postfix's queue (it was not read yet).", func(v *view) { v.milter.Queue = nil }, true},
		{"the other service is down", "1 thing needs you: mail is held up. The milter is down at 127.0.0.1:9725: refused", func(v *view) { v.milter, v.milterErr = nil, errors.New("refused") }, true},
	} {
		v := wellView()
		tc.change(v)
		h, _ := fictitiousPages("127.0.0.1:9726", v)
		page := ask(t, h, "localhost", "/").Body.String()
		if got := words(page); !strings.Contains(got, tc.want) {
			t.Errorf("%s: no %q in %s", tc.name, tc.want, got)
		}
		if got := coloured.FindAllString(page, -1); (len(got) > 0) != tc.coloured {
			t.Errorf("%s: coloured is %q", tc.name, got)
		}
		if first, _, _ := strings.Cut(v.text(), "\n"); !strings.HasPrefix(tc.want, first) {
			t.Errorf("%s: the text begins with %s", tc.name, first)
		}
	}
}

// TestRefusedOnThePage: who is no client has the line that would let it in, and no other.
func TestRefusedOnThePage(t *testing.T) {
	for _, tc := range []struct {
		name string
		r    milter.Refusal
		from string
		want string
	}{
		{"an address", milter.Refusal{Addr: "10.2.0.77", Action: policy.Reject}, "scan@contoso.com", `- {name: device-10-2-0-77, networks: ["10.2.0.77"], from: scan@contoso.com}`},
		{"an address of IPv6", milter.Refusal{Addr: "fd00:2::9", Action: policy.Reject}, "", `- {name: device-fd00-2--9, networks: ["fd00:2::9"]}`},
		{"a login", milter.Refusal{Addr: "10.2.0.77", Login: "nagios", Action: policy.Reject}, "scan@contoso.com", `- {name: nagios, logins: [nagios], from: scan@contoso.com}`},
		{"a login that is none", milter.Refusal{Addr: "10.2.0.77", Login: "a, b]", Action: policy.Reject}, "", `- {name: device-10-2-0-77, networks: ["10.2.0.77"]}`},
		{"nobody", milter.Refusal{Action: policy.Reject}, "scan@contoso.com", ""},
		{"a client", milter.Refusal{Addr: "10.2.0.77", Client: "sap", Action: policy.Reject}, "scan@contoso.com", ""},
		{"somebody who may come again", milter.Refusal{Addr: "10.2.0.77", Action: policy.Defer}, "scan@contoso.com", ""},
	} {
		if got := refusedViews(&milter.Status{Refused: []milter.Refusal{tc.r}}, tc.from)[0].Line; got != tc.want {
			t.Errorf("%s: %q, want %q", tc.name, got, tc.want)
		} else if got != "" {
			checkLine(t, got)
		}
	}
}

// checkLine checks that a configuration takes a line below clients:.
func checkLine(t *testing.T, line string) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "sendas.yaml")
	text := strings.Replace(fmt.Sprintf(statusConfig, "https://login.microsoftonline.com", "off", "off"), "clients:\n", "clients:\n  "+line+"\n", 1)
	text = strings.Replace(text, "{address: erp@contoso.com,", "{address: scan@contoso.com, credential: relay-app}\n  - {address: erp@contoso.com,", 1)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := config.Load(path, config.SkipFiles); err != nil {
		t.Errorf("%s: %v", line, err)
	}
}

func TestShellWord(t *testing.T) {
	for in, want := range map[string]string{"a@b.example": "a@b.example", "": "''", "-x": "'-x'", "a b": "'a b'", "it's; rm": `'it'\''s; rm'`, "$(id)@b": "'$(id)@b'"} {
		if got := shellWord(in); got != want {
			t.Errorf("%q: %s, want %s", in, got, want)
		}
	}
}

func TestNumber(t *testing.T) {
	for in, want := range map[int]string{0: "0", 999: "999", 1000: "1,000", 10000: "10,000", 1234567: "1,234,567", -100: "-100", -1000: "-1,000"} {
		if got := number(in); got != want {
			t.Errorf("%d: %s, want %s", in, got, want)
		}
	}
}

// TestPageRows: of very many mailboxes the busiest are shown, and all to whoever asks.
func TestPageRows(t *testing.T) {
	h, _ := fictitiousPages("127.0.0.1:9726", fictitious().crowd(995))
	some, all := ask(t, h, "localhost", "/").Body.String(), ask(t, h, "localhost", "/?all=1").Body.String()
	count := func(s string) int { return strings.Count(s, `class="row mailbox`) }
	if count(some) != pageRows || count(all) != 1000 || !strings.Contains(some, "900 more mailboxes with less to do") || strings.Contains(all, "with less to do") {
		t.Errorf("%d and %d rows", count(some), count(all))
	}
	if n := count(some[:strings.Index(some, "<details>")]); n != openRows || !strings.Contains(some, "<summary>88 more that need nobody</summary>") {
		t.Errorf("%d rows are seen at once", n)
	}
	rows := some[strings.Index(some, `id="mailboxes"`):]
	if first := strings.Index(rows, "newsletter@"); first < 0 || first > strings.Index(rows, "box0") {
		t.Error("the paused mailbox is not among the first")
	}
}

// TestPageEscapes: nothing that Microsoft or anybody else says becomes markup.
func TestPageEscapes(t *testing.T) {
	bad := `"><script>alert(1)</script><img src=x onerror=alert(1)>`
	v := fictitious()
	for i := range v.token.Mailboxes {
		v.token.Mailboxes[i].Mailbox, v.token.Mailboxes[i].PauseReason = bad, bad
		v.token.Mailboxes[i].LastVerdict = &lease.Verdict{Class: replies.Class(bad), Code: bad, Meaning: bad}
	}
	v.token.Credentials[1].Name, v.token.Credentials[1].Refresh.Error.Text, v.token.LedgerError = bad, bad, &bad
	v.milter.Clients[0].Client, v.milter.Identities[0].Identity = bad, bad
	a, b := fictitiousPages("127.0.0.1:9726", v)
	for _, h := range []http.Handler{a, b} {
		w := ask(t, h, "localhost", "/")
		if s := w.Body.String(); strings.Contains(s, "<script>alert") || strings.Contains(s, "<img") || !strings.Contains(s, "&lt;script&gt;alert") {
			t.Errorf("%s", s)
		}
	}
}

// TestOtherURL: the other service is where the reader finds it, and not behind a proxy.
func TestOtherURL(t *testing.T) {
	for _, tc := range []struct{ own, other, asked, through, want string }{
		{"127.0.0.1:9726", "127.0.0.1:9725", "127.0.0.1:9726", "", "http://127.0.0.1:9725/"}, {"127.0.0.1:9726", "127.0.0.1:9725", "localhost:9726", "", "http://localhost:9725/"},
		{"127.0.0.1:9726", "10.0.0.9:9725", "localhost:9726", "", "http://10.0.0.9:9725/"}, {"0.0.0.0:9726", "0.0.0.0:9725", "[fd00::9]:9726", "", "http://[fd00::9]:9725/"},
		{"127.0.0.1:9726", "", "localhost", "", ""}, {"127.0.0.1:9726", "127.0.0.1:9725", "localhost", "10.9.9.9", ""},
	} {
		r := httptest.NewRequest(http.MethodGet, "/", nil)
		r.Host = tc.asked
		if tc.through != "" {
			r.Header.Set("X-Forwarded-For", tc.through)
		}
		if got := otherURL(tc.own, tc.other, r); got != tc.want {
			t.Errorf("%+v: %q", tc, got)
		}
	}
}
