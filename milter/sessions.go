package milter

import (
	"net/netip"
	"strconv"
	"sync"
	"time"
)

// Sessions tells the milter what only the policy delegation protocol knows of an SMTP session: the
// fingerprint of the client certificate, and that Postfix was told the way out. Address and port of
// the client, as Postfix sees them, name the session on both sides. The zero value is ready; methods
// are safe for concurrent use.
type Sessions struct {
	mu    sync.Mutex // guards what follows
	known map[sessionKey]session
	prune int
}

type sessionKey struct {
	addr netip.Addr
	port string
}

// unique reports whether the key names one session. A client behind a proxy may come without a
// port, and then would be taken for another one from the same address.
func (k sessionKey) unique() bool { return k.addr.IsValid() && portOf(k.port) > 0 }

// portOf reads the port of a client, 0 where there is none.
func portOf(s string) uint16 {
	n, err := strconv.ParseUint(s, 10, 16)
	if err != nil {
		return 0
	}
	return uint16(n)
}

type session struct {
	told
	at time.Time // of the last request
}

// told is what was told in the last request of a session, and what was answered.
type told struct {
	certificate
	instance string // which message it was about
	routed   bool   // by FILTER, for one of the recipients: Postfix keeps it for the whole message
}

// certificate holds the fingerprints of a client certificate and of its public key, both empty
// where the client has none.
type certificate struct{ fingerprint, publicKey string }

const (
	// sessionLife is how long after its last RCPT a message may still be coming in.
	sessionLife = 2 * time.Hour
	// minPrune is how many sessions are kept without a look at their age.
	minPrune = 1000
	// maxSessions is how many are kept at all, in some 40 MB: a stranger can begin hundreds a second.
	// One that is forgotten too early has its message deferred, and nothing worse.
	maxSessions = 200_000
)

func (s *Sessions) note(k sessionKey, t told, now time.Time) {
	if !k.unique() {
		return // so that find finds nothing
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.known == nil {
		s.known, s.prune = make(map[sessionKey]session), minPrune
	}
	if len(s.known) >= s.prune {
		for k, v := range s.known {
			if now.Sub(v.at) > sessionLife {
				delete(s.known, k)
			}
		}
		for k := range s.known { // any of them
			if len(s.known) <= maxSessions/2 {
				break
			}
			delete(s.known, k)
		}
		s.prune = max(minPrune, 2*len(s.known))
	}
	t.routed = t.routed || t.instance != "" && t.instance == s.known[k].instance && s.known[k].routed
	s.known[k] = session{t, now}
}

// find reports false for a session of which nothing was heard.
func (s *Sessions) find(k sessionKey, now time.Time) (told, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	v, ok := s.known[k]
	if !ok || now.Sub(v.at) > sessionLife {
		return told{}, false
	}
	return v.told, true
}
