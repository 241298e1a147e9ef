package postfix

import (
	"cmp"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/sendas/sendas/cmd/internal/finding"
	"github.com/sendas/sendas/cmd/internal/postfix/cf"
	"github.com/sendas/sendas/cmd/internal/service"
	"github.com/sendas/sendas/internal/serve"
	"github.com/sendas/sendas/policy"
)

// Advices is about Postfix but for single settings, which stand in settings.
var Advices = map[string]finding.Advice{
	"absent":        {Means: "Postfix's own tool does not answer, so nothing of Postfix can be looked at", Do: "run this on the host of Postfix, as root; for another instance give --postfix-config FOLDER"},
	"old":           {Means: "this version lacks settings that sendas needs", Do: "update Postfix to 3.4 or newer"},
	"no-map":        {Means: "this Postfix was built without the tables by which smtp(8) asks sendas", Do: "install a Postfix with socketmap; the packages of Debian, Ubuntu, Fedora and SUSE have it"},
	"no-sasl":       {Means: "this Postfix was built without Cyrus SASL, the only one that its SMTP client knows", Do: "install a Postfix with it: apt-get install postfix libsasl2-modules"},
	"twice":         {Means: "a filter gives mail back here, which sendas has decided on already: now it comes from this host, and is decided on as that client's or refused", Do: "{set}"},
	"nobody":        {Means: "Postfix listens to this host alone, so no client of {networks} can connect", Do: "{set} && {restart}"},
	"relays-not":    {Means: "Postfix answers clients of {networks} with 454 4.7.1 Relay access denied, unless they log in", Do: "{set}"},
	"early-refusal": {Means: "Postfix refuses devices by {item} before sendas can mend what they write", Do: "{set}"},
	"before-queue":  {Means: "the milter sees what a client sends only where the filter gives it back, as mail of this host: it leaves as what programs here may send as, or is refused, whoever sent it", Do: "give the devices a port of their own without it, or make it a filter after the queue, which sees mail after sendas: {set}"},
	"here":          {Means: "mail to {domain} is delivered on this host and never reaches Microsoft; who has mailboxes here for some of its people types enable --force", Do: "{do}"},
	"mark":          {Means: "Postfix takes the mark for a part of the first name, so that the first setting is not in force", Do: "sed -i '1s/^\\xEF\\xBB\\xBF//' {file} && {reload}"},
	"misspelt":      {Means: "Postfix has no parameter of that name and reads over it", Do: "correct its name in main.cf or master.cf"},
	"no-lease":      {Means: "no smtp(8) asks sendas for a credential, so nothing can leave by submission", Do: "{enable}"},
	"no-way":        {Means: "main.cf sends no mail to the transport that asks sendas", Do: "{enable}"},
	"inherited":     {Means: "settings for Microsoft in main.cf reach every transport that runs smtp: the feed of a filter, an inner server or a fallback relay is asked for TLS and offered the token", Do: "{enable}"},
	"no-credential": {Means: "what leaves by {transport} has no credential: Microsoft refuses it with 530 5.7.57", Do: "{enable}"},
	"other-name":    {Means: "the policy service and the tables of sendas send mail to another transport", Do: "write in sendas.yaml: routes: [{name: submission, transport: {transport}}]"},
	"verbose":       {Means: "smtp -v writes passwords, and so access tokens, into the mail log", Do: "take -v out of the entry {service} of master.cf, then type: postfix reload; and delete the logs"},
	"chroot":        {Means: "the service is chrooted into the queue directory and cannot see an absolute path outside of it", Do: "name it relative to the queue directory: {set}"},
	"no-route":      {Means: "mail of the route {route} has no transport to leave by", Do: "add the transport as docs/routes.md shows it, then: postfix reload"},
	"not-smtp":      {Means: "the transport of the route {route} runs another program than smtp", Do: "make it a copy of smtp, as docs/routes.md shows it"},
	"leak":          {Means: "the transport of the route {route} would offer a mailbox's token to another server", Do: "{set}"},
	"no-cert":       {Means: "the connector knows this relay by a certificate, and the transport shows another one or none", Do: "{set}"},
	"lax":           {Means: "mail of the route {route} leaves without TLS, or to a server that has not proved whose it is, where somebody stands in between", Do: "{set}"},
	"no-folder":     {Means: "the sockets of both services live in this folder", Do: "mkdir -p {folder} && chown sendas:sendas {folder} && chmod 0755 {folder}"},
	"closed":        {Means: "the user {user} cannot enter the folder, so Postfix reaches no socket in it", Do: "chmod 0755 {folder}"},
	"no-owner":      {Means: "the user as whom Postfix runs does not exist", Do: "postconf mail_owner shows the name; reinstall Postfix"},
	"rewriting":     {Means: "this table changes a field that sendas has decided on; with another From Exchange Online refuses the message", Do: "take the line out of the table"},
	"early":         {Means: "this table changes a field before sendas sees it", Do: "take the line out, or see with \"sendas explain\" what becomes of it"},
	"filtering":     {Means: "mail that matches leaves another way than sendas has chosen", Do: "take the line with FILTER or REDIRECT out of the table, or see that no mail for Microsoft matches it"},
	"unreadable":    {Means: "what stands in this table cannot be looked at", Do: "see that nothing in it changes From, Sender or Reply-To"},
}

// Check looks at all that postconf(1) says, and at the files that it names.
func (p *Setup) Check(s finding.Section) {
	if p.Config.Observes() {
		p.checkObserving(s)
		return
	}
	p.checkBuild(s)
	p.checkEntrance(s)
	p.checkHere(s)
	p.checkShape(s)
	p.checkSettings(s)
	p.checkServices(s)
	p.checkWaysBack(s)
	p.checkRoutes(s)
	p.checkHeaderTables(s)
	p.checkFolder(s)
}

// oldest has smtp_tls_chain_files and smtp_tls_connection_reuse.
var oldest = [2]int{3, 4}

func (p *Setup) checkBuild(s finding.Section) {
	version := p.Main["mail_version"]
	if slices.Compare(versionNumbers(version), oldest[:]) < 0 {
		s.Fail("version", "version", cmp.Or(version, "unknown"), Advices["old"])
	} else {
		s.Ok("version", "version", "%s", version)
	}
	if !slices.Contains(p.tables, "socketmap") {
		s.Fail("socketmap", "tables", strings.Join(p.tables, " "), Advices["no-map"])
	}
	if !slices.Contains(p.sasl, "cyrus") {
		s.Fail("cyrus", "SASL of clients", cmp.Or(strings.Join(p.sasl, " "), "none"), Advices["no-sasl"])
	}
	if p.inst.Marked(cf.Main) {
		s.Warn("bom", "main.cf", "begins with a byte order mark", Advices["mark"].With("file", filepath.Join(p.inst.Dir, cf.Main), "reload", p.inst.Command("postfix")+" reload"))
	}
	for _, name := range p.unused {
		if leftover.MatchString(name) {
			continue
		}
		s.Warn("unused."+name, "parameter "+name, "has no meaning", Advices["misspelt"])
	}
}

// leftover is a parameter that is named after a transport or service, which is not in master.cf any
// more, or not yet: it does nothing, and is no mistake.
var leftover = regexp.MustCompile(`^\w+_(time_limit|recipient_limit|extra_recipient_limit|recipient_refill_(limit|delay)|minimum_delivery_slots|transport_rate_delay|` +
	`initial_destination_concurrency|delivery_slot_(cost|discount|loan)|` +
	`destination_(concurrency_limit|concurrency_failed_cohort_limit|concurrency_(positive|negative)_feedback|recipient_limit|rate_delay))$`)

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

// checkShape says where the settings of submission stand, and whether the mail that is meant for
// Microsoft comes there.
func (p *Setup) checkShape(s finding.Section) {
	if !p.submits() {
		s.Skip("shape", "submission", "no mailbox is configured, so nothing leaves by it")
		return
	}
	a := func(key string, more ...string) finding.Advice {
		return Advices[key].With(append(more, "enable", p.enable())...)
	}
	if len(p.Transports) == 0 {
		s.Fail("shape", "submission", "no transport asks sendas", a("no-lease"))
		return
	}
	names := namesOf(p.Transports)
	others := namesOf(slices.DeleteFunc(slices.Clone(p.inheriting), func(e *entry) bool { return e.name == "smtp" || e.name == "relay" }))
	switch {
	case p.shared && len(others) > 0:
		s.Fail("shape", "submission", "main.cf asks sendas for all transports, "+strings.Join(others, " ")+" too", a("inherited"))
	case p.shared:
		s.Warn("shape", "submission", "main.cf asks sendas for all transports", a("inherited"))
	default:
		s.Ok("shape", "submission", "the settings stand in the transport %s", strings.Join(names, " "))
	}
	if to := p.submission(); !slices.Contains(names, to) {
		s.Fail("transport", "submission", fmt.Sprintf("sendas.yaml names the transport %s", to), a("other-name", "transport", names[0]))
	}
	p.checkWay(s, names)
}

// checkWay follows the mail that main.cf sends to Microsoft, and says what becomes of the rest.
func (p *Setup) checkWay(s finding.Section, names []string) {
	a := func(key string, more ...string) finding.Advice {
		return Advices[key].With(append(more, "enable", p.enable())...)
	}
	carriers := p.carriers()
	for _, c := range carriers {
		if !slices.Contains(names, c) {
			s.Fail("way."+c, "transport "+c, "carries mail to Microsoft and does not ask sendas", a("no-credential", "transport", c))
		}
	}
	others := p.otherMail()
	switch led := slices.ContainsFunc(carriers, func(c string) bool { return slices.Contains(names, c) }); {
	case !led:
		s.Fail("way", "submission", "no setting leads to "+names[0], a("no-way"))
	case others != "":
		s.Ok("way", "submission", "the mailboxes' senders leave by %s; mail of all others leaves as before: %s", names[0], others)
	default:
		s.Ok("way", "submission", "all mail leaves by %s, but for what tables lead elsewhere", names[0])
	}
}

func namesOf(list []*entry) []string {
	var names []string
	for _, t := range list {
		names = append(names, t.name)
	}
	return names
}

// submission is the transport that the configuration gives the route submission.
func (p *Setup) submission() string {
	if p.Config.Policy == nil {
		return "sendas"
	}
	return p.Config.Policy.Routes()[0].Transport
}

// nextHop writes host:port as Postfix wants it for a host whose MX is not to be looked up.
func nextHop(hostPort string) string {
	host, port, ok := strings.Cut(hostPort, ":")
	if !ok {
		return "[" + hostPort + "]"
	}
	return "[" + host + "]:" + port
}

// checkServices looks at master.cf: who talks too much, and who cannot see his socket.
func (p *Setup) checkServices(s finding.Section) {
	quiet := true
	for _, v := range p.ways() {
		if v.verbose() {
			quiet = false
			s.Fail("verbose."+v.name, "service "+v.Key(), "runs with -v", Advices["verbose"].With("service", v.Key()))
		}
	}
	if quiet {
		s.Ok("verbose", "master.cf", "no transport to Microsoft runs with -v")
	}
	for _, r := range p.references() {
		for _, v := range r.services {
			p.checkReference(s, r.name, v)
		}
	}
}

// isWayBack reports whether a content filter gives mail back at a port (FILTER_README): a port for this
// host alone, by its address or its own mynetworks, without a filter of its own, while there is one elsewhere or it passes no milter.
func (p *Setup) isWayBack(v *entry) bool {
	filter, own := v.overrides["content_filter"]
	networks := cf.Split(v.overrides["mynetworks"])
	local := len(networks) > 0 && !slices.ContainsFunc(networks, func(n string) bool {
		net, ok := parsePrefix(n)
		return !ok || !net.Addr().IsLoopback()
	})
	if !own || filter != "" || !v.loopback() && !local {
		return false
	}
	milters, said := v.overrides["smtpd_milters"]
	filtered := p.Main["content_filter"] != "" || slices.ContainsFunc(p.running("smtpd"), func(o *entry) bool { return o.overrides["content_filter"] != "" })
	return filtered || said && milters == "" || p.withoutMilters(v)
}

func (p *Setup) withoutMilters(v *entry) bool {
	return slices.Contains(cf.Split(p.Value(v, "receive_override_options")), "no_milters")
}

// meetsSendas reports whether mail at a port passes the milter or the policy service.
func (p *Setup) meetsSendas(v *entry) bool {
	place, _ := p.milterPlace(p.Value(v, "smtpd_milters"))
	asked, _ := p.policyPlace(p.Value(v, "smtpd_recipient_restrictions"))
	return place >= 0 && !p.withoutMilters(v) || asked >= 0
}

// pastSendas is what leads mail at a port past the milter and the policy service.
var pastSendas = []cf.Setting{{Name: "smtpd_milters"}, {Name: "smtpd_recipient_restrictions", Value: "permit_mynetworks,reject"}}

// checkWaysBack looks at the ports at which filters give mail back: it was decided upon already, and
// comes from this host now, which may be nobody's client.
func (p *Setup) checkWaysBack(s finding.Section) {
	for _, v := range p.running("smtpd") {
		switch id, what := "back."+v.name, "port "+v.name; {
		case !p.isWayBack(v):
		case p.meetsSendas(v):
			s.Warn(id, what, "meets sendas again", Advices["twice"].With("set", p.setAll(v, pastSendas)))
		default:
			s.Ok(id, what, "takes mail back from a filter, past sendas")
		}
	}
}

// A reference is a setting that names sockets, and the services that connect to them.
type reference struct {
	name     string
	services []*entry
}

func (p *Setup) references() []reference {
	smtpd, rewrite := p.running("smtpd"), p.running("trivial-rewrite")
	return []reference{
		{"smtpd_milters", smtpd}, {"non_smtpd_milters", p.running("cleanup")}, {"smtpd_recipient_restrictions", smtpd},
		{"smtp_sasl_password_maps", p.Transports}, {"smtp_reply_filter", p.Transports},
		{"transport_maps", rewrite}, {"sender_dependent_default_transport_maps", rewrite},
	}
}

var absoluteSocket = regexp.MustCompile(`\b(?:unix|local):(/[^\s,:}]+)`)

// checkReference finds absolute paths that a chrooted service cannot see.
func (p *Setup) checkReference(s finding.Section, name string, v *entry) {
	if !p.chrooted(v) {
		return
	}
	value := p.Value(v, name)
	for _, m := range absoluteSocket.FindAllStringSubmatch(value, -1) {
		if _, err := os.Stat(filepath.Join(p.queue(), m[1])); err == nil {
			continue // somebody has put it there
		}
		mended := strings.ReplaceAll(value, m[1], p.relative(serve.Unix(m[1])).Path())
		scope := v
		if _, own := v.overrides[name]; !own {
			scope = nil
		}
		s.Fail("chroot."+v.name+"."+name, name+" of "+v.Key(), "names "+m[1], Advices["chroot"].With("set", p.set(scope, name, cf.Shown(mended))))
	}
}

// checkRoutes looks at the transports of the other ways out.
func (p *Setup) checkRoutes(s finding.Section) {
	if p.Config.Policy == nil {
		return
	}
	for _, r := range p.Config.Policy.Routes() {
		v := p.service(r.Transport, "unix")
		a := func(key string, more ...string) finding.Advice {
			return Advices[key].With(append(more, "route", r.Name)...)
		}
		id, what := "route."+r.Name, fmt.Sprintf("transport %s of route %s", r.Transport, r.Name)
		switch {
		case r.Type == policy.Submission && !p.submits():
		case v == nil:
			s.Fail(id, what, "does not stand in master.cf", a("no-route"))
		case v.program != "smtp":
			s.Fail(id, what, "runs "+v.program, a("not-smtp"))
		case r.Type == policy.Submission:
			s.Ok(id, what, "stands in master.cf")
		case r.Type == policy.HVE:
			p.checkAccountRoute(s, id, what, v)
			continue
		case p.Value(v, "smtp_sasl_auth_enable") != "no" && p.Value(v, "smtp_sasl_password_maps") != "":
			s.Fail(id, what, "authenticates", a("leak", "set", p.set(v, "smtp_sasl_auth_enable", "no")))
		case !p.showsCertificate(v, r.Name):
			s.Fail(id, what, "shows "+cf.Shown(p.Value(v, "smtp_tls_chain_files")+p.Value(v, "smtp_tls_cert_file")), a("no-cert", "set", p.set(v, "smtp_tls_chain_files", p.certificate(r.Name))))
		default:
			s.Ok(id, what, "stands in master.cf, and authenticates to nobody")
		}
		if r.Type != policy.Submission && v != nil && v.program == "smtp" {
			p.checkRouteTLS(s, r, v)
		}
	}
}

// checkRouteTLS looks whether a route goes to nobody but Microsoft. What it shows is mail, not a
// token, so less is a warning.
func (p *Setup) checkRouteTLS(s finding.Section, r *policy.Route, v *entry) {
	level := p.Value(v, "smtp_tls_security_level")
	if !slices.Contains([]string{"secure", "verify", "fingerprint", "dane-only"}, level) {
		s.Warn("route."+r.Name+".tls", "smtp_tls_security_level of "+v.Key(), cf.Shown(level),
			Advices["lax"].With("route", r.Name, "set", p.set(v, "smtp_tls_security_level", "secure")))
	}
}

// certificate returns the file by which a connector knows this relay, or "".
func (p *Setup) certificate(route string) string {
	for _, r := range p.Config.Routes {
		if r.Name == route {
			return r.CertificateFile
		}
	}
	return ""
}

func (p *Setup) showsCertificate(v *entry, route string) bool {
	want := p.certificate(route)
	return want == "" || slices.Contains(cf.Split(p.Value(v, "smtp_tls_chain_files")), want) || p.Value(v, "smtp_tls_cert_file") == want
}

// headerTables are the settings whose tables can change a header; late tells those that come after
// sendas.
var headerTables = []struct {
	name string
	late bool
}{{"header_checks", false}, {"smtp_header_checks", true}, {"milter_header_checks", true}}

// checkHeaderTables reads the tables, as far as they are files of patterns, for lines that change
// what sendas decides on.
func (p *Setup) checkHeaderTables(s finding.Section) {
	for _, h := range headerTables {
		values := []string{p.Main[h.name]}
		if h.name == "smtp_header_checks" { // of smtp(8): that of the transport counts
			values = nil
			for _, t := range p.Transports {
				values = append(values, p.Value(t, h.name))
			}
		}
		for i, table := range cf.Split(strings.Join(values, " ")) {
			p.checkHeaderTable(s, fmt.Sprintf("headers.%s.%d", h.name, i+1), h.name, table, h.late)
		}
	}
}

func (p *Setup) checkHeaderTable(s finding.Section, id, name, table string, late bool) {
	kind, file, _ := strings.Cut(table, ":")
	what := name + " " + cf.Shown(table)
	data, err := os.ReadFile(file)
	if err != nil || kind != "regexp" && kind != "pcre" {
		s.Warn(id, what, "cannot be read here", Advices["unreadable"])
		return
	}
	n, way := touchingLine(string(data)), lineWith(string(data), wayLine)
	switch {
	case n == 0 && way != 0:
		s.Warn(id, what, fmt.Sprintf("chooses a way in line %d", way), Advices["filtering"])
	case n == 0:
		s.Ok(id, what, "leaves From, Sender and Reply-To alone")
	case late:
		s.Fail(id, what, fmt.Sprintf("changes a sender in line %d", n), Advices["rewriting"])
	default:
		s.Warn(id, what, fmt.Sprintf("changes a sender in line %d", n), Advices["early"])
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
func (p *Setup) checkFolder(s finding.Section) {
	folder := filepath.Join(p.queue(), "sendas")
	if path := p.Config.Token.Listen.Path(); path != "" {
		folder = filepath.Dir(path)
	}
	p.checkFolderOf(s, folder)
}

// checkFolderOf is checkFolder for the one that is known.
func (p *Setup) checkFolderOf(s finding.Section, folder string) {
	owner := p.Main["mail_owner"]
	uid, gids, err := service.AccountIDs(owner)
	if err != nil {
		s.Fail("folder", "user "+owner, err.Error(), Advices["no-owner"])
		return
	}
	a := func(key string) finding.Advice { return Advices[key].With("folder", folder, "user", owner) }
	info, err := os.Stat(folder)
	switch {
	case err != nil || !info.IsDir():
		s.Fail("folder", "folder "+folder, "is not there", a("no-folder"))
	case !service.MayEnter(info, uid, gids):
		s.Fail("folder", "folder "+folder, fmt.Sprintf("has the mode %04o", info.Mode().Perm()), a("closed"))
	default:
		s.Ok("folder", "folder "+folder, "%s can enter it", owner)
	}
}
