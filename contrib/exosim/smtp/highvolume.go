package smtp

import (
	"strings"
	"time"

	"github.com/sendas/sendas/contrib/exosim/directory"
)

// highVolume is smtp.hve.mx.microsoft:587, for mail inside of the organisation: it signs in accounts
// with a permission of its own, counts nothing, and takes few recipients and bytes at one time.
// At which command the real service says what, Microsoft has not written down for all of it: who is
// not on the list hears it at MAIL here, a stranger's address at RCPT, a wrong From at the end.
type highVolume struct{ x *Exchange }

func (v highVolume) about() endpoint {
	return endpoint{name: EndpointHighVolume, host: hveFrontend, machine: hveMachine, tls: v.x.tls, maxSize: v.x.cfg.HVEMaxSize, maxRcpts: v.x.cfg.HVEMaxRcpts}
}

func (v highVolume) extensions(k *conn) []string { return submission(v).extensions(k) }

func (v highVolume) logon(k *conn, user, token string) (*box, directory.Denial) {
	x := v.x
	c, why := x.verify(token)
	if why == "" {
		why = x.dir.ForUs(c)
	}
	if why == "" && c.Expires.Sub(x.dir.Now()) < highVolumeMargin {
		why = expiresSoon
	}
	if why != "" {
		return nil, why
	}
	a, listed, why := x.dir.AdmitAccount(c, user)
	if why != "" {
		return nil, why
	}
	k.unlisted = !listed
	return x.boxes[strings.ToLower(a.Address)], ""
}

// denied words a refused sign-in.
func (v highVolume) denied(k *conn, why directory.Denial) string {
	switch why {
	case malformed:
		return textBadXOAUTH2
	case expiresSoon:
		return soonTexts[v.x.cfg.HVESoonText]
	case directory.TokenExpired:
		return textExpired + k.bracket()
	case directory.NoMailSend:
		return textNoMailSend + k.bracket()
	case directory.NoAccount:
		return textNoAccount + k.bracket()
	}
	return textAuthFailed + k.bracket()
}

func (v highVolume) admits(k *conn) string { return submission(v).admits(k) }

// sender takes the account alone, and only an app that is on its list.
func (v highVolume) sender(k *conn, address string) string {
	switch {
	case k.unlisted:
		return textNotListed + k.bracket()
	case !strings.EqualFold(address, k.box.address):
		return textNotAccount + k.bracket()
	}
	return ""
}

func (v highVolume) recipient(k *conn, address string) string {
	if refusal := submission(v).recipient(k, address); refusal != "" {
		return refusal
	}
	if !v.x.dir.Owns(address) {
		return textExternal + k.bracket()
	}
	return ""
}

func (v highVolume) begin(k *conn) {
	v.x.mu.Lock()
	defer v.x.mu.Unlock()
	k.box.inData++
	k.box.maxInData = max(k.box.maxInData, k.box.inData)
}

func (v highVolume) end(k *conn) {
	v.x.mu.Lock()
	defer v.x.mu.Unlock()
	k.box.inData--
}

func (v highVolume) judge(k *conn, m *Message) {
	x := v.x
	m.Mailbox = k.box.address
	if x.strikes(func(f *Faults) *int { return &f.DropBeforeAccept }) || x.chance(func(c *Chances) float64 { return c.AtDot }) {
		m.Dropped = true
		x.refuse(k.box, m, "")
		return
	}
	refusal := v.refusal(k.box, m)
	switch {
	case !x.sleep(x.verdictDelay()):
		m.Dropped = true
		x.refuse(k.box, m, "")
	case refusal != "":
		x.refuse(k.box, m, refusal+atBackend)
	default:
		x.mu.Lock()
		defer x.mu.Unlock()
		m.Verdict, m.Reply = time.Now(), "250 2.0.0 OK "+messageID(m)+atBackend
		m.Dropped = countDown(&x.faults.DropAfterData) || x.unlucky(x.faults.Chances.AfterTaken)
		x.keep(k.box, m)
	}
}

// refusal returns why a message is refused for what it is, "" if it is not.
func (v highVolume) refusal(b *box, m *Message) string {
	from, sender, bad := senders(m.Data)
	settings, _ := v.x.dir.Account(b.address) // accounts are never removed
	v.x.mu.Lock()
	defer v.x.mu.Unlock()
	switch {
	case countDown(&v.x.faults.Busy) || v.x.unlucky(v.x.faults.Chances.Busy):
		return textBusy
	case settings.Refusal != "":
		return settings.Refusal
	case bad != "":
		return bad
	}
	for _, a := range append(from, sender...) {
		if !strings.EqualFold(a, b.address) {
			return textFromNotAccount
		}
	}
	return ""
}
