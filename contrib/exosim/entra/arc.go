package entra

import (
	"crypto/subtle"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"

	"github.com/sendas/sendas/contrib/exosim/directory"
)

// serveArc is the agent of Azure Arc. It gives a token only to those who can
// read a file: it names a new one in a 401, and wants its content back.
// https://learn.microsoft.com/azure/azure-arc/servers/managed-identity-authentication
func (l *Login) serveArc(w http.ResponseWriter, r *http.Request) (map[string]any, *identityRefusal) {
	if refused := needsMetadata(r); refused != nil {
		return nil, refused
	}
	secret, ok := strings.CutPrefix(r.Header.Get("Authorization"), "Basic ")
	if !ok {
		return nil, l.challengeArc(w)
	}
	if !l.knowsArcKey(secret) {
		return nil, &identityRefusal{http.StatusUnauthorized, "unauthorized", "The content of the key file is wrong"}
	}
	legacy := l.Faults().ArcLegacy
	v := r.URL.Query()
	if legacy { // an old agent overlooks which identity it is asked for
		v = url.Values{"api-version": v["api-version"], "resource": v["resource"]}
	}
	mi, resource, refused := l.identity(v, "msi_res_id", "2019-11-01", "2020-06-01")
	if refused != nil {
		return nil, refused
	}
	answer := l.identityAnswer(mi, resource)
	if !legacy {
		answer["client_id"], answer["object_id"], answer["msi_res_id"] = mi.ClientID, mi.ObjectID, mi.ResourceID
	}
	return answer, nil
}

// challengeArc writes a key file and names it.
func (l *Login) challengeArc(w http.ResponseWriter) *identityRefusal {
	file, secret := filepath.Join(l.cfg.ArcKeys, directory.NewGUID()+".key"), opaque("", 96)
	if err := os.WriteFile(file, []byte(secret), 0o640); err != nil {
		return &identityRefusal{http.StatusInternalServerError, "internal_error", err.Error()}
	}
	realm := l.keepArcKey(file, secret)
	if realm == "" {
		realm = file
	}
	w.Header().Set("WWW-Authenticate", "Basic realm="+realm)
	return &identityRefusal{http.StatusUnauthorized, "unauthorized", "Read the key file and send its content"}
}

// keepArcKey remembers a key, and returns what the challenge names instead.
func (l *Login) keepArcKey(file, secret string) (realm string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.stop.Err() != nil { // Stop has been through already
		os.Remove(file)
	}
	l.arcKeys[file] = secret
	return l.faults.ArcRealm
}

// knowsArcKey reports whether a key was given out, and ends it: each is good once.
func (l *Login) knowsArcKey(secret string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	for file, want := range l.arcKeys {
		if subtle.ConstantTimeCompare([]byte(secret), []byte(want)) == 1 {
			delete(l.arcKeys, file)
			os.Remove(file)
			return true
		}
	}
	return false
}

// removeArcKeys leaves no key files behind.
func (l *Login) removeArcKeys() {
	l.mu.Lock()
	defer l.mu.Unlock()
	for file := range l.arcKeys {
		os.Remove(file)
	}
	clear(l.arcKeys)
}
