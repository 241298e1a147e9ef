package status

import (
	"context"
	"html"
	"net/http"
	"net/http/httptest"
	"regexp"
	"strings"
	"testing"

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

// fictitiousPages serves the pages of a view.
func fictitiousPages(addr string, v *view) (tokenService, milterService http.Handler) {
	return muxOf(pages(&Site{Addr: addr, Version: "devel"}, func(context.Context) any { return v.token }, func(_ context.Context, r *http.Request) *pageView {
			p := tokenPage(v.token.Status, v.token.Config, wantsAll(r))
			p.OtherName, p.OtherURL = "milter", otherURL(addr, v.milterAt, r.Host)
			return p
		})), muxOf(pages(&Site{Addr: addr, Version: "devel"}, func(context.Context) any { return v.milter }, func(_ context.Context, r *http.Request) *pageView {
			p := milterPage(v.milter.Status, v.milter.Config, wantsAll(r))
			p.OtherName, p.OtherURL = "token service", otherURL(addr, v.tokenAt, r.Host)
			return p
		}))
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
	for _, tc := range []struct {
		name  string
		h     http.Handler
		wants []string
	}{
		{"token service", tokenService, []string{"sendas token service", "up for 26 h 0 min", "5 in all · 4 leases out · 14 look-ups waiting",
			"erp@contoso.com by relay-app messages 30 of 30/m 0 left recipients 8412 of 10000/d 1588 left 2 of 2 connections, for now not 3 14 waiting, next in 3 s accepted (250), 2 s ago",
			"newsletter@contoso.com", "(in 80 min): its recipients of the day are used up", "quota: the recipients of 24 hours are used up",
			"*@contoso.de by front-desk messages each sender's own", `front-desk device_code token none: the last one ended 2 h 0 min ago; mail waits in the queue`,
			`hint it lay unused too long; sign in again with "sendas login front-desk"`, "certificate ends on 2026-12-03, in 12 days"}},
		{"milter", milterService, []string{"sendas milter", `the new configuration is wrong, so the one loaded 26 h 0 min ago stays in force; "sendas check"`, "3 in all · 1 over the limit",
			"printers over its limit: deferred last message 2 s ago 912 accepted 12 deferred 3 rejected messages 20 of 20/m 0 left recipients 30 of 500/d 470 left",
			"sap last message 2 s ago 18231 accepted no limits of its own", "peers that are no client", "hr@contoso.com messages 17 of 20/m 3 left",
			"The last 15 minutes accepted 240", "client-limit 12: the client is over its limit"}},
	} {
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

// TestPageRows: of very many mailboxes the busiest are shown, and all to whoever asks.
func TestPageRows(t *testing.T) {
	h, _ := fictitiousPages("127.0.0.1:9726", fictitious().crowd(995))
	some, all := ask(t, h, "localhost", "/").Body.String(), ask(t, h, "localhost", "/?all=1").Body.String()
	count := func(s string) int { return strings.Count(s, `class="row mailbox"`) }
	if count(some) != pageRows || count(all) != 1000 || !strings.Contains(some, "900 more mailboxes with less to do") || strings.Contains(all, "with less to do") {
		t.Errorf("%d and %d rows", count(some), count(all))
	}
	if first := strings.Index(some, "newsletter@"); first < 0 || first > strings.Index(some, "erp@") {
		t.Error("the paused mailbox is not first")
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

func TestOtherURL(t *testing.T) {
	for _, tc := range []struct{ own, other, asked, want string }{
		{"127.0.0.1:9726", "127.0.0.1:9725", "127.0.0.1:9726", "http://127.0.0.1:9725/"}, {"127.0.0.1:9726", "127.0.0.1:9725", "localhost:9726", "http://localhost:9725/"},
		{"127.0.0.1:9726", "10.0.0.9:9725", "localhost:9726", "http://10.0.0.9:9725/"}, {"0.0.0.0:9726", "0.0.0.0:9725", "[fd00::9]:9726", "http://[fd00::9]:9725/"},
		{"127.0.0.1:9726", "", "localhost", ""},
	} {
		if got := otherURL(tc.own, tc.other, tc.asked); got != tc.want {
			t.Errorf("%+v: %q", tc, got)
		}
	}
}
