package dns

import "testing"

func TestResolverFiles(t *testing.T) {
	if got := Nameservers([]byte("# by hand\nsearch lan\nnameserver 10.0.0.53\nnameserver\n nameserver 10.0.0.54 # two\n")); got != "10.0.0.53 10.0.0.54" {
		t.Errorf("nameservers %q", got)
	}
	hosts := []byte("127.0.0.1 localhost\n192.0.2.7 SMTP.office365.com other # moved\n#192.0.2.8 smtp.office365.com\n2001:db8::1 a smtp.office365.com\n")
	if got := HostAddresses(hosts, "smtp.office365.com"); got != "192.0.2.7 2001:db8::1" {
		t.Errorf("addresses %q", got)
	}
}
