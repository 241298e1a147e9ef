package config

import (
	"bytes"
	"crypto"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/sendas/sendas/policy"
	"github.com/sendas/sendas/token/entra"
)

// readPermissions reads what Exchange Online says of the tenant, and returns the file's checksum
// too. Whoever can change the file decides who may send as whom.
func readPermissions(path string, strict bool) (*policy.Permissions, string, error) {
	const hint = "export it from Exchange Online, or remove this line"
	check := SkipFiles
	if strict {
		check = CheckOwn
	}
	name := filepath.Base(path)
	if err := fit(path, check, hint); err != nil {
		return nil, "", fmt.Errorf("%s %w", name, err)
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, "", fmt.Errorf("%s %w", name, unreadable(err, hint))
	}
	defer f.Close()
	sum := sha256.New()
	p, err := policy.ReadPermissions(io.TeeReader(f, sum))
	if err != nil {
		return nil, "", fmt.Errorf("%s: %w", name, err)
	}
	return p, hex.EncodeToString(sum.Sum(nil)), nil
}

// checkRouteCertificate looks at the certificate by which a connector knows the relay, as "openssl
// verify" and "openssl x509 -text" would: its key, its time, who signed it, and whether Microsoft
// finds the tenant by a name in it (which has to be an accepted domain or lie below one:
// New-InboundConnector, TlsSenderCertificateName).
// It returns when it ends.
func checkRouteCertificate(p *policy.Rules, certFile, keyFile, caFile string, now time.Time) (end time.Time, err error) {
	if keyFile == "" {
		keyFile = certFile
	}
	pair, err := tls.LoadX509KeyPair(certFile, keyFile)
	if err != nil {
		return end, explainPair(certFile, keyFile, err)
	}
	if info, err := os.Stat(keyFile); err == nil && info.Mode().Perm()&0o007 != 0 {
		return end, fmt.Errorf("the key in %s is open to every user of this machine (mode %04o); type \"chmod o= %s\"", keyFile, info.Mode().Perm(), keyFile)
	}
	c := pair.Leaf
	names := append(slices.Clone(c.DNSNames), c.Subject.CommonName)
	switch {
	case now.Before(c.NotBefore):
		return end, fmt.Errorf("the certificate is not valid before %s; %s", c.NotBefore.UTC().Format(time.RFC3339), describe(c))
	case now.After(c.NotAfter):
		return end, fmt.Errorf("the certificate ended on %s; renew it; %s", c.NotAfter.UTC().Format(time.RFC3339), describe(c))
	case !slices.ContainsFunc(names, p.Verified):
		return end, fmt.Errorf("no name in the certificate lies in a verified domain, so Microsoft cannot tell whose it is; "+
			"get one for a name such as relay.%s; %s", p.Domains()[0], describe(c))
	}
	return c.NotAfter, checkChain(pair, caFile, now)
}

// checkChain finds out whether somebody else can follow the certificate to an authority that they
// trust.
func checkChain(pair tls.Certificate, caFile string, now time.Time) error {
	roots, err := x509.SystemCertPool()
	if err != nil {
		return fmt.Errorf("the system's trusted certificates cannot be read: %w", err)
	}
	if caFile != "" {
		pem, err := os.ReadFile(caFile)
		if err != nil {
			return fmt.Errorf("%s %w", caFile, unreadable(err, "write the name of the file"))
		}
		roots.AppendCertsFromPEM(pem)
	}
	between := x509.NewCertPool()
	for _, der := range pair.Certificate[1:] {
		if c, err := x509.ParseCertificate(der); err == nil {
			between.AddCert(c)
		}
	}
	_, err = pair.Leaf.Verify(x509.VerifyOptions{Roots: roots, Intermediates: between, CurrentTime: now, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}})
	if err == nil {
		return nil
	}
	why := "put the certificates between it and its authority into the same file, behind it"
	if c := pair.Leaf; c.Subject.String() == c.Issuer.String() {
		why = "it is self-signed, and Microsoft wants one of a public authority"
	}
	return fmt.Errorf("no trusted authority stands behind the certificate (%s); %s", why, describe(pair.Leaf))
}

// explainPair says which of the two files is not what it should be. crypto/tls tells it in text
// alone, so we look ourselves; err is what it said.
func explainPair(certFile, keyFile string, err error) error {
	var data [2][]byte
	for i, f := range []string{certFile, keyFile} {
		var e error
		if data[i], e = os.ReadFile(f); e != nil {
			return fmt.Errorf("%s %w", f, unreadable(e, "write the name of the file"))
		}
	}
	cert := firstBlock(data[0], func(kind string) bool { return kind == "CERTIFICATE" })
	if cert == nil {
		return notPEM(certFile, data[0], "certificate", "holds no certificate in PEM form (-----BEGIN CERTIFICATE-----)")
	}
	key := firstBlock(data[1], func(kind string) bool { return strings.HasSuffix(kind, "PRIVATE KEY") })
	if key == nil {
		return notPEM(keyFile, data[1], "private key", "holds no private key in PEM form (-----BEGIN PRIVATE KEY-----), without passphrase")
	}
	const unusable = "the certificate or its key cannot be read: "
	leaf, e := x509.ParseCertificate(cert)
	if e != nil {
		return fmt.Errorf(unusable+"%w", e)
	}
	signer := parseSigner(key)
	public, ok := leaf.PublicKey.(interface{ Equal(crypto.PublicKey) bool })
	switch {
	case signer == nil:
		return errors.New(unusable + "failed to parse private key")
	case ok && !public.Equal(signer.Public()):
		return fmt.Errorf("the key in %s is not the one of the certificate in %s; compare \"openssl x509 -noout -pubkey\" and \"openssl pkey -pubout\"", keyFile, certFile)
	}
	return fmt.Errorf(unusable+"%w", err)
}

// notPEM says what a file holds that has no such block: by its form, else in the words given.
func notPEM(file string, data []byte, what, otherwise string) error {
	if bytes.HasPrefix(data, []byte("\ufeff-----BEGIN")) {
		return fmt.Errorf("%s begins with a byte order mark, so OpenSSL does not find what stands behind it; type \"sed -i '1s/^\\xEF\\xBB\\xBF//' %s\"", file, file)
	}
	if e := entra.NotPEM(file, data, what); !bytes.Contains(data, []byte("-----BEGIN")) {
		return fmt.Errorf("%s %s", file, e.Sentence())
	}
	return fmt.Errorf("%s %s", file, otherwise)
}

// firstBlock returns the first block of such a kind in a PEM file, or nil.
func firstBlock(data []byte, is func(kind string) bool) []byte {
	for b, rest := pem.Decode(data); b != nil; b, rest = pem.Decode(rest) {
		if is(b.Type) {
			return b.Bytes
		}
	}
	return nil
}

// parseSigner reads a private key in any of the forms that crypto/tls reads, or returns nil.
func parseSigner(der []byte) crypto.Signer {
	var key any
	for _, parse := range []func([]byte) (any, error){
		x509.ParsePKCS8PrivateKey,
		func(der []byte) (any, error) { return x509.ParsePKCS1PrivateKey(der) },
		func(der []byte) (any, error) { return x509.ParseECPrivateKey(der) },
	} {
		if k, err := parse(der); err == nil {
			key = k
			break
		}
	}
	signer, _ := key.(crypto.Signer)
	return signer
}

// describe names a certificate as openssl does.
func describe(c *x509.Certificate) string {
	san := "none"
	if len(c.DNSNames) > 0 {
		san = "DNS:" + strings.Join(c.DNSNames, ", DNS:")
	}
	return fmt.Sprintf("subject=%s issuer=%s notAfter=%s subjectAltName=%s", c.Subject, c.Issuer, c.NotAfter.UTC().Format(time.RFC3339), san)
}
