package entra

import (
	"maps"
	"slices"
	"strconv"
	"testing"

	"github.com/sendas/sendas/token/pagetest"
)

// TestTroubleshootingPage: the tables of codes are those that sendas explains codes with.
func TestTroubleshootingPage(t *testing.T) {
	pagetest.Check(t, map[string][]string{"aadsts": aadstsRows(), "oauth": oauthRows(), "managed identity": platformRows()})
}

func explained(x explanation) string {
	meaning := x.meaning
	if x.temporary {
		meaning += " (passes by itself)"
	}
	return pagetest.Words.Replace(meaning) + " | " + pagetest.Words.Replace(x.act)
}

// aadstsRows are the codes by number. What one means for a federated credential follows it.
func aadstsRows() []string {
	rows := pagetest.Head("code", "what it means", "what to do")
	codes := slices.Concat(slices.Collect(maps.Keys(byCode)), slices.Collect(maps.Keys(byFederatedCode)))
	slices.Sort(codes)
	for _, c := range slices.Compact(codes) {
		name := "AADSTS" + strconv.Itoa(c)
		if x, ok := byCode[c]; ok {
			rows = append(rows, pagetest.Row(name, explained(x)))
		}
		if x, ok := byFederatedCode[c]; ok {
			rows = append(rows, pagetest.Row(name+", `flow: federated`", explained(x)))
		}
	}
	return rows
}

func oauthRows() []string {
	rows := pagetest.Head("error", "what it means", "what to do")
	for _, name := range slices.Sorted(maps.Keys(byError)) {
		rows = append(rows, pagetest.Row("`"+name+"`", explained(byError[name])))
	}
	return append(rows, pagetest.Row("any other", explained(unexplained)))
}

func platformRows() []string {
	rows := pagetest.Head("what it means", "what to do")
	for _, x := range byPlatform {
		rows = append(rows, pagetest.Row(explained(x.explanation)))
	}
	return rows
}
