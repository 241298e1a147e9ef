package entra

import (
	"strings"
	"testing"
	"time"
)

// TestCheckKeyPair: what a service shows to its store, and whom it trusts there.
func TestCheckKeyPair(t *testing.T) {
	now := time.Now()
	mine := certPEM(t, firstKey(), now.Add(-time.Hour), now.Add(time.Hour))
	ended := certPEM(t, firstKey(), now.Add(-2*time.Hour), now.Add(-time.Hour))
	for _, tc := range []struct {
		name, cert, key string
		want            string // "": good
	}{
		{"one file", mine + pkcs8(t, firstKey()), "", ""},
		{"two files", mine, pkcs8(t, firstKey()), ""},
		{"another's key", mine, pkcs8(t, secondKey()), "do not belong together"},
		{"ended", ended, pkcs8(t, firstKey()), "expired"},
		{"no key", mine, "", "has no private key"},
		{"no certificate", pkcs8(t, firstKey()), "", "has no certificate"},
		{"something else", "s3cret", "", "is not in PEM format"},
	} {
		certFile, keyFile := certFiles(t, tc.cert, tc.key)
		err := CheckKeyPair(certFile, keyFile, "sendas-milter")
		if (err == nil) != (tc.want == "") || err != nil && (!strings.Contains(err.Error(), tc.want) || strings.Contains(err.Error(), "s3cret")) {
			t.Errorf("%s: %v, want %q", tc.name, err, tc.want)
		}
	}
	open := writeFile(t, "open.pem", mine+pkcs8(t, firstKey()), 0o644)
	if err := CheckKeyPair(open, "", "sendas-milter"); err == nil || !strings.Contains(err.Error(), "is open to every user") {
		t.Errorf("a key that everybody reads: %v", err)
	}
	if err := CheckAnchors(writeFile(t, "ca.pem", mine, 0o644), "sendas-milter"); err != nil {
		t.Errorf("anchors: %v", err)
	}
	if err := CheckAnchors(writeFile(t, "ca.key", pkcs8(t, firstKey()), 0o644), "sendas-milter"); err == nil || !strings.Contains(err.Error(), "has no certificate") {
		t.Errorf("a key for anchors: %v", err)
	}
	if err := CheckAnchors("credential:ca", "sendas-milter"); err == nil || !strings.Contains(err.Error(), "sendas-milter") {
		t.Errorf("a credential of systemd's: %v, want the unit named", err)
	}
}
