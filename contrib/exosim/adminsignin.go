package exosim

import (
	"io"
	"net/http"
	"time"

	"github.com/sendas/sendas/contrib/exosim/directory"
	"github.com/sendas/sendas/contrib/exosim/entra"
)

// adminSignIns adds what the simulated users do, and what is done to them.
func (s *Server) adminSignIns(mux *http.ServeMux) {
	mux.HandleFunc("GET /users", func(w http.ResponseWriter, _ *http.Request) { answer(w, append([]directory.User{}, s.Users()...)) })
	mux.HandleFunc("PATCH /users/{upn}", s.adminUser)
	mux.HandleFunc("POST /users/{upn}/revoke", func(w http.ResponseWriter, r *http.Request) { done(w, s.RevokeUser(r.PathValue("upn"))) })
	mux.HandleFunc("GET /devicecodes", func(w http.ResponseWriter, _ *http.Request) { answer(w, s.DeviceCodes()) })
	mux.HandleFunc("POST /devicecodes/{code}/approve", s.adminApprove)
	mux.HandleFunc("POST /devicecodes/{code}/decline", func(w http.ResponseWriter, r *http.Request) { done(w, s.Decline(r.PathValue("code"))) })
	mux.HandleFunc("GET /signin", func(w http.ResponseWriter, _ *http.Request) { answer(w, s.SignInPage()) })
	mux.HandleFunc("PATCH /signin", s.adminSignIn)
	mux.HandleFunc("GET /refusals", func(w http.ResponseWriter, _ *http.Request) { answer(w, s.RefusedGrants()) })
	mux.HandleFunc("PATCH /refusals", s.adminRefusals)
	mux.HandleFunc("DELETE /grants", func(w http.ResponseWriter, _ *http.Request) {
		s.RevokeGrants()
		done(w, nil)
	})
	mux.HandleFunc("POST /grants/age", s.adminAge)
	mux.HandleFunc("POST /federated", s.adminFederated)
	mux.HandleFunc("GET /identityheader", func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, s.IdentityHeader()) })
}

// done answers a request that has nothing to show.
func done(w http.ResponseWriter, err error) {
	if err != nil {
		http.Error(w, err.Error(), http.StatusConflict)
		return
	}
	w.WriteHeader(http.StatusNoContent)
}

// adminUser changes what the body names.
func (s *Server) adminUser(w http.ResponseWriter, r *http.Request) {
	u, ok := s.User(r.PathValue("upn"))
	if !ok {
		http.NotFound(w, r)
		return
	}
	if !readJSON(w, r, &u) {
		return
	}
	s.SetUser(r.PathValue("upn"), func(old *directory.User) { *old = u })
	u, _ = s.User(r.PathValue("upn"))
	answer(w, u)
}

func (s *Server) adminApprove(w http.ResponseWriter, r *http.Request) {
	var body struct {
		User string `json:"user"`
	}
	if readJSON(w, r, &body) {
		done(w, s.Approve(r.PathValue("code"), body.User))
	}
}

// adminSignIn changes of the sign-in page what the body names.
func (s *Server) adminSignIn(w http.ResponseWriter, r *http.Request) {
	page := s.SignInPage()
	if !readJSON(w, r, &page) {
		return
	}
	s.SetSignIn(func(p *entra.SignIn) { *p = page })
	answer(w, page)
}

// adminRefusals changes the grants that the body names; a code of "" ends a
// refusal.
func (s *Server) adminRefusals(w http.ResponseWriter, r *http.Request) {
	var body map[string]entra.Refusing
	if !readJSON(w, r, &body) {
		return
	}
	if err := s.RefuseEach(body); err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	answer(w, s.RefusedGrants())
}

func (s *Server) adminAge(w http.ResponseWriter, r *http.Request) {
	var body struct {
		By jsonDuration `json:"by"`
	}
	if readJSON(w, r, &body) {
		s.AgeGrants(time.Duration(body.By))
		done(w, nil)
	}
}

// adminFederated answers with a token of the other issuer, as text.
func (s *Server) adminFederated(w http.ResponseWriter, r *http.Request) {
	body := struct {
		directory.Federated
		Life jsonDuration `json:"life"`
	}{Life: jsonDuration(time.Hour)}
	if !readJSON(w, r, &body) {
		return
	}
	token := s.FederatedTokenOf(body.Federated, time.Duration(body.Life))
	if (body.Federated == directory.Federated{Subject: body.Subject}) {
		token = s.FederatedToken(body.Subject, time.Duration(body.Life))
	}
	w.Header().Set("Content-Type", "text/plain")
	io.WriteString(w, token)
}
