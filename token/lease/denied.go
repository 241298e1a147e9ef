package lease

import (
	"slices"
	"strings"
	"time"
)

// A Denial counts the messages of one sender that Exchange Online returned because the mailbox has no permission to send as it
// (554 5.2.252 SendAsDenied). The configuration says that it has.
type Denial struct {
	Sender string    `json:"sender"`
	Count  int       `json:"count"` // since the start
	Last   time.Time `json:"last"`
}

// denials are kept by mailbox and sender, both of the configuration: there are no more of them than it has lines.
type denials map[string]map[string]Denial

// note counts a denial, and forgets it when Exchange Online has taken a message of that sender.
func (d denials) note(s *session, class ReplyClass, now time.Time) {
	switch {
	case s.made: // of a pattern: strangers choose the senders
	case class == ClassAccepted:
		delete(d[s.label], s.sender)
	case class == ClassSendAs:
		if d[s.label] == nil {
			d[s.label] = make(map[string]Denial)
		}
		d[s.label][s.sender] = Denial{s.sender, d[s.label][s.sender].Count + 1, *moment(now)}
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
