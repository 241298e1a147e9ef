// Package dnstest has a resolver and a server that answer what a test wants.
package dnstest

import (
	"context"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"

	"golang.org/x/net/dns/dnsmessage"
)

// Fake holds records as "TYPE name", and "timeout", "servfail" or "refused" in place of an answer.
type Fake struct {
	Records map[string][]string
	Asked   map[string]int
}

// asking guards Asked while it is counted: several may ask one Fake at a time.
var asking sync.Mutex

func (f Fake) ask(key string) ([]string, error) {
	asking.Lock()
	f.Asked[key]++
	asking.Unlock()
	list := f.Records[strings.TrimSuffix(key, ".")]
	switch {
	case len(list) == 0:
		return nil, &net.DNSError{Err: "no such host", Name: key, IsNotFound: true}
	case list[0] == "timeout":
		return nil, &net.DNSError{Err: "i/o timeout", Name: key, IsTimeout: true, IsTemporary: true}
	case list[0] == "servfail":
		return nil, &net.DNSError{Err: "server misbehaving", Name: key, IsTemporary: true}
	case list[0] == "refused":
		return nil, &net.DNSError{Err: "connection refused", Name: key}
	}
	return list, nil
}

func (f Fake) LookupTXT(_ context.Context, name string) ([]string, error) {
	return f.ask("TXT " + name)
}

func (f Fake) LookupMX(_ context.Context, name string) ([]*net.MX, error) {
	hosts, err := f.ask("MX " + name)
	var list []*net.MX
	for _, h := range hosts {
		list = append(list, &net.MX{Host: h})
	}
	return list, err
}

func (f Fake) LookupIPAddr(_ context.Context, host string) ([]net.IPAddr, error) {
	ips, err := f.ask("IP " + host)
	var list []net.IPAddr
	for _, ip := range ips {
		list = append(list, net.IPAddr{IP: net.ParseIP(ip)})
	}
	return list, err
}

func (f Fake) LookupAddr(_ context.Context, addr string) ([]string, error) {
	return f.ask("PTR " + addr)
}

// Server answers on loopback: TXT from the table, where "SERVFAIL" is what it says; one host
// and its address beside it; NXDOMAIN for the rest. It returns what dials it.
func Server(t *testing.T, txt map[string][]string) func(context.Context, string, string) (net.Conn, error) {
	t.Helper()
	conn, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		query := make([]byte, 512)
		for {
			n, from, err := conn.ReadFrom(query)
			if err != nil {
				return // closed
			}
			if reply, err := reply(query[:n], txt); err != nil {
				t.Error(err)
			} else if _, err := conn.WriteTo(reply, from); err != nil {
				t.Error(err)
			}
		}
	}()
	t.Cleanup(func() { conn.Close(); <-done })
	return func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "udp", conn.LocalAddr().String())
	}
}

func reply(query []byte, txt map[string][]string) ([]byte, error) {
	const mx = "contoso-com.mail.protection.outlook.com."
	var m dnsmessage.Message
	if err := m.Unpack(query); err != nil {
		return nil, err
	}
	q := m.Questions[0]
	m.Header.Response = true
	m.Additionals = nil // EDNS of the query
	header := dnsmessage.ResourceHeader{Name: q.Name, Class: q.Class, TTL: 60}
	list, known := txt[q.Name.String()]
	switch name := q.Name.String(); {
	case slices.Equal(list, []string{"SERVFAIL"}):
		m.Header.RCode = dnsmessage.RCodeServerFailure
	case known && q.Type == dnsmessage.TypeTXT:
		m.Answers = []dnsmessage.Resource{{Header: header, Body: &dnsmessage.TXTResource{TXT: list}}}
	case known && q.Type == dnsmessage.TypeMX:
		m.Answers = []dnsmessage.Resource{{Header: header, Body: &dnsmessage.MXResource{Pref: 10, MX: dnsmessage.MustNewName(mx)}}}
	case name == mx && q.Type == dnsmessage.TypeA:
		m.Answers = []dnsmessage.Resource{{Header: header, Body: &dnsmessage.AResource{A: [4]byte{52, 101, 0, 1}}}}
	case !known && name != mx:
		m.Header.RCode = dnsmessage.RCodeNameError
	}
	return m.Pack()
}
