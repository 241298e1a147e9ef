package entra

import (
	"cmp"
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

// aadstsRows are the codes by number. What one means for a signed-in user or a federated credential
// follows it.
func aadstsRows() []string {
	return explainedRows("code", func(code int) string { return "AADSTS" + strconv.Itoa(code) }, byCode, byDeviceCode, byDelegatedCode, byFederatedCode)
}

func oauthRows() []string {
	rows := explainedRows("error", func(name string) string { return "`" + name + "`" }, byError, byDeviceError, byDelegatedError, nil)
	return append(rows, pagetest.Row("any other", explained(unexplained)))
}

func explainedRows[K cmp.Ordered](head string, name func(K) string, general, device, user, federated map[K]explanation) []string {
	rows := pagetest.Head(head, "what it means", "what to do")
	keys := slices.Concat(slices.Collect(maps.Keys(general)), slices.Collect(maps.Keys(device)), slices.Collect(maps.Keys(user)), slices.Collect(maps.Keys(federated)))
	slices.Sort(keys)
	for _, k := range slices.Compact(keys) {
		for _, table := range []struct {
			of   string
			rows map[K]explanation
		}{{"", general}, {"", device}, {", for a signed-in user", user}, {", `flow: federated`", federated}} {
			if x, ok := table.rows[k]; ok {
				rows = append(rows, pagetest.Row(name(k)+table.of, explained(x)))
			}
		}
	}
	return rows
}

func platformRows() []string {
	rows := pagetest.Head("what it means", "what to do")
	for _, x := range byPlatform {
		rows = append(rows, pagetest.Row(explained(x.explanation)))
	}
	return rows
}
