package postfix

import (
	"path/filepath"
	"slices"
	"strings"

	"github.com/sendas/sendas/cmd/internal/finding"
	"github.com/sendas/sendas/cmd/internal/postfix/cf"
	"github.com/sendas/sendas/internal/exit"
)

// A host on which sendas only observes has nothing but the milter, and one that mail does not depend
// on: where it is away, or slow, mail goes on without it.

// leadsNothing is that mail leaves as it did before sendas.
const leadsNothing = "nothing"

// observing are the settings of such a host, and what keeps mail from being seen.
var observing = []settingRow{
	{name: "smtpd_milters", place: inSMTPD, want: "{watcher}", judge: judgeWatcher, level: finding.Fail,
		means: "mail from the network does not pass sendas, or waits or is refused where sendas is away",
		why:   "sendas looks at who sends what as whom; it changes and refuses nothing, and where it is away, mail goes on without it", merge: mergeMilter},
	{name: "non_smtpd_milters", place: inMain, want: "{watcher}", judge: judgeWatcher, level: finding.Fail,
		means: "mail of programs on this host (sendmail, cron) does not pass sendas, or waits where sendas is away",
		why:   "the same for mail of programs on this host", merge: mergeMilter},
	{name: "smtpd_milter_maps", place: inSMTPD, want: "", judge: judgeMilterMaps, level: finding.Warn,
		means: "mail of these networks does not pass sendas, so it is not seen",
		do:    "take the networks out of that table, if what they send is of interest"},
	{name: "receive_override_options", place: inSMTPD, want: "", level: finding.Warn, mend: without("no_milters"),
		judge: func(v string, _ *Setup) finding.Status {
			return okIf(!slices.Contains(cf.Split(v), "no_milters"))
		},
		means: "mail at this port passes no milter, so it is not seen"},
	{name: "default_transport", place: inMain, want: "smtp", level: finding.Fail, judge: judgeLeft,
		means: "mail goes to Microsoft's submission server, and sendas does not change its senders: it is refused, or waits",
		do:    "for the real thing take mode: observe out of sendas.yaml, and type: systemctl reload sendas-milter; to look on, type: {enable}"},
	{name: "sender_dependent_default_transport_maps", place: inMain, want: "", level: finding.Fail, judge: judgeLeft,
		means: "mail of mailboxes' senders goes to Microsoft's submission server, and sendas does not see that all of it may: some is refused, or waits",
		do:    "for the real thing take mode: observe out of sendas.yaml, and type: systemctl reload sendas-milter; to look on, type: {enable}"},
}

// rows are the settings that matter here.
func (p *Setup) rows() []settingRow {
	if p.Config.Observes() {
		return observing
	}
	return settings
}

// watcherItem is how a list of milters names one that only looks. A milter that hangs holds up each
// message for a few seconds, and Postfix's own times are up to five minutes (milter_content_timeout).
func (p *Setup) watcherItem() string {
	options := ", connect_timeout=2s, command_timeout=3s, content_timeout=5s, default_action=accept"
	if p.oldProtocol() {
		options = ", protocol=6" + options
	}
	return "{ " + p.relative(p.Config.Milter.Listen).String() + options + " }"
}

// judgeWatcher accepts a list with sendas in it, if nobody depends on it.
func judgeWatcher(value string, p *Setup) finding.Status {
	place, options := p.milterPlace(value)
	old := p.oldProtocol() && milterOption(options, "protocol") != "6"
	return okIf(place >= 0 && !old && milterOption(options, "default_action") == "accept")
}

// judgeLeft accepts all that leads no mail to a transport of sendas.
func judgeLeft(value string, p *Setup) finding.Status {
	return okIf(!slices.ContainsFunc(p.Transports, func(t *entry) bool {
		return slices.ContainsFunc(cf.Split(value), func(item string) bool { return leadsTo(item, t.name) || p.asksFor(item, "transport") })
	}))
}

// leadsTo reports whether a setting, or an entry of a table in main.cf, names a transport.
func leadsTo(item, transport string) bool {
	if list, inline := cf.InlineEntries(item); inline {
		return slices.ContainsFunc(list, func(e cf.Setting) bool { return leadsTo(e.Value, transport) })
	}
	name, _, _ := strings.Cut(item, ":")
	return name == transport
}

// checkObserving is Check where sendas only observes.
func (p *Setup) checkObserving(s finding.Section) {
	version := p.Main["mail_version"]
	if slices.Compare(versionNumbers(version), oldestObserved[:]) < 0 {
		s.Fail("version", "version", version, finding.Advice{Means: "this version cannot be told that mail goes on where a milter is away", Do: "update Postfix to 3.0 or newer"})
	} else {
		s.Ok("version", "version", "%s", version)
	}
	p.checkSettings(s)
	for _, r := range p.references()[:2] { // the milters
		for _, v := range r.services {
			p.checkReference(s, r.name, v)
		}
	}
	if path := p.Config.Milter.Listen.Path(); path != "" {
		p.checkFolderOf(s, filepath.Dir(path))
	}
	s.Skip("shape", "mail to Microsoft", "sendas only observes, so none is led there")
}

// oldestObserved has options of a milter's own (MILTER_README).
var oldestObserved = [2]int{3, 0}

// fits reports whether a command and the configuration mean the same mode.
func (j *Job) fits(observes bool) error {
	switch {
	case j.Observe && !observes:
		return exit.Errorf(exit.Config, `write "milter: {mode: observe}" there, and type: systemctl reload sendas-milter`,
			"--observe: %s does not say milter.mode: observe, so mail would be changed and refused", j.File)
	case !j.Observe && observes:
		return exit.Errorf(exit.Config, `to look on, type: sendas postfix enable --observe; for the real thing take "mode: observe" out of that file ("sendas check" says what it needs), and type: systemctl reload sendas-milter`,
			"%s says milter.mode: observe, so senders would reach Microsoft as devices write them, and be refused", j.File)
	}
	return nil
}
