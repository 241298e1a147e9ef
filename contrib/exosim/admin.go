package exosim

import (
	"encoding/json"
	"io"
	"net/http"
	"slices"
	"strconv"
	"strings"

	"github.com/sendas/sendas/contrib/exosim/directory"
	"github.com/sendas/sendas/contrib/exosim/smtp"
)

// adminHandler shows and changes what runs; README.md lists the paths.
func (s *Server) adminHandler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /messages", s.adminMessages)
	mux.HandleFunc("GET /messages/{id}", s.adminMessage)
	mux.HandleFunc("DELETE /messages", func(w http.ResponseWriter, _ *http.Request) {
		s.Forget()
		w.WriteHeader(http.StatusNoContent)
	})
	mux.HandleFunc("GET /mailboxes", func(w http.ResponseWriter, _ *http.Request) { answer(w, s.usages()) })
	mux.HandleFunc("PATCH /mailboxes/{address}", s.adminMailbox)
	mux.HandleFunc("GET /hve_accounts", func(w http.ResponseWriter, _ *http.Request) { answer(w, s.accountUsages()) })
	mux.HandleFunc("PATCH /hve_accounts/{address}", s.adminAccount)
	mux.HandleFunc("GET /tokens", func(w http.ResponseWriter, _ *http.Request) {
		answer(w, map[string]any{"requests": s.TokenRequestsByApp(), "auth_refused": s.AuthRefused()})
	})
	mux.HandleFunc("DELETE /tokens", func(w http.ResponseWriter, _ *http.Request) {
		s.RevokeTokens()
		w.WriteHeader(http.StatusNoContent)
	})
	mux.HandleFunc("GET /tokens/grants", func(w http.ResponseWriter, _ *http.Request) { answer(w, s.TokenRequestsByGrant()) })
	s.adminSignIns(mux)
	mux.HandleFunc("GET /faults", func(w http.ResponseWriter, _ *http.Request) { answer(w, s.Faults()) })
	mux.HandleFunc("PUT /faults", func(w http.ResponseWriter, r *http.Request) { s.adminFaults(w, r, Faults{}) })
	mux.HandleFunc("PATCH /faults", func(w http.ResponseWriter, r *http.Request) { s.adminFaults(w, r, s.Faults()) })
	return mux
}

func answer(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json")
	json.NewEncoder(w).Encode(v) // fails only if the client has gone
}

// readJSON decodes a small body strictly, or answers 400.
func readJSON(w http.ResponseWriter, r *http.Request, v any) bool {
	d := json.NewDecoder(http.MaxBytesReader(w, r.Body, 64<<10))
	d.DisallowUnknownFields()
	err := d.Decode(v)
	if err == nil && d.More() {
		err = io.ErrUnexpectedEOF
	}
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
	}
	return err == nil
}

// adminMessages lists the messages without their content; ?mailbox= keeps those
// of one, ?after= those with a higher id, ?data=1 adds the content in base64.
func (s *Server) adminMessages(w http.ResponseWriter, r *http.Request) {
	q := r.URL.Query()
	after, err := strconv.Atoi(q.Get("after"))
	if q.Get("after") != "" && err != nil {
		http.Error(w, "after: not a number", http.StatusBadRequest)
		return
	}
	list := []smtp.Message{}
	for _, m := range s.Messages() {
		if m.ID <= after || q.Has("mailbox") && !strings.EqualFold(m.Mailbox, q.Get("mailbox")) {
			continue
		}
		c := *m
		if q.Get("data") != "1" {
			c.Data = nil
		}
		list = append(list, c)
	}
	answer(w, list)
}

// adminMessage returns the content of one message, byte for byte.
func (s *Server) adminMessage(w http.ResponseWriter, r *http.Request) {
	all := s.Messages()
	i := slices.IndexFunc(all, func(m *smtp.Message) bool { return strconv.Itoa(m.ID) == r.PathValue("id") })
	if i < 0 {
		http.NotFound(w, r)
		return
	}
	w.Header().Set("Content-Type", "message/rfc822")
	w.Write(all[i].Data)
}

// mailboxState is a mailbox with what it did.
type mailboxState struct {
	directory.Mailbox
	smtp.Usage
}

func (s *Server) usages() []mailboxState {
	list := []mailboxState{}
	for _, m := range s.Mailboxes() {
		list = append(list, mailboxState{m, s.Usage(m.Address)})
	}
	return list
}

// accountState is an account of High Volume Email with what it did.
type accountState struct {
	directory.Account
	smtp.Usage
}

func (s *Server) accountUsages() []accountState {
	list := []accountState{}
	for _, a := range s.Accounts() {
		list = append(list, accountState{a, s.Usage(a.Address)})
	}
	return list
}

// adminAccount changes what the body names.
func (s *Server) adminAccount(w http.ResponseWriter, r *http.Request) {
	a, known := s.Account(r.PathValue("address"))
	if !known {
		http.NotFound(w, r)
		return
	}
	if !readJSON(w, r, &a) {
		return
	}
	s.SetAccount(r.PathValue("address"), func(now *directory.Account) { *now = a })
	now, _ := s.Account(a.Address)
	answer(w, now)
}

// adminMailbox changes what the body names.
func (s *Server) adminMailbox(w http.ResponseWriter, r *http.Request) {
	m, ok := s.Mailbox(r.PathValue("address"))
	if !ok {
		http.NotFound(w, r)
		return
	}
	if !readJSON(w, r, &m) {
		return
	}
	s.SetMailbox(r.PathValue("address"), func(old *directory.Mailbox) { *old = m })
	m, _ = s.Mailbox(r.PathValue("address"))
	answer(w, m)
}

// adminFaults changes of f what the body names, and puts it into force.
func (s *Server) adminFaults(w http.ResponseWriter, r *http.Request, f Faults) {
	if !readJSON(w, r, &f) {
		return
	}
	if err := s.SetFaults(f); err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	answer(w, f)
}
