package exosim

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"math/big"
	"net"
	"os"
	"time"
)

// authority is a certificate authority of one's own.
type authority struct {
	cert *x509.Certificate
	key  crypto.Signer
}

// certificates returns what a server with the names that clients know needs,
// and the authority, whose certificate is written to caFile if that is not
// empty. With keyFile the authority is the same at the next start.
func certificates(caFile, keyFile string) (*tls.Config, *authority, error) {
	ca, err := loadAuthority(caFile, keyFile)
	if err != nil {
		return nil, nil, err
	}
	if ca == nil {
		if ca, err = newAuthority(); err != nil {
			return nil, nil, err
		}
		if err := ca.save(caFile, keyFile); err != nil {
			return nil, nil, err
		}
	}
	leaf := template("outlook.com")
	leaf.DNSNames = []string{"smtp.office365.com", "outlook.office365.com", "*.mail.protection.outlook.com", "smtp.hve.mx.microsoft", "smtp-hve.office365.com", "login.microsoftonline.com", "localhost"}
	leaf.IPAddresses = []net.IP{net.IPv4(127, 0, 0, 1), net.IPv6loopback}
	leaf.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}
	der, key, err := ca.issue(leaf)
	if err != nil {
		return nil, nil, err
	}
	conf := &tls.Config{MinVersion: tls.VersionTLS12, Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}}
	return conf, ca, nil
}

// issue signs a certificate with a new key.
func (a *authority) issue(leaf *x509.Certificate) (der []byte, key *ecdsa.PrivateKey, err error) {
	if key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader); err != nil {
		return nil, nil, err
	}
	leaf.KeyUsage |= x509.KeyUsageDigitalSignature
	der, err = x509.CreateCertificate(rand.Reader, leaf, a.cert, key.Public(), a.key)
	return der, key, err
}

// ClientCertificate returns a new certificate for a client, good for a year, and
// its key, both PEM. The name, such as relay.contoso.com or *.contoso.com, is
// its common name and its DNS name. The MX endpoint trusts it.
func (s *Server) ClientCertificate(name string) (certPEM, keyPEM []byte, err error) {
	if name == "" {
		return nil, nil, errors.New("exosim: a client certificate needs a name")
	}
	leaf := template(name)
	leaf.DNSNames, leaf.ExtKeyUsage = []string{name}, []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}
	der, key, err := s.ca.issue(leaf)
	if err != nil {
		return nil, nil, fmt.Errorf("exosim: client certificate for %q: %w", name, err)
	}
	if keyPEM, err = pemKey(key); err != nil {
		return nil, nil, fmt.Errorf("exosim: client certificate for %q: %w", name, err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), keyPEM, nil
}

func pemKey(key crypto.Signer) ([]byte, error) {
	der, err := x509.MarshalPKCS8PrivateKey(key)
	return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), err
}

// clientRoots returns whom to trust with client certificates: the authority
// itself, and those in a file if there is one.
func (a *authority) clientRoots(file string) (*x509.CertPool, error) {
	roots := x509.NewCertPool()
	roots.AddCert(a.cert)
	if file == "" {
		return roots, nil
	}
	b, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	if !roots.AppendCertsFromPEM(b) {
		return nil, fmt.Errorf("%s: no certificate in PEM format", file)
	}
	return roots, nil
}

// template is a certificate without its use. Serial numbers are random: a client
// may keep two of our certificates apart by issuer and number.
func template(name string) *x509.Certificate {
	now := time.Now()
	serial, _ := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120)) // crypto/rand does not fail
	return &x509.Certificate{SerialNumber: serial, Subject: pkix.Name{CommonName: name}, NotBefore: now.Add(-time.Hour), NotAfter: now.AddDate(1, 0, 0)}
}

func newAuthority() (*authority, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	t := template("exosim authority")
	t.IsCA, t.BasicConstraintsValid, t.KeyUsage = true, true, x509.KeyUsageCertSign|x509.KeyUsageDigitalSignature
	der, err := x509.CreateCertificate(rand.Reader, t, t, key.Public(), key)
	if err != nil {
		return nil, err
	}
	cert, err := x509.ParseCertificate(der)
	return &authority{cert, key}, err
}

// loadAuthority returns nil if there is none to be used again.
func loadAuthority(caFile, keyFile string) (*authority, error) {
	if keyFile == "" {
		return nil, nil
	}
	if _, err := os.Stat(keyFile); errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	pair, err := tls.LoadX509KeyPair(caFile, keyFile)
	if err != nil {
		return nil, err
	}
	key, ok := pair.PrivateKey.(crypto.Signer)
	if !ok || !pair.Leaf.IsCA {
		return nil, fmt.Errorf("%s: not a certificate authority", caFile)
	}
	return &authority{pair.Leaf, key}, nil
}

func (a *authority) pem() []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: a.cert.Raw})
}

func (a *authority) save(caFile, keyFile string) error {
	if keyFile != "" {
		key, err := pemKey(a.key)
		if err != nil {
			return err
		}
		if err := os.WriteFile(keyFile, key, 0o600); err != nil {
			return err
		}
	}
	if caFile == "" {
		return nil
	}
	return os.WriteFile(caFile, a.pem(), 0o644)
}
