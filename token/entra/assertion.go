package entra

import (
	"bytes"
	"cmp"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha1"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"encoding/pem"
	"fmt"
	"maps"
	"strings"
	"time"

	"github.com/golang-jwt/jwt/v5"

	"github.com/sendas/sendas/token/entra/inspect"
)

// assertionLife is how long a client assertion is valid: MSAL's choice, and
// room for a clock that is some minutes off.
const assertionLife = 10 * time.Minute

// A KeyPair names the files by which an app proves itself with a certificate.
type KeyPair struct {
	CertificateFile string // PEM
	KeyFile         string // empty where CertificateFile has the key too
}

// An Identity is a certificate with its key, as registered for an app in Entra.
type Identity struct {
	Certificate *x509.Certificate
	key         *rsa.PrivateKey
}

// CheckCertificate reports whether the files can prove an app's identity: an RSA
// key that is not encrypted and is closed to other users, and a certificate for
// it, valid now, all in PEM format. keyFile may be empty when certFile holds
// both. It returns the end of the certificate's validity, also where the error is that this is past.
// The error is a *FileError.
func CheckCertificate(certFile, keyFile string) (notAfter time.Time, err error) {
	id, err := KeyPair{certFile, keyFile}.Read(time.Now())
	if id == nil {
		return time.Time{}, err
	}
	return id.Certificate.NotAfter, err
}

// Read reads both files and checks that they belong together at now. With the error that now is not
// their time, they are returned too. The error is a *FileError.
func (p KeyPair) Read(now time.Time) (*Identity, error) {
	certFile, keyFile := p.CertificateFile, cmp.Or(p.KeyFile, p.CertificateFile)
	keyPEM, err := ours.readPrivate(keyFile)
	if err != nil {
		return nil, err
	}
	certPEM := keyPEM
	if certFile != keyFile {
		// A certificate is public, so its file may be open to everybody.
		if certPEM, _, err = ours.readFile(certFile); err != nil {
			return nil, err
		}
	}
	key, err := parseKey(keyFile, keyPEM)
	if err != nil {
		return nil, err
	}
	cert, err := parseCertificate(certFile, certPEM, key)
	if err != nil {
		return nil, err
	}
	return &Identity{cert, key}, checkValidity(certFile, cert, now)
}

// parseKey returns the first private key in a PEM file.
func parseKey(file string, data []byte) (*rsa.PrivateKey, error) {
	for b := range pemBlocks(data) {
		if !strings.HasSuffix(b.Type, "PRIVATE KEY") {
			continue
		}
		// PKCS #8 says it in the type, OpenSSL's older format in a header.
		if b.Type == "ENCRYPTED PRIVATE KEY" || strings.Contains(b.Headers["Proc-Type"], "ENCRYPTED") {
			return nil, &FileError{Path: file, Problem: "has an encrypted private key, and nobody is there to type its passphrase",
				Act: fmt.Sprintf("type \"openssl pkey -in %s -out NEW.pem\" and use the new file", file)}
		}
		return parseKeyBlock(file, b)
	}
	return nil, NotPEM(file, data, "private key")
}

// copyAgain is what to do about a damaged file.
const copyAgain = "copy it again from where it was made"

func parseKeyBlock(file string, b *pem.Block) (*rsa.PrivateKey, error) {
	var key any
	var err error
	switch b.Type {
	case "RSA PRIVATE KEY":
		key, err = x509.ParsePKCS1PrivateKey(b.Bytes)
	case "PRIVATE KEY":
		key, err = x509.ParsePKCS8PrivateKey(b.Bytes)
	}
	if err != nil {
		return nil, &FileError{Path: file, Err: err,
			Problem: fmt.Sprintf("has a damaged private key (%v)", err), Act: copyAgain}
	}
	if key, ok := key.(*rsa.PrivateKey); ok {
		return key, nil
	}
	return nil, &FileError{Path: file, Problem: "has a private key that is not RSA, which Entra does not take", Act: "make one with " +
		"\"openssl req -x509 -newkey rsa:3072 -nodes -days 730 -subj /CN=sendas -keyout KEY.pem -out CERT.pem\" and upload CERT.pem"}
}

// parseCertificate returns the certificate of key; a chain may stand around it
// in any order.
func parseCertificate(file string, data []byte, key *rsa.PrivateKey) (*x509.Certificate, error) {
	seen := false
	for b := range pemBlocks(data) {
		if b.Type != "CERTIFICATE" {
			continue
		}
		seen = true
		cert, err := x509.ParseCertificate(b.Bytes)
		if err != nil {
			return nil, &FileError{Path: file, Err: err,
				Problem: fmt.Sprintf("has a damaged certificate (%v)", err), Act: copyAgain}
		}
		if key.PublicKey.Equal(cert.PublicKey) {
			return cert, nil
		}
	}
	if !seen {
		return nil, NotPEM(file, data, "certificate")
	}
	return nil, &FileError{Path: file, Problem: "has no certificate for the configured private key",
		Act: "the two were made at different times; bring the pair together again"}
}

func checkValidity(file string, cert *x509.Certificate, now time.Time) error {
	const day = "2006-01-02 15:04 MST"
	switch {
	case now.After(cert.NotAfter):
		return &FileError{Path: file, Problem: fmt.Sprintf("has a certificate that expired on %s", cert.NotAfter.UTC().Format(day)),
			Act: "make a new one, upload it to the app registration (Certificates & secrets) and put it here with its key"}
	case now.Before(cert.NotBefore):
		return &FileError{Path: file, Problem: fmt.Sprintf("has a certificate that is valid only from %s, and this machine's clock "+
			"says %s", cert.NotBefore.UTC().Format(day), now.UTC().Format(day)), Act: "set the clock, or wait"}
	}
	return nil
}

// pemBlocks yields the PEM blocks of a file, whatever text stands between them. The mark that an
// editor on Windows puts first would hide the first of them.
func pemBlocks(data []byte) func(yield func(*pem.Block) bool) {
	data = bytes.TrimPrefix(data, byteOrderMark)
	return func(yield func(*pem.Block) bool) {
		for b, rest := pem.Decode(data); b != nil; b, rest = pem.Decode(rest) {
			if !yield(b) {
				return
			}
		}
	}
}

// NotPEM explains why no PEM block was found of what is wanted ("private key", "certificate"), by the
// form that the file has instead.
func NotPEM(file string, data []byte, what string) *FileError {
	if e := inUTF16(file, data); e != nil {
		return e
	}
	is := func(problem, command string) *FileError {
		return &FileError{Path: file, Problem: problem, Act: fmt.Sprintf("type \"%s\" and use the new file", fmt.Sprintf(command, file))}
	}
	_, notCertificate := x509.ParseCertificate(data)
	_, notPKCS8 := x509.ParsePKCS8PrivateKey(data)
	_, notPKCS1 := x509.ParsePKCS1PrivateKey(data)
	switch text := bytes.TrimSpace(bytes.TrimPrefix(data, byteOrderMark)); {
	case notCertificate == nil:
		return is("is a certificate in DER form, not in PEM format", "openssl x509 -inform DER -in %s -out NEW.pem")
	case notPKCS8 == nil, notPKCS1 == nil:
		return is("is a private key in DER form, not in PEM format", "openssl pkey -inform DER -in %s -out NEW.pem")
	case bytes.Contains(text, []byte("-----BEGIN PKCS7")):
		return is("holds a chain of certificates as PKCS #7, without their key", "openssl pkcs7 -print_certs -in %s -out NEW.pem")
	case isBase64OfDER(text):
		return is("is not in PEM format, but the base64 in which Azure Key Vault hands out a .pfx file", "base64 -d %s >NEW.pfx; openssl pkcs12 -in NEW.pfx -nodes -passin pass: -out NEW.pem")
	}
	if !bytes.Contains(data, []byte("-----BEGIN")) {
		return &FileError{Path: file, Problem: "is not in PEM format", Act: fmt.Sprintf("if it is a .pfx or .p12 file, type "+
			"\"openssl pkcs12 -in %s -nodes -out NEW.pem\" and use the new file", file)}
	}
	return &FileError{Path: file, Problem: "has no " + what, Act: "put certificate and key into one PEM file, or name both files"}
}

// isBase64OfDER reports whether a text is the base64 of a sequence of ASN.1, as a .pfx is one.
func isBase64OfDER(text []byte) bool {
	plain := bytes.Join(bytes.Fields(text), nil)
	der := make([]byte, base64.StdEncoding.DecodedLen(len(plain)))
	n, err := base64.StdEncoding.Decode(der, plain)
	return err == nil && n > 100 && der[0] == 0x30 && der[1] >= 0x80
}

// assertion returns the JWT that proves to the token endpoint audience that we
// are clientID.
// https://learn.microsoft.com/entra/identity-platform/certificate-credentials
func (id *Identity) assertion(audience, clientID string, now time.Time) (Secret, error) {
	// Unpadded base64url, as documented and as RFC 7515 section 4.1.8 has it;
	// MSAL for Go pads with the standard alphabet, which Entra takes too.
	sum := sha256.Sum256(id.Certificate.Raw)
	header := map[string]any{"x5t#S256": base64.RawURLEncoding.EncodeToString(sum[:])}
	return id.sign(jwt.SigningMethodPS256, header, jwt.MapClaims{
		"aud": audience, // a string: RegisteredClaims would make it a list
		"iss": clientID,
		"sub": clientID,
		"jti": newUUID(),
		"nbf": now.Unix(),
		"iat": now.Unix(),
		"exp": now.Add(assertionLife).Unix(),
	})
}

// Possession returns the JWT by which Microsoft Graph lets an app change its own keys: it shows that
// whoever asks has the key of a certificate that is registered now. objectID is that of the app
// registration, not its client ID. It is good for ten minutes, the longest that Graph takes.
// https://learn.microsoft.com/graph/application-rollkey-prooftoken
//
// Its header is documented nowhere; it is as Microsoft's own sample makes it.
func (id *Identity) Possession(audience, objectID string, now time.Time) (Secret, error) {
	sum := sha1.Sum(id.Certificate.Raw)
	header := map[string]any{"x5t": base64.RawURLEncoding.EncodeToString(sum[:]), "kid": strings.ToUpper(hex.EncodeToString(sum[:]))}
	return id.sign(jwt.SigningMethodRS256, header, jwt.MapClaims{
		"aud": audience, "iss": objectID, "nbf": now.Unix(), "exp": now.Add(assertionLife).Unix(),
	})
}

func (id *Identity) sign(method jwt.SigningMethod, header map[string]any, claims jwt.MapClaims) (Secret, error) {
	t := jwt.NewWithClaims(method, claims)
	maps.Copy(t.Header, header)
	s, err := t.SignedString(id.key)
	if err != nil {
		return "", fmt.Errorf("signing with the app's key: %w", err)
	}
	return Secret(s), nil
}

// newUUID returns a random UUID (RFC 9562 section 5.4).
func newUUID() string {
	var b [16]byte
	rand.Read(b[:]) // never fails
	b[6] = b[6]&0x0f | 0x40
	b[8] = b[8]&0x3f | 0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[0:4], b[4:6], b[6:8], b[8:10], b[10:])
}

// maxFederated is the size in bytes above which another issuer's token is a mistake:
// they have one or two kB.
const maxFederated = 16 << 10

// CheckFederatedTokenFile reports whether path holds a token of another issuer as far as
// can be told here: a JWT that has not expired. It may be a name for ResolveFile. It returns when
// the token ends, zero where it does not say, also where the error is that this is past. The error
// is a *FileError.
func CheckFederatedTokenFile(path string) (end time.Time, err error) {
	_, end, err = readFederated(path, time.Now())
	return end, err
}

// readFederated reads another issuer's token, which Entra exchanges for one of its own
// (RFC 7521 section 4.2). Nobody but Entra can judge it; the checks catch a wrong file
// and one that is no longer renewed, about which Entra would say less.
//
// The file may have any mode. A projected volume in Kubernetes shows it to everybody
// in the container, where no administrator can change that; and unlike a secret the
// token is good for an hour, for one audience.
func readFederated(path string, now time.Time) (token Secret, end time.Time, err error) {
	b, _, err := ours.readFile(path)
	if err != nil {
		return "", end, err
	}
	s := strings.TrimSpace(string(b))
	claims, ok := inspect.Payload(s)
	switch {
	case s == "":
		return "", end, &FileError{Path: path, Problem: "is empty", Act: federatedRenewal}
	case len(s) > maxFederated || !ok:
		return "", end, &FileError{Path: path, Problem: "does not hold the token of another issuer (a JWT: three parts with dots between)",
			Act: "name the file that the platform writes, AZURE_FEDERATED_TOKEN_FILE in Kubernetes"}
	}
	if end = inspect.Time(claims["exp"]); !end.IsZero() && !now.Before(end) {
		return "", end, &FileError{Path: path, Problem: "is stale, its token expired on " + end.UTC().Format("2006-01-02 15:04 MST"),
			Act: federatedRenewal}
	}
	return Secret(s), end, nil
}

// federatedRenewal says whose work the file is.
const federatedRenewal = "it is renewed, mostly every hour, by whoever put it there (in Kubernetes the kubelet, elsewhere an agent or a timer); " +
	"see why that has stopped, and compare this machine's clock with \"timedatectl\""

// FederatedEnvironment is what Azure's workload identity tells a container through its
// environment. What is not told is empty.
type FederatedEnvironment struct {
	TokenFile string // AZURE_FEDERATED_TOKEN_FILE
	ClientID  string // AZURE_CLIENT_ID
	TenantID  string // AZURE_TENANT_ID
	Authority string // AZURE_AUTHORITY_HOST, without the closing slash
}

// FederatedFromEnvironment reads what the platform says about its federated
// credential, for what the configuration leaves empty. getenv is os.Getenv.
func FederatedFromEnvironment(getenv func(string) string) FederatedEnvironment {
	value := func(name string) string { return strings.TrimSpace(getenv(name)) }
	return FederatedEnvironment{
		TokenFile: value("AZURE_FEDERATED_TOKEN_FILE"),
		ClientID:  value("AZURE_CLIENT_ID"),
		TenantID:  value("AZURE_TENANT_ID"),
		Authority: strings.TrimRight(value("AZURE_AUTHORITY_HOST"), "/"),
	}
}
