package status

import (
	"bytes"
	"context"
	"crypto/sha256"
	"embed"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"html/template"
	"net"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/sendas/sendas/cmd/internal/service"
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
var pagePolicy = fmt.Sprintf("default-src 'none'; script-src %s; style-src %s; img-src data:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
	sourceHash(string(pageJS)), sourceHash(string(pageCSS)))

// sourceHash allows one inline text in a Content-Security-Policy.
func sourceHash(text string) string {
	sum := sha256.Sum256([]byte(text))
	return "'sha256-" + base64.StdEncoding.EncodeToString(sum[:]) + "'"
}

// A pageView is what the page of a service shows. All texts are put together here, so that the page
// is the same with and without JavaScript; html/template escapes them.
type pageView struct {
	Service, Version string
	Title            string
	State            string // in one line
	OtherName        string // the other service and its page, where it has one
	OtherURL         string
	Notices          []pageNote
	Token            *tokenView
	Milter           *milterView

	CSS           template.CSS
	JS            template.JS
	Every         int // seconds
	NoScriptEvery int
	Build         string // changes with the page's own code
}

// pages returns what a service shows: /status for programs, and the page for people.
func pages(at *Site, status func(context.Context) any, page func(context.Context, *http.Request) *pageView) map[string]http.Handler {
	return map[string]http.Handler{
		"GET /status": jsonHandler(status),
		"GET /{$}":    pageHandler(at.Version, page),
	}
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
		v.Every, v.NoScriptEvery = int(pageEvery.Seconds()), 2*int(pageEvery.Seconds())
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

// otherURL returns the address of the other service's page for one who reached this one as asked:
// by the same name where both listen on the same host, or the other on all addresses. It is ""
// where the other has none.
func otherURL(own, other, asked string) string {
	if other == "" {
		return ""
	}
	host, port, err := net.SplitHostPort(other)
	if err != nil {
		return ""
	}
	if strings.EqualFold(host, service.HostOf(own)) || service.IsWildcard(host) {
		host = service.HostOf(asked)
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
