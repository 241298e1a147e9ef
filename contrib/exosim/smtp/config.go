package smtp

import (
	"cmp"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"time"
)

// Config is how Exchange Online behaves. The zero value of a field means its
// default, which is Microsoft's figure where there is one.
type Config struct {
	// Messages per Window, recipients per RecipientWindow, and parallel
	// deliveries of a mailbox.
	Messages        int           `yaml:"messages"`         // 30
	Window          time.Duration `yaml:"window"`           // 1m
	Recipients      int           `yaml:"recipients"`       // 10000
	RecipientWindow time.Duration `yaml:"recipient_window"` // 24h
	Connections     int           `yaml:"connections"`      // 3
	// EnforceRate says what happens to more than Messages in a Window: nothing
	// but a note of it, a verdict that comes later (what Microsoft documents),
	// or a refusal.
	EnforceRate RateMode `yaml:"enforce_rate"` // off

	MaxSize         int64 `yaml:"max_size"`          // bytes of a message, as EHLO says; 157286400
	MaxMessageRcpts int   `yaml:"max_message_rcpts"` // recipients of one message; 500
	HighVolume      bool  `yaml:"high_volume"`       // submission wants a token with 10 minutes left, as High Volume Email does

	// What High Volume Email takes at one time, and which of its words for a token that ends soon it
	// uses: 5.5.127 or 5.7.142.
	HVEMaxSize  int64  `yaml:"hve_max_size"`  // 10485760
	HVEMaxRcpts int    `yaml:"hve_max_rcpts"` // 50
	HVESoonText string `yaml:"hve_soon_text"` // 5.5.127

	// VerdictMin and VerdictMax bound the time between the end of DATA and the
	// verdict; the real service takes 0.5 to 3 s.
	VerdictMin time.Duration `yaml:"verdict_min"`
	VerdictMax time.Duration `yaml:"verdict_max"`
	// AuthTime and RcptTime are how long a good AUTH and a good RCPT take; with TLS and MAIL the real
	// service takes one to two seconds from the banner to DATA.
	AuthTime time.Duration `yaml:"auth_time"`
	RcptTime time.Duration `yaml:"rcpt_time"`
	// TarPit delays refusals before DATA; the real service takes about 5 s.
	TarPit time.Duration `yaml:"tar_pit"`
	// Idle is how long a client may be silent.
	Idle time.Duration `yaml:"idle"` // 5m
	// Challenge sends a 334 with a JSON error before a 535, as Google does.
	Challenge bool `yaml:"challenge"`
	// SendAsText chooses among the wordings of a missing Send As right that
	// are still seen: 5.2.252, 5.2.0 or 5.7.60.
	SendAsText string `yaml:"send_as_text"` // 5.2.252

	// ThrottleAfter is how many refusals of one kind (Send As denied, mailbox full, invalid recipients)
	// within ThrottleTime make Exchange Online refuse everything that the mailbox submits for
	// ThrottleTime, which each more begins anew: "continuous error throttling". Microsoft has not said
	// the number, and one report has a day. 0 throttles nobody.
	ThrottleAfter int           `yaml:"throttle_after"`
	ThrottleTime  time.Duration `yaml:"throttle_time"` // 24h

	// Connectors are the inbound connectors that the MX endpoint knows.
	Connectors []Connector `yaml:"connectors"`

	// Log gets one line per refused AUTH and per verdict; nil is silence.
	Log *slog.Logger `yaml:"-"`
}

// RateMode says what happens to messages over the rate.
type RateMode string

const (
	RateOff    RateMode = "off"    // accepted; only the counters show it
	RateDelay  RateMode = "delay"  // the verdict waits until the message is within the rate
	RateReject RateMode = "reject" // 451
)

// Complete fills in defaults and refuses what cannot be meant. Its errors begin with the wrong key.
// The caller's slices stay as they are. Exchange takes only names of accepted domains for a
// connector's certificate: isOurs reports whether a host name is one.
func (c *Config) Complete(isOurs func(host string) bool) error {
	c.Messages = cmp.Or(c.Messages, 30)
	c.Window = cmp.Or(c.Window, time.Minute)
	c.Recipients = cmp.Or(c.Recipients, 10_000)
	c.RecipientWindow = cmp.Or(c.RecipientWindow, 24*time.Hour)
	c.Connections = cmp.Or(c.Connections, 3)
	c.EnforceRate = cmp.Or(c.EnforceRate, RateOff)
	c.MaxSize = cmp.Or(c.MaxSize, 157286400)
	c.MaxMessageRcpts = cmp.Or(c.MaxMessageRcpts, 500)
	c.HVEMaxSize = cmp.Or(c.HVEMaxSize, 10<<20)
	c.HVEMaxRcpts = cmp.Or(c.HVEMaxRcpts, 50)
	c.HVESoonText = cmp.Or(c.HVESoonText, "5.5.127")
	c.Idle = cmp.Or(c.Idle, 5*time.Minute)
	c.ThrottleTime = cmp.Or(c.ThrottleTime, 24*time.Hour)
	c.SendAsText = cmp.Or(c.SendAsText, "5.2.252")
	c.Log = cmp.Or(c.Log, slog.New(slog.DiscardHandler))
	c.VerdictMax = max(c.VerdictMax, c.VerdictMin)
	c.Connectors = slices.Clone(c.Connectors)
	if err := c.checkFigures(); err != nil {
		return err
	}
	return c.completeConnectors(isOurs)
}

func (c *Config) checkFigures() error {
	if !slices.Contains([]RateMode{RateOff, RateDelay, RateReject}, c.EnforceRate) {
		return fmt.Errorf("enforce_rate: %q is not off, delay or reject", c.EnforceRate)
	}
	if sendAsTexts[c.SendAsText] == "" {
		return fmt.Errorf("send_as_text: %q is not 5.2.252, 5.2.0 or 5.7.60", c.SendAsText)
	}
	if soonTexts[c.HVESoonText] == "" {
		return fmt.Errorf("hve_soon_text: %q is not 5.5.127 or 5.7.142", c.HVESoonText)
	}
	if min(c.Messages, c.Recipients, c.Connections, c.MaxMessageRcpts, c.HVEMaxRcpts, c.ThrottleAfter, int(c.MaxSize), int(c.HVEMaxSize)) < 0 {
		return fmt.Errorf("messages, recipients, connections, max_size, max_message_rcpts, hve_max_size, hve_max_rcpts, throttle_after: a limit is negative")
	}
	if min(c.Window, c.RecipientWindow, c.VerdictMin, c.AuthTime, c.RcptTime, c.TarPit, c.Idle, c.ThrottleTime) < 0 {
		return fmt.Errorf("window, recipient_window, verdict_min, auth_time, rcpt_time, tar_pit, idle, throttle_time: a time is negative")
	}
	return nil
}

func (c *Config) completeConnectors(isOurs func(host string) bool) error {
	seen := map[string]bool{}
	for i := range c.Connectors {
		k := &c.Connectors[i]
		key := strings.ToLower(k.Name)
		if key == "" || seen[key] {
			return fmt.Errorf("connectors[%d].name: %q is empty or listed twice", i, k.Name)
		}
		seen[key] = true
		if err := k.complete(); err != nil {
			return fmt.Errorf("connectors[%d].%w", i, err)
		}
		if k.CertificateName != "" && !isOurs(k.CertificateName) {
			return fmt.Errorf("connectors[%d].certificate_name: %q is in none of the domains", i, k.CertificateName)
		}
	}
	return nil
}
