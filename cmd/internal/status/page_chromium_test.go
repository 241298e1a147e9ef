package status

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/chromedp/cdproto/cdp"
	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/cdproto/log"
	"github.com/chromedp/cdproto/network"
	"github.com/chromedp/cdproto/runtime"
	"github.com/chromedp/chromedp"
)

// screenshotsVariable names a folder that TestPageInChromium leaves pictures in.
const screenshotsVariable = "SENDAS_SCREENSHOTS"

// browser is a tab of Chromium that notes what a page must not do.
type browser struct {
	context.Context
	t *testing.T

	mu      sync.Mutex // guards what follows
	hosts   []string   // that were asked for anything
	trouble []string   // errors on the console
}

// newBrowser starts Chromium. It cannot make its own sandbox as root, and shows nothing but this
// test's pages.
func newBrowser(t *testing.T) *browser {
	t.Helper()
	o := append(slices.Clone(chromedp.DefaultExecAllocatorOptions[:]), chromedp.ExecPath("chromium"), chromedp.NoSandbox, chromedp.UserDataDir(t.TempDir()),
		chromedp.WSURLReadTimeout(3*time.Minute))
	ctx, cancel := context.WithTimeout(t.Context(), 8*time.Minute)
	t.Cleanup(cancel)
	ctx, cancel = chromedp.NewExecAllocator(ctx, o...)
	t.Cleanup(cancel)
	ctx, cancel = chromedp.NewContext(ctx)
	t.Cleanup(cancel)
	b := &browser{Context: ctx, t: t}
	b.run(chromedp.Navigate("about:blank"))
	if err := chromedp.Listen(ctx, b.event); err != nil {
		t.Fatal(err)
	}
	for _, c := range []cdp.Command[cdp.Empty, cdp.Empty]{log.Enable, runtime.Enable} {
		call(b, c, cdp.Empty{})
	}
	call(b, network.Enable, network.EnableParams{})
	return b
}

func (b *browser) event(e any) {
	b.mu.Lock()
	defer b.mu.Unlock()
	switch e := e.(type) {
	case *network.EventRequestWillBeSent:
		if u, err := url.Parse(e.Request.URL); err == nil && u.Scheme != "data" {
			b.hosts = append(b.hosts, u.Scheme+"://"+u.Host)
		}
	case *log.EventEntryAdded:
		if e.Entry.Level == log.EntryLevelError || e.Entry.Level == log.EntryLevelWarning {
			b.trouble = append(b.trouble, e.Entry.Text)
		}
	case *runtime.EventExceptionThrown:
		b.trouble = append(b.trouble, "exception: "+e.ExceptionDetails.Text)
	case *runtime.EventConsoleAPICalled:
		b.trouble = append(b.trouble, fmt.Sprint("console: ", e.Type))
	}
}

func (b *browser) run(steps ...chromedp.Action[chromedp.Void]) {
	b.t.Helper()
	if err := chromedp.Do(b, steps...); err != nil {
		b.t.Fatal(err)
	}
}

// result returns what an action does.
func result[T any](b *browser, a chromedp.Action[T]) T {
	b.t.Helper()
	v, err := chromedp.Run(b, a)
	if err != nil {
		b.t.Fatal(err)
	}
	return v
}

// call gives a command of the protocol that has no answer.
func call[P any](b *browser, c cdp.Command[P, cdp.Empty], params P) {
	b.t.Helper()
	if _, err := chromedp.Call(b, c, params); err != nil {
		b.t.Fatal(err)
	}
}

// eval returns the value of an expression.
func eval[T any](b *browser, expression string) T {
	b.t.Helper()
	return result(b, chromedp.Evaluate[T](expression))
}

// until waits until an expression is true. While a page loads there is nothing to ask, which is no
// error.
func (b *browser) until(expression string) {
	b.t.Helper()
	for end := time.Now().Add(3 * time.Minute); ; time.Sleep(20 * time.Millisecond) {
		ok, err := chromedp.Run(b, chromedp.Evaluate[bool](expression))
		if ok {
			return
		}
		if time.Now().After(end) {
			b.t.Fatalf("not true: %s (%v); the page: %s", expression, err, eval[string](b, seen))
		}
	}
}

// quiet checks that the page has asked nobody but one host, and has complained of nothing.
func (b *browser) quiet(host string) {
	b.t.Helper()
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, h := range b.hosts {
		if h != "http://"+host {
			b.t.Errorf("the page asked %s", h)
		}
	}
	if len(b.hosts) == 0 {
		b.t.Error("no request was seen")
	}
	for _, s := range b.trouble {
		b.t.Errorf("on the console: %s", s)
	}
	b.hosts, b.trouble = nil, nil
}

// look sets window and colours, as a phone or a desk has them.
func (b *browser) look(scheme string, width int64) {
	b.t.Helper()
	call(b, emulation.SetEmulatedMedia, emulation.SetEmulatedMediaParams{
		Features: []*emulation.MediaFeature{{Name: "prefers-color-scheme", Value: scheme}, {Name: "prefers-reduced-motion", Value: "reduce"}}})
	call(b, emulation.SetDeviceMetricsOverride, emulation.SetDeviceMetricsOverrideParams{Width: width, Height: 900, DeviceScaleFactor: 1, Mobile: width < 500})
}

// picture keeps what the page looks like, if somebody wants to see it.
func (b *browser) picture(name string) {
	b.t.Helper()
	dir := os.Getenv(screenshotsVariable)
	if dir == "" {
		return
	}
	png := result(b, chromedp.FullScreenshot(100))
	if err := os.WriteFile(filepath.Join(dir, name+".png"), png, 0o644); err != nil {
		b.t.Error(err)
	}
}

// faint returns the texts that are hard to read on what is behind them: below a contrast of 4.5
// (WCAG 2.2, success criterion 1.4.3).
const faint = `(() => {
  const parse = (c) => { const m = c.match(/[\d.]+/g).map(Number); return m.length > 3 ? m : [...m, 1]; };
  const light = (c) => { const l = c.slice(0, 3).map((v) => { v /= 255; return v <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4; }); return .2126 * l[0] + .7152 * l[1] + .0722 * l[2]; };
  const behind = (e) => { for (; e; e = e.parentElement) { const c = parse(getComputedStyle(e).backgroundColor); if (c[3] === 1) return c; } return [255, 255, 255, 1]; };
  const bad = [], seen = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  let n = 0;
  while (seen.nextNode()) {
    const e = seen.currentNode.parentElement;
    if (!seen.currentNode.data.trim() || ["SCRIPT", "STYLE", "NOSCRIPT"].includes(e.nodeName) || !e.checkVisibility()) continue;
    n++;
    const a = light(parse(getComputedStyle(e).color)), b = light(behind(e)), ratio = (Math.max(a, b) + .05) / (Math.min(a, b) + .05);
    if (ratio < 4.5 || getComputedStyle(e).opacity !== "1") bad.push(ratio.toFixed(2) + " " + seen.currentNode.data.trim().slice(0, 40));
  }
  return n < 20 ? ["only " + n + " texts were found"] : bad;
})()`

// seen is what can be read on the page.
const seen = `document.body.innerText.replace(/\s+/g, " ")`

// crooked returns the bars whose width is not what their figures say.
const crooked = `[...document.querySelectorAll("svg.bar")].filter((s) => {
  const [used, most] = s.getAttribute("aria-label").replaceAll(",", "").match(/\d+/g).map(Number);
  const drawn = s.firstElementChild.getBoundingClientRect().width / s.getBoundingClientRect().width;
  return s.getBoundingClientRect().width < 40 || Math.abs(drawn - Math.min(1, used / most)) > .01;
}).map((s) => s.getAttribute("aria-label"))`

// legible checks the page in both colour schemes, from a small phone to a desk.
func (b *browser) legible(name string) {
	b.t.Helper()
	for _, scheme := range []string{"light", "dark"} {
		for _, width := range []int64{320, 800, 1280} {
			b.look(scheme, width)
			at := fmt.Sprintf("%s-%s-%d", name, scheme, width)
			if wide := eval[int64](b, "document.documentElement.scrollWidth"); wide > width {
				b.t.Errorf("%s: the page is %d wide", at, wide)
			}
			if bad := eval[[]string](b, faint); len(bad) > 0 {
				b.t.Errorf("%s: too faint: %q", at, bad)
			}
			if bad := eval[[]string](b, crooked); len(bad) > 0 {
				b.t.Errorf("%s: bars of a wrong width: %q", at, bad)
			}
			b.picture(at)
		}
	}
}

// show is a service whose status a test changes.
type show struct {
	mu      sync.Mutex // guards what follows
	view    *view
	rebuilt bool // by another version of the program
}

func (s *show) change(f func(*view)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	f(s.view)
}

func (s *show) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	h, _ := fictitiousPages("127.0.0.1:9726", s.view)
	if !s.rebuilt {
		h.ServeHTTP(w, r)
		return
	}
	rec := httptest.NewRecorder()
	h.ServeHTTP(rec, r)
	fmt.Fprint(w, strings.Replace(rec.Body.String(), "data-build=\"", "data-build=\"new-", 1))
}

// TestPageInChromium: the pages as people see them.
func TestPageInChromium(t *testing.T) {
	b := newBrowser(t)
	_, h := fictitiousPages("127.0.0.1:9725", fictitious())
	incoming := httptest.NewServer(h)
	defer incoming.Close()
	b.run(chromedp.Navigate(incoming.URL))
	b.legible("milter")
	if got := eval[string](b, `[...document.querySelectorAll("footer a")].pop().href`); got != "http://127.0.0.1:9726/metrics" {
		t.Errorf("the other service: %s", got)
	}
	b.quiet(listensAt(incoming))

	service := &show{view: fictitious()}
	site := httptest.NewServer(service)
	defer site.Close()
	host := listensAt(site)
	b.run(chromedp.Navigate(site.URL))
	if got := eval[string](b, "document.title"); got != "(9) relay.contoso.com – contoso.onmicrosoft.com – sendas" {
		t.Errorf("title %q", got)
	}
	for _, want := range []string{"9 things need you: mail is held up.", "messages 30 of 30/m 0 left", "14 waiting, next in 3 s", "rests until ", "its recipients of the day are used up", "each sender's own", "sendas login front-desk"} {
		if got := eval[string](b, seen); !strings.Contains(got, want) {
			t.Errorf("no %q in %s", want, got)
		}
	}
	b.legible("token")

	// What changes is shown without loading the page again.
	eval[bool](b, "window.kept = true")
	service.change(func(v *view) {
		v.token.Mailboxes[0].Messages.Used, v.token.Mailboxes[0].Messages.Left = 12, 18
		v.token.Mailboxes = append(v.token.Mailboxes[:2:2], v.token.Mailboxes[3:]...)
		v.token.Credentials[1].Token.Live, v.token.Credentials[1].Refresh.Error = true, nil
	})
	b.until(seen + `.includes("messages 12 of 30/m 18 left") && !` + seen + `.includes("hr@contoso.com by")`)
	if bad := eval[[]string](b, crooked); len(bad) > 0 || eval[string](b, "document.title") != "(7) relay.contoso.com – contoso.onmicrosoft.com – sendas" || !eval[bool](b, "window.kept") {
		t.Errorf("after a change: bars %q, title %q", bad, eval[string](b, "document.title"))
	}
	b.quiet(host)
	b.away(t, site, service)

	b.run(chromedp.Navigate(incoming.URL))
	// Without JavaScript it is all there; and nothing that gets into the page is run.
	eval[chromedp.Void](b, `{ const s = document.createElement("script"); s.textContent = "window.foreign = true"; document.body.append(s); }`)
	if eval[bool](b, "!!window.foreign") {
		t.Error("a script ran that is not the page's")
	}
	call(b, emulation.SetScriptExecutionDisabled, emulation.SetScriptExecutionDisabledParams{Value: true})
	b.run(chromedp.Navigate(incoming.URL))
	if text := result(b, chromedp.Text("main")); !strings.Contains(text, "over its limit: deferred") {
		t.Errorf("without JavaScript: %s", text)
	}
}

// now makes the page look at once.
const now = `document.dispatchEvent(new Event("visibilitychange"))`

// away: a service that ends is noticed, and so is its coming back, as it was or of another version.
// The browser complains of what is meant to go wrong here, so nothing is quiet afterwards.
func (b *browser) away(t *testing.T, site *httptest.Server, service *show) {
	t.Helper()
	host := listensAt(site)
	site.Close()
	b.until(now + `; !document.getElementById("away").hidden`)
	if got := eval[string](b, `document.getElementById("away").innerText`); !strings.HasPrefix(got, "no answer since ") {
		t.Errorf("away: %q", got)
	}
	b.look("dark", 320)
	if bad := eval[[]string](b, faint); len(bad) > 0 {
		t.Errorf("away: too faint: %q", bad)
	}
	b.picture("token-away")
	start := func() *httptest.Server {
		ln, err := net.Listen("tcp", host)
		if err != nil {
			t.Fatal(err)
		}
		s := &httptest.Server{Listener: ln, Config: &http.Server{Handler: service}}
		s.Start()
		return s
	}
	again := start()
	b.until(now + `; document.getElementById("away").hidden && window.kept`)
	service.change(func(*view) { service.rebuilt = true })
	b.until(now + `; !window.kept && document.body.dataset.build.startsWith("new-")`)
	again.Close()
}
