package entra

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"time"
)

// CheckAnchors reports whether a file holds certificates in PEM, for the service of that unit to
// trust. path may be a name for [ResolveFile]. The error is a *FileError.
func CheckAnchors(path, serviceUnit string) error {
	pem, _, err := unit(serviceUnit).readFile(path)
	if err != nil {
		return err
	}
	if !x509.NewCertPool().AppendCertsFromPEM(bytes.TrimPrefix(pem, byteOrderMark)) {
		return NotPEM(path, pem, "certificate")
	}
	return nil
}

// CheckKeyPair reports whether the files hold a certificate that is valid now and its key, of
// whatever kind, closed to other users, with which the service of that unit can log in to a server.
// keyFile may be empty where certFile holds both; both may be names for [ResolveFile]. The error is
// a *FileError.
func CheckKeyPair(certFile, keyFile, serviceUnit string) error {
	u := unit(serviceUnit)
	if keyFile == "" {
		keyFile = certFile
	}
	key, err := u.readPrivate(keyFile)
	if err != nil {
		return err
	}
	pem := key
	if certFile != keyFile {
		if pem, _, err = u.readFile(certFile); err != nil {
			return err
		}
	}
	pair, err := tls.X509KeyPair(pem, key)
	switch {
	case err == nil:
		return checkValidity(certFile, pair.Leaf, time.Now())
	case !bytes.Contains(pem, []byte("-----BEGIN CERTIFICATE")):
		return NotPEM(certFile, pem, "certificate")
	case !bytes.Contains(key, []byte("PRIVATE KEY-----")):
		return NotPEM(keyFile, key, "private key")
	}
	return &FileError{Path: certFile, Problem: "and the key do not belong together, or the key is encrypted", Act: "name a certificate and its key"}
}
