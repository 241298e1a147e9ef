package lease

import (
	"slices"
	"strings"
	"time"
)

// A Denial counts the messages of one sender that Exchange Online returned because the mailbox has
// no permission to send as it (554 5.2.252 SendAsDenied). The configuration says that it has.
type Denial struct {
	Sender string    `json:"sender"` // see Directory.Listed
	Count  int       `json:"count"`  // since the start
	Last   time.Time `json:"last"`
}

// denials are kept by mailbox and sender, both in the words of the configuration: however strangers
// write a sender, and whatever they put behind its plus sign, there are no more of them than it has
// lines, twice.
type denials map[string]map[string]Denial

// note counts a denial, and forgets it when Exchange Online has taken a message of that sender. A
// sender without name counts for nothing.
func (d denials) note(label, sender string, class ReplyClass, now time.Time) {
	switch {
	case sender == "":
	case class == ClassAccepted:
		delete(d[label], sender)
	case class == ClassSendAs:
		if d[label] == nil {
			d[label] = make(map[string]Denial)
		}
		d[label][sender] = Denial{sender, d[label][sender].Count + 1, *moment(now)}
	}
}

// keep forgets the denials of what a new configuration does not say any more.
func (d denials) keep(dir Directory) {
	for label, senders := range d {
		for sender := range senders {
			is := func(m *Mailbox) bool { return m.Label == label }
			if dir.Listed(sender) != sender || !slices.ContainsFunc(dir.Mailboxes(sender), is) {
				delete(senders, sender)
			}
		}
		if len(senders) == 0 {
			delete(d, label)
		}
	}
}

// of lists the denials of a mailbox by sender.
func (d denials) of(label string) []Denial {
	list := make([]Denial, 0, len(d[label]))
	for _, x := range d[label] {
		list = append(list, x)
	}
	slices.SortFunc(list, func(a, b Denial) int { return strings.Compare(a.Sender, b.Sender) })
	return list
}
