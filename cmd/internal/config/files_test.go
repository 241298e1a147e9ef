package config

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/sendas/sendas/policy"
	"github.com/sendas/sendas/policy/address"
)

// authority signs certificates for connectors.
type authority struct {
	t    *testing.T
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newKey(t *testing.T) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// issue makes a certificate; without parent it signs itself.
func (a *authority) issue(c *x509.Certificate, key crypto.Signer) []byte {
	a.t.Helper()
	parent, signer := a.cert, crypto.Signer(a.key)
	if parent == nil {
		parent, signer = c, key
	}
	der, err := x509.CreateCertificate(rand.Reader, c, parent, key.Public(), signer)
	if err != nil {
		a.t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
}

func keyPEM(t *testing.T, key *ecdsa.PrivateKey) []byte {
	t.Helper()
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})
}

// half cuts what is in a PEM block.
func half(data []byte) []byte {
	b, _ := pem.Decode(data)
	b.Bytes = b.Bytes[:len(b.Bytes)/2]
	return pem.EncodeToMemory(b)
}

// TestPEMForms: what a certificate for a connector is written in instead of PEM, and the cure.
func TestPEMForms(t *testing.T) {
	now := time.Now()
	signer := &authority{t: t}
	key := newKey(t)
	cert := signer.issue(&x509.Certificate{SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: "relay.contoso.com"}, NotBefore: now.Add(-time.Hour), NotAfter: now.Add(time.Hour)}, key)
	der, _ := pem.Decode(cert)
	p, _ := policy.New(policy.Settings{Domains: []string{"contoso.com"}})
	for _, tc := range []struct{ name, content, want string }{
		{"DER", string(der.Bytes), `is a certificate in DER form, not in PEM format: type "openssl x509 -inform DER -in `},
		{"a byte order mark", "\ufeff" + string(cert), "begins with a byte order mark, so OpenSSL does not find"},
		{"UTF-16", "\xff\xfe-\x00-\x00", "is in UTF-16, as PowerShell and Notepad write it"},
		{"text", "hello", "is not in PEM format: if it is a .pfx or .p12 file"},
	} {
		file, keyFile := filepath.Join(t.TempDir(), "relay.pem"), filepath.Join(t.TempDir(), "relay.key")
		write(t, file, tc.content)
		write(t, keyFile, string(keyPEM(t, key)))
		if _, err := checkRouteCertificate(p, file, keyFile, "", now); err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: %v, want %s", tc.name, err, tc.want)
		}
	}
}

func TestRouteCertificate(t *testing.T) {
	now := time.Date(2026, 11, 21, 8, 0, 0, 0, time.UTC)
	p, errs := policy.New(policy.Settings{Domains: []string{"contoso.com"}, Mailboxes: []policy.MailboxSettings{{Address: "relay@contoso.com"}}})
	if errs != nil {
		t.Fatal(errs)
	}
	root := &authority{t: t, key: newKey(t)}
	ca := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "Lab Root"}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: now.AddDate(-1, 0, 0), NotAfter: now.AddDate(9, 0, 0), KeyUsage: x509.KeyUsageCertSign}
	caPEM := root.issue(ca, root.key)
	root.cert = ca
	dir := t.TempDir()
	caFile := filepath.Join(dir, "ca.pem")
	write(t, caFile, string(caPEM))
	leaf := func(cn string, names ...string) *x509.Certificate {
		return &x509.Certificate{SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: cn}, DNSNames: names, NotBefore: now.AddDate(0, -1, 0), NotAfter: now.AddDate(0, 11, 0)}
	}
	for _, tc := range []struct {
		name  string
		cert  *x509.Certificate
		spoil func(cert, key *[]byte)
		self  bool
		want  string
	}{
		{name: "good", cert: leaf("relay.contoso.com", "relay.contoso.com")},
		{name: "the name is only among the alternative ones", cert: leaf("relay", "relay.contoso.com")},
		{name: "for all below", cert: leaf("*.contoso.com", "*.contoso.com")},
		{name: "another domain", cert: leaf("relay.fabrikam.com", "relay.fabrikam.com", "mail.fabrikam.com"),
			want: "no name in the certificate lies in a verified domain, so Microsoft cannot tell whose it is; get one for a name such as relay.contoso.com; " +
				"subject=CN=relay.fabrikam.com issuer=CN=Lab Root notAfter=2027-10-21T08:00:00Z subjectAltName=DNS:relay.fabrikam.com, DNS:mail.fabrikam.com"},
		{name: "over", cert: func() *x509.Certificate { c := leaf("relay.contoso.com"); c.NotAfter = now.AddDate(0, 0, -1); return c }(),
			want: "the certificate ended on 2026-11-20T08:00:00Z; renew it; subject=CN=relay.contoso.com issuer=CN=Lab Root notAfter=2026-11-20T08:00:00Z subjectAltName=none"},
		{name: "not yet", cert: func() *x509.Certificate { c := leaf("relay.contoso.com"); c.NotBefore = now.AddDate(0, 0, 1); return c }(),
			want: "the certificate is not valid before 2026-11-22T08:00:00Z; "},
		{name: "self-signed", cert: leaf("relay.contoso.com"), self: true,
			want: "no trusted authority stands behind the certificate (it is self-signed, and Microsoft wants one of a public authority); subject=CN=relay.contoso.com"},
		{name: "another key", cert: leaf("relay.contoso.com"), spoil: func(_, key *[]byte) { *key = keyPEM(t, newKey(t)) },
			want: "is not the one of the certificate in"},
		{name: "no certificate", cert: leaf("relay.contoso.com"), spoil: func(cert, _ *[]byte) { *cert = nil }, want: "relay.pem is not in PEM format"},
		{name: "half a certificate", cert: leaf("relay.contoso.com"), spoil: func(cert, _ *[]byte) { *cert = half(*cert) },
			want: "the certificate or its key cannot be read: x509: "},
		{name: "half a key", cert: leaf("relay.contoso.com"), spoil: func(_, key *[]byte) { *key = half(*key) },
			want: "the certificate or its key cannot be read: failed to parse private key"},
		{name: "the certificate again", cert: leaf("relay.contoso.com"), spoil: func(cert, key *[]byte) { *key = *cert }, want: "relay.key holds no private key in PEM form"},
		{name: "switched", cert: leaf("relay.contoso.com"), spoil: func(cert, key *[]byte) { *cert, *key = *key, *cert }, want: "relay.pem holds no certificate in PEM form"},
		{name: "no key", cert: leaf("relay.contoso.com"), spoil: func(_, key *[]byte) { *key = []byte("key\n") }, want: "relay.key is not in PEM format"},
	} {
		key := newKey(t)
		signer := root
		if tc.self {
			signer = &authority{t: t}
		}
		cert, secret := signer.issue(tc.cert, key), keyPEM(t, key)
		if tc.spoil != nil {
			tc.spoil(&cert, &secret)
		}
		certFile, keyFile := filepath.Join(dir, "relay.pem"), filepath.Join(dir, "relay.key")
		write(t, certFile, string(cert))
		write(t, keyFile, string(secret))
		if err := os.Chmod(keyFile, 0o600); err != nil {
			t.Fatal(err)
		}
		_, err := checkRouteCertificate(p, certFile, keyFile, caFile, now)
		if tc.want == "" && err != nil || tc.want != "" && (err == nil || !strings.Contains(err.Error(), tc.want)) {
			t.Errorf("%s: %v, want %s", tc.name, err, tc.want)
		}
		if body := strings.Split(string(secret), "\n"); err != nil && len(body) > 1 && body[1] != "" && strings.Contains(err.Error(), body[1]) {
			t.Errorf("%s: the error shows the key", tc.name)
		}
	}
	// One file with both, and an authority that nobody knows.
	key := newKey(t)
	both := filepath.Join(dir, "both.pem")
	write(t, both, string(root.issue(leaf("relay.contoso.com"), key))+string(keyPEM(t, key)))
	if err := os.Chmod(both, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := checkRouteCertificate(p, both, "", caFile, now); err != nil {
		t.Errorf("one file: %v", err)
	}
	if _, err := checkRouteCertificate(p, both, "", "", now); err == nil || !strings.Contains(err.Error(), "put the certificates between it and its authority into the same file") {
		t.Errorf("an unknown authority: %v", err)
	}
	if err := os.Chmod(both, 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := checkRouteCertificate(p, both, "", caFile, now); err == nil || !strings.Contains(err.Error(), `is open to every user of this machine (mode 0644); type "chmod o= `) {
		t.Errorf("a key that everybody can read: %v", err)
	}
	for _, files := range [][2]string{{"none.pem", both}, {both, "none.key"}} {
		if _, err := checkRouteCertificate(p, files[0], files[1], caFile, now); err == nil || !strings.Contains(err.Error(), "does not exist; write the name of the file") {
			t.Errorf("%v: %v", files, err)
		}
	}
}

// TestPermissionsFile: who can change the file decides who may send as whom.
func TestPermissionsFile(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "sendas.yaml")
	write(t, file, strings.Replace(read(t, "testdata/good/minimal.yaml"), "tenant:\n", "tenant:\n  permissions_file: permissions.csv\n", 1))
	write(t, dir+"/relay-app.secret", "0123456789\n")
	write(t, dir+"/permissions.csv", "Kind,Mailbox,Address\nSendAs,erp@contoso.com,shared@contoso.com\n")
	wantError(t, file, CheckAll, "")
	c, err := Load(file, SkipFiles)
	if err != nil {
		t.Fatal(err)
	}
	a, _ := address.Parse("shared@contoso.com")
	if m, _ := c.Policy.MailboxFor(a); m == nil || m.Name != "erp@contoso.com" {
		t.Errorf("shared@contoso.com leaves through %v", m)
	}
	if err := os.Chmod(dir+"/permissions.csv", 0o666); err != nil {
		t.Fatal(err)
	}
	wantError(t, file, CheckToken, "tenant.permissions_file: permissions.csv can be changed by others (mode 0666)")
	wantError(t, file, SkipFiles, "")
}
