package exosim

import (
	"encoding/json"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/sendas/sendas/contrib/exosim/directory"
	"github.com/sendas/sendas/contrib/exosim/internal/visitor"
	"github.com/sendas/sendas/contrib/exosim/smtp"
)

// admin asks the admin service.
func admin(t *testing.T, s *Server, method, path, body string) (int, string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, "http://"+s.AdminAddr()+path, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	return res.StatusCode, string(b)
}

func startAdmin(t *testing.T) *Server {
	return startTest(t, func(c *Config) { c.Admin = "127.0.0.1:0" })
}

func TestAdminMessages(t *testing.T) {
	s := startAdmin(t)
	if _, got := admin(t, s, "GET", "/messages", ""); got != "[]\n" {
		t.Errorf("no messages: %s", got)
	}
	login(t, s, "erp@contoso.com").Send("erp@contoso.com", "From: erp@contoso.com"+visitor.MessageID, 2)
	login(t, s, "scan@contoso.com").Send("erp@contoso.com", "From: erp@contoso.com"+visitor.MessageID, 1)
	for _, tc := range []struct {
		path string
		ids  []int
		data bool
	}{
		{"/messages", []int{1, 2}, false},
		{"/messages?after=1", []int{2}, false},
		{"/messages?mailbox=ERP@contoso.com", []int{1}, false},
		{"/messages?mailbox=hr@contoso.com", nil, false},
		{"/messages?data=1", []int{1, 2}, true},
	} {
		_, b := admin(t, s, "GET", tc.path, "")
		var list []smtp.Message
		if err := json.Unmarshal([]byte(b), &list); err != nil {
			t.Fatalf("%s: %v in %s", tc.path, err, b)
		}
		var ids []int
		for _, m := range list {
			ids = append(ids, m.ID)
			if m.Size != len(s.Messages()[m.ID-1].Data) || (m.Data != nil) != tc.data || m.Accepted() != (m.ID == 1) || m.TLS != "TLS 1.3" || m.Dot.IsZero() || m.Verdict.IsZero() {
				t.Errorf("%s: %+v", tc.path, m)
			}
		}
		if len(ids) != len(tc.ids) || len(ids) > 0 && ids[0] != tc.ids[0] {
			t.Errorf("%s: ids %v, want %v", tc.path, ids, tc.ids)
		}
	}
	if code, got := admin(t, s, "GET", "/messages/1", ""); code != 200 || got != string(s.Messages()[0].Data) {
		t.Errorf("content: %d %q", code, got)
	}
	for path, want := range map[string]int{"/messages/9": 404, "/messages?after=x": 400} {
		if code, _ := admin(t, s, "GET", path, ""); code != want {
			t.Errorf("%s: %d, want %d", path, code, want)
		}
	}
	if code, _ := admin(t, s, "DELETE", "/messages", ""); code != 204 || len(s.Messages()) != 0 {
		t.Errorf("DELETE: %d, %d messages are left", code, len(s.Messages()))
	}
}

func TestAdminMailboxes(t *testing.T) {
	s := startAdmin(t)
	login(t, s, "erp@contoso.com").Send("erp@contoso.com", "From: erp@contoso.com"+visitor.MessageID, 2)
	_, b := admin(t, s, "GET", "/mailboxes", "")
	var list []struct {
		Address        string
		Accepted       int
		WorstByVerdict int `json:"worst_by_verdict"`
		Recipients     int
	}
	if err := json.Unmarshal([]byte(b), &list); err != nil || len(list) != 3 || list[0].Address != "erp@contoso.com" || list[0].Accepted != 1 || list[0].WorstByVerdict != 1 || list[0].Recipients != 2 {
		t.Errorf("%v in %s", err, b)
	}
	if code, got := admin(t, s, "PATCH", "/mailboxes/ERP@contoso.com", `{"full": true, "address": "x@y.z"}`); code != 200 ||
		got != `{"address":"erp@contoso.com","aliases":["sap@contoso.com"],"send_as":["billing@contoso.com"],"smtp_auth_disabled":false,"smtp_auth_enabled":false,"full":true,"no_logon":false}`+"\n" {
		t.Errorf("PATCH: %d %s", code, got)
	}
	if got := login(t, s, "erp@contoso.com").Send("erp@contoso.com", "From: erp@contoso.com"+visitor.MessageID, 1); !visitor.Like(got, visitor.Full) {
		t.Errorf("after PATCH: %s", got)
	}
	for _, tc := range []struct {
		path, body string
		want       int
	}{{"/mailboxes/x@y.z", `{}`, 404}, {"/mailboxes/erp@contoso.com", `{"ful": true}`, 400}, {"/mailboxes/erp@contoso.com", `{} {}`, 400}} {
		if code, _ := admin(t, s, "PATCH", tc.path, tc.body); code != tc.want {
			t.Errorf("%s %s: %d, want %d", tc.path, tc.body, code, tc.want)
		}
	}
}

func TestAdminFaults(t *testing.T) {
	s := startAdmin(t)
	for _, tc := range []struct {
		method, body string
		code         int
		want         Faults
	}{
		{"PUT", `{"busy": 2, "entra_delay": "1.5s", "concurrent_share": 0.25}`, 200, Faults{SMTPFaults{Busy: 2, ConcurrentShare: 0.25}, EntraFaults{Delay: 1500 * time.Millisecond}}},
		{"PATCH", `{"mailbox_full": true}`, 200, Faults{SMTPFaults{Busy: 2, ConcurrentShare: 0.25, MailboxFull: true}, EntraFaults{Delay: 1500 * time.Millisecond}}},
		{"PUT", `{"entra_status": 503}`, 200, Faults{EntraFaults: EntraFaults{Status: 503}}},
		{"PUT", `{"entra_status": 1}`, 400, Faults{EntraFaults: EntraFaults{Status: 503}}},
		{"PUT", `{"concurrent_share": 2}`, 400, Faults{EntraFaults: EntraFaults{Status: 503}}},
		{"PUT", `{"entra_delay": 3}`, 400, Faults{EntraFaults: EntraFaults{Status: 503}}},
		{"PUT", `{"entra_delay": "soon"}`, 400, Faults{EntraFaults: EntraFaults{Status: 503}}},
		{"PUT", `{"bussy": 2}`, 400, Faults{EntraFaults: EntraFaults{Status: 503}}},
		{"PUT", `{}`, 200, Faults{}},
	} {
		code, got := admin(t, s, tc.method, "/faults", tc.body)
		if code != tc.code || s.Faults() != tc.want {
			t.Errorf("%s %s: %d %s, faults %+v, want %+v", tc.method, tc.body, code, got, s.Faults(), tc.want)
		}
		var back Faults
		if _, b := admin(t, s, "GET", "/faults", ""); json.Unmarshal([]byte(b), &back) != nil || back != tc.want {
			t.Errorf("GET: %+v of %s, want %+v", back, b, tc.want)
		}
	}
}

func TestAdminTokens(t *testing.T) {
	s := startAdmin(t)
	visitor.Post(t, s, visitor.TokenPath, visitor.Form())
	token := s.Issue(app1, directory.Exchange, time.Hour)
	if code, _ := admin(t, s, "DELETE", "/tokens", ""); code != 204 {
		t.Errorf("DELETE: %d", code)
	}
	greet(t, s).Want(visitor.XOAUTH2("erp@contoso.com", token), visitor.AuthFailed)
	if _, got := admin(t, s, "GET", "/tokens", ""); got != `{"auth_refused":{"token revoked":1},"requests":{"`+app1+`":{"ok":1}}}`+"\n" {
		t.Errorf("GET: %s", got)
	}
}
