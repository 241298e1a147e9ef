package postfix

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"os/user"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/sendas/sendas/cmd/internal/config"
	"github.com/sendas/sendas/cmd/internal/config/configtest"
	"github.com/sendas/sendas/cmd/internal/finding"
	"github.com/sendas/sendas/cmd/internal/finding/findingtest"
	"github.com/sendas/sendas/cmd/internal/postfix/cf"
	"github.com/sendas/sendas/cmd/internal/postfix/postfixtest"
	"github.com/sendas/sendas/cmd/internal/service"
	"github.com/sendas/sendas/internal/serve"
)

// A lab is a configuration of Postfix's on disk, with a configuration of ours that fits.
type lab struct {
	dir    string // queue/sendas is the folder of the sockets
	config *config.Site
}

func newLab(t *testing.T, yaml string) *lab {
	t.Helper()
	dir := t.TempDir()
	sockets := filepath.Join(dir, "queue", "sendas")
	if err := os.MkdirAll(sockets, 0o755); err != nil {
		t.Fatal(err)
	}
	yaml += fmt.Sprintf("milter: {listen: 'unix:%[1]s/milter', policy_listen: 'unix:%[1]s/policy'}\ntoken: {listen: 'unix:%[1]s/credentials'}\n", sockets)
	c, err := config.Load(configtest.WriteFile(t, filepath.Join(dir, "sendas.yaml"), yaml, 0o644), config.SkipFiles)
	if err != nil {
		t.Fatal(err)
	}
	return &lab{dir, c}
}

// A look is a report about Postfix.
type look struct{ finding.Report }

func (l *look) find(t *testing.T, id string) finding.Check {
	t.Helper()
	return findingtest.Find(t, &l.Report, id)
}

func (l *look) wantCheck(t *testing.T, id string, status finding.Status, words ...string) {
	t.Helper()
	findingtest.Want(t, &l.Report, id, status, words...)
}

func (l *look) wantGood(t *testing.T) {
	t.Helper()
	findingtest.WantGood(t, &l.Report)
}

// examine writes main.cf and master.cf, and looks at them with the real postconf(1).
func (l *lab) examine(t *testing.T, main, master string) *look {
	t.Helper()
	etc := filepath.Join(l.dir, "etc")
	bundle := configtest.WriteFile(t, filepath.Join(l.dir, "ca.pem"), "", 0o644)
	master = strings.ReplaceAll(master, "/etc/ssl/certs/ca-certificates.crt", bundle)
	configtest.WriteFile(t, filepath.Join(etc, "main.cf"), "compatibility_level = 3.6\nmyhostname = relay.lan\ninet_interfaces = all\nmynetworks = 127.0.0.0/8 10.0.0.0/8\nqueue_directory = "+filepath.Join(l.dir, "queue")+"\n"+main, 0o644)
	configtest.WriteFile(t, filepath.Join(etc, "master.cf"), master, 0o644)
	l.age(t)
	return l.look(t)
}

// look looks at the files as they are.
func (l *lab) look(t *testing.T) *look {
	t.Helper()
	p, err := Read(t.Context(), Run, filepath.Join(l.dir, "etc"), l.config)
	if err != nil {
		t.Fatal(err)
	}
	d := &look{}
	p.Check(d.Section("postfix", "Postfix"))
	findingtest.WantWhole(t, &d.Report)
	return d
}

// age makes main.cf older: a program of Postfix's waits until it is 2 seconds old, lest it reads
// half of it.
func (l *lab) age(t *testing.T) {
	t.Helper()
	past := time.Now().Add(-time.Minute)
	if err := os.Chtimes(filepath.Join(l.dir, "etc", "main.cf"), past, past); err != nil {
		t.Fatal(err)
	}
}

// byHand is master.cf with the transport of docs/by-hand.md.
func byHand(t *testing.T) string {
	t.Helper()
	return postfixtest.MasterCF + postfixtest.OwnEntry(t)
}

// ownSettings are the -o of that transport.
func ownSettings(t *testing.T) (list []cf.Setting) {
	t.Helper()
	for line := range strings.Lines(postfixtest.OwnEntry(t)) {
		if o, ok := strings.CutPrefix(strings.TrimSpace(line), "-o "); ok {
			name, value, _ := strings.Cut(strings.Trim(o, "{ }"), "=")
			list = append(list, cf.Setting{Name: strings.TrimSpace(name), Value: strings.TrimSpace(value)})
		}
	}
	return list
}

// What README says is what the doctor wants; and it says something of each line there. Postfix's
// own tool has read the files.
func TestDoctorOnReadme(t *testing.T) {
	main := postfixtest.MainCF(t)
	d := newLab(t, configtest.SmallConfig).examine(t, main, byHand(t))
	d.wantGood(t)
	for name := range cf.Parameters(main) {
		if !strings.HasPrefix(name, "#") {
			d.find(t, "postfix."+name)
		}
	}
	for _, s := range ownSettings(t) {
		if row := settingNamed(s.Name); !row.elsewhere {
			d.find(t, "postfix.sendas."+s.Name)
		}
	}
	d.wantCheck(t, "postfix.smtpd_recipient_restrictions", finding.OK)
	d.wantCheck(t, "postfix.shape", finding.OK, "the settings stand in the transport sendas")
	d.wantCheck(t, "postfix.way", finding.OK, "all mail leaves by sendas")
	d.wantCheck(t, "postfix.route.submission", finding.OK)
}

// The command that a failure names mends it: each line of README's main.cf is left out, and each -o
// of its transport; the command is typed, and the doctor looks again.
func TestDoctorCommands(t *testing.T) {
	main, master := postfixtest.MainCF(t), byHand(t)
	lab := newLab(t, configtest.SmallConfig)
	mended := 0
	mend := func(name, id, main, master string) {
		t.Helper()
		d := lab.examine(t, main, master)
		i := slices.IndexFunc(d.Checks, func(c finding.Check) bool {
			return c.Status != finding.OK && strings.HasPrefix(c.Do, "postconf -c ") && strings.Contains(c.Do, name)
		})
		if i < 0 {
			return // the default is good, or optional
		}
		typeCure(t, d, d.Checks[i].ID)
		lab.age(t)
		lab.look(t).wantCheck(t, id, finding.OK)
		mended++
	}
	for line := range strings.Lines(main) {
		if name, _, ok := strings.Cut(line, " ="); ok && !strings.HasPrefix(line, "#") {
			mend("'"+name+" = ", "postfix."+name, strings.Replace(main, line, "", 1), master)
		}
	}
	for line := range strings.Lines(master) {
		if o, ok := strings.CutPrefix(strings.TrimSpace(line), "-o "); ok {
			name, _, _ := strings.Cut(strings.Trim(o, "{ "), "=")
			name = strings.TrimSpace(name)
			mend("'sendas/unix/"+name+"=", "postfix.sendas."+name, main, strings.Replace(master, line, "", 1))
		}
	}
	if mended < 15 {
		t.Errorf("%d lines were mended, want more", mended)
	}
}

const ownRoute = "routes:\n  - {name: submission, transport: sendas}\n"

func TestDoctorOwnTransport(t *testing.T) {
	main, master := postfixtest.MainCF(t), byHand(t)
	d := newLab(t, configtest.SmallConfig+ownRoute).examine(t, main, master)
	d.wantGood(t)
	d.wantCheck(t, "postfix.sendas.smtp_sasl_tls_verified_security_options", finding.OK, "noanonymous")

	d = newLab(t, configtest.SmallConfig+"routes: [{name: submission, transport: exit}]\n").examine(t, strings.Replace(main, "default_transport", "x_transport", 1), master)
	d.wantCheck(t, "postfix.transport", finding.Fail, "routes: [{name: submission, transport: sendas}]")
	d.wantCheck(t, "postfix.way", finding.Fail, "no setting leads to sendas")
	d.wantCheck(t, "postfix.default_transport", finding.Fail, "sendas postfix enable --postfix-config")
	d.wantCheck(t, "postfix.unused.x_transport", finding.Warn)

	d = newLab(t, configtest.SmallConfig).examine(t, main, strings.Replace(master, "smtp_tls_security_level=secure", "smtp_tls_security_level=encrypt", 1))
	d.wantCheck(t, "postfix.sendas.smtp_tls_security_level", finding.Fail, "encrypt", "-P 'sendas/unix/smtp_tls_security_level=secure'")

	// What main.cf says of other mail is none of its business.
	d = newLab(t, configtest.SmallConfig).examine(t, main+"smtp_tls_security_level = none\nsmtp_fallback_relay = [192.0.2.7]\nsmtp_tls_policy_maps = inline:{ {[smtp.office365.com]:587 = may} }\n"+
		"smtp_generic_maps = static:x@contoso.com\nsmtp_tls_connection_reuse = yes\nsmtp_header_checks = regexp:/nowhere\nsmtp_sasl_auth_enable = no\n", master)
	d.wantGood(t)
}

// formerShape is how the settings stood before: in main.cf, for every transport.
func formerShape(t *testing.T) (main string) {
	t.Helper()
	main = strings.NewReplacer("default_transport = sendas:", "relayhost = ", "sendas_destination", "smtp_destination").Replace(postfixtest.MainCF(t))
	for _, s := range ownSettings(t) {
		main += s.Name + " = " + s.Value + "\n"
	}
	return main
}

// The doctor looks at the transport that really carries the mail, and at who inherits what is meant
// for Microsoft.
func TestDoctorCarrier(t *testing.T) {
	lab := newLab(t, configtest.SmallConfig)
	const feed = "smtp-amavis unix - - y - 2 smtp -o smtp_data_done_timeout=1200\n"
	for _, tc := range []struct {
		name, main, master string
		id                 string
		status             finding.Status
		words              []string
	}{
		{"in main.cf", formerShape(t), postfixtest.MasterCF, "shape", finding.Warn, []string{"for all transports", "sendas postfix enable"}},
		{"and a feed inherits it", formerShape(t), postfixtest.MasterCF + feed, "shape", finding.Fail, []string{"smtp-amavis too", "feed of a filter"}},
		{"the feed of a good site", postfixtest.MainCF(t), byHand(t) + feed, "shape", finding.OK, nil},
		{"nothing asks", postfixtest.MainCF(t), postfixtest.MasterCF, "shape", finding.Fail, []string{"no transport asks sendas"}},
		{"relayhost without the transport", strings.Replace(postfixtest.MainCF(t), "default_transport = sendas:", "relayhost = ", 1), byHand(t), "way.smtp", finding.Fail, []string{"does not ask sendas", "530 5.7.57"}},
		{"no brackets", strings.Replace(postfixtest.MainCF(t), "default_transport = sendas:[smtp.office365.com]:587", "relayhost = smtp.office365.com:submission", 1), byHand(t), "default_transport", finding.Fail, []string{"postfix enable"}},
		{"another default, and no table", strings.Replace(postfixtest.MainCF(t), "default_transport = sendas:", "default_transport = smtp:", 1), byHand(t), "way.smtp", finding.Fail, nil},
		{"a table for another transport", postfixtest.MainCF(t) + "sender_dependent_default_transport_maps = inline:{ {erp@contoso.com = relay:[smtp.office365.com]:587} }\n", byHand(t), "way.relay", finding.Fail, nil},
		{"other mail", strings.Replace(postfixtest.MainCF(t), "default_transport = sendas:[smtp.office365.com]:587", "relayhost = [mail.fabrikam.com]\nsender_dependent_default_transport_maps = inline:{ {erp@contoso.com = sendas:[smtp.office365.com]:587} }", 1), byHand(t),
			"way", finding.OK, []string{"senders leave by sendas", "relayhost = [mail.fabrikam.com]"}},
		{"other mail, and nobody led", strings.Replace(postfixtest.MainCF(t), "default_transport = sendas:[smtp.office365.com]:587", "relayhost = [mail.fabrikam.com]", 1), byHand(t), "way", finding.Fail, []string{"no setting leads"}},
		{"a filter is no fallback", postfixtest.MainCF(t), strings.Replace(byHand(t), "    -o smtp_fallback_relay=\n", "", 1) + feed, "sendas.smtp_fallback_relay", finding.OK, nil},
		{"a fallback of main.cf's", postfixtest.MainCF(t) + "smtp_fallback_relay = [mail.fabrikam.com]\n", strings.Replace(byHand(t), "    -o smtp_fallback_relay=\n", "", 1), "sendas.smtp_fallback_relay", finding.Fail, []string{"without a lease", "-P 'sendas/unix/smtp_fallback_relay='"}},
	} {
		d := lab.examine(t, tc.main, tc.master)
		findingtest.Want(t, &d.Report, "postfix."+tc.id, tc.status, tc.words...)
		if t.Failed() {
			t.Fatalf("%s", tc.name)
		}
	}
}

// Each row changes one value of a good main.cf. Together they make every row of settings find
// something.
func TestDoctorSettings(t *testing.T) {
	connector := strings.Replace(configtest.SmallConfig, "from: scan@contoso.com}", "from: scan@contoso.com, route: site}", 1) + configtest.RoutesConfig
	direct := strings.Replace(connector, "connector", "direct", 1)
	counting := strings.Replace(configtest.SmallConfig, "domains: [contoso.com]", "domains: [contoso.com]\n  external_recipients: auto\n  licenses: 100", 1)
	fingerprint := strings.Replace(configtest.SmallConfig, "networks: [10.2.0.0/16]", "cert_fingerprints: ['"+strings.Repeat("ab:", 31)+"ab']", 1)
	for _, tc := range []struct {
		yaml, set string // a line of main.cf
		id        string // "" is the name
		status    finding.Status
		words     string
	}{
		{"", "smtpd_milters =", "", finding.Fail, "smtpd_milters = unix:sendas/milter"},
		{"", "smtpd_milters = inet:127.0.0.1:8891", "", finding.Fail, "does not pass sendas"},
		{"", "smtpd_milters = inet:127.0.0.1:8891", "", finding.Fail, "-e 'smtpd_milters = unix:sendas/milter, inet:127.0.0.1:8891'"},
		{"", "internal_mail_filter_classes = bounce", "", finding.Fail, "= bounce, notify'"},
		{"", "notify_classes = bounce, protocol, policy", "", finding.Fail, "-e 'notify_classes = bounce, policy'"},
		{"", "smtpd_milters = { unix:sendas/milter, { default_action = accept } }", "", finding.Fail, ""},
		{"", "smtpd_milters = { unix:sendas/milter, default_action=accept }", "", finding.Fail, ""},
		{"", "smtpd_milters = { unix:sendas/milter, connect_timeout=10s, default_action=tempfail }", "", finding.OK, ""},
		{"", "smtpd_milters = unix:sendas/milter, inet:127.0.0.1:8891", "", finding.OK, ""},
		{"", "smtpd_milters = unix:sendas/milter, inet:127.0.0.1:8891", "smtpd_milters.order", finding.OK, ""},
		{"", "smtpd_milters = inet:127.0.0.1:8891, unix:sendas/milter", "smtpd_milters.order", finding.Warn, "signature"},
		{"", "non_smtpd_milters =", "", finding.Fail, "cron"},
		{"", "internal_mail_filter_classes =", "", finding.Fail, "bounces"},
		{"", "internal_mail_filter_classes = bounce", "", finding.Fail, "notices"},
		{"", "internal_mail_filter_classes = notify", "", finding.Fail, "bounces"},
		{"", "internal_mail_filter_classes = notify, bounce", "", finding.OK, ""},
		{"", "milter_default_action = accept", "", finding.Fail, "unchanged"},
		{"", "milter_default_action = reject", "", finding.Warn, "lost"},
		{"", "milter_default_action = shutdown", "", finding.OK, ""},
		{"", "smtpd_milters = { unix:sendas/milter, default_action=shutdown }", "", finding.OK, ""},
		{"", "local_header_rewrite_clients = permit_inet_interfaces", "", finding.Warn, "mends"},
		{"", "remote_header_rewrite_domain = contoso.com", "", finding.Warn, "completes"},
		{"", "resolve_numeric_domain = no", "", finding.Warn, "10.2.0.9"},
		{"", "smtpd_recipient_restrictions = permit_mynetworks, check_policy_service unix:sendas/policy", "", finding.Warn, "never"},
		{connector, "smtpd_recipient_restrictions = permit_mynetworks, check_policy_service unix:sendas/policy", "", finding.Fail, "before everything that permits"},
		{connector, "smtpd_recipient_restrictions = permit_mynetworks", "", finding.Fail, "connector"},
		{connector, "smtpd_recipient_restrictions = reject_unknown_sender_domain, check_policy_service unix:sendas/policy, permit_mynetworks", "", finding.OK, ""},
		{fingerprint, "smtpd_recipient_restrictions =", "", finding.Fail, "fingerprint"},
		{fingerprint, "smtpd_tls_ask_ccert = no", "", finding.Fail, "asks for none"},
		{fingerprint, "smtpd_tls_fingerprint_digest = md5", "", finding.Fail, "SHA-256"},
		{"", "smtpd_relay_restrictions = permit", "", finding.Fail, "anybody"},
		{direct, "transport_maps =", "", finding.Fail, "inline:{ {contoso.com = sendas-site:[contoso-com.mail.protection.outlook.com]:25} }"},
		{direct, "transport_maps = inline:{ {contoso.com = sendas-site:[contoso-com.mail.protection.outlook.com]:25}, {x = y:} }", "", finding.OK, ""},
		{direct, "transport_maps = inline:{ {contoso.de = sendas-site:[contoso-com.mail.protection.outlook.com]:25} }", "", finding.Fail, "by submission"},
		{direct, "transport_maps = socketmap:unix:sendas/credentials:route", "", finding.OK, ""},
		{"", "transport_maps = inline:{contoso.com=smtp:[10.0.0.1]}", "transport_maps.bare", finding.OK, ""},
		{"", "transport_maps = inline:{contoso.com=:[10.0.0.1]}", "transport_maps.bare", finding.Fail, "smtp:[host] for :[host]"},
		{"", "transport_maps = inline:{ {* = smtp:[mail.fabrikam.com]} }", "transport_maps.all", finding.Fail, "leads all mail elsewhere"},
		{"", "transport_maps = inline:{contoso.com=:}", "transport_maps.bare", finding.OK, ""}, // as without the entry
		{"", "transport_maps = inline:{contoso.com=relay:}, inline:{ {.fabrikam.com = :[10.0.0.1]:2525} }", "transport_maps.bare", finding.Fail, ""},
		{"", "default_transport = error", "", finding.Fail, "sendas postfix enable"},
		{"", "default_transport = sendas:[SMTP.office365.com]:0587", "", finding.OK, ""},
		{"", "default_transport = sendas:[smtp.office365.com]:587, [smtp.office365.com]:0587", "", finding.OK, ""},
		{"", "default_transport = smtp:[smtp.office365.com]:587", "", finding.Fail, ""},
		{"", "relay_transport = relay\nrelay_domains = hash:/nowhere\nrelayhost = [smtp.office365.com]", "", finding.Fail, "sendas postfix enable"},
		{"", "relay_transport = error:5.1.1 closed\nrelay_domains = plant.contoso.com", "", finding.Fail, ""},
		{"", "relayhost = smtp.office365.com:587", "", finding.Warn, "without credentials"},
		{"", "relayhost = [SMTP.office365.com]:submission", "", finding.Warn, ""},
		{"", "sender_dependent_relayhost_maps = inline:{ {a@contoso.com = [mail.fabrikam.com]} }", "", finding.Fail, "smtp:[host]"},
		{"", "sender_dependent_relayhost_maps = hash:/nowhere", "", finding.Fail, ""},
		{"", "sender_dependent_relayhost_maps = inline:{ {a@contoso.com = [smtp.office365.com]:587} }", "", finding.OK, ""},
		{"", "smtp_tls_security_level = may", "", finding.Fail, "whoever answers"},
		{"", "smtp_tls_security_level = verify", "", finding.Warn, "secure"},
		{"", "smtp_tls_wrappermode = yes", "", finding.Fail, "465"},
		{"", "smtp_tls_policy_maps = inline:{example.com=may}", "", finding.OK, ""},
		{"", "smtp_tls_policy_maps = inline:{ {[smtp.office365.com]:587 = may} }", "", finding.Fail, "whoever answers"},
		{"", "smtp_tls_policy_maps = inline:{ {smtp.office365.com = encrypt protocols=TLSv1.2} }", "", finding.Fail, ""},
		{"", "smtp_tls_policy_maps = inline:{ {.office365.com = may} }", "", finding.Fail, ""},
		{"", "smtp_tls_policy_maps = inline:{ {[smtp.office365.com]:587 = secure} }", "", finding.OK, ""},
		{"", "smtp_tls_policy_maps = proxy:mysql:/nowhere", "", finding.Warn, ""},
		{"", "smtp_tls_trust_anchor_file = /etc/postfix/own.pem", "", finding.Fail, "these alone"},
		{"", "smtp_fallback_relay = [mail.fabrikam.com]", "", finding.Fail, "without a lease"},
		{"", "smtp_delivery_status_filter = regexp:/etc/postfix/dsn", "", finding.Warn, "bounces"},
		{"", "smtp_discard_ehlo_keywords = chunking", "", finding.OK, ""},
		{"", "smtp_discard_ehlo_keywords = chunking, STARTTLS", "", finding.Fail, "overlooks"},
		{"", "smtp_discard_ehlo_keyword_address_maps = hash:/nowhere", "", finding.Warn, "overlook"},
		{"", "smtp_mime_header_checks = regexp:/nowhere", "", finding.Warn, "decided"},
		{"", "smtp_nested_header_checks = regexp:/nowhere", "", finding.Warn, "decided"},
		{"", "smtp_body_checks = regexp:/nowhere", "", finding.Warn, "decided"},
		{"", "smtp_tls_CAfile =", "", finding.Fail, "trusts nobody"},
		{"", "smtp_tls_CAfile = /nowhere.pem", "", finding.Fail, "not there"},
		{"", "smtp_tls_secure_cert_match = hostname", "", finding.Warn, "name of the server"},
		{"", "smtp_sasl_auth_enable = no", "", finding.Fail, "530 5.7.57"},
		{"", "smtp_sasl_type = dovecot", "", finding.Fail, "Cyrus"},
		{"", "smtp_sasl_mechanism_filter =", "", finding.Fail, "password"},
		{"", "smtp_sasl_mechanism_filter = xoauth2, login", "", finding.Fail, "password"},
		{"", "smtp_sasl_mechanism_filter = XOAUTH2", "", finding.OK, ""},
		{"", "tls_required_enable = yes", "", finding.Fail, "-e 'tls_required_enable = no'"},
		{"", "tls_required_enable = No", "", finding.OK, ""},
		{"", "smtp_tls_per_site = hash:/etc/postfix/tls_per_site", "", finding.Fail, "turn TLS off"},
		{"", "smtp_sasl_security_options = noplaintext, noanonymous", "", finding.OK, ""},
		{"", "smtp_sasl_security_options = noanonymous", "", finding.Warn, "-P 'sendas/unix/smtp_sasl_security_options=noanonymous,noplaintext'"},
		{"", "smtp_sasl_tls_security_options = noplaintext", "", finding.OK, ""},
		{"", "smtp_sasl_tls_security_options = $smtp_sasl_security_options", "", finding.OK, ""},
		{"", "smtp_sasl_tls_security_options = noanonymous", "", finding.Warn, "-P 'sendas/unix/smtp_sasl_tls_verified_security_options=noanonymous' 'sendas/unix/smtp_sasl_tls_security_options=noanonymous,noplaintext'"},
		{"", "smtp_sasl_tls_verified_security_options = $smtp_sasl_tls_security_options", "", finding.Fail, "no mechanism"},
		{"", "smtp_sasl_tls_verified_security_options = noplaintext", "", finding.Fail, "no mechanism"},
		{"", "smtp_sender_dependent_authentication = no", "", finding.Fail, "of the sender"},
		{"", "smtp_sasl_password_maps = hash:/etc/postfix/sasl_passwd", "shape", finding.Fail, "sendas postfix enable"},
		{"", "smtp_sasl_password_maps = proxy:socketmap:unix:sendas/credentials:lease", "shape", finding.Fail, ""},
		{"", "smtp_sasl_password_maps = debug:socketmap:unix:sendas/credentials:lease", "shape", finding.Fail, ""}, // it logs what it looks up
		{"", "smtp_sasl_password_maps = static:erp:hunter2, socketmap:unix:sendas/credentials:lease", "", finding.Fail, "static:REDACTED"},
		{"", "smtp_sasl_password_maps = socketmap:unix:other/credentials:lease", "", finding.Fail, ""},
		{"", "smtp_reply_filter =", "", finding.Fail, "bounces instead of waiting"},
		{"", "smtp_sasl_auth_soft_bounce = no", "", finding.Fail, "bounce"},
		{"", "smtp_sasl_auth_cache_name = proxy:btree:/var/lib/postfix/sasl_auth_cache", "", finding.Fail, "months"},
		{"", "smtp_tls_connection_reuse = yes", "", finding.Fail, "without a look-up"},
		{"", "smtp_connection_cache_on_demand = yes", "", finding.Fail, "without a look-up"},
		{"", "smtp_connection_cache_destinations = smtp.office365.com", "", finding.Fail, "without a look-up"},
		{counting, "smtp_generic_maps =", "recipients", finding.Warn, "count as external"},
		{counting, "smtp_generic_maps = socketmap:unix:sendas/credentials:recipient", "recipients", finding.OK, ""},
		{counting, "smtp_generic_maps = static:x@contoso.com", "", finding.Fail, "refuses the message"},
		{"", "smtp_generic_maps = static:x@contoso.com", "", finding.Fail, "refuses the message"},
		{"", "smtp_tls_loglevel = 4", "", finding.Fail, "mail log"},
		{"", "sendas_destination_concurrency_limit = 20", "", finding.Warn, "3 messages"},
		{"", "sendas_destination_concurrency_limit = 6", "", finding.OK, ""}, // two mailboxes
		{"", "sendas_destination_concurrency_failed_cohort_limit = 1", "", finding.Warn, "five minutes"},
		{"", "sendas_destination_concurrency_failed_cohort_limit = 10", "", finding.Warn, "five minutes"}, // as earlier versions wrote it
		{"", "sendas_destination_concurrency_failed_cohort_limit = 0", "", finding.OK, ""},
		{"", "sendas_destination_concurrency_negative_feedback = 1/concurrency", "", finding.Warn, "one by one"},
		{"", "sendas_destination_concurrency_negative_feedback = 0.0", "", finding.OK, ""},
		{"", "sendas_destination_recipient_limit = 5000", "", finding.Warn, "500"},
		{"", "sendas_destination_rate_delay = 2s", "", finding.Warn, "on top"},
		{"", "sendas_transport_rate_delay = 2s", "", finding.Warn, "on top"},
		{"", "default_destination_rate_delay = 2s", "sendas_destination_rate_delay", finding.Warn, "on top"},
		{"", "notify_classes = resource, software, protocol", "", finding.Fail, "transcripts"},
		{"", "debug_peer_list = smtp.office365.com", "", finding.Fail, "-v"},
		{"", "sendas/unix/debug_peer_list = smtp.office365.com", "", finding.Fail, "tokens too"},
		{"", "sendas/unix/notify_classes = resource, protocol", "", finding.Fail, "a token"},
		{"", "content_filter = smtp-amavis:[127.0.0.1]:10024", "", finding.Warn, "twice"},
		{connector, "content_filter = sendas-site:[contoso-com.mail.protection.outlook.com]:25", "", finding.OK, ""},
		{"", "receive_override_options = no_milters", "", finding.Fail, "none passes"},
		{"", "canonical_maps = static:x", "", finding.Fail, "bounces"},
		{"", "sender_canonical_maps = static:scan@contoso.com", "", finding.Fail, "changes senders"}, // not erp@
		{"", "sender_canonical_maps = inline:{ {ERP@contoso.com = relay@contoso.com} }", "", finding.Fail, ""},
		{"", "canonical_maps = inline:{ {@contoso.com = relay@contoso.com} }", "", finding.Fail, ""},
		{"", "canonical_maps = inline:{ {root@relay.lan = scan@contoso.com} }", "", finding.OK, ""},
		{"", "canonical_maps = ldap:/nowhere", "", finding.Warn, ""},
		{strings.NewReplacer("  - {address: erp@contoso.com, credential: relay-app}\n", "", ", send_as: [office@contoso.com]", "").Replace(configtest.SmallConfig),
			"sender_canonical_maps = static:scan@contoso.com", "", finding.OK, ""}, // the only sender stays as it is
		{"", "masquerade_domains = contoso.com", "", finding.OK, ""},
		{"", "masquerade_domains = com", "", finding.Fail, "bounces"},
		{"", "milter_protocol = 2", "", finding.Fail, "sendas postfix enable"},
		{"", "milter_protocol = 6", "", finding.OK, ""},
		{"", "milter_protocol = 2", "smtpd_milters", finding.Fail, "{ unix:sendas/milter, protocol=6 }"},
		{"", "milter_protocol = 4\nsmtpd_milters = { unix:sendas/milter, protocol=6 }, inet:127.0.0.1:8891\nnon_smtpd_milters = $smtpd_milters", "", finding.OK, ""},
		{"", "milter_protocol = 3\nsmtpd_milters = { unix:sendas/milter, protocol=6 }", "", finding.Fail, ""}, // and sendmail(1)?
		{"", "smtpd_milters = { unix:sendas/milter, { protocol = 6 } }\nmilter_protocol = 2", "", finding.OK, ""},
		{"", "smtpd_milter_maps = inline:{ {10.2.0.9 = DISABLE} }", "", finding.Fail, "does not pass sendas"},
		{"", "smtpd_milter_maps = inline:{ {10.2.0.9 = inet:127.0.0.1:8891} }", "", finding.Fail, ""},
		{"", "smtpd_milter_maps = inline:{ {10.2.0.9 = unix:sendas/milter} }", "", finding.OK, ""},
		{"", "smtpd_milter_maps = inline:{ {127.0.0.1 = DISABLE} }", "", finding.OK, ""}, // mail that comes back from a filter
		{"", "smtpd_milter_maps = cidr:/nowhere", "", finding.Warn, ""},
		{"", "message_size_limit = 0", "", finding.Warn, "bounces later"},
		{"", "message_size_limit = 200000000", "", finding.Warn, "157286400"},
		{"", "message_size_limit = 10240000", "", finding.OK, ""},
		{"", "maximal_queue_lifetime = 12h", "", finding.Warn, "for a day"},
		{"", "maximal_queue_lifetime = 1", "", finding.OK, ""},
		{"", "sender_dependent_default_transport_maps = inline:{ {scan@contoso.com = sendas:[smtp.office365.com]:587} }", "", finding.Warn, "sendas postfix enable"},
		{"", "sender_dependent_default_transport_maps = inline:{ {scan@contoso.com = smtp:[smtp.office365.com]:587} }", "", finding.Warn, "sendas postfix enable"},
		{"", "always_add_missing_headers = yes", "", finding.Warn, "From"},
		{"", "smtputf8_autodetect_classes = all", "", finding.Warn, "502 5.3.3"},
	} {
		if tc.yaml == "" {
			tc.yaml = configtest.SmallConfig
		}
		name, _, _ := strings.Cut(tc.set, " =")
		p, d := fake(t, newLab(t, tc.yaml), cf.Parameters(tc.set))
		p.checkShape(d.Section("postfix", "Postfix"))
		p.checkSettings(d.Section("postfix", "Postfix"))
		findingtest.WantWhole(t, &d.Report)
		if tc.id == "" {
			tc.id = name
		}
		if ofTransport(name) && tc.id != "shape" {
			tc.id = "sendas." + strings.TrimPrefix(tc.id, "sendas/unix/")
		}
		d.wantCheck(t, "postfix."+tc.id, tc.status, tc.words)
		if tc.status != finding.OK {
			settingsHit[tc.id] = true
		}
		if strings.Contains(fmt.Sprint(d.Checks), "hunter2") {
			t.Errorf("%s: the report shows a password", tc.set)
		}
	}
	for _, r := range settings {
		id := r.name
		if r.id != "" {
			id = r.id
		}
		if r.place == inQueue {
			id = "sendas" + id
		} else if r.place == inTransport {
			id = "sendas." + id
		}
		if !settingsHit[id] && !r.elsewhere {
			t.Errorf("no case makes the row %s find something", id)
		}
	}
}

var settingsHit = make(map[string]bool)

// ofTransport reports whether a parameter is one of the transport's alone, or is named as such.
func ofTransport(name string) bool {
	own := strings.HasPrefix(name, "sendas/unix/")
	for _, r := range settings {
		if r.name == name {
			own = r.place == inTransport
		}
	}
	return own
}

// fake is README's Postfix with some values changed, without asking postconf(1). A value that is
// another's name is taken from that one.
func fake(t *testing.T, l *lab, changes map[string]string) (*Setup, *look) {
	t.Helper()
	raw := map[string]string{
		"mail_version": "3.7.11", "compatibility_level": "3.6", "queue_directory": filepath.Join(l.dir, "queue"), "mail_owner": "root", "milter_default_action": "tempfail",
		"smtpd_relay_restrictions": "permit_mynetworks, defer_unauth_destination", "smtpd_tls_ask_ccert": "yes", "smtpd_tls_fingerprint_digest": "sha256",
		"smtp_tls_wrappermode": "no", "smtp_tls_secure_cert_match": "nexthop, dot-nexthop", "smtp_sasl_type": "cyrus", "smtp_sasl_tls_verified_security_options": "$smtp_sasl_tls_security_options",
		"smtp_sasl_auth_soft_bounce": "yes", "smtp_tls_loglevel": "0", "default_destination_recipient_limit": "50", "default_destination_rate_delay": "0s", "default_transport_rate_delay": "0s",
		"notify_classes": "resource, software", "message_size_limit": "10240000", "maximal_queue_lifetime": "5d", "always_add_missing_headers": "no", "smtputf8_autodetect_classes": "sendmail, verify", "default_transport": "smtp",
	}
	maps.Copy(raw, cf.Parameters(postfixtest.MainCF(t)))
	own := make(map[string]string) // the -o of the transport
	for _, s := range ownSettings(t) {
		own[s.Name] = s.Value
	}
	own["smtp_tls_CAfile"] = configtest.WriteFile(t, filepath.Join(l.dir, "ca.pem"), "", 0o644)
	explicit := cf.Parameters(postfixtest.MainCF(t))
	for name, value := range changes {
		if ofTransport(name) {
			own[strings.TrimPrefix(name, "sendas/unix/")] = value
		} else {
			raw[name], explicit[name] = value, value
		}
	}
	overrides := make(map[string]string)
	for name, value := range own {
		if m := cf.OtherName.FindStringSubmatch(value); m != nil {
			value = own[m[1]]
		}
		overrides["sendas/unix/"+name] = value
	}
	printOut := func(m map[string]string) string {
		var b strings.Builder
		for name, value := range m {
			fmt.Fprintf(&b, "%s = %s\n", name, value)
		}
		return b.String()
	}
	full := make(map[string]string)
	for name, value := range raw {
		if m := cf.OtherName.FindStringSubmatch(value); m != nil {
			value = raw[m[1]]
		}
		full[name] = value
	}
	run := func(_ context.Context, program string, args ...string) (string, string, error) {
		if program != "postconf" {
			return "", "no tables here", errors.New("no tables here")
		}
		return map[string]string{"": printOut(raw), "-x": printOut(full), "-n": printOut(explicit), "-M -x": byHand(t), "-P -x": printOut(overrides), "-m": "hash\nsocketmap\n", "-A": "cyrus\n"}[strings.Join(args, " ")], "", nil
	}
	p, err := Read(t.Context(), run, "", l.config)
	if err != nil {
		t.Fatal(err)
	}
	return p, &look{}
}

func TestDoctorBuild(t *testing.T) {
	p, d := fake(t, newLab(t, configtest.SmallConfig), map[string]string{"mail_version": "3.3.2"})
	p.tables, p.sasl, p.unused = []string{"hash"}, nil, []string{"smtp_reply_fitler"}
	p.checkBuild(d.Section("postfix", "Postfix"))
	findingtest.WantWhole(t, &d.Report)
	d.wantCheck(t, "postfix.version", finding.Fail, "3.3.2", "3.4")
	d.wantCheck(t, "postfix.socketmap", finding.Fail, "hash")
	d.wantCheck(t, "postfix.cyrus", finding.Fail, "none")
	d.wantCheck(t, "postfix.unused.smtp_reply_fitler", finding.Warn)
}

func TestDoctorServices(t *testing.T) {
	lab := newLab(t, configtest.SmallConfig)
	absolute := strings.NewReplacer("unix:sendas/", "unix:"+lab.dir+"/queue/sendas/")
	open := strings.Replace(absolute.Replace(byHand(t)), "sendas     unix  -       -       y       -       -       smtp", "sendas unix - - n - - smtp -v", 1)
	d := lab.examine(t, absolute.Replace(postfixtest.MainCF(t)), open)
	d.wantCheck(t, "postfix.verbose.sendas", finding.Fail, "passwords", "sendas/unix")
	d.wantCheck(t, "postfix.smtpd_milters", finding.OK) // it is the same socket, but
	d.wantCheck(t, "postfix.chroot.smtp.smtpd_milters", finding.Fail, "'smtpd_milters = unix:sendas/milter'")
	d.wantCheck(t, "postfix.chroot.cleanup.non_smtpd_milters", finding.Fail, "relative to the queue directory")
	if slices.ContainsFunc(d.Checks, func(c finding.Check) bool { return c.ID == "postfix.chroot.sendas.smtp_reply_filter" }) {
		t.Error("sendas is not chrooted, but its sockets are said to be out of sight")
	}
	d = lab.examine(t, postfixtest.MainCF(t), absolute.Replace(byHand(t))+"smtp-amavis unix - - y - 2 smtp -v\n")
	d.wantCheck(t, "postfix.chroot.sendas.smtp_reply_filter", finding.Fail, "-P 'sendas/unix/smtp_reply_filter=socketmap:unix:sendas/credentials:reply'")
	d.wantCheck(t, "postfix.verbose", finding.OK) // the feed of a filter knows no token

	// A port for mail that comes back from a filter has other milters, on purpose.
	d = lab.examine(t, postfixtest.MainCF(t), byHand(t)+"127.0.0.1:10025 inet n - y - - smtpd -o smtpd_milters= -o debug_peer_list=x\n")
	d.wantCheck(t, "postfix.127.0.0.1:10025.smtpd_milters", finding.Warn, "-P '127.0.0.1:10025/inet/smtpd_milters=unix:sendas/milter'")
	d.wantCheck(t, "postfix.smtpd_milters", finding.OK)
}

// What -o of one way says counts as main.cf does.
func TestDoctorTLSRequired(t *testing.T) {
	config := strings.Replace(configtest.SmallConfig, "from: scan@contoso.com}", "from: scan@contoso.com, route: site}", 1) + configtest.RoutesConfig
	lab := newLab(t, config)
	for _, tc := range []struct {
		main, own, site string // tls_required_enable; "" is not set
		status, siteIs  finding.Status
	}{
		{"no", "", "", finding.OK, ""},
		{"yes", "", "", finding.Fail, ""},
		{"no", "", "yes", finding.OK, finding.Fail},
		{"yes", "no", "no", finding.OK, finding.OK}, // for other mail of the host
		{"yes", "no", "", finding.Fail, ""},
	} {
		p, d := fake(t, lab, map[string]string{"tls_required_enable": tc.main})
		p.services = append(p.services, entry{name: "sendas-site", kind: "unix", program: "smtp", overrides: map[string]string{"tls_required_enable": tc.site}})
		p.findTransports()
		for i := range p.services {
			s := &p.services[i]
			if s.name == "sendas" && tc.own != "" {
				s.overrides["tls_required_enable"] = tc.own
			}
			if s.overrides["tls_required_enable"] == "" {
				delete(s.overrides, "tls_required_enable")
			}
		}
		p.checkSettings(d.Section("postfix", "Postfix"))
		findingtest.WantWhole(t, &d.Report)
		d.wantCheck(t, "postfix.tls_required_enable", tc.status)
		if tc.siteIs != "" {
			d.wantCheck(t, "postfix.sendas-site.tls_required_enable", tc.siteIs)
		}
	}
}

func TestDoctorRoutes(t *testing.T) {
	config := configtest.SmallConfig + `routes:
  - {name: site, type: connector, endpoint: contoso-com.mail.protection.outlook.com}
  - {name: sealed, type: connector, endpoint: contoso-com.mail.protection.outlook.com, certificate_file: /etc/postfix/relay.pem}
  - {name: inside, type: direct, endpoint: contoso-com.mail.protection.outlook.com}
`
	transports := postfixtest.Document(t, "docs/routes.md", "```master.cf\n")
	lab := newLab(t, config)
	lab.examine(t, postfixtest.MainCF(t), byHand(t)+transports).wantGood(t)

	d := lab.examine(t, postfixtest.MainCF(t), byHand(t)+strings.ReplaceAll(strings.ReplaceAll(transports, "sendas-site", "other"), "/etc/postfix/relay.pem", "/etc/postfix/old.pem"))
	d.wantCheck(t, "postfix.route.site", finding.Fail, "sendas-site", "does not stand in master.cf", "docs/routes.md")
	d.wantCheck(t, "postfix.route.sealed", finding.Fail, "old.pem", "smtp_tls_chain_files=/etc/postfix/relay.pem")
	d.wantCheck(t, "postfix.route.inside", finding.OK)

	d = lab.examine(t, formerShape(t), byHand(t)+"sendas-site unix - - y - - smtp\nsendas-sealed unix - - y - - pipe argv=/bin/true user=nobody\n")
	d.wantCheck(t, "postfix.route.site", finding.Fail, "token to another server", "-P 'sendas-site/unix/smtp_sasl_auth_enable=no'")
	d.wantCheck(t, "postfix.route.sealed", finding.Fail, "runs pipe")
}

// A site that has connectors alone needs nothing of submission.
func TestDoctorWithoutMailboxes(t *testing.T) {
	config := strings.NewReplacer("mailboxes:\n", "mailboxes: []\n", "  - {address: scan@contoso.com, credential: relay-app, send_as: [office@contoso.com]}\n", "",
		"  - {address: erp@contoso.com, credential: relay-app}\n", "", "from: scan@contoso.com}", "from: scan@contoso.com, route: site}").Replace(configtest.SmallConfig) + configtest.RoutesConfig
	in, _, _ := strings.Cut(postfixtest.MainCF(t), "# out:")
	lab := newLab(t, config)
	d := lab.examine(t, in, postfixtest.MasterCF+"sendas-site unix - - y - - smtp -o smtp_tls_security_level=secure\n")
	d.wantGood(t)
	d.wantCheck(t, "postfix.shape", finding.Skip)

	// Nothing of Postfix's own keeps the mail of a route from whoever answers.
	d = lab.examine(t, in, postfixtest.MasterCF+"sendas-site unix - - y - - smtp\n")
	d.wantCheck(t, "postfix.route.site.tls", finding.Warn, "stands in between", "-P 'sendas-site/unix/smtp_tls_security_level=secure'")
}

func TestDoctorHeaderTables(t *testing.T) {
	dir := t.TempDir()
	harmless := configtest.WriteFile(t, filepath.Join(dir, "harmless"), "# /^From:/ REPLACE x\n/^Received:/ IGNORE\n/^From:.*spam/ REJECT\n", 0o644)
	changing := configtest.WriteFile(t, filepath.Join(dir, "changing"), "/^Subject:/ WARN\n/^from:(.*)/ replace From: x@contoso.com\n", 0o644)
	filtering := configtest.WriteFile(t, filepath.Join(dir, "filtering"), "# /x/ FILTER x:\n/^Subject:/ WARN\n/^X-Spam:/ FILTER slow:[192.0.2.1]\n", 0o644)
	lab := newLab(t, configtest.SmallConfig)
	for _, tc := range []struct {
		set    string
		status finding.Status
		words  string
	}{
		{"header_checks = regexp:" + harmless, finding.OK, "leaves From"},
		{"header_checks = pcre:" + changing, finding.Warn, "line 2"},
		{"smtp_header_checks = regexp:" + changing, finding.Fail, "line 2"},
		{"milter_header_checks = regexp:" + changing, finding.Fail, "refuses the message"},
		{"header_checks = regexp:" + filtering, finding.Warn, "line 3"},
		{"header_checks = hash:/etc/postfix/x", finding.Warn, "cannot be read"},
		{"header_checks = regexp:/nowhere", finding.Warn, "cannot be read"},
	} {
		name, value, _ := strings.Cut(tc.set, " = ")
		p, d := fake(t, lab, map[string]string{name: value})
		p.checkHeaderTables(d.Section("postfix", "Postfix"))
		findingtest.WantWhole(t, &d.Report)
		d.wantCheck(t, "postfix.headers."+name+".1", tc.status, tc.words)
	}
}

func TestDoctorFolder(t *testing.T) {
	lab := newLab(t, configtest.SmallConfig)
	folder := filepath.Join(lab.dir, "queue", "sendas")
	nobody, err := user.Lookup("nobody")
	if err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		owner  string
		mode   os.FileMode
		status finding.Status
		words  string
	}{
		{nobody.Username, 0o755, finding.OK, "can enter"},
		{nobody.Username, 0o700, finding.Fail, "chmod 0755 " + folder},
		{nobody.Username, 0o744, finding.Fail, "0744"},
		{"no-such-user", 0o755, finding.Fail, "mail_owner"},
	} {
		if err := os.Chmod(folder, tc.mode); err != nil {
			t.Fatal(err)
		}
		p, d := fake(t, lab, map[string]string{"mail_owner": tc.owner})
		p.checkFolder(d.Section("postfix", "Postfix"))
		findingtest.WantWhole(t, &d.Report)
		d.wantCheck(t, "postfix.folder", tc.status, tc.words)
	}
	if err := os.RemoveAll(folder); err != nil {
		t.Fatal(err)
	}
	p, d := fake(t, lab, nil)
	p.checkFolder(d.Section("postfix", "Postfix"))
	d.wantCheck(t, "postfix.folder", finding.Fail, "mkdir -p "+folder)
}

// What stands between a client and the milter, and where mail to the tenant's own domains ends; the
// command that mends it does.
func TestDoctorEntrance(t *testing.T) {
	dests := configtest.WriteFile(t, filepath.Join(t.TempDir(), "dests"), "# here\nlocalhost\nContoso.com\n", 0o644)
	table := func(text string) string {
		return configtest.WriteFile(t, filepath.Join(t.TempDir(), "table"), text, 0o644)
	}
	lab := newLab(t, configtest.SmallConfig)
	for _, tc := range []struct {
		main, master string
		id           string
		status       finding.Status
		words        string
		typed        bool // the command mends it
	}{
		{"inet_interfaces = loopback-only\n", "", "inet_interfaces", finding.Warn, "inet_interfaces = all' && postfix", true},
		{"inet_interfaces = 127.0.0.1, [::1]\n", "", "inet_interfaces", finding.Warn, "10.2.0.0/16", true},
		{"inet_interfaces = loopback-only\n", "10.2.0.1:25 inet n - y - - smtpd\n", "inet_interfaces", finding.OK, "", false},
		{"mynetworks = 127.0.0.0/8\n", "", "mynetworks", finding.Warn, "mynetworks = 127.0.0.0/8 10.2.0.0/16", true},
		{"mynetworks = 127.0.0.0/8, 10.2.0.0/17\n", "", "mynetworks", finding.Warn, "Relay access denied", true},
		{"mynetworks = 127.0.0.0/8, cidr:/etc/postfix/lan\n", "", "mynetworks", finding.Skip, "", false},
		{"smtpd_helo_restrictions = reject_invalid_helo_hostname, reject_non_fqdn_helo_hostname, permit_mynetworks\n", "", "smtpd_helo_restrictions.early", finding.Warn,
			"'smtpd_helo_restrictions = permit_mynetworks, reject_invalid_helo_hostname, reject_non_fqdn_helo_hostname'", true},
		{"smtpd_sender_restrictions = reject_non_fqdn_sender\n", "", "smtpd_sender_restrictions.early", finding.Warn, "permit_mynetworks, reject_non_fqdn_sender", true},
		{"smtpd_recipient_restrictions = reject_unknown_sender_domain, check_policy_service { unix:sendas/policy, default_action=DEFER_IF_PERMIT }, permit_mynetworks, reject\n", "", "smtpd_recipient_restrictions.early", finding.Warn,
			"= check_policy_service { unix:sendas/policy, default_action=DEFER_IF_PERMIT }, permit_mynetworks, reject_unknown_sender_domain, reject'", true},
		{"", "10.2.0.1:25 inet n - y - - smtpd -o smtpd_client_restrictions=reject_unknown_client_hostname\n", "10.2.0.1:25.smtpd_client_restrictions.early", finding.Warn,
			"-P '10.2.0.1:25/inet/smtpd_client_restrictions=permit_mynetworks,reject_unknown_client_hostname'", true},
		{"strict_rfc821_envelopes = yes\n", "", "strict_rfc821_envelopes", finding.Warn, "mend what they write", true},
		{"mydestination = $myhostname, Contoso.com, localhost\n", "", "here.contoso.com", finding.Fail, "'mydestination = $myhostname, localhost'", true},
		{"mydomain = contoso.com\nmydestination = $myhostname, $mydomain, localhost\n", "", "here.contoso.com", finding.Fail, "'mydestination = $myhostname, localhost'", true},
		{"mydestination = " + dests + "\n", "", "here.contoso.com", finding.Fail, "take contoso.com out of " + dests, false},
		{"mydestination =\nvirtual_mailbox_domains = inline:{ {contoso.com = x} }\n", "", "here.contoso.com", finding.Fail, "out of inline:", false},
		{"virtual_alias_maps = inline:{ {info@contoso.com = office@contoso.com} }\n", "", "here", finding.OK, "", false},
		{"relay_domains = contoso.com\ntransport_maps = inline:{ {contoso.com = smtp:[192.0.2.40]} }\n", "", "here", finding.OK, "", false},
		{"content_filter = feed:[127.0.0.1]:10024\n", "10025 inet n - y - - smtpd -o content_filter= -o receive_override_options=no_milters -o smtpd_recipient_restrictions=permit_mynetworks,reject -o mynetworks=127.0.0.0/8,[::1]/128\n", "back.10025", finding.OK, "", false},
		{"content_filter = feed:[127.0.0.1]:10024\n", "[::1]:10025 inet n - y - - smtpd -o content_filter=\n", "back.[::1]:10025", finding.Warn, "-P '[::1]:10025/inet/smtpd_milters='", true},
		{"content_filter = feed:[127.0.0.1]:10024\n", "10025 inet n - y - - smtpd -o content_filter= -o receive_override_options=no_milters\n", "10025.receive_override_options", finding.Fail, "none passes sendas", true}, // open to all
		// Tables of others, as Postfix reads them.
		{"transport_maps = texthash:" + table("fabrikam.com smtp:[10.0.0.1]\ninner.lan :[10.0.0.1]\n") + "\n", "", "transport_maps.bare", finding.Fail, "smtp:[host] for :[host]", false},
		{"transport_maps = pcre:" + table("/\\.lan$/ :[10.0.0.1]:2525\n") + "\n", "", "transport_maps.bare", finding.Fail, "", false},
		{"transport_maps = texthash:" + table("# old.lan :[10.0.0.1]\nfabrikam.com smtp:[10.0.0.1]\n") + "\n", "", "transport_maps.bare", finding.OK, "", false},
		{"sender_dependent_relayhost_maps = proxy:texthash:" + table("@contoso.com smtp.office365.com:587\n") + "\n", "", "sender_dependent_relayhost_maps", finding.OK, "", false},
		{"sender_dependent_relayhost_maps = proxy:texthash:" + table("@contoso.com [mail.fabrikam.com]\n") + "\n", "", "sender_dependent_relayhost_maps", finding.Fail, "", false},
		{"sender_canonical_maps = texthash:" + table("office@contoso.com relay@contoso.com\n") + "\n", "", "sender_canonical_maps", finding.Fail, "bounces", false},
		{"sender_canonical_maps = texthash:" + table("root@relay.lan scan@contoso.com\n") + "\n", "", "sender_canonical_maps", finding.OK, "", false},
		{"sender_canonical_maps = regexp:" + table("/@contoso.com$/ relay@contoso.com\n") + "\n", "", "sender_canonical_maps", finding.Fail, "", false},
		{"sender_canonical_maps = texthash:" + table("erp relay@contoso.com\n") + "\nmyorigin = contoso.com\n", "", "sender_canonical_maps", finding.Fail, "", false},
		{"sender_canonical_maps = texthash:" + table("erp relay@contoso.com\n") + "\n", "", "sender_canonical_maps", finding.OK, "", false},
		{"transport_maps = texthash:" + table("partner.example smtp:[192.0.2.40]\n* smtp:[mail.fabrikam.com]\n") + "\n", "", "transport_maps.all", finding.Fail, "leads all mail elsewhere", false},
		{"transport_maps = regexp:" + table("/^/ relay:[mail.fabrikam.com]\n") + "\n", "", "transport_maps.all", finding.Fail, "", false},
		{"transport_maps = inline:{ {* = :} }\n", "", "transport_maps.all", finding.OK, "", false},
		{"transport_maps = texthash:" + table("* sendas:[smtp.office365.com]:587\n") + "\n", "", "transport_maps.all", finding.OK, "", false},
		{"smtpd_milter_maps = cidr:" + table("10.2.0.0/24 DISABLE\n") + "\n", "", "smtpd_milter_maps", finding.Fail, "", false},
		{"smtpd_milter_maps = cidr:" + table("127.0.0.0/8 DISABLE\n") + "\n", "", "smtpd_milter_maps", finding.OK, "", false},
		{"virtual_alias_domains = texthash:" + table("contoso.com anything\n") + "\n", "", "here.contoso.com", finding.Fail, "take contoso.com out of texthash:", false},
		{"", "192.0.2.1:25 inet n - y - - smtpd -o smtpd_proxy_filter=127.0.0.1:10024\n", "192.0.2.1:25.smtpd_proxy_filter", finding.Warn, "'192.0.2.1:25/inet/content_filter=smtp:[127.0.0.1]:10024'", false},
		{"smtpd_proxy_filter = inet:10024\n", "", "smtp.smtpd_proxy_filter", finding.Fail, "'smtp/inet/smtpd_proxy_filter=' 'smtp/inet/content_filter=smtp:[127.0.0.1]:10024'", false},
		{"smtpd_proxy_filter = [::1]:10024\n", "127.0.0.1:10025 inet n - y - - smtpd -o smtpd_proxy_filter= -o smtpd_authorized_xclient_hosts=127.0.0.0/8\n", "smtp.smtpd_proxy_filter", finding.OK, "", false},
		{"", "192.0.2.1:25 inet n - y - - smtpd -o milter_protocol=3\n", "192.0.2.1:25.milter_protocol", finding.Fail, "sendas postfix enable", false},
		{"", "192.0.2.1:25 inet n - y - - smtpd -o content_filter=feed:[127.0.0.1]:10024\n", "192.0.2.1:25.content_filter", finding.Warn, "sees it twice", false},
	} {
		d := lab.examine(t, postfixtest.MainCF(t)+tc.main, byHand(t)+tc.master)
		d.wantCheck(t, "postfix."+tc.id, tc.status, tc.words)
		if !tc.typed || t.Failed() {
			continue
		}
		typeCure(t, d, "postfix."+tc.id)
		lab.age(t)
		for _, c := range lab.look(t).Checks {
			if strings.HasPrefix(c.ID, "postfix."+tc.id) && c.Status != finding.OK {
				t.Errorf("%s%s: after %s it is still %s: %s", tc.main, tc.master, c.Do, c.Status, c.Found)
			}
		}
	}
}

func TestVersionNumbers(t *testing.T) {
	for in, want := range map[string][]int{"3.7.11": {3, 7, 11}, "3.12-20260801": {3, 12, 20260801}, "3.8-RC1": {3, 8}, "": nil} {
		if got := versionNumbers(in); !slices.Equal(got, want) {
			t.Errorf("versionNumbers(%q) = %v, want %v", in, got, want)
		}
	}
}

func TestPostfixServiceLines(t *testing.T) {
	p := &Setup{}
	p.readServices("smtp unix - - y - - smtp -v -o a=b\nshort line\n# smtp unix - - y - - smtp\n")
	p.readOverrides("smtp/unix/a = b = c\nsmtp/unix\nother/unix/a = b\n")
	if len(p.services) != 1 || !p.services[0].verbose() || p.services[0].Key() != "smtp/unix" || p.services[0].overrides["a"] != "b = c" {
		t.Errorf("services %+v", p.services)
	}
	for args, want := range map[string]bool{"-v": true, "-vv": true, "-o v": false, "": false, "-o -v=x": false} {
		s := entry{args: strings.Fields(args)}
		if s.verbose() != want {
			t.Errorf("%q is verbose: %v, want %v", args, !want, want)
		}
	}
}

func TestPostfixChroot(t *testing.T) {
	for _, tc := range []struct {
		column, level string
		want          bool
	}{{"y", "3.6", true}, {"n", "", false}, {"-", "3.6", false}, {"-", "0", true}, {"-", "", true}} {
		p := &Setup{Main: map[string]string{"compatibility_level": tc.level}}
		if got := p.chrooted(&entry{chroot: tc.column}); got != tc.want {
			t.Errorf("chroot %q at level %q: %v, want %v", tc.column, tc.level, got, tc.want)
		}
	}
}

func TestSameSocket(t *testing.T) {
	p := &Setup{Main: map[string]string{"queue_directory": "/var/spool/postfix"}}
	for _, tc := range []struct {
		ref    string
		listen serve.Address
		want   bool
	}{
		{"unix:sendas/milter", "unix:/var/spool/postfix/sendas/milter", true},
		{"local:sendas/milter", "unix:/var/spool/postfix/sendas/milter", true},
		{"unix:/var/spool/postfix/sendas/../sendas/milter", "unix:/var/spool/postfix/sendas/milter", true},
		{"unix:milter", "unix:/var/spool/postfix/sendas/milter", false},
		{"inet:127.0.0.1:8891", "inet:127.0.0.1:8891", true},
		{"inet:127.0.0.1:8891", "unix:/var/spool/postfix/sendas/milter", false},
		{"unix:sendas/milter", "inet:127.0.0.1:8891", false},
	} {
		if got := p.sameSocket(tc.ref, tc.listen); got != tc.want {
			t.Errorf("sameSocket(%q, %q) = %v, want %v", tc.ref, tc.listen, got, tc.want)
		}
	}
}

// A fileInfo is what stat(2) says of a file.
type fileInfo struct {
	fs.FileInfo
	mode     fs.FileMode
	uid, gid uint32
}

func (f fileInfo) Mode() fs.FileMode { return f.mode }
func (f fileInfo) Sys() any          { return &syscall.Stat_t{Uid: f.uid, Gid: f.gid} }

// The owner's bits count for the owner, the group's for the group, the others' for nobody else.
func TestPermits(t *testing.T) {
	for _, tc := range []struct {
		mode        fs.FileMode
		uid         uint32
		gids        []uint32
		read, enter bool
	}{
		{0o755, 7, nil, true, true}, {0o640, 7, nil, false, false}, {0o640, 7, []uint32{3, 20}, true, false}, {0o610, 7, []uint32{20}, false, true},
		{0o604, 7, []uint32{20}, false, false}, {0o047, 10, []uint32{20}, false, false}, {0o400, 10, nil, true, false}, {0o000, 0, nil, true, true},
	} {
		info := fileInfo{mode: tc.mode, uid: 10, gid: 20}
		if read, enter := service.MayRead(info, tc.uid, tc.gids), service.MayEnter(info, tc.uid, tc.gids); read != tc.read || enter != tc.enter {
			t.Errorf("mode %04o of 10:20 for %d:%v: read %v, enter %v, want %v, %v", tc.mode, tc.uid, tc.gids, read, enter, tc.read, tc.enter)
		}
	}
}

func TestPostfixAdvices(t *testing.T) {
	all := make(map[string]finding.Advice)
	for key, a := range Advices {
		all[key] = a
	}
	for i, r := range settings {
		all[fmt.Sprintf("setting %d %s", i, r.name)] = finding.Advice{Means: r.means, Do: "do " + r.do}
	}
	findingtest.WantVoice(t, all)
}
