package exosim

import (
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/goccy/go-yaml"
)

// Config is what the simulator plays. The zero value of a field means its default.
type Config struct {
	Tenant  string   `yaml:"tenant"`  // id or domain in token URLs; contoso.onmicrosoft.com
	Domains []string `yaml:"domains"` // accepted domains

	Apps      []App     `yaml:"apps"`
	Mailboxes []Mailbox `yaml:"mailboxes"`

	// SMTPAuthDisabled switches SMTP AUTH off for the tenant.
	SMTPAuthDisabled bool `yaml:"smtp_auth_disabled"`

	// Messages per Window, recipients per RecipientWindow, and parallel deliveries of a mailbox.
	Messages        int           `yaml:"messages"`         // 30
	Window          time.Duration `yaml:"window"`           // 1m
	Recipients      int           `yaml:"recipients"`       // 10000
	RecipientWindow time.Duration `yaml:"recipient_window"` // 24h
	Connections     int           `yaml:"connections"`      // 3
	EnforceRate     bool          `yaml:"enforce_rate"`     // refuse messages over the rate instead of only noting them

	// TokenLife is how long tokens live; Entra gives 60 to 90 minutes.
	TokenLife time.Duration `yaml:"token_life"` // 1h
	// VerdictMin and VerdictMax bound the time between the end of DATA and the verdict.
	VerdictMin time.Duration `yaml:"verdict_min"`
	VerdictMax time.Duration `yaml:"verdict_max"`
	// TarPit delays refusals; the real service takes about 5 s.
	TarPit time.Duration `yaml:"tar_pit"`
	// Challenge sends a 334 with a JSON error before a 535, as Google does.
	Challenge bool `yaml:"challenge"`

	Submission string `yaml:"submission"` // address to listen on; 127.0.0.1:0
	Entra      string `yaml:"entra"`      // HTTPS; 127.0.0.1:0
	Admin      string `yaml:"admin"`      // HTTP; none
	// CAFile is where the certificate of the simulator's own authority is written.
	CAFile string `yaml:"ca_file"`
}

// App is an app registration with its service principal in Exchange.
type App struct {
	ClientID        string    `yaml:"client_id"`
	ObjectID        string    `yaml:"object_id"`          // of the enterprise application
	ExchangeID      string    `yaml:"exchange_object_id"` // what New-ServicePrincipal was given; default ObjectID
	Secret          string    `yaml:"secret"`
	SecretExpires   time.Time `yaml:"secret_expires"`
	CertificateFile string    `yaml:"certificate_file"` // PEM
	// Roles are the app permissions: SMTP.SendAsApp in the classic model, none with App RBAC.
	Roles []string `yaml:"roles"`
	// Mailboxes are those with FullAccess (classic) or in the role's scope (App RBAC).
	Mailboxes []string `yaml:"mailboxes"`
}

// Mailbox is a mailbox of the tenant.
type Mailbox struct {
	Address          string   `yaml:"address"`
	Aliases          []string `yaml:"aliases"`
	SendAs           []string `yaml:"send_as"` // addresses on which this mailbox has Send As
	SMTPAuthDisabled bool     `yaml:"smtp_auth_disabled"`
	Full             bool     `yaml:"full"`     // Sent Items filled it
	NoLogon          bool     `yaml:"no_logon"` // permissions have not replicated
}

// LoadConfig reads a YAML file; unknown keys are errors.
func LoadConfig(path string) (Config, error) {
	var c Config
	b, err := os.ReadFile(path)
	if err != nil {
		return c, err
	}
	if err := yaml.UnmarshalWithOptions(b, &c, yaml.Strict()); err != nil {
		return c, fmt.Errorf("%s: %w", path, err)
	}
	return c, nil
}

// complete fills in defaults.
func (c *Config) complete() error {
	set := func(p *string, v string) {
		if *p == "" {
			*p = v
		}
	}
	setN := func(p *int, v int) {
		if *p == 0 {
			*p = v
		}
	}
	setD := func(p *time.Duration, v time.Duration) {
		if *p == 0 {
			*p = v
		}
	}
	set(&c.Tenant, "contoso.onmicrosoft.com")
	set(&c.Submission, "127.0.0.1:0")
	set(&c.Entra, "127.0.0.1:0")
	setN(&c.Messages, 30)
	setN(&c.Recipients, 10_000)
	setN(&c.Connections, 3)
	setD(&c.Window, time.Minute)
	setD(&c.RecipientWindow, 24*time.Hour)
	setD(&c.TokenLife, time.Hour)
	c.VerdictMax = max(c.VerdictMax, c.VerdictMin)
	for i := range c.Apps {
		set(&c.Apps[i].ExchangeID, c.Apps[i].ObjectID)
	}
	seen := map[string]bool{}
	for _, m := range c.Mailboxes {
		key := strings.ToLower(m.Address)
		if !strings.Contains(key, "@") || seen[key] {
			return fmt.Errorf("exosim: mailbox %q is no address or listed twice", m.Address)
		}
		seen[key] = true
	}
	return nil
}
