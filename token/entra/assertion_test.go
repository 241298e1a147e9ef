package entra

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"math/big"
	"os"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"
)

// Two keys are enough for all tests; they take a while to make.
var (
	firstKey  = sync.OnceValue(newKey)
	secondKey = sync.OnceValue(newKey)
)

func newKey() *rsa.PrivateKey {
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		panic(err)
	}
	return key
}

func certPEM(t *testing.T, key *rsa.PrivateKey, from, to time.Time) string {
	t.Helper()
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "sendas"}, NotBefore: from, NotAfter: to}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	return block("CERTIFICATE", der, nil)
}

func pkcs8(t *testing.T, key any) string {
	t.Helper()
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return block("PRIVATE KEY", der, nil)
}

func pkcs1(key *rsa.PrivateKey) string {
	return block("RSA PRIVATE KEY", x509.MarshalPKCS1PrivateKey(key), nil)
}

func block(typ string, der []byte, headers map[string]string) string {
	return string(pem.EncodeToMemory(&pem.Block{Type: typ, Bytes: der, Headers: headers}))
}

func TestCheckCertificate(t *testing.T) {
	now := time.Now()
	end := now.Add(90 * 24 * time.Hour).Truncate(time.Second)
	mine := certPEM(t, firstKey(), now.Add(-time.Hour), end)
	other := certPEM(t, secondKey(), now.Add(-time.Hour), end)
	for _, tc := range []struct{ name, cert, key string }{
		{"one file, key first", pkcs8(t, firstKey()) + mine, ""},
		{"one file, certificate first", mine + pkcs8(t, firstKey()), ""},
		{"PKCS #1", mine, pkcs1(firstKey())},
		{"chain around it", other + mine + other, pkcs8(t, firstKey())},
		{"a byte order mark", "\ufeff" + mine, "\ufeff" + pkcs8(t, firstKey())},
		{"bag attributes of openssl pkcs12", "Bag Attributes\n    localKeyID: 01\n" + pkcs8(t, firstKey()) + "subject=CN = sendas\n" + mine, ""},
	} {
		got, err := CheckCertificate(certFiles(t, tc.cert, tc.key))
		if err != nil || !got.Equal(end) {
			t.Errorf("%s: CheckCertificate = %v, %v, want %v", tc.name, got, err, end)
		}
	}
}

// TestCertificateEnd: an end that is past is known, and so is one of a certificate that is not valid
// yet; where there is no certificate, there is none.
func TestCertificateEnd(t *testing.T) {
	now := time.Now().Truncate(time.Second)
	for _, tc := range []struct {
		name       string
		from, end  time.Time
		key        string
		known, bad bool
	}{
		{"valid", now.Add(-time.Hour), now.Add(time.Hour), pkcs8(t, firstKey()), true, false},
		{"ended", now.Add(-2 * time.Hour), now.Add(-time.Hour), pkcs8(t, firstKey()), true, true},
		{"to come", now.Add(time.Hour), now.Add(2 * time.Hour), pkcs8(t, firstKey()), true, true},
		{"another's key", now.Add(-time.Hour), now.Add(time.Hour), pkcs8(t, secondKey()), false, true},
	} {
		got, err := CheckCertificate(certFiles(t, certPEM(t, firstKey(), tc.from, tc.end), tc.key))
		if got.Equal(tc.end) != tc.known || (err != nil) != tc.bad {
			t.Errorf("%s: CheckCertificate = %v, %v, want the end %v: %v, an error: %v", tc.name, got, err, tc.end, tc.known, tc.bad)
		}
	}
}

// certFiles writes one file or two. A certificate of its own may be public.
func certFiles(t *testing.T, cert, key string) (certFile, keyFile string) {
	t.Helper()
	if key == "" {
		return writeFile(t, "app.pem", cert, 0o600), ""
	}
	return writeFile(t, "app.crt", cert, 0o644), writeFile(t, "app.key", key, 0o600)
}

// derOf returns what is in the first PEM block.
func derOf(text string) string {
	b, _ := pem.Decode([]byte(text))
	return string(b.Bytes)
}

func TestCertificateSentences(t *testing.T) {
	now := time.Now()
	mine := certPEM(t, firstKey(), now.Add(-time.Hour), now.Add(time.Hour))
	ec, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	ecDER, err := x509.MarshalECPrivateKey(ec)
	if err != nil {
		t.Fatal(err)
	}
	key := pkcs8(t, firstKey())
	for _, tc := range []struct{ name, cert, key, want string }{
		{"mismatch", mine, pkcs8(t, secondKey()), `has no certificate for the configured private key: the two were made at different times`},
		{"encrypted PKCS #8", mine, block("ENCRYPTED PRIVATE KEY", []byte("x"), nil), `has an encrypted private key, and nobody is there to type its passphrase: type "openssl pkey -in /`},
		{"encrypted PKCS #1", mine, block("RSA PRIVATE KEY", []byte("x"), map[string]string{"Proc-Type": "4,ENCRYPTED", "DEK-Info": "AES-256-CBC,00"}), `has an encrypted private key`},
		{"EC in PKCS #8", mine, pkcs8(t, ec), `has a private key that is not RSA, which Entra does not take: make one with "openssl req -x509`},
		{"EC", mine, block("EC PRIVATE KEY", ecDER, nil), `has a private key that is not RSA`},
		{"damaged key", mine, block("PRIVATE KEY", []byte("x"), nil), `has a damaged private key (`},
		{"damaged certificate", block("CERTIFICATE", []byte("x"), nil), key, `has a damaged certificate (`},
		{"expired", certPEM(t, firstKey(), now.Add(-48*time.Hour), now.Add(-24*time.Hour)), key, `has a certificate that expired on ` + now.Add(-24*time.Hour).UTC().Format("2006-01-02 15:04") + ` UTC: make a new one, upload it`},
		{"not yet valid", certPEM(t, firstKey(), now.Add(24*time.Hour), now.Add(48*time.Hour)), key, `is valid only from ` + now.Add(24*time.Hour).UTC().Format("2006-01-02 15:04") + ` UTC, and this machine's clock says`},
		{"no key", mine, "", `has no private key: put certificate and key into one PEM file, or name both files`},
		{"no certificate", key, "", `has no certificate: put certificate and key`},
		{"DER", derOf(mine), pkcs8(t, firstKey()), `is a certificate in DER form, not in PEM format: type "openssl x509 -inform DER -in /`},
		{"DER of the key", mine, derOf(pkcs8(t, firstKey())), `is a private key in DER form, not in PEM format: type "openssl pkey -inform DER -in /`},
		{"DER of the key, PKCS #1", mine, derOf(pkcs1(firstKey())), `is a private key in DER form`},
		{"base64 of Key Vault", base64.StdEncoding.EncodeToString([]byte("0\x82\x09\x01\x02\x01\x03"+strings.Repeat("x", 200))) + "\n", "", `the base64 in which Azure Key Vault hands out a .pfx file: type "base64 -d /`},
		{"PKCS #7", "-----BEGIN PKCS7-----\nMIIB\n-----END PKCS7-----\n", key, `holds a chain of certificates as PKCS #7, without their key: type "openssl pkcs7 -print_certs -in /`},
		{"UTF-16", "\xff\xfe-\x00-\x00", key, `is in UTF-16`},
		{"PFX", "0\x82\x09\x01\x02\x01\x03", "", `is not in PEM format: if it is a .pfx or .p12 file, type "openssl pkcs12 -in /`},
	} {
		_, err := CheckCertificate(certFiles(t, tc.cert, tc.key))
		if _, ok := errors.AsType[*FileError](err); !ok || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: CheckCertificate: %v\nwant a *FileError with %q", tc.name, err, tc.want)
		}
		if err != nil && strings.Contains(err.Error(), key[40:80]) {
			t.Errorf("%s: the error shows the key: %v", tc.name, err)
		}
	}
}

func TestKeyFileModes(t *testing.T) {
	now := time.Now()
	mine := certPEM(t, firstKey(), now.Add(-time.Hour), now.Add(time.Hour))
	open := writeFile(t, "key.pem", pkcs8(t, firstKey()), 0o644)
	both := writeFile(t, "both.pem", mine+pkcs8(t, firstKey()), 0o604)
	for _, files := range [][2]string{{writeFile(t, "c.pem", mine, 0o600), open}, {both, ""}, {both, both}} {
		_, err := CheckCertificate(files[0], files[1])
		if err == nil || !strings.Contains(err.Error(), `type "chmod o= `) {
			t.Errorf("CheckCertificate(%q) = %v, want the sentence with chmod", files, err)
		}
	}
}

func TestAssertion(t *testing.T) {
	// https://learn.microsoft.com/entra/identity-platform/certificate-credentials
	const audience = "https://login.microsoftonline.com/contoso.onmicrosoft.com/oauth2/v2.0/token"
	const client = "5f2c0d3e-0000-4000-8000-000000000001"
	now := time.Date(2026, 11, 21, 4, 0, 0, 0, time.UTC)
	mine := certPEM(t, firstKey(), now.Add(-time.Hour), now.Add(time.Hour))
	id, err := KeyPair{writeFile(t, "c.pem", mine+pkcs8(t, firstKey()), 0o600), ""}.Read(now)
	if err != nil {
		t.Fatal(err)
	}
	a, err := id.assertion(audience, client, now)
	if err != nil {
		t.Fatal(err)
	}
	got := parseAssertion(t, string(a), mine, now)
	want := jwt.MapClaims{"aud": audience, "iss": client, "sub": client, "nbf": 1795233600.0, "iat": 1795233600.0, "exp": 1795234200.0}
	jti, _ := got["jti"].(string)
	if !regexp.MustCompile(`^[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$`).MatchString(jti) {
		t.Errorf("jti = %q, want a random UUID", jti)
	}
	for k, v := range want {
		if got[k] != v {
			t.Errorf("claim %s = %v, want %v", k, got[k], v)
		}
	}
	if len(got) != len(want)+1 {
		t.Errorf("claims = %v, want none but the documented", got)
	}
	b, err := id.assertion(audience, client, now)
	if err != nil || parseAssertion(t, string(b), mine, now)["jti"] == jti {
		t.Errorf("a second assertion has the same jti %q (%v)", jti, err)
	}
}

// parseAssertion checks signature and header as Entra does, and returns the claims.
func parseAssertion(t *testing.T, signed, cert string, now time.Time) jwt.MapClaims {
	t.Helper()
	der, _ := pem.Decode([]byte(cert))
	c, err := x509.ParseCertificate(der.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	claims := jwt.MapClaims{}
	tok, err := jwt.ParseWithClaims(signed, claims, func(*jwt.Token) (any, error) { return c.PublicKey, nil },
		jwt.WithValidMethods([]string{"PS256"}), jwt.WithTimeFunc(func() time.Time { return now }), jwt.WithExpirationRequired())
	if err != nil {
		t.Fatalf("the assertion does not verify: %v", err)
	}
	sum := sha256.Sum256(der.Bytes)
	if got, want := tok.Header["x5t#S256"], base64.RawURLEncoding.EncodeToString(sum[:]); got != want {
		t.Errorf("header x5t#S256 = %v, want %v", got, want)
	}
	if tok.Header["typ"] != "JWT" || tok.Header["alg"] != "PS256" || len(tok.Header) != 3 {
		t.Errorf("header = %v, want alg PS256, typ JWT and x5t#S256 alone", tok.Header)
	}
	return claims
}

// federatedToken is the token of a Kubernetes cluster that ends at exp; it is not signed.
func federatedToken(exp string) string {
	enc := base64.RawURLEncoding.EncodeToString
	return enc([]byte(`{"alg":"RS256","kid":"k1"}`)) + "." +
		enc([]byte(`{"aud":["api://AzureADTokenExchange"],"iss":"https://oidc.example/","sub":"system:serviceaccount:mail:relay"`+exp+`}`)) + "." +
		enc([]byte("signature-of-the-cluster"))
}

func TestReadFederated(t *testing.T) {
	now := time.Unix(1795233600, 0)
	for _, tc := range []struct {
		name, content string
		mode          os.FileMode
	}{
		{"projected volume", federatedToken(`,"exp":1795237200`), 0o644},
		{"newline", federatedToken(`,"exp":1795237200`) + "\n", 0o600},
		{"a second left", federatedToken(`,"exp":1795233601`), 0o640},
		{"end as a string", federatedToken(`,"exp":"1795237200"`), 0o444},
		{"no end", federatedToken(""), 0o666}, // Entra will say
	} {
		got, end, err := readFederated(writeFile(t, "token", tc.content, tc.mode), now)
		if err != nil || string(got) != strings.TrimSpace(tc.content) || end.IsZero() != (tc.name == "no end") {
			t.Errorf("%s: readFederated = %q, %v, %v, want the token", tc.name, string(got), end, err)
		}
	}
}

func TestFederatedSentences(t *testing.T) {
	now := time.Unix(1795233600, 0)
	const notOne = `does not hold the token of another issuer (a JWT: three parts with dots between): name the file that the platform writes`
	good := federatedToken(`,"exp":1795237200`)
	for _, tc := range []struct{ name, content, want string }{
		{"empty", "\n", `is empty: it is renewed, mostly every hour, by whoever put it there (in Kubernetes the kubelet`},
		{"stale", federatedToken(`,"exp":1795233600`), `is stale, its token expired on 2026-11-21 04:00 UTC: it is renewed, mostly every hour, by whoever put it there`},
		{"stale for years", federatedToken(`,"exp":1`), `is stale, its token expired on 1970-01-01 00:00 UTC`},
		{"a secret", hardSecret, notOne},
		{"two parts", good[:strings.LastIndex(good, ".")], notOne},
		{"four parts", good + ".x", notOne},
		{"no signature", good[:strings.LastIndex(good, ".")+1], notOne},
		{"two tokens", good + "\n" + good, notOne},
		{"not base64url", good + "!", notOne},
		{"no JSON inside", "e30.aGVsbG8.c2ln", notOne},
		{"a list inside", "e30.W10.c2ln", notOne},
		{"too long", federatedToken(`,"x":"` + strings.Repeat("x", maxFederated) + `"`), notOne},
	} {
		_, _, err := readFederated(writeFile(t, "token", tc.content, 0o644), now)
		if _, ok := errors.AsType[*FileError](err); !ok || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: readFederated: %v\nwant a *FileError with %q", tc.name, err, tc.want)
		}
		if err != nil && len(tc.content) > 20 && strings.Contains(err.Error(), tc.content[4:20]) {
			t.Errorf("%s: %v shows the token", tc.name, err)
		}
	}
	end, err := CheckFederatedTokenFile(writeFile(t, "token", federatedToken(`,"exp":1`), 0o644))
	if err == nil || !strings.Contains(err.Error(), "is stale") || end.Unix() != 1 {
		t.Errorf("CheckFederatedTokenFile of an old token = %v, %v, want its end, and that it is stale", end, err)
	}
	if end, err = CheckFederatedTokenFile(writeFile(t, "token", federatedToken(`,"exp":253402300799`), 0o644)); err != nil || end.Unix() != 253402300799 {
		t.Errorf("CheckFederatedTokenFile of a good token = %v, %v, want its end", end, err)
	}
}

func TestFederatedFromEnvironment(t *testing.T) {
	for _, tc := range []struct {
		env  map[string]string
		want FederatedEnvironment
	}{
		{nil, FederatedEnvironment{}},
		{map[string]string{
			"AZURE_FEDERATED_TOKEN_FILE": "/var/run/secrets/azure/tokens/azure-identity-token",
			"AZURE_CLIENT_ID":            "5f2c0d3e-0000-4000-8000-000000000001",
			"AZURE_TENANT_ID":            "72f9-1",
			"AZURE_AUTHORITY_HOST":       "https://login.microsoftonline.com/",
		}, FederatedEnvironment{
			TokenFile: "/var/run/secrets/azure/tokens/azure-identity-token", ClientID: "5f2c0d3e-0000-4000-8000-000000000001",
			TenantID: "72f9-1", Authority: "https://login.microsoftonline.com",
		}},
		{map[string]string{"AZURE_AUTHORITY_HOST": "https://login.microsoftonline.us"}, FederatedEnvironment{Authority: "https://login.microsoftonline.us"}},
		{map[string]string{"AZURE_CLIENT_ID": " \n", "AZURE_TENANT_ID": "t\n"}, FederatedEnvironment{TenantID: "t"}},
	} {
		if got := FederatedFromEnvironment(func(name string) string { return tc.env[name] }); got != tc.want {
			t.Errorf("FederatedFromEnvironment with %v = %+v, want %+v", tc.env, got, tc.want)
		}
	}
}
