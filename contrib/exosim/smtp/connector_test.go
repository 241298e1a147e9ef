package smtp

import (
	"net/netip"
	"testing"
)

func TestConnectorMatches(t *testing.T) {
	for _, tc := range []struct {
		connector Connector
		value     string // an address or a name
		want      bool
	}{
		{Connector{SenderIPs: []string{"203.0.113.7"}}, "203.0.113.7", true},
		{Connector{SenderIPs: []string{"203.0.113.7"}}, "203.0.113.8", false},
		{Connector{SenderIPs: []string{"192.0.2.1", "10.1.0.0/16"}}, "10.1.255.255", true},
		{Connector{SenderIPs: []string{"10.1.0.0/16"}}, "10.2.0.0", false},
		{Connector{SenderIPs: []string{"::ffff:203.0.113.7"}}, "203.0.113.7", true},
		{Connector{SenderIPs: []string{"2001:db8::/64"}}, "2001:db8::25", true},
		{Connector{SenderIPs: []string{"2001:db8::25"}}, "2001:db8::26", false},
		{Connector{CertificateName: "relay.contoso.com"}, "RELAY.contoso.com", true},
		{Connector{CertificateName: "relay.contoso.com"}, "x.relay.contoso.com", false},
		{Connector{CertificateName: "relay.contoso.com"}, "relay.contoso.com.example.net", false},
		{Connector{CertificateName: "*.contoso.com"}, "relay.contoso.com", true},
		{Connector{CertificateName: "*.contoso.com"}, "a.relay.CONTOSO.com", true},
		{Connector{CertificateName: "*.contoso.com"}, "contoso.com", false},
		{Connector{CertificateName: "*.contoso.com"}, "xcontoso.com", false},
		{Connector{CertificateName: "*.contoso.com"}, ".contoso.com", false},
		{Connector{SenderIPs: []string{"203.0.113.7"}}, "relay.contoso.com", false},
	} {
		c := tc.connector
		if err := c.complete(); err != nil {
			t.Fatal(err)
		}
		a, _ := netip.ParseAddr(tc.value)
		if got := c.hasName(tc.value) || c.hasAddress(a); got != tc.want {
			t.Errorf("%q in %q and %v: %v, want %v", tc.value, c.CertificateName, c.SenderIPs, got, tc.want)
		}
	}
}
