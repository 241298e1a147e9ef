package lease

import (
	"encoding/base64"
	"regexp"
	"strings"

	"github.com/sendas/sendas/internal/xoauth2"
	"github.com/sendas/sendas/token/entra"
)

const (
	// shortPart is from how many bytes on a part of what AUTH was given is hidden. The first of
	// them are the same for every token.
	shortPart = 24
	// longWord is how long a word is that must be a token, or what AUTH is made of: no reply of
	// Exchange Online has so long a one, but for the Message-ID.
	longWord = 100
)

// wordForm finds what could be a token, whole or in part, as it is or in base64.
var wordForm = regexp.MustCompile(`[A-Za-z0-9._~+/=-]{24,}`)

// Hide returns a reply without the token that the server repeats in it, whole or in part, as it is
// or as the answer to AUTH that it was shown in: the reply goes on to logs, Postfix's too, and into
// the report that a sender gets. user and access are what AUTH was given; where access is not
// known, "", only what is too long for anything else is hidden. The code of the reply stays, and so
// do a Message-ID and a server's challenge.
func Hide(reply, user string, access entra.Secret) string {
	if len(reply) < len("250 ")+shortPart {
		return reply
	}
	code, text := reply[:4], reply[4:]
	var said []string
	if access != "" {
		_, initial, _ := xoauth2.NewClient(user, string(access)).Start() // it has no error
		said = []string{string(access), base64.StdEncoding.EncodeToString(initial)}
	}
	var clean strings.Builder
	clean.WriteString(code)
	last := 0
	for _, at := range wordForm.FindAllStringIndex(text, -1) {
		word := text[at[0]:at[1]]
		isID := at[0] > 0 && text[at[0]-1] == '<' && strings.HasPrefix(text[at[1]:], "@")
		long := len(word) >= longWord && !isID && code[0] != '3'
		if !long && !partOf(word, said) {
			continue
		}
		clean.WriteString(text[last:at[0]])
		clean.WriteString(entra.Redacted)
		last = at[1]
	}
	clean.WriteString(text[last:])
	return clean.String()
}

// partOf reports whether a word of at least shortPart bytes has a part of what was said.
func partOf(word string, said []string) bool {
	for i := range len(word) - shortPart + 1 {
		for _, s := range said {
			if strings.Contains(s, word[i:i+shortPart]) {
				return true
			}
		}
	}
	return false
}
