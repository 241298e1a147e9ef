package exosim

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strings"
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

	// Chances strike at random.
	Chances Chances `json:"chances"`

	EntraRefuse       bool          `json:"entra_refuse"`        // connection refused
	EntraDown         bool          `json:"entra_down"`          // connections end without an answer
	EntraStatus       int           `json:"entra_status"`        // answer with that HTTP status, 200 too, and an HTML page
	EntraRetry        int           `json:"entra_retry"`         // Retry-After in seconds, with EntraStatus
	EntraDelay        time.Duration `json:"entra_delay"`         // before every answer; in JSON a text such as "2s"
	EntraTruncated    bool          `json:"entra_truncated"`     // cut the JSON of a good answer in half
	EntraStringExpiry bool          `json:"entra_string_expiry"` // expires_in as a text, as IMDS and v1 endpoints have it
	EntraTimes        int           `json:"entra_times"`         // with EntraDown and EntraStatus: so many requests, then no more; 0 is all
	EntraContentType  string        `json:"entra_content_type"`  // instead of application/json, with the JSON unchanged
	EntraRefreshIn    int           `json:"entra_refresh_in"`    // refresh_in of good answers, in seconds
	EntraTokenLife    time.Duration `json:"entra_token_life"`    // of access tokens, instead of Config.TokenLife; a text such as "5m"
	// EntraSkew is how far Microsoft's clocks are ahead of ours: in the Date of
	// answers, in the times of tokens and errors, and for assertions and tokens
	// that are checked. A text such as "-10m".
	EntraSkew time.Duration `json:"entra_skew"`

	// The managed identity endpoints.
	IMDSStatus    int    `json:"imds_status"`     // answer with that HTTP status: 404, 410, 429, 503
	IMDSTimes     int    `json:"imds_times"`      // so many requests, then no more; 0 is all
	IMDSRetry     int    `json:"imds_retry"`      // Retry-After in seconds, with IMDSStatus
	IMDSExpiresOn string `json:"imds_expires_on"` // another form of expires_on: number, us, iso, rfc3339
	ArcRealm      string `json:"arc_realm"`       // the file that the challenge names, instead of the right one
	ArcLegacy     bool   `json:"arc_legacy"`      // an agent that overlooks which identity it is asked for
}

// Chances are troubles of a service that is in trouble: the share of connections or messages that each of them meets, 0 to 1.
// Config.Seed makes them repeatable, as far as the order of the connections is. The MX endpoint knows those before the final dot.
type Chances struct {
	Greeting   float64 `json:"greeting"`    // 421 instead of a banner
	Mail       float64 `json:"mail"`        // 421 at MAIL
	InData     float64 `json:"in_data"`     // hang up at the first line after DATA
	AtDot      float64 `json:"at_dot"`      // hang up after the final dot, with nothing accepted
	Leave      float64 `json:"leave"`       // 421 at the end of DATA, with nothing accepted
	Busy       float64 `json:"busy"`        // 451 at the end of DATA
	Concurrent float64 `json:"concurrent"`  // 432 4.3.2 at the end of DATA
	Quota      float64 `json:"quota"`       // 554 5.2.0 SubmissionQuotaExceeded at the end of DATA
	AfterTaken float64 `json:"after_taken"` // accept, and hang up without telling
}

func (c *Chances) check() error {
	for _, p := range []float64{c.Greeting, c.Mail, c.InData, c.AtDot, c.Leave, c.Busy, c.Concurrent, c.Quota, c.AfterTaken} {
		if !(p >= 0 && p <= 1) { // NaN is neither
			return fmt.Errorf("chances: %v is not between 0 and 1", p)
		}
	}
	return nil
}

// chance tells whether one of the Chances strikes.
func (s *Server) chance(pick func(*Chances) float64) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.unlucky(pick(&s.faults.Chances))
}

// unlucky is true for that share of the calls. The caller holds s.mu.
func (s *Server) unlucky(share float64) bool { return share > 0 && s.random.Float64() < share }

// plainFaults has no methods, so that json does not call them again.
type plainFaults Faults

// jsonDuration is a text such as "2s" in JSON.
type jsonDuration time.Duration

// MarshalText is for encoding/json.
func (d jsonDuration) MarshalText() ([]byte, error) { return []byte(time.Duration(d).String()), nil }

// UnmarshalText is for encoding/json. An empty text changes nothing.
func (d *jsonDuration) UnmarshalText(b []byte) error {
	if len(b) == 0 {
		return nil
	}
	v, err := time.ParseDuration(string(b))
	*d = jsonDuration(v)
	return err
}

// faultsJSON is Faults with the durations as texts, which hide the numbers.
type faultsJSON struct {
	*plainFaults
	EntraDelay     jsonDuration `json:"entra_delay"`
	EntraTokenLife jsonDuration `json:"entra_token_life"`
	EntraSkew      jsonDuration `json:"entra_skew"`
}

func (f *Faults) json() faultsJSON {
	return faultsJSON{(*plainFaults)(f), jsonDuration(f.EntraDelay), jsonDuration(f.EntraTokenLife), jsonDuration(f.EntraSkew)}
}

// MarshalJSON writes durations as texts.
func (f Faults) MarshalJSON() ([]byte, error) { return json.Marshal(f.json()) }

// UnmarshalJSON changes only what the object names, and refuses names it does
// not know.
func (f *Faults) UnmarshalJSON(b []byte) error {
	v := f.json()
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	if err := d.Decode(&v); err != nil {
		return err
	}
	f.EntraDelay, f.EntraTokenLife, f.EntraSkew = time.Duration(v.EntraDelay), time.Duration(v.EntraTokenLife), time.Duration(v.EntraSkew)
	return nil
}

func (f *Faults) check() error {
	if f.ConcurrentShare < 0 || f.ConcurrentShare > 1 {
		return fmt.Errorf("concurrent_share: %v is not between 0 and 1", f.ConcurrentShare)
	}
	if f.EntraStatus != 0 && (f.EntraStatus < 200 || f.EntraStatus > 599) {
		return fmt.Errorf("entra_status: %d is no HTTP status", f.EntraStatus)
	}
	if f.IMDSStatus != 0 && (f.IMDSStatus < 400 || f.IMDSStatus > 599) {
		return fmt.Errorf("imds_status: %d is no HTTP status of an error", f.IMDSStatus)
	}
	if form := f.IMDSExpiresOn; form != "" && form != "number" && expiryForms[form] == "" {
		return fmt.Errorf("imds_expires_on: %q is not number, us, iso or rfc3339", form)
	}
	if strings.ContainsAny(f.EntraContentType+f.ArcRealm, "\r\n") {
		return fmt.Errorf("entra_content_type, arc_realm: a line break is no part of a header")
	}
	if min(f.EntraTimes, f.IMDSTimes, f.EntraRefreshIn, int(f.EntraTokenLife)) < 0 {
		return fmt.Errorf("entra_times, imds_times, entra_refresh_in, entra_token_life: a number is negative")
	}
	return f.Chances.check()
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
	return countDown(&s.faults.Concurrent) || s.unlucky(s.faults.ConcurrentShare) || s.unlucky(s.faults.Chances.Concurrent)
}
