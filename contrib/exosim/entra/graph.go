package entra

import (
	"crypto/rsa"
	"crypto/sha1"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"errors"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/golang-jwt/jwt/v5"

	"github.com/sendas/sendas/contrib/exosim/directory"
)

// proofAudience is whom the proof of an app is for that changes its own keys: the old directory
// graph, says Microsoft's page.
const proofAudience = "00000002-0000-0000-c000-000000000000"

// maxProofLife is how long such a proof may be good.
const maxProofLife = 10 * time.Minute

// A RegisteredKey is a certificate as the app registration has it.
type RegisteredKey struct {
	KeyID string    `json:"keyId"`
	From  time.Time `json:"-"` // when Entra's servers know of it
	Cert  *x509.Certificate
}

// certsOf returns the certificates by which an app can prove itself now.
func (l *Login) certsOf(clientID string) []*x509.Certificate {
	now := l.dir.Now()
	var list []*x509.Certificate
	for _, k := range l.Keys(clientID) {
		if !now.Before(k.From) && !now.After(k.Cert.NotAfter) {
			list = append(list, k.Cert)
		}
	}
	return list
}

// Keys returns the certificates that are registered for an app.
func (l *Login) Keys(clientID string) []RegisteredKey {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Clone(l.keys[clientID])
}

// ForgetKey takes a certificate from an app, as an administrator does in the portal; false where
// there is none.
func (l *Login) ForgetKey(clientID, keyID string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	n := len(l.keys[clientID])
	l.keys[clientID] = slices.DeleteFunc(l.keys[clientID], func(k RegisteredKey) bool { return k.KeyID == keyID })
	return len(l.keys[clientID]) < n
}

// graphError is a refusal in the form of Microsoft Graph.
type graphError struct {
	status        int
	code, message string
}

// serveGraph puts what all requests to Graph have in common around one action: the faults, a token of
// the app itself, and a proof.
func (l *Login) serveGraph(act func(*directory.App, graphRequest) (any, *graphError)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		app, q, refused := l.readGraph(w, r)
		if refused == nil {
			refused = l.graphFault()
		}
		var answer any
		if refused == nil {
			answer, refused = act(app, q)
		}
		if l.losesGraph() {
			panic(http.ErrAbortHandler) // what was done is done, and nobody hears of it
		}
		id := directory.NewGUID()
		w.Header().Set("request-id", id)
		w.Header().Set("Content-Type", "application/json")
		switch {
		case refused != nil:
			w.WriteHeader(refused.status)
			json.NewEncoder(w).Encode(map[string]any{"error": map[string]any{"code": refused.code, "message": refused.message,
				"innerError": map[string]string{"date": l.dir.Now().UTC().Format("2006-01-02T15:04:05"), "request-id": id}}})
		case answer == nil:
			w.WriteHeader(http.StatusNoContent)
		default:
			json.NewEncoder(w).Encode(answer)
		}
	}
}

// graphFault is the refusal that [Faults] orders.
func (l *Login) graphFault() *graphError {
	l.mu.Lock()
	defer l.mu.Unlock()
	f := &l.faults
	if f.GraphStatus == 0 {
		return nil
	}
	e := &graphError{f.GraphStatus, f.GraphCode, f.GraphMessage}
	if countDown(&f.GraphTimes) && f.GraphTimes == 0 {
		f.GraphStatus = 0
	}
	return e
}

func (l *Login) losesGraph() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return countDown(&l.faults.GraphLost)
}

// graphRequest is the body of addKey and removeKey.
type graphRequest struct {
	KeyCredential struct {
		Type  string `json:"type"`
		Usage string `json:"usage"`
		Key   string `json:"key"`
	} `json:"keyCredential"`
	PasswordCredential any    `json:"passwordCredential"`
	KeyID              string `json:"keyId"`
	Proof              string `json:"proof"`
}

func (l *Login) readGraph(w http.ResponseWriter, r *http.Request) (*directory.App, graphRequest, *graphError) {
	var q graphRequest
	token, _ := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
	claims, denied := l.Verify(token)
	if denied != "" || claims.Audience != graph {
		return nil, q, &graphError{http.StatusUnauthorized, "InvalidAuthenticationToken", "Access token validation failure. Invalid audience."}
	}
	if json.NewDecoder(http.MaxBytesReader(w, r.Body, 64<<10)).Decode(&q) != nil {
		return nil, q, &graphError{http.StatusBadRequest, "Request_BadRequest", "Unable to read JSON request payload."}
	}
	app := l.dir.AppByObject(r.PathValue("object"))
	switch {
	case app == nil:
		return nil, q, &graphError{http.StatusNotFound, "Request_ResourceNotFound", "Resource '" + r.PathValue("object") + "' does not exist or one of its queried reference-property objects are not present."}
	case app.ClientID != claims.AppID:
		return nil, q, &graphError{http.StatusForbidden, "Authorization_RequestDenied", "Insufficient privileges to complete the operation."}
	}
	return app, q, l.checkProof(app, q.Proof)
}

// checkProof verifies that whoever asks has the key of a certificate that is registered.
func (l *Login) checkProof(app *directory.App, proof string) *graphError {
	malformed := &graphError{http.StatusUnauthorized, "Authentication_MissingOrMalformed", "Access Token missing or malformed."}
	if strings.Contains(proof, "=") {
		return malformed
	}
	certs := l.certsOf(app.ClientID)
	var c jwt.RegisteredClaims
	_, err := jwt.NewParser(jwt.WithValidMethods([]string{"RS256"}), jwt.WithoutClaimsValidation()).ParseWithClaims(proof, &c, func(t *jwt.Token) (any, error) {
		x5t, _ := t.Header["x5t"].(string)
		for _, cert := range certs {
			if sum := sha1.Sum(cert.Raw); x5t == base64.RawURLEncoding.EncodeToString(sum[:]) {
				return cert.PublicKey, nil
			}
		}
		return nil, errors.New("no such certificate")
	})
	now := l.dir.Now()
	switch {
	case err != nil, len(c.Audience) != 1 || c.Audience[0] != proofAudience, c.Issuer != app.ApplicationObjectID:
		return malformed
	case c.NotBefore == nil, c.ExpiresAt == nil, now.Before(c.NotBefore.Time), !now.Before(c.ExpiresAt.Time), c.ExpiresAt.Sub(c.NotBefore.Time) > maxProofLife:
		return malformed
	}
	return nil
}

// addKey is POST /v1.0/applications/{object id}/addKey.
// https://learn.microsoft.com/graph/api/application-addkey
func (l *Login) addKey(app *directory.App, q graphRequest) (any, *graphError) {
	bad := func(message string) (any, *graphError) {
		return nil, &graphError{http.StatusBadRequest, "Request_BadRequest", message}
	}
	der, err := base64.StdEncoding.DecodeString(q.KeyCredential.Key)
	if err != nil || q.KeyCredential.Type != "AsymmetricX509Cert" || q.KeyCredential.Usage != "Verify" {
		return bad("New key credential values are invalid.")
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return bad("Key credential value is not a certificate.")
	}
	if _, ok := cert.PublicKey.(*rsa.PublicKey); !ok || l.dir.Now().After(cert.NotAfter) {
		return bad("Key credential end date is in the past, or its key is not RSA.")
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if life := l.cfg.Graph.MostLife; life > 0 && cert.NotAfter.Sub(cert.NotBefore) > life {
		return nil, &graphError{http.StatusBadRequest, "CredentialInvalidLifetimeAsPerAppPolicy", "Credential lifetime exceeds the max value allowed as per assigned policy"}
	}
	k := RegisteredKey{KeyID: directory.NewGUID(), From: l.dir.Now().Add(l.cfg.Graph.KnownAfter), Cert: cert}
	l.keys[app.ClientID] = append(l.keys[app.ClientID], k)
	sum := sha256.Sum256(der)
	return map[string]any{"@odata.context": "https://graph.microsoft.com/v1.0/$metadata#microsoft.graph.keyCredential", "keyId": k.KeyID,
		"customKeyIdentifier": base64.StdEncoding.EncodeToString(sum[:20]), "startDateTime": cert.NotBefore, "endDateTime": cert.NotAfter,
		"type": "AsymmetricX509Cert", "usage": "Verify", "key": nil, "displayName": cert.Subject.String()}, nil
}

// removeKey is POST /v1.0/applications/{object id}/removeKey.
// https://learn.microsoft.com/graph/api/application-removekey
func (l *Login) removeKey(app *directory.App, q graphRequest) (any, *graphError) {
	if !l.ForgetKey(app.ClientID, q.KeyID) {
		return nil, &graphError{http.StatusBadRequest, "Request_BadRequest", "No credentials found to be removed."}
	}
	return nil, nil
}
