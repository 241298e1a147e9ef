package exosim

import (
	"bytes"
	"encoding/json"
	"fmt"
	"time"
)

// Faults are troubles that can be switched on while the simulator runs. A
// number counts down: so many of the next connections, messages or requests.
// What concerns a mailbox leaves the MX endpoint alone.
type Faults struct {
	RefuseConnect    bool `json:"refuse_connect"`     // 421 instead of a banner
	DropInData       int  `json:"drop_in_data"`       // hang up at the first line after DATA
	DropBeforeAccept int  `json:"drop_before_accept"` // hang up after the final dot, with nothing accepted
	DropAfterData    int  `json:"drop_after_data"`    // accept, and hang up without telling
	Busy             int  `json:"busy"`               // 451 at the end of DATA: 4.7.0, and 4.7.500 at the MX endpoint

	Concurrent      int     `json:"concurrent"`       // 432 4.3.2 at the end of DATA
	ConcurrentShare float64 `json:"concurrent_share"` // the same at random, for that share of the messages: 0 to 1
	MailboxFull     bool    `json:"mailbox_full"`     // every mailbox
	NoLogon         bool    `json:"no_logon"`         // every mailbox
	QuotaAfter      int     `json:"quota_after"`      // recipients of a mailbox instead of Config.Recipients

	EntraRefuse       bool          `json:"entra_refuse"`        // connection refused
	EntraDown         bool          `json:"entra_down"`          // connections end without an answer
	EntraStatus       int           `json:"entra_status"`        // answer with that HTTP status, 200 too, and an HTML page
	EntraRetry        int           `json:"entra_retry"`         // Retry-After in seconds, with EntraStatus
	EntraDelay        time.Duration `json:"entra_delay"`         // before every answer; in JSON a text such as "2s"
	EntraTruncated    bool          `json:"entra_truncated"`     // cut the JSON of a good answer in half
	EntraStringExpiry bool          `json:"entra_string_expiry"` // expires_in as a text, as IMDS and v1 endpoints have it
}

// plainFaults has no methods, so that json does not call them again.
type plainFaults Faults

// MarshalJSON writes EntraDelay as a text.
func (f Faults) MarshalJSON() ([]byte, error) {
	return json.Marshal(struct {
		plainFaults
		EntraDelay string `json:"entra_delay"` // hides the number
	}{plainFaults(f), f.EntraDelay.String()})
}

// UnmarshalJSON changes only what the object names, and refuses names it does
// not know.
func (f *Faults) UnmarshalJSON(b []byte) error {
	v := struct {
		*plainFaults
		EntraDelay string `json:"entra_delay"`
	}{plainFaults: (*plainFaults)(f)}
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	if err := d.Decode(&v); err != nil {
		return err
	}
	if v.EntraDelay == "" {
		return nil
	}
	var err error
	f.EntraDelay, err = time.ParseDuration(v.EntraDelay)
	return err
}

func (f *Faults) check() error {
	if f.ConcurrentShare < 0 || f.ConcurrentShare > 1 {
		return fmt.Errorf("concurrent_share: %v is not between 0 and 1", f.ConcurrentShare)
	}
	if f.EntraStatus != 0 && (f.EntraStatus < 200 || f.EntraStatus > 599) {
		return fmt.Errorf("entra_status: %d is no HTTP status", f.EntraStatus)
	}
	return nil
}

// SetFaults replaces all troubles. It fails on values that make no sense, which
// change nothing, and if the address of Entra cannot be had again after
// EntraRefuse.
func (s *Server) SetFaults(f Faults) error {
	if err := f.check(); err != nil {
		return err
	}
	s.mu.Lock()
	s.faults = f
	s.mu.Unlock()
	if f.EntraRefuse {
		s.entra.close()
		return nil
	}
	return s.entra.open()
}

// Faults returns the troubles that are on, with what is left of the numbers.
func (s *Server) Faults() Faults {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.faults
}

// strikes uses up one of a number of faults.
func (s *Server) strikes(pick func(*Faults) *int) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return countDown(pick(&s.faults))
}

func countDown(n *int) bool {
	if *n <= 0 {
		return false
	}
	*n--
	return true
}

// overloaded tells whether a made-up 432 hits this message.
func (s *Server) overloaded() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return countDown(&s.faults.Concurrent) || s.faults.ConcurrentShare > 0 && s.random.Float64() < s.faults.ConcurrentShare
}
