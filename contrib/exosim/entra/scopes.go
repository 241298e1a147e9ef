package entra

import (
	"slices"
	"strings"
)

// scopes is a scope list of a flow with a user: permissions of one resource.
type scopes struct {
	resource    string
	permissions []string // "SMTP.Send"
	offline     bool     // offline_access: a refresh token is wanted
	openID      bool     // an id_token is wanted
}

// exchangePermissions are the delegated ones that Exchange Online has for mail
// programs; .default stands for the first, which the app registered.
var exchangePermissions = []string{"SMTP.Send", "IMAP.AccessAsUser.All", "POP.AccessAsUser.All", "EWS.AccessAsUser.All", "Mail.Send"}

// parseScopes reads a scope list. Words without a resource are OpenID's, or
// permissions of Graph, which is how a forgotten resource ends in a token that
// Exchange refuses. several is the code for a list with two resources, for which
// the pages differ.
func (l *Login) parseScopes(q *tokenQuery, text string, several int) (scopes, *refusal) {
	var sc scopes
	for _, word := range strings.Fields(text) {
		switch word {
		case "offline_access":
			sc.offline = true
			continue
		case "openid", "profile", "email":
			sc.openID = true
			continue
		}
		resource, permission := splitScope(word)
		if sc.resource != "" && sc.resource != resource {
			return sc, l.refuseFor(q, several, "{scope}", text)
		}
		sc.resource = resource
		sc.permissions = append(sc.permissions, permission)
	}
	return l.checkScopes(q, sc, text)
}

func splitScope(word string) (resource, permission string) {
	slash := strings.LastIndexByte(word, '/')
	if slash < 0 {
		return graph, word
	}
	return strings.TrimSuffix(word[:slash], "/"), word[slash+1:]
}

func (l *Login) checkScopes(q *tokenQuery, sc scopes, text string) (scopes, *refusal) {
	if sc.resource == "" {
		if !sc.openID && !sc.offline {
			return sc, l.refuseFor(q, 900144)
		}
		sc.resource, sc.permissions = graph, []string{"User.Read"}
	}
	if !slices.Contains(resources, sc.resource) {
		return sc, l.unknownResource(q, sc.resource)
	}
	for i, p := range sc.permissions {
		switch {
		case p == ".default":
			if app := l.dir.App(q.clientID); app != nil && len(app.Delegated) > 0 {
				sc.permissions = slices.Replace(sc.permissions, i, i+1, app.Delegated...)
				return sc, nil
			}
			sc.permissions[i] = exchangePermissions[0]
		case sc.resource != graph && !slices.Contains(exchangePermissions, p):
			return sc, l.refuseFor(q, 70011, "{scope}", text)
		}
	}
	return sc, nil
}

// claim is the scp of the access token.
func (sc scopes) claim() string { return strings.Join(sc.permissions, " ") }

// String is the scope of the answer: with the resource, and without what is no
// permission of it.
func (sc scopes) String() string {
	var words []string
	for _, p := range sc.permissions {
		words = append(words, sc.resource+"/"+p)
	}
	return strings.Join(words, " ")
}
