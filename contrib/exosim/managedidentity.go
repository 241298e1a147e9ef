package exosim

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
)

// ManagedIdentity is an app whose proof Azure keeps: whoever is on the machine
// gets its tokens without one. What it may do in Exchange stands in App, which
// needs no secret.
type ManagedIdentity struct {
	App `yaml:",inline"`
	// ResourceID is the way to the identity in Azure:
	// /subscriptions/…/providers/Microsoft.ManagedIdentity/userAssignedIdentities/relay.
	ResourceID string `yaml:"resource_id"`
	// SystemAssigned is the identity of the machine itself, of which there is one.
	SystemAssigned bool `yaml:"system_assigned"`
}

// The paths below which the three kinds of endpoint stand. IMDS has the real one,
// which clients write into their code; the others are told theirs.
const (
	imdsPath       = "/metadata/identity/oauth2/token"
	arcPath        = "/arc" + imdsPath
	appServicePath = "/msi/token"
)

// identityHandler answers as the endpoints of a machine in Azure.
func (s *Server) identityHandler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET "+imdsPath, s.troubledIdentity(s.serveIMDS))
	mux.HandleFunc("GET "+appServicePath, s.troubledIdentity(s.serveAppService))
	if s.cfg.ArcKeys != "" {
		mux.HandleFunc("GET "+arcPath, s.troubledIdentity(s.serveArc))
	}
	return mux
}

// IMDSAddr returns host:port of the managed identity endpoints, "" without.
func (s *Server) IMDSAddr() string {
	if s.imds == nil {
		return ""
	}
	return s.imds.address()
}

// AppServiceEndpoint returns what IDENTITY_ENDPOINT is in App Service, "" without.
func (s *Server) AppServiceEndpoint() string { return s.identityURL(appServicePath) }

// IdentityHeader returns what IDENTITY_HEADER is in App Service: a secret that
// only programs on the machine know.
func (s *Server) IdentityHeader() string { return s.identityHeader }

// ArcEndpoint returns what IDENTITY_ENDPOINT is on a machine of Azure Arc, ""
// without Config.ArcKeys.
func (s *Server) ArcEndpoint() string {
	if s.cfg.ArcKeys == "" {
		return ""
	}
	return s.identityURL(arcPath)
}

func (s *Server) identityURL(path string) string {
	if s.imds == nil {
		return ""
	}
	return "http://" + s.imds.address() + path
}

// identityRefusal is an error answer of a managed identity endpoint.
type identityRefusal struct {
	status int
	name   string // "invalid_resource"
	text   string
}

// troubledIdentity puts the faults before a handler, which returns the members
// of its answer.
func (s *Server) troubledIdentity(h func(http.ResponseWriter, *http.Request) (map[string]any, *identityRefusal)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		if status := s.identityFails(); status != 0 {
			s.noteRequest("", GrantManagedIdentity, "fault")
			if retry := s.Faults().IMDSRetry; retry > 0 {
				w.Header().Set("Retry-After", strconv.Itoa(retry))
			}
			serveIdentity(w, status, map[string]any{"error": strings.ToLower(strings.ReplaceAll(http.StatusText(status), " ", "_")), "error_description": "Service trouble"})
			return
		}
		answer, refused := h(w, r)
		if refused != nil {
			s.noteRequest("", GrantManagedIdentity, refused.name)
			serveIdentity(w, refused.status, map[string]any{"error": refused.name, "error_description": refused.text})
			return
		}
		serveIdentity(w, http.StatusOK, answer)
	}
}

// identityFails returns the status of a request that fails before anybody looks
// at it, and uses up one of Faults.IMDSTimes.
func (s *Server) identityFails() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	status := s.faults.IMDSStatus
	if status != 0 && countDown(&s.faults.IMDSTimes) && s.faults.IMDSTimes == 0 {
		s.faults.IMDSStatus = 0
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
func (s *Server) serveIMDS(_ http.ResponseWriter, r *http.Request) (map[string]any, *identityRefusal) {
	if refused := needsMetadata(r); refused != nil {
		return nil, refused
	}
	mi, resource, refused := s.identity(r.URL.Query(), "msi_res_id", "2018-02-01")
	if refused != nil {
		return nil, refused
	}
	return s.identityAnswer(mi, resource), nil
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
func (s *Server) serveAppService(_ http.ResponseWriter, r *http.Request) (map[string]any, *identityRefusal) {
	if subtle.ConstantTimeCompare([]byte(r.Header.Get("X-IDENTITY-HEADER")), []byte(s.identityHeader)) != 1 {
		return nil, &identityRefusal{http.StatusUnauthorized, "unauthorized", "X-IDENTITY-HEADER is missing or wrong"}
	}
	mi, resource, refused := s.identity(r.URL.Query(), "mi_res_id", "2019-08-01")
	if refused != nil {
		return nil, refused
	}
	answer := s.identityAnswer(mi, resource)
	delete(answer, "expires_in")
	delete(answer, "refresh_token")
	delete(answer, "not_before")
	answer["client_id"] = mi.ClientID
	return answer, nil
}

// identity reads the query: which identity is asked for a token for which
// resource. Parameters of other variants are refused, where the real endpoints
// may overlook them and give the token of another identity.
func (s *Server) identity(v url.Values, resourceID string, versions ...string) (mi ManagedIdentity, resource string, refused *identityRefusal) {
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
			"You might have sent your authentication request to the wrong tenant.", v.Get("resource"), s.cfg.TenantID)}
	}
	mi, refused = s.pickIdentity(v.Get("client_id"), v.Get("object_id"), v.Get(resourceID))
	return mi, resource, refused
}

func badIdentityRequest(format string, args ...any) *identityRefusal {
	return &identityRefusal{http.StatusBadRequest, "bad_request", fmt.Sprintf(format, args...)}
}

// pickIdentity returns the one with an id, of which there may be one. Without it
// is the machine's own, or else the only one.
func (s *Server) pickIdentity(clientID, objectID, resourceID string) (ManagedIdentity, *identityRefusal) {
	var found []ManagedIdentity
	for _, mi := range s.cfg.ManagedIdentities {
		switch {
		case clientID == "" && objectID == "" && resourceID == "":
			if mi.SystemAssigned {
				return s.currentIdentity(mi), nil
			}
		case clientID != "" && !strings.EqualFold(clientID, mi.ClientID), objectID != "" && !strings.EqualFold(objectID, mi.ObjectID),
			resourceID != "" && !strings.EqualFold(resourceID, mi.ResourceID):
			continue
		}
		found = append(found, mi)
	}
	switch len(found) {
	case 0:
		return ManagedIdentity{}, &identityRefusal{http.StatusBadRequest, "invalid_request", "Identity not found"}
	case 1:
		return s.currentIdentity(found[0]), nil
	}
	return ManagedIdentity{}, &identityRefusal{http.StatusBadRequest, "invalid_request",
		"Multiple user assigned identities exist, please specify the clientId / resourceId of the identity in the token request"}
}

// currentIdentity is the identity with what SetApp changed since the start.
func (s *Server) currentIdentity(mi ManagedIdentity) ManagedIdentity {
	s.mu.Lock()
	defer s.mu.Unlock()
	mi.App = *s.apps[mi.ClientID]
	return mi
}

// identityAnswer is the good answer of IMDS and Arc: all numbers are texts.
func (s *Server) identityAnswer(mi ManagedIdentity, resource string) map[string]any {
	s.noteRequest(mi.ClientID, GrantManagedIdentity, "ok")
	life := s.tokenLife()
	now := s.now()
	return map[string]any{
		"access_token": s.issue(&mi.App, resource, provedByCertificate, life), "refresh_token": "", "resource": resource, "token_type": "Bearer",
		"expires_in": strconv.Itoa(max(int(life.Seconds())-1, 0)), "expires_on": expiresOn(now.Add(life), s.Faults().IMDSExpiresOn),
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
