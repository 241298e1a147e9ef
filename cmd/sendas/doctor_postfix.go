package main

import (
	"cmp"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/sendas/sendas/internal/serve"
	"github.com/sendas/sendas/policy"
)

// postfixAdvice is about Postfix but for single settings, which stand in postfixSettings.
var postfixAdvice = map[string]advice{
	"absent":     {means: "Postfix's own tool does not answer, so nothing of Postfix can be looked at", do: "run this on the host of Postfix, as root; for another instance give --postfix-config FOLDER"},
	"old":        {means: "this version lacks settings that sendas needs", do: "update Postfix to 3.4 or newer"},
	"no-map":     {means: "this Postfix was built without the tables by which smtp(8) asks sendas", do: "install a Postfix with socketmap; the packages of Debian, Ubuntu, Fedora and SUSE have it"},
	"no-sasl":    {means: "this Postfix was built without Cyrus SASL, the only one that its SMTP client knows", do: "install a Postfix with it: apt-get install postfix libsasl2-modules"},
	"misspelt":   {means: "Postfix has no parameter of that name and reads over it", do: "correct its name in main.cf or master.cf"},
	"no-lease":   {means: "no smtp(8) asks sendas for a credential, so nothing can leave by submission", do: "{set}"},
	"no-way":     {means: "main.cf sends no mail to the transport that asks sendas", do: "{set}"},
	"other-name": {means: "the policy service and the tables of sendas send mail to another transport", do: "write in sendas.yaml: routes: [{name: submission, transport: {transport}}]"},
	"verbose":    {means: "smtp -v writes passwords, and so access tokens, into the mail log", do: "take -v out of the entry {service} of master.cf, then type: postfix reload; and delete the logs"},
	"chroot":     {means: "the service is chrooted into the queue directory and cannot see an absolute path outside of it", do: "name it relative to the queue directory: {set}"},
	"no-route":   {means: "mail of the route {route} has no transport to leave by", do: "add the transport as docs/routes.md shows it, then: postfix reload"},
	"not-smtp":   {means: "the transport of the route {route} runs another program than smtp", do: "make it a copy of smtp, as docs/routes.md shows it"},
	"leak":       {means: "the transport of the route {route} would offer a mailbox's token to another server", do: "{set}"},
	"no-cert":    {means: "the connector knows this relay by a certificate, and the transport shows another one or none", do: "{set}"},
	"lax":        {means: "mail of the route {route} leaves without TLS, or to a server that has not proved whose it is, where somebody stands in between", do: "{set}"},
	"no-folder":  {means: "the sockets of both services live in this folder", do: "mkdir -p {folder} && chown sendas:sendas {folder} && chmod 0755 {folder}"},
	"closed":     {means: "the user {user} cannot enter the folder, so Postfix reaches no socket in it", do: "chmod 0755 {folder}"},
	"no-owner":   {means: "the user as whom Postfix runs does not exist", do: "postconf mail_owner shows the name; reinstall Postfix"},
	"rewriting":  {means: "this table changes a field that sendas has decided on; with another From Exchange Online refuses the message", do: "take the line out of the table"},
	"early":      {means: "this table changes a field before sendas sees it", do: "take the line out, or see with \"sendas explain\" what becomes of it"},
	"filtering":  {means: "mail that matches leaves another way than sendas has chosen", do: "take the line with FILTER or REDIRECT out of the table, or see that no mail for Microsoft matches it"},
	"unreadable": {means: "what stands in this table cannot be looked at", do: "see that nothing in it changes From, Sender or Reply-To"},
}

// check looks at all that postconf(1) says, and at the files that it names.
func (p *postfixSetup) check(s section) {
	p.checkBuild(s)
	p.checkShape(s)
	p.checkSettings(s)
	p.checkServices(s)
	p.checkRoutes(s)
	p.checkHeaderTables(s)
	p.checkFolder(s)
}

// oldestPostfix has smtp_tls_chain_files and smtp_tls_connection_reuse.
var oldestPostfix = [2]int{3, 4}

func (p *postfixSetup) checkBuild(s section) {
	version := p.main["mail_version"]
	if slices.Compare(versionNumbers(version), oldestPostfix[:]) < 0 {
		s.fail("version", "version", cmp.Or(version, "unknown"), postfixAdvice["old"])
	} else {
		s.ok("version", "version", "%s", version)
	}
	if !slices.Contains(p.tables, "socketmap") {
		s.fail("socketmap", "tables", strings.Join(p.tables, " "), postfixAdvice["no-map"])
	}
	if !slices.Contains(p.sasl, "cyrus") {
		s.fail("cyrus", "SASL of clients", cmp.Or(strings.Join(p.sasl, " "), "none"), postfixAdvice["no-sasl"])
	}
	for _, name := range p.unused {
		s.warn("unused."+name, "parameter "+name, "has no meaning", postfixAdvice["misspelt"])
	}
}

// versionNumbers reads 3.7.11 and 3.12-20260801.
func versionNumbers(version string) []int {
	var list []int
	for _, f := range strings.FieldsFunc(version, func(r rune) bool { return r == '.' || r == '-' }) {
		n, err := strconv.Atoi(f)
		if err != nil {
			break
		}
		list = append(list, n)
	}
	return list
}

// checkShape says where the settings of submission stand, and whether mail comes there.
func (p *postfixSetup) checkShape(s section) {
	if !p.submits() {
		s.skip("shape", "submission", "no mailbox is configured, so nothing leaves by it")
		return
	}
	if len(p.transports) == 0 {
		s.fail("shape", "submission", "no transport asks sendas", postfixAdvice["no-lease"].with("set", p.set(nil, "smtp_sasl_password_maps", p.socketmap("lease"))))
		return
	}
	var names []string
	for _, t := range p.transports {
		names = append(names, t.name)
	}
	where := "main.cf, for the transports"
	if p.own {
		where = "transports of their own,"
	}
	s.ok("shape", "submission", "the settings stand in %s %s", where, strings.Join(names, " "))
	if !p.own {
		return
	}
	first := names[0]
	if to := p.submission(); !slices.Contains(names, to) {
		s.fail("transport", "submission", fmt.Sprintf("sendas.yaml names the transport %s", to), postfixAdvice["other-name"].with("transport", first))
	}
	nextHop := first + ":" + postfixNextHop(p.config.Tenant.Endpoints.Submission)
	byTable := p.asksFor(p.main["sender_dependent_default_transport_maps"], "transport") || p.hasSenderTable()
	if name, _, _ := strings.Cut(p.main["default_transport"], ":"); !byTable && !slices.Contains(names, name) && p.main["transport_maps"] == "" {
		s.warn("way", "submission", "no setting leads to "+first, postfixAdvice["no-way"].with("set", p.set(nil, "default_transport", nextHop)))
	}
}

// submission is the transport that the configuration gives the route submission.
func (p *postfixSetup) submission() string {
	if p.config.Policy == nil {
		return "smtp"
	}
	return p.config.Policy.Routes()[0].Transport
}

// postfixNextHop writes host:port as Postfix wants it for a host whose MX is not to be looked up.
func postfixNextHop(hostPort string) string {
	host, port, ok := strings.Cut(hostPort, ":")
	if !ok {
		return "[" + hostPort + "]"
	}
	return "[" + host + "]:" + port
}

// checkServices looks at master.cf: who talks too much, and who cannot see his socket.
func (p *postfixSetup) checkServices(s section) {
	quiet := true
	for i := range p.services {
		v := &p.services[i]
		if (v.program == "smtp" || v.program == "lmtp") && v.verbose() {
			quiet = false
			s.fail("verbose."+v.name, "service "+v.key(), "runs with -v", postfixAdvice["verbose"].with("service", v.key()))
		}
	}
	if quiet {
		s.ok("verbose", "master.cf", "no SMTP client runs with -v")
	}
	for _, r := range p.references() {
		for _, v := range r.services {
			p.checkReference(s, r.name, v)
		}
	}
}

// A reference is a setting that names sockets, and the services that connect to them.
type reference struct {
	name     string
	services []*postfixService
}

func (p *postfixSetup) references() []reference {
	smtpd, rewrite := p.running("smtpd"), p.running("trivial-rewrite")
	return []reference{
		{"smtpd_milters", smtpd}, {"non_smtpd_milters", p.running("cleanup")}, {"smtpd_recipient_restrictions", smtpd},
		{"smtp_sasl_password_maps", p.transports}, {"smtp_reply_filter", p.transports},
		{"transport_maps", rewrite}, {"sender_dependent_default_transport_maps", rewrite},
	}
}

var absoluteSocket = regexp.MustCompile(`\b(?:unix|local):(/[^\s,:}]+)`)

// checkReference finds absolute paths that a chrooted service cannot see.
func (p *postfixSetup) checkReference(s section, name string, v *postfixService) {
	if !p.chrooted(v) {
		return
	}
	value := p.value(v, name)
	for _, m := range absoluteSocket.FindAllStringSubmatch(value, -1) {
		if _, err := os.Stat(filepath.Join(p.queue(), m[1])); err == nil {
			continue // somebody has put it there
		}
		mended := strings.ReplaceAll(value, m[1], p.relative(serve.Unix(m[1])).Path())
		scope := v
		if _, own := v.overrides[name]; !own {
			scope = nil
		}
		s.fail("chroot."+v.name+"."+name, name+" of "+v.key(), "names "+m[1], postfixAdvice["chroot"].with("set", p.set(scope, name, shownValue(mended))))
	}
}

// checkRoutes looks at the transports of the other ways out.
func (p *postfixSetup) checkRoutes(s section) {
	if p.config.Policy == nil {
		return
	}
	for _, r := range p.config.Policy.Routes() {
		v := p.service(r.Transport, "unix")
		a := func(key string, more ...string) advice {
			return postfixAdvice[key].with(append(more, "route", r.Name)...)
		}
		id, what := "route."+r.Name, fmt.Sprintf("transport %s of route %s", r.Transport, r.Name)
		switch {
		case r.Type == policy.Submission && !p.submits():
		case v == nil:
			s.fail(id, what, "does not stand in master.cf", a("no-route"))
		case v.program != "smtp":
			s.fail(id, what, "runs "+v.program, a("not-smtp"))
		case r.Type == policy.Submission:
			s.ok(id, what, "stands in master.cf")
		case p.value(v, "smtp_sasl_auth_enable") != "no" && p.value(v, "smtp_sasl_password_maps") != "":
			s.fail(id, what, "authenticates", a("leak", "set", p.set(v, "smtp_sasl_auth_enable", "no")))
		case !p.showsCertificate(v, r.Name):
			s.fail(id, what, "shows "+shownValue(p.value(v, "smtp_tls_chain_files")+p.value(v, "smtp_tls_cert_file")), a("no-cert", "set", p.set(v, "smtp_tls_chain_files", p.certificate(r.Name))))
		default:
			s.ok(id, what, "stands in master.cf, and authenticates to nobody")
		}
		if r.Type != policy.Submission && v != nil && v.program == "smtp" {
			p.checkRouteTLS(s, r, v)
		}
	}
}

// checkRouteTLS looks whether a route goes to nobody but Microsoft. What it shows is mail, not a token, so less is a warning.
func (p *postfixSetup) checkRouteTLS(s section, r *policy.Route, v *postfixService) {
	level := p.value(v, "smtp_tls_security_level")
	if !slices.Contains([]string{"secure", "verify", "fingerprint", "dane-only"}, level) {
		s.warn("route."+r.Name+".tls", "smtp_tls_security_level of "+v.key(), shownValue(level),
			postfixAdvice["lax"].with("route", r.Name, "set", p.set(v, "smtp_tls_security_level", "secure")))
	}
}

// certificate returns the file by which a connector knows this relay, or "".
func (p *postfixSetup) certificate(route string) string {
	for _, r := range p.config.Routes {
		if r.Name == route {
			return r.CertificateFile
		}
	}
	return ""
}

func (p *postfixSetup) showsCertificate(v *postfixService, route string) bool {
	want := p.certificate(route)
	return want == "" || slices.Contains(postfixList(p.value(v, "smtp_tls_chain_files")), want) || p.value(v, "smtp_tls_cert_file") == want
}

// headerTables are the settings whose tables can change a header; late tells those that come after sendas.
var headerTables = []struct {
	name string
	late bool
}{{"header_checks", false}, {"smtp_header_checks", true}, {"milter_header_checks", true}}

// checkHeaderTables reads the tables, as far as they are files of patterns, for lines that change what sendas decides on.
func (p *postfixSetup) checkHeaderTables(s section) {
	for _, h := range headerTables {
		values := []string{p.main[h.name]}
		for _, t := range p.transports {
			values = append(values, t.overrides[h.name])
		}
		for i, table := range postfixList(strings.Join(values, " ")) {
			p.checkHeaderTable(s, fmt.Sprintf("headers.%s.%d", h.name, i+1), h.name, table, h.late)
		}
	}
}

func (p *postfixSetup) checkHeaderTable(s section, id, name, table string, late bool) {
	kind, file, _ := strings.Cut(table, ":")
	what := name + " " + shownValue(table)
	data, err := os.ReadFile(file)
	if err != nil || kind != "regexp" && kind != "pcre" {
		s.warn(id, what, "cannot be read here", postfixAdvice["unreadable"])
		return
	}
	n, way := touchingLine(string(data)), lineWith(string(data), wayLine)
	switch {
	case n == 0 && way != 0:
		s.warn(id, what, fmt.Sprintf("chooses a way in line %d", way), postfixAdvice["filtering"])
	case n == 0:
		s.ok(id, what, "leaves From, Sender and Reply-To alone")
	case late:
		s.fail(id, what, fmt.Sprintf("changes a sender in line %d", n), postfixAdvice["rewriting"])
	default:
		s.warn(id, what, fmt.Sprintf("changes a sender in line %d", n), postfixAdvice["early"])
	}
}

var (
	wayLine      = regexp.MustCompile(`(?i)\s(FILTER|REDIRECT)\s`)
	changingLine = regexp.MustCompile(`(?i)\s(REPLACE|PREPEND|IGNORE|STRIP)\b`)
	senderField  = regexp.MustCompile(`(?i)\b(From|Sender|Reply-To)\b`)
)

// touchingLine returns the number of the first line that changes From, Sender or Reply-To, or 0.
func touchingLine(table string) int { return lineWith(table, changingLine, senderField) }

// lineWith returns the number of the first line that is no comment and matches all forms, or 0.
func lineWith(table string, forms ...*regexp.Regexp) int {
	n := 0
	for line := range strings.Lines(table) {
		n++
		if !strings.HasPrefix(line, "#") && !slices.ContainsFunc(forms, func(f *regexp.Regexp) bool { return !f.MatchString(line) }) {
			return n
		}
	}
	return 0
}

// checkFolder sees whether Postfix can enter the folder of the sockets.
func (p *postfixSetup) checkFolder(s section) {
	folder := filepath.Join(p.queue(), "sendas")
	if path := p.config.Token.Listen.Path(); path != "" {
		folder = filepath.Dir(path)
	}
	owner := p.main["mail_owner"]
	uid, gids, err := accountIDs(owner)
	if err != nil {
		s.fail("folder", "user "+owner, err.Error(), postfixAdvice["no-owner"])
		return
	}
	a := func(key string) advice { return postfixAdvice[key].with("folder", folder, "user", owner) }
	info, err := os.Stat(folder)
	switch {
	case err != nil || !info.IsDir():
		s.fail("folder", "folder "+folder, "is not there", a("no-folder"))
	case !mayEnter(info, uid, gids):
		s.fail("folder", "folder "+folder, fmt.Sprintf("has the mode %04o", info.Mode().Perm()), a("closed"))
	default:
		s.ok("folder", "folder "+folder, "%s can enter it", owner)
	}
}
