package exosim

import (
	"cmp"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/goccy/go-yaml"

	"github.com/sendas/sendas/contrib/exosim/directory"
	"github.com/sendas/sendas/contrib/exosim/entra"
	"github.com/sendas/sendas/contrib/exosim/smtp"
)

// The parts of a Config, one of each room. In a file their keys stand side by side.
type (
	DirectoryConfig = directory.Config
	SMTPConfig      = smtp.Config
	EntraConfig     = entra.Config
)

// Config is what the simulator plays. The zero value of a field means its
// default, which is Microsoft's figure where there is one.
type Config struct {
	DirectoryConfig `yaml:",inline"`
	SMTPConfig      `yaml:",inline"`
	EntraConfig     `yaml:",inline"`

	// Seed makes random delays and faults repeatable; 0 is another run each time.
	Seed uint64 `yaml:"seed"`
	// ClientCAFile is PEM: who vouches for the certificates of connectors,
	// beside the simulator's own authority.
	ClientCAFile string `yaml:"client_ca_file"`

	Submission string `yaml:"submission"`  // address to listen on; 127.0.0.1:0
	MX         string `yaml:"mx"`          // address of the MX endpoint, which takes mail for Domains; none
	HVE        string `yaml:"hve"`         // address of High Volume Email; none
	Entra      string `yaml:"entra"`       // HTTPS; 127.0.0.1:0
	EntraPlain bool   `yaml:"entra_plain"` // HTTP instead
	Admin      string `yaml:"admin"`       // HTTP; none
	IMDS       string `yaml:"imds"`        // HTTP, the managed identity endpoints; none
	// CAFile is where the certificate of the simulator's own authority is
	// written. With CAKeyFile both are kept, and used again at the next start.
	CAFile    string `yaml:"ca_file"`
	CAKeyFile string `yaml:"ca_key_file"`
}

// LoadConfig reads a YAML file; unknown keys are errors. Relative file names in
// it start at its folder. Errors show the place and no line of the file, since
// it holds secrets.
func LoadConfig(path string) (Config, error) {
	var c Config
	b, err := os.ReadFile(path)
	if err != nil {
		return c, err
	}
	if err := yaml.UnmarshalWithOptions(b, &c, yaml.Strict()); err != nil {
		return c, fmt.Errorf("%s: %s", path, strings.TrimSpace(yaml.FormatError(err, false, false)))
	}
	files := []*string{&c.CAFile, &c.CAKeyFile, &c.ClientCAFile, &c.ArcKeys}
	for i := range c.Apps {
		files = append(files, &c.Apps[i].CertificateFile)
	}
	for _, f := range files {
		if *f != "" && !filepath.IsAbs(*f) {
			*f = filepath.Join(filepath.Dir(path), *f)
		}
	}
	if err := c.complete(); err != nil {
		return c, fmt.Errorf("%s: %w", path, err)
	}
	return c, nil
}

// complete fills in defaults and refuses what cannot be meant.
func (c *Config) complete() error {
	c.Submission = cmp.Or(c.Submission, "127.0.0.1:0")
	c.Entra = cmp.Or(c.Entra, "127.0.0.1:0")
	if err := c.checkEndpoints(); err != nil {
		return err
	}
	if err := c.DirectoryConfig.Complete(); err != nil {
		return err
	}
	if err := c.EntraConfig.Complete(c.HasUser); err != nil {
		return err
	}
	return c.SMTPConfig.Complete(c.Contains)
}

// checkEndpoints refuses what belongs to an endpoint that there is not to be.
func (c *Config) checkEndpoints() error {
	switch {
	case c.CAKeyFile != "" && c.CAFile == "":
		return fmt.Errorf("ca_key_file: needs ca_file beside it")
	case c.IMDS == "" && (len(c.ManagedIdentities) > 0 || c.ArcKeys != ""):
		return fmt.Errorf("managed_identities, arc_keys: need imds beside them")
	case c.MX == "" && (len(c.Connectors) > 0 || c.ClientCAFile != "" || c.RejectDirectSend || len(c.KnownRecipients) > 0):
		return fmt.Errorf("connectors, client_ca_file, reject_direct_send, known_recipients: need mx beside them")
	case c.HVE == "" && len(c.Accounts) > 0:
		return fmt.Errorf("hve_accounts: need hve beside them")
	case c.HVE != "" && len(c.Domains) == 0:
		return fmt.Errorf("hve: needs domains beside it, to know who is outside")
	case c.MX != "" && len(c.Domains) == 0:
		return fmt.Errorf("mx: needs domains beside it")
	}
	return nil
}
