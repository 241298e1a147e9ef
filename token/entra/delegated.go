package entra

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"
)

// Delegated is a Source that acts on behalf of a user who has signed in: it redeems
// the refresh token that the vault keeps (RFC 6749 section 6). Entra gives a new
// one each time and lets the old one be for a while; the new one is stored before
// the access token is returned. It is safe for concurrent use as long as its
// exported fields do not change.
//
// Where the new refresh token cannot be stored, the access token is returned all
// the same: mail must not wait for a disk. Log and Unsaved tell of it, the token is
// kept in memory, and each later call tries to store it again. If the process ends
// before that, the stored refresh token still serves until it has lain unused for
// 90 days.
//
// Beside the errors of Source, a *FileError says that nobody has signed in, or that
// the sign-in was made for another app or another user.
type Delegated struct {
	Credential string // its name in the configuration and in Vault
	TokenURL   string // {authority}/{tenant}/oauth2/v2.0/token
	ClientID   string // of the app registration
	Scope      string // "https://outlook.office.com/SMTP.Send"

	// User is who has to have signed in, by user principal name; empty: anybody.
	User string

	SecretFile      string // as in SignIn; both are empty for a public client
	CertificateFile string
	KeyFile         string

	Vault *Vault

	// Client sends the requests: see NewHTTPClient. Nil means a plain one with
	// a deadline. No redirect is followed.
	Client *http.Client

	// Log gets an error for each time that a refresh token could not be stored.
	// Nil: none.
	Log *slog.Logger

	mu      sync.Mutex // guards unsaved
	unsaved *unsavedGrant
}

// unsavedGrant is a grant that is newer than the stored one. Only pointers lead to
// it, so that printing a Delegated shows no secret.
type unsavedGrant struct {
	was   Secret // the stored one that it came from
	grant StoredGrant
	err   error // why it could not be stored
}

// Token redeems the refresh token; see Source for the errors.
func (d *Delegated) Token(ctx context.Context) (*Token, error) {
	stored, err := d.load()
	if err != nil {
		return nil, err
	}
	use := d.newest(stored)
	t, err := d.redeem(ctx, stored, use)
	if e, ok := errors.AsType[*RefusedError](err); !ok || e.Temporary() {
		return t, err
	}
	// Perhaps somebody has signed in meanwhile, or what is in memory is worse than
	// what is stored: once more, then.
	again, loadErr := d.load()
	if loadErr != nil || again.Refresh == use.Refresh {
		return nil, err
	}
	d.forget()
	return d.redeem(ctx, again, again)
}

// Unsaved returns why the newest refresh token is in memory only, or nil when it is
// stored. The error is a *FileError.
func (d *Delegated) Unsaved() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.unsaved == nil {
		return nil
	}
	return d.unsaved.err
}

// load returns the stored grant if it can serve.
func (d *Delegated) load() (*StoredGrant, error) {
	g, err := d.Vault.Load(d.Credential)
	if err != nil {
		return nil, fmt.Errorf("loading the sign-in of %q: %w", d.Credential, err)
	}
	e := &FileError{Path: d.Vault.Path(d.Credential), Act: fmt.Sprintf("type \"sendas login %s\"", d.Credential)}
	switch {
	case g.ClientID != "" && !strings.EqualFold(g.ClientID, d.ClientID):
		e.Problem = fmt.Sprintf("is a sign-in to the app %.60q, and the configuration names another one", g.ClientID)
	case g.User != "" && d.User != "" && !strings.EqualFold(g.User, d.User):
		e.Problem = fmt.Sprintf("is a sign-in of %.200q, and the configuration wants %s", g.User, d.User)
	default:
		return g, nil
	}
	return nil, fmt.Errorf("loading the sign-in of %q: %w", d.Credential, e)
}

// newest returns the grant in memory if it comes from the stored one, else that.
func (d *Delegated) newest(stored *StoredGrant) *StoredGrant {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.unsaved == nil {
		return stored
	}
	if d.unsaved.was != stored.Refresh { // somebody has signed in
		d.unsaved = nil
		return stored
	}
	g := d.unsaved.grant
	return &g
}

func (d *Delegated) forget() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.unsaved = nil
}

// redeem redeems the refresh token of use and stores what it becomes in place of
// stored.
func (d *Delegated) redeem(ctx context.Context, stored, use *StoredGrant) (*Token, error) {
	r := redemption{
		credential: d.Credential, what: "refresh token", tokenURL: d.TokenURL, clientID: d.ClientID, scope: d.Scope,
		secretFile: d.SecretFile, certificateFile: d.CertificateFile, keyFile: d.KeyFile, client: d.Client,
	}
	g, err := r.redeem(ctx, url.Values{"grant_type": {"refresh_token"}, "refresh_token": {string(use.Refresh)}})
	if err != nil {
		return nil, err
	}
	next := *use
	next.Refresh, next.Scope, next.Refreshed = g.Refresh, d.Scope, time.Now()
	d.store(stored.Refresh, next)
	return g.Token, nil
}

// store stores a rotated grant, or keeps it in memory.
func (d *Delegated) store(was Secret, g StoredGrant) {
	_, err := d.Vault.replace(d.Credential, was, &g)
	d.mu.Lock()
	defer d.mu.Unlock()
	d.unsaved = nil
	if err == nil {
		return
	}
	d.unsaved = &unsavedGrant{was: was, grant: g, err: err}
	if d.Log != nil {
		d.Log.Error("refresh token not stored", "credential", d.Credential, "error", err,
			"hint", "mail goes on; mend this before the service restarts, else the refresh token stored before must serve")
	}
}
