package entra

import (
	"fmt"
	"strings"
	"time"
)

// Faults are troubles of Entra and of a machine's identity endpoints that can be switched on while
// they run. A number counts down: so many of the next requests.
type Faults struct {
	// Refuse is for whoever listens: no connection is taken.
	Refuse       bool          `json:"entra_refuse"`        // connection refused
	Down         bool          `json:"entra_down"`          // connections end without an answer
	Status       int           `json:"entra_status"`        // answer with that HTTP status, 200 too, and an HTML page
	Retry        int           `json:"entra_retry"`         // Retry-After in seconds, with Status
	Delay        time.Duration `json:"entra_delay"`         // before every answer; in JSON a text such as "2s"
	Truncated    bool          `json:"entra_truncated"`     // cut the JSON of a good answer in half
	StringExpiry bool          `json:"entra_string_expiry"` // expires_in as a text, as IMDS and v1 endpoints have it
	Times        int           `json:"entra_times"`         // with Down and Status: so many requests, then no more; 0 is all
	ContentType  string        `json:"entra_content_type"`  // instead of application/json, with the JSON unchanged
	RefreshIn    int           `json:"entra_refresh_in"`    // refresh_in of good answers, in seconds
	TokenLife    time.Duration `json:"entra_token_life"`    // of access tokens, instead of Config.TokenLife; a text such as "5m"
	KeepRefresh  bool          `json:"entra_keep_refresh"`  // no new refresh token at a refresh, whatever its scope
	// Skew is how far Microsoft's clocks are ahead of ours: in the Date of
	// answers, in the times of tokens and errors, and for assertions and tokens
	// that are checked. A text such as "-10m".
	Skew time.Duration `json:"entra_skew"`

	// Microsoft Graph, which is at the same address.
	GraphStatus  int    `json:"graph_status"`  // refuse with that HTTP status, and
	GraphCode    string `json:"graph_code"`    // with that code: Authorization_RequestDenied
	GraphMessage string `json:"graph_message"` // and text
	GraphTimes   int    `json:"graph_times"`   // so many requests, then no more; 0 is all
	GraphLost    int    `json:"graph_lost"`    // do so many requests, and end the connection without an answer

	// The managed identity endpoints.
	IMDSStatus    int    `json:"imds_status"`     // answer with that HTTP status: 404, 410, 429, 503
	IMDSTimes     int    `json:"imds_times"`      // so many requests, then no more; 0 is all
	IMDSRetry     int    `json:"imds_retry"`      // Retry-After in seconds, with IMDSStatus
	IMDSExpiresOn string `json:"imds_expires_on"` // another form of expires_on: number, us, iso, rfc3339
	ArcRealm      string `json:"arc_realm"`       // the file that the challenge names, instead of the right one
	ArcLegacy     bool   `json:"arc_legacy"`      // an agent that overlooks which identity it is asked for
}

// Check returns what makes no sense. Its error begins with the wrong key.
func (f *Faults) Check() error {
	if f.Status != 0 && (f.Status < 200 || f.Status > 599) {
		return fmt.Errorf("entra_status: %d is no HTTP status", f.Status)
	}
	if f.IMDSStatus != 0 && (f.IMDSStatus < 400 || f.IMDSStatus > 599) {
		return fmt.Errorf("imds_status: %d is no HTTP status of an error", f.IMDSStatus)
	}
	if form := f.IMDSExpiresOn; form != "" && form != "number" && expiryForms[form] == "" {
		return fmt.Errorf("imds_expires_on: %q is not number, us, iso or rfc3339", form)
	}
	if strings.ContainsAny(f.ContentType+f.ArcRealm, "\r\n") {
		return fmt.Errorf("entra_content_type, arc_realm: a line break is no part of a header")
	}
	if f.GraphStatus != 0 && (f.GraphStatus < 400 || f.GraphStatus > 599) {
		return fmt.Errorf("graph_status: %d is no HTTP status of an error", f.GraphStatus)
	}
	if min(f.GraphTimes, f.GraphLost) < 0 {
		return fmt.Errorf("graph_times, graph_lost: a number is negative")
	}
	if min(f.Times, f.IMDSTimes, f.RefreshIn, int(f.TokenLife)) < 0 {
		return fmt.Errorf("entra_times, imds_times, entra_refresh_in, entra_token_life: a number is negative")
	}
	return nil
}

// SetFaults replaces all troubles by some that [Faults.Check] has found good. The clock is the
// directory's, for all who ask it.
func (l *Login) SetFaults(f Faults) {
	l.dir.SetSkew(f.Skew)
	l.mu.Lock()
	defer l.mu.Unlock()
	l.faults = f
}

// Faults returns the troubles that are on, with what is left of the numbers.
func (l *Login) Faults() Faults {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.faults
}

func countDown(n *int) bool {
	if *n <= 0 {
		return false
	}
	*n--
	return true
}
