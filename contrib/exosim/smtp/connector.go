package smtp

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
)

// Connector is an inbound connector of type OnPremises: whose mail the MX
// endpoint takes as the organisation's own. A client belongs to it by address
// or by certificate; any one of what is given suffices.
type Connector struct {
	Name string `yaml:"name"`
	// SenderIPs are addresses and networks: 203.0.113.7, 10.1.0.0/16.
	SenderIPs []string `yaml:"sender_ips"`
	// CertificateName is TlsSenderCertificateName: relay.contoso.com, or
	// *.contoso.com for all names below. The client's certificate must have it
	// as common name or DNS name, and must be vouched for; see
	// Config.ClientCAFile.
	CertificateName string `yaml:"certificate_name"`

	networks []netip.Prefix // SenderIPs
}

// complete reads SenderIPs. Its error begins with the wrong field.
func (c *Connector) complete() error {
	c.networks = nil
	for i, text := range c.SenderIPs {
		n, ok := network(text)
		if !ok {
			return fmt.Errorf("sender_ips[%d]: %q is no address and no network such as 10.1.0.0/16", i, text)
		}
		c.networks = append(c.networks, n)
	}
	name := strings.TrimPrefix(c.CertificateName, "*.")
	switch {
	case c.CertificateName == "" && len(c.networks) == 0:
		return fmt.Errorf("sender_ips: needed, or certificate_name")
	case c.CertificateName == "":
		return nil
	case strings.ContainsAny(name, "*@/ ") || !strings.Contains(name, "."):
		return fmt.Errorf("certificate_name: %q is no name such as relay.contoso.com or *.contoso.com", c.CertificateName)
	}
	return nil
}

// network reads an address or a network; an address is a network of one.
func network(text string) (netip.Prefix, bool) {
	if n, err := netip.ParsePrefix(text); err == nil {
		return n, true
	}
	a, err := netip.ParseAddr(text)
	if err != nil {
		return netip.Prefix{}, false
	}
	a = a.Unmap().WithZone("")
	return netip.PrefixFrom(a, a.BitLen()), true
}

func (c *Connector) hasAddress(a netip.Addr) bool {
	return slices.ContainsFunc(c.networks, func(n netip.Prefix) bool { return n.Contains(a) })
}

// hasName reports whether a certificate's name is the connector's. The names below
// a domain do not include the domain itself.
func (c *Connector) hasName(name string) bool {
	if domain, all := strings.CutPrefix(c.CertificateName, "*"); all {
		return len(name) > len(domain) && strings.EqualFold(name[len(name)-len(domain):], domain)
	}
	return c.CertificateName != "" && strings.EqualFold(name, c.CertificateName)
}
