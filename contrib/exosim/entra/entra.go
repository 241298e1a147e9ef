// Package entra is the simulated Entra: the endpoints at which a program gets access tokens, the
// pages at which people sign in, and the endpoints of a machine that has an identity of its own.
// It gives tokens to apps (secret, certificate, federated token), to users (device code,
// authorization code, refresh token) and to managed identities, and can be made to refuse each for
// each reason of Microsoft's table; see [Login.RefuseGrant] and [Faults].
//
// Who exists it asks the directory. It has no listener: [Login.Handler] and
// [Login.IdentityHandler] are for an HTTP server. The one who takes the tokens learns by
// [Login.Verify] what they say.
package entra

import (
	"cmp"
	"context"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	mathrand "math/rand/v2"
	"os"
	"sync"
	"time"

	"github.com/sendas/sendas/contrib/exosim/directory"
)

// Config is how Entra behaves. The zero value of a field means its default, which is Microsoft's
// figure where there is one.
type Config struct {
	DeviceFlow DeviceFlow    `yaml:"device_flow"` // how the device code flow goes
	SignIn     SignIn        `yaml:"sign_in"`     // what the sign-in page does
	Refresh    RefreshPolicy `yaml:"refresh"`     // how long refresh tokens are good
	// Refuse is what RefuseGrant is called with at the start: a grant and the
	// reason to refuse it for.
	Refuse map[string]string `yaml:"refuse"`
	// TokenLife is how long tokens live; 0 is as in Entra, at random between
	// 60 and 90 minutes.
	TokenLife time.Duration `yaml:"token_life"`
	ArcKeys   string        `yaml:"arc_keys"` // folder for the key files of Azure Arc; none, and then no Arc
	Graph     GraphConfig   `yaml:"graph"`    // how apps change their own certificates
}

// GraphConfig is how Microsoft Graph lets apps change their own certificates.
type GraphConfig struct {
	// KnownAfter is how long it takes until Entra takes a new certificate. Really it is some minutes;
	// the default is at once.
	KnownAfter time.Duration `yaml:"known_after"`
	MostLife   time.Duration `yaml:"most_life"` // the tenant's policy: the longest life of a certificate; 0 is any
}

// Complete fills in defaults and refuses what cannot be meant. Its errors begin with the wrong key.
// isUser reports whether there is a user of that sign-in name.
func (c *Config) Complete(isUser func(upn string) bool) error {
	if min(c.DeviceFlow.Life, c.DeviceFlow.Interval, c.SignIn.CodeLife, c.Refresh.Idle, c.Refresh.Frequency) < 0 || c.DeviceFlow.ApproveAfter < 0 {
		return fmt.Errorf("device_flow, sign_in, refresh: a time or number is negative")
	}
	if min(c.Graph.KnownAfter, c.Graph.MostLife) < 0 {
		return fmt.Errorf("graph: a time is negative")
	}
	if c.TokenLife < 0 {
		return fmt.Errorf("token_life: a time is negative")
	}
	c.DeviceFlow.Life = cmp.Or(c.DeviceFlow.Life, 15*time.Minute)
	c.DeviceFlow.Interval = cmp.Or(c.DeviceFlow.Interval, 5*time.Second)
	c.SignIn.CodeLife = cmp.Or(c.SignIn.CodeLife, 10*time.Minute)
	c.Refresh.Idle = cmp.Or(c.Refresh.Idle, 90*24*time.Hour)
	for key, upn := range map[string]string{"device_flow.approve_as": c.DeviceFlow.ApproveAs, "sign_in.user": c.SignIn.User} {
		if upn != "" && !isUser(upn) {
			return fmt.Errorf("%s: %q is none of the users", key, upn)
		}
	}
	for grant, code := range c.Refuse {
		if err := checkRefusing(grant, code, 0); err != nil {
			return fmt.Errorf("refuse.%s: %w", grant, err)
		}
	}
	return nil
}

// Login is a running Entra. Its methods are safe for concurrent use.
type Login struct {
	cfg  Config
	dir  *directory.Tenant
	key  *rsa.PrivateKey // signs access tokens
	stop context.Context
	halt context.CancelFunc

	federatedKey   func() *rsa.PrivateKey // signs for the other issuer; made when first wanted
	identityHeader string                 // what App Service wants to see

	mu            sync.Mutex                 // guards what follows
	keys          map[string][]RegisteredKey // by app
	page          SignIn
	faults        Faults
	usedJTI       map[string]time.Time // client assertions seen, until they expire
	tokens        map[string]liveToken // live access tokens by id
	requests      map[tokenRequest]int
	validFrom     map[string]time.Time    // by lower-case UPN: grants from before are revoked
	devices       map[string]*deviceCode  // by device code
	deviceSerial  int                     // of the last one
	codes         map[string]*authCode    // by authorization code
	refreshTokens map[string]refreshToken // by themselves
	refusing      map[string]Refusing     // by grant
	arcKeys       map[string]string       // contents by file name
	random        *mathrand.Rand
}

// New makes an Entra of a configuration that [Config.Complete] has found good. It fails if it
// cannot read an app's certificates, or make the folder of Arc's keys. The random numbers are its
// own from then on.
func New(c Config, dir *directory.Tenant, random *mathrand.Rand) (*Login, error) {
	l := &Login{
		cfg: c, dir: dir, key: newRSAKey(), keys: map[string][]RegisteredKey{}, federatedKey: sync.OnceValue(newRSAKey), identityHeader: directory.NewGUID(),
		page: c.SignIn, usedJTI: map[string]time.Time{}, tokens: map[string]liveToken{}, requests: map[tokenRequest]int{}, validFrom: map[string]time.Time{},
		devices: map[string]*deviceCode{}, codes: map[string]*authCode{}, refreshTokens: map[string]refreshToken{}, refusing: map[string]Refusing{},
		arcKeys: map[string]string{}, random: random,
	}
	l.stop, l.halt = context.WithCancel(context.Background())
	for grant, code := range c.Refuse {
		if code != "" {
			l.refusing[grant] = Refusing{Code: code}
		}
	}
	for i, a := range dir.Apps() {
		certs, err := readCertificates(a.CertificateFile)
		if err != nil {
			return nil, fmt.Errorf("apps[%d].certificate_file: %w", i, err)
		}
		for _, c := range certs {
			l.keys[a.ClientID] = append(l.keys[a.ClientID], RegisteredKey{KeyID: directory.NewGUID(), Cert: c})
		}
	}
	if c.ArcKeys != "" {
		if err := os.MkdirAll(c.ArcKeys, 0o750); err != nil {
			return nil, fmt.Errorf("arc_keys: %w", err)
		}
	}
	return l, nil
}

// Stop ends the requests that wait, and leaves no key files behind. It may be called again.
func (l *Login) Stop() {
	l.halt()
	l.removeArcKeys()
}

func newRSAKey() *rsa.PrivateKey {
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		panic(err) // crypto/rand does not fail
	}
	return key
}

// readCertificates returns the certificates of an app; none without a file.
func readCertificates(file string) ([]*x509.Certificate, error) {
	if file == "" {
		return nil, nil
	}
	b, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	var list []*x509.Certificate
	for block, rest := pem.Decode(b); block != nil; block, rest = pem.Decode(rest) {
		if block.Type != "CERTIFICATE" {
			continue
		}
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", file, err)
		}
		if _, ok := c.PublicKey.(*rsa.PublicKey); !ok {
			return nil, fmt.Errorf("%s: the key is not RSA, which Entra does not take", file)
		}
		list = append(list, c)
	}
	if list == nil {
		return nil, fmt.Errorf("%s: no certificate in PEM format", file)
	}
	return list, nil
}
