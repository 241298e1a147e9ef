package postfix

import (
	"cmp"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/sendas/sendas/cmd/internal/config"
	"github.com/sendas/sendas/cmd/internal/finding"
	"github.com/sendas/sendas/cmd/internal/postfix/cf"
	"github.com/sendas/sendas/cmd/internal/postfix/senders"
	"github.com/sendas/sendas/policy"
	"github.com/sendas/sendas/policy/limit"
)

// A place says where a parameter counts.
type place int

const (
	inMain      place = iota // main.cf alone: programs that master.cf seldom changes
	inSMTPD                  // every smtpd(8), by main.cf and by -o
	inTransport              // the transport of submission, by -o alone, so that main.cf can weaken nothing
	inWays                   // every transport by which mail leaves for Microsoft, by main.cf and by -o
	inQueue                  // main.cf, under a name that begins with the transport's
)

// A settingRow is what one parameter of Postfix should be, and why. docs/by-hand.md gives the
// values.
type settingRow struct {
	name  string // after the transport's name for inQueue
	id    string // "" is the name; another one where two rows look at one parameter
	place place
	// want is what to write; {…} stands for what setting.fill knows.
	want string
	// judge is for a value that is not written exactly like want; nil means that there is no other
	// good one.
	judge  func(value string, p *Setup) finding.Status
	strict bool           // judge looks at want too
	level  finding.Status // of what is not good; judge may say something else
	// when reports whether the row is of use here; nil is always.
	when  func(*Setup) bool
	means string
	do    string // "" is the command that writes want
	first string // a parameter that the command has to write before this one, as its own row wants it

	// why is the comment with which "sendas postfix" writes the row; it writes none that has no
	// such comment.
	why   string
	write writing
	// offer reports whether "sendas postfix" writes the row here; nil is when.
	offer func(*Setup) bool
	// merge puts want into a list that others wrote too, and returns what it has put there; nil
	// replaces the value.
	merge func(p *Setup, raw, want string) (value, added string)
	// mend is what the command writes where the rest of a value may stay; nil is merge, and then want.
	mend func(value string) string
	// everyPort is for inSMTPD: what -o says at a port that devices can reach is as bad as in main.cf.
	everyPort bool
	// everyWay is for inTransport: the transports of the other routes are told the same, lest main.cf
	// changes what leaves by them.
	everyWay bool
	// elsewhere: it is written, but nothing wrong where it is not, or another look says more about it.
	elsewhere bool
}

// A writing says when "sendas postfix" shows and writes a row.
type writing int

const (
	writeAlways writing = iota
	writeWrong          // in main.cf, where the present value is not good: Postfix's default is
)

// Judges of values.
var (
	anyCase = func(want ...string) func(string, *Setup) finding.Status {
		return func(v string, _ *Setup) finding.Status {
			if slices.Contains(want, strings.ToLower(v)) {
				return finding.OK
			}
			return ""
		}
	}
	within1to = func(most int) func(string, *Setup) finding.Status {
		return func(v string, _ *Setup) finding.Status {
			if n, err := strconv.Atoi(v); err == nil && 1 <= n && n <= most {
				return finding.OK
			}
			return ""
		}
	}
	withWord = func(word string) func(string, *Setup) finding.Status {
		return func(v string, _ *Setup) finding.Status {
			return okIf(slices.ContainsFunc(cf.Split(v), func(w string) bool { return strings.EqualFold(w, word) }))
		}
	}
	isZero = func(v string, _ *Setup) finding.Status {
		n, err := strconv.ParseFloat(v, 64)
		return okIf(err == nil && n == 0)
	}
	onlyWords = func(words ...string) func(string, *Setup) finding.Status {
		return func(v string, _ *Setup) finding.Status {
			if slices.ContainsFunc(cf.Split(v), func(w string) bool { return !slices.Contains(words, strings.ToLower(w)) }) {
				return ""
			}
			return finding.OK
		}
	}
)

// settings is what main.cf of docs/by-hand.md gives, and what stands in the way of it.
var settings = []settingRow{
	// In: who may send as whom.
	{name: "smtpd_milters", place: inSMTPD, everyPort: true, want: "{milter}", judge: judgeMilters, level: finding.Fail,
		means: "mail from the network does not pass sendas, so it leaves under the name that the device wrote, and Exchange Online refuses it",
		why:   "who may send as whom: before milters that sign, for a signature must come after the rewriting", merge: mergeMilter},
	{name: "smtpd_milters", id: "smtpd_milters.order", place: inSMTPD, want: "{milter}", judge: judgeOrder, level: finding.Warn, when: hasOtherMilters,
		means: "a milter before sendas sees the mail as the device wrote it: a signature made there is void after the rewriting; one behind it must not change senders",
		do:    "in smtpd_milters put sendas before milters that sign, and behind those that look for spam"},
	{name: "non_smtpd_milters", place: inMain, want: "{milter}", judge: judgeMilters, level: finding.Fail,
		means: "mail of programs on this host (sendmail, cron) and Postfix's own bounces do not pass sendas",
		why:   "the same for mail of programs on this host", merge: mergeMilter},
	{name: "internal_mail_filter_classes", place: inMain, want: "bounce, notify", level: finding.Fail,
		judge: func(v string, _ *Setup) finding.Status {
			return okIf(len(missing(cf.Split(v), "bounce, notify")) == 0)
		},
		means: "Postfix's own bounces, or its notices to the postmaster, do not pass the milter, and nobody may send as their sender: they wait, and are dropped",
		why:   "and for bounces and notices of Postfix itself", merge: mergeLast},
	{name: "milter_default_action", place: inSMTPD, everyPort: true, want: "tempfail", level: finding.Fail, judge: judgeDefaultAction,
		means: "while the milter is down, mail leaves unchanged or is lost (reject), instead of waiting at the client",
		why:   "mail waits at the client while the milter is down, rather than leave under the wrong name", offer: func(p *Setup) bool { return !p.keepsAction() }},
	{name: "milter_protocol", place: inSMTPD, everyPort: true, want: "6", judge: judgeProtocol, level: finding.Fail,
		means: "Postfix offers the milter so little that messages are refused with 451, or leave unchanged",
		do:    "{enable}"},
	{name: "smtpd_milter_maps", place: inSMTPD, everyPort: true, want: "", judge: judgeMilterMaps, level: finding.Fail,
		means: "mail of these networks does not pass sendas, so it leaves under the name that the device wrote, and Exchange Online refuses it",
		do:    "take the clients of sendas.yaml out of that table"},
	{name: "local_header_rewrite_clients", place: inSMTPD, want: "", level: finding.Warn,
		means: "Postfix mends the headers of these clients before sendas sees them, and spoils what it does not understand",
		why:   "the milter must see headers as the device wrote them; it adds Date and Message-ID itself"},
	{name: "remote_header_rewrite_domain", place: inSMTPD, want: "", level: finding.Warn,
		means: "Postfix completes the headers of all clients before sendas sees them, and spoils what it does not understand",
		why:   "the same for clients elsewhere", write: writeWrong},
	{name: "resolve_numeric_domain", place: inMain, want: "yes", level: finding.Warn,
		means: "senders such as user@10.2.0.9, which devices write, are refused before sendas can mend them",
		why:   "devices write user@10.2.0.9 without brackets"},
	{name: "smtpd_recipient_restrictions", place: inSMTPD, want: "check_policy_service { {policy}, default_action=DEFER_IF_PERMIT }", judge: judgePolicy, level: finding.Fail, when: wantsPolicy,
		means: "the policy service is not asked, or only after a permission has ended the list: clients with a connector, a direct route or a fingerprint depend on it",
		do:    "put \"check_policy_service { {policy}, default_action=DEFER_IF_PERMIT }\" into smtpd_recipient_restrictions, before everything that permits",
		why:   "strangers are turned away at RCPT, and a client's way out is chosen there; it never permits anything", offer: offersPolicy, merge: mergePolicy},
	{name: "smtpd_recipient_restrictions", place: inSMTPD, want: "check_policy_service { {policy}, default_action=DEFER_IF_PERMIT }", level: finding.Warn,
		when: func(p *Setup) bool { return !wantsPolicy(p) && asksPolicy(p) }, judge: judgeLate,
		means: "the policy service is asked only after a permission has ended the list, which is never",
		do:    "put it before everything that permits"},
	{name: "smtpd_relay_restrictions", place: inSMTPD, want: "permit_mynetworks, permit_sasl_authenticated, defer_unauth_destination", judge: judgeRelay, level: finding.Fail,
		means: "anybody could send to anybody through this host; sendas never widens Postfix's relay rules, but does not replace them either"},
	{name: "transport_maps", place: inMain, want: "{own}", level: finding.Fail, when: wantsRouteMap, judge: judgeOwnTable,
		means: "nobody tells Postfix which recipients a direct route reaches, so all its mail goes by submission",
		why:   "the recipients that a direct route reaches; a table in main.cf, so that nobody needs the token service at RCPT", merge: mergeLast},
	{name: "transport_maps", id: "transport_maps.bare", place: inMain, want: "", level: finding.Fail, when: (*Setup).submits, judge: judgeBare,
		means: "an entry names a host without a transport: mail of mailboxes' senders for it leaves by the transport of sendas, with their credential, and waits because that host is not Microsoft's",
		do:    "write the transport before the host, smtp:[host] for :[host]; then, for a table in a file: postmap, and postfix reload"},
	{name: "transport_maps", id: "transport_maps.all", place: inMain, want: "", level: finding.Fail, when: (*Setup).submits, judge: judgeAll,
		means: "an entry for every recipient (*) leads all mail elsewhere, before Postfix looks at the sender: nothing leaves by Microsoft",
		do:    "take that entry out of the table, and write its transport and host into default_transport; then, for a table in a file: postmap, and type: {enable}"},
	{name: "smtpd_tls_ask_ccert", place: inSMTPD, want: "yes", level: finding.Fail, when: wantsCertificates,
		means: "clients are known by certificates, and Postfix asks for none",
		why:   "clients are known by their certificates"},
	{name: "smtpd_tls_fingerprint_digest", place: inSMTPD, want: "sha256", level: finding.Fail, when: func(p *Setup) bool { return p.Config.Policy != nil && p.Config.Policy.UsesFingerprints() },
		means: "clients are known by SHA-256 fingerprints, and Postfix makes others",
		why:   "and by their fingerprints"},

	// Out: one look-up is the right to send one message.
	{name: "default_transport", place: inMain, want: "{submission}", judge: judgeDefault, level: finding.Fail, when: (*Setup).leadsAll,
		means: "mail does not go to Microsoft's submission server by the transport that asks sendas",
		do:    "{enable}",
		why:   "everything leaves by Microsoft's submission server"},
	{name: "relay_transport", place: inMain, want: "{submission}", level: finding.Fail, when: relaysToMicrosoft,
		means: "mail for relay_domains does not go to Microsoft's submission server by the transport that asks sendas",
		do:    "{enable}",
		why:   "so does mail for relay_domains that have no transport of their own"},
	{name: "relayhost", place: inMain, want: "", level: finding.Warn, when: (*Setup).leadsAll, write: writeWrong,
		judge: func(v string, p *Setup) finding.Status { return okIf(!p.toMicrosoft(v)) },
		means: "what Postfix sends by another transport than that of sendas reaches Microsoft without credentials",
		do:    "{enable}",
		why:   "and nothing by another transport, which knows no mailbox"},
	{name: "sender_dependent_relayhost_maps", place: inMain, want: "", level: finding.Fail, when: (*Setup).leadsAll, judge: judgeRelayhosts,
		means: "default_transport overrules this table: mail of its senders leaves by Microsoft as well, where no mailbox may send as them",
		do:    "write its entries into sender_dependent_default_transport_maps, with the transport before the host (smtp:[host]), and type: {postconf} -X sender_dependent_relayhost_maps && {reload}"},
	{name: "sender_dependent_default_transport_maps", place: inMain, want: "{senders}", level: finding.Warn, judge: judgeSenderTable, merge: mergeFirst,
		when:  func(p *Setup) bool { return p.hasSenderTable() || len(p.accountRoutes()) > 0 },
		offer: func(p *Setup) bool { return p.senderTable() != "" },
		means: "the table was written for another configuration: senders that it does not know wait behind the mail of others, or do not come to the transport of sendas",
		do:    "{enable}",
		why:   "which senders leave by submission, and in which queue, so that none holds up another; a table in main.cf, so that nobody needs the token service at RCPT"},
	{name: "smtp_tls_security_level", place: inTransport, everyWay: true, want: "secure", level: finding.Fail,
		judge: func(v string, _ *Setup) finding.Status { return warnIf(v == "verify" || v == "fingerprint") },
		means: "a token may only be shown to a server that has proved to be Microsoft's; less than \"secure\" shows it to whoever answers",
		why:   "a token is shown to nobody but a server that has proved to be Microsoft's"},
	{name: "smtp_tls_wrappermode", place: inTransport, everyWay: true, want: "no", level: finding.Fail,
		means: "Microsoft has no implicit TLS (port 465), so no connection succeeds",
		why:   "Microsoft has STARTTLS alone"},
	{name: "tls_required_enable", place: inWays, want: "no", level: finding.Fail, judge: judgeTLSRequired,
		when:  func(p *Setup) bool { return p.knows("tls_required_enable") },
		means: "a message with the header \"TLS-Required: no\" leaves without TLS, or to a server that has not proved whose it is, and so does the token",
		why:   "no message lowers the security of its way out by a header \"TLS-Required: no\""},
	{name: "smtp_tls_policy_maps", place: inTransport, everyWay: true, want: "", level: finding.Fail, judge: judgePolicies,
		means: "a table lowers the security level for Microsoft's server, or may: the token is shown to whoever answers",
		why:   "no table lowers that"},
	{name: "smtp_tls_per_site", place: inTransport, everyWay: true, want: "", level: finding.Fail,
		means: "a table may turn TLS off for Microsoft's server (NONE)",
		why:   "nor does an old one"},
	{name: "smtp_tls_CAfile", place: inTransport, everyWay: true, want: "{bundle}", level: finding.Fail, judge: judgeTrust, strict: true,
		means: "Postfix trusts nobody, so it cannot tell Microsoft's server from another and defers all mail; or the file is not there (package ca-certificates)",
		why:   "whom to trust; unlike smtp_tls_CApath it is read before Postfix locks itself into its queue directory"},
	{name: "smtp_tls_CApath", place: inTransport, everyWay: true, want: "", level: finding.Warn, elsewhere: true,
		means: "others are trusted besides those of the bundle",
		why:   "nobody else"},
	{name: "smtp_tls_trust_anchor_file", place: inTransport, everyWay: true, want: "", level: finding.Fail,
		means: "Postfix trusts these alone instead of those of the bundle, so it takes another server for Microsoft's, or none",
		why:   "not even where main.cf says so"},
	{name: "smtp_tls_secure_cert_match", place: inTransport, everyWay: true, want: "nexthop, dot-nexthop", level: finding.Warn,
		judge: func(v string, p *Setup) finding.Status {
			return okIf(slices.Contains(cf.Split(v), "nexthop") || len(p.accountRoutes()) == 0 && slices.Contains(cf.Split(v), p.hosts()[0]))
		},
		means: "Postfix compares the certificate with something else than the name of the server",
		why:   "the certificate must be that of the server"},
	{name: "smtp_sasl_auth_enable", place: inTransport, want: "yes", level: finding.Fail,
		means: "Postfix does not authenticate, and Microsoft refuses every message with 530 5.7.57",
		why:   "Microsoft takes nothing without AUTH"},
	{name: "smtp_sasl_type", place: inTransport, want: "cyrus", level: finding.Fail,
		means: "XOAUTH2 comes by a plugin of Cyrus SASL",
		why:   "XOAUTH2 comes by a plugin of Cyrus SASL"},
	{name: "smtp_sasl_mechanism_filter", place: inTransport, want: "xoauth2", level: finding.Fail, judge: anyCase("xoauth2"),
		means: "another mechanism than XOAUTH2 would send the token as if it were a password, which Microsoft refuses",
		why:   "no other mechanism: it would send the token as if it were a password"},
	{name: "smtp_sasl_security_options", place: inTransport, want: "noanonymous, noplaintext", level: finding.Warn, judge: withWord("noplaintext"),
		means: "nothing but the security level keeps the token out of a session without TLS",
		why:   "XOAUTH2 shows the token to the server, as PLAIN shows the password: so never without TLS"},
	{name: "smtp_sasl_tls_security_options", place: inTransport, want: "noanonymous, noplaintext", level: finding.Warn, judge: withWord("noplaintext"),
		first: "smtp_sasl_tls_verified_security_options",
		means: "nothing but the security level keeps the token from a server with TLS that has not proved whose it is",
		why:   "nor to a server with TLS that has not proved whose it is"},
	{name: "smtp_sasl_tls_verified_security_options", place: inTransport, want: "noanonymous", level: finding.Fail, judge: onlyWords("noanonymous"),
		means: "this forbids mechanisms that show the password to the server, as XOAUTH2 does: Postfix finds no mechanism",
		why:   "but to one that has"},
	{name: "smtp_sender_dependent_authentication", place: inTransport, want: "yes", level: finding.Fail,
		means: "Postfix asks for the credential of the server instead of that of the sender, and sendas has none for it",
		why:   "the credential is that of the sender, not that of the server"},
	{name: "smtp_sasl_password_maps", place: inTransport, want: "{lease}", judge: judgeSocketmap("lease"), level: finding.Fail,
		means: "the look-up must come from smtp(8) itself to the socket of sendas alone: through proxymap or beside other tables, a session has no lease",
		why:   "one look-up is the right to send one message: it waits until the message may leave"},
	{name: "smtp_reply_filter", place: inTransport, want: "{reply}", judge: judgeSocketmap("reply"), level: finding.Fail,
		means: "sendas does not learn what became of a message: each counts as sent with {unseen} recipients, which leaves {unseenDay} messages a day, and mail over Microsoft's daily limit bounces instead of waiting",
		why:   "the token service sees what became of the message, and \"later\" is no longer taken for \"never\""},
	{name: "smtp_fallback_relay", place: inTransport, everyWay: true, want: "", level: finding.Fail,
		means: "what sendas or Microsoft will not let leave now leaves by this host instead, without a lease; after a refused connection the token is shown to it",
		why:   "what may not leave now waits, and leaves by no other host"},
	{name: "smtp_delivery_status_filter", place: inTransport, want: "", level: finding.Warn,
		means: "the table may turn \"later\" into \"never\": mail that waits for Microsoft's limits bounces",
		why:   "and comes back for no other reason than Microsoft's"},
	{name: "smtp_discard_ehlo_keywords", place: inTransport, want: "", level: finding.Fail,
		judge: func(v string, _ *Setup) finding.Status {
			return okIf(!slices.ContainsFunc(cf.Split(strings.ToLower(v)), func(w string) bool { return w == "starttls" || w == "auth" }))
		},
		means: "Postfix overlooks that Microsoft offers TLS or AUTH, and no message leaves",
		why:   "nothing that Microsoft offers is overlooked"},
	{name: "smtp_discard_ehlo_keyword_address_maps", place: inTransport, want: "", level: finding.Warn,
		means: "the table may make Postfix overlook that Microsoft offers TLS or AUTH",
		why:   "at none of its addresses"},
	{name: "smtp_sasl_auth_soft_bounce", place: inTransport, want: "yes", level: finding.Fail,
		means: "a token that is refused for a moment makes mail bounce",
		why:   "a token that is refused for a moment makes no mail bounce"},
	{name: "smtp_sasl_auth_cache_name", place: inTransport, want: "", level: finding.Fail,
		means: "a refused token is remembered for months as a wrong password",
		why:   "and is not remembered"},
	{name: "smtp_tls_connection_reuse", place: inTransport, want: "no", level: finding.Fail,
		means: "a message on a reused connection leaves without a look-up, so past all limits",
		why:   "one message a session: on a reused connection the next one would leave without asking"},
	{name: "smtp_connection_cache_on_demand", place: inTransport, want: "no", level: finding.Fail,
		means: "a message on a reused connection leaves without a look-up, so past all limits",
		why:   "the same without TLS"},
	{name: "smtp_connection_cache_destinations", place: inTransport, want: "", level: finding.Fail,
		means: "a message on a reused connection leaves without a look-up, so past all limits",
		why:   "nor for these"},
	{name: "smtp_generic_maps", id: "recipients", place: inTransport, want: "{recipient}", judge: judgeSocketmap("recipient"), level: finding.Warn,
		when:  countsExternal,
		means: "sendas does not learn who the recipients are: all of them count as external",
		why:   "the token service learns which recipients are external, and changes no address"},
	{name: "smtp_generic_maps", place: inTransport, everyWay: true, want: "", level: finding.Fail, judge: judgeSocketmap("recipient"),
		offer: func(p *Setup) bool { return !countsExternal(p) },
		means: "the sender is changed after sendas has decided on it, and Exchange Online refuses the message",
		why:   "nobody changes senders after the milter has decided on them"},
	{name: "smtp_header_checks", place: inTransport, everyWay: true, want: "", level: finding.Warn, elsewhere: true,
		means: rewriting, why: "nor their fields"},
	{name: "smtp_mime_header_checks", place: inTransport, everyWay: true, want: "", level: finding.Warn, means: rewriting, why: "nor those of a part"},
	{name: "smtp_nested_header_checks", place: inTransport, everyWay: true, want: "", level: finding.Warn, means: rewriting, why: "nor those of a message in it"},
	{name: "smtp_body_checks", place: inTransport, everyWay: true, want: "", level: finding.Warn, means: rewriting, why: "nor what was signed"},
	{name: "smtp_tls_loglevel", place: inTransport, want: "1", judge: anyCase("0", "1", "2"), level: finding.Fail,
		means: "what is sent within TLS, tokens too, is written into the mail log",
		why:   "more would write tokens into the mail log"},
	{name: "debug_peer_list", id: "debug_peer_list", place: inTransport, want: "", level: finding.Fail,
		means: "sessions with Microsoft are logged as with -v, tokens too",
		why:   "nor into the log of a session that somebody wants to see"},
	{name: "notify_classes", id: "notify_classes", place: inTransport, want: "resource, software", level: finding.Fail,
		judge: func(v string, _ *Setup) finding.Status {
			return okIf(!slices.Contains(cf.Split(v), "protocol"))
		},
		means: "transcripts of sessions with Microsoft are mailed to the postmaster, and a token may be in them",
		why:   "nor into a transcript that is mailed to the postmaster"},
	{name: "_destination_concurrency_limit", place: inQueue, want: "{connections}", level: finding.Warn,
		judge: func(v string, p *Setup) finding.Status {
			return within1to(3*max(1, len(p.Config.Mailboxes)))(v, p)
		},
		means: "Microsoft takes 3 messages of a mailbox at one time; more processes than that only wait",
		why:   "Microsoft takes 3 messages of a mailbox at one time"},
	// Together these two make the queue manager immune to failed sessions (postconf(5)).
	{name: "_destination_concurrency_failed_cohort_limit", place: inQueue, want: "0", level: finding.Warn, judge: isZero,
		means: "some failed sessions, of a sender that is no mailbox or may not send now, hold up the mail of all who share the queue for five minutes",
		why:   "what one sender may not send must not hold up others in the same queue for five minutes"},
	{name: "_destination_concurrency_negative_feedback", place: inQueue, want: "0", level: finding.Warn, judge: isZero,
		means: "failed sessions, of a sender that is no mailbox or may not send now, let the mail of all who share the queue leave one by one",
		why:   "nor slow them down"},
	{name: "_destination_recipient_limit", place: inQueue, want: "50", level: finding.Warn, judge: within1to(500),
		means: "Microsoft takes 500 recipients at once, and sendas keeps room for one delivery under the daily limit",
		why:   "sendas keeps room for one delivery under the daily limit", write: writeWrong},
	{name: "_destination_rate_delay", place: inQueue, want: "0s", level: finding.Warn, judge: anyCase("0", "0s"),
		means: "sendas keeps Microsoft's pace already; this delay comes on top of it",
		why:   "sendas keeps Microsoft's pace already; a delay would come on top", write: writeWrong},
	{name: "_transport_rate_delay", place: inQueue, want: "0s", level: finding.Warn, judge: anyCase("0", "0s"),
		means: "sendas keeps Microsoft's pace already; this delay comes on top of it",
		why:   "sendas keeps Microsoft's pace already; a delay would come on top", write: writeWrong},

	// In the way.
	{name: "notify_classes", place: inMain, want: "resource, software", level: finding.Fail, mend: without("protocol"),
		judge: func(v string, _ *Setup) finding.Status {
			return okIf(!slices.Contains(cf.Split(v), "protocol"))
		},
		means: "transcripts of SMTP sessions are mailed to the postmaster, and a token may be in them"},
	{name: "debug_peer_list", place: inMain, want: "", level: finding.Fail,
		means: "sessions with these hosts are logged as with -v, passwords and tokens too"},
	{name: "content_filter", place: inSMTPD, want: "", level: finding.Warn, judge: judgeFilter,
		means: "mail goes through a filter and comes back: sendas sees it twice, the second time from this host, and the filter may change it after the decision",
		do:    "give the smtpd that takes mail back from the filter \"-o content_filter= -o smtpd_milters= -o smtpd_recipient_restrictions=permit_mynetworks,reject\""},
	{name: "receive_override_options", place: inSMTPD, everyPort: true, want: "", level: finding.Fail, mend: without("no_milters"),
		judge: func(v string, _ *Setup) finding.Status {
			return okIf(!slices.Contains(cf.Split(v), "no_milters"))
		},
		means: "with no_milters for all mail, none passes sendas: it leaves as the device wrote it, and is refused or waits"},
	{name: "canonical_maps", place: inMain, want: "", level: finding.Warn, judge: judgeCanonical, means: rewritten,
		do: "take the senders of mailboxes out of it; where nothing else is in it, type: {postconf} -e 'canonical_maps = ' && {reload}"},
	{name: "sender_canonical_maps", place: inMain, want: "", level: finding.Warn, judge: judgeCanonical, means: rewritten,
		do: "take the senders of mailboxes out of it; where nothing else is in it, type: {postconf} -e 'sender_canonical_maps = ' && {reload}"},
	{name: "masquerade_domains", place: inMain, want: "", level: finding.Warn, judge: judgeMasquerade, means: rewritten,
		do: "take the senders of mailboxes out of it; where nothing else is in it, type: {postconf} -e 'masquerade_domains = ' && {reload}"},
	{name: "message_size_limit", place: inMain, want: "157286400", level: finding.Warn, judge: within1to(157286400), write: writeWrong,
		means: "mail that is larger than Microsoft takes is accepted here and bounces later",
		why:   "Microsoft takes no more; a device learns it at once, instead of a bounce that nobody reads"},
	{name: "maximal_queue_lifetime", place: inMain, want: "5d", level: finding.Warn,
		judge: func(v string, _ *Setup) finding.Status { return okIf(cf.Seconds(v, 24*60*60) >= 24*60*60) },
		means: "mail over Microsoft's daily limit waits for a day, and bounces before that"},
	{name: "always_add_missing_headers", place: inMain, want: "no", level: finding.Warn,
		means: "Postfix adds an empty From of its own before sendas sees that there was none"},
	{name: "smtputf8_autodetect_classes", place: inMain, want: "sendmail, verify", level: finding.Warn, judge: onlyWords("sendmail", "verify"),
		means: "Postfix asks Microsoft for SMTPUTF8 where no address needs it, and some of its servers answer 502 5.3.3"},
}

const rewriting = "a table of main.cf may change the message after sendas has decided on it, or send it another way"

const rewritten = "Postfix changes senders by this table before sendas sees them, and the envelope sender once more after it: where that is another address than the From, Exchange Online refuses the message, and it bounces"

func okIf(good bool) finding.Status {
	if good {
		return finding.OK
	}
	return ""
}

func warnIf(poor bool) finding.Status {
	if poor {
		return finding.Warn
	}
	return ""
}

// trustBundles are where distributions keep the certificates that a machine trusts.
var trustBundles = []string{"/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt", "/etc/ssl/ca-bundle.pem"}

// TrustBundle returns the one that is here.
func TrustBundle() string {
	for _, f := range trustBundles {
		if _, err := os.Stat(f); err == nil {
			return f
		}
	}
	return trustBundles[0]
}

// fill replaces what stands for names of this site.
func (p *Setup) fill(s string) string {
	return strings.NewReplacer(
		"{milter}", p.milterItem(), "{watcher}", p.watcherItem(), "{policy}", p.relative(p.Config.Milter.PolicyListen).String(),
		"{lease}", p.socketmap("lease"), "{reply}", p.socketmap("reply"), "{recipient}", p.socketmap("recipient"), "{route}", p.socketmap("route"),
		"{bundle}", cmp.Or(p.Config.Tenant.Endpoints.CAFile, TrustBundle()), "{own}", p.ownTable(), "{senders}", p.senders(), "{nexthop}", nextHop(p.Config.Tenant.Endpoints.Submission),
		"{connections}", strconv.Itoa(senders.Connections(p.Config)), "{submission}", p.submissionWay(), "{enable}", p.enable(), "{postconf}", p.inst.Command("postconf"), "{reload}", p.inst.Command("postfix")+" reload",
		"{connections}", strconv.Itoa(senders.Connections(p.Config)), "{unseen}", strconv.Itoa(p.Config.Token.RecipientsUnseen),
		"{unseenDay}", strconv.Itoa(limit.Microsoft().Recipients.N/max(1, p.Config.Token.RecipientsUnseen)),
	).Replace(s)
}

// checkSettings compares each parameter with what it should be.
func (p *Setup) checkSettings(s finding.Section) {
	rows := p.rows()
	for i := range rows {
		r := &rows[i]
		if !r.elsewhere && (r.when == nil || r.when(p)) {
			p.checkSetting(s, r)
		}
	}
}

// checkSetting looks at one parameter wherever it counts. Services that see main.cf's value share a
// line.
func (p *Setup) checkSetting(s finding.Section, r *settingRow) {
	switch r.place {
	case inMain:
		p.compare(s, r, nil, r.name, r.level)
	case inSMTPD:
		p.compare(s, r, nil, r.name, r.level)
		for _, v := range p.running("smtpd") {
			level := finding.Warn // few have to do with it
			if r.everyPort && !v.loopback() {
				level = r.level
			}
			if _, own := v.overrides[r.name]; own && !p.isWayBack(v) {
				p.compare(s, r, v, r.name, level)
			}
		}
	case inWays:
		p.compare(s, r, nil, r.name, r.level)
		for _, v := range p.ways() {
			if _, own := v.overrides[r.name]; own {
				p.compare(s, r, v, r.name, r.level)
			}
		}
	case inTransport:
		for _, v := range p.Transports {
			p.compare(s, r, v, r.name, r.level)
		}
	case inQueue:
		for _, v := range p.queues() {
			p.compare(s, r, nil, v.name+r.name, r.level)
		}
		for _, route := range p.accountRoutes() {
			p.compare(s, p.queueRow(r, route), nil, route.Transport+r.name, r.level)
		}
	}
}

// queues returns the transports whose queues matter: the one that submission is known by, where it
// is among them.
func (p *Setup) queues() []*entry {
	for i, v := range p.Transports {
		if v.name == p.submission() {
			return p.Transports[i : i+1]
		}
	}
	return p.Transports
}

// compare notes how a parameter stands for one service; nil is main.cf.
func (p *Setup) compare(s finding.Section, r *settingRow, v *entry, name string, level finding.Status) {
	value, want := p.Value(v, name), p.fill(r.want)
	if _, known := p.Main[name]; !known && r.place == inQueue { // the transport has none of its own
		value = p.Main["default"+r.name]
	}
	id, what := cmp.Or(r.id, name), name
	if v != nil {
		id, what = v.name+"."+id, name+" of "+v.Key()
	}
	status := finding.OK
	if value != want || r.strict {
		status = ""
		if r.judge != nil {
			status = r.judge(value, p)
		}
		status = cmp.Or(status, level)
	}
	a := finding.Advice{}
	if status != finding.OK {
		list := []cf.Setting{{Name: name, Value: p.mended(r, v, name, want)}}
		if f := settingNamed(r.first); f != nil {
			list = slices.Insert(list, 0, cf.Setting{Name: f.name, Value: p.fill(f.want)})
		}
		a = finding.Advice{Means: p.fill(r.means), Do: cmp.Or(p.fill(r.do), p.setAll(v, list))}
	}
	s.Note(status, id, what, cf.ShownParameter(name, value), a)
}

// mended is what a command writes in the place of a value: what others have put there stays.
func (p *Setup) mended(r *settingRow, v *entry, name, want string) string {
	raw, own := p.raw[name], false
	if v != nil {
		raw, own = v.overrides[name]
	}
	switch {
	case raw == "" || v != nil && !own || cf.Follows(raw):
		return want
	case r.mend != nil:
		return r.mend(raw)
	case r.merge != nil:
		value, _ := r.merge(p, raw, want)
		return value
	}
	return want
}

// without takes a word out of a list.
func without(word string) func(string) string {
	return func(value string) string {
		return strings.Join(slices.DeleteFunc(cf.Split(value), func(w string) bool { return strings.EqualFold(w, word) }), ", ")
	}
}

// settingNamed returns the row of a parameter, nil where there is none.
func settingNamed(name string) *settingRow {
	i := slices.IndexFunc(settings, func(r settingRow) bool { return r.name == name })
	if i < 0 {
		return nil
	}
	return &settings[i]
}

// ways returns the transports by which mail leaves for Microsoft: those that ask for a credential,
// and those of the other routes.
func (p *Setup) ways() []*entry {
	list := slices.Clone(p.Transports)
	if p.Config.Policy == nil {
		return list
	}
	for _, r := range p.Config.Policy.Routes() {
		if v := p.service(r.Transport, "unix"); v != nil && !slices.Contains(list, v) && (r.Type != policy.Submission || p.submits()) {
			list = append(list, v)
		}
	}
	return list
}

// judgeTLSRequired accepts what main.cf says for other mail where each way of ours says no for
// itself: smtp(8) then obeys its own.
func judgeTLSRequired(value string, p *Setup) finding.Status {
	ways := p.ways()
	open := slices.ContainsFunc(ways, func(v *entry) bool { return !strings.EqualFold(v.overrides["tls_required_enable"], "no") })
	return okIf(strings.EqualFold(value, "no") || len(ways) > 0 && !open)
}

// milterPlace returns where in a list of milters sendas stands and what is said of it there; -1 is
// nowhere.
func (p *Setup) milterPlace(value string) (place int, options []string) {
	for i, item := range cf.Split(value) {
		if parts := cf.Braced(item); len(parts) > 0 && p.sameSocket(parts[0], p.Config.Milter.Listen) {
			return i, parts[1:]
		}
	}
	return -1, nil
}

// judgeMilters accepts a list with sendas in it, unless its own default_action lets mail pass
// without it, or an older protocol is meant for it too.
func judgeMilters(value string, p *Setup) finding.Status {
	place, options := p.milterPlace(value)
	action := milterOption(options, "default_action")
	old := p.oldProtocol() && milterOption(options, "protocol") != "6"
	return okIf(place >= 0 && !old && (action == "" || keepsMail(action)))
}

// keepsMail reports whether mail waits at the client with that action of a milter's. Since 3.11,
// and in later patches of 3.10, shutdown is Postfix's default: it answers 421 where tempfail
// answers 451, and hangs up.
func keepsMail(action string) bool { return action == "tempfail" || action == "shutdown" }

// judgeDefaultAction accepts any action where sendas has one of its own in both lists: for a filter
// of spam another one may be right.
func judgeDefaultAction(value string, p *Setup) finding.Status {
	own := func(name string) bool {
		_, options := p.milterPlace(p.Main[name])
		return milterOption(options, "default_action") == "tempfail"
	}
	if own("smtpd_milters") && own("non_smtpd_milters") || keepsMail(value) {
		return finding.OK
	}
	return warnIf(value == "reject" || value == "quarantine")
}

func judgeOrder(value string, p *Setup) finding.Status {
	place, _ := p.milterPlace(value)
	return okIf(place <= 0)
}

func hasOtherMilters(p *Setup) bool {
	place, _ := p.milterPlace(p.Main["smtpd_milters"])
	return place >= 0 && len(cf.Split(p.Main["smtpd_milters"])) > 1
}

// wantsPolicy reports whether some client depends on the policy service. A sender can choose a
// connector without it.
func wantsPolicy(p *Setup) bool {
	if p.Config.Policy == nil || p.Config.Milter.PolicyListen == "" {
		return false
	}
	bySender := p.asksFor(p.Main["sender_dependent_default_transport_maps"], "transport")
	return p.Config.Policy.UsesFingerprints() || clientRoute(p, policy.Direct) || clientRoute(p, policy.Connector) && !bySender
}

func wantsRouteMap(p *Setup) bool { return clientRoute(p, policy.Direct) }

// clientRoute reports whether a client takes a route of the type.
func clientRoute(p *Setup, kind policy.RouteType) bool {
	if p.Config.Policy == nil {
		return false
	}
	return slices.ContainsFunc(p.Config.Clients, func(c config.Client) bool {
		r := p.Config.Policy.Route(c.Route)
		return r != nil && r.Type == kind
	})
}

func wantsCertificates(p *Setup) bool {
	return slices.ContainsFunc(p.Config.Clients, func(c config.Client) bool { return len(c.Subjects)+len(c.Fingerprints) > 0 })
}

// policyPlace returns where in a list of restrictions the policy service of sendas stands, and
// where a permission ends it; -1 is nowhere.
func (p *Setup) policyPlace(value string) (asked, ended int) {
	asked, ended = -1, -1
	list := cf.Split(value)
	for i, item := range list {
		switch {
		case item == "check_policy_service" && i+1 < len(list):
			if parts := cf.Braced(list[i+1]); asked < 0 && len(parts) > 0 && p.sameSocket(parts[0], p.Config.Milter.PolicyListen) {
				asked = i
			}
		case ended < 0 && (item == "permit" || strings.HasPrefix(item, "permit_")):
			ended = i
		}
	}
	return asked, ended
}

func asksPolicy(p *Setup) bool {
	asked, _ := p.policyPlace(p.Main["smtpd_recipient_restrictions"])
	return asked >= 0
}

func judgePolicy(value string, p *Setup) finding.Status {
	asked, ended := p.policyPlace(value)
	return okIf(asked >= 0 && (ended < 0 || asked < ended))
}

// judgeLate is for sites that can do without the policy service: a port with a list of its own need not
// ask it.
func judgeLate(value string, p *Setup) finding.Status {
	if asked, _ := p.policyPlace(value); asked < 0 {
		return finding.OK
	}
	return judgePolicy(value, p)
}

// judgeRelay accepts what Postfix itself accepts as a guard (smtpd_relay_restrictions of
// postconf(5)).
func judgeRelay(value string, p *Setup) finding.Status {
	guards := []string{"reject", "reject_unauth_destination", "defer", "defer_if_permit", "defer_unauth_destination"}
	list := slices.Concat(cf.Split(value), cf.Split(p.Main["smtpd_recipient_restrictions"]))
	return okIf(slices.ContainsFunc(list, func(w string) bool { return slices.Contains(guards, w) }))
}

// onlySendas reports whether all tables are those of sendas.
func (p *Setup) onlySendas(tables string) bool {
	return !slices.ContainsFunc(cf.Split(tables), func(t string) bool {
		return !strings.HasPrefix(t, "socketmap:") && judgeOwnTable(t, p) != finding.OK
	})
}

// hosts are the servers to which credentials are shown, that of submission first.
func (p *Setup) hosts() []string {
	host, _, _ := strings.Cut(p.Config.Tenant.Endpoints.Submission, ":")
	list := []string{host}
	for _, r := range p.accountRoutes() {
		host, _, _ := strings.Cut(strings.TrimPrefix(r.NextHop, "["), "]")
		list = append(list, host)
	}
	return list
}

// judgePolicies asks the tables as smtp(8) does (smtp_tls_policy_maps of postconf(5)): an entry for
// one of Microsoft's servers has to keep the level, and none is as good.
func judgePolicies(value string, p *Setup) finding.Status {
	keys := []string{nextHop(p.Config.Tenant.Endpoints.Submission)}
	for _, r := range p.accountRoutes() {
		keys = append(keys, r.NextHop)
	}
	for _, host := range p.hosts() {
		keys = append(keys, host, "."+host[strings.Index(host, ".")+1:])
	}
	for _, table := range cf.Split(value) {
		for _, key := range keys {
			policy, found, err := p.ask(table, key)
			if err != nil {
				return finding.Warn
			}
			if level, _, _ := strings.Cut(policy, " "); found && level != "secure" && level != "verify" {
				return ""
			}
		}
	}
	return finding.OK
}

// judgeTrust accepts any way to have trust anchors.
func judgeTrust(value string, p *Setup) finding.Status {
	if value != "" {
		_, err := os.Stat(value)
		return okIf(err == nil)
	}
	return okIf(slices.ContainsFunc(p.Transports, func(t *entry) bool {
		return p.Value(t, "smtp_tls_CApath") != "" || p.Value(t, "tls_append_default_CA") == "yes"
	}))
}

// judgeSocketmap accepts sendas' map of that name alone.
func judgeSocketmap(name string) func(string, *Setup) finding.Status {
	return func(value string, p *Setup) finding.Status {
		socket, ok := strings.CutPrefix(value, "socketmap:")
		if !ok {
			return ""
		}
		socket, ok = strings.CutSuffix(socket, ":"+name)
		return okIf(ok && p.sameSocket(socket, p.Config.Token.Listen))
	}
}

// countsExternal reports whether external recipients are limited, so that it matters who the
// recipients are.
func countsExternal(p *Setup) bool { return p.Config.Tenant.LimitsExternal() }

// judgeFilter accepts a way out of sendas' as the filter (docs/routes.md), and any other that gives
// mail back on a port of its own.
func judgeFilter(value string, p *Setup) finding.Status {
	name, _, _ := strings.Cut(value, ":")
	return okIf(p.hasRoute(name) || slices.ContainsFunc(p.running("smtpd"), func(v *entry) bool { return p.isWayBack(v) && !p.meetsSendas(v) }))
}
