package entra

import (
	"crypto/subtle"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/sendas/sendas/contrib/exosim/directory"
)

// The paths below which the three kinds of endpoint stand. IMDS has the real one,
// which clients write into their code; the others are told theirs.
const (
	IMDSPath       = "/metadata/identity/oauth2/token"
	ArcPath        = "/arc" + IMDSPath
	AppServicePath = "/msi/token"
)

// IdentityHandler answers as the endpoints of a machine in Azure.
func (l *Login) IdentityHandler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET "+IMDSPath, l.troubledIdentity(l.serveIMDS))
	mux.HandleFunc("GET "+AppServicePath, l.troubledIdentity(l.serveAppService))
	if l.cfg.ArcKeys != "" {
		mux.HandleFunc("GET "+ArcPath, l.troubledIdentity(l.serveArc))
	}
	return mux
}

// IdentityHeader returns what IDENTITY_HEADER is in App Service: a secret that
// only programs on the machine know.
func (l *Login) IdentityHeader() string { return l.identityHeader }

// identityRefusal is an error answer of a managed identity endpoint.
type identityRefusal struct {
	status int
	name   string // "invalid_resource"
	text   string
}

// troubledIdentity puts the faults before a handler, which returns the members
// of its answer.
func (l *Login) troubledIdentity(h func(http.ResponseWriter, *http.Request) (map[string]any, *identityRefusal)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		if status := l.identityFails(); status != 0 {
			l.noteRequest("", GrantManagedIdentity, "fault")
			if retry := l.Faults().IMDSRetry; retry > 0 {
				w.Header().Set("Retry-After", strconv.Itoa(retry))
			}
			serveIdentity(w, status, map[string]any{"error": strings.ToLower(strings.ReplaceAll(http.StatusText(status), " ", "_")), "error_description": "Service trouble"})
			return
		}
		answer, refused := h(w, r)
		if refused != nil {
			l.noteRequest("", GrantManagedIdentity, refused.name)
			serveIdentity(w, refused.status, map[string]any{"error": refused.name, "error_description": refused.text})
			return
		}
		serveIdentity(w, http.StatusOK, answer)
	}
}

// identityFails returns the status of a request that fails before anybody looks
// at it, and uses up one of Faults.IMDSTimes.
func (l *Login) identityFails() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	status := l.faults.IMDSStatus
	if status != 0 && countDown(&l.faults.IMDSTimes) && l.faults.IMDSTimes == 0 {
		l.faults.IMDSStatus = 0
	}
	return status
}

func serveIdentity(w http.ResponseWriter, status int, answer map[string]any) {
	w.Header().Set("Content-Type", "application/json; charset=utf-8")
	w.WriteHeader(status)
	json.NewEncoder(w).Encode(answer) // fails only if the client has gone
}

// serveIMDS is the metadata service of a virtual machine.
// https://learn.microsoft.com/entra/identity/managed-identities-azure-resources/how-to-use-vm-token
func (l *Login) serveIMDS(_ http.ResponseWriter, r *http.Request) (map[string]any, *identityRefusal) {
	if refused := needsMetadata(r); refused != nil {
		return nil, refused
	}
	mi, resource, refused := l.identity(r.URL.Query(), "msi_res_id", "2018-02-01")
	if refused != nil {
		return nil, refused
	}
	return l.identityAnswer(mi, resource), nil
}

func needsMetadata(r *http.Request) *identityRefusal {
	switch {
	case !strings.EqualFold(r.Header.Get("Metadata"), "true"):
		return &identityRefusal{http.StatusBadRequest, "bad_request_102", "Required metadata header not specified"}
	case r.Header.Get("X-Forwarded-For") != "": // somebody lets others use the machine's identity
		return &identityRefusal{http.StatusBadRequest, "bad_request_102", "X-Forwarded-For header is not allowed"}
	}
	return nil
}

// serveAppService is the endpoint of App Service, Functions and Container Apps.
// Its answer has no expires_in.
func (l *Login) serveAppService(_ http.ResponseWriter, r *http.Request) (map[string]any, *identityRefusal) {
	if subtle.ConstantTimeCompare([]byte(r.Header.Get("X-IDENTITY-HEADER")), []byte(l.identityHeader)) != 1 {
		return nil, &identityRefusal{http.StatusUnauthorized, "unauthorized", "X-IDENTITY-HEADER is missing or wrong"}
	}
	mi, resource, refused := l.identity(r.URL.Query(), "mi_res_id", "2019-08-01")
	if refused != nil {
		return nil, refused
	}
	answer := l.identityAnswer(mi, resource)
	delete(answer, "expires_in")
	delete(answer, "refresh_token")
	delete(answer, "not_before")
	answer["client_id"] = mi.ClientID
	return answer, nil
}

// identity reads the query: which identity is asked for a token for which
// resource. Parameters of other variants are refused, where the real endpoints
// may overlook them and give the token of another identity.
func (l *Login) identity(v url.Values, resourceID string, versions ...string) (mi directory.ManagedIdentity, resource string, refused *identityRefusal) {
	known := []string{"api-version", "resource", "client_id", "object_id", resourceID}
	for name := range v {
		if !slices.Contains(known, name) {
			return mi, "", badIdentityRequest("the parameter %q is not known here", name)
		}
	}
	if !slices.Contains(versions, v.Get("api-version")) {
		return mi, "", badIdentityRequest("api-version %q is not one of %s", v.Get("api-version"), strings.Join(versions, ", "))
	}
	resource = strings.TrimSuffix(v.Get("resource"), "/")
	if !slices.Contains(resources, resource) {
		return mi, "", &identityRefusal{http.StatusBadRequest, "invalid_resource", fmt.Sprintf("AADSTS50001: The application named %s was not found in the tenant named %s. "+
			"This can happen if the application has not been installed by the administrator of the tenant or consented to by any user in the tenant. "+
			"You might have sent your authentication request to the wrong tenant.", v.Get("resource"), l.dir.ID())}
	}
	mi, refused = l.pickIdentity(v.Get("client_id"), v.Get("object_id"), v.Get(resourceID))
	return mi, resource, refused
}

func badIdentityRequest(format string, args ...any) *identityRefusal {
	return &identityRefusal{http.StatusBadRequest, "bad_request", fmt.Sprintf(format, args...)}
}

// pickIdentity returns the one with an id, of which there may be one. Without it
// is the machine's own, or else the only one.
func (l *Login) pickIdentity(clientID, objectID, resourceID string) (directory.ManagedIdentity, *identityRefusal) {
	var found []directory.ManagedIdentity
	for _, mi := range l.dir.ManagedIdentities() {
		switch {
		case clientID == "" && objectID == "" && resourceID == "":
			if mi.SystemAssigned {
				return mi, nil
			}
		case clientID != "" && !strings.EqualFold(clientID, mi.ClientID), objectID != "" && !strings.EqualFold(objectID, mi.ObjectID),
			resourceID != "" && !strings.EqualFold(resourceID, mi.ResourceID):
			continue
		}
		found = append(found, mi)
	}
	switch len(found) {
	case 0:
		return directory.ManagedIdentity{}, &identityRefusal{http.StatusBadRequest, "invalid_request", "Identity not found"}
	case 1:
		return found[0], nil
	}
	return directory.ManagedIdentity{}, &identityRefusal{http.StatusBadRequest, "invalid_request",
		"Multiple user assigned identities exist, please specify the clientId / resourceId of the identity in the token request"}
}

// identityAnswer is the good answer of IMDS and Arc: all numbers are texts.
func (l *Login) identityAnswer(mi directory.ManagedIdentity, resource string) map[string]any {
	l.noteRequest(mi.ClientID, GrantManagedIdentity, "ok")
	life := l.tokenLife()
	now := l.dir.Now()
	return map[string]any{
		"access_token": l.issue(&mi.App, resource, provedByCertificate, life), "refresh_token": "", "resource": resource, "token_type": "Bearer",
		"expires_in": strconv.Itoa(max(int(life.Seconds())-1, 0)), "expires_on": expiresOn(now.Add(life), l.Faults().IMDSExpiresOn),
		"not_before": strconv.FormatInt(now.Add(-5*time.Minute).Unix(), 10),
	}
}

// expiryForms are the ways in which endpoints have written expires_on, all of
// which Microsoft's own libraries read.
var expiryForms = map[string]string{"us": "01/02/2006 15:04:05", "iso": "2006-01-02 15:04:05", "rfc3339": time.RFC3339}

func expiresOn(t time.Time, form string) any {
	switch layout := expiryForms[form]; {
	case form == "number":
		return t.Unix()
	case layout != "":
		return t.UTC().Format(layout)
	}
	return strconv.FormatInt(t.Unix(), 10)
}
