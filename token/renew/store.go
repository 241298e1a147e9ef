package renew

import (
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/sendas/sendas/internal/safefile"
	"github.com/sendas/sendas/token/entra"
)

// keyBits is the size of a new key: what NIST SP 800-57 asks of one that is in use after 2030.
const keyBits = 3072

// backdated is how much earlier than now a new certificate is valid, for Entra's clock.
const backdated = 5 * time.Minute

// A book is what is kept on the disk about the renewal of one credential.
type book struct {
	// Using is the certificate of ours that brought a token last; nil while there is none.
	Using *entry `json:"using,omitempty"`
	// Next is on its way: made, perhaps added, not yet used.
	Next *entry `json:"next,omitempty"`
	// Unknown is the configured certificate's thumbprint where the app does not have it.
	Unknown string `json:"unknown,omitempty"`
	// Former were in use, or should have been, and are to be taken from the app.
	Former []entry `json:"former,omitempty"`
}

// An entry is one certificate that a Keeper made.
type entry struct {
	Thumbprint string    `json:"thumbprint"` // SHA-256 of the certificate, in hex
	KeyID      string    `json:"key_id,omitempty"`
	Ends       time.Time `json:"ends"`
	Made       time.Time `json:"made"`
	Added      time.Time `json:"added,omitzero"`  // Graph took it
	Proved     time.Time `json:"proved,omitzero"` // Entra gave a token for it
	Remove     time.Time `json:"remove,omitzero"` // not before
}

// dir is where the files of one credential are. The app is part of the name: with another client ID
// by mistake, the keys of this one stay.
func (k *Keeper) dir() string {
	return filepath.Join(k.Dir, k.Credential+"."+strings.ToLower(k.ClientID))
}

func (k *Keeper) bookFile() string { return filepath.Join(k.dir(), "renewal.json") }

// file is the PEM file of a certificate and its key.
func (k *Keeper) file(e *entry) string { return filepath.Join(k.dir(), e.Thumbprint[:16]+".pem") }

func (k *Keeper) pair(e *entry) entra.KeyPair { return entra.KeyPair{CertificateFile: k.file(e)} }

// load reads the book; without one, or with an error, it is empty.
func (k *Keeper) load() (*book, error) {
	empty := new(book)
	data, err := os.ReadFile(k.bookFile())
	if errors.Is(err, fs.ErrNotExist) {
		return empty, nil
	}
	if err != nil {
		return empty, &entra.FileError{Path: k.bookFile(), Problem: "cannot be read", Cause: cause(err).Error(), Err: err}
	}
	b := new(book)
	if err := json.Unmarshal(data, b); err != nil || !b.sound() {
		return empty, &entra.FileError{Path: k.bookFile(), Problem: "is damaged or was not written by sendas",
			Act: "remove it; a new key is then made, and the old ones stay with the app until you remove them in the Entra admin centre"}
	}
	return b, nil
}

// sound reports whether each entry names a file.
func (b *book) sound() bool {
	list := append([]entry(nil), b.Former...)
	for _, e := range []*entry{b.Using, b.Next} {
		if e != nil {
			list = append(list, *e)
		}
	}
	for _, e := range list {
		if raw, err := hex.DecodeString(e.Thumbprint); err != nil || len(raw) != sha256.Size {
			return false
		}
	}
	return true
}

// save writes the book, whole or not at all.
func (k *Keeper) save(b *book) error {
	data, err := json.MarshalIndent(b, "", "\t")
	if err != nil {
		return err
	}
	return k.write(k.bookFile(), append(data, '\n'))
}

func (k *Keeper) write(path string, data []byte) error {
	err := os.MkdirAll(k.dir(), 0o700)
	if err == nil {
		err = safefile.Write(path, data, safefile.Options{})
	}
	if err == nil {
		return nil
	}
	return &entra.FileError{Path: path, Problem: "cannot be written", Cause: cause(err).Error(), Err: err,
		Act: fmt.Sprintf("make room there, and give the folder to the user of the token service: chown -R --reference=%s %s", filepath.Dir(k.Dir), k.Dir)}
}

// cause drops what an error of the operating system repeats.
func cause(err error) error {
	if e, ok := errors.AsType[*fs.PathError](err); ok {
		return e.Err
	}
	return err
}

// life is how long a new certificate is valid: as long as the one before, which the tenant's policy
// has allowed; at most two years, which is the most that the Entra admin centre offers for secrets;
// and at least twice the time before its end at which it will be replaced.
func (k *Keeper) life(before time.Duration) time.Duration {
	const most = 2 * 365 * 24 * time.Hour
	return max(min(before, most), 2*k.Before)
}

// make makes a key with a certificate, and writes them to the disk.
func (k *Keeper) make(now time.Time, life time.Duration) (*entry, error) {
	generate := k.generate
	if generate == nil {
		generate = func() (*rsa.PrivateKey, error) { return rsa.GenerateKey(rand.Reader, keyBits) }
	}
	key, err := generate()
	if err != nil {
		return nil, fmt.Errorf("making a key: %w", err)
	}
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
	if err != nil {
		return nil, fmt.Errorf("making a serial number: %w", err)
	}
	from := now.UTC().Truncate(time.Second).Add(-backdated)
	template := &x509.Certificate{
		SerialNumber: serial, Subject: pkix.Name{CommonName: k.name()}, NotBefore: from, NotAfter: from.Add(life),
		KeyUsage: x509.KeyUsageDigitalSignature, BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return nil, fmt.Errorf("making a certificate: %w", err)
	}
	pkcs8, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, fmt.Errorf("writing a key: %w", err)
	}
	e := &entry{Thumbprint: thumbprint(der), Ends: template.NotAfter, Made: now}
	text := append(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: pkcs8}), pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})...)
	return e, k.write(k.file(e), text)
}

// name is what the Entra admin centre shows of the certificate: the subject's common name, which has
// 64 characters at most (RFC 5280 appendix A.1).
func (k *Keeper) name() string {
	host, err := os.Hostname()
	name := "sendas " + k.Credential
	if err == nil && len(name)+len(host) < 60 {
		name += " on " + host
	}
	return name[:min(len(name), 64)]
}

func thumbprint(der []byte) string {
	sum := sha256.Sum256(der)
	return hex.EncodeToString(sum[:])
}

// sweep removes files of keys that no entry names: a crash came between a key and its entry.
func (k *Keeper) sweep(b *book) {
	keep := map[string]bool{k.bookFile(): true}
	for _, e := range b.Former {
		keep[k.file(&e)] = true
	}
	for _, e := range []*entry{b.Using, b.Next} {
		if e != nil {
			keep[k.file(e)] = true
		}
	}
	list, _ := filepath.Glob(filepath.Join(k.dir(), "*.pem"))
	for _, f := range list {
		if !keep[f] {
			os.Remove(f)
		}
	}
}
