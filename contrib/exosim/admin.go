package exosim

import (
	"encoding/json"
	"net/http"
)

// adminHandler lists what was captured: GET /messages, GET /mailboxes, GET /tokens; and PUT /faults
// sets the troubles.
func (s *Server) adminHandler() http.Handler {
	mux := http.NewServeMux()
	answer := func(w http.ResponseWriter, v any) {
		w.Header().Set("Content-Type", "application/json")
		json.NewEncoder(w).Encode(v)
	}
	mux.HandleFunc("GET /messages", func(w http.ResponseWriter, _ *http.Request) { answer(w, s.Messages()) })
	mux.HandleFunc("GET /tokens", func(w http.ResponseWriter, _ *http.Request) { answer(w, s.TokenRequests()) })
	mux.HandleFunc("GET /mailboxes", func(w http.ResponseWriter, _ *http.Request) {
		all := map[string]Usage{}
		for _, m := range s.cfg.Mailboxes {
			all[m.Address] = s.Usage(m.Address)
		}
		answer(w, all)
	})
	mux.HandleFunc("PUT /faults", func(w http.ResponseWriter, r *http.Request) {
		var f Faults
		if err := json.NewDecoder(http.MaxBytesReader(w, r.Body, 4096)).Decode(&f); err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		s.SetFaults(f)
	})
	return mux
}
