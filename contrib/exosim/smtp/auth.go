package smtp

import (
	"cmp"
	"encoding/base64"
	"errors"
	"slices"
	"strings"
	"time"

	"github.com/emersion/go-sasl"

	"github.com/sendas/sendas/contrib/exosim/directory"
	"github.com/sendas/sendas/internal/xoauth2"
)

// The denials that are Exchange's own.
const (
	malformed   directory.Denial = "malformed"
	cancelled   directory.Denial = "cancelled"
	basicOff    directory.Denial = "basic authentication"
	expiresSoon directory.Denial = "token expires soon"
)

// denied is a Denial as an error, to pass through a mechanism.
type denied directory.Denial

func (d denied) Error() string { return string(d) }

// A mechanism is one AUTH: how the client's answers become a decision.
type mechanism struct {
	sasl.Server
	decode func(string) []byte
	refuse func(k *conn, why directory.Denial) error
	why    directory.Denial // what was decided, though the client has not heard it yet
}

// mechanism returns what a client asks for by name, nil if there is no such thing.
func (k *conn) mechanism(name string) *mechanism {
	switch strings.ToUpper(name) {
	case sasl.Login:
		return &mechanism{Server: &basicLogin{}, decode: asItIs, refuse: (*conn).refuseBasic}
	case xoauth2.Name:
		m := &mechanism{decode: strictBase64, refuse: (*conn).refuseToken}
		m.Server = xoauth2.NewServer(func(user, token string) error {
			if m.why = k.open(user, token); m.why != "" {
				return denied(m.why)
			}
			return nil
		}, k.x.failure)
		return m
	}
	return nil
}

// basicLogin is the server of LOGIN, for which go-sasl has a client only. Basic authentication is
// off, so it asks for user and password and takes none.
type basicLogin struct{ heard int }

// Next asks for what is still missing.
func (b *basicLogin) Next(response []byte) (challenge []byte, done bool, err error) {
	if response != nil {
		b.heard++
	}
	switch b.heard {
	case 0:
		return []byte("Username:"), false, nil
	case 1:
		return []byte("Password:"), false, nil
	}
	return nil, true, denied(basicOff)
}

// strictBase64 takes what is no base64 for empty, which is no answer to XOAUTH2 either.
func strictBase64(s string) []byte {
	b, err := base64.StdEncoding.Strict().DecodeString(s)
	if err != nil {
		return []byte{}
	}
	return b
}

// asItIs takes anything: it makes no difference to what is refused whatever it says.
func asItIs(s string) []byte { return []byte(s) }

func (k *conn) auth(arg string) error {
	name, initial, given := strings.Cut(arg, " ")
	switch {
	case k.helo == "":
		return k.reply(textSendHello)
	case !k.offers("AUTH"):
		return k.reply(textNoMechanism)
	case k.box != nil:
		return k.reply("503 5.5.1 Already authenticated")
	}
	m := k.mechanism(name)
	if m == nil {
		return k.reply(textNoMechanism)
	}
	why, err := k.converse(m, strings.TrimSpace(initial), given)
	switch {
	case err != nil:
		return err
	case why != "":
		return m.refuse(k, why)
	}
	return k.after(k.x.cfg.AuthTime, textAuthOK)
}

// converse leads the dialogue of a mechanism (RFC 4954, section 4), and returns why it is refused.
// An error ends the connection.
func (k *conn) converse(m *mechanism, answer string, given bool) (directory.Denial, error) {
	var response []byte // nil is none yet
	for {
		if given {
			response = m.decode(answer)
		}
		challenge, done, err := m.Next(response)
		if done || err != nil {
			return denial(err), nil
		}
		if err := k.reply("334 " + base64.StdEncoding.EncodeToString(challenge)); err != nil {
			return "", err
		}
		if answer, err = k.readLine(); err != nil {
			return "", err
		}
		if given = true; answer == "*" {
			return cmp.Or(m.why, cancelled), nil
		}
	}
}

// denial returns why a mechanism refuses, "" if it does not.
func denial(err error) directory.Denial {
	if d, ok := errors.AsType[denied](err); ok {
		return directory.Denial(d)
	}
	if err != nil {
		return malformed
	}
	return ""
}

// offers reports whether EHLO has an extension for the session as it is.
func (k *conn) offers(extension string) bool {
	return slices.ContainsFunc(k.svc.extensions(k), func(x string) bool {
		name, _, _ := strings.Cut(x, " ")
		return name == extension
	})
}

// refuseBasic refuses as it is done where Basic authentication is off, whatever the password and
// however the dialogue ended.
func (k *conn) refuseBasic(directory.Denial) error {
	return k.authRefused(basicOff, textBasicOff+k.bracket())
}

// refuseToken refuses XOAUTH2 in the words of the service.
func (k *conn) refuseToken(why directory.Denial) error {
	text := k.svc.denied(k, why)
	if strings.HasPrefix(text, "501") { // MAIL repeats no such refusal
		k.x.noteAuth(why)
		return k.refuse(text)
	}
	return k.authRefused(why, text)
}

// failure is the error in JSON that Google sends before a 535; nil is Microsoft's way.
func (x *Exchange) failure(refused error) []byte {
	switch denial(refused) {
	case expiresSoon, directory.TenantOff, directory.MailboxOff, directory.NoMailSend, directory.NoAccount:
		return nil // Google has no such things
	}
	if !x.cfg.Challenge {
		return nil
	}
	return []byte(`{"status":"401","schemes":"bearer","scope":"https://outlook.office.com/"}`)
}

// authRefused refuses; why is for the counters.
func (k *conn) authRefused(why directory.Denial, line string) error {
	k.x.noteAuth(why)
	k.x.cfg.Log.Info("authentication refused", "session", k.id, "why", string(why))
	k.authErr = line
	return k.refuse(line)
}

// highVolumeMargin is what a token must have left for High Volume Email.
const highVolumeMargin = 10 * time.Minute

// open opens the mailbox of a user name, or returns why Exchange refuses.
func (k *conn) open(user, token string) directory.Denial {
	b, why := k.svc.logon(k, user, token)
	if why == "" {
		k.box = b
		k.x.enter(b)
	}
	return why
}

// logon is what Exchange checks at AUTH. It returns why it refuses.
func (x *Exchange) logon(user, token string) (*box, directory.Denial) {
	c, why := x.verify(token)
	if why == "" {
		why = x.dir.ForUs(c)
	}
	switch {
	case why != "":
		return nil, why
	case x.cfg.HighVolume && c.Expires.Sub(x.dir.Now()) < highVolumeMargin:
		return nil, expiresSoon
	}
	m, why := x.dir.Admit(c, user)
	if why != "" {
		return nil, why
	}
	return x.boxes[strings.ToLower(m.Address)], ""
}

func (x *Exchange) noteAuth(why directory.Denial) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.authRefused[why]++
}

// AuthRefused returns how often AUTH was refused for which reason, more exactly
// than the wire says it: "token expired", "no FullAccess".
func (x *Exchange) AuthRefused() map[string]int {
	x.mu.Lock()
	defer x.mu.Unlock()
	counts := map[string]int{}
	for why, n := range x.authRefused {
		counts[string(why)] = n
	}
	return counts
}
