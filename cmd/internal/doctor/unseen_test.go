package doctor

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"testing"

	"github.com/sendas/sendas/cmd/internal/config"
	"github.com/sendas/sendas/cmd/internal/config/configtest"
	"github.com/sendas/sendas/cmd/internal/finding"
	"github.com/sendas/sendas/cmd/internal/finding/findingtest"
)

// TestDoctorUnseen: the doctor asks the token service whether replies are shown, and says how much
// mail that leaves where they are not.
func TestDoctorUnseen(t *testing.T) {
	const last = `"leases": 12, "last": "2026-11-21T08:00:00Z"`
	for _, tc := range []struct {
		name, status, limits string
		want                 finding.Status
		words                string
	}{
		{"all are shown", `{}`, "", finding.OK, "no lease of the last hour"},
		{"mended", `{"replies_unseen": {"now": false, "recipients": 50, ` + last + `}}`, "", finding.OK, "no lease of the last hour"},
		{"the default", `{"replies_unseen": {"now": true, "recipients": 50, ` + last + `}}`, "", finding.Fail,
			"of 12 leases, the last at 2026-11-21T08:00:00Z|counts as sent with 50 recipients|scan@contoso.com 200 messages a day|smtp_reply_filter|recipients_unseen: 1"},
		{"one recipient", `{"replies_unseen": {"now": true, "recipients": 1, ` + last + `}}`, "", finding.Fail, "with 1 recipients|scan@contoso.com 10000 messages a day"},
		{"a mailbox with less", `{"replies_unseen": {"now": true, "recipients": 50, ` + last + `}}`, "recipients: 500/2h", finding.Fail, "scan@contoso.com 10 messages in any 2h0m0s"},
		{"less than one delivery", `{"replies_unseen": {"now": true, "recipients": 50, ` + last + `}}`, "recipients: 30/d", finding.Fail, "scan@contoso.com 1 messages a day"},
	} {
		srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { fmt.Fprintln(w, tc.status) }))
		text := strings.Replace(configtest.SmallConfig, "{address: scan@contoso.com, ", "{address: scan@contoso.com, limits: {"+tc.limits+"}, ", 1)
		file := configtest.WriteFile(t, filepath.Join(t.TempDir(), "sendas.yaml"), text+"token: {http: '"+strings.TrimPrefix(srv.URL, "http://")+"'}\n", 0o644)
		c, err := config.Load(file, config.SkipFiles)
		if err != nil {
			t.Fatal(err)
		}
		d, _ := socketDoctor(t)
		d.checkReplies(t.Context(), d.Section("sockets", "socket"), c)
		findingtest.WantWhole(t, &d.Report)
		d.wantCheck(t, "sockets.replies", tc.want, strings.Split(tc.words, "|")...)
		srv.Close()
	}
}
