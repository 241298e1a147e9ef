package service

import (
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"os"
	"slices"
	"strings"
)

// ownHost answers only who names this host as the configuration or every host does. A page of the
// internet whose name was made to point to 127.0.0.1 (DNS rebinding) would read what stands here:
// it comes with a name of its own.
func ownHost(addr string, h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !isOwnHost(addr, r.Host) {
			http.Error(w, fmt.Sprintf("this service is not called %q; ask for http://%s/, or let the proxy in front of it send that name as Host", r.Host, Dialable(addr)),
				http.StatusMisdirectedRequest)
			return
		}
		h.ServeHTTP(w, r)
	})
}

// isOwnHost reports whether a Host field names this service, which listens at addr. The port does
// not matter: it may be forwarded (ssh -L). Without a name it is no browser: they always send one,
// as HTTP/1.1 wants it, and many a health check does not.
func isOwnHost(addr, asked string) bool {
	host := HostOf(asked)
	configured := HostOf(addr)
	if host == "" || strings.EqualFold(host, "localhost") || strings.EqualFold(host, configured) {
		return true
	}
	ip, err := netip.ParseAddr(host)
	if err == nil && ip.Unmap().IsLoopback() {
		return true
	}
	if err == nil { // no name, so no foreign name; but what is not listened on is somebody else's
		return IsWildcard(configured)
	}
	return slices.ContainsFunc(ownNames(), func(name string) bool { return strings.EqualFold(host, name) })
}

// ownNames returns the names of this host: as the kernel knows it, and those that /etc/hosts has for
// the same (hosts(5)). Nobody else can choose them.
func ownNames() []string {
	own, err := os.Hostname()
	if err != nil {
		return nil
	}
	short, _, _ := strings.Cut(own, ".")
	text, _ := os.ReadFile("/etc/hosts") // where it is missing there are no more
	return append(aliases(string(text), own), own, short)
}

// aliases returns the names that a text in the form of hosts(5) has beside one.
func aliases(hosts, own string) (names []string) {
	for line := range strings.Lines(hosts) {
		line, _, _ = strings.Cut(line, "#")
		f := strings.Fields(line)
		if len(f) > 1 && slices.ContainsFunc(f[1:], func(name string) bool { return strings.EqualFold(name, own) }) {
			names = append(names, f[1:]...)
		}
	}
	return names
}

// HostOf returns the host of host:port, without the brackets of IPv6.
func HostOf(s string) string {
	if host, _, err := net.SplitHostPort(s); err == nil {
		return host
	}
	return strings.TrimSuffix(strings.TrimPrefix(s, "["), "]")
}

// IsWildcard reports whether listening there is listening on all addresses.
func IsWildcard(host string) bool {
	a, err := netip.ParseAddr(host)
	return host == "" || err == nil && a.IsUnspecified()
}
