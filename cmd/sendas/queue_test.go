package main

import (
	"encoding/json"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"testing"

	"github.com/sendas/sendas/cmd/internal/service"
	"github.com/sendas/sendas/token/lease"
)

// TestRecipientsLeft: what the token service tells of the day; nothing where it does not answer, or
// tells of another window.
func TestRecipientsLeft(t *testing.T) {
	day := func(left int) *lease.UsageStatus {
		return &lease.UsageStatus{Left: left, Limit: 10_000, Window: 86_400}
	}
	status := lease.Status{Mailboxes: []lease.MailboxStatus{
		{Mailbox: "erp@contoso.com", Recipients: day(7)}, {Mailbox: "scan@contoso.com", Recipients: day(0)},
		{Mailbox: "hr@contoso.com", Recipients: &lease.UsageStatus{Left: 3, Limit: 10, Window: 3_600}}, {Mailbox: "*@contoso.com", Pattern: true},
	}}
	answers := true
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/status" || !answers {
			http.NotFound(w, r)
			return
		}
		json.NewEncoder(w).Encode(status)
	}))
	addr := srv.Listener.Addr().String()
	if got, want := recipientsLeft(t.Context(), service.NewLocalClient(), addr), map[string]int{"erp@contoso.com": 7, "scan@contoso.com": 0}; !maps.Equal(got, want) {
		t.Errorf("left %v, want %v", got, want)
	}
	_, port, _ := net.SplitHostPort(addr)
	if got := recipientsLeft(t.Context(), service.NewLocalClient(), "0.0.0.0:"+port); len(got) != 2 {
		t.Errorf("of a service that listens on all addresses: %v", got)
	}
	answers = false
	if got := recipientsLeft(t.Context(), service.NewLocalClient(), addr); got != nil {
		t.Errorf("of a page that is not there: %v", got)
	}
	srv.Close()
	if got := recipientsLeft(t.Context(), service.NewLocalClient(), addr); got != nil {
		t.Errorf("of a service that does not answer: %v", got)
	}
}
