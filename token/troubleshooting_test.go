package token

import (
	"maps"
	"slices"
	"strconv"
	"testing"
)

// TestTroubleshootingPage: the tables of codes are those that sendas explains codes with.
func TestTroubleshootingPage(t *testing.T) {
	checkPage(t, map[string][]string{"aadsts": aadstsRows(), "oauth": oauthRows(), "managed identity": platformRows()})
}

func explained(x explanation) string {
	meaning := x.meaning
	if x.temporary {
		meaning += " (passes by itself)"
	}
	return pageWords.Replace(meaning) + " | " + pageWords.Replace(x.act)
}

// aadstsRows are the codes by number. What one means for a federated credential follows it.
func aadstsRows() []string {
	rows := tableHead("code", "what it means", "what to do")
	codes := slices.Concat(slices.Collect(maps.Keys(byCode)), slices.Collect(maps.Keys(byFederatedCode)))
	slices.Sort(codes)
	for _, c := range slices.Compact(codes) {
		name := "AADSTS" + strconv.Itoa(c)
		if x, ok := byCode[c]; ok {
			rows = append(rows, tableRow(name, explained(x)))
		}
		if x, ok := byFederatedCode[c]; ok {
			rows = append(rows, tableRow(name+", `flow: federated`", explained(x)))
		}
	}
	return rows
}

func oauthRows() []string {
	rows := tableHead("error", "what it means", "what to do")
	for _, name := range slices.Sorted(maps.Keys(byError)) {
		rows = append(rows, tableRow("`"+name+"`", explained(byError[name])))
	}
	return append(rows, tableRow("any other", explained(unexplained)))
}

func platformRows() []string {
	rows := tableHead("what it means", "what to do")
	for _, x := range byPlatform {
		rows = append(rows, tableRow(explained(x.explanation)))
	}
	return rows
}
