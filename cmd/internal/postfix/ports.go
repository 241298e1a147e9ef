package postfix

import (
	"net"
	"net/netip"
	"slices"
	"strings"
)

// A Port is where Postfix takes mail by SMTP, as somebody on this host reaches it.
type Port struct {
	Service string // of master.cf, "smtp/inet"
	Addr    string // host:port, the port perhaps by its name
	Wrapped bool   // TLS begins with the connection
	Secured bool   // MAIL is refused before STARTTLS
	Asks    bool   // it asks sendas
}

// Ports returns the ports that clients use: those that ask sendas first, of them those that clients
// elsewhere can reach. Ports at which a filter gives mail back are none.
func (p *Setup) Ports() []Port {
	var list []Port
	for i := range p.services {
		v := &p.services[i]
		if v.kind != "inet" || v.program != "smtpd" && v.program != "postscreen" || p.isWayBack(v) {
			continue
		}
		speaker := v
		if v.program == "postscreen" {
			if speaker = p.service("smtpd", "pass"); speaker == nil {
				continue
			}
		}
		list = append(list, Port{Service: v.Key(), Addr: p.reach(v), Wrapped: p.Value(speaker, "smtpd_tls_wrappermode") == "yes",
			Secured: p.Value(speaker, "smtpd_tls_security_level") == "encrypt" || p.Value(speaker, "smtpd_enforce_tls") == "yes", Asks: p.meetsSendas(speaker)})
	}
	order := func(t Port) int {
		n := 0
		if !t.Asks {
			n += 4
		}
		if t.Wrapped {
			n += 2
		}
		if host, _, err := net.SplitHostPort(t.Addr); err != nil || host != p.interfaceAddr() {
			n++
		}
		return n
	}
	slices.SortStableFunc(list, func(a, b Port) int { return order(a) - order(b) })
	return list
}

// reach writes where a service of master.cf listens, as a client of this host connects to it
// (master(5), inet_interfaces of postconf(5)).
func (p *Setup) reach(v *entry) string {
	host, port, named := cutLast(v.name, ":")
	if !named {
		host, port = "", v.name
	}
	if host = strings.Trim(host, "[]"); host == "" || host == "0.0.0.0" || host == "::" {
		host = p.interfaceAddr()
	}
	return net.JoinHostPort(host, port)
}

// interfaceAddr is an address at which Postfix listens: loopback where it may be that.
func (p *Setup) interfaceAddr() string {
	loopback := "127.0.0.1"
	if p.Main["inet_protocols"] == "ipv6" {
		loopback = "::1"
	}
	first := ""
	for _, item := range p.Items("inet_interfaces") {
		addr, err := netip.ParseAddr(strings.Trim(item, "[]"))
		switch {
		case err != nil, addr.IsLoopback() && addr.String() == loopback: // "all", "loopback-only", or a name
			return loopback
		case first == "":
			first = addr.String()
		}
	}
	if first == "" {
		return loopback
	}
	return first
}
