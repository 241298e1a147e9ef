package status

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"embed"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"html/template"
	"net"
	"net/http"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/sendas/sendas/cmd/internal/service"
	"github.com/sendas/sendas/milter"
	"github.com/sendas/sendas/policy"
	"github.com/sendas/sendas/token/lease"
)

// pageEvery is how often an open page asks again.
const pageEvery = 5 * time.Second

//go:embed page
var pageFiles embed.FS

// pageText returns a file of the page. They are compiled in.
func pageText(name string) string {
	b, err := pageFiles.ReadFile("page/" + name)
	if err != nil {
		panic(err)
	}
	return string(b)
}

var (
	pageCSS      = template.CSS(pageText("page.css"))
	pageJS       = template.JS(pageText("page.js"))
	pageTemplate = template.Must(template.New("page").Parse(pageText("page.html")))
)

// pagePolicy lets the browser run and show what is compiled in, ask this service, and nothing else.
var pagePolicy = fmt.Sprintf("default-src 'none'; script-src %s; style-src %s; img-src data:; connect-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'",
	sourceHash(string(pageJS)), sourceHash(string(pageCSS)))

// sourceHash allows one inline text in a Content-Security-Policy.
func sourceHash(text string) string {
	sum := sha256.Sum256([]byte(text))
	return "'sha256-" + base64.StdEncoding.EncodeToString(sum[:]) + "'"
}

// A pageView is what the page shows: of both services, whichever of them serves it. All texts are
// put together here, so that the page is the same with and without JavaScript; html/template escapes
// them.
type pageView struct {
	Title, Heading string
	Tenant         string
	State          []string // of the services, each in one line
	Level          string
	Sentence       string
	Needs          []*need
	Tiles          []tile

	Queue       *queuedView
	Mailboxes   *rowsView[mailboxView] // nil: not known
	Groups      []clientView
	Pools       []pageFact
	Clients     *rowsView[clientView] // nil: not known
	Identities  []clientView
	Refused     []refusedView
	RefusedHead string
	Credentials []credentialView
	RecentHead  string
	Recent      []pageFact
	Unsigned    string     // what was refused before any sign-in, and needs nobody
	Other       []pageLink // of the other service
	Searches    bool       // there is a search
	Search      *searchView

	CSS           template.CSS
	JS            template.JS
	Every         int // seconds
	NoScriptEvery int
	Build         string // changes with the page's own code
	Version       string
}

// pageLink is where to look for more.
type pageLink struct{ Name, URL string }

// pageOf makes the page.
func (v *view) pageOf(all bool) *pageView {
	j := v.judged()
	p := &pageView{Heading: cmp.Or(v.host, "sendas"), Tenant: v.tenant, Level: j.level(), Sentence: j.sentence(), Needs: j.needs, Queue: v.queuedViewOf(j.about), Tiles: v.tiles(j)}
	p.Title = p.Heading + " – sendas"
	if v.tenant != "" {
		p.Title = p.Heading + " – " + v.tenant + " – sendas"
	}
	if n := len(j.needs); n > 0 {
		p.Title = fmt.Sprintf("(%d) %s", n, p.Title)
	}
	p.State = []string{"as of " + v.time.Local().Format("2006-01-02 15:04:05 MST"), "milter " + v.milterState(), "token service " + v.tokenState()}
	if v.observes() {
		p.State = append(p.State, "sendas "+observeWords)
	}
	if v.token != nil {
		p.ofToken(v.token.Status, j, all)
	}
	if v.milter != nil {
		p.ofMilter(v.milter.Status, j, all, v.fallback())
	}
	return p
}

// ofToken fills in what the token service says.
func (p *pageView) ofToken(s *lease.Status, j *judgement, all bool) {
	order, rest := firstOf(mailboxesInOrder(s.Mailboxes, j.about, len(s.Mailboxes) > openRows), rowsFor(all))
	said := make(map[string]bool)
	var rows []mailboxView
	for _, m := range order {
		rows = append(rows, mailboxViewOf(m, j.about, said, s.Time))
	}
	p.Mailboxes = rowsOf(rows, func(m *mailboxView) bool { return m.Level != calm }, mailboxesHead(s), rest, "mailboxes")
	p.Unsigned = unsignedWords(s)
	for _, g := range s.Groups {
		p.Groups = append(p.Groups, clientView{Name: groupName(g.Name), Limits: []limitView{groupLimit(g.Recipients)}})
	}
	for _, x := range s.Pools {
		p.Pools = append(p.Pools, pageFact{x.Address, calm, "leaves through the first to open of " + strings.Join(x.Members, ", ")})
	}
	for i := range s.Credentials {
		x := &s.Credentials[i]
		p.Credentials = append(p.Credentials, credentialView{Name: x.Name, Flow: x.Flow, Level: j.about[x.Name], Facts: credentialFacts(x, s.Time)})
	}
	slices.SortStableFunc(p.Credentials, func(a, b credentialView) int { return cmpLevel(j.about, a.Name, b.Name) })
}

// ofMilter fills in what the milter says.
func (p *pageView) ofMilter(s *milter.Status, j *judgement, all bool, from string) {
	order, rest := firstOf(clientsInOrder(s.Clients, j.about, len(s.Clients) > openRows), rowsFor(all))
	var rows []clientView
	for _, x := range order {
		rows = append(rows, clientView{Name: x.Client, Level: j.about[x.Client], Over: overWords(x.Over, x.OnLimit), Last: lastWords(x.LastMessage, s.Time),
			Counts: countNotes(&x.Counts), Limits: limitViews(x.Limits), NoLimits: "no limits of its own"})
	}
	p.Clients = rowsOf(rows, func(x *clientView) bool { return x.Level != calm || x.Over != "" }, clientsHead(s), rest, "clients")
	if n := sum(s.Unknown.Messages); n+s.Unknown.Refused > 0 {
		p.Clients.Open = append(p.Clients.Open, clientView{Name: "peers that are no client", Last: lastWords(s.Unknown.LastMessage, s.Time), Counts: countNotes(&s.Unknown)})
	}
	for _, x := range s.Identities {
		p.Identities = append(p.Identities, clientView{Name: x.Identity, Over: overWords(x.Over, x.OnLimit), Limits: limitViews(x.Limits)})
	}
	p.Refused, p.RefusedHead = refusedViews(s, from), "Refused lately"
	if observed(s) {
		p.RefusedHead = "Would be refused"
	}
	p.RecentHead, p.Recent = fmt.Sprintf("Why, in the last %d minutes", s.Recent.Minutes), recentFacts(&s.Recent)
}

// rowsOf divides rows into those that are seen at once and those of a list to open. A list of a few
// is seen.
func rowsOf[T any](rows []T, needed func(*T) bool, head string, rest int, what string) *rowsView[T] {
	n := min(len(rows), openRows)
	for n < len(rows) && needed(&rows[n]) {
		n++
	}
	if len(rows)-n <= openRows/4 && rest == 0 {
		n = len(rows)
	}
	v := &rowsView[T]{Head: head, Open: rows[:n:n], Shut: rows[n:], More: moreWords(rest, what)}
	if len(v.Shut) > 0 {
		v.ShutHead = number(len(v.Shut)) + " more that need nobody"
	}
	return v
}

// tiles are the figures that most look for.
func (v *view) tiles(j *judgement) []tile {
	queued := tile{"not known", "in Postfix's queue", calm}
	if v.milter != nil && v.milter.Queue != nil && v.milter.Queue.Messages != nil {
		s := v.milter.Queue
		queued = tile{number(*s.Messages), "in Postfix's queue", calm}
		if s.Oldest != nil {
			queued.Words += ", the oldest came in " + whenWords(s.Oldest, v.milter.Time)
		}
	}
	list := []tile{queued}
	if v.milter != nil {
		r := &v.milter.Recent
		list = append(list, tile{number(r.Actions[policy.Accept]), fmt.Sprintf("accepted in %d minutes", r.Minutes), calm},
			tile{number(r.Actions[policy.Reject] + r.Actions[policy.Defer]), fmt.Sprintf("refused or put off in %d minutes", r.Minutes), calm})
	}
	if v.token != nil {
		t := tile{"none yet", "last accepted by Microsoft", calm}
		var last *time.Time
		for i := range v.token.Mailboxes {
			if at := v.token.Mailboxes[i].LastAccepted; at != nil && (last == nil || at.After(*last)) {
				last = at
			}
		}
		if last != nil {
			t.Figure = whenWords(last, v.token.Time)
		}
		list = append(list, t)
	}
	return list
}

// A Site is where the pages of a service are shown.
type Site struct {
	Addr    string                // where the service was told to listen
	Version string                // of the program
	State   func() service.Config // of the configuration in force
	Other   func() string         // where the other service listens now; "" for nowhere
	Tenant  func() string         // whose mail it is
	Client  *http.Client          // asks the other service, and for records
	Search  func() bool           // whether the record may be searched here; nil: no
}

// searches reports whether the record may be searched.
func (at *Site) searches() bool { return at.Search != nil && at.Search() }

// fallback returns the sender that a device would have for which nothing is written yet: the first
// mailbox that is one. It is "" where there is none, or nobody knows.
func (v *view) fallback() string {
	if v.token != nil {
		for i := range v.token.Mailboxes {
			if m := &v.token.Mailboxes[i]; !m.Pattern {
				return m.Mailbox
			}
		}
	}
	return ""
}

// view begins a view of this host.
func (at *Site) view() *view {
	v := &view{time: time.Now(), tenant: at.Tenant()}
	v.host, _ = os.Hostname() // without one it is not named
	return v
}

// pages returns what a service shows: /status for programs, and the page for people.
func pages(at *Site, status func(context.Context) any, look func(context.Context) *view, other func(*view) (name, addr string)) map[string]http.Handler {
	return map[string]http.Handler{
		"GET /status": jsonHandler(status),
		"GET /{$}": pageHandler(at.Version, func(ctx context.Context, r *http.Request) *pageView {
			v := look(ctx)
			p := v.pageOf(wantsAll(r))
			p.Searches = at.searches()
			if p.Searches && wantsSearch(r) {
				p.Search = at.searchOf(ctx, v, r.URL.Query())
			}
			name, addr := other(v)
			if base := otherURL(at.Addr, addr, r); base != "" {
				p.Other = []pageLink{{name + " as JSON", base + "status"}, {"for Prometheus", base + "metrics"}}
			}
			return p
		}),
	}
}

// TokenPages is what the token service shows: its own status, and the page of both.
func TokenPages(at *Site, status func(context.Context) *lease.Status) map[string]http.Handler {
	answer := func(ctx context.Context) *tokenReport {
		c := at.State()
		return &tokenReport{Status: status(ctx), Config: &c}
	}
	return pages(at, func(ctx context.Context) any { return answer(ctx) }, func(ctx context.Context) *view {
		v := at.view()
		v.tokenAt, v.milterAt = at.Addr, at.Other()
		v.token = answer(ctx)
		v.askMilter(ctx, at.Client)
		return v
	}, func(v *view) (string, string) { return "the milter", v.milterAt })
}

// MilterPages is what the milter shows: its own status, and the page of both.
func MilterPages(at *Site, status func() *milter.Status) map[string]http.Handler {
	answer := func() *milterReport {
		c := at.State()
		return &milterReport{Status: status(), Config: &c}
	}
	return pages(at, func(context.Context) any { return answer() }, func(ctx context.Context) *view {
		v := at.view()
		v.tokenAt, v.milterAt = at.Other(), at.Addr
		v.milter = answer()
		v.askToken(ctx, at.Client)
		return v
	}, func(v *view) (string, string) { return "the token service", v.tokenAt })
}

// answerTime bounds an answer: the ledger may be on another host.
const answerTime = 5 * time.Second

// jsonHandler serves what the function returns, as JSON.
func jsonHandler(status func(context.Context) any) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		ctx, cancel := context.WithTimeout(r.Context(), answerTime)
		defer cancel()
		w.Header().Set("Content-Type", "application/json")
		w.Header().Set("Cache-Control", "no-store")
		w.Header().Set("X-Content-Type-Options", "nosniff")
		e := json.NewEncoder(w)
		e.SetIndent("", "  ")
		e.SetEscapeHTML(false)
		e.Encode(status(ctx)) // an error is the reader's: it has gone
	})
}

// pageHandler serves the page.
func pageHandler(version string, page func(context.Context, *http.Request) *pageView) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		ctx, cancel := context.WithTimeout(r.Context(), answerTime)
		defer cancel()
		v := page(ctx, r)
		v.Version, v.CSS, v.JS, v.Build = version, pageCSS, pageJS, version+sourceHash(string(pageJS)+string(pageCSS))
		if v.Search == nil {
			v.Every, v.NoScriptEvery = int(pageEvery.Seconds()), 2*int(pageEvery.Seconds())
		}
		var b bytes.Buffer // whole or not at all
		if err := pageTemplate.Execute(&b, v); err != nil {
			http.Error(w, "the page cannot be made; /status has the same: "+err.Error(), http.StatusInternalServerError)
			return
		}
		h := w.Header()
		h.Set("Content-Type", "text/html; charset=utf-8")
		h.Set("Content-Security-Policy", pagePolicy)
		h.Set("Cache-Control", "no-store")
		h.Set("Referrer-Policy", "no-referrer")
		h.Set("X-Content-Type-Options", "nosniff")
		h.Set("X-Frame-Options", "DENY")
		h.Set("Cross-Origin-Resource-Policy", "same-origin")
		w.Write(b.Bytes())
	})
}

// otherURL returns the address of the other service for one who asked this one: by the same name
// where both listen on the same host, or the other on all addresses. It is "" where the other has
// none, and for who comes through a proxy, whose names are its own.
func otherURL(own, other string, r *http.Request) string {
	if other == "" || r.Header.Get("X-Forwarded-For") != "" || r.Header.Get("Forwarded") != "" {
		return ""
	}
	host, port, err := net.SplitHostPort(other)
	if err != nil {
		return ""
	}
	if strings.EqualFold(host, service.HostOf(own)) || service.IsWildcard(host) {
		host = service.HostOf(r.Host)
	}
	return "http://" + net.JoinHostPort(host, port) + "/"
}

// percent is how much of a limit is used, for the width of a bar.
func percent(used, limit int) string {
	switch {
	case used <= 0:
		return "0"
	case limit <= 0 || used >= limit:
		return "100"
	}
	return strconv.FormatFloat(100*float64(used)/float64(limit), 'f', 1, 64)
}
