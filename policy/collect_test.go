package policy

import (
	"fmt"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"
)

// hostile makes a request of a client, with its header still to come.
func hostile(rcpts ...string) *Request {
	return &Request{Peer: peer("10.2.0.9", ""), Sender: "scan@contoso.com", Rcpts: rcpts, Now: time.Unix(0, 0)}
}

// TestBounds: what no real message has is refused for good with its number, whatever it is made of;
// what just fits is decided as ever.
func TestBounds(t *testing.T) {
	p := mustPolicy(t, contoso())
	many := func(n int, name string, value func(i int) string) func(*Request) {
		return func(r *Request) {
			for i := range n {
				r.AddField(name, value(i))
			}
		}
	}
	same := func(s string) func(int) string { return func(int) string { return s } }
	recipients := func(n int, value func(i int) string) func(*Request) {
		return func(r *Request) {
			for i := range n {
				r.AddRecipient(value(i), Place{})
			}
		}
	}
	tenThousand, thirty := strings.Repeat("x@fabrikam.com, ", 625), strings.Repeat("word ", 6000)
	for _, tc := range []struct {
		name   string
		fill   func(*Request)
		reply  string // "" where it is accepted
		reason ReasonCode
	}{
		{"as many fields as are taken", many(maxFields, "To", same("a@fabrikam.com")), "", ReasonAuthorized},
		{"one more", many(maxFields+1, "To", same("a@fabrikam.com")),
			"550 5.6.0 the message has 2001 fields for senders, recipients and dates; that is no mail", ReasonTooMany},
		{"many more", many(700_000, "from", same("x")),
			"550 5.6.0 the message has 700000 fields for senders, recipients and dates; that is no mail", ReasonTooMany},
		{"many of which nothing depends", many(700_000, "X-Trace", same("x")), "", ReasonAuthorized},
		{"many bytes", many(60, "Comments", same(tenThousand)),
			"550 5.6.0 the fields for senders, recipients and dates have 600480 bytes, and this relay takes 524288; send the message in parts", ReasonTooLarge},
		{"many bytes in few fields, of which one is too long", many(6, "X-Report", same(strings.Repeat("word ", 20_000))),
			"550 5.6.0 the field X-Report has 100000 bytes, and Exchange Online takes 32768; shorten it, or send the message in parts", ReasonTooLong},
		{"threads as long as Postfix lets them", many(6, "References", same(strings.Repeat("<1@x> ", 17_000))),
			"550 5.6.0 the fields for senders, recipients and dates have 612060 bytes, and this relay takes 524288; send the message in parts", ReasonTooLarge},
		{"one such thread", many(1, "References", same(strings.Repeat("<1@x> ", 17_000))), "", ReasonAuthorized},
		{"answers to more than one field holds", many(4, "Reply-To", func(i int) string { return strconv.Itoa(i) + tenThousand }),
			"550 5.6.0 the field Reply-To has 39996 bytes, and Exchange Online takes 32768; shorten it, or send the message in parts", ReasonTooLong},
		{"the same answers again and again", many(40, "Reply-To", same(tenThousand)), "", ReasonAuthorized},
		{"answers that grow when they are repaired", many(1, "Reply-To", same(strings.Repeat("M\xfcller\xfc\xfc\xfc@<x@y.zz>,", 1500))),
			"550 5.6.0 the field Reply-To has ", ReasonTooLong},
		{"recipients on many lines", many(1500, "Cc", same(strings.Repeat("a@fabrikam.com,", 20))), "", ReasonAuthorized},
		{"a text that may just be", many(1, "Subject", same(thirty)), "", ReasonAuthorized},
		{"as many recipients as are taken", recipients(50_000, same("a@fabrikam.com")), "", ReasonAuthorized},
		{"one recipient more", recipients(50_001, same("a@fabrikam.com")),
			"550 5.5.3 the message has 50001 recipients with 700014 bytes, and this relay takes 50000 with 2097152; send it in parts", ReasonTooManyRcpts},
		{"long recipients", recipients(3000, same(strings.Repeat("a", 1000)+"@fabrikam.com")),
			"550 5.5.3 the message has 3000 recipients with 3039000 bytes, and this relay takes 50000 with 2097152; send it in parts", ReasonTooManyRcpts},
	} {
		r := hostile()
		for _, f := range fields(complete + "From: scan@contoso.com\n") {
			if tc.reason != ReasonTooMany && !strings.HasPrefix(tc.name, "as many fields") && tc.reason != ReasonTooLarge {
				r.AddField(f.Name, f.Value)
			}
		}
		tc.fill(r)
		d := p.Decide(r)
		got := ""
		if d.Reply != nil {
			got = d.Reply.String()
		}
		last := d.Reasons[len(d.Reasons)-1]
		if last.Code != tc.reason && !(tc.reason == ReasonAuthorized && d.Action == Accept) || !strings.HasPrefix(got, tc.reply) || (got == "") != (tc.reply == "") {
			t.Errorf("%s: %s %q, want %s %q", tc.name, last.Code, got, tc.reason, tc.reply)
		}
		if d.Action != Accept && (len(d.Changes) > 0 || d.Sender != "" || !d.Identity.IsZero()) {
			t.Errorf("%s: refused, with %d changes as %s", tc.name, len(d.Changes), d.Identity)
		}
		if n := len(r.Fields); n > maxFields {
			t.Errorf("%s: %d fields are kept", tc.name, n)
		}
		if n := len(r.Rcpts); n > mostRcpts.n {
			t.Errorf("%s: %d recipients are kept", tc.name, n)
		}
	}
}

// TestIndexes: that what nobody reads is not kept changes no number of a field.
func TestIndexes(t *testing.T) {
	p := mustPolicy(t, contoso())
	r := hostile("a@fabrikam.com")
	for i := range 5000 {
		r.AddField("Received", "from here by there")
		switch i {
		case 10, 4000:
			r.AddField("TO", strconv.Itoa(i)+"@fabrikam.com")
		case 30, 4990:
			r.AddField("From", "root@mfp3")
		case 50, 3000, 4999:
			r.AddField("TLS-Required", "no")
		}
	}
	d := p.Decide(r)
	var got []string
	for _, c := range d.Changes {
		if c.Op != Add {
			got = append(got, fmt.Sprint(c.Op, " ", strings.ToLower(c.Name), " ", c.Index))
		}
	}
	const want = "delete from 2, change from 1, delete to 2, change to 1, delete tls-required 3, delete tls-required 2, delete tls-required 1"
	if s := strings.Join(got, ", "); s != want {
		t.Errorf("changes:\n got  %s\n want %s", s, want)
	}
}

// TestClear: the next message finds nothing of the last one, neither in what is kept nor in what
// was counted, and a large one leaves no large arrays.
func TestClear(t *testing.T) {
	p := mustPolicy(t, contoso())
	r := hostile()
	for round := range 3 {
		for range 60_000 {
			r.AddField("To", "a@fabrikam.com")
			r.AddRecipient("a@fabrikam.com", Place{})
		}
		r.QueueID, r.Peer.Login = "Q", "nagios"
		if n := r.Recipients(); n != 60_000 {
			t.Fatalf("round %d: %d recipients", round, n)
		}
		r.Clear()
		if cap(r.Fields) != 0 || cap(r.Rcpts) != 0 || r.Recipients() != 0 || r.QueueID+r.Sender+r.Peer.Login != "" || r.fields != (amount{}) || r.rcpts != (amount{}) {
			t.Fatalf("round %d: there is left %+v", round, r)
		}
		for range 20 { // ordinary ones use the same room
			*r = Request{Peer: peer("10.2.0.9", ""), Sender: "scan@contoso.com", Rcpts: r.Rcpts, Fields: r.Fields}
			r.AddRecipient("a@fabrikam.com", Place{})
			for _, f := range fields(complete + "From: scan@contoso.com\n") {
				r.AddField(f.Name, f.Value)
			}
			if d := p.Decide(r); d.Action != Accept || len(d.Changes) > 0 {
				t.Fatalf("an ordinary message behind it: %s %v", d.Action, d.Reply)
			}
			r.Clear()
			if cap(r.Fields) == 0 || cap(r.Rcpts) == 0 || r.Fields[:1][0] != (Field{}) || r.Rcpts[:1][0] != "" {
				t.Fatal("the room of an ordinary message is not kept empty for the next")
			}
		}
	}
}

// TestDecideOnHostile: as much as is kept, made of what costs the most to read: the decision takes
// not much more memory than it is, and no long time.
func TestDecideOnHostile(t *testing.T) {
	p := mustPolicy(t, contoso())
	units := []string{"a@b,", "((a)", `"\"`, "<a@b> ", "=?utf-8?q?=3D=3F?= ", ",", "x:a@b;", ":", "\xfc@b,", "a\n "}
	for _, name := range []string{"From", "To", "Reply-To", "References", "Disposition-Notification-To"} {
		var worst uint64
		var unit string
		for _, u := range units {
			for _, tc := range []struct{ size, n int }{{250, 1990}, {1600, 20}, {32_000, 16}} {
				r := hostile("a@fabrikam.com")
				value := strings.Repeat(u, tc.size/len(u))
				for i := range tc.n {
					r.AddField(name, strconv.Itoa(i)+value)
				}
				if name != "From" {
					r.AddField("From", "scan@contoso.com")
				}
				var before, after runtime.MemStats
				runtime.ReadMemStats(&before)
				began := time.Now()
				p.Decide(r)
				if took := time.Since(began); took > 20*time.Second {
					t.Errorf("%d %s of %d bytes of %q: decided after %v", tc.n, name, tc.size, u, took)
				}
				runtime.ReadMemStats(&after)
				if n := after.TotalAlloc - before.TotalAlloc; n > worst {
					worst, unit = n, fmt.Sprintf("%d fields of %d bytes of %q", tc.n, tc.size, u)
				}
			}
		}
		if worst > 128<<20 { // most of it is garbage at once
			t.Errorf("%s: deciding took %d bytes, for %s", name, worst, unit)
		}
	}
}
