package status

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/sendas/sendas/cmd/internal/service"
)

// searchFields are what can be searched for, in the order of the form; they are the conditions of
// /record, but for the id.
var searchFields = []struct{ name, label, example string }{
	{"to", "Recipient", "anna@example.org or @example.org"},
	{"from", "Sender", "asked for, or as it left"},
	{"client", "Client", "name, address or login"},
	{"id", "Id", "queue id or Message-ID"},
	{"since", "Since", "2h, 3d or 14:30"},
}

// searchLines is how many messages are listed.
const searchLines = 20

// searchView is the search over the record, and what was found.
type searchView struct {
	Fields   []searchField
	Asked    bool // else the form is all
	Problem  string
	Messages []foundView
	More     bool
}

type searchField struct{ Name, Label, Example, Value string }

// foundView is one message, or an attempt that is tied to none.
type foundView struct {
	ID, Time, State string
	Who, As, To     string
	Stations        []pageFact
}

// searched is a message as /record has it, as far as it is shown.
type searched struct {
	ID      string    `json:"id"`
	Time    time.Time `json:"time"`
	State   string    `json:"state"`
	Message *struct {
		Addr       string    `json:"client_address"`
		Client     string    `json:"client"`
		From       string    `json:"from"`
		Identity   string    `json:"identity"`
		Mailbox    string    `json:"mailbox"`
		Route      string    `json:"route"`
		Reason     string    `json:"reason"`
		Detail     string    `json:"detail"`
		Recipients []string  `json:"recipients"`
		Count      int       `json:"recipient_count"`
		MessageID  string    `json:"message_id"`
		Left       time.Time `json:"left_queue_at"`
	} `json:"message"`
	Attempts []struct {
		Time    time.Time `json:"time"`
		Sender  string    `json:"sender"`
		Mailbox string    `json:"mailbox"`
		Waited  float64   `json:"waited_seconds"`
		For     string    `json:"waited_for"`
		Reply   string    `json:"reply"`
		Meaning string    `json:"meaning"`
	} `json:"attempts"`
	Deferrals []struct {
		Time time.Time `json:"time"`
		Text string    `json:"text"`
	} `json:"deferrals"`
}

// wantsSearch reports whether the reader asked for the search, which has a page of its own: it does
// not refresh itself, so that nothing is lost while somebody types.
func wantsSearch(r *http.Request) bool { return r.URL.Query().Has("find") }

// searchOf answers the form. Each service is asked for its half.
func (at *Site) searchOf(ctx context.Context, v *view, form url.Values) *searchView {
	s := &searchView{}
	for _, f := range searchFields {
		value := strings.TrimSpace(form.Get(f.name))
		s.Fields = append(s.Fields, searchField{f.name, f.label, f.example, value})
		s.Asked = s.Asked || value != ""
	}
	if !s.Asked {
		return s
	}
	list, more, err := at.search(ctx, v, form)
	switch {
	case err != nil:
		s.Problem = "The record cannot be searched: " + err.Error()
	case len(list) == 0:
		s.Problem = "Nothing was found."
	}
	s.More = more
	for i := range list {
		s.Messages = append(s.Messages, list[i].view(v.time))
	}
	return s
}

// search finds messages in the milter's half, and what became of those that left in the token
// service's.
func (at *Site) search(ctx context.Context, v *view, form url.Values) (list []searched, more bool, err error) {
	if id := strings.TrimSpace(form.Get("id")); id != "" {
		list, err = at.story(ctx, v.milterAt, id)
		if err == nil && len(list) == 0 {
			list, err = at.story(ctx, v.tokenAt, id)
		}
	} else {
		q := url.Values{"lines": {fmt.Sprint(searchLines)}}
		for _, f := range searchFields {
			if value := strings.TrimSpace(form.Get(f.name)); value != "" {
				q.Set(f.name, value)
			}
		}
		var found struct {
			Messages []searched `json:"messages"`
			More     bool       `json:"more"`
		}
		err = at.askRecord(ctx, v.milterAt, "/record?"+q.Encode(), &found)
		list, more = found.Messages, found.More
	}
	for i := range list {
		if err == nil {
			err = at.complete(ctx, v, &list[i])
		}
	}
	return list, more, err
}

// complete says of a message that left the queue how it did: where Microsoft names its Message-ID,
// and no other message had the same one.
func (at *Site) complete(ctx context.Context, v *view, x *searched) error {
	if x.Message == nil || x.State != "gone" || x.Message.MessageID == "" {
		return nil
	}
	same, err := at.story(ctx, v.milterAt, x.Message.MessageID)
	if err != nil || len(same) != 1 {
		return err
	}
	taken, err := at.story(ctx, v.tokenAt, x.Message.MessageID)
	if err != nil {
		return err
	}
	for _, a := range slices.Backward(taken) { // newest first
		if a.Message == nil && a.State == "sent" {
			x.State, x.Attempts = "sent", append(x.Attempts, a.Attempts...)
		}
	}
	return nil
}

// story asks one service what it knows of an id; nothing is no error.
func (at *Site) story(ctx context.Context, addr, id string) (list []searched, err error) {
	err = at.askRecord(ctx, addr, "/record/"+url.PathEscape(id), &list)
	if e, ok := errors.AsType[*service.StatusError](err); ok && e.Code == http.StatusNotFound {
		return nil, nil
	}
	return list, err
}

func (at *Site) askRecord(ctx context.Context, addr, path string, answer any) error {
	if addr == "" {
		return errors.New("a service has no address (milter.http, token.http)")
	}
	body, err := service.Fetch(ctx, at.Client, addr, path)
	if e, ok := errors.AsType[*service.StatusError](err); ok && e.Code == http.StatusBadRequest {
		return errors.New("a word was not understood: write a time as 2h, 3d, 14:30 or 2026-12-01")
	}
	if err != nil {
		return err
	}
	return json.Unmarshal(body, answer)
}

// stateWords words the states that are no words of their own.
var stateWords = map[string]string{"gone": "left the queue", "watched": "passed, and was noted", "elsewhere": "delivered elsewhere"}

func (x *searched) view(now time.Time) foundView {
	v := foundView{ID: x.ID, Time: momentWords(x.Time, now), State: cmp.Or(stateWords[x.State], x.State)}
	add := func(at time.Time, text string) {
		v.Stations = append(v.Stations, pageFact{momentWords(at, now), calm, text})
	}
	if m := x.Message; m != nil {
		v.Who, v.As = cmp.Or(m.Client, m.Addr), cmp.Or(m.From, "<>")
		if m.Identity != "" && !strings.EqualFold(m.From, m.Identity) {
			v.As += " as " + m.Identity
		}
		if v.To = strings.Join(m.Recipients, ", "); m.Count > len(m.Recipients) {
			v.To = strings.TrimPrefix(fmt.Sprintf("%s and %d more", v.To, m.Count-len(m.Recipients)), " and ")
		}
		by := ""
		switch {
		case m.Mailbox != "":
			by = ", by " + m.Mailbox
		case m.Route != "":
			by = ", by route " + m.Route
		}
		add(x.Time, "came from "+cmp.Or(m.Addr, "this host")+": "+cmp.Or(m.Detail, m.Reason)+by)
	}
	for _, d := range x.Deferrals {
		add(d.Time, "put off: "+d.Text)
	}
	for _, a := range x.Attempts {
		text := "attempt by " + cmp.Or(a.Mailbox, a.Sender) + ": " + cmp.Or(a.Reply, a.Meaning)
		if a.Waited >= 1 {
			text = fmt.Sprintf("waited %s for %s; ", spanWords(time.Duration(a.Waited*float64(time.Second))), cmp.Or(a.For, "a token")) + text
		}
		add(a.Time, text)
	}
	if x.Message != nil && !x.Message.Left.IsZero() {
		add(x.Message.Left, "left the queue")
	}
	return v
}

// momentWords is a time of day, with the day where that is another one.
func momentWords(t, now time.Time) string {
	t, now = t.Local(), now.Local()
	if t.Format(time.DateOnly) == now.Format(time.DateOnly) {
		return t.Format("15:04:05")
	}
	return t.Format("2006-01-02 15:04:05")
}
