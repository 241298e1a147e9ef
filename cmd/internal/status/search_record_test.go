package status

import (
	"context"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/sendas/sendas/internal/record"
)

// TestSearchOfRecords: the page finds what both services really keep.
func TestSearchOfRecords(t *testing.T) {
	serve := func(half record.Half, keep func(*record.Keeper)) string {
		path := filepath.Join(t.TempDir(), "record.db")
		k := record.NewKeeper(half, path, record.Settings{On: true, Days: 30, Size: 1 << 30}, slog.New(slog.DiscardHandler), prometheus.NewRegistry())
		go k.Run()
		keep(k)
		k.Close()
		s := httptest.NewServer(muxOf(RecordPages(&RecordSource{half, path, func() bool { return true }})))
		t.Cleanup(s.Close)
		return listensAt(s)
	}
	now := time.Now()
	v := wellView()
	v.milterAt = serve(record.MilterHalf, func(k *record.Keeper) {
		for i, id := range []string{"4bX1", "4bX2"} {
			k.Message(&record.Message{Time: now.Add(time.Duration(i-60) * time.Second), Queue: id, Client: "printers", From: "root@mfp3", Identity: "scan@contoso.com", Leaves: "scan@contoso.com", Mailbox: "scan@contoso.com",
				Action: "accept", Reason: "client-from", Recipients: []string{"anna@example.org"}, Count: 1, MessageID: id + "/x<y>@mfp3", Waits: i == 1, Left: map[int]time.Time{0: now.Add(-30 * time.Second)}[i]})
		}
	})
	v.tokenAt = serve(record.TokenHalf, func(k *record.Keeper) {
		k.Attempt(&record.Attempt{Time: now.Add(-50 * time.Second), Sender: "scan@contoso.com", Mailbox: "scan@contoso.com", Waited: 9 * time.Second, For: "messages", Took: time.Second, Class: record.Accepted,
			Reply: "250 2.0.0 OK <4bX1/x<y>@mfp3>", MessageID: "4bX1/x<y>@mfp3", Accepted: 1})
	})
	h := muxOf(pages(&Site{Addr: "127.0.0.1:9726", Version: "devel", Client: http.DefaultClient, Search: func() bool { return true }}, func(context.Context) any { return v.token },
		func(context.Context) *view { return v }, func(v *view) (string, string) { return "the milter", v.milterAt }))
	for path, want := range map[string]string{
		"/?find=1&to=anna@example.org&since=2h":   "attempt by scan@contoso.com: 250 2.0.0 OK <4bX1/x<y>@mfp3>",
		"/?find=1&id=4bX2":                        "Find waiting ",
		"/?find=1&id=" + "4bX1%2Fx%3Cy%3E%40mfp3": "Find sent ",
		"/?find=1&to=nobody@example.org":          "Nothing was found.",
		"/?find=1&since=yesterday":                "a word was not understood",
	} {
		if got := words(ask(t, h, "localhost", path).Body.String()); !strings.Contains(got, want) {
			t.Errorf("%s: no %q in %s", path, want, got)
		}
	}
}
