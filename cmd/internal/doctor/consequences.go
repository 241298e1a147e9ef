package doctor

import (
	"slices"
	"strings"

	"github.com/sendas/sendas/cmd/internal/finding"
)

// follows says which findings about Postfix come of which others: where the first is there, the
// others need nothing done about them.
var follows = []struct {
	cause string
	of    []string // the beginnings of ids
}{
	{"postfix.milter_protocol", []string{"postfix.smtpd_milters", "postfix.non_smtpd_milters"}},
	{"postfix.shape", []string{"postfix.route.submission", "postfix.unused.sendas_"}},
	{"postfix.here.", []string{"classes.kept"}},
	{"postfix.transport_maps", []string{"classes.kept"}},
	{"postfix.canonical_maps", []string{"classes.kept"}},
	{"postfix.default_transport", []string{"classes.kept", "postfix.sender_dependent_default_transport_maps", "postfix.way"}},
}

// spareConsequences turns findings that come of others into what was not looked at: one cause is one
// finding.
func spareConsequences(list []finding.Check) {
	for _, f := range follows {
		i := slices.IndexFunc(list, func(c finding.Check) bool { return bad(&c) && strings.HasPrefix(c.ID, f.cause) })
		if i < 0 {
			continue
		}
		for j := range list {
			c := &list[j]
			if j != i && bad(c) && slices.ContainsFunc(f.of, func(id string) bool { return strings.HasPrefix(c.ID, id) }) {
				c.Status, c.Found, c.Means, c.Do, c.Passes = finding.Skip, c.Found+": comes of "+list[i].What, "", "", false
			}
		}
	}
}
