package lab

import (
	"context"
	"encoding/json"
	"log/slog"
	"net"
	"os"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/sendas/sendas/token/lease"
)

// manyRecipients is one message of SAP's to recipients of every kind.
func manyRecipients(name string, to ...string) Mail {
	m := burstMail(1)
	m.To = to
	m.Data = message("From: Billing <billing@contoso.com>", "To: header@fabrikam.com, header@contoso.com", "Message-ID: <"+name+"@device.example>", storyDate)
	return m
}

// recorder notes what smtp(8) asks of the maps that it stands in for.
type recorder struct {
	mu   sync.Mutex // guards list
	list []string
}

func (r *recorder) note(what string) lease.Map {
	return func(_ context.Context, _ lease.Caller, key string) lease.Result {
		r.mu.Lock()
		defer r.mu.Unlock()
		r.list = append(r.list, what+" "+key)
		return lease.Result{Status: lease.NotFound}
	}
}

func (r *recorder) events() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.list)
}

// record serves the maps "recipient" and "reply" on a socket of Postfix's.
func record(t *testing.T, s *Site) *recorder {
	t.Helper()
	path := filepath.Join(s.Postfix.SocketDir(), "record")
	ln, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(path, 0o666); err != nil {
		t.Fatal(err)
	}
	u, err := user.Lookup("postfix")
	if err != nil {
		t.Fatal(err)
	}
	uid, err := strconv.ParseUint(u.Uid, 10, 32)
	if err != nil {
		t.Fatal(err)
	}
	r := &recorder{}
	srv := &lease.SocketmapServer{Maps: map[string]lease.Map{"recipient": r.note("key"), "reply": r.note("reply")}, Peers: []uint32{uint32(uid)},
		Log: slog.New(slog.DiscardHandler)}
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- srv.Serve(ctx, ln) }()
	t.Cleanup(func() {
		stop()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return r
}

// TestRecipientKeys: in which order smtp(8) asks smtp_generic_maps, on which the counting of
// external recipients rests: sender, then each recipient, up to the form "@domain", before the
// replies to them; the header after 354.
func TestRecipientKeys(t *testing.T) {
	s, ctx := startSite(t, SiteConfig{Minute: 6 * time.Second, Postfix: func(_ *Site, main map[string]string) []string {
		main["smtp_generic_maps"] = "socketmap:unix:sendas/record:recipient"
		main["smtp_reply_filter"] = "socketmap:unix:sendas/record:reply"
		main["recipient_delimiter"] = "+"
		return nil
	}})
	r := record(t, s)
	m := manyRecipients("keys", "boss+tag@contoso.com", "boss@contoso.com", `"a b"@contoso.com`, "someone@fabrikam.com", "Root@relay.lab.example")
	if res, err := Send(ctx, s.Postfix.SMTPAddr(), m); err != nil || !res.Accepted() {
		t.Fatalf("%v, %v", res.Verdict(), err)
	}
	if err := s.WaitMessages(ctx, 1); err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, e := range r.events() {
		if strings.HasPrefix(e, "key ") || strings.HasPrefix(e, "reply 250 2.1.") || strings.HasPrefix(e, "reply 354") {
			got = append(got, e)
		}
	}
	sent := s.Exosim.Messages()[0].Recipients // the queue manager has sorted them
	want := []string{"key billing@contoso.com"}
	for _, to := range sent {
		want = append(want, "key "+to)
	}
	want = append(want, "reply 250 2.1.0 Sender OK")
	for range sent {
		want = append(want, "reply 250 2.1.5 Recipient OK")
	}
	want = append(want, "reply 354 Start mail input; end with <CRLF>.<CRLF>", "key billing@contoso.com", "key header@fabrikam.com", "key header@contoso.com")
	if !slices.Equal(got, want) {
		t.Errorf("smtp(8) asked\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	if len(sent) != len(m.To) {
		t.Errorf("%d recipients, want %d", len(sent), len(m.To))
	}
}

// externalSite limits external recipients.
func externalSite(limit string, maps bool) SiteConfig {
	return SiteConfig{Minute: 6 * time.Second,
		YAML: func(y string) string {
			return strings.Replace(y, "  domains: [contoso.com]\n", "  domains: [contoso.com]\n"+limit, 1)
		},
		Postfix: func(_ *Site, main map[string]string) []string {
			main["recipient_delimiter"] = "+"
			main["sendas_destination_recipient_limit"] = "4"
			if maps {
				main["smtp_generic_maps"] = "socketmap:unix:sendas/credentials:recipient"
			}
			return nil
		}}
}

// external returns what the token service has counted.
func (s *Site) external(ctx context.Context, t *testing.T) lease.UsageStatus {
	t.Helper()
	text, err := get(ctx, "http://"+s.TokenHTTP()+"/status")
	if err != nil {
		t.Fatal(err)
	}
	var st lease.Status
	if err := json.Unmarshal([]byte(text), &st); err != nil || len(st.Groups) != 1 || st.Groups[0].Name != lease.GroupExternal {
		t.Fatalf("%v, groups %+v", err, st.Groups)
	}
	return *st.Groups[0].Recipients
}

// TestExternalRecipients: recipients outside are counted, over several deliveries of a message too,
// and nothing of the message is changed. Without the map all of them count.
func TestExternalRecipients(t *testing.T) {
	to := []string{"boss+tag@contoso.com", "one@fabrikam.com", `"a b"@contoso.com`, "two@fabrikam.com", "sub@sub.contoso.com", "clerk@contoso.com", "three@fabrikam.com"}
	for _, tc := range []struct {
		name string
		maps bool
		want int
	}{{"with the map", true, 4}, {"without", false, len(to)}} {
		t.Run(tc.name, func(t *testing.T) {
			s, ctx := startSite(t, externalSite("  external_recipients: auto\n  licenses: 10\n", tc.maps))
			if res, err := Send(ctx, s.Postfix.SMTPAddr(), manyRecipients("external", to...)); err != nil || !res.Accepted() {
				t.Fatalf("%v, %v", res.Verdict(), err)
			}
			if err := s.WaitMessages(ctx, 2); err != nil { // of four recipients and of three
				t.Fatal(err)
			}
			s.waitLog(ctx, t, "msg=delivery", 2)
			if u := s.external(ctx, t); u.Used != tc.want || u.Limit != 12006 {
				t.Errorf("%+v used, want %d of 12006", u, tc.want)
			}
			var arrived []string
			for _, m := range s.Exosim.Messages() {
				arrived = append(arrived, m.Recipients...)
				if got := strings.Join(m.Header("To"), ""); got != "header@fabrikam.com, header@contoso.com" {
					t.Errorf("To became %q", got)
				}
			}
			if slices.Sort(arrived); !slices.Equal(arrived, slices.Sorted(slices.Values(to))) {
				t.Errorf("arrived for %q, want %q", arrived, to)
			}
		})
	}
}

// waitLog waits until the token service has logged a text so often.
func (s *Site) waitLog(ctx context.Context, t *testing.T, text string, n int) {
	t.Helper()
	if err := poll(ctx, func() (bool, error) { return strings.Count(s.Token.Log(), text) >= n, nil }); err != nil {
		t.Fatalf("%q stands %d times in the token service's log, want %d: %v", text, strings.Count(s.Token.Log(), text), n, err)
	}
}

// TestExternalLimit: at the limit mail waits in the queue, whatever mailbox it is for, and the
// reason says why.
func TestExternalLimit(t *testing.T) {
	s, ctx := startSite(t, externalSite("  external_recipients: 52/h\n", true))
	for i, to := range []string{"boss@contoso.com", "one@fabrikam.com", "two@fabrikam.com", "three@fabrikam.com"} {
		if res, err := Send(ctx, s.Postfix.SMTPAddr(), manyRecipients(to, to)); err != nil || !res.Accepted() {
			t.Fatalf("%v, %v", res.Verdict(), err)
		}
		if err := s.WaitMessages(ctx, i+1); err != nil {
			t.Fatal(err)
		}
		s.waitLog(ctx, t, "msg=delivery", i+1)
	}
	if res, err := Send(ctx, s.Postfix.SMTPAddr(), Stories()[4].Mail); err != nil || !res.Accepted() { // another mailbox
		t.Fatalf("%v, %v", res.Verdict(), err)
	}
	q, err := s.Postfix.WaitQueue(ctx, func(q []QueueEntry) bool { return len(q) == 1 && q[0].Queue == "deferred" })
	if err != nil {
		t.Fatalf("queue %+v: %v", q, err)
	}
	if log, _ := s.Postfix.Log(); !strings.Contains(log, "mailbox monitor@contoso.com cannot send now: fewer than 50 of the tenant's 52/h external recipients are left") {
		t.Error("Postfix's log does not say why")
	}
}
