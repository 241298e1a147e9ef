package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"net/url"
	"os"
	"os/exec"
	"path"
	"slices"
	"strings"
	"sync"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/sendas/sendas/cmd/internal/config"
	"github.com/sendas/sendas/cmd/internal/service"
	"github.com/sendas/sendas/internal/exit"
	"github.com/sendas/sendas/token/entra"
	"github.com/sendas/sendas/token/entra/inspect"
)

func cmdLogin(o *options) *cobra.Command {
	var browser bool
	c := &cobra.Command{
		Use:   "login [CREDENTIAL]",
		Short: "Sign a user in, so that mail can leave as that user",
		Long: `login signs the user of a credential in (flow: device_code or authorization_code) and stores
the refresh token, from which the token service makes access tokens for as long as it is used.

It shows an address and a code; open the address on any device, enter the code, and sign in as
the mailbox's user, not as an administrator. The app registration needs the delegated permission
SMTP.Send and, under Authentication, "Allow public client flows".

With --browser, which is the way of flow authorization_code, the browser comes back to
this machine instead, and no code has to be typed. The app registration then needs the
redirect URI http://localhost (Mobile and desktop applications).

Without CREDENTIAL it lists those that users sign in for, and who has.

Type it as root, or as the user of the token service. A sign-in that fails leaves an older
one as it was.`,
		Example: "  sendas login\n  sendas login scan\n  sendas login scan --browser",
		Args:    cobra.MaximumNArgs(1),

		ValidArgsFunction: completeFirst(o, signInCredentials),
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				return listSignIns(o)
			}
			l, err := newLogin(o, args[0])
			if err != nil {
				return err
			}
			return l.run(cmd.Context(), browser || l.flow == config.FlowAuthorizationCode)
		},
	}
	c.Flags().BoolVar(&browser, "browser", false, "sign in with a browser that reaches this machine as localhost")
	return c
}

// listSignIns prints the credentials that users sign in for, and who has.
func listSignIns(o *options) error {
	c, err := config.Load(o.config, config.SkipFiles)
	if err != nil {
		return err
	}
	t := tabwriter.NewWriter(o.stdout, 0, 0, 2, ' ', 0)
	n := 0
	for _, name := range slices.Sorted(maps.Keys(c.Credentials)) {
		cc := c.Credentials[name]
		if !cc.Delegated() {
			continue
		}
		if n++; n == 1 {
			fmt.Fprintln(t, "credential\tuser\tsigned in")
		}
		fmt.Fprintf(t, "%s\t%s\t%s\n", name, cc.User, signedInWords(c.Vault(), name))
	}
	if n == 0 {
		return exit.Errorf(exit.Usage, "", "%s", signInNames(c))
	}
	t.Flush()
	fmt.Fprintln(o.stderr, "sendas: next: sendas login CREDENTIAL")
	return nil
}

// signedInWords says who has signed in, as the vault has it.
func signedInWords(v *entra.Vault, name string) string {
	g, err := v.Load(name)
	e, _ := errors.AsType[*entra.FileError](err)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return "nobody yet"
	case e != nil:
		return "not known: " + e.Found()
	case err != nil:
		return "not known"
	case time.Since(g.Renewed()) > entra.MaxIdle:
		return fmt.Sprintf("%s on %s, and its refresh token has ended", cmp.Or(g.User, "somebody"), g.SignedIn.Local().Format(time.DateOnly))
	}
	return fmt.Sprintf("%s on %s, good until %s at least", cmp.Or(g.User, "somebody"), g.SignedIn.Local().Format(time.DateOnly), g.Renewed().Add(entra.MaxIdle).Local().Format(time.DateOnly))
}

// login is one sign-in.
type login struct {
	o      *options
	c      *config.Site
	name   string // of the credential
	flow   string
	user   string // who has to sign in
	vault  *entra.Vault
	signIn *entra.SignIn
}

// newLogin prepares a sign-in, and finds out all that would be a pity to hear only after it.
func newLogin(o *options, name string) (*login, error) {
	c, err := config.Load(o.config, config.SkipFiles)
	if err != nil {
		return nil, err
	}
	cc, ok := c.Credentials[name]
	switch {
	case !ok:
		return nil, exit.Errorf(exit.Usage, signInNames(c), "there is no credential %q in %s", name, o.config)
	case !cc.Delegated():
		return nil, exit.Errorf(exit.Usage, signInNames(c), "credential %q has the flow %s: it gets its tokens as an app, and nobody signs in for it", name, cc.Flow)
	}
	l := &login{o: o, c: c, name: name, flow: cc.Flow, user: cc.User, vault: c.Vault()}
	if err := l.vault.Check(name); err != nil {
		return nil, exit.Errorf(exit.Config, "", "the sign-in could not be stored: %w", err)
	}
	client, err := c.Client()
	if err != nil {
		return nil, err
	}
	_, scope := c.Scopes(name)
	l.signIn = &entra.SignIn{
		Credential: name, Authority: c.Tenant.Endpoints.Authority, Tenant: c.Tenant.ID, ClientID: cc.ClientID, Scopes: []string{scope}, User: cc.User,
		SecretFile: cc.ClientSecretFile, CertificateFile: cc.CertificateFile, KeyFile: cc.KeyFile, Pairs: c.Pairs(name), Client: client,
	}
	return l, nil
}

// signInNames says which credentials the command is for.
func signInNames(c *config.Site) string {
	var names []string
	for name, cc := range c.Credentials {
		if cc.Delegated() {
			names = append(names, name)
		}
	}
	if len(names) == 0 {
		return `no credential lets a user sign in; one with "flow: device_code" would, "sendas doctor" tries the others`
	}
	slices.Sort(names)
	return "users sign in for: " + strings.Join(names, ", ")
}

// run signs the user in, looks who it was, and stores the grant.
func (l *login) run(ctx context.Context, browser bool) error {
	l.say("sign in as %s, and as nobody else: not as an administrator", l.user)
	by := l.byCode
	if browser {
		by = l.byBrowser
	}
	g, err := by(ctx)
	if err != nil {
		return l.explain(err)
	}
	who, err := l.check(g.Token.Access)
	if err != nil {
		return err
	}
	now := time.Now()
	err = l.vault.Save(l.name, &entra.StoredGrant{
		Refresh: g.Refresh, ClientID: l.signIn.ClientID, Tenant: l.c.Tenant.ID, User: who, Scope: l.signIn.Scopes[0], SignedIn: now, Refreshed: now, Used: now,
	})
	if err != nil {
		return exit.Errorf(exit.Config, fmt.Sprintf("mend it and type \"sendas login %s\" again", l.name), "the sign-in succeeded and could not be stored: %w", err)
	}
	fmt.Fprintf(l.o.stdout, "signed in as %s; stored in %s\n", cmp.Or(who, "somebody"), l.vault.Path(l.name))
	l.sayNext()
	return nil
}

// say tells something to the person at the terminal.
func (l *login) say(format string, args ...any) {
	fmt.Fprintf(l.o.stderr, "sendas: "+format+"\n", args...)
}

// byCode signs in with a code that is typed on any device.
func (l *login) byCode(ctx context.Context) (*entra.Grant, error) {
	done := make(chan struct{})
	var counting sync.WaitGroup
	g, err := l.signIn.DeviceCode(ctx, func(p entra.DevicePrompt) {
		l.say("open   %s   on any device", p.URL)
		l.say("enter  %s", p.Code)
		l.say("the code is good for %v, until %s", time.Until(p.Expires).Round(time.Minute), p.Expires.Format("15:04:05 MST"))
		if terminal(l.o.stderr) {
			counting.Go(func() { countDown(l.o.stderr, p.Expires, done) })
		}
	})
	close(done)
	counting.Wait()
	return g, err
}

// countDown shows the time that is left, on a line that it wipes in the end.
func countDown(w io.Writer, end time.Time, done <-chan struct{}) {
	t := time.NewTicker(time.Second)
	defer t.Stop()
	for {
		left := max(0, time.Until(end)).Round(time.Second)
		fmt.Fprintf(w, "\rsendas: waiting, %d:%02d left \x1b[K", int(left.Minutes()), int(left.Seconds())%60)
		select {
		case <-t.C:
		case <-done:
			fmt.Fprint(w, "\r\x1b[K")
			return
		}
	}
}

// terminal reports whether a person sees lines change.
func terminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	if !ok {
		return false
	}
	_, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	return err == nil
}

// byBrowser signs in with a browser that comes back to this machine.
func (l *login) byBrowser(ctx context.Context) (*entra.Grant, error) {
	return l.signIn.Browser(ctx, func(address string) {
		l.say("the app registration must have the redirect URI %s (Authentication > Mobile and desktop applications)", entra.RedirectURI)
		l.say("open this address in a browser on this machine:")
		fmt.Fprintln(l.o.stderr, address)
		if os.Getenv("DISPLAY") == "" {
			l.say("with a browser elsewhere, forward the port first: ssh -L %[1]s:127.0.0.1:%[1]s %[2]s", portOf(address), hostName())
			return
		}
		openBrowser(address)
	})
}

// portOf is where the browser comes back to.
func portOf(address string) string {
	u, err := url.Parse(address)
	if err != nil {
		return "PORT"
	}
	back, err := url.Parse(u.Query().Get("redirect_uri"))
	if err != nil || back.Port() == "" {
		return "PORT"
	}
	return back.Port()
}

func hostName() string {
	name, err := os.Hostname()
	if err != nil {
		return "HOST"
	}
	return name
}

// openBrowser tries to open an address; the person sees it in any case.
func openBrowser(address string) {
	c := exec.Command("xdg-open", address)
	if c.Start() == nil {
		go c.Wait()
	}
}

// explain gives the error of a sign-in its exit code and its hint.
func (l *login) explain(err error) error {
	code, hint := exit.Config, ""
	if h, ok := errors.AsType[interface {
		error
		Hint() string
	}](err); ok {
		hint = h.Hint()
	}
	refused, _ := errors.AsType[*entra.RefusedError](err)
	_, ours := errors.AsType[*entra.SignInError](err)
	_, unreachable := errors.AsType[*entra.UnreachableError](err)
	switch {
	case errors.Is(err, context.Canceled):
		return exit.Errorf(exit.TempFail, "", "interrupted; nothing was stored")
	case unreachable:
		code, hint = exit.TempFail, fmt.Sprintf("%s; then type \"sendas login %s\" again", hint, l.name)
	case ours, refused != nil && (refused.Temporary() || slices.Contains(userRefusals, refused.OAuth)):
		code = exit.TempFail
	}
	return exit.Errorf(code, hint, "%w", err)
}

// userRefusals are for the user to mend: the configuration is good.
var userRefusals = []string{"authorization_declined", "expired_token", "bad_verification_code"}

// check looks at who has signed in, and for what. It returns the user's name, or "" where the token
// does not tell: then the sign-in is stored all the same, because a token is opaque by contract.
func (l *login) check(access entra.Secret) (string, error) {
	claims, err := inspect.Parse(string(access))
	if err != nil || claims.User == "" {
		l.say("warning: the token does not tell who signed in; if that was not %s, type \"sendas login %s\" again", l.user, l.name)
		return "", nil
	}
	permission := path.Base(l.signIn.Scopes[0])
	if l.c.IsHighVolume(l.name) { // whose scope names none: /.default
		permission = "Mail.Send"
	}
	again := fmt.Sprintf("type \"sendas login %s\" again", l.name)
	switch id := l.c.Tenant.ID; {
	case config.GuidForm.MatchString(id) && claims.Tenant != "" && !strings.EqualFold(claims.Tenant, id):
		return "", exit.Errorf(exit.Config, "sign in as a user of that tenant, or correct tenant.id in "+l.o.config,
			"%s signed in to the tenant %s, and tenant.id is %s; nothing was stored", claims.User, claims.Tenant, id)
	case !strings.EqualFold(claims.User, l.user):
		return "", exit.Errorf(exit.TempFail, fmt.Sprintf("%s in a private window of the browser, and sign in as %s; if that mailbox's user signs in under another name (UPN), "+
			"write that name into user: of credential %q", again, l.user, l.name),
			"%s signed in, and credential %q is for %s; nothing was stored", claims.User, l.name, l.user)
	case !slices.ContainsFunc(claims.Scopes, func(s string) bool { return strings.EqualFold(path.Base(s), permission) }):
		return "", exit.Errorf(exit.Config, fmt.Sprintf("in the app registration under API permissions add the delegated permission %s, grant consent, and %s", permission, again),
			"%s signed in, and the token does not allow %s but %q; nothing was stored", claims.User, permission, claims.Scopes)
	}
	return claims.User, nil
}

// sayNext says what remains to be done.
func (l *login) sayNext() {
	if l.c.AccountRoute(l.name) == nil && !slices.ContainsFunc(l.c.Mailboxes, func(m config.Mailbox) bool { return m.Credential == l.name }) {
		l.say("next: no mailbox uses credential %q; write it below mailboxes: and type \"systemctl reload sendas-token\"", l.name)
		return
	}
	if s := service.WrongOwner(l.vault.Path(l.name), service.TokenUser); s != "" {
		l.say("warning: %s", s)
		return
	}
	l.say("next: nothing; a running token service takes it by itself within a minute, and \"sendas status\" shows it")
}
