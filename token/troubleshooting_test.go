package token

import (
	"flag"
	"fmt"
	"maps"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
)

var updatePage = flag.Bool("update-page", false, "write the tables of docs/troubleshooting.md anew")

const troubleshooting = "../docs/troubleshooting.md"

// TestTroubleshootingPage: the tables of the page are those that sendas explains codes with; neither misses a row.
func TestTroubleshootingPage(t *testing.T) {
	b, err := os.ReadFile(troubleshooting)
	if err != nil {
		t.Fatal(err)
	}
	page := string(b)
	for name, rows := range pageTables() {
		before, rest, ok := strings.Cut(page, "<!-- begin "+name+" -->\n")
		have, after, end := strings.Cut(rest, "<!-- end "+name+" -->\n")
		if !ok || !end {
			t.Errorf("the page has no place for the table %q", name)
			continue
		}
		if *updatePage {
			page = before + "<!-- begin " + name + " -->\n" + strings.Join(rows, "") + "<!-- end " + name + " -->\n" + after
			continue
		}
		compareRows(t, name, slices.Collect(strings.Lines(have)), rows)
	}
	if *updatePage {
		if err := os.WriteFile(troubleshooting, []byte(page), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

// compareRows says which rows only one side has.
func compareRows(t *testing.T, name string, have, want []string) {
	t.Helper()
	const hint = `type "go test ./token -run TestTroubleshootingPage -update-page"`
	for _, row := range want {
		if !slices.Contains(have, row) {
			t.Errorf("the table %q misses a row (%s):\n%s", name, hint, row)
		}
	}
	for _, row := range have {
		if !slices.Contains(want, row) {
			t.Errorf("the table %q has a row that sendas does not have (%s):\n%s", name, hint, row)
		}
	}
	if !slices.Equal(have, want) && !t.Failed() {
		t.Errorf("the rows of the table %q are in another order (%s)", name, hint)
	}
}

// pageTables makes the tables of the page, line by line.
func pageTables() map[string][]string {
	return map[string][]string{"aadsts": aadstsRows(), "oauth": oauthRows(), "managed identity": platformRows(), "replies": pageReplies()}
}

// pageWords are the placeholders of explanations as the page has them.
var pageWords = strings.NewReplacer("{credential}", "CREDENTIAL", "{client_id}", "CLIENT_ID", "{file}", "FILE", "|", `\|`)

func tableHead(columns ...string) []string {
	return []string{tableRow(columns...), tableRow(slices.Repeat([]string{"---"}, len(columns))...)}
}

func tableRow(cells ...string) string { return "| " + strings.Join(cells, " | ") + " |\n" }

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

// pageReplies are the replies by code. The rows of one code are in the order in which sendas looks for them: the first that fits counts.
func pageReplies() []string {
	rows := tableHead("reply", "with the words", "what it means", "what to do", "what Postfix does")
	sorted := slices.Clone(replyRows)
	slices.SortStableFunc(sorted, func(a, b replyRow) int { return slices.Compare(replyOrder(a), replyOrder(b)) })
	for _, r := range sorted {
		keyword := ""
		if r.keyword != "" {
			keyword = "`" + r.keyword + "`"
		}
		rows = append(rows, tableRow(replyName(r), keyword, pageWords.Replace(r.meaning), pageWords.Replace(r.act), postfixDoes(r)))
	}
	return rows
}

// replyOrder is by SMTP's code and the numbers of the enhanced one. What is for any code comes after what is for one.
func replyOrder(r replyRow) []int {
	const last = 1 << 20
	code, _ := strconv.Atoi(r.code)
	if len(r.code) == 1 {
		code += last
	}
	order := []int{code}
	if r.enhanced == "" {
		return append(order, last)
	}
	low, _, _ := strings.Cut(r.enhanced, "-")
	for part := range strings.SplitSeq(low, ".") {
		n, _ := strconv.Atoi(part)
		order = append(order, n)
	}
	return order
}

func replyName(r replyRow) string {
	if len(r.code) == 1 {
		return "any other " + r.code + "xx"
	}
	return strings.TrimSpace(r.code + " " + r.enhanced)
}

// answersAUTH are the enhanced codes of refusals of AUTH besides 535. Postfix takes all of those for temporary
// (smtp_sasl_auth_soft_bounce, as smtp_sasl_glue.c applies it).
var answersAUTH = []string{"5.7.30", "5.5.124", "5.5.127", "5.7.4"}

// postfixDoes says what becomes of the message.
func postfixDoes(r replyRow) string {
	switch {
	case r.later != "":
		return fmt.Sprintf("keeps it: sendas makes %s of the code", strings.TrimSpace(r.later))
	case r.class == ClassNoAuth:
		return "keeps it: sendas makes 450 4.7.1 of the code"
	case r.code[0] == '4', r.code == "535", slices.Contains(answersAUTH, r.enhanced):
		return "keeps it"
	}
	return "returns it to its sender"
}
