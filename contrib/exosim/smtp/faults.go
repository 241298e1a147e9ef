package smtp

import "fmt"

// Faults are troubles of Exchange Online that can be switched on while it runs. A
// number counts down: so many of the next connections or messages. What concerns a
// mailbox leaves the MX endpoint alone.
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
}

// Chances are troubles of a service that is in trouble: the share of connections or messages that
// each of them meets, 0 to 1. A seed makes them repeatable, as far as the order of the connections
// is. The MX endpoint knows those before the final dot.
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

// Check returns what makes no sense. Its error begins with the wrong key.
func (f *Faults) Check() error {
	if f.ConcurrentShare < 0 || f.ConcurrentShare > 1 {
		return fmt.Errorf("concurrent_share: %v is not between 0 and 1", f.ConcurrentShare)
	}
	return f.Chances.check()
}

func (c *Chances) check() error {
	for _, p := range []float64{c.Greeting, c.Mail, c.InData, c.AtDot, c.Leave, c.Busy, c.Concurrent, c.Quota, c.AfterTaken} {
		if !(p >= 0 && p <= 1) { // NaN is neither
			return fmt.Errorf("chances: %v is not between 0 and 1", p)
		}
	}
	return nil
}

// SetFaults replaces all troubles by some that [Faults.Check] has found good.
func (x *Exchange) SetFaults(f Faults) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.faults = f
}

// Faults returns the troubles that are on, with what is left of the numbers.
func (x *Exchange) Faults() Faults {
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.faults
}

// chance reports whether one of the Chances strikes.
func (x *Exchange) chance(pick func(*Chances) float64) bool {
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.unlucky(pick(&x.faults.Chances))
}

// unlucky is true for that share of the calls. The caller holds x.mu.
func (x *Exchange) unlucky(share float64) bool { return share > 0 && x.random.Float64() < share }

// strikes uses up one of a number of faults.
func (x *Exchange) strikes(pick func(*Faults) *int) bool {
	x.mu.Lock()
	defer x.mu.Unlock()
	return countDown(pick(&x.faults))
}

func countDown(n *int) bool {
	if *n <= 0 {
		return false
	}
	*n--
	return true
}

// overloaded reports whether a made-up 432 hits this message.
func (x *Exchange) overloaded() bool {
	x.mu.Lock()
	defer x.mu.Unlock()
	return countDown(&x.faults.Concurrent) || x.unlucky(x.faults.ConcurrentShare) || x.unlucky(x.faults.Chances.Concurrent)
}
