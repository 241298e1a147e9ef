package dns

import (
	"context"
	"errors"
	"net"
	"strings"
	"testing"

	"github.com/sendas/sendas/cmd/internal/config"
	"github.com/sendas/sendas/cmd/internal/dns/dnstest"
	"github.com/sendas/sendas/internal/exit"
)

// internet is what the domain of the tests finds around it.
func internet() dnstest.Fake {
	return dnstest.Fake{Asked: map[string]int{}, Records: map[string][]string{
		"TXT spf.protection.outlook.com":             {"v=spf1 ip4:40.92.0.0/15 ip6:2a01:111:f400::/48 include:spfd.protection.outlook.com -all"},
		"TXT spfd.protection.outlook.com":            {"v=spf1 ip4:51.4.72.0/24 -all"},
		"TXT spf.protection.office365.us":            {"v=spf1 ip4:52.244.0.0/16 -all"},
		"TXT spf.protection.partner.outlook.cn":      {"v=spf1 ip4:42.159.33.192/27 -all"},
		"TXT _spf.news.example":                      {"v=spf1 ip4:198.51.100.0/24 ?all"},
		"TXT _spf.all.example":                       {"v=spf1 +all"},
		"TXT _spf.mute.example":                      {"v=spf1 include:spf.protection.outlook.com ?all"},
		"TXT _spf.contoso.com":                       {"unrelated", "v=spf1 include:spf.protection.outlook.com ip4:203.0.113.0/29 -all"},
		"TXT _spf.two.example":                       {"v=spf1 -all", "v=spf1 a -all"},
		"TXT _spf.round.example":                     {"v=spf1 include:_spf.round.example -all"},
		"TXT _spf.slow.example":                      {"timeout"},
		"TXT _spf.four.example":                      {"v=spf1 a:relay.contoso.com a:relay.contoso.com a:relay.contoso.com -all"},
		"TXT x.example":                              {"no SPF here"},
		"IP relay.contoso.com":                       {"203.0.113.7", "2001:db8::7"},
		"IP contoso-com.mail.protection.outlook.com": {"52.101.0.1"},
		"MX contoso.com":                             {"contoso-com.mail.protection.outlook.com."},
		"MX mx.example":                              {"relay.contoso.com."},
	}}
}

const microsoft = "include:spf.protection.outlook.com"

func TestCheckDNSReview(t *testing.T) {
	one := []string{"203.0.113.7"}
	for _, tc := range []struct {
		name      string
		spf       string // records separated by "|"
		addresses []string
		want      string // the line to publish instead; empty when no line is offered
		says      string // a part of what is said; "good: …" means ok
	}{
		{"good", "v=spf1 " + microsoft + " -all", nil, "", "good: what leaves"},
		{"good, soft, upper case", "V=SPF1 Include:SPF.protection.outlook.com. ~ALL", nil, "", "good: what leaves"},
		{"address too", "v=spf1 ip4:203.0.113.7 " + microsoft + " -all", one, "", "good: what leaves"},
		{"address in a network", "v=spf1 " + microsoft + " ip4:203.0.113.0/24 -all", one, "", "good: what leaves"},
		{"address by name", "v=spf1 a:relay.contoso.com " + microsoft + " -all", []string{"203.0.113.7", "2001:db8::7"}, "", "good: what leaves"},
		{"address by MX", "v=spf1 mx:mx.example/29 " + microsoft + " -all", []string{"203.0.113.0/29"}, "", "good: what leaves"},
		{"through a redirect", "v=spf1 redirect=_spf.contoso.com", one, "", "good: what leaves"},
		{"through an include", "v=spf1 include:_spf.contoso.com -all", one, "", "good: what leaves"},
		{"network of two terms", "v=spf1 ip4:203.0.113.0/30 ip4:203.0.113.4/30 " + microsoft + " -all", []string{"203.0.113.0/29"}, "", "good: what leaves"},
		{"Microsoft by its networks", "v=spf1 ip4:40.92.0.0/15 ip6:2a01:111:f400::/48 ip4:51.4.72.0/24 -all", nil, "", "note: Microsoft's networks stand there"},
		{"dual stack", "v=spf1 a:relay.contoso.com " + microsoft + " -all", []string{"2001:db8::8"},
			"v=spf1 ip6:2001:db8::8 a:relay.contoso.com " + microsoft + " -all", "ip6:2001:db8::8 is missing"},

		{"include missing", "v=spf1 a:relay.contoso.com -all", nil, "v=spf1 " + microsoft + " a:relay.contoso.com -all", microsoft + " is missing"},
		{"include in vain", "v=spf1 ?" + microsoft + " -all", nil, "v=spf1 " + microsoft + " ?" + microsoft + " -all", microsoft + " is missing"},
		{"half of Microsoft's networks", "v=spf1 ip4:40.92.0.0/16 ip6:2a01:111:f400::/48 ip4:51.4.72.0/24 -all", nil,
			"v=spf1 " + microsoft + " ip4:40.92.0.0/16 ip6:2a01:111:f400::/48 ip4:51.4.72.0/24 -all", microsoft + " is missing"},
		{"address missing", "v=spf1 include:_spf.news.example " + microsoft + " ~all exp=why.contoso.com", one,
			"v=spf1 ip4:203.0.113.7 include:_spf.news.example " + microsoft + " ~all exp=why.contoso.com", "ip4:203.0.113.7 is missing"},
		{"half of the network", "v=spf1 ip4:203.0.113.0/30 " + microsoft + " -all", []string{"203.0.113.0/29"},
			"v=spf1 ip4:203.0.113.0/29 ip4:203.0.113.0/30 " + microsoft + " -all", "ip4:203.0.113.0/29 is missing"},
		{"a hole in the network", "v=spf1 -ip4:203.0.113.5 ip4:203.0.113.0/29 " + microsoft + " -all", []string{"203.0.113.0/29"},
			"v=spf1 ip4:203.0.113.0/29 -ip4:203.0.113.5 ip4:203.0.113.0/29 " + microsoft + " -all", "ip4:203.0.113.0/29 is missing"},
		{"both missing before a redirect", "v=spf1 redirect=_spf.news.example", one,
			"v=spf1 ip4:203.0.113.7 " + microsoft + " redirect=_spf.news.example", `"redirect=_spf.news.example" leads to a record that says nothing`},

		{"several", "v=spf1 ip4:198.51.100.1 -all|v=spf1 " + microsoft + " ip4:198.51.100.1 ~all", nil,
			"v=spf1 ip4:198.51.100.1 " + microsoft + " ~all", "there are 2 SPF records, which receivers treat as an error (RFC 7208, section 3.2)"},
		{"several, one redirects", "v=spf1 redirect=_spf.contoso.com|v=spf1 ip4:198.51.100.1 -all", nil,
			"v=spf1 include:_spf.contoso.com ip4:198.51.100.1 -all", "there are 2 SPF records"},
		{"several, with modifiers", "v=spf1 exp=why.contoso.com redirect=_spf.news.example|v=spf1 exp=x.contoso.com redirect=_spf.contoso.com|v=spf1 x=y", nil,
			"v=spf1 include:_spf.news.example include:_spf.contoso.com ~all exp=why.contoso.com x=y", "there are 3 SPF records"},
		{"everybody", "v=spf1 " + microsoft + " +all", nil, "v=spf1 " + microsoft + " ~all", `"+all" lets everybody send`},
		{"everybody hides what is missing", "v=spf1 all", one, "v=spf1 ip4:203.0.113.7 " + microsoft + " ~all", "ip4:203.0.113.7 is missing"},
		{"neutral", "v=spf1 " + microsoft + " ?all", nil, "v=spf1 " + microsoft + " ~all", `"?all" says nothing about strangers`},
		{"no end", "v=spf1 " + microsoft, nil, "v=spf1 " + microsoft + " ~all", "ends without all"},
		{"only the version", "v=spf1", nil, "v=spf1 " + microsoft + " ~all", "ends without all"},
		{"behind the end", "v=spf1 -all " + microsoft, nil, "v=spf1 " + microsoft + " -all", `terms stand behind "-all"`},
		{"unknown term", "v=spf1 ipv4:198.51.100.1 " + microsoft + " -all", nil, "v=spf1 " + microsoft + " -all", `"ipv4:198.51.100.1" is not a term of SPF`},
		{"wrong network", "v=spf1 ip4:198.51.100.0/33 " + microsoft + " -all", nil, "v=spf1 " + microsoft + " -all", "has no valid network"},
		{"include of nothing", "v=spf1 include:gone.example " + microsoft + " -all", nil, "v=spf1 " + microsoft + " -all", `"include:gone.example" leads to a name that has no SPF record`},
		{"include without SPF", "v=spf1 include:x.example " + microsoft + " -all", nil, "v=spf1 " + microsoft + " -all", "leads to a name that has no SPF record"},
		{"include of several", "v=spf1 include:_spf.two.example " + microsoft + " -all", nil, "v=spf1 " + microsoft + " -all", "leads to a name that has several SPF records"},
		{"circle", "v=spf1 include:_spf.round.example " + microsoft + " -all", nil, "v=spf1 " + microsoft + " -all", "leads round in a circle"},
		{"redirect to nothing", "v=spf1 " + microsoft + " redirect=gone.example", nil, "v=spf1 " + microsoft + " ~all", `"redirect=gone.example" leads to a name`},
		{"two redirects", "v=spf1 redirect=_spf.contoso.com redirect=_spf.news.example", nil, "v=spf1 redirect=_spf.contoso.com", "redirect= may stand there once"},

		{"everybody through an include", "v=spf1 " + microsoft + " include:_spf.all.example -all", nil, "", `"include:_spf.all.example" lets everybody send`},
		{"neutral redirect", "v=spf1 redirect=_spf.mute.example", nil, "", `"redirect=_spf.mute.example" leads to a record that says nothing`},
		{"10 look-ups", "v=spf1 include:_spf.four.example include:_spf.four.example " + microsoft + " -all", nil, "", "good: what leaves"},
		{"11 look-ups", "v=spf1 include:_spf.four.example include:_spf.four.example a:relay.contoso.com " + microsoft + " -all", nil, "", "SPF needs 11 DNS look-ups"},
		{"11 with ours", "v=spf1 include:_spf.four.example include:_spf.four.example a:relay.contoso.com -all", nil,
			"v=spf1 " + microsoft + " include:_spf.four.example include:_spf.four.example a:relay.contoso.com -all", "     4  include:_spf.four.example\n"},
		{"2 void look-ups", "v=spf1 a:gone.example mx:gone.example " + microsoft + " -all", nil, "", "note: leads to nothing in DNS, and can go: a:gone.example, mx:gone.example"},
		{"ptr and macros", "v=spf1 ptr exists:%{i}.list.example include:%{d}.example.net " + microsoft + " -all", nil, "v=spf1 ptr exists:%{i}.list.example " + microsoft + " -all", `"include:%{d}.example.net" leads to a name`},
		{"exists", "v=spf1 exists:relay.contoso.com -all", one, "", "note: Microsoft's networks stand there"},
		{"redirect that all makes idle", "v=spf1 " + microsoft + " -all redirect=gone.example", nil, "", "good: what leaves"},
		{"circle by macro", "v=spf1 include:%{d} " + microsoft + " -all", nil, "v=spf1 " + microsoft + " -all", `"include:%{d}" leads round in a circle`},
		{"wrong macro", "v=spf1 exists:%{y} " + microsoft + " -all", nil, "v=spf1 " + microsoft + " -all", `"exists:%{y}" has a wrong macro`},
		{"3 void look-ups", "v=spf1 a:gone.example a:g2.example mx:gone.example " + microsoft + " -all", nil, "", "3 terms lead to nothing in DNS"},
		{"control characters", "v=spf1 \x1b[2Jx " + microsoft + " -all", nil, "v=spf1 " + microsoft + " -all", "    v=spf1 ?[2Jx "},
	} {
		d := internet()
		d.Records["TXT contoso.com"] = append([]string{"MS=ms12345678"}, strings.Split(tc.spf, "|")...)
		plan := Plan{Domains: []string{"contoso.com"}, Cloud: "global"}
		if tc.addresses != nil {
			plan.Routes = []Route{{"site", "connector", "contoso-com.mail.protection.outlook.com", tc.addresses}}
		}
		var out strings.Builder
		ok, err := Check(t.Context(), &out, d, plan)
		wantOK := strings.HasPrefix(tc.says, "good: ") || strings.HasPrefix(tc.says, "note: ")
		if err != nil || ok != wantOK || !strings.Contains(out.String(), tc.says) {
			t.Errorf("%s: ok %v, error %v, want ok %v and %q in\n%s", tc.name, ok, err, wantOK, tc.says, &out)
		}
		if got := proposed(out.String()); got != tc.want {
			t.Errorf("%s: to publish\n got  %q\n want %q", tc.name, got, tc.want)
		}
		for key, n := range d.Asked {
			if n > 1 || !strings.HasSuffix(key, ".") && !strings.HasPrefix(key, "PTR ") {
				t.Errorf("%s: asked %d times for %q", tc.name, n, key)
			}
		}
	}
}

// proposed returns the line to publish instead of what DNS has.
func proposed(out string) string {
	_, after, ok := strings.Cut(out, "publish this line instead, as the only SPF record:\n")
	if !ok {
		return ""
	}
	line, _, _ := strings.Cut(after, "\n")
	return strings.TrimSpace(line)
}

func TestCheckDNSOutput(t *testing.T) {
	d := internet()
	d.Records["TXT contoso.com"] = []string{"v=spf1 include:_spf.news.example " + microsoft + " ~all"}
	d.Records["TXT contoso.de"] = []string{"timeout"}
	d.Records["MX contoso.de"] = []string{"mx.example.net."}
	d.Records["MX contoso.fr"] = []string{"contoso-fr.a-v1.mx.microsoft."}
	var out strings.Builder
	ok, err := Check(t.Context(), &out, d, Plan{
		Domains: []string{"contoso.com", "contoso.de", "contoso.fr", "contoso.invalid", "contoso.onmicrosoft.com"},
		Cloud:   "global",
		Routes: []Route{
			{"site", "connector", "contoso-com.mail.protection.outlook.com", []string{"203.0.113.7", "2001:db8:1::/64"}},
			{"inside", "direct", "contoso-com.mail.protection.outlook.com", nil},
			{"lab", "direct", "contoso-org.mail.protection.outlook.com", []string{"10.1.2.3", "relay"}},
		},
	})
	const want = `contoso.com
  SPF, where nothing else sends mail of this domain:
    v=spf1 ip4:203.0.113.7 ip6:2001:db8:1::/64 ip4:ADDRESS include:spf.protection.outlook.com -all
  ADDRESS stands for the public address of this relay; see the routes below
  SPF in DNS now:
    v=spf1 include:_spf.news.example include:spf.protection.outlook.com ~all
  must be changed: ip4:203.0.113.7 is missing: mail that this relay delivers itself comes from there
  must be changed: ip6:2001:db8:1::/64 is missing: mail that this relay delivers itself comes from there
  publish this line instead, as the only SPF record:
    v=spf1 ip4:203.0.113.7 ip6:2001:db8:1::/64 include:_spf.news.example include:spf.protection.outlook.com ~all
  good: its MX is Microsoft's, contoso-com.mail.protection.outlook.com

contoso.de
  SPF, where nothing else sends mail of this domain:
    v=spf1 ip4:203.0.113.7 ip6:2001:db8:1::/64 ip4:ADDRESS include:spf.protection.outlook.com -all
  ADDRESS stands for the public address of this relay; see the routes below
  not known: the TXT records of contoso.de: DNS did not answer in time
  note: its MX is "mx.example.net", not Microsoft's (….mail.protection.outlook.com); right where another gateway takes its mail first

contoso.fr
  SPF, where nothing else sends mail of this domain:
    v=spf1 ip4:203.0.113.7 ip6:2001:db8:1::/64 ip4:ADDRESS include:spf.protection.outlook.com -all
  ADDRESS stands for the public address of this relay; see the routes below
  must be changed: DNS has no SPF record; publish the line above as a TXT record of contoso.fr
  good: its MX is Microsoft's, contoso-fr.a-v1.mx.microsoft

contoso.invalid
  SPF, where nothing else sends mail of this domain:
    v=spf1 ip4:203.0.113.7 ip6:2001:db8:1::/64 ip4:ADDRESS include:spf.protection.outlook.com -all
  ADDRESS stands for the public address of this relay; see the routes below
  must be changed: DNS has neither TXT nor MX nor address records of this name; mend tenant.domains, or set the domain up in DNS first

contoso.onmicrosoft.com
  good: its DNS belongs to Microsoft, there is nothing to publish

route "site" (connector)
  good: contoso-com.mail.protection.outlook.com is in DNS

route "inside" (direct)
  must be changed: its addresses are unknown; write addresses: [203.0.113.7] at the route, with the public addresses from which this relay reaches contoso-com.mail.protection.outlook.com, so that SPF can be checked

route "lab" (direct)
  must be changed: 10.1.2.3 is seen inside the site only; write the public address from which the mail arrives at Microsoft
  must be changed: "relay" is not an address; write 203.0.113.7, 2001:db8::7 or a network such as 203.0.113.0/28
  must be changed: DNS has no address of contoso-org.mail.protection.outlook.com; the name stands in the Microsoft 365 admin centre as the MX record of the domain

`
	if out.String() != want {
		t.Errorf("got\n%s\nwant\n%s", &out, want)
	}
	e, _ := errors.AsType[*exit.Error](err)
	if ok || e == nil || e.Code != exit.TempFail || e.Error() != "DNS gave no answer about the TXT records of contoso.de" {
		t.Errorf("ok %v, error %v", ok, err)
	}
}

// TestCheckDNSClouds: the texts are those of the fact sheet, not of the table.
func TestCheckDNSClouds(t *testing.T) {
	for _, tc := range []struct{ cloud, record, mx string }{
		{"global", "v=spf1 include:spf.protection.outlook.com -all", "contoso-com.mail.protection.outlook.com."},
		{"gcc-high", "v=spf1 include:spf.protection.office365.us -all", "contoso-com.mail.protection.office365.us."},
		{"dod", "v=spf1 include:spf.protection.office365.us -all", "contoso-com.mail.protection.office365.us."},
		{"china", "v=spf1 include:spf.protection.partner.outlook.cn -all", "contoso-com.mail.protection.partner.outlook.cn."},
	} {
		d := internet()
		d.Records["TXT contoso.com"] = []string{tc.record}
		d.Records["MX contoso.com"] = []string{tc.mx}
		var out strings.Builder
		ok, err := Check(t.Context(), &out, d, Plan{Domains: []string{"contoso.com"}, Cloud: tc.cloud})
		if !ok || err != nil || strings.Count(out.String(), tc.record) != 2 || strings.Count(out.String(), "good: ") != 2 {
			t.Errorf("%s: ok %v, error %v\n%s", tc.cloud, ok, err, &out)
		}
		delete(d.Records, "TXT contoso.com")
		out.Reset()
		if ok, _ := Check(t.Context(), &out, d, Plan{Domains: []string{"contoso.com"}, Cloud: tc.cloud}); ok || strings.Count(out.String(), tc.record) != 1 {
			t.Errorf("%s without SPF: ok %v\n%s", tc.cloud, ok, &out)
		}
	}
	for cloud := range config.Clouds {
		if _, ok := clouds[cloud]; !ok {
			t.Errorf("cloud %s has no names in DNS", cloud)
		}
	}
	if _, err := Check(t.Context(), &strings.Builder{}, internet(), Plan{Cloud: "moon"}); err == nil {
		t.Error("an unknown cloud is no error")
	}
}

// TestCheckDNSFailures: no line is offered on half knowledge, and the failures are told apart.
func TestCheckDNSFailures(t *testing.T) {
	for _, tc := range []struct{ key, spf, unanswered string }{
		{"TXT contoso.com", "", "the TXT records of contoso.com"},
		{"TXT far.example", "v=spf1 include:far.example -all", `"include:far.example" in the SPF record of contoso.com`},
		{"IP far.example", "v=spf1 a:far.example -all", `"a:far.example" in the SPF record of contoso.com`},
		{"MX far.example", "v=spf1 mx:far.example -all", `"mx:far.example" in the SPF record of contoso.com`},
		{"TXT spf.protection.outlook.com", "v=spf1 " + microsoft + " -all", `"` + microsoft + `" in the SPF record of contoso.com`},
	} {
		for failure, text := range map[string]string{"timeout": "DNS did not answer in time", "servfail": "the DNS server could not find out (SERVFAIL", "refused": "the DNS server could not be asked: connection refused"} {
			d := internet()
			d.Records["TXT contoso.com"] = []string{tc.spf}
			d.Records[tc.key] = []string{failure}
			var out strings.Builder
			_, err := Check(t.Context(), &out, d, Plan{Domains: []string{"contoso.com"}, Cloud: "global"})
			want := "not known: " + tc.unanswered + ": " + text
			if err == nil || err.Error() != "DNS gave no answer about "+tc.unanswered || !strings.Contains(out.String(), want) ||
				proposed(out.String()) != "" || strings.Contains(out.String(), "good: what") {
				t.Errorf("%s %s: error %v, want %q in\n%s", tc.key, failure, err, want, &out)
			}
		}
	}
	d := internet()
	delete(d.Records, "TXT spf.protection.outlook.com")
	d.Records["TXT contoso.com"] = []string{"v=spf1 " + microsoft + " -all"}
	var inside strings.Builder
	if _, err := Check(t.Context(), &inside, d, Plan{Domains: []string{"contoso.com"}, Cloud: "global"}); err == nil ||
		!strings.Contains(inside.String(), "which Microsoft keeps: this DNS server does not have it") || proposed(inside.String()) != "" {
		t.Errorf("a DNS server that knows the site only: error %v\n%s", err, &inside)
	}
	d = internet()
	d.Records["IP far.example"] = []string{"servfail"}
	plan := Plan{Cloud: "global", Routes: []Route{{"far", "direct", "far.example", []string{"203.0.113.7"}}, {"near", "direct", "203.0.113.25", []string{"203.0.113.7"}}}}
	if ok, err := Check(t.Context(), &strings.Builder{}, d, plan); !ok || err == nil || err.Error() != "DNS gave no answer about the addresses of far.example" {
		t.Errorf("an endpoint that is not known: ok %v, error %v", ok, err)
	}
	d.Records["TXT contoso.com"] = []string{"v=spf1 " + microsoft + " -all"}
	d.Records["MX contoso.com"] = []string{"timeout"}
	var out strings.Builder
	if ok, err := Check(t.Context(), &out, d, Plan{Domains: []string{"contoso.com"}, Cloud: "global"}); !ok || err != nil {
		t.Errorf("MX is only a warning: ok %v, error %v\n%s", ok, err, &out)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	out.Reset()
	if _, err := Check(ctx, &out, d, Plan{Domains: []string{"contoso.com"}, Cloud: "global"}); !errors.Is(err, context.Canceled) || out.Len() > 0 {
		t.Errorf("interrupted: error %v, said %q", err, &out)
	}
}

// TestCheckDNSResolver is the same through the resolver that the program uses.
func TestCheckDNSResolver(t *testing.T) {
	long := "v=spf1 " + microsoft + strings.Repeat(" ip4:198.51.100.0/24", 20) + " -all"
	r := &net.Resolver{PreferGo: true, Dial: dnstest.Server(t, map[string][]string{
		"contoso.com.":                {long[:255], long[255:]}, // one record of two strings
		"spf.protection.outlook.com.": {"v=spf1 ip4:40.92.0.0/15 -all"},
		"contoso.de.":                 {"SERVFAIL"},
	})}
	var out strings.Builder
	ok, err := Check(t.Context(), &out, r, Plan{Domains: []string{"contoso.com"}, Cloud: "global"})
	if !ok || err != nil || !strings.Contains(out.String(), "    "+long+"\n") || !strings.Contains(out.String(), "good: its MX is Microsoft's, contoso-com.mail.protection.outlook.com\n") {
		t.Errorf("ok %v, error %v\n%s", ok, err, &out)
	}
	out.Reset()
	ok, err = Check(t.Context(), &out, r, Plan{Domains: []string{"contoso.fr", "contoso.de"}, Cloud: "global"})
	for _, want := range []string{"DNS has neither TXT nor MX nor address records", "not known: the TXT records of contoso.de: the DNS server could not find out (SERVFAIL"} {
		if ok || err == nil || !strings.Contains(out.String(), want) {
			t.Errorf("ok %v, error %v, want %q in\n%s", ok, err, want, &out)
		}
	}
	out.Reset()
	ok, err = Check(t.Context(), &out, r, Plan{Domains: []string{"contoso.com"}, Cloud: "global",
		Routes: []Route{{"site", "connector", "contoso-com.mail.protection.outlook.com", []string{"203.0.113.7"}}}})
	if ok || err != nil || !strings.Contains(out.String(), "note: the line has 462 characters") {
		t.Errorf("ok %v, error %v\n%s", ok, err, &out)
	}
}
