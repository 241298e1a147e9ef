package exosim

import (
	"crypto/tls"
	"fmt"
	mathrand "math/rand/v2"
	"net"
	"sync"

	"github.com/sendas/sendas/contrib/exosim/directory"
	"github.com/sendas/sendas/contrib/exosim/entra"
	"github.com/sendas/sendas/contrib/exosim/smtp"
)

// Server is a running simulator: the three rooms, wired and listening. What each of them can do,
// the whole can do; see there.
type Server struct {
	*directory.Tenant
	*smtp.Exchange
	*entra.Login

	cfg   Config
	ca    *authority
	smtp  net.Listener
	mx    net.Listener // nil without
	hve   net.Listener // nil without
	entra *httpEndpoint
	admin *httpEndpoint // nil without
	imds  *httpEndpoint // nil without
	wg    sync.WaitGroup
}

// Start starts a simulator. It listens when Start returns. The error names the
// field of c that is wrong, or the address that cannot be had.
func Start(c Config) (*Server, error) {
	if err := c.complete(); err != nil {
		return nil, fmt.Errorf("exosim: %w", err)
	}
	s := &Server{cfg: c}
	if err := s.start(); err != nil {
		s.Close()
		return nil, fmt.Errorf("exosim: %w", err)
	}
	return s, nil
}

func (s *Server) start() (err error) {
	seed := s.cfg.Seed
	if seed == 0 {
		seed = mathrand.Uint64()
	}
	s.Tenant = directory.New(s.cfg.DirectoryConfig)
	// Each room draws from numbers of its own: what one is asked does not change what another does.
	if s.Login, err = entra.New(s.cfg.EntraConfig, s.Tenant, mathrand.New(mathrand.NewPCG(seed, 1))); err != nil {
		return err
	}
	var sec smtp.Security
	if sec.TLS, s.ca, err = certificates(s.cfg.CAFile, s.cfg.CAKeyFile); err != nil {
		return err
	}
	if sec.ClientRoots, err = s.ca.clientRoots(s.cfg.ClientCAFile); err != nil {
		return fmt.Errorf("client_ca_file: %w", err)
	}
	s.Exchange = smtp.New(s.cfg.SMTPConfig, s.Tenant, s.Verify, sec, mathrand.New(mathrand.NewPCG(seed, 0)))
	return s.listen(sec.TLS)
}

func (s *Server) listen(secure *tls.Config) (err error) {
	if s.smtp, err = net.Listen("tcp", s.cfg.Submission); err != nil {
		return err
	}
	s.wg.Go(func() { s.ServeSubmission(s.smtp) })
	if s.cfg.MX != "" {
		if s.mx, err = net.Listen("tcp", s.cfg.MX); err != nil {
			return err
		}
		s.wg.Go(func() { s.ServeMX(s.mx) })
	}
	if s.cfg.HVE != "" {
		if s.hve, err = net.Listen("tcp", s.cfg.HVE); err != nil {
			return err
		}
		s.wg.Go(func() { s.ServeHighVolume(s.hve) })
	}
	if s.cfg.EntraPlain {
		secure = nil
	}
	s.entra = &httpEndpoint{addr: s.cfg.Entra, tls: secure, handler: s.Handler()}
	if err := s.entra.open(); err != nil {
		return err
	}
	if s.cfg.IMDS != "" {
		s.imds = &httpEndpoint{addr: s.cfg.IMDS, handler: s.IdentityHandler()}
		if err := s.imds.open(); err != nil {
			return err
		}
	}
	if s.cfg.Admin == "" {
		return nil
	}
	s.admin = &httpEndpoint{addr: s.cfg.Admin, handler: s.adminHandler()}
	return s.admin.open()
}

// Close stops the simulator and waits until its SMTP sessions have ended. It may
// be called again.
func (s *Server) Close() {
	for _, ln := range []net.Listener{s.smtp, s.mx, s.hve} {
		if ln != nil {
			ln.Close()
		}
	}
	if s.Exchange != nil {
		s.Exchange.Stop()
	}
	if s.Login != nil {
		s.Login.Stop()
	}
	for _, e := range []*httpEndpoint{s.entra, s.admin, s.imds} {
		if e != nil {
			e.end()
		}
	}
	s.wg.Wait()
}

// Forget drops all messages and starts the counters anew.
func (s *Server) Forget() {
	s.Exchange.Forget()
	s.ForgetRequests()
}

// SubmissionAddr returns host:port of the submission service, an IP address; the
// certificate is for smtp.office365.com and localhost as well.
func (s *Server) SubmissionAddr() string { return s.smtp.Addr().String() }

// MXAddr returns host:port of the MX endpoint, an IP address, "" without; the
// certificate is for all names below mail.protection.outlook.com as well.
func (s *Server) MXAddr() string {
	if s.mx == nil {
		return ""
	}
	return s.mx.Addr().String()
}

// HVEAddr returns host:port of High Volume Email, an IP address, "" without; the certificate is for
// its names as well.
func (s *Server) HVEAddr() string {
	if s.hve == nil {
		return ""
	}
	return s.hve.Addr().String()
}

// Authority returns the base URL of the token service.
func (s *Server) Authority() string { return s.entra.url() }

// TokenURL returns the token endpoint of the tenant.
func (s *Server) TokenURL() string { return s.Authority() + "/" + s.cfg.Tenant + "/oauth2/v2.0/token" }

// AdminAddr returns host:port of the admin service, "" without.
func (s *Server) AdminAddr() string {
	if s.admin == nil {
		return ""
	}
	return s.admin.address()
}

// IMDSAddr returns host:port of the managed identity endpoints, "" without.
func (s *Server) IMDSAddr() string {
	if s.imds == nil {
		return ""
	}
	return s.imds.address()
}

// AppServiceEndpoint returns what IDENTITY_ENDPOINT is in App Service, "" without.
func (s *Server) AppServiceEndpoint() string { return s.identityURL(entra.AppServicePath) }

// ArcEndpoint returns what IDENTITY_ENDPOINT is on a machine of Azure Arc, ""
// without Config.ArcKeys.
func (s *Server) ArcEndpoint() string {
	if s.cfg.ArcKeys == "" {
		return ""
	}
	return s.identityURL(entra.ArcPath)
}

func (s *Server) identityURL(path string) string {
	if s.imds == nil {
		return ""
	}
	return "http://" + s.imds.address() + path
}

// CA returns the certificate of the simulator's authority, PEM.
func (s *Server) CA() []byte { return s.ca.pem() }

// CAFile returns Config.CAFile.
func (s *Server) CAFile() string { return s.cfg.CAFile }
