package doctor

import (
	"errors"
	"slices"
	"strings"

	"github.com/sendas/sendas/cmd/internal/finding"
	"github.com/sendas/sendas/token/entra"
	"github.com/sendas/sendas/token/entra/inspect"
	"github.com/sendas/sendas/token/lease/replies"
)

// What every way to mend a refused sign-in ends with.
const (
	orAlias = `. Where {mailbox} is an alias, or is not spelt so, "Get-Recipient {mailbox} | fl PrimarySmtpAddress" says what to write in sendas.yaml`
	slow    = ". A fresh grant takes up to two hours, so wait before changing anything else"
)

// refusedAdvice is about an AUTH that Exchange Online refuses with a token in which nothing is wrong.
var refusedAdvice = map[string]finding.Advice{
	"classic": {Means: "the token is right and is that of the app {app} with the role SMTP.SendAsApp: either Exchange Online does not know its service principal by the object id {object}, " +
		"or that has no FullAccess on {mailbox}",
		Do: `in Exchange Online PowerShell: Get-ServicePrincipal | fl AppId,ObjectId; where {object} is missing: New-ServicePrincipal -AppId {app} -ObjectId {object}; ` +
			`then: Add-MailboxPermission {mailbox} -User {object} -AccessRights FullAccess` + slow + orAlias},
	"rbac": {Means: "the token is right and is that of the app {app} without roles (App RBAC): {mailbox} is not in the scope of its role Application SMTP.SendAsApp, " +
		"or Exchange Online does not know its service principal by the object id {object}",
		Do: `in Exchange Online PowerShell: Test-ServicePrincipalAuthorization -Identity {app} -Resource {mailbox}; where it says nothing: ` +
			`New-ServicePrincipal -AppId {app} -ObjectId {object}; where InScope is False, put {mailbox} into the scope: Get-ManagementScope` + slow + orAlias},
	"own": {Means: "the token is right and is that of {user}: SMTP AUTH is switched off for {mailbox}, or its sign-in is blocked",
		Do: `in Exchange Online PowerShell: Set-CASMailbox {mailbox} -SmtpClientAuthenticationDisabled $false` + slow + orAlias},
	"other": {Means: "the token is right and is that of the user {user}, who has no FullAccess on {mailbox}",
		Do: `in Exchange Online PowerShell: Add-MailboxPermission {mailbox} -User {user} -AccessRights FullAccess` + slow + orAlias},
}

// explainRefusal says what a refused AUTH comes from, by what the token says of itself and by the
// configuration, and reports whether it could. What is wrong in the token was said already, and the
// refusal follows from it.
func (d *Walk) explainRefusal(s finding.Section, p patient, t *entra.Token, err error) bool {
	const id, what = "auth", "AUTH XOAUTH2"
	f, ok := errors.AsType[*smtpFault](err)
	if !ok || replies.Explain(f.found).Class != replies.Auth || !strings.HasPrefix(f.found, "535") {
		return false
	}
	claims, err := inspect.Parse(string(t.Access))
	if err != nil {
		return false // opaque: it says nothing
	}
	judged := claims.Judge(d.expected(p.credential, d.config.Credentials[p.credential]))
	if i := slices.IndexFunc(judged, func(j inspect.Finding) bool { return !j.OK }); i >= 0 {
		s.Skip(id, what, "is refused, which comes of the token's %s, as said above: %s", judged[i].What, f.found)
		return true
	}
	if d.config.IsHighVolume(p.credential) {
		return false // what is said of mailboxes does not hold for an account
	}
	key := "other"
	switch {
	case claims.User == "" && claims.Classic():
		key = "classic"
	case claims.User == "":
		key = "rbac"
	case strings.EqualFold(claims.User, p.user):
		key = "own"
	}
	s.Fail(id, what, f.found, refusedAdvice[key].With("mailbox", p.user, "user", claims.User, "app", claims.AppID, "object", claims.ObjectID))
	return true
}
