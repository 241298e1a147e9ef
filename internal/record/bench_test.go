package record

import (
	"fmt"
	"path/filepath"
	"testing"
	"time"
)

// million is how many messages BenchmarkFind looks among. It takes two minutes to make them.
const million = 1_000_000

// BenchmarkFind measures searches among a million messages, each with its file opened for it, as a
// command does. In the worst one two conditions hold for half of all messages each, and never
// together.
func BenchmarkFind(b *testing.B) {
	path := filepath.Join(b.TempDir(), "record.db")
	makeMillion(b, path)
	end := time.UnixMilli(1790000000000 + million*2592)
	for _, tc := range []struct {
		name string
		q    Query
	}{
		{"newest", Query{}}, {"from", Query{From: "root@mfp7.hall.lan"}}, {"to", Query{To: "user31@example.org"}}, {"client", Query{Client: "printers"}},
		{"client,since", Query{Client: "10.2.3.4", Since: end.AddDate(0, 0, -7)}}, {"refused", Query{Action: "reject"}}, {"waits", Query{Waits: true}},
		{"from,refused", Query{From: "scan@contoso.com", Action: "reject"}}, {"nobody", Query{To: "nobody@example.net"}},
		{"four", Query{To: "user31@example.org", From: "@contoso.com", Mailbox: "erp@contoso.com", Client: "printers"}},
		{"worst", Query{Client: "printers", Mailbox: "erp@contoso.com"}},
	} {
		b.Run(tc.name, func(b *testing.B) {
			for b.Loop() {
				r, err := OpenReader(b.Context(), path, MilterHalf)
				if err != nil {
					b.Fatal(err)
				}
				tc.q.Limit = 50
				if _, err := r.Messages(b.Context(), tc.q); err != nil {
					b.Fatal(err)
				}
				r.Close()
			}
		})
	}
}

// makeMillion makes a month's record of a very busy relay.
func makeMillion(b *testing.B, path string) {
	b.Helper()
	db, err := create(b.Context(), path, MilterHalf)
	if err != nil {
		b.Fatal(err)
	}
	defer db.Close()
	exec := func(query string, args ...any) {
		b.Helper()
		if _, err := db.Exec(query, args...); err != nil {
			b.Fatal(fmt.Errorf("%s: %w", query, err))
		}
	}
	exec(`WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM n WHERE i < ?)
INSERT INTO message (`+messageColumns+`) SELECT 1790000000000 + i*2592, i > 999980, 0, '10.2.'||(i%7)||'.'||(i%251), 'mfp'||(i%251)||'.hall.lan', 'mfp', '', '',
CASE i%2 WHEN 0 THEN 'printers' ELSE 'sap' END, 'root@mfp'||(i%251)||'.hall.lan', 'root@mfp'||(i%251)||'.hall.lan',
CASE i%2 WHEN 0 THEN 'scan@contoso.com' ELSE 'erp@contoso.com' END, CASE i%2 WHEN 0 THEN 'scan@contoso.com' ELSE 'erp@contoso.com' END,
CASE i%2 WHEN 0 THEN 'scan@contoso.com' ELSE 'erp@contoso.com' END, 1, 'submission', CASE WHEN i%1000=1 THEN 'reject' ELSE 'accept' END, 'authorized', '', 0, '',
'user'||(i*31%5000)||'@example.org', 1, 20000, printf('%08d.abc@host.example', i*104729%10000019), printf('4bX%08x', i*7919%10000019) FROM n`, million)
	for _, words := range []string{
		"'f', sender", "'f', substr(sender, instr(sender, '@'))", "'f', identity", "'f', '@contoso.com'", "'t', recipients", "'t', '@example.org'", "'c', client", "'c', addr", "'c', ptr", "'m', mailbox", "'a', action",
	} {
		exec("INSERT OR IGNORE INTO word SELECT " + words + ", id FROM message ORDER BY 1, 2, 3")
	}
}
