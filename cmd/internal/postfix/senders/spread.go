package senders

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/sendas/sendas/cmd/internal/config"
	"github.com/sendas/sendas/token"
)

// letters are what names of senders are made of.
const letters = "abcdefghijklmnopqrstuvwxyz0123456789"

// Names are told apart by their last character, the one before it, and their first one, each in so
// many kinds: those that differ in a number, and most others, come into different queues.
const (
	lastKinds   = 12
	secondKinds = 3
	firstKinds  = 2
)

// Spread spreads the senders of patterns, such as "*@contoso.com", over queues, "" where there
// is no pattern or Postfix cannot have such a table in main.cf (before 3.7). Each of them is a
// mailbox of its own, whose backlog would hold up all the others in one queue; and nobody knows
// their names, so what tells them apart is what they are made of. Tagged addresses
// (user+tag@contoso.com) are left to the other table.
func (t Tables) Spread() string {
	var domains []string
	for _, domain := range t.Config.Policy.Domains() {
		if slices.ContainsFunc(t.Config.Mailboxes, func(m config.Mailbox) bool { return m.Pattern() && m.Address == "*@"+domain }) {
			domains = append(domains, domain)
		}
	}
	if len(domains) == 0 || !t.Regexp {
		return ""
	}
	queues, hop := token.NewQueues(t.Config.Policy, members(t.Config)), t.Config.Policy.Routes()[0].NextHop
	var b strings.Builder
	b.WriteString(spreadStart)
	for i, domain := range domains {
		if i > 0 {
			b.WriteString(", ")
		}
		at := "@" + strings.ReplaceAll(domain, ".", "[.]")
		// No dollar sign says that the domain ends here: Postfix would take it for a parameter's.
		fmt.Fprintf(&b, "{if /%s/}, {if !/%s./}, {if !/[+]/}, ", at, at)
		for last := range lastKinds {
			for second := range secondKinds {
				for first := range firstKinds {
					to := queues.SpreadHop(hop, ((i*lastKinds+last)*secondKinds+second)*firstKinds+first)
					fmt.Fprintf(&b, "{/^%s.*%s%s@/ %s:%s}, ", kind(first, firstKinds), kind(second, secondKinds), kind(last, lastKinds), t.Transport, to)
				}
			}
		}
		b.WriteString("{endif}, {endif}, {endif}")
	}
	b.WriteString(" }")
	return b.String()
}

// kind is the characters of the i-th of n kinds, as a regular expression. Names with other
// characters in these places are left to the other table.
func kind(i, n int) string {
	var of strings.Builder
	for j := i; j < len(letters); j += n {
		of.WriteByte(letters[j])
	}
	return "[" + of.String() + "]"
}

// spreadStart begins the table of Spread, a condition on the first domain.
const spreadStart = "regexp:{ "

// IsSpread reports whether Spread has written a table, be it for another configuration.
func IsSpread(table string) bool {
	return strings.HasPrefix(strings.Join(strings.Fields(table), " "), spreadStart+"{if /@")
}

// HasInlineRegexp reports whether a table of regular expressions can stand in main.cf of a Postfix
// with this mail_version and these kinds of tables (regexp_table(5)).
func HasInlineRegexp(version string, tables []string) bool {
	major, rest, _ := strings.Cut(version, ".")
	minor, _, _ := strings.Cut(rest, ".")
	minor, _, _ = strings.Cut(minor, "-") // of a snapshot
	m, err := strconv.Atoi(major)
	n, _ := strconv.Atoi(minor)
	return err == nil && (m > 3 || m == 3 && n >= 7) && slices.Contains(tables, "regexp")
}
