package exosim

import (
	"encoding/base64"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/golang-jwt/jwt/v5"
)

func (k *conn) auth(arg string) error {
	mech, initial, hasInitial := strings.Cut(arg, " ")
	switch {
	case k.helo == "":
		return k.reply(textSendHello)
	case !k.offers("AUTH"):
		return k.reply(textNoMechanism)
	case k.box != nil:
		return k.reply("503 5.5.1 Already authenticated")
	case strings.EqualFold(mech, "LOGIN"):
		return k.authLogin(hasInitial)
	case strings.EqualFold(mech, "XOAUTH2"):
		return k.authXOAUTH2(strings.TrimSpace(initial), hasInitial)
	}
	return k.reply(textNoMechanism)
}

// offers tells whether EHLO has an extension for the session as it is.
func (k *conn) offers(extension string) bool {
	return slices.ContainsFunc(k.svc.extensions(k), func(x string) bool {
		name, _, _ := strings.Cut(x, " ")
		return name == extension
	})
}

// authLogin is refused as it is where Basic authentication is off, whatever the
// password.
func (k *conn) authLogin(hasUser bool) error {
	prompts := []string{"334 VXNlcm5hbWU6", "334 UGFzc3dvcmQ6"}
	if hasUser {
		prompts = prompts[1:]
	}
	for _, p := range prompts {
		if err := k.reply(p); err != nil {
			return err
		}
		line, err := k.readLine()
		if err != nil {
			return err
		}
		if line == "*" {
			break
		}
	}
	return k.authRefused("basic authentication", textBasicOff+k.bracket())
}

func (k *conn) authXOAUTH2(response string, given bool) error {
	if !given {
		if err := k.reply("334 "); err != nil {
			return err
		}
		var err error
		if response, err = k.readLine(); err != nil {
			return err
		}
	}
	if response == "*" { // RFC 4954 has 501 here; Exchange does not
		return k.authRefused("cancelled", textAuthFailed+k.bracket())
	}
	user, token, err := parseXOAUTH2(response)
	if err != nil {
		k.s.noteAuth("malformed")
		if k.s.cfg.HighVolume {
			return k.refuse(textBadXOAUTH2)
		}
		return k.refuse(textBadArgs)
	}
	box, why := k.s.authenticate(user, token)
	switch {
	case why == whyExpiresSoon:
		k.s.noteAuth(why)
		return k.refuse(textExpireSoon)
	case why == whyTenantOff || why == whyMailboxOff:
		return k.authRefused(why, fmt.Sprintf(textAuthOff, strings.TrimPrefix(why, "SMTP AUTH is off for the "))+k.bracket())
	case why != "":
		if err := k.challenge(); err != nil {
			return err
		}
		return k.authRefused(why, textAuthFailed+k.bracket())
	}
	k.box = box
	k.s.enter(box)
	return k.reply(textAuthOK)
}

// challenge is Google's way: the error in JSON, which the client has to answer
// before it gets its 535.
func (k *conn) challenge() error {
	if !k.s.cfg.Challenge {
		return nil
	}
	const failure = `{"status":"401","schemes":"bearer","scope":"https://outlook.office.com/"}`
	if err := k.reply("334 " + base64.StdEncoding.EncodeToString([]byte(failure))); err != nil {
		return err
	}
	_, err := k.readLine()
	return err
}

// authRefused refuses; why is for the counters, since Exchange's text is the same
// for nearly all reasons.
func (k *conn) authRefused(why, line string) error {
	k.s.noteAuth(why)
	k.s.cfg.Log.Info("authentication refused", "session", k.id, "why", why)
	k.authErr = line
	return k.refuse(line)
}

// parseXOAUTH2 reads the payload of Microsoft's page on OAuth for SMTP:
// base64("user=" userName ^A "auth=Bearer " accessToken ^A ^A). Its errors do not
// show the payload.
func parseXOAUTH2(b64 string) (user, token string, err error) {
	b, err := base64.StdEncoding.Strict().DecodeString(b64)
	if err != nil {
		return "", "", errors.New("not base64")
	}
	parts := strings.Split(string(b), "\x01")
	if len(parts) != 4 || parts[2] != "" || parts[3] != "" {
		return "", "", errors.New("not two fields and two ^A")
	}
	user, isUser := strings.CutPrefix(parts[0], "user=")
	token, isToken := strings.CutPrefix(parts[1], "auth=Bearer ")
	if !isUser || !isToken || user == "" || token == "" {
		return "", "", errors.New("user= or auth=Bearer is missing")
	}
	return user, token, nil
}

// The reasons that stand in several places, most for a text of their own on the
// wire.
const (
	whyExpiresSoon = "token expires soon"
	whyNoMailbox   = "no such mailbox"
	whyTenantOff   = "SMTP AUTH is off for the Tenant"
	whyMailboxOff  = "SMTP AUTH is off for the Mailbox"
)

// audience is the usual resource of Exchange Online; audiences are all whose
// tokens it takes for SMTP, those of other clouds among them.
const audience = "https://outlook.office365.com"

var audiences = []string{
	audience, "https://outlook.office.com", "https://outlook.office365.us", "https://partner.outlook.cn",
}

// highVolumeMargin is what a token must have left for High Volume Email.
const highVolumeMargin = 10 * time.Minute

// authenticate is what Exchange checks at AUTH. It returns why it refuses.
func (s *Server) authenticate(user, token string) (b *mailbox, why string) {
	c, why := s.verify(token)
	if why != "" {
		return nil, why
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	b = s.mailboxes[strings.ToLower(user)]
	switch {
	case s.cfg.HighVolume && c.ExpiresAt.Sub(time.Now().Add(s.faults.EntraSkew)) < highVolumeMargin:
		return nil, whyExpiresSoon
	case c.delegated():
		why = s.userMay(c, b)
	default:
		why = s.appMay(c, b)
	}
	if why != "" {
		return nil, why
	}
	switch {
	case b.SMTPAuthDisabled:
		return nil, whyMailboxOff
	case s.cfg.SMTPAuthDisabled && !b.SMTPAuthEnabled:
		return nil, whyTenantOff
	}
	return b, ""
}

// appMay returns why an app's token does not open a mailbox, which may be nil.
// The caller holds the lock.
func (s *Server) appMay(c *accessClaims, b *mailbox) string {
	app := s.apps[c.AppID]
	switch {
	case app == nil || app.NotInExchange:
		return "no service principal in Exchange"
	case app.ExchangeID != c.ObjectID:
		return "service principal has another object id"
	case b == nil:
		return whyNoMailbox
	}
	return app.entitled(c.Roles, b.Address)
}

// userMay returns why a user's token does not open a mailbox, which may be nil.
// The caller holds the lock.
func (s *Server) userMay(c *accessClaims, b *mailbox) string {
	u := s.users[strings.ToLower(c.User)]
	switch {
	case !slices.Contains(strings.Fields(c.Scopes), exchangePermissions[0]):
		return "token has no SMTP.Send"
	case u == nil:
		return "no such user"
	case u.Disabled:
		return "user is disabled"
	case b == nil:
		return whyNoMailbox
	case !u.mayUse(b.Address):
		return "user has no FullAccess"
	}
	return ""
}

// entitled returns why an app may not use a mailbox. Roles in the token make
// Exchange look for mailbox permissions and nothing else; that is why
// Microsoft says not to add any with App RBAC.
func (a *App) entitled(roles []string, address string) string {
	granted := func(lists ...[]string) bool {
		return slices.ContainsFunc(slices.Concat(lists...), func(x string) bool { return x == "*" || strings.EqualFold(x, address) })
	}
	switch {
	case len(roles) == 0 && !granted(a.RBACScope, a.Mailboxes):
		return "mailbox is not in the role's scope"
	case len(roles) == 0:
		return ""
	case !slices.Contains(roles, sendAsApp):
		return "token has roles, but not SMTP.SendAsApp"
	case !granted(a.FullAccess, a.Mailboxes):
		return "no FullAccess"
	}
	return ""
}

// verify returns the claims of an access token, or why it is no good.
func (s *Server) verify(token string) (*accessClaims, string) {
	var c accessClaims
	_, err := jwt.NewParser(jwt.WithValidMethods([]string{"RS256"}), jwt.WithExpirationRequired(), jwt.WithTimeFunc(s.now)).
		ParseWithClaims(token, &c, func(*jwt.Token) (any, error) { return s.key.Public(), nil })
	s.mu.Lock()
	defer s.mu.Unlock()
	_, live := s.tokens[c.ID]
	switch {
	case errors.Is(err, jwt.ErrTokenExpired):
		return nil, "token expired"
	case err != nil:
		return nil, "token is not one of ours"
	case !live:
		return nil, "token revoked"
	case len(c.Audience) != 1 || !slices.Contains(audiences, strings.TrimSuffix(c.Audience[0], "/")):
		return nil, "token is for another audience"
	case c.TenantID != s.cfg.TenantID:
		return nil, "token of another tenant"
	}
	return &c, ""
}

func (s *Server) noteAuth(why string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.authRefused[why]++
}

// AuthRefused returns how often AUTH was refused for which reason, more exactly
// than the wire says it: "token expired", "no FullAccess".
func (s *Server) AuthRefused() map[string]int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return maps.Clone(s.authRefused)
}
