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
// the refresh token that the vault keeps (RFC 6749 section 6), and asks for a new one each time
// (offline_access, without which Entra gives none); the old one is good for a while. The new one is
// stored before the access token is returned. It is safe for concurrent use as long as its
// exported fields do not change.
// https://learn.microsoft.com/entra/identity-platform/v2-oauth2-auth-code-flow#refresh-the-access-token
//
// Where no new one comes, the old one is kept with the date on which it came, since it is that one
// that ends: StoredGrant.Kept, and a warning in Log.
//
// Where the new refresh token cannot be stored, the access token is returned all
// the same: mail must not wait for a disk. Log and Unsaved tell of it, the token is
// kept in memory, and each later call tries to store it again. If the process ends
// before that, the stored refresh token still serves until MaxIdle after it came.
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
	Pairs           func() []KeyPair // see ClientCredentials.Pairs

	Vault *Vault

	// Client sends the requests: see NewHTTPClient. Nil means a plain one with
	// a deadline. No redirect is followed.
	Client *http.Client

	// Log gets an error for each time that a refresh token could not be stored, and a warning when
	// Entra begins to give no new ones. Nil: none.
	Log *slog.Logger

	mu      sync.Mutex // guards what follows
	unsaved *unsavedGrant
	kept    bool // the last refresh brought no new refresh token
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
		credential: d.Credential, what: "refresh token", tokenURL: d.TokenURL, clientID: d.ClientID, scope: offlineScopes(d.Scope),
		secretFile: d.SecretFile, certificateFile: d.CertificateFile, keyFile: d.KeyFile, certificates: d.Pairs, client: d.Client,
	}
	g, err := r.redeem(ctx, url.Values{"grant_type": {"refresh_token"}, "refresh_token": {string(use.Refresh)}})
	if err != nil {
		return nil, err
	}
	next := *use
	next.Scope, next.Used = d.Scope, time.Now()
	// x/oauth2 puts the old one where the answer has none. A server that repeats the old one does
	// not say that it made it good for longer.
	if g.Refresh != use.Refresh {
		next.Refresh, next.Refreshed = g.Refresh, next.Used
	}
	d.store(stored.Refresh, next)
	d.noteKept(&next)
	return g.Token, nil
}

// noteKept tells once that Entra gives no new refresh tokens, and once that it does again.
func (d *Delegated) noteKept(g *StoredGrant) {
	d.mu.Lock()
	was := d.kept
	d.kept = g.Kept()
	d.mu.Unlock()
	switch {
	case d.Log == nil || was == g.Kept():
	case was:
		d.Log.Info("Microsoft gives new refresh tokens again", "credential", d.Credential)
	default:
		d.Log.Warn("Microsoft gave no new refresh token, so the sign-in ends on a fixed day", "credential", d.Credential, "ends", g.Renewed().Add(MaxIdle).UTC().Format(time.DateOnly),
			"hint", KeptHint(d.Credential))
	}
}

// KeptHint says what to do where Microsoft gives no new refresh tokens.
func KeptHint(credential string) string {
	return fmt.Sprintf(`see that the app registration has the delegated permission offline_access, with consent, then type "sendas login %s"`, credential)
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
