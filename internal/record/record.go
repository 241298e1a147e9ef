// Package record keeps what became of each message, so that it can be looked up after a restart and
// weeks later: who sent it, what it asked for, what was decided and why, and each attempt to hand it
// to Microsoft.
//
// It has two halves, each a file of its own with one writer: the milter's holds [Message] and the
// [Deferral] that Postfix noted for it, the token service's each [Attempt]. Neither service reads the
// other's; who may read both ties them together (cmd/internal/story).
//
// A [Keeper] writes one half. Whoever has something to keep hands it over and goes on: it never
// waits, for no disk and no lock, and what cannot be kept is lost and counted. A [Reader] answers a
// [Query]. A file is a database of SQLite in WAL mode, so readers hold up no writer; it has mode 0600,
// and whoever may read it reads who wrote to whom. It has no subject, no body and no secret.
//
// Searching goes by one table of words ("from", "to", "client", …), each with the numbers of its
// messages in order: every search is an intersection of such lists, newest first, whatever is asked,
// and no list is sorted or copied for it.
package record

import (
	"encoding/json"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/sendas/sendas/internal/plaintext"
)

// A Message is the milter's half: one message, as it was asked for and decided on. One that was
// refused at RCPT, before there was a queue id, is one as well. Texts are as strangers wrote them, on
// one line and cut to [MaxText]; "" is "none" or "not known". Its JSON keys are stable, as are those of
// the others.
type Message struct {
	Number int64     `json:"number"` // in the order of keeping, from 1; 0 before it is kept
	Time   time.Time `json:"time"`   // of the decision, to the millisecond

	Addr    netip.Addr `json:"client_address"` // of the client, as Postfix sees it; the zero value where it tells none
	PTR     string     `json:"client_ptr"`     // its name, as Postfix looked it up; "" or "unknown" without one
	HELO    string     `json:"helo"`
	Login   string     `json:"login"`       // of SASL
	Subject string     `json:"certificate"` // of its certificate
	Client  string     `json:"client"`      // that matched, by the configuration's name; "" for a stranger

	Sender string `json:"envelope_sender"` // envelope sender as it was asked for, without angle brackets; "" is the null sender
	From   string `json:"from"`            // address of the From field, else of the envelope

	Identity string `json:"identity"`  // as whom it leaves; "" unless accepted or held
	Leaves   string `json:"leaves_as"` // the envelope sender with which it leaves: the sender of its attempts
	Mailbox  string `json:"mailbox"`   // that it leaves through, first of a pool; "" where it needs none
	Pool     int    `json:"pool"`      // how many mailboxes may send as Identity; 0 where none has to
	Route    string `json:"route"`     // by the configuration's name
	Action   string `json:"action"`    // what became of it: accept, reject, defer, hold, pass (see policy.Action), or [Discarded]
	Reason   string `json:"reason"`    // a policy.ReasonCode
	Detail   string `json:"detail"`    // the same in words: the reply, the limit; "" where the reason says all
	Observed bool   `json:"observed"`  // nothing of it was done: it went on unchanged, and Action is what would have been
	Instance string `json:"-"`         // what Postfix calls the message at RCPT; those refused there are one record

	Recipients []string `json:"recipients"`      // as [Settings.Recipients] says, without angle brackets
	Count      int      `json:"recipient_count"` // of all recipients
	Size       int64    `json:"size"`            // in bytes, as the client declared or the queue tells; 0: not known
	MessageID  string   `json:"message_id"`      // with which it leaves, without angle brackets
	Queue      string   `json:"queue_id"`        // Postfix's queue id

	// Waits reports whether Postfix has it, for all that is known: it was accepted, and no reading of
	// the queue found it gone. Left is when one did; zero where none has.
	Waits bool      `json:"waits"`
	Left  time.Time `json:"left_queue_at,omitzero"`
}

// Discarded is the action of a message that ends here: the bounce of a bounce.
const Discarded = "discard"

// A Deferral is what Postfix's queue said of a message that it could not deliver yet.
type Deferral struct {
	Message int64     `json:"-"`    // its number
	Time    time.Time `json:"time"` // when it was read
	Text    string    `json:"text"` // Postfix's own, which repeats what the server said
}

// An Attempt is the token service's half: a look-up of smtp(8) for the right to send one message, and
// what Microsoft answered to it. It does not know which message it was, but for the Message-ID that
// Microsoft names when it accepts one.
type Attempt struct {
	Number  int64     `json:"number"`
	Time    time.Time `json:"time"`    // of the look-up
	PID     int32     `json:"pid"`     // of smtp(8), for the line of its log; negative where the system tells none
	Sender  string    `json:"sender"`  // envelope sender
	Mailbox string    `json:"mailbox"` // that it was for; "" where none may send as the sender

	Waited time.Duration `json:"-"`          // for the lease, and at DATA for the message's place in the minute
	For    string        `json:"waited_for"` // what it waited for: a ledger.Cause; "" for nothing, or a token
	Took   time.Duration `json:"-"`          // from the look-up to the end

	// Class is a replies.Class, or one of NotNow, NoMailbox and Unseen.
	Class     string `json:"class"`
	Stage     string `json:"stage"`               // a lease.Stage, of what was refused
	Reply     string `json:"reply"`               // the server's line that decided; "" without one
	Meaning   string `json:"meaning"`             // the same in words, or why there was no lease
	MessageID string `json:"message_id"`          // that the server accepted, without angle brackets
	Accepted  int    `json:"recipients_accepted"` // recipients
	Refused   int    `json:"recipients_refused"`  // recipients
	Final     bool   `json:"final"`               // Postfix returns the message: it will not be tried again

	// Opens is, of a look-up that got no lease, when the mailbox can send next for all that was known;
	// zero otherwise.
	Opens time.Time `json:"opens_at,omitzero"`
}

// MarshalJSON writes times in seconds.
func (a *Attempt) MarshalJSON() ([]byte, error) {
	type plain Attempt
	return json.Marshal(struct {
		*plain
		Waited float64 `json:"waited_seconds"`
		Took   float64 `json:"took_seconds"`
	}{(*plain)(a), a.Waited.Seconds(), a.Took.Seconds()})
}

// The classes of attempts that no reply decided.
const (
	NotNow    = "not-now"    // no lease: the mailbox can not send in time
	NoMailbox = "no-mailbox" // no mailbox may send as the sender
	Unseen    = "unseen"     // no verdict was seen: lease.ClassUnseen
	Accepted  = "accepted"   // replies.Accepted
)

// NamedID returns the Message-ID that a server's verdict names: "250 2.0.0 OK <1@device> [Hostname=…]";
// "" where it names none.
func NamedID(reply string) string {
	_, rest, _ := strings.Cut(reply, "<")
	id, _, found := strings.Cut(rest, ">")
	if !found {
		return ""
	}
	return id
}

// Recipients says what is kept of recipients.
type Recipients string

// What is kept of recipients.
const (
	FullRecipients Recipients = "full"   // addresses
	DomainsOnly    Recipients = "domain" // "@example.org", once each
	NoRecipients   Recipients = "off"    // how many there were
)

// of returns what is kept of a list.
func (r Recipients) of(list []string) []string {
	switch r {
	case NoRecipients:
		return nil
	case DomainsOnly:
		var domains []string
		seen := make(map[string]bool, 1)
		for _, a := range list {
			if d := domainOf(strings.ToLower(a)); !seen[d] {
				seen[d] = true
				domains = append(domains, d)
			}
		}
		return domains
	}
	return list
}

// domainOf returns "@example.org" of an address, "@" of one without a domain.
func domainOf(a string) string {
	i := strings.LastIndexByte(a, '@')
	if i < 0 {
		return "@"
	}
	return a[i:]
}

// Settings say what is kept and for how long. The zero value keeps nothing.
type Settings struct {
	On         bool       // false: nothing new is kept; what there is goes when its days are over
	Recipients Recipients // "" is FullRecipients
	Days       int        // until a message or attempt is deleted
	Size       int64      // of the file, in bytes: the oldest go first
}

const (
	// MaxText is how much of a stranger's text is kept, in bytes; of a reply and of a reason as well.
	MaxText = 512
	// maxRecipients is how many recipients of a message can be looked for and are shown; Count has
	// them all.
	maxRecipients = 200
)

var kept = plaintext.Style{Bad: '?', MaxBytes: MaxText, Cut: "…"}

// line makes one line of a text, cut to MaxText.
func line(s string) string { return kept.Line(s) }

// clean cuts all texts of a message.
func (m *Message) clean(r Recipients) {
	for _, p := range []*string{&m.PTR, &m.HELO, &m.Login, &m.Subject, &m.Client, &m.Sender, &m.From, &m.Identity, &m.Leaves, &m.Mailbox, &m.Route,
		&m.Action, &m.Reason, &m.Detail, &m.Instance, &m.MessageID, &m.Queue} {
		*p = line(*p)
	}
	m.Count = max(m.Count, len(m.Recipients))
	for i, a := range m.Recipients {
		m.Recipients[i] = strings.Trim(line(a), "<>")
	}
	list := r.of(m.Recipients)
	m.Recipients = slices.Clone(list[:min(len(list), maxRecipients)])
}

// clean cuts all texts of an attempt.
func (a *Attempt) clean() {
	for _, p := range []*string{&a.Sender, &a.Mailbox, &a.For, &a.Class, &a.Stage, &a.Reply, &a.Meaning, &a.MessageID} {
		*p = line(*p)
	}
}

// A word is something by which a message or an attempt is found.
type word struct{ kind, text string }

// The kinds of words.
const (
	wordFrom    = "f" // envelope sender, From, identity; and the domain of each, with its "@"
	wordTo      = "t" // recipient, and its domain
	wordClient  = "c" // the client's name, address, PTR, login
	wordMailbox = "m" // the mailbox, or the route of what leaves without one
	wordAction  = "a" // the action; the class of an attempt
)

// words returns what a message is found by. It depends on nothing but what is in the file, for it
// says as well what to delete.
func (m *Message) words() []word {
	var w wordList
	for _, a := range []string{m.Sender, m.From, m.Identity} {
		w.address(wordFrom, a)
	}
	for _, a := range m.Recipients {
		w.address(wordTo, a)
	}
	if m.Addr.IsValid() {
		w.add(wordClient, m.Addr.String())
	}
	for _, c := range []string{m.Client, m.Login, m.PTR} {
		w.add(wordClient, c)
	}
	if m.Mailbox != "" {
		w.add(wordMailbox, m.Mailbox)
	} else {
		w.add(wordMailbox, m.Route)
	}
	w.add(wordAction, m.Action)
	return w
}

func (a *Attempt) words() []word {
	var w wordList
	w.address(wordFrom, a.Sender)
	w.add(wordMailbox, a.Mailbox)
	w.add(wordAction, a.Class)
	return w
}

type wordList []word

// add adds a text in lower case, unless it is there or empty.
func (w *wordList) add(kind, text string) {
	x := word{kind, strings.ToLower(text)}
	if text == "" {
		return
	}
	for _, y := range *w {
		if x == y {
			return
		}
	}
	*w = append(*w, x)
}

func (w *wordList) address(kind, a string) {
	w.add(kind, a)
	if i := strings.LastIndexByte(a, '@'); i > 0 {
		w.add(kind, a[i:])
	}
}
