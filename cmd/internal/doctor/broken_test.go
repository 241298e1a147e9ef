package doctor

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/sendas/sendas/cmd/internal/doctor/plugin"
	"github.com/sendas/sendas/cmd/internal/finding"
	"github.com/sendas/sendas/contrib/exosim/directory"
)

// A breakage is one thing that is wrong on a site where all else is right.
type breakage struct {
	name  string
	spoil func(t *testing.T, r *realSite)
	id    string // of the finding
	words []string
	// cure is what of the printed cure is typed, as it is printed; "" is all of it.
	cure string
	// by types it where that is not a shell's business: an editor, Exchange Online PowerShell.
	by func(t *testing.T, r *realSite)
	// also are findings that are there too, since there is more than one thing to do about it.
	also []string
	q    Options
	// after brings back what the test needs besides.
	after func(t *testing.T, r *realSite)
}

// main spoils a setting of main.cf.
func inMain(settings ...string) func(*testing.T, *realSite) {
	return func(t *testing.T, r *realSite) { r.run(t, "postconf", append([]string{"-e"}, settings...)...) }
}

// inTransport spoils a setting of the transport.
func inTransport(setting string) func(*testing.T, *realSite) {
	return func(t *testing.T, r *realSite) { r.run(t, "postconf", "-P", "sendas/unix/"+setting) }
}

// setting is a breakage of main.cf, own one of the transport; the cure is typed as a whole.
func setting(value string, words ...string) breakage {
	name, _, _ := strings.Cut(value, "=")
	return breakage{name: value, spoil: inMain(value), id: "postfix." + name, words: words}
}

func own(value string, words ...string) breakage {
	name, _, _ := strings.Cut(value, "=")
	return breakage{name: "sendas " + value, spoil: inTransport(value), id: "postfix.sendas." + name, words: words}
}

// typing is what somebody types who follows a cure in words.
func typing(name string, args ...string) func(*testing.T, *realSite) {
	return func(t *testing.T, r *realSite) { r.run(t, name, args...) }
}

func chmod(mode os.FileMode, name func(*realSite) string) func(*testing.T, *realSite) {
	return func(t *testing.T, r *realSite) {
		if err := os.Chmod(name(r), mode); err != nil {
			t.Fatal(err)
		}
	}
}

func yamlOf(r *realSite) string   { return r.Config }
func secretOf(r *realSite) string { return filepath.Join(r.Dir, "relay-app.secret") }
func socketOf(name string) func(*realSite) string {
	return func(r *realSite) string { return filepath.Join(r.Postfix.SocketDir(), name) }
}

var breakages = []breakage{
	setting("smtpd_milters=", "under the name that the device wrote"),
	setting("non_smtpd_milters="),
	setting("internal_mail_filter_classes="),
	setting("milter_default_action=accept"),
	setting("milter_protocol=2"),
	{name: "smtpd_milter_maps", spoil: inMain("smtpd_milter_maps=inline:{ {10.2.0.9 = DISABLE} }"), id: "postfix.smtpd_milter_maps", cure: "take the clients of sendas.yaml out of that table", by: typing("postconf", "-X", "smtpd_milter_maps")},
	setting("local_header_rewrite_clients=permit_mynetworks"),
	setting("remote_header_rewrite_domain=relay.invalid"),
	setting("resolve_numeric_domain=no"),
	{name: "transport_maps", spoil: inMain("transport_maps=inline:{ {fabrikam.com = :[mail.example.net]} }"), id: "postfix.transport_maps", cure: "write the transport before the host, smtp:[host] for :[host]", by: typing("postconf", "-X", "transport_maps")},
	{name: "canonical_maps", spoil: inMain("canonical_maps=inline:{ {erp@contoso.com = x@contoso.com} }"), id: "postfix.canonical_maps", cure: "postconf"},
	{name: "sender_canonical_maps", spoil: inMain("sender_canonical_maps=inline:{ {@contoso.com = x@contoso.com} }"), id: "postfix.sender_canonical_maps", cure: "postconf"},
	{name: "content_filter", spoil: inMain("content_filter=smtp:[127.0.0.1]:10024"), id: "postfix.content_filter", cure: "give the smtpd that takes mail back from the filter", by: typing("postconf", "-X", "content_filter")},
	setting("receive_override_options=no_milters"),
	{name: "sender_dependent_relayhost_maps", spoil: inMain("sender_dependent_relayhost_maps=inline:{ {@contoso.com = [mail.example.net]} }"), id: "postfix.sender_dependent_relayhost_maps", cure: "postconf"},
	{name: "default_transport", spoil: func(t *testing.T, r *realSite) {
		inMain("default_transport=smtp:[smtp.office365.com]:"+r.port())(t, r)
	}, id: "postfix.default_transport", cure: "sendas postfix enable --postfix-config"},
	setting("maximal_queue_lifetime=10m"),
	setting("always_add_missing_headers=yes"),
	setting("smtputf8_autodetect_classes=all"),
	setting("notify_classes=protocol, resource, software"),
	setting("debug_peer_list=smtp.office365.com"),
	setting("message_size_limit=500000000"),
	setting("sendas_destination_concurrency_limit=20"),
	setting("sendas_destination_concurrency_failed_cohort_limit=1"),
	setting("sendas_destination_concurrency_negative_feedback=1"),
	setting("sendas_destination_recipient_limit=1000"),
	setting("sendas_destination_rate_delay=5s"),
	setting("sendas_transport_rate_delay=5s"),
	{name: "message_size_limit low", spoil: inMain("message_size_limit=10240000"), id: "postfix.message_size_limit.low", words: []string{"35 MB"}},
	{name: "mydestination", spoil: inMain("mydestination=contoso.com"), id: "postfix.here.contoso.com", words: []string{"never reaches Microsoft"}},
	{name: "virtual_alias_domains", spoil: inMain("virtual_alias_domains=contoso.com"), id: "postfix.here.contoso.com"},
	{name: "mynetworks", spoil: inMain("mynetworks=127.0.0.0/8 10.1.0.0/16"), id: "postfix.mynetworks", words: []string{"10.2.0.0/16"}},
	{name: "helo", spoil: inMain("smtpd_helo_restrictions=reject_non_fqdn_helo_hostname, permit_mynetworks"), id: "postfix.smtpd_helo_restrictions.early"},
	{name: "senders", spoil: inMain("smtpd_sender_restrictions=reject_unknown_sender_domain"), id: "postfix.smtpd_sender_restrictions.early"},
	{name: "strict envelopes", spoil: inMain("strict_rfc821_envelopes=yes"), id: "postfix.strict_rfc821_envelopes"},
	{name: "deferred transport", spoil: inMain("defer_transports=sendas"), id: "postfix.defer_transports", words: []string{"postqueue"}},
	{name: "disabled service", spoil: inMain("master_service_disable=sendas.unix"), id: "postfix.master_service_disable"},

	own("smtp_tls_security_level=may"),
	own("smtp_tls_wrappermode=yes"),
	own("smtp_tls_policy_maps=inline:{{smtp.office365.com=none}}"),
	own("smtp_tls_per_site=inline:{{smtp.office365.com=NONE}}"),
	own("smtp_tls_secure_cert_match=hostname"),
	own("smtp_sasl_auth_enable=no"),
	own("smtp_sasl_mechanism_filter=plain"),
	own("smtp_sasl_security_options=noanonymous"),
	own("smtp_sasl_tls_security_options=noanonymous"),
	own("smtp_sasl_tls_verified_security_options=noplaintext"),
	own("smtp_sender_dependent_authentication=no"),
	own("smtp_reply_filter=", "does not learn what became"),
	own("smtp_fallback_relay=[mail.example.net]"),
	own("smtp_delivery_status_filter=inline:{{5.7.1=4.7.1}}"),
	own("smtp_discard_ehlo_keywords=starttls"),
	own("smtp_sasl_auth_soft_bounce=no"),
	own("smtp_tls_connection_reuse=yes"),
	own("smtp_connection_cache_on_demand=yes"),
	own("smtp_connection_cache_destinations=smtp.office365.com"),
	own("smtp_generic_maps=inline:{{erp@contoso.com=x@contoso.com}}"),
	own("smtp_tls_loglevel=4"),

	{name: "main.cf names what Postfix does not know", spoil: inMain("smtpd_milter=unix:sendas/milter"), id: "postfix.unused.smtpd_milter", by: func(t *testing.T, r *realSite) { r.run(t, "postconf", "-X", "smtpd_milter") }, cure: "correct its name in main.cf"},
	{name: "smtp -v", spoil: func(t *testing.T, r *realSite) { r.program(t, "smtp -v") }, id: "postfix.verbose.sendas", cure: "take -v out of the entry sendas/unix of master.cf",
		by: func(t *testing.T, r *realSite) { r.program(t, "smtp") }},
	{name: "no transport", spoil: func(t *testing.T, r *realSite) { r.run(t, "postconf", "-MX", "sendas/unix") }, id: "postfix.shape", cure: "sendas postfix enable --postfix-config"},
	{name: "a table was never made", spoil: func(t *testing.T, r *realSite) {
		r.write(t, "relocated", "old@contoso.net new@contoso.net\n")
		inMain("relocated_maps=hash:"+r.etc("relocated"))(t, r)
	}, id: "postfix.table./", words: []string{"was never made", "451 4.3.0"}},
	{name: "a table is older than its file", spoil: func(t *testing.T, r *realSite) {
		r.write(t, "relocated", "old@contoso.net newer@contoso.net\n")
		inMain("relocated_maps=hash:"+r.etc("relocated"))(t, r)
		r.run(t, "postmap", "hash:"+r.etc("relocated"))
		past := time.Now().Add(-time.Hour)
		os.Chtimes(r.etc("relocated.db"), past, past)
	}, id: "postfix.table./", words: []string{"older than its file"}},
	{name: "no aliases", spoil: func(t *testing.T, r *realSite) {
		r.write(t, "aliases", "root: you\n")
		inMain("alias_maps=hash:"+r.etc("aliases"))(t, r)
	}, id: "postfix.table./", words: []string{"root, postmaster"}},
	{name: "no aliases, and no file", spoil: func(t *testing.T, r *realSite) { inMain("alias_maps=hash:"+r.etc("aliases2"))(t, r) }, id: "postfix.table./", words: []string{"touch"}},

	{name: "Postfix is stopped", spoil: func(t *testing.T, r *realSite) { r.Postfix.Stop() }, id: "eyes.master", cure: "postfix", after: func(t *testing.T, r *realSite) {
		r.run(t, "postfix", "stop") // the lab wants to have started it itself
		if err := r.Postfix.Restart(t.Context()); err != nil {
			t.Error(err)
		}
	}},
	{name: "the milter is stopped", spoil: func(t *testing.T, r *realSite) { r.stop(t, "milter") }, id: "sockets.milter", cure: "systemctl start sendas-milter"},
	{name: "the token service is stopped", spoil: func(t *testing.T, r *realSite) { r.stop(t, "token") }, id: "sockets.credentials", cure: "systemctl start sendas-token"},
	{name: "the folder of the sockets is shut", spoil: func(t *testing.T, r *realSite) { os.Chmod(r.Postfix.SocketDir(), 0o700) }, id: "postfix.folder", words: []string{"0700"}},
	{name: "the milter's socket is shut", spoil: chmod(0o600, socketOf("milter")), id: "eyes.socket.milter", cure: "chmod 0666"},
	{name: "the policy service's socket is shut", spoil: chmod(0o600, socketOf("policy")), id: "eyes.socket.policy", cure: "chmod 0666"},
	{name: "the token service's socket is shut", spoil: chmod(0o600, socketOf("credentials")), id: "eyes.socket.credentials", cure: "chmod 0666"},

	{name: "sendas.yaml cannot be read", spoil: chmod(0o600, yamlOf), id: "eyes.reads.sendas", cure: "chgrp"},
	{name: "anybody may write sendas.yaml", spoil: chmod(0o666, yamlOf), id: "config.problem.1", words: []string{"chmod go-w"}, cure: `type "sendas check"`, by: chmod(0o644, yamlOf)},
	{name: "anybody may read the secret", spoil: chmod(0o644, secretOf), id: "credential.relay-app.secret", cure: "chmod"},
	{name: "sendas.yaml has a misspelt key", spoil: func(t *testing.T, r *realSite) { r.yaml(t, "mailboxes:", "mailboxs:") }, id: "config.problem.1", cure: `type "sendas check"`, by: func(t *testing.T, r *realSite) { r.yaml(t, "mailboxs:", "mailboxes:") }},
	{name: "sendas.yaml is not in force", spoil: func(t *testing.T, r *realSite) {
		now := time.Now()
		os.Chtimes(r.Config, now, now)
	}, id: "eyes.config.", cure: "systemctl reload"},
	{name: "the secret is missing", spoil: func(t *testing.T, r *realSite) { os.Rename(secretOf(r), secretOf(r)+".old") }, id: "credential.relay-app.secret", cure: "create it", by: func(t *testing.T, r *realSite) { os.Rename(secretOf(r)+".old", secretOf(r)) }},
	{name: "the secret is empty", spoil: func(t *testing.T, r *realSite) { r.secret(t, "") }, id: "credential.relay-app.secret", cure: "write the Value of the client secret into it", by: goodSecret},
	{name: "the secret is another", spoil: func(t *testing.T, r *realSite) { r.secret(t, "another~secret\n") }, id: "credential.relay-app.token", words: []string{"AADSTS7000215"}, cure: "write", by: goodSecret},
	{name: "the secret is in quotes", spoil: func(t *testing.T, r *realSite) { r.secret(t, `"`+r.Secret+"\"\n") }, id: "credential.relay-app.secret", cure: "take them away", by: goodSecret},
	{name: "the secret is its id", spoil: func(t *testing.T, r *realSite) { r.secret(t, "5f2c0d3e-0000-4000-8000-000000000009\n") }, id: "credential.relay-app.secret", cure: "write its Value into it", by: goodSecret},

	{name: "no plugin", spoil: func(t *testing.T, r *realSite) {
		os.Rename(filepath.Join(r.bin, plugin.Name), filepath.Join(r.bin, "away"))
	}, id: "sasl.present", cure: "install the package of sendas", by: func(t *testing.T, r *realSite) {
		os.Rename(filepath.Join(r.bin, "away"), filepath.Join(r.bin, plugin.Name))
	}},
	{name: "the chroot has other hosts", spoil: func(t *testing.T, r *realSite) {
		r.append(t, filepath.Join(r.Postfix.QueueDir(), "etc/hosts"), "192.0.2.1 smtp.office365.com\n")
	}, id: "eyes.jail.hosts"},

	{name: "SMTP AUTH is off for a mailbox", spoil: func(t *testing.T, r *realSite) {
		r.Exosim.SetMailbox("scan@contoso.com", func(m *directory.Mailbox) { m.SMTPAuthDisabled = true })
	}, id: "mailbox.scan@contoso.com.auth", words: []string{"5.7.139"}, cure: "Set-CASMailbox scan@contoso.com -SmtpClientAuthenticationDisabled $false", by: func(t *testing.T, r *realSite) {
		r.Exosim.SetMailbox("scan@contoso.com", func(m *directory.Mailbox) { m.SMTPAuthDisabled = false })
	}},
	{name: "SMTP AUTH is off for all", spoil: func(t *testing.T, r *realSite) { r.Exosim.SetSMTPAuthDisabled(true) }, id: "mailbox.erp@contoso.com.auth", words: []string{"; the same for 2 more"},
		cure: "-SmtpClientAuthenticationDisabled $false", by: func(t *testing.T, r *realSite) { r.Exosim.SetSMTPAuthDisabled(false) }},
	{name: "no service principal", spoil: func(t *testing.T, r *realSite) { r.app(func(a *directory.App) { a.NotInExchange = true }) }, id: "mailbox.erp@contoso.com.auth",
		cure: "New-ServicePrincipal -AppId 5f2c0d3e-0000-4000-8000-000000000001 -ObjectId 0b1ec700-0000-4000-8000-000000000002", by: func(t *testing.T, r *realSite) { r.app(func(a *directory.App) { a.NotInExchange = false }) }},
	{name: "a mailbox out of scope", spoil: func(t *testing.T, r *realSite) {
		r.app(func(a *directory.App) { a.Mailboxes = []string{"erp@contoso.com", "scan@contoso.com"} })
	}, id: "mailbox.monitor@contoso.com.auth", cure: "put monitor@contoso.com into the scope", by: func(t *testing.T, r *realSite) {
		r.app(func(a *directory.App) { a.Mailboxes = append(a.Mailboxes, "monitor@contoso.com") })
	}},
}

const simClient = "5f2c0d3e-0000-4000-8000-000000000001"

func (r *realSite) app(change func(*directory.App)) { r.Exosim.SetApp(simClient, change) }

// etc names a file beside main.cf.
func (r *realSite) etc(name string) string { return filepath.Join(r.Postfix.ConfigDir(), name) }

func (r *realSite) write(t *testing.T, name, text string) {
	t.Helper()
	if err := os.WriteFile(r.etc(name), []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

func (r *realSite) append(t *testing.T, file, text string) {
	t.Helper()
	f, err := os.OpenFile(file, os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteString(text); err != nil {
		t.Fatal(err)
	}
}

// transportEntry is the first line of our transport in master.cf.
var transportEntry = regexp.MustCompile(`(?m)^(sendas\s+unix(?:\s+\S+){5}\s+)(.*)$`)

// program writes what our transport runs.
func (r *realSite) program(t *testing.T, command string) {
	t.Helper()
	b, err := os.ReadFile(r.etc("master.cf"))
	if err != nil || !transportEntry.Match(b) {
		t.Fatalf("master.cf has no transport of ours: %v", err)
	}
	r.write(t, "master.cf", transportEntry.ReplaceAllString(string(b), "${1}"+command))
}

// port is that of the submission host here.
func (r *realSite) port() string {
	_, port, _ := net.SplitHostPort(r.Exosim.SubmissionAddr())
	return port
}

// yaml replaces a text in sendas.yaml, whose time stays.
func (r *realSite) yaml(t *testing.T, old, by string) {
	t.Helper()
	info, err := os.Stat(r.Config)
	if err != nil {
		t.Fatal(err)
	}
	replaceIn(t, r.Config, old, by)
	os.Chtimes(r.Config, info.ModTime(), info.ModTime())
}

func replaceIn(t *testing.T, file, old, by string) {
	t.Helper()
	b, err := os.ReadFile(file)
	if err != nil || !strings.Contains(string(b), old) {
		t.Fatalf("%s has no %q: %v", file, old, err)
	}
	if err := os.WriteFile(file, []byte(strings.Replace(string(b), old, by, 1)), 0o644); err != nil {
		t.Fatal(err)
	}
}

// secret writes the client secret as its owner would.
func (r *realSite) secret(t *testing.T, text string) {
	t.Helper()
	if err := os.WriteFile(secretOf(r), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

func goodSecret(t *testing.T, r *realSite) { r.secret(t, r.Secret+"\n") }

func (r *realSite) stop(t *testing.T, name string) {
	t.Helper()
	s := r.Milter
	if name == "token" {
		s = r.Token
	}
	if err := s.Stop(); err != nil {
		t.Fatal(err)
	}
}

// tools makes commands that a shell finds first: systemctl notes what is to be done with a service,
// sendas is the one that was built, with the site's configuration, and chown and chgrp know the
// services' users by those that the lab borrows.
func (r *realSite) tools(t *testing.T) (path, acts string) {
	t.Helper()
	path = t.TempDir()
	acts = filepath.Join(path, "acts")
	for name, text := range map[string]string{
		"systemctl": `echo "$@" >>` + acts,
		"sendas":    `exec ` + filepath.Join(r.bin, "sendas") + ` "$@" --config ` + r.Config + ` --state ` + filepath.Join(r.Dir, "postfix-state.json"),
		// A program of Postfix's waits until main.cf is 2 seconds old: here it is.
		"postfix": `touch -d -1minute ` + r.etc("main.cf") + ` ` + r.etc("master.cf") + `; exec /usr/sbin/postfix "$@"`,
		"chown":   `u=$1; shift; case $u in sendas|sendas:*) u=nobody;; sendas-token*) u=daemon;; esac; exec /bin/chown $u "$@"`,
		"chgrp":   `g=$1; shift; case $g in sendas) g=nogroup;; sendas-token) g=daemon;; esac; exec /bin/chgrp $g "$@"`,
	} {
		if err := os.WriteFile(filepath.Join(path, name), []byte("#!/bin/sh\n"+text+"\n"), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return path, acts
}

// typed types a printed cure in a shell.
func (r *realSite) typed(t *testing.T, tools, acts, line string) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "/bin/sh", "-c", line)
	cmd.Env = []string{"PATH=" + tools + ":/usr/sbin:/usr/bin:/sbin:/bin", "LANG=C"}
	cmd.WaitDelay = time.Second // a daemon may keep the pipe open
	out, err := cmd.CombinedOutput()
	t.Logf("%s\n%s", line, out)
	if err != nil && err != exec.ErrWaitDelay {
		t.Errorf("%s: %v\n%s", line, err, out)
	}
	list, _ := os.ReadFile(acts)
	os.Remove(acts)
	for act := range strings.Lines(string(list)) {
		r.systemctl(t, strings.Fields(act))
	}
}

// systemctl does what systemd would.
func (r *realSite) systemctl(t *testing.T, args []string) {
	t.Helper()
	for _, unit := range args[1:] {
		s := r.Milter
		if unit == "sendas-token" {
			s = r.Token
		}
		var err error
		switch args[0] {
		case "reload":
			_, err = s.Reload(t.Context())
		case "restart", "start":
			if err = s.Stop(); err == nil {
				err = s.Start(context.WithoutCancel(t.Context()))
			}
		default:
			err = fmt.Errorf("no such verb")
		}
		if err != nil {
			t.Errorf("systemctl %v: %v", args, err)
		}
	}
}

// commandIn is the line of a shell that begins with some words, in a cure that is prose besides.
func commandIn(do, begin string) string {
	_, rest, _ := strings.Cut(do, begin)
	for _, end := range []string{`"`, "; its log", ", and look", ", which", "; where", ", or a number", "; then", ", or:", ", since"} {
		rest, _, _ = strings.Cut(rest, end)
	}
	return begin + rest
}

var shellWord = regexp.MustCompile(`^(postconf|postfix|postmap|postalias|postqueue|newaliases|touch|echo|systemctl|sendas|chmod|chown|chgrp|mkdir|cp) `)

// TestBroken: each breakage of a working site is found, named with its cause, and mended by what is
// printed, typed as it is printed; then the site is good again.
func TestBroken(t *testing.T) {
	r := openSite(t, nil, nil)
	tools, acts := r.tools(t)
	r.effort(t)
	began := time.Now()
	restore := r.keep(t)
	for _, b := range breakages {
		t.Run(b.name, func(t *testing.T) {
			defer func() {
				if t.Failed() { // the next one finds a good site all the same
					restore()
				}
			}()
			b.spoil(t, r)
			r.age(t)
			d, out, _ := r.visit(t, b.q)
			c := found(d, b.id)
			if c == nil {
				t.Fatalf("there is no failure or warning %q:\n%s", b.id, out)
			}
			for _, w := range b.words {
				if !strings.Contains(c.What+c.Found+c.Means+c.Do, w) {
					t.Errorf("there is no %q in %+v", w, *c)
				}
			}
			if all := worries(d); len(all) != 1+len(b.also) {
				t.Errorf("one thing is wrong, and %d are told:\n%s", len(all), out)
			}
			line := c.Do
			if b.cure != "" {
				if line = commandIn(c.Do, b.cure); !strings.Contains(c.Do, b.cure) {
					t.Fatalf("the cure %q has no %q", c.Do, b.cure)
				}
			}
			if b.by != nil {
				b.by(t, r)
			} else if !shellWord.MatchString(line) {
				t.Errorf("no shell takes the cure %q", line)
			} else {
				r.typed(t, tools, acts, line)
			}
			r.age(t)
			if d, out, _ := r.visit(t, Options{}); len(worries(d)) > 0 {
				t.Errorf("after the cure %q:\n%s", line, out)
			}
			if b.after != nil {
				b.after(t, r)
			}
		})
	}
	t.Logf("%d breakages in %v", len(breakages), time.Since(began).Round(time.Second))
}

// effort: a site where all is right is looked at with a few commands, one token, and one session for
// each mailbox; nothing waits for anything else.
func (r *realSite) effort(t *testing.T) {
	t.Helper()
	var commands, sessions, ways atomic.Int32
	w, before := *r.world, r.Exosim.TokenRequests()["ok"]
	r.world.run = func(ctx context.Context, name string, args ...string) (string, string, error) {
		commands.Add(1)
		return w.run(ctx, name, args...)
	}
	r.world.dial = func(ctx context.Context, network, addr string) (net.Conn, error) {
		if strings.HasPrefix(addr, "smtp.office365.com:") {
			sessions.Add(1)
		}
		return w.dial(ctx, network, addr)
	}
	r.world.dialFrom = func(ctx context.Context, from netip.Addr, addr string) (net.Conn, error) {
		ways.Add(1)
		return w.dialFrom(ctx, from, addr)
	}
	began := time.Now()
	d, out, code := r.visit(t, Options{})
	took := time.Since(began)
	*r.world = w
	if bad := worries(d); len(bad) > 0 || code != 0 {
		t.Fatalf("a site where all is right has %v:\n%s", bad, out)
	}
	t.Logf("%d checks in %v: %d commands, %d sessions with Exchange Online, %d with Postfix", len(d.Checks), took.Round(time.Millisecond), commands.Load(), sessions.Load(), ways.Load())
	if tokens := r.Exosim.TokenRequests()["ok"] - before; commands.Load() > 12 || sessions.Load() != 3 || ways.Load() != 1 || tokens != 1 {
		t.Errorf("%d commands, %d sessions with Exchange Online, %d with Postfix, %d tokens; want 12 at most, 3, 1, 1", commands.Load(), sessions.Load(), ways.Load(), tokens)
	}
}

// keep returns what brings the site back to as it is now.
func (r *realSite) keep(t *testing.T) (restore func()) {
	t.Helper()
	files := map[string][]byte{r.etc("main.cf"): nil, r.etc("master.cf"): nil, r.Config: nil, filepath.Join(r.Postfix.QueueDir(), "etc/hosts"): nil}
	for name := range files {
		b, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		files[name] = b
	}
	return func() {
		for name, b := range files {
			if err := os.WriteFile(name, b, 0o644); err != nil {
				t.Error(err)
			}
			os.Chmod(name, 0o644)
		}
		r.secret(t, r.Secret+"\n")
		os.Chmod(secretOf(r), 0o600)
		os.Chmod(r.Postfix.SocketDir(), 0o775)
		os.Rename(filepath.Join(r.bin, "away"), filepath.Join(r.bin, plugin.Name))
		past := time.Now().Add(-time.Hour)
		os.Chtimes(r.Config, past, past)
		r.age(t)
		if exec.Command("postfix", "-c", r.Postfix.ConfigDir(), "status").Run() != nil {
			r.run(t, "postfix", "start")
		}
		r.run(t, "postfix", "reload")
		for _, unit := range []string{"sendas-milter", "sendas-token"} {
			r.systemctl(t, []string{"restart", unit})
		}
	}
}

// worries are the failures and warnings.
func worries(d *Walk) (list []string) {
	for _, c := range d.Checks {
		if bad(&c) {
			list = append(list, c.ID)
		}
	}
	return list
}

// found returns the first failure or warning whose id begins so.
func found(d *Walk, id string) *finding.Check {
	for i := range d.Checks {
		if c := &d.Checks[i]; bad(c) && strings.HasPrefix(c.ID, id) {
			return c
		}
	}
	return nil
}

// withPatterns is a site whose mailboxes are patterns alone.
func withPatterns(yaml string) string {
	head, rest, _ := strings.Cut(yaml, "mailboxes:\n")
	_, tail, _ := strings.Cut(rest, "clients:\n")
	return head + "notices: monitor@contoso.com\nmailboxes:\n  - {address: '*@contoso.com', credential: relay-app, limits: LIMITS}\nclients:\n" + strings.ReplaceAll(tail, "billing@", "erp@")
}

// TestPatternSite: a site of patterns alone is walked, its tables are judged, and a message leaves as
// a sender that only the pattern has.
func TestPatternSite(t *testing.T) {
	r := openSite(t, withPatterns, nil)
	d, out, _ := r.visit(t, Options{Verbose: true})
	if bad := worries(d); len(bad) > 0 {
		t.Fatalf("a site of patterns where all is right has %v:\n%s", bad, out)
	}
	for _, id := range []string{"mailbox.monitor@contoso.com.auth", "mailbox.scan@contoso.com.auth", "in.port"} {
		d.wantCheck(t, id, finding.OK)
	}
	d, out, code := r.visit(t, Options{As: "erp@contoso.com", Client: "sap", SendTo: "me@fabrikam.com"})
	if code != 0 || r.Accepted() != 1 {
		t.Errorf("exit code %d, %d messages left:\n%s", code, r.Accepted(), out)
	}
	d.wantCheck(t, "sent.lease", finding.OK, "as erp@contoso.com")
	// A table from before the pattern: its senders would all wait in one queue.
	inMain("sender_dependent_default_transport_maps=inline:{ {monitor@contoso.com = sendas:[smtp.office365.com]:"+r.port()+"} }")(t, r)
	r.age(t)
	d, out, _ = r.visit(t, Options{})
	c := found(d, "postfix.sender_dependent_default_transport_maps")
	if c == nil {
		t.Fatalf("the senders of a pattern share one queue, and nothing says so:\n%s", out)
	}
	tools, acts := r.tools(t)
	r.typed(t, tools, acts, c.Do)
	r.age(t)
	if d, out, _ := r.visit(t, Options{}); len(worries(d)) > 0 {
		t.Errorf("after the cure %q:\n%s", c.Do, out)
	}
}
