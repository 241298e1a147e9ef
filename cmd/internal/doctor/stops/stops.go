// Package stops looks at what of Postfix's own settings stops mail, or a part of it, whatever sendas
// does: sizes, tables that were never made, transports that are kept back.
package stops

import (
	"os"
	"regexp"
	"slices"
	"strings"

	"github.com/sendas/sendas/cmd/internal/finding"
	"github.com/sendas/sendas/cmd/internal/postfix"
)

// Advices is about tables that Postfix looks things up in, and about what keeps mail back.
var Advices = map[string]finding.Advice{
	"no-aliases": {Means: "each look-up in it fails, so mail to users of this host (root, postmaster) is refused with 451 or waits", Do: "{touch}{newaliases} && {postfix} reload"},
	"no-index":   {Means: "each look-up in it fails, so mail is refused with 451 4.3.0 or waits", Do: "{touch}{postmap} {table} && {postfix} reload"},
	"old-index":  {Means: "what was changed in the file since then is not in force", Do: "{postmap} {table}"},
	"deferred":   {Means: "mail of the transport {transport} is not sent until somebody types {postqueue} -f", Do: "{set}"},
	"disabled":   {Means: "master(8) does not run this service", Do: "{set}"},
}

// Check looks at all of them.
func Check(s finding.Section, p *postfix.Setup) {
	checkSizes(s, p)
	checkTables(s, p)
	checkKept(s, p)
}

// indexed are the kinds of tables that Postfix makes from a file, and how the made file ends
// (DATABASE_README). Those of lmdb, cdb and the Berkeley kinds are alike in all that matters here.
var indexed = map[string]string{"hash": ".db", "btree": ".db", "lmdb": ".lmdb", "cdb": ".cdb", "dbm": ".pag", "sdbm": ".pag"}

var indexedTable = regexp.MustCompile(`\b(hash|btree|lmdb|cdb|dbm|sdbm):(/[^\s,}]+)`)

// ownTables are made by Postfix's own daemons, when they need them.
var ownTables = regexp.MustCompile(`cache|verify_map$|_database$`)

// checkTables looks whether the tables that Postfix reads were made, and after the last change of
// their files.
func checkTables(s finding.Section, p *postfix.Setup) {
	seen, good := make(map[string]bool), true
	for _, name := range p.Explicit() {
		if ownTables.MatchString(name) && name != "alias_database" || strings.HasPrefix(name, "proxy_") { // what may be asked is not asked
			continue
		}
		for _, m := range indexedTable.FindAllStringSubmatch(p.Main[name], -1) {
			if seen[m[0]] {
				continue
			}
			seen[m[0]] = true
			good = checkTable(s, p, name, m[1], m[2]) && good
		}
	}
	if good && len(seen) > 0 {
		s.Ok("tables", "tables", "all %d are made, and newer than their files", len(seen))
	}
}

// checkTable looks at one table, and reports whether it is as it should be.
func checkTable(s finding.Section, p *postfix.Setup, name, kind, file string) bool {
	id, what, touch := "table."+file, name+" "+kind+":"+file, ""
	source, err := os.Stat(file)
	if err != nil {
		touch = "touch " + file + " && "
	}
	aliases := strings.HasPrefix(name, "alias_")
	a := func(key string) finding.Advice {
		tool, all := "postmap", "newaliases"
		if aliases {
			tool = "postalias"
		}
		if p.Command("x") != "x" { // newaliases is for the default instance
			all = p.Command("postalias") + " " + kind + ":" + file
		}
		return Advices[key].With("touch", touch, "newaliases", all, "postmap", p.Command(tool), "postfix", p.Command("postfix"), "table", kind+":"+file)
	}
	index, indexErr := os.Stat(file + indexed[kind])
	switch {
	case indexErr != nil && aliases:
		s.Warn(id, what, "was never made", a("no-aliases"))
	case indexErr != nil:
		s.Fail(id, what, "was never made", a("no-index"))
	case err == nil && source.ModTime().After(index.ModTime()):
		s.Warn(id, what, "is older than its file", a("old-index"))
	default:
		return true
	}
	return false
}

// checkKept looks at settings by which mail for Microsoft stays in the queue, whatever else is right.
func checkKept(s finding.Section, p *postfix.Setup) {
	t := p.Submission()
	if t == nil {
		return
	}
	name := strings.TrimSuffix(t.Key(), "/unix")
	without := func(setting, item string) string {
		rest := slices.DeleteFunc(p.Items(setting), func(i string) bool { return i == item })
		return p.Cure(setting, strings.Join(rest, " "))
	}
	if slices.Contains(p.Items("defer_transports"), name) {
		s.Fail("defer_transports", "defer_transports", p.Main["defer_transports"],
			Advices["deferred"].With("transport", name, "postqueue", p.Command("postqueue"), "set", without("defer_transports", name)))
	}
	for _, item := range p.Items("master_service_disable") {
		if slices.Contains([]string{"unix", name + ".unix", name + "/unix", "inet", "smtp.inet", "smtp/inet"}, item) {
			s.Fail("master_service_disable", "master_service_disable", p.Main["master_service_disable"], Advices["disabled"].With("set", without("master_service_disable", item)))
			return
		}
	}
}
