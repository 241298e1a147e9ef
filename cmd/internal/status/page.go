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
	"net/netip"
	"os"
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
		"GET /status": ownHost(at.Addr, jsonHandler(status)),
		"GET /{$}":    ownHost(at.Addr, pageHandler(at.Version, page)),
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

// ownHost answers only who names this host as the configuration or every host does. A page of the
// internet whose name was made to point to 127.0.0.1 (DNS rebinding) would read what stands here:
// it comes with a name of its own.
func ownHost(addr string, h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !isOwnHost(addr, r.Host) {
			http.Error(w, fmt.Sprintf("this service is not called %q; ask for http://%s/, or let the proxy in front of it send that name as Host", r.Host, service.Dialable(addr)),
				http.StatusMisdirectedRequest)
			return
		}
		h.ServeHTTP(w, r)
	})
}

// isOwnHost reports whether a Host field names this service, which listens at addr. The port does
// not matter: it may be forwarded (ssh -L).
func isOwnHost(addr, asked string) bool {
	host := hostOf(asked)
	configured := hostOf(addr)
	if strings.EqualFold(host, "localhost") || strings.EqualFold(host, configured) {
		return true
	}
	ip, err := netip.ParseAddr(host)
	if err == nil && ip.Unmap().IsLoopback() {
		return true
	}
	if !isWildcard(configured) {
		return false
	}
	if err == nil { // no name, so no foreign name
		return true
	}
	own, err := os.Hostname()
	if err != nil {
		return false
	}
	short, _, _ := strings.Cut(own, ".")
	return strings.EqualFold(host, own) || strings.EqualFold(host, short)
}

// hostOf returns the host of host:port, without the brackets of IPv6.
func hostOf(s string) string {
	if host, _, err := net.SplitHostPort(s); err == nil {
		return host
	}
	return strings.TrimSuffix(strings.TrimPrefix(s, "["), "]")
}

// isWildcard reports whether listening there is listening on all addresses.
func isWildcard(host string) bool {
	a, err := netip.ParseAddr(host)
	return host == "" || err == nil && a.IsUnspecified()
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
	if strings.EqualFold(host, hostOf(own)) || isWildcard(host) {
		host = hostOf(asked)
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
