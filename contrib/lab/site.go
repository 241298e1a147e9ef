package lab

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"os"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sendas/sendas/contrib/exosim"
	"github.com/sendas/sendas/contrib/exosim/directory"
)

// SiteConfig says what a site is made of. The site is contoso.com: printers in 10.2.0.0/16 that may
// leave as scan@, SAP in 10.1.0.0/16 with erp@ and its Send As addresses billing@ and hr@, a
// monitoring system that logs in and has monitor@.
type SiteConfig struct {
	Sendas    string        // the program
	PluginDir string        // the folder of libsendas-xoauth2.so
	Minute    time.Duration // the period of the message limit, at both ends; 0 is a real minute
	// Activated hands the services their sockets as systemd does.
	Activated bool
	// Exosim changes the simulator's configuration.
	Exosim func(*exosim.Config)
	// YAML changes the services' configuration.
	YAML func(string) string
	// TokenEnv is added to the environment of the token service.
	TokenEnv func(*exosim.Server) []string
	// Postfix changes settings of main.cf and adds to master.cf.
	Postfix func(s *Site, main map[string]string) (master []string)
	// Disk puts the site on a disk of its own that has so many bytes.
	Disk int
	// Certificate uses a client certificate instead of a secret.
	Certificate func(dir string) (certFile, keyFile string, err error)
}

// Site is a running relay with all that is around it: a private Postfix, the two services under
// users of their own, and the simulated Exchange Online.
type Site struct {
	Exosim  *exosim.Server
	Postfix *Postfix
	Milter  *Service
	Token   *Service
	Config  string // the services' configuration file
	Secret  string // the app's client secret
	Dir     string

	milterHTTP, tokenHTTP string
	disk                  bool // Dir is a disk of its own
}

// MXHost is the MX endpoint of the site's tenant.
const MXHost = "contoso-com.mail.protection.outlook.com"

// Users that the services run as; every Debian has them.
const (
	milterUser = 65534 // nobody
	tokenUser  = 1     // daemon
)

const (
	clientID = "5f2c0d3e-0000-4000-8000-000000000001"
	objectID = "0b1ec700-0000-4000-8000-000000000002"
)

// Publish copies sendas and its SASL plugin from the folder build to a new one, where the services'
// users may read them; a home folder is not such a place. The caller removes it.
func Publish(build string) (string, error) {
	dir, err := MakeDir()
	if err != nil {
		return "", err
	}
	for _, f := range []string{"sendas", "libsendas-xoauth2.so"} {
		b, err := os.ReadFile(filepath.Join(build, f))
		if err == nil {
			err = os.WriteFile(filepath.Join(dir, f), b, 0o755)
		}
		if err != nil {
			return "", errors.Join(fmt.Errorf("%w; run \"make build\" first", err), os.RemoveAll(dir))
		}
	}
	return dir, nil
}

// StartSite starts a site. Stop it, also after an error of a test.
func StartSite(ctx context.Context, c SiteConfig) (s *Site, err error) {
	if c.Minute == 0 {
		c.Minute = time.Minute
	}
	dir, err := MakeDir()
	if err != nil {
		return nil, err
	}
	s = &Site{Dir: dir, Secret: "s3cr3t~in/the+lab-" + filepath.Base(dir)}
	begun := s // "return nil" sets s
	defer func() {
		if err != nil {
			err = errors.Join(err, begun.Stop())
		}
	}()
	if c.Disk > 0 {
		if err := unix.Mount("tmpfs", dir, "tmpfs", 0, fmt.Sprintf("mode=755,size=%d", c.Disk)); err != nil {
			return nil, fmt.Errorf("making a disk: %w", err)
		}
		s.disk = true
	}
	if err := s.startExosim(c); err != nil {
		return nil, err
	}
	if err := s.startRelay(ctx, c); err != nil {
		return nil, err
	}
	return s, nil
}

// startRelay starts all but the simulator: Postfix and the services.
func (s *Site) startRelay(ctx context.Context, c SiteConfig) error {
	if err := s.startPostfix(ctx, c); err != nil {
		return err
	}
	if err := s.writeConfig(c); err != nil {
		return err
	}
	s.Milter = s.service(c.Sendas, "milter", milterUser, s.milterHTTP)
	groups, err := queueReaders()
	if err != nil {
		return err
	}
	s.Milter.groups = groups
	s.Token = s.service(c.Sendas, "token", tokenUser, s.tokenHTTP)
	if c.TokenEnv != nil {
		s.Token.env = c.TokenEnv(s.Exosim)
	}
	if c.Activated {
		if err := s.Milter.activate("milter", filepath.Join(s.Postfix.SocketDir(), "milter")); err != nil {
			return err
		}
		if err := s.Token.activate("credentials", filepath.Join(s.Postfix.SocketDir(), "credentials")); err != nil {
			return err
		}
	}
	if err := s.Milter.Start(ctx); err != nil {
		return err
	}
	return s.Token.Start(ctx)
}

// Stop ends all that runs and removes the folder.
func (s *Site) Stop() error {
	var errs []error
	if s.Postfix != nil {
		errs = append(errs, s.Postfix.Stop())
	}
	for _, v := range []*Service{s.Milter, s.Token} {
		if v != nil {
			errs = append(errs, v.Stop())
			if v.socket != nil {
				errs = append(errs, v.socket.Close())
			}
		}
	}
	if s.Exosim != nil {
		s.Exosim.Close()
	}
	if s.disk {
		errs = append(errs, unix.Unmount(s.Dir, unix.MNT_DETACH))
	}
	return errors.Join(append(errs, os.RemoveAll(s.Dir))...)
}

// ResizeDisk gives the site's own disk another size, in bytes.
func (s *Site) ResizeDisk(size int64) error {
	return unix.Mount("tmpfs", s.Dir, "tmpfs", unix.MS_REMOUNT, fmt.Sprintf("mode=755,size=%d", size))
}

func (s *Site) startExosim(c SiteConfig) (err error) {
	app := directory.App{ClientID: clientID, ObjectID: objectID, Secret: s.Secret, Mailboxes: []string{"erp@contoso.com", "scan@contoso.com", "monitor@contoso.com"}}
	if c.Certificate != nil {
		cert, _, err := c.Certificate(s.Dir)
		if err != nil {
			return err
		}
		app.Secret, app.CertificateFile = "", cert
	}
	cfg := exosim.Config{MX: "127.0.0.1:0", CAFile: filepath.Join(s.Dir, "ca.pem"), SMTPConfig: exosim.SMTPConfig{Window: c.Minute}}
	cfg.DirectoryConfig = exosim.DirectoryConfig{
		Tenant: "contoso.onmicrosoft.com", Domains: []string{"contoso.com"}, Apps: []directory.App{app},
		Mailboxes: []directory.Mailbox{
			{Address: "erp@contoso.com", SendAs: []string{"billing@contoso.com", "hr@contoso.com"}},
			{Address: "scan@contoso.com"}, {Address: "monitor@contoso.com"},
		},
	}
	if c.Exosim != nil {
		c.Exosim(&cfg)
	}
	s.Exosim, err = exosim.Start(cfg)
	return err
}

func (s *Site) startPostfix(ctx context.Context, c SiteConfig) (err error) {
	_, port, _ := net.SplitHostPort(s.Exosim.SubmissionAddr())
	main := MainCF(port, filepath.Join(s.Dir, "ca.pem"))
	// What a test site has besides: pretended clients, and retries within a test's patience.
	main["mynetworks"] = "127.0.0.0/8 10.0.0.0/8 192.0.2.0/24 198.51.100.0/24"
	main["minimal_backoff_time"] = "2s"
	main["maximal_backoff_time"] = "4s"
	main["queue_run_delay"] = "1s"
	var master []string
	if c.Postfix != nil {
		master = c.Postfix(s, main)
	}
	master = append(master, ownTransport(main)...)
	s.Postfix, err = StartPostfix(ctx, PostfixConfig{
		Dir: filepath.Join(s.Dir, "p"), Main: main, Master: master, Hosts: map[string]string{"smtp.office365.com": "127.0.0.1", "smtp.hve.mx.microsoft": "127.0.0.1", MXHost: "127.0.0.1"},
		SASLPluginDir: c.PluginDir, SocketUID: milterUser, SocketGID: tokenUser,
	})
	if err != nil {
		return err
	}
	return os.Chmod(s.Postfix.SocketDir(), 0o775) // both services make their sockets here
}

// MainCF returns the settings that docs/by-hand.md gives, for a submission host on another port and
// with another authority. Those of submission, which begin with smtp_, come to stand in the
// transport sendas (ownTransport).
func MainCF(port, caFile string) map[string]string {
	return map[string]string{
		"smtpd_milters":                                      "unix:sendas/milter",
		"non_smtpd_milters":                                  "unix:sendas/milter",
		"internal_mail_filter_classes":                       "bounce, notify",
		"milter_default_action":                              "tempfail",
		"local_header_rewrite_clients":                       "",
		"resolve_numeric_domain":                             "yes",
		"default_transport":                                  "sendas:[smtp.office365.com]:" + port,
		"smtp_tls_security_level":                            "secure",
		"smtp_tls_policy_maps":                               "",
		"smtp_tls_CAfile":                                    caFile,
		"smtp_sasl_auth_enable":                              "yes",
		"smtp_sasl_mechanism_filter":                         "xoauth2",
		"smtp_sasl_security_options":                         "noanonymous, noplaintext",
		"smtp_sasl_tls_security_options":                     "noanonymous, noplaintext",
		"smtp_sasl_tls_verified_security_options":            "noanonymous",
		"smtp_sender_dependent_authentication":               "yes",
		"smtp_sasl_password_maps":                            "socketmap:unix:sendas/credentials:lease",
		"smtp_reply_filter":                                  "socketmap:unix:sendas/credentials:reply",
		"smtp_fallback_relay":                                "",
		"smtp_tls_connection_reuse":                          "no",
		"smtp_connection_cache_on_demand":                    "no",
		"sendas_destination_concurrency_limit":               "3",
		"sendas_destination_concurrency_failed_cohort_limit": "0",
		"sendas_destination_concurrency_negative_feedback":   "0",
	}
}

// ownTransport moves the settings of submission out of main.cf into an entry of master.cf, as
// "sendas postfix enable" writes it; none where main has none.
func ownTransport(main map[string]string) []string {
	entry := "sendas unix - - y - - smtp"
	if main["smtp_sasl_password_maps"] == "" {
		return nil
	}
	for _, name := range slices.Sorted(maps.Keys(main)) {
		if strings.HasPrefix(name, "smtp_") {
			entry += fmt.Sprintf("\n    -o { %s = %s }", name, main[name])
			delete(main, name)
		}
	}
	return []string{entry}
}

func (s *Site) writeConfig(c SiteConfig) error {
	ports, err := freePorts(2)
	if err != nil {
		return err
	}
	s.milterHTTP, s.tokenHTTP = ports[0], ports[1]
	secretFile := filepath.Join(s.Dir, "relay-app.secret")
	if err := writeOwned(secretFile, s.Secret+"\n", 0o600, tokenUser); err != nil {
		return err
	}
	state, counts := filepath.Join(s.Dir, "state"), filepath.Join(s.Dir, "counts")
	if err := errors.Join(makeDir(state, 0o700, tokenUser, tokenUser), makeDir(counts, 0o700, milterUser, milterUser)); err != nil {
		return err
	}
	proof := "client_secret_file: relay-app.secret"
	if c.Certificate != nil {
		_, key, err := c.Certificate(s.Dir)
		if err != nil {
			return err
		}
		proof = "certificate_file: " + key
	}
	_, port, _ := net.SplitHostPort(s.Exosim.SubmissionAddr())
	_, mxPort, _ := net.SplitHostPort(s.Exosim.MXAddr())
	_, hvePort, _ := net.SplitHostPort(s.Exosim.HVEAddr())
	s.Config = filepath.Join(s.Dir, "sendas.yaml")
	yaml := siteYAML
	if c.YAML != nil {
		yaml = c.YAML(yaml)
	}
	limits := "{messages: 30/" + c.Minute.String() + "}"
	return os.WriteFile(s.Config, []byte(strings.NewReplacer(
		"AUTHORITY", s.Exosim.Authority(), "MXPORT", mxPort, "HVEPORT", hvePort, "PORT", port, "CLIENTID", clientID, "PROOF", proof, "LIMITS", limits,
		"SOCKETS", s.Postfix.SocketDir(), "SHOWQ", filepath.Join(s.Postfix.QueueDir(), "public", "showq"), "MILTERHTTP", s.milterHTTP, "TOKENHTTP", s.tokenHTTP,
	).Replace(yaml)), 0o644)
}

const siteYAML = `tenant:
  id: contoso.onmicrosoft.com
  domains: [contoso.com]
  endpoints:
    authority: AUTHORITY
    submission: smtp.office365.com:PORT
    ca_file: ca.pem
credentials:
  relay-app:
    flow: client_credentials
    client_id: CLIENTID
    PROOF
mailboxes:
  - address: erp@contoso.com
    credential: relay-app
    send_as: [billing@contoso.com, hr@contoso.com]
    limits: LIMITS
  - address: scan@contoso.com
    credential: relay-app
    limits: LIMITS
  - address: monitor@contoso.com
    credential: relay-app
    limits: LIMITS
clients:
  - name: sap
    networks: [10.1.0.0/16]
    from: billing@contoso.com
  - name: printers
    networks: [10.2.0.0/16]
    from: scan@contoso.com
  - name: monitoring
    logins: [nagios]
    senders: ["*@contoso.com"]
    on_unauthorized: reject
  - name: this-host
    networks: [127.0.0.0/8]
    from: monitor@contoso.com
milter:
  listen: unix:SOCKETS/milter
  policy_listen: unix:SOCKETS/policy
  http: MILTERHTTP
  store: bolt:counts/milter.db
  queue_socket: SHOWQ
token:
  listen: unix:SOCKETS/credentials
  http: TOKENHTTP
  state_dir: state
`

func (s *Site) service(binary, name string, uid uint32, http string) *Service {
	log := filepath.Join(s.Dir, name+".log")
	return &Service{binary: binary, args: []string{name, "--config", s.Config}, uid: uid, gid: uid, log: log, ready: http}
}

// queueReaders returns the group that may ask Postfix what is in its queue; the milter does for its
// ceiling.
func queueReaders() ([]uint32, error) {
	g, err := user.LookupGroup(setgidGroup)
	if err != nil {
		return nil, err
	}
	id, err := strconv.ParseUint(g.Gid, 10, 32)
	return []uint32{uint32(id)}, err
}

// MetricsURLs returns where the two services show their figures.
func (s *Site) MetricsURLs() []string {
	return []string{"http://" + s.milterHTTP + "/metrics", "http://" + s.tokenHTTP + "/metrics"}
}

// TokenHTTP returns host:port of the token service's figures.
func (s *Site) TokenHTTP() string { return s.tokenHTTP }

// writeOwned writes a file that only one user can read.
func writeOwned(path, content string, mode os.FileMode, uid int) error {
	if err := os.WriteFile(path, []byte(content), mode); err != nil {
		return err
	}
	return os.Chown(path, uid, -1)
}

// nextPort is the port that freePorts tries next: below those from which the system takes its own
// (ip_local_port_range), so that no connection gets it before the service that it is meant for, and
// beginning at another place in each process.
var nextPort = func() *atomic.Uint32 {
	n := new(atomic.Uint32)
	n.Store(10_000 + uint32(os.Getpid()*37%20_000))
	return n
}()

// freePorts returns addresses on loopback that were free a moment ago, and each only once.
func freePorts(n int) ([]string, error) {
	var list []string
	for tries := 0; len(list) < n; tries++ {
		l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", nextPort.Add(1)))
		if err != nil {
			if tries > 1000 {
				return nil, err
			}
			continue
		}
		list = append(list, l.Addr().String())
		l.Close()
	}
	return list, nil
}

// WaitMessages waits until the simulator has seen n messages at the end of DATA that it accepted.
func (s *Site) WaitMessages(ctx context.Context, n int) error {
	err := poll(ctx, func() (bool, error) { return s.Accepted() >= n, nil })
	if err != nil {
		return fmt.Errorf("%d of %d messages reached Exchange Online: %w", s.Accepted(), n, err)
	}
	return nil
}

// Accepted returns how many messages the simulator has accepted.
func (s *Site) Accepted() int {
	n := 0
	for _, m := range s.Exosim.Messages() {
		if m.Accepted() {
			n++
		}
	}
	return n
}
