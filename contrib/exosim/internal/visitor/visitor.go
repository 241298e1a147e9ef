// Package visitor is the other side in the tests of the simulator's rooms: an organisation, a
// client that speaks raw lines of SMTP, and a program that asks Entra for tokens. What they see is
// compared by those who send them.
package visitor

import (
	"bytes"
	"log/slog"
	"sync"

	"github.com/sendas/sendas/contrib/exosim/directory"
)

// The apps of the organisation.
const (
	App1 = "11111111-0000-4000-8000-000000000001" // App RBAC: no roles
	App2 = "22222222-0000-4000-8000-000000000002" // classic, with SMTP.SendAsApp
	App3 = "33333333-0000-4000-8000-000000000003" // classic with another role
	App4 = "44444444-0000-4000-8000-000000000004" // New-ServicePrincipal with the wrong object id
	App5 = "55555555-0000-4000-8000-000000000005" // a public client; see WithUsers
	App6 = "66666666-0000-4000-8000-000000000006" // a confidential one for users of every tenant
)

// Secret1 is that of App1: what secrets are made of, and worse.
const Secret1 = "s~1/+ &="

// Contoso is the organisation that the tests play.
func Contoso() directory.Config {
	return directory.Config{
		Apps: []directory.App{
			{ClientID: App1, ObjectID: "o1", Secret: Secret1, Mailboxes: []string{"erp@contoso.com", "scan@contoso.com", "gone@contoso.com"}},
			{ClientID: App2, ObjectID: "o2", Secret: "s2", Roles: []string{"SMTP.SendAsApp"}, Mailboxes: []string{"erp@contoso.com"}},
			{ClientID: App3, ObjectID: "o3", Secret: "s3", Roles: []string{"Mail.Send"}, Mailboxes: []string{"erp@contoso.com"}},
			{ClientID: App4, ObjectID: "o4", ExchangeID: "app-registration-id", Secret: "s4", Mailboxes: []string{"erp@contoso.com"}},
		},
		Mailboxes: []directory.Mailbox{
			{Address: "erp@contoso.com", Aliases: []string{"sap@contoso.com"}, SendAs: []string{"billing@contoso.com"}},
			{Address: "scan@contoso.com"}, {Address: "hr@contoso.com"},
		},
	}
}

// WithUsers adds people, and the apps by which they sign in.
func WithUsers(c *directory.Config) {
	c.Apps = append(c.Apps, directory.App{ClientID: App5, Public: true, RedirectURIs: []string{"http://localhost", "http://localhost/done"}},
		directory.App{ClientID: App6, Secret: "s6", MultiTenant: true, RedirectURIs: []string{"https://relay.contoso.com/done"}})
	c.Users = []directory.User{
		{UPN: "erp@contoso.com", ObjectID: "u1", FullAccess: []string{"scan@contoso.com"}},
		{UPN: "hr@contoso.com", ObjectID: "u2"}, {UPN: "admin@contoso.onmicrosoft.com", ObjectID: "u3", FullAccess: []string{"*"}},
	}
}

// Log is a log of many goroutines.
type Log struct {
	mu sync.Mutex // guards b
	b  bytes.Buffer
}

// Write is for [Log.Logger].
func (l *Log) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

// String returns what was logged so far.
func (l *Log) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// Logger returns one that writes all there is to log.
func (l *Log) Logger() *slog.Logger {
	return slog.New(slog.NewTextHandler(l, &slog.HandlerOptions{Level: slog.LevelDebug}))
}
