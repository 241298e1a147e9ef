package renew

import (
	"cmp"
	"context"
	"crypto/rsa"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"slices"
	"sync"
	"time"

	"github.com/sendas/sendas/token/entra"
)

// Audience is whom the proof for Graph is for, says Microsoft's page of 2024; it was another one before.
// https://learn.microsoft.com/graph/application-rollkey-prooftoken
const Audience = "00000002-0000-0000-c000-000000000000"

const (
	// grace is how long a former certificate stays with the app: Entra's servers take some minutes to
	// learn of a new one, each by itself.
	grace = 24 * time.Hour

	// proofEvery is how often a new certificate is tried until Entra knows it, and proofMost how long
	// before it is given up and another one is made.
	proofEvery = time.Minute
	proofMost  = 24 * time.Hour

	// backoffLeast and backoffMost bound the time between attempts that fail.
	backoffLeast = 5 * time.Minute
	backoffMost  = 6 * time.Hour

	// verifyEvery is how often a certificate of ours is looked after: somebody may have removed it in
	// the Entra admin centre, while another one still brings tokens.
	verifyEvery = 24 * time.Hour

	// lookEvery is how often the files are looked at while nothing is due: the administrator may have
	// put a certificate there that ends earlier.
	lookEvery = 6 * time.Hour
)

// A Keeper keeps one credential's certificate from ending. Its exported fields do not change once it
// is in use; its methods are safe for concurrent use. One process runs it: the folder is its own.
type Keeper struct {
	Credential string        // its name in the configuration
	ClientID   string        // of the app registration
	ObjectID   string        // of the app registration too, not of the enterprise application
	Configured entra.KeyPair // the administrator's certificate, to begin with
	Before     time.Duration // how long before its end a certificate is replaced

	TokenURL string // {authority}/{tenant}/oauth2/v2.0/token
	Scope    string // of the tokens that the credential is for: a new certificate is proved by one
	Graph    string // "https://graph.microsoft.com"
	Audience string // of the proof for Graph: see the constant

	Dir    string       // below token.state_dir; a folder for each credential is made in it
	Client *http.Client // see entra.NewHTTPClient
	Log    *slog.Logger // what was done, and each failure; nil: none

	generate func() (*rsa.PrivateKey, error) // for tests; nil makes one of keyBits

	mu       sync.Mutex // guards what follows
	state    State      // of the last attempt
	force    bool       // replace the certificate now, whenever it ends
	wake     chan struct{}
	verified time.Time // when the certificate in use was last looked after
}

// A State is what is to be told of a renewal.
type State struct {
	Ends    time.Time // of the certificate in use; zero where none can be read
	Made    string    // its thumbprint, SHA-256 in hex, where the keeper made it; else ""
	Due     time.Time // when it will be replaced
	Pending bool      // a new one is made, and not yet in use
	// Former is how many of ours wait to be taken from the app.
	Former int

	Attempts int       // that failed, one after the other
	Failing  time.Time // since when; zero where the last attempt did not fail
	Err      error     // why; it holds no secret
}

// Pairs returns by which certificates the app can prove itself, the best first: the newer of ours and
// the configured one, then whatever else may serve. It reads the disk, and can be called by any
// process that may read the files.
func (k *Keeper) Pairs() []entra.KeyPair {
	b, _ := k.load() // without a book there is the configured one
	return k.pairs(b)
}

func (k *Keeper) pairs(b *book) []entra.KeyPair {
	type candidate struct {
		pair entra.KeyPair
		made time.Time // zero where it cannot serve
	}
	configured, ours := candidate{pair: k.Configured}, candidate{}
	if id, err := k.Configured.Read(time.Now()); err == nil && thumbprint(id.Certificate.Raw) != b.Unknown {
		configured.made = id.Certificate.NotBefore
	}
	list := []candidate{configured}
	if b.Using != nil {
		ours.pair = k.pair(b.Using)
		if _, err := ours.pair.Read(time.Now()); err == nil {
			ours.made = b.Using.Made
		}
		list = []candidate{ours, configured} // of two of the same age, or that cannot serve, ours is the first
	}
	slices.SortStableFunc(list, func(a, b candidate) int { return b.made.Compare(a.made) })
	var pairs []entra.KeyPair
	for _, c := range list {
		pairs = append(pairs, c.pair)
	}
	for _, e := range slices.Backward(b.Former) {
		pairs = append(pairs, k.pair(&e))
	}
	if b.Next != nil && !b.Next.Added.IsZero() {
		pairs = append(pairs, k.pair(b.Next))
	}
	return pairs
}

// Check reads the certificate that is the best now, and returns its end. The error is an
// *entra.FileError, about the configured one where there is no other.
func (k *Keeper) Check() (ends time.Time, err error) {
	best := k.Pairs()[0]
	return entra.CheckCertificate(best.CertificateFile, best.KeyFile)
}

// State returns what is known of the renewal.
func (k *Keeper) State() State {
	b, err := k.load()
	k.mu.Lock()
	defer k.mu.Unlock()
	s := k.state
	if err != nil && s.Err == nil {
		s.Err, s.Failing = err, time.Now()
	}
	pairs := k.pairs(b)
	if id, _ := pairs[0].Read(time.Now()); id != nil {
		s.Ends = id.Certificate.NotAfter
		s.Due = s.Ends.Add(-k.Before)
	}
	if b.Using != nil && pairs[0] == k.pair(b.Using) {
		s.Made = b.Using.Thumbprint
	}
	s.Pending, s.Former = b.Next != nil, len(b.Former)
	return s
}

// Renew replaces the certificate now, whenever it ends: Run begins at once.
func (k *Keeper) Renew() {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.force = true
	select {
	case k.waker() <- struct{}{}:
	default:
	}
}

// waker is called with mu held.
func (k *Keeper) waker() chan struct{} {
	if k.wake == nil {
		k.wake = make(chan struct{}, 1)
	}
	return k.wake
}

// Run renews until ctx ends.
func (k *Keeper) Run(ctx context.Context) {
	k.mu.Lock()
	wake := k.waker()
	k.mu.Unlock()
	for {
		t := time.NewTimer(k.attempt(ctx))
		select {
		case <-t.C:
		case <-wake:
			t.Stop()
		case <-ctx.Done():
			t.Stop()
			return
		}
	}
}

// attempt goes as far as it can, notes how that ended, and returns when to come again.
func (k *Keeper) attempt(ctx context.Context) time.Duration {
	wait, err := k.advance(ctx)
	if ctx.Err() != nil {
		return 0
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if err == nil {
		if !k.state.Failing.IsZero() {
			k.log().Info("the renewal of the certificate works again", "credential", k.Credential)
		}
		k.state = State{}
		return wait
	}
	k.state.Attempts++
	if k.state.Failing.IsZero() {
		k.state.Failing = time.Now()
	}
	k.state.Err = err
	wait = min(backoffMost, backoffLeast<<min(k.state.Attempts-1, 10))
	wait = max(wait, retryAfter(err))
	attrs := []any{"credential", k.Credential, "error", err, "again_in", wait.String()}
	if hint := Hint(err); hint != "" {
		attrs = append(attrs, "hint", hint)
	}
	k.log().Error("a step of the certificate's renewal failed; what served before goes on", attrs...)
	return wait
}

// Hint says what to do about an error of a renewal; "" where the error says it itself.
func Hint(err error) string {
	if h, ok := errors.AsType[interface {
		error
		Hint() string
	}](err); ok {
		return h.Hint()
	}
	return ""
}

func retryAfter(err error) time.Duration {
	if e, ok := errors.AsType[*RefusedError](err); ok {
		return e.RetryAfter
	}
	if e, ok := errors.AsType[*UnreachableError](err); ok {
		return e.RetryAfter
	}
	return 0
}

// advance does what is due, step by step, until there is nothing to do before a time from now. Each
// step is on the disk before the next one begins.
func (k *Keeper) advance(ctx context.Context) (wait time.Duration, err error) {
	b, err := k.load()
	if err != nil {
		return 0, err
	}
	k.sweep(b)
	for b.Next != nil || k.due(b) {
		var again time.Duration
		switch {
		case b.Next == nil:
			err = k.begin(b)
		case b.Next.Added.IsZero():
			err = k.add(ctx, b)
		default:
			again, err = k.prove(ctx, b)
		}
		if err != nil || again > 0 {
			return again, err
		}
	}
	if err := k.verify(ctx, b); err != nil {
		return 0, err
	}
	return k.retire(ctx, b)
}

// verify looks once a day whether Entra still takes the best certificate. Where it takes another one
// instead, mail goes on, and nobody would notice until that one ends. So ours is given up then, and
// the configured one is put last until it is taken.
func (k *Keeper) verify(ctx context.Context, b *book) error {
	k.mu.Lock()
	last := k.verified
	k.mu.Unlock()
	if b.Using == nil || time.Since(b.Using.Proved) < verifyEvery || time.Since(last) < verifyEvery {
		return nil
	}
	if err := k.verifyConfigured(ctx, b); err != nil {
		return err
	}
	if ours := k.pair(b.Using); k.pairs(b)[0] == ours {
		taken, err := k.taken(ctx, b, ours)
		if err != nil {
			return err
		}
		if !taken {
			k.log().Warn("the certificate that sendas made is no longer with the app; another one serves", "credential", k.Credential, "thumbprint", b.Using.Thumbprint)
			k.drop(b, b.Using)
			b.Using = nil
			if err := k.save(b); err != nil {
				return err
			}
		}
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.verified = time.Now()
	return nil
}

// verifyConfigured is verify for the certificate of the configuration where it is newer than ours.
func (k *Keeper) verifyConfigured(ctx context.Context, b *book) error {
	id, err := k.Configured.Read(time.Now())
	if err != nil || id.Certificate.NotBefore.Before(b.Using.Made) {
		return nil // it waits behind ours
	}
	taken, err := k.taken(ctx, b, k.Configured)
	if err != nil {
		return err
	}
	unknown := ""
	if !taken {
		unknown = thumbprint(id.Certificate.Raw)
	}
	if unknown == b.Unknown {
		return nil
	}
	if b.Unknown = unknown; !taken {
		k.log().Warn("the certificate of the configuration is not with the app; the one that sendas made serves", "credential", k.Credential, "file", k.Configured.CertificateFile,
			"hint", "upload it in the Entra admin centre: App registrations, Certificates & secrets; or leave it to sendas")
	}
	return k.save(b)
}

// taken reports whether Entra takes a certificate. The error is that nothing can be said, or that it
// takes no other one either.
func (k *Keeper) taken(ctx context.Context, b *book, p entra.KeyPair) (bool, error) {
	_, err := k.token(ctx, p, k.Scope)
	if !refusesProof(err) {
		return err == nil, err
	}
	others := slices.DeleteFunc(k.pairs(b), func(x entra.KeyPair) bool { return x == p })
	if _, e := firstOf(others, func(p entra.KeyPair) (*entra.Token, error) { return k.token(ctx, p, k.Scope) }); len(others) == 0 || e != nil {
		return false, err
	}
	return false, nil
}

// refusesProof reports whether Entra did not take the certificate.
func refusesProof(err error) bool {
	refused, ok := errors.AsType[*entra.RefusedError](err)
	return ok && refused.RefusesProof()
}

// due reports whether a new certificate is to be made.
func (k *Keeper) due(b *book) bool {
	k.mu.Lock()
	forced := k.force
	k.mu.Unlock()
	id, _ := k.pairs(b)[0].Read(time.Now())
	// Where none can be read nothing could add another one. What is wrong with it, each request for a
	// token says.
	return id != nil && (forced || !time.Now().Before(id.Certificate.NotAfter.Add(-k.Before)))
}

// begin makes a new key.
func (k *Keeper) begin(b *book) error {
	id, err := k.pairs(b)[0].Read(time.Now())
	if err != nil {
		return err
	}
	e, err := k.make(time.Now(), k.life(id.Certificate.NotAfter.Sub(id.Certificate.NotBefore)))
	if err != nil {
		return err
	}
	b.Next = e
	if err := k.save(b); err != nil {
		b.Next = nil
		return err
	}
	k.mu.Lock()
	k.force = false
	k.mu.Unlock()
	k.log().Info("a new key was made for the app", "credential", k.Credential, "thumbprint", e.Thumbprint, "ends", e.Ends.UTC().Format(time.DateOnly), "former_ends", id.Certificate.NotAfter.UTC().Format(time.DateOnly))
	return nil
}

// add has Graph add the certificate. Where an answer was lost, Graph has perhaps done so, and then
// the certificate proves itself.
func (k *Keeper) add(ctx context.Context, b *book) error {
	next := b.Next
	if time.Since(next.Made) > proofEvery {
		if _, err := k.token(ctx, k.pair(next), k.Scope); err == nil {
			next.Added = time.Now()
			return k.save(b)
		}
	}
	keyID, err := firstOf(k.pairs(b), func(by entra.KeyPair) (string, error) { return k.addKey(ctx, by, next) })
	if err != nil {
		return err
	}
	next.KeyID, next.Added = keyID, time.Now()
	if err := k.save(b); err != nil {
		return err
	}
	k.log().Info("the new certificate was added to the app", "credential", k.Credential, "thumbprint", next.Thumbprint, "key_id", keyID)
	return nil
}

// firstOf asks by one certificate after the other while the trouble is that Entra does not take it.
// The error is the first one's.
func firstOf[T any](pairs []entra.KeyPair, ask func(entra.KeyPair) (T, error)) (answer T, err error) {
	for i, p := range pairs {
		got, e := ask(p)
		if e == nil {
			return got, nil
		}
		if i == 0 {
			err = e
		}
		if _, unusable := errors.AsType[*entra.FileError](e); !unusable && !refusesProof(e) {
			return answer, e
		}
	}
	return answer, err
}

// prove asks for a token by the new certificate, and changes over when one comes. again is when to
// ask once more.
func (k *Keeper) prove(ctx context.Context, b *book) (again time.Duration, err error) {
	next := b.Next
	_, err = k.token(ctx, k.pair(next), k.Scope)
	if refusesProof(err) {
		if time.Since(next.Added) < proofMost {
			return proofEvery, nil // not known everywhere yet
		}
		k.drop(b, next)
		b.Next = nil
		return 0, errors.Join(fmt.Errorf("credential %q: Microsoft has not taken the new certificate for %v, though it was added; another one is made", k.Credential, proofMost), k.save(b))
	}
	if err != nil {
		return 0, err
	}
	next.Proved = time.Now()
	if b.Using != nil {
		k.drop(b, b.Using)
	}
	b.Using, b.Next = next, nil
	if err := k.save(b); err != nil {
		return 0, err
	}
	k.log().Info("the new certificate is in use", "credential", k.Credential, "thumbprint", next.Thumbprint, "ends", next.Ends.UTC().Format(time.DateOnly))
	return 0, nil
}

// drop puts a certificate among those that are to be taken from the app.
func (k *Keeper) drop(b *book, e *entry) {
	old := *e
	old.Remove = time.Now().Add(grace)
	b.Former = append(b.Former, old)
}

// retire takes former certificates from the app whose grace is over, and returns when to look again.
func (k *Keeper) retire(ctx context.Context, b *book) (time.Duration, error) {
	wait := lookEvery
	if id, _ := k.pairs(b)[0].Read(time.Now()); id != nil {
		wait = max(min(wait, time.Until(id.Certificate.NotAfter.Add(-k.Before))), time.Second)
	}
	for _, e := range slices.Clone(b.Former) {
		if left := time.Until(e.Remove); left > 0 {
			wait = min(wait, max(left, time.Second))
			continue
		}
		if err := k.remove(ctx, b, &e); err != nil {
			return 0, err
		}
		b.Former = slices.DeleteFunc(b.Former, func(x entry) bool { return x.Thumbprint == e.Thumbprint })
		if err := k.save(b); err != nil {
			return 0, err
		}
		k.sweep(b)
	}
	return wait, nil
}

// remove takes one certificate from the app, unless it has ended by itself or its name there is not
// known.
func (k *Keeper) remove(ctx context.Context, b *book, e *entry) error {
	switch {
	case !time.Now().Before(e.Ends):
		return nil
	case e.KeyID == "":
		k.log().Warn("a former certificate stays with the app, since Microsoft's answer with its name was lost", "credential", k.Credential, "thumbprint", e.Thumbprint,
			"hint", "its key is deleted here; remove it in the Entra admin centre: App registrations, Certificates & secrets")
		return nil
	}
	if _, err := firstOf(k.pairs(b)[:1], func(by entra.KeyPair) (struct{}, error) { return struct{}{}, k.removeKey(ctx, by, e.KeyID) }); err != nil {
		return err
	}
	k.log().Info("a former certificate was removed from the app", "credential", k.Credential, "thumbprint", e.Thumbprint)
	return nil
}

// token asks for a token by one certificate alone.
func (k *Keeper) token(ctx context.Context, by entra.KeyPair, scope string) (*entra.Token, error) {
	c := entra.ClientCredentials{
		Credential: k.Credential, TokenURL: k.TokenURL, ClientID: k.ClientID, Scope: scope,
		CertificateFile: by.CertificateFile, KeyFile: by.KeyFile, Client: k.Client,
	}
	return c.Token(ctx)
}

// A Rehearsal is what a renewal would do now.
type Rehearsal struct {
	InUse entra.KeyPair
	Ends  time.Time // of the certificate in use
	Life  time.Duration
	Due   time.Time
}

// Rehearse goes the way as far as it changes nothing: it reads the certificate, and gets the token for
// Graph by it. Whether Graph lets the app change its keys, only doing it shows.
func (k *Keeper) Rehearse(ctx context.Context) (*Rehearsal, error) {
	best := k.Pairs()[0]
	id, err := best.Read(time.Now())
	if err != nil {
		return nil, err
	}
	if _, err := k.token(ctx, best, k.Graph+"/.default"); err != nil {
		return nil, err
	}
	ends := id.Certificate.NotAfter
	return &Rehearsal{InUse: best, Ends: ends, Life: k.life(id.Certificate.NotAfter.Sub(id.Certificate.NotBefore)), Due: ends.Add(-k.Before)}, nil
}

func (k *Keeper) log() *slog.Logger { return cmp.Or(k.Log, slog.New(slog.DiscardHandler)) }
