package doctor

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"net"
	"net/netip"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/sendas/sendas/cmd/internal/finding"
	"github.com/sendas/sendas/internal/exit"
	"github.com/sendas/sendas/policy"
	"github.com/sendas/sendas/policy/address"
	"github.com/sendas/sendas/token/lease"
	"github.com/sendas/sendas/token/lease/replies"
)

const (
	// FollowTime is how long a message is followed where nobody says otherwise: a look-up waits at
	// most 55 seconds for its lease.
	FollowTime = 90 * time.Second
	// followEvery is how often queue, log and token service are asked.
	followEvery = 200 * time.Millisecond
	// maxHandings bounds how often a message is followed into a filter and back.
	maxHandings = 5
)

// sentGroup is the group of the stations of a message. They are shown as they are passed.
const sentGroup = "sent"

// followAdvice is about a message that was handed in.
var followAdvice = map[string]finding.Advice{
	"waits":     {Means: "it still waits, because {meaning}", Do: "{act}"},
	"lease":     {Means: "it still waits, because smtp(8) waits for the right to send: the mailbox is at a limit, or rests", Do: "sendas status"},
	"reply":     {Means: "it still waits, because Microsoft has not answered {stage} yet", Do: "sendas status; then: {log}"},
	"untried":   {Means: "it still waits, because Postfix has not tried it yet", Do: "{postqueue} -i {id}; then: {log}"},
	"held":      {Means: "it is on hold: a client's limit (on_limit: hold) or a table of Postfix's wants that", Do: "{log}; to let it go: {postsuper} -H {id}"},
	"returned":  {Means: "it did not leave: {meaning}", Do: "{act}"},
	"elsewhere": {Means: "it did not go to Microsoft: another setting of Postfix's leads mail to this recipient", Do: "{postconf} -n | grep -e transport -e relay -e filter; what the checks of Postfix above say"},
	"lost":      {Means: "it has left the queue, and neither the token service nor Postfix's log tells how: nobody can say that it was sent", Do: "{log}"},
	"other":     {Means: "the client {client} may not ask for {identity}, so {identity} is not proved", Do: "sendas explain --client {addr} --from {identity}"},
	"unseen":    {Means: "the queue cannot be read, so it cannot be followed: {error}", Do: "type it as root"},
}

var queuedAs = regexp.MustCompile(`queued as ([0-9A-Za-z]+)`)

// A parcel is a message on its way.
type parcel struct {
	d        *Walk
	s        finding.Section
	identity string // as whom it was handed in
	to       string
	id       string // of Postfix's queue
	msgID    string // with its angle brackets
	visitor  visitor
	route    *policy.Route // by which the configuration leads it; nil: none
	began    time.Time
	taken    time.Time // when Postfix said that it has it

	sender   string    // as the milter left it, as far as anybody has seen
	entry    *waiter   // as the queue had it last
	gone     time.Time // since when the queue has it no more
	handings int
	log      []logged
	trail    *lease.Trail
}

// logged is what Postfix's log says of one attempt to deliver.
type logged struct{ pid, relay, status, text string }

// checkSending hands one real message to Postfix as a client would, and follows it to Microsoft's
// answer.
func (d *Walk) checkSending(ctx context.Context) {
	if d.SendTo == "" {
		return
	}
	s, identity := d.Section(sentGroup, "message"), d.sending
	if d.config == nil || d.postfix == nil || d.down {
		s.Skip("taken", "Postfix", "was given none, for what is said above")
		return
	}
	v, ok := d.visitorFor(identity)
	if !ok { // it is handed in as this host: what becomes of it then, is said
		v = d.visitor(thisHost, identity)
	}
	p := &parcel{d: d, s: s, identity: identity, to: wireAddress(d.SendTo), visitor: v, began: d.now()}
	decision := d.decide(v.peer, identity, p.to)
	p.sender, p.route = identity, decision.Route
	if !decision.Identity.IsZero() {
		p.sender = decision.Identity.String()
	}
	from := wireAddress(identity)
	p.msgID = fmt.Sprintf("<%s@%s>", strings.ToLower(rand.Text()), from[strings.LastIndexByte(from, '@')+1:])
	if p.handIn(ctx) {
		p.follow(ctx)
	}
}

// testMessage is what --send-to sends: From and To are plain addresses.
func testMessage(from, to, id string, now time.Time) string {
	return strings.Join([]string{
		"From: " + from, "To: " + to, "Subject: sendas doctor", "Date: " + now.Format(time.RFC1123Z), "Message-ID: " + id,
		"Auto-Submitted: auto-generated", "MIME-Version: 1.0", "Content-Type: text/plain; charset=us-ascii", "",
		"This message was sent by \"sendas doctor --send-to\". It shows that", from, "may send through this relay and Microsoft 365.", "",
	}, "\n")
}

// handIn gives the message to smtpd, and reports whether it was taken.
func (p *parcel) handIn(ctx context.Context) bool {
	ports := p.d.postfix.Ports()
	if len(ports) == 0 {
		p.s.Fail("taken", "Postfix", "has no port", (&inTalk{d: p.d}).advice("no-port", p.identity))
		return false
	}
	k, err := p.d.enter(ctx, ports[0], p.visitor)
	if err == nil {
		defer k.end()
		err = p.submit(k)
	}
	if err != nil {
		f := err.(*smtpFault)
		p.s.Trouble(f.passes, "taken", "Postfix at "+ports[0].Addr, f.found, f.advice)
		return false
	}
	return true
}

// submit is the message's own part of the session.
func (p *parcel) submit(k *inTalk) error {
	from := wireAddress(p.identity)
	for _, c := range []struct {
		code int
		line string
	}{{250, "MAIL FROM:<" + from + ">"}, {250, "RCPT TO:<" + p.to + ">"}, {354, "DATA"}} {
		if r, err := k.say(replyTime, c.line); err != nil || r.code != c.code {
			return k.fault(r, err, p.identity)
		}
	}
	p.began = p.d.now()
	w := k.text.DotWriter()
	fmt.Fprint(w, testMessage(from, p.to, p.msgID, p.began))
	if err := w.Close(); err != nil {
		return k.fault(smtpReply{}, err, p.identity)
	}
	r, err := k.say(verdictTime, "")
	if err != nil || r.code != 250 {
		return k.fault(r, err, p.identity)
	}
	if m := queuedAs.FindStringSubmatch(r.text); m != nil {
		p.id = m[1]
	}
	p.taken = p.d.now()
	p.station("taken", "Postfix", p.taken, "took it at %s from %s: %s", k.port.Addr, &p.visitor, r.text)
	return nil
}

// station notes that the message has come that far, and when.
func (p *parcel) station(id, what string, at time.Time, format string, args ...any) {
	p.s.Ok(id, what, "%s %s", at.Local().Format("15:04:05.000"), fmt.Sprintf(format, args...))
}

// follow looks after the message until its fate is known, or the time is over.
func (p *parcel) follow(ctx context.Context) {
	end := time.After(cmp.Or(p.d.Wait, FollowTime))
	tick := time.NewTicker(followEvery)
	defer tick.Stop()
	for last := false; ; {
		if p.look(ctx, last) || last || ctx.Err() != nil {
			return
		}
		p.d.busy("message %s is followed: %s", p.id, p.where())
		select {
		case <-end:
			last = true
		case <-ctx.Done():
		case <-tick.C:
		}
	}
}

// where says how far the message is.
func (p *parcel) where() string {
	switch {
	case p.trail != nil && p.trail.Leased == nil && p.trail.Ended == nil:
		return "waits for the right to send"
	case p.trail != nil && p.trail.Kept != nil && p.trail.Ended == nil:
		return "waits for its place in the minute"
	case p.trail != nil && p.trail.Ended == nil:
		return "is being sent, " + string(p.awaits())
	case p.entry != nil:
		return "is in the queue " + p.entry.Queue
	}
	return "on its way"
}

// awaits is the command that Microsoft has not answered.
func (p *parcel) awaits() lease.Stage {
	switch t := p.trail; {
	case t.SignedIn == nil:
		return lease.StageAUTH
	case t.Mail == nil:
		return lease.StageMAIL
	case t.Rcpt == nil:
		return lease.StageRCPT
	case t.Data == nil:
		return lease.StageDATA
	}
	return lease.StageEnd
}

// look asks everybody who may know, and reports whether the message's fate is told.
func (p *parcel) look(ctx context.Context, last bool) bool {
	list, err := p.d.readQueue(ctx)
	if err != nil {
		p.s.Fail("verdict", "queue", "cannot be read", followAdvice["unseen"].With("error", err.Error()))
		return true
	}
	i := slices.IndexFunc(list, func(w waiter) bool { return w.ID == p.id })
	switch {
	case i >= 0:
		p.entry, p.gone = &list[i], time.Time{}
		if p.entry.Queue != "maildrop" {
			p.sender = p.entry.Sender
		}
	case p.gone.IsZero():
		p.gone = p.d.now()
	}
	p.readLog(ctx)
	p.readTrail(ctx)
	switch here := i >= 0; {
	case p.trail != nil && p.trail.Accepted:
		p.sentAs()
		return true
	case len(p.log) > 0 && p.log[len(p.log)-1].status != "deferred":
		return p.logSays(p.log[len(p.log)-1])
	case here && p.entry.Queue == "hold":
		p.fails(false, "held", "is on hold")
		return true
	case here && p.entry.Queue == "deferred" && p.entry.reason() != "":
		p.waits()
		return true
	case last:
		p.giveUp(here)
		return true
	}
	return false
}

// readLog finds what Postfix's log says of the message: by whom it was sent, and how it went.
func (p *parcel) readLog(ctx context.Context) {
	form := regexp.MustCompile(`\[(\d+)\]: ` + regexp.QuoteMeta(p.id) + `: (?:from=<([^>]*)>|to=<.*relay=([^,]+), .*status=(\w+) \((.*)\))`)
	p.log = nil
	for line := range strings.Lines(p.d.mailLog(ctx, p.id)) {
		switch m := form.FindStringSubmatch(strings.TrimSpace(line)); {
		case m == nil:
		case m[4] != "":
			p.log = append(p.log, logged{m[1], m[3], m[4], m[5]})
		case m[2] != "":
			p.sender = m[2]
		}
	}
}

// readTrail finds what the token service knows of it: the attempt whose answer has the Message-ID,
// else that of the process that the log names, else the only one of the sender since then.
func (p *parcel) readTrail(ctx context.Context) {
	var since []lease.Trail
	for _, t := range p.d.trails(ctx, p.sender) {
		if t.Asked.After(p.began) {
			since = append(since, t)
		}
	}
	for i := range since {
		if t := &since[i]; strings.Contains(t.Reply, p.msgID) {
			p.trail = t
			return
		}
	}
	p.trail = nil
	for i := range since {
		if t := &since[i]; t.Accepted {
			continue // another message's
		} else if len(since) == 1 || slices.ContainsFunc(p.log, func(l logged) bool { return l.pid == fmt.Sprint(t.PID) }) {
			p.trail = t
			return
		}
	}
}

// trails asks the token service; nil where it does not say.
func (d *Walk) trails(ctx context.Context, sender string) (list []lease.Trail) {
	ctx, cancel := context.WithTimeout(ctx, socketTime)
	defer cancel()
	network, addr := d.config.Token.Listen.Network()
	c, err := d.dial(ctx, network, addr)
	if err != nil {
		return nil
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(socketTime))
	r, err := lease.Ask(c, "trails", sender)
	if err != nil || r.Status != lease.OK || json.Unmarshal([]byte(r.Value), &list) != nil {
		return nil
	}
	return list
}

// stations tells what the message has passed.
func (p *parcel) stations() {
	if p.entry != nil {
		p.station("queued", "queue", p.taken, "%s is in it as %s", p.id, p.entry.Sender)
	}
	t := p.trail
	if t == nil {
		return
	}
	p.station("asked", "smtp(8)", t.Asked, "process %d asked for the credential of %s", t.PID, t.Sender)
	for _, x := range []struct {
		id, what string
		at       *time.Time
		found    string
	}{
		{"lease", "lease", t.Leased, "the right to send one message as " + t.Mailbox},
		{"auth", "AUTH", t.SignedIn, "Exchange Online took the token"}, {"mail", "MAIL", t.Mail, "MAIL FROM:<" + t.Sender + "> was taken"},
		{"rcpt", "RCPT", t.Rcpt, fmt.Sprintf("%d recipient was taken", t.Recipients)}, {"data", "DATA", t.Data, "the message went over"},
	} {
		if x.at != nil {
			p.station(x.id, x.what, *x.at, "%s", x.found)
		}
	}
}

// decided tells what the milter made of the sender.
func (p *parcel) decided() (good bool) {
	if strings.EqualFold(p.sender, addressOf(p.identity)) || strings.EqualFold(p.sender, wireAddress(p.identity)) {
		p.station("milter", "milter", p.taken, "let it through as %s", p.sender)
		return true
	}
	p.s.Fail("milter", "milter", "made it leave as "+p.sender, followAdvice["other"].With("client", p.visitor.String(), "identity", p.identity, "addr", p.visitor.peer.Addr.String()))
	return false
}

// sentAs tells that Exchange Online has the message.
func (p *parcel) sentAs() {
	p.decided()
	p.stations()
	at := p.d.now()
	if p.trail.Ended != nil {
		at = *p.trail.Ended
	}
	p.station("verdict", "Exchange Online", at, "%s; the message trace finds it by its Message-ID %s", p.trail.Reply, p.msgID)
}

// logSays tells what came of the message by Postfix's log alone, and reports whether that is its
// fate: a filter gives it back with another id.
func (p *parcel) logSays(l logged) bool {
	next := queuedAs.FindStringSubmatch(l.text)
	switch microsoft := p.isMicrosoft(l.relay); {
	case l.status == "sent" && microsoft:
		p.decided()
		p.stations()
		p.station("verdict", "Exchange Online", p.d.now(), "%s took it: %s; the message trace finds it by its Message-ID %s", l.relay, l.text, p.msgID)
	case l.status == "sent" && next != nil && next[1] != p.id && p.handings < maxHandings && loopbackRelay(l.relay):
		p.station("handed"+strings.Repeat("+", p.handings), "filter", p.d.now(), "%s has it, and gave it back as %s", l.relay, next[1])
		p.id, p.entry, p.gone, p.log = next[1], nil, time.Time{}, nil
		p.handings++
		return false
	case l.status == "sent":
		p.decided()
		p.fails(false, "elsewhere", l.relay+" took it: "+l.text)
	default: // bounced, expired, undeliverable
		p.decided()
		p.stations()
		e := replies.Explain(saidIn(l.text))
		p.failsWith(e.Passes, "returned", l.relay+": "+l.text, e)
	}
	return true
}

// isMicrosoft reports whether a relay of the log is one of the servers to which sendas leads mail.
func (p *parcel) isMicrosoft(relay string) bool {
	host, _, _ := strings.Cut(relay, "[")
	want := []string{p.d.config.Tenant.Endpoints.Submission}
	for _, r := range p.d.config.Policy.Routes() {
		want = append(want, strings.NewReplacer("[", "", "]", "").Replace(r.NextHop))
	}
	return slices.ContainsFunc(want, func(w string) bool {
		name, _, err := net.SplitHostPort(w)
		return err == nil && strings.EqualFold(name, host)
	})
}

// loopbackRelay reports whether a relay of the log, host[address]:port, is this host.
func loopbackRelay(relay string) bool {
	_, rest, _ := strings.Cut(relay, "[")
	text, _, _ := strings.Cut(rest, "]")
	addr, err := netip.ParseAddr(text)
	return err == nil && addr.IsLoopback()
}

// waits tells why the message is deferred.
func (p *parcel) waits() {
	p.decided()
	p.stations()
	reason := p.entry.reason()
	said := saidIn(reason)
	switch {
	case p.trail != nil && p.trail.Why != "": // the token service did not let it go now
		p.fails(true, "lease", reason+": "+p.trail.Why)
		return
	case p.trail != nil && p.trail.Reply != "":
		said = p.trail.Reply
	}
	p.waitsFor(reason, replies.Explain(said))
}

// waitsFor tells what the message waits for; what is not known to pass, does not.
func (p *parcel) waitsFor(found string, e replies.Explanation) {
	p.failsWith(e.Passes, "waits", found, e)
}

// giveUp tells why there is no end in the time.
func (p *parcel) giveUp(here bool) {
	p.decided()
	p.stations()
	after := fmt.Sprintf("is not sent after %v", p.d.now().Sub(p.began).Round(time.Second))
	switch t := p.trail; {
	case t != nil && (t.Leased == nil || t.Kept != nil) && t.Ended == nil:
		p.fails(true, "lease", after)
	case t != nil && t.Ended == nil:
		p.fails(true, "reply", after)
	case here && p.entry.reason() != "":
		p.waitsFor(after+": "+p.entry.reason(), replies.Explain(saidIn(p.entry.reason())))
	case here:
		p.fails(true, "untried", after)
	default:
		p.fails(false, "lost", after)
	}
}

// fails tells that the message has not left.
func (p *parcel) fails(passes bool, key, found string) {
	p.failsWith(passes, key, found, replies.Explanation{})
}

// failsWith tells it with what Microsoft's answer means.
func (p *parcel) failsWith(passes bool, key, found string, e replies.Explanation) {
	c := p.d.postfix.Command
	stage := ""
	if p.trail != nil {
		stage = string(p.awaits())
	}
	act := e.For(p.mailbox(), p.sender).Act
	p.s.Trouble(passes, "verdict", "Exchange Online", found, followAdvice[key].With("meaning", cmp.Or(e.Meaning, "of what Postfix wrote down"),
		"act", cmp.Or(act, c("postqueue")+" -i "+p.id+"; then: "+p.d.logCommand(p.id)), "postqueue", c("postqueue"), "postsuper", c("postsuper"), "postconf", c("postconf"),
		"id", p.id, "log", p.d.logCommand(p.id), "stage", stage))
}

// mailbox is the one by which the message leaves, as far as that is known.
func (p *parcel) mailbox() string {
	if p.trail != nil && p.trail.Mailbox != "" {
		return p.trail.Mailbox
	}
	if a, err := address.Parse(p.sender); err == nil {
		if m, user := p.d.config.Policy.MailboxFor(a); m != nil {
			return user.String()
		}
	}
	return p.sender
}

// saidIn returns what the other server said of a reason that Postfix wrote down.
func saidIn(reason string) string {
	if i := strings.LastIndex(reason, " said: "); i >= 0 {
		return reason[i+len(" said: "):]
	}
	return reason
}

// sendingAs says as whom the message is to leave: --as, the mailbox that was named, the only
// mailbox, or as what the client that was named sends.
func (d *Walk) sendingAs() (string, error) {
	switch {
	case d.As != "":
		a, err := address.Parse(d.As)
		if err != nil || !a.Valid() {
			return "", exit.Errorf(exit.Usage, "for example: sendas doctor --as scan@contoso.com --send-to me@contoso.com", "--as: %q is no address", d.As)
		}
		return a.String(), nil
	case d.Mailbox != "":
		return d.Mailbox, nil
	}
	if len(d.config.Mailboxes) == 1 && !d.config.Mailboxes[0].Pattern() {
		return d.config.Mailboxes[0].Address, nil
	}
	for i := range d.config.Clients {
		c := &d.config.Clients[i]
		v, err := d.named(d.Client, "")
		if d.Client != "" && err == nil && v.client == c.Name && strings.Contains(c.From, "@") && !strings.Contains(c.From, "{") {
			return c.From, nil
		}
	}
	return "", exit.Errorf(exit.Usage, "for example: sendas doctor scan@contoso.com --send-to "+d.SendTo, "--send-to: name the mailbox to send as")
}
