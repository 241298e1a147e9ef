package exosim

import (
	"bytes"
	"encoding/json"
	"time"

	"github.com/sendas/sendas/contrib/exosim/entra"
	"github.com/sendas/sendas/contrib/exosim/smtp"
)

// The parts of Faults, one of each room. In JSON their names stand side by side.
type (
	SMTPFaults  = smtp.Faults
	EntraFaults = entra.Faults
)

// Faults are troubles that can be switched on while the simulator runs. A
// number counts down: so many of the next connections, messages or requests.
// What concerns a mailbox leaves the MX endpoint alone.
type Faults struct {
	SMTPFaults
	EntraFaults
}

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
	Delay     jsonDuration `json:"entra_delay"`
	TokenLife jsonDuration `json:"entra_token_life"`
	Skew      jsonDuration `json:"entra_skew"`
}

func (f *Faults) json() faultsJSON {
	return faultsJSON{(*plainFaults)(f), jsonDuration(f.Delay), jsonDuration(f.TokenLife), jsonDuration(f.Skew)}
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
	f.Delay, f.TokenLife, f.Skew = time.Duration(v.Delay), time.Duration(v.TokenLife), time.Duration(v.Skew)
	return nil
}

// SetFaults replaces all troubles. It fails on values that make no sense, which
// change nothing, and if the address of Entra cannot be had again after it
// refused connections.
func (s *Server) SetFaults(f Faults) error {
	if err := f.SMTPFaults.Check(); err != nil {
		return err
	}
	if err := f.EntraFaults.Check(); err != nil {
		return err
	}
	s.Exchange.SetFaults(f.SMTPFaults)
	s.Login.SetFaults(f.EntraFaults)
	if f.Refuse {
		s.entra.close()
		return nil
	}
	return s.entra.open()
}

// Faults returns the troubles that are on, with what is left of the numbers.
func (s *Server) Faults() Faults { return Faults{s.Exchange.Faults(), s.Login.Faults()} }
