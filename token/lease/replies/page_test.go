package replies

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/sendas/sendas/token/pagetest"
)

// TestTroubleshootingPageOfReplies: the table of replies is the one that sendas explains them with.
func TestTroubleshootingPageOfReplies(t *testing.T) {
	pagetest.Check(t, map[string][]string{"replies": pageReplies()})
}

// pageReplies are the replies by code. The rows of one code are in the order in which sendas looks
// for them: the first that fits counts.
func pageReplies() []string {
	lines := pagetest.Head("reply", "with the words", "what it means", "class", "what to do", "what Postfix does")
	sorted := slices.Clone(rows)
	slices.SortStableFunc(sorted, func(a, b row) int { return slices.Compare(replyOrder(a), replyOrder(b)) })
	for _, r := range sorted {
		keyword := ""
		if r.keyword != "" {
			keyword = "`" + r.keyword + "`"
		}
		lines = append(lines, pagetest.Row(replyName(r), keyword, pagetest.Words.Replace(r.meaning), className(r), pagetest.Words.Replace(r.act), postfixDoes(r)))
	}
	return lines
}

// replyOrder is by SMTP's code and the numbers of the enhanced one. What is for any code comes
// after what is for one.
func replyOrder(r row) []int {
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

func replyName(r row) string {
	if len(r.code) == 1 && r.enhanced == "" && r.keyword == "" {
		return "any other " + r.code + "xx"
	}
	if len(r.code) == 1 {
		return strings.TrimSpace(r.code + "xx " + r.enhanced)
	}
	return strings.TrimSpace(r.code + " " + r.enhanced)
}

// className says when the message can leave, and what the reply is about.
func className(r row) string { return fmt.Sprintf("`%s`: %s, %s", r.class, r.when, r.of) }

// answersAUTH are the enhanced codes of refusals of AUTH besides 535. Postfix takes all of those
// for temporary (smtp_sasl_auth_soft_bounce, as smtp_sasl_glue.c applies it).
var answersAUTH = []string{"5.7.30", "5.5.121-126", "5.5.127", "5.7.4"}

// postfixDoes says what becomes of the message.
func postfixDoes(r row) string {
	switch {
	case r.when == Never:
		return "returns it to its sender"
	case r.code[0] == '4', r.code == "535", slices.Contains(answersAUTH, r.enhanced):
		return "keeps it"
	case len(r.code) == 1:
		return "keeps it: sendas makes 4xx of the code"
	}
	return fmt.Sprintf("keeps it: sendas makes %s of the code", strings.TrimSpace(later(r.code, r.enhanced, r.when)))
}
