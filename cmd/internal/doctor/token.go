package doctor

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/sendas/sendas/cmd/internal/config"
	"github.com/sendas/sendas/cmd/internal/finding"
	"github.com/sendas/sendas/cmd/internal/service"
	"github.com/sendas/sendas/token/entra"
	"github.com/sendas/sendas/token/entra/inspect"
)

const (
	// endsSoon is when a certificate or secret should be renewed.
	endsSoon = 30 * 24 * time.Hour
	// idleSoon is when a sign-in that is not renewed is in danger.
	idleSoon = entra.MaxIdle - 14*24*time.Hour
	// Clocks that differ by minutes make Entra refuse a signed proof (AADSTS700024).
	skewNoted = time.Minute
	skewWrong = 5 * time.Minute
	// tokenTime bounds one request for a token with all that it tries again.
	tokenTime = 90 * time.Second
)

// tokenAdvice is about credentials and tokens. What Entra says is explained by package token.
var tokenAdvice = map[string]finding.Advice{
	"unused":      {Means: "no mailbox names this credential, so the token service does not use it", Do: "name it at a mailbox, or remove it from sendas.yaml"},
	"file":        {Means: "the app cannot prove to Entra who it is", Do: "{act}"},
	"unreadable":  {Means: "the user {user}, as whom the token service runs, may not read the file", Do: "chgrp {user} {file} && chmod 0640 {file}"},
	"ends":        {Means: "after that day Entra gives no token", Do: "make a new one in the app registration (Certificates & secrets), put it into {file}, and type: systemctl reload sendas-token"},
	"renewal":     {Means: "the service cannot replace the certificate before it ends", Do: "sendas renew {credential} --dry-run"},
	"no-grant":    {Means: "nobody has signed in for this credential", Do: "sendas login {credential}"},
	"bad-grant":   {Means: "what is stored of the sign-in cannot be used", Do: "{act}"},
	"owner":       {Means: "the token service cannot use the sign-in", Do: "{act}"},
	"idle":        {Means: "a refresh token is void 90 days after it came; the token service gets a new one every hour, if it runs", Do: "systemctl status sendas-token"},
	"void":        {Means: "a refresh token is void 90 days after it came", Do: "sendas login {credential}"},
	"kept":        {Means: "Entra gave no new refresh token with the access token, so the sign-in ends on {ends}, though it is used", Do: "{act}"},
	"unsaved":     {Means: "Entra gave a new refresh token, and it could not be stored: after 90 days somebody has to sign in again", Do: "{act}"},
	"refused":     {Means: "{meaning}", Do: "{act}"},
	"unreachable": {Means: "Microsoft's sign-in service could not be asked", Do: "{act}"},
	"no-client":   {Means: "nothing can be asked of Entra", Do: "{act}"},
	"unknown":     {Means: "the request for a token failed", Do: "sendas status; the log: journalctl -u sendas-token"},
	"clock":       {Means: "Entra refuses proofs from another time (AADSTS700024), and this machine takes tokens for older or younger than they are", Do: "timedatectl set-ntp true"},
	"claim":       {Means: "{meaning}", Do: "{act}"},
}

// checkCredentials looks at the credentials of the mailboxes, and fetches a fresh token from each.
func (d *Walk) checkCredentials(ctx context.Context, patients []patient) {
	s := d.Section("credential", "credential")
	if d.config == nil {
		s.Skip("all", "", "there is no usable configuration")
		return
	}
	var names []string
	for _, p := range patients {
		names = append(names, p.credential)
	}
	if d.Mailbox == "" {
		for name := range d.config.Credentials {
			if !slices.Contains(names, name) {
				s.Of(name).Warn("used", "", "is not used", tokenAdvice["unused"])
			}
		}
	}
	slices.Sort(names)
	for _, name := range slices.Compact(names) {
		if cc, ok := d.config.Credentials[name]; ok && ctx.Err() == nil {
			d.checkCredential(ctx, s.Of(name), name, cc)
		}
	}
}

func (d *Walk) checkCredential(ctx context.Context, s finding.Section, name string, cc config.Credential) {
	if !d.checkProof(s, name, cc) && !cc.Delegated() {
		s.Skip("token", "token", "there is none without the files, as said above")
		return
	}
	d.checkRenewal(ctx, s, name, cc)
	if !cc.Delegated() {
		d.fetch(ctx, s, name, cc)
		return
	}
	if d.loadGrant(s, name) == nil {
		return
	}
	err := d.fetch(ctx, s, name, cc)
	if g := d.loadGrant(s, name); g != nil { // as the refresh has left it
		d.checkGrant(s, name, g, err)
	}
}

// checkProof looks at the files that prove who we are, and reports whether they can be used.
func (d *Walk) checkProof(s finding.Section, name string, cc config.Credential) bool {
	good := true
	if k := d.config.Keeper(name, nil); k != nil {
		best := k.Pairs()[0]
		end, err := entra.CheckCertificate(best.CertificateFile, best.KeyFile)
		switch renews := cc.Renew > 0 && end.Sub(d.now()) > cc.Renew-24*time.Hour; {
		case !d.checkFile(s, "certificate", best.CertificateFile, err):
		case renews:
			s.Ok("certificate_end", "certificate "+best.CertificateFile, "ends on %s; the service makes the next one on %s",
				end.UTC().Format(time.DateOnly), end.Add(-cc.Renew).UTC().Format(time.DateOnly))
		default:
			d.checkEnd(s, "certificate_end", "certificate "+best.CertificateFile, end, cc.CertificateFile)
		}
		good = usable(err)
		if cc.KeyFile != "" && best.KeyFile == cc.KeyFile {
			d.checkReadable(s, "key", cc.KeyFile)
		}
	}
	if cc.ClientSecretFile != "" {
		err := entra.CheckSecretFile(cc.ClientSecretFile)
		d.checkFile(s, "secret", cc.ClientSecretFile, err)
		good = good && usable(err)
	}
	if end, err := time.Parse(time.DateOnly, cc.SecretExpires); err == nil {
		d.checkEnd(s, "secret_end", "client secret (secret_expires)", end, cc.ClientSecretFile)
	}
	if cc.TokenFile != "" {
		_, err := entra.CheckFederatedTokenFile(cc.TokenFile)
		d.checkFile(s, "token_file", cc.TokenFile, err)
		good = good && usable(err)
	}
	return good
}

// checkRenewal gets the token by which the service would replace a certificate.
func (d *Walk) checkRenewal(ctx context.Context, s finding.Section, name string, cc config.Credential) {
	if cc.Renew == 0 {
		return
	}
	client, err := d.client(d.config)
	if err != nil {
		return // which is told about the token
	}
	ctx, cancel := context.WithTimeout(ctx, tokenTime)
	defer cancel()
	if _, err := d.config.Keeper(name, client).Rehearse(ctx); err != nil {
		if errors.Is(err, entra.ErrNoCredentials) {
			return
		}
		found, _, _ := explainTokenError(err)
		s.Warn("renewal", "renewal of the certificate", found, tokenAdvice["renewal"].With("credential", name))
		return
	}
	s.Ok("renewal", "renewal of the certificate", "Entra gives the token for Microsoft Graph that it takes")
}

// usable reports whether a file may bring a token, for all that is known here.
func usable(err error) bool { return err == nil || errors.Is(err, entra.ErrNoCredentials) }

// checkFile notes how a file stands that err tells about, and whether the service may read it.
func (d *Walk) checkFile(s finding.Section, id, file string, err error) bool {
	switch {
	case errors.Is(err, entra.ErrNoCredentials):
		s.Skip(id, file, "systemd hands it to the service alone, so it cannot be looked at from here")
		return false
	case err != nil:
		problem, act := fileFault(err)
		s.Fail(id, file, problem, tokenAdvice["file"].With("act", act))
		return false
	}
	return d.checkReadable(s, id, file)
}

func (d *Walk) checkReadable(s finding.Section, id, file string) bool {
	info, err := os.Stat(file)
	if err != nil { // a name that stands for a credential of systemd's
		s.Ok(id, file, "can be used")
		return true
	}
	uid, gids, err := d.account(service.TokenUser)
	if err == nil && !service.MayRead(info, uid, gids) {
		s.Fail(id, file, fmt.Sprintf("has the mode %04o", info.Mode().Perm()), tokenAdvice["unreadable"].With("user", service.TokenUser, "file", file))
		return false
	}
	s.Ok(id, file, "can be used; mode %04o", info.Mode().Perm())
	return true
}

// checkEnd notes when something ends.
func (d *Walk) checkEnd(s finding.Section, id, what string, end time.Time, file string) {
	left := end.Sub(d.now())
	found := fmt.Sprintf("ends on %s, in %d days", end.UTC().Format(time.DateOnly), int(left.Hours()/24))
	a := tokenAdvice["ends"].With("file", file)
	switch {
	case left <= 0:
		s.Fail(id, what, "ended on "+end.UTC().Format(time.DateOnly), a)
	case left < endsSoon:
		s.Warn(id, what, found, a)
	default:
		s.Ok(id, what, "%s", found)
	}
}

// fileFault says what is wrong with a file, or with what is set about one, and what to do.
func fileFault(err error) (problem, act string) {
	if e, ok := errors.AsType[*entra.FileError](err); ok {
		return e.Found(), cmp.Or(e.Act, "see to the file "+e.Path)
	}
	if e, ok := errors.AsType[*entra.ProxyError](err); ok {
		return e.Setting + " " + e.Problem, e.Act
	}
	return err.Error(), "see to the file"
}

// loadGrant returns a user's stored sign-in, nil where there is none to use.
func (d *Walk) loadGrant(s finding.Section, name string) *entra.StoredGrant {
	vault := d.config.Vault()
	file := vault.Path(name)
	g, err := vault.Load(name)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		s.Fail("grant", "sign-in "+file, "is not there", tokenAdvice["no-grant"].With("credential", name))
		return nil
	case err != nil:
		problem, act := fileFault(err)
		s.Fail("grant", "sign-in "+file, problem, tokenAdvice["bad-grant"].With("act", act))
		return nil
	}
	d.Hide(string(g.Refresh))
	return g
}

// checkGrant judges a user's sign-in by how the refresh went just now, and by when its refresh token
// came: to use that does not make it last longer.
func (d *Walk) checkGrant(s finding.Section, name string, g *entra.StoredGrant, refresh error) {
	file := d.config.Vault().Path(name)
	if text := service.WrongOwner(file, service.TokenUser); text != "" {
		s.Fail("grant_owner", "sign-in "+file, "belongs to another user", tokenAdvice["owner"].With("act", text))
	}
	const day = 24 * time.Hour
	idle := d.now().Sub(g.Renewed())
	found := fmt.Sprintf("%s signed in on %s; the refresh token came %d days ago, and is good for %d", cmp.Or(g.User, "somebody"), g.SignedIn.UTC().Format(time.DateOnly),
		idle/day, entra.MaxIdle/day)
	switch e, ok := errors.AsType[*entra.RefusedError](refresh); {
	case ok && e.EndsSignIn():
		meaning, act := e.Advice()
		s.Fail("grant", "sign-in", fmt.Sprintf("%s; %v", found, e), tokenAdvice["refused"].With("meaning", meaning, "act", act))
	case idle > entra.MaxIdle && refresh != nil:
		s.Fail("grant", "sign-in", found, tokenAdvice["void"].With("credential", name))
	case g.Kept():
		s.Warn("grant", "sign-in", found, tokenAdvice["kept"].With("ends", g.Renewed().Add(entra.MaxIdle).UTC().Format(time.DateOnly), "act", entra.KeptHint(name)))
	case idle > idleSoon:
		s.Warn("grant", "sign-in", found, tokenAdvice["idle"])
	default:
		s.Ok("grant", "sign-in", "%s", found)
	}
}

// fetch gets a fresh token as the service does, and looks at what it says. The error is that of the
// request for the token.
func (d *Walk) fetch(ctx context.Context, s finding.Section, name string, cc config.Credential) error {
	client, err := d.client(d.config)
	if err != nil {
		_, act := fileFault(err)
		s.Fail("token", "token", err.Error(), tokenAdvice["no-client"].With("act", act))
		return nil
	}
	watch := &clockWatch{next: client.Transport, now: d.now}
	own := *client
	own.Transport = watch
	source, err := d.source(d.config, name, &own, d.config.Vault())
	if err != nil {
		s.Fail("token", "token", err.Error(), tokenAdvice["no-client"].With("act", "correct the credential in sendas.yaml"))
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, tokenTime)
	defer cancel()
	began := time.Now()
	t, err := source.Token(ctx)
	d.checkClock(s, watch)
	if e, ok := errors.AsType[*entra.RefusedError](err); ok && e.EndsSignIn() {
		s.Skip("token", "token", "there is none: Microsoft refuses the sign-in")
		return err
	}
	if err != nil {
		found, a, passes := explainTokenError(err)
		s.Trouble(passes, "token", "token", found, a)
		return err
	}
	d.Hide(string(t.Access), url.QueryEscape(string(t.Access)))
	d.tokens[name] = t
	s.Ok("token", "token", "came fresh from Entra in %s and serves until %s", time.Since(began).Round(time.Millisecond), t.Expires.UTC().Format(time.RFC3339))
	if u, ok := source.(interface{ Unsaved() error }); ok && u.Unsaved() != nil {
		problem, act := fileFault(u.Unsaved())
		s.Warn("unsaved", "refresh token", problem, tokenAdvice["unsaved"].With("act", act))
	}
	d.checkClaims(s, t, name, cc)
	return nil
}

// explainTokenError says what an error of a token.Source means.
func explainTokenError(err error) (found string, a finding.Advice, passes bool) {
	if e, ok := errors.AsType[*entra.FileError](err); ok {
		problem, act := fileFault(e)
		return fmt.Sprintf("file %s %s", e.Path, problem), tokenAdvice["file"].With("act", act), false
	}
	if e, ok := errors.AsType[*entra.RefusedError](err); ok {
		meaning, act := e.Advice()
		return err.Error(), tokenAdvice["refused"].With("meaning", meaning, "act", act), e.Temporary()
	}
	if e, ok := errors.AsType[*entra.UnreachableError](err); ok {
		return err.Error(), tokenAdvice["unreachable"].With("act", e.Hint()), e.Temporary()
	}
	return err.Error(), tokenAdvice["unknown"], false
}

// checkClaims decodes a token and judges what it says. It is nobody's business but Exchange
// Online's to verify it.
func (d *Walk) checkClaims(s finding.Section, t *entra.Token, name string, cc config.Credential) {
	claims, err := inspect.Parse(string(t.Access))
	if err != nil {
		s.Skip("claims", "token", "is opaque, so nothing can be read in it")
		return
	}
	for _, f := range claims.Judge(d.expected(name, cc)) {
		id, what := "claim."+strings.ReplaceAll(f.What, " ", "_"), "token's "+f.What
		switch {
		case !f.OK:
			s.Fail(id, what, f.Meaning, tokenAdvice["claim"].With("meaning", "Exchange Online refuses such a token, or the wrong app would send", "act", f.Act))
		case f.Act != "":
			s.Ok(id, what, "%s; %s", f.Meaning, f.Act)
		default:
			s.Ok(id, what, "%s", f.Meaning)
		}
	}
}

// expected is what a token of the credential should say.
func (d *Walk) expected(name string, cc config.Credential) inspect.Expected {
	app, user := d.config.Scopes(name)
	want := inspect.Expected{ClientID: cc.ClientID, ObjectID: cc.ObjectID, AppOnly: !cc.Delegated(), User: cc.User, Now: d.now(), HighVolume: d.config.IsHighVolume(name),
		Audiences: []string{strings.TrimSuffix(app, "/.default"), strings.TrimSuffix(strings.TrimSuffix(user, "/.default"), "/SMTP.Send")}}
	if config.GuidForm.MatchString(d.config.Tenant.ID) {
		want.TenantID = d.config.Tenant.ID
	}
	return want
}

// A clockWatch compares this machine's clock with that of the server, by the Date of its answers
// (RFC 9110, section 6.6.1).
type clockWatch struct {
	next http.RoundTripper // nil is the standard one
	now  func() time.Time

	mu   sync.Mutex // guards what follows
	seen bool
	skew time.Duration // by which this machine is ahead
}

// RoundTrip implements http.RoundTripper.
func (c *clockWatch) RoundTrip(r *http.Request) (*http.Response, error) {
	next := c.next
	if next == nil {
		next = http.DefaultTransport
	}
	began := c.now()
	resp, err := next.RoundTrip(r)
	if err != nil {
		return nil, err
	}
	if date, err := http.ParseTime(resp.Header.Get("Date")); err == nil {
		c.mu.Lock()
		defer c.mu.Unlock()
		// The answer was made somewhere between the two moments, and its time has no parts of a
		// second.
		c.seen, c.skew = true, began.Add(c.now().Sub(began)/2).Sub(date.Add(time.Second/2))
	}
	return resp, nil
}

// checkClock notes how far the clocks are apart.
func (d *Walk) checkClock(s finding.Section, c *clockWatch) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.seen {
		return
	}
	off := c.skew.Abs().Round(time.Second)
	found := fmt.Sprintf("differs by %s from Entra's", off)
	if off > skewNoted {
		found = fmt.Sprintf("is %s %s Entra's", off, map[bool]string{true: "ahead of", false: "behind"}[c.skew > 0])
	}
	switch {
	case off > skewWrong:
		s.Fail("clock", "clock of this machine", found, tokenAdvice["clock"])
	case off > skewNoted:
		s.Warn("clock", "clock of this machine", found, tokenAdvice["clock"])
	default:
		s.Ok("clock", "clock of this machine", "%s", found)
	}
}
