package status

import (
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/chromedp"
)

// The halves of the record, as the services answer for them.
const (
	milterGone = `{"id": "4bXyz1", "time": "2026-11-21T13:00:00Z", "state": "gone", "message": {"client_address": "10.2.0.9", "client": "printers", "from": "root@mfp3", "identity": "scan@contoso.com",
		"mailbox": "scan@contoso.com", "reason": "client-from", "recipients": ["anna@example.org"], "recipient_count": 3, "message_id": "1@mfp3", "left_queue_at": "2026-11-21T13:01:00Z"}, "attempts": []}`
	milterRefused = `{"id": "m7", "time": "2026-11-21T12:00:00Z", "state": "refused", "message": {"client_address": "10.9.9.9", "from": "<script>@x", "reason": "no-client", "detail": "10.9.9.9 may not send mail here",
		"recipients": [], "recipient_count": 1, "message_id": ""}, "attempts": []}`
	tokenTook = `[{"id": "t3", "time": "2026-11-21T13:00:58Z", "state": "sent", "attempts": [{"time": "2026-11-21T13:00:58Z", "mailbox": "scan@contoso.com", "waited_seconds": 55, "waited_for": "messages",
		"reply": "250 2.0.0 OK <1@mfp3>"}]}]`
)

// recordHalf serves a half: what it answers to each path, 404 for the rest.
func recordHalf(t *testing.T, answers map[string]string) string {
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		path := r.URL.Path
		if q := r.URL.Query(); path == "/record" {
			path += " " + q.Get("to") + q.Get("since")
		}
		switch a, ok := answers[path]; {
		case ok && a == "wrong":
			http.Error(w, "{}", http.StatusBadRequest)
		case ok:
			fmt.Fprint(w, a)
		default:
			http.Error(w, "{}", http.StatusNotFound)
		}
	}))
	t.Cleanup(s.Close)
	return listensAt(s)
}

// searchSite serves the page of a site whose record may be searched.
func searchSite(t *testing.T, same string, on bool) http.Handler {
	v := wellView()
	v.milterAt = recordHalf(t, map[string]string{"/record anna@example.org": `{"messages": [` + milterGone + "," + milterRefused + `], "more": true}`, "/record bob@example.org": `{"messages": [], "more": false}`,
		"/record yesterday": "wrong", "/record/1@mfp3": same, "/record/4bXyz1": "[" + milterGone + "]"})
	v.tokenAt = recordHalf(t, map[string]string{"/record/1@mfp3": tokenTook, "/record/t3": tokenTook})
	return muxOf(pages(&Site{Addr: "127.0.0.1:9726", Version: "devel", Client: http.DefaultClient, Search: func() bool { return on }}, func(context.Context) any { return v.token },
		func(context.Context) *view { return v }, func(v *view) (string, string) { return "the milter", v.milterAt }))
}

// TestSearch: what is found on the page, of both halves, tied by what is certain alone.
func TestSearch(t *testing.T) {
	one, two := searchSite(t, "["+milterGone+"]", true), searchSite(t, "["+milterGone+","+milterGone+"]", true)
	for _, tc := range []struct {
		name, path string
		h          http.Handler
		has, not   string
	}{
		{"the form", "/?find", one, "Recipient Sender Client Id Since Find", "Nothing was found"},
		{"one that was sent", "/?find=1&to=+anna@example.org", one, "Find sent 13:00:00", "Find left the queue"},
		{"with its way", "/?find=1&to=anna@example.org", one, "root@mfp3 as scan@contoso.com to anna@example.org and 2 more printers, 4bXyz1", "Postfix's queue"},
		{"and its attempt", "/?find=1&to=anna@example.org", one, "waited 55 s for messages; attempt by scan@contoso.com: 250 2.0.0 OK <1@mfp3>", "<script>alert"},
		{"there is more", "/?find=1&to=anna@example.org", one, "There may be more", ""},
		{"two of one Message-ID", "/?find=1&to=anna@example.org", two, "Find left the queue 13:00:00", "attempt by"},
		{"a refused one", "/?find=1&to=anna@example.org", one, "came from 10.9.9.9: 10.9.9.9 may not send mail here", ""},
		{"by its id", "/?find=1&id=4bXyz1", one, "attempt by scan@contoso.com", "10.9.9.9"},
		{"an attempt alone", "/?find=1&id=t3", one, "attempt by scan@contoso.com", ""},
		{"nothing", "/?find=1&to=bob@example.org", one, "Nothing was found.", "attempt"},
		{"no such id", "/?find=1&id=x/../y", one, "Nothing was found.", "attempt"},
		{"no time", "/?find=1&since=yesterday", one, "a word was not understood: write a time as 2h", "attempt"},
		{"where it is off", "/?find=1&to=anna@example.org", searchSite(t, "[]", false), "All mail leaves.", "anna@example.org"},
	} {
		w := ask(t, tc.h, "localhost", tc.path)
		if got := words(w.Body.String()); w.Code != 200 || !strings.Contains(got, tc.has) || tc.not != "" && strings.Contains(got, tc.not) {
			t.Errorf("%s: %d, want %q and no %q in\n%s", tc.name, w.Code, tc.has, tc.not, got)
		}
	}
	if page := ask(t, one, "localhost", "/?find").Body.String(); strings.Contains(page, "http-equiv") || !strings.Contains(page, `data-every="0"`) {
		t.Error("the search refreshes itself while somebody types")
	}
	if on, off := words(ask(t, one, "localhost", "/").Body.String()), words(ask(t, searchSite(t, "[]", false), "localhost", "/").Body.String()); !strings.Contains(on, "Find a message") || strings.Contains(off, "Find a message") {
		t.Error("the link to the search is not where it may be used")
	}
}

// TestSearchInChromium: somebody looks for a message, with and without JavaScript.
func TestSearchInChromium(t *testing.T) {
	b := newBrowser(t)
	s := httptest.NewServer(searchSite(t, "["+milterGone+"]", true))
	defer s.Close()
	for _, without := range []bool{false, true} {
		call(b, emulation.SetScriptExecutionDisabled, emulation.SetScriptExecutionDisabledParams{Value: without})
		b.run(chromedp.Navigate(s.URL + "/?find"))
		eval[bool](b, `document.querySelector('input[name="to"]').value = "anna@example.org"; document.querySelector("button").click(); true`)
		b.until(`document.querySelectorAll(".found").length == 2`)
		if text := result(b, chromedp.Text("main")); !strings.Contains(text, "attempt by scan@contoso.com") {
			t.Errorf("without JavaScript %v: %s", without, text)
		}
		b.quiet(listensAt(s))
	}
	call(b, emulation.SetScriptExecutionDisabled, emulation.SetScriptExecutionDisabledParams{})
	b.run(chromedp.Navigate(s.URL + "/?find=1&to=anna@example.org"))
	b.legible("search")
}
