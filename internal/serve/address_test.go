package serve

import (
	"os"
	"testing"
)

func TestAddress(t *testing.T) {
	for _, tc := range []struct {
		in                                     Address
		kind, path, hostPort, network, address string
	}{
		{"unix:/run/milter", KindUnix, "/run/milter", "", "unix", "/run/milter"},
		{"unix:sendas/milter", KindUnix, "sendas/milter", "", "unix", "sendas/milter"},
		{"unix:", KindUnix, "", "", "unix", ""},
		{"unix:/a:b", KindUnix, "/a:b", "", "unix", "/a:b"},
		{"inet:127.0.0.1:8891", KindInet, "", "127.0.0.1:8891", "tcp", "127.0.0.1:8891"},
		{"inet:[::1]:8891", KindInet, "", "[::1]:8891", "tcp", "[::1]:8891"},
		{"local:/run/milter", "", "", "", "", ""}, // Postfix's word, not ours
		{"unix", "", "", "", "", ""},
		{"/run/milter", "", "", "", "", ""},
		{"", "", "", "", "", ""},
	} {
		network, address := tc.in.Network()
		if tc.in.Kind() != tc.kind || tc.in.Path() != tc.path || tc.in.HostPort() != tc.hostPort || network != tc.network || address != tc.address {
			t.Errorf("%q: kind %q, path %q, host and port %q, network %q %q", tc.in, tc.in.Kind(), tc.in.Path(), tc.in.HostPort(), network, address)
		}
		if got := tc.in.String(); got != string(tc.in) {
			t.Errorf("%q is written as %q", tc.in, got)
		}
	}
	if Unix("/x") != "unix:/x" || Inet("[::1]:1") != "inet:[::1]:1" {
		t.Error("Unix and Inet write something else than what is read")
	}
}

// TestAddressOfPostfix: what main.cf says is below the queue directory, and is written relative to
// it.
func TestAddressOfPostfix(t *testing.T) {
	const queue = "/var/spool/postfix"
	for _, tc := range []struct {
		written string
		want    Address // on this host
		back    Address // as it is written best
	}{
		{"unix:sendas/milter", "unix:/var/spool/postfix/sendas/milter", "unix:sendas/milter"},
		{"unix:/var/spool/postfix/sendas/milter", "unix:/var/spool/postfix/sendas/milter", "unix:sendas/milter"},
		{"local:sendas/milter", "unix:/var/spool/postfix/sendas/milter", "unix:sendas/milter"},
		{"unix:/run/milter", "unix:/run/milter", "unix:/run/milter"},
		{"unix:/var/spool/postfix2/milter", "unix:/var/spool/postfix2/milter", "unix:/var/spool/postfix2/milter"},
		{"inet:127.0.0.1:8891", "inet:127.0.0.1:8891", "inet:127.0.0.1:8891"},
		{"unix:", "unix:", "unix:"},
		{"", "", ""},
	} {
		got := FromPostfix(tc.written, queue)
		if got != tc.want || got.RelativeTo(queue) != tc.back {
			t.Errorf("%q is %q, written %q; want %q, %q", tc.written, got, got.RelativeTo(queue), tc.want, tc.back)
		}
	}
}

func TestSameAddress(t *testing.T) {
	dir := t.TempDir()
	if err := os.Symlink(dir, dir+"/link"); err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		a, b Address
		want bool
	}{
		{Unix(dir + "/s"), Unix(dir + "/s"), true},
		{Unix(dir + "/link/s"), Unix(dir + "/s"), true},
		{"unix:/nowhere/../s", "unix:/s", true},
		{"unix:/s", "unix:/t", false},
		{"inet:127.0.0.1:1", "inet:127.0.0.1:1", true},
		{"inet:127.0.0.1:1", "unix:127.0.0.1:1", false},
		{"", "", false},
	} {
		if got := tc.a.Same(tc.b); got != tc.want {
			t.Errorf("%q and %q the same: %v, want %v", tc.a, tc.b, got, tc.want)
		}
	}
}
